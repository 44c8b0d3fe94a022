//! The state of a run, folded from its events.
//!
//! The terminal, the API and the history all ask the same question ("where is it, how
//! long did what take, what came out?"), so there is one answer to it. A [`RunView`] is
//! valid after any prefix of a valid stream; an event that cannot follow is refused and
//! leaves the view as it was.

use crate::event::{Failure, NoticeLevel, RunEvent, RunEventKind, RunOutput, StepOutcome, StepRef, Unit};
use crate::run::{Phase, RunState};

/// What is known of a run after some of its events.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RunView {
    /// Empty before the first event.
    pub run_id: String,
    pub template_name: String,
    pub source: String,
    pub attempt: u32,
    /// `None` before the first event.
    pub state: Option<RunState>,
    /// In order; the last one is the current.
    pub phases: Vec<PhaseView>,
    /// In the order they started.
    pub steps: Vec<StepView>,
    pub notices: Vec<(NoticeLevel, String)>,
    pub outputs: Vec<RunOutput>,
    /// One sentence, once the run ended.
    pub message: String,
    pub failure: Option<Failure>,
    /// Milliseconds since the run's worker started, at the last event.
    pub elapsed_ms: u64,
    /// Number of the event that follows.
    pub next_seq: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhaseView {
    pub phase: Phase,
    pub started_ms: u64,
    /// `None` while it lasts.
    pub ended_ms: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepView {
    pub step: StepRef,
    pub phase: Phase,
    pub attempt: u32,
    pub started_ms: u64,
    pub progress: Option<Progress>,
    /// `None` while it lasts, and for good if the run or its worker ended within it.
    pub outcome: Option<StepOutcome>,
    pub message: String,
    /// How long it took; 0 while it lasts.
    pub ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub done: u64,
    /// 0 where the end is not known.
    pub total: u64,
    pub unit: Unit,
}

/// An event that cannot follow those before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IllegalEvent {
    #[error("event {found} where {expected} follows")]
    OutOfOrder { expected: u64, found: u64 },
    #[error("the first event does not start the run")]
    NotStarted,
    #[error("the run ended already")]
    Ended,
    #[error("attempt {found} cannot follow attempt {before}")]
    Attempt { before: u32, found: u32 },
    #[error("the run {found} in the events of {expected}")]
    OtherRun { expected: String, found: String },
    #[error("phase {found} cannot follow {before}")]
    Phase { before: Phase, found: Phase },
    #[error("step \"{id}\" started twice")]
    StepTwice { id: String },
    #[error("step \"{id}\" is not running")]
    StepNotRunning { id: String },
    #[error("a run cannot end as {found:?} from {before:?}")]
    State { before: RunState, found: RunState },
}

impl RunView {
    /// Folds a whole stream.
    ///
    /// # Errors
    /// The first event that cannot follow.
    pub fn of<'a>(events: impl IntoIterator<Item = &'a RunEvent>) -> Result<RunView, IllegalEvent> {
        let mut view = RunView::default();
        for event in events {
            view.apply(event)?;
        }
        Ok(view)
    }

    /// The phase the run is in; `Queued` before the first one starts.
    pub fn phase(&self) -> Phase {
        self.phases.last().map_or(Phase::Queued, |phase| phase.phase)
    }

    /// Steps that started and did not end.
    pub fn running_steps(&self) -> impl Iterator<Item = &StepView> {
        let alive = self.state.is_some_and(|state| !state.is_final());
        let attempt = self.attempt;
        self.steps.iter().filter(move |step| alive && step.outcome.is_none() && step.attempt == attempt)
    }

    /// Takes one more event in.
    ///
    /// # Errors
    /// The event cannot follow; the view is unchanged.
    pub fn apply(&mut self, event: &RunEvent) -> Result<(), IllegalEvent> {
        if event.seq != self.next_seq {
            return Err(IllegalEvent::OutOfOrder { expected: self.next_seq, found: event.seq });
        }
        match self.state {
            None if !matches!(event.event, RunEventKind::RunStarted { .. }) => {
                return Err(IllegalEvent::NotStarted);
            }
            Some(state) if state.is_final() => return Err(IllegalEvent::Ended),
            _ => {}
        }
        let now = event.elapsed_ms;
        match &event.event {
            RunEventKind::RunStarted { run_id, template_name, source, attempt, .. } => {
                self.start(run_id, template_name, source, *attempt)?;
            }
            RunEventKind::PhaseStarted { phase } => self.enter(*phase, now)?,
            RunEventKind::StepStarted { step } => {
                if self.running(&step.id).is_some() {
                    return Err(IllegalEvent::StepTwice { id: step.id.clone() });
                }
                self.steps.push(StepView {
                    step: step.clone(),
                    phase: self.phase(),
                    attempt: self.attempt,
                    started_ms: now,
                    progress: None,
                    outcome: None,
                    message: String::new(),
                    ms: 0,
                });
            }
            RunEventKind::StepProgress { step, done, total, unit } => {
                let running = self.running_or(&step.id)?;
                running.progress = Some(Progress { done: *done, total: *total, unit: *unit });
            }
            RunEventKind::StepEnded { step, outcome, message, ms } => {
                let running = self.running_or(&step.id)?;
                running.outcome = Some(*outcome);
                running.message.clone_from(message);
                running.ms = *ms;
            }
            RunEventKind::Notice { level, text } => self.notices.push((*level, text.clone())),
            RunEventKind::OutputPublished { output } => {
                // A run output is overwritten by a later one of its name.
                self.outputs.retain(|known| known.name != output.name);
                self.outputs.push(output.clone());
            }
            RunEventKind::RunEnded { state, message, failure, .. } => {
                let before = self.state.unwrap_or(RunState::Running);
                if !state.is_final() || !before.may_become(*state) {
                    return Err(IllegalEvent::State { before, found: *state });
                }
                self.state = Some(*state);
                self.message.clone_from(message);
                self.failure.clone_from(failure);
                self.end_phase(now);
            }
        }
        self.elapsed_ms = now;
        self.next_seq += 1;
        Ok(())
    }

    fn start(
        &mut self,
        run_id: &str,
        template_name: &str,
        source: &str,
        attempt: u32,
    ) -> Result<(), IllegalEvent> {
        if self.state.is_some() {
            if run_id != self.run_id {
                let found = run_id.to_owned();
                return Err(IllegalEvent::OtherRun { expected: self.run_id.clone(), found });
            }
            if attempt <= self.attempt {
                return Err(IllegalEvent::Attempt { before: self.attempt, found: attempt });
            }
            // The clock starts anew with the worker; its phases come again.
            self.phases.clear();
        }
        self.run_id = run_id.to_owned();
        self.template_name = template_name.to_owned();
        self.source = source.to_owned();
        self.attempt = attempt;
        self.state = Some(RunState::Running);
        Ok(())
    }

    fn enter(&mut self, phase: Phase, now: u64) -> Result<(), IllegalEvent> {
        if let Some(current) = self.phases.last()
            && phase <= current.phase
        {
            return Err(IllegalEvent::Phase { before: current.phase, found: phase });
        }
        self.end_phase(now);
        self.phases.push(PhaseView { phase, started_ms: now, ended_ms: None });
        Ok(())
    }

    fn end_phase(&mut self, now: u64) {
        if let Some(last) = self.phases.last_mut() {
            last.ended_ms = Some(now);
        }
    }

    fn running(&mut self, id: &str) -> Option<&mut StepView> {
        let attempt = self.attempt;
        self.steps
            .iter_mut()
            .rev()
            .find(|step| step.step.id == id && step.outcome.is_none() && step.attempt == attempt)
    }

    fn running_or(&mut self, id: &str) -> Result<&mut StepView, IllegalEvent> {
        self.running(id).ok_or_else(|| IllegalEvent::StepNotRunning { id: id.to_owned() })
    }
}

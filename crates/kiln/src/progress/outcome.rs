//! What is left of a run when it has ended: its parts, gathered from its events.

use kiln_model::event::{Failure, RunEvent, RunEventKind, RunOutput};
use kiln_model::run::{Phase, RunState};

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    pub run_id: String,
    pub template: String,
    /// Phases in the order they were entered, with their milliseconds; the one that runs has 0.
    pub phases: Vec<(Phase, u64)>,
    pub outputs: Vec<RunOutput>,
    pub warnings: Vec<String>,
    pub end: Option<End>,
    phase_started_ms: u64,
}

/// The last event of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    pub state: RunState,
    pub message: String,
    pub failure: Option<Failure>,
    pub ms: u64,
}

impl Outcome {
    pub fn fold(&mut self, event: &RunEvent) {
        match &event.event {
            RunEventKind::RunStarted { run_id, template_name, .. } => {
                self.run_id.clone_from(run_id);
                self.template.clone_from(template_name);
            }
            RunEventKind::PhaseStarted { phase } => {
                self.close_phase(event.elapsed_ms);
                self.phases.push((*phase, 0));
                self.phase_started_ms = event.elapsed_ms;
            }
            RunEventKind::OutputPublished { output } => self.outputs.push(output.clone()),
            RunEventKind::Notice { level: kiln_model::event::NoticeLevel::Warning, text } => {
                self.warnings.push(text.clone());
            }
            RunEventKind::RunEnded { state, message, failure, ms } => {
                self.close_phase(event.elapsed_ms);
                self.end = Some(End {
                    state: *state,
                    message: message.clone(),
                    failure: failure.clone(),
                    // A run that was settled after its worker's death has no time of its own.
                    ms: (*ms).max(event.elapsed_ms),
                });
            }
            RunEventKind::Notice { .. }
            | RunEventKind::StepStarted { .. }
            | RunEventKind::StepProgress { .. }
            | RunEventKind::StepEnded { .. } => {}
        }
    }

    fn close_phase(&mut self, now_ms: u64) {
        if let Some((_, ms)) = self.phases.last_mut() {
            *ms = now_ms.saturating_sub(self.phase_started_ms);
        }
    }
}

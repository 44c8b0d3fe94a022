//! What the store says about a run: every change of it in one transaction.
//!
//! INVARIANT: a run's row, its template's last run, and the end of its operations change together.
//! The store is read again inside the transaction, so that two who change one run (its follower
//! and a cancel) never undo one another.

use kiln_build::run_dir::RunId;
use kiln_model::event::{RunEvent, RunEventKind, RunOutput};
use kiln_model::run::{Fault, Phase, RunState};

use super::messages;
use crate::store::{
    OperationError, OperationKind, OperationStatus, OutputRecord, RunRecord, Store, StoreError,
    TemplateRecord, Writer,
};

/// RFC 3339, UTC.
pub(super) fn now() -> String {
    jiff::Timestamp::now().to_string()
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    pub state: RunState,
    /// One sentence of Kiln's own.
    pub cause: String,
    pub fault: Option<Fault>,
    pub at: String,
}

impl End {
    /// Of a run's last event.
    pub fn of(event: &RunEvent) -> Option<Self> {
        let RunEventKind::RunEnded { state, message, failure, .. } = &event.event else { return None };
        Some(Self {
            state: *state,
            cause: message.clone(),
            fault: failure.as_ref().map(|failure| failure.fault),
            at: event.time.clone(),
        })
    }

    pub fn failed(cause: impl Into<String>, fault: Fault) -> Self {
        Self { state: RunState::Failed, cause: cause.into(), fault: Some(fault), at: now() }
    }

    pub fn canceled(cause: impl Into<String>) -> Self {
        Self { state: RunState::Canceled, cause: cause.into(), fault: None, at: now() }
    }
}

/// What of a run's events the store keeps.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Note {
    Attempt(u32),
    Phase(Phase),
    Output(Box<RunOutput>),
}

impl Note {
    pub fn of(event: &RunEvent) -> Option<Self> {
        match &event.event {
            RunEventKind::RunStarted { attempt, .. } => Some(Self::Attempt(*attempt)),
            RunEventKind::PhaseStarted { phase } => Some(Self::Phase(*phase)),
            RunEventKind::OutputPublished { output } => Some(Self::Output(Box::new(output.clone()))),
            _ => None,
        }
    }
}

/// Changes a run that has not ended; one that has stays as it is. Returns whether it was changed.
pub(super) async fn change(
    store: &Store,
    id: &RunId,
    change: impl FnOnce(&mut RunRecord) + Send + 'static,
) -> Result<bool, StoreError> {
    let id = id.clone();
    store.write(move |w| change_in(w, &id, change)).await
}

fn change_in(w: &Writer<'_>, id: &RunId, change: impl FnOnce(&mut RunRecord)) -> Result<bool, StoreError> {
    let Some(mut run) = w.run(id)?.filter(|run| !run.state.is_final()) else { return Ok(false) };
    let before = run.clone();
    change(&mut run);
    if run != before {
        w.update_run(&run)?;
    }
    Ok(true)
}

/// Keeps what was noted, in one transaction.
pub(super) async fn note(store: &Store, id: &RunId, notes: Vec<Note>) -> Result<(), StoreError> {
    let id = id.clone();
    store
        .write(move |w| {
            let Some(run) = w.run(&id)? else { return Ok(()) };
            for note in &notes {
                if let Note::Output(output) = note {
                    w.put_output(&OutputRecord {
                        template: run.template.clone(),
                        name: output.name.clone(),
                        run: id.clone(),
                        created_at: output.created_at.clone(),
                        output: (**output).clone(),
                    })?;
                }
            }
            change_in(w, &id, |run| {
                for note in notes {
                    match note {
                        Note::Attempt(attempt) => run.attempt = attempt,
                        Note::Phase(phase) => run.phase = Some(phase),
                        Note::Output(_) => {}
                    }
                }
            })?;
            Ok(())
        })
        .await
}

/// Ends a run and every operation that waits for it.
pub(super) async fn end(store: &Store, id: &RunId, end: End) -> Result<(), StoreError> {
    let id = id.clone();
    store
        .write(move |w| {
            let Some(run) = w.run(&id)? else { return Ok(()) };
            let text = messages::of_end(end.state, &end.cause, &run.template, &id, &run.operation);
            change_in(w, &id, |run| {
                run.state = end.state;
                run.message = text.message.clone();
                run.fault = end.fault;
                run.ended_at = Some(end.at.clone());
            })?;
            // What was ended before ends no second time; only what waits is listed.
            for mut operation in w.unfinished_operations()? {
                if operation.run.as_ref() != Some(&id) {
                    continue;
                }
                (operation.status, operation.error) = match operation.kind {
                    OperationKind::Cancel => cancel_end(end.state),
                    _ => (text.status, text.error.clone()),
                };
                operation.ended_at = Some(end.at.clone());
                w.update_operation(&operation)?;
            }
            Ok(())
        })
        .await
}

/// A cancel that came too late says so: what was to be canceled is done, and there.
fn cancel_end(state: RunState) -> (OperationStatus, Option<OperationError>) {
    match state {
        RunState::Canceled => (OperationStatus::Succeeded, None),
        other => {
            let message = format!("The run ended as {other:?} before the cancel reached it.");
            let error = OperationError { code: "OperationNotAllowed".to_owned(), message };
            (OperationStatus::Failed, Some(error))
        }
    }
}

/// The template a run is of, as it is now.
pub(super) async fn template_of(
    store: &Store,
    run: &RunRecord,
) -> Result<Option<TemplateRecord>, StoreError> {
    let id = run.template.clone();
    store.read(move |r| r.template(&id)).await
}

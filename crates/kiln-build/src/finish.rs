//! The end of a run, whatever its reason.
//!
//! INVARIANT: a run ends once, here (or, where its worker died, when it is settled).

use kiln_host::wait::Interrupted;
use kiln_model::event::{Failure, RunEventKind, StepRef};
use kiln_model::run::{Fault, Phase, RunState};

use crate::claim::Claimed;
use crate::distribute::{Distributed, Missed};
use crate::error::BuildError;
use crate::journal::millis;
use crate::log::tail;
use crate::workspace;

/// Shown of each log when a run fails.
const TAIL_LINES: usize = 15;

pub fn finish(claimed: Claimed, result: Result<Distributed, BuildError>) -> RunState {
    let Claimed { dir, request, plan, journal, log, transcript, control, .. } = &claimed;
    let result = result.and_then(|distributed| match log.take_error().or_else(|| journal.take_error()) {
        Some(error) => Err(BuildError::Journal(error)),
        None => Ok(distributed),
    });
    let whole = result.as_ref().is_ok_and(|distributed| distributed.missed.is_empty());
    let left = crate::debug::is_left(dir);
    let keep = !whole && (request.keep_on_error || left);
    let (phase, step) = journal.position();
    // A shorter bound of its own (the login's, say) may have ended a wait: only the
    // run's own bound makes it a cancel or a time-out.
    let ended_by = control.check().err();
    let failure = |fault, phase, step, cause: &str, chain| Failure {
        fault,
        phase,
        step,
        cause: cause.to_owned(),
        chain,
        log_tail: tail(&dir.customization_log(), TAIL_LINES),
        console_tail: tail(&dir.serial_log(), TAIL_LINES),
    };
    let (state, message, failure) = match result {
        Ok(Distributed { outputs, missed }) => {
            let names: Vec<&str> = outputs.iter().map(|output| output.file.as_str()).collect();
            let made = format!("{} made", names.join(", "));
            match missed.first() {
                None => (RunState::Succeeded, made, None),
                Some(first) => {
                    let causes: Vec<String> = missed.iter().map(|missed| missed.error.sentence()).collect();
                    let causes = causes.join("; ");
                    let Missed { step, error } = first;
                    let failure = failure(
                        error.fault(),
                        Phase::Distributing,
                        Some(step.clone()),
                        &causes,
                        error.chain(),
                    );
                    if outputs.is_empty() {
                        (RunState::Failed, causes, Some(failure))
                    } else {
                        (RunState::PartiallySucceeded, format!("{made}; {causes}"), Some(failure))
                    }
                }
            }
        }
        Err(error) if error.interrupted().is_some() && ended_by == Some(Interrupted::Canceled) => {
            (RunState::Canceled, "the run was canceled".to_owned(), None)
        }
        Err(error) => {
            let timed_out = error.interrupted().is_some() && ended_by == Some(Interrupted::DeadlinePassed);
            let (fault, cause) = if timed_out {
                (Fault::Template, timeout_text(plan.timeout_minutes, phase, step.as_ref()))
            } else {
                (error.fault(), error.sentence())
            };
            // Inputs are many, and each that failed is in the log already.
            if timed_out || !matches!(error, BuildError::Input { .. }) {
                log.error(&cause);
            }
            let failure = failure(fault, phase, step, &cause, error.chain());
            (RunState::Failed, cause, Some(failure))
        }
    };
    // Before the work folder goes, where it was taken down.
    if let Some(transcript) = transcript
        && let Err(error) = transcript.publish(dir, request, plan, state, &message)
    {
        journal.warn(format!("the transcript {} was not written: {error}", dir.transcript().display()));
    }
    if !keep && let Err(error) = workspace::remove(dir) {
        journal.warn(format!("the run's work folder {} was not removed: {error}", dir.work().display()));
    }
    if keep {
        journal.info(format!("kept for a look: {}", dir.work().display()));
    }
    if left {
        journal.info(format!("`kiln debug {}` opens the machine as it was", request.run_id));
    }
    let ms = millis(journal.elapsed());
    journal.append(RunEventKind::RunEnded { state, message, failure, ms });
    state
}

/// The service's own words, which people search for, and what ran.
fn timeout_text(minutes: u32, phase: Phase, step: Option<&StepRef>) -> String {
    let during = step.map_or_else(|| phase.to_string(), |step| step.title.clone());
    format!(
        "Timeout waiting for microservice to complete: 'context deadline exceeded' \
         (buildTimeoutInMinutes is {minutes}; it ran: {during})"
    )
}

//! Going on with a run whose worker, QEMU or host died: once, from the last machine that it kept.
//!
//! ```text
//!   worker gone ─► may_go_on ─► another worker on the same run directory, attempt 2
//!   QEMU gone   ─► the same worker, attempt 2
//!                    └─► both begin as every run does, with what is kept; the run's own checkpoints are the newest
//! ```
//! A second death ends the run with its reason.

use kiln_model::event::{RunEventKind, StepOutcome, read_events};
use kiln_qemu::vm::VmError;

use crate::error::BuildError;
use crate::run_dir::{Request, RunDir, RunRequest};

/// What is said of a machine that could not be kept.
pub const NOT_KEPT: &str = "not kept";
/// A run has so many attempts at most.
pub const ATTEMPTS: u32 = 2;

/// Whether a run without a worker may have another one: it kept something, and may use it; it has not ended, nobody
/// wants it to, and it is its first attempt.
pub fn may_go_on(dir: &RunDir) -> bool {
    let Ok(request) = dir.read_request() else { return false };
    let Ok(Some(claim)) = dir.read_claim() else { return false };
    reuses(&request)
        && claim.attempt < ATTEMPTS
        && !dir.is_asked(Request::Cancel)
        && std::fs::read(dir.events()).is_ok_and(|bytes| kept_something(&bytes))
}

/// Whether QEMU's end, and not the guest's or the template's fault, ended an attempt.
pub(crate) fn was_qemus_end(error: &BuildError) -> bool {
    matches!(error, BuildError::Vm(VmError::Exited { .. } | VmError::Stopped { .. }))
}

pub(crate) fn reuses(request: &RunRequest) -> bool {
    request.checkpoints.as_ref().is_some_and(|wishes| wishes.reuse && wishes.keep)
}

/// Whether the events of a run that has not ended tell of a machine that was kept.
pub(crate) fn kept_something(events: &[u8]) -> bool {
    let Ok(log) = read_events(events) else { return false };
    let ended = log.events.iter().any(|event| matches!(event.event, RunEventKind::RunEnded { .. }));
    let kept = log.events.iter().any(|event| {
        matches!(
            &event.event,
            RunEventKind::StepEnded { step, outcome: StepOutcome::Succeeded, message, .. }
                if (step.id.starts_with("checkpoint/") && message != NOT_KEPT) || step.id == "restore"
        )
    });
    kept && !ended
}

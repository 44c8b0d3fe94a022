//! Settling: bringing a run to its end whose worker is gone.
//!
//! The lock is the proof that nobody works on it any more. Then the work folder and
//! half-made artifacts go, and the end is written: by the one function and the one
//! writer that every end goes through.

use std::io;
use std::path::PathBuf;

use kiln_build::journal::Journal;
use kiln_build::run_dir::{Request, RunDir, RunDirError};
use kiln_host::lock::FileLock;
use kiln_model::event::{Failure, RunEventKind};
use kiln_model::run::{Fault, Phase, RunState};

/// A run could not be settled.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    #[error("a worker still holds the run {}", .0.display())]
    Alive(PathBuf),
    #[error("could not clean up {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("could not clean up the library")]
    Library(#[source] kiln_build::BuildError),
    #[error(transparent)]
    RunDir(#[from] RunDirError),
}

/// Ends a run whose worker ended without a last event; `how` says how the worker went.
///
/// A canceled run becomes Canceled, any other Failed. Returns the state
/// the run has, which may have been written before.
pub fn settle(dir: &RunDir, how: &str) -> Result<RunState, SettleError> {
    let io = |path: PathBuf| move |source| SettleError::Io { path, source };
    let _lock = FileLock::try_exclusive(dir.lock())
        .map_err(io(dir.lock()))?
        .ok_or_else(|| SettleError::Alive(dir.path().to_owned()))?;
    let request = dir.read_request()?;
    if !request.keep_on_error {
        kiln_build::workspace::remove(dir).map_err(io(dir.work()))?;
    }
    if let Some(claim) = dir.read_claim()? {
        kiln_build::workspace::remove_sockets(&claim).map_err(io(claim.sockets.clone()))?;
    }
    kiln_build::workspace::sweep_library(&request).map_err(SettleError::Library)?;
    if request.output_dir.is_dir() {
        kiln_host::publish::remove_leftovers(&request.output_dir).map_err(io(request.output_dir.clone()))?;
    }
    let journal = Journal::open(&dir.events()).map_err(io(dir.events()))?;
    // It may have ended in the moment before its worker did.
    if let Some(state) = journal.ended() {
        return Ok(state);
    }
    let canceled = dir.is_asked(Request::Cancel);
    let (state, message) = if canceled {
        (RunState::Canceled, "the run was canceled and its worker killed".to_owned())
    } else {
        (RunState::Failed, format!("the worker ended without finishing the run ({how})"))
    };
    let failure = (!canceled).then(|| Failure {
        fault: Fault::Host,
        phase: Phase::Building,
        step: None,
        cause: message.clone(),
        chain: Vec::new(),
        log_tail: kiln_build::log::tail(&dir.worker_log(), 10),
        console_tail: Vec::new(),
    });
    let ms = u64::try_from(journal.elapsed().as_millis()).unwrap_or(u64::MAX);
    journal.append(RunEventKind::RunEnded { state, message, failure, ms });
    match journal.take_error() {
        Some(error) => Err(SettleError::Io { path: dir.events(), source: error }),
        None => Ok(state),
    }
}

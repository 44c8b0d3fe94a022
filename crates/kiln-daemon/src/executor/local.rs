//! Workers on this host: a process in a session of its own for each run.
//!
//! Whether a worker lives is answered by the lock of its run directory, which the
//! kernel takes back when the worker ends, however it ends.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use kiln_build::run_dir::{Request, RunDir, RunDirError, RunRequest};
use kiln_host::process::{Child, Invocation, ProcessError, Sink, SpawnOptions};
use kiln_model::plan::BuildPlan;

/// A run could not be prepared or its worker not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("could not prepare the run's directory")]
    RunDir(#[from] RunDirError),
    #[error("could not write {}", path.display())]
    Write { path: std::path::PathBuf, source: std::io::Error },
    #[error("could not start the worker")]
    Process(#[from] ProcessError),
}

/// Makes the run directory with everything a worker needs to know.
pub fn prepare(runs_root: &Path, plan: &BuildPlan, request: &RunRequest) -> Result<RunDir, StartError> {
    let dir = RunDir::create(runs_root, &request.run_id)?;
    let path = dir.plan();
    kiln_host::publish::write_file(&path, plan.to_json().as_bytes(), 0o600)
        .map_err(|source| StartError::Write { path, source })?;
    dir.write_request(request)?;
    Ok(dir)
}

/// Starts the worker of a prepared run. It outlives the caller.
///
/// `worker` is the command without the run directory, which is added as its last argument.
pub fn start(dir: &RunDir, worker: Invocation) -> Result<Child, StartError> {
    let path = dir.worker_log();
    let open = || OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
    let write = |source| StartError::Write { path: path.clone(), source };
    let (out, err) = (open().map_err(write)?, open().map_err(write)?);
    Ok(worker
        .arg(dir.path())
        .spawn_session(SpawnOptions { stdout: Sink::File(out), stderr: Sink::File(err) })?)
}

/// Whether a worker holds the run.
pub fn is_alive(dir: &RunDir) -> std::io::Result<bool> {
    kiln_host::lock::is_held(dir.lock())
}

/// Asks the worker to end the run and clean up. Does not wait.
pub fn cancel(dir: &RunDir) -> Result<(), RunDirError> {
    dir.ask(Request::Cancel)
}

/// Ends the worker and everything it started, at once. What it leaves is for [`crate::settle`].
pub fn kill(worker: &Child) {
    // QEMU dies with the worker: it asked the kernel for that when it was started.
    worker.kill_group();
}

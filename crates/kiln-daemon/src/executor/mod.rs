//! Executors: where a worker runs.
//!
//! ```text
//!  prepare ─► run directory ─► Executor::start ─► Worker ── ended(), kill()
//!                                 ▲
//!  a run directory found at start ┘ Executor::find: the lock says whether a worker lives,
//!                                   the claim which process it is
//! ```
//! There is one so far, this host ([`local`]); a cluster's scheduler is the next variant,
//! with the same run directory on a shared file system. Whether a worker lives is the
//! executor's answer, never a guess from a process id.

pub mod local;
mod ownership;
pub mod placement;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use kiln_build::run_dir::{Request, RunDir, RunDirError, RunRequest};
use kiln_host::process::{IdentityError, Invocation, ProcessError};
use kiln_model::plan::BuildPlan;

pub use local::{Local, Worker};
pub use placement::Placement;

/// How `kiln worker` is started; the run directory is added as its last argument.
///
/// Its environment may hold a proxy's password: no `Debug`.
#[derive(Clone)]
pub struct WorkerCommand {
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// Everything the worker needs to know of its surroundings: under systemd it inherits nothing else.
    pub env: Vec<(OsString, OsString)>,
}

impl WorkerCommand {
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), args: Vec::new(), env: Vec::new() }
    }

    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    fn invocation(&self, dir: &RunDir) -> Invocation {
        let start = Invocation::new(&self.program).args(&self.args).arg(dir.path());
        self.env.iter().fold(start, |start, (name, value)| start.env(name, value))
    }
}

/// A run could not be prepared or its worker not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("could not prepare the run's directory")]
    RunDir(#[from] RunDirError),
    #[error("could not write {}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("could not start the worker")]
    Process(#[from] ProcessError),
    #[error("could not give {} to the user that workers run as", path.display())]
    Ownership { path: PathBuf, source: std::io::Error },
    #[error("workers cannot run as the configured user")]
    Identity(#[from] IdentityError),
    #[error(
        "workers are to run as {user}, but only root can start them as another user: run the server as root, or leave runs.workerUser out"
    )]
    NotRoot { user: String },
    #[error("could not follow the worker that was started")]
    Follow(#[source] std::io::Error),
}

/// Where workers run. A closed set: what differs between hosts and clusters is behind it.
pub enum Executor {
    Local(Local),
}

impl Executor {
    /// Starts the worker of a prepared run. It outlives the caller, and this process.
    pub async fn start(&self, dir: &RunDir) -> Result<Worker, StartError> {
        match self {
            Self::Local(local) => local.start(dir).await,
        }
    }

    /// The living worker of a run, whoever started it; `None` where none lives.
    pub fn find(&self, dir: &RunDir) -> std::io::Result<Option<Worker>> {
        match self {
            Self::Local(_) => local::find(dir),
        }
    }

    /// Hands a prepared run's files to the user its worker runs as.
    pub fn hand_over(&self, dir: &RunDir, request: &RunRequest) -> Result<(), StartError> {
        match self {
            Self::Local(local) => local.hand_over(dir, request),
        }
    }
}

/// Makes the run directory with everything a worker needs to know.
///
/// The request is written last: a directory without one was never complete.
pub fn prepare(runs_root: &Path, plan: &BuildPlan, request: &RunRequest) -> Result<RunDir, StartError> {
    let dir = RunDir::create(runs_root, &request.run_id)?;
    let path = dir.plan();
    kiln_host::publish::write_file(&path, plan.to_json().as_bytes(), 0o600)
        .map_err(|source| StartError::Write { path, source })?;
    dir.write_request(request)?;
    Ok(dir)
}

/// Asks the worker to end the run and clean up. Does not wait.
pub fn cancel(dir: &RunDir) -> Result<(), RunDirError> {
    dir.ask(Request::Cancel)
}

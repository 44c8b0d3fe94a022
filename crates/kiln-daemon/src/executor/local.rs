//! Workers on this host: a process of its own for each run.
//!
//! Whether a worker lives is answered by the lock of its run directory, which the
//! kernel takes back when the worker ends, however it ends. Which process holds it
//! is in the claim. Where the worker is put (a session of its own, a systemd unit of
//! its own) is the [`Placement`]'s matter; either way it outlives its starter, and
//! QEMU is the worker's child and dies with it.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use kiln_build::run_dir::{RunDir, RunRequest};
use kiln_host::lock::FileLock;
use kiln_host::process::{Child, Identity, Process, ProcessMark, Sink, SpawnOptions, describe_status};
use kiln_host::wait::Control;
use tokio_util::sync::CancellationToken;

use super::placement::{Placement, Unit};
use super::{StartError, WorkerCommand, ownership};

/// systemd answers at once, or something is wrong with it.
const SYSTEMD_ANSWERS: Duration = Duration::from_secs(30);

/// This host.
pub struct Local {
    command: WorkerCommand,
    placement: Placement,
    /// Whom workers run as, where that is another user than ours.
    identity: Option<Identity>,
}

/// A worker of this host, living or ended. Dropping it does nothing to it.
pub enum Worker {
    /// We started it.
    Child(Child),
    /// Somebody else did: an earlier server, or systemd for us.
    Process(Process),
    /// It holds the lock, but the kernel does not let us watch its process.
    Holder(RunDir),
    /// It had ended before it could be looked at.
    Gone(String),
}

impl Local {
    /// Workers in sessions of their own, as this process's user: what a command needs that watches one run.
    pub fn plain(command: WorkerCommand) -> Self {
        Self { command, placement: Placement::Session { inside_service: None }, identity: None }
    }

    /// Workers as `worker_user` (or as we are), placed where they outlive a restart of this server.
    pub fn open(
        command: WorkerCommand,
        placement: Placement,
        worker_user: Option<&str>,
    ) -> Result<Self, StartError> {
        let identity = match worker_user {
            None => None,
            Some(user) => {
                let identity = Identity::of(user)?;
                let own = rustix::process::geteuid();
                if identity.uid() == own.as_raw() {
                    None
                } else if own.is_root() {
                    Some(identity)
                } else {
                    return Err(StartError::NotRoot { user: user.to_owned() });
                }
            }
        };
        Ok(Self { command, placement, identity })
    }

    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The user workers run as, where it is another than ours.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Starts the worker of a prepared run.
    pub async fn start(&self, dir: &RunDir) -> Result<Worker, StartError> {
        match self.placement.unit(dir, self.identity.as_ref()) {
            None => self.start_session(dir),
            Some(unit) => self.start_unit(dir, &unit).await,
        }
    }

    fn start_session(&self, dir: &RunDir) -> Result<Worker, StartError> {
        let (stdout, stderr) = (Sink::File(self.worker_log(dir)?), Sink::File(self.worker_log(dir)?));
        let mut worker = self.command.invocation(dir);
        if let Some(identity) = &self.identity {
            // As login programs set them; what the command says of its surroundings counts more, and is set already.
            for (name, value) in [
                ("HOME", identity.home().as_os_str()),
                ("USER", identity.name().as_ref()),
                ("LOGNAME", identity.name().as_ref()),
            ] {
                if !self.command.env.iter().any(|(given, _)| given == name) {
                    worker = worker.env(name, value);
                }
            }
        }
        let options = SpawnOptions { stdout, stderr, no_new_privs: true, identity: self.identity.clone() };
        Ok(Worker::Child(worker.spawn_session(options)?))
    }

    async fn start_unit(&self, dir: &RunDir, unit: &Unit) -> Result<Worker, StartError> {
        drop(self.worker_log(dir)?);
        // Not on the command line and not in the unit's own properties: anybody may read those.
        let env = EnvironmentFile::write(dir, &self.command.env)?;
        let control = Control::ending_in(SYSTEMD_ANSWERS);
        unit.start(&self.command, dir, &env.path).run(&control).await?;
        drop(env);
        let said = unit.main_pid().run(&control).await?.stdout_text();
        let gone = || {
            Worker::Gone(format!(
                "it ended as soon as it was started; journalctl -u {} may say more",
                unit.name()
            ))
        };
        let pid: u32 = said.trim().parse().unwrap_or(0);
        if pid == 0 {
            return Ok(gone());
        }
        let mark = match ProcessMark::of(pid) {
            Ok(mark) => mark,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(gone()),
            Err(error) => return Err(StartError::Follow(error)),
        };
        match Process::open(&mark).map_err(StartError::Follow)? {
            Some(process) => Ok(Worker::Process(process)),
            None => Ok(gone()),
        }
    }

    /// What the worker itself says goes here, whoever it runs as.
    fn worker_log(&self, dir: &RunDir) -> Result<std::fs::File, StartError> {
        let path = dir.worker_log();
        let opened = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path);
        let file = opened.map_err(|source| StartError::Write { path: path.clone(), source })?;
        if let Some(identity) = &self.identity {
            ownership::give_file(&file, identity).map_err(|source| StartError::Ownership { path, source })?;
        }
        Ok(file)
    }

    /// Hands a prepared run's directory, its output folder and the library to the user its worker runs as.
    pub fn hand_over(&self, dir: &RunDir, request: &RunRequest) -> Result<(), StartError> {
        let Some(identity) = &self.identity else { return Ok(()) };
        for path in [dir.path(), request.output_dir.as_path(), request.library.as_path()] {
            ownership::give_tree(path, identity)
                .map_err(|source| StartError::Ownership { path: path.to_owned(), source })?;
        }
        Ok(())
    }
}

impl Worker {
    /// Waits for its end and says how it went, as far as that can be known. May be called again.
    pub async fn ended(&self) -> String {
        const UNSEEN: &str = "it is gone; its exit status is known only to whoever started it";
        match self {
            Self::Child(child) => match child.wait().await {
                Ok(status) => describe_status(status),
                Err(error) => error.to_string(),
            },
            Self::Process(process) => match process.ended().await {
                Ok(()) => UNSEEN.to_owned(),
                Err(error) => format!("it can no longer be watched: {error}"),
            },
            Self::Holder(dir) => {
                let unbounded = Control::new(CancellationToken::new(), None);
                match FileLock::exclusive(dir.lock(), &unbounded).await {
                    Ok(_) => UNSEEN.to_owned(),
                    Err(error) => error.to_string(),
                }
            }
            Self::Gone(how) => how.clone(),
        }
    }

    /// Ends the worker and everything it started, at once. What it leaves is for [`crate::settle`].
    pub fn kill(&self) {
        // QEMU and all other programs die with the worker: it asked the kernel for that when it started them.
        match self {
            Self::Child(child) => child.kill_group(),
            Self::Process(process) => process.kill(),
            Self::Holder(dir) => match find(dir) {
                Ok(Some(Self::Process(process))) => process.kill(),
                _ => {
                    tracing::warn!(run = %dir.path().display(), "this worker's process cannot be reached to be killed")
                }
            },
            Self::Gone(_) => {}
        }
    }

    /// `None` where it is not known any more, or not to us.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::Child(child) => Some(child.pid()),
            Self::Process(process) => Some(process.pid()),
            Self::Holder(_) | Self::Gone(_) => None,
        }
    }
}

/// Whether a worker holds the run.
pub fn is_alive(dir: &RunDir) -> io::Result<bool> {
    kiln_host::lock::is_held(dir.lock())
}

/// The worker that holds the run, whoever started it.
pub fn find(dir: &RunDir) -> io::Result<Option<Worker>> {
    if !is_alive(dir)? {
        return Ok(None);
    }
    let holder = || Ok(Some(Worker::Holder(dir.clone())));
    // It takes the lock, and then writes its claim.
    let Ok(Some(claim)) = dir.read_claim() else { return holder() };
    match Process::open(&claim.mark()) {
        Ok(Some(process)) => Ok(Some(Worker::Process(process))),
        // Gone in this moment; or the claim is an earlier worker's.
        Ok(None) if !is_alive(dir)? => Ok(None),
        Ok(None) => holder(),
        Err(error) => {
            tracing::warn!(%error, run = %dir.path().display(), "a worker's process cannot be watched; its lock is");
            holder()
        }
    }
}

/// Variables for systemd to read, gone when the unit has begun.
struct EnvironmentFile {
    path: PathBuf,
}

impl EnvironmentFile {
    fn write(dir: &RunDir, env: &[(std::ffi::OsString, std::ffi::OsString)]) -> Result<Self, StartError> {
        let file = Self { path: dir.path().join("worker.env") };
        let text = super::placement::environment_file(env);
        kiln_host::publish::write_file(&file.path, &text, 0o600)
            .map_err(|source| StartError::Write { path: file.path.clone(), source })?;
        Ok(file)
    }
}

impl Drop for EnvironmentFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, file = %self.path.display(), "a worker's environment was not removed");
        }
    }
}

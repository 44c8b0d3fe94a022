//! Children: started from a thread that lives as long as they do.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::sync::watch;

use super::{Identity, Invocation, ProcessError};

/// Where one of a child's output streams goes.
#[derive(Debug, Default)]
pub enum Sink {
    #[default]
    Null,
    /// To be read by [`Child::take_stdout`] or [`Child::take_stderr`]. Whoever asks for a pipe must drain it.
    Pipe,
    /// Into an open file, from its position.
    File(File),
}

impl From<Sink> for Stdio {
    fn from(sink: Sink) -> Self {
        match sink {
            Sink::Null => Self::null(),
            Sink::Pipe => Self::piped(),
            Sink::File(file) => Self::from(file),
        }
    }
}

#[derive(Debug, Default)]
pub struct SpawnOptions {
    pub stdout: Sink,
    pub stderr: Sink,
    /// Neither the program nor anything it starts can gain rights it does not have now (prctl(2),
    /// `PR_SET_NO_NEW_PRIVS`): set-user-ID programs and file capabilities do nothing for it.
    pub no_new_privs: bool,
    /// Runs as this user; only root may ask for another than itself.
    pub identity: Option<Identity>,
}

/// A running program, or one that has ended. Dropping it kills its group, unless it leads a session of its own.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    command: String,
    leash: Arc<Leash>,
    ended: watch::Receiver<Option<ExitStatus>>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    survives: bool,
}

impl Invocation {
    /// Starts a child that dies with us: it leads a process group of its own and gets `SIGKILL` when we end,
    /// however we end.
    pub fn spawn(&self, options: SpawnOptions) -> Result<Child, ProcessError> {
        self.start(options, Bond::DiesWithUs)
    }

    /// Starts a child that outlives us: it leads a session of its own, and neither our end nor the drop of the
    /// returned [`Child`] touches it.
    pub fn spawn_session(&self, options: SpawnOptions) -> Result<Child, ProcessError> {
        self.start(options, Bond::OwnSession)
    }

    fn start(&self, options: SpawnOptions, bond: Bond) -> Result<Child, ProcessError> {
        let leash = Arc::new(Leash::default());
        let (ended_tx, ended) = watch::channel(None);
        let (started_tx, started) = std::sync::mpsc::sync_channel(1);
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(options.stdout).stderr(options.stderr);
        let rights = Rights { no_new_privs: options.no_new_privs, identity: options.identity };
        let thread = {
            let leash = Arc::clone(&leash);
            move || {
                let mut child = match spawn_bound(&mut command, bond, rights) {
                    Ok(child) => child,
                    Err(error) => return drop(started_tx.send(Err(error))),
                };
                // Our ends of the pipes' other side must close with the child's.
                drop(command);
                let pid = child.id();
                leash.started(pid);
                let pipes = (child.stdout.take(), child.stderr.take());
                // Nobody receives when the starter died meanwhile; its leash is then pulled by the drop below.
                let _ = started_tx.send(Ok((pid, pipes)));
                if let Ok(status) = leash.reap(&mut child) {
                    let _ = ended_tx.send(Some(status));
                }
            }
        };
        let (pid, (stdout, stderr)) = thread::Builder::new()
            .name(self.thread_name())
            .spawn(thread)
            .and_then(|_| started.recv().map_err(io::Error::other)?)
            .map_err(|error| self.start_error(error))?;
        let survives = matches!(bond, Bond::OwnSession);
        Ok(Child { pid, command: self.to_string(), leash, ended, stdout, stderr, survives })
    }

    /// Thread names are cut at 15 bytes by the kernel; the program's own name is what helps in a debugger.
    pub(super) fn thread_name(&self) -> String {
        let program = std::path::Path::new(&self.program);
        format!("child {}", program.file_name().unwrap_or_default().to_string_lossy()).replace('\0', "?")
    }

    pub(super) fn start_error(&self, source: io::Error) -> ProcessError {
        let missing_dir = self.current_dir.as_ref().is_some_and(|dir| !dir.is_dir());
        if source.kind() == io::ErrorKind::NotFound && !missing_dir {
            return ProcessError::NotFound { program: self.program.to_string_lossy().into_owned() };
        }
        ProcessError::Start { command: self.to_string(), source }
    }
}

impl Child {
    /// The process id, which is also the id of its group. It may be another process's after the end.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The command as one could type it.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Waits for the end. May be called again, and by several at once; dropping the future loses nothing.
    pub async fn wait(&self) -> Result<ExitStatus, ProcessError> {
        let mut ended = self.ended.clone();
        let status = ended.wait_for(Option::is_some).await.ok().and_then(|status| *status);
        status.ok_or_else(|| ProcessError::Wait {
            command: self.command.clone(),
            source: io::Error::other("nobody waits for it any more"),
        })
    }

    /// How it ended, if it has.
    pub fn status(&self) -> Option<ExitStatus> {
        *self.ended.borrow()
    }

    /// The reading end of a [`Sink::Pipe`], once.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.stdout.take()
    }

    /// The reading end of a [`Sink::Pipe`], once.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.stderr.take()
    }

    /// `SIGKILL` to the whole group. Nothing happens when it has ended.
    pub fn kill_group(&self) {
        self.leash.signal(Signal::KILL);
    }

    /// `SIGTERM` to the whole group. Nothing happens when it has ended.
    pub fn terminate_group(&self) {
        self.leash.signal(Signal::TERM);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.survives {
            self.kill_group();
        }
    }
}

/// How a child's life hangs on ours.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bond {
    DiesWithUs,
    OwnSession,
    /// Dies with us, too, and stays in our group: only that one may read the terminal.
    InFront,
}

/// What a child may do, beside what every process of ours may.
#[derive(Clone, Debug, Default)]
pub(super) struct Rights {
    no_new_privs: bool,
    identity: Option<Identity>,
}

impl Rights {
    /// Gives up what the child is not to have. Between fork and exec: plain system calls only.
    fn take_on(&self) -> io::Result<()> {
        // Groups first: without root's rights they can no longer be changed.
        if let Some(identity) = &self.identity {
            rustix::thread::set_thread_groups(&identity.groups)?;
            rustix::thread::set_thread_res_gid(identity.gid, identity.gid, identity.gid)?;
            rustix::thread::set_thread_res_uid(identity.uid, identity.uid, identity.uid)?;
        }
        if self.no_new_privs {
            rustix::thread::set_no_new_privs(true)?;
        }
        Ok(())
    }
}

/// Forks and executes on the calling thread, which but for [`Bond::OwnSession`] must live as long as the child.
#[expect(unsafe_code, reason = "PDEATHSIG, setsid and rights can only be set between fork and exec")]
pub(super) fn spawn_bound(
    command: &mut Command,
    bond: Bond,
    rights: Rights,
) -> io::Result<std::process::Child> {
    let parent = Pid::from_raw(std::process::id().cast_signed());
    if matches!(bond, Bond::DiesWithUs) {
        command.process_group(0);
    }
    // SAFETY: between fork and exec only async-signal-safe work is allowed. These are plain system calls by way of
    // rustix: nothing is allocated, no lock is taken, no memory is shared but the copied pid and the list of groups.
    unsafe {
        command.pre_exec(move || {
            // Before the signal is asked for: changing the user forgets it (prctl(2)).
            rights.take_on()?;
            match bond {
                Bond::DiesWithUs | Bond::InFront => {
                    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                    // If we died between fork and prctl, nobody would send the signal any more.
                    if rustix::process::getppid() != parent {
                        return Err(io::Error::from(rustix::io::Errno::SRCH));
                    }
                }
                Bond::OwnSession => drop(rustix::process::setsid()?),
            }
            Ok(())
        });
    }
    command.spawn()
}

/// The right to signal a child's group, from another thread than the one that waits for it.
///
/// A process id may be reused as soon as its process is reaped, so signalling and reaping exclude one another.
#[derive(Debug, Default)]
pub(super) struct Leash {
    state: Mutex<LeashState>,
    /// The child shares our group, and is signalled alone.
    in_front: bool,
}

#[derive(Debug, Default)]
enum LeashState {
    #[default]
    NotStarted,
    /// Pulled before the start: the child is killed as soon as it exists.
    PulledEarly,
    Running(Pid),
    Reaped,
}

impl Leash {
    /// For a child that stays in our group.
    pub(super) fn in_front() -> Self {
        Self { in_front: true, ..Self::default() }
    }

    fn state(&self) -> MutexGuard<'_, LeashState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn started(&self, pid: u32) {
        let Some(pid) = Pid::from_raw(pid.cast_signed()) else { return };
        let mut state = self.state();
        if matches!(*state, LeashState::PulledEarly) {
            self.kill(pid, Signal::KILL);
        }
        *state = LeashState::Running(pid);
    }

    pub(super) fn signal(&self, signal: Signal) {
        if let LeashState::Running(pid) = *self.state() {
            self.kill(pid, signal);
        }
    }

    /// Kills the group now, or at once when it starts.
    pub(super) fn pull(&self) {
        let mut state = self.state();
        match *state {
            LeashState::NotStarted => *state = LeashState::PulledEarly,
            LeashState::Running(pid) => self.kill(pid, Signal::KILL),
            LeashState::PulledEarly | LeashState::Reaped => {}
        }
    }

    /// Waits for the leader's end, kills what it left in its group, and only then reaps it: until that moment its id
    /// cannot name anyone else.
    pub(super) fn reap(&self, child: &mut std::process::Child) -> io::Result<ExitStatus> {
        let pid = Pid::from_child(child);
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(error) = rustix::process::waitid(WaitId::Pid(pid), options) {
            if error != rustix::io::Errno::INTR {
                return Err(error.into());
            }
        }
        let mut state = self.state();
        self.kill(pid, Signal::KILL);
        *state = LeashState::Reaped;
        child.wait()
    }

    fn kill(&self, pid: Pid, signal: Signal) {
        // The one expected failure is that nobody is left.
        let _ = match self.in_front {
            true => rustix::process::kill_process(pid, signal),
            false => rustix::process::kill_process_group(pid, signal),
        };
    }
}

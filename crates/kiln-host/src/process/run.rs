//! Running a program to its end, with its output captured.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::child::{Bond, Leash, Rights, spawn_bound};
use super::{Invocation, ProcessError, describe_status};
use crate::wait::Control;

/// More than any program we read says; a limit because memory has one.
const STDOUT_LIMIT: usize = 16 << 20;
/// Enough to see the cause, short enough for an error.
const STDERR_END: usize = 4 << 10;
/// A descendant that left the group may hold a pipe open for ever. What was read until then is the output.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// What a program that succeeded has said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    pub stdout: Vec<u8>,
    /// The last 4 KiB.
    pub stderr: String,
}

impl Output {
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Invocation {
    /// Runs the program to its end on this thread. Anything but exit status 0 is an error. Not interruptible: for
    /// programs that end by themselves, and soon.
    pub fn run_blocking(&self) -> Result<Output, ProcessError> {
        self.drive(Keep::First(STDOUT_LIMIT), &Leash::default(), |_| {})
    }

    /// Runs the program to its end. An interruption, or dropping the future, kills its process group.
    pub async fn run(&self, control: &Control) -> Result<Output, ProcessError> {
        self.run_watched(control, |_| {}).await
    }

    /// Like [`Invocation::run`], and shows every piece of stdout to `watch` as it comes: for programs that report their
    /// progress.
    pub async fn run_watched(
        &self,
        control: &Control,
        watch: impl FnMut(&[u8]) + Send + 'static,
    ) -> Result<Output, ProcessError> {
        self.run_keeping(Keep::First(STDOUT_LIMIT), control, watch).await
    }

    /// Like [`Invocation::run_watched`], but keeps nothing of stdout: for programs that say more than should be in
    /// memory at once.
    pub async fn run_streamed(
        &self,
        control: &Control,
        watch: impl FnMut(&[u8]) + Send + 'static,
    ) -> Result<(), ProcessError> {
        self.run_keeping(Keep::Last(0), control, watch).await.map(drop)
    }

    /// Runs a program that has our terminal, or whatever our standard streams are, as its own: for one that a person
    /// talks to. It stays in our process group, so that it may read the terminal; a Ctrl-C there reaches both. Any exit
    /// status is a success here.
    pub async fn run_in_front(&self, control: &Control) -> Result<ExitStatus, ProcessError> {
        let leash = Leash::in_front();
        self.on_a_thread(leash, control, |invocation, leash| {
            let mut command = invocation.command();
            let mut child = spawn_bound(&mut command, Bond::InFront, Rights::default())
                .map_err(|error| invocation.start_error(error))?;
            leash.started(child.id());
            let lost = |source| ProcessError::Wait { command: invocation.to_string(), source };
            leash.reap(&mut child).map_err(lost)
        })
        .await
    }

    async fn run_keeping(
        &self,
        keep: Keep,
        control: &Control,
        watch: impl FnMut(&[u8]) + Send + 'static,
    ) -> Result<Output, ProcessError> {
        let drive = move |invocation: &Self, leash: &Leash| invocation.drive(keep, leash, watch);
        self.on_a_thread(Leash::default(), control, drive).await
    }

    /// Does something that blocks on a thread of its own; an interruption, or dropping the future, pulls the leash.
    async fn on_a_thread<T: Send + 'static>(
        &self,
        leash: Leash,
        control: &Control,
        act: impl FnOnce(&Self, &Leash) -> Result<T, ProcessError> + Send + 'static,
    ) -> Result<T, ProcessError> {
        let leash = PullOnDrop(Arc::new(leash));
        let (done_tx, mut done) = oneshot::channel();
        let thread = {
            let (invocation, leash) = (self.clone(), Arc::clone(&leash.0));
            move || drop(done_tx.send(act(&invocation, &leash)))
        };
        thread::Builder::new()
            .name(self.thread_name())
            .spawn(thread)
            .map_err(|source| ProcessError::Start { command: self.to_string(), source })?;
        match control.guard(&mut done).await {
            Ok(Ok(result)) => result,
            Ok(Err(gone)) => {
                Err(ProcessError::Wait { command: self.to_string(), source: io::Error::other(gone) })
            }
            Err(source) => {
                leash.0.pull();
                // It is gone when we return: the caller may remove the files it was writing.
                let _ = Control::ending_in(DRAIN_LIMIT * 2).guard(done).await;
                Err(ProcessError::Interrupted { command: self.to_string(), source })
            }
        }
    }

    fn drive(
        &self,
        keep: Keep,
        leash: &Leash,
        watch: impl FnMut(&[u8]) + Send + 'static,
    ) -> Result<Output, ProcessError> {
        let lost = |source| ProcessError::Wait { command: self.to_string(), source };
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn_bound(&mut command, Bond::DiesWithUs, Rights::default())
            .map_err(|error| self.start_error(error))?;
        leash.started(child.id());
        let readers = child.stdout.take().zip(child.stderr.take()).map(|(stdout, stderr)| {
            let stdout = Reader::start(stdout, keep, watch);
            let stderr = Reader::start(stderr, Keep::Last(STDERR_END), |_| {});
            (stdout, stderr)
        });
        let status = leash.reap(&mut child).map_err(lost)?;
        let Some((stdout, stderr)) = readers else { return Ok(Output::default()) };
        let drained_by = Instant::now() + DRAIN_LIMIT;
        let (stdout, overflow) = stdout.map_err(lost)?.take(drained_by).map_err(lost)?;
        let (stderr, _) = stderr.map_err(lost)?.take(drained_by).map_err(lost)?;
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        if !status.success() {
            return Err(ProcessError::Failed {
                command: self.to_string(),
                code: status.code(),
                status: describe_status(status),
                stderr,
            });
        }
        if overflow {
            return Err(ProcessError::OutputTooLong { command: self.to_string(), limit: STDOUT_LIMIT });
        }
        Ok(Output { stdout, stderr })
    }
}

struct PullOnDrop(Arc<Leash>);

impl Drop for PullOnDrop {
    fn drop(&mut self) {
        self.0.pull();
    }
}

#[derive(Clone, Copy)]
enum Keep {
    First(usize),
    Last(usize),
}

#[derive(Default)]
struct Kept {
    bytes: VecDeque<u8>,
    overflow: bool,
}

/// Reads one pipe to its end on a thread of its own, always to the end: a full pipe would stop the program.
struct Reader {
    kept: Arc<Mutex<Kept>>,
    ended: Receiver<io::Error>,
}

impl Reader {
    fn start(
        mut pipe: impl Read + Send + 'static,
        keep: Keep,
        mut watch: impl FnMut(&[u8]) + Send + 'static,
    ) -> io::Result<Self> {
        let kept = Arc::new(Mutex::new(Kept::default()));
        let (ended_tx, ended) = channel();
        let thread = {
            let kept = Arc::clone(&kept);
            move || {
                let mut chunk = [0; 16 << 10];
                loop {
                    match pipe.read(&mut chunk) {
                        Ok(0) => return,
                        Ok(count) => {
                            watch(&chunk[..count]);
                            kept.lock().unwrap_or_else(PoisonError::into_inner).add(&chunk[..count], keep);
                        }
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return drop(ended_tx.send(error)),
                    }
                }
            }
        };
        thread::Builder::new().name("child output".into()).spawn(thread)?;
        Ok(Self { kept, ended })
    }

    fn take(self, until: Instant) -> io::Result<(Vec<u8>, bool)> {
        match self.ended.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(error) => return Err(error),
            // The thread's end drops its sender: everything is read. Or time is up.
            Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => {}
        }
        let kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        Ok((kept.bytes.into(), kept.overflow))
    }
}

impl Kept {
    fn add(&mut self, chunk: &[u8], keep: Keep) {
        match keep {
            Keep::First(limit) => {
                let room = limit - self.bytes.len();
                self.overflow |= chunk.len() > room;
                self.bytes.extend(&chunk[..chunk.len().min(room)]);
            }
            Keep::Last(limit) => {
                self.bytes.extend(chunk);
                let excess = self.bytes.len().saturating_sub(limit);
                self.bytes.drain(..excess);
            }
        }
    }
}

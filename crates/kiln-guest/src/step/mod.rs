//! Detached steps: a command in the guest that neither a lost connection nor a restart of the guest makes us lose.
//!
//! ```text
//!   here                                    in the guest
//!   launch ──── call, script ─────────────► launch.sh   folder, script, then a session of its own:
//!                                             runner.sh   runs the script; out, err; holds the pipe "alive";
//!                                                         exit (code and sizes), or stopped (the system went down)
//!   attend ◄─── state, out, err from ────── attend.sh   tail -f of both files until the pipe has no writer,
//!      │        our offsets on                          or, when the step has ended, the rest of both
//!      └─ link lost: connect again (20 minutes), attend from the offsets reached
//!   remove ───────────────────────────────► remove.sh   nothing of it is left in the image
//! ```
//!
//! * **Where a step stands is said by the guest**, in one line at the head of each answer; the bytes after it are
//!   exactly those of the two files from the offsets we name. So no byte is lost or doubled, whatever breaks when.
//! * **The end is an event**: the runner holds a named pipe open; a reader of it wakes when the runner is gone. A
//!   daemon that the step leaves behind does not hold it.
//! * **The folder of a step survives a restart** (the home directory, else /var/tmp), the script lies where it may be
//!   executed. When the boot id changes and there is no exit code, the mark `stopped` tells an orderly shutdown,
//!   during which the runner was asked to end, from a crash.
//! * **A step that asks for a restart and exits** is not over before the guest is up again: the guest is asked
//!   whether it is going down.
//!
//! A small script travels with the command that starts it. A large one is put into the guest beforehand, as any file is
//! ([`PlacedScript`]): streamed, or taken from a medium, its digest checked there; the step takes it over from then on.
//!
//! Limits: where logind ends a user's processes with the last connection (`KillUserProcesses=yes`, off in the
//! distributions' images), a lost link ends the step too: [`GuestError::StepLost`]. What a step prints lies on the
//! guest's disk until the step ends. Without systemd or sysvinit a scheduled restart cannot be asked for.

mod attend;
mod launch;
mod script;

use std::time::Duration;

use kiln_host::wait::Control;
use tokio::time::Instant;

use crate::error::{GuestError, excerpt};
use crate::guest::{Guest, script_command};
use crate::session::Broken;
use attend::{Attended, Header, State};
use launch::{Launched, Place};

pub use script::{PlacedScript, StepScript};

/// Where a script may lie, best first; `~` is the login user's home. Azure VM Image Builder uses /tmp, which
/// hardened images mount noexec.
pub(crate) const SCRIPT_DIRS: [&str; 3] = ["/tmp", "/var/tmp", "~"];
pub(crate) const LETS_RUN: &str = include_str!("lets_run.sh");
const GOING_DOWN: &str = include_str!("going_down.sh");

const REMOVE: &str = include_str!("remove.sh");
/// For killing and removing a step that is not wanted any more. The guest goes on with it when we no longer wait.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// For removing after a step that ended.
const REMOVE_LIMIT: Duration = Duration::from_secs(60);
/// A guest that was asked to go down closes the link; when it takes longer, it is asked again how it stands.
const GOING_DOWN_PAUSE: Duration = Duration::from_secs(5);
/// How often a step is started whose runner does not begin it.
const LAUNCH_LIMIT: u32 = 3;
/// How often the guest may give an answer that gets us no further, in a row.
const FRUITLESS_LIMIT: u32 = 20;

/// A script to be run in the guest.
#[derive(Clone)]
pub struct DetachedStep {
    /// Names the step in messages; nothing in the guest is called after it.
    pub id: String,
    /// Run as it is; line ends are the caller's business.
    pub script: StepScript,
    /// Of the script's file name, without the dot: PowerShell refuses files that do not end in `ps1`.
    pub extension: &'static str,
    /// As root, by `sudo -n`, instead of as the login user.
    pub privileged: bool,
    /// Program and arguments that come before the script's path. Empty: the script is executed itself, and one
    /// without a `#!` line by the login shell, or by /bin/sh when privileged, as `sudo` does.
    pub interpreter: Vec<String>,
    /// Arguments of the script.
    pub args: Vec<String>,
    /// Added to the environment. Neither names nor values show in any process list.
    pub env: Vec<(String, String)>,
}

impl DetachedStep {
    /// A shell script run as the login user.
    pub fn new(id: impl Into<String>, script: impl Into<StepScript>) -> Self {
        Self {
            id: id.into(),
            script: script.into(),
            extension: "sh",
            privileged: false,
            interpreter: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
        }
    }
}

/// Neither script nor environment, which may hold secrets.
impl std::fmt::Debug for DetachedStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DetachedStep")
            .field("id", &self.id)
            .field("bytes", &self.script.bytes())
            .field("privileged", &self.privileged)
            .finish_non_exhaustive()
    }
}

/// What a step printed, as it came, and what happened to it. The order between the two outputs is not kept exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputChunk<'a> {
    Stdout(&'a [u8]),
    Stderr(&'a [u8]),
    Notice(&'a StepNotice),
}

/// What happened to a step, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepNotice {
    /// The script lies at this path.
    Placed {
        script: String,
    },
    /// It lies there because the usual directory lets no program run.
    PlacedElsewhere {
        script: String,
        usual: String,
    },
    LinkLost,
    LinkBack {
        after: Duration,
    },
    /// The step restarts the guest, or has asked for it.
    GoingDown,
    /// The guest is up again.
    BackUp {
        after: Duration,
    },
    /// This much of what the step printed cannot be read any more.
    OutputMissing {
        bytes: u64,
    },
    /// These files of ours were not removed, or we did not hear that they were.
    LeftBehind {
        paths: Vec<String>,
    },
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepEnd {
    /// By an exit code; above 128 perhaps by a signal, see [`likely_signal`].
    Exited { code: u32 },
    /// The guest restarted before the step had an exit code. Orderly: the system shut down and asked the step to
    /// end. Else it crashed, was reset, or lost its power.
    RebootedDuring { orderly: bool },
    /// The step exited, and the guest restarted as the step had asked.
    RebootedAfter { code: u32 },
}

/// The signal that an exit code of a shell stands for: 128 plus its number. A program may choose the same code.
pub fn likely_signal(code: u32) -> Option<&'static str> {
    kiln_host::process::signal_name(i32::try_from(code.checked_sub(128)?).ok()?)
}

/// A name nobody can have guessed.
pub(crate) fn nonce() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

impl Guest {
    /// Runs a step to its end and hands over what it prints. Its files are gone from the guest afterwards, also when
    /// it failed; when `control` ends, the step's whole session is killed if the guest can still be reached.
    ///
    /// # Errors
    /// [`GuestError::NoSudo`], [`GuestError::NowhereToRun`], [`GuestError::StepLost`], [`GuestError::NoRestart`];
    /// those of a guest that does not come back within the limit; [`GuestError::Interrupted`]. An exit code is not
    /// an error here.
    pub async fn run_detached(
        &self,
        step: DetachedStep,
        mut on_output: impl FnMut(OutputChunk<'_>),
        control: &Control,
    ) -> Result<StepEnd, GuestError> {
        let nonce = step.script.nonce();
        let mut following = Following { guest: self, step: &step, nonce, stdout: 0, stderr: 0, lost: None };
        let end = following.follow(&mut on_output, control).await;
        let nonce = following.nonce;
        if end.is_ok() {
            self.remove(REMOVE, &nonce, &mut on_output, &control.within(REMOVE_LIMIT)).await;
        } else {
            let kill_and_remove = [include_str!("kill.sh"), REMOVE].concat();
            self.remove(&kill_and_remove, &nonce, &mut on_output, &Control::ending_in(KILL_LIMIT)).await;
        }
        end
    }

    async fn remove(
        &self,
        script: &str,
        nonce: &str,
        on_output: &mut impl FnMut(OutputChunk<'_>),
        control: &Control,
    ) {
        let mut args = vec![nonce];
        args.extend(SCRIPT_DIRS);
        let command = script_command(script, &args);
        let paths = match self.ask("removing a step", &command, b"", control).await {
            Ok(output) => output.text().lines().map(str::to_owned).collect(),
            Err(error) => {
                tracing::warn!(%error, "a step was perhaps not removed from the guest");
                vec![format!("*{nonce}*")]
            }
        };
        if !paths.is_empty() {
            on_output(OutputChunk::Notice(&StepNotice::LeftBehind { paths }));
        }
    }
}

/// A step being followed, and how far.
struct Following<'a> {
    guest: &'a Guest,
    step: &'a DetachedStep,
    nonce: String,
    /// Bytes of each output that the caller has.
    stdout: u64,
    stderr: u64,
    /// Since when there is no link.
    lost: Option<Instant>,
}

impl Following<'_> {
    async fn follow(
        &mut self,
        on_output: &mut impl FnMut(OutputChunk<'_>),
        control: &Control,
    ) -> Result<StepEnd, GuestError> {
        // Not earlier: a script that lies in the guest is removed whatever is wrong with its step.
        self.step.check()?;
        // Whatever happens: never run again in a later boot.
        let boot_id = self.guest.boot_id(control).await?;
        let reset: Result<StepEnd, GuestError> = Ok(StepEnd::RebootedDuring { orderly: false });
        let Launched::Placed(mut place) = self.launch(&boot_id, control).await? else { return reset };
        on_output(OutputChunk::Notice(&place.notice()));
        // The runner was seen to be gone: whatever is on disk now is the end.
        let mut runner_gone = false;
        let mut going_down_since = None;
        let mut fruitless = 0;
        let mut launches = 1;
        loop {
            let session =
                self.guest.session(control).await.map_err(|error| self.gone(error, going_down_since))?;
            let before = (self.stdout, self.stderr);
            let attended = control.guard(self.attend(&session, &place, runner_gone, on_output)).await?;
            let Attended { header: Some(header), end } = attended else {
                // The link broke, or what attends was killed: by a shutdown, or by the step itself.
                if self.lost.is_none() && session.is_closed() {
                    self.lost = Some(Instant::now());
                    on_output(OutputChunk::Notice(&StepNotice::LinkLost));
                }
                let act = || format!("step {}", self.step.id);
                if self.lost.is_some_and(|since| since.elapsed() >= self.guest.limits().reconnect) {
                    return Err(GuestError::LinkLost { act: act() });
                }
                if !session.is_closed() {
                    fruitless += 1;
                    match attended.end {
                        _ if fruitless <= FRUITLESS_LIMIT => {}
                        Err(Broken::Refused(reason)) => {
                            return Err(GuestError::CommandRefused { act: act(), reason });
                        }
                        _ => return Err(self.step_lost("the guest's shell gives no answer")),
                    }
                }
                runner_gone = false;
                self.guest.settle(&session, control).await?;
                continue;
            };
            if before != (self.stdout, self.stderr) {
                fruitless = 0;
            }
            fruitless += 1;
            if let Some(since) = self.lost.take() {
                on_output(OutputChunk::Notice(&StepNotice::LinkBack { after: since.elapsed() }));
            }
            // More than that is what a daemon of the step printed after its end.
            let whole =
                header.sizes.is_none_or(|(stdout, stderr)| self.stdout >= stdout && self.stderr >= stderr);
            match header.state {
                State::Running => {
                    runner_gone = attend::saw_the_end(&end);
                    if !runner_gone {
                        if session.is_closed() || matches!(end, Err(Broken::Lost | Broken::BeforeStart)) {
                            // It ran, and a new link is got no faster than its limits allow: patience has no end here.
                            fruitless = 0;
                            self.lost = Some(Instant::now());
                            on_output(OutputChunk::Notice(&StepNotice::LinkLost));
                        }
                        self.guest.settle(&session, control).await?;
                    }
                }
                State::Ended | State::Rebooted { .. } if !whole && fruitless < FRUITLESS_LIMIT => {
                    // The link broke while the rest was on its way; the next answer goes on from there.
                    self.guest.settle(&session, control).await?;
                }
                State::Ended => {
                    self.tell_missing(&header, on_output);
                    let code = header.code.ok_or_else(|| self.step_lost("its exit code cannot be read"))?;
                    if header.boot_id != place.boot_id {
                        return Ok(StepEnd::RebootedAfter { code });
                    }
                    if !header.going_down {
                        return Ok(StepEnd::Exited { code });
                    }
                    on_output(OutputChunk::Notice(&StepNotice::GoingDown));
                    let begin = Instant::now();
                    self.new_boot(&place, control).await?;
                    on_output(OutputChunk::Notice(&StepNotice::BackUp { after: begin.elapsed() }));
                    return Ok(StepEnd::RebootedAfter { code });
                }
                State::Rebooted { orderly } => {
                    self.tell_missing(&header, on_output);
                    return Ok(StepEnd::RebootedDuring { orderly });
                }
                State::Stopping => {
                    let since: Instant = *going_down_since.get_or_insert_with(|| {
                        on_output(OutputChunk::Notice(&StepNotice::GoingDown));
                        Instant::now()
                    });
                    if since.elapsed() >= self.guest.limits().reconnect {
                        return Err(self.no_restart(since, None));
                    }
                    self.until_closed(&session, control).await?;
                    fruitless = 0;
                }
                State::Unstarted => {
                    launches += 1;
                    if launches > LAUNCH_LIMIT {
                        return Err(self.step_lost(&header.detail));
                    }
                    match self.launch(&boot_id, control).await? {
                        Launched::Placed(again) => place = again,
                        Launched::OtherBoot => return reset,
                    }
                }
                // A crash took what had not reached the disk.
                State::Gone if header.boot_id != place.boot_id => return reset,
                State::Gone => return Err(self.step_lost("its folder is gone")),
                State::Lost => return Err(self.step_lost(&header.detail)),
            }
            if fruitless > FRUITLESS_LIMIT {
                return Err(self.step_lost("its end cannot be found out"));
            }
        }
    }

    /// The guest goes down, and comes up with another boot id.
    async fn new_boot(&self, place: &Place, control: &Control) -> Result<(), GuestError> {
        const ACT: &str = "asking for the boot id";
        let begin = Instant::now();
        let within = control.within(self.guest.limits().reconnect);
        let mut last = None;
        loop {
            let asked = self.guest.ask(ACT, "cat /proc/sys/kernel/random/boot_id", b"", &within).await;
            match asked {
                Ok(output) if output.success() && output.text() != place.boot_id => return Ok(()),
                Ok(_) => {}
                // Not the guest any more.
                Err(error @ GuestError::WrongHostKey { .. }) => return Err(error),
                // A guest that goes down or comes up refuses and kills as it likes.
                Err(error) if error.interrupted().is_none() => last = Some(error),
                Err(_) => {}
            }
            let waited = match self.guest.session(&within).await {
                Ok(session) => self.until_closed(&session, &within).await,
                Err(error) => Err(error),
            };
            if let Err(error) = waited
                && within.check().is_err()
            {
                control.check()?;
                return Err(self.no_restart(begin, last.or(Some(error))));
            }
        }
    }

    async fn until_closed(
        &self,
        session: &crate::session::Session,
        control: &Control,
    ) -> Result<(), GuestError> {
        let _still_open = control.within(GOING_DOWN_PAUSE).guard(session.closed()).await;
        Ok(control.check()?)
    }

    fn tell_missing(&self, header: &Header, on_output: &mut impl FnMut(OutputChunk<'_>)) {
        let Some((stdout, stderr)) = header.sizes else { return };
        let bytes = stdout.saturating_sub(self.stdout) + stderr.saturating_sub(self.stderr);
        if bytes > 0 {
            on_output(OutputChunk::Notice(&StepNotice::OutputMissing { bytes }));
        }
    }

    fn gone(&self, error: GuestError, going_down_since: Option<Instant>) -> GuestError {
        match (going_down_since, error.interrupted()) {
            (Some(since), None) => self.no_restart(since, Some(error)),
            _ => error,
        }
    }

    fn no_restart(&self, since: Instant, last: Option<GuestError>) -> GuestError {
        GuestError::NoRestart { id: self.step.id.clone(), waited: since.elapsed(), last: last.map(Box::new) }
    }

    fn step_lost(&self, detail: &str) -> GuestError {
        GuestError::StepLost { id: self.step.id.clone(), detail: excerpt(detail.as_bytes()) }
    }
}

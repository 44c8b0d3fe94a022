//! A script under the task scheduler: placed, registered, followed by offsets, removed.
//!
//! A lost connection is not a lost task: it is followed again from the offsets reached. A task that died with its
//! machine is told from one that was killed by the boot id.

use std::time::Duration;

use kiln_guest::Stream as GuestStream;
use kiln_guest::os::windows::facts::BootId;
use kiln_guest::os::windows::task::{FollowNotice, Following, RunAs, Task};
use kiln_guest::os::windows::{bootstrap, script, secret_line};
use kiln_guest::winrm::{CommandLine, WinrmError};
use kiln_host::wait::Control;

use super::powershell::{PlacedFile, path, place};
use super::{OutputLog, restart};
use crate::context::Run;
use crate::error::BuildError;
use crate::guest::WindowsGuest;
use crate::log::Stream;

/// How long one look at a task lasts: long enough that looks are few, short enough that a guest that hangs is seen.
const LOOK_SECONDS: u64 = 120;
/// A look that says nothing for this long beyond its own time has lost its guest.
const LOOK_GRACE: Duration = Duration::from_secs(90);
/// For taking a task away.
const REMOVE_LIMIT: Duration = Duration::from_secs(120);

/// Who reads what a task prints.
pub(super) trait Output: Send {
    fn take(&mut self, log: &mut OutputLog<'_>, stream: Stream, bytes: &[u8]);
}

/// All of it is for the log.
pub(super) struct Log;

impl Output for Log {
    fn take(&mut self, log: &mut OutputLog<'_>, stream: Stream, bytes: &[u8]) {
        log.take(stream, bytes);
    }
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TaskOutcome {
    Exited {
        code: i32,
    },
    /// There is no exit code.
    Died {
        why: String,
        restarted: bool,
    },
}

/// Runs PowerShell with `arguments` as a task to its end, and answers its exit code. `files` are what it needs; they
/// are placed with the task's own, and stay.
pub(super) async fn run(
    run: &Run,
    guest: &mut WindowsGuest,
    title: &str,
    run_as: RunAs<'_>,
    arguments: &str,
    files: &[PlacedFile],
    output: &mut impl Output,
) -> Result<i32, BuildError> {
    match run_to_any_end(run, guest, title, run_as, arguments, files, output).await? {
        TaskOutcome::Exited { code } => Ok(code),
        TaskOutcome::Died { why, restarted } => Err(BuildError::Customizer {
            title: title.to_owned(),
            detail: if restarted {
                "the guest restarted while the script ran; a script that needs a restart leaves it to a \
                 WindowsRestart customizer after it"
                    .to_owned()
            } else {
                why
            },
            source: None,
        }),
    }
}

/// The same, where an end without an exit code is the caller's to judge.
pub(super) async fn run_to_any_end(
    run: &Run,
    guest: &mut WindowsGuest,
    title: &str,
    run_as: RunAs<'_>,
    arguments: &str,
    files: &[PlacedFile],
    output: &mut impl Output,
) -> Result<TaskOutcome, BuildError> {
    let name = format!("kiln-step-{}", uuid::Uuid::new_v4().simple());
    let folder = match bootstrap::folder() {
        Some(folder) => path(format!("{folder}\\{name}"))?,
        None => path(format!("C:\\Windows\\Temp\\{name}"))?,
    };
    let task = Task::new(name, folder.clone());
    let runner = script::file_bytes(&task.runner(script::POWERSHELL, arguments));
    let mut all = vec![PlacedFile { path: path(task.runner_path())?, bytes: runner }];
    all.extend_from_slice(files);
    place(run, guest, title, Some(&folder), &all).await?;

    // Asked for once in each boot that we know of: the answer costs a start of PowerShell.
    let boot = match guest.boot {
        Some(boot) => boot,
        None => *guest.boot.insert(restart::boot_id(run, guest).await?),
    };
    let ended = match register(run, guest, &task, run_as).await {
        Ok(()) => follow(run, guest, title, &task, &boot, output).await,
        Err(error) => Err(error),
    };
    if matches!(&ended, Ok(TaskOutcome::Died { .. }) | Err(_)) {
        guest.boot = None;
    }
    let control = Control::ending_in(REMOVE_LIMIT);
    let removed = guest
        .vm
        .guard(&control, guest.guest.ask_powershell("removing a task", &task.remove(), &control))
        .await;
    if !matches!(&removed, Ok(Ok(output)) if output.success()) && run.control.check().is_ok() {
        run.journal.warn(format!("a task of this build may stay in the image: {} in {folder}", task.name()));
    }
    ended
}

/// The password goes over the connection's standard input, and nowhere else.
async fn register(run: &Run, guest: &WindowsGuest, task: &Task, run_as: RunAs<'_>) -> Result<(), BuildError> {
    const ACT: &str = "register a task";
    let inside = |detail: String| BuildError::Inside { act: ACT, detail };
    let text = task
        .register(run_as)
        .map_err(|character| inside(format!("its name has the character {character:?}")))?;
    let mut input = zeroize::Zeroizing::new(script::loader_input(&text).into_bytes());
    if let RunAs::User(_) = run_as {
        input.extend_from_slice(secret_line(guest.account.password()).as_bytes());
    }
    let line = CommandLine::cmd(ACT, script::loader_command());
    let said = guest
        .vm
        .guard(&run.control, guest.guest.exec(&line, Some(&input), &run.control))
        .await?
        .map_err(|source| BuildError::Guest { act: ACT, source: source.into() })?;
    if said.success() { Ok(()) } else { Err(inside(said.excerpt())) }
}

async fn follow(
    run: &Run,
    guest: &WindowsGuest,
    title: &str,
    task: &Task,
    boot: &BootId,
    output: &mut impl Output,
) -> Result<TaskOutcome, BuildError> {
    let mut at = Following::default();
    let mut log = OutputLog::new(&run.log);
    let ended = loop {
        let mut lines = kiln_guest::lines::LineSplitter::new(MOST_LINE);
        let mut end = None;
        let mut bad = None;
        let text = task.follow(&at, LOOK_SECONDS);
        let control = run.control.within(Duration::from_secs(LOOK_SECONDS) + LOOK_GRACE);
        let looked = {
            let mut take = |line: &[u8]| {
                if end.is_some() || bad.is_some() {
                    return;
                }
                match at.line(&String::from_utf8_lossy(line)) {
                    Ok(Some(FollowNotice::Out(bytes))) => output.take(&mut log, Stream::Out, &bytes),
                    Ok(Some(FollowNotice::Err(bytes))) => output.take(&mut log, Stream::Err, &bytes),
                    Ok(Some(FollowNotice::Running) | None) => {}
                    Ok(Some(FollowNotice::End(ended))) => end = Some(Ok(ended)),
                    Ok(Some(FollowNotice::Died(why))) => end = Some(Err(why)),
                    Err(error) => bad = Some(error),
                }
            };
            let sink = |stream, bytes: &[u8]| {
                if stream == GuestStream::Stdout {
                    lines.push(bytes, |line, _| take(line));
                }
            };
            let asked = guest.guest.powershell("following a task", &text, sink, &control);
            let looked = guest.vm.guard(&run.control, asked).await?;
            lines.finish(|line, _| take(line));
            looked
        };
        match (end, bad, looked) {
            (Some(Ok(ended)), ..) => {
                if let Some(note) = ended.note {
                    run.log.say(note);
                }
                break TaskOutcome::Exited { code: ended.code };
            }
            (Some(Err(why)), ..) => {
                let now = restart::boot_id(run, guest).await?;
                break TaskOutcome::Died { why, restarted: now.is_another_than(boot) };
            }
            (None, Some(error), _) => {
                return Err(BuildError::Inside { act: "follow a task", detail: error.to_string() });
            }
            // Its time is over; the task's is not.
            (None, None, Ok(_)) => {}
            (None, None, Err(error)) => match error {
                WinrmError::WrongCertificate { .. } | WinrmError::LoginRefused { .. } => {
                    return Err(super::powershell::lost(title, error));
                }
                // The next look finds the task as it is then, or the restarted guest.
                error => {
                    run.control.check()?;
                    run.log.say("The connection was lost; the script goes on. Connecting again...");
                    tracing::debug!(%error, "a look at a task ended early");
                    if restart::boot_id(run, guest).await?.is_another_than(boot) {
                        let why = "the guest restarted".to_owned();
                        break TaskOutcome::Died { why, restarted: true };
                    }
                }
            },
        }
    };
    Ok(ended)
}

/// A line of the follower: 24 KiB in base64, and its head.
const MOST_LINE: usize = 64 << 10;

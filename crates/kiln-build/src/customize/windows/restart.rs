//! The WindowsRestart customizer, and every other restart that is asked for.
//!
//! `kiln_guest::os::windows::restart` decides; here commands are run and boot ids are asked for. The pause between
//! two questions is the one thing that has no event: a guest announces neither its end nor its return.

use std::time::Duration;

use kiln_guest::os::windows::facts::BootId;
use kiln_guest::os::windows::restart::{Restart, RestartStep};
use kiln_guest::winrm::{CommandLine, WinrmError};
use kiln_host::wait::Control;

use super::run_command;
use crate::context::Run;
use crate::error::BuildError;
use crate::guest::WindowsGuest;

/// One question to a guest that may be going down or coming up.
const QUESTION_LIMIT: Duration = Duration::from_secs(60);
/// Between two of them, as the service has it between two checks.
const PAUSE: Duration = Duration::from_secs(2);
/// How long a guest that must answer may not.
const ANSWER_LIMIT: Duration = Duration::from_secs(20 * 60);

/// A restart as a customizer, or a round of updates, asks for it.
pub(crate) struct Wanted<'a> {
    pub command: &'a str,
    pub check: Option<&'a str>,
    pub timeout: Duration,
}

pub(super) async fn run(
    run: &Run,
    guest: &mut WindowsGuest,
    title: &str,
    wanted: &Wanted<'_>,
) -> Result<String, BuildError> {
    let begin = std::time::Instant::now();
    restart(run, guest, title, wanted).await?;
    Ok(format!("restarted in {} s", begin.elapsed().as_secs()))
}

/// Restarts the guest and waits until it is back.
pub(super) async fn restart(
    run: &Run,
    guest: &mut WindowsGuest,
    title: &str,
    wanted: &Wanted<'_>,
) -> Result<(), BuildError> {
    // Asked for anew: a script may have restarted the guest since.
    let before = boot_id(run, guest).await?;
    guest.boot = None;
    let control = run.control.within(wanted.timeout);
    let (mut course, (mut lines, mut step)) = Restart::new(before, wanted.check.is_some());
    loop {
        for line in &lines {
            run.log.say(line);
        }
        (lines, step) = match step {
            RestartStep::Done => return Ok(()),
            RestartStep::Failed(why) => {
                return Err(BuildError::Customizer { title: title.to_owned(), detail: why, source: None });
            }
            // Whatever the step: the time that was given is over, and the run's is not.
            _ if control.check().is_err() => {
                run.control.check()?;
                course.timed_out()
            }
            RestartStep::RunCommand => {
                let line = CommandLine::cmd("restartCommand", wanted.command);
                match run_command(run, guest, &line, &control).await? {
                    Ok(end) => course.command_ended(end.code.cast_signed()),
                    Err(error) => lost(run, &control, error, || course.command_lost())?,
                }
            }
            RestartStep::AskBoot => {
                let asked = ask_boot_id(run, guest, &control.within(QUESTION_LIMIT)).await?;
                match asked {
                    Ok(now) => {
                        let next = course.boot_answered(&now);
                        if next.1 == RestartStep::AskBoot {
                            pause(run, guest, &control).await?;
                        }
                        next
                    }
                    Err(error) => {
                        hopeless(title, error)?;
                        pause(run, guest, &control).await?;
                        (Vec::new(), RestartStep::AskBoot)
                    }
                }
            }
            RestartStep::RunCheck => {
                let line = CommandLine::cmd("restartCheckCommand", wanted.check.unwrap_or_default());
                match run_command(run, guest, &line, &control).await? {
                    Ok(end) => course.check_ended(end.code.cast_signed()),
                    Err(error) => {
                        hopeless(title, error)?;
                        pause(run, guest, &control).await?;
                        (Vec::new(), RestartStep::RunCheck)
                    }
                }
            }
        };
    }
}

/// A lost link is what a restart looks like; a wrong certificate is not.
fn lost<T>(
    run: &Run,
    control: &Control,
    error: WinrmError,
    next: impl FnOnce() -> T,
) -> Result<T, BuildError> {
    run.control.check()?;
    if control.check().is_ok() {
        hopeless("restartCommand", error)?;
    }
    Ok(next())
}

fn hopeless(title: &str, error: WinrmError) -> Result<(), BuildError> {
    match error {
        WinrmError::WrongCertificate { .. }
        | WinrmError::LineTooLong { .. }
        | WinrmError::Unwritable { .. } => Err(BuildError::Customizer {
            title: title.to_owned(),
            detail: "the restart cannot be carried out".to_owned(),
            source: Some(error.into()),
        }),
        error => {
            tracing::debug!(%error, "no answer from a guest that restarts");
            Ok(())
        }
    }
}

async fn pause(run: &Run, guest: &WindowsGuest, control: &Control) -> Result<(), BuildError> {
    // Ends early with the time given; the caller sees that.
    let _ = guest.vm.guard(&run.control, control.sleep(PAUSE)).await?;
    Ok(())
}

/// The boot of a guest that must answer, however long it takes within reason.
pub(crate) async fn boot_id(run: &Run, guest: &WindowsGuest) -> Result<BootId, BuildError> {
    const ACT: &str = "ask for the boot id";
    let control = run.control.within(ANSWER_LIMIT);
    loop {
        let question = control.within(QUESTION_LIMIT);
        match ask_boot_id(run, guest, &question).await? {
            Ok(boot) => return Ok(boot),
            Err(source) if control.check().is_err() => {
                run.control.check()?;
                return Err(BuildError::Guest { act: ACT, source: source.into() });
            }
            Err(error) => hopeless(ACT, error)?,
        }
        pause(run, guest, &control).await?;
    }
}

async fn ask_boot_id(
    run: &Run,
    guest: &WindowsGuest,
    control: &Control,
) -> Result<Result<BootId, WinrmError>, BuildError> {
    Ok(guest.vm.guard(&run.control, guest.guest.boot_id(control)).await?)
}

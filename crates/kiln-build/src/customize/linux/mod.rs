//! Customizers in a Linux guest, over SSH: detached steps and uploads.

mod file;
mod powershell;
mod shell;

use kiln_guest::lines::LineSplitter;
use kiln_guest::step::likely_signal;
use kiln_guest::{DetachedStep, GuestError, OutputChunk, StepEnd, StepNotice};
use kiln_library::StoredInput;
use kiln_model::plan::{Customizer, CustomizerAction};

use super::{environment, exit_refused, fetched, origin, stored, unsupported, upload_progress};
use crate::context::Run;
use crate::error::BuildError;
use crate::guest::LinuxGuest;
use crate::log::{LINE_LIMIT, Stream};

pub(super) async fn run(
    run: &Run,
    guest: &mut LinuxGuest,
    customizer: &Customizer,
    input: Option<&StoredInput>,
) -> Result<String, BuildError> {
    match &customizer.action {
        CustomizerAction::Shell { script } => shell::run(run, guest, customizer, script, input).await,
        CustomizerAction::PowerShell { script, run_elevated, run_as_system, valid_exit_codes } => {
            let privileged = *run_elevated || *run_as_system;
            powershell::run(run, guest, customizer, script, input, privileged, valid_exit_codes).await
        }
        CustomizerAction::File { source, destination } => {
            file::run(run, guest, customizer, source, destination, input).await
        }
        CustomizerAction::WindowsRestart { .. } | CustomizerAction::WindowsUpdate { .. } => {
            Err(unsupported(customizer, "Linux"))
        }
    }
}

/// Runs a script in the guest, with its output in the log, and judges how it ended.
pub(crate) async fn run_script(
    run: &Run,
    guest: &mut LinuxGuest,
    title: &str,
    step: DetachedStep,
    valid_exit_codes: &[i32],
) -> Result<String, BuildError> {
    let end = detached(run, guest, step).await.map_err(|error| match error {
        StepFailure::Guest(source) => BuildError::Customizer {
            title: title.to_owned(),
            detail: "the script could not be run to its end".to_owned(),
            source: Some(source.into()),
        },
        StepFailure::Vm(error) => error,
    })?;
    let failed = |detail: String| BuildError::Customizer { title: title.to_owned(), detail, source: None };
    let checked = |code: u32| {
        if valid_exit_codes.iter().any(|valid| i64::from(*valid) == i64::from(code)) {
            return Ok(());
        }
        let signal = likely_signal(code).map(|name| format!(" ({name}?)")).unwrap_or_default();
        Err(exit_refused(title, format!("{code}{signal}"), valid_exit_codes))
    };
    match end {
        StepEnd::Exited { code } => {
            checked(code)?;
            Ok(format!("exit code {code}"))
        }
        StepEnd::RebootedAfter { code } => {
            checked(code)?;
            run.log.say("The guest was restarted by the script and is back.");
            Ok(format!("exit code {code}, and the guest restarted"))
        }
        StepEnd::RebootedDuring { orderly: true } => {
            run.log.say(
                "The guest was restarted while the script ran, by an orderly shutdown: the step is done and is not run again.",
            );
            Ok("the guest restarted while the script ran".to_owned())
        }
        StepEnd::RebootedDuring { orderly: false } => Err(failed(
            "the guest was reset while the script ran, without an orderly shutdown (a crash?)".to_owned(),
        )),
    }
}

pub(crate) enum StepFailure {
    Guest(GuestError),
    Vm(BuildError),
}

/// Runs a detached step under the machine's own watch, its output going to the log.
pub(crate) async fn detached(
    run: &Run,
    guest: &mut LinuxGuest,
    step: DetachedStep,
) -> Result<StepEnd, StepFailure> {
    let mut out = LineSplitter::new(LINE_LIMIT);
    let mut err = LineSplitter::new(LINE_LIMIT);
    let log = run.log.clone();
    let on_output = |chunk: OutputChunk<'_>| match chunk {
        OutputChunk::Stdout(bytes) => out.push(bytes, |line, _| log.guest_line(Stream::Out, line)),
        OutputChunk::Stderr(bytes) => err.push(bytes, |line, _| log.guest_line(Stream::Err, line)),
        OutputChunk::Notice(notice) => note(run, notice),
    };
    let LinuxGuest { vm, guest, .. } = guest;
    let ended = vm.guard(&run.control, guest.run_detached(step, on_output, &run.control)).await;
    out.finish(|line, _| log.guest_line(Stream::Out, line));
    err.finish(|line, _| log.guest_line(Stream::Err, line));
    ended.map_err(|error| StepFailure::Vm(error.into()))?.map_err(StepFailure::Guest)
}

/// What happened to a step besides its output.
fn note(run: &Run, notice: &StepNotice) {
    let log = &run.log;
    match notice {
        StepNotice::Placed { script } => log.say(format!("Provisioning with script: {script}")),
        StepNotice::PlacedElsewhere { script, usual } => {
            log.say(format!("Provisioning with script: {script} ({usual} lets no program run)"));
        }
        StepNotice::LinkLost => log.say("The connection was lost; the script goes on. Connecting again..."),
        StepNotice::LinkBack { after } => {
            log.say(format!("Connected again after {:.0} s; no output is lost.", after.as_secs_f64()));
        }
        StepNotice::GoingDown => log.say("The guest restarts; waiting for it to come back..."),
        StepNotice::BackUp { after } => {
            log.say(format!("The guest is back after {:.0} s.", after.as_secs_f64()));
        }
        StepNotice::OutputMissing { bytes } => {
            run.journal
                .warn(format!("{bytes} bytes of a script's output were lost with the guest's restart"));
        }
        StepNotice::LeftBehind { paths } => {
            run.journal.warn(format!("files of this build stay in the image: {}", paths.join(", ")));
        }
    }
}

//! Customizers in a Linux guest, over SSH: detached steps, and files from the medium or by upload.

mod file;
mod powershell;
mod shell;

use kiln_guest::lines::LineSplitter;
use kiln_guest::step::likely_signal;
use kiln_guest::{
    DetachedStep, GuestError, OutputChunk, PlacedScript, StepEnd, StepNotice, StepScript, UploadFailure,
    UploadFrom,
};
use kiln_library::StoredInput;
use kiln_model::plan::{Customizer, CustomizerAction, InputRef};
use kiln_qemu::media::CLOUD_INIT_LABEL;

use super::{and_its_script, environment, exit_refused, origin, stored, unsupported, upload_progress};
use crate::context::Run;
use crate::error::BuildError;
use crate::guest::LinuxGuest;
use crate::log::{LINE_LIMIT, Stream};
use crate::medium::Way;
use crate::scripts;

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

/// Where a file is to lie in the guest.
struct Target<'a> {
    path: &'a str,
    mode: u32,
    /// Where the login account may not write, root does.
    privileged: bool,
}

/// Puts a customizer's file into the guest: from the medium, or over the connection where that cannot be.
async fn put(
    run: &Run,
    guest: &LinuxGuest,
    customizer: &Customizer,
    file: &StoredInput,
    target: Target<'_>,
) -> Result<Way, BuildError> {
    let LinuxGuest { vm, guest, on_medium, .. } = guest;
    let Target { path, mode, privileged } = target;
    let progress = upload_progress(run, customizer, file.size);
    let digest = *file.sha256.as_bytes();
    let failed = |error: GuestError| BuildError::Customizer {
        title: customizer.title(),
        detail: format!("Error uploading {path}"),
        source: Some(error.into()),
    };
    if let Some(name) = on_medium.name(customizer.position) {
        let from = UploadFrom::Medium { label: CLOUD_INIT_LABEL, name: &name, bytes: file.size };
        let upload = guest.upload(from, path, mode, digest, privileged, &progress, &run.control);
        match vm.guard(&run.control, upload).await? {
            Ok(_) => return Ok(Way::Medium),
            Err(GuestError::Upload { failure: UploadFailure::NoMedium { detail }, .. }) => {
                on_medium.give_up(run, &detail);
            }
            Err(error) => return Err(failed(error)),
        }
    }
    let from = file.path.as_path().into();
    let upload = guest.upload(from, path, mode, digest, privileged, &progress, &run.control);
    vm.guard(&run.control, upload).await?.map_err(failed)?;
    Ok(Way::Link)
}

/// A fetched script on its way into the guest.
struct Fetched {
    script: StepScript,
    /// A large one, which is there already, and how it came.
    placed: Option<(StoredInput, Way)>,
}

impl Fetched {
    async fn of(
        run: &Run,
        guest: &LinuxGuest,
        customizer: &Customizer,
        source: &InputRef,
        input: Option<&StoredInput>,
    ) -> Result<Self, BuildError> {
        /// The login account's alone until the step takes it over.
        const MODE: u32 = 0o700;
        let input = stored(customizer, source, input)?;
        if !scripts::is_file(&customizer.action, input.size) {
            return Ok(Self { script: scripts::as_bytes(customizer, input)?.into(), placed: None });
        }
        let file = match guest.on_medium.file(customizer.position) {
            Some(file) => file.clone(),
            None => scripts::as_file(run, customizer, input).await?,
        };
        // Where no program may run the step says so.
        let directory = guest.facts.script_dir.as_deref().unwrap_or("/tmp");
        let script = PlacedScript::new(directory, file.size, &scripts::head(&file.path)?);
        let target = Target { path: script.path(), mode: MODE, privileged: false };
        let way = put(run, guest, customizer, &file, target).await?;
        Ok(Self { script: script.into(), placed: Some((file, way)) })
    }

    fn inline(text: String) -> Self {
        Self { script: text.into(), placed: None }
    }
}

/// Runs a customizer's script, and says how it ended and how it came.
async fn run_fetched(
    run: &Run,
    guest: &mut LinuxGuest,
    customizer: &Customizer,
    step: DetachedStep,
    valid_exit_codes: &[i32],
    placed: Option<(StoredInput, Way)>,
) -> Result<String, BuildError> {
    let message = run_script(run, guest, &customizer.title(), step, valid_exit_codes).await?;
    Ok(match placed {
        Some((file, way)) => and_its_script(message, &file, way),
        None => message,
    })
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

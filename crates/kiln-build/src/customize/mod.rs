//! Customizing: the template's customizers, in order, until one fails.
//!
//! INVARIANT: customizers run in template order; the first failure ends the run.

pub(crate) mod linux;
pub(crate) mod windows;

use kiln_library::StoredInput;
use kiln_model::event::{StepRef, Unit};
use kiln_model::plan::{Customizer, InputRef, Script};

use crate::checkpoint::Lineage;
use crate::context::Run;
use crate::debug::Stuck;
use crate::error::BuildError;
use crate::guest::ConnectedGuest;
use crate::inputs::Inputs;
use crate::medium::Way;

/// Runs every customizer of the plan that is not behind the machine already. A machine in which one fails is given back.
pub async fn run(
    run: &Run,
    mut guest: ConnectedGuest,
    inputs: &Inputs,
    lineage: &mut Lineage,
) -> Result<ConnectedGuest, Stuck> {
    for (link, customizer) in (1..).zip(&run.plan.customizers).skip(lineage.done()) {
        let step = run.journal.step(format!("customize/{}", customizer.position), customizer.title());
        run.log.telemetry(&format!("Starting provisioner {}", customizer.provisioner()));
        match one(run, &mut guest, customizer, inputs).await {
            Ok(message) => {
                run.log.telemetry(&format!("ending {}", customizer.provisioner()));
                step.succeed(message);
                lineage.passed(link);
                if let Err(error) = lineage.keep(run, &mut guest, link).await {
                    return Err(Stuck { guest: Box::new(guest), error });
                }
            }
            Err(error) => {
                let message = error.sentence();
                run.log.telemetry(&format!("ending {}", customizer.provisioner()));
                step.fail(message);
                return Err(Stuck { guest: Box::new(guest), error });
            }
        }
    }
    run.log.telemetry("Finalizing.");
    Ok(guest)
}

async fn one(
    run: &Run,
    guest: &mut ConnectedGuest,
    customizer: &Customizer,
    inputs: &Inputs,
) -> Result<String, BuildError> {
    let input = inputs.get(customizer.position);
    match guest {
        ConnectedGuest::Linux(guest) => linux::run(run, guest, customizer, input).await,
        ConnectedGuest::Windows(guest) => windows::run(run, guest, customizer, input).await,
    }
}

/// A customizer that this kind of guest has not. A plan has none of them.
fn unsupported(customizer: &Customizer, system: &str) -> BuildError {
    let kind = customizer.kind();
    BuildError::Customizer {
        title: customizer.title(),
        detail: format!(
            "CustomizerNotSupportedForImage: Customizer {kind} is not supported on {system} images"
        ),
        source: None,
    }
}

/// What was fetched for a customizer; all of it is, before a machine starts.
fn stored<'a>(
    customizer: &Customizer,
    source: &InputRef,
    input: Option<&'a StoredInput>,
) -> Result<&'a StoredInput, BuildError> {
    input.ok_or_else(|| BuildError::Customizer {
        title: customizer.title(),
        detail: format!("{} was not fetched", source.location.redacted()),
        source: None,
    })
}

/// Where a script comes from, for the log.
fn origin(script: &Script) -> String {
    match script {
        Script::Inline(_) => "inline commands".to_owned(),
        Script::Fetched(source) => source.location.redacted(),
    }
}

/// What Packer sets for its scripts, and therefore the service.
fn environment() -> Vec<(String, String)> {
    [("PACKER_BUILD_NAME", "azure-arm"), ("PACKER_BUILDER_TYPE", "azure-arm")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
}

/// How far a customizer's file is on its way into the guest.
fn upload_progress(run: &Run, customizer: &Customizer, size: u64) -> impl Fn(u64) + Send + use<> {
    let journal = run.journal.clone();
    let step = StepRef { id: format!("customize/{}", customizer.position), title: customizer.title() };
    move |done| journal.step_progress(&step, done, size, Unit::Bytes)
}

/// What is said of a step whose script was placed as a file.
fn and_its_script(message: String, file: &StoredInput, way: Way) -> String {
    format!("{message}; its script of {} bytes {way}, digest checked in the guest", file.size)
}

/// The end of a script by an exit code that is not among the valid ones. `code` is as the guest's system shows it.
fn exit_refused(title: &str, code: impl std::fmt::Display, valid_exit_codes: &[i32]) -> BuildError {
    let allowed: Vec<String> = valid_exit_codes.iter().map(ToString::to_string).collect();
    BuildError::Customizer {
        title: title.to_owned(),
        detail: format!(
            "Script exited with non-zero exit status: {code}. Allowed exit codes are: [{}]",
            allowed.join(" ")
        ),
        source: None,
    }
}

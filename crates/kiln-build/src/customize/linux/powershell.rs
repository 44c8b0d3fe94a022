//! The PowerShell customizer on Linux guests, by the guest's own `pwsh`.
//!
//! The 2020-02-14 reference supports it there; later versions of the service do not.
//! Inline entries run in a try block: a terminating error ends the script with 1, and
//! otherwise the last native program's exit code counts. Errors that do not terminate
//! do not fail the step, as with the service. `runElevated` means root.

use kiln_guest::DetachedStep;
use kiln_guest::os::windows::script::inline;
use kiln_library::StoredInput;
use kiln_model::plan::{Customizer, Script};

use super::{Fetched, environment, origin, run_fetched};
use crate::context::Run;
use crate::error::BuildError;
use crate::guest::LinuxGuest;

pub(super) async fn run(
    run: &Run,
    guest: &mut LinuxGuest,
    customizer: &Customizer,
    script: &Script,
    input: Option<&StoredInput>,
    privileged: bool,
    valid_exit_codes: &[i32],
) -> Result<String, BuildError> {
    let failed = |detail: String| BuildError::Customizer { title: customizer.title(), detail, source: None };
    // Asked each time: an earlier customizer may have installed it.
    let pwsh = guest
        .vm
        .guard(&run.control, guest.guest.program("pwsh", &run.control))
        .await?
        .map_err(|source| BuildError::Guest { act: "look for pwsh", source: source.into() })?;
    let Some(pwsh) = pwsh else {
        return Err(failed(
            "the guest has no PowerShell (no pwsh on its PATH); install it with a Shell customizer before this one, \
             or start from an image that has it"
                .to_owned(),
        ));
    };
    run.log.say(format!("Provisioning with powershell script: {}", origin(script)));
    let interpreter = interpreter(pwsh, matches!(script, Script::Fetched(_)));
    let Fetched { script, placed } = match script {
        // The text that a Windows gets, too: nothing in it is Windows' own. The environment is the step's.
        Script::Inline(lines) => Fetched::inline(inline(lines, None)),
        Script::Fetched(source) => Fetched::of(run, guest, customizer, source, input).await?,
    };
    let step = DetachedStep {
        extension: "ps1",
        privileged,
        interpreter,
        env: environment(),
        ..DetachedStep::new(format!("step-{}", customizer.position), script)
    };
    run_fetched(run, guest, customizer, step, valid_exit_codes, placed).await
}

/// What comes before the script's path. A downloaded script is called as the service
/// calls it: without progress records, and its last native exit code counts.
fn interpreter(pwsh: String, fetched: bool) -> Vec<String> {
    const CALL: &str = "& { if (Test-Path variable:global:ProgressPreference) \
                        { $global:ProgressPreference = 'SilentlyContinue' }; & $args[0]; exit $LASTEXITCODE }";
    let how: &[&str] = if fetched { &["-Command", CALL] } else { &["-File"] };
    // No -ExecutionPolicy: policies are a thing of Windows.
    let options = ["-NoProfile", "-NonInteractive"];
    std::iter::once(pwsh).chain(options.iter().chain(how).map(|word| (*word).to_owned())).collect()
}

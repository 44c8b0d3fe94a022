//! Generalizing a Windows guest.
//!
//! ```text
//!  undo, registered      SYSTEM's task that will take the build out of this Windows; it waits for a verdict
//!  deprovision           c:\DeprovisioningScript.ps1 untouched, or the default (Sysprep), printed into the log
//!  verdict               the last word over the connection
//!  power down            by the undoing, which reports over the serial port first; QEMU must end on its own
//!  look at the disk      the image state as the finished disk has it, and how often it may be generalized again
//! ```
//! INVARIANT: only a guest that shut down cleanly yields an image.

use std::time::Duration;

use kiln_guest::os::windows::bootstrap::{self, BootstrapLine, Undoing, Verdict};
use kiln_guest::os::windows::sysprep::{self, Deprovisioning, SysprepLimits};
use kiln_guest::winrm::CommandLine;
use kiln_qemu::disk::StoppedMachine;
use kiln_qemu::offline::{self, HiveName, Trace};

use super::Generalized;
use crate::context::Run;
use crate::customize::windows::{OutputLog, answer, ask, run_command, stream_of};
use crate::error::BuildError;
use crate::guest::WindowsGuest;
use crate::log::Stream;
use crate::serial;
use crate::transcript::GeneralizedWords;

/// From the verdict to the power's end: sessions are ended, a profile goes, Windows shuts down.
const POWER_DOWN_LIMIT: Duration = Duration::from_secs(20 * 60);
/// For the verdict's own answer, which may be lost with the listener.
const VERDICT_LIMIT: Duration = Duration::from_secs(60);
/// Below this many, whoever uses the image should know.
const FEW_REARMS: i64 = 3;

/// All that is run in such a guest to its end.
pub(super) fn fingerprint(undoing: Undoing<'_>) -> String {
    [sysprep::default_script(&SysprepLimits::default()), bootstrap::undo("", undoing)].concat()
}

pub(super) async fn run(run: &Run, guest: WindowsGuest) -> Result<Generalized, BuildError> {
    // Sysprep looks for answer files on removable drives.
    guest.vm.eject_medium(&run.control).await?;
    register_undo(run, &guest).await?;
    if let Err(error) = deprovision(run, &guest).await {
        // The machine may be kept for a look: it is not to be undone and powered off.
        let keep = bootstrap::verdict(Verdict::Keep);
        let _ = ask(run, &guest, "keep the build", &keep, &run.control.within(VERDICT_LIMIT)).await;
        return Err(error);
    }
    let (traces, nonce) = (traces_of_a_build(guest.account.undoing()), guest.account.nonce.clone());
    let rearms = guest.facts.rearms_left;
    let (stopped, lease) = power_down(run, guest).await?;
    assert_undone(run, &nonce)?;
    let generalized = Generalized::new(stopped, lease);
    look(run, &generalized, &traces, rearms).await?;
    // Sysprep took one of them.
    if let Some(left) = rearms.map(|left| left - 1).filter(|left| *left < FEW_REARMS) {
        run.journal.warn(format!("this image may be generalized {left} more times only"));
    }
    Ok(generalized)
}

async fn register_undo(run: &Run, guest: &WindowsGuest) -> Result<(), BuildError> {
    const ACT: &str = "prepare to remove the build";
    let step = run.journal.step("undo", "prepare to remove the build from the image");
    let account = &guest.account;
    let text = bootstrap::register_undo(&account.nonce, account.undoing())
        .map_err(|character| BuildError::Inside { act: ACT, detail: format!("{character:?} in a path") })?;
    let said = answer(run, guest, ACT, &text).await?;
    if !said.success() {
        return Err(BuildError::Inside { act: ACT, detail: said.excerpt() });
    }
    step.succeed("");
    Ok(())
}

/// The service's hidden last customizer.
async fn deprovision(run: &Run, guest: &WindowsGuest) -> Result<(), BuildError> {
    let limits = SysprepLimits::default();
    let said = answer(run, guest, "look for a deprovisioning script", &sysprep::lookup()).await?;
    let found = Deprovisioning::parse(&said.text()).ok_or_else(|| BuildError::Inside {
        act: "look for a deprovisioning script",
        detail: said.excerpt(),
    })?;
    let step = run.journal.step("deprovision", "deprovision");
    if found.there {
        run.log.say(format!("Deprovisioning with {}:", sysprep::OVERRIDE));
        show(run, found.text.as_deref().unwrap_or("(it is too long to be shown)"));
        own_script(run, guest).await?;
        sysprepped(run, guest, &sysprep::watch(&limits)).await?;
    } else {
        let warning = sysprep::NO_OVERRIDE;
        run.log.error(format!("WARNING: {warning}"));
        let text = sysprep::default_script(&limits);
        run.log.say("Deprovisioning with the default script:");
        show(run, &text);
        sysprepped(run, guest, &text).await?;
    }
    step.succeed("");
    Ok(())
}

/// Runs `c:\DeprovisioningScript.ps1` as it is.
async fn own_script(run: &Run, guest: &WindowsGuest) -> Result<(), BuildError> {
    let failed = |detail: String, source| BuildError::Deprovision { detail, source };
    let Some(command) = sysprep::override_command() else {
        return Err(BuildError::GuestPath { path: sysprep::OVERRIDE.to_owned() });
    };
    let line = CommandLine::cmd("the deprovisioning script", command);
    let end = run_command(run, guest, &line, &run.control)
        .await?
        .map_err(|source| failed("the script could not be run to its end".to_owned(), Some(source.into())))?;
    match end.code {
        0 => Ok(()),
        code => Err(failed(format!("the script ended with exit code {}", code.cast_signed()), None)),
    }
}

/// Runs one of our own scripts to the point where Windows is generalized, or never will be.
async fn sysprepped(run: &Run, guest: &WindowsGuest, text: &str) -> Result<(), BuildError> {
    let mut output = OutputLog::new(&run.log);
    let sink = |stream, bytes: &[u8]| output.take(stream_of(stream), bytes);
    let asked = guest.guest.powershell("deprovisioning", text, sink, &run.control);
    let ended = guest.vm.guard(&run.control, asked).await?;
    drop(output);
    let end = ended.map_err(|source| BuildError::Deprovision {
        detail: "Sysprep could not be followed to its end".to_owned(),
        source: Some(source.into()),
    })?;
    match sysprep::failure(end.code.cast_signed()) {
        None => Ok(()),
        Some(detail) => Err(BuildError::Deprovision { detail, source: None }),
    }
}

fn show(run: &Run, text: &str) {
    for line in text.lines() {
        run.log.guest_line(Stream::Out, line.as_bytes());
    }
}

/// Says the last word over the connection, and waits until Windows has undone the build and shut down.
async fn power_down(
    run: &Run,
    guest: WindowsGuest,
) -> Result<(StoppedMachine, kiln_library::ImageLease), BuildError> {
    let step = run.journal.step("power-down", "remove the build from the image and power down");
    let verdict = bootstrap::verdict(Verdict::Generalized);
    // Its answer may be lost: the undoing begins with the listener. What counts is what the serial port says.
    let _ = ask(run, &guest, "the last word", &verdict, &run.control.within(VERDICT_LIMIT)).await?;
    let WindowsGuest { vm, lease, .. } = guest;
    let stopped = vm.wait_shutdown(&run.control.within(POWER_DOWN_LIMIT)).await.map_err(|error| {
        if run.control.check().is_ok() {
            BuildError::Deprovision {
                detail: format!(
                    "Windows did not remove the build and power off within {} s",
                    POWER_DOWN_LIMIT.as_secs()
                ),
                source: None,
            }
        } else {
            error.into()
        }
    })?;
    run.log.say("The virtual machine has shut down.");
    step.succeed("");
    Ok((stopped, lease))
}

/// What the undoing reported before the power went.
fn assert_undone(run: &Run, nonce: &str) -> Result<(), BuildError> {
    let failed = |detail: String| BuildError::Deprovision { detail, source: None };
    let told = serial::lines(&run.dir.serial_log())
        .map_err(BuildError::io("read", run.dir.serial_log()))?
        .iter()
        .rev()
        .find_map(|line| match bootstrap::bootstrap_line(line, nonce) {
            Some(BootstrapLine::Undone { done, problems }) => Some((done, problems)),
            _ => None,
        });
    match told {
        Some((true, _)) => Ok(()),
        Some((false, problems)) => {
            Err(failed(format!("traces of the build stay in the image: {}", problems.join("; "))))
        }
        None => Err(failed("Windows did not say that the build was removed from it".to_owned())),
    }
}

/// What the finished disk itself says: Windows is generalized, its volume closed, and nothing of the build is on it.
async fn look(
    run: &Run,
    generalized: &Generalized,
    traces: &[Trace],
    rearms_before: Option<i64>,
) -> Result<(), BuildError> {
    let step = run.journal.step("offline", "look at the finished disk");
    let disk = generalized.image.path();
    let windows = offline::windows(run.qemu.img(), disk, generalized.image.format(), &run.control)
        .await
        .map_err(BuildError::Offline)?;
    if let Some(transcript) = &run.transcript {
        transcript.generalized(GeneralizedWords {
            image_state: windows.image_state.clone(),
            dirty: windows.dirty,
            rearms_left_before: rearms_before,
            rearms_left_after: windows.rearms_left,
        });
    }
    let failed = |detail: String| BuildError::Deprovision { detail, source: None };
    // Windows writes its hives out when it shuts down, and completes them from their logs when it starts. Not a failure:
    // Windows itself said before that it is generalized.
    for hive in &windows.pending {
        run.journal.warn(format!(
            "the finished disk's registry hive {} is completed from its log files only when Windows starts: what is \
             read in it here may be older",
            hive.name()
        ));
    }
    if windows.image_state.as_deref() != Some(sysprep::GENERALIZED) {
        let state = windows.image_state.as_deref().unwrap_or("no image state");
        return Err(failed(format!("the finished disk has {state}, and not {}", sysprep::GENERALIZED)));
    }
    if windows.dirty {
        // Fast startup and hibernation leave it open, too.
        return Err(failed(
            "the finished disk's file system was not closed: the guest was cut off, or hibernated".to_owned(),
        ));
    }
    let found = offline::traces(run.qemu.img(), disk, generalized.image.format(), traces, &run.control)
        .await
        .map_err(BuildError::Offline)?;
    if !found.is_empty() {
        let named: Vec<String> = found.iter().map(|trace| format!("{trace:?}")).collect();
        return Err(failed(format!("traces of the build are on the finished disk: {}", named.join("; "))));
    }
    step.succeed("");
    Ok(())
}

/// Where a build would be seen in the files and hives of a Windows: only what is the build's own.
fn traces_of_a_build(undoing: Undoing) -> Vec<Trace> {
    let file = |path: String| Trace::File { path };
    let mut traces = vec![
        file(r"\Windows\Temp\kiln-build".to_owned()),
        file(r"\Windows\System32\Tasks\kiln-undo".to_owned()),
    ];
    let Undoing::Bootstrap { user } = undoing else { return traces };
    let winlogon = r"Microsoft\Windows NT\CurrentVersion\Winlogon";
    let value = |name: &str| Trace::Value {
        hive: HiveName::Software,
        path: winlogon.to_owned(),
        name: name.to_owned(),
    };
    traces.extend([
        file(format!(r"\Users\{user}")),
        file(r"\Windows\Panther\unattend.xml".to_owned()),
        file(r"\Windows\Panther\Unattend\unattend.xml".to_owned()),
        Trace::Key { hive: HiveName::Sam, path: format!(r"SAM\Domains\Account\Users\Names\{user}") },
        Trace::Key {
            hive: HiveName::Software,
            path: r"Microsoft\Windows\CurrentVersion\WSMAN\Listener\*+HTTPS".to_owned(),
        },
        value("AutoAdminLogon"),
        value("DefaultPassword"),
        value("DefaultUserName"),
    ]);
    traces
}

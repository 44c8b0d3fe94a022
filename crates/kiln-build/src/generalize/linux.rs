//! Generalizing a Linux guest.
//!
//! ```text
//!  deprovision   /tmp/DeprovisioningScript.sh, or the default (waagent), printed into the log
//!  clean up      keys, account, identity, logs of the build; trim     (linux.sh)
//!  power down    by QMP, and QEMU must end on its own
//! ```
//! The build's account goes last of all, by a root process on the connection that is
//! already open; after it nobody can log in, and the power goes by QMP.
//! INVARIANT: only a guest that shut down cleanly yields an image.

use std::time::Duration;

use kiln_guest::{DetachedStep, ExecOutput, GuestError};
use kiln_host::wait::Control;

use super::Generalized;
use crate::context::Run;
use crate::customize::linux::{StepFailure, detached};
use crate::error::BuildError;
use crate::guest::LinuxGuest;
use crate::log::Stream;
use crate::seed::BUILD_USER;

/// Where a customizer may leave its own deprovisioning script (the service's name for it).
const OVERRIDE: &str = "/tmp/DeprovisioningScript.sh";
/// An override larger than this is not a script.
const OVERRIDE_CAP: usize = 1 << 20;
pub(super) const CLEAN_UP: &str = include_str!("linux.sh");
const SETTLE_LIMIT: Duration = Duration::from_secs(5 * 60);
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(10 * 60);
const POWER_DOWN_LIMIT: Duration = Duration::from_secs(5 * 60);

pub(super) async fn run(run: &Run, mut guest: LinuxGuest) -> Result<Generalized, BuildError> {
    end_cloud_init(run, &guest).await?;
    deprovision(run, &mut guest).await?;
    clean_up(run, &guest).await?;

    let step = run.journal.step("power-down", "power down");
    let LinuxGuest { vm, guest, lease, .. } = guest;
    guest.close().await;
    let stopped = vm.power_down(&run.control, POWER_DOWN_LIMIT).await?;
    run.log.say("The virtual machine has shut down.");
    step.succeed("");
    Ok(Generalized::new(stopped, lease))
}

/// Sees to it that cloud-init has ended this boot: it must not write into what is about to
/// be removed. Customizers need not wait for it, and its last stages need not run to their
/// end: the seed gives them nothing to do (no package lock, no change of the system), and
/// an emulated guest spends seconds on starting each.
async fn end_cloud_init(run: &Run, guest: &LinuxGuest) -> Result<(), BuildError> {
    // The file is written when the last stage ends; without systemd there is only waiting.
    let wait = "if [ -e /run/cloud-init/result.json ] || ! command -v cloud-init > /dev/null; then echo 0; exit; fi; \
                if [ -d /run/systemd/system ]; then sudo -n systemctl stop cloud-config.service cloud-final.service; \
                else sudo -n cloud-init status --wait; fi > /dev/null 2>&1; echo $?";
    let step = run.journal.step("settle", "end cloud-init");
    let control = run.control.within(SETTLE_LIMIT);
    match exec(guest, wait, b"", &run.control, &control).await? {
        // 2 of `status` since cloud-init 23.4: done, with recoverable errors. 5 of systemctl: no such unit.
        Ok(output) if matches!(output.text().as_str(), "0" | "2" | "5") => {}
        Ok(output) => {
            run.journal.warn(format!("cloud-init ended with exit code {}; the build goes on", output.text()));
        }
        Err(error) if run.control.check().is_ok() && error.interrupted().is_some() => {
            run.journal.warn("cloud-init did not end within 5 minutes; the build goes on");
        }
        Err(source) => return Err(BuildError::Guest { act: "wait for cloud-init", source: source.into() }),
    }
    step.succeed("");
    Ok(())
}

/// The service's hidden last customizer.
async fn deprovision(run: &Run, guest: &mut LinuxGuest) -> Result<(), BuildError> {
    let script = match means(run, guest).await? {
        Means::Script(script) => {
            run.log.say(format!("Deprovisioning with {OVERRIDE}:"));
            Some(script)
        }
        Means::Waagent => {
            run.log.say("Deprovisioning with the default command:");
            run.plan.deprovision.clone().map(String::into_bytes)
        }
        Means::None => {
            let warning = "the guest has no waagent: it is not deprovisioned by it, only cleaned by Kiln \
                           (cloud-init, machine id, host keys, history); Azure will not provision it by its agent";
            run.journal.warn(warning);
            run.log.error(format!("WARNING: {warning}"));
            None
        }
    };
    let Some(mut script) = script else { return Ok(()) };
    for line in script.split(|byte| *byte == b'\n') {
        run.log.guest_line(Stream::Out, line);
    }
    if !script.ends_with(b"\n") {
        script.push(b'\n');
    }
    if !script.starts_with(b"#!") {
        script.splice(0..0, *b"#!/bin/sh\n");
    }
    let step = run.journal.step("deprovision", "deprovision");
    let detached_step = DetachedStep { privileged: true, ..DetachedStep::new("deprovision", script) };
    let failed = |detail: String, source| BuildError::Deprovision { detail, source };
    let end = detached(run, guest, detached_step).await.map_err(|failure| match failure {
        StepFailure::Vm(error) => error,
        StepFailure::Guest(error) => {
            failed("the script could not be run to its end".to_owned(), Some(error.into()))
        }
    })?;
    match end {
        kiln_guest::StepEnd::Exited { code: 0 } => {
            step.succeed("");
            Ok(())
        }
        kiln_guest::StepEnd::Exited { code } => {
            Err(failed(format!("the script ended with exit code {code}"), None))
        }
        other => Err(failed(format!("the script did not come to its end: {other:?}"), None)),
    }
}

/// What there is to deprovision the guest with.
enum Means {
    /// What a customizer left at [`OVERRIDE`]. It is taken out of the guest.
    Script(Vec<u8>),
    Waagent,
    None,
}

/// Asked at the end: a customizer may have installed the agent, or removed it.
async fn means(run: &Run, guest: &LinuxGuest) -> Result<Means, BuildError> {
    // The default command looks for it there, too.
    let command = format!(
        "if [ -f {OVERRIDE} ]; then echo {MEANS}script; sudo -n cat {OVERRIDE} && sudo -n rm -f {OVERRIDE}; \
         elif (PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin; command -v waagent) > /dev/null; then echo {MEANS}waagent; \
         else echo {MEANS}none; fi"
    );
    let output = exec(guest, &command, b"", &run.control, &run.control).await?.map_err(|source| {
        BuildError::Guest { act: "look for the means to deprovision it", source: source.into() }
    })?;
    let failed = |detail: String| BuildError::Deprovision { detail, source: None };
    match parse_means(&output.stdout) {
        Some(Means::Script(script)) if !output.success() || script.len() > OVERRIDE_CAP => {
            Err(failed(format!("{OVERRIDE} could not be read, or is larger than 1 MiB")))
        }
        Some(means) => Ok(means),
        None => {
            let said = output.excerpt();
            Err(failed(format!("the guest does not say what it can be deprovisioned with: {said}")))
        }
    }
}

/// What comes before the answer.
const MEANS: &str = "kiln-deprovision-with-";

/// Reads past whatever a chatty login shell printed before.
fn parse_means(stdout: &[u8]) -> Option<Means> {
    let mut rest = stdout;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        let (line, behind) = (&rest[..end], rest.get(end + 1..).unwrap_or_default());
        match line.strip_prefix(MEANS.as_bytes()) {
            Some(b"script") => return Some(Means::Script(behind.to_vec())),
            Some(b"waagent") => return Some(Means::Waagent),
            Some(b"none") => return Some(Means::None),
            _ => rest = behind,
        }
    }
    None
}

/// Removes the build from the guest.
async fn clean_up(run: &Run, guest: &LinuxGuest) -> Result<(), BuildError> {
    let step = run.journal.step("clean-up", "remove the build from the image");
    let control = run.control.within(CLEAN_UP_LIMIT);
    // One command from start to end: nothing can be logged in to in between.
    let command = format!("sudo -n /bin/sh -s {BUILD_USER}");
    let failed = |detail: String, source| BuildError::Deprovision { detail, source };
    let output =
        exec(guest, &command, CLEAN_UP.as_bytes(), &run.control, &control).await?.map_err(|source| {
            failed("the build could not be removed from the image".to_owned(), Some(source.into()))
        })?;
    let text = output.text();
    let complaints = String::from_utf8_lossy(&output.stderr);
    // waagent has renamed the host by now, which sudo complains about and does its work.
    let complaints: Vec<&str> =
        complaints.lines().filter(|line| !line.starts_with("sudo: unable to resolve host")).collect();
    for line in text.lines().chain(complaints.iter().copied()) {
        run.log.say(line);
        if let Some(warning) = line.strip_prefix("kiln: no trim: ") {
            run.journal.warn(format!("free space of the image was not trimmed: {warning}"));
        }
    }
    if output.success() && text.lines().last() == Some("kiln: clean") {
        step.succeed("");
        Ok(())
    } else {
        let detail = complaints.join("; ");
        Err(failed(format!("the build could not be removed from the image: {detail}"), None))
    }
}

/// Runs a command under the machine's own watch. `limit` bounds the command alone: its
/// end is an error of the guest's, the run's end is one of the machine's.
async fn exec(
    guest: &LinuxGuest,
    command: &str,
    stdin: &[u8],
    control: &Control,
    limit: &Control,
) -> Result<Result<ExecOutput, GuestError>, BuildError> {
    Ok(guest.vm.guard(control, guest.guest.exec(command, stdin, limit)).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_means_are_read_past_a_chatty_shell() {
        let script = b"Welcome!\nkiln-deprovision-with-script\n#!/bin/sh\nkiln-deprovision-with-none\n";
        let Some(Means::Script(script)) = parse_means(script) else { panic!() };
        assert_eq!(script, b"#!/bin/sh\nkiln-deprovision-with-none\n");
        assert!(matches!(parse_means(b"kiln-deprovision-with-waagent\n"), Some(Means::Waagent)));
        assert!(matches!(parse_means(b"Hi\nkiln-deprovision-with-none"), Some(Means::None)));
        for nothing in ["", "Hi\n", "kiln-deprovision-with-"] {
            assert!(parse_means(nothing.as_bytes()).is_none(), "{nothing:?}");
        }
    }
}

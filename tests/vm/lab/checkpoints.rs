//! What is kept of the lab's machine, and what later builds make of it. Memory, UEFI variables and the TPM are real, and so
//! are the clock and the passwords; see `lab/guest/README.md` for what is played.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use kiln_tests::daemon::Daemon;
use kiln_tests::daemon_run::download;
use kiln_tests::kiln::{Ended, Kiln};
use kiln_tests::program::finish;
use kiln_tests::template::{Template, lab_gen2};
use kiln_tests::{footer, settings, skip, slots};
use serde_json::Value;

use super::{RUN_LIMIT, assert_sealed, engine_or_skip, powershell};

/// Files and a registry value that nobody flushed, and a deprovisioning script of one's own; then a step that tells the
/// time.
fn two_steps(second: &str) -> Template {
    lab_gen2()
        .customizer(powershell(
            "first",
            &[
                "$null = New-Item -Path 'HKLM:\\SOFTWARE\\Kept'",
                "Set-ItemProperty -Path 'HKLM:\\SOFTWARE\\Kept' -Name Step -Value 'first'",
                "1..50 | ForEach-Object { Set-Content -Path \"c:/kept-$_.txt\" -Value \"$_\" }",
                "Set-Content -Path 'c:/DeprovisioningScript.ps1' -Value @'",
                "Write-Output 'an own script seals it'",
                "& \"$env:SystemRoot\\System32\\Sysprep\\Sysprep.exe\" /oobe /generalize /quiet /quit",
                "'@",
            ],
        ))
        .customizer(powershell(
            "second",
            &[
                "Set-Content -Path 'c:/clock.txt' -Value ([DateTimeOffset]::UtcNow.ToUnixTimeSeconds())",
                second,
            ],
        ))
}

fn kept(kiln: &Kiln) -> Vec<Value> {
    let listed = kiln.run(["checkpoints", "list", "--json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    listed["checkpoints"].as_array().unwrap().clone()
}

fn read(kiln: &Kiln, kept: &Value, file: &str) -> Value {
    let folder = kiln.data().join("library/checkpoints").join(kept["id"].as_str().unwrap());
    serde_json::from_slice(&std::fs::read(folder.join(file)).unwrap()).unwrap()
}

fn assert_said(ended: &Ended, words: &str) {
    let said = ended.notices("info").join("\n");
    assert!(said.contains(words), "{words:?} is not in:\n{said}");
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The image has what the first step wrote, and the second step's time lies between `began` and now.
fn assert_whole(vhd: &Path, began: u64, folder: &Path) {
    footer::assert_fit_for_azure(vhd);
    let disk = assert_sealed(vhd, folder);
    for number in [1, 50] {
        assert_eq!(disk.text(&format!("kept-{number}.txt")).trim(), number.to_string());
    }
    assert_eq!(disk.registry("SOFTWARE", "Kept", "Step").as_deref(), Some("first"));
    let clock: u64 = disk.text("clock.txt").trim().parse().unwrap();
    assert!(
        (began..=seconds()).contains(&clock),
        "the guest's clock said {clock}; the build began at {began}"
    );
}

/// Secure Boot and a TPM. The second step fails at first: its machine is left, and a look into it is had; the corrected
/// template goes on after the first step, by way of a server's API.
#[test]
fn a_build_goes_on_at_the_step_that_failed() {
    engine_or_skip!();
    let kiln = Kiln::new().env("KILN_CHECKPOINTS", "8G");
    let failed = kiln.start_with(&two_steps("exit 9"), &["--keep-on-error"]).wait_within(RUN_LIMIT).failed();
    assert_said(&failed, "nothing was kept of this base image yet");
    let first = kept(&kiln);
    assert_eq!(first.len(), 2, "the first boot and a step: {first:#?}");
    let of_first = first.iter().find(|kept| kept["after"] == "PowerShell \"first\"").unwrap();
    assert_eq!(of_first["withMemory"], true);
    let more = &read(&kiln, of_first, "checkpoint.json")["more"];
    let names: Vec<&str> =
        more.as_array().unwrap().iter().map(|file| file["file"].as_str().unwrap()).collect();
    assert_eq!(names, ["uefi-vars.fd", "tpm2-00.permall"]);

    // Its memory goes on, and a command is run in it.
    let id = failed.run_dir.as_ref().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let slot = slots::take();
    let command = "Get-Content c:/kept-50.txt, c:/clock.txt; exit 4";
    let look = ["debug", &id, "--", "powershell", "-Command", command];
    let seen = finish(&mut kiln.command(look), RUN_LIMIT);
    assert!(!seen.stderr.contains("its disk was booted"), "{}", seen.stderr);
    assert!(seen.stderr.contains("ended with 4"), "{}", seen.stderr);
    let text = seen.text();
    let lines: Vec<&str> = text.split_whitespace().collect();
    assert!(
        lines.len() == 2 && lines[0] == "50" && lines[1].parse::<u64>().is_ok(),
        "{text}\n{}",
        seen.stderr
    );

    let began = seconds();
    let daemon = Daemon::start(&kiln);
    daemon.put_template("t", &two_steps("exit 0"));
    let ended = daemon.until_operation_ended(&daemon.start_run("t"), RUN_LIMIT);
    assert_eq!(ended["status"], "Succeeded", "{ended:#}");
    let log = std::fs::read_to_string(kiln.runs().pop().unwrap().join("customization.log")).unwrap();
    for words in [
        "PowerShell \"first\" is reused: the machine as it was kept",
        "The machine goes on; WinRM connected.",
        "an own script seals it",
    ] {
        assert!(log.contains(words), "{words:?} is not in:\n{log}");
    }
    assert!(!log.contains("Starting the virtual machine"), "{log}");
    assert_whole(&download(&daemon, "t"), began, kiln.path());
    daemon.stop();
    drop(slot);
    // By another password than the one it was kept with.
    let after = kept(&kiln);
    let is_new = |kept: &&Value| first.iter().all(|old| old["id"] != kept["id"]);
    let new = after.iter().find(|kept| kept["kind"] == "checkpoint" && is_new(kept)).unwrap();
    let keys = |kept: &Value| read(&kiln, kept, "keys.json");
    for secret in ["password", "administratorPassword"] {
        assert!(keys(of_first)[secret].is_string());
        assert_ne!(keys(of_first)[secret], keys(new)[secret], "{secret}");
    }
    assert_eq!(keys(of_first)["certificateSha256"], keys(new)["certificateSha256"]);
    a_kept_disk_is_booted(kiln);
}

/// Another QEMU reads no memory: the account, its password and the certificate of the kept disk are known.
fn a_kept_disk_is_booted(kiln: Kiln) {
    let kiln = kiln.with_another_qemu();
    let began = seconds();
    let ended = kiln.start_with(&two_steps("exit 0 # again"), &[]).wait_within(RUN_LIMIT).succeeded();
    assert_said(&ended, "PowerShell \"first\" is reused: the disk as it was kept");
    let done = ended.steps_done();
    assert!(done.contains(&"boot".into()) && !done.contains(&"customize/1".into()), "{done:?}");
    assert_whole(&ended.vhd(), began, kiln.path());
}

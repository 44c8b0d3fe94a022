//! The whole Windows path of a build, against the lab's machine: a Linux that plays a generalized Windows. It proves
//! nothing about Windows; what it plays, and what it does not, is in `lab/guest/README.md`.
//!
//! ```text
//!  look     PowerShell   inline, over the connection          an error that ends nothing
//!  fetched  PowerShell   scriptUri with a checksum, large     exit code 3, which is allowed
//!  raised   PowerShell   runElevated, by the scheduler        no line is lost
//!  placed   File         to c:\ with a checksum
//!  restart  WindowsRestart, with a check
//!  updates  WindowsUpdate: rounds as SYSTEM, a restart between them
//! ```
//! Once it is installed already, with an account and a listener of its own, and no answer file is read.
//!
//! Cases that need no machine are in the engine's tests (`tests/powershell/`) and in the lab's without one
//! (`kiln-guest/tests/suite/winrm_lab.rs`): here each start of PowerShell takes 13 s and more.

mod checkpoints;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use kiln_tests::kiln::{Ended, Kiln};
use kiln_tests::ntfs::Ntfs;
use kiln_tests::program::{command, finish, sha256sum};
use kiln_tests::template::{Template, lab, lab_installed};
use kiln_tests::{footer, settings, skip};
use serde_json::{Value, json};

/// A start of PowerShell takes the emulated guest from 13 s to a minute, by what else this machine does.
const RUN_LIMIT: Duration = Duration::from_secs(40 * 60);

/// The lab plays from a table of known scripts where it has no engine, and knows none of these.
macro_rules! engine_or_skip {
    () => {
        if settings::pwsh().is_none() {
            skip!("KILN_PWSH names no folder with a PowerShell engine (pwsh)");
        }
    };
}
use engine_or_skip;

fn powershell(name: &str, lines: &[&str]) -> Value {
    json!({ "type": "PowerShell", "name": name, "inline": lines })
}

fn file_address(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// The disk is sealed, and shows nothing of the build: hives, tasks, accounts, certificates, listeners, files.
fn assert_sealed(vhd: &Path, folder: &Path) -> Ntfs {
    let disk = Ntfs::of_disk(vhd, folder);
    let state = disk.registry("SOFTWARE", r"Microsoft\Windows\CurrentVersion\Setup\State", "ImageState");
    assert_eq!(state.as_deref(), Some("IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE"));
    let kept: Value = serde_json::from_str(&disk.text("Windows/System32/config/lab.json")).unwrap();
    for of_the_build in ["accounts", "certificates", "listeners", "tasks"] {
        let nothing = [json!({}), json!([])];
        assert!(nothing.contains(&kept[of_the_build]), "{of_the_build}: {kept:#}");
    }
    assert_eq!(kept["network"], "Public", "{kept:#}");
    assert_eq!(kept["services"]["WinRM"], json!({ "StartType": "Manual", "Status": "Stopped" }), "{kept:#}");
    for (folder, names) in
        [("Windows/Temp", &[][..]), ("Windows/System32/Tasks", &[]), ("Users", &["Public"])]
    {
        assert_eq!(disk.names(folder), names, "in {folder}");
    }
    disk
}

#[test]
fn every_customizer_and_sysprep() {
    engine_or_skip!();
    let kiln = Kiln::new();
    let script = kiln.path().join("three.ps1");
    // Too large to travel with a command: the medium brings it, as it brings files.
    let padding = "#\r\n".repeat(400_000);
    let text = format!("Write-Output \"fetched, $env:PACKER_BUILD_NAME\"\r\n{padding}exit 3\r\n");
    std::fs::write(&script, text).unwrap();
    let placed = kiln.path().join("placed.txt");
    std::fs::write(&placed, "placed by a build\n").unwrap();
    // Two rounds; further ones, and updates that fail in each, are the engine's tests'.
    let updates = json!([
        { "id": "one", "kb": "900001", "title": "One that installs" },
        { "id": "two", "kb": "900002", "title": "One that wants a restart", "restart": true, "eula": true },
    ]);
    let template = lab()
        .customizer(powershell(
            "look",
            &[
                "Write-Output 'inline ran'",
                "Write-Error 'does not end it'",
                &format!("Set-Content -Path 'c:/lab/updates.json' -Value '{updates}'"),
            ],
        ))
        .customizer(json!({
            "type": "PowerShell", "name": "fetched", "validExitCodes": [0, 3],
            "scriptUri": file_address(&script), "sha256Checksum": sha256sum(&script),
        }))
        .customizer(json!({
            "type": "PowerShell", "name": "raised", "runElevated": true, "inline": [
                "1..200 | ForEach-Object { Write-Output \"raised line $_\" }",
                "[Console]::Error.WriteLine('raised error')",
            ],
        }))
        .customizer(json!({
            "type": "File", "name": "placed", "sourceUri": file_address(&placed),
            "destination": "c:/placed.txt", "sha256Checksum": sha256sum(&placed),
        }))
        .customizer(json!({
            "type": "WindowsRestart", "name": "restart",
            "restartCheckCommand": "echo Azure-Image-Builder-Restarted-the-VM > c:\\restarted.txt",
        }))
        .customizer(json!({ "type": "WindowsUpdate", "name": "updates", "searchCriteria": "IsInstalled=0" }));
    let ended = kiln.start(&template).wait_within(RUN_LIMIT).succeeded();
    let log = ended.log();
    for line in [
        "WinRM connected.",
        "inline ran",
        "does not end it",
        "fetched, azure-arm",
        "raised error",
        "Restarting Machine",
        "Machine successfully restarted, moving on",
        "Running Windows update, round 1...",
        "Running Windows update, round 2...",
        "install succeeded (0x00000000), wants a restart",
        ">>> Sysprep complete ...",
        "(telemetry) Starting provisioner windows-restart",
        "(telemetry) Starting provisioner windows-update",
    ] {
        assert!(log.contains(line), "{line:?} is not in the log:\n{log}");
    }
    let lines = (1..=200).filter(|n| log.contains(&format!("raised line {n}\n"))).count();
    assert_eq!(lines, 200, "no line is lost");
    let events = ended.run_file("events.jsonl");
    for came in [
        "18 bytes at c:/placed.txt by medium, digest checked in the guest",
        "exit code 3; its script of 1200056 bytes by medium, digest checked in the guest",
    ] {
        assert!(events.contains(came), "{came:?} is not in\n{events}");
    }
    assert_eq!(
        ended.result["outputs"][0]["output"]["status"],
        "built by steps that are lab-tested (no Windows); not tried on Azure"
    );
    footer::assert_fit_for_azure(&ended.vhd());
    let disk = assert_sealed(&ended.vhd(), kiln.path());
    assert_eq!(disk.text("placed.txt"), "placed by a build\n");
    assert_eq!(disk.text("restarted.txt").trim(), "Azure-Image-Builder-Restarted-the-VM");
    let kept: Value = serde_json::from_str(&disk.text("Windows/System32/config/lab.json")).unwrap();
    assert_eq!(kept["updates"]["installed"].as_array().map(Vec::len), Some(2), "{kept:#}");
}

/// What `scripts/lab-guest` left of the installed system: `password`, or `sha256` of its certificate.
fn of_installed(what: &str) -> String {
    let file = settings::test_data().join("lab-guest/lab-installed").with_extension(what);
    std::fs::read_to_string(file).unwrap().trim_end().to_owned()
}

/// Nothing a run leaves behind holds `secret`.
fn assert_kept_secret(ended: &Ended, secret: &str) {
    let run_dir = ended.run_dir.as_ref().unwrap();
    let mut grep = command("grep");
    let found = finish(grep.args(["-rlF", "--", secret]).arg(run_dir), Duration::from_secs(60));
    assert_eq!(found.text(), "", "the password is in these");
    assert_eq!(found.status.code(), Some(1), "{}", found.text());
    assert!(!ended.story().contains(secret));
}

/// Its own account and all that lets it in are on the finished disk as they were; what the build brought is not.
#[test]
fn an_installed_system_keeps_what_is_its_own() {
    engine_or_skip!();
    let kiln = Kiln::new();
    let template = lab_installed().customizer(json!({
        "type": "PowerShell", "name": "raised", "runElevated": true,
        "inline": ["Write-Output 'raised by its own account'"],
    }));
    let ended = kiln.start(&template).wait_within(RUN_LIMIT).succeeded();
    let log = ended.log();
    for line in ["WinRM connected.", "raised by its own account", ">>> Sysprep complete ..."] {
        assert!(log.contains(line), "{line:?} is not in the log:\n{log}");
    }
    let warnings = ended.notices("warning");
    let pinned = format!("pinned the first one: {};", of_installed("sha256"));
    assert_eq!(warnings.iter().filter(|text| text.contains(&pinned)).count(), 1, "{warnings:#?}");
    let password = of_installed("password");
    assert_kept_secret(&ended, &password);

    let disk = Ntfs::of_disk(&ended.vhd(), kiln.path());
    let setup = r"Microsoft\Windows\CurrentVersion\Setup\State";
    let state = disk.registry("SOFTWARE", setup, "ImageState");
    assert_eq!(state.as_deref(), Some("IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE"));
    let kept: Value = serde_json::from_str(&disk.text("Windows/System32/config/lab.json")).unwrap();
    assert_eq!(kept["accounts"]["golden"]["password"], password.as_str(), "{kept:#}");
    let certificate = kept["listeners"][0]["thumbprint"].as_str().unwrap();
    assert_eq!(kept["listeners"][0]["port"], 5986);
    assert_eq!(kept["certificates"][certificate]["stores"], json!(["My", "Root"]), "{kept:#}");
    assert_eq!(kept["rules"]["Own-WinRM"], json!({ "Enabled": true, "Port": 5986 }), "{kept:#}");
    assert_eq!(kept["services"]["WinRM"]["StartType"], "Automatic", "{kept:#}");
    for (of_its_own, count) in [("accounts", 1), ("certificates", 1), ("listeners", 1), ("tasks", 0)] {
        let there = kept[of_its_own]
            .as_object()
            .map_or_else(|| kept[of_its_own].as_array().unwrap().len(), |all| all.len());
        assert_eq!(there, count, "{of_its_own}: {kept:#}");
    }
    let winlogon = r"Microsoft\Windows NT\CurrentVersion\Winlogon";
    assert_eq!(disk.registry("SOFTWARE", winlogon, "DefaultUserName").as_deref(), Some("golden"));
    assert_eq!(disk.text("Windows/Panther/unattend-original.xml").trim(), "followed long ago");
    for (folder, names) in [
        ("Windows/Temp", &[][..]),
        ("Windows/System32/Tasks", &[]),
        ("Users", &["golden", "Public"]),
        ("Users/golden/AppData/Local/Temp", &[]),
    ] {
        assert_eq!(disk.names(folder), names, "in {folder}");
    }
}

/// Said within a minute of the first refusal, by account and file; and a file that everybody may read starts nothing.
#[test]
fn a_wrong_password_is_told_soon() {
    engine_or_skip!();
    let kiln = Kiln::with_own_shelf();
    let wrong = kiln.path().join("wrong.password");
    std::fs::write(&wrong, "canary-of-no-account\n").unwrap();
    let record = kiln.data().join("library/images/lab-installed/1.0.0/image.json");
    let mut image: Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    let credentials = &mut image["login"]["credentials"];
    credentials["passwordFile"] = wrong.display().to_string().into();
    credentials["certificateSha256"] = of_installed("sha256").into();
    // The shelf shares its files with that of the other tests.
    std::fs::remove_file(&record).unwrap();
    std::fs::write(&record, image.to_string()).unwrap();

    std::fs::set_permissions(&wrong, Permissions::from_mode(0o644)).unwrap();
    let ended = kiln.build_without_guest(&lab_installed()).failed();
    assert!(ended.cause().contains(&format!("chmod 640 {}", wrong.display())), "{}", ended.story());
    assert_eq!(ended.failed_step(), "read the password file");

    std::fs::set_permissions(&wrong, Permissions::from_mode(0o640)).unwrap();
    let ended = kiln.start(&lab_installed()).wait_within(RUN_LIMIT).failed();
    let said = format!("does not let \"golden\" in with the password in {}", wrong.display());
    assert!(ended.cause().contains(&said), "{}", ended.story());
    assert_eq!(ended.failed_step(), "wait for WinRM");
    assert!(!ended.notices("warning").iter().any(|text| text.contains("pinned")), "it was given");
    assert_kept_secret(&ended, "canary-of-no-account");
    kiln.assert_nothing_left();
}

/// The checksum is wrong: no machine starts.
#[test]
fn a_wrong_checksum_starts_nothing() {
    engine_or_skip!();
    let kiln = Kiln::new();
    let script = kiln.path().join("a.ps1");
    std::fs::write(&script, "exit 0\n").unwrap();
    let wrong = "0".repeat(64);
    for customizer in [
        json!({ "type": "PowerShell", "scriptUri": file_address(&script), "sha256Checksum": wrong }),
        json!({
            "type": "File", "sourceUri": file_address(&script),
            "destination": "c:\\a.ps1", "sha256Checksum": wrong,
        }),
    ] {
        let template: Template = lab().customizer(customizer);
        let ended = kiln.build_without_guest(&template).failed();
        assert!(!ended.steps_done().iter().any(|step| step == "boot"), "{:?}", ended.steps_done());
    }
}

//! PowerShell customizers on a Linux guest, with a real engine put there by the build itself.
//!
//! An engine takes 13 s to start in an emulated guest, so there are few steps, and one
//! build: all but its last succeed.

use kiln_tests::kiln::Kiln;
use kiln_tests::program::output;
use kiln_tests::template::debian;
use kiln_tests::{settings, skip};
use serde_json::json;

#[test]
fn powershell_customizers_run_as_the_contract_says() {
    let Some(engine) = settings::pwsh() else {
        skip!("KILN_PWSH names no folder with a PowerShell engine (pwsh)");
    };
    let kiln = Kiln::new();
    let archive = kiln.path().join("pwsh.tar");
    output("tar", ["-C", engine.to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."]);
    let script = kiln.path().join("three.ps1");
    std::fs::write(&script, "Write-Output \"fetched for $([Environment]::UserName)\"\r\nexit 3\r\n").unwrap();

    let template = debian()
        .file("engine", &format!("file://{}", archive.display()), "/tmp/pwsh.tar")
        .shell(
            "install it",
            [
                "sudo mkdir -p /opt/microsoft/powershell/7",
                "sudo tar -C /opt/microsoft/powershell/7 -xf /tmp/pwsh.tar",
                "sudo ln -s /opt/microsoft/powershell/7/pwsh /usr/bin/pwsh",
                "rm /tmp/pwsh.tar",
            ],
        )
        .customizer(json!({
            "type": "PowerShell",
            "name": "inline",
            "inline": ["$who = id -un", "Write-Output \"inline as $who\"", "Write-Error 'does not end it'"],
        }))
        .customizer(json!({
            "type": "PowerShell",
            "name": "fetched",
            "scriptUri": format!("file://{}", script.display()),
            "validExitCodes": [0, 3],
            "runElevated": true,
        }))
        .customizer(json!({
            "type": "PowerShell",
            "name": "throws",
            "inline": ["Write-Output 'before'", "throw 'on purpose'", "Write-Output 'after it'"],
        }));
    let ended = kiln.build(&template).failed();
    assert_eq!(ended.failed_step(), "PowerShell \"throws\"", "{}", ended.story());
    assert_eq!(
        ended.cause(),
        "PowerShell \"throws\": Script exited with non-zero exit status: 1. Allowed exit codes are: [0]"
    );
    let log = ended.log();
    for text in ["inline as packer", "does not end it", "fetched for root", "before", "on purpose"] {
        assert!(log.contains(text), "{text:?} is not in the log:\n{log}");
    }
    assert!(!log.contains("after it"), "{log}");
    assert!(log.contains("(telemetry) Starting provisioner powershell"), "{log}");
}

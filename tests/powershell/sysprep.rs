//! Generalizing: the lookup, the default script in each branch, the watch after an override.

use kiln_guest::os::windows::script::{GuestPath, call_command};
use kiln_guest::os::windows::sysprep::{
    Deprovisioning, SysprepLimits, default_script, failure, lookup, watch,
};

use crate::lab::{Lab, lab};

const STATE: &str = r"HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Setup\State";
const QUICK: SysprepLimits =
    SysprepLimits { service_seconds: 1, sysprep_seconds: 20, gone_seconds: 1, pause_seconds: 0 };

/// Services by name and status; one with several statuses has them one after the other.
fn services(list: &[(&str, &[&str])]) -> String {
    let mut text = "$Lab.Services = @{}\n$Lab.Asked = @{}\n".to_owned();
    for (name, statuses) in list {
        let statuses: Vec<String> = statuses.iter().map(|status| format!("'{status}'")).collect();
        text.push_str(&format!("$Lab.Services['{name}'] = @({})\n", statuses.join(", ")));
    }
    text + r#"
function global:Get-Service {
    [CmdletBinding()] param([string] $Name)
    if ($Name -notin 'RdAgent', 'WindowsAzureTelemetryService', 'WindowsAzureGuestAgent') { Stop-Lab "Get-Service $Name" }
    if (-not $Lab.Services.ContainsKey($Name)) { Write-Error "Cannot find any service with service name '$Name'."; return }
    $at = [int]$Lab.Asked[$Name]
    $Lab.Asked[$Name] = $at + 1
    $all = $Lab.Services[$Name]
    return [pscustomobject]@{ Status = $all[[Math]::Min($at, $all.Count - 1)] }
}
"#
}

/// The image state is what Sysprep wrote into a file; before that, complete. `running` looks at Sysprep's processes.
fn image_state(running: &str) -> String {
    format!(
        "$Lab.Keys['{STATE}'] = @{{ ImageState = {{ if ([IO.File]::Exists(\"$($Lab.Dir)/state\")) {{ [IO.File]::ReadAllText(\"$($Lab.Dir)/state\").Trim() }} else {{ 'IMAGE_STATE_COMPLETE' }} }} }}\n\
         $Lab.Processes = {{ param($name) if ($name -ne 'sysprep') {{ Stop-Lab \"Get-Process $name\" }}; {running} }}\n"
    )
}

fn sysprep_exe(lab: &Lab, script: &str) {
    let state = lab.shown("state");
    lab.program(
        "c/Windows/System32/Sysprep/Sysprep.exe",
        &format!("echo \"$@\" > '{state}.args'\nstate='{state}'\n{script}"),
    );
}

const GENERALIZES: &str = "echo IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE > \"$state\"";

#[test]
fn off_azure_each_wait_is_skipped_and_the_log_says_why() {
    let lab = lab!();
    sysprep_exe(&lab, GENERALIZES);
    for file in ["System32/Sysprep/unattend.xml", "Panther/unattend.xml", "Panther/Unattend/unattend.xml"] {
        lab.write(&format!("c/Windows/{file}"), "secret");
    }
    let ran = lab.run(&(services(&[]) + &image_state("")), &default_script(&QUICK)).ended_with(0);
    assert_eq!(
        ran.out,
        ">>> Waiting for GA Service (RdAgent) to start ...\n\
         >>> Not on Azure: RdAgent absent, skipped\n\
         >>> Waiting for GA Service (WindowsAzureTelemetryService) to start ...\n\
         >>> Not on Azure: WindowsAzureTelemetryService absent, skipped\n\
         >>> Waiting for GA Service (WindowsAzureGuestAgent) to start ...\n\
         >>> Not on Azure: WindowsAzureGuestAgent absent, skipped\n\
         >>> Sysprepping VM ...\n\
         IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE\n\
         >>> Sysprep complete ...\n"
    );
    assert_eq!(ran.err, "");
    assert_eq!(lab.read("state.args"), "/oobe /generalize /quiet /quit\n");
    for file in ["System32/Sysprep/unattend.xml", "Panther/unattend.xml", "Panther/Unattend/unattend.xml"] {
        assert!(!lab.path(&format!("c/Windows/{file}")).exists(), "{file}");
    }
}

#[test]
fn services_that_exist_are_waited_for() {
    let lab = lab!();
    sysprep_exe(&lab, GENERALIZES);
    let here = services(&[
        ("RdAgent", &["Stopped", "Stopped", "StartPending", "Running"]),
        ("WindowsAzureTelemetryService", &["Running"]),
        ("WindowsAzureGuestAgent", &["Stopped", "Running"]),
    ]);
    let ran = lab
        .run(&(here + &image_state("")), &default_script(&SysprepLimits { service_seconds: 30, ..QUICK }))
        .ended_with(0);
    ran.says_not("skipped").says_not("Warning").says(">>> Sysprep complete ...");
}

#[test]
fn a_service_that_never_runs_is_waited_for_within_a_bound() {
    let lab = lab!();
    sysprep_exe(&lab, GENERALIZES);
    let here = services(&[("RdAgent", &["Stopped"]), ("WindowsAzureGuestAgent", &["StartPending"])]);
    let ran = lab.run(&(here + &image_state("")), &default_script(&QUICK)).ended_with(0);
    ran.says(">>> Warning: RdAgent is not running after 1 s")
        .says(">>> Warning: WindowsAzureGuestAgent is not running after 1 s")
        .says(">>> Not on Azure: WindowsAzureTelemetryService absent, skipped")
        .says(">>> Sysprep complete ...");
}

#[test]
fn sysprep_that_takes_its_time_is_waited_for() {
    let lab = lab!();
    // In the background, as on Windows, where the call does not wait for it.
    sysprep_exe(&lab, &format!("(sleep 2; {GENERALIZES}) > /dev/null 2>&1 &"));
    let limits = SysprepLimits { pause_seconds: 1, ..QUICK };
    let running = "[pscustomobject]@{ Id = 1 }";
    let ran = lab.run(&(services(&[]) + &image_state(running)), &default_script(&limits)).ended_with(0);
    ran.says("IMAGE_STATE_COMPLETE\n").says(">>> Sysprep complete ...");
}

/// As a Windows goes through them.
#[test]
fn an_undeployable_image_state_is_waited_out_while_sysprep_runs() {
    let lab = lab!();
    sysprep_exe(
        &lab,
        &format!("echo IMAGE_STATE_UNDEPLOYABLE > \"$state\"\n(sleep 3; {GENERALIZES}) > /dev/null 2>&1 &"),
    );
    let limits = SysprepLimits { pause_seconds: 1, ..QUICK };
    let running = "[pscustomobject]@{ Id = 1 }";
    let ran = lab.run(&(services(&[]) + &image_state(running)), &default_script(&limits)).ended_with(0);
    ran.says("IMAGE_STATE_UNDEPLOYABLE\n").says(">>> Sysprep complete ...");
}

#[test]
fn an_undeployable_image_state_fails_with_the_end_of_setuperr() {
    let lab = lab!();
    sysprep_exe(&lab, "echo IMAGE_STATE_UNDEPLOYABLE > \"$state\"");
    let log: String = (1..=60).map(|line| format!("error line {line}\r\n")).collect();
    lab.write("c/Windows/System32/Sysprep/Panther/setuperr.log", log);
    lab.write("c/Windows/System32/Sysprep/Panther/setupact.log", "what it did\r\n");
    let ran = lab.run(&(services(&[]) + &image_state("")), &default_script(&QUICK)).ended_with(20);
    ran.says("error line 60").says("error line 21").says_not("error line 20\n").says("what it did");
    ran.says_not("complete ...");
    assert!(failure(ran.code).unwrap().contains("IMAGE_STATE_UNDEPLOYABLE"));
}

#[test]
fn a_sysprep_that_dies_fails() {
    let lab = lab!();
    sysprep_exe(&lab, "exit 1");
    let ran = lab.run(&(services(&[]) + &image_state("")), &default_script(&QUICK)).ended_with(21);
    ran.says("the image state is IMAGE_STATE_COMPLETE");
}

#[test]
fn a_sysprep_that_never_ends_fails_at_the_time_out() {
    let lab = lab!();
    sysprep_exe(&lab, "exit 0");
    let limits = SysprepLimits { sysprep_seconds: 1, gone_seconds: 60, ..QUICK };
    let running = "[pscustomobject]@{ Id = 1 }";
    lab.run(&(services(&[]) + &image_state(running)), &default_script(&limits))
        .ended_with(22)
        .says("within 1 s");
}

#[test]
fn a_windows_without_sysprep_fails() {
    let lab = lab!();
    lab.run(&(services(&[]) + &image_state("")), &default_script(&QUICK)).ended_with(23);
}

#[test]
fn after_an_override_the_watch_alone_decides() {
    let lab = lab!();
    lab.write("state", "IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE");
    lab.run(&image_state(""), &watch(&QUICK)).ended_with(0).says(">>> Sysprep complete ...");
    lab.write("state", "IMAGE_STATE_UNDEPLOYABLE");
    lab.run(&image_state(""), &watch(&QUICK)).ended_with(20);
    // An override that never called Sysprep.
    lab.write("state", "IMAGE_STATE_COMPLETE");
    lab.run(&image_state(""), &watch(&QUICK)).ended_with(21);
    // A registry without the value is none of the good states.
    lab.run(&image_state("").replace("ImageState =", "Other ="), &watch(&QUICK)).ended_with(21);
}

#[test]
fn the_lookup_shows_an_override_and_leaves_it_alone() {
    let lab = lab!();
    let ran = lab.run("", &lookup()).ended_with(0);
    assert_eq!(Deprovisioning::parse(&ran.out), Some(Deprovisioning { there: false, text: None }));

    let script = "\u{feff}Write-Output 'gr\u{fc}n'\r\nexit 3\r\n";
    lab.write("c/DeprovisioningScript.ps1", script);
    let ran = lab.run("", &lookup()).ended_with(0);
    let found = Deprovisioning::parse(&ran.out).unwrap();
    assert_eq!(
        found,
        Deprovisioning { there: true, text: Some("Write-Output 'gr\u{fc}n'\r\nexit 3\r\n".into()) }
    );
    assert!(ran.out.is_ascii());
    assert_eq!(lab.read("c/DeprovisioningScript.ps1"), script);
    // A folder of that name is no script.
    std::fs::remove_file(lab.path("c/DeprovisioningScript.ps1")).unwrap();
    std::fs::create_dir(lab.path("c/DeprovisioningScript.ps1")).unwrap();
    let ran = lab.run("", &lookup()).ended_with(0);
    assert!(!Deprovisioning::parse(&ran.out).unwrap().there);
}

#[test]
fn the_overrides_exit_code_is_its_own() {
    let lab = lab!();
    let path = lab.write("c/DeprovisioningScript.ps1", "Write-Output mine\nexit 3\n");
    let path = GuestPath::new(path.to_str().unwrap()).unwrap();
    lab.run_line(&call_command(&path, None), None).ended_with(3).says("mine");
}

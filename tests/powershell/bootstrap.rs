//! Into a Windows and out of it: bootstrap.ps1, undo_register.ps1, verdict.ps1, undo.ps1.

use std::time::Duration;

use kiln_guest::os::windows::bootstrap::{
    BootstrapLine, Undoing, Verdict, bootstrap, bootstrap_line, register_undo, undo, verdict,
};
use sha2::{Digest as _, Sha256};

use crate::lab::{Lab, lab, with, word};

const POLICIES: &str = r"HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Policies\System";
const WINLOGON: &str = r"HKLM:\SOFTWARE\Microsoft\Windows NT\CurrentVersion\Winlogon";
const LOGON_UI: &str = r"HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Authentication\LogonUI";

/// A server right after its first logon. `$Lab.Fails` names an act that fails.
const FRESH: &str = r#"
$Lab.Objects['System.IO.Ports.SerialPort'] = { param($with) if ($with[0] -ne 'COM1') { Stop-Lab "port $with" }; New-LabPort }
$Lab.Keys['HKLM:\SOFTWARE\Microsoft\Windows NT\CurrentVersion\Winlogon'] = @{ AutoAdminLogon = '1'; DefaultUserName = 'packer'; DefaultPassword = 'canary'; Shell = 'explorer.exe' }
$Lab.Keys['HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Policies\System'] = @{ EnableLUA = 1 }
$Lab.Keys['HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Authentication\LogonUI'] = @{ LastLoggedOnUser = '.\packer'; Other = 1 }
$Lab.Status = 'Stopped'
$Lab.Networks = { @([pscustomobject]@{ Name = 'Network'; InstanceID = '{1}'; NetworkCategory = 'Public' }) }
function global:Test-Fails([string] $what) { if ($Lab.Fails -eq $what) { throw "$what fails" } }
function global:Get-Service { [CmdletBinding()] param($Name) [pscustomobject]@{ Status = $Lab.Status; StartType = 'Manual' } }
function global:Set-Service { [CmdletBinding()] param($Name, $StartupType) Add-Call "service $Name $StartupType" }
function global:Stop-Service { [CmdletBinding()] param($Name, [switch] $Force) Add-Call "stop $Name" }
function global:Get-NetConnectionProfile { [CmdletBinding()] param() & $Lab.Networks }
function global:Set-NetConnectionProfile {
    [CmdletBinding()] param([Parameter(ValueFromPipeline)] $InputObject, $NetworkCategory)
    process { Test-Fails 'network'; Add-Call "network $($InputObject.Name) $NetworkCategory" }
}
function global:Enable-PSRemoting { [CmdletBinding()] param([switch] $SkipNetworkProfileCheck, [switch] $Force) Test-Fails 'remoting'; Add-Call 'remoting' }
function global:New-SelfSignedCertificate {
    [CmdletBinding()] param($DnsName, $CertStoreLocation)
    Test-Fails 'certificate'
    Add-Call "certificate $DnsName $CertStoreLocation"
    [pscustomobject]@{ Thumbprint = 'AB12'; RawData = [byte[]](1, 2, 3) }
}
function global:New-Item {
    [CmdletBinding()] param($Path, $Transport, $Address, $Port, $CertificateThumbPrint, [switch] $Force)
    if ($Path -ne 'WSMan:\localhost\Listener') { Stop-Lab "New-Item $Path" }
    Test-Fails 'listener'
    Add-Call "listener $Transport $Address $Port $CertificateThumbPrint"
}
$Lab.Values['WSMan:\localhost\Listener'] = @([pscustomobject]@{ Keys = @('Transport=HTTP', 'Address=*'); PSPath = 'WSMan:\localhost\Listener\http' }, [pscustomobject]@{ Keys = @('Transport=HTTPS', 'Address=*'); PSPath = 'WSMan:\localhost\Listener\https' })
foreach ($quota in 'Shell\MaxMemoryPerShellMB', 'Shell\MaxProcessesPerShell', 'Shell\MaxShellsPerUser', 'Service\MaxConcurrentOperationsPerUser') { $Lab.Values["WSMan:\localhost\$quota"] = [pscustomobject]@{ Value = '25' } }
function global:Get-NetFirewallRule {
    [CmdletBinding()] param($Name)
    if ($Name -eq 'WINRM-HTTP-In-TCP*') { return @([pscustomobject]@{ Name = 'WINRM-HTTP-In-TCP'; Enabled = 'False' }, [pscustomobject]@{ Name = 'WINRM-HTTP-In-TCP-PUBLIC'; Enabled = 'True' }) }
    if ($Name -ne 'Kiln-WinRM') { Stop-Lab "rule $Name" }
    [pscustomobject]@{ Name = $Name }
}
function global:Set-NetFirewallRule { [CmdletBinding()] param($Name, $Enabled) Add-Call "rule $Name $Enabled" }
function global:New-NetFirewallRule { [CmdletBinding()] param($Name, $DisplayName, $Direction, $Protocol, $LocalPort, $Action, $Profile) Test-Fails 'firewall'; Add-Call "rule $Name $Direction $Protocol $LocalPort $Action $Profile" }
function global:Remove-NetFirewallRule { [CmdletBinding()] param([Parameter(ValueFromPipeline)] $InputObject) process { Add-Call "remove rule $($InputObject.Name)" } }
"#;

fn lines(lab: &Lab) -> Vec<BootstrapLine> {
    lab.read("serial")
        .lines()
        .map(|line| bootstrap_line(line, "nonce").unwrap_or_else(|| panic!("{line}")))
        .collect()
}

fn bootstrap_text(lab: &Lab) -> String {
    let text = String::from_utf8(bootstrap("nonce")).unwrap();
    let text = with(&text, "Folder", &word(&lab.shown("build")));
    with(&with(&text, "ProfileSeconds", "1"), "PauseSeconds", "0")
}

#[test]
fn the_bootstrap_opens_winrm_and_tells_its_certificate() {
    let lab = lab!();
    lab.run(FRESH, &bootstrap_text(&lab)).ended_with(0);
    let sha256: String = Sha256::digest([1, 2, 3]).iter().map(|byte| format!("{byte:02x}")).collect();
    // SHA-1 of the bytes 1, 2, 3.
    let sha1 = "7037807198c22a7d2b0807371d763779a84fdfcf".to_owned();
    assert_eq!(
        lines(&lab),
        [
            BootstrapLine::Step { step: "begun".into(), warning: None },
            BootstrapLine::WinRm { port: 5986, sha256, sha1 }
        ]
    );
    let calls = lab.calls();
    // The password goes before anything else happens.
    assert_eq!(calls[0], format!("set {WINLOGON} AutoAdminLogon=0"));
    assert_eq!(calls[1], format!("unset {WINLOGON} DefaultPassword"));
    for call in [
        "network Network Private",
        "remoting",
        "service WinRM Automatic",
        r"set WSMan:\localhost\Service\MaxConcurrentOperationsPerUser=4294967295",
        r"certificate LAB Cert:\LocalMachine\My",
        "listener HTTPS * 5986 AB12",
        "rule Kiln-WinRM Inbound TCP 5986 Allow Any",
    ] {
        assert!(calls.iter().any(|made| made == call), "{call:?} is not in {calls:#?}");
    }
    assert!(calls.contains(&format!("set {POLICIES} LocalAccountTokenFilterPolicy=1 DWord")), "{calls:#?}");
    let before: serde_json::Value = serde_json::from_str(&lab.read("build/before.json")).unwrap();
    assert_eq!(before["thumbprint"], "AB12");
    assert_eq!(before["tokenPolicy"], serde_json::Value::Null);
    assert_eq!(
        (before["startType"].as_str(), before["httpListener"].as_bool()),
        (Some("Manual"), Some(false))
    );
    assert_eq!(before["networks"], serde_json::json!([{ "id": "{1}", "category": "Public" }]));
    assert_eq!(before["closedRules"], serde_json::json!(["WINRM-HTTP-In-TCP"]));
    assert!(!lab.read("build/before.json").contains("canary") && !lab.read("serial").contains("canary"));
}

#[test]
fn a_network_that_stays_unknown_is_a_warning() {
    let lab = lab!();
    let none = format!("{FRESH}$Lab.Networks = {{ }}\n");
    lab.run(&none, &bootstrap_text(&lab)).ended_with(0);
    let warning =
        BootstrapLine::Step { step: "network".into(), warning: Some("Windows knows no network".into()) };
    assert_eq!(lines(&lab)[1], warning);
    assert!(matches!(lines(&lab)[2], BootstrapLine::WinRm { .. }));
}

#[test]
fn each_step_that_fails_is_named_over_the_serial_port() {
    let lab = lab!();
    for step in ["remoting", "certificate", "listener", "firewall"] {
        std::fs::remove_file(lab.path("serial")).ok();
        let ran = lab.run(&format!("{FRESH}$Lab.Fails = '{step}'\n"), &bootstrap_text(&lab)).ended_with(1);
        let failed = BootstrapLine::Failed { step: step.into(), error: format!("{step} fails") };
        assert_eq!(lines(&lab).last(), Some(&failed));
        assert!(ran.err.contains(step));
    }
    // A quota that Windows does not have any more only warns; no serial port ends it all.
    std::fs::remove_file(lab.path("serial")).ok();
    let old =
        format!("{FRESH}$Lab.Values['WSMan:\\localhost\\Shell\\MaxShellsPerUser'] = {{ throw 'gone' }}\n");
    lab.run(&old, &bootstrap_text(&lab)).ended_with(0);
    assert!(lab.read("serial").contains("MaxShellsPerUser: gone"), "{}", lab.read("serial"));
    let none = format!("{FRESH}$Lab.Objects['System.IO.Ports.SerialPort'] = {{ throw 'no port' }}\n");
    let ran = lab.run(&none, &bootstrap_text(&lab)).ended_with(1);
    assert!(ran.err.contains("bootstrap, serial port: no port"), "{}", ran.err);
}

/// What Windows has at the end of a build, on top of [`FRESH`].
const BUILT: &str = r#"
$Lab.Status = 'Running'
$Lab.Keys['HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Policies\System']['LocalAccountTokenFilterPolicy'] = 1
$Lab.Values['Cert:\LocalMachine\My\AB12'] = 1
$Lab.Values['Cert:\LocalMachine\CA\AB12'] = 1
$Lab.Loaded = 2
$null = [IO.Directory]::CreateDirectory("$($Lab.Dir)/profile")
$Lab.Processes = { @([pscustomobject]@{ UserName = 'LAB\packer'; SessionId = 1 }, [pscustomobject]@{ UserName = 'LAB\packer'; SessionId = 1 }, [pscustomobject]@{ UserName = 'LAB\packer'; SessionId = 0 }, [pscustomobject]@{ UserName = 'LAB\other'; SessionId = 2 }) }
function global:Get-LocalUser { [CmdletBinding()] param($Name) [pscustomobject]@{ Name = $Name; SID = 'S-1-5-21-7' } }
function global:Remove-LocalUser { [CmdletBinding()] param($Name) Test-Fails 'account'; Add-Call "remove account $Name" }
$Lab.Cim['Win32_UserProfile'] = {
    param($filter)
    if ($filter -ne "SID='S-1-5-21-7'") { Stop-Lab $filter }
    [pscustomobject]@{ LocalPath = "$($Lab.Dir)/profile"; Loaded = ($Lab.Loaded-- -gt 0) }
}
function global:Remove-CimInstance { [CmdletBinding()] param([Parameter(ValueFromPipeline)] $InputObject) process { Add-Call 'remove profile'; [IO.Directory]::Delete($InputObject.LocalPath) } }
function global:Unregister-ScheduledTask { [CmdletBinding()] param($TaskName, [switch] $Confirm) Add-Call "unregister $TaskName" }
"#;

const BOOTSTRAPPED: Undoing = Undoing::Bootstrap { user: "packer" };

fn undo_text(lab: &Lab) -> String {
    undo_text_of(lab, BOOTSTRAPPED)
}

fn undo_text_of(lab: &Lab, undoing: Undoing) -> String {
    let text = with(&undo("nonce", undoing), "Folder", &word(&lab.shown("build")));
    let text = with(&with(&text, "VerdictSeconds", "1"), "ProfileSeconds", "1");
    with(&text, "PauseMilliseconds", "50")
}

fn built(lab: &Lab, verdict: &str) {
    lab.write(
        "build/before.json",
        r#"{"tokenPolicy":null,"startType":"Manual","running":false,"httpListener":false,"closedRules":["WINRM-HTTP-In-TCP"],"quotas":{"WSMan:\\localhost\\Shell\\MaxShellsPerUser":"25"},"networks":[{"id":"{1}","category":"Public"}],"thumbprint":"AB12"}"#,
    );
    lab.write("build/verdict", verdict);
    for program in ["logoff", "shutdown"] {
        let calls = lab.shown("calls");
        lab.program(
            &format!("c/Windows/System32/{program}.exe"),
            &format!("echo {program} \"$@\" >> '{calls}'"),
        );
    }
    lab.write("c/Windows/Panther/unattend.xml", "canary");
}

#[test]
fn the_undoing_leaves_nothing_and_powers_off() {
    let lab = lab!();
    built(&lab, "generalized");
    lab.run(&format!("{FRESH}{BUILT}"), &undo_text(&lab)).ended_with(0);
    assert_eq!(lines(&lab), [BootstrapLine::Undone { done: true, problems: vec![] }]);
    let mut calls = lab.calls();
    // Values go in no particular order.
    calls.sort_by_key(|call| call.starts_with("unset"));
    let first = calls.iter().position(|call| call.starts_with("unset")).unwrap();
    let mut unset = calls.split_off(first);
    unset.sort();
    assert_eq!(
        calls,
        [
            r"remove WSMan:\localhost\Listener\http",
            r"remove WSMan:\localhost\Listener\https",
            "remove rule Kiln-WinRM",
            "rule WINRM-HTTP-In-TCP False",
            r"set WSMan:\localhost\Shell\MaxShellsPerUser=25",
            "network Network Public",
            r"remove Cert:\LocalMachine\My\AB12 with its key",
            r"remove Cert:\LocalMachine\CA\AB12",
            "stop WinRM",
            "service WinRM Manual",
            "logoff 1",
            "remove account packer",
            "remove profile",
            "unregister kiln-undo",
            "shutdown /s /f /t 0",
        ]
    );
    assert_eq!(
        unset,
        [
            format!("unset {WINLOGON} AutoAdminLogon"),
            format!("unset {WINLOGON} DefaultPassword"),
            format!("unset {WINLOGON} DefaultUserName"),
            format!("unset {LOGON_UI} LastLoggedOnUser"),
            format!("unset {POLICIES} LocalAccountTokenFilterPolicy"),
        ]
    );
    assert!(!lab.path("build").exists() && !lab.path("profile").exists());
    assert!(!lab.path("c/Windows/Panther/unattend.xml").exists());
}

#[test]
fn what_was_there_before_is_put_back() {
    let lab = lab!();
    built(&lab, "generalized");
    let before = lab.read("build/before.json");
    lab.write(
        "build/before.json",
        before
            .replace("\"tokenPolicy\":null", "\"tokenPolicy\":0")
            .replace("\"httpListener\":false", "\"httpListener\":true")
            .replace("{1}", "{of another network}"),
    );
    lab.run(&format!("{FRESH}{BUILT}"), &undo_text(&lab)).ended_with(0);
    let calls = lab.calls();
    assert!(calls.contains(&format!("set {POLICIES} LocalAccountTokenFilterPolicy=0 DWord")), "{calls:#?}");
    assert!(!calls.contains(&r"remove WSMan:\localhost\Listener\http".to_owned()), "{calls:#?}");
    assert!(!calls.iter().any(|call| call.starts_with("network")), "{calls:#?}");
    assert!(calls.contains(&r"remove WSMan:\localhost\Listener\https".to_owned()), "{calls:#?}");
}

/// A Windows that had account, listener, certificate and policy before the build. What an earlier build left in the
/// folder, or that there is nothing in it, changes nothing.
#[test]
fn an_installed_system_loses_only_what_is_the_builds() {
    let lab = lab!();
    for leftover in [true, false] {
        std::fs::remove_file(lab.path("serial")).ok();
        std::fs::remove_file(lab.path("calls")).ok();
        built(&lab, "generalized");
        if !leftover {
            std::fs::remove_file(lab.path("build/before.json")).unwrap();
        }
        let text = undo_text_of(&lab, Undoing::BuildOnly);
        assert!(!text.contains("packer"), "{text}");
        lab.run(&format!("{FRESH}{BUILT}"), &text).ended_with(0);
        assert_eq!(lines(&lab), [BootstrapLine::Undone { done: true, problems: vec![] }]);
        assert_eq!(lab.calls(), ["unregister kiln-undo", "shutdown /s /f /t 0"]);
        assert!(!lab.path("build").exists());
        assert!(lab.path("profile").exists());
        assert_eq!(lab.read("c/Windows/Panther/unattend.xml"), "canary");
    }
    // What cannot be removed is said, and the power goes all the same.
    std::fs::remove_file(lab.path("serial")).unwrap();
    built(&lab, "generalized");
    let stays = "function global:Unregister-ScheduledTask { [CmdletBinding()] param($TaskName, [switch] $Confirm) throw 'it stays' }\n";
    lab.run(&format!("{FRESH}{BUILT}{stays}"), &undo_text_of(&lab, Undoing::BuildOnly)).ended_with(0);
    assert_eq!(lines(&lab), [BootstrapLine::Undone { done: false, problems: vec!["task: it stays".into()] }]);
    assert_eq!(lab.calls().last().map(String::as_str), Some("shutdown /s /f /t 0"));
    // "keep" is the same for both.
    std::fs::remove_file(lab.path("calls")).unwrap();
    built(&lab, "keep");
    lab.run(&format!("{FRESH}{BUILT}"), &undo_text_of(&lab, Undoing::BuildOnly)).ended_with(0);
    assert_eq!(lab.calls(), ["unregister kiln-undo"]);
}

#[test]
fn what_cannot_be_undone_is_reported_and_the_rest_is_done() {
    let lab = lab!();
    let problems = |prelude: &str| {
        std::fs::remove_file(lab.path("serial")).ok();
        std::fs::remove_file(lab.path("calls")).ok();
        built(&lab, "generalized");
        lab.run(&format!("{FRESH}{BUILT}{prelude}"), &undo_text(&lab)).ended_with(0);
        assert_eq!(lab.calls().last().map(String::as_str), Some("shutdown /s /f /t 0"));
        match lines(&lab).remove(0) {
            BootstrapLine::Undone { done: false, problems } => problems,
            line => panic!("{line:?}"),
        }
    };
    assert_eq!(problems("$Lab.Fails = 'account'\n"), ["account: account fails"]);
    let loaded = problems("$Lab.Loaded = 100000\n");
    assert!(loaded[0].contains("is still in use after 1 s"), "{loaded:?}");
    let stays = problems(
        "function global:Remove-CimInstance { [CmdletBinding()] param([Parameter(ValueFromPipeline)] $InputObject) process { } }\n",
    );
    assert!(stays[0].contains("is still there"), "{stays:?}");
    // Without the record of what was, the account still goes.
    let lost = problems("[IO.File]::Delete(\"$($Lab.Dir)/build/before.json\")\n");
    assert!(lost[0].starts_with("what was before:"), "{lost:?}");
    assert!(lab.calls().contains(&"remove account packer".to_owned()));
}

#[test]
fn without_a_verdict_nothing_is_touched() {
    let lab = lab!();
    built(&lab, "");
    std::fs::remove_file(lab.path("build/verdict")).unwrap();
    lab.run(&format!("{FRESH}{BUILT}"), &undo_text(&lab)).ended_with(1);
    assert_eq!(lines(&lab), [BootstrapLine::Undone { done: false, problems: vec![] }]);
    assert_eq!(lab.calls(), Vec::<String>::new());
    // "keep" removes only the task; so does anything that is not the one word.
    for word in ["keep", "generalized?"] {
        std::fs::remove_file(lab.path("calls")).ok();
        lab.write("build/verdict", word);
        lab.run(&format!("{FRESH}{BUILT}"), &undo_text(&lab)).ended_with(0);
        assert_eq!(lab.calls(), ["unregister kiln-undo"]);
    }
}

#[test]
fn the_undoing_waits_for_the_verdict() {
    let lab = lab!();
    built(&lab, "");
    std::fs::remove_file(lab.path("build/verdict")).unwrap();
    let text = with(&undo_text(&lab), "VerdictSeconds", "60");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| lab.run(&format!("{FRESH}{BUILT}"), &text));
        kiln_tests::program::until("the undoing waits", Duration::from_secs(60), || {
            lab.path("build/waits").exists().then_some(())
        });
        assert_eq!(lab.calls(), Vec::<String>::new());
        let say = with(&verdict(Verdict::Generalized), "Folder", &word(&lab.shown("build")));
        lab.run_bare(say.as_bytes()).ended_with(0);
        waiting.join().unwrap().ended_with(0);
    });
    assert_eq!(lines(&lab), [BootstrapLine::Undone { done: true, problems: vec![] }]);
    // Nobody waits any more.
    let say = with(&verdict(Verdict::Generalized), "Folder", &word(&lab.shown("build")));
    let ran = lab.run_bare(say.as_bytes()).ended_with(1);
    assert!(ran.err.contains("cannot leave the verdict"), "{}", ran.err);
}

/// The scheduler: the task begins when `$Lab.Begins`.
const SCHEDULER: &str = r#"
$Lab.Begins = $true
function global:Register-ScheduledTask { [CmdletBinding()] param($TaskName, $Xml, [switch] $Force) if ($Lab.Refuses) { throw 'refused' }; $null = [xml]$Xml; if ($Xml -notlike '*S-1-5-18*') { Stop-Lab 'not SYSTEM' }; Add-Call "register $TaskName" }
function global:Start-ScheduledTask { [CmdletBinding()] param($TaskName) Add-Call "start $TaskName"; if ($Lab.Begins) { [IO.File]::WriteAllText("$($Lab.Dir)/build/waits", '') } }
function global:Get-ScheduledTask { [CmdletBinding()] param($TaskName) [pscustomobject]@{ State = 'Queued' } }
"#;

#[test]
fn the_undoing_is_registered_and_seen_to_wait() {
    let lab = lab!();
    let text = with(&register_undo("nonce", BOOTSTRAPPED).unwrap(), "Folder", &word(&lab.shown("build")));
    let text = with(&text, "BeginSeconds", "1");
    // What an earlier try left does not count.
    lab.write("build/waits", "");
    lab.write("build/verdict", "generalized");
    let answer = lab.run(SCHEDULER, &text).ended_with(0).answer();
    assert_eq!(answer["waits"], true);
    assert_eq!(lab.calls(), ["register kiln-undo", "start kiln-undo"]);
    assert_eq!(lab.read("build/undo.ps1"), undo("nonce", BOOTSTRAPPED));
    assert!(!lab.path("build/verdict").exists());

    let answer = lab.run(&format!("{SCHEDULER}$Lab.Begins = $false\n"), &text).ended_with(1).answer();
    assert!(
        answer["error"].as_str().unwrap().contains("did not begin within 1 s (state Queued)"),
        "{answer}"
    );
    let answer = lab.run(&format!("{SCHEDULER}$Lab.Refuses = $true\n"), &text).ended_with(1).answer();
    assert_eq!(answer["error"], "refused");
}

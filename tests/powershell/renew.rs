//! A Windows that was kept goes on: clock, passwords.

use std::time::{Duration, SystemTime};

use kiln_guest::os::windows::renew::{PasswordState, Passwords, Renewed, renew, secrets};

use crate::lab::{Lab, Ran, lab, with};

const OLD: Passwords<'_> = Passwords { own: "old'1", administrator: "old 2" };
const NEW: Passwords<'_> = Passwords { own: "new \u{201c}3", administrator: "new 4" };

/// A clock, and a SAM with two accounts: `packer`, and a built-in administrator who has another name.
const WINDOWS: &str = r#"
function global:Set-Date {
    [CmdletBinding()] param([DateTime] $Date)
    if ($Lab.Fails -eq 'clock') { throw 'A required privilege is not held by the client.' }
    if ("$($Date.Kind)" -ne 'Local') { Stop-Lab "Set-Date of kind $($Date.Kind)" }
    [IO.File]::WriteAllText("$($Lab.Dir)/date", "$(([DateTimeOffset]$Date).ToUnixTimeMilliseconds())")
}
$Lab.Accounts = @{ packer = "old'1"; Chief = 'old 2' }
function global:Get-LocalUser {
    [CmdletBinding()] param()
    [pscustomobject]@{ Name = 'packer'; SID = 'S-1-5-21-1-2-3-1001' }
    [pscustomobject]@{ Name = 'Chief'; SID = 'S-1-5-21-1-2-3-500' }
}
$Lab.Objects['System.DirectoryServices.DirectoryEntry'] = {
    param($given)
    if ("$given" -notmatch '^WinNT://LAB/(\w+),user$') { Stop-Lab "entry $given" }
    $entry = [pscustomobject]@{ Name = $Matches[1] }
    $entry | Add-LabMethod 'ChangePassword' {
        param($old, $new)
        if ($Lab.Refuses) { throw 'The password is too recent to change.' }
        if ($Lab.Accounts[$this.Name] -cne $old) { throw "The specified network password is not correct.`r`n" }
        Add-Call "change $($this.Name) $new"
    }
    $entry | Add-LabMethod 'SetPassword' {
        param($new)
        if ($Lab.Fails -eq 'password') { throw 'The password does not meet the password policy requirements.' }
        Add-Call "reset $($this.Name) $new"
    }
    return $entry
}
"#;

fn run(lab: &Lab, prelude: &str, user: Option<&str>) -> Ran {
    lab.run_with_input(&format!("{WINDOWS}{prelude}"), &renew(SystemTime::now(), user), &secrets(OLD, NEW))
}

fn milliseconds(time: SystemTime) -> i128 {
    i128::try_from(time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

#[test]
fn the_clock_is_set_and_both_passwords_are_changed() {
    let lab = lab!();
    let ran = run(&lab, "", Some("packer")).ended_with(0);
    let renewed = Renewed::parse(&ran.out).unwrap();
    assert!(renewed.done && renewed.notes.is_empty(), "{renewed:?}");
    assert_eq!(renewed.password, PasswordState::Changed);
    assert_eq!(lab.calls(), ["change packer new \u{201c}3", "change Chief new 4"]);
    // What PowerShell took to begin is counted in: as right as if it had begun at once.
    let set: i128 = lab.read("date").parse().unwrap();
    let off = milliseconds(SystemTime::now()) - set;
    assert!((0..3000).contains(&off), "{off} ms");
    // It was right before.
    assert!(renewed.moved_ms.abs() < 1000, "{renewed:?}");
    for secret in [OLD.own, OLD.administrator, NEW.own, NEW.administrator] {
        assert!(!ran.out.contains(secret) && !ran.err.contains(secret), "{ran:?}");
    }
}

#[test]
fn the_images_own_account_keeps_its_password() {
    let lab = lab!();
    let text = renew(SystemTime::now(), None);
    let ran = lab.run_with_input(WINDOWS, &text, "").ended_with(0);
    let renewed = Renewed::parse(&ran.out).unwrap();
    assert!(renewed.done && renewed.password == PasswordState::Kept, "{renewed:?}");
    assert_eq!(lab.calls(), [""; 0]);
    assert_ne!(lab.read("date"), "");
}

#[test]
fn a_clock_that_cannot_be_set_ends_it_before_anything_else() {
    let lab = lab!();
    let ran = run(&lab, "$Lab.Fails = 'clock'", Some("packer")).ended_with(1);
    let renewed = Renewed::parse(&ran.out).unwrap();
    assert!(!renewed.done, "{renewed:?}");
    assert_eq!(renewed.error.as_deref(), Some("the clock: A required privilege is not held by the client."));
    assert_eq!(lab.calls(), [""; 0]);
    // One that says it was set, and was not.
    let hours_ago = SystemTime::now() - Duration::from_secs(7200);
    let text = renew(hours_ago, Some("packer"));
    let ran = lab.run_with_input(WINDOWS, &text, &secrets(OLD, NEW)).ended_with(1);
    let renewed = Renewed::parse(&ran.out).unwrap();
    assert!(renewed.error.unwrap().starts_with("the clock: it did not take "), "{}", ran.out);
    assert!((-7_210_000..=-7_190_000).contains(&renewed.moved_ms), "{}", renewed.moved_ms);
}

#[test]
fn a_password_that_may_not_be_changed_is_reset_and_that_is_told() {
    let lab = lab!();
    let ran = run(&lab, "$Lab.Refuses = $true", Some("packer")).ended_with(0);
    let renewed = Renewed::parse(&ran.out).unwrap();
    assert_eq!(renewed.password, PasswordState::Reset);
    // The administrator's is nobody's to reset: a customizer may have set it.
    assert_eq!(lab.calls(), ["reset packer new \u{201c}3"]);
    assert_eq!(renewed.notes.len(), 2, "{renewed:?}");
    assert!(renewed.notes[0].contains("DPAPI is lost") && renewed.notes[0].contains("too recent"));
    assert!(renewed.notes[1].contains("administrator stays as it is"), "{renewed:?}");

    let ran = run(&lab, "$Lab.Refuses = $true; $Lab.Fails = 'password'", Some("packer")).ended_with(1);
    let renewed = Renewed::parse(&ran.out).unwrap();
    assert!(renewed.error.unwrap().starts_with("the password: The password does not meet"), "{}", ran.out);
}

#[test]
fn an_administrator_with_another_password_keeps_it() {
    let lab = lab!();
    let ran = run(&lab, "$Lab.Accounts['Chief'] = 'of a customizer'", Some("packer")).ended_with(0);
    let renewed = Renewed::parse(&ran.out).unwrap();
    assert_eq!(lab.calls(), ["change packer new \u{201c}3"]);
    assert_eq!(
        renewed.notes,
        [
            "the password of the built-in administrator stays as it is: The specified network password is not correct."
        ]
    );
    // A Windows without the module for local accounts.
    let none =
        "Remove-Item function:Get-LocalUser\n$ExecutionContext.InvokeCommand.CommandNotFoundAction = $null";
    let ran = run(&lab, none, Some("packer")).ended_with(0);
    let renewed = Renewed::parse(&ran.out).unwrap();
    assert!(renewed.notes[0].ends_with("this Windows has no Get-LocalUser"), "{renewed:?}");
    assert_eq!(renewed.password, PasswordState::Changed);
}

#[test]
fn a_start_that_took_too_long_to_be_true_does_not_count() {
    let lab = lab!();
    let text = with(&renew(SystemTime::now(), None), "MostLate", "0");
    lab.run_with_input(WINDOWS, &text, "").ended_with(0);
    let off = milliseconds(SystemTime::now()) - lab.read("date").parse::<i128>().unwrap();
    assert!((0..5000).contains(&off), "{off} ms");
}

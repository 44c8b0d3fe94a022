//! The task runner, registering, following, removing.

use std::time::{Duration, Instant};

use kiln_guest::os::windows::script::{GuestPath, call_arguments, file_arguments};
use kiln_guest::os::windows::secret_line;
use kiln_guest::os::windows::task::{FollowNotice, Following, RunAs, Task, TaskEnd};

use crate::lab::{Lab, Ran, ended, lab, with, without_policy};

/// The task's folder, with a script in it.
fn task(lab: &Lab, script: &str) -> Task {
    lab.write("task/script.ps1", script);
    Task::new("kiln-test", GuestPath::new(lab.shown("task")).unwrap())
}

fn script(lab: &Lab) -> GuestPath {
    GuestPath::new(lab.shown("task/script.ps1")).unwrap()
}

/// The scheduler's word for the task is in the file `task-state`; without one there is no such task.
const SCHEDULER: &str = r#"
function global:Get-ScheduledTask {
    [CmdletBinding()] param([string] $TaskName)
    if ($TaskName -ne 'kiln-test') { Stop-Lab "task $TaskName" }
    if (-not [IO.File]::Exists("$($Lab.Dir)/task-state")) { Write-Error "No MSFT_ScheduledTask objects found"; return }
    [pscustomobject]@{ State = [IO.File]::ReadAllText("$($Lab.Dir)/task-state").Trim() }
}
function global:Get-ScheduledTaskInfo { [CmdletBinding()] param([string] $TaskName) [pscustomobject]@{ LastTaskResult = [uint32]267014 } }
function global:Stop-ScheduledTask { [CmdletBinding()] param([string] $TaskName) Add-Call "stop $TaskName" }
function global:Unregister-ScheduledTask {
    [CmdletBinding()] param([string] $TaskName, [switch] $Confirm)
    if ($Confirm) { Stop-Lab 'a question' }
    [IO.File]::Delete("$($Lab.Dir)/task-state")
    Add-Call "unregister $TaskName"
}
"#;

/// Runs the runner to its end, as the scheduler would.
fn run_task(lab: &Lab, task: &Task, arguments: &str) -> Ran {
    let runner = lab.write("task/runner.ps1", task.runner(lab.engine(), &without_policy(arguments)));
    let mut command = lab.command();
    command.args(["-NoProfile", "-NonInteractive", "-File"]).arg(runner);
    ended(&mut command).ended_with(0)
}

/// One call of the follower, from `at` on.
fn follow(lab: &Lab, task: &Task, at: &mut Following, seconds: u64) -> Vec<FollowNotice> {
    follow_text(lab, &task.follow(at, seconds), at)
}

fn follow_text(lab: &Lab, text: &str, at: &mut Following) -> Vec<FollowNotice> {
    let ran = lab.run(SCHEDULER, text).ended_with(0);
    ran.out.lines().filter_map(|line| at.line(line).unwrap()).collect()
}

/// Joins the bytes of each stream.
fn streams(notices: &[FollowNotice]) -> (String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    for notice in notices {
        match notice {
            FollowNotice::Out(bytes) => out.extend_from_slice(bytes),
            FollowNotice::Err(bytes) => err.extend_from_slice(bytes),
            _ => {}
        }
    }
    (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

fn end(code: i32) -> FollowNotice {
    FollowNotice::End(TaskEnd { code, note: None })
}

#[test]
fn streams_are_apart_and_the_exit_code_is_the_scripts() {
    let lab = lab!();
    let task = task(
        &lab,
        "Write-Output 'gr\u{fc}n'\n[Console]::Error.WriteLine('complaint')\nsh -c 'printf raw; exit 7'\n",
    );
    run_task(&lab, &task, &call_arguments(&script(&lab), None));
    lab.write("task-state", "Ready");
    let mut at = Following::default();
    let notices = follow(&lab, &task, &mut at, 20);
    assert_eq!(streams(&notices), ("gr\u{fc}n\nraw".to_owned(), "complaint\n".to_owned()));
    // A task that was over before the first look is a task like any other.
    assert_eq!(notices.last(), Some(&end(7)));
    // Asked again, as after a lost link: no byte twice, the same end.
    assert_eq!(follow(&lab, &task, &mut at, 20), [end(7)]);
}

#[test]
fn a_script_that_reads_standard_input_finds_none() {
    let lab = lab!();
    let task = task(&lab, "Write-Output \"[$([Console]::In.ReadLine())]\"; exit 3");
    run_task(&lab, &task, &file_arguments(&script(&lab)));
    lab.write("task-state", "Ready");
    let notices = follow(&lab, &task, &mut Following::default(), 20);
    assert_eq!((streams(&notices).0.as_str(), notices.last()), ("[]\n", Some(&end(3))));
}

#[test]
fn a_program_that_cannot_be_started_is_an_end_with_its_reason() {
    let lab = lab!();
    let task = task(&lab, "");
    let runner = lab.write("task/runner.ps1", task.runner("/nowhere/powershell", "-File x"));
    let mut command = lab.command();
    command.args(["-NoProfile", "-File"]).arg(runner);
    ended(&mut command).ended_with(0);
    let notices = follow(&lab, &task, &mut Following::default(), 20);
    let Some(FollowNotice::End(TaskEnd { code: 1, note: Some(note) })) = notices.last() else {
        panic!("{notices:?}")
    };
    assert!(note.contains("/nowhere/powershell"), "{note}");
}

#[test]
fn a_program_left_behind_does_not_hold_the_step() {
    let lab = lab!();
    let task = task(&lab, "sh -c 'echo early; (sleep 60; echo late) & '\nexit 4");
    let started = Instant::now();
    let text = with(
        &task.runner(lab.engine(), &without_policy(&file_arguments(&script(&lab)))),
        "DrainSeconds",
        "1",
    );
    let runner = lab.write("task/runner.ps1", text);
    let mut command = lab.command();
    command.args(["-NoProfile", "-File"]).arg(runner);
    ended(&mut command).ended_with(0);
    assert!(started.elapsed() < Duration::from_secs(50), "{:?}", started.elapsed());
    let notices = follow(&lab, &task, &mut Following::default(), 20);
    assert_eq!(streams(&notices).0, "early\n");
    let Some(FollowNotice::End(TaskEnd { code: 4, note: Some(note) })) = notices.last() else {
        panic!("{notices:?}")
    };
    assert!(note.contains("still holds its output open"), "{note}");
}

#[test]
fn output_is_followed_while_the_task_runs_and_through_lost_links() {
    let lab = lab!();
    let lines = 400;
    let task = task(
        &lab,
        &format!(
            "foreach ($i in 1..{lines}) {{ [Console]::Out.WriteLine(\"line $i\"); if ($i % 50 -eq 0) {{ Start-Sleep -Milliseconds 400 }} }}\nexit 9"
        ),
    );
    lab.write("task-state", "Running");
    let mut notices = Vec::new();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run_task(&lab, &task, &file_arguments(&script(&lab))));
        let mut at = Following::default();
        // Each call ends after a second, as if the link had been lost: the next goes on where it was.
        for _ in 0..100 {
            let mut new = follow(&lab, &task, &mut at, 1);
            let last = new.pop();
            notices.append(&mut new);
            match last {
                Some(FollowNotice::Running) => {}
                other => {
                    notices.extend(other);
                    break;
                }
            }
        }
        running.join().unwrap();
    });
    let expected: String = (1..=lines).map(|line| format!("line {line}\n")).collect();
    assert_eq!(streams(&notices).0, expected);
    assert_eq!(notices.last(), Some(&end(9)));
}

#[test]
fn much_output_comes_in_pieces_and_whole() {
    let lab = lab!();
    let task = task(&lab, "[Console]::Out.Write('x' * 300000)\n[Console]::Error.Write('y' * 100000)\nexit 0");
    run_task(&lab, &task, &file_arguments(&script(&lab)));
    let notices = follow(&lab, &task, &mut Following::default(), 20);
    let (out, err) = streams(&notices);
    assert_eq!((out.len(), err.len()), (300_000, 100_000));
    assert!(notices.len() > 10, "{}", notices.len());
}

#[test]
fn a_task_that_died_is_seen() {
    let lab = lab!();
    let task = task(&lab, "");
    // It began, wrote something, and was killed.
    lab.write("task/began.json", r#"{"pid":1,"ticks":1}"#);
    lab.write("task/out", "half a li");
    lab.write("task-state", "Ready");
    let notices = follow(&lab, &task, &mut Following::default(), 30);
    assert_eq!(streams(&notices).0, "half a li");
    let died = "the task ended without an exit code (state Ready, last result 0x41306)";
    assert_eq!(notices.last(), Some(&FollowNotice::Died(died.into())));
    // The task is gone altogether.
    std::fs::remove_file(lab.path("task-state")).unwrap();
    let notices = follow(&lab, &task, &mut Following::default(), 30);
    assert!(
        matches!(notices.last(), Some(FollowNotice::Died(why)) if why.contains("state Gone")),
        "{notices:?}"
    );
}

#[test]
fn a_task_that_never_begins_is_seen() {
    let lab = lab!();
    let task = task(&lab, "");
    lab.write("task-state", "Queued");
    let mut at = Following::default();
    let notices = follow_text(&lab, &with(&task.follow(&at, 30), "BeginSeconds", "2"), &mut at);
    assert!(
        matches!(notices.last(), Some(FollowNotice::Died(why)) if why.contains("never began")),
        "{notices:?}"
    );
    // And one that is only slow to begin is waited for.
    let notices = follow(&lab, &task, &mut Following::default(), 1);
    assert_eq!(notices, [FollowNotice::Running]);
}

#[test]
fn output_shorter_than_it_said_is_no_end() {
    let lab = lab!();
    let task = task(&lab, "");
    lab.write("task/exit.json", r#"{"code":0,"out":10,"err":0}"#);
    lab.write("task/out", "12345");
    let notices = follow(&lab, &task, &mut Following::default(), 30);
    assert!(
        matches!(notices.last(), Some(FollowNotice::Died(why)) if why.contains("shorter")),
        "{notices:?}"
    );
}

const REGISTERING: &str = r#"
function global:Register-ScheduledTask {
    [CmdletBinding()] param([string] $TaskName, [string] $Xml, [string] $User, [string] $Password, [switch] $Force)
    if (-not $Force) { Stop-Lab 'without -Force' }
    if ($User -eq 'nobody') { throw 'No mapping between account names and security IDs was done.' }
    $null = [xml]$Xml
    Add-Call "register $TaskName user=$User password=$Password"
    [pscustomobject]@{ TaskName = $TaskName }
}
function global:Start-ScheduledTask { [CmdletBinding()] param([string] $TaskName) if ($Lab.Refuses) { throw 'refused' }; Add-Call "start $TaskName" }
"#;

#[test]
fn a_task_of_a_user_gets_its_password_from_standard_input_alone() {
    let lab = lab!();
    let task = task(&lab, "");
    let password = "p'\u{e4}\"$x \u{2019}";
    let text = task.register(RunAs::User("packer")).unwrap();
    let ran = lab.run_with_input(REGISTERING, &text, secret_line(password).as_str()).ended_with(0);
    assert_eq!(
        lab.calls(),
        [format!("register kiln-test user=packer password={password}"), "start kiln-test".to_owned()]
    );
    assert_eq!(ran.answer()["started"], true);
    assert!(!text.contains(password) && !ran.out.contains(password) && !ran.err.contains(password));
    assert!(!lab.read("task/runner.ps1").contains(password));
}

#[test]
fn a_task_of_system_needs_no_password() {
    let lab = lab!();
    let task = task(&lab, "");
    lab.run(REGISTERING, &task.register(RunAs::System).unwrap()).ended_with(0);
    assert_eq!(lab.calls(), ["register kiln-test user= password=", "start kiln-test"]);
}

#[test]
fn a_task_that_cannot_be_registered_or_started_says_so() {
    let lab = lab!();
    let task = task(&lab, "");
    let text = task.register(RunAs::User("nobody")).unwrap();
    let answer = lab.run_with_input(REGISTERING, &text, secret_line("p").as_str()).ended_with(1).answer();
    assert!(answer["error"].as_str().unwrap().contains("No mapping between account names"), "{answer}");
    let refuses = format!("{REGISTERING}$Lab.Refuses = $true\n");
    let answer = lab.run(&refuses, &task.register(RunAs::System).unwrap()).ended_with(2).answer();
    assert_eq!((answer["registered"].as_bool(), answer["error"].as_str()), (Some(true), Some("refused")));
    // A password that is no base64, or none at all, is an error, not an empty password.
    let text = task.register(RunAs::User("packer")).unwrap();
    lab.run_with_input(REGISTERING, &text, "no base64!\n").ended_with(1);
    lab.run_with_input(REGISTERING, &text, "").ended_with(1).says("no password came");
    lab.run_with_input(REGISTERING, &text, "\n").ended_with(1).says("no password came");
    assert!(
        !lab.calls().iter().any(|call| call.starts_with("register kiln-test user=packer")),
        "{:?}",
        lab.calls()
    );
}

#[test]
fn removing_ends_what_runs_and_may_be_repeated() {
    let lab = lab!();
    let task = task(&lab, "");
    lab.write("task/began.json", r#"{"pid":4711,"ticks":1}"#);
    lab.write("task-state", "Running");
    lab.program(
        "c/Windows/System32/taskkill.exe",
        &format!("echo taskkill \"$@\" >> '{}'", lab.shown("calls")),
    );
    let answer = lab.run(SCHEDULER, &task.remove()).ended_with(0).answer();
    assert_eq!(answer["problems"], serde_json::json!([]));
    assert_eq!(lab.calls(), ["taskkill /t /f /pid 4711", "stop kiln-test", "unregister kiln-test"]);
    assert!(!lab.path("task").exists());
    lab.run(SCHEDULER, &task.remove()).ended_with(0);
    assert_eq!(lab.calls().len(), 3);
}

#[test]
fn removing_a_task_that_has_ended_kills_nothing() {
    let lab = lab!();
    let task = task(&lab, "");
    lab.write("task/began.json", r#"{"pid":4711,"ticks":1}"#);
    lab.write("task-state", "Ready");
    lab.run(SCHEDULER, &task.remove()).ended_with(0);
    assert_eq!(lab.calls(), ["unregister kiln-test"]);
}

#[test]
fn removing_that_does_not_succeed_names_what_is_left() {
    let lab = lab!();
    let task = task(&lab, "");
    lab.write("task-state", "Ready");
    let refuses = format!(
        "{SCHEDULER}function global:Unregister-ScheduledTask {{ [CmdletBinding()] param($TaskName, [switch] $Confirm) throw 'denied' }}\n"
    );
    let answer = lab.run(&refuses, &task.remove()).ended_with(1).answer();
    assert_eq!(answer["problems"], serde_json::json!(["task kiln-test: denied"]));
}

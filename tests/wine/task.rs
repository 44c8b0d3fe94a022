//! A script by the task scheduler: Kiln's runner, follower and remover, in a process that no connection holds.

use kiln_guest::os::windows::script::{
    GuestPath, POWERSHELL, file_arguments, file_bytes, loader_command, loader_input,
};
use kiln_guest::os::windows::secret_line;
use kiln_guest::os::windows::task::{FollowNotice, Following, RunAs, Task, TaskEnd};

use crate::machine::{Machine, control, ended, machine};

const FOLDER: &str = r"C:\Windows\Temp\kiln-task";

/// The task's folder, with a script and the runner in it, as a build makes it.
async fn placed(machine: &Machine, script: &str) -> Task {
    let task = Task::new("kiln-step-1", GuestPath::new(FOLDER).unwrap());
    ended(&machine.cmd(&format!("mkdir \"{FOLDER}\"")).await, 0);
    let path = GuestPath::new(format!("{FOLDER}\\script.ps1")).unwrap();
    machine.upload(&file_bytes(script), path.as_str()).await;
    machine.upload(&file_bytes(&task.runner(POWERSHELL, &file_arguments(&path))), &task.runner_path()).await;
    task
}

async fn register(machine: &Machine, task: &Task, run_as: RunAs<'_>) {
    let mut input = loader_input(&task.register(run_as).unwrap());
    if let RunAs::User(_) = run_as {
        input.push_str(&secret_line("p'\u{e4}\"$x"));
    }
    ended(&machine.cmd_with(&loader_command(), Some(input.as_bytes())).await, 0);
}

/// What the follower says, for at most `seconds`.
async fn follow(machine: &Machine, task: &Task, at: &mut Following, seconds: u64) -> Vec<FollowNotice> {
    let said = ended(&machine.powershell(&task.follow(at, seconds)).await, 0);
    said.lines().filter_map(|line| at.line(line).unwrap()).collect()
}

fn output(notices: &[FollowNotice]) -> (String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    for notice in notices {
        match notice {
            FollowNotice::Out(bytes) => out.extend_from_slice(bytes),
            FollowNotice::Err(bytes) => err.extend_from_slice(bytes),
            _ => {}
        }
    }
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace('\r', "");
    (text(out), text(err))
}

async fn removed(machine: &Machine, task: &Task) {
    let said = ended(&machine.powershell(&task.remove()).await, 0);
    assert!(said.contains(r#""problems":[]"#), "{said}");
    assert!(!machine.file("windows/temp/kiln-task").exists());
    ended(&machine.cmd("schtasks /query /tn kiln-step-1").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_runs_to_its_end_and_no_line_is_lost() {
    let machine = machine!();
    let script = "1..300 | ForEach-Object { Write-Output \"line $_ \u{e9}\" }\n[Console]::Error.WriteLine('on error')\nStart-Sleep 3\nexit 3010\n";
    let task = placed(&machine, script).await;
    register(&machine, &task, RunAs::System).await;
    let mut at = Following::default();
    let mut notices = Vec::new();
    let until = control();
    // Each look is short, as if the link had been lost: the next goes on where it was.
    while !matches!(notices.last(), Some(FollowNotice::End(_) | FollowNotice::Died(_))) {
        until.check().unwrap();
        notices.retain(|notice| *notice != FollowNotice::Running);
        notices.extend(follow(&machine, &task, &mut at, 1).await);
    }
    let (out, err) = output(&notices);
    let expected: String = (1..=300).map(|line| format!("line {line} \u{e9}\n")).collect();
    assert_eq!((out, err.trim()), (expected, "on error"));
    assert_eq!(notices.last(), Some(&FollowNotice::End(TaskEnd { code: 3010, note: None })));
    removed(&machine, &task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_task_of_the_account_ends_all_that_it_started() {
    const PINGS: &str = "@(Get-Process -Name ping -ErrorAction SilentlyContinue).Count";
    let machine = machine!();
    let task = placed(&machine, "Write-Output begun\nping.exe -n 300 127.0.0.1\n").await;
    register(&machine, &task, RunAs::User("kiln")).await;
    let mut at = Following::default();
    let until = control();
    while ended(&machine.powershell(PINGS).await, 0) != "1" {
        until.check().unwrap();
        let notices = follow(&machine, &task, &mut at, 1).await;
        assert_eq!(notices.last(), Some(&FollowNotice::Running), "{notices:?}");
    }
    removed(&machine, &task).await;
    assert_eq!(ended(&machine.powershell(PINGS).await, 0), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_was_ended_by_others_is_seen() {
    let machine = machine!();
    let task = placed(&machine, "Write-Output begun\nStart-Sleep 300\n").await;
    register(&machine, &task, RunAs::System).await;
    let mut at = Following::default();
    let until = control();
    while !output(&follow(&machine, &task, &mut at, 1).await).0.contains("begun") {
        until.check().unwrap();
    }
    ended(&machine.cmd("schtasks /end /tn kiln-step-1").await, 0);
    let notices = follow(&machine, &task, &mut at, 20).await;
    let died = "the task ended without an exit code (state Ready, last result 0x41306)";
    assert_eq!(notices.last(), Some(&FollowNotice::Died(died.into())));
    removed(&machine, &task).await;
}

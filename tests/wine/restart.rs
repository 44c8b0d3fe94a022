//! A restart by the reference's command: proven by the boot id, survived by files and registry alone.

use kiln_guest::os::windows::restart::{DEFAULT_COMMAND, Restart, RestartStep};
use kiln_guest::winrm::CommandLine;

use crate::machine::{control, ended, machine};

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_ends_processes_and_keeps_files_and_registry() {
    let machine = machine!();
    ended(&machine.cmd(r"echo kept>c:\kept.txt& reg add HKLM\SOFTWARE\Kept /v Value /d kept /f").await, 0);
    ended(&machine.cmd("schtasks /create /tn long /tr \"ping -n 300 127.0.0.1\" /sc once /st 00:00 & schtasks /run /tn long").await, 0);
    let before = machine.guest.boot_id(&control()).await.unwrap();
    assert!(!machine.guest.boot_id(&control()).await.unwrap().is_another_than(&before));

    let (mut restart, (_, step)) = Restart::new(before, true);
    assert_eq!(step, RestartStep::RunCommand);
    let command = CommandLine::cmd("the restart", DEFAULT_COMMAND);
    let mut next = match machine.guest.exec(&command, None, &control()).await {
        Ok(done) => restart.command_ended(done.code.cast_signed()),
        Err(_) => restart.command_lost(),
    };
    let waiting = control();
    while next.1 == RestartStep::AskBoot {
        match machine.guest.boot_id(&waiting).await {
            Ok(now) => next = restart.boot_answered(&now),
            Err(error) => waiting.check().unwrap_or_else(|why| panic!("no other boot: {error} ({why})")),
        }
    }
    assert_eq!(next.1, RestartStep::RunCheck, "{next:?}");
    let check = r"echo restarted>c:\restarted.txt";
    let (log, step) = restart.check_ended(machine.cmd(check).await.code.cast_signed());
    assert_eq!(
        (step, log.last().map(String::as_str)),
        (RestartStep::Done, Some("Machine successfully restarted, moving on"))
    );

    assert_eq!(machine.read("restarted.txt"), "restarted\r\n");
    let kept = ended(&machine.cmd(r"type c:\kept.txt & reg query HKLM\SOFTWARE\Kept").await, 0);
    assert!(kept.starts_with("kept\n") && kept.contains("Value    REG_SZ    kept"), "{kept}");
    let task = ended(&machine.cmd("schtasks /query /tn long").await, 0);
    assert!(task.contains("Ready"), "{task}");
    assert_eq!(
        ended(&machine.powershell("@(Get-Process -Name ping -ErrorAction SilentlyContinue).Count").await, 0),
        "0"
    );
    assert_eq!(machine.lab.state()["boot"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_has_its_codes() {
    let machine = machine!();
    ended(&machine.cmd("shutdown /a").await, 1116);
    ended(&machine.cmd("shutdown /r /t 600").await, 0);
    ended(&machine.cmd("shutdown /r /f /t 0 /c \"again\"").await, 1190);
    // From PowerShell too, whole.
    ended(&machine.powershell("shutdown.exe /r /t 600 2>$null; exit $LASTEXITCODE").await, 1190);
    ended(&machine.cmd("shutdown /a").await, 0);
    assert_eq!(machine.lab.state()["boot"], 1);
}

//! cmd.exe by WinRM: codes, streams, quotes, batch files, the end by a Signal.

use std::time::Duration;

use kiln_guest::winrm::CommandLine;
use kiln_host::wait::Control;

use crate::machine::{control, ended, machine, stderr};

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_are_whole() {
    let machine = machine!();
    for (line, code) in [
        ("exit 0", 0),
        ("exit 7", 7),
        // 256 would be 0 in eight bits, and a restart that is wanted must stay itself.
        ("exit 256", 256),
        ("exit 3010", 3010),
        ("exit -1073741819", 0xc000_0005),
        ("cmd /c exit 5& cmd /c exit 6", 6),
        ("nosuchprogram", 9009),
    ] {
        ended(&machine.cmd(line).await, code);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_streams_stay_apart_and_quotes_are_cmds() {
    let machine = machine!();
    let done = machine.cmd("echo out& echo err>&2& exit 3").await;
    assert_eq!((ended(&done, 3).as_str(), stderr(&done).trim_end()), ("out", "err"));
    let line =
        r#"mkdir "c:\a folder\b" && echo "one & two">"c:\a folder\b\f.txt"&& type "c:\A FOLDER\b\F.TXT""#;
    assert_eq!(ended(&machine.cmd(line).await, 0), "\"one & two\"");
    assert_eq!(machine.read("a folder/b/f.txt"), "\"one & two\"\r\n");
    // Longer than one operation may be silent.
    let done = machine.cmd("echo begin& ping -n 5 127.0.0.1 >nul& echo over").await;
    assert_eq!(ended(&done, 0), "begin\nover");
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_input_and_programs_without_cmd() {
    let machine = machine!();
    let input = "a line\r\n".repeat(20_000);
    let read = "powershell -NoProfile -Command \"$all = [Console]::In.ReadToEnd(); $all.Length; $all.Substring($all.Length - 8)\"";
    let done = machine.cmd_with(read, Some(input.as_bytes())).await;
    assert_eq!(ended(&done, 0), format!("{}\na line", input.len()));
    let program = CommandLine::program("a test", r"C:\windows\system32\whoami.exe", Vec::new());
    let done = machine.guest.exec(&program, None, &control()).await.unwrap();
    assert!(ended(&done, 0).ends_with("\\kiln"), "{done:?}");
    let program = CommandLine::program("a test", r"C:\windows\nosuch.exe", Vec::new());
    machine.guest.exec(&program, None, &control()).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_file_runs_in_cmds_own_language() {
    let machine = machine!();
    let batch = "@echo off\r\nsetlocal enabledelayedexpansion\r\nset n=0\r\nfor /f \"tokens=2\" %%a in (\"x 4\") do set n=%%a\r\n\
                 call :twice !n!\r\necho !n! %~dp0 %1\r\nif errorlevel 8 exit /b 12\r\nexit /b 1\r\n\
                 :twice\r\nset /a n=%1*2\r\nexit /b 8\r\n";
    ended(&machine.cmd(r#"mkdir "c:\Windows\Temp\own folder""#).await, 0);
    machine.upload(batch.as_bytes(), "c:/Windows/Temp/own folder/job.cmd").await;
    let done = machine.cmd(r#""c:\windows\temp\own folder\job.cmd" word"#).await;
    let said = ended(&done, 12);
    assert!(said.to_lowercase().ends_with(r"8 c:\windows\temp\own folder\ word"), "{said}");
}

/// Ended in mid-run, the command is gone from the machine, with what it had started.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_the_tree() {
    const PINGS: &str = "@(Get-Process -Name ping -ErrorAction SilentlyContinue).Count";
    let machine = machine!();
    let line = CommandLine::cmd("a test", "cmd /c \"ping -n 100 127.0.0.1 >nul\"");
    let wait = control();
    let running = machine.guest.exec(&line, None, &wait);
    let watching = async {
        let until = control();
        while ended(&machine.powershell(PINGS).await, 0) != "1" {
            until.check().unwrap();
        }
        wait.cancel();
    };
    let (ran, ()) = tokio::join!(running, watching);
    assert!(ran.as_ref().unwrap_err().interrupted().is_some(), "{ran:?}");
    assert!(machine.lab.requests("Signal") > 0);
    assert_eq!(ended(&machine.powershell(PINGS).await, 0), "0");
    // A wait that ends is the same.
    let short = Control::ending_in(Duration::from_secs(1));
    let error = machine.guest.exec(&line, None, &short).await.unwrap_err();
    assert!(error.interrupted().is_some(), "{error}");
    assert_eq!(ended(&machine.powershell(PINGS).await, 0), "0");
}

/// What Wine only pretends to have must not look like success.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_here_is_loud() {
    let machine = machine!();
    for line in ["certutil -hashfile c:\\x", "dism /online", "sort", "schtasks /change /tn x", "shutdown /h"]
    {
        let done = machine.cmd(line).await;
        ended(&done, 250);
        assert!(stderr(&done).contains("lab: not implemented: "), "{line}: {done:?}");
    }
    let done = machine.powershell("Get-HotFix -ErrorAction SilentlyContinue; exit 0").await;
    ended(&done, 250);
}

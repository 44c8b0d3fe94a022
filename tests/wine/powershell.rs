//! powershell.exe by WinRM: Kiln's own way in, the customizer's texts, uploads, the registry, what a machine is asked.

use kiln_guest::os::windows::facts::{self, WindowsFacts};
use kiln_guest::os::windows::script::{
    GuestPath, call_command, environment, file_bytes, file_command, inline,
};
use kiln_guest::winrm::UploadWay;
use kiln_host::digest::sha256;

use crate::machine::{Machine, control, ended, machine, stderr};

/// Places a script as the customizer does, and runs it by the command line that `command` makes of its path.
async fn run(
    machine: &Machine,
    script: &str,
    command: impl Fn(&GuestPath) -> String,
) -> (u32, String, String) {
    let path = GuestPath::new("c:/Windows/Temp/script-1.ps1").unwrap();
    machine.upload(&file_bytes(script), path.as_str()).await;
    let done = machine.cmd(&command(&path)).await;
    (done.code, done.text().replace('\r', ""), stderr(&done))
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_of_ours_speak_and_fail_readably() {
    let machine = machine!();
    let text = "'out \u{e9} \u{2713}'; Write-Warning 'careful'; Write-Error 'bad <thing>'; exit 70000";
    let done = machine.powershell(text).await;
    assert_eq!(ended(&done, 70_000), "out \u{e9} \u{2713}");
    let said = stderr(&done);
    assert!(said.contains("WARNING: careful\n") && said.contains("bad <thing>"), "{said}");
    assert!(!said.contains("CLIXML") && !said.contains("_x000"), "{said}");
    let long = format!("# {}\n'the end'; exit 4", "x".repeat(20_000));
    assert_eq!(ended(&machine.powershell(&long).await, 4), "the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inline_ends_as_the_services_does() {
    let machine = machine!();
    for (lines, code, out, err) in [
        (&["Write-Output one", "Write-Error soft", "Write-Output two"][..], 0, "one\ntwo", "soft"),
        (&["throw 'on purpose'", "Write-Output never"], 1, "", "on purpose"),
        (&["cmd.exe /c exit 5"], 5, "", ""),
        (&["cmd.exe /c exit 5", "cmd.exe /c exit 0"], 0, "", ""),
        (&["Write-Output here", "exit 3010"], 3010, "here", ""),
        (&["if ("], 1, "", ""),
    ] {
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        let (ended, said, wrong) = run(&machine, &inline(&lines, None), file_command).await;
        assert_eq!((ended, said.as_str()), (code, out), "{lines:?}: {wrong}");
        assert!(
            wrong.contains(err) && (code != 0 || !err.is_empty() || wrong.is_empty()),
            "{lines:?}: {wrong}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetched_script_gets_its_environment_and_its_code_counts() {
    let machine = machine!();
    let variables = GuestPath::new("c:/Windows/Temp/vars.ps1").unwrap();
    let text = environment(&[("PACKER_BUILD_NAME".to_owned(), "it's \u{e4} $x".to_owned())]);
    machine.upload(&file_bytes(&text), variables.as_str()).await;
    let script = "Write-Output $env:PACKER_BUILD_NAME $PSCommandPath\r\n& cmd.exe /c 'exit 4'\r\n";
    let (code, said, wrong) = run(&machine, script, |path| call_command(path, Some(&variables))).await;
    assert_eq!(code, 4, "{wrong}");
    assert_eq!(said.to_lowercase(), "it's \u{e4} $x\nc:\\windows\\temp\\script-1.ps1", "{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_arrive_as_they_are() {
    let machine = machine!();
    let bytes: Vec<u8> =
        (0..3 * 1024 * 1024_u32).map(|n| n.to_le_bytes()[usize::from(n.to_le_bytes()[1] % 4)]).collect();
    let local = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(local.path(), &bytes).unwrap();
    let digest = sha256(&bytes);
    ended(&machine.cmd(r#"mkdir "C:\Program Files\A""#).await, 0);
    for (remote, path) in [
        ("c:/Windows/Temp/a file.bin", "windows/temp/a file.bin"),
        (r"C:\Program Files\A\b.bin", "Program Files/A/b.bin"),
    ] {
        let uploaded = machine.guest.upload(local.path(), remote, digest, |_| (), &control()).await.unwrap();
        assert_eq!((uploaded.way, uploaded.bytes), (UploadWay::PowerShell, 3 * 1024 * 1024));
        assert!(std::fs::read(machine.file(path)).unwrap() == bytes, "{remote}");
        // The same, as the machine itself has it.
        let hashed = machine
            .powershell(&format!("(Get-FileHash -LiteralPath '{remote}' -Algorithm SHA256).Hash"))
            .await;
        let shown: String = digest.iter().map(|byte| format!("{byte:02X}")).collect();
        assert_eq!(ended(&hashed, 0), shown);
    }
}

/// PowerShell's provider and reg.exe look at one registry, Wine's.
#[tokio::test(flavor = "multi_thread")]
async fn the_registry_is_one() {
    let machine = machine!();
    let text = r"
        $key = 'HKLM:\SOFTWARE\Policies\Kiln Lab'
        $null = New-Item -Path $key -Force
        Set-ItemProperty -LiteralPath $key -Name Count -Value 7 -Type DWord
        Set-ItemProperty -LiteralPath $key -Name Words -Value 'a b'
        exit 0";
    ended(&machine.powershell(text).await, 0);
    let shown = ended(&machine.cmd(r#"reg query "HKLM\SOFTWARE\Policies\Kiln Lab""#).await, 0);
    assert!(
        shown.contains("Count    REG_DWORD    0x7") && shown.contains("Words    REG_SZ    a b"),
        "{shown}"
    );
    ended(
        &machine.cmd(r#"reg add "HKLM\SOFTWARE\Policies\Kiln Lab" /v Count /t REG_DWORD /d 12 /f"#).await,
        0,
    );
    let text = r"$all = Get-ItemProperty 'HKLM:\SOFTWARE\Policies\Kiln Lab'; $all.Count; $all.Words
        Remove-ItemProperty -LiteralPath 'HKLM:\SOFTWARE\Policies\Kiln Lab' -Name Words";
    assert_eq!(ended(&machine.powershell(text).await, 0), "12\na b");
    ended(&machine.cmd(r#"reg query "HKLM\SOFTWARE\Policies\Kiln Lab" /v Words"#).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_machine_is_asked_it_answers_from_its_registry() {
    let machine = machine!();
    ended(
        &machine.cmd(r#"reg add "HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion\WindowsUpdate\Auto Update\RebootRequired" /f"#).await,
        0,
    );
    let said = ended(&machine.powershell(&facts::facts()).await, 0);
    let facts = WindowsFacts::parse(&said).unwrap();
    assert_eq!(facts.unread, Vec::<String>::new());
    assert_eq!(facts.name.as_deref(), Some("Kiln lab (Wine, no Windows)"));
    assert_eq!((facts.edition.as_deref(), facts.arch.as_deref()), (Some("Lab"), Some("AMD64")));
    assert_eq!(facts.image_state.as_deref(), Some("IMAGE_STATE_COMPLETE"));
    assert_eq!((facts.rearms_left, facts.pending_restart), (Some(5), vec!["Windows Update".to_owned()]));
    assert!(facts.free_bytes.unwrap() > 0);
    let said = ended(&machine.powershell(&facts::flush()).await, 0);
    assert!(said.contains(r#""problems":[]"#), "{said}");
}

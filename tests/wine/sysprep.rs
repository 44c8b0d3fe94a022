//! Generalizing: the 2020-02-14 reference's default script unchanged, and Kiln's guarded one in each branch.
//!
//! Services are of Wine's service control manager, made by its sc.exe; Sysprep is the lab's, a process that goes
//! through the image states of a Windows. What is shown is what the scripts do then.

use std::time::Duration;

use kiln_guest::Stream;
use kiln_guest::os::windows::sysprep::{
    Deprovisioning, SysprepLimits, default_script, failure, lookup, override_command, watch,
};
use kiln_guest::winrm::CommandLine;
use kiln_host::wait::Control;

use crate::machine::{Machine, control, ended, machine};

const REFERENCE: &[u8] = include_bytes!("../fixtures/sysprep-2020/default-sysprep.ps1");
const AGENTS: [&str; 3] = ["RdAgent", "WindowsAzureTelemetryService", "WindowsAzureGuestAgent"];
/// Where an answer file would be found by an image's first boot.
const ANSWER_FILES: [&str; 3] = [
    "windows/system32/Sysprep/unattend.xml",
    "windows/Panther/unattend.xml",
    "windows/Panther/Unattend/unattend.xml",
];
const QUICK: SysprepLimits =
    SysprepLimits { service_seconds: 2, sysprep_seconds: 60, gone_seconds: 3, pause_seconds: 1 };

impl Machine {
    /// A service that needs `seconds` from its start until it runs.
    async fn service(&self, name: &str, start: &str, seconds: u32) {
        let line = format!(r#"sc create {name} binPath= "C:\lab\service.exe run {seconds}" start= {start}"#);
        ended(&self.cmd(&line).await, 0);
    }

    async fn start_service(&self, name: &str) {
        ended(&self.cmd(&format!(r"C:\lab\service.exe start {name}")).await, 0);
    }

    async fn answer_files(&self) {
        for path in ANSWER_FILES {
            std::fs::create_dir_all(self.file(path).parent().unwrap()).unwrap();
            std::fs::write(self.file(path), "<unattend/>").unwrap();
        }
    }

    /// How Sysprep will do: see tests/lab/wine/sysprep.c.
    fn sysprep_is(&self, result: &str, seconds: u32) {
        std::fs::write(self.file("lab/sysprep.txt"), format!("result {result}\nseconds {seconds}\n"))
            .unwrap();
    }

    async fn image_state(&self) -> String {
        let shown = self
            .cmd(r"reg query HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion\Setup\State /v ImageState")
            .await;
        ended(&shown, 0).split_whitespace().last().unwrap().to_owned()
    }
}

/// The texts stand in `said` in this order.
#[track_caller]
fn in_order(said: &str, texts: &[&str]) {
    let mut rest = said;
    for text in texts {
        let at = rest.find(text).unwrap_or_else(|| panic!("{text:?} is not in its place in:\n{said}"));
        rest = &rest[at + text.len()..];
    }
}

/// The last customizer, as a build runs it where a customizer left the reference's script.
#[tokio::test(flavor = "multi_thread")]
async fn the_references_script_runs_unchanged() {
    let machine = machine!();
    for name in AGENTS {
        machine.service(name, "auto", 1).await;
        machine.start_service(name).await;
    }
    machine.answer_files().await;
    machine.sysprep_is("generalized", 9);
    machine.upload(REFERENCE, r"c:\DeprovisioningScript.ps1").await;
    let found = Deprovisioning::parse(&ended(&machine.powershell(&lookup()).await, 0)).unwrap();
    assert_eq!(found.text.as_deref().map(str::as_bytes), Some(REFERENCE));
    let done = machine.cmd(&override_command().unwrap()).await;
    let said = ended(&done, 0);
    assert!(done.stderr.is_empty(), "{}", done.excerpt());
    in_order(
        &said,
        &[
            ">>> Waiting for GA Service (RdAgent) to start ...\n",
            ">>> Waiting for GA Service (WindowsAzureTelemetryService) to start ...\n",
            ">>> Waiting for GA Service (WindowsAzureGuestAgent) to start ...\n",
            ">>> Sysprepping VM ...\n",
            "IMAGE_STATE_COMPLETE\n",
            "IMAGE_STATE_UNDEPLOYABLE\n",
            "IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE\n",
            ">>> Sysprep complete ...",
        ],
    );
    assert!(!machine.file(ANSWER_FILES[0]).exists());
    assert_eq!(std::fs::read(machine.file("DeprovisioningScript.ps1")).unwrap(), REFERENCE);
    let said = ended(&machine.powershell(&watch(&QUICK)).await, 0);
    assert!(said.ends_with(">>> Sysprep complete ..."), "{said}");
}

/// Why there is a guarded one: without Azure's agents the reference's waits until somebody ends it.
#[tokio::test(flavor = "multi_thread")]
async fn off_azure_the_references_script_does_not_end_by_itself() {
    let machine = machine!();
    machine.upload(REFERENCE, r"c:\DeprovisioningScript.ps1").await;
    let line = CommandLine::cmd("the reference's script", override_command().unwrap());
    let mut said = Vec::new();
    let take = |stream, bytes: &[u8]| {
        if stream == Stream::Stdout {
            said.extend_from_slice(bytes);
        }
    };
    let error =
        machine.guest.run(&line, None, take, &Control::ending_in(Duration::from_secs(12))).await.unwrap_err();
    assert!(error.interrupted().is_some(), "{error}");
    let said = String::from_utf8(said).unwrap();
    assert_eq!(said.trim_end(), ">>> Waiting for GA Service (RdAgent) to start ...");
    assert_eq!(machine.image_state().await, "IMAGE_STATE_COMPLETE");
}

#[tokio::test(flavor = "multi_thread")]
async fn off_azure_the_guarded_script_skips_each_wait() {
    let machine = machine!();
    machine.answer_files().await;
    machine.sysprep_is("generalized", 6);
    let done = machine.powershell(&default_script(&QUICK)).await;
    let said = ended(&done, 0);
    for name in AGENTS {
        in_order(
            &said,
            &[&format!(">>> Not on Azure: {name} absent, skipped\n"), ">>> Sysprepping VM ...\n"],
        );
    }
    in_order(
        &said,
        &[
            "IMAGE_STATE_COMPLETE\n",
            "IMAGE_STATE_UNDEPLOYABLE\n",
            "IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE\n",
            ">>> Sysprep complete ...",
        ],
    );
    assert!(done.stderr.is_empty(), "{}", done.excerpt());
    for path in ANSWER_FILES {
        assert!(!machine.file(path).exists(), "{path}");
    }
    assert_eq!(machine.image_state().await, "IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE");
    let state = machine.read("windows/Setup/State/State.ini");
    assert!(state.contains("ImageState=IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE"), "{state}");
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_start_late_are_waited_for() {
    let machine = machine!();
    machine.sysprep_is("generalized", 1);
    for (name, seconds) in [(AGENTS[0], 4), (AGENTS[1], 0), (AGENTS[2], 0)] {
        machine.service(name, "auto", seconds).await;
    }
    // One that is about to run, one that runs, one that is stopped and started meanwhile.
    machine.start_service(AGENTS[0]).await;
    machine.start_service(AGENTS[1]).await;
    let script = default_script(&SysprepLimits { service_seconds: 60, ..QUICK });
    let later = async {
        // Not before the script waits for the first.
        let until = control();
        let query = format!(r"C:\lab\service.exe query {}", AGENTS[0]);
        while !ended(&machine.cmd(&query).await, 0).starts_with("Running") {
            until.check().unwrap();
        }
        machine.start_service(AGENTS[2]).await;
    };
    let (done, ()) = tokio::join!(machine.powershell(&script), later);
    let said = ended(&done, 0);
    assert!(!said.contains("skipped") && !said.contains("Warning"), "{said}");
    assert!(said.ends_with(">>> Sysprep complete ..."), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_never_run_are_waited_for_within_a_bound() {
    let machine = machine!();
    machine.sysprep_is("generalized", 1);
    machine.service(AGENTS[0], "disabled", 0).await;
    machine.service(AGENTS[2], "auto", 600).await;
    machine.start_service(AGENTS[2]).await;
    let said = ended(&machine.powershell(&default_script(&QUICK)).await, 0);
    in_order(
        &said,
        &[
            ">>> Warning: RdAgent is not running after 2 s",
            ">>> Not on Azure: WindowsAzureTelemetryService absent, skipped",
            ">>> Warning: WindowsAzureGuestAgent is not running after 2 s",
            ">>> Sysprep complete ...",
        ],
    );
}

/// Each way in which Sysprep does not generalize, by its code, with the end of its logs.
#[tokio::test(flavor = "multi_thread")]
async fn a_sysprep_that_fails_is_seen() {
    let machine = machine!();
    let state = r"reg add HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion\Setup\State /v ImageState /d IMAGE_STATE_COMPLETE /f";
    for (result, limits, code, says) in [
        ("undeployable", QUICK, 20, "a provider failed half-way"),
        ("dies", QUICK, 21, "the image state is IMAGE_STATE_COMPLETE"),
        ("hangs", SysprepLimits { sysprep_seconds: 6, ..QUICK }, 22, "did not end within 6 s"),
    ] {
        ended(&machine.cmd(state).await, 0);
        machine.sysprep_is(result, 2);
        let done = machine.powershell(&default_script(&limits)).await;
        let said = ended(&done, code);
        assert!(said.contains(says) && said.contains("setupact.log"), "{result}: {said}");
        assert!(failure(code.cast_signed()).is_some() && !said.contains("complete ..."), "{result}: {said}");
    }
    std::fs::remove_file(machine.file("windows/system32/Sysprep/Sysprep.exe")).unwrap();
    let said = ended(&machine.powershell(&default_script(&QUICK)).await, 23);
    assert!(said.contains(">>> ERROR: there is no "), "{said}");
}

/// An image that was generalized as often as Windows allows.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_rearm_sysprep_refuses() {
    let machine = machine!();
    let none = r#"reg add "HKLM\SOFTWARE\Microsoft\Windows NT\CurrentVersion\SoftwareProtectionPlatform" /v LabRearmsLeft /t REG_DWORD /d 0 /f"#;
    ended(&machine.cmd(none).await, 0);
    let said = ended(&machine.powershell(&default_script(&QUICK)).await, 21);
    assert!(said.contains("no rearm is left"), "{said}");
}

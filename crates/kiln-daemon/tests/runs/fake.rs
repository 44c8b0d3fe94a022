//! A worker's part: lock, claim, journal and log as the real one has them, and no machine.
//!
//! It is this test binary itself, started again for one ignored test. What it does is told by the
//! name of its plan's template.

use std::path::Path;
use std::time::Duration;

use kiln_build::journal::Journal;
use kiln_build::log::CustomizationLog;
use kiln_build::run_dir::{CLAIM_FORMAT, Claim, Request, RunDir};
use kiln_host::lock::FileLock;
use kiln_host::process::{Invocation, ProcessMark, SpawnOptions};
use kiln_model::event::{EVENTS_FORMAT, Failure, RunEventKind, RunOutput};
use kiln_model::plan::BuildPlan;
use kiln_model::run::{Fault, Phase, RunState};

/// Longer than any test lasts.
const LONG: Duration = Duration::from_secs(120);

#[expect(clippy::disallowed_methods, reason = "a worker that does not begin ends as a program does")]
pub fn work(dir: &RunDir) {
    let plan = BuildPlan::from_json(&std::fs::read_to_string(dir.plan()).unwrap()).unwrap();
    let request = dir.read_request().unwrap();
    let name = plan.template_name.clone();
    let does = |word: &str| name.starts_with(word);
    if does("never") {
        eprintln!("this worker cannot work");
        std::process::exit(3);
    }
    let Some(_lock) = FileLock::try_exclusive(dir.lock()).unwrap() else { std::process::exit(4) };
    let mark = ProcessMark::own().unwrap();
    dir.write_claim(&Claim {
        format: CLAIM_FORMAT,
        executor: "local".into(),
        host: "here".into(),
        boot_id: mark.boot_id,
        pid: mark.pid,
        start_ticks: mark.start_ticks,
        start_time: "2026-01-02T03:04:05.678Z".into(),
        attempt: 1,
        sockets: dir.path().join("sockets"),
    })
    .unwrap();
    let log = CustomizationLog::open(&dir.customization_log(), &request.operation.unwrap()).unwrap();
    let journal = Journal::open(&dir.events()).unwrap();
    journal.append(RunEventKind::RunStarted {
        format: EVENTS_FORMAT,
        run_id: request.run_id.to_string(),
        template_name: name.clone(),
        template_sha256: plan.template_sha256,
        source: "base 1".into(),
        kiln_version: "0".into(),
        attempt: 1,
    });
    journal.phase(Phase::Building);
    std::fs::create_dir_all(dir.work()).unwrap();
    std::fs::write(dir.work().join("os.qcow2"), "disk").unwrap();
    // As the real one starts QEMU: its child dies with it.
    let machine = Invocation::new("sleep").arg("300").spawn(SpawnOptions::default()).unwrap();
    std::fs::write(dir.path().join("machine.pid"), machine.pid().to_string()).unwrap();
    journal.phase(Phase::Customizing);
    log.say("working");
    let (state, message, fault) = if does("fail") {
        (RunState::Failed, "Shell \"x\": exit status 1", Some(Fault::Guest))
    } else if does("quick") {
        (RunState::Succeeded, "", None)
    } else if does("self-killed") {
        std::fs::write(request.output_dir.join(".e.vhd.abc.kiln-aside"), "half").unwrap();
        // Renamed, and its record not yet written.
        std::fs::write(request.output_dir.join("d.vhd"), "whole?").unwrap();
        drop(Invocation::new("kill").arg("-9").arg(std::process::id().to_string()).run_blocking());
        unreachable!()
    } else if wait_for(&dir.path().join("finish"), |at| {
        at.exists() || (dir.is_asked(Request::Cancel) && !does("deaf"))
    }) && !dir.is_asked(Request::Cancel)
    {
        (RunState::Succeeded, "", None)
    } else {
        (RunState::Canceled, "the run was canceled", None)
    };
    drop(machine);
    if state == RunState::Succeeded {
        journal.phase(Phase::Distributing);
        let output = output(&request.run_id.to_string());
        std::fs::write(request.output_dir.join(&output.file), "bytes").unwrap();
        std::fs::write(request.output_dir.join("d.json"), output.to_json()).unwrap();
        journal.append(RunEventKind::OutputPublished { output });
    }
    std::fs::remove_dir_all(dir.work()).unwrap();
    let failure = fault.map(|fault| Failure {
        fault,
        phase: Phase::Customizing,
        step: None,
        cause: message.into(),
        chain: Vec::new(),
        log_tail: Vec::new(),
        console_tail: Vec::new(),
    });
    journal.append(RunEventKind::RunEnded { state, message: message.into(), failure, ms: 1 });
}

pub fn output(run: &str) -> RunOutput {
    let golden = include_str!("../../../../tests/fixtures/golden/run-output.json");
    let mut output = RunOutput::from_json(golden).unwrap();
    (output.name, output.file, output.run_id) = ("d".into(), "d.vhd".into(), run.into());
    output
}

/// The fake's one wait: a poll, which is good enough for a fake.
fn wait_for(path: &Path, done: impl Fn(&Path) -> bool) -> bool {
    let until = std::time::Instant::now() + LONG;
    while !done(path) {
        if std::time::Instant::now() > until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

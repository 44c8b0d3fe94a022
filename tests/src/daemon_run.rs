//! The one run of a daemon, as it is seen from outside: in its directory, and by its artifact.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::census;
use crate::daemon::Daemon;
use crate::disk::Disk;
use crate::footer;
use crate::kiln::Kiln;
use crate::program::{self, until};
use crate::slots;
use crate::template::Template;

/// A run, waiting for the processor included.
pub const RUN_LIMIT: Duration = Duration::from_secs(10 * 60);
/// What a customizer does so that [`assert_made`] finds it done.
pub const MAKE: &str = "echo made by a daemon | sudo tee /srv/made";

pub fn events(kiln: &Kiln) -> Vec<Value> {
    let Some(run) = kiln.runs().pop() else { return Vec::new() };
    let text = std::fs::read_to_string(run.join("events.jsonl")).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .map(|line| line["event"].clone())
        .collect()
}

pub fn until_event(kiln: &Kiln, what: &str, wanted: impl Fn(&Value) -> bool) {
    until(what, RUN_LIMIT, || {
        let events = events(kiln);
        let came = events.iter().any(&wanted);
        let ended = events.iter().any(|event| event["kind"] == "runEnded");
        assert!(came || !ended, "the run ended before {what}: {events:#?}");
        came.then_some(())
    });
}

pub fn until_step(kiln: &Kiln, id: &str) {
    until_event(kiln, &format!("the step {id}"), |event| {
        event["kind"] == "stepStarted" && event["step"]["id"] == id
    });
}

pub fn worker(kiln: &Kiln) -> census::Process {
    let claim = kiln.runs().pop().expect("a run").join("claim.json");
    let pid = until("a claim", Duration::from_secs(30), || {
        let claim: Value = serde_json::from_slice(&std::fs::read(&claim).ok()?).ok()?;
        i32::try_from(claim["pid"].as_i64()?).ok()
    });
    kiln.processes().into_iter().find(|process| process.pid == pid).expect("the worker lives")
}

/// The artifact of the template's run output `out`, downloaded.
pub fn download(daemon: &Daemon<'_>, template: &str) -> PathBuf {
    let id = daemon.template_id(template);
    let output = daemon.get(&format!("{id}/runOutputs/out?api-version=2023-07-01")).json();
    let uri = output["properties"]["artifactUri"].as_str().unwrap_or_else(|| panic!("{output:#}")).to_owned();
    let to = daemon.kiln().path().join("downloaded.vhd");
    // The port may be another daemon's: the path is what stays.
    let path = &uri[uri.find("/kiln/").unwrap()..];
    daemon.download(path, &to);
    to
}

pub fn assert_made(daemon: &Daemon<'_>, template: &str) {
    let vhd = download(daemon, template);
    footer::assert_fit_for_azure(&vhd);
    assert_eq!(Disk::open(&vhd).text("/srv/made"), "made by a daemon\n");
    std::fs::remove_file(vhd).unwrap();
}

/// No process, no work folder, no half-made file of any run.
pub fn assert_clean(kiln: &Kiln) {
    until("every process is gone", Duration::from_secs(10), || kiln.processes().is_empty().then_some(()));
    for run in kiln.runs() {
        assert!(!run.join("work").exists(), "{}: the work folder is gone", run.display());
    }
    let left =
        program::output("find", [kiln.data().join("artifacts").as_os_str(), "-name".as_ref(), ".*".as_ref()]);
    assert_eq!(left, "", "nothing half-made among the artifacts");
}

/// A daemon killed at the beginning of `step`: the run ends well, and the next daemon reports it. What `template`
/// makes is [`MAKE`].
pub fn survives_its_daemon(template: &Template, step: &str) {
    let kiln = Kiln::new();
    let _slot = slots::take();
    let first = Daemon::start(&kiln);
    first.put_template("t", template);
    let operation = first.start_run("t");
    until_step(&kiln, step);
    let working = worker(&kiln).pid;
    first.kill();
    assert_eq!(worker(&kiln).pid, working, "the worker goes on");
    let second = Daemon::start(&kiln);
    let ended = second.until_operation_ended(&operation, RUN_LIMIT);
    assert_eq!(ended["status"], "Succeeded", "{ended:#}");
    assert_eq!(second.template("t")["properties"]["lastRunStatus"]["runState"], "Succeeded");
    assert_eq!(kiln.runs().len(), 1, "it was the same run all along");
    assert_made(&second, "t");
    second.stop();
    assert_clean(&kiln);
}

/// A worker killed in the first customizer of `template`, which never ends by itself: the run is settled, and nothing
/// is left of it.
pub fn settles_its_worker(template: &Template) {
    let kiln = Kiln::new();
    let _slot = slots::take();
    let daemon = Daemon::start(&kiln);
    daemon.put_template("t", template);
    let operation = daemon.start_run("t");
    until_step(&kiln, "customize/1");
    worker(&kiln).kill();
    // The daemon itself is the one process that stays.
    let own = i32::try_from(daemon.pid()).unwrap();
    until("worker and QEMU are gone", Duration::from_secs(5), || {
        kiln.processes().iter().all(|process| process.pid == own).then_some(())
    });
    let ended = daemon.until_operation_ended(&operation, Duration::from_secs(30));
    assert_eq!(ended["status"], "Failed", "{ended:#}");
    let message = ended["error"]["message"].as_str().unwrap();
    assert!(message.contains("worker") && message.contains("SIGKILL"), "{message}");
    daemon.stop();
    assert_clean(&kiln);
}

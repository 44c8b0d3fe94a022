//! Runs of a daemon: it may end at any moment, and a run goes on; a worker may, and its run is settled.

use std::time::Duration;

use kiln_tests::daemon::Daemon;
use kiln_tests::daemon_run::{
    MAKE, RUN_LIMIT, assert_clean, assert_made, events, settles_its_worker, survives_its_daemon, until_event,
    until_step, worker,
};
use kiln_tests::kiln::Kiln;
use kiln_tests::program;
use kiln_tests::slots;
use kiln_tests::template::{Template, tiny};

fn small() -> Template {
    // The tiny guest has no waagent: it brings a deprovisioning of its own.
    let lines = [MAKE, "echo 'sleep 2' > /tmp/DeprovisioningScript.sh", "sleep 4"];
    tiny().shell("short", lines)
}

macro_rules! killed_at {
    ($($name:ident: $step:literal;)*) => { $(#[test] fn $name() { survives_its_daemon(&small(), $step) })* };
}

killed_at! {
    a_daemon_killed_while_the_guest_boots: "connect";
    a_daemon_killed_in_a_customizer: "customize/1";
    a_daemon_killed_while_deprovisioning: "deprovision";
    a_daemon_killed_while_powering_down: "power-down";
    a_daemon_killed_while_distributing: "distribute/out";
}

/// The run ends while nobody looks: the next daemon reports it all the same.
#[test]
fn a_run_that_ends_without_a_daemon_is_reported_by_the_next() {
    let kiln = Kiln::new();
    let _slot = slots::take();
    let first = Daemon::start(&kiln);
    first.put_template("t", &small());
    let operation = first.start_run("t");
    until_step(&kiln, "customize/1");
    first.kill();
    until_event(&kiln, "the end of the run", |event| event["kind"] == "runEnded");
    let second = Daemon::start(&kiln);
    let ended = second.until_operation_ended(&operation, Duration::from_secs(30));
    assert_eq!(ended["status"], "Succeeded", "{ended:#}");
    assert_made(&second, "t");
}

/// An orderly restart is no end of a run, either.
#[test]
fn a_restarted_daemon_follows_its_runs_on() {
    let kiln = Kiln::new();
    let _slot = slots::take();
    let first = Daemon::start(&kiln);
    first.put_template("t", &small());
    let operation = first.start_run("t");
    until_step(&kiln, "customize/1");
    first.stop();
    let second = Daemon::start(&kiln);
    assert_eq!(second.template("t")["properties"]["lastRunStatus"]["runState"], "Running");
    let ended = second.until_operation_ended(&operation, RUN_LIMIT);
    assert_eq!(ended["status"], "Succeeded", "{ended:#}");
}

#[test]
fn a_killed_worker_is_settled() {
    settles_its_worker(&tiny().shell("forever", ["sleep 100000"]));
}

/// A run that kept its machine has another worker, which goes on from there.
#[test]
fn a_killed_worker_of_a_run_that_kept_something_is_replaced() {
    let kiln = Kiln::new().env("KILN_CHECKPOINTS", "4G");
    let _slot = slots::take();
    let daemon = Daemon::start(&kiln);
    let step = |word: &str| format!("echo {word} | sudo tee -a /srv/order");
    daemon.put_template("t", &tiny().shell("one", [&*step("one")]).shell("two", [MAKE, "sleep 6"]));
    let operation = daemon.start_run("t");
    until_step(&kiln, "customize/2");
    let working = worker(&kiln);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(working.pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let ended = daemon.until_operation_ended(&operation, RUN_LIMIT);
    assert_eq!(ended["status"], "Succeeded", "{ended:#}");
    assert_made(&daemon, "t");
    let attempts: Vec<u64> = events(&kiln).iter().filter_map(|event| event["attempt"].as_u64()).collect();
    assert_eq!(attempts, [1, 2]);
}

/// Worker and daemon die together; the next daemon settles the run, once.
#[test]
fn a_worker_that_died_without_a_daemon_is_settled_by_the_next() {
    let kiln = Kiln::new();
    let _slot = slots::take();
    let first = Daemon::start(&kiln);
    first.put_template("t", &tiny().shell("forever", ["sleep 100000"]));
    let operation = first.start_run("t");
    until_step(&kiln, "customize/1");
    let working = worker(&kiln);
    first.kill();
    working.kill();
    let second = Daemon::start(&kiln);
    let ended = second.until_operation_ended(&operation, Duration::from_secs(30));
    assert_eq!(ended["status"], "Failed", "{ended:#}");
    let state = second.template("t")["properties"]["lastRunStatus"].clone();
    assert_eq!(state["runState"], "Failed", "{state:#}");
    second.kill();
    let third = Daemon::start(&kiln);
    assert_eq!(third.template("t")["properties"]["lastRunStatus"], state, "a run ends once");
    third.stop();
    assert_clean(&kiln);
}

/// `latest` is resolved when the run starts, of a template that is stored as it was.
#[test]
fn a_stored_template_uses_a_newer_base_image() {
    let kiln = Kiln::with_own_shelf();
    let _slot = slots::take();
    let daemon = Daemon::start(&kiln);
    daemon.put_template("t", &small());
    let source = || {
        let started = events(&kiln).into_iter().find(|event| event["kind"] == "runStarted").unwrap();
        started["source"].as_str().unwrap().to_owned()
    };
    let ended = daemon.until_operation_ended(&daemon.start_run("t"), RUN_LIMIT);
    assert_eq!(ended["status"], "Succeeded", "{ended:#}");
    assert_eq!(source(), "tiny 1.0.0");
    let disk = kiln.data().join("library/images/tiny/1.0.0");
    let disk = std::fs::read_dir(disk).unwrap().map(|entry| entry.unwrap().path());
    let disk =
        disk.into_iter().find(|path| path.extension().is_some_and(|it| it == "qcow2")).expect("a disk");
    let imported = kiln.run([
        "images",
        "import",
        disk.to_str().unwrap(),
        "--name",
        "tiny",
        "--version",
        "1.1.0",
        "--platform",
        "Kiln:tests:tiny",
        "--generation",
        "1",
    ]);
    assert!(imported.status.success(), "{}", imported.stderr);
    let ended = daemon.until_operation_ended(&daemon.start_run("t"), RUN_LIMIT);
    assert_eq!(ended["status"], "Succeeded", "{ended:#}");
    assert_eq!(source(), "tiny 1.1.0");
}

/// Of two targets the first is finished when the cancel comes: it stays, with its run output; the other leaves nothing.
#[test]
fn a_cancel_during_distribution_keeps_what_is_finished() {
    let kiln = Kiln::new();
    let _slot = slots::take();
    let daemon = Daemon::start(&kiln);
    let two = serde_json::json!([
        { "type": "VHD", "runOutputName": "first" },
        { "type": "VHD", "runOutputName": "second" },
    ]);
    daemon.put_template("t", &tiny().disk_gb(30).with("distribute", two));
    let operation = daemon.start_run("t");
    until_event(&kiln, "the first target is finished", |event| event["kind"] == "outputPublished");
    let canceled = daemon.post(&format!("{}/cancel?api-version=2023-07-01", daemon.template_id("t")));
    assert_eq!(canceled.status, 202, "{}", canceled.text());
    let ended = daemon.until_operation_ended(&operation, RUN_LIMIT);
    assert_eq!(ended["status"], "Canceled", "{ended:#}");
    let outputs =
        daemon.get(&format!("{}/runOutputs?api-version=2023-07-01", daemon.template_id("t"))).json();
    let names: Vec<&str> =
        outputs["value"].as_array().unwrap().iter().map(|output| output["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["first"]);
    daemon.stop();
    assert_clean(&kiln);
    let files =
        program::output("find", [kiln.data().join("artifacts").as_os_str(), "-type".as_ref(), "f".as_ref()]);
    assert!(files.contains("first") && !files.contains("second"), "{files}");
}

/// Of two targets one cannot be served: the run has succeeded in part, and says which.
#[test]
fn a_target_that_fails_is_told_and_the_other_is_there() {
    let kiln = Kiln::new();
    let _slot = slots::take();
    let daemon = Daemon::start(&kiln);
    let two = serde_json::json!([
        { "type": "VHD", "runOutputName": "first" },
        { "type": "VHD", "runOutputName": "out" },
    ]);
    daemon.put_template("t", &small().with("distribute", two));
    let operation = daemon.start_run("t");
    until_step(&kiln, "customize/1");
    // A folder is in the first one's way.
    let run = kiln.runs().pop().unwrap();
    let artifacts = kiln.data().join("artifacts").join(run.file_name().unwrap());
    std::fs::create_dir_all(artifacts.join("first.vhd/in-the-way")).unwrap();
    let ended = daemon.until_operation_ended(&operation, RUN_LIMIT);
    assert_eq!(ended["status"], "Succeeded", "{ended:#}");
    let last = daemon.template("t")["properties"]["lastRunStatus"].clone();
    assert_eq!(last["runState"], "PartiallySucceeded", "{last:#}");
    let message = last["message"].as_str().unwrap();
    assert!(message.starts_with("Distributed in part: out.vhd made; "), "{message}");
    assert!(message.contains("\"first\"") && message.contains("customization.log"), "{message}");
    assert_made(&daemon, "t");
    let missing = daemon.get(&format!("{}/runOutputs/first?api-version=2023-07-01", daemon.template_id("t")));
    assert_eq!(missing.status, 404, "{}", missing.text());
    daemon.stop();
    assert_clean(&kiln);
}

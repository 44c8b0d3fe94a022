//! One case each of what a daemon's runs survive, on a grown-up system; the tiny guest has the others.

use std::time::Duration;

use kiln_tests::daemon::Daemon;
use kiln_tests::daemon_run::{MAKE, RUN_LIMIT, assert_clean, assert_made, until_step, worker};
use kiln_tests::kiln::Kiln;
use kiln_tests::program::until;
use kiln_tests::slots;
use kiln_tests::template::debian;

#[test]
fn a_daemon_killed_in_a_customizer() {
    let kiln = Kiln::new();
    let _slot = slots::take();
    let first = Daemon::start(&kiln);
    first.put_template("t", &debian().shell("short", [MAKE, "sleep 4"]));
    let operation = first.start_run("t");
    until_step(&kiln, "customize/1");
    let working = worker(&kiln).pid;
    first.kill();
    assert_eq!(worker(&kiln).pid, working, "the worker goes on");
    let second = Daemon::start(&kiln);
    let ended = second.until_operation_ended(&operation, RUN_LIMIT);
    assert_eq!(ended["status"], "Succeeded", "{ended:#}");
    assert_eq!(second.template("t")["properties"]["lastRunStatus"]["runState"], "Succeeded");
    assert_made(&second, "t");
    second.stop();
    assert_clean(&kiln);
}

#[test]
fn a_worker_killed_in_a_customizer() {
    let kiln = Kiln::new();
    let _slot = slots::take();
    let daemon = Daemon::start(&kiln);
    daemon.put_template("t", &debian().shell("forever", ["while :; do sleep 1; done"]));
    let operation = daemon.start_run("t");
    until_step(&kiln, "customize/1");
    worker(&kiln).kill();
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

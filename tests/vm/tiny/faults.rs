//! Everything that can end a build, in every phase it can happen in.
//!
//! Each case brings a build to a moment, does the deed, and looks: the exit code, the
//! cause in one sentence, and that nothing is left: no process, no socket, no file.

use std::time::Duration;

use kiln_tests::footer;
use kiln_tests::kiln::{Ended, Kiln, Running};
use kiln_tests::server::{Answer, Server};
use kiln_tests::template::{Template, tiny};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// The tiny guest has no waagent: it brings a deprovisioning of its own.
const QUICK_DEPROVISION: &str = "echo true > /tmp/DeprovisioningScript.sh";

/// Where a build is held up, each by something that never ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// A server that drips a byte a second.
    Inputs,
    /// A disk whose boot sector halts: the machine runs, and nothing answers.
    Connect,
    /// A customizer that sleeps.
    Customize,
    /// A deprovisioning script that sleeps.
    Deprovision,
    /// A guest that ignores its power button.
    PowerDown,
    /// A disk so large that its digest takes minutes.
    Distribute,
}

/// How the build is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    /// Ctrl-C.
    Cancel,
    /// SIGTERM, as a service manager sends it.
    Terminate,
    /// SIGKILL for the machine.
    KillQemu,
    /// SIGKILL for the worker, and with it for what it started.
    KillWorker,
    /// `buildTimeoutInMinutes` is 1.
    TimeOut,
}

impl Moment {
    fn template(self, kiln: &Kiln, server: &Server) -> Template {
        let endless = "while :; do sleep 1; done";
        match self {
            Moment::Inputs => tiny().file("slow", &server.url("/slow"), "/tmp/slow"),
            Moment::Connect => {
                let mute = kiln.path().join("mute.raw");
                std::fs::write(&mute, mute_disk()).unwrap();
                let args = ["images", "import", mute.to_str().unwrap(), "--name", "mute", "--version", "1"];
                let args = args.into_iter().chain(["--platform", "Kiln:tests:mute", "--generation", "1"]);
                let imported = kiln.run(args);
                assert!(imported.status.success(), "{}", imported.stderr);
                Template::new("Kiln", "tests", "mute").vm_size("Standard_A0")
            }
            Moment::Customize => tiny().shell("forever", [endless]),
            Moment::Deprovision => tiny()
                .shell("override", [format!("echo '{endless}' > /tmp/DeprovisioningScript.sh").as_str()]),
            Moment::PowerDown => {
                tiny().shell("deaf", ["echo '#!/bin/sh' | sudo tee /etc/acpi/PWRF/00000080"])
            }
            Moment::Distribute => tiny().disk_gb(1000),
        }
    }

    fn step(self) -> &'static str {
        match self {
            Moment::Inputs => "inputs",
            Moment::Connect => "connect",
            Moment::Customize => "customize/1",
            Moment::Deprovision => "deprovision",
            Moment::PowerDown => "power-down",
            Moment::Distribute => "distribute/out",
        }
    }

    /// What a person reads of it in the message of a time-out.
    fn words(self) -> &'static str {
        match self {
            Moment::Inputs => "input",
            Moment::Connect => "wait for SSH",
            Moment::Customize => "Shell \"forever\"",
            Moment::Deprovision => "deprovision",
            Moment::PowerDown => "power down",
            Moment::Distribute => "VHD \"out\"",
        }
    }
}

/// A disk with a partition table and a boot sector that does nothing, for ever.
fn mute_disk() -> Vec<u8> {
    let mut disk = vec![0; 64 << 20];
    // hlt; jmp to it
    disk[..3].copy_from_slice(&[0xf4, 0xeb, 0xfd]);
    // One Linux partition from sector 2048 to the end.
    disk[446..462].copy_from_slice(&[0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0xf8, 1, 0]);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

impl Deed {
    fn do_to(self, running: &Running<'_>) {
        match self {
            Deed::Cancel => running.interrupt(),
            Deed::Terminate => running.signal(Signal::TERM),
            Deed::KillQemu => running.qemu().kill(),
            Deed::KillWorker => running.worker().kill(),
            Deed::TimeOut => {}
        }
    }

    fn assert_end(self, ended: Ended, moment: Moment) {
        match self {
            Deed::Cancel | Deed::Terminate => {
                let ended = ended.canceled();
                assert!(ended.stderr.to_lowercase().contains("cancel"), "{}", ended.stderr);
            }
            Deed::KillQemu => {
                let cause = ended.failed().cause();
                assert!(cause.contains("QEMU") || cause.contains("virtual machine"), "{cause}");
                assert!(
                    cause.contains("signal") || cause.contains("SIGKILL") || cause.contains("killed"),
                    "{cause}"
                );
            }
            Deed::KillWorker => {
                let cause = ended.failed().cause();
                assert!(cause.contains("worker") && cause.contains("SIGKILL"), "{cause}");
            }
            Deed::TimeOut => {
                let ended = ended.failed();
                let cause = ended.cause();
                assert!(
                    cause.contains(
                        "Timeout waiting for microservice to complete: 'context deadline exceeded'"
                    ),
                    "{cause}"
                );
                assert!(cause.contains(moment.words()), "what ran is named: {cause}");
                assert!(ended.log().contains("context deadline exceeded"), "and it is in the log");
                assert!(
                    ended.took < Duration::from_secs(90),
                    "a minute, and the time to clean up: {:?}",
                    ended.took
                );
            }
        }
    }
}

fn case(moment: Moment, deed: Deed) {
    let server = Server::start([("/slow", Answer::Drip)]);
    let kiln = if moment == Moment::Connect { Kiln::with_own_shelf() } else { Kiln::new() };
    let mut template = moment.template(&kiln, &server);
    if deed == Deed::TimeOut {
        template = template.timeout_minutes(1);
    }
    let mut running = kiln.start(&template);
    running.until_step(moment.step());
    // Until the minute is over, only the digest of a large disk is work.
    if deed == Deed::TimeOut && moment != Moment::Distribute {
        running.give_slot_back();
    }
    deed.do_to(&running);
    deed.assert_end(running.wait(), moment);
    kiln.assert_nothing_left();
}

macro_rules! cases {
    ($($name:ident: $moment:ident $deed:ident;)*) => {
        $(#[test] fn $name() { case(Moment::$moment, Deed::$deed) })*
    };
}

cases! {
    canceled_while_inputs_come: Inputs Cancel;
    canceled_while_nobody_answers: Connect Cancel;
    canceled_in_a_customizer: Customize Cancel;
    canceled_while_deprovisioning: Deprovision Cancel;
    canceled_while_powering_down: PowerDown Cancel;
    canceled_while_distributing: Distribute Cancel;
    terminated_in_a_customizer: Customize Terminate;

    qemu_killed_while_nobody_answers: Connect KillQemu;
    qemu_killed_in_a_customizer: Customize KillQemu;
    qemu_killed_while_deprovisioning: Deprovision KillQemu;
    qemu_killed_while_powering_down: PowerDown KillQemu;

    worker_killed_while_inputs_come: Inputs KillWorker;
    worker_killed_while_nobody_answers: Connect KillWorker;
    worker_killed_in_a_customizer: Customize KillWorker;
    worker_killed_while_deprovisioning: Deprovision KillWorker;
    worker_killed_while_powering_down: PowerDown KillWorker;
    worker_killed_while_distributing: Distribute KillWorker;

    time_out_while_inputs_come: Inputs TimeOut;
    time_out_while_nobody_answers: Connect TimeOut;
    time_out_in_a_customizer: Customize TimeOut;
    time_out_while_deprovisioning: Deprovision TimeOut;
    time_out_while_powering_down: PowerDown TimeOut;
    time_out_while_distributing: Distribute TimeOut;
}

/// A target that cannot be served takes nothing from the others; nor is the run a success.
#[test]
fn a_target_that_fails_leaves_the_others() {
    let kiln = Kiln::new();
    // A folder is in the second one's way.
    std::fs::create_dir_all(kiln.out().join("second.vhd/in-the-way")).unwrap();
    let three = ["first", "second", "third"].map(|name| json!({ "type": "VHD", "runOutputName": name }));
    let template = tiny().shell("short", [QUICK_DEPROVISION]).with("distribute", json!(three));
    let ended = kiln.build(&template);
    assert_eq!(ended.result["state"], "PartiallySucceeded", "{}", ended.story());
    assert_eq!(ended.exit, Some(1));
    assert_eq!(ended.result["failure"]["step"]["id"], "distribute/second");
    let message = ended.result["message"].as_str().unwrap();
    assert!(
        message.starts_with("first.vhd, third.vhd made; ") && message.contains("\"second\""),
        "{message}"
    );
    assert_eq!(kiln.artifacts(), ["first.json", "first.vhd", "second.vhd", "third.json", "third.vhd"]);
    footer::assert_fit_for_azure(&kiln.out().join("first.vhd"));
    footer::assert_fit_for_azure(&kiln.out().join("third.vhd"));
    assert!(ended.log().contains("could not write the run output of \"second\""), "{}", ended.log());
    assert!(!ended.run_dir.as_ref().unwrap().join("work").exists(), "the work folder is gone");

    // With none served it has failed.
    std::fs::create_dir_all(kiln.out().join("fourth.json/in-the-way")).unwrap();
    let two = ["second", "fourth"].map(|name| json!({ "type": "VHD", "runOutputName": name }));
    let ended =
        kiln.build(&tiny().shell("short", [QUICK_DEPROVISION]).with("distribute", json!(two))).failed();
    assert_eq!(ended.failed_step(), "VHD \"second\"");
    assert!(
        ended.cause().contains("\"second\"") && ended.cause().contains("\"fourth\""),
        "{}",
        ended.cause()
    );
}

/// A worker that does not answer is killed by the second Ctrl-C.
#[test]
fn a_second_interrupt_kills() {
    let server = Server::start([("/slow", Answer::Drip)]);
    let kiln = Kiln::new();
    let running = kiln.start(&Moment::Customize.template(&kiln, &server));
    running.until_step("customize/1");
    let worker = Pid::from_raw(running.worker().pid).unwrap();
    kill_process(worker, Signal::STOP).unwrap();
    running.interrupt();
    // The first was taken when the request lies there.
    let request = running.run_dir().join("requests/cancel");
    kiln_tests::program::until("the request to cancel", Duration::from_secs(10), || {
        request.exists().then_some(())
    });
    running.interrupt();
    let _ = running.wait().canceled();
    kiln.assert_nothing_left();
}

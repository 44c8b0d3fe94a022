//! What the host can lack: network, room, a QEMU that stays. And what it must not learn: secrets.

use std::path::Path;

use kiln_tests::disk::find_bytes;
use kiln_tests::kiln::Kiln;
use kiln_tests::program::{command, finish};
use kiln_tests::server::{Answer, Server};
use kiln_tests::slots;
use kiln_tests::template::tiny;
use kiln_tests::{census, skip};
use serde_json::json;

/// Whether this machine lets us make namespaces; a container may not.
fn has_namespaces(flags: &str) -> bool {
    let limit = std::time::Duration::from_secs(10);
    finish(command("unshare").args([flags, "true"]), limit).status.success()
}

/// With base and inputs present a build needs no network.
#[test]
fn a_build_without_any_network() {
    if !has_namespaces("-rn") {
        skip!("unshare -rn is not allowed here");
    }
    // `ip link set lo up`: SSH to the guest goes over the loopback. There is no other interface.
    let kiln =
        Kiln::new().wrapped(&["unshare", "-rn", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]);
    let file = kiln.path().join("input");
    std::fs::write(&file, "echo no network needed\nip route > /srv/route\n").unwrap();
    let script = format!("file://{}", file.display());
    let ended = kiln
        .build(&tiny().customizer(json!({ "type": "Shell", "name": "s", "scriptUri": script })))
        .succeeded();
    assert!(ended.log().contains("no network needed"), "{}", ended.log());
}

/// A small file system for one folder, without being root: in a namespace of its own.
fn small_disk(folder: &Path, megabytes: u32) -> [String; 5] {
    std::fs::create_dir_all(folder).unwrap();
    let mount =
        format!("mount -t tmpfs -o size={megabytes}m tmpfs '{}' && exec \"$0\" \"$@\"", folder.display());
    ["unshare".into(), "-rm".into(), "sh".into(), "-c".into(), mount]
}

fn on_small_disk(kiln: Kiln, folder: &Path, megabytes: u32) -> Kiln {
    let words = small_disk(folder, megabytes);
    kiln.wrapped(&words.each_ref().map(String::as_str))
}

#[test]
fn a_full_output_folder_is_named() {
    if !has_namespaces("-rm") {
        skip!("unshare -rm is not allowed here");
    }
    let kiln = Kiln::new();
    let out = kiln.out();
    let kiln = on_small_disk(kiln, &out, 16);
    let ended = kiln.build(&tiny()).failed();
    let cause = ended.cause();
    assert!(cause.contains(&out.display().to_string()), "the folder is named: {cause}");
    assert!(["room", "space", "full"].iter().any(|word| cause.contains(word)), "{cause}");
    assert_eq!(ended.result["failure"]["fault"], "host");
    kiln.assert_nothing_left();
}

/// The guest pauses on a full disk, and the run fails when no room appears.
#[test]
fn a_disk_that_fills_up_while_the_guest_runs_is_named() {
    if !has_namespaces("-rm") {
        skip!("unshare -rm is not allowed here");
    }
    let kiln = Kiln::new().env("KILN_DISK_FULL_WAIT", "3");
    let runs = kiln.data().join("runs");
    // Enough to start with (a run wants 1 GiB free), not enough for what the step writes.
    let kiln = on_small_disk(kiln, &runs, 1100);
    let template = tiny()
        .disk_gb(4)
        // Past the file system, onto the disk itself: the guest's own is too small to fill the host's.
        .shell("fill", ["sudo dd if=/dev/urandom of=/dev/vda bs=1M seek=200 count=3000 conv=fsync"]);
    let ended = kiln.build(&template);
    // The run directory went with its namespace: what counts is what was said.
    assert_eq!(ended.exit, Some(1), "{}", ended.story());
    let cause = ended.cause();
    assert!(cause.contains(&runs.display().to_string()), "the path is named: {cause}");
    assert!(["room", "space", "full"].iter().any(|word| cause.contains(word)), "{cause}");
}

/// A SAS token reaches no log, event, argument list or artifact.
#[test]
fn a_secret_in_an_address_goes_nowhere() {
    const CANARY: &str = "c4n4ry5ecretT0ken";
    let server = Server::start([("/script.sh", Answer::Bytes(b"echo ran\nsleep 2\n".to_vec()))]);
    let kiln = Kiln::new();
    let address = format!("{}?sv=2020&sig={CANARY}", server.url("/script.sh"));
    let template = tiny().customizer(json!({ "type": "Shell", "name": "s", "scriptUri": address })).file(
        "missing folder",
        &format!("{}?sig={CANARY}", server.url("/script.sh")),
        "/no/such/place",
    );
    let running = kiln.start(&template);
    running.until_step("customize/1");
    for process in kiln.processes() {
        assert!(!process.command.contains(CANARY), "{}", process.command);
    }
    let ended = running.wait().failed();
    assert!(server.requests().iter().any(|target| target.contains(CANARY)), "the server did get it");
    assert!(!ended.stderr.contains(CANARY), "{}", ended.stderr);
    assert!(!ended.result.to_string().contains(CANARY));
    assert!(ended.events.iter().all(|event| !event.to_string().contains(CANARY)));
    let listed = kiln_tests::program::output("find", [kiln.path().to_str().unwrap(), "-type", "f"]);
    for file in listed.lines().filter(|file| !file.ends_with("/template.json")) {
        let file = Path::new(file);
        // plan.json is what a worker works by: private to the user, and the address must be in it.
        if file.ends_with("plan.json") {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            continue;
        }
        assert!(!find_bytes(file, CANARY.as_bytes()), "{} holds the secret", file.display());
    }
}

/// The machine is the worker's child and shares its fate, whatever the worker's end.
#[test]
fn the_machine_is_a_child_of_its_worker() {
    let kiln = Kiln::new();
    let running = kiln.start(&tiny().shell("wait", ["sleep 3"]));
    running.until_step("customize/1");
    let (worker, qemu) = (running.worker(), running.qemu());
    assert_eq!(qemu.parent, worker.pid, "{qemu:?} {worker:?}");
    assert_eq!(census::naming(kiln.path()).len(), 3, "command, worker, machine: {:?}", kiln.processes());
    let _ = running.wait().succeeded();
}

/// Six guests of 768 MiB, and memory for two: each of the six gets its turn, and no third one runs beside two.
#[test]
fn builds_at_once_wait_for_memory() {
    const MEMORY: &str = "2100M";
    let kiln = Kiln::new().env("KILN_MEMORY", MEMORY);
    // The others wait for the most part: two guests are what one slot and this one are for.
    let _second = slots::take();
    let mut running = Vec::new();
    for number in 0..6 {
        let out = json!([{ "type": "VHD", "runOutputName": format!("out-{number}") }]);
        let template = tiny().with("distribute", out);
        let build = if number == 0 { kiln.start(&template) } else { kiln.start_beside(&template) };
        // It has read its template.
        build.until_event("the start of the run", |event| event["kind"] == "runStarted");
        running.push(build);
    }
    let ended: Vec<_> = running.into_iter().map(|build| build.wait().succeeded()).collect();
    let guests: Vec<(String, String)> = ended
        .iter()
        .map(|ended| (ended.time_of("stepStarted", "boot"), ended.time_of("stepEnded", "power-down")))
        .collect();
    for (begins, _) in &guests {
        let beside = guests.iter().filter(|(from, to)| from <= begins && begins < to).count();
        assert!(beside <= 2, "{beside} guests at {begins}: {guests:#?}");
    }
    let waited = ended.iter().filter(|ended| ended.steps_done().contains(&"memory".into())).count();
    assert!(waited >= 2, "{waited} builds have waited");
    kiln.assert_no_memory_taken();

    // One that waits ends when it is told to, and a guest that never fits is made to fit.
    let first = kiln.start(&tiny().vm_size("Standard_B2s").shell("forever", ["sleep 100000"]));
    first.until_step("customize/1");
    let second = kiln.start_beside(&tiny());
    second.until_step("memory");
    second.interrupt();
    let second = second.wait().canceled();
    assert!(!second.steps_done().contains(&"boot".into()));
    assert!(first.qemu().pid > 0, "the first one runs");
    first.interrupt();
    let first = first.wait().canceled();
    let plan: serde_json::Value = serde_json::from_str(&first.run_file("plan.json")).unwrap();
    assert_eq!(plan["machine"]["memoryMib"], 2100 - 256, "capped: {plan:#}");
}

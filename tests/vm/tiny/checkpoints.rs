//! What is kept of a build, and what later builds make of it: with a guest that is up in seconds.

use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_tests::disk::{Disk, find_bytes};
use kiln_tests::kiln::{Ended, Kiln};
use kiln_tests::program::until;
use kiln_tests::server::{Answer, Server};
use kiln_tests::template::{Template, tiny};
use kiln_tests::tree::{self, Tree};
use rustix::process::Signal;
use serde_json::{Value, json};

fn keeping() -> Kiln {
    Kiln::new().env("KILN_CHECKPOINTS", "4G")
}

/// `kiln checkpoints list --json`, newest first.
fn kept(kiln: &Kiln) -> Vec<Value> {
    let listed = kiln.run(["checkpoints", "list", "--json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    listed["checkpoints"].as_array().unwrap().clone()
}

fn folder(kiln: &Kiln, kept: &Value) -> PathBuf {
    kiln.data().join("library/checkpoints").join(kept["id"].as_str().unwrap())
}

/// Fifty files that nobody synced, then a step of its own.
fn two_steps(second: &str) -> Template {
    let write = "i=0; while [ $i -lt 50 ]; do i=$((i+1)); echo $i > /tmp/f; sudo cp /tmp/f /srv/f$i; done";
    tiny().shell("first", [write]).shell("second", [second, "cat /srv/first-ran 2> /dev/null || true"])
}

fn said(ended: &Ended) -> String {
    ended.notices("info").join("\n")
}

fn assert_has(text: &str, words: &str) {
    assert!(text.contains(words), "{words:?} is not in:\n{text}");
}

fn fifty(disk: &Disk) {
    let names = disk.names("/srv");
    assert_eq!(names.iter().filter(|name| name.starts_with('f')).count(), 50, "{names:?}");
    assert_eq!(disk.text("/srv/f50"), "50\n");
}

fn differing(one: &Tree, other: &Tree) -> Vec<String> {
    tree::differences(one, other).into_iter().map(|difference| difference.path).collect()
}

#[test]
fn a_build_goes_on_at_the_first_step_that_changed() {
    let kiln = keeping();
    let template = two_steps("sudo sh -c 'head -c 16 /dev/urandom > /srv/random; date +%s > /srv/clock'");
    let fresh = kiln.build(&template).succeeded();
    assert_has(&said(&fresh), "nothing was kept of this base image yet");
    let first = tree::of(&Disk::open(&fresh.vhd()));
    let vhd = std::fs::read(fresh.vhd()).unwrap();
    assert_eq!(kept(&kiln).len(), 4, "the first boot, two steps, the image");
    assert_eq!(kept(&kiln)[0]["kind"], "image");
    for entry in kept(&kiln) {
        let folder = folder(&kiln, &entry);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        for file in folder.read_dir().unwrap() {
            let path = file.unwrap().path();
            assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
        }
    }

    // Nothing has changed: the same image, and no guest.
    let again = kiln.build(&template).succeeded();
    assert_has(&said(&again), "the finished image is reused");
    assert!(
        !again.steps_done().iter().any(|step| step == "boot" || step == "restore"),
        "{:?}",
        again.steps_done()
    );
    assert_has(&again.log(), "the VHD that is there is of the same image; its data was verified");
    assert_eq!(std::fs::read(again.vhd()).unwrap(), vhd);
    assert_eq!(
        again.result["outputs"][0]["output"]["sha256"],
        fresh.result["outputs"][0]["output"]["sha256"]
    );

    // A file that is not what it was is written again.
    std::fs::OpenOptions::new().write(true).open(again.vhd()).unwrap().write_all_at(b"x", 64 << 20).unwrap();
    let mended = kiln.build(&template).succeeded();
    let disk = vhd.len() - 512;
    assert!(std::fs::read(mended.vhd()).unwrap()[..disk] == vhd[..disk], "the same disk");
    assert!(!mended.log().contains("its data was verified"));

    // The last step has changed: the machine goes on, and its image has what the first step wrote.
    let changed =
        two_steps("sudo sh -c 'head -c 16 /dev/urandom > /srv/random; date +%s > /srv/clock; true'");
    let partial = kiln.build(&changed).succeeded();
    assert_has(&said(&partial), "Shell \"first\" is reused: the machine as it was kept");
    assert_has(&said(&partial), "Shell \"second\" is run again: its script has changed");
    let done = partial.steps_done();
    assert!(done.contains(&"restore".into()) && !done.contains(&"customize/1".into()), "{done:?}");
    assert!(!done.contains(&"facts".into()), "what the guest said of itself is known: {done:?}");
    let disk = Disk::open(&partial.vhd());
    fifty(&disk);
    assert_eq!(disk.text("/etc/machine-id"), "");
    assert!(!disk.text("/etc/passwd").contains("packer"));

    // A hit differs from a fresh build only where two fresh builds differ.
    let other = kiln.start_with(&changed, &["--fresh", "--no-checkpoints"]).wait().succeeded();
    let (hit, second) = (tree::of(&disk), tree::of(&Disk::open(&other.vhd())));
    let may = differing(&first, &second);
    let does = differing(&hit, &second);
    assert!(may.contains(&"/srv/random".into()), "{may:?}");
    assert!(does.iter().all(|path| may.contains(path)), "{does:?} is not within {may:?}");
    kiln.run(["checkpoints", "clear"]);
    assert_eq!(kept(&kiln), Vec::<Value>::new());
}

#[test]
fn another_script_under_the_same_address_is_a_miss() {
    let kiln = keeping();
    let build = |script: &str| {
        let server = Server::start([("/step.sh", Answer::Bytes(script.as_bytes().to_vec()))]);
        // A port of its own each time: the address is no part of it.
        let template = tiny()
            .customizer(json!({ "type": "Shell", "name": "step", "scriptUri": server.url("/step.sh") }));
        kiln.build(&template).succeeded()
    };
    build("echo one > /srv/made\n");
    assert_has(&said(&build("echo one > /srv/made\n")), "the finished image is reused");
    let ended = build("echo two > /srv/made\n");
    assert_has(&said(&ended), "Shell \"step\" is run again: its script has changed");
    assert_eq!(Disk::open(&ended.vhd()).text("/srv/made"), "two\n");
}

#[test]
fn two_that_go_on_from_one_have_their_own_time_and_randomness() {
    let kiln = keeping();
    let _ = kiln.build(&tiny().shell("first", ["echo first"])).succeeded();
    let entry = kept(&kiln)
        .into_iter()
        .find(|entry| entry["after"] == "Shell \"first\"" && entry["kind"] == "checkpoint");
    let before = entry.expect("the first step was kept");
    assert_eq!(before["withMemory"], true);
    let clone = |number: u32| {
        let name = format!("clone {number}");
        let probe = "sudo sh -c 'head -c 32 /dev/urandom | od -An -tx1 > /srv/random; date +%s > /srv/clock'";
        let out = format!("clone-{number}");
        tiny()
            .shell("first", ["echo first"])
            .shell(&name, [probe, &format!("echo {number}")])
            .with("distribute", json!([{ "type": "VHD", "runOutputName": out }]))
    };
    let running = kiln.start(&clone(1));
    running.until_step("restore");
    let second = kiln.start(&clone(2)).wait().succeeded();
    let second =
        (Disk::open(&second.vhd()).text("/srv/random"), Disk::open(&second.vhd()).text("/srv/clock"));
    let first = running.wait().succeeded();
    let first = (Disk::open(&first.vhd()).text("/srv/random"), Disk::open(&first.vhd()).text("/srv/clock"));
    assert_ne!(first.0, second.0, "the same randomness in two guests");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for clock in [first.1, second.1] {
        let clock: u64 = clock.trim().parse().unwrap();
        assert!(now.abs_diff(clock) < 120, "the guest's clock says {clock}, and it is {now}");
    }
}

/// Listens to the kernel's events of network links, and writes down the word that an event has (rtnetlink(7); IFLA_EVENT
/// in linux/if_link.h). 4 is "tell the peers".
const LISTEN: &str = r#"cat > /tmp/listen << 'END'
socket(my $link, 16, 3, 0) or die $!;
bind($link, pack("SSLL", 16, 0, 0, 1)) or die $!;
open(my $out, ">", "/srv/events") or die $!;
syswrite($out, "listening\n");
while (defined recv($link, my $messages, 65536, 0)) {
  while (length($messages) > 32) {
    my ($length, $type) = unpack("LS", $messages);
    my $attributes = substr($messages, 32, $length - 32);
    while (length($attributes) > 4) {
      my ($size, $name) = unpack("SS", $attributes);
      syswrite($out, "event " . unpack("L", substr($attributes, 4)) . "\n") if $name == 44;
      $attributes = substr($attributes, ($size + 3) & ~3);
    }
    $messages = substr($messages, ($length + 3) & ~3);
  }
}
END
sudo sh -c 'setsid perl /tmp/listen > /dev/null 2> /srv/listen.err < /dev/null &'
until grep -q listening /srv/events 2> /dev/null; do [ ! -s /srv/listen.err ] || exit 1; sleep 1; done"#;

/// Whoever in the guest follows its network hears that it may be elsewhere now; and the network is there.
#[test]
fn a_guest_that_goes_on_is_told_so_and_reaches_the_network() {
    let kiln = keeping();
    let server = Server::start([("/file", Answer::Bytes(b"from the network".to_vec()))]);
    // The host, as a guest of user-mode networking sees it.
    let port = server.url("/file").rsplit(':').next().unwrap().split('/').next().unwrap().to_owned();
    let fetch = format!(
        "printf 'GET /file HTTP/1.0\\r\\nHost: h\\r\\n\\r\\n' | nc -w 20 10.0.2.2 {port} 2>&1 | tail -n 1 | sudo tee /srv/fetched"
    );
    let template = |last: &str| {
        tiny().shell("first", [LISTEN]).shell("last", [fetch.as_str(), "sudo cp /srv/events /srv/seen", last])
    };
    let fresh = kiln.build(&template("echo 1")).succeeded();
    let disk = Disk::open(&fresh.vhd());
    assert_eq!(disk.text("/srv/seen"), "listening\n");
    assert_eq!(disk.text("/srv/fetched"), "from the network");
    let warm = kiln.build(&template("echo 2")).succeeded();
    assert_has(&said(&warm), "Shell \"first\" is reused: the machine as it was kept");
    let disk = Disk::open(&warm.vhd());
    assert_has(&disk.text("/srv/seen"), "listening\nevent 4\n");
    assert_eq!(disk.text("/srv/fetched"), "from the network");
}

#[test]
fn a_failed_step_is_run_again_alone_and_its_disk_can_be_looked_at() {
    let kiln = keeping();
    let template = |second: &str| {
        let append = |word: &str| format!("echo {word} | sudo tee -a /srv/order");
        tiny()
            .shell("first", [&*append("one")])
            .shell("second", [&*append("two"), second])
            .shell("third", [&*append("three")])
    };
    let failed = kiln.start_with(&template("exit 3"), &["--keep-on-error"]).wait().failed();
    assert_eq!(failed.failed_step(), "Shell \"second\"");
    let work = failed.run_dir.as_ref().unwrap().join("work");
    let disk = Disk::plain_copy(&work.join("layers/last/disk0.qcow2"), &kiln.path().join("look.raw"));
    assert_has(&said(&failed), "layers/last/disk0.qcow2");
    assert_has(&disk.text("/srv/order"), "one\n");
    std::fs::remove_dir_all(work).unwrap();

    let corrected = kiln.build(&template("true")).succeeded();
    assert_has(&said(&corrected), "Shell \"first\" is reused");
    // Nobody has kept what the second step came to.
    assert_has(&said(&corrected), "Shell \"second\" is run again: nothing was kept of it yet");
    assert_eq!(Disk::open(&corrected.vhd()).text("/srv/order"), "one\ntwo\nthree\n");
}

/// A machine that goes on finds its new run's medium in the drive, and not what it has read of the old one. What it has
/// done already is not on it.
#[test]
fn files_and_large_scripts_come_by_the_new_medium() {
    let kiln = keeping();
    let file = kiln.path().join("file");
    let script = kiln.path().join("script");
    let look = "#!/bin/sh -e\nmkdir /tmp/m\nmount -t iso9660 -o ro /dev/sr0 /tmp/m\ncd /tmp/m/kiln-*\necho on it: *\n\
                cd /\numount /tmp/m\nrmdir /tmp/m\nexit\n";
    std::fs::write(&script, [look.as_bytes(), &[b'#'; 2 << 20]].concat()).unwrap();
    let template = || {
        tiny()
            .file("early", "file:FILE", "/tmp/early")
            .shell("first", ["sudo cp /tmp/early /srv/early"])
            .file("late", "file:FILE", "/tmp/late")
            .shell("second", ["sudo cp /tmp/late /srv/late"])
            .customizer(json!({
                "type": "Shell", "name": "large", "scriptUri": format!("file:{}", script.display()),
            }))
    };
    let early = kiln.path().join("early");
    std::fs::write(&early, "early\n").unwrap();
    let build = |late: &str| {
        std::fs::write(&file, late).unwrap();
        let text = template().text().replacen("file:FILE", &format!("file:{}", early.display()), 1);
        let text = text.replace("file:FILE", &format!("file:{}", file.display()));
        kiln.build(&Template::of(&text)).succeeded()
    };
    let first = build("one\n");
    assert_has(&first.log(), " azure-arm: on it: 1 3 5\n");
    let second = build("two, and longer\n");
    assert_has(&said(&second), "File \"late\" is run again: its file has changed");
    assert!(second.steps_done().contains(&"restore".into()));
    assert_has(&second.log(), " azure-arm: on it: 3 5\n");
    for step in ["customize/3", "customize/5"] {
        let ended = second
            .events
            .iter()
            .map(|line| &line["event"])
            .find(|event| event["kind"] == "stepEnded" && event["step"]["id"] == step);
        assert_has(ended.unwrap()["message"].as_str().unwrap(), "by medium");
    }
    let disk = Disk::open(&second.vhd());
    assert_eq!(
        (disk.text("/srv/early"), disk.text("/srv/late")),
        ("early\n".into(), "two, and longer\n".into())
    );
}

/// Of two that come to the same, one makes it and the other waits: it starts no guest until then.
#[test]
fn builds_at_once_do_what_they_share_once() {
    let kiln = keeping();
    let template = |last: &str| {
        let out = format!("out-{last}");
        tiny()
            .shell(
                "shared",
                ["sleep 3; head -c 16 /dev/urandom | od -An -tx1 > /tmp/r; sudo mv /tmp/r /srv/random"],
            )
            .shell("own", [&*format!("echo {last} > /tmp/o; sudo mv /tmp/o /srv/own")])
            .with("distribute", json!([{ "type": "VHD", "runOutputName": out }]))
    };
    let first = kiln.start(&template("one"));
    first.until_step("boot");
    let second = kiln.start_beside(&template("two")).wait().succeeded();
    let first = first.wait().succeeded();
    let done = second.steps_done();
    assert!(done.contains(&"elsewhere".into()) && done.contains(&"restore".into()), "{done:?}");
    assert!(!done.contains(&"boot".into()) && !done.contains(&"customize/1".into()), "{done:?}");
    let (first, second) = (Disk::open(&first.vhd()), Disk::open(&second.vhd()));
    assert_eq!(first.text("/srv/random"), second.text("/srv/random"));
    assert_eq!((first.text("/srv/own"), second.text("/srv/own")), ("one\n".into(), "two\n".into()));
    let left = kiln.data().join("library/checkpoints.making").read_dir().unwrap().count();
    assert_eq!(left, 0, "no lock files pile up");
}

#[test]
fn a_damaged_checkpoint_is_left_out_and_the_build_goes_another_way() {
    let kiln = keeping();
    let _ = kiln.build(&two_steps("echo one")).succeeded();
    let entry = kept(&kiln).into_iter().find(|entry| entry["after"] == "Shell \"first\"").unwrap();
    let memory = folder(&kiln, &entry).join("memory");
    std::fs::set_permissions(&memory, std::fs::Permissions::from_mode(0o600)).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&memory).unwrap();
    let middle = (0..file.metadata().unwrap().len())
        .step_by(1 << 20)
        .find(|at| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, *at).unwrap();
            byte[0] != 0
        })
        .unwrap();
    file.write_all_at(&[0], middle).unwrap();
    let ended = kiln.build(&two_steps("echo two")).succeeded();
    let warned = ended.notices("warning").join("\n");
    assert_has(&warned, "a checkpoint is of no use and is left out");
    assert_has(&warned, "memory of checkpoint");
    assert_has(&said(&ended), "the booted machine is reused");
    fifty(&Disk::open(&ended.vhd()));
}

/// Another QEMU reads no memory, but a disk: of one that was flushed, all that the step wrote is there.
#[test]
fn another_qemu_boots_the_disk_that_was_kept() {
    let kiln = keeping();
    let _ = kiln.build(&two_steps("echo one")).succeeded();
    let kiln = kiln.with_another_qemu();
    let ended = kiln.build(&two_steps("echo two")).succeeded();
    assert_has(&said(&ended), "Shell \"first\" is reused: the disk as it was kept");
    assert_has(&said(&ended), "its memory is of another machine or QEMU");
    let done = ended.steps_done();
    assert!(done.contains(&"boot".into()) && !done.contains(&"customize/1".into()), "{done:?}");
    fifty(&Disk::open(&ended.vhd()));
}

/// A step that leaves a guest which does not come up again: no customizer's failure, and no end of a later build.
#[test]
fn a_kept_disk_that_does_not_boot_gives_way_to_the_base_image() {
    let kiln = keeping();
    let off = "printf '#!/bin/sh\\npoweroff -f\\n' | sudo tee /etc/rc.d/off; sudo chmod 755 /etc/rc.d/off";
    let template = |second: &str| {
        tiny()
            .shell("first", ["sudo mkdir -p /etc/rc.d", off])
            .shell("second", [second, "sudo rm /etc/rc.d/off"])
    };
    let _ = kiln.build(&template("echo one")).succeeded();
    let kiln = kiln.with_another_qemu();
    let ended = kiln.build(&template("echo two")).succeeded();
    assert_has(
        &ended.notices("warning").join("\n"),
        "the disk that was kept does not boot, and the base image is",
    );
    assert!(ended.steps_done().contains(&"customize/1".into()), "{:?}", ended.steps_done());
}

fn kill(pid: i32) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// Steps that were done are not done again: each leaves a line of its own.
fn three_steps(last: &str) -> Template {
    let step = |number: &str| format!("echo {number} | sudo tee -a /srv/order");
    tiny().shell("one", [&*step("one")]).shell("two", [&*step("two"), last]).shell("three", [&*step("three")])
}

#[test]
fn a_run_whose_worker_died_goes_on_once() {
    let kiln = keeping();
    let running = kiln.start(&three_steps("sleep 5"));
    // In the middle of keeping the machine, half of which must not appear.
    running.until_step("checkpoint/1");
    kill(running.worker().pid);
    let ended = running.wait().succeeded();
    let disk = Disk::open(&ended.vhd());
    assert_eq!(disk.text("/srv/order"), "one\ntwo\nthree\n");
    let attempts: Vec<u64> =
        ended.events.iter().filter_map(|line| line["event"]["attempt"].as_u64()).collect();
    assert_eq!(attempts, [1, 2], "{}", ended.story());
    assert_has(
        &ended.notices("warning").join("\n"),
        "the run's worker died; it goes on from what was kept last",
    );
    let left: Vec<_> =
        std::fs::read_dir(kiln.data().join("library/tmp")).unwrap().map(|it| it.unwrap().path()).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
    for entry in kept(&kiln) {
        let folder = folder(&kiln, &entry);
        assert!(folder.join("checkpoint.json").is_file() && folder.join("disk0.qcow2").is_file(), "{entry}");
    }
}

#[test]
fn a_run_whose_qemu_died_goes_on_once() {
    let kiln = keeping();
    let running = kiln.start(&three_steps("sleep 5"));
    running.until_step("customize/2");
    let first = running.qemu().pid;
    kill(first);
    running.until_event("the second attempt", |event| event["attempt"] == 2);
    let starts = std::cell::Cell::new(0);
    running.until_event("step two once more", |event| {
        let again = event["kind"] == "stepStarted" && event["step"]["id"] == "customize/2";
        starts.set(starts.get() + u32::from(again));
        again && starts.get() == 2
    });
    // The second death is the last.
    let second = until("another QEMU", Duration::from_secs(30), || {
        kiln_tests::census::qemu_of(kiln.path()).filter(|process| process.pid != first)
    });
    kill(second.pid);
    let ended = running.wait().failed();
    assert_has(&ended.cause(), "QEMU ended with signal 9");
    // A later run goes on all the same, and does each step once.
    let later = kiln.build(&three_steps("sleep 5")).succeeded();
    assert_has(&said(&later), "Shell \"one\" is reused");
    assert_eq!(Disk::open(&later.vhd()).text("/srv/order"), "one\ntwo\nthree\n");
}

/// The first of three steps makes something at random, the second is a script that can be corrected under its address.
fn correctable(script: &Path) -> Template {
    tiny()
        .shell(
            "first",
            [
                "head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n' > /tmp/r",
                "echo random=$(cat /tmp/r)",
                "sudo mv /tmp/r /srv/random",
            ],
        )
        .customizer(
            json!({ "type": "Shell", "name": "second", "scriptUri": format!("file://{}", script.display()) }),
        )
        .shell("third", ["echo three | sudo tee /srv/third"])
}

/// What the first step has said.
fn random(log: &str) -> String {
    let said = log.lines().find_map(|line| Some(line.split_once("random=")?.1.trim().to_owned()));
    said.filter(|random| random.len() == 32).unwrap_or_else(|| panic!("no random bytes in:\n{log}"))
}

/// `kiln run retry` goes on at the step that failed, though the one before it is too old for any other build.
#[test]
fn a_failed_run_is_retried_at_its_failed_step() {
    let kiln = keeping();
    let policy = kiln.path().join("policy.yaml");
    std::fs::write(&policy, "maxAge: 0s\n").unwrap();
    let script = kiln.path().join("second.sh");
    std::fs::write(&script, "echo wrong; exit 3\n").unwrap();
    let template = correctable(&script);
    let with_policy = ["--policy", policy.to_str().unwrap()];
    let failed = kiln.start_with(&template, &with_policy).wait().failed();
    assert_eq!(failed.failed_step(), "Shell \"second\"");
    let id = failed.result["runId"].as_str().unwrap().to_owned();
    let short = id.rsplit('-').next().unwrap();
    assert_has(&failed.stderr, &format!("`kiln run retry {short}` goes on at the failed step"));
    let first = random(&failed.log());
    // So that a second is a second later.
    std::thread::sleep(Duration::from_millis(1100));

    // Not corrected yet: it fails again, at the same step, and says so.
    let again = kiln.start_command(&["run", "retry", short]).wait().failed();
    assert_eq!(again.failed_step(), "Shell \"second\"");
    assert_has(&again.stderr, &format!("retrying {id}: Shell \"second\" failed: "));
    let again = again.result["runId"].as_str().unwrap().to_owned();

    std::fs::write(&script, "echo right | sudo tee /srv/second\n").unwrap();
    let retried = kiln.start_command(&["run", "retry", &again]).wait().succeeded();
    assert_has(&said(&retried), "Shell \"first\" is reused: the machine as it was kept");
    assert_has(&said(&retried), "it held for the run that is retried, and its age does not count");
    let done = retried.steps_done();
    assert!(done.contains(&"restore".into()) && !done.contains(&"customize/1".into()), "{done:?}");
    let disk = Disk::open(&retried.vhd());
    assert_eq!(disk.text("/srv/random").trim(), first, "the first step was not run again");
    assert_eq!((disk.text("/srv/second"), disk.text("/srv/third")), ("right\n".into(), "three\n".into()));
    assert_eq!(retried.vhd().parent().unwrap(), kiln.out(), "where the failed one was to put it");

    // What has succeeded is not retried; and any other build runs the first step again.
    let refused = kiln.run(["run", "retry", retried.result["runId"].as_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    assert_has(&refused.stderr, "has succeeded: there is nothing to retry");
    let other = kiln.start_with(&template, &with_policy).wait().succeeded();
    assert_has(&said(&other), "Shell \"first\" is run again: it is");
    assert_ne!(Disk::open(&other.vhd()).text("/srv/random").trim(), first);
}

/// The same with a corrected template, and of a build that was to reuse nothing older than itself.
#[test]
fn a_retry_takes_a_corrected_template_and_nothing_older_than_a_fresh_run() {
    let kiln = keeping();
    let template = |second: &str| {
        tiny()
            .shell("first", ["head -c 16 /dev/urandom | od -An -tx1 > /tmp/r; sudo mv /tmp/r /srv/random"])
            .shell("second", [second])
    };
    let earlier = kiln.build(&template("true")).succeeded();
    let earlier = Disk::open(&earlier.vhd()).text("/srv/random");
    let failed = kiln.start_with(&template("exit 3"), &["--fresh"]).wait().failed();
    let corrected = kiln.path().join("corrected.json");
    std::fs::write(&corrected, template("true").text()).unwrap();
    let other = kiln.path().join("other");
    let run_dir = failed.run_dir.as_ref().unwrap().to_str().unwrap();
    let args =
        ["run", "retry", run_dir, "--file", corrected.to_str().unwrap(), "-o", other.to_str().unwrap()];
    let retried = kiln.start_command(&args).wait().succeeded();
    let done = retried.steps_done();
    assert!(!done.contains(&"customize/1".into()) && done.contains(&"customize/2".into()), "{done:?}");
    assert_eq!(retried.vhd().parent().unwrap(), other);
    assert_ne!(
        Disk::open(&retried.vhd()).text("/srv/random"),
        earlier,
        "the earlier build's is not for a fresh one"
    );
}

/// A stored template's run, with the corrected template; no server runs, so each command is one meanwhile.
#[test]
fn a_failed_run_of_a_stored_template_is_retried() {
    let kiln = keeping();
    let file = kiln.path().join("stored.json");
    let path = file.to_str().unwrap();
    let write = |second: &str| {
        let template = tiny().shell("first", ["echo one | sudo tee -a /srv/order"]).shell("second", [second]);
        std::fs::write(&file, template.text()).unwrap();
    };
    write("exit 3");
    let put = kiln.run(["template", "put", path, "--name", "t"]);
    assert!(put.status.success(), "{}", put.stderr);
    let failed = kiln.start_command(&["run", "start", "t", "--watch"]).wait().failed();
    assert_has(&failed.stderr, "`kiln run retry t --file FILE` goes on at the failed step");
    write("echo two | sudo tee -a /srv/order");
    let retried = kiln.start_command(&["run", "retry", "t", "--file", path]).wait().succeeded();
    assert_has(&retried.stderr, &format!("retrying {} of t: ", failed.result["runId"].as_str().unwrap()));
    assert_has(&said(&retried), "Shell \"first\" is reused");
    let done = retried.steps_done();
    assert!(done.contains(&"restore".into()) && !done.contains(&"customize/1".into()), "{done:?}");
    let run = kiln.data().join("runs").join(retried.result["runId"].as_str().unwrap());
    let request: Value = serde_json::from_slice(&std::fs::read(run.join("request.json")).unwrap()).unwrap();
    assert!(request["checkpoints"]["holdsSince"].is_string(), "{request:#}");
    let refused = kiln.run(["run", "retry", "t"]);
    assert_eq!(refused.status.code(), Some(1));
    assert_has(&refused.stderr, "has succeeded: there is nothing to retry");
    // By its id it is named as what it is.
    let refused = kiln.run(["run", "retry", failed.result["runId"].as_str().unwrap()]);
    assert_has(&refused.stderr, "is a server's, of the template t");
}

#[test]
fn nothing_is_kept_of_a_secret() {
    let kiln = keeping();
    let policy = kiln.path().join("policy.yaml");
    std::fs::write(&policy, "customizers:\n- name: secret\n  secret: true\n").unwrap();
    let canary = "canary-8b1f6a3e57";
    let template = tiny()
        .shell("before", ["echo before"])
        .shell("secret", [&*format!("echo {canary} > /tmp/secret; rm /tmp/secret")])
        .shell("after", ["echo after"]);
    let ended = kiln.start_with(&template, &["--policy", policy.to_str().unwrap()]).wait().succeeded();
    assert_has(&said(&ended), "nothing is kept from Shell \"secret\" on, as the policy says");
    let shelf = kept(&kiln);
    assert_eq!(shelf.len(), 2, "the first boot and the step before: {shelf:#?}");
    for entry in &shelf {
        for file in folder(&kiln, entry).read_dir().unwrap() {
            let path = file.unwrap().path();
            assert!(!find_bytes(&path, canary.as_bytes()), "the secret is in {}", path.display());
        }
    }
    let ended = kiln.start_with(&template, &["--policy", policy.to_str().unwrap()]).wait().succeeded();
    assert_has(&said(&ended), "Shell \"before\" is reused");
    assert_has(&said(&ended), "Shell \"secret\" is run each time");
}

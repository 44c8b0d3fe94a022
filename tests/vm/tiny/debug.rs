//! A machine in which a customizer failed, opened again: with a guest that is up in seconds.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_tests::kiln::{Ended, Kiln};
use kiln_tests::program::{self, finish, until};
use kiln_tests::slots;
use kiln_tests::template::{Template, tiny};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// What is in memory only, what nobody synced, and a program that runs: then the end.
fn failing() -> Template {
    tiny().shell("first", ["echo one | sudo tee /srv/order"]).shell(
        "second",
        [
            "sudo sh -c 'while :; do echo tick > /dev/ttyS0; sleep 1; done' > /dev/null 2>&1 < /dev/null &",
            "echo in memory > /dev/shm/note || echo in memory | sudo tee /run/note",
            "echo two | sudo tee -a /srv/order",
            "exit 3",
        ],
    )
}

fn id(ended: &Ended) -> String {
    ended.run_dir.as_ref().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
}

/// `kiln debug` with these arguments.
fn debug(kiln: &Kiln, args: &[&str]) -> program::Ended {
    let _slot = slots::take();
    finish(&mut kiln.command([&["debug"], args].concat()), Duration::from_secs(300))
}

/// Every file below, with its size and the time of its last change.
fn files(folder: &Path) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
    let mut found = Vec::new();
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let metadata = path.metadata().unwrap();
            found.push((path, metadata.len(), metadata.modified().unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn a_machine_goes_on_from_where_its_customizer_failed() {
    let kiln = Kiln::new();
    let failed = kiln.start_with(&failing(), &["--keep-on-error"]).wait().failed();
    assert_eq!(failed.failed_step(), "Shell \"second\"");
    let (id, dir) = (id(&failed), failed.run_dir.clone().unwrap());
    assert!(failed.stderr.contains(&format!("kiln debug {}`", &id[id.len() - 6..])), "{}", failed.stderr);
    let record = dir.join("work/machine/machine.json");
    assert_eq!(record.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let before = files(&dir.join("work"));

    let look = "cat /dev/shm/note /run/note 2> /dev/null; cat /srv/order; date +%s; \
                sudo touch /srv/changed; test ! -e /srv/earlier; sudo touch /srv/earlier";
    let seen = debug(&kiln, &[&id[id.len() - 6..], "--", look]);
    assert!(seen.status.success(), "{}\n{}", seen.text(), seen.stderr);
    assert!(seen.stderr.contains("exit status"), "it says what ended the run: {}", seen.stderr);
    assert!(!seen.stderr.contains("its disk was booted"), "{}", seen.stderr);
    let text = seen.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..3], ["in memory", "one", "two"], "{text}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(lines[3].parse().unwrap()) < 120, "its clock is right: {text} {now}");

    // What was done in it is gone, and a command's end is told.
    let again = debug(&kiln, &[&id, "--", "ls /srv; exit 7"]);
    assert_eq!(again.status.code(), Some(1), "{}", again.stderr);
    assert!(again.stderr.contains("ended with 7"), "{}", again.stderr);
    assert!(again.text().contains("order") && !again.text().contains("changed"), "{}", again.text());
    assert_eq!(files(&dir.join("work")), before, "what was left is only read");

    // The program that ran goes on, as the console shows; a signal ends the look, and nothing is left of it.
    let slot = slots::take();
    let out = kiln.path().join("console");
    let console = kiln
        .command(["debug", &id, "--console"])
        .stdin(std::process::Stdio::null())
        .stdout(std::fs::File::create(&out).unwrap())
        .stderr(std::process::Stdio::null())
        .spawn();
    let mut console = console.unwrap();
    until("a tick on the console", Duration::from_secs(120), || {
        std::fs::read_to_string(&out).unwrap().contains("tick").then_some(())
    });
    let second = finish(&mut kiln.command(["debug", &id, "--", "true"]), Duration::from_secs(60));
    assert!(second.stderr.contains("its machine is open already"), "{}", second.stderr);
    kill_process(Pid::from_child(&console), Signal::INT).unwrap();
    assert_eq!(console.wait().unwrap().code(), Some(1));
    drop(slot);
    assert!(kiln.processes().is_empty(), "no machine runs");
    let runtime = kiln.runtime().join("kiln").read_dir().unwrap();
    let left: Vec<_> = runtime.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["memory"], "no sockets are left");
    kiln.assert_no_memory_taken();
    assert_eq!(files(&dir.join("work")), before);
    let left: Vec<_> = dir.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("debug-")), "{left:?}");

    let screen = debug(&kiln, &[&id, "--screenshot", "screen.png"]);
    assert_eq!(screen.status.code(), Some(1));
    assert!(screen.stderr.contains("--console"), "{}", screen.stderr);
}

/// The template's own word for it; and a memory file that is of no use.
#[test]
fn a_template_that_says_abort_leaves_its_machine() {
    let kiln = Kiln::new().env("KILN_CHECKPOINTS", "4G");
    let template = failing().with("errorHandling", json!({ "onCustomizerError": "abort" }));
    let failed = kiln.build(&template).failed();
    let id = id(&failed);
    let memory = failed.run_dir.as_ref().unwrap().join("work/machine/memory");
    std::fs::OpenOptions::new().write(true).open(&memory).unwrap().set_len(4096).unwrap();
    let seen = debug(&kiln, &[&id, "--", "cat /srv/order"]);
    assert!(seen.stderr.contains("its disk was booted"), "{}", seen.stderr);
    assert_eq!(seen.text(), "one\ntwo\n", "{}", seen.stderr);
}

#[test]
fn a_run_that_left_no_machine_says_so() {
    let kiln = Kiln::new();
    let failed = kiln.build(&tiny().shell("no", ["exit 1"])).failed();
    for (name, word) in [(id(&failed), "left no machine"), ("nothing".to_owned(), "no run \"nothing\"")] {
        let ended = kiln.run(["debug", &name, "--", "true"]);
        assert_eq!(ended.status.code(), Some(1));
        assert!(ended.stderr.contains(word), "{}", ended.stderr);
    }
}

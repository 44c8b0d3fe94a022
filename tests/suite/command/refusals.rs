//! Builds that end before a machine is started, because they must.

use std::path::PathBuf;

use kiln_tests::kiln::Kiln;
use kiln_tests::server::{Answer, Server};
use kiln_tests::settings::search_path;
use kiln_tests::template::{Template, debian, tiny};
use serde_json::json;

const NO_RUNS: [PathBuf; 0] = [];

/// Writes a template and tries to build it, for people.
fn build(kiln: &Kiln, template: &Template) -> kiln_tests::program::Ended {
    let file = kiln.path().join("template.json");
    std::fs::write(&file, template.text()).unwrap();
    kiln.run(["build", "-o", kiln.out().to_str().unwrap(), file.to_str().unwrap()])
}

#[test]
fn a_missing_base_image_says_what_to_run() {
    let kiln = Kiln::empty();
    let ended = build(&kiln, &debian());
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("kiln images build debian-12"), "{}", ended.stderr);

    let ended = build(&kiln, &Template::new("Canonical", "0001-com-ubuntu-server-jammy", "22_04-lts"));
    assert!(ended.stderr.contains("kiln images pull ubuntu-22.04"), "{}", ended.stderr);

    let ended = build(&kiln, &Template::new("Debian", "debain-12", "12"));
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        ended.stderr.contains("debian-12") && ended.stderr.contains("kiln images import"),
        "{}",
        ended.stderr
    );
    assert_eq!(kiln.runs(), NO_RUNS, "no run was made");
}

/// Checked in full, and refused by name before a machine starts: nothing is skipped silently.
#[test]
fn what_cannot_be_built_yet_is_named() {
    let kiln = Kiln::new();
    let gallery = json!([{
        "type": "SharedImage",
        "runOutputName": "gallery",
        "galleryImageId": "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/g/providers/Microsoft.Compute/galleries/g/images/i",
        "replicationRegions": ["westeurope"],
    }]);
    let ended = build(&kiln, &tiny().with("distribute", gallery));
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("SharedImage"), "{}", ended.stderr);
    let ended = build(&kiln, &tiny().customizer(json!({ "type": "WindowsRestart", "name": "r" })));
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.to_lowercase().contains("windowsrestart"), "{}", ended.stderr);
    assert_eq!(kiln.runs(), NO_RUNS, "no run was made");
}

#[test]
fn a_disk_is_not_made_smaller() {
    let kiln = Kiln::new();
    let ended = build(&kiln, &debian().disk_gb(2));
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("osDiskSizeGB") && ended.stderr.contains('4'), "{}", ended.stderr);
    assert_eq!(kiln.runs(), NO_RUNS);
}

/// A QEMU that writes down how it is started, before the real one.
fn recording(kiln: Kiln) -> (Kiln, PathBuf) {
    let folder = kiln.path().join("bin");
    std::fs::create_dir_all(&folder).unwrap();
    let record = folder.join("starts");
    let script = format!(
        "#!/bin/bash\nset -euo pipefail\necho \"$@\" >> '{}'\nPATH='{}' exec qemu-system-x86_64 \"$@\"\n",
        record.display(),
        search_path()
    );
    let program = folder.join("qemu-system-x86_64");
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.display(), search_path());
    (kiln.env("PATH", path), record)
}

/// INVARIANT under test: a download with a checksum is used only after it matched.
#[test]
fn a_wrong_checksum_starts_no_machine_and_is_in_the_log() {
    let server = Server::start([("/script.sh", Answer::Bytes(b"echo tampered with\n".to_vec()))]);
    let (kiln, record) = recording(Kiln::new());
    let template = tiny().shell("first", ["echo never"]).customizer(json!({
        "type": "Shell",
        "name": "second",
        "scriptUri": server.url("/script.sh"),
        "sha256Checksum": "ab".repeat(32),
    }));
    let ended = kiln.build_without_guest(&template).failed();

    assert!(ended.cause().contains("Shell \"second\""), "{}", ended.cause());
    assert!(ended.cause().contains(&"ab".repeat(32)), "what was expected: {}", ended.cause());
    assert_eq!(ended.result["failure"]["fault"], "template");
    let log = ended.log();
    assert!(log.contains("Shell \"second\"") && log.contains("No virtual machine was started"), "{log}");
    assert_eq!(server.requests().len(), 1, "a wrong checksum is not tried again");
    let starts = std::fs::read_to_string(&record).unwrap_or_default();
    let home = kiln.path().display().to_string();
    assert!(starts.lines().all(|line| !line.contains(&home)), "a machine was started: {starts}");
    kiln.assert_nothing_left();
}

#[test]
fn a_missing_script_is_named_and_not_asked_for_again() {
    let server = Server::start([("/gone.sh", Answer::Status(404))]);
    let kiln = Kiln::new();
    let template = tiny().customizer(json!({
        "type": "Shell", "name": "fetch", "scriptUri": format!("{}?sig=h1dden5ecret", server.url("/gone.sh")),
    }));
    let ended = kiln.build_without_guest(&template).failed();
    assert!(ended.cause().contains("fetch") && ended.cause().contains("404"), "{}", ended.cause());
    assert!(!ended.stderr.contains("h1dden5ecret") && !ended.log().contains("h1dden5ecret"));
    assert_eq!(server.requests().len(), 1);
    kiln.assert_nothing_left();
}

/// A folder has no bytes of its own.
#[test]
fn a_folder_as_a_file_advises_an_archive() {
    let kiln = Kiln::new();
    let template = tiny().file("folder", &format!("file://{}", kiln.path().display()), "/tmp/");
    let ended = kiln.build_without_guest(&template).failed();
    assert!(ended.cause().contains("archive"), "{}", ended.cause());
}

#[test]
fn a_host_without_qemu_is_told_what_to_install() {
    let kiln = Kiln::new();
    // All that this host has is its package manager.
    let bin = kiln.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink("/usr/bin/apt-get", bin.join("apt-get")).unwrap();
    let kiln = kiln.env("PATH", bin.display().to_string());
    let doctor = kiln.run(["doctor"]);
    assert_eq!(doctor.status.code(), Some(1), "{}", doctor.stderr);
    let said = format!("{}{}", doctor.text(), doctor.stderr);
    let install =
        said.lines().find(|line| line.contains("apt-get install")).unwrap_or_else(|| panic!("{said}"));
    for package in ["qemu-system-x86", "qemu-utils"] {
        assert!(install.contains(package), "{package}: {install}");
    }
    let build = build(&kiln, &tiny());
    assert_eq!(build.status.code(), Some(1), "{}", build.stderr);
    assert!(build.stderr.contains("qemu-system-x86"), "a build says it, too: {}", build.stderr);
    kiln.assert_nothing_left();
}

#[test]
fn an_output_folder_that_cannot_be_is_an_early_error() {
    let kiln = Kiln::new();
    let file = kiln.path().join("template.json");
    std::fs::write(&file, tiny().text()).unwrap();
    let ended = kiln.run(["build", "-o", "/dev/null/out", file.to_str().unwrap()]);
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("/dev/null/out"), "{}", ended.stderr);
    assert_eq!(kiln.runs(), NO_RUNS);
}

/// What a newer Kiln wrote is refused by name, and left as it is.
#[test]
fn a_newer_run_directory_is_refused_untouched() {
    let kiln = Kiln::new();
    let run = kiln.data().join("runs/20990101T000000Z-future-abcdef");
    std::fs::create_dir_all(run.join("requests")).unwrap();
    for file in ["plan.json", "request.json"] {
        std::fs::write(run.join(file), "{\"format\": 99, \"new\": true}\n").unwrap();
    }
    let ended = kiln.run(["worker", run.to_str().unwrap()]);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("99") && ended.stderr.contains("newer"), "{}", ended.stderr);
    for file in ["plan.json", "request.json"] {
        assert_eq!(std::fs::read_to_string(run.join(file)).unwrap(), "{\"format\": 99, \"new\": true}\n");
    }
    assert!(!run.join("events.jsonl").exists());
}

/// What cannot be retried is refused in words; what can is, with the plan and the wishes of the failed run.
#[test]
fn what_a_retry_takes_and_what_it_refuses() {
    let kiln = Kiln::new().env("KILN_CHECKPOINTS", "1G");
    let retry = |args: &[&str]| kiln.run([&["run", "retry"], args].concat());
    let script = kiln.path().join("missing.sh");
    let address = format!("file://{}", script.display());
    let template = tiny().customizer(json!({ "type": "Shell", "name": "s", "scriptUri": address }));
    let file = kiln.path().join("policy.yaml");
    std::fs::write(&file, "maxAge: 5m\n").unwrap();
    let failed = kiln.build_without_guest_with(&template, &["--policy", file.to_str().unwrap()]).failed();
    let id = failed.result["runId"].as_str().unwrap();
    assert!(!failed.stderr.contains("kiln run retry"), "nothing was kept yet: {}", failed.stderr);

    let again = retry(&[id.rsplit('-').next().unwrap()]);
    assert_eq!(again.status.code(), Some(1));
    assert!(again.stderr.contains(&format!("retrying {id}: ")), "{}", again.stderr);
    assert!(again.stderr.contains("missing.sh"), "it fails as the first one did: {}", again.stderr);
    let runs = kiln.runs();
    assert_eq!(runs.len(), 2);
    let request = |run: &PathBuf| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(run.join("request.json")).unwrap()).unwrap()
    };
    let first = runs.iter().position(|run| run.ends_with(id)).unwrap();
    let (first, second) = (request(&runs[first]), request(&runs[1 - first]));
    assert_eq!(second["outputDir"], first["outputDir"]);
    assert_eq!(second["checkpoints"]["policy"]["maxAge"], 300);
    assert_eq!(second["checkpoints"]["holdsSince"], failed.events[0]["time"]);
    assert!(first["checkpoints"].get("holdsSince").is_none());

    for (args, words) in [
        (&["nothing-like-it"][..], "no run of this host is named nothing-like-it"),
        (&["./data"], "not the directory of a run"),
        (&["nothing-like-it", "-o", "out"], "--output is for runs of this host"),
    ] {
        let refused = retry(args);
        assert_eq!(refused.status.code(), Some(1), "{args:?}: {}", refused.stderr);
        assert!(refused.stderr.contains(words), "{args:?}: {}", refused.stderr);
    }
    let refused = retry(&["nothing-like-it", "--json"]);
    let object: serde_json::Value = serde_json::from_str(&refused.text()).unwrap();
    assert_eq!((&object["kind"], &object["exitStatus"]), (&json!("result"), &json!(1)), "{object:#}");
    assert_eq!(kiln.runs().len(), 2, "no run was made");
}

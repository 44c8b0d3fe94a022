//! Builds that go well, or fail as a template's author would expect.

use kiln_tests::disk::Disk;
use kiln_tests::footer;
use kiln_tests::kiln::Kiln;
use kiln_tests::program::sha256sum;
use kiln_tests::server::{Answer, Server};
use kiln_tests::slots;
use kiln_tests::template::tiny;
use rustix::process::Signal;
use serde_json::json;

#[test]
fn a_build_leaves_a_vhd_and_its_record() {
    let kiln = Kiln::new();
    let template = tiny()
        .top("tags", json!({ "team": "images", "stage": "test" }))
        .with(
            "distribute",
            json!([{ "type": "VHD", "runOutputName": "first.light", "artifactTags": { "stage": "vhd" } }]),
        )
        .shell("mark", ["echo made > /tmp/mark", "sudo mv /tmp/mark /srv/mark"]);
    let ended = kiln.build(&template).succeeded();

    assert_eq!(kiln.artifacts(), ["first.light.json", "first.light.vhd"]);
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(kiln.out().join("first.light.json")).unwrap()).unwrap();
    assert_eq!(record, ended.result["outputs"][0]["output"], "the record is what --json says");
    let vhd = kiln.out().join("first.light.vhd");
    footer::assert_fit_for_azure(&vhd);
    assert_eq!(record["sha256"], sha256sum(&vhd));
    assert_eq!(record["size"], vhd.metadata().unwrap().len());
    assert_eq!(record["virtualSize"], vhd.metadata().unwrap().len() - footer::LENGTH);
    assert_eq!(record["tags"], json!({ "team": "images", "stage": "vhd" }));
    assert_eq!(record["source"]["name"], "tiny");
    assert_eq!(record["source"]["requested"], "Kiln:tests:tiny:latest");

    let disk = Disk::open(&vhd);
    assert_eq!(disk.text("/srv/mark"), "made\n");
    assert!(!disk.text("/etc/passwd").contains("packer"));
    assert!(!disk.text("/etc/shadow").contains("packer"));
    assert_eq!(disk.names("/home"), [""; 0]);
    assert_eq!(disk.text("/etc/machine-id"), "");
}

#[test]
fn the_first_failing_customizer_ends_the_build() {
    let kiln = Kiln::new();
    let server = Server::start([("/third.sh", Answer::Bytes(b"touch /srv/third\n".to_vec()))]);
    let template = tiny()
        .shell("first", ["echo first ran"])
        .shell("second", ["echo second says why", "exit 7", "echo not reached"])
        .customizer(json!({ "type": "Shell", "name": "third", "scriptUri": server.url("/third.sh") }));
    let ended = kiln.build(&template).failed();

    assert_eq!(ended.failed_step(), "Shell \"second\"");
    assert_eq!(
        ended.cause(),
        "Shell \"second\": Script exited with non-zero exit status: 7. Allowed exit codes are: [0]"
    );
    assert_eq!(ended.result["failure"]["fault"], "guest");
    let log = ended.log();
    assert!(log.contains("first ran") && log.contains("second says why"), "{log}");
    assert!(!log.contains("not reached"), "{log}");
    assert_eq!(
        log.matches("(telemetry) Starting provisioner shell").count(),
        2,
        "the third did not start: {log}"
    );
    // On the terminal: the name, the cause, the end of both logs, and where they lie.
    for part in [
        "second",
        "non-zero exit status: 7",
        "second says why",
        "tiny: ready",
        "customization.log",
        "serial.log",
    ] {
        assert!(ended.stderr.contains(part), "stderr lacks {part:?}:\n{}", ended.stderr);
    }
    kiln.assert_nothing_left();
}

/// For people and their scripts: standard output is data, standard error is talk.
#[test]
fn in_a_pipe_standard_output_is_the_artifact_alone() {
    let kiln = Kiln::new();
    let file = kiln.path().join("template.json");
    std::fs::write(&file, tiny().shell("speak", ["echo the guest speaks"]).text()).unwrap();
    let _slot = slots::take();
    let ended = kiln.run(["build", "-o", kiln.out().to_str().unwrap(), file.to_str().unwrap()]);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert_eq!(ended.text(), format!("{}\n", kiln.out().join("out.vhd").display()));
    for part in ["speak", "the guest speaks", "out.vhd", "Distributing"] {
        assert!(ended.stderr.contains(part), "stderr lacks {part:?}:\n{}", ended.stderr);
    }
    assert!(!ended.stderr.contains('\u{1b}'), "no colours or cursor movements in a pipe: {:?}", ended.stderr);
}

/// What is published stays published: a later failure takes nothing away.
#[test]
fn a_failing_build_leaves_earlier_artifacts_alone() {
    let kiln = Kiln::new();
    let _ = kiln.build(&tiny()).succeeded();
    let before = std::fs::read(kiln.out().join("out.json")).unwrap();
    let _ = kiln.build(&tiny().shell("no", ["exit 1"])).failed();
    assert_eq!(kiln.artifacts(), ["out.json", "out.vhd"]);
    assert_eq!(std::fs::read(kiln.out().join("out.json")).unwrap(), before);
}

#[test]
fn a_kept_disk_is_kept_only_when_asked_for() {
    let kiln = Kiln::new();
    let running = kiln.start_with(&tiny().shell("no", ["exit 1"]), &["--keep-on-error"]);
    let ended = running.wait().failed();
    let work = ended.run_dir.as_ref().unwrap().join("work");
    assert!(work.join("os.qcow2").is_file(), "the disk is kept");
    assert!(ended.stderr.contains(&work.display().to_string()), "and said where: {}", ended.stderr);
}

/// `latest` is resolved when the run starts.
#[test]
fn a_newer_import_is_used_by_the_same_template() {
    let kiln = Kiln::with_own_shelf();
    let first = kiln.build(&tiny()).succeeded();
    assert_eq!(first.result["outputs"][0]["output"]["source"]["version"], "1.0.0");

    let vhd = kiln.out().join("out.vhd");
    let args = ["images", "import", vhd.to_str().unwrap(), "--name", "tiny", "--version", "1.10.0"];
    let imported = kiln.run(args.into_iter().chain(["--platform", "Kiln:tests:tiny", "--generation", "1"]));
    assert!(imported.status.success(), "{}", imported.stderr);
    let second = kiln.build(&tiny().shell("look", ["ls /srv"])).succeeded();
    assert_eq!(second.result["outputs"][0]["output"]["source"]["version"], "1.10.0");
}

/// The worker is the unit of work: who follows it may go.
#[test]
fn a_killed_command_does_not_end_the_run() {
    let kiln = Kiln::new();
    let running = kiln.start(&tiny().shell("wait", ["sleep 3"]));
    running.until_step("customize/1");
    running.signal(Signal::KILL);
    let ended = running.wait();
    assert_eq!(ended.exit, None);
    kiln_tests::program::until(
        "the run ends without its follower",
        std::time::Duration::from_secs(120),
        || kiln.processes().is_empty().then_some(()),
    );
    assert_eq!(kiln.artifacts(), ["out.json", "out.vhd"]);
}

/// Several at once, of the same template, share library and base image and nothing else.
#[test]
fn two_builds_at_once_do_not_meet() {
    let kiln = Kiln::new();
    let template = tiny().shell("wait", ["sleep 2"]);
    let other = Kiln::new().env("KILN_DATA", kiln.data().display().to_string());
    let one = kiln.start(&template);
    let two = other.start(&template);
    let (one, two) = (one.wait().succeeded(), two.wait().succeeded());
    assert_ne!(one.result["runId"], two.result["runId"]);
    assert_eq!(sha256sum(&kiln.out().join("out.vhd")), one.result["outputs"][0]["output"]["sha256"]);
    assert_eq!(sha256sum(&other.out().join("out.vhd")), two.result["outputs"][0]["output"]["sha256"]);
}

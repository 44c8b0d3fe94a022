use std::os::unix::fs::PermissionsExt as _;

use expect_test::expect;
use kiln_model::event::{EVENTS_FORMAT, RunOutput};

use super::*;
use crate::journal::Journal;
use crate::run_dir::{REQUEST_FORMAT, RunId};

const SECRET: &str = "Kiln-0123456789abcdef7";

fn plan() -> BuildPlan {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden/plan.json");
    BuildPlan::from_json(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn output() -> RunOutput {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden/run-output.json");
    RunOutput::from_json(&std::fs::read_to_string(path).unwrap()).unwrap()
}

struct Place {
    _root: tempfile::TempDir,
    dir: RunDir,
    request: RunRequest,
}

/// A run with three steps, the last of which failed.
fn place() -> Place {
    let root = tempfile::tempdir().unwrap();
    let id: RunId = "20260102T030405Z-certify-3f9a1c".parse().unwrap();
    let dir = RunDir::create(root.path(), &id).unwrap();
    let request = RunRequest {
        format: REQUEST_FORMAT,
        run_id: id,
        output_dir: "/srv/images".into(),
        keep_on_error: false,
        library: "/srv/library".into(),
        operation: None,
        transcript: true,
        checkpoints: None,
    };
    let journal = Journal::open(&dir.events()).unwrap();
    journal.append(RunEventKind::RunStarted {
        format: EVENTS_FORMAT,
        run_id: request.run_id.to_string(),
        template_name: "certify".to_owned(),
        template_sha256: Sha256::from([1; 32]),
        source: "windows-2022 1".to_owned(),
        kiln_version: "0.1.0".to_owned(),
        attempt: 1,
    });
    journal.step("connect", "wait for WinRM").succeed("");
    journal.step("customize/1", "PowerShell \"inline\"").succeed("exit code 0");
    journal.warn("a warning");
    journal.append(RunEventKind::OutputPublished { output: output() });
    journal.step("customize/2", "PowerShell \"bad\"").fail(format!("it said {SECRET}"));
    Place { _root: root, dir, request }
}

fn lab() -> WindowsFacts {
    WindowsFacts {
        name: Some("Kiln lab (Linux, no Windows)".to_owned()),
        version: Some("0.0.0".to_owned()),
        revision: Some(0),
        edition: Some("Lab".to_owned()),
        computer: Some(SECRET.to_owned()),
        rearms_left: Some(5),
        ..WindowsFacts::default()
    }
}

fn windows() -> WindowsFacts {
    WindowsFacts {
        name: Some("Microsoft Windows Server 2022 Datacenter".to_owned()),
        version: Some("10.0.20348".to_owned()),
        revision: Some(2700),
        edition: Some("ServerDatacenter".to_owned()),
        ..WindowsFacts::default()
    }
}

fn words(facts: &WindowsFacts) -> DiskWords {
    let name = facts.name.as_deref().map(|name| name.trim_start_matches("Microsoft ").to_owned());
    DiskWords { name, build: Some("20348.2582".to_owned()) }
}

fn read(dir: &RunDir) -> (Head, String) {
    let text = std::fs::read_to_string(dir.transcript()).unwrap();
    let (head, rest) = text.split_once('\n').unwrap();
    (Head::from_line(head).unwrap(), rest.to_owned())
}

#[test]
fn it_is_published_whole_private_and_without_secrets() {
    let Place { dir, request, .. } = &place();
    let transcript = Transcript::default();
    assert!(transcript.recorder().is_none(), "there is no place for lines yet");
    std::fs::create_dir(dir.work()).unwrap();
    let exchanges = dir.work().join("exchanges.jsonl");
    transcript.open(&exchanges, "10.0.2").unwrap();
    transcript.recorder().unwrap().hide(SECRET);
    std::fs::write(&exchanges, "{\"kind\":\"exchange\"}\n").unwrap();
    transcript.guest(&lab());
    transcript.disk(words(&lab()));
    transcript.publish(dir, request, &plan(), RunState::Succeeded, "certify.vhd made").unwrap();

    let mode = std::fs::metadata(dir.transcript()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = std::fs::read_to_string(dir.transcript()).unwrap();
    assert!(!text.contains(SECRET) && text.matches("[removed]").count() == 2, "{text}");
    let (head, rest) = read(dir);
    assert_eq!(rest, "{\"kind\":\"exchange\"}\n");
    assert_eq!(head.exchanges_sha256, Sha256::from(kiln_host::digest::sha256(rest.as_bytes())));
    assert_eq!(head.host.kiln, "0.1.0");
    assert!(head.host.kiln_sha256.is_some() && head.host.kernel.starts_with("Linux "), "{:?}", head.host);
    assert_eq!(head.warnings, ["a warning"]);
    assert_eq!(head.results[0].sha256, output().sha256);
}

#[test]
fn each_guest_and_each_end_has_its_words() {
    let on_windows = "verified on Windows 10.0.20348.2700";
    for (guest, state, part, step, proof) in [
        (
            Some(lab()),
            RunState::Succeeded,
            "lab-no-windows",
            "lab-tested (no Windows)",
            "lab-tested (no Windows)",
        ),
        (
            Some(lab()),
            RunState::Failed,
            "lab-no-windows",
            "lab-tested (no Windows)",
            "failed: Sysprep is gone",
        ),
        (Some(windows()), RunState::Succeeded, "windows-serverdatacenter-10.0.20348.2700", on_windows, ""),
        (
            Some(windows()),
            RunState::Failed,
            "windows-serverdatacenter-10.0.20348.2700",
            on_windows,
            "failed: Sysprep is gone",
        ),
        (
            Some(windows()),
            RunState::PartiallySucceeded,
            "windows-serverdatacenter-10.0.20348.2700",
            on_windows,
            "failed: Sysprep is gone",
        ),
        (
            None,
            RunState::Failed,
            "unknown",
            "not proven: the guest never said what it is",
            "failed: Sysprep is gone",
        ),
    ] {
        let Place { dir, request, .. } = &place();
        let transcript = Transcript::default();
        if let Some(guest) = &guest {
            transcript.guest(guest);
            transcript.disk(words(guest));
        }
        transcript.publish(dir, request, &plan(), state, "Sysprep is gone").unwrap();
        let (head, rest) = read(dir);
        assert_eq!((rest.as_str(), head.exchanges), ("", 0));
        assert!(
            head.name.starts_with(&format!("transcript-{part}-2")) && head.name.ends_with("Z.jsonl"),
            "{}",
            head.name
        );
        let proof = if proof.is_empty() {
            format!("{on_windows} by transcript {}", head.name)
        } else {
            proof.to_owned()
        };
        assert_eq!(head.proof, proof, "{guest:?} {state:?}");
        let steps: Vec<&str> = head.steps.iter().map(|step| step.word.as_str()).collect();
        assert_eq!(steps, [step, step, "failed"]);
    }
}

#[test]
fn its_head_has_the_form_that_was_promised() {
    let Place { request, .. } = &place();
    let seen = Seen {
        host: HostWords {
            kernel: "Linux 6.1".to_owned(),
            cpu: "a processor".to_owned(),
            cpus: 2,
            qemu: "10.0.2".to_owned(),
            accelerator: "KVM, EPYC".to_owned(),
            firmware: Some(FileWords {
                path: "/usr/share/OVMF/x.fd".to_owned(),
                sha256: Some(Sha256::from([2; 32])),
            }),
            swtpm: Some("TPM emulator version 0.7.3".to_owned()),
            ..HostWords::default()
        },
        guest: Some(windows()),
        disk: Some(words(&windows())),
        generalized: Some(GeneralizedWords {
            image_state: Some("IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE".to_owned()),
            dirty: false,
            rearms_left_before: Some(5),
            rearms_left_after: None,
        }),
        exchanges: None,
    };
    let plan = BuildPlan { customizers: Vec::new(), ..plan() };
    let mut head = head(&seen, request, &plan, &[], RunState::Succeeded, "made");
    head.steps = vec![StepWords {
        id: "customize/1".to_owned(),
        title: "PowerShell \"inline\"".to_owned(),
        outcome: StepOutcome::Succeeded,
        message: "exit code 0".to_owned(),
        ms: 1200,
        word: "verified on Windows 10.0.20348.2700".to_owned(),
    }];
    head.results = vec![ResultWords {
        file: "a.vhd".to_owned(),
        size: 1_049_088,
        virtual_size: 1 << 20,
        sha256: Sha256::from([3; 32]),
    }];
    let line = head.to_line();
    assert_eq!(Head::from_line(&line).unwrap(), head);
    let pretty: serde_json::Value = serde_json::from_str(&line).unwrap();
    expect![[r#"
        {
          "kind": "transcript",
          "format": 1,
          "name": "transcript-windows-serverdatacenter-10.0.20348.2700-Z.jsonl",
          "runId": "20260102T030405Z-certify-3f9a1c",
          "startedAt": "",
          "outcome": "Succeeded",
          "message": "made",
          "proof": "verified on Windows 10.0.20348.2700 by transcript transcript-windows-serverdatacenter-10.0.20348.2700-Z.jsonl",
          "host": {
            "kiln": "",
            "kilnSha256": null,
            "kernel": "Linux 6.1",
            "cpu": "a processor",
            "cpus": 2,
            "qemu": "10.0.2",
            "accelerator": "KVM, EPYC",
            "firmware": {
              "path": "/usr/share/OVMF/x.fd",
              "sha256": "0202020202020202020202020202020202020202020202020202020202020202"
            },
            "swtpm": "TPM emulator version 0.7.3"
          },
          "image": {
            "name": "base",
            "version": "1.2.3",
            "sha256": "abababababababababababababababababababababababababababababababab",
            "generation": "V1",
            "format": "qcow2",
            "virtualSize": 4294967296
          },
          "guest": {
            "name": "Microsoft Windows Server 2022 Datacenter",
            "version": "10.0.20348",
            "revision": 2700,
            "edition": "ServerDatacenter",
            "kindOf": null,
            "arch": null,
            "powershell": null,
            "computer": null,
            "freeBytes": null,
            "imageState": null,
            "rearmsLeft": null,
            "pendingRestart": [],
            "unread": []
          },
          "disk": {
            "name": "Windows Server 2022 Datacenter",
            "build": "20348.2582"
          },
          "customizers": [],
          "steps": [
            {
              "id": "customize/1",
              "title": "PowerShell \"inline\"",
              "outcome": "succeeded",
              "message": "exit code 0",
              "ms": 1200,
              "word": "verified on Windows 10.0.20348.2700"
            }
          ],
          "warnings": [],
          "generalized": {
            "imageState": "IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE",
            "dirty": false,
            "rearmsLeftBefore": 5,
            "rearmsLeftAfter": null
          },
          "results": [
            {
              "file": "a.vhd",
              "size": 1049088,
              "virtualSize": 1048576,
              "sha256": "0303030303030303030303030303030303030303030303030303030303030303"
            }
          ],
          "exchanges": 0,
          "omitted": 0,
          "exchangesSha256": "0000000000000000000000000000000000000000000000000000000000000000"
        }"#]].assert_eq(&serde_json::to_string_pretty(&pretty).unwrap());
}

#[test]
fn where_files_lie_on_a_host_is_not_told() {
    let Place { dir, request, .. } = &place();
    let mut plan = plan();
    let address = |text: &str| InputLocation::parse(text).unwrap();
    let places = ["file:///home/somebody/a.ps1", "https://host.example/b.ps1?sig=secret"];
    let inputs = places.map(|place| kiln_model::plan::InputRef { location: address(place), sha256: None });
    plan.customizers = inputs
        .into_iter()
        .map(|source| Customizer {
            position: 1,
            name: String::new(),
            action: kiln_model::plan::CustomizerAction::File { source, destination: "c:/x".to_owned() },
        })
        .collect();
    Transcript::default().publish(dir, request, &plan, RunState::Succeeded, "made").unwrap();
    let text = std::fs::read_to_string(dir.transcript()).unwrap();
    assert!(text.contains("\"a.ps1\"") && text.contains("host.example/b.ps1"), "{text}");
    assert!(!text.contains("somebody") && !text.contains("sig=secret"), "{text}");
}

#[test]
fn a_newer_one_is_called_newer_and_anything_else_no_transcript() {
    assert!(matches!(Head::from_line(r#"{"format": 2, "new": 1}"#), Err(HeadError::Newer { found: 2 })));
    for other in ["", "{}", r#"{"format": 1}"#] {
        assert!(matches!(Head::from_line(other), Err(HeadError::Malformed(_))), "{other}");
    }
    assert_eq!(compact("2026-11-27T18:12:21.123Z"), "20261127T181221Z");
}

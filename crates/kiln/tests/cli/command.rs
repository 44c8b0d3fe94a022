//! The command from outside: exit status, streams and formats of the real binary.

use crate::common::{Kiln, text};
use expect_test::{expect, expect_file};

#[test]
fn help_is_as_it_was() {
    let help = |args: &[&str]| text(&Kiln::new().run(args).stdout);
    expect_file!["help/kiln.txt"].assert_eq(&help(&["--help"]));
    expect_file!["help/build.txt"].assert_eq(&help(&["build", "--help"]));
    expect_file!["help/certify-windows.txt"].assert_eq(&help(&["certify-windows", "--help"]));
    expect_file!["help/images-import.txt"].assert_eq(&help(&["images", "import", "--help"]));
}

#[test]
fn the_worker_is_not_for_people_but_there() {
    let kiln = Kiln::new();
    assert!(!text(&kiln.run(&["--help"]).stdout).contains("worker"));
    let output = kiln.run(&["worker", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/nonexistent"), "{}", text(&output.stderr));
}

#[test]
fn wrong_usage_is_2_and_says_nothing_on_stdout() {
    for args in [&["build"][..], &["frobnicate"], &["build", "a", "--no-such-flag"], &[]] {
        let output = Kiln::new().run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(text(&output.stderr).contains("Usage:"), "{args:?}");
    }
}

#[test]
fn version_is_data() {
    let kiln = Kiln::new();
    expect![[r#"
        kiln 0.1.0
    "#]]
    .assert_eq(&text(&kiln.run(&["version"]).stdout));
    expect![[r#"
        {
          "format": 1,
          "version": "0.1.0",
          "formats": {
            "catalog": 1,
            "claim": 1,
            "events": 1,
            "library": 1,
            "plan": 1,
            "problems": 1,
            "request": 1,
            "result": 1,
            "runOutput": 1,
            "transcript": 1
          }
        }
    "#]]
    .assert_eq(&text(&kiln.run(&["version", "--json"]).stdout));
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = Kiln::new().run(&["completions", shell]);
        assert!(output.status.success(), "{shell}");
        let script = text(&output.stdout);
        for word in ["validate", "images", "keep-on-error"] {
            assert!(script.contains(word), "{shell} does not complete {word}");
        }
        assert!(!script.contains("worker"), "{shell} offers what is hidden");
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    use std::process::Stdio;
    let kiln = Kiln::new();
    let mut child =
        kiln.command(&["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn data_that_cannot_be_written_is_2() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = Kiln::new().command(&["version"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("cannot write to standard output"), "{}", text(&output.stderr));
}

#[test]
fn a_template_that_is_not_there_is_named() {
    for command in ["build", "validate", "plan"] {
        let output = Kiln::new().run(&[command, "/nonexistent/t.json"]);
        assert_eq!(output.status.code(), Some(1), "{command}");
        assert!(output.stdout.is_empty(), "{command}");
        let stderr = text(&output.stderr);
        assert!(
            stderr.contains("/nonexistent/t.json") && stderr.contains("No such file"),
            "{command}: {stderr}"
        );
    }
}

#[test]
fn only_an_image_with_the_right_system_is_certified() {
    let kiln = Kiln::new();
    for (base, said) in [
        ("debian-12", "debian-12 is a Linux image"),
        ("nobodys", "there is no base image nobodys"),
        ("debian-12:", "NAME or NAME:VERSION"),
    ] {
        let output = kiln.run(&["certify-windows", "--base", base]);
        assert_eq!(output.status.code(), Some(1), "{base}");
        assert!(text(&output.stderr).contains(said), "{base}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty(), "{base}");
    }
    let output = kiln.run(&["certify-windows", "--base", "debian-12", "--json"]);
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &object["exitStatus"]), (Some(1), &1.into()), "{object}");
    assert!(!kiln.data().join("runs").exists(), "nothing was begun");
}

#[test]
fn colour_is_a_wish() {
    let kiln = Kiln::new();
    let stderr = |name: &str, value: &str| {
        let mut command = kiln.command(&["validate", "/nonexistent"]);
        text(&command.env(name, value).output().unwrap().stderr)
    };
    assert!(!stderr("TERM", "xterm").contains('\u{1b}'), "a pipe is not painted");
    assert!(stderr("CLICOLOR_FORCE", "1").contains('\u{1b}'));
    let mut both = kiln.command(&["validate", "/nonexistent"]);
    both.env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1");
    assert!(!text(&both.output().unwrap().stderr).contains('\u{1b}'));
}

#[test]
fn without_a_home_the_way_out_is_named() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kiln"));
    let output = command.args(["images", "list"]).env_clear().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("KILN_DATA"), "{}", text(&output.stderr));
}

#[test]
fn doctor_finds_nothing_where_nothing_is() {
    let kiln = Kiln::new();
    let output = kiln.command(&["doctor", "--json"]).env("PATH", "/nonexistent").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["format"], 1);
    assert_eq!(found["canBuild"], false);
    let verdict = |name: &str| {
        let list = found["findings"].as_array().unwrap();
        list.iter().find(|finding| finding["name"] == name).unwrap_or_else(|| panic!("no {name}"))["verdict"]
            .clone()
    };
    assert_eq!(verdict("qemu"), "missing");
    assert_eq!(verdict("images"), "attention");
    let packages = found["missingPackages"].as_array().unwrap();
    assert!(packages.iter().any(|package| package == "qemu-system-x86"), "{packages:?}");
    assert!(!kiln.data().join("library").exists(), "doctor only looks");
}

//! validate, plan and build up to the point where a machine would start.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::common::{Kiln, text};
use expect_test::expect;

fn template(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/templates").join(name)
}

/// The output with the templates' folder named `T`.
fn anywhere(bytes: &[u8]) -> String {
    text(bytes).replace(&template("").display().to_string(), "T/")
}

#[test]
fn a_good_template() {
    let output = Kiln::new().run(&["validate", template("good.yaml").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    expect![[r#"
        T/good.yaml:2:1: note: works here, not in Azure: Validation failed: 'ImageTemplate': Missing field 'identity'
            help: Azure needs a user-assigned identity; this host does not
    "#]].assert_eq(&anywhere(&output.stdout));
    expect![[r#"
        T/good.yaml: 1 note
    "#]]
    .assert_eq(&anywhere(&output.stderr));
}

#[test]
fn a_bad_template_for_people() {
    let output = Kiln::new().run(&["validate", template("bad.jsonc").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    expect![[r#"
        T/bad.jsonc:1:1: note: works here, not in Azure: Validation failed: 'ImageTemplate': Missing field 'identity'
            help: Azure needs a user-assigned identity; this host does not
        T/bad.jsonc:7:30: error: Validation failed: 'ImageTemplate.properties': Field 'buildTimeoutInMinutes' has a bad value: '961'
            at /properties/buildTimeoutInMinutes
            help: from 0 to 960
        T/bad.jsonc:9:15: error: Validation failed: 'ImageTemplate.properties.source': Field 'type' has a bad value: 'platformImage'
            at /properties/source/type
            help: did you mean 'PlatformImage'? The case of types counts
        T/bad.jsonc:16:7: error: NoCustomizerScript: Validation failed: 'ImageTemplate.properties.customize[0]': neither 'inline' nor 'scriptUri' is given; exactly one is needed
            at /properties/customize/0
        T/bad.jsonc:17:103: error: Validation failed: 'ImageTemplate.properties.customize[1]': Field 'sha256Checksum' has a bad value: 'abc'
            at /properties/customize/1/sha256Checksum
            help: not a SHA-256 digest (64 hex digits expected, got 3 characters)
    "#]].assert_eq(&anywhere(&output.stdout));
    expect![[r#"
        T/bad.jsonc: 4 errors, 1 note
    "#]]
    .assert_eq(&anywhere(&output.stderr));
}

#[test]
fn a_bad_template_for_programs() {
    let output = Kiln::new().run(&["validate", template("bad.jsonc").to_str().unwrap(), "--json"]);
    assert_eq!(output.status.code(), Some(1));
    expect![[r#"
        {
          "format": 1,
          "file": "T/bad.jsonc",
          "valid": false,
          "problems": [
            {
              "severity": "note",
              "code": "not-portable",
              "pointer": "",
              "line": 1,
              "column": 1,
              "message": "works here, not in Azure: Validation failed: 'ImageTemplate': Missing field 'identity'",
              "help": "Azure needs a user-assigned identity; this host does not"
            },
            {
              "severity": "error",
              "code": "out-of-range",
              "pointer": "/properties/buildTimeoutInMinutes",
              "line": 7,
              "column": 30,
              "message": "Validation failed: 'ImageTemplate.properties': Field 'buildTimeoutInMinutes' has a bad value: '961'",
              "help": "from 0 to 960"
            },
            {
              "severity": "error",
              "code": "unknown-type",
              "pointer": "/properties/source/type",
              "line": 9,
              "column": 15,
              "message": "Validation failed: 'ImageTemplate.properties.source': Field 'type' has a bad value: 'platformImage'",
              "help": "did you mean 'PlatformImage'? The case of types counts"
            },
            {
              "severity": "error",
              "code": "exclusive",
              "pointer": "/properties/customize/0",
              "line": 16,
              "column": 7,
              "message": "NoCustomizerScript: Validation failed: 'ImageTemplate.properties.customize[0]': neither 'inline' nor 'scriptUri' is given; exactly one is needed"
            },
            {
              "severity": "error",
              "code": "bad-checksum",
              "pointer": "/properties/customize/1/sha256Checksum",
              "line": 17,
              "column": 103,
              "message": "Validation failed: 'ImageTemplate.properties.customize[1]': Field 'sha256Checksum' has a bad value: 'abc'",
              "help": "not a SHA-256 digest (64 hex digits expected, got 3 characters)"
            }
          ]
        }
    "#]].assert_eq(&anywhere(&output.stdout));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn validate_makes_nothing() {
    let kiln = Kiln::new();
    kiln.run(&["validate", template("good.yaml").to_str().unwrap()]);
    assert_eq!(std::fs::read_dir(kiln.home()).unwrap().count(), 0);
}

#[test]
fn a_template_comes_from_standard_input_too() {
    let kiln = Kiln::new();
    let mut child = kiln
        .command(&["validate", "-", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes = std::fs::read(template("bad.jsonc")).unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    let by_name = kiln.run(&["validate", template("bad.jsonc").to_str().unwrap(), "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let by_name = text(&by_name.stdout).replace(template("bad.jsonc").to_str().unwrap(), "<stdin>");
    assert_eq!(text(&output.stdout), by_name);
}

#[test]
fn what_is_no_template_is_refused_in_a_sentence() {
    let kiln = Kiln::new();
    let huge = kiln.home().join("huge.json");
    std::fs::File::create(&huge).unwrap().set_len(100 << 20).unwrap();
    let garbage = kiln.home().join("garbage.json");
    std::fs::write(&garbage, [0_u8, 159, 146, 150, 255]).unwrap();
    let deep = kiln.home().join("deep.json");
    std::fs::write(&deep, "[".repeat(100_000)).unwrap();
    for file in [&huge, &garbage, &deep] {
        for command in ["validate", "build", "plan"] {
            let began = std::time::Instant::now();
            let output = kiln.run(&[command, file.to_str().unwrap()]);
            let stderr = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{command} {}: {stderr}", file.display());
            assert!(!stderr.contains("panicked"), "{stderr}");
            assert!(began.elapsed().as_secs() < 5, "{command} {}", file.display());
        }
    }
}

#[test]
fn a_build_without_its_image_says_what_to_run_and_makes_nothing() {
    let kiln = Kiln::new();
    let output = kiln.run(&["build", template("good.yaml").to_str().unwrap(), "-o", "out"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("kiln images build debian-12"), "{stderr}");
    assert_eq!(text(&output.stdout), "");
    assert!(!kiln.home().join("out").exists());
    assert!(!kiln.data().join("runs").exists());

    let output = kiln.run(&["build", template("good.yaml").to_str().unwrap(), "--json"]);
    let stdout = text(&output.stdout);
    let lines: Vec<serde_json::Value> =
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 1, "{stdout}");
    assert_eq!((&lines[0]["format"], &lines[0]["kind"]), (&1.into(), &"result".into()));
    assert_eq!((&lines[0]["state"], &lines[0]["exitStatus"]), (&"Failed".into(), &1.into()));
    assert!(lines[0]["message"].as_str().unwrap().contains("kiln images build debian-12"), "{stdout}");
}

#[test]
fn a_build_of_a_bad_template_lists_its_problems_on_both_streams() {
    let output = Kiln::new().run(&["build", template("bad.jsonc").to_str().unwrap(), "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let problems = result["problems"].as_array().unwrap();
    assert!(problems.len() >= 4, "{problems:?}");
    assert!(problems.iter().any(|problem| problem["pointer"] == "/properties/buildTimeoutInMinutes"));
    assert!(text(&output.stderr).contains("/properties/source/type"), "{}", text(&output.stderr));
}

//! Templates from a file to a verdict.

use std::time::{Duration, Instant};

use kiln_tests::kiln::Kiln;
use kiln_tests::settings::repository;
use kiln_tests::template::tiny;
use serde_json::Value;

/// Every template of the repository gets a verdict: 0 or 1, readable by people and by programs.
#[test]
fn every_fixture_gets_a_verdict() {
    let kiln = Kiln::new();
    let mut folders =
        vec![repository().join("tests/fixtures/templates"), repository().join("images/examples")];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if !path
                .extension()
                .is_some_and(|e| ["json", "jsonc", "yaml", "yml"].iter().any(|known| e == *known))
            {
                continue;
            }
            seen += 1;
            let ended = kiln.run(["validate", "--json", path.to_str().unwrap()]);
            let verdict: Value = serde_json::from_str(&ended.text()).unwrap_or_else(|error| {
                panic!("{}: {error}\n{}\n{}", path.display(), ended.text(), ended.stderr)
            });
            let errors =
                verdict["problems"].as_array().unwrap().iter().filter(|p| p["severity"] == "error").count();
            assert_eq!(ended.status.code(), Some(i32::from(errors > 0)), "{}: {verdict:#}", path.display());
        }
    }
    assert!(seen > 20, "only {seen} templates were found");
}

#[test]
fn the_examples_are_good_and_can_be_planned() {
    let kiln = Kiln::new();
    let mut seen = 0;
    for entry in std::fs::read_dir(repository().join("images/examples")).unwrap() {
        let path = entry.unwrap().path();
        let ended = kiln.run(["validate", path.to_str().unwrap()]);
        assert_eq!(ended.status.code(), Some(0), "{}: {}", path.display(), ended.stderr);
        seen += 1;
    }
    assert!(seen > 0);
    let hello = repository().join("images/examples/hello.json");
    let plan = kiln.run(["plan", "--json", hello.to_str().unwrap()]);
    assert_eq!(plan.status.code(), Some(0), "{}", plan.stderr);
    let plan: Value = serde_json::from_str(&plan.text()).unwrap();
    assert_eq!(plan["format"], 1);
    assert!(plan.to_string().contains("debian-12"), "{plan:#}");
    let plain = kiln.run(["plan", hello.to_str().unwrap()]);
    assert!(plain.text().contains("greet") && plain.text().contains("debian-12"), "{}", plain.text());
}

/// All problems at once, each with its place, and the exit code of a bad input.
#[test]
fn every_problem_is_listed_at_once() {
    let kiln = Kiln::new();
    let template = tiny()
        .timeout_minutes(961)
        .customizer(serde_json::json!({ "type": "shell", "inline": ["x"] }))
        .customizer(serde_json::json!({ "type": "Shell", "name": "both", "inline": ["x"], "scriptUri": "https://h/x" }))
        .customizer(serde_json::json!({ "type": "Shell", "name": "sum", "scriptUri": "https://h/x", "sha256Checksum": "12" }));
    let file = kiln.path().join("bad.json");
    std::fs::write(&file, template.text()).unwrap();
    let ended = kiln.run(["validate", "--json", file.to_str().unwrap()]);
    assert_eq!(ended.status.code(), Some(1));
    let verdict: Value = serde_json::from_str(&ended.text()).unwrap();
    let errors: Vec<&Value> = verdict["problems"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|problem| problem["severity"] == "error")
        .collect();
    for pointer in [
        "/properties/buildTimeoutInMinutes",
        "/properties/customize/0",
        "/properties/customize/1",
        "/properties/customize/2",
    ] {
        let found = errors.iter().find(|problem| problem["pointer"].as_str().unwrap().starts_with(pointer));
        let problem = found.unwrap_or_else(|| panic!("no error at {pointer}: {verdict:#}"));
        assert!(
            problem["line"].as_u64().unwrap() > 1 && problem["column"].as_u64().unwrap() > 1,
            "{problem:#}"
        );
    }
    // The same for a person, and for a build, which starts nothing.
    let shown = kiln.run(["validate", file.to_str().unwrap()]);
    assert!(shown.stderr.contains("bad.json:") || shown.text().contains("bad.json:"), "{}", shown.stderr);
    let build = kiln.run(["build", file.to_str().unwrap()]);
    assert_eq!(build.status.code(), Some(1), "{}", build.stderr);
    assert_eq!(kiln.runs(), [] as [std::path::PathBuf; 0], "no run was made");
}

/// Files that are no templates at all: an error in words, soon, and never a panic.
#[test]
fn what_is_no_template_is_refused_in_words() {
    let kiln = Kiln::empty();
    let nested = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
        d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n";
    let cases: [(&str, Vec<u8>); 11] = [
        ("empty", Vec::new()),
        ("blanks", b"  \n\t\n".to_vec()),
        ("garbage", (0..=255).cycle().take(5000).collect()),
        ("utf-16", b"\xff\xfe{\0}\0".to_vec()),
        ("torn", b"{\"type\": \"Microsoft".to_vec()),
        ("a number", b"42".to_vec()),
        ("a list", b"[]".to_vec()),
        ("deep", nested.into_bytes()),
        ("alias bomb", bomb.into()),
        ("repeated key", b"{\"type\": 1, \"type\": 2}".to_vec()),
        ("100 MB", vec![b' '; 100_000_000]),
    ];
    for (name, content) in cases {
        let file = kiln.path().join("case.json");
        std::fs::write(&file, content).unwrap();
        let begin = Instant::now();
        for command in ["validate", "build"] {
            let ended = kiln.run([command, file.to_str().unwrap()]);
            assert_eq!(ended.status.code(), Some(1), "{command} of {name}: {}", ended.stderr);
            let said = format!("{}{}", ended.stderr, ended.text());
            assert!(said.contains("error") && !said.contains("panicked"), "{command} of {name}: {said}");
            assert!(said.len() < 20_000, "{command} of {name} says {} bytes", said.len());
        }
        assert!(begin.elapsed() < Duration::from_secs(5), "{name} took {:?}", begin.elapsed());
    }
}

//! What lies where, and what no file says.

use std::collections::BTreeSet;
use std::path::Path;

use kiln_tests::program::{command, finish, is_there};
use kiln_tests::settings::repository;
use kiln_tests::skip;

use super::files;

const TOP_LEVEL: [&str; 14] = [
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "clippy.toml",
    "crates",
    "deny.toml",
    "images",
    "rustfmt.toml",
    "scripts",
    "tests",
];

fn relative(path: &Path) -> String {
    path.strip_prefix(repository()).unwrap().display().to_string()
}

#[test]
fn the_top_level_holds_what_belongs_there() {
    let found: BTreeSet<String> = files()
        .iter()
        .map(|path| relative(path).split('/').next().unwrap().to_owned())
        .filter(|name| !name.starts_with('.'))
        .collect();
    assert_eq!(found, TOP_LEVEL.iter().map(|name| (*name).to_owned()).collect());
}

/// The project speaks of itself alone: nothing of the machine it was made on.
#[test]
fn no_file_names_this_machine() {
    let mut private = vec![format!("{}/", repository().display())];
    if let Some(home) = std::env::home_dir().filter(|home| home.components().count() > 2) {
        private.push(home.display().to_string());
    }
    // The package mirror of this machine, where it is not the public archive.
    let mut sources = vec!["/etc/apt/sources.list".into()];
    sources.extend(
        std::fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().map(|e| e.unwrap().path()),
    );
    for line in
        sources.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect::<String>().lines()
    {
        for host in line.split("://").skip(1).map(|rest| rest.split(['/', ' ']).next().unwrap()) {
            let public = ["debian.org", "ubuntu.com"].iter().any(|domain| host.ends_with(domain));
            if !public && host.contains('.') {
                private.push(host.to_owned());
            }
        }
    }
    for path in files() {
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        for word in &private {
            assert!(!text.contains(word), "{} names {word}", relative(&path));
        }
    }
}

#[test]
fn shell_scripts_are_sound() {
    let scripts: Vec<_> = files()
        .into_iter()
        .filter(|path| {
            std::fs::read(path).unwrap().starts_with(b"#!") || path.extension().is_some_and(|e| e == "sh")
        })
        .filter(|path| {
            let text = std::fs::read(path).unwrap();
            let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
            !first.windows(6).any(|word| word == b"python")
        })
        .collect();
    assert!(scripts.len() > 8, "found only {scripts:?}");
    for script in &scripts {
        let text = std::fs::read_to_string(script).unwrap();
        // Scripts of guests are for any POSIX shell.
        let shell = if text.starts_with("#!/bin/bash") { "bash" } else { "sh" };
        let ended = finish(command(shell).arg("-n").arg(script), std::time::Duration::from_secs(10));
        assert!(ended.status.success(), "{}: {}", relative(script), ended.stderr);
        if text.starts_with("#!/bin/bash") {
            assert!(
                text.contains("\nset -euo pipefail\n") || text.contains("\nset -uo pipefail\n"),
                "{} does not stop at errors",
                relative(script)
            );
        }
    }
    if !is_there("shellcheck") {
        skip!("shellcheck is not installed: scripts were only parsed");
    }
    let ended = finish(
        command("shellcheck").arg("-x").args(&scripts).current_dir(repository()),
        std::time::Duration::from_secs(60),
    );
    assert!(ended.status.success(), "{}", ended.text());
}

#[test]
fn documented_commands_exist() {
    let makefile = std::fs::read_to_string(repository().join("Makefile")).unwrap();
    for page in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"] {
        let text = std::fs::read_to_string(repository().join(page)).unwrap();
        let mut targets: Vec<&str> = text
            .split("make ")
            .skip(1)
            .filter_map(|rest| rest.split(|c: char| !c.is_ascii_lowercase()).next())
            .collect();
        // "make" the verb is followed by other words: only those in code count.
        targets.retain(|target| {
            text.contains(&format!("`make {target}")) || text.contains(&format!("$ make {target}"))
        });
        assert!(page != "README.md" || targets.len() >= 2, "the README shows its two commands");
        for target in targets {
            assert!(makefile.contains(&format!("\n{target}:")), "{page} names `make {target}`");
        }
        for path in text.split('`').skip(1).step_by(2).filter(|word| {
            ["crates/", "images/", "scripts/", "tests/"].iter().any(|start| word.starts_with(start))
                && !word.contains([' ', '<', '*', '{'])
        }) {
            assert!(repository().join(path).exists(), "{page} names {path}, which is not there");
        }
    }
}

#[test]
fn ci_runs_what_a_person_runs() {
    let ci = std::fs::read_to_string(repository().join(".ci/run")).unwrap();
    let last = ci.lines().rfind(|line| !line.is_empty()).unwrap();
    assert_eq!(last, "exec make test");
}

/// 150–600 lines make a good file.
#[test]
fn files_have_seams() {
    for path in files().iter().filter(|path| path.extension().is_some_and(|e| e == "rs")) {
        let lines = std::fs::read_to_string(path).unwrap().lines().count();
        assert!(lines <= 800, "{} has {lines} lines: look for the seam", relative(path));
    }
}

/// Names that say nothing.
#[test]
fn types_are_named_for_what_they_are() {
    for path in files().iter().filter(|path| path.extension().is_some_and(|e| e == "rs")) {
        for line in std::fs::read_to_string(path).unwrap().lines() {
            let public = ["pub ", "pub(crate) "].iter().find_map(|word| line.strip_prefix(word));
            let Some(name) = ["struct ", "enum ", "trait "]
                .iter()
                .find_map(|word| public?.strip_prefix(word)?.split(|c: char| !c.is_alphanumeric()).next())
            else {
                continue;
            };
            for empty in ["Manager", "Helper", "Util", "Utils", "Handler", "Service", "Data"] {
                assert!(!name.ends_with(empty), "{}: {name}: what is it?", relative(path));
            }
        }
    }
}

/// Every exception to a lint carries a reason (rustc holds the rest of the rules).
#[test]
fn unsafe_code_is_one_reasoned_exception() {
    let mut places = Vec::new();
    for path in files().iter().filter(|path| path.extension().is_some_and(|e| e == "rs")) {
        let text = std::fs::read_to_string(path).unwrap();
        let allows = ["expect(unsafe_code", "allow(unsafe_code"]
            .iter()
            .any(|word| text.contains(&format!("#[{word}")));
        if allows {
            places.push(relative(path));
        }
    }
    assert!(places.len() <= 1, "more than one place has unsafe code: {places:?}");
}

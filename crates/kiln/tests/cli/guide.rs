//! The user guide says what the binary does: every command in it is run, and every
//! command and flag there is, is in it.
//!
//! Commands run where they can do no harm: an empty folder, no programs on `PATH`, and a
//! data folder that cannot be made. They fail there, but never by wrong usage. What would
//! succeed all the same (a server with a folder of its own) is in `sh` blocks, unrun.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

const KILN: &str = env!("CARGO_BIN_EXE_kiln");

fn pages() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("guide");
    let mut pages: Vec<(String, String)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "md"))
        .map(|path| {
            (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(path).unwrap())
        })
        .collect();
    pages.sort();
    pages
}

/// What follows `$ ` in the ```` ```console ```` blocks, continued lines joined.
fn console_lines(page: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut inside = false;
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if let (true, Some(command)) = (inside, line.strip_prefix("$ ")) {
            let mut command = command.to_owned();
            while let Some(begun) = command.strip_suffix('\\') {
                command = format!("{begun} {}", lines.next().expect("a line after the backslash").trim());
            }
            commands.push(command);
        }
    }
    commands
}

/// The arguments of the call of kiln in a shell line: `a | kiln b "c d" > e` gives `b`, `c d`.
fn kiln_arguments(line: &str) -> Option<Vec<String>> {
    let start = ["kiln ", "$(kiln ", "| kiln "]
        .iter()
        .filter_map(|call| line.find(call).map(|at| at + call.len()))
        .max()?;
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    for c in line[start..].chars() {
        match (quote, c) {
            (None, '>' | '|' | ')' | '#' | '&') => break,
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None, ' ') => words.extend((!word.is_empty()).then(|| std::mem::take(&mut word))),
            (_, c) => word.push(c),
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    Some(words)
}

fn harmless(arguments: &[String]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new(KILN)
        .args(arguments)
        .current_dir(folder.path())
        .env_clear()
        .env("PATH", "/nonexistent")
        .env("HOME", "/dev/null/nobody")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn every_command_of_the_guide_is_understood() {
    let mut seen = 0;
    for (page, text) in pages() {
        for line in console_lines(&text) {
            let Some(arguments) = kiln_arguments(&line) else {
                panic!("{page}: no call of kiln in {line:?}")
            };
            let output = harmless(&arguments);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(
                matches!(output.status.code(), Some(0 | 1)) && !stderr.contains("Usage:"),
                "{page}: {line}\n{arguments:?}: {}\n{stderr}",
                output.status
            );
            seen += 1;
        }
    }
    assert!(seen > 20, "only {seen} commands found: are they still in console blocks?");
}

#[test]
fn wrong_usage_would_be_noticed() {
    for wrong in ["kiln build", "kiln validate a.json --no-such-flag", "kiln images fetch x", "kiln plan a b"]
    {
        let output = harmless(&kiln_arguments(wrong).unwrap());
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("Usage:"), "{wrong}");
    }
}

#[test]
fn every_command_and_flag_is_in_the_guide() {
    let guide: String = pages().into_iter().map(|(_, text)| text).collect();
    let mut flags = BTreeSet::new();
    let mut missing = BTreeSet::new();
    let mut open = vec![Vec::new()];
    while let Some(command) = open.pop() {
        let help = help(&command);
        if !command.is_empty() && !guide.contains(&format!("kiln {}", command.join(" "))) {
            missing.insert(format!("kiln {}", command.join(" ")));
        }
        for flag in flags_of(&help) {
            if !guide.contains(&flag) {
                missing.insert(flag.clone());
            }
            flags.insert(flag);
        }
        for name in subcommands_of(&help) {
            open.push([command.clone(), vec![name]].concat());
        }
    }
    assert!(missing.is_empty(), "not in the guide: {missing:?}");
    assert!(flags.len() > 10, "only {flags:?}: is the help still read right?");

    // And the other way round: flags that the guide shows in code exist.
    for (page, text) in pages() {
        for code in text.split('`').skip(1).step_by(2).filter(|code| code.starts_with("--")) {
            let flag = code.split([' ', '=', '\n']).next().unwrap_or_default();
            let others = ["--sparse"];
            assert!(
                flags.contains(flag) || others.contains(&flag),
                "{page} shows {flag}, which does not exist"
            );
        }
    }
}

fn help(command: &[String]) -> String {
    let output = Command::new(KILN).args(command).arg("--help").output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// The names under `Commands:`.
fn subcommands_of(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect()
}

/// The long flags under `Options:`, each at the head of its line.
fn flags_of(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| *line != "Options:")
        .filter_map(|line| {
            let line = line.trim_start();
            let line = line
                .strip_prefix('-')
                .filter(|rest| !rest.starts_with('-'))
                .map_or(line, |short| short.split_once(", ").map_or("", |(_, long)| long));
            line.starts_with("--").then(|| line.split([' ', '.']).next().unwrap_or_default().to_owned())
        })
        .collect()
}

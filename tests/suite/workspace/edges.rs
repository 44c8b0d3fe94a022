//! What may depend on what, and who may start programs.

use std::collections::{BTreeMap, BTreeSet};

use super::{code, metadata, product_sources};

/// ARCHITECTURE.md, "Rooms": everything a crate's product code may name in the workspace.
const ALLOWED: [(&str, &[&str]); 9] = [
    ("kiln-model", &[]),
    ("kiln-host", &[]),
    ("kiln-qemu", &["kiln-host"]),
    ("kiln-guest", &["kiln-host"]),
    ("kiln-library", &["kiln-host", "kiln-model", "kiln-qemu"]),
    ("kiln-build", &["kiln-guest", "kiln-host", "kiln-library", "kiln-model", "kiln-qemu"]),
    ("kiln-daemon", &["kiln-build", "kiln-host", "kiln-library", "kiln-model"]),
    ("kiln", &["kiln-build", "kiln-daemon", "kiln-host", "kiln-library", "kiln-model", "kiln-qemu"]),
    ("kiln-tests", &[]),
];

/// Dependencies by crate, under the names the sources use. Test dependencies apart.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let metadata = metadata(&["--no-deps"]);
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| {
            let names = package["dependencies"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|dependency| dependency["kind"] != "dev")
                .map(|dependency| {
                    dependency["rename"].as_str().or(dependency["name"].as_str()).unwrap().to_owned()
                })
                .collect();
            (package["name"].as_str().unwrap().to_owned(), names)
        })
        .collect()
}

#[test]
fn crates_depend_downwards_only() {
    let allowed = BTreeMap::from(ALLOWED);
    for (name, dependencies) in dependencies() {
        let allowed =
            allowed.get(name.as_str()).unwrap_or_else(|| panic!("{name} is not in the table of edges"));
        for inside in dependencies.iter().filter(|dependency| dependency.starts_with("kiln")) {
            assert!(allowed.contains(&inside.as_str()), "{name} must not depend on {inside}");
        }
    }
}

/// The tools the architecture is built on are really used, not only listed.
#[test]
fn named_tools_are_direct_dependencies_of_product_code() {
    let dependencies = dependencies();
    for tool in ["tokio", "russh", "reqwest", "sha2", "serde_yaml"] {
        let users: Vec<&String> = dependencies
            .iter()
            .filter(|(name, tools)| *name != "kiln-tests" && tools.iter().any(|listed| listed == tool))
            .map(|(name, _)| name)
            .collect();
        let path = format!("{tool}::");
        let used = users.iter().any(|user| {
            product_sources(user).iter().any(|(_, text)| code(text).any(|(_, line)| line.contains(&path)))
        });
        assert!(used, "{tool}: no product code uses it (listed by {users:?})");
    }
}

/// INVARIANT of ARCHITECTURE.md: the model does no I/O, reads no clock, is not async.
#[test]
fn the_model_is_pure() {
    let dependencies = &dependencies()["kiln-model"];
    let pure = ["jiff", "jsonc-parser", "serde", "serde_json", "serde_yaml", "sha2", "thiserror"];
    for dependency in dependencies {
        assert!(pure.contains(&dependency.as_str()), "kiln-model depends on {dependency}: is that pure?");
    }
    let impure = [
        "std::fs",
        "std::net",
        "std::process",
        "std::env",
        "std::thread",
        "std::io::",
        "SystemTime",
        "Instant",
        "Timestamp::now",
        "async fn",
        ".await",
        "include_bytes!",
        "println!",
    ];
    for (path, text) in product_sources("kiln-model") {
        for (number, line) in code(&text) {
            // Not for work beside other work: for a stack that holds 64 levels of YAML.
            if path.ends_with("tree/yaml.rs") && line.contains("std::thread") {
                continue;
            }
            for word in impure {
                assert!(!line.contains(word), "{}:{number}: the model is pure, but: {line}", path.display());
            }
        }
    }
}

/// One door to external programs.
#[test]
fn programs_are_started_in_one_place() {
    let mut doors = Vec::new();
    for (name, _) in ALLOWED.iter().filter(|(name, _)| *name != "kiln-tests") {
        for (path, text) in product_sources(name) {
            for (number, line) in code(&text) {
                let starts = ["Command::new", "process::Command", "fork(", "execv", "posix_spawn"];
                // clap's word for what one types is the same; a worker's command is only data.
                let line = line.replace("clap::Command::new", "").replace("WorkerCommand::new", "");
                if starts.iter().any(|word| line.contains(word)) {
                    doors.push((path.clone(), number, line.trim().to_owned()));
                }
            }
        }
    }
    assert!(!doors.is_empty(), "the search finds nothing, not even the door");
    for (path, number, line) in doors {
        assert!(
            path.to_string_lossy().contains("crates/kiln-host/src/process/"),
            "{}:{number} starts a program beside kiln_host::process: {line}",
            path.display()
        );
    }
}

/// Every call of qemu-img goes through one wrapper, and that through the door.
#[test]
fn qemu_img_has_one_wrapper() {
    let mut wrappers = Vec::new();
    for (name, _) in ALLOWED.iter().filter(|(name, _)| *name != "kiln-tests") {
        for (path, text) in product_sources(name) {
            let names_it = code(&text).any(|(_, line)| {
                line.contains("Invocation::new(\"qemu-img\")") || line.contains("find_program(\"qemu-img\"")
            });
            let starts_it = path.ends_with("kiln-qemu/src/qemu_img.rs") && text.contains("Invocation::new");
            if names_it || starts_it {
                wrappers.push(path);
            }
        }
    }
    let outside: Vec<_> =
        wrappers.iter().filter(|path| !path.to_string_lossy().contains("crates/kiln-qemu/src/")).collect();
    assert!(outside.is_empty(), "qemu-img is called beside its wrapper: {outside:?}");
    assert!(
        wrappers.iter().any(|path| path.ends_with("kiln-qemu/src/qemu_img.rs")),
        "the wrapper kiln-qemu/src/qemu_img.rs does not go through kiln_host::process: {wrappers:?}"
    );
}

/// What a run waits for is an event, or is asked for by [`Control::sleep`]'s pauses, which end by a cancel, too. Each pause
/// beside it is here, with what has no event.
///
/// [`Control::sleep`]: kiln_host::wait::Control::sleep
#[test]
fn a_run_waits_for_events() {
    const REASONED: [(&str, &str); 5] = [
        ("kiln-host/src/lock.rs", "a lock that somebody only looks at"),
        ("kiln-host/src/wait.rs", "Control::sleep itself"),
        ("kiln-qemu/src/vm/follow.rs", "room on a file system"),
        ("kiln-qemu/src/vm/mod.rs", "whether a guest heard the power button"),
        ("kiln-qemu/src/offline/export.rs", "a bound, and qemu-nbd's socket"),
    ];
    let mut used: BTreeSet<(&str, &str)> = BTreeSet::new();
    for name in ["kiln-host", "kiln-qemu", "kiln-guest", "kiln-library", "kiln-build"] {
        for (path, text) in product_sources(name) {
            for (number, line) in code(&text) {
                if !["time::sleep(", "thread::sleep(", "sleep_until("].iter().any(|word| line.contains(word))
                {
                    continue;
                }
                let reasoned = REASONED.iter().find(|(place, _)| path.ends_with(place));
                let place = path.display();
                assert!(
                    reasoned.is_some(),
                    "{place}:{number} sleeps; wait for the event, or by Control::sleep: {line}"
                );
                used.extend(reasoned);
            }
        }
    }
    for entry in REASONED {
        assert!(used.contains(&entry), "nobody sleeps in {} any more: take it off the list", entry.0);
    }
}

/// Only the edges read the environment and write to the terminal.
#[test]
fn environment_and_terminal_belong_to_the_command() {
    for (name, _) in ALLOWED.iter().filter(|(name, _)| *name != "kiln-tests") {
        for (path, text) in product_sources(name) {
            for (number, line) in code(&text) {
                let place = format!("{}:{number}: {}", path.display(), line.trim());
                let reads = ["env::var", "env::vars", "env::var_os"].iter().any(|word| line.contains(word));
                assert!(
                    !reads || path.ends_with("kiln/src/settings/mod.rs"),
                    "reads the environment: {place}"
                );
                let prints = ["println!", "print!(", "io::stdout", "io::stderr"]
                    .iter()
                    .any(|word| line.contains(word));
                assert!(
                    !prints || path.to_string_lossy().contains("crates/kiln/src/"),
                    "writes to the terminal: {place}"
                );
            }
        }
    }
}

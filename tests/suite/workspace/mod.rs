//! The house keeps its own rules: what may depend on what, who may do what, what lies where.

mod edges;
mod files;
mod licences;

use std::path::{Path, PathBuf};

use kiln_tests::program::output;
use kiln_tests::settings::repository;
use serde_json::Value;

/// `cargo metadata`, from what is on this machine.
fn metadata(arguments: &[&str]) -> Value {
    let manifest = repository().join("Cargo.toml");
    let all = ["metadata", "--format-version", "1", "--locked", "--offline", "--manifest-path"];
    let text = output(
        env!("CARGO"),
        all.into_iter().chain([manifest.to_str().unwrap()]).chain(arguments.iter().copied()),
    );
    serde_json::from_str(&text).unwrap()
}

/// Files of the project: those git knows or would take, or, in a tree without git, all but builds.
fn files() -> Vec<PathBuf> {
    let root = repository();
    if root.join(".git").exists() {
        let listed = output(
            "git",
            [
                "-c",
                "safe.directory=*",
                "-C",
                root.to_str().unwrap(),
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ],
        );
        let listed = listed.split_terminator('\0').map(|name| root.join(name));
        // A file that is deleted in the work tree is still listed.
        return listed.filter(|path| path.is_file()).collect();
    }
    let mut found = Vec::new();
    walk(&root, &mut found);
    found
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("target") {
                walk(&path, found);
            }
        } else {
            found.push(path);
        }
    }
}

/// Rust sources of a crate's product code: no tests folder, and no inline tests.
fn product_sources(name: &str) -> Vec<(PathBuf, String)> {
    let folder = repository().join("crates").join(name).join("src");
    let sources: Vec<_> = files()
        .into_iter()
        .filter(|path| path.starts_with(&folder) && path.extension().is_some_and(|e| e == "rs"))
        .filter(|path| path.file_name().is_some_and(|name| name != "tests.rs"))
        .filter(|path| {
            !path.strip_prefix(&folder).is_ok_and(|inside| inside.iter().any(|part| part == "tests"))
        })
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let product = text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned();
            (path, product)
        })
        .collect();
    assert!(!sources.is_empty(), "no sources of {name}: was it renamed?");
    sources
}

/// Lines of product code without comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(at, line)| (at + 1, line.split("//").next().unwrap_or(line)))
        .filter(|(_, line)| !line.trim().is_empty())
}

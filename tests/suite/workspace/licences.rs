//! Licences of what Kiln is linked with, by `deny.toml` and `cargo metadata`.

use kiln_tests::program::output;
use kiln_tests::settings::repository;

use super::metadata;

/// The list `allow` under `[licenses]`.
fn allowed() -> Vec<String> {
    let text = std::fs::read_to_string(repository().join("deny.toml")).unwrap();
    let list = text
        .split("[licenses]")
        .nth(1)
        .unwrap()
        .split("allow = [")
        .nth(1)
        .unwrap()
        .split(']')
        .next()
        .unwrap();
    let names: Vec<String> = list
        .lines()
        .map(|line| line.split('#').next().unwrap().trim().trim_matches(',').trim_matches('"').to_owned())
        .filter(|name| !name.is_empty())
        .collect();
    assert!(names.contains(&"MIT".to_owned()), "the list was not read: {names:?}");
    names
}

/// Whether an SPDX expression (OR, AND, WITH, parentheses; `/` in old crates) can be met.
fn is_met(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let met = either(&words, &mut at, allowed);
    assert_eq!(at, words.len(), "not understood: {expression}");
    met
}

fn either(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut met = both(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= both(words, at, allowed);
    }
    met
}

fn both(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut met = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(words, at, allowed);
    }
    met
}

fn one(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    if words[*at] == "(" {
        *at += 1;
        let met = either(words, at, allowed);
        assert_eq!(words[*at], ")");
        *at += 1;
        return met;
    }
    let mut name = words[*at].to_owned();
    *at += 1;
    if words.get(*at) == Some(&"WITH") {
        name = format!("{name} WITH {}", words[*at + 1]);
        *at += 2;
    }
    allowed.contains(&name)
}

#[test]
fn expressions_are_understood() {
    let allowed = ["MIT".to_owned(), "ISC".to_owned(), "A WITH B".to_owned()];
    for (expression, met) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("(GPL-3.0 OR MIT) AND ISC", true),
        ("A WITH B OR X", true),
        ("A", false),
        ("X/MIT", true),
    ] {
        assert_eq!(is_met(expression, &allowed), met, "{expression}");
    }
}

#[test]
fn every_licence_is_one_we_allow() {
    // Only what is built here: packages for other systems were never fetched.
    let told = output("rustc", ["-vV"]);
    let host = told.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let (metadata, allowed) = (metadata(&["--filter-platform", host]), allowed());
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 50, "the whole tree is listed");
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let licence = package["license"].as_str().unwrap_or_else(|| panic!("{name} names no licence"));
        assert!(is_met(licence, &allowed), "{name}: {licence} is not in deny.toml");
        let source = package["source"].as_str().unwrap_or("");
        assert!(!source.starts_with("git+"), "{name} comes from a git repository");
        for banned in ["openssl", "openssl-sys", "native-tls"] {
            assert_ne!(name, banned, "TLS is rustls");
        }
    }
}

//! A template that changes nothing gives an image that differs from its base only by
//! what every build must change: `fixtures/pass-through.txt`, with reasons.
//!
//! It is built in a namespace without any interface: base and inputs are there, so no
//! network is needed.

use std::collections::BTreeSet;

use kiln_tests::kiln::Kiln;
use kiln_tests::program::{command, finish, say};
use kiln_tests::template::debian;
use kiln_tests::tree;

/// `KIND PATH # REASON`; a path may end with `*` or hold one in the middle.
struct Expected {
    kind: &'static str,
    path: &'static str,
}

fn expected() -> Vec<Expected> {
    include_str!("../../fixtures/pass-through.txt")
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (entry, reason) = line.split_once(" # ").unwrap_or_else(|| panic!("no reason: {line}"));
            assert!(reason.len() > 10, "a reason: {line}");
            let (kind, path) = entry.trim().split_once(' ').unwrap();
            Expected { kind, path: path.trim() }
        })
        .collect()
}

fn fits(pattern: &str, path: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == path,
        Some((start, end)) => {
            path.len() >= start.len() + end.len() && path.starts_with(start) && path.ends_with(end)
        }
    }
}

#[test]
fn an_empty_template_changes_only_what_it_must() {
    let alone = ["unshare", "-rn", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""];
    let may =
        finish(command("unshare").args(["-rn", "true"]), std::time::Duration::from_secs(10)).status.success();
    let kiln = if may {
        Kiln::new().wrapped(&alone)
    } else {
        say("unshare -rn is not allowed here: built with the network there");
        Kiln::new()
    };
    let ended = kiln.build(&debian()).succeeded();
    let image = kiln_tests::disk::Disk::open(&ended.vhd());

    let (before, after) = (tree::of(&super::BASE), tree::of(&image));
    let differences = tree::differences(&before, &after);
    let expected = expected();
    let mut used = BTreeSet::new();
    let surprises: Vec<String> = differences
        .iter()
        .filter(|difference| {
            let kind = match (&difference.before, &difference.after) {
                (None, _) => "added",
                (_, None) => "removed",
                _ => "changed",
            };
            let found =
                expected.iter().position(|entry| entry.kind == kind && fits(entry.path, &difference.path));
            used.extend(found);
            found.is_none()
        })
        .map(ToString::to_string)
        .collect();
    assert!(
        surprises.is_empty(),
        "{} paths differ without a reason:\n{}",
        surprises.len(),
        surprises.join("\n")
    );
    let unused: Vec<&str> = expected
        .iter()
        .enumerate()
        .filter(|(at, _)| !used.contains(at))
        .map(|(_, entry)| entry.path)
        .collect();
    assert!(unused.is_empty(), "listed, but the same in both: {unused:?}");
}

#[test]
fn patterns_are_read_as_meant() {
    assert!(fits("/a/*", "/a/b/c") && fits("/a/*.log", "/a/x.log") && fits("/a", "/a"));
    assert!(!fits("/a/*.log", "/a/x.txt") && !fits("/a", "/a/b") && !fits("/a*a", "/a"));
    assert!(!expected().is_empty());
}

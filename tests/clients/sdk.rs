//! The Python SDK, its first and its newest generation that are in use: every operation each has.

use std::collections::BTreeMap;
use std::path::Path;

use kiln_tests::daemon::Daemon;
use kiln_tests::kiln::Kiln;
use kiln_tests::program::command;
use kiln_tests::settings;
use kiln_tests::slots;
use kiln_tests::template::{Template, tiny};

use super::{client, evaluated, path_with, run};

fn sdk(version: &str, template: &Template, to_the_end: bool) {
    let kiln = Kiln::new();
    let daemon = Daemon::start(&kiln);
    let place = client(&format!("sdk-{version}"));
    let environment: BTreeMap<String, String> =
        [("PATH".to_owned(), path_with(&place)), ("HOME".to_owned(), kiln.path().display().to_string())]
            .into();
    let set = evaluated(&daemon, &["--sdk"], &environment);
    let body = kiln.path().join("body.json");
    std::fs::write(&body, template.resource()).unwrap();
    let script = settings::repository().join("tests/clients/sdk.py");
    let mut python = command(place.join("bin/python"));
    python.arg(script).arg::<&Path>(&body).args(["from-sdk", if to_the_end { "yes" } else { "no" }]);
    python.envs(environment).envs(set);
    let _slot = slots::take();
    let (code, out, err) = run(python);
    assert_eq!(code, Some(0), "{out}\n{err}");
}

#[test]
fn version_1_4_runs_to_the_end() {
    sdk("1.4.0", &tiny().shell("make", ["true"]), true);
}

#[test]
fn version_2_0_cancels() {
    sdk("2.0.0", &tiny().shell("long", ["sleep 100000"]), false);
}

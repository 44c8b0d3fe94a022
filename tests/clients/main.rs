//! The real Azure clients against `kiln serve`, over TLS on the loopback.
//!
//! `scripts/clients` installs them; `KILN_CLIENTS` names the folder. They are connected with the commands that
//! `kiln az-setup` prints, as they are printed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by a panic")]

mod az;
mod fuzz;
mod sdk;
mod tls;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kiln_tests::daemon::Daemon;
use kiln_tests::program::{self, command, finish};
use kiln_tests::settings;

/// One call of a client, the slowest included (a run of a guest).
const CALL_LIMIT: Duration = Duration::from_secs(8 * 60);

/// The folder of one installed client.
fn client(name: &str) -> PathBuf {
    let place = settings::clients().join(name);
    assert!(place.join("wanted").is_file(), "{} is not installed: run scripts/clients", place.display());
    place
}

/// What `kiln az-setup ARGS` prints, evaluated by a shell; answers the variables it sets.
fn evaluated(
    daemon: &Daemon<'_>,
    args: &[&str],
    environment: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let printed = daemon.kiln().run([&["az-setup", "--shell"], args].concat());
    assert!(printed.status.success(), "{}", printed.stderr);
    let script = printed.text();
    let secret = std::fs::read_to_string(daemon.server_file("operator.secret")).unwrap();
    assert!(!script.contains(secret.trim()), "the secret is not printed");
    let file = daemon.kiln().path().join("setup.sh");
    // What the commands print goes to stderr: stdout is for the variables.
    std::fs::write(&file, format!("{{\n{script}\n}} >&2\nenv -0\n")).unwrap();
    let mut shell = command("sh");
    shell.arg("-e").arg(&file).envs(environment);
    let ended = finish(&mut shell, Duration::from_secs(180));
    assert!(ended.status.success(), "az-setup's commands, as printed:\n{script}\n{}", ended.stderr);
    let text = ended.text();
    let set = text.split('\0').filter_map(|line| line.split_once('='));
    let own = ["_", "PWD", "OLDPWD", "SHLVL"];
    set.filter(|(name, value)| {
        !own.contains(name)
            && environment.get(*name).is_none_or(|before| before != value)
            && settings::inherited(name).is_none_or(|before| before != *value)
    })
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

/// `PATH` with a client's programs first.
fn path_with(place: &Path) -> String {
    format!("{}:{}", place.join("bin").display(), settings::search_path())
}

/// Runs a client; answers what it printed, and its exit code.
fn run(mut client: Command) -> (Option<i32>, String, String) {
    let ended = finish(&mut client, CALL_LIMIT);
    if !ended.status.success() {
        program::say(&format!("{client:?}: {}", ended.status));
    }
    (ended.status.code(), ended.text(), ended.stderr)
}

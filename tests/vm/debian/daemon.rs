//! One case each of what a daemon's runs survive, on a grown-up system; the tiny guest has the others.

use kiln_tests::daemon_run::{MAKE, settles_its_worker, survives_its_daemon};
use kiln_tests::template::debian;

#[test]
fn a_daemon_killed_in_a_customizer() {
    survives_its_daemon(&debian().shell("short", [MAKE, "sleep 4"]), "customize/1");
}

#[test]
fn a_worker_killed_in_a_customizer() {
    settles_its_worker(&debian().shell("forever", ["while :; do sleep 1; done"]));
}

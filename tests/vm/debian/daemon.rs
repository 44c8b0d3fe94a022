//! One case of what a daemon's runs survive, on a grown-up system; the tiny guest has the others.

use kiln_tests::daemon_run::{MAKE, survives_its_daemon};
use kiln_tests::template::debian;

#[test]
fn a_daemon_killed_in_a_customizer() {
    survives_its_daemon(&debian().shell("short", [MAKE, "sleep 4"]), "customize/1");
}

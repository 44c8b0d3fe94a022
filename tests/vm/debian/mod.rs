//! What a user gets from the Debian 12 base image.

mod adopted;
mod checkpoints;
mod daemon;
mod faults;
mod generations;
mod pass_through;
mod powershell;
mod rich;

use std::path::PathBuf;
use std::sync::LazyLock;

use kiln_tests::disk::Disk;
use kiln_tests::settings::{scratch, test_data};

/// The base image's bytes in a plain file, to be looked into.
static BASE: LazyLock<Disk> =
    LazyLock::new(|| Disk::plain_copy(&base_image(), &scratch().join("debian-12.raw")));

fn base_image() -> PathBuf {
    let versions = test_data().join("library/images/debian-12");
    let mut found: Vec<PathBuf> = std::fs::read_dir(versions)
        .unwrap()
        .map(|version| version.unwrap().path().join("disk.qcow2"))
        .filter(|disk| disk.is_file())
        .collect();
    found.sort();
    found.pop().expect("debian-12 is in the library of the tests")
}

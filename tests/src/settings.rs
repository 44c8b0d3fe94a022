//! What the tests take from their surroundings. The only place that reads the environment.

use std::path::{Path, PathBuf};

/// The checkout.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

#[expect(clippy::disallowed_methods, reason = "this is the settings module")]
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The command under test: `KILN_BIN`, else the debug build.
pub fn kiln_bin() -> PathBuf {
    let path = variable("KILN_BIN").unwrap_or_else(|| repository().join("target/debug/kiln"));
    assert!(path.is_file(), "{} is not there: run scripts/test, or set KILN_BIN", path.display());
    path
}

/// The library with the base images, and room for what tests make: `KILN_TEST_DATA`,
/// else below `target`. Made by `scripts/test data`.
pub fn test_data() -> PathBuf {
    let path = variable("KILN_TEST_DATA").unwrap_or_else(|| repository().join("target/test-data"));
    assert!(
        path.join("library/images").is_dir(),
        "{} holds no library: run `scripts/test data` first",
        path.display()
    );
    path
}

/// Scratch space on the file system of the test data (images are linked, not copied).
pub fn scratch() -> PathBuf {
    let path = test_data().join("scratch");
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// A folder with a PowerShell engine, `pwsh`.
pub fn pwsh() -> Option<PathBuf> {
    variable("KILN_PWSH").filter(|folder| folder.join("pwsh").is_file())
}

/// `PATH`, for tests that put something in front of it.
pub fn search_path() -> String {
    variable("PATH").map(|path| path.display().to_string()).unwrap_or_default()
}

/// The folder with the real clients: `KILN_CLIENTS`, else beside the test data. Made by `scripts/clients`.
pub fn clients() -> PathBuf {
    variable("KILN_CLIENTS").unwrap_or_else(|| test_data().join("clients"))
}

/// The Python environment of the WinRM lab: `KILN_LAB`, else beside the test data. Made by `scripts/lab`.
pub fn lab() -> Option<PathBuf> {
    let beside = || variable("KILN_TEST_DATA").unwrap_or_else(|| repository().join("target/test-data"));
    let place = variable("KILN_LAB").unwrap_or_else(|| beside().join("lab"));
    place.join("wanted").is_file().then_some(place)
}

/// The lab on Wine: `KILN_WINE`, else beside the test data. Made by `scripts/wine-lab`.
pub fn wine() -> Option<PathBuf> {
    let beside = || variable("KILN_TEST_DATA").unwrap_or_else(|| repository().join("target/test-data"));
    let place = variable("KILN_WINE").unwrap_or_else(|| beside().join("wine-lab"));
    place.join("wanted").is_file().then_some(place)
}

/// The client of other people that judges the lab: `KILN_LAB_PEER`, else beside the lab. Made by `scripts/lab DIR peer`.
pub fn lab_peer() -> Option<PathBuf> {
    let beside = || Some(lab()?.with_file_name("lab-peer").join("debug/lab-peer"));
    variable("KILN_LAB_PEER").or_else(beside).filter(|program| program.is_file())
}

/// A variable that every child process gets.
pub fn inherited(name: &str) -> Option<String> {
    variable(name).map(|value| value.display().to_string())
}

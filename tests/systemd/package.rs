//! What `scripts/deb` makes of the program under test.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use kiln_tests::program::{command, finish, is_there, output, sha256sum};
use kiln_tests::settings::{kiln_bin, repository, scratch};
use kiln_tests::skip;

/// The package, and the one that comes after it.
pub struct Packages {
    pub first: PathBuf,
    pub second: PathBuf,
}

pub static PACKAGES: LazyLock<Packages> =
    LazyLock::new(|| Packages { first: build("first", "1"), second: build("second", "2") });

fn build(folder: &str, revision: &str) -> PathBuf {
    let folder = scratch().join("deb").join(folder);
    let mut deb = command(repository().join("scripts/deb"));
    deb.args(["--output".as_ref(), folder.as_os_str(), "--revision".as_ref(), revision.as_ref()])
        .env("KILN_BIN", kiln_bin())
        .env("KILN_DEB_COMPRESSION", "1");
    let ended = finish(&mut deb, Duration::from_secs(180));
    assert!(ended.status.success(), "{}", ended.stderr);
    ended.text().trim().into()
}

fn field(package: &Path, name: &str) -> String {
    output("dpkg-deb", ["--field".as_ref(), package.as_os_str(), name.as_ref()]).trim().to_owned()
}

#[test]
fn the_same_sources_give_the_same_bytes() {
    let again = build("again", "1");
    assert_eq!(sha256sum(&again), sha256sum(&PACKAGES.first));
    assert_ne!(sha256sum(&again), sha256sum(&PACKAGES.second));
    assert_eq!(field(&again, "Package"), "kiln");
    let newer = ["--compare-versions", &field(&PACKAGES.second, "Version"), "gt", &field(&again, "Version")];
    output("dpkg", newer);
}

#[test]
fn it_holds_what_a_package_holds() {
    let listing = output("dpkg-deb", ["--contents".as_ref(), PACKAGES.first.as_os_str()]);
    for line in listing.lines() {
        let [mode, owner, ..] = line.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{line}") };
        assert_eq!(owner, "root/root", "{line}");
        assert!(matches!(&mode[1..], "rwxr-xr-x" | "rw-r--r--"), "{line}");
    }
    for path in [
        "usr/bin/kiln",
        "usr/share/kiln/images/catalog.yaml",
        "usr/share/kiln/images/debian-12/build.sh",
        "lib/systemd/system/kiln.service",
        "usr/lib/sysusers.d/kiln.conf",
        "usr/lib/tmpfiles.d/kiln.conf",
        "etc/kiln/kiln.yaml",
        "usr/share/bash-completion/completions/kiln",
        "usr/share/zsh/vendor-completions/_kiln",
        "usr/share/fish/vendor_completions.d/kiln.fish",
        "usr/share/man/man1/kiln.1.gz",
        "usr/share/man/man1/kiln-template-put.1.gz",
        "usr/share/doc/kiln/copyright",
        "usr/share/doc/kiln/third-party.gz",
        "usr/share/doc/kiln/examples/kiln.yaml",
    ] {
        assert!(
            listing.lines().any(|line| line.ends_with(&format!(" ./{path}"))),
            "{path} is missing:\n{listing}"
        );
    }
    assert!(!listing.contains("worker"), "no page for what is hidden");
    let depends = field(&PACKAGES.first, "Depends");
    for package in ["libc6", "qemu-system-x86", "qemu-utils", "ovmf", "ca-certificates"] {
        assert!(depends.contains(package), "{depends}");
    }
}

/// Debian's own opinion; what is overridden is, with reasons, in `scripts/package/lintian-overrides`.
#[test]
fn lintian_has_nothing_to_say() {
    if !is_there("lintian") {
        skip!("lintian is not installed");
    }
    let mut lintian = command("lintian");
    lintian.args(["--allow-root", "--fail-on", "error,warning"]).arg(&PACKAGES.first);
    let ended = finish(&mut lintian, Duration::from_secs(120));
    assert!(ended.status.success(), "{}{}", ended.text(), ended.stderr);
}

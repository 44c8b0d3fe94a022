//! Programs of others: which are there, and the command that installs the rest.

use kiln_host::process::{Invocation, find_program};

use super::super::Surroundings;
use super::findings::{Findings, Verdict};

/// What recipes of base images call, beside what every Debian has: program, Debian package.
const RECIPE_PROGRAMS: [(&str, &str); 7] = [
    ("mmdebstrap", "mmdebstrap"),
    ("sgdisk", "gdisk"),
    ("mcopy", "mtools"),
    ("mkfs.vfat", "dosfstools"),
    ("mke2fs", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("zstd", "zstd"),
];

/// What comes from the same place as QEMU.
const QEMU_PACKAGES: [&str; 4] = ["qemu-system-x86", "qemu-utils", "ovmf", "seabios"];

/// Which of QEMU's two programs is not there.
pub fn qemu(around: &Surroundings<'_>, findings: &mut Findings) {
    let path = around.environment.search_path();
    for (program, package) in [("qemu-system-x86_64", "qemu-system-x86"), ("qemu-img", "qemu-utils")] {
        if find_program(program, &path).is_none() {
            findings.lacks(package);
        }
    }
}

/// Looks for the recipes' programs, and says how to install all that was found missing.
pub fn look(around: &Surroundings<'_>, findings: &mut Findings) {
    let path = around.environment.search_path();
    let mut wanted = RECIPE_PROGRAMS.to_vec();
    if !rustix::process::geteuid().is_root() {
        // Without root a recipe works in a user namespace.
        wanted.push(("newuidmap", "uidmap"));
    }
    let missing: Vec<(&str, &str)> =
        wanted.into_iter().filter(|(program, _)| find_program(program, &path).is_none()).collect();
    if missing.is_empty() {
        findings.add("recipes", Verdict::Good, "all programs to make base images from packages");
    } else {
        let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
        let text = format!("base images cannot be made from packages: no {}", programs.join(", "));
        findings.add("recipes", Verdict::Attention, text);
        missing.iter().for_each(|(_, package)| findings.lacks(package));
    }

    let packages = findings.packages();
    if packages.is_empty() || find_program("apt-get", &path).is_none() {
        return;
    }
    let utils = Invocation::new("dpkg-query")
        .args(["-W", "-f=${Version}", "qemu-utils"])
        .env("PATH", &path)
        .run_blocking()
        .map(|output| output.stdout_text())
        .unwrap_or_default();
    findings.install_with(install_command(&packages, &utils, rustix::process::geteuid().is_root()));
}

/// One line that installs `packages`.
///
/// A machine whose `qemu-utils` came from backports refuses the release's own QEMU
/// ("Breaks: qemu-system-common"): then QEMU must come from there, too.
fn install_command(packages: &[&str], qemu_utils_version: &str, root: bool) -> String {
    let apt = if root { "apt-get install -y" } else { "sudo apt-get install -y" };
    let backports = qemu_utils_version.contains("~bpo12");
    let (qemu, others): (Vec<&str>, Vec<&str>) =
        packages.iter().partition(|package| backports && QEMU_PACKAGES.contains(package));
    let mut commands = Vec::new();
    if !qemu.is_empty() {
        let firmware = if qemu.contains(&"qemu-system-x86") { " seabios" } else { "" };
        commands.push(format!("{apt} -t bookworm-backports {}{firmware}", qemu.join(" ")));
    }
    if !others.is_empty() {
        commands.push(format!("{apt} {}", others.join(" ")));
    }
    commands.join(" && ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_install_command_fits_the_machine() {
        let packages = ["gdisk", "ovmf", "qemu-system-x86"];
        assert_eq!(install_command(&packages, "", true), "apt-get install -y gdisk ovmf qemu-system-x86");
        assert_eq!(
            install_command(&packages, "1:10.0.2+ds-2~bpo12+1", false),
            "sudo apt-get install -y -t bookworm-backports ovmf qemu-system-x86 seabios && sudo apt-get install -y gdisk"
        );
        assert_eq!(install_command(&["gdisk"], "1:10.0.2+ds-2~bpo12+1", true), "apt-get install -y gdisk");
    }
}

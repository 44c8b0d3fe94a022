//! Firmware: SeaBIOS comes with QEMU; OVMF is found where distributions put it.

use std::io;
use std::path::{Path, PathBuf};

/// What a machine starts with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS, which QEMU finds itself.
    Bios,
    /// OVMF: read-only code, and variables that belong to one machine.
    Uefi { code: PathBuf, vars: PathBuf },
}

/// OVMF as installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ovmf {
    code: PathBuf,
    /// Copied for each machine, never used itself.
    vars: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    #[error(
        "no UEFI firmware (OVMF) found; install the package `ovmf` (Debian, Ubuntu, openSUSE) or `edk2-ovmf` (Fedora, Arch)"
    )]
    Missing,
    #[error("cannot copy the firmware variables {} to {}", .from.display(), .to.display())]
    Copy { from: PathBuf, to: PathBuf, source: io::Error },
}

/// Pairs of code and variables, both raw, without Secure Boot: an image must not depend on keys enrolled here. In this
/// order, because the larger 4 MiB layout is the one distributions still maintain.
const PLACES: [(&str, &str); 8] = [
    // Debian, Ubuntu
    ("usr/share/OVMF/OVMF_CODE_4M.fd", "usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("usr/share/OVMF/OVMF_CODE.fd", "usr/share/OVMF/OVMF_VARS.fd"),
    // Fedora, RHEL and their kin
    ("usr/share/edk2/ovmf/OVMF_CODE.fd", "usr/share/edk2/ovmf/OVMF_VARS.fd"),
    // Arch
    ("usr/share/edk2/x64/OVMF_CODE.4m.fd", "usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("usr/share/edk2-ovmf/x64/OVMF_CODE.fd", "usr/share/edk2-ovmf/x64/OVMF_VARS.fd"),
    ("usr/share/ovmf/x64/OVMF_CODE.fd", "usr/share/ovmf/x64/OVMF_VARS.fd"),
    // openSUSE
    ("usr/share/qemu/ovmf-x86_64-4m-code.bin", "usr/share/qemu/ovmf-x86_64-4m-vars.bin"),
    ("usr/share/qemu/ovmf-x86_64-code.bin", "usr/share/qemu/ovmf-x86_64-vars.bin"),
];

impl Ovmf {
    pub fn find() -> Result<Self, FirmwareError> {
        Self::find_under(Path::new("/"))
    }

    fn find_under(root: &Path) -> Result<Self, FirmwareError> {
        PLACES
            .iter()
            .map(|(code, vars)| Self { code: root.join(code), vars: root.join(vars) })
            .find(|ovmf| ovmf.code.is_file() && ovmf.vars.is_file())
            .ok_or(FirmwareError::Missing)
    }

    pub fn code(&self) -> &Path {
        &self.code
    }

    /// Gives one machine variables of its own, fresh from the package, at `vars`.
    pub fn for_machine(&self, vars: impl AsRef<Path>) -> Result<Firmware, FirmwareError> {
        let vars = vars.as_ref();
        // Read and write rather than copy: the package's file is read-only, and so would be its copy.
        std::fs::read(&self.vars)
            .and_then(|fresh| std::fs::write(vars, fresh))
            .map_err(|source| FirmwareError::Copy { from: self.vars.clone(), to: vars.to_owned(), source })?;
        Ok(Firmware::Uefi { code: self.code.clone(), vars: vars.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_found_and_the_earlier_one_wins() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(Ovmf::find_under(root.path()), Err(FirmwareError::Missing)));
        for (code, vars) in PLACES.iter().rev() {
            let (code, vars) = (root.path().join(code), root.path().join(vars));
            std::fs::create_dir_all(code.parent().unwrap()).unwrap();
            std::fs::write(&code, "code").unwrap();
            // Half a pair is none.
            assert!(
                Ovmf::find_under(root.path()).is_err()
                    || Ovmf::find_under(root.path()).unwrap().code() != code
            );
            std::fs::write(&vars, "fresh").unwrap();
            assert_eq!(Ovmf::find_under(root.path()).unwrap().code(), code);
        }
    }

    #[test]
    fn each_machine_gets_writable_variables_of_its_own() {
        use std::os::unix::fs::PermissionsExt as _;
        let root = tempfile::tempdir().unwrap();
        let (code, vars) = (root.path().join("code"), root.path().join("vars"));
        std::fs::write(&vars, "fresh").unwrap();
        std::fs::set_permissions(&vars, std::fs::Permissions::from_mode(0o444)).unwrap();
        let own = root.path().join("own");
        std::fs::write(&own, "of an earlier machine").unwrap();
        let firmware = Ovmf { code: code.clone(), vars }.for_machine(&own).unwrap();
        assert_eq!(firmware, Firmware::Uefi { code, vars: own.clone() });
        assert_eq!(std::fs::read(&own).unwrap(), b"fresh");
        assert_ne!(own.metadata().unwrap().permissions().mode() & 0o200, 0);
    }
}

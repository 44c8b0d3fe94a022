//! Firmware: SeaBIOS comes with QEMU; OVMF is found where distributions put it.

use std::io;
use std::path::{Path, PathBuf};

/// What a machine starts with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS, which QEMU finds itself.
    Bios,
    /// OVMF: read-only code, and variables that belong to one machine.
    Uefi {
        code: PathBuf,
        vars: PathBuf,
        /// It starts only what Microsoft has signed; the chipset guards its variables.
        secure_boot: bool,
    },
}

/// OVMF as installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ovmf {
    code: PathBuf,
    /// Copied for each machine, never used itself.
    vars: PathBuf,
    secure_boot: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    #[error(
        "no UEFI firmware (OVMF) found; install the package `ovmf` (Debian, Ubuntu, openSUSE) or `edk2-ovmf` (Fedora, Arch)"
    )]
    Missing,
    #[error(
        "no UEFI firmware with Secure Boot and Microsoft's keys found; install the package `ovmf` (Debian, Ubuntu) or \
         `edk2-ovmf` (Fedora)"
    )]
    MissingSecure,
    #[error("cannot copy the firmware variables {} to {}", .from.display(), .to.display())]
    Copy { from: PathBuf, to: PathBuf, source: io::Error },
}

/// Pairs of code and variables, both raw, without Secure Boot: a Linux image must not depend on keys enrolled here. In this
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

/// The same with Secure Boot on, and Microsoft's keys enrolled.
const SECURE_PLACES: [(&str, &str); 4] = [
    // Debian, Ubuntu
    ("usr/share/OVMF/OVMF_CODE_4M.ms.fd", "usr/share/OVMF/OVMF_VARS_4M.ms.fd"),
    ("usr/share/OVMF/OVMF_CODE.ms.fd", "usr/share/OVMF/OVMF_VARS.ms.fd"),
    // Fedora, RHEL and their kin
    ("usr/share/edk2/ovmf/OVMF_CODE.secboot.fd", "usr/share/edk2/ovmf/OVMF_VARS.secboot.fd"),
    // openSUSE
    ("usr/share/qemu/ovmf-x86_64-smm-ms-code.bin", "usr/share/qemu/ovmf-x86_64-smm-ms-vars.bin"),
];

impl Ovmf {
    /// For guests that any firmware starts.
    pub fn find() -> Result<Self, FirmwareError> {
        Self::find_under(Path::new("/"), &PLACES, false).ok_or(FirmwareError::Missing)
    }

    /// For guests that want Secure Boot.
    pub fn find_secure() -> Result<Self, FirmwareError> {
        Self::find_under(Path::new("/"), &SECURE_PLACES, true).ok_or(FirmwareError::MissingSecure)
    }

    fn find_under(root: &Path, places: &[(&str, &str)], secure_boot: bool) -> Option<Self> {
        places
            .iter()
            .map(|(code, vars)| Self { code: root.join(code), vars: root.join(vars), secure_boot })
            .find(|ovmf| ovmf.code.is_file() && ovmf.vars.is_file())
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
        Ok(Firmware::Uefi { code: self.code.clone(), vars: vars.to_owned(), secure_boot: self.secure_boot })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_found_and_the_earlier_one_wins() {
        for (places, secure) in [(&PLACES[..], false), (&SECURE_PLACES[..], true)] {
            let root = tempfile::tempdir().unwrap();
            let find = || Ovmf::find_under(root.path(), places, secure);
            assert_eq!(find(), None);
            for (code, vars) in places.iter().rev() {
                let (code, vars) = (root.path().join(code), root.path().join(vars));
                std::fs::create_dir_all(code.parent().unwrap()).unwrap();
                std::fs::write(&code, "code").unwrap();
                // Half a pair is none.
                assert!(find().is_none_or(|found| found.code() != code));
                std::fs::write(&vars, "fresh").unwrap();
                let found = find().unwrap();
                assert_eq!(found.code(), code);
                assert_eq!(found.secure_boot, secure);
            }
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
        let ovmf = Ovmf { code: code.clone(), vars, secure_boot: true };
        let firmware = ovmf.for_machine(&own).unwrap();
        assert_eq!(firmware, Firmware::Uefi { code, vars: own.clone(), secure_boot: true });
        assert_eq!(std::fs::read(&own).unwrap(), b"fresh");
        assert_ne!(own.metadata().unwrap().permissions().mode() & 0o200, 0);
    }
}

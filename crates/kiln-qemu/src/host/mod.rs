//! The host's QEMU: where it is, what it can do, and what it runs guests with.
//!
//! Features are asked for, never concluded from a version: Debian 12's own 7.2 and what backports bring must both do.

mod accelerator;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use kiln_host::process::{Invocation, ProcessError, find_program};

pub use accelerator::{Accelerator, probe_accelerator};

use crate::argv::SANDBOX;
use crate::qemu_img::QemuImg;

/// Names by which QEMU for x86 goes; Red Hat and its kin keep theirs out of `PATH`.
const SYSTEM_NAMES: [&str; 3] = ["qemu-system-x86_64", "qemu-kvm", "/usr/libexec/qemu-kvm"];

/// QEMU as installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qemu {
    system: PathBuf,
    img: QemuImg,
    version: String,
    features: Features,
}

/// What this QEMU can do beyond what every QEMU can that Kiln accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Built with seccomp: system calls QEMU does not need can be denied to it.
    pub sandbox: bool,
    /// Has the device by which a guest tells of its panic.
    pub pvpanic: bool,
    /// Has the device by which a guest notices that it is another machine now.
    pub vmgenid: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("{program} is not installed; install the package {package}")]
    NotInstalled { program: &'static str, package: &'static str },
    #[error("cannot ask {} what it is", .program.display())]
    Ask { program: PathBuf, source: ProcessError },
}

impl Qemu {
    /// Finds qemu-system-x86_64 and qemu-img in `search_path` (the form of `PATH`) and asks for version and features.
    /// Takes about a tenth of a second.
    pub fn find(search_path: &OsStr) -> Result<Self, HostError> {
        let system = SYSTEM_NAMES.iter().find_map(|name| find_program(name, search_path));
        let system = system.ok_or(HostError::NotInstalled {
            program: "qemu-system-x86_64",
            package: "qemu-system-x86 (Debian, Ubuntu) or qemu-kvm (Fedora, RHEL)",
        })?;
        let img = QemuImg::find(search_path).ok_or(HostError::NotInstalled {
            program: "qemu-img",
            package: "qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL)",
        })?;
        let ask = |source| HostError::Ask { program: system.clone(), source };
        let said = Invocation::new(&system).arg("--version").run_blocking().map_err(ask)?.stdout_text();
        let first = said.lines().next().unwrap_or_default();
        let version = first.strip_prefix("QEMU emulator version ").unwrap_or(first).to_owned();
        // Listing the devices inside the sandbox answers both questions.
        let list = Invocation::new(&system).args(["-machine", "none", "-device", "help"]);
        let (sandbox, devices) = match list.clone().args(["-sandbox", SANDBOX]).run_blocking() {
            Ok(output) => (true, output),
            Err(_) => (false, list.run_blocking().map_err(ask)?),
        };
        let listed = devices.stdout_text();
        let has = |device: &str| listed.lines().any(|line| line.starts_with(&format!("name \"{device}\"")));
        let features = Features { sandbox, pvpanic: has("pvpanic"), vmgenid: has("vmgenid") };
        Ok(Self { system, img, version, features })
    }

    /// qemu-system-x86_64, by whatever name.
    pub fn system(&self) -> &Path {
        &self.system
    }

    pub fn img(&self) -> &QemuImg {
        &self.img
    }

    /// As QEMU says it, with the distribution's own number: `10.0.2 (Debian 1:10.0.2+ds-2)`.
    pub fn version(&self) -> &str {
        &self.version
    }

    pub fn features(&self) -> &Features {
        &self.features
    }
}

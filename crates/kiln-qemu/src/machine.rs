//! The hardware, as plain data. What is written here is what [`crate::argv`] says to QEMU, and nothing else is.

use std::path::PathBuf;
use std::time::Duration;

use crate::disk::Overlay;
use crate::firmware::Firmware;
use crate::host::Accelerator;

/// How long a guest that ran out of disk room waits for room, unless told otherwise.
pub const DISK_FULL_WAIT: Duration = Duration::from_secs(10 * 60);

/// One virtual machine. Not `Clone`: it owns its disks.
#[derive(Debug)]
pub struct Machine {
    /// Shown in process lists; no meaning to the guest.
    pub name: String,
    pub accelerator: Accelerator,
    pub cpus: u32,
    pub memory_mib: u64,
    /// BIOS makes a `pc` (Azure generation 1), UEFI a `q35` (generation 2).
    pub firmware: Firmware,
    /// The disk of the operating system first, then data disks. A guest started by [`DirectBoot`] may have none.
    pub disks: Vec<Overlay>,
    /// Read-only, after the disks: a Linux guest sees them as the next `/dev/vdX`.
    pub media: Vec<Medium>,
    pub network: Network,
    /// cloud-init reads `ds=nocloud` from here, so that the image's own list of datasources can stay as it is.
    pub smbios_serial: Option<String>,
    /// What the guest says on its first serial port is appended here.
    pub serial_log: PathBuf,
    /// What QEMU itself says; appended.
    pub qemu_log: PathBuf,
    /// For the control socket: on this host, and short, for a socket's path has room for 107 bytes. Made (mode 0700)
    /// where it is missing.
    pub runtime_dir: PathBuf,
    /// Starts a kernel without a boot loader.
    pub kernel: Option<DirectBoot>,
    /// How long a guest that ran out of disk room stays paused before its run fails.
    pub disk_full_wait: Duration,
}

/// A raw image that the guest can only read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Medium {
    pub path: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// QEMU's own address translation: the guest reaches what the host reaches, and nobody reaches the guest but by
    /// the forwarded port.
    User {
        /// Forwards a free port of 127.0.0.1 to the guest's port 22; see [`crate::vm::Vm::ssh_addr`].
        forward_ssh: bool,
    },
    None,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectBoot {
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub append: String,
}

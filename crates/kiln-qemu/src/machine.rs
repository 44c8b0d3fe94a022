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
    /// BIOS makes a `pc` of a [`Hardware::Paravirtual`] machine (Azure generation 1), UEFI a `q35` (generation 2).
    pub firmware: Firmware,
    pub hardware: Hardware,
    /// The disk of the operating system first, then data disks. A guest started by [`DirectBoot`] may have none.
    pub disks: Vec<Overlay>,
    /// What lies in the machine's one removable drive when it starts: an ISO 9660 volume. The drive is there in any case,
    /// and is read-only; see [`crate::vm::Vm::insert_medium`].
    pub medium: Option<PathBuf>,
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
    /// The memory of an earlier machine, kept by [`crate::vm::Vm::freeze`]: this one goes on where that one was stopped.
    /// It has overlays on that one's disks, an empty drive, and is otherwise the same.
    pub incoming: Option<PathBuf>,
    /// How long a guest that ran out of disk room stays paused before its run fails.
    pub disk_full_wait: Duration,
}

/// Which devices the guest finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hardware {
    /// virtio, for which every Linux has drivers; its drive is on virtio-scsi.
    Paravirtual,
    /// What Windows expects of a machine: `q35` whatever the firmware, Hyper-V's enlightenments, a local clock, a
    /// screen (of which a picture is taken when nobody answers), a tablet for it, its drive on AHCI.
    Windows {
        drivers: Drivers,
        /// A TPM 2.0, emulated by swtpm, which is started with the machine. Windows 11 starts on no other.
        tpm: Option<Tpm>,
    },
}

/// Which of its drivers a Windows starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drivers {
    /// Those that come with Windows: AHCI and an e1000e.
    Inbox,
    /// virtio's, in an image that has them.
    Virtio,
}

/// An emulated TPM's places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tpm {
    /// swtpm as found by [`crate::tpm::find`].
    pub program: PathBuf,
    /// Where it keeps its state: absolute, and of this machine alone.
    pub state: PathBuf,
    /// What it says; appended.
    pub log: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// QEMU's own address translation: the guest reaches what the host reaches, and nobody reaches the guest but by
    /// the forwarded port.
    User {
        /// Each of these ports of the guest is reached by a free port of 127.0.0.1; see
        /// [`crate::vm::Vm::forwarded`].
        forward: Vec<u16>,
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

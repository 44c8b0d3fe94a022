//! What a disk says about the Windows on it, without starting it: read-only, without root, without a mount.
//!
//! ```text
//!   export      qemu-nbd --read-only as a child, any format and chain ──► bytes of the disk
//!   partitions  GPT or MBR                                            ──► where volumes lie
//!   ntfs        boot sector, file table, folders, files               ──► \Windows\System32\config\SOFTWARE, SYSTEM
//!   hive        keys and values                                       ──► ImageState, drivers, traces
//!   judge       what they mean                                        ──► OfflineWindows
//! ```
//!
//! Who owns what: [`windows`] and [`traces`] start one child each and end it; nothing of the disk is kept. The disk must
//! not be in use by a machine: QEMU's own lock refuses that.
//!
//! How it fails: [`OfflineError`]. A disk without a Windows is an error of its own ([`OfflineError::NoWindows`]). Every
//! byte is a guest's: what makes no sense is an error, never a panic and never an endless loop.
//!
//! What was proven: against volumes made by ntfs-3g's tools and hives made by hivex. No disk of a real Windows was read.

mod export;
mod hive;
mod judge;
mod nbd;
mod ntfs;
mod partitions;
mod record;
mod source;

use std::io;
use std::path::{Path, PathBuf};

use kiln_host::process::ProcessError;
use kiln_host::wait::{Control, Interrupted};

use crate::disk::DiskFormat;
use crate::qemu_img::QemuImg;
use export::with_disk;
use judge::Found;

pub use source::Fault;

/// What a disk says about the Windows on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OfflineWindows {
    /// `HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion\Setup\State\ImageState`, such as
    /// `IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE` after Sysprep.
    pub image_state: Option<String>,
    /// How often Sysprep may still rearm it; `None` where the hives do not tell.
    ///
    /// Known: Windows counts in the store of its software protection platform (`System32\spp\store`), which it encrypts,
    /// and shows the count only while it runs (`slmgr /dlv`; WMI `SoftwareLicensingService`,
    /// `RemainingWindowsReArmCount`). Not known: any value of a hive that holds it. So this is `None` for every Windows
    /// there is a description of, and whoever needs the number asks the running guest. What the hives do tell is
    /// [`OfflineWindows::skip_rearm`].
    pub rearms_left: Option<u32>,
    /// Sysprep is told not to rearm, and so needs none left: `SkipRearm` of
    /// `HKLM\SOFTWARE\Microsoft\Windows NT\CurrentVersion\SoftwareProtectionPlatform` is 1.
    pub skip_rearm: bool,
    /// The NTFS volume was not shut down cleanly: its log (`$LogFile`) is still open, as after a power cut and with fast
    /// startup, or it is marked for a check (dirty flag of `$Volume`).
    pub dirty: bool,
    /// Hives whose log files hold changes that are not in them yet (their sequence numbers differ): what is said here of
    /// them was true once. Expected to be empty after a
    /// clean shutdown.
    pub pending: Vec<HiveName>,
    /// viostor or vioscsi are boot-start (`Start` = 0, not overridden) and netkvm is installed: the machine may be
    /// virtio.
    pub virtio: bool,
    /// storahci (or msahci) is boot-start: the machine may have AHCI.
    pub ahci: bool,
    /// `ProductName`. Windows 11 calls itself Windows 10 there; the build tells.
    pub name: Option<String>,
    /// `CurrentBuildNumber`, and `UBR` after a dot where there is one: `20348.2582`.
    pub build: Option<String>,
}

/// The hives of `\Windows\System32\config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HiveName {
    /// Of the account `LocalSystem` (`HKU\.DEFAULT`).
    Default,
    Sam,
    Security,
    Software,
    System,
}

impl HiveName {
    /// As the file is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "DEFAULT",
            Self::Sam => "SAM",
            Self::Security => "SECURITY",
            Self::Software => "SOFTWARE",
            Self::System => "SYSTEM",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::Default => "the hive DEFAULT",
            Self::Sam => "the hive SAM",
            Self::Security => "the hive SECURITY",
            Self::Software => "the hive SOFTWARE",
            Self::System => "the hive SYSTEM",
        }
    }
}

/// Something that may be on a disk and should not. Names are compared as Windows compares them, without case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trace {
    /// A file or a folder of the system's volume: `\Windows\Panther\unattend.xml`, without a drive letter.
    File { path: String },
    /// A key, below its hive's own: `Domains\Account\Users\Names\somebody` of SAM's `SAM`. In SYSTEM,
    /// `CurrentControlSet` at the beginning stands for the set of the next start.
    Key { hive: HiveName, path: String },
    /// A value of a key; the default value has an empty name.
    Value { hive: HiveName, path: String, name: String },
}

impl Trace {
    fn hive(&self) -> Option<HiveName> {
        match self {
            Self::File { .. } => None,
            Self::Key { hive, .. } | Self::Value { hive, .. } => Some(*hive),
        }
    }
}

/// Why nothing is known about the Windows of a disk.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    #[error("cannot open the disk {}", .disk.display())]
    Open { disk: PathBuf, source: io::Error },
    #[error("cannot start what reads the disk")]
    Start(#[from] ProcessError),
    /// QEMU does not read it: another format, broken, in use; or it broke off.
    #[error("qemu-nbd does not serve the disk {}: {how}", .disk.display())]
    Serve { disk: PathBuf, how: String },
    #[error("cannot judge the contents of the disk {}", .disk.display())]
    Read { disk: PathBuf, source: Fault },
    #[error("the disk {} has no NTFS volume with \\Windows\\System32\\config\\SOFTWARE", .disk.display())]
    NoWindows { disk: PathBuf },
    #[error("the disk {} is encrypted with BitLocker; turn that off in Windows first", .disk.display())]
    BitLocker { disk: PathBuf },
    /// Something on our side broke: a temporary folder, a thread.
    #[error("cannot go on reading the disk {}", .disk.display())]
    Lost { disk: PathBuf, source: io::Error },
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// What a disk says about its Windows. Any format QEMU reads, with whatever lies below it: the caller vouches that an
/// image of others is whole ([`crate::disk::BaseImage::open`] looks).
///
/// The first volume that has a Windows counts. Needs `qemu-nbd`, which comes with qemu-img.
pub async fn windows(
    img: &QemuImg,
    disk: &Path,
    format: DiskFormat,
    control: &Control,
) -> Result<OfflineWindows, OfflineError> {
    found(disk, with_disk(img, disk, format, control, judge::windows).await?)
}

/// Which of the wanted traces are on the disk, in their order. All others are not.
///
/// A hive with changes pending in its log is an error: what it does not show may be in there.
pub async fn traces(
    img: &QemuImg,
    disk: &Path,
    format: DiskFormat,
    wanted: &[Trace],
    control: &Control,
) -> Result<Vec<Trace>, OfflineError> {
    let wanted = wanted.to_vec();
    found(disk, with_disk(img, disk, format, control, move |bytes| judge::traces(bytes, &wanted)).await?)
}

fn found<T>(disk: &Path, found: Found<T>) -> Result<T, OfflineError> {
    match found {
        Found::Windows(said) => Ok(said),
        Found::Nothing => Err(OfflineError::NoWindows { disk: disk.to_owned() }),
        Found::BitLocker => Err(OfflineError::BitLocker { disk: disk.to_owned() }),
    }
}

#[cfg(test)]
mod tests;

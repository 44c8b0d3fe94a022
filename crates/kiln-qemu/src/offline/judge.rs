//! What a disk's Windows says of itself: the judgement on top of partitions, volumes and hives. Blocking, pure reading.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::hive::{self, Hive};
use super::ntfs::{Kind, Volume};
use super::partitions::partitions;
use super::record::Stream;
use super::source::{Fault, Part, ReadAt, same_name};
use super::{HiveName, OfflineWindows, Trace};

const CONFIG: &str = r"\Windows\System32\config";
const STATE: &str = r"Microsoft\Windows\CurrentVersion\Setup\State";
const VERSION: &str = r"Microsoft\Windows NT\CurrentVersion";
const LICENSING: &str = r"Microsoft\Windows NT\CurrentVersion\SoftwareProtectionPlatform";
/// Link in a running system, absent in a hive: it stands for one of the numbered sets.
const CURRENT: &str = "CurrentControlSet";

/// What was looked for on a disk.
#[derive(Debug, PartialEq)]
pub(super) enum Found<T> {
    Windows(T),
    Nothing,
    /// No Windows in clear, and a volume that could hold one.
    BitLocker,
}

/// Finds the first volume with a Windows and lets `judge` look at it.
///
/// A damaged volume beside it (a recovery partition) does not matter; without a Windows the damage is the answer.
fn with_system<T>(
    disk: &dyn ReadAt,
    judge: impl Fn(&Volume<'_>) -> Result<T, Fault>,
) -> Result<Found<T>, Fault> {
    let (mut damage, mut encrypted) = (None, false);
    for extent in partitions(disk)? {
        let part = Part { whole: disk, start: extent.start, length: extent.length };
        let opened = match Kind::of(&part)? {
            Kind::Ntfs => Volume::open(&part),
            Kind::BitLocker => {
                encrypted = true;
                continue;
            }
            Kind::Other => continue,
        };
        let has_windows = |volume: &Volume<'_>| volume.exists(&HiveName::Software.path());
        match opened.and_then(|volume| Ok((has_windows(&volume)?, volume))) {
            Ok((true, volume)) => return judge(&volume).map(Found::Windows),
            Ok((false, _)) => {}
            Err(fault) => damage = damage.or(Some(fault)),
        }
    }
    match damage {
        Some(fault) => Err(fault),
        None if encrypted => Ok(Found::BitLocker),
        None => Ok(Found::Nothing),
    }
}

pub(super) fn windows(disk: &dyn ReadAt) -> Result<Found<OfflineWindows>, Fault> {
    with_system(disk, |volume| {
        let mut said = OfflineWindows { dirty: volume.is_dirty()?, ..OfflineWindows::default() };
        let mut look = |name: HiveName, read: &mut dyn FnMut(&Hive<'_>) -> Result<(), Fault>| {
            let Some(file) = volume.file(&name.path())? else { return Ok(()) };
            let mut judging = || {
                let hive = Hive::open(&file)?;
                if hive.pending {
                    said.pending.push(name);
                }
                read(&hive)
            };
            judging().map_err(|fault| of_hive(name, fault))
        };
        let (mut software, mut system) = (Software::default(), System::default());
        look(HiveName::Software, &mut |hive| {
            software = Software::read(hive)?;
            Ok(())
        })?;
        look(HiveName::System, &mut |hive| {
            system = System::read(hive)?;
            Ok(())
        })?;
        Ok(OfflineWindows {
            image_state: software.image_state,
            rearms_left: None,
            skip_rearm: software.skip_rearm,
            virtio: system.virtio_disk && system.virtio_network,
            ahci: system.ahci,
            name: software.name,
            build: software.build,
            ..said
        })
    })
}

#[derive(Default)]
struct Software {
    image_state: Option<String>,
    skip_rearm: bool,
    name: Option<String>,
    build: Option<String>,
}

impl Software {
    fn read(hive: &Hive<'_>) -> Result<Self, Fault> {
        let text = |path: &str, name: &str| -> Result<Option<String>, Fault> {
            Ok(hive.value(path, name)?.and_then(|value| value.text()))
        };
        let number = |path: &str, name: &str| -> Result<Option<u32>, Fault> {
            Ok(hive.value(path, name)?.and_then(|value| value.number()))
        };
        let build = match text(VERSION, "CurrentBuildNumber")? {
            Some(build) => Some(build),
            None => text(VERSION, "CurrentBuild")?,
        };
        // The number of the last cumulative update; older systems have none.
        let revision = number(VERSION, "UBR")?;
        Ok(Self {
            image_state: text(STATE, "ImageState")?,
            skip_rearm: number(LICENSING, "SkipRearm")? == Some(1),
            name: text(VERSION, "ProductName")?,
            build: build.map(|build| match revision {
                Some(revision) => format!("{build}.{revision}"),
                None => build,
            }),
        })
    }
}

#[derive(Default)]
struct System {
    virtio_disk: bool,
    virtio_network: bool,
    ahci: bool,
}

impl System {
    fn read(hive: &Hive<'_>) -> Result<Self, Fault> {
        let services = format!(r"{}\Services", control_set(hive)?);
        let boots = |name: &str| boots(hive, &format!(r"{services}\{name}"));
        Ok(Self {
            virtio_disk: boots("viostor")? || boots("vioscsi")?,
            virtio_network: hive.key(&format!(r"{services}\netkvm"))?.is_some(),
            ahci: boots("storahci")? || boots("msahci")?,
        })
    }
}

/// Whether a driver is loaded by the boot loader: `Start` is 0 (`SERVICE_BOOT_START`), and no value of `StartOverride`,
/// by hardware profile, says otherwise. Windows writes such an override of 3 where the disk it was installed on did not
/// need the driver, and resets it itself when it finds the hardware, which is too late for the disk it starts from.
fn boots(hive: &Hive<'_>, service: &str) -> Result<bool, Fault> {
    let start = hive.value(service, "Start")?.and_then(|value| value.number());
    let over = hive.value(&format!(r"{service}\StartOverride"), "0")?.and_then(|value| value.number());
    Ok(start == Some(0) && over.is_none_or(|over| over == 0))
}

/// The control set of the next start.
fn control_set(hive: &Hive<'_>) -> Result<String, Fault> {
    for name in ["Default", "Current"] {
        if let Some(number) = hive.value("Select", name)?.and_then(|value| value.number()) {
            return Ok(format!("ControlSet{number:03}"));
        }
    }
    Ok("ControlSet001".into())
}

/// Says which hive is damaged.
fn of_hive(name: HiveName, fault: Fault) -> Fault {
    match fault {
        Fault::Damaged { what: hive::WHAT, how } => Fault::Damaged { what: name.what(), how },
        fault => fault,
    }
}

pub(super) fn traces(disk: &dyn ReadAt, wanted: &[Trace]) -> Result<Found<Vec<Trace>>, Fault> {
    with_system(disk, |volume| {
        let mut files: BTreeMap<HiveName, Option<Stream<'_>>> = BTreeMap::new();
        for name in wanted.iter().filter_map(Trace::hive) {
            if let Entry::Vacant(vacant) = files.entry(name) {
                vacant.insert(volume.file(&name.path())?);
            }
        }
        let mut found = Vec::new();
        for trace in wanted {
            let looking = match trace {
                Trace::File { path } => volume.exists(path),
                Trace::Key { hive, path } => in_hive(&files, *hive, path, None),
                Trace::Value { hive, path, name } => in_hive(&files, *hive, path, Some(name)),
            };
            let is_there = match trace.hive() {
                Some(name) => looking.map_err(|fault| of_hive(name, fault))?,
                None => looking?,
            };
            if is_there {
                found.push(trace.clone());
            }
        }
        Ok(found)
    })
}

/// Whether a hive has a key, or a value of it.
fn in_hive(
    files: &BTreeMap<HiveName, Option<Stream<'_>>>,
    name: HiveName,
    path: &str,
    value: Option<&str>,
) -> Result<bool, Fault> {
    let Some(hive) = open(files, name)? else { return Ok(false) };
    let path = real_path(&hive, name, path)?;
    match value {
        Some(value) => hive.has_value(&path, value),
        None => Ok(hive.key(&path)?.is_some()),
    }
}

fn open<'f>(
    files: &'f BTreeMap<HiveName, Option<Stream<'_>>>,
    name: HiveName,
) -> Result<Option<Hive<'f>>, Fault> {
    let file = files.get(&name).and_then(Option::as_ref);
    let hive = file.map(|file| Hive::open(file)).transpose()?;
    match hive {
        // "Not there" would be a guess: the change that matters may be in the log.
        Some(hive) if hive.pending => Err(Fault::Unsupported {
            what: name.what(),
            how: "its log files hold changes that are not in it; was Windows shut down cleanly?",
        }),
        hive => Ok(hive),
    }
}

fn real_path(hive: &Hive<'_>, name: HiveName, path: &str) -> Result<String, Fault> {
    let (first, rest) = path.split_once('\\').unwrap_or((path, ""));
    if name != HiveName::System || !same_name(first, CURRENT) {
        return Ok(path.to_owned());
    }
    Ok(format!(r"{}\{rest}", control_set(hive)?))
}

impl HiveName {
    fn path(self) -> String {
        format!(r"{CONFIG}\{}", self.name())
    }
}

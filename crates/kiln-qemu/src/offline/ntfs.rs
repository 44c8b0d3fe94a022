//! Just enough of NTFS to find a file by its path and read it. The format is not documented by its maker; this follows
//! the Linux-NTFS project's documentation and what ntfs-3g's tools write.
//!
//! ```text
//!   boot sector ──► $MFT's own record ──► record 5, the root ──► $I30 (names) ──► record of a file ──► $DATA
//! ```
//!
//! A library of the kind was looked at (`ntfs` 0.4 of 2023, unchanged since): it would bring old versions of macro crates
//! for what are a few hundred lines with limits of their own.
//!
//! How it fails: what is looked at is checked, the rest is not. Directories are walked with every block visited at most
//! once, lists have limits: no volume makes it run for ever.

use std::collections::HashSet;

use super::record::{Attribute, NUMBER, Record, Stream, WHAT, bad, fixed_up};
use super::source::{Fault, ReadAt, bytes_at, same_name, u16_at, u32_at, u64_at, utf16};

const ATTRIBUTE_LIST: u32 = 0x20;
const VOLUME_INFORMATION: u32 = 0x70;
const DATA: u32 = 0x80;
const INDEX_ROOT: u32 = 0x90;
const INDEX_ALLOCATION: u32 = 0xa0;
/// The index of file names.
const NAMES: &str = "$I30";
const MFT: u64 = 0;
const LOG: u64 = 2;
const VOLUME: u64 = 3;
const ROOT: u64 = 5;
const DIRTY: u16 = 1;
/// The end of the list of a log's users.
const NOBODY: u16 = u16::MAX;
const CLEAN: u16 = 2;
/// NTFS itself allows no longer list.
const LIST_LIMIT: u64 = 256 << 10;
/// Blocks of one directory: four million names or so.
const BLOCKS_LIMIT: usize = 1 << 16;

/// What a volume's first sector says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ntfs,
    /// Encrypted as a whole.
    BitLocker,
    Other,
}

impl Kind {
    pub fn of(volume: &dyn ReadAt) -> Result<Self, Fault> {
        if volume.size() < 512 {
            return Ok(Self::Other);
        }
        Ok(match volume.read_vec(3, 8)?.as_slice() {
            b"NTFS    " => Self::Ntfs,
            b"-FVE-FS-" => Self::BitLocker,
            _ => Self::Other,
        })
    }
}

/// A volume whose boot sector and file table make sense.
pub(super) struct Volume<'d> {
    volume: &'d dyn ReadAt,
    /// Bytes of a cluster.
    cluster: u64,
    /// Bytes of a file record.
    record: usize,
    table: Stream<'d>,
}

impl<'d> Volume<'d> {
    pub fn open(volume: &'d dyn ReadAt) -> Result<Self, Fault> {
        let boot = volume.read_vec(0, 512)?;
        let cut = || bad("its first sector is cut off");
        let sector = u64::from(u16_at(&boot, 11).ok_or_else(cut)?);
        // Above 128 it is a power of two, negated.
        let sectors = match boot[13] {
            count @ 1..=128 => u64::from(count),
            power => 1_u64.checked_shl(256 - u32::from(power)).filter(|_| power != 0).unwrap_or(0),
        };
        let cluster = sector.saturating_mul(sectors);
        if !sector.is_power_of_two() || !cluster.is_power_of_two() || !(512..=2 << 20).contains(&cluster) {
            return Err(bad("clusters of an absurd size"));
        }
        let record = match i8::from_le_bytes([boot[64]]) {
            clusters @ 1.. => cluster.saturating_mul(clusters.unsigned_abs().into()),
            power => 1_u64.checked_shl(power.unsigned_abs().into()).unwrap_or(0),
        };
        if !record.is_power_of_two() || !(512..=64 << 10).contains(&record) {
            return Err(bad("file records of an absurd size"));
        }
        let record = usize::try_from(record).map_err(|_| cut())?;
        let start = u64_at(&boot, 48).and_then(|at| at.checked_mul(cluster)).ok_or_else(cut)?;
        let own = Record::parse(volume.read_vec(start, record)?)?;
        let parts = matching(own.attributes()?, DATA, "");
        let table = Stream::of(volume, cluster, parts)?.ok_or_else(|| bad("no table of files"))?;
        let mut opened = Self { volume, cluster, record, table };
        // The first part of a fragmented table holds the records that tell where the others are.
        opened.table = opened.attribute(MFT, DATA, "")?.ok_or_else(|| bad("no table of files"))?;
        Ok(opened)
    }

    /// Whether the volume was in use when its machine stopped: its log is open, or it is marked for a check
    /// (`$VOLUME_INFORMATION`, flag 1).
    pub fn is_dirty(&self) -> Result<bool, Fault> {
        Ok(self.is_marked()? || !self.log_is_closed()?)
    }

    /// NTFS notes in its log's restart area that it is in use, and that it has left in order: nobody uses the log, or
    /// the volume is called clean. The mark of [`Volume::is_marked`] says less: Windows sets it where it finds damage. A
    /// log that makes no sense is not closed.
    fn log_is_closed(&self) -> Result<bool, Fault> {
        let log = self.attribute(LOG, DATA, "")?.ok_or_else(|| bad("no log"))?;
        let head = log.read_vec(0, 32)?;
        // Never used since it was made or emptied.
        if head.starts_with(&[0xff; 4]) {
            return Ok(true);
        }
        let Some(length @ 512..=0x1_0000) = u32_at(&head, 16) else { return Ok(false) };
        let length = usize::try_from(length).map_err(|_| bad("no log"))?;
        // Two pages, written in turn.
        let first = restart(log.read_vec(0, length)?);
        let second = restart(log.read_vec(u64::try_from(length).unwrap_or(u64::MAX), length)?);
        let newest = match (first, second) {
            (Some(first), Some(second)) if second.0 > first.0 => Some(second),
            (first, second) => first.or(second),
        };
        Ok(newest.is_some_and(|(_, closed)| closed))
    }

    fn is_marked(&self) -> Result<bool, Fault> {
        let missing = || bad("it does not tell its state");
        let information = self.attribute(VOLUME, VOLUME_INFORMATION, "")?.ok_or_else(missing)?;
        let information = information.read_all(512)?;
        Ok(u16_at(&information, 10).ok_or_else(missing)? & DIRTY != 0)
    }

    /// The contents of a file, names apart by backslashes; `None` where there is none.
    pub fn file(&self, path: &str) -> Result<Option<Stream<'d>>, Fault> {
        match self.find(path)? {
            Some(number) => self.attribute(number, DATA, ""),
            None => Ok(None),
        }
    }

    /// Whether a file or folder is there. What a reparse point leads to is not looked for.
    pub fn exists(&self, path: &str) -> Result<bool, Fault> {
        Ok(self.find(path)?.is_some())
    }

    fn find(&self, path: &str) -> Result<Option<u64>, Fault> {
        let mut number = ROOT;
        for name in path.split('\\').filter(|name| !name.is_empty()) {
            match self.entry(number, name)? {
                Some(reference) => number = self.checked(reference)?,
                None => return Ok(None),
            }
        }
        Ok(Some(number))
    }

    /// The number in a reference, if the record still is the file that was referred to.
    fn checked(&self, reference: u64) -> Result<u64, Fault> {
        let number = reference & NUMBER;
        let sequence = reference >> 48;
        if sequence != 0 && u64::from(self.record(number)?.sequence) != sequence {
            return Err(bad("a name belongs to a file that is gone"));
        }
        Ok(number)
    }

    fn record(&self, number: u64) -> Result<Record, Fault> {
        let length = u64::try_from(self.record).unwrap_or(u64::MAX);
        let offset = number.checked_mul(length).ok_or_else(|| bad("a file record lies nowhere"))?;
        Record::parse(self.table.read_vec(offset, self.record)?)
    }

    /// An attribute of a file, from all the records it is spread over.
    fn attribute(&self, number: u64, kind: u32, name: &str) -> Result<Option<Stream<'d>>, Fault> {
        let attributes = self.record(number)?.attributes()?;
        let (lists, rest): (Vec<_>, Vec<_>) =
            attributes.into_iter().partition(|attribute| attribute.kind == ATTRIBUTE_LIST);
        let mut parts = matching(rest, kind, name);
        if let Some(list) = Stream::of(self.volume, self.cluster, lists)? {
            for other in others(&list.read_all(LIST_LIMIT)?, number, kind, name)? {
                let record = self.record(other)?;
                if record.base != number {
                    return Err(bad("a part of a file belongs to another"));
                }
                parts.extend(matching(record.attributes()?, kind, name));
            }
        }
        Stream::of(self.volume, self.cluster, parts)
    }

    /// The reference of a name in a folder. All names are looked at: their order depends on a table of the volume's own.
    fn entry(&self, folder: u64, name: &str) -> Result<Option<u64>, Fault> {
        let cut = || bad("a folder is cut off");
        // A file has none.
        let Some(root) = self.attribute(folder, INDEX_ROOT, NAMES)? else { return Ok(None) };
        let root = root.read_all(64 << 10)?;
        let block = u32_at(&root, 8).map(u64::from).ok_or_else(cut)?;
        let mut children = Vec::new();
        if let Some(found) = named(root.get(16..).ok_or_else(cut)?, name, &mut children)? {
            return Ok(Some(found));
        }
        if children.is_empty() {
            return Ok(None);
        }
        if !block.is_power_of_two() || !(512..=64 << 10).contains(&block) {
            return Err(bad("a folder with blocks of an absurd size"));
        }
        let missing = || bad("a folder's blocks are missing");
        let blocks = self.attribute(folder, INDEX_ALLOCATION, NAMES)?.ok_or_else(missing)?;
        let unit = if self.cluster <= block { self.cluster } else { 512 };
        let length = usize::try_from(block).map_err(|_| cut())?;
        let mut seen = HashSet::new();
        while let Some(child) = children.pop() {
            if !seen.insert(child) || seen.len() > BLOCKS_LIMIT {
                return Err(bad("a folder's blocks form a loop"));
            }
            let offset = child.checked_mul(unit).ok_or_else(missing)?;
            let bytes = fixed_up(blocks.read_vec(offset, length)?, b"INDX")?;
            if let Some(found) = named(bytes.get(24..).ok_or_else(cut)?, name, &mut children)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// A page's place in the order of pages, and whether by it the log is closed; `None` where it is torn.
fn restart(page: Vec<u8>) -> Option<(u64, bool)> {
    // After a check by Windows a page calls itself otherwise.
    let magic = if page.starts_with(b"CHKD") { b"CHKD" } else { b"RSTR" };
    let page = fixed_up(page, magic).ok()?;
    let area = page.get(usize::from(u16_at(&page, 24)?)..)?;
    let (users, flags) = (u16_at(area, 12)?, u16_at(area, 14)?);
    Some((u64_at(area, 0)?, users == NOBODY || flags & CLEAN != 0))
}

fn matching(attributes: Vec<Attribute>, kind: u32, name: &str) -> Vec<Attribute> {
    attributes.into_iter().filter(|attribute| attribute.kind == kind && attribute.name == name).collect()
}

/// The other records that hold parts of an attribute, by an attribute list.
fn others(list: &[u8], own: u64, kind: u32, name: &str) -> Result<Vec<u64>, Fault> {
    let cut = || bad("a list of attributes is cut off");
    let (mut at, mut found) = (0, Vec::new());
    while at < list.len() {
        let length = usize::from(u16_at(list, at + 4).ok_or_else(cut)?);
        let entry = bytes_at(list, at, length).filter(|entry| entry.len() >= 26).ok_or_else(cut)?;
        let named = bytes_at(entry, entry[7].into(), usize::from(entry[6]) * 2).ok_or_else(cut)?;
        let number = u64_at(entry, 16).ok_or_else(cut)? & NUMBER;
        let wanted = u32_at(entry, 0) == Some(kind) && utf16(named) == name;
        if wanted && number != own && !found.contains(&number) {
            found.push(number);
        }
        at += length;
    }
    Ok(found)
}

/// Looks for a name among the entries of one node, and collects the blocks below it.
fn named(node: &[u8], name: &str, children: &mut Vec<u64>) -> Result<Option<u64>, Fault> {
    let cut = || Fault::Damaged { what: WHAT, how: "a folder is cut off".into() };
    let start = u32_at(node, 0).and_then(|start| usize::try_from(start).ok()).ok_or_else(cut)?;
    let end = u32_at(node, 4).and_then(|end| usize::try_from(end).ok()).ok_or_else(cut)?;
    let mut rest = node.get(start..end).ok_or_else(cut)?;
    loop {
        let length = usize::from(u16_at(rest, 8).ok_or_else(cut)?);
        let entry = rest.get(..length).filter(|entry| entry.len() >= 16).ok_or_else(cut)?;
        let flags = u16_at(entry, 12).ok_or_else(cut)?;
        if flags & 1 != 0 {
            children.push(length.checked_sub(8).and_then(|at| u64_at(entry, at)).ok_or_else(cut)?);
        }
        if flags & 2 != 0 {
            return Ok(None);
        }
        let letters = usize::from(*entry.get(16 + 64).ok_or_else(cut)?) * 2;
        if same_name(&utf16(bytes_at(entry, 16 + 66, letters).ok_or_else(cut)?), name) {
            return u64_at(entry, 0).map(Some).ok_or_else(cut);
        }
        rest = &rest[length..];
    }
}

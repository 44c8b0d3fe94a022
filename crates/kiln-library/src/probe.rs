//! What a file really is: told by its bytes, never by its name.
//!
//! Two questions. What *format* is it ([`format_of`]): a disk image that can be taken in, or something that must not be,
//! such as one that reads other files of this host. And what can *boot* it ([`DiskProbe::of`]): the partition table of
//! the disk inside says whether a BIOS or UEFI finds something to start.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use kiln_model::catalog::Generation;

/// Room for a GUID partition table as it is usually laid out, and then some.
pub(crate) const HEAD: usize = 64 << 10;
const SECTOR: usize = 512;

/// A file that can become an image of the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Raw,
    Qcow2,
    /// The disk, and a footer.
    FixedVhd,
    /// With the size its footer gives, bytes.
    DynamicVhd {
        size: u64,
    },
    Vhdx,
    Vmdk,
}

/// Tells the format of a file of `length` bytes, or why it is not taken.
pub(crate) fn format_of(file: &File, length: u64) -> io::Result<Result<Format, String>> {
    let mut head = vec![0; HEAD.min(usize::try_from(length).unwrap_or(HEAD))];
    file.read_exact_at(&mut head, 0)?;
    let mut foot = [0; SECTOR];
    if length >= SECTOR as u64 {
        file.read_exact_at(&mut foot, length - SECTOR as u64)?;
    }
    Ok(classify(&head, &foot, length))
}

fn classify(head: &[u8], foot: &[u8; SECTOR], length: u64) -> Result<Format, String> {
    match head {
        [b'Q', b'F', b'I', 0xfb, ..] => return qcow2(head),
        [b'K', b'D', b'M', b'V', ..] => return vmdk(head),
        _ if head.starts_with(b"vhdxfile") => return Ok(Format::Vhdx),
        _ => {}
    }
    // A dynamic VHD begins with a copy of its footer; a fixed one has it at the end only.
    if let Some((kind, size)) = vhd_kind(foot).or_else(|| vhd_kind(head)) {
        return match kind {
            2 if length.is_multiple_of(SECTOR as u64) => Ok(Format::FixedVhd),
            2 => Err("it is a VHD whose length is not a whole number of sectors; it was cut off".to_owned()),
            3 => Ok(Format::DynamicVhd { size }),
            4 => Err("it is a differencing VHD, half of an image; merge it with its parent first".to_owned()),
            other => Err(format!("it is a VHD of an unknown kind ({other})")),
        };
    }
    if let Some(what) = no_disk(head) {
        return Err(what.to_owned());
    }
    if !length.is_multiple_of(SECTOR as u64) {
        return Err(
            "it is no disk format Kiln knows, and no raw disk: its length is not a whole number of sectors"
                .to_owned(),
        );
    }
    if DiskProbe::of(head).table.is_none() {
        return Err("it is no disk format Kiln knows (qcow2, VHD, VHDX, VMDK), and no raw disk: it has no partition table".to_owned());
    }
    Ok(Format::Raw)
}

/// QEMU's docs/interop/qcow2.rst: what the header says about other files.
fn qcow2(head: &[u8]) -> Result<Format, String> {
    /// Incompatible feature: the data lies in another file.
    const EXTERNAL_DATA: u64 = 1 << 2;
    let version = be32(head, 4);
    if !(2..=3).contains(&version) {
        return Err(format!("it is a qcow2 of version {version}; versions 2 and 3 are known"));
    }
    if be64(head, 8) != 0 {
        return Err("it is a qcow2 with a backing file, half of an image; flatten it first: qemu-img convert -O qcow2 FILE WHOLE".to_owned());
    }
    if be32(head, 32) != 0 {
        return Err("it is an encrypted qcow2; decrypt it first".to_owned());
    }
    if version >= 3 && be64(head, 72) & EXTERNAL_DATA != 0 {
        return Err("it is a qcow2 whose data lies in another file; make it one file first: qemu-img convert -O qcow2 FILE WHOLE".to_owned());
    }
    Ok(Format::Qcow2)
}

/// "Virtual Disk Format 5.0" (VMware), sections "Hosted Sparse Extent Header" and "The Descriptor". A descriptor may
/// name any file of this host as part of the disk, so only those kinds are taken that are one file.
fn vmdk(head: &[u8]) -> Result<Format, String> {
    let capacity = le64(head, 12);
    let (start, sectors) = (le64(head, 28), le64(head, 36));
    let range = usize::try_from(start.saturating_mul(512)).unwrap_or(usize::MAX)
        ..usize::try_from(start.saturating_add(sectors).saturating_mul(512)).unwrap_or(usize::MAX);
    let descriptor = head.get(range).map(String::from_utf8_lossy).unwrap_or_default();
    let value = |key: &str| {
        descriptor.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            name.trim().eq_ignore_ascii_case(key).then(|| value.trim().trim_matches(['"', '\0']).to_owned())
        })
    };
    let kind = value("createType").unwrap_or_default();
    let whole = ["monolithicSparse", "streamOptimized"].iter().any(|whole| kind.eq_ignore_ascii_case(whole));
    let parent = value("parentCID").is_some_and(|cid| !cid.eq_ignore_ascii_case("ffffffff"));
    if !whole || capacity == 0 || parent || value("parentFileNameHint").is_some() {
        let kind = if kind.is_empty() { "of an unknown kind" } else { &kind };
        return Err(format!(
            "it is a VMDK ({kind}) that is not the whole disk; only monolithicSparse and streamOptimized without a parent are taken"
        ));
    }
    Ok(Format::Vmdk)
}

/// Kind and size in a VHD footer whose checksum is right ("Virtual Hard Disk Image Format Specification", "Hard Disk Footer
/// Format").
fn vhd_kind(bytes: &[u8]) -> Option<(u32, u64)> {
    let footer = bytes.get(..SECTOR)?;
    if !footer.starts_with(b"conectix") {
        return None;
    }
    let sum: u32 = footer
        .iter()
        .enumerate()
        .filter(|(at, _)| !(64..68).contains(at))
        .map(|(_, byte)| u32::from(*byte))
        .sum();
    (be32(footer, 64) == !sum).then(|| (be32(footer, 60), be64(footer, 48)))
}

/// Things people give by mistake.
fn no_disk(head: &[u8]) -> Option<&'static str> {
    let starts = |magic: &[u8]| head.starts_with(magic);
    if head.get(0x8001..0x8006) == Some(b"CD001") {
        Some("it is an ISO image: installation media, not an installed disk")
    } else if head.get(0x40..0x44) == Some(&[0x7f, 0x10, 0xda, 0xbe]) {
        Some("it is a VirtualBox disk (VDI); convert it first: qemu-img convert -O qcow2 FILE.vdi FILE.qcow2")
    } else if starts(b"# Disk DescriptorFile") {
        Some(
            "it is a VMDK descriptor, which names its parts elsewhere; convert it first: qemu-img convert -O qcow2 FILE.vmdk FILE.qcow2",
        )
    } else if starts(&[0x1f, 0x8b])
        || starts(b"\xfd7zXZ\0")
        || starts(b"BZh")
        || starts(&[0x28, 0xb5, 0x2f, 0xfd])
        || starts(b"PK\x03\x04")
        || starts(b"7z\xbc\xaf\x27\x1c")
        || head.get(257..262) == Some(b"ustar")
    {
        Some("it is an archive or compressed; unpack it first")
    } else {
        let text = head.trim_ascii_start();
        let html = [&b"<!doctype"[..], b"<html", b"<?xml"]
            .iter()
            .any(|tag| text.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag)));
        html.then_some("it is a web page, perhaps an error page of the place it was downloaded from")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionTable {
    Mbr,
    Gpt,
}

/// What on a disk can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskProbe {
    /// `None`: neither kind was found.
    pub table: Option<PartitionTable>,
    /// A partition where UEFI looks for a boot loader.
    pub efi_system: bool,
    /// Code in the first sector, and a partition it can go on with.
    pub bios_boot: bool,
}

impl DiskProbe {
    /// Looks at the first bytes of a disk (512-byte sectors, as all of Azure's are).
    pub(crate) fn of(head: &[u8]) -> Self {
        let none = Self { table: None, efi_system: false, bios_boot: false };
        if head.get(510..512) != Some(&[0x55, 0xaa]) {
            return none;
        }
        let code = head[..440].iter().any(|byte| *byte != 0);
        let kinds: Vec<u8> = (0..4).map(|slot| head[446 + 16 * slot + 4]).filter(|kind| *kind != 0).collect();
        if kinds.contains(&0xee) && head.get(SECTOR..SECTOR + 8) == Some(b"EFI PART") {
            let parts = gpt_partitions(head);
            let has = |kind: &[u8; 16]| parts.iter().any(|(found, _)| found == kind);
            // Attribute 2: "legacy BIOS bootable" (UEFI 2.10, table 5.8).
            let legacy = parts.iter().any(|(_, attributes)| attributes & 4 != 0);
            return Self {
                table: Some(PartitionTable::Gpt),
                efi_system: has(&EFI_SYSTEM),
                bios_boot: code && (has(&BIOS_BOOT) || legacy),
            };
        }
        if kinds.is_empty() {
            return none;
        }
        Self {
            table: Some(PartitionTable::Mbr),
            efi_system: kinds.contains(&0xef),
            bios_boot: code && kinds.iter().any(|kind| !matches!(kind, 0xee | 0xef)),
        }
    }

    /// What it can boot as; [`Generation::V1`] first where both do.
    pub fn generations(&self) -> Vec<Generation> {
        let (v1, v2) = (self.bios_boot.then_some(Generation::V1), self.efi_system.then_some(Generation::V2));
        v1.into_iter().chain(v2).collect()
    }
}

impl fmt::Display for DiskProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.table {
            None => return f.write_str("no partition table"),
            Some(PartitionTable::Mbr) => "MBR partitions",
            Some(PartitionTable::Gpt) => "GPT partitions",
        })?;
        f.write_str(match (self.bios_boot, self.efi_system) {
            (true, true) => ", boot code for BIOS and an EFI system partition",
            (true, false) => ", boot code for BIOS, no EFI system partition",
            (false, true) => ", an EFI system partition, no boot code for BIOS",
            (false, false) => ", nothing to boot from",
        })
    }
}

/// C12A7328-F81F-11D2-BA4B-00A0C93EC93B as it lies on the disk (UEFI 2.10, table 5.7).
const EFI_SYSTEM: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
/// 21686148-6449-6E6F-744E-656564454649: where GRUB keeps its core for BIOS.
const BIOS_BOOT: [u8; 16] = *b"Hah!IdontNeedEFI";

/// Type and attributes of each partition whose entry lies in `head`.
fn gpt_partitions(head: &[u8]) -> Vec<([u8; 16], u64)> {
    let header = &head[SECTOR..];
    if header.len() < 92 {
        return Vec::new();
    }
    let start = usize::try_from(le64(header, 72)).unwrap_or(usize::MAX).saturating_mul(SECTOR);
    let (count, size) = (le32(header, 80) as usize, le32(header, 84) as usize);
    // The specification knows 128 times a power of two.
    if !(128..=4096).contains(&size) {
        return Vec::new();
    }
    let entries = head.get(start..).unwrap_or_default();
    entries
        .chunks_exact(size)
        .take(count)
        .filter_map(|entry| {
            let kind: [u8; 16] = entry[..16].try_into().ok()?;
            (kind != [0; 16]).then(|| (kind, le64(entry, 48)))
        })
        .collect()
}

// Numbers at a place; bytes past the end count as zero.
fn bytes<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|place| from.get(at + place).copied().unwrap_or(0))
}

fn be32(from: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes(from, at))
}

fn be64(from: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes(from, at))
}

fn le32(from: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes(from, at))
}

fn le64(from: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes(from, at))
}

//! Partition tables: GPT (UEFI 2.10, section 5.3) and MBR (section 5.2), with sectors of 512 bytes.
//!
//! Only where partitions lie is read, not what they are said to be: their contents tell that. Logical partitions of an
//! MBR disk are not followed: Windows Setup puts the system on a primary one.

use super::source::{Fault, ReadAt, damaged, u16_at, u32_at, u64_at};

const SECTOR: u64 = 512;
const GPT: &str = "the GUID partition table";
/// Windows makes 128 entries of 128 bytes; some tools ask for more.
const ENTRIES_LIMIT: u32 = 4096;

/// A partition, in bytes of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub start: u64,
    pub length: u64,
}

/// The partitions of a disk, in the order of its table; none where there is no table.
pub(super) fn partitions(disk: &dyn ReadAt) -> Result<Vec<Extent>, Fault> {
    if disk.size() < SECTOR {
        return Ok(Vec::new());
    }
    let sector = disk.read_vec(0, 512)?;
    if u16_at(&sector, 510) != Some(0xaa55) {
        return Ok(Vec::new());
    }
    let entries = || sector[446..510].chunks_exact(16);
    if entries().any(|entry| entry[4] == 0xee) {
        let Some(last) = (disk.size() / SECTOR).checked_sub(1) else { return Ok(Vec::new()) };
        // The second copy is there for the case that the first is damaged. Its own damage says less.
        return gpt(disk, 1).or_else(|first| gpt(disk, last).map_err(|_| first));
    }
    let mut found = Vec::new();
    for entry in entries().filter(|entry| entry[4] != 0) {
        let sectors = u32_at(entry, 8).zip(u32_at(entry, 12));
        let (start, count) = sectors.ok_or_else(|| damaged("the partition table", "an entry is cut off"))?;
        if count != 0 {
            found.push(extent(disk, "the partition table", start.into(), count.into())?);
        }
    }
    Ok(found)
}

fn gpt(disk: &dyn ReadAt, at: u64) -> Result<Vec<Extent>, Fault> {
    let bad = |how: &str| damaged(GPT, how);
    let short = || bad("its header is cut off");
    let mut header = disk.read_vec(at * SECTOR, 512)?;
    if !header.starts_with(b"EFI PART") {
        return Err(bad("no header"));
    }
    let length = u32_at(&header, 12).and_then(|length| usize::try_from(length).ok()).ok_or_else(short)?;
    if !(92..=512).contains(&length) {
        return Err(bad("a header of absurd length"));
    }
    let told = u32_at(&header, 16).ok_or_else(short)?;
    header[16..20].fill(0);
    if crc32(&header[..length]) != told {
        return Err(bad("the checksum of its header is wrong"));
    }
    if u64_at(&header, 24) != Some(at) {
        return Err(bad("its header belongs elsewhere"));
    }
    let first = u64_at(&header, 72).ok_or_else(short)?;
    let count = u32_at(&header, 80).ok_or_else(short)?;
    let size = u32_at(&header, 84).ok_or_else(short)?;
    if count > ENTRIES_LIMIT || !(128..=4096).contains(&size) || !size.is_power_of_two() {
        return Err(bad("entries of absurd number or size"));
    }
    let size = usize::try_from(size).map_err(|_| short())?;
    let bytes = usize::try_from(count).map_err(|_| short())?.checked_mul(size).ok_or_else(short)?;
    let start = first.checked_mul(SECTOR).ok_or_else(|| bad("its entries lie nowhere"))?;
    let entries = disk.read_vec(start, bytes)?;
    if Some(crc32(&entries)) != u32_at(&header, 88) {
        return Err(bad("the checksum of its entries is wrong"));
    }
    let mut found = Vec::new();
    for entry in entries.chunks_exact(size).filter(|entry| entry[..16] != [0; 16]) {
        let (first, last) = u64_at(entry, 32).zip(u64_at(entry, 40)).ok_or_else(short)?;
        let count = last.checked_sub(first).and_then(|count| count.checked_add(1));
        found.push(extent(disk, GPT, first, count.ok_or_else(|| bad("an entry ends before it starts"))?)?);
    }
    Ok(found)
}

fn extent(disk: &dyn ReadAt, what: &'static str, first: u64, count: u64) -> Result<Extent, Fault> {
    let start = first.checked_mul(SECTOR);
    let length = count.checked_mul(SECTOR);
    let found = start.zip(length).map(|(start, length)| Extent { start, length });
    let fits = |extent: &Extent| {
        extent.start.checked_add(extent.length).is_some_and(|end| end <= disk.size()) && extent.start > 0
    };
    found.filter(fits).ok_or_else(|| damaged(what, "a partition reaches beyond the disk"))
}

/// CRC-32 of ISO 3309, as UEFI asks for; at most half a MiB, so without a table.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_the_standard() {
        // The check value of CRC-32/ISO-HDLC.
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    /// An MBR of one entry.
    fn mbr(kind: u8, first: u32, count: u32) -> Vec<u8> {
        let mut disk = vec![0; 64 * 512];
        disk[450] = kind;
        disk[454..458].copy_from_slice(&first.to_le_bytes());
        disk[458..462].copy_from_slice(&count.to_le_bytes());
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk
    }

    #[test]
    fn a_partition_lies_on_the_disk_or_is_an_error() {
        assert_eq!(partitions(&mbr(7, 8, 16)).unwrap(), [Extent { start: 4096, length: 8192 }]);
        assert_eq!(partitions(&mbr(7, 8, 0)).unwrap(), []);
        for (first, count) in [(8, 57), (64, 1), (u32::MAX, u32::MAX), (0, 8)] {
            assert!(
                matches!(partitions(&mbr(7, first, count)), Err(Fault::Damaged { .. })),
                "{first} {count}"
            );
        }
        assert!(matches!(partitions(&mbr(0xee, 1, 63)), Err(Fault::Damaged { .. })), "GPT without a header");
        assert_eq!(partitions(&vec![0; 4096]).unwrap(), []);
        assert_eq!(partitions(&vec![0; 100]).unwrap(), []);
    }
}

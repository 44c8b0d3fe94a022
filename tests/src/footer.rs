//! The footer of a fixed VHD, read by the "Virtual Hard Disk Image Format Specification"
//! (Microsoft, version 1.0, "Hard Disk Footer Format"), not by Kiln's own code.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

pub const LENGTH: u64 = 512;

/// The fields a fixed disk's footer has a say in.
#[derive(Debug, PartialEq, Eq)]
pub struct Footer {
    pub cookie: [u8; 8],
    pub features: u32,
    pub version: u32,
    pub data_offset: u64,
    pub original_size: u64,
    pub current_size: u64,
    pub geometry: (u16, u8, u8),
    pub disk_type: u32,
    pub checksum: u32,
    /// What the specification says the checksum must be.
    pub computed: u32,
    pub saved_state: u8,
    pub reserved_is_zero: bool,
}

pub fn read(path: &Path) -> Footer {
    let file = File::open(path).unwrap();
    let length = file.metadata().unwrap().len();
    assert!(length > LENGTH, "{} is too short for a VHD", path.display());
    let mut bytes = [0; LENGTH as usize];
    file.read_exact_at(&mut bytes, length - LENGTH).unwrap();
    let u32_at = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    // "one's complement of the sum of all the bytes in the footer without the checksum field"
    let sum: u32 = bytes
        .iter()
        .enumerate()
        .filter(|(at, _)| !(64..68).contains(at))
        .map(|(_, byte)| u32::from(*byte))
        .sum();
    Footer {
        cookie: bytes[0..8].try_into().unwrap(),
        features: u32_at(8),
        version: u32_at(12),
        data_offset: u64_at(16),
        original_size: u64_at(40),
        current_size: u64_at(48),
        geometry: (u16::from_be_bytes(bytes[56..58].try_into().unwrap()), bytes[58], bytes[59]),
        disk_type: u32_at(60),
        checksum: u32_at(64),
        computed: !sum,
        saved_state: bytes[84],
        reserved_is_zero: bytes[85..].iter().all(|byte| *byte == 0),
    }
}

/// Everything that Azure asks of a fixed VHD's file.
pub fn assert_fit_for_azure(path: &Path) {
    let length = path.metadata().unwrap().len();
    let footer = read(path);
    assert_eq!(&footer.cookie, b"conectix");
    assert_eq!(footer.features & 2, 2, "the reserved feature bit is always set");
    assert_eq!(footer.version, 0x0001_0000);
    assert_eq!(footer.data_offset, u64::MAX, "a fixed disk has no dynamic header");
    assert_eq!(footer.disk_type, 2, "fixed");
    assert_eq!(footer.checksum, footer.computed, "checksum");
    assert_eq!(footer.saved_state, 0);
    assert!(footer.reserved_is_zero);
    assert_eq!(footer.current_size, length - LENGTH, "size in the footer and of the file");
    assert_eq!(footer.original_size, footer.current_size);
    assert_eq!(footer.current_size % (1 << 20), 0, "a whole number of MiB");
    let (cylinders, heads, sectors) = footer.geometry;
    assert!(cylinders > 0 && heads > 0 && sectors > 0, "geometry {:?}", footer.geometry);
}

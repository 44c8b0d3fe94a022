//! The footer, field by field ("Hard Disk Footer Format"). All numbers are big-endian.
//!
//! | offset | length | field               | here                                                             |
//! |-------:|-------:|---------------------|------------------------------------------------------------------|
//! |      0 |      8 | cookie              | `conectix`                                                       |
//! |      8 |      4 | features            | 2: the bit that is always set                                    |
//! |     12 |      4 | file format version | 1.0                                                              |
//! |     16 |      8 | data offset         | all ones: a fixed disk has no further header                     |
//! |     24 |      4 | time stamp          | seconds since 2000-01-01 00:00 UTC                               |
//! |     28 |      4 | creator application | `qem2`: see below                                                |
//! |     32 |      4 | creator version     | as QEMU writes it                                                |
//! |     36 |      4 | creator host OS     | `Wi2k`: Windows, the only kind of host Azure knows                |
//! |     40 |      8 | original size       | bytes                                                            |
//! |     48 |      8 | current size        | bytes                                                            |
//! |     56 |      4 | disk geometry       | 65535 cylinders, 16 heads, 255 sectors: "look at the size"        |
//! |     60 |      4 | disk type           | 2: fixed                                                         |
//! |     64 |      4 | checksum            | complement of the sum of all bytes but these                     |
//! |     68 |     16 | unique id           | the caller's                                                     |
//! |     84 |      1 | saved state         | 0                                                                |
//! |     85 |    427 | reserved            | 0                                                                |
//!
//! Geometry counts in cylinders of at most 65535 x 16 x 255 sectors and cannot express every size, so readers choose
//! between it and the current size. The largest geometry and the creator `qem2` both tell them to take the size: the
//! same footer that `qemu-img convert -o force_size` writes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::MIB;

pub const FOOTER_LENGTH: usize = 512;

const COOKIE: &[u8; 8] = b"conectix";
const FEATURES: u32 = 2;
const VERSION: u32 = 0x0001_0000;
const NO_DATA_OFFSET: u64 = u64::MAX;
const CREATOR_APP: &[u8; 4] = b"qem2";
const CREATOR_VERSION: u32 = 0x0005_0003;
const CREATOR_OS: &[u8; 4] = b"Wi2k";
const LARGEST_GEOMETRY: [u8; 4] = [0xff, 0xff, 16, 255];
const FIXED: u32 = 2;
const CHECKSUM_AT: usize = 64;
/// 2000-01-01 00:00 UTC, in Unix time.
const EPOCH: Duration = Duration::from_secs(946_684_800);

/// The footer of a fixed VHD of a whole number of MiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    virtual_size: u64,
    /// Seconds since 2000-01-01 00:00 UTC.
    timestamp: u32,
    unique_id: Uuid,
}

/// What is wrong with a footer, or with the file before it.
#[derive(Debug, thiserror::Error)]
pub enum FooterError {
    #[error("no VHD: the last 512 bytes do not begin with \"conectix\"")]
    Cookie,
    #[error("the checksum is {found:#010x} where the bytes give {computed:#010x}")]
    Checksum { found: u32, computed: u32 },
    #[error("{field} is {found} where a fixed VHD for Azure has {expected}")]
    Field { field: &'static str, found: String, expected: String },
    #[error("a disk of {virtual_size} bytes is not a whole number of MiB, as Azure wants it")]
    NotWholeMib { virtual_size: u64 },
    #[error("an empty disk")]
    Empty,
    #[error("the file has {found} bytes where its footer announces a disk and a footer of {expected}")]
    FileSize { found: u64, expected: u64 },
    #[error("cannot read the footer")]
    Read(#[from] io::Error),
}

impl Footer {
    /// A footer for a disk of `virtual_size` bytes. The time is kept to the second, and to the years 2000 to 2136.
    pub fn fixed(virtual_size: u64, created: SystemTime, unique_id: Uuid) -> Result<Self, FooterError> {
        if virtual_size == 0 {
            return Err(FooterError::Empty);
        }
        if !virtual_size.is_multiple_of(MIB) {
            return Err(FooterError::NotWholeMib { virtual_size });
        }
        let since = created.duration_since(UNIX_EPOCH + EPOCH).unwrap_or_default().as_secs();
        let timestamp = u32::try_from(since).unwrap_or(u32::MAX);
        Ok(Self { virtual_size, timestamp, unique_id })
    }

    /// Bytes of the disk, without the footer.
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    pub fn created(&self) -> SystemTime {
        UNIX_EPOCH + EPOCH + Duration::from_secs(self.timestamp.into())
    }

    pub fn unique_id(&self) -> Uuid {
        self.unique_id
    }

    pub fn to_bytes(&self) -> [u8; FOOTER_LENGTH] {
        let mut bytes = [0; FOOTER_LENGTH];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(COOKIE);
        put(&FEATURES.to_be_bytes());
        put(&VERSION.to_be_bytes());
        put(&NO_DATA_OFFSET.to_be_bytes());
        put(&self.timestamp.to_be_bytes());
        put(CREATOR_APP);
        put(&CREATOR_VERSION.to_be_bytes());
        put(CREATOR_OS);
        put(&self.virtual_size.to_be_bytes());
        put(&self.virtual_size.to_be_bytes());
        put(&LARGEST_GEOMETRY);
        put(&FIXED.to_be_bytes());
        put(&[0; 4]);
        put(self.unique_id.as_bytes());
        let checksum = checksum(&bytes);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    /// Reads a footer, whoever wrote it, and checks what Azure relies on: cookie, checksum, version, type, and a size in
    /// whole MiB that original and current size agree on or that was grown since.
    pub fn parse(bytes: &[u8; FOOTER_LENGTH]) -> Result<Self, FooterError> {
        if !bytes.starts_with(COOKIE) {
            return Err(FooterError::Cookie);
        }
        let (found, computed) = (u32_at(bytes, CHECKSUM_AT), checksum(bytes));
        if found != computed {
            return Err(FooterError::Checksum { found, computed });
        }
        let field = |field, found: u64, expected: u64| match found == expected {
            true => Ok(()),
            false => {
                Err(FooterError::Field { field, found: found.to_string(), expected: expected.to_string() })
            }
        };
        field("the file format version", u32_at(bytes, 12).into(), VERSION.into())?;
        field("the data offset", u64_at(bytes, 16), NO_DATA_OFFSET)?;
        field("the disk type", u32_at(bytes, 60).into(), FIXED.into())?;
        field("the saved state", bytes[84].into(), 0)?;
        let virtual_size = u64_at(bytes, 48);
        if virtual_size == 0 {
            return Err(FooterError::Empty);
        }
        if !virtual_size.is_multiple_of(MIB) {
            return Err(FooterError::NotWholeMib { virtual_size });
        }
        let mut unique_id = [0; 16];
        unique_id.copy_from_slice(&bytes[68..84]);
        Ok(Self { virtual_size, timestamp: u32_at(bytes, 24), unique_id: Uuid::from_bytes(unique_id) })
    }
}

/// Reads the footer of a finished VHD and checks that the file is as long as it says.
pub fn read_fixed(path: impl AsRef<Path>) -> Result<Footer, FooterError> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let at = length.checked_sub(FOOTER_LENGTH as u64).ok_or(FooterError::Cookie)?;
    let mut bytes = [0; FOOTER_LENGTH];
    file.read_exact_at(&mut bytes, at)?;
    let footer = Footer::parse(&bytes)?;
    let expected = footer.virtual_size.saturating_add(FOOTER_LENGTH as u64);
    if expected != length {
        return Err(FooterError::FileSize { found: length, expected });
    }
    Ok(footer)
}

/// "One's complement of the sum of all the bytes in the footer without the checksum field."
fn checksum(bytes: &[u8; FOOTER_LENGTH]) -> u32 {
    let counted = |at: usize| !(CHECKSUM_AT..CHECKSUM_AT + 4).contains(&at);
    !bytes.iter().enumerate().filter(|(at, _)| counted(*at)).map(|(_, byte)| u32::from(*byte)).sum::<u32>()
}

fn u32_at(bytes: &[u8; FOOTER_LENGTH], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

fn u64_at(bytes: &[u8; FOOTER_LENGTH], at: usize) -> u64 {
    bytes[at..at + 8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn footers() -> impl Strategy<Value = Footer> {
        (1..1_u64 << 25, any::<u32>(), any::<[u8; 16]>()).prop_map(|(mib, timestamp, id)| Footer {
            virtual_size: mib * MIB,
            timestamp,
            unique_id: Uuid::from_bytes(id),
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(footer in footers()) {
            let bytes = footer.to_bytes();
            prop_assert_eq!(Footer::parse(&bytes).unwrap(), footer.clone());
            let again = Footer::fixed(footer.virtual_size(), footer.created(), footer.unique_id());
            prop_assert_eq!(again.unwrap(), footer);
        }

        #[test]
        fn no_changed_byte_goes_unnoticed(footer in footers(), at in 0..FOOTER_LENGTH, to in any::<u8>()) {
            let mut bytes = footer.to_bytes();
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            prop_assert!(Footer::parse(&bytes).is_err());
        }

        #[test]
        fn garbage_is_an_error_and_no_panic(bytes in any::<[u8; FOOTER_LENGTH]>()) {
            prop_assert!(Footer::parse(&bytes).is_err());
        }
    }

    #[test]
    fn only_whole_mib_have_a_footer() {
        for (size, fits) in [(0, false), (512, false), (MIB, true), (MIB + 512, false), (30 << 30, true)] {
            assert_eq!(Footer::fixed(size, UNIX_EPOCH, Uuid::nil()).is_ok(), fits, "{size}");
        }
        // A clock before 2000 gives the earliest time there is.
        assert_eq!(Footer::fixed(MIB, UNIX_EPOCH, Uuid::nil()).unwrap().created(), UNIX_EPOCH + EPOCH);
    }

    #[test]
    fn other_kinds_of_vhd_are_named() {
        let good = Footer::fixed(MIB, UNIX_EPOCH, Uuid::nil()).unwrap().to_bytes();
        let changed = |at: usize, with: &[u8]| {
            let mut bytes = good;
            bytes[at..at + with.len()].copy_from_slice(with);
            let sum = checksum(&bytes);
            bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
            Footer::parse(&bytes).unwrap_err().to_string()
        };
        assert_eq!(changed(60, &3_u32.to_be_bytes()), "the disk type is 3 where a fixed VHD for Azure has 2");
        assert!(changed(48, &(MIB + 1).to_be_bytes()).contains("not a whole number of MiB"));
        assert!(changed(84, &[1]).contains("saved state"));
    }
}

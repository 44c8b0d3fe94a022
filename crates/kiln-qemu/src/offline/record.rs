//! NTFS below its files: records with their fix-ups, the attributes in them, and the runs of clusters an attribute's
//! contents lie in.

use super::source::{Fault, ReadAt, bytes_at, damaged, u16_at, u32_at, u64_at, utf16, within};

pub(super) const WHAT: &str = "the NTFS volume";
/// Fix-ups are two bytes in every 512, whatever the disk's sectors are.
const STRIDE: usize = 512;
const IN_USE: u16 = 1;
const COMPRESSED: u16 = 0x00ff;
const ENCRYPTED: u16 = 0x4000;
const END: u32 = u32::MAX;

pub(super) fn bad(how: impl Into<String>) -> Fault {
    damaged(WHAT, how)
}

/// Puts back what the fix-ups replaced, and so finds out whether a block was written in full.
pub(super) fn fixed_up(mut block: Vec<u8>, magic: &[u8; 4]) -> Result<Vec<u8>, Fault> {
    let torn = || bad("a record is torn");
    if !block.starts_with(magic) {
        return Err(bad(format!("a record is no {}", String::from_utf8_lossy(magic))));
    }
    let start = usize::from(u16_at(&block, 4).ok_or_else(torn)?);
    let count = usize::from(u16_at(&block, 6).ok_or_else(torn)?);
    if count.checked_sub(1).is_none_or(|strides| strides * STRIDE != block.len()) {
        return Err(torn());
    }
    let fixes = bytes_at(&block, start, count * 2).ok_or_else(torn)?.to_vec();
    for (stride, fix) in block.chunks_exact_mut(STRIDE).zip(fixes.chunks_exact(2).skip(1)) {
        let end = &mut stride[STRIDE - 2..];
        if *end != fixes[..2] {
            return Err(torn());
        }
        end.copy_from_slice(fix);
    }
    Ok(block)
}

/// A file, or a part of one, in the master file table.
pub(super) struct Record {
    bytes: Vec<u8>,
    pub sequence: u16,
    /// The record this one is a part of; 0 for a whole one.
    pub base: u64,
}

impl Record {
    pub fn parse(block: Vec<u8>) -> Result<Self, Fault> {
        let bytes = fixed_up(block, b"FILE")?;
        let cut = || bad("a file record is cut off");
        if u16_at(&bytes, 22).ok_or_else(cut)? & IN_USE == 0 {
            return Err(bad("a file record that is not in use is referred to"));
        }
        let sequence = u16_at(&bytes, 16).ok_or_else(cut)?;
        let base = u64_at(&bytes, 32).ok_or_else(cut)? & NUMBER;
        Ok(Self { bytes, sequence, base })
    }

    pub fn attributes(&self) -> Result<Vec<Attribute>, Fault> {
        let cut = || bad("an attribute is cut off");
        let mut at = usize::from(u16_at(&self.bytes, 20).ok_or_else(cut)?);
        let mut found = Vec::new();
        loop {
            let kind = u32_at(&self.bytes, at).ok_or_else(cut)?;
            if kind == END {
                return Ok(found);
            }
            let length = u32_at(&self.bytes, at + 4).and_then(|length| usize::try_from(length).ok());
            // A header is longer, so this comes to an end.
            let length = length.filter(|length| *length >= 24).ok_or_else(cut)?;
            let bytes = bytes_at(&self.bytes, at, length).ok_or_else(cut)?;
            found.push(Attribute::parse(kind, bytes).ok_or_else(cut)??);
            at += length;
        }
    }
}

/// The number in a file reference; the rest is the sequence number.
pub(super) const NUMBER: u64 = (1 << 48) - 1;

/// One attribute, or one part of an attribute that is spread over records.
pub(super) struct Attribute {
    pub kind: u32,
    pub name: String,
    flags: u16,
    body: Body,
}

enum Body {
    Resident(Vec<u8>),
    Runs { first: u64, runs: Vec<Run>, size: u64, initialized: u64 },
}

/// Clusters that follow each other in the file and on the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// In the file.
    first: u64,
    count: u64,
    /// On the volume; `None` reads as zeros.
    at: Option<u64>,
}

impl Attribute {
    /// `None` where it is cut off.
    fn parse(kind: u32, bytes: &[u8]) -> Option<Result<Self, Fault>> {
        let name_length = usize::from(*bytes.get(9)?) * 2;
        let name = utf16(bytes_at(bytes, u16_at(bytes, 10)?.into(), name_length)?);
        let flags = u16_at(bytes, 12)?;
        let body = if *bytes.get(8)? == 0 {
            let length = usize::try_from(u32_at(bytes, 16)?).ok()?;
            Body::Resident(bytes_at(bytes, u16_at(bytes, 20)?.into(), length)?.to_vec())
        } else {
            let first = u64_at(bytes, 16)?;
            let runs = match runs(bytes.get(usize::from(u16_at(bytes, 32)?)..)?, first) {
                Some(runs) => runs,
                None => return Some(Err(bad("a list of clusters makes no sense"))),
            };
            // Sizes are in the first part only.
            let sizes = if first == 0 { (u64_at(bytes, 48)?, u64_at(bytes, 56)?) } else { (0, 0) };
            Body::Runs { first, runs, size: sizes.0, initialized: sizes.1 }
        };
        Some(Ok(Self { kind, name, flags, body }))
    }
}

/// Mapping pairs: a byte with the lengths of two numbers, the count, and the signed distance from the run before.
fn runs(bytes: &[u8], mut first: u64) -> Option<Vec<Run>> {
    let (mut at, mut position, mut found) = (0, 0_i64, Vec::new());
    loop {
        let header = *bytes.get(at)?;
        if header == 0 {
            return Some(found);
        }
        let (count_length, distance_length) = (usize::from(header & 15), usize::from(header >> 4));
        let count = number(bytes_at(bytes, at + 1, count_length)?)?;
        let count = u64::try_from(count).ok().filter(|count| *count > 0)?;
        let run_at = if distance_length == 0 {
            None
        } else {
            let distance = number(bytes_at(bytes, at + 1 + count_length, distance_length)?)?;
            position = position.checked_add(distance)?;
            Some(u64::try_from(position).ok()?)
        };
        found.push(Run { first, count, at: run_at });
        first = first.checked_add(count)?;
        at += 1 + count_length + distance_length;
    }
}

/// A signed number of one to eight bytes.
fn number(bytes: &[u8]) -> Option<i64> {
    let last = *bytes.last()?;
    let mut wide = if last & 0x80 == 0 { [0; 8] } else { [0xff; 8] };
    wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(wide))
}

/// The contents of an attribute.
pub(super) struct Stream<'d> {
    volume: &'d dyn ReadAt,
    cluster: u64,
    contents: Contents,
}

enum Contents {
    Resident(Vec<u8>),
    Runs { runs: Vec<Run>, size: u64, initialized: u64 },
}

impl<'d> Stream<'d> {
    /// Of all the parts of one attribute; `None` of none.
    pub fn of(
        volume: &'d dyn ReadAt,
        cluster: u64,
        mut parts: Vec<Attribute>,
    ) -> Result<Option<Self>, Fault> {
        if parts.iter().any(|part| part.flags & ENCRYPTED != 0) {
            return Err(Fault::Unsupported { what: "a file", how: "it is encrypted" });
        }
        if parts.iter().any(|part| part.flags & COMPRESSED != 0) {
            return Err(Fault::Unsupported { what: "a file", how: "it is compressed" });
        }
        parts.sort_by_key(|part| match part.body {
            Body::Resident(_) => 0,
            Body::Runs { first, .. } => first,
        });
        let mut whole: Option<Contents> = None;
        for part in parts {
            whole = Some(match (whole, part.body) {
                (None, Body::Resident(bytes)) => Contents::Resident(bytes),
                (None, Body::Runs { first: 0, runs, size, initialized }) => {
                    Contents::Runs { runs, size, initialized }
                }
                (
                    Some(Contents::Runs { runs: mut before, size, initialized }),
                    Body::Runs { first, runs, .. },
                ) if end(&before) == first => {
                    before.extend(runs);
                    Contents::Runs { runs: before, size, initialized }
                }
                _ => return Err(bad("the parts of an attribute do not fit together")),
            });
        }
        Ok(whole.map(|contents| Self { volume, cluster, contents }))
    }

    /// All of it, where it is no longer than `limit` bytes.
    pub fn read_all(&self, limit: u64) -> Result<Vec<u8>, Fault> {
        if self.size() > limit {
            return Err(bad(format!("{} bytes where no more than {limit} make sense", self.size())));
        }
        self.read_vec(0, usize::try_from(self.size()).map_err(|_| bad("a file without end"))?)
    }
}

fn end(runs: &[Run]) -> u64 {
    runs.last().map_or(0, |run| run.first.saturating_add(run.count))
}

impl ReadAt for Stream<'_> {
    fn size(&self) -> u64 {
        match &self.contents {
            Contents::Resident(bytes) => bytes.size(),
            Contents::Runs { size, .. } => *size,
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        let (runs, initialized) = match &self.contents {
            Contents::Resident(bytes) => return bytes.read_at(offset, buffer),
            Contents::Runs { runs, initialized, .. } => (runs, *initialized),
        };
        within(self.size(), offset, buffer.len())?;
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let (number, inside) = (at / self.cluster, at % self.cluster);
            let index = runs.partition_point(|run| run.first + run.count <= number);
            let run = runs.get(index).ok_or_else(|| bad("a file has fewer clusters than bytes"))?;
            let left = (run.first + run.count - number).saturating_mul(self.cluster) - inside;
            // What was never written reads as zeros, whatever lies in its clusters.
            let left = if at < initialized { left.min(initialized - at) } else { left };
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(count);
            match run.at {
                Some(cluster) if at < initialized => {
                    let start = cluster.checked_add(number - run.first);
                    let start =
                        start.and_then(|cluster| cluster.checked_mul(self.cluster)?.checked_add(inside));
                    self.volume.read_at(start.ok_or_else(|| bad("a cluster lies nowhere"))?, now)?;
                }
                _ => now.fill(0),
            }
            rest = later;
            at += u64::try_from(count).unwrap_or(0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_read_with_their_signs_and_holes() {
        // 0x30 clusters at 0x1234, a hole of 5, 1 cluster 0x10 before the first.
        let bytes = [0x21, 0x30, 0x34, 0x12, 0x01, 0x05, 0x11, 0x01, 0xf0, 0];
        let expected = [
            Run { first: 7, count: 0x30, at: Some(0x1234) },
            Run { first: 0x37, count: 5, at: None },
            Run { first: 0x3c, count: 1, at: Some(0x1224) },
        ];
        assert_eq!(runs(&bytes, 7).unwrap(), expected);
        for nonsense in [
            &[0x11][..],
            &[0x11, 1],
            &[0x11, 0, 1, 0],
            &[0x11, 0xff, 1, 0],
            &[0x11, 1, 0xff, 0],
            &[0xf1, 1, 1],
        ] {
            assert_eq!(runs(nonsense, 0), None, "{nonsense:x?}");
        }
        assert_eq!(runs(&[0x01, 1, 0], u64::MAX), None);
    }

    #[test]
    fn a_torn_record_is_found_by_its_fix_ups() {
        let mut block = vec![0; 1024];
        block[..8].copy_from_slice(b"FILE\x30\0\x03\0");
        block[0x30..0x36].copy_from_slice(&[9, 9, 1, 2, 3, 4]);
        for end in [510, 1022] {
            block[end..end + 2].copy_from_slice(&[9, 9]);
        }
        let good = fixed_up(block.clone(), b"FILE").unwrap();
        assert_eq!((&good[510..512], &good[1022..]), (&[1, 2][..], &[3, 4][..]));
        block[1022] = 8;
        assert!(fixed_up(block, b"FILE").is_err());
    }

    #[test]
    fn parts_of_an_attribute_are_joined_in_their_order() {
        let volume: Vec<u8> = [[1; 512], [2; 512], [3; 512]].concat();
        let part = |first, at, size| Attribute {
            kind: 0x80,
            name: String::new(),
            flags: 0,
            body: Body::Runs {
                first,
                runs: vec![Run { first, count: 1, at: Some(at) }],
                size,
                initialized: size,
            },
        };
        let joined = |parts| Stream::of(&volume, 512, parts);
        let whole = joined(vec![part(1, 0, 0), part(0, 2, 1400), part(2, 1, 0)]).unwrap().unwrap();
        let read = whole.read_all(1400).unwrap();
        assert_eq!((read.len(), read[0], read[512], read[1399]), (1400, 3, 1, 2));
        for torn in [
            vec![part(1, 0, 0)],
            vec![part(0, 2, 600), part(2, 0, 0)],
            vec![part(0, 2, 600), part(0, 2, 600)],
        ] {
            assert!(matches!(joined(torn), Err(Fault::Damaged { .. })));
        }
        let short = joined(vec![part(0, 2, 600)]).unwrap().unwrap();
        assert!(short.read_all(600).is_err(), "fewer clusters than bytes");
        for flags in [1, 0x4000] {
            let packed = Attribute { flags, ..part(0, 2, 100) };
            assert!(matches!(joined(vec![packed]), Err(Fault::Unsupported { .. })));
        }
        assert!(joined(Vec::new()).unwrap().is_none());
    }

    #[test]
    fn what_was_never_written_reads_as_zeros() {
        let volume = vec![7; 8192];
        let contents = Contents::Runs {
            runs: vec![Run { first: 0, count: 1, at: Some(1) }, Run { first: 1, count: 1, at: None }],
            size: 6000,
            initialized: 100,
        };
        let stream = Stream { volume: &volume, cluster: 4096, contents };
        let read = stream.read_all(6000).unwrap();
        assert!(read[..100].iter().all(|byte| *byte == 7) && read[100..].iter().all(|byte| *byte == 0));
        assert!(stream.read_all(5999).is_err());
    }
}

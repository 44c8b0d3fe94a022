//! The answer of `qemu-img map`: which bytes of an image are zeros, and in which layer of its chain the others lie.
//!
//! A disk with clusters of 4 KiB that was used for a while has some hundred thousand entries, each of about 150 bytes
//! of JSON. They are read while they come, and neighbours become one [`Extent`].
//!
//! Format: QEMU, `docs/tools/qemu-img.rst`, "map": one flat object for each entry. Offsets are counted in the file of
//! the entry's layer, and absent where the bytes do not lie there as the guest sees them (compressed, encrypted).

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_host::process::Invocation;
use kiln_host::wait::Control;
use serde::Deserialize;

use super::QemuImgError;

/// Bytes of an image that are not known to be zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the image.
    pub start: u64,
    /// In bytes; not 0.
    pub length: u64,
    /// Which layer has it: 0 is the image itself, 1 what lies below it, and so on.
    pub layer: usize,
    /// Where it begins in the file of its layer.
    pub offset: u64,
}

impl Extent {
    /// Where it ends in the image.
    pub fn end(&self) -> u64 {
        self.start + self.length
    }
}

/// Where the bytes of an image lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map {
    /// Bytes from the image's beginning that were told of, without a gap.
    pub length: u64,
    /// In order. What none of them covers are zeros.
    pub extents: Vec<Extent>,
    /// Whether there are bytes that lie in no file as they are, so that only QEMU can read them.
    pub indirect: bool,
}

#[derive(Deserialize)]
struct Entry {
    start: u64,
    length: u64,
    depth: usize,
    zero: bool,
    offset: Option<u64>,
}

pub(super) async fn read(command: &Invocation, path: &Path, control: &Control) -> Result<Map, QemuImgError> {
    let reader = Arc::new(Mutex::new(Reader::default()));
    let watch = {
        let reader = Arc::clone(&reader);
        move |bytes: &[u8]| reader.lock().unwrap_or_else(PoisonError::into_inner).take(bytes)
    };
    command.run_streamed(control, watch).await?;
    let reader = std::mem::take(&mut *reader.lock().unwrap_or_else(PoisonError::into_inner));
    reader.finish().map_err(|source| QemuImgError::Answer { path: path.to_owned(), source })
}

#[derive(Default)]
struct Reader {
    map: Map,
    /// The beginning of an entry whose end has not come yet.
    rest: Vec<u8>,
    failed: Option<serde_json::Error>,
}

impl Reader {
    fn take(&mut self, bytes: &[u8]) {
        // Objects are flat and hold no text, so each ends with the next brace.
        for part in bytes.split_inclusive(|byte| *byte == b'}') {
            if self.failed.is_some() {
                return;
            }
            self.rest.extend_from_slice(part);
            if part.ends_with(b"}") {
                let begin = self.rest.iter().position(|byte| *byte == b'{').unwrap_or(0);
                match serde_json::from_slice(&self.rest[begin..]) {
                    Ok(entry) => self.map.add(&entry),
                    Err(error) => self.failed = Some(error),
                }
                self.rest.clear();
            }
        }
    }

    fn finish(self) -> Result<Map, serde_json::Error> {
        match self.failed {
            Some(error) => Err(error),
            None => Ok(self.map),
        }
    }
}

impl Map {
    fn add(&mut self, entry: &Entry) {
        let Entry { start, length, depth, zero, offset } = *entry;
        // An answer that leaves something out, or ends nowhere, is one that we do not understand.
        let end = start.checked_add(length).filter(|_| start == self.length);
        let Some(end) = end else {
            self.indirect = true;
            return;
        };
        self.length = end;
        if zero || length == 0 {
            return;
        }
        let Some(offset) = offset.filter(|offset| offset.checked_add(length).is_some()) else {
            self.indirect = true;
            return;
        };
        match self.extents.last_mut() {
            Some(last)
                if last.end() == start && last.layer == depth && last.offset + last.length == offset =>
            {
                last.length += length;
            }
            _ => self.extents.push(Extent { start, length, layer: depth, offset }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU 10.0 writes it; 7.2 has no `compressed`.
    const ANSWER: &str = r#"[{ "start": 0, "length": 4096, "depth": 1, "present": true, "zero": false, "data": true, "offset": 65536},
{ "start": 4096, "length": 4096, "depth": 1, "present": true, "zero": false, "data": true, "compressed": false, "offset": 69632},
{ "start": 8192, "length": 4096, "depth": 0, "present": true, "zero": false, "data": true, "compressed": false, "offset": 73728},
{ "start": 12288, "length": 8192, "depth": 0, "present": true, "zero": true, "data": false, "compressed": false, "offset": 77824},
{ "start": 20480, "length": 4096, "depth": 0, "present": true, "zero": false, "data": true, "compressed": false, "offset": 81920},
{ "start": 24576, "length": 4096, "depth": 0, "present": true, "zero": false, "data": true, "compressed": false, "offset": 94208}]
"#;

    fn read(text: &str, piece: usize) -> Result<Map, serde_json::Error> {
        let mut reader = Reader::default();
        text.as_bytes().chunks(piece).for_each(|piece| reader.take(piece));
        reader.finish()
    }

    #[test]
    fn neighbours_in_one_layer_are_one_extent() {
        for piece in [1, 2, 3, 100, 16 << 10] {
            let map = read(ANSWER, piece).unwrap();
            let expected = [
                Extent { start: 0, length: 8192, layer: 1, offset: 65536 },
                Extent { start: 8192, length: 4096, layer: 0, offset: 73728 },
                Extent { start: 20480, length: 4096, layer: 0, offset: 81920 },
                Extent { start: 24576, length: 4096, layer: 0, offset: 94208 },
            ];
            assert_eq!(map, Map { length: 28672, extents: expected.to_vec(), indirect: false }, "{piece}");
        }
        assert_eq!(read("[]", 1).unwrap(), Map::default());
    }

    #[test]
    fn what_cannot_be_read_from_a_file_is_seen() {
        for (from, to) in [
            (r#", "offset": 81920"#, ""),
            (r#""start": 20480"#, r#""start": 20481"#),
            (r#""offset": 81920"#, r#""offset": 18446744073709551615"#),
        ] {
            assert!(read(&ANSWER.replace(from, to), 64).unwrap().indirect, "{to}");
        }
        assert!(read(&ANSWER.replace("\"depth\": 0", "\"depth\": -1"), 64).is_err());
        assert!(read("}", 64).is_err());
    }
}

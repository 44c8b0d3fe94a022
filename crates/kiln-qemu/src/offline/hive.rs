//! A registry hive as a file, read and never written. The format is not documented by its maker; this follows
//! Maxim Suhanov's "Windows registry file format specification".
//!
//! ```text
//!   base block (4096 bytes: "regf", sequence numbers, root cell, checksum)
//!   cells: nk key ──► lf, lh, li list of subkeys (or ri: list of lists) ──► nk …
//!              └────► list of values ──► vk value ──► data
//! ```
//!
//! Windows first writes changes into log files beside the hive (`.LOG1`, `.LOG2`), and into the hive when it has time,
//! at the latest at a clean shutdown. While the logs hold more than the hive, the two sequence numbers of the base block
//! differ: [`Hive::pending`]. The logs are not read here; what such a hive says was true once.
//!
//! How it fails: only what is looked at is checked. A loop of cells cannot be followed for ever, because a path has an
//! end, a list of lists holds no third level, and both are read up to a limit.

use super::source::{Fault, ReadAt, bytes_at, damaged, same_name, u16_at, u32_at, utf16};

pub(super) const WHAT: &str = "the registry hive";
const BASE_BLOCK: u64 = 4096;
/// The longest list Windows makes is far below; so is every value that is asked for.
const CELL_LIMIT: u32 = 1 << 20;
/// Subkeys or values of one key that are looked at.
const CHILDREN_LIMIT: u32 = 1 << 17;
/// Longer data is spread over several cells ("db"), which nothing asked for is.
const DATA_LIMIT: u32 = 16_344;
/// "No cell".
const NOWHERE: u32 = u32::MAX;

/// A hive whose base block is sound.
pub(super) struct Hive<'d> {
    file: &'d dyn ReadAt,
    root: u32,
    /// Bytes of cells after the base block.
    length: u32,
    /// Its log files hold changes that are not in it.
    pub pending: bool,
}

/// A key that exists.
#[derive(Debug)]
pub(super) struct Key {
    cell: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Value {
    kind: u32,
    data: Vec<u8>,
}

impl Value {
    /// `REG_SZ` or `REG_EXPAND_SZ`, without what follows its end.
    pub fn text(&self) -> Option<String> {
        let text = matches!(self.kind, 1 | 2).then(|| utf16(&self.data))?;
        Some(text.split('\0').next().unwrap_or_default().to_owned())
    }

    /// `REG_DWORD`.
    pub fn number(&self) -> Option<u32> {
        (self.kind == 4 && self.data.len() == 4).then(|| u32_at(&self.data, 0)).flatten()
    }
}

impl<'d> Hive<'d> {
    pub fn open(file: &'d dyn ReadAt) -> Result<Self, Fault> {
        let bad = |how: &str| damaged(WHAT, how);
        if file.size() < BASE_BLOCK {
            return Err(bad("it is shorter than its first block"));
        }
        let base = file.read_vec(0, 512)?;
        if !base.starts_with(b"regf") {
            return Err(bad("it does not start as one"));
        }
        let number = |at| u32_at(&base, at).ok_or_else(|| bad("its first block is cut off"));
        let mut sum = 0;
        for at in (0..508).step_by(4) {
            sum ^= number(at)?;
        }
        // Two sums are never written (specification, "base block").
        let sum = match sum {
            0 => 1,
            u32::MAX => u32::MAX - 1,
            sum => sum,
        };
        if number(508)? != sum {
            return Err(bad("the checksum of its first block is wrong"));
        }
        if (number(20)?, number(28)?, number(32)?) != (1, 0, 1) {
            return Err(bad("its format is none that Windows has"));
        }
        let length = number(40)?;
        if BASE_BLOCK + u64::from(length) > file.size() {
            return Err(bad("it is cut off"));
        }
        Ok(Self { file, root: number(36)?, length, pending: number(4)? != number(8)? })
    }

    /// The key at `path`, names apart by backslashes, without the hive's own.
    pub fn key(&self, path: &str) -> Result<Option<Key>, Fault> {
        let mut key = self.key_at(self.root)?;
        for name in path.split('\\').filter(|name| !name.is_empty()) {
            match self.child(&key, name)? {
                Some(child) => key = child,
                None => return Ok(None),
            }
        }
        Ok(Some(key))
    }

    /// A value of a key at `path`; `None` where key or value is absent.
    pub fn value(&self, path: &str, name: &str) -> Result<Option<Value>, Fault> {
        match self.key(path)? {
            Some(key) => self.value_cell(&key, name)?.map(|cell| self.data(&cell)).transpose(),
            None => Ok(None),
        }
    }

    /// Whether a value is there, however long it is.
    pub fn has_value(&self, path: &str, name: &str) -> Result<bool, Fault> {
        match self.key(path)? {
            Some(key) => Ok(self.value_cell(&key, name)?.is_some()),
            None => Ok(false),
        }
    }

    fn value_cell(&self, key: &Key, name: &str) -> Result<Option<Vec<u8>>, Fault> {
        let cut = || damaged(WHAT, "a key is cut off");
        let count = u32_at(&key.cell, 36).ok_or_else(cut)?;
        if count == 0 {
            return Ok(None);
        }
        let list = self.cell(u32_at(&key.cell, 40).ok_or_else(cut)?)?;
        for index in 0..usize::try_from(within_limit(count)?).unwrap_or(0) {
            let at = u32_at(&list, index * 4).ok_or_else(|| damaged(WHAT, "a list of values is cut off"))?;
            let cell = self.cell(at)?;
            if same_name(&name_in(&cell, b"vk", 2, 20, 16, 1)?, name) {
                return Ok(Some(cell));
            }
        }
        Ok(None)
    }

    fn data(&self, cell: &[u8]) -> Result<Value, Fault> {
        let cut = || damaged(WHAT, "a value is cut off");
        let told = u32_at(cell, 4).ok_or_else(cut)?;
        let kind = u32_at(cell, 12).ok_or_else(cut)?;
        // Up to four bytes lie where the offset of longer ones would.
        let (length, inside) = (told & 0x7fff_ffff, told & 0x8000_0000 != 0);
        if length > DATA_LIMIT || (inside && length > 4) {
            return Err(damaged(WHAT, format!("a value of {length} bytes where none is as long")));
        }
        let length = usize::try_from(length).map_err(|_| cut())?;
        let data = if inside {
            bytes_at(cell, 8, length).ok_or_else(cut)?.to_vec()
        } else if length == 0 {
            Vec::new()
        } else {
            let data = self.cell(u32_at(cell, 8).ok_or_else(cut)?)?;
            bytes_at(&data, 0, length).ok_or_else(cut)?.to_vec()
        };
        Ok(Value { kind, data })
    }

    fn child(&self, key: &Key, name: &str) -> Result<Option<Key>, Fault> {
        let cut = || damaged(WHAT, "a key is cut off");
        if u32_at(&key.cell, 20).ok_or_else(cut)? == 0 {
            return Ok(None);
        }
        let list = self.cell(u32_at(&key.cell, 28).ok_or_else(cut)?)?;
        let lists = if list.starts_with(b"ri") {
            let lists: Result<Vec<_>, _> = entries(&list, 4)?.map(|at| self.cell(at?)).collect();
            lists?
        } else {
            vec![list]
        };
        let mut looked_at = 0;
        for list in lists {
            let entry_length = match list.get(..2) {
                Some(b"lf" | b"lh") => 8,
                Some(b"li") => 4,
                _ => return Err(damaged(WHAT, "a list of keys is none")),
            };
            for at in entries(&list, entry_length)? {
                looked_at = within_limit(looked_at + 1)?;
                let child = self.key_at(at?)?;
                if same_name(&name_in(&child.cell, b"nk", 72, 76, 2, 0x20)?, name) {
                    return Ok(Some(child));
                }
            }
        }
        Ok(None)
    }

    fn key_at(&self, at: u32) -> Result<Key, Fault> {
        let cell = self.cell(at)?;
        if !cell.starts_with(b"nk") || cell.len() < 76 {
            return Err(damaged(WHAT, "a key is none"));
        }
        Ok(Key { cell })
    }

    /// The contents of a cell in use.
    fn cell(&self, at: u32) -> Result<Vec<u8>, Fault> {
        let bad = |how: &str| damaged(WHAT, format!("the cell at {at:#x} {how}"));
        if at == NOWHERE || !at.is_multiple_of(8) || at.checked_add(8).is_none_or(|end| end > self.length) {
            return Err(bad("lies nowhere"));
        }
        let start = BASE_BLOCK + u64::from(at);
        let mut told = [0; 4];
        self.file.read_at(start, &mut told)?;
        // Negative: in use.
        let size = i32::from_le_bytes(told);
        if size >= 0 {
            return Err(bad("is free"));
        }
        let size = size.unsigned_abs();
        if !(8..=CELL_LIMIT).contains(&size) || at.checked_add(size).is_none_or(|end| end > self.length) {
            return Err(bad("has an absurd length"));
        }
        self.file.read_vec(start + 4, usize::try_from(size - 4).map_err(|_| bad("is too long"))?)
    }
}

fn within_limit(count: u32) -> Result<u32, Fault> {
    if count > CHILDREN_LIMIT {
        return Err(damaged(WHAT, format!("a key of more than {CHILDREN_LIMIT} entries")));
    }
    Ok(count)
}

/// The offsets of a list whose entries start with them.
fn entries(list: &[u8], entry_length: usize) -> Result<impl Iterator<Item = Result<u32, Fault>>, Fault> {
    let cut = || damaged(WHAT, "a list of keys is cut off");
    let count = u16_at(list, 2).ok_or_else(cut)?;
    Ok((0..usize::from(count)).map(move |index| u32_at(list, 4 + index * entry_length).ok_or_else(cut)))
}

/// The name in a cell: its length at `length_at`, Latin-1 where `flags_at` has the bit `narrow`, UTF-16 elsewhere.
fn name_in(
    cell: &[u8],
    signature: &[u8],
    length_at: usize,
    name_at: usize,
    flags_at: usize,
    narrow: u16,
) -> Result<String, Fault> {
    let cut = || damaged(WHAT, "a name is cut off");
    if !cell.starts_with(signature) {
        return Err(damaged(WHAT, "a key or value is none"));
    }
    let length = u16_at(cell, length_at).ok_or_else(cut)?;
    let bytes = bytes_at(cell, name_at, length.into()).ok_or_else(cut)?;
    if u16_at(cell, flags_at).ok_or_else(cut)? & narrow != 0 {
        return Ok(bytes.iter().map(|byte| char::from(*byte)).collect());
    }
    Ok(utf16(bytes))
}

//! Disks with changed bytes, cut off, or both: an error or an answer, in bounded work; never a panic.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::super::hive::Hive;
use super::super::judge::{self, Found};
use super::super::source::{Fault, ReadAt, within};
use super::super::{HiveName, Trace};
use super::made::{self, SOFTWARE, SYSTEM, have_tools};
use super::{expected, volume};

/// More reads than any of these small disks can need: beyond it, it would be a loop.
const READS: u32 = 200_000;

/// A second or two; 20,000 have been run.
const CASES: u32 = 1000;

/// A disk with some numbers changed and an end of its own, that counts how often it is read.
struct Changed<'b> {
    bytes: &'b [u8],
    size: u64,
    changes: Vec<(u64, Vec<u8>)>,
    reads: Cell<u32>,
    /// Sectors of 64 bytes that were read.
    touched: RefCell<BTreeSet<u64>>,
}

impl<'b> Changed<'b> {
    fn new(bytes: &'b [u8], size: u64, changes: Vec<(u64, Vec<u8>)>) -> Self {
        Self { bytes, size, changes, reads: Cell::new(0), touched: RefCell::default() }
    }
}

impl ReadAt for Changed<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        self.reads.set(self.reads.get() + 1);
        assert!(self.reads.get() < READS, "it reads and reads");
        within(self.size, offset, buffer.len())?;
        let length = u64::try_from(buffer.len()).unwrap();
        let start = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.bytes[start..start + buffer.len()]);
        if self.changes.is_empty() && length <= 4096 {
            self.touched.borrow_mut().extend(offset / 64..(offset + length).div_ceil(64));
        }
        for (at, change) in &self.changes {
            for (at, byte) in (*at..).zip(change) {
                if let Some(target) = at.checked_sub(offset).and_then(|at| usize::try_from(at).ok())
                    && let Some(target) = buffer.get_mut(target)
                {
                    *target = *byte;
                }
            }
        }
        Ok(())
    }
}

/// Bytes that damage well: any, and numbers that are limits of something.
fn nonsense() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        any::<u8>().prop_map(|byte| vec![byte]),
        any::<u32>().prop_map(|number| number.to_le_bytes().to_vec()),
        prop_oneof![
            Just(0),
            Just(u32::MAX),
            Just(0x8000_0000),
            Just(0x7fff_ffff),
            Just(0xffff),
            Just(32),
            Just(1)
        ]
        .prop_map(|number: u32| number.to_le_bytes().to_vec()),
        any::<u16>().prop_map(|number| number.to_le_bytes().to_vec()),
        Just(u64::MAX.to_le_bytes().to_vec()),
    ]
}

/// Places that are looked at, changed at random, and now and then another end.
fn changes(touched: Vec<u64>, size: u64) -> impl Strategy<Value = (u64, Vec<(u64, Vec<u8>)>)> {
    let place = (proptest::sample::select(touched), 0..64_u64).prop_map(|(at, inside)| at * 64 + inside);
    let end = prop_oneof![9 => Just(size), 1 => 0..size];
    (end, proptest::collection::vec((place, nonsense()), 1..6))
}

#[test]
fn a_broken_disk_is_an_error_or_an_answer() {
    if !have_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = made::gpt(dir.path(), &volume(dir.path(), SOFTWARE, SYSTEM, "many\t/Windows\t200\n"));
    let bytes = fs::read(disk).unwrap();
    let size = bytes.size();
    let wanted = [
        Trace::File { path: r"\Windows\file 00150.dll".into() },
        Trace::Value { hive: HiveName::Software, path: r"Microsoft\Windows".into(), name: "x".into() },
    ];
    let whole = Changed::new(&bytes, size, Vec::new());
    assert_eq!(judge::windows(&whole).unwrap(), Found::Windows(expected()));
    judge::traces(&whole, &wanted).unwrap();
    let touched: Vec<_> = whole.touched.borrow().iter().copied().collect();
    let (mut wrong, mut right) = (0, 0);
    let mut runner = TestRunner::new(ProptestConfig { cases: CASES, ..ProptestConfig::default() });
    runner
        .run(&changes(touched, size), |(size, changes)| {
            let broken = Changed::new(&bytes, size, changes);
            let _ = judge::traces(&broken, &wanted);
            let _ = judge::windows(&broken);
            Ok(())
        })
        .unwrap();
    // Changes one by one, to see that both happen.
    for at in (0..size).step_by(64).filter(|at| whole.touched.borrow().contains(&(at / 64))) {
        match judge::windows(&Changed::new(&bytes, size, vec![(at + 2, vec![0xff; 8])])) {
            Ok(_) => right += 1,
            Err(_) => wrong += 1,
        }
    }
    assert!(wrong > 20 && right > 20, "{wrong} errors, {right} answers");
}

#[test]
fn a_broken_hive_is_an_error_or_an_answer() {
    if !have_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bytes = fs::read(made::hive(dir.path(), "SOFTWARE", SOFTWARE)).unwrap();
    let size = bytes.size();
    // Everything after the first block, whose checksum would say no at once.
    let touched: Vec<_> = (64..size / 64).collect();
    let mut runner = TestRunner::new(ProptestConfig { cases: CASES, ..ProptestConfig::default() });
    runner
        .run(&changes(touched, size), |(size, changes)| {
            let broken = Changed::new(&bytes, size, changes);
            if let Ok(hive) = Hive::open(&broken) {
                for (path, values) in SOFTWARE {
                    for (name, _) in *values {
                        let value = hive.value(path, name);
                        let _ = value.map(|value| value.map(|value| (value.text(), value.number())));
                    }
                }
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn damage_is_named() {
    let minimal = include_bytes!("../../../tests/fixtures/minimal.hive").to_vec();
    assert!(Hive::open(&minimal).unwrap().key("").unwrap().is_some());
    let said = |hive: Vec<u8>| match Hive::open(&hive).and_then(|hive| hive.key(r"a\b").map(drop)) {
        Err(Fault::Damaged { how, .. }) => how,
        other => panic!("{other:?}"),
    };
    assert_eq!(said(vec![0; 8192]), "it does not start as one");
    assert_eq!(said(minimal[..4095].to_vec()), "it is shorter than its first block");
    assert_eq!(said(minimal[..8191].to_vec()), "it is cut off");
    let mut torn = minimal.clone();
    torn[4] = 9;
    assert_eq!(said(torn), "the checksum of its first block is wrong");

    // The root's list of subkeys is the root itself; then a list that names the root as its own child.
    let root = 4096 + 32 + 4;
    let mut looped = minimal.clone();
    looped[root + 20..root + 24].copy_from_slice(&1_u32.to_le_bytes());
    looped[root + 28..root + 32].copy_from_slice(&32_u32.to_le_bytes());
    assert_eq!(said(looped.clone()), "a list of keys is none");
    let list = 4096 + 512;
    looped[list..list + 12].copy_from_slice(b"\xe0\xff\xff\xffri\x01\0\0\x02\0\0");
    looped[root + 28..root + 32].copy_from_slice(&512_u32.to_le_bytes());
    assert_eq!(said(looped.clone()), "a list of keys is none", "a list of lists in itself");
    looped[list + 4..list + 8].copy_from_slice(b"lh\xff\xff");
    for entry in [8, 16, 24] {
        looped[list + entry..list + entry + 4].copy_from_slice(&32_u32.to_le_bytes());
    }
    assert_eq!(said(looped.clone()), "a list of keys is cut off", "more keys than room");
    looped[list..list + 4].copy_from_slice(&i32::MIN.to_le_bytes());
    assert_eq!(said(looped), "the cell at 0x200 has an absurd length");
}

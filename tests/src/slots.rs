//! Two guests at a time, on the whole host: an emulated guest takes a core, and more than there are cores wait for each
//! other's locks.
//!
//! The slots are file locks, so that several test processes share them, and a killed
//! one gives its slot back.

use std::fs::{File, TryLockError};
use std::time::Duration;

const SLOTS: usize = 2;

/// The right to run one guest; given back when dropped.
#[derive(Debug)]
pub struct Slot {
    _file: File,
}

/// Waits for a slot. Tests of guests wait their turn here, as long as it takes: every
/// holder is bounded itself. Who came first is served first: one that wants a second
/// slot would else wait for as long as others come, and hold its first one idle.
pub fn take() -> Slot {
    let folder = crate::settings::test_data();
    let turn = File::create(folder.join("guest-turn")).unwrap();
    turn.lock().unwrap();
    loop {
        for number in 0..SLOTS {
            let file = File::create(folder.join(format!("guest-slot-{number}"))).unwrap();
            match file.try_lock() {
                Ok(()) => return Slot { _file: file },
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => panic!("cannot lock a guest slot: {error}"),
            }
        }
        // A lock on one of several files has no event to wait for.
        std::thread::sleep(Duration::from_millis(50));
    }
}

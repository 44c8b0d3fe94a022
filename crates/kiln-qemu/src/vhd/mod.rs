//! Fixed VHDs as Azure wants them: the disk's bytes, then a footer of 512.
//!
//! INVARIANT: a distributed VHD is fixed, a whole number of MiB plus a 512-byte footer. Guarded here: [`Footer::fixed`]
//! takes no other size, and [`write_fixed`] is the only way to write one.
//!
//! Format: Microsoft, "Virtual Hard Disk Image Format Specification", version 1.0 (2006). Azure's rules: "Prepare a
//! VHD for Azure", create-upload-generic.

mod footer;
mod write;

pub use footer::{FOOTER_LENGTH, Footer, FooterError, read_fixed};
pub use write::{FooterOptions, Progress, VhdError, VhdWritten, write_fixed};

pub const MIB: u64 = 1 << 20;

/// The next whole number of MiB; `None` beyond what a disk can be (2^63 - 1 bytes).
pub fn round_up_mib(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(MIB).filter(|size| i64::try_from(*size).is_ok())
}

//! Fixed VHDs as Azure wants them: the disk's bytes, then a footer of 512.
//!
//! INVARIANT: a distributed VHD is fixed, a whole number of MiB plus a 512-byte footer. Guarded here: [`Footer::fixed`]
//! takes no other size, and [`write_fixed`] and [`copy_fixed`], which make one of it, are the only ways to write one.
//!
//! ```text
//!   Image ──► source   the files that have its bytes, and where (qemu-img map)
//!                │            └── none, for compressed clusters and the like: qemu-img convert, then read
//!                ▼
//!             copy     every block read once: hashed, written, hashed in the file's order
//!                │
//!                ▼
//!             Aside, with its footer ──► published by the caller ──► read: verified later
//! ```
//!
//! Format: Microsoft, "Virtual Hard Disk Image Format Specification", version 1.0 (2006). Azure's rules: "Prepare a
//! VHD for Azure", create-upload-generic.

mod copy;
mod error;
mod footer;
mod read;
mod source;
#[cfg(test)]
mod tests;
mod write;

pub use error::VhdError;
pub use footer::{FOOTER_LENGTH, Footer, FooterError, read_fixed};
pub use read::verify;
pub use write::{FooterOptions, OnPercent, VhdCopied, VhdWritten, copy_fixed, write_fixed};

pub const MIB: u64 = 1 << 20;

/// The next whole number of MiB; `None` beyond what a disk can be (2^63 - 1 bytes).
pub fn round_up_mib(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(MIB).filter(|size| i64::try_from(*size).is_ok())
}

//! The machine: QEMU, its disks and its media. Knows no templates and no runs.
//!
//! ```text
//!   Qemu::find ──► probe_accelerator ──► Accelerator
//!                                             │
//!   BaseImage ──► Overlay ──► Machine (plain data) ──► argv::arguments (pure) ──► Vm::start
//!   (read-only)                                                                      │
//!                             kill, a crash, a panic ◄──────────────────────────────┤
//!                             nothing comes out                                      │ the guest shuts down cleanly
//!                                                                                    ▼
//!                             VHD ◄── vhd::write_fixed ◄── Image ◄── StoppedMachine
//! ```
//!
//! Of a disk with a Windows on it, [`offline`] tells what its machine may be and what Sysprep left, without starting it.
//!
//! Who owns what: an [`disk::Overlay`] has one owner, which is moved into the [`machine::Machine`], with it into the
//! [`vm::Vm`], and comes out again only of a guest that shut down cleanly. A base image is only ever read. QEMU and
//! qemu-img are found once ([`host::Qemu::find`]) and asked what they can do; no version number decides anything.
//!
//! How it fails: every module has its error type, which names file, program and act; the program's own words are in it.

pub mod argv;
pub mod disk;
pub mod firmware;
pub mod host;
pub mod machine;
pub mod media;
pub mod offline;
pub mod portrait;
pub mod qemu_img;
pub mod qmp;
pub mod tpm;
pub mod vhd;
pub mod vm;

//! The ground everything else stands on: waiting, external programs, publishing, locks, digests and room.
//!
//! Nothing here knows what Kiln is for. Each module owns one promise towards the operating system:
//!
//! | module      | promise                                                                               |
//! |-------------|---------------------------------------------------------------------------------------|
//! | [`wait`]    | no wait without an end: every wait also ends by cancellation and by a deadline          |
//! | [`process`] | the one door to external programs; no program outlives who started it                  |
//! | [`publish`] | a file appears complete or not at all                                                  |
//! | [`lock`]    | who holds a file's lock lives; a dead holder's lock is free                             |
//! | [`digest`]  | SHA-256 of files, without reading their holes                                          |
//! | [`extents`] | a digest of a file's data alone, by all processors                                    |
//! | [`holes`]   | where a file has no data                                                               |
//! | [`space`]   | how much disk, memory and how many processors are really there                         |
//!
//! Linux only: process groups, `PDEATHSIG`, `flock` and `SEEK_HOLE` are used as Linux has them.

pub mod digest;
pub mod extents;
pub mod holes;
pub mod lock;
pub mod process;
pub mod publish;
pub mod space;
pub mod wait;

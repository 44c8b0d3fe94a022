//! The shelves against servers that misbehave and files that are not what they seem.
//!
//! The servers are real ones on loopback that can lie in every way a script can say; qemu-img is the real one.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod checkpoints;
mod crowd;
mod files;
mod images;
mod inputs;
mod network;
mod processes;
mod pulls;
mod server;
mod store;

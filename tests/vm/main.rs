//! Tests with real guests: the real command, real QEMU, and what comes out of it.
//!
//! `tiny` uses the tiny guest (up in seconds): every way in which a build can end,
//! in every phase. `debian` uses the Debian 12 base image: what a user gets, looked at
//! from outside, from inside, and byte by byte. Builds are dear, so one rich build is
//! made once and looked at by many tests.
//!
//! Two guests run at a time, whatever the number of test threads (`kiln_tests::slots`).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by a panic")]

mod debian;
mod lab;
mod tiny;

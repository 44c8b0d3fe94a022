//! Tests without a guest.
//!
//! `workspace` looks at the source tree and needs nothing else (a part of `make check`);
//! `command` drives the built command against a library with base images.

// The command's tests are written in the harness's words.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by a panic")]

mod command;
mod workspace;

//! The real binary from outside. One test program for all of it: it links once.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test that cannot go on panics; it starts the binary itself, as a shell would"
)]

mod command;
mod common;
mod guide;
mod images;
mod server;
mod template;

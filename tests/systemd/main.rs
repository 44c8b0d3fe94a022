//! The Debian package, and its service under a real systemd.
//!
//! `package` looks at what `scripts/deb` makes. `life` boots one virtual machine (Debian 12
//! with systemd, made by `scripts/systemd-guest`) and takes the package through its life in
//! there: installed, serving, restarted and upgraded in the middle of runs, backed up and
//! restored, removed, purged. Runs inside are real: the tiny guest in a virtual machine in
//! the virtual machine.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by a panic")]

mod life;
mod machine;
mod package;

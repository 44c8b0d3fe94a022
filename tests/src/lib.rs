//! The harness: what a test of the whole command needs.
//!
//! ```text
//!  Kiln (a home of its own, the shared images) ── build(template) ──► Running ── wait ──► Ended
//!                                                                       │ events, pids, kill, interrupt
//!  Disk     looks into a finished image without booting it (debugfs, partition tables)
//!  Ntfs     looks into the c:\ of the lab's guest (ntfs-3g, hivex)
//!  Reboot   boots it again, with other keys than the build's, and asks it things
//!  Footer   reads a VHD's footer by the published specification
//!  Server   serves scripts and files, well or badly
//!  Daemon   `kiln serve` of a home, asked by curl
//!  Lab      the lab's WinRM server, treated badly by rules, counted by its log
//!  census   which processes a run has, and had
//! ```
//! Nothing here is Kiln's own code: the command is driven as a person drives it, and
//! what it leaves is read with other people's programs or by the specification. So a
//! mistake cannot hide by being made on both sides.
//!
//! Where a test needs what this machine lacks, it is skipped *with the reason shown*.

// Tests end by panics, and the harness is part of them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a harness fails a test by a panic")]
#![allow(clippy::missing_panics_doc, reason = "a harness fails a test by a panic")]

pub mod census;
pub mod daemon;
pub mod daemon_run;
pub mod disk;
pub mod footer;
pub mod keys;
pub mod kiln;
pub mod lab;
pub mod ntfs;
pub mod program;
pub mod reboot;
pub mod server;
pub mod settings;
pub mod slots;
pub mod template;
pub mod tree;

/// Ends a test early and says why, where a person sees it.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        $crate::program::say(&format!("skipped: {}", format_args!($($reason)*)));
        return;
    }};
}

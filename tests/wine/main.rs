//! Kiln's WinRM client and its PowerShell texts on a machine of the lab's that is Wine's: cmd.exe, the registry, `c:\`,
//! services and processes are real programs' own, and `powershell.exe` is the engine's Windows build.
//!
//! ```text
//!   WinrmGuest ── HTTPS, NTLM ──► tests/lab/winrmd.py --backend wine ──► cmd.exe, powershell.exe, Sysprep.exe, schtasks.exe
//! ```
//! No Windows, and no test of one: tests/lab/README.md says what is Wine's here and what is the lab's. Each test has a
//! machine of its own. Where the lab on Wine is not made, each is skipped, with the reason shown.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by a panic")]

mod cmd;
mod machine;
mod powershell;
mod restart;
mod sysprep;
mod task;

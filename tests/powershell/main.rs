//! Every PowerShell text that a Windows guest is sent, run in a real PowerShell engine, branch by branch.
//!
//! The engine is PowerShell 7 on Linux: its language, its streams, its exit codes are real. What is Windows' own
//! (services, tasks, the registry, Windows Update, Sysprep) are doubles in `doubles.ps1`, and a call that no double
//! provides for ends the engine with 250. So what is shown here is what the texts *do with* Windows' answers, not
//! what Windows answers; and `language` shows that they hold to Windows PowerShell 5.1's language.
//!
//! The engine is named by `KILN_PWSH` or found on the PATH; without one each test is skipped, with the reason shown.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by a panic")]

mod bootstrap;
mod facts;
mod lab;
mod language;
mod medium;
mod place;
mod renew;
mod script;
mod sysprep;
mod task;
mod update;

//! A guest reached over WinRM (MS-WSMV): commands, PowerShell, files, restarts.
//!
//! ```text
//!   WinrmLogin (address, HTTPS with a pinned certificate or sealed HTTP, account)            login
//!     │ WinrmGuest::connect   tries until the guest answers and lets us in                    connect
//!     ▼
//!   WinrmGuest ─ run, powershell, exec     output as it comes, exit code                      guest, command, clixml
//!     ├─ upload, take                      a file, its digest checked inside                  upload, medium
//!     ├─ boot_id                           which boot it is: a restart, proven                boot
//!     └─ lanes: a shell and its connections, replaced when lost                               lane
//!          └─ Channel: one connection, logged in; envelopes sealed where there is no TLS      channel, negotiate, sealed
//!               ├─ Recorder, if wanted: each exchange in the plain, without secrets            recorder, redact
//!               └─ Wire: HTTP/1.1 on one TCP or TLS connection                                http, tls
//!   envelopes written and read, faults and what to do about them                              soap, answer, xml, fault
//! ```
//!
//! Who owns what: authentication belongs to a connection, so connections have owners and are never pooled. Shells and
//! commands belong to the guest and outlive connections; their ids die with its boot. One function knows what a
//! fault asks for ([`FaultCode::remedy`]).
//!
//! How it fails: a wait always ends by the [`Control`](kiln_host::wait::Control) it is given, and a command whose
//! wait ended is terminated in the guest. A lost connection is normal: what may be repeated is repeated, starting a
//! command is not. A certificate that is not the pinned one is never talked to. Passwords and tokens are in no
//! error, log or `Debug`.
//!
//! Proven so far: against servers that are not ours, and against traffic recorded from real machines; see the tests.

mod answer;
mod boot;
mod channel;
mod clixml;
mod command;
mod connect;
mod error;
mod fault;
mod guest;
mod http;
mod lane;
mod login;
mod medium;
mod negotiate;
mod recorder;
mod redact;
mod sealed;
mod soap;
mod tls;
mod upload;
mod xml;

#[cfg(test)]
mod tests;

pub use answer::AnswerError;
pub use clixml::ClixmlDecoder;
pub use command::{CommandLine, LINE_LIMIT};
pub use connect::{WinrmAttempt, first_certificate};
pub use error::{LinkFailure, WinrmError};
pub use fault::{Fault, FaultCode, Remedy};
pub use guest::{CommandEnd, WinrmGuest};
pub use login::{Authentication, CertificatePin, Password, PinError, Transport, WinrmLimits, WinrmLogin};
pub use medium::MediumFile;
pub use recorder::{Recorder, Tally};
pub use sealed::SealedError;
pub use upload::{UploadWay, WinrmUploaded};
pub use xml::XmlError;

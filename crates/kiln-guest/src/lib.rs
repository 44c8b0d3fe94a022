//! The inside of a machine: a guest reached over SSH or WinRM, commands that outlive the connection, files.
//!
//! ```text
//!   Login (address, user, our key, the host key we injected)
//!     │ Guest::connect   tries until the guest answers, the key fits, or the control ends      connect, link
//!     ▼
//!   Guest               one live session at a time; a lost one is replaced when next needed    guest, session
//!     ├─ facts          what is in there: boot id, OS, sudo, waagent, pwsh …                   facts
//!     ├─ exec           a short command, its output captured                                   guest
//!     ├─ upload         a file of any size, its digest checked inside                          upload, destination
//!     ├─ run_detached   a step: own session in the guest, output read by offset                step
//!     └─ put_to_rest    before it is kept; and renewed when it goes on                         renew
//! ```
//!
//! A Windows is reached over WinRM instead ([`winrm::WinrmGuest`]): the same ideas over another protocol, side by
//! side with SSH and with nothing shared but output streams, lines and the words for failed uploads.
//! What a Windows guest is told, and what its answers mean, is in [`os::windows`], apart from any connection.
//!
//! Who owns what: the guest's side of every operation is a small POSIX shell script (`*.sh` beside the module that
//! sends it), which answers in a line format of its own; the Rust side owns time-outs, retries and the meaning of the
//! answers. Nothing is installed in the guest, and what an operation puts there it removes.
//!
//! How it fails: a wait always ends by the [`Control`](kiln_host::wait::Control) it is given. A lost connection is
//! normal: operations that may be repeated are repeated, a detached step goes on by itself. A host key that is not
//! the one we injected is an error of its own and never talked to. What a guest prints is untrusted bytes: callers
//! get raw chunks, and [`lines`] to make printable lines of them.
//!
//! Not here: QEMU, templates, what a step means. Whoever owns the machine must also watch the machine: a guest whose
//! QEMU died looks from here like one that is slow to answer.

pub mod connect;
pub mod destination;
pub mod error;
pub mod facts;
pub mod guest;
pub mod keys;
pub mod lines;
mod link;
pub mod os;
pub mod quote;
pub mod renew;
mod session;
pub mod step;
pub mod upload;
pub mod winrm;

pub use connect::{AttemptFailure, ConnectAttempt, Limits, Login};
pub use destination::{DestinationError, resolve_destination};
pub use error::GuestError;
pub use facts::{GuestFacts, Sudo};
pub use guest::{ExecOutput, Guest};
pub use keys::{KeyPair, PublicKey};
pub use quote::sh_quote;
pub use renew::{HostKey, Renewal};
pub use session::Stream;
pub use step::{DetachedStep, OutputChunk, PlacedScript, StepEnd, StepNotice, StepScript};
pub use upload::{PlacedAs, UploadFailure, UploadFrom, Uploaded};

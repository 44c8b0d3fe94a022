//! What can go wrong between here and the inside of a guest.
//!
//! Each variant names the act and the thing; its cause is the error's source and is not repeated. Text that came from
//! a guest is made printable and cut before it gets into an error.

use std::net::SocketAddr;
use std::time::Duration;

use kiln_host::wait::Interrupted;

use crate::connect::AttemptFailure;
use crate::lines::printable;
use crate::upload::UploadFailure;
use crate::winrm::WinrmError;

#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The caller's control ended the wait; the guest is not to blame.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),

    /// Nobody who could be talked to answered within the time given.
    #[error(
        "the guest did not answer over SSH at {addr} within {} s ({attempts} attempts)",
        .waited.as_secs()
    )]
    NoAnswer {
        addr: SocketAddr,
        attempts: u32,
        waited: Duration,
        #[source]
        last: Option<Box<AttemptFailure>>,
    },

    /// Somebody answers, but not with the key that was injected. Never talked to.
    #[error(
        "the SSH server at {addr} is not the guest of this run: its host key is {got}, expected {expected}; \
         either the guest did not take the injected key or somebody else listens there"
    )]
    WrongHostKey { addr: SocketAddr, expected: String, got: String },

    /// The guest answers with the right host key and does not let us in.
    #[error(
        "the guest at {addr} refused the login of {user} with this run's key for {} s; \
         does the image run cloud-init, and is {user} the account its user-data sets up?",
        .waited.as_secs()
    )]
    LoginRefused { addr: SocketAddr, user: String, waited: Duration },

    /// The connection broke while something ran that must not be repeated blindly.
    #[error("the connection to the guest was lost during {act}")]
    LinkLost { act: String },

    /// The guest's SSH server did not run a command although the connection is fine.
    #[error("the guest's SSH server refused to start {act}: {reason}")]
    CommandRefused { act: String, reason: String },

    #[error("{command:?} in the guest printed more than {limit} bytes")]
    OutputTooLong { command: String, limit: usize },

    #[error("{act} was killed in the guest by signal {signal}")]
    CommandKilled { act: String, signal: String },

    /// One of Kiln's own scripts failed inside the guest.
    #[error("{act} failed in the guest: {detail}")]
    Inside { act: String, detail: String },

    /// Root is needed and `sudo -n` does not give it.
    #[error(
        "{act} needs root, and sudo in the guest does not give it to {user} without a password ({detail}); \
         an image for builds needs passwordless sudo for its build account"
    )]
    NoSudo { act: String, user: String, detail: String },

    #[error("cannot upload {local} to {remote} in the guest")]
    Upload {
        local: String,
        remote: String,
        #[source]
        failure: UploadFailure,
    },

    /// No directory of the guest lets a script run.
    #[error("no directory in the guest lets a script run (tried {tried}); mount one of them without noexec")]
    NowhereToRun { tried: String },

    /// A detached step vanished: it neither ended nor did the guest restart.
    #[error(
        "step {id} vanished in the guest without an exit code and without a restart ({detail}); \
         was it killed, or does the guest end a user's processes when the connection closes?"
    )]
    StepLost { id: String, detail: String },

    /// A step began a shutdown, and no new boot was seen.
    #[error("step {id} began to restart the guest, which did not come back within {} s", .waited.as_secs())]
    NoRestart {
        id: String,
        waited: Duration,
        #[source]
        last: Option<Box<GuestError>>,
    },

    #[error("{what} cannot be used for a step in the guest: {why}")]
    BadStep { what: String, why: &'static str },

    /// A guest reached over WinRM has its own ways to fail.
    #[error(transparent)]
    Winrm(WinrmError),
}

impl From<WinrmError> for GuestError {
    fn from(error: WinrmError) -> Self {
        match error {
            WinrmError::Interrupted(interrupted) => Self::Interrupted(interrupted),
            error => Self::Winrm(error),
        }
    }
}

impl GuestError {
    /// Set when the caller's control ended the operation.
    pub fn interrupted(&self) -> Option<Interrupted> {
        match self {
            Self::Interrupted(interrupted) => Some(*interrupted),
            _ => None,
        }
    }

    pub(crate) fn inside(act: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Inside { act: act.into(), detail: detail.into() }
    }
}

/// The first words of something a guest printed, for a message: one line, printable, at most 300 bytes.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    const LIMIT: usize = 300;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LIMIT)]).into_owned();
    let lines: Vec<String> = text
        .lines()
        .map(|line| printable(line.trim().as_bytes()).into_owned())
        .filter(|line| !line.is_empty())
        .collect();
    let mut joined = lines.join("; ");
    if bytes.len() > LIMIT {
        joined.push('…');
    }
    if joined.is_empty() { "no message".to_owned() } else { joined }
}

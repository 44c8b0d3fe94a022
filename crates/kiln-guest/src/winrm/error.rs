//! What can go wrong between here and a guest reached over WinRM.
//!
//! Three layers, each the next one's source: what happened to a connection ([`LinkFailure`]), what a server answered
//! ([`Fault`], [`AnswerError`]), what became of the caller's operation ([`WinrmError`]). Text that came from a guest
//! is made printable and cut; no error holds a password or a token.

use std::net::SocketAddr;
use std::time::Duration;

use hyper::StatusCode;
use kiln_host::wait::Interrupted;

use super::answer::AnswerError;
use super::fault::Fault;
use super::login::CertificatePin;
use super::sealed::SealedError;
use crate::error::excerpt;
use crate::upload::UploadFailure;

#[derive(Debug, thiserror::Error)]
pub enum WinrmError {
    /// The caller's control ended the wait; the guest is not to blame.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),

    /// Nobody who could be talked to answered within the time given.
    #[error(
        "the guest did not answer over WinRM at {addr} within {} s ({attempts} attempts)",
        .waited.as_secs()
    )]
    NoAnswer {
        addr: SocketAddr,
        attempts: u32,
        waited: Duration,
        #[source]
        last: Option<Box<LinkFailure>>,
    },

    /// Somebody answers, but not with the certificate that is pinned. Never talked to.
    #[error(
        "the WinRM server at {addr} is not the guest of this run: its certificate is {got}, expected {expected}; \
         either its listener uses another certificate or somebody else listens there"
    )]
    WrongCertificate { addr: SocketAddr, expected: CertificatePin, got: CertificatePin },

    /// The guest answers and does not let us in.
    #[error(
        "the guest at {addr} refused the login of {user} for {} s; is the password right, and may that account log \
         in from outside (a local administrator needs LocalAccountTokenFilterPolicy=1)?",
        .waited.as_secs()
    )]
    LoginRefused {
        addr: SocketAddr,
        user: String,
        waited: Duration,
        #[source]
        last: Box<LinkFailure>,
    },

    /// The connection broke while something ran that must not be repeated blindly.
    #[error("the connection to the guest was lost during {act}")]
    LinkLost {
        act: String,
        #[source]
        last: Box<LinkFailure>,
    },

    #[error("{act} was refused by the guest")]
    Fault {
        act: String,
        #[source]
        fault: Fault,
    },

    /// The guest no longer knows the shell or the command: it restarted, or ended the shell. What the command did
    /// until then is done.
    #[error("the guest no longer knows {act}: it restarted, or its WinRM service did")]
    ShellGone {
        act: String,
        #[source]
        fault: Fault,
    },

    /// The shell lives, and the command in it is unknown: it ended, and the answer that said so was lost with its
    /// connection. Its exit code is not to be had any more.
    #[error("the guest no longer knows {act}: it ended, and its exit code was lost with the connection")]
    EndLost {
        act: String,
        #[source]
        fault: Fault,
    },

    /// A quota of the guest stayed used up.
    #[error("the guest was too busy for {act} for {} s", .waited.as_secs())]
    Busy {
        act: String,
        waited: Duration,
        #[source]
        fault: Fault,
    },

    /// The command was ended from outside.
    #[error("{act} was terminated in the guest")]
    Terminated {
        act: String,
        #[source]
        fault: Fault,
    },

    #[error("the guest's answer to {act} makes no sense")]
    Answer {
        act: String,
        #[source]
        answer: AnswerError,
    },

    #[error("{act} is a command line of {length} characters; cmd.exe in the guest takes at most {limit}")]
    LineTooLong { act: String, length: usize, limit: usize },

    #[error("{what} holds the character {character:?}, which cannot be sent over WinRM")]
    Unwritable { what: String, character: char },

    #[error("{command:?} in the guest printed more than {limit} bytes")]
    OutputTooLong { command: String, limit: usize },

    /// One of Kiln's own texts failed inside the guest.
    #[error("{act} failed in the guest: {detail}")]
    Inside { act: String, detail: String },

    #[error("cannot upload {local} to {remote} in the guest")]
    Upload {
        local: String,
        remote: String,
        #[source]
        failure: UploadFailure,
    },
}

impl WinrmError {
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

/// What happened to a connection, or to an attempt to have one.
#[derive(Debug, thiserror::Error)]
pub enum LinkFailure {
    #[error("nothing listens there (connection refused)")]
    Refused,
    #[error("no connection")]
    NoConnection(#[source] std::io::Error),
    #[error("nothing came within {} s", .limit.as_secs_f32())]
    Silent { limit: Duration },
    #[error("the TLS handshake failed")]
    Tls(#[source] std::io::Error),
    #[error("its certificate is {got}, expected {expected}")]
    WrongCertificate { expected: CertificatePin, got: CertificatePin },
    #[error("the connection broke")]
    Http(#[source] hyper::Error),
    /// The request did not leave this side.
    #[error("the connection was closed before the request")]
    NotSent,
    #[error("HTTP status {status}: {said}")]
    Status { status: u16, said: String },
    #[error("what answers is no WinRM service; it said: {said}")]
    NotWinrm { said: String },
    #[error("the WinRM service does not offer Negotiate (it offers: {offered})")]
    NoNegotiate { offered: String },
    #[error("the WinRM service answers, but refuses the login of {user}")]
    LoginRefused { user: String },
    /// On a connection that was logged in.
    #[error("the WinRM service no longer accepts this connection's login")]
    LoginLost,
    #[error("the NTLM exchange failed")]
    Ntlm(#[source] sspi::Error),
    #[error("a sealed message cannot be opened")]
    Sealed(#[from] SealedError),
    #[error("the answer is longer than {limit} bytes")]
    TooLong { limit: usize },
    #[error("the WinRM service answers with a fault")]
    Fault(#[source] Fault),
    #[error("the WinRM service's answer makes no sense")]
    Answer(#[source] AnswerError),
}

impl LinkFailure {
    pub(crate) fn from_connect(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::ConnectionRefused {
            Self::Refused
        } else {
            Self::NoConnection(error)
        }
    }

    /// An answer that is HTTP's and not WinRM's.
    pub(crate) fn from_status(status: StatusCode, body: &[u8]) -> Self {
        Self::Status { status: status.as_u16(), said: excerpt(body) }
    }
}

/// Why an envelope has no answer.
#[derive(Debug)]
pub(crate) enum PostFailure {
    Link(LinkFailure),
    Answer(AnswerError),
}

impl From<LinkFailure> for PostFailure {
    fn from(failure: LinkFailure) -> Self {
        Self::Link(failure)
    }
}

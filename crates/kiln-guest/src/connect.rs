//! From an address to a session: trying until the guest answers.
//!
//! A guest that boots goes through all of this, and each is told apart, because the last thing seen is the first
//! thing a person wants to know when nothing comes:
//!
//! ```text
//!   nothing listens · accepted but silent · something else answers · handshake fails
//!     · host key is not ours (refused after a short while) · our key not accepted yet (refused after a while)
//! ```
//!
//! Attempts start at once and back off from 100 ms to 1 s. Before the banner an attempt has a short limit (user-mode
//! networking accepts connections for a guest that is down), the shorter as long as none has reached the guest, afterwards
//! a long one (an emulated guest needs seconds
//! for a key exchange).

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kiln_host::wait::{Control, Interrupted};
use tokio::time::Instant;

use crate::error::{GuestError, excerpt};
use crate::keys::{KeyPair, PublicKey};
use crate::link::NoBanner;
use crate::session::Session;

/// Who logs in where, and whom we expect there.
#[derive(Clone, Debug)]
pub struct Login {
    pub user: String,
    /// Our key; its public half was injected into the account.
    pub key: KeyPair,
    /// INVARIANT: the guest's SSH host key is ours (we made and injected it) and is checked on every connection:
    /// nobody sits in the middle. Guarded by the session's handler, the only way to a session.
    pub host_key: PublicKey,
    pub addr: SocketAddr,
}

/// How long what may take. The defaults are those of a build; all are real time.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From TCP connect to the SSH banner.
    pub banner: Duration,
    /// The same for the first attempts, until one has reached the guest: what is sent before the guest has its address is
    /// lost, and user-mode networking sends it again only after seconds.
    pub first_banner: Duration,
    /// From the banner to the end of the login.
    pub handshake: Duration,
    /// How long a wrong host key is met with another attempt: an SSH server may start with the image's own keys a
    /// moment before cloud-init puts ours in place. Nothing secret is sent meanwhile.
    pub wrong_host_key: Duration,
    /// How long a refused login is met with another attempt: cloud-init may not have made the account yet, and a
    /// guest that starts or stops refuses everybody for a while.
    pub refused_login: Duration,
    /// A quiet session is asked for a sign of life this often; three missing ones end it.
    pub keep_alive: Duration,
    /// How long a lost guest may stay away. 20 minutes: what Azure VM Image Builder gives a restarting Linux guest
    /// (document of 2020-02-14).
    pub reconnect: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            banner: Duration::from_secs(5),
            first_banner: Duration::from_millis(500),
            handshake: Duration::from_secs(30),
            wrong_host_key: Duration::from_secs(30),
            refused_login: Duration::from_secs(180),
            keep_alive: Duration::from_secs(5),
            reconnect: Duration::from_secs(20 * 60),
        }
    }
}

/// One attempt that did not lead to a session, for whoever shows progress.
#[derive(Debug)]
pub struct ConnectAttempt<'a> {
    /// Counted from 1.
    pub number: u32,
    /// Since the first attempt began.
    pub waited: Duration,
    pub failure: &'a AttemptFailure,
}

/// What an attempt saw.
#[derive(Debug, thiserror::Error)]
pub enum AttemptFailure {
    #[error("nothing listens there (connection refused)")]
    Refused,
    #[error("no connection")]
    NoConnection(#[source] std::io::Error),
    #[error("the connection was accepted, but no SSH banner came within {} s", .limit.as_secs_f32())]
    NoBanner { limit: Duration },
    #[error("the connection was accepted and closed before an SSH banner")]
    ClosedBeforeBanner,
    #[error("what answers is no SSH server; it said: {said}")]
    NotSsh { said: String },
    #[error("the SSH key exchange failed")]
    Handshake(#[source] russh::Error),
    #[error("the SSH server did not finish the login within {} s of its banner", .limit.as_secs_f32())]
    HandshakeTimeout { limit: Duration },
    #[error("its host key is {got}, expected {expected}")]
    WrongHostKey { expected: String, got: String },
    #[error("the SSH server answers, but refuses the key for user {user}")]
    KeyRefused { user: String },
}

impl AttemptFailure {
    pub(crate) fn from_link(failure: NoBanner, limits: &Limits) -> Self {
        match failure {
            NoBanner::Connect(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                Self::Refused
            }
            NoBanner::Connect(error) => Self::NoConnection(error),
            NoBanner::Silent => Self::NoBanner { limit: limits.banner },
            NoBanner::Closed => Self::ClosedBeforeBanner,
            NoBanner::NotSsh(said) => Self::NotSsh { said: excerpt(&said) },
        }
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// So many attempts are given up early. One that is given up is delivered all the same when the guest is there, and costs
/// an emulated one a process.
const EARLY_ATTEMPTS: u32 = 5;

/// Tries until there is a session, the control ends, or a failure has lasted that no waiting will mend.
pub(crate) async fn connect(
    login: &Login,
    limits: &Limits,
    mut on_attempt: impl FnMut(ConnectAttempt<'_>),
    control: &Control,
) -> Result<Arc<Session>, GuestError> {
    let begin = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut wrong_key_since = None;
    let mut refused_since = None;
    let mut last: Option<AttemptFailure> = None;
    let mut attempts = 0;
    let mut reached = false;
    loop {
        let early = !reached && attempts < EARLY_ATTEMPTS;
        let banner = if early { limits.first_banner.min(limits.banner) } else { limits.banner };
        let limits = &Limits { banner, ..limits.clone() };
        let attempt = control.guard(Session::open(login, limits)).await;
        let failure = match attempt {
            Ok(Ok(session)) => return Ok(Arc::new(session)),
            Ok(Err(failure)) => failure,
            Err(why) => return Err(ended(why, login, attempts, begin, last)),
        };
        attempts += 1;
        reached |= !matches!(failure, AttemptFailure::NoBanner { .. } | AttemptFailure::NoConnection(_));
        let waited = begin.elapsed();
        tracing::debug!(addr = %login.addr, attempts, failure = %Chain(&failure), "no session yet");
        on_attempt(ConnectAttempt { number: attempts, waited, failure: &failure });
        match &failure {
            AttemptFailure::WrongHostKey { expected, got } => {
                if wrong_key_since.get_or_insert_with(Instant::now).elapsed() >= limits.wrong_host_key {
                    return Err(GuestError::WrongHostKey {
                        addr: login.addr,
                        expected: expected.clone(),
                        got: got.clone(),
                    });
                }
            }
            AttemptFailure::KeyRefused { user } => {
                wrong_key_since = None;
                let since: &mut Instant = refused_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= limits.refused_login {
                    return Err(GuestError::LoginRefused {
                        addr: login.addr,
                        user: user.clone(),
                        waited: since.elapsed(),
                    });
                }
            }
            // The guest is (again) on its way up: whatever was refused before may be right next time.
            _ => (wrong_key_since, refused_since) = (None, None),
        }
        last = Some(failure);
        // There is no event for "the guest listens now": each attempt is the question. The pause keeps an emulated
        // guest's processors free for booting.
        if let Err(why) = control.sleep(pause).await {
            return Err(ended(why, login, attempts, begin, last));
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn ended(
    why: Interrupted,
    login: &Login,
    attempts: u32,
    begin: Instant,
    last: Option<AttemptFailure>,
) -> GuestError {
    match why {
        Interrupted::Canceled => GuestError::Interrupted(why),
        Interrupted::DeadlinePassed => GuestError::NoAnswer {
            addr: login.addr,
            attempts,
            waited: begin.elapsed(),
            last: last.map(Box::new),
        },
    }
}

/// An error with its causes on one line, for traces.
struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}

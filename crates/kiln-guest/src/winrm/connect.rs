//! From an address to a logged-in channel: trying until the guest answers.
//!
//! A guest that boots goes through all of this, and the last thing seen is the first thing a person wants to know:
//!
//! ```text
//!   nothing listens · accepted but silent · closed · 503 · 500 without an envelope
//!     · another certificate (refused after a short while) · login refused (the accounts are not ready yet;
//!       refused after a while) · answers
//! ```
//!
//! Who is to be expected may have to be learned first: [`first_certificate`] waits for a certificate and says nothing.
//!
//! Attempts start at once and back off from 100 ms to 1 s. A refused login is met with long pauses: Windows locks an
//! account after ten wrong passwords in ten minutes, and a guest that is merely not ready yet is not worth that.

use std::net::SocketAddr;
use std::time::Duration;

use kiln_host::wait::{Control, Interrupted};
use tokio::time::Instant;

use super::answer::Answer;
use super::channel::Channel;
use super::error::{LinkFailure, PostFailure, WinrmError};
use super::fault::Remedy;
use super::http;
use super::login::{WinrmLimits, WinrmLogin};

/// One attempt that did not lead to a login, for whoever shows progress.
#[derive(Debug)]
pub struct WinrmAttempt<'a> {
    /// Counted from 1.
    pub number: u32,
    /// Since the first attempt began.
    pub waited: Duration,
    pub failure: &'a LinkFailure,
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Tries until there is a channel, the control ends, or a failure has lasted that no waiting will mend.
pub(crate) async fn connect(
    login: &WinrmLogin,
    limits: &WinrmLimits,
    on_attempt: &mut (dyn FnMut(WinrmAttempt<'_>) + Send),
    control: &Control,
) -> Result<Channel, WinrmError> {
    let addr = login.addr;
    let begin = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut wrong_certificate_since: Option<Instant> = None;
    let mut refused_since: Option<Instant> = None;
    let mut last = None;
    let mut attempts = 0;
    let ended = |why: Interrupted, attempts, last: Option<LinkFailure>| match why {
        Interrupted::Canceled => WinrmError::Interrupted(why),
        Interrupted::DeadlinePassed => {
            WinrmError::NoAnswer { addr, attempts, waited: begin.elapsed(), last: last.map(Box::new) }
        }
    };
    loop {
        let failure = match control.guard(attempt(login, limits)).await {
            Ok(Ok(channel)) => return Ok(channel),
            Ok(Err(failure)) => failure,
            Err(why) => return Err(ended(why, attempts, last)),
        };
        attempts += 1;
        tracing::debug!(%addr, attempts, %failure, "no WinRM login yet");
        on_attempt(WinrmAttempt { number: attempts, waited: begin.elapsed(), failure: &failure });
        let mut this_pause = pause;
        match &failure {
            LinkFailure::WrongCertificate { expected, got } => {
                let since = *wrong_certificate_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= limits.wrong_certificate {
                    let (expected, got) = (expected.clone(), got.clone());
                    return Err(WinrmError::WrongCertificate { addr, expected, got });
                }
            }
            LinkFailure::LoginRefused { .. } | LinkFailure::NoNegotiate { .. } => {
                wrong_certificate_since = None;
                let since = *refused_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= limits.refused_login {
                    return Err(WinrmError::LoginRefused {
                        addr,
                        user: login.user.clone(),
                        waited: since.elapsed(),
                        last: Box::new(failure),
                    });
                }
                this_pause = this_pause.max(limits.refused_login / limits.login_retries.max(1));
            }
            // The guest is (again) on its way up: whatever was refused before may be right next time.
            _ => (wrong_certificate_since, refused_since) = (None, None),
        }
        last = Some(failure);
        // There is no event for "the guest listens now": each attempt is the question. The pause keeps an emulated
        // guest's processors free for booting.
        if let Err(why) = control.sleep(this_pause).await {
            return Err(ended(why, attempts, last));
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Waits for somebody who shows a certificate at `addr`, and gives its SHA-256 digest: for a guest of which nothing is
/// known before. Nothing is said to them. Whoever connects afterwards pins it.
///
/// # Errors
/// [`WinrmError::NoAnswer`] with what was seen last, [`WinrmError::Interrupted`] when canceled.
pub async fn first_certificate(
    addr: SocketAddr,
    limits: &WinrmLimits,
    control: &Control,
) -> Result<[u8; 32], WinrmError> {
    let begin = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut attempts = 0;
    let mut last = None;
    let why = loop {
        match control.guard(http::shown_certificate(addr, limits)).await {
            Ok(Ok(digest)) => return Ok(digest),
            Ok(Err(failure)) => {
                attempts += 1;
                tracing::debug!(%addr, attempts, %failure, "no certificate yet");
                last = Some(Box::new(failure));
            }
            Err(why) => break why,
        }
        // As above: there is no event for "the guest listens now".
        if let Err(why) = control.sleep(pause).await {
            break why;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    };
    Err(match why {
        Interrupted::Canceled => WinrmError::Interrupted(why),
        Interrupted::DeadlinePassed => WinrmError::NoAnswer { addr, attempts, waited: begin.elapsed(), last },
    })
}

async fn attempt(login: &WinrmLogin, limits: &WinrmLimits) -> Result<Channel, LinkFailure> {
    let refused = || LinkFailure::LoginRefused { user: login.user.clone() };
    let mut channel = Channel::open(login, limits).await?;
    match channel.identify(limits.silence).await {
        Ok(Answer::Body(_)) => Ok(channel),
        Ok(Answer::Fault(fault)) if fault.code.remedy() == Remedy::WrongCredential => Err(refused()),
        Ok(Answer::Fault(fault)) => Err(LinkFailure::Fault(fault)),
        // Basic authentication is only seen to be refused with the first envelope.
        Err(PostFailure::Link(LinkFailure::LoginLost)) => Err(refused()),
        Err(PostFailure::Link(failure)) => Err(failure),
        Err(PostFailure::Answer(error)) => Err(LinkFailure::Answer(error)),
    }
}

//! One connection with a login on it, and envelopes over it.
//!
//! ```text
//!   Wire ──Negotiate: token──► 401, challenge ──token──► logged in      Https, Negotiate: plain envelopes in TLS
//!                                                                       Http:             sealed envelopes
//!   Wire ──Authorization with each envelope──►                          Https, Basic
//! ```
//!
//! A channel that lost step (a request given up half way, a broken seal, a refusal in mid-session) is of no more use,
//! and says so by [`Channel::is_usable`]: its owner makes another one.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::answer::{self, Answer};
use super::error::{LinkFailure, PostFailure};
use super::http::{HttpAnswer, Wire};
use super::login::{Authentication, Transport, WinrmLimits, WinrmLogin};
use super::negotiate::Negotiation;
use super::recorder::Recorder;
use super::sealed;
use super::soap::{self, Request};
use crate::error::excerpt;

const SOAP: &str = "application/soap+xml;charset=UTF-8";
/// Servers close a connection that is quiet for a while (Windows after two minutes). One that has been quiet for this
/// long does not carry what must not be sent twice.
const STALE: Duration = Duration::from_secs(45);

pub(crate) struct Channel {
    wire: Wire,
    login: LoggedIn,
    usable: bool,
    last_used: Instant,
    recorder: Option<Recorder>,
}

enum LoggedIn {
    /// The connection itself.
    Connection,
    /// The connection, and each message is sealed.
    Sealed(Box<Negotiation>),
    /// Each request anew.
    EachRequest(HeaderValue),
}

impl Channel {
    pub(crate) async fn open(login: &WinrmLogin, limits: &WinrmLimits) -> Result<Self, LinkFailure> {
        let mut wire = Wire::open(login, limits).await?;
        let logged_in = match &login.transport {
            Transport::Https { authentication: Authentication::Basic, .. } => {
                let pair = Zeroizing::new(format!("{}:{}", login.user, login.password.reveal()));
                let value = Zeroizing::new(format!("Basic {}", BASE64.encode(pair.as_bytes())));
                let value = HeaderValue::from_str(&value).map_err(|_| LinkFailure::NotSent)?;
                LoggedIn::EachRequest(value)
            }
            Transport::Https { authentication: Authentication::Negotiate, .. } => {
                negotiate(&mut wire, login, limits).await?;
                LoggedIn::Connection
            }
            Transport::Http => LoggedIn::Sealed(Box::new(negotiate(&mut wire, login, limits).await?)),
        };
        let recorder = login.recorder.clone();
        if let Some(recorder) = &recorder {
            recorder.hide(login.password.reveal());
        }
        Ok(Self { wire, login: logged_in, usable: true, last_used: Instant::now(), recorder })
    }

    pub(crate) fn is_usable(&self) -> bool {
        self.usable && !self.wire.is_closed()
    }

    /// Whether it may carry a request that must not be sent twice.
    pub(crate) fn is_fresh(&self) -> bool {
        self.is_usable() && self.last_used.elapsed() < STALE
    }

    /// Sends an envelope and reads what answers it.
    pub(crate) async fn post(&mut self, request: Request, limit: Duration) -> Result<Answer, PostFailure> {
        let message_id = request.message_id.clone();
        let text = self.exchange(request, limit).await?;
        answer::read(&text, &message_id).map_err(PostFailure::Answer)
    }

    /// Asks who is there: by now the cheapest proof that a server is up and lets us in.
    pub(crate) async fn identify(&mut self, limit: Duration) -> Result<Answer, PostFailure> {
        let text = self.exchange(soap::identify(), limit).await?;
        answer::read_identity(&text).map_err(PostFailure::Answer)
    }

    /// The one place where envelopes go out and come in: what is recorded, is recorded here, in the plain.
    async fn exchange(&mut self, request: Request, limit: Duration) -> Result<String, LinkFailure> {
        let pending = self.recorder.as_ref().map(|recorder| recorder.begin(&request));
        let mut status = None;
        let answered = self.exchange_plain(request.envelope, limit, &mut status).await;
        match (pending, &answered) {
            (Some(pending), Ok(text)) => pending.answered(status.unwrap_or_default(), text),
            (Some(pending), Err(failure)) => pending.failed(status, failure),
            (None, _) => {}
        }
        answered
    }

    async fn exchange_plain(
        &mut self,
        envelope: String,
        limit: Duration,
        status: &mut Option<u16>,
    ) -> Result<String, LinkFailure> {
        // Until the answer is here, the channel is out of step: also when this future is dropped.
        self.usable = false;
        let plain = envelope.into_bytes();
        let (content_type, authorization, body) = match &mut self.login {
            LoggedIn::Connection => (SOAP, None, plain),
            LoggedIn::EachRequest(value) => (SOAP, Some(value.clone()), plain),
            LoggedIn::Sealed(negotiation) => {
                let part = negotiation.seal(&plain).map_err(LinkFailure::Ntlm)?;
                (sealed::CONTENT_TYPE, None, sealed::write(&part, plain.len()))
            }
        };
        let answer = self.wire.post(content_type, authorization, None, body, limit).await?;
        *status = Some(answer.status.as_u16());
        let text = self.open_answer(&answer)?;
        self.usable = true;
        self.last_used = Instant::now();
        Ok(text)
    }

    fn open_answer(&mut self, answer: &HttpAnswer) -> Result<String, LinkFailure> {
        let status = answer.status;
        if status == StatusCode::UNAUTHORIZED {
            return Err(LinkFailure::LoginLost);
        }
        let body = match &mut self.login {
            LoggedIn::Sealed(negotiation) if sealed::is_sealed(answer.content_type()) => {
                let mut body = Vec::new();
                for part in sealed::parse(answer.content_type(), &answer.body)? {
                    body.extend(negotiation.unseal(part).map_err(LinkFailure::Ntlm)?);
                }
                body
            }
            // Nothing that is not sealed is believed, least of all an exit code.
            LoggedIn::Sealed(_) => return Err(LinkFailure::from_status(status, &answer.body)),
            LoggedIn::Connection | LoggedIn::EachRequest(_) => answer.body.to_vec(),
        };
        // A fault comes with 500, sometimes with 400; both are envelopes. Anything else with such a status is HTTP's.
        if !status.is_success() && !looks_like_xml(&body) {
            return Err(LinkFailure::from_status(status, &body));
        }
        String::from_utf8(body).map_err(|error| LinkFailure::NotWinrm { said: excerpt(error.as_bytes()) })
    }
}

fn looks_like_xml(body: &[u8]) -> bool {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii_start();
    body.starts_with(b"<") && body.windows(8).any(|window| window == b"Envelope")
}

/// Logs the connection in: two requests without a body.
async fn negotiate(
    wire: &mut Wire,
    login: &WinrmLogin,
    limits: &WinrmLimits,
) -> Result<Negotiation, LinkFailure> {
    let mut negotiation = Negotiation::new(&login.user, login.password.reveal(), wire.binding.as_deref());
    let first = negotiation.token(None).map_err(LinkFailure::Ntlm)?;
    let answer = leg(wire, &first, limits).await?;
    if answer.status != StatusCode::UNAUTHORIZED {
        return Err(LinkFailure::from_status(answer.status, &answer.body));
    }
    let challenge = challenge(&answer.headers)?;
    let last = negotiation.token(Some(&challenge)).map_err(LinkFailure::Ntlm)?;
    let answer = leg(wire, &last, limits).await?;
    match answer.status {
        StatusCode::UNAUTHORIZED => Err(LinkFailure::LoginRefused { user: login.user.clone() }),
        StatusCode::SERVICE_UNAVAILABLE => Err(LinkFailure::from_status(answer.status, &answer.body)),
        // An empty body is no envelope: servers say so in several ways, and all of them let us in first.
        _ => Ok(negotiation),
    }
}

async fn leg(wire: &mut Wire, token: &[u8], limits: &WinrmLimits) -> Result<HttpAnswer, LinkFailure> {
    let value = format!("Negotiate {}", BASE64.encode(token));
    let value = HeaderValue::from_str(&value).map_err(|_| LinkFailure::NotSent)?;
    wire.post(SOAP, Some(value), None::<(HeaderName, HeaderValue)>, Vec::new(), limits.silence).await
}

/// The server's token in its `WWW-Authenticate: Negotiate`.
fn challenge(headers: &HeaderMap) -> Result<Vec<u8>, LinkFailure> {
    let offers: Vec<&str> =
        headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()).collect();
    for offer in &offers {
        // Some servers put several schemes on one line.
        for scheme in offer.split(',') {
            if let Some((name, token)) = scheme.trim().split_once(' ')
                && name.eq_ignore_ascii_case("Negotiate")
                && let Ok(token) = BASE64.decode(token.trim())
            {
                return Ok(token);
            }
        }
    }
    Err(LinkFailure::NoNegotiate { offered: excerpt(offers.join(", ").as_bytes()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(offers: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for offer in offers {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(offer));
        }
        headers
    }

    #[test]
    fn the_challenge_is_found_among_other_offers() {
        for offers in [
            &["Negotiate YWJj"][..],
            &["Basic realm=\"WSMAN\"", "negotiate  YWJj"],
            &["Basic realm=\"x\", Negotiate YWJj"],
        ] {
            assert_eq!(challenge(&headers(offers)).unwrap(), b"abc", "{offers:?}");
        }
        for offers in [&["Basic realm=\"WSMAN\""][..], &["Negotiate"], &[]] {
            assert!(
                matches!(challenge(&headers(offers)), Err(LinkFailure::NoNegotiate { .. })),
                "{offers:?}"
            );
        }
    }

    #[test]
    fn a_page_of_http_is_no_envelope() {
        assert!(looks_like_xml(b"\xef\xbb\xbf <s:Envelope/>"));
        assert!(!looks_like_xml(b"<html>Service Unavailable</html>"));
        assert!(!looks_like_xml(b""));
    }
}

//! One request and its answer.
//!
//! Redirects are followed here, not in the HTTP client: each hop is checked (never from https to http, never to
//! anything else), and no address ends up in an error unredacted. Nothing of one hop but the range goes to the next:
//! no referrer, no credentials.

use std::error::Error;
use std::sync::{Once, OnceLock};
use std::time::Duration;

use kiln_host::space::ensure_room;
use kiln_host::wait::Control;
use kiln_model::plan::redact_url;
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_RANGE, ETAG, HeaderName, IF_RANGE, LAST_MODIFIED, LOCATION, RANGE, RETRY_AFTER,
};
use reqwest::{Certificate, Client, NoProxy, Proxy, Response, StatusCode, Url};
use tokio::time::{Instant, timeout};

use super::part::{Note, Part, WORTH_KEEPING};
use super::policy::{AddressPolicy, Refused, Resolver};
use super::settings::FetchSettings;
use super::{News, Tell, address_key};
use crate::FetchError;
use crate::error::is_trouble;

/// As many as browsers and curl's users are used to.
const MOST_REDIRECTS: u32 = 10;
/// People cannot read faster.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Fetches by one set of settings. Made without touching the network or the trust store.
#[derive(Debug)]
pub(crate) struct Fetcher {
    settings: FetchSettings,
    client: OnceLock<Client>,
}

/// Where an answer came from.
#[derive(Debug)]
pub(super) struct Answer {
    pub address: String,
    pub last_modified: Option<String>,
}

impl Fetcher {
    pub fn new(settings: &FetchSettings) -> Self {
        Self { settings: settings.clone(), client: OnceLock::new() }
    }

    pub(super) fn settings(&self) -> &FetchSettings {
        &self.settings
    }

    /// The client, made at the first need: a build that has all its files needs no trust store.
    fn client(&self) -> Result<&Client, FetchError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = make_client(&self.settings)?;
        Ok(self.client.get_or_init(|| client))
    }

    /// Asks for the file, or for the rest of it, until the answer ends.
    pub(super) async fn receive(
        &self,
        address: &Url,
        part: &mut Part,
        digest_known: bool,
        tell: Tell<'_>,
        control: &Control,
    ) -> Result<Answer, FetchError> {
        let key = address_key(address.as_str());
        let mut ask = Ask::Whole;
        if part.length() > 0 {
            ask = match part.noted() {
                // All of it is there; whoever received it died before it could say so.
                Some(note) if digest_known && note.total == Some(part.length()) => {
                    let last_modified = note.last_modified.clone();
                    return Ok(Answer { address: redact_url(address.as_str()), last_modified });
                }
                Some(note) if note.address == key && note.validator.is_some() => {
                    Ask::Rest { from: part.length(), validator: note.validator.clone() }
                }
                // Another server's copy, or one without a name: the digest decides.
                Some(_) if digest_known => Ask::Rest { from: part.length(), validator: None },
                _ => Ask::Whole,
            };
        }
        let (mut url, mut response) = self.request(address, &ask, control).await?;
        if matches!(ask, Ask::Rest { .. }) && !goes_on(&response, &ask, part.noted(), digest_known) {
            match response.status() {
                // It ignores ranges, or has another file now.
                StatusCode::OK => {}
                status if is_trouble(status.as_u16()) => check_status(&url, &response)?,
                // The range is not to be had, or is another one: ask for all.
                _ => (url, response) = self.request(address, &Ask::Whole, control).await?,
            }
            ask = Ask::Whole;
        }
        let announced = match ask {
            Ask::Whole => {
                check_status(&url, &response)?;
                part.restart().await?;
                response.content_length()
            }
            Ask::Rest { from, .. } => {
                part.splice();
                content_range(&response)
                    .and_then(|range| range.total)
                    .or(response.content_length().map(|rest| rest + from))
            }
        };
        let last_modified = header(&response, LAST_MODIFIED).map(str::to_owned);
        let validator = validator(&response, digest_known);
        if (validator.is_some() || digest_known) && announced.is_none_or(|total| total >= WORTH_KEEPING) {
            part.note(Note::new(key, validator, announced, last_modified.clone()));
        }
        if let Some(total) = announced {
            let dir = part.path().parent().unwrap_or(part.path());
            ensure_room(dir, total.saturating_sub(part.length()))?;
        }
        self.receive_body(&url, response, part, announced, tell, control).await?;
        match announced {
            Some(total) if total != part.length() => {
                Err(FetchError::WrongLength { received: part.length(), announced: total })
            }
            _ => Ok(Answer { address: redact_url(url.as_str()), last_modified }),
        }
    }

    /// Sends one request and follows its redirects.
    async fn request(
        &self,
        address: &Url,
        ask: &Ask,
        control: &Control,
    ) -> Result<(Url, Response), FetchError> {
        let mut url = address.clone();
        let patience = self.settings.connect_timeout + self.settings.stall_timeout;
        for _ in 0..=MOST_REDIRECTS {
            self.may_ask(&url)?;
            // Files are wanted as they lie there; also, digests are of those bytes.
            let mut request = self.client()?.get(url.clone()).header(ACCEPT_ENCODING, "identity");
            if let Ask::Rest { from, validator } = ask {
                request = request.header(RANGE, format!("bytes={from}-"));
                if let Some(validator) = validator {
                    request = request.header(IF_RANGE, validator);
                }
            }
            let response = match control.guard(timeout(patience, request.send())).await? {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(transport(&url, error)),
                Err(_) => return Err(FetchError::NoAnswer { host: host(&url), after: patience }),
            };
            match redirect(&url, &response)? {
                Some(next) => url = next,
                None => return Ok((url, response)),
            }
        }
        Err(FetchError::TooManyRedirects { limit: MOST_REDIRECTS, address: redact_url(url.as_str()) })
    }

    /// Whether policy lets this address be asked, as far as the address itself tells.
    fn may_ask(&self, url: &Url) -> Result<(), FetchError> {
        let policy = self.settings.addresses;
        policy.check(url)?;
        if policy == AddressPolicy::Public && Resolver::new(&self.settings).is_proxy(url) {
            let reason = "it names a proxy of this server".to_owned();
            return Err(FetchError::BadAddress { reason });
        }
        Ok(())
    }

    async fn receive_body(
        &self,
        url: &Url,
        mut response: Response,
        part: &mut Part,
        total: Option<u64>,
        tell: Tell<'_>,
        control: &Control,
    ) -> Result<(), FetchError> {
        let window = self.settings.stall_timeout;
        let least = (window.as_secs_f64() * self.settings.least_rate as f64).ceil() as u64;
        let (mut since, mut mark) = (Instant::now(), part.length());
        let mut told = Instant::now();
        loop {
            let left = window.saturating_sub(since.elapsed());
            match control.guard(timeout(left, response.chunk())).await? {
                Ok(Ok(Some(bytes))) => part.write(&bytes).await?,
                Ok(Ok(None)) => break,
                Ok(Err(error)) => return Err(transport(url, error)),
                Err(_) => {}
            }
            if since.elapsed() >= window {
                let received = part.length() - mark;
                if received < least.max(1) {
                    return Err(FetchError::Stalled { received, window });
                }
                (since, mark) = (Instant::now(), part.length());
            }
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                tell(News::Received { done: part.length(), total });
            }
        }
        tell(News::Received { done: part.length(), total });
        Ok(())
    }
}

/// What to ask for.
#[derive(Debug)]
enum Ask {
    Whole,
    /// From this byte on, if the file is still the one the validator names.
    Rest {
        from: u64,
        validator: Option<String>,
    },
}

/// Whether an answer is the rest that was asked for, of the same file as far as the server can say.
fn goes_on(response: &Response, ask: &Ask, noted: Option<&Note>, digest_known: bool) -> bool {
    let Ask::Rest { from, validator: before } = ask else { return false };
    let Some(range) = content_range(response) else { return false };
    let same_length = match (range.total, noted.and_then(|note| note.total)) {
        (Some(now), Some(before)) => now == before,
        _ => true,
    };
    // A server that ignores If-Range still has to name the file (RFC 9110, section 15.3.7).
    let same_file = match (validator(response, digest_known), before) {
        (Some(now), Some(before)) => now == *before,
        _ => digest_known,
    };
    response.status() == StatusCode::PARTIAL_CONTENT && range.first == *from && same_length && same_file
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ContentRange {
    first: u64,
    total: Option<u64>,
}

/// `bytes 100-199/200`, or `/*` where the server does not know the whole (RFC 9110, section 14.4).
fn content_range(response: &Response) -> Option<ContentRange> {
    parse_content_range(header(response, CONTENT_RANGE)?)
}

fn parse_content_range(text: &str) -> Option<ContentRange> {
    let (unit, rest) = text.trim().split_once(' ')?;
    let (range, total) = rest.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    // It must be the rest to the end: that is what was asked for.
    let to_the_end = total.is_none_or(|total: u64| last.checked_add(1) == Some(total));
    (unit.eq_ignore_ascii_case("bytes") && first <= last && to_the_end)
        .then_some(ContentRange { first, total })
}

/// What names this version of the file. A weak ETag does not promise the same bytes (RFC 9110, section 8.8.1), and a
/// time only if nobody writes twice in a second: that is enough where a digest decides in the end.
fn validator(response: &Response, digest_known: bool) -> Option<String> {
    let strong = header(response, ETAG).filter(|tag| tag.starts_with('"'));
    let dated = header(response, LAST_MODIFIED).filter(|_| digest_known);
    strong.or(dated).map(str::to_owned)
}

fn header(response: &Response, name: HeaderName) -> Option<&str> {
    response.headers().get(name).and_then(|value| value.to_str().ok())
}

/// The whole file, or an error.
fn check_status(url: &Url, response: &Response) -> Result<(), FetchError> {
    let status = response.status();
    if status == StatusCode::OK {
        return Ok(());
    }
    if status.is_success() {
        return Err(FetchError::Protocol { what: format!("{status} where the whole file was asked for") });
    }
    // Seconds; the other form, a date, is as good as none to us.
    let pause =
        header(response, RETRY_AFTER).and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
    Err(FetchError::Status { status: status.as_u16(), address: redact_url(url.as_str()), pause })
}

/// Where an answer points to, if it does.
fn redirect(from: &Url, response: &Response) -> Result<Option<Url>, FetchError> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let Some(location) = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()) else {
        return Err(FetchError::Protocol { what: "a redirect without a place to go".to_owned() });
    };
    let to = from.join(location).map_err(|error| FetchError::Protocol {
        what: format!("a redirect to what is no address ({error})"),
    })?;
    let refused = |reason| FetchError::Redirect { address: redact_url(to.as_str()), reason };
    match (from.scheme(), to.scheme()) {
        ("https", "http") => Err(refused("it leads from https to http")),
        (_, "http" | "https") => Ok(Some(to)),
        _ => Err(refused("it leads to something other than http or https")),
    }
}

/// Host and port, without what may be secret.
pub(super) fn host(url: &Url) -> String {
    let name = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"))
}

/// The HTTP client's error, without its address.
fn transport(url: &Url, error: reqwest::Error) -> FetchError {
    let source = error.without_url();
    let host = host(url);
    if source.is_builder() {
        return FetchError::Settings { what: format!("the request to {host} cannot be made: {source}") };
    }
    if let Some(refused) = refused(&source) {
        return refused.into_error(host);
    }
    if is_certificate_error(&source) {
        return FetchError::Certificate { host, source };
    }
    let act = if source.is_connect() {
        "cannot connect to"
    } else if source.is_body() || source.is_decode() {
        "the connection broke while receiving from"
    } else {
        "no answer from"
    };
    FetchError::Transport { act, host, source }
}

/// The address that policy refused, if that is what ended it.
fn refused(error: &(dyn Error + 'static)) -> Option<Refused> {
    match error.downcast_ref::<Refused>() {
        Some(found) => Some(found.clone()),
        None => error.source().and_then(refused),
    }
}

/// Whether a certificate was refused: asking again would give the same answer.
fn is_certificate_error(error: &(dyn Error + 'static)) -> bool {
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return matches!(tls, rustls::Error::InvalidCertificate(_));
    }
    // An I/O error hides what it wraps: its `source` is already that of the wrapped one.
    let inside = match error.downcast_ref::<std::io::Error>() {
        Some(io) => io.get_ref().map(|inner| inner as &(dyn Error + 'static)),
        None => error.source(),
    };
    inside.is_some_and(is_certificate_error)
}

fn make_client(settings: &FetchSettings) -> Result<Client, FetchError> {
    static PROVIDER: Once = Once::new();
    // An error means that the program has chosen one already: then that one is used.
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    let own = own_certificates(settings)?;
    let builder = base_builder(settings)?.tls_certs_merge(own.clone());
    match builder.build() {
        Ok(client) => Ok(client),
        // A host without any trusted certificates can still fetch by http.
        Err(first) => base_builder(settings)?
            .tls_certs_only(own)
            .build()
            .map_err(|_| FetchError::Settings { what: first.without_url().to_string() }),
    }
}

fn base_builder(settings: &FetchSettings) -> Result<reqwest::ClientBuilder, FetchError> {
    let mut builder = Client::builder()
        // The environment is not ours to read.
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(settings.connect_timeout)
        .user_agent(settings.user_agent.clone());
    if settings.addresses == AddressPolicy::Public {
        builder = builder.dns_resolver(Resolver::new(settings));
    }
    let direct = settings.proxy.direct.as_deref().and_then(NoProxy::from_string);
    for (address, secure) in [(&settings.proxy.http, false), (&settings.proxy.https, true)] {
        let Some(address) = address.as_deref().filter(|address| !address.is_empty()) else { continue };
        let proxy = if secure { Proxy::https(address) } else { Proxy::http(address) };
        let proxy = proxy.map_err(|_| FetchError::Settings {
            what: format!("the proxy {} is no address", redact_url(address)),
        })?;
        builder = builder.proxy(proxy.no_proxy(direct.clone()));
    }
    Ok(builder)
}

fn own_certificates(settings: &FetchSettings) -> Result<Vec<Certificate>, FetchError> {
    let Some(path) = &settings.ca_file else { return Ok(Vec::new()) };
    let unusable =
        |why: String| FetchError::Settings { what: format!("the CA file {} {why}", path.display()) };
    let pem = std::fs::read(path).map_err(|error| unusable(format!("cannot be read: {error}")))?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|_| unusable("is not PEM".to_owned()))?;
    if certificates.is_empty() {
        return Err(unusable("holds no certificate".to_owned()));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        let range = |first, total| Some(ContentRange { first, total });
        for (text, expected) in [
            ("bytes 100-199/200", range(100, Some(200))),
            ("Bytes 0-0/1", range(0, Some(1))),
            ("bytes 5-9/*", range(5, None)),
            ("bytes 100-150/200", None),
            ("bytes */200", None),
            ("bytes 9-5/10", None),
            ("items 0-1/2", None),
            ("bytes 0-18446744073709551615/*", range(0, None)),
            ("bytes 0-18446744073709551615/5", None),
            ("bytes -1-5/6", None),
            ("", None),
        ] {
            assert_eq!(parse_content_range(text), expected, "{text}");
        }
    }
}

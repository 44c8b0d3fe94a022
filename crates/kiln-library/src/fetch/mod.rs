//! Fetching a file from another machine, whatever the machine does.
//!
//! ```text
//!  fetch(addresses) ── attempt 1..=attempts ──► answer ── bytes ──► Part ── digest ──► Fetched
//!        ▲                                        │
//!        │ pause, next address                    ├─ a final no (404, 403, certificate): that address is out
//!        └────────────────────────────────────────┴─ trouble (5xx, broken, short, stalled): again, going on where it broke
//! ```
//!
//! A transfer is gone on with (`Range`) only when the result is certain to be one file: the server confirms that the
//! file is the same (`If-Range` with a strong ETag), or the digest is known and decides in the end. If the pieces do not
//! give the digest, the file is fetched once more in one piece before that counts as a wrong file.
//!
//! INVARIANT: a download with a checksum is used only after it matched. Here it means: [`Fetcher::fetch`] given a digest
//! returns no bytes of another one.
//!
//! INVARIANT: a secret reaches no log or error. Addresses are redacted before they leave this module, and errors of the
//! HTTP client are stripped of theirs.

mod http;
mod part;
pub(crate) mod policy;
pub(crate) mod settings;

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use kiln_host::digest::{hex, sha256};
use kiln_host::wait::Control;
use kiln_model::Sha256;
use kiln_model::plan::redact_url;
use reqwest::Url;

pub(crate) use http::Fetcher;
pub(crate) use part::{Digests, Part, open_regular};

use crate::FetchError;

/// What a file must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    Sha256(Sha256),
    Sha512([u8; 64]),
}

impl Expected {
    pub fn matches(&self, digests: &Digests) -> bool {
        match self {
            Self::Sha256(expected) => *expected == digests.sha256,
            Self::Sha512(expected) => digests.sha512.as_ref() == Some(expected),
        }
    }

    pub fn hex(&self) -> String {
        match self {
            Self::Sha256(digest) => digest.to_string(),
            Self::Sha512(digest) => hex(digest),
        }
    }

    fn of(&self, digests: &Digests) -> String {
        match self {
            Self::Sha256(_) => digests.sha256.to_string(),
            Self::Sha512(_) => digests.sha512.map(|digest| hex(&digest)).unwrap_or_default(),
        }
    }
}

/// A whole file, received into its part.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub digests: Digests,
    /// Where it came from in the end, redacted.
    pub address: String,
    /// As the server sent it.
    pub last_modified: Option<String>,
}

/// Why there is no file.
#[derive(Debug)]
pub(crate) struct Failed {
    /// The last one, redacted.
    pub address: String,
    pub attempt: u32,
    pub error: FetchError,
}

/// News of a fetch.
pub(crate) enum News<'a> {
    Received { done: u64, total: Option<u64> },
    Retrying { attempt: u32, after: Duration, error: &'a FetchError },
}

pub(crate) type Tell<'a> = &'a (dyn Fn(News<'_>) + Send + Sync);

impl Fetcher {
    /// Receives one file, the same at every address, into `part`, going on with what the part holds already.
    pub async fn fetch(
        &self,
        addresses: &[Url],
        part: &mut Part,
        expected: Option<Expected>,
        tell: Tell<'_>,
        control: &Control,
    ) -> Result<Fetched, Failed> {
        let mut usable: Vec<&Url> = addresses.iter().collect();
        let attempts = self.settings().attempts.max(1);
        let mut turn = 0;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let Some(address) = usable.get(turn % usable.len().max(1)).copied() else {
                let error = FetchError::BadAddress { reason: "there is none".to_owned() };
                return Err(Failed { address: String::new(), attempt, error });
            };
            let failed = |error| Failed { address: redact_url(address.as_str()), attempt, error };
            let error = match self.attempt_checked(address, part, expected, tell, control).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => error,
            };
            if error.interrupted().is_some() || error.is_ours() {
                return Err(failed(error));
            }
            let again = error.is_transient();
            if !again {
                // What came from there is not to be gone on with elsewhere.
                part.restart().await.map_err(failed)?;
                usable.retain(|other| *other != address);
            }
            if usable.is_empty() || attempt >= attempts {
                return Err(failed(error));
            }
            let after = if again { self.pause(attempt, &error) } else { Duration::ZERO };
            tell(News::Retrying { attempt, after, error: &error });
            control.sleep(after).await.map_err(|why| failed(why.into()))?;
            turn += usize::from(again);
        }
    }

    /// One attempt, and a second one in one piece where the pieces do not fit together.
    async fn attempt_checked(
        &self,
        address: &Url,
        part: &mut Part,
        expected: Option<Expected>,
        tell: Tell<'_>,
        control: &Control,
    ) -> Result<Fetched, FetchError> {
        loop {
            let answer = self.receive(address, part, expected.is_some(), tell, control).await?;
            let digests = part.digests().await?;
            match expected {
                Some(expected) if !expected.matches(&digests) => {
                    if part.is_spliced() {
                        // Bounded: what is received from here on is in one piece.
                        part.restart().await?;
                        continue;
                    }
                    return Err(FetchError::WrongDigest {
                        expected: expected.hex(),
                        found: expected.of(&digests),
                        sha256: digests.sha256,
                    });
                }
                _ => {}
            }
            return Ok(Fetched { digests, address: answer.address, last_modified: answer.last_modified });
        }
    }

    /// How long to leave a server alone after this many failures.
    fn pause(&self, failures: u32, error: &FetchError) -> Duration {
        let settings = self.settings();
        let doubled = settings.first_pause.saturating_mul(1 << (failures - 1).min(16));
        let asked = match error {
            FetchError::Status { pause: Some(asked), .. } => *asked,
            _ => Duration::ZERO,
        };
        // Between half and all of it: never at once, never all clients together.
        let spread = doubled.min(settings.longest_pause).mul_f64(0.5 + 0.5 * chance());
        spread.max(asked).min(settings.longest_pause)
    }
}

/// A number from 0 up to 1, for spreading only. The standard library seeds its hash maps by chance: enough here.
fn chance() -> f64 {
    let bits = RandomState::new().hash_one(0) >> 32;
    f64::from(u32::try_from(bits).unwrap_or(0)) / f64::from(u32::MAX)
}

/// Reads an address; only http and https can be fetched.
pub(crate) fn parse_address(text: &str) -> Result<Url, FetchError> {
    let bad = |reason: &str| FetchError::BadAddress { reason: reason.to_owned() };
    // The parser's errors do not repeat the text.
    let url = Url::parse(text.trim()).map_err(|error| bad(&error.to_string()))?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        other => Err(bad(&format!("{other}: is not http: or https:"))),
    }
}

/// A digest of an address, to recognise it by without keeping it.
pub(crate) fn address_key(address: &str) -> Sha256 {
    Sha256::from_bytes(sha256(address.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_addresses_are_fetched_and_errors_do_not_repeat_them() {
        assert!(parse_address("https://h/a?sig=1").is_ok());
        for text in
            ["ftp://h/CANARY", "h/CANARY", "https://", "http://[CANARY", "https:///?CANARY@:x", "data:CANARY"]
        {
            let error = match parse_address(text) {
                Ok(url) => panic!("{text} became {url}"),
                Err(error) => format!("{error} {error:?}"),
            };
            assert!(!error.contains("CANARY"), "{error}");
        }
    }

    #[test]
    fn pauses_grow_are_spread_and_end() {
        let fetcher = Fetcher::new(&crate::FetchSettings::default());
        let broken = FetchError::Protocol { what: String::new() };
        for failures in 1..40 {
            let full = Duration::from_millis(500 << (failures - 1).min(5)).min(Duration::from_secs(15));
            let pause = fetcher.pause(failures, &broken);
            assert!(pause >= full.min(Duration::from_secs(15)) / 2 && pause <= full, "{failures}: {pause:?}");
        }
        let distinct: std::collections::HashSet<_> = (0..20).map(|_| fetcher.pause(5, &broken)).collect();
        assert!(distinct.len() > 10);
        let asked = |seconds| FetchError::Status {
            status: 429,
            address: String::new(),
            pause: Some(Duration::from_secs(seconds)),
        };
        assert_eq!(fetcher.pause(1, &asked(7)), Duration::from_secs(7));
        assert_eq!(fetcher.pause(1, &asked(86400)), Duration::from_secs(15));
    }
}

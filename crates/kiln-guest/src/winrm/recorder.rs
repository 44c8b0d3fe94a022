//! Writes down what is said to a guest and what it answers, without secrets.
//!
//! ```text
//!   Channel::exchange ── begin(request) ─► Pending ── answered / failed / dropped ─► one line of JSON
//! ```
//!
//! A line has the form of the recorded corpus (`tests/fixtures/winrm-recorded`): `action`, `message_id`, `status`,
//! `request`, `response`; and the times. What is seen is plain SOAP, before it is sealed and after it was unsealed.
//!
//! INVARIANT: no secret is written down. HTTP headers are never seen here. Input (`Send`) and the values of shells'
//! variables are left out where the envelope is written ([`Hidden`]): of input its length and digest remain. Secrets that
//! are known, the login's password first, are replaced wherever else they stand ([`super::redact`]).
//!
//! How it fails: never the exchange. A file that cannot be written is said by [`Recorder::finish`]; what exceeds
//! [`ROOM`] is counted, not kept.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kiln_host::digest::{hex, sha256};
use serde::Serialize;

use super::error::LinkFailure;
use super::redact::{MARK, Redactor};
use super::soap::{Hidden, HiddenKind, Request};

/// Bytes of requests and answers that are kept; a guest says how much it says.
const ROOM: usize = 64 << 20;

/// Takes exchanges down, of all connections to one guest. Clones write to the same place.
#[derive(Clone)]
pub struct Recorder {
    inner: Arc<Mutex<Inner>>,
    begin: Instant,
}

struct Inner {
    out: Box<dyn Write + Send>,
    redactor: Redactor,
    room: usize,
    tally: Tally,
    broken: Option<io::Error>,
}

/// How much was written down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Lines.
    pub exchanges: u64,
    /// Of these, without what was said: there was no room.
    pub omitted: u64,
}

/// A line.
#[derive(Serialize)]
struct Line<'a> {
    kind: &'static str,
    /// When it was asked, ms since the recorder was made.
    ms: u64,
    took_ms: u64,
    action: &'a str,
    /// Of the request; Identify has none.
    #[serde(skip_serializing_if = "str::is_empty")]
    message_id: &'a str,
    /// HTTP's.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<String>,
    /// Why there is no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    omitted: bool,
}

impl Recorder {
    /// Writes lines to `out`, each with one call.
    pub fn new(out: impl Write + Send + 'static) -> Self {
        let inner = Inner {
            out: Box::new(out),
            redactor: Redactor::default(),
            room: ROOM,
            tally: Tally::default(),
            broken: None,
        };
        Self { inner: Arc::new(Mutex::new(inner)), begin: Instant::now() }
    }

    /// Of a secret, bytes: a shorter one would be found everywhere, and cannot be hidden.
    pub const SHORTEST_SECRET: usize = super::redact::SHORTEST;

    /// Replaces `secret` in all that comes from now on. A login's password is hidden by the login itself.
    pub fn hide(&self, secret: &str) {
        self.inner().redactor.hide(secret);
    }

    /// A text of others without the secrets that are hidden here.
    pub fn redacted(&self, text: &str) -> String {
        self.inner().redactor.text(text)
    }

    /// Writes out what is there.
    ///
    /// # Errors
    /// The first error of writing: some lines are missing.
    pub fn finish(&self) -> io::Result<Tally> {
        let mut inner = self.inner();
        if let Some(error) = inner.broken.take() {
            return Err(error);
        }
        inner.out.flush()?;
        Ok(inner.tally)
    }

    pub(crate) fn begin(&self, request: &Request) -> Pending {
        Pending {
            recorder: self.clone(),
            at: Instant::now(),
            action: request.action,
            message_id: request.message_id.clone(),
            request: without_hidden(&request.envelope, &request.hidden),
            done: false,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A line is written or not; a panic in between leaves the rest as it was.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder(…)")
    }
}

/// An exchange under way. Dropped without an end, it was given up.
pub(crate) struct Pending {
    recorder: Recorder,
    at: Instant,
    action: &'static str,
    message_id: String,
    /// Without what is hidden by construction.
    request: String,
    done: bool,
}

impl Pending {
    pub(crate) fn answered(mut self, status: u16, envelope: &str) {
        self.write(Some(status), Some(envelope), None);
    }

    /// `status` where there was an HTTP answer at all.
    pub(crate) fn failed(mut self, status: Option<u16>, failure: &LinkFailure) {
        self.write(status, None, Some(&failure.to_string()));
    }

    fn write(&mut self, status: Option<u16>, response: Option<&str>, failure: Option<&str>) {
        self.done = true;
        let ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let mut inner = self.recorder.inner();
        let inner = &mut *inner;
        let request = inner.redactor.text(&self.request);
        let response = response.map(|envelope| inner.redactor.answer(envelope));
        let failure = failure.map(|text| inner.redactor.text(text));
        let size = request.len() + response.as_ref().map_or(0, String::len);
        let left = inner.room.checked_sub(size);
        inner.room = left.unwrap_or(inner.room);
        let line = Line {
            kind: "exchange",
            ms: ms(self.at.duration_since(self.recorder.begin)),
            took_ms: ms(self.at.elapsed()),
            action: self.action,
            message_id: &self.message_id,
            status,
            request: left.map(|_| request),
            response: left.and(response),
            failure,
            omitted: left.is_none(),
        };
        inner.tally.exchanges += 1;
        inner.tally.omitted += u64::from(left.is_none());
        let written = serde_json::to_vec(&line).map_err(io::Error::other).and_then(|mut bytes| {
            bytes.push(b'\n');
            inner.out.write_all(&bytes)
        });
        if let Err(error) = written {
            inner.broken.get_or_insert(error);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.done {
            self.write(None, None, Some("given up before there was an answer"));
        }
    }
}

/// The envelope with something else in the places that are hidden.
fn without_hidden(envelope: &str, hidden: &[Hidden]) -> String {
    let mut kept = String::new();
    let mut at = 0;
    for Hidden { kind, range } in hidden {
        kept.push_str(&envelope[at..range.start]);
        match kind {
            HiddenKind::Variable => kept.push_str(MARK),
            HiddenKind::Input => {
                let bytes = BASE64.decode(&envelope[range.clone()]).unwrap_or_default();
                kept.push_str(&format!("[{} bytes, sha256 {}]", bytes.len(), hex(&sha256(&bytes))));
            }
        }
        at = range.end;
    }
    kept.push_str(&envelope[at..]);
    kept
}

//! A file over HTTP: opened with suspicion, sent in pieces, its holes not read.
//!
//! ```text
//!  open_regular ─► Served{length, validators} ─► conditions, range (ranges.rs) ─► pieces of 256 KiB, each read when
//!                                                                              the client has taken the one before
//! ```
//! A client that reads slowly holds one piece; one that goes away drops the stream and with it the file. A file that
//! becomes shorter while it is sent breaks the connection: no client takes half for the whole.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use bytes::Bytes;
use futures_util::stream;
use jiff::Timestamp;
use kiln_host::holes;
use rustix::fs::{Mode, OFlags};

use super::ranges::{Validators, Wanted, http_date, wanted};

/// Read and sent in one piece.
const PIECE: usize = 256 << 10;
static ZEROS: [u8; PIECE] = [0; PIECE];

/// Opens a regular file that was written by a less trusted process: no link is followed, no pipe waited for.
pub(super) fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

/// An opened file and what to say of it.
pub(super) struct Served {
    pub file: File,
    /// Bytes of it that are served; the file has at least as many.
    pub length: u64,
    /// With quotes; strong.
    pub etag: Option<String>,
    pub modified: Option<Timestamp>,
    pub content_type: &'static str,
    /// The name it is saved under.
    pub save_as: Option<String>,
}

impl Served {
    /// The answer to a GET or HEAD with these headers.
    pub fn answer(self, method: &Method, headers: &HeaderMap) -> Response<Body> {
        let mut answer = Response::new(Body::empty());
        let about = answer.headers_mut();
        let mut say = |name: HeaderName, value: Option<String>| {
            if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
                about.insert(name, value);
            }
        };
        say(ACCEPT_RANGES, Some("bytes".to_owned()));
        say(ETAG, self.etag.clone());
        say(LAST_MODIFIED, self.modified.and_then(http_date));
        say(X_CONTENT_TYPE_OPTIONS, Some("nosniff".to_owned()));
        let length = self.length;
        let validators = Validators { etag: self.etag.as_deref(), modified: self.modified };
        let (status, (start, end)) = match wanted(headers, &validators, length) {
            Wanted::Whole => (StatusCode::OK, (0, length)),
            Wanted::Part { start, end } => {
                say(CONTENT_RANGE, Some(format!("bytes {start}-{}/{length}", end - 1)));
                (StatusCode::PARTIAL_CONTENT, (start, end))
            }
            Wanted::NotModified => {
                *answer.status_mut() = StatusCode::NOT_MODIFIED;
                return answer;
            }
            Wanted::PreconditionFailed => {
                *answer.status_mut() = StatusCode::PRECONDITION_FAILED;
                return answer;
            }
            Wanted::Unsatisfiable => {
                say(CONTENT_RANGE, Some(format!("bytes */{length}")));
                *answer.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
                return answer;
            }
        };
        say(CONTENT_TYPE, Some(self.content_type.to_owned()));
        say(CONTENT_DISPOSITION, self.save_as.as_deref().map(attachment));
        say(CONTENT_LENGTH, Some((end - start).to_string()));
        *answer.status_mut() = status;
        if method != Method::HEAD {
            *answer.body_mut() = pieces(self.file, start, end);
        }
        answer
    }
}

/// Saved, not shown. The name is one of ours: it has nothing that would need quoting.
fn attachment(name: &str) -> String {
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' })
        .collect();
    format!("attachment; filename=\"{plain}\"")
}

/// Bytes `start..end` of a file.
fn pieces(file: File, start: u64, end: u64) -> Body {
    let reading = Reading { file: Arc::new(file), offset: start, end, same_until: start, hole: false };
    Body::from_stream(stream::try_unfold(reading, Reading::next))
}

struct Reading {
    file: Arc<File>,
    offset: u64,
    end: u64,
    /// As far as it is known whether there is data.
    same_until: u64,
    hole: bool,
}

impl Reading {
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        if self.offset >= self.end {
            return Ok(None);
        }
        if self.hole && self.offset < self.same_until {
            let piece = self.zeros();
            return Ok(Some((piece, self)));
        }
        let read = tokio::task::spawn_blocking(move || {
            let piece = self.read()?;
            Ok::<_, io::Error>((piece, self))
        });
        Ok(Some(read.await.map_err(io::Error::other)??))
    }

    /// Blocking.
    fn read(&mut self) -> io::Result<Bytes> {
        if self.offset >= self.same_until {
            let data = holes::next_data(&self.file, self.offset, self.end)?;
            self.hole = data > self.offset;
            self.same_until =
                if self.hole { data } else { holes::next_hole(&self.file, self.offset, self.end)? };
            // A hole that reaches behind the end of the file is no hole: the file became shorter.
            if self.file.metadata()?.len() < self.end {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        if self.hole {
            return Ok(self.zeros());
        }
        let mut piece = vec![0; self.piece()];
        self.file.read_exact_at(&mut piece, self.offset)?;
        self.offset += piece.len() as u64;
        Ok(piece.into())
    }

    fn zeros(&mut self) -> Bytes {
        let piece = Bytes::from_static(&ZEROS[..self.piece()]);
        self.offset += piece.len() as u64;
        piece
    }

    /// Bytes of the next piece.
    fn piece(&self) -> usize {
        usize::try_from(self.same_until.min(self.end) - self.offset).map_or(PIECE, |left| left.min(PIECE))
    }
}

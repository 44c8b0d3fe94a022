//! Server-sent events (WHATWG HTML, "Server-sent events"), followed across lost connections.
//!
//! Each event's id says where the stream goes on behind it. When the connection breaks, is
//! silent for too long, or the server goes down, the stream is opened again there: no event
//! is lost, none comes twice.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use reqwest::Response;
use reqwest::header::{ACCEPT, HeaderName};

use super::error::ClientError;
use super::link::{Ask, Link, PATIENCE};

/// The server sends something at least every few seconds, be it a comment.
pub const SILENCE: Duration = Duration::from_secs(60);
/// Between two openings of a stream that brings nothing.
const PAUSE: Duration = Duration::from_millis(500);
/// An event is far below this; a longer one is not ours.
const LONGEST: usize = 16 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Event {
    /// Empty for ordinary ones.
    pub name: String,
    /// Its lines, joined by carriage returns: what the server took apart was a line that
    /// was drawn over.
    pub data: String,
}

pub struct Stream<'a> {
    link: &'a Link,
    path: String,
    open: Option<Response>,
    parser: Parser,
    ready: VecDeque<Event>,
    /// When anything last came.
    heard: Instant,
}

impl<'a> Stream<'a> {
    pub fn new(link: &'a Link, path: String) -> Self {
        Self {
            link,
            path,
            open: None,
            parser: Parser::default(),
            ready: VecDeque::new(),
            heard: Instant::now(),
        }
    }

    /// The next event; the last one is called `end`.
    ///
    /// # Errors
    /// The server refuses, or stays away for too long.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let Some(response) = &mut self.open else {
                self.open = Some(self.reopen().await?);
                continue;
            };
            match tokio::time::timeout(SILENCE, response.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    self.heard = Instant::now();
                    let ready = &mut self.ready;
                    if !self.parser.feed(&chunk, |event| ready.push_back(event)) {
                        return Err(self.link.strange("an event has no end"));
                    }
                }
                Ok(Ok(None)) | Ok(Err(_)) | Err(_) => {
                    if self.heard.elapsed() >= PATIENCE + SILENCE {
                        let seconds = self.heard.elapsed().as_secs();
                        return Err(ClientError::Silent { server: self.link.shown().to_owned(), seconds });
                    }
                    self.open = None;
                    // A server that is going down takes a moment, and must not be hurried.
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn reopen(&mut self) -> Result<Response, ClientError> {
        self.parser.forget();
        let mut ask = Ask::get(self.path.clone()).header(ACCEPT, "text/event-stream");
        if !self.parser.last_id.is_empty() {
            ask = ask.header(HeaderName::from_static("last-event-id"), &self.parser.last_id);
        }
        self.link.send(&ask).await
    }
}

#[derive(Default)]
struct Parser {
    pending: Vec<u8>,
    name: String,
    data: Vec<String>,
    /// Of the event under way; it counts when the event is whole.
    id: Option<String>,
    last_id: String,
}

impl Parser {
    /// Gives each event that `bytes` completes; false where one is endless.
    fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(Event)) -> bool {
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let mut rest = pending.as_slice();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&rest[..end]);
            if let Some(event) = self.line(&line) {
                each(event);
            }
            rest = &rest[end + 1..];
        }
        self.pending = rest.to_vec();
        self.pending.len() + self.data.iter().map(String::len).sum::<usize>() <= LONGEST
    }

    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            if let Some(id) = self.id.take() {
                self.last_id = id;
            }
            let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
            return (!data.is_empty()).then(|| Event { name, data: data.join("\r") });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => self.data.push(value.to_owned()),
            "id" => self.id = Some(value.to_owned()),
            // Comments and what is not for us.
            _ => {}
        }
        None
    }

    /// What a lost connection left half.
    fn forget(&mut self) {
        let last_id = std::mem::take(&mut self.last_id);
        *self = Self { last_id, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "id: 7\ndata: 10 %\ndata: 100 %\n\n:\n\nid: 8\ndata: \n\nid: 9\ndata:  indented: x\n\nevent: end\nid: end\ndata: {}\n\n";

    fn event(name: &str, data: &str) -> Event {
        Event { name: name.into(), data: data.into() }
    }

    #[test]
    fn events_do_not_depend_on_chunks() {
        for size in 1..TEXT.len() {
            let mut parser = Parser::default();
            let mut seen = Vec::new();
            for chunk in TEXT.as_bytes().chunks(size) {
                assert!(parser.feed(chunk, |event| seen.push(event)));
            }
            let expected =
                [event("", "10 %\r100 %"), event("", ""), event("", " indented: x"), event("end", "{}")];
            assert_eq!(seen, expected, "chunks of {size}");
            assert_eq!(parser.last_id, "end");
        }
    }

    #[test]
    fn half_an_event_does_not_count() {
        let mut parser = Parser::default();
        let mut seen = Vec::new();
        parser.feed(b"id: 1\ndata: a\n\nid: 2\ndata: b\nda", |event| seen.push(event));
        parser.forget();
        assert_eq!(parser.last_id, "1");
        parser.feed(b"id: 2\ndata: b\n\n", |event| seen.push(event));
        assert_eq!(seen, [event("", "a"), event("", "b")]);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = Parser::default();
        assert!(!parser.feed(&vec![b'x'; LONGEST + 1], |_| {}));
    }
}

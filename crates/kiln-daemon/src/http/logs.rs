//! Logs and events of a run: while they are written, and after.
//!
//! ```text
//!  worker ─appends─► customization.log ─┐ (one watch a run: crate::runs)
//!                                       ├─ "something is new" ─► watcher ─ reads its own next piece ─► text/plain
//!                                       │                        watcher ─ reads, cuts lines ────────► SSE, NDJSON
//!  runs ─settles──► the run's row ──────┘                           …each at its own pace
//! ```
//! A watcher is a position in a file and nothing else: no task, no queue. The next piece is read when the connection
//! has taken the one before, so a slow client holds one piece, and one that goes away holds nothing.
//!
//! The stream of a run that has not ended waits for more; it ends when the run has ended *and* its file was read to
//! the end after that. Lines have ids in the SSE form (see [`super::lines`]): nothing is lost or doubled by a client
//! that comes back.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use bytes::Bytes;
use futures_util::stream;
use jiff::Timestamp;
use kiln_build::run_dir::RunId;
use kiln_model::run::RunState;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::answer::{Answer, ArmError, empty};
use super::call::Call;
use super::files::{Served, open_regular};
use super::lines::{END_ID, Lines, event, heartbeat};
use super::route::WhichRun;
use super::runs::{find, run_folder};
use crate::daemon::Daemon;
use crate::store::{RunRecord, TemplateId};

/// Read and sent in one piece.
const PIECE: usize = 64 << 10;
/// A connection that has nothing to say says so, before proxies take it for dead.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A guest that prints line by line is read in steps of this: two hundred watchers then cost what a few would.
const STEP: Duration = Duration::from_millis(50);
/// So long after its last bytes a file is asked about: a guest that talks has not ended.
const SILENCE: Duration = Duration::from_millis(200);
/// How often a run that nobody follows yet (it is queued) is asked for again.
const UNFOLLOWED: Duration = Duration::from_secs(1);

const TEXT: &str = "text/plain; charset=utf-8";
const NDJSON: &str = "application/x-ndjson";
const SSE: &str = "text/event-stream";

/// A file of a run that people read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunFile {
    CustomizationLog,
    ValidationLog,
    Events,
}

impl RunFile {
    fn name(self) -> &'static str {
        match self {
            Self::CustomizationLog => "customization.log",
            Self::ValidationLog => "validation.log",
            Self::Events => "events.jsonl",
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::CustomizationLog | Self::ValidationLog => TEXT,
            Self::Events => NDJSON,
        }
    }

    /// Why there is none, of a run that has a folder.
    fn absence(self, run: &RunRecord) -> String {
        let (id, name) = (&run.id, self.name());
        if run.started_at.is_none() && !run.state.is_final() {
            return format!("The run '{id}' is queued: it has no {name} yet.");
        }
        match self {
            Self::ValidationLog => format!(
                "The run '{id}' has no validation.log: its template has no validators, or it did not come to validating."
            ),
            _ => format!(
                "The run '{id}' has no {name}: it ended before its worker wrote one, or its folder was removed."
            ),
        }
    }
}

/// GET `…/runs/{run}/customization.log` and the like: the file as it is now, with ranges.
pub(super) async fn download(
    daemon: &Daemon,
    call: Call,
    template: &TemplateId,
    which: &WhichRun,
    what: RunFile,
) -> Answer {
    let run = find(daemon, template, which).await?;
    let path = run_folder(daemon, &run.id).join(what.name());
    let opened = tokio::task::spawn_blocking(move || {
        let file = open_regular(&path)?;
        let about = file.metadata()?;
        Ok::<_, io::Error>((file, about.len(), about.modified().ok()))
    });
    let (file, length, modified) = match opened.await.map_err(|error| ArmError::internal(&error))? {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ArmError::not_found("LogNotFound", what.absence(&run)));
        }
        Err(error) => return Err(ArmError::internal(&error)),
    };
    let served = Served {
        file,
        length,
        // It still grows, or it could have: its length and time are all there is to tell it by.
        etag: None,
        modified: modified.and_then(|time| Timestamp::try_from(time).ok()),
        content_type: what.content_type(),
        save_as: None,
    };
    Ok(served.answer(&call.method, &call.headers))
}

/// How a client wants a growing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// The bytes as they are.
    Raw,
    /// Whole lines only: what is torn may yet be cut off by its writer.
    WholeLines,
    /// Each line an event.
    Events,
}

/// GET `…/runs/{run}/log` and `…/events`: everything from `offset` on, and what comes until the run ends.
pub(super) async fn stream_file(
    daemon: &Arc<Daemon>,
    call: Call,
    template: &TemplateId,
    which: &WhichRun,
    what: RunFile,
) -> Answer {
    let run = find(daemon, template, which).await?;
    let sse = call.header(ACCEPT).is_some_and(wants_events);
    let form = match (sse, what) {
        (true, _) => Form::Events,
        (false, RunFile::Events) => Form::WholeLines,
        (false, _) => Form::Raw,
    };
    let follow = match call.parameter("follow")? {
        None => true,
        Some(text) if text.eq_ignore_ascii_case("true") => true,
        Some(text) if text.eq_ignore_ascii_case("false") => false,
        Some(_) => return Err(invalid("follow", "true or false")),
    };
    let mut offset = match call.parameter("offset")? {
        None => 0,
        Some(text) => text.parse().map_err(|_| invalid("offset", "a number of bytes"))?,
    };
    if let Some(id) = call.header(LAST_EVENT_ID).filter(|id| sse && !id.is_empty()) {
        if id == END_ID {
            // The one answer that tells an event source not to come back.
            return Ok(empty(StatusCode::NO_CONTENT));
        }
        offset = id.parse().map_err(|_| invalid("Last-Event-ID", "an id of this stream"))?;
    }
    let mut growing = Growing::new(Arc::clone(daemon), &run, what, offset, follow, call.closing.clone());
    growing.check_offset().await?;

    let mut answer = Response::new(Body::empty());
    let about = answer.headers_mut();
    let content_type = if sse { SSE } else { what.content_type() };
    about.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    about.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    about.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // `latest` is said by its name: who comes back wants the same run.
    if let Ok(id) = HeaderValue::from_str(run.id.as_str()) {
        about.insert(HeaderName::from_static("kiln-run-id"), id);
    }
    if call.method != Method::HEAD {
        let watcher = Watcher { lines: Lines::from(offset), growing, form, ended: false };
        *answer.body_mut() = Body::from_stream(stream::try_unfold(watcher, Watcher::next));
    }
    Ok(answer)
}

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

fn wants_events(accept: &str) -> bool {
    let wanted =
        |part: &str| part.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(SSE));
    accept.split(',').any(wanted)
}

fn invalid(name: &str, expected: &str) -> ArmError {
    ArmError::bad_request("InvalidParameter", format!("'{name}' must be {expected}.")).target(name)
}

/// One client's view of a file that grows.
struct Watcher {
    growing: Growing,
    lines: Lines,
    form: Form,
    ended: bool,
}

impl Watcher {
    /// The next bytes for the client; `None` is the end.
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        loop {
            if self.ended {
                return Ok(None);
            }
            let mut out = Vec::new();
            match self.growing.next().await? {
                Step::Bytes(bytes) => match self.form {
                    Form::Raw => return Ok(Some((bytes, self))),
                    Form::WholeLines => self.lines.feed(&bytes, |line, _| {
                        out.extend_from_slice(line);
                        out.push(b'\n');
                    }),
                    Form::Events => {
                        self.lines
                            .feed(&bytes, |line, after| event(&mut out, None, &after.to_string(), line));
                    }
                },
                Step::Quiet if self.form == Form::Events => heartbeat(&mut out),
                Step::Quiet => {}
                // An event source comes back by itself. Others see a broken connection, not an end.
                Step::Closing if self.form == Form::Events => return Ok(None),
                Step::Closing => return Err(io::Error::other("the server shuts down")),
                Step::Ended(state) => {
                    self.ended = true;
                    if self.form == Form::Events {
                        // A last line without an end is one; of events it would be torn.
                        if self.growing.what != RunFile::Events {
                            self.lines.finish(|line, after| event(&mut out, None, &after.to_string(), line));
                        }
                        if let Some(state) = state {
                            let end = json!({"state": state}).to_string();
                            event(&mut out, Some("end"), END_ID, end.as_bytes());
                        }
                    }
                }
            }
            if !out.is_empty() {
                return Ok(Some((out.into(), self)));
            }
        }
    }
}

enum Step {
    Bytes(Bytes),
    /// Nothing for a while.
    Quiet,
    /// The server shuts down; the run goes on.
    Closing,
    /// Everything was read, and nothing more will come. With the run's state, unless the client did not want to wait.
    Ended(Option<RunState>),
}

/// A file of a run, read as it grows.
struct Growing {
    daemon: Arc<Daemon>,
    run: RunId,
    what: RunFile,
    path: PathBuf,
    file: Option<Arc<File>>,
    offset: u64,
    follow: bool,
    /// Ticks when something is new in the run's folder; `None` where nobody follows the run.
    news: Option<watch::Receiver<u64>>,
    closing: CancellationToken,
    /// Final, once it is known to be.
    state: Option<RunState>,
    /// When to ask whether the run has ended.
    ask_at: Option<Instant>,
    /// Not to be read again before.
    next_look: Instant,
}

impl Growing {
    fn new(
        daemon: Arc<Daemon>,
        run: &RunRecord,
        what: RunFile,
        offset: u64,
        follow: bool,
        closing: CancellationToken,
    ) -> Self {
        // First the line to the news, then the first look: nothing falls between.
        let news = daemon.runs.subscribe(&run.id);
        Self {
            path: run_folder(&daemon, &run.id).join(what.name()),
            run: run.id.clone(),
            what,
            daemon,
            file: None,
            offset,
            follow,
            news,
            closing,
            state: None,
            ask_at: Some(Instant::now()),
            next_look: Instant::now(),
        }
    }

    /// An offset behind the end was never told by us.
    async fn check_offset(&mut self) -> Result<(), ArmError> {
        if self.offset == 0 {
            return Ok(());
        }
        let length = match self.open().await.map_err(|error| ArmError::internal(&error))? {
            Some(file) => file.metadata().map_err(|error| ArmError::internal(&error))?.len(),
            None => 0,
        };
        if self.offset <= length {
            return Ok(());
        }
        Err(ArmError::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            "InvalidRange",
            format!(
                "{} of the run '{}' has {length} bytes; there is no offset {}.",
                self.what.name(),
                self.run,
                self.offset
            ),
        ))
    }

    async fn next(&mut self) -> io::Result<Step> {
        let quiet_at = Instant::now() + HEARTBEAT;
        loop {
            tokio::time::sleep_until(self.next_look).await;
            if let Some(bytes) = self.read().await? {
                return Ok(Step::Bytes(bytes));
            }
            if !self.follow || self.state.is_some() {
                return Ok(Step::Ended(self.state));
            }
            if self.ask_at.is_some_and(|at| at <= Instant::now()) {
                self.ask_at = None;
                self.state = self.final_state().await?;
                if self.state.is_some() {
                    // What was written before the end, and after the last look.
                    continue;
                }
            }
            let until = self.ask_at.map_or(quiet_at, |at| at.min(quiet_at));
            let closing = self.closing.clone();
            let news = tokio::select! {
                news = self.wait(until) => news,
                () = closing.cancelled() => return Ok(Step::Closing),
            };
            if news {
                // News that bring nothing to this file may be the run's end.
                self.ask_at = Some(Instant::now());
            } else if until == quiet_at {
                self.ask_at = Some(quiet_at);
                return Ok(Step::Quiet);
            }
        }
    }

    /// Waits for news until then; `false` where there were none.
    async fn wait(&mut self, until: Instant) -> bool {
        let Some(news) = &mut self.news else {
            // It is queued, or another process of ours took it over just now.
            let again = Instant::now() + UNFOLLOWED;
            tokio::time::sleep_until(until.min(again)).await;
            self.news = self.daemon.runs.subscribe(&self.run);
            return again <= until;
        };
        match tokio::time::timeout_at(until, news.changed()).await {
            Ok(Ok(())) => true,
            Ok(Err(_)) => {
                self.news = None;
                true
            }
            Err(_) => false,
        }
    }

    /// The next piece of the file; `None` at its end.
    async fn read(&mut self) -> io::Result<Option<Bytes>> {
        let Some(file) = self.open().await? else { return Ok(None) };
        let offset = self.offset;
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; PIECE];
            let count = file.read_at(&mut piece, offset)?;
            // It may wait long in a slow connection: no more than its bytes is kept.
            Ok::<_, io::Error>(Bytes::copy_from_slice(&piece[..count]))
        });
        let bytes = read.await.map_err(io::Error::other)??;
        if bytes.is_empty() {
            return Ok(None);
        }
        self.offset += bytes.len() as u64;
        let now = Instant::now();
        self.ask_at = Some(now + SILENCE);
        if bytes.len() < PIECE {
            self.next_look = now + STEP;
        }
        Ok(Some(bytes))
    }

    async fn open(&mut self) -> io::Result<Option<Arc<File>>> {
        if self.file.is_none() {
            let path = self.path.clone();
            match tokio::task::spawn_blocking(move || open_regular(&path)).await.map_err(io::Error::other)? {
                Ok(file) => self.file = Some(Arc::new(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.file.clone())
    }

    /// The state of a run that has ended; a run whose row is gone has, too.
    async fn final_state(&self) -> io::Result<Option<RunState>> {
        let run = self.run.clone();
        let record = self.daemon.store.read(move |store| store.run(&run)).await.map_err(io::Error::other)?;
        Ok(match record {
            Some(run) => Some(run.state).filter(|state| state.is_final()),
            None => Some(RunState::Canceled),
        })
    }
}

//! Following a run: reading its events and its log while a worker writes them.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use kiln_build::run_dir::{RunDir, RunDirError};
use kiln_build::watch::FolderWatch;
use kiln_model::event::{EVENTS_FORMAT, RunEvent, RunEventKind};

use crate::executor::Worker;

/// Read in one go; a chatty guest does not hold up the events.
const CHUNK: usize = 256 << 10;
/// A line of the journal is far below this; a longer one is not ours.
const MAX_EVENT: usize = 4 << 20;

/// A run cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    #[error("could not read {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("line {line} of {} is not an event", path.display())]
    Parse { path: PathBuf, line: u64, source: serde_json::Error },
    #[error("{} has event format {found}; this program reads formats up to {EVENTS_FORMAT}: use the newer kiln that wrote it", path.display())]
    Newer { path: PathBuf, found: u32 },
    #[error("line {line} of {} has no end", path.display())]
    Endless { path: PathBuf, line: u64 },
    #[error(transparent)]
    RunDir(#[from] RunDirError),
}

/// How a followed run came to its end.
#[derive(Debug)]
pub enum Followed {
    /// The run ended; its last event.
    Ended(Box<RunEvent>),
    /// The worker is gone and left no end: the run must be settled.
    WorkerGone(String),
}

/// Something new about a run.
#[derive(Debug)]
pub enum News<'a> {
    Event(&'a RunEvent),
    /// Bytes of `customization.log`, as they come.
    Log(&'a [u8]),
    /// Something in the run's directory, for those who read it themselves.
    Changed,
}

/// How much of a run its follower wants to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attention {
    EventsAndLog,
    /// Events, and that something changed.
    Events,
}

/// Reports everything that happens in a run, from its first event to its last, its log included.
pub async fn follow(
    dir: &RunDir,
    worker: &Worker,
    report: impl FnMut(News<'_>),
) -> Result<Followed, FollowError> {
    read_on(dir, worker, Attention::EventsAndLog, report).await
}

/// Reports a run's events from the first to the last, and that its directory changed: nobody
/// need read a long log to know how a run goes.
pub async fn follow_events(
    dir: &RunDir,
    worker: &Worker,
    report: impl FnMut(News<'_>),
) -> Result<Followed, FollowError> {
    read_on(dir, worker, Attention::Events, report).await
}

async fn read_on(
    dir: &RunDir,
    worker: &Worker,
    attention: Attention,
    mut report: impl FnMut(News<'_>),
) -> Result<Followed, FollowError> {
    let io_error = |source| FollowError::Io { path: dir.path().to_owned(), source };
    let mut watch = FolderWatch::new(dir.path()).map_err(io_error)?;
    let mut events = Tail::new(dir.events());
    let mut log = (attention == Attention::EventsAndLog).then(|| Tail::new(dir.customization_log()));
    let mut read_log = move || log.as_mut().map_or(Ok(None), Tail::read);
    let mut lines = EventLines::new(dir.events());
    let mut worker_ended: Option<String> = None;
    loop {
        // Events before log lines: a step's start is reported before what it prints.
        while let Some(chunk) = events.read()? {
            let mut last = None;
            lines.feed(&chunk, |event| {
                if matches!(event.event, RunEventKind::RunEnded { .. }) {
                    last = Some(event.clone());
                } else {
                    report(News::Event(event));
                }
            })?;
            if let Some(last) = last {
                while let Some(chunk) = read_log()? {
                    report(News::Log(&chunk));
                }
                report(News::Event(&last));
                return Ok(Followed::Ended(Box::new(last)));
            }
        }
        while let Some(chunk) = read_log()? {
            report(News::Log(&chunk));
        }
        // Only after a last look at the files: the end may have been written in between.
        if let Some(how) = worker_ended {
            return Ok(Followed::WorkerGone(how));
        }
        tokio::select! {
            changed = watch.changed() => {
                changed.map_err(io_error)?;
                if attention == Attention::Events {
                    report(News::Changed);
                }
            }
            how = worker.ended() => worker_ended = Some(how),
        }
    }
}

/// Reads what is new in a file that grows, and may not be there yet.
struct Tail {
    path: PathBuf,
    file: Option<File>,
}

impl Tail {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    fn read(&mut self) -> Result<Option<Vec<u8>>, FollowError> {
        let error = |source| FollowError::Io { path: self.path.clone(), source };
        if self.file.is_none() {
            // A worker may be another user than we are: no link of its making is followed, no pipe waited for.
            let no_traps = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
            match File::options().read(true).custom_flags(no_traps.bits().cast_signed()).open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(error(e)),
            }
        }
        let Some(file) = &mut self.file else { return Ok(None) };
        let mut chunk = vec![0; CHUNK];
        let read = file.read(&mut chunk).map_err(error)?;
        chunk.truncate(read);
        Ok((read > 0).then_some(chunk))
    }
}

/// Events from bytes that arrive in any pieces.
pub(crate) struct EventLines {
    path: PathBuf,
    pending: Vec<u8>,
    line: u64,
}

impl EventLines {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, pending: Vec::new(), line: 0 }
    }

    pub(crate) fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&RunEvent)) -> Result<(), FollowError> {
        self.pending.extend_from_slice(bytes);
        let mut rest = self.pending.as_slice();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.line += 1;
            let event = parse(&rest[..end], self.line, &self.path)?;
            each(&event);
            rest = &rest[end + 1..];
        }
        if rest.len() > MAX_EVENT {
            return Err(FollowError::Endless { path: self.path.clone(), line: self.line + 1 });
        }
        self.pending = rest.to_vec();
        Ok(())
    }
}

fn parse(line: &[u8], number: u64, path: &Path) -> Result<RunEvent, FollowError> {
    let event: RunEvent = serde_json::from_slice(line).map_err(|source| FollowError::Parse {
        path: path.to_owned(),
        line: number,
        source,
    })?;
    match event.event {
        RunEventKind::RunStarted { format, .. } if format > EVENTS_FORMAT => {
            Err(FollowError::Newer { path: path.to_owned(), found: format })
        }
        _ => Ok(event),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_from_torn_pieces() {
        let text = concat!(
            r#"{"seq":0,"time":"t","elapsedMs":0,"event":{"kind":"notice","level":"info","text":"a"}}"#,
            "\n",
            r#"{"seq":1,"time":"t","elapsedMs":1,"event":{"kind":"phaseStarted","phase":"Building"}}"#,
            "\n",
            r#"{"seq":2,"ti"#,
        );
        for size in 1..text.len() {
            let mut lines = EventLines::new("events.jsonl".into());
            let mut seen = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                lines.feed(piece, |event| seen.push(event.seq)).unwrap();
            }
            assert_eq!(seen, [0, 1], "pieces of {size}");
        }
    }

    #[test]
    fn strangers_and_newer_formats_are_refused_with_their_place() {
        let mut lines = EventLines::new("events.jsonl".into());
        let error = lines.feed(b"{}\n", |_| {}).unwrap_err();
        assert!(error.to_string().contains("line 1"), "{error}");
        let error = EventLines::new("e".into()).feed(&vec![b'x'; MAX_EVENT + 1], |_| {}).unwrap_err();
        assert!(matches!(error, FollowError::Endless { line: 1, .. }));
    }
}

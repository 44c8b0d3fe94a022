//! The event journal: appends run events to `events.jsonl`.
//!
//! INVARIANT: one writer. Only the holder of the run's lock has a [`Journal`].
//! INVARIANT: a run ends once. After [`RunEventKind::RunEnded`] nothing is written.
//!
//! Room for the end is taken at the beginning: a run that filled the disk can still say
//! so, while its QEMU may not yet have let go of what filled it.
//!
//! A line is written with one call, so that a reader sees whole lines or, after a
//! crash, one torn line at the end, which a reader cuts off and the next writer too.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kiln_model::event::{NoticeLevel, RunEvent, RunEventKind, StepOutcome, StepRef, Unit};
use kiln_model::run::{Phase, RunState};
use tokio_util::sync::CancellationToken;

/// Taken beside the journal, and given up when the disk is full, bytes.
const RESERVE: usize = 256 << 10;
/// Between two progress events of one step.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// A handle on the journal; clones write to the same file.
#[derive(Debug, Clone)]
pub struct Journal {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    /// Of the whole lines, bytes.
    length: u64,
    reserve: PathBuf,
    next_seq: u64,
    started: Instant,
    ended: Option<RunState>,
    phase: Phase,
    step: Option<StepRef>,
    last_progress: HashMap<String, Instant>,
    cancel: Option<CancellationToken>,
    /// A journal that cannot be written fails the run at its end, not in every step.
    broken: Option<io::Error>,
}

impl Journal {
    /// Opens the journal for appending: what is there stays, a torn last line goes.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Whoever settles a run may be root where its worker was not: a link put here leads nowhere.
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole < text.len() {
            file.set_len(whole as u64)?;
        }
        file.seek(SeekFrom::End(0))?;
        let reserve = path.with_extension("reserve");
        // A disk that is full already is the next write's trouble; there may be an earlier worker's reserve.
        if !reserve.exists() && std::fs::write(&reserve, vec![0; RESERVE]).is_err() {
            let _ = std::fs::remove_file(&reserve);
        }
        let lines = text[..whole].iter().filter(|byte| **byte == b'\n').count() as u64;
        let ended = text[..whole].trim_ascii_end().rsplit(|byte| *byte == b'\n').next().and_then(end_state);
        let started =
            text[..whole].split(|byte| *byte == b'\n').next().and_then(began).unwrap_or_else(Instant::now);
        Ok(Self {
            inner: Arc::new(Mutex::new(Inner {
                file,
                length: whole as u64,
                reserve,
                next_seq: lines,
                started,
                ended,
                phase: Phase::Queued,
                step: None,
                last_progress: HashMap::new(),
                cancel: None,
                broken: None,
            })),
        })
    }

    /// Steps that end without success after `cancel` ended by it.
    #[must_use]
    pub fn canceled_by(self, cancel: CancellationToken) -> Self {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).cancel = Some(cancel);
        self
    }

    pub fn append(&self, event: RunEventKind) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.ended.is_some() {
            return;
        }
        match &event {
            RunEventKind::PhaseStarted { phase } => inner.phase = *phase,
            RunEventKind::StepStarted { step } => inner.step = Some(step.clone()),
            RunEventKind::StepEnded { step, outcome: StepOutcome::Succeeded, .. } => {
                if inner.step.as_ref() == Some(step) {
                    inner.step = None;
                }
                inner.last_progress.remove(&step.id);
            }
            _ => {}
        }
        let ends = match &event {
            RunEventKind::RunEnded { state, .. } => Some(*state),
            _ => None,
        };
        let event =
            RunEvent { seq: inner.next_seq, time: now(), elapsed_ms: millis(inner.started.elapsed()), event };
        let written = serde_json::to_vec(&event).map_err(io::Error::other).and_then(|mut line| {
            line.push(b'\n');
            inner.write_line(&line)?;
            if ends.is_some() { inner.file.sync_all() } else { Ok(()) }
        });
        match written {
            Ok(()) => {
                inner.next_seq += 1;
                inner.ended = ends;
                if ends.is_some() {
                    let _ = std::fs::remove_file(&inner.reserve);
                }
            }
            Err(error) => inner.broken = inner.broken.take().or(Some(error)),
        }
    }

    /// Whether nothing was ever written.
    pub fn is_empty(&self) -> bool {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).next_seq == 0
    }

    /// How the run ended, if it has.
    pub fn ended(&self) -> Option<RunState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).ended
    }

    /// The first error of writing, if there was one.
    pub fn take_error(&self) -> Option<io::Error> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).broken.take()
    }

    /// Where the run is: its phase, and the step that runs or failed last.
    pub fn position(&self) -> (Phase, Option<StepRef>) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        (inner.phase, inner.step.clone())
    }

    pub fn elapsed(&self) -> Duration {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).started.elapsed()
    }

    pub fn phase(&self, phase: Phase) {
        self.append(RunEventKind::PhaseStarted { phase });
    }

    pub fn info(&self, text: impl Into<String>) {
        self.append(RunEventKind::Notice { level: NoticeLevel::Info, text: text.into() });
    }

    pub fn warn(&self, text: impl Into<String>) {
        self.append(RunEventKind::Notice { level: NoticeLevel::Warning, text: text.into() });
    }

    /// Begins a step; the returned handle ends it.
    pub fn step(&self, id: impl Into<String>, title: impl Into<String>) -> Step {
        let step = StepRef { id: id.into(), title: title.into() };
        self.append(RunEventKind::StepStarted { step: step.clone() });
        Step { journal: self.clone(), step, started: Instant::now(), open: true }
    }

    /// How far a step is, for those who do not hold its [`Step`].
    pub fn step_progress(&self, step: &StepRef, done: u64, total: u64, unit: Unit) {
        {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let last = inner.last_progress.get(&step.id);
            if last.is_some_and(|last| now.duration_since(*last) < PROGRESS_EVERY) {
                return;
            }
            inner.last_progress.insert(step.id.clone(), now);
        }
        self.append(RunEventKind::StepProgress { step: step.clone(), done, total, unit });
    }
}

impl Inner {
    /// Writes a whole line or nothing of it; gives up the reserve where there is no other room.
    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        let mut written = self.file.write_all(line);
        if written.is_err() {
            self.file.set_len(self.length)?;
            if std::fs::remove_file(&self.reserve).is_ok() {
                written = self.file.write_all(line);
            }
        }
        match written {
            Ok(()) => self.length += line.len() as u64,
            Err(_) => self.file.set_len(self.length)?,
        }
        written
    }
}

/// A step under way. Dropped without an end, it failed, or was canceled.
#[derive(Debug)]
pub struct Step {
    journal: Journal,
    step: StepRef,
    started: Instant,
    open: bool,
}

impl Step {
    pub fn reference(&self) -> &StepRef {
        &self.step
    }

    /// How far it is; cheap to call often.
    pub fn progress(&self, done: u64, total: u64, unit: Unit) {
        self.journal.step_progress(&self.step, done, total, unit);
    }

    pub fn succeed(mut self, message: impl Into<String>) {
        self.end(StepOutcome::Succeeded, message.into());
    }

    /// Ends it without success; whether it failed or was canceled is known to the journal.
    pub fn fail(mut self, message: impl Into<String>) {
        self.end_unsuccessfully(message.into());
    }

    fn end_unsuccessfully(&mut self, message: String) {
        let inner = self.journal.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let canceled = inner.cancel.as_ref().is_some_and(CancellationToken::is_cancelled);
        drop(inner);
        self.end(if canceled { StepOutcome::Canceled } else { StepOutcome::Failed }, message);
    }

    fn end(&mut self, outcome: StepOutcome, message: String) {
        self.open = false;
        let ms = millis(self.started.elapsed());
        self.journal.append(RunEventKind::StepEnded { step: self.step.clone(), outcome, message, ms });
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if self.open {
            self.end_unsuccessfully(String::new());
        }
    }
}

/// When a journal's first event was written, on this process's clock.
fn began(line: &[u8]) -> Option<Instant> {
    let time: jiff::Timestamp = serde_json::from_slice::<RunEvent>(line).ok()?.time.parse().ok()?;
    let ago = jiff::Timestamp::now().duration_since(time);
    Instant::now().checked_sub(Duration::try_from(ago).ok()?)
}

/// The state that a line of the journal ends the run with, if it does.
fn end_state(line: &[u8]) -> Option<RunState> {
    match serde_json::from_slice::<RunEvent>(line).ok()?.event {
        RunEventKind::RunEnded { state, .. } => Some(state),
        _ => None,
    }
}

/// RFC 3339 with milliseconds, UTC.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &Path) -> Vec<RunEvent> {
        std::fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    #[test]
    fn a_torn_line_is_cut_and_numbers_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let journal = Journal::open(&path).unwrap();
        journal.info("one");
        journal.info("two");
        drop(journal);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(br#"{"seq":2,"ti"#).unwrap();
        let journal = Journal::open(&path).unwrap();
        journal.info("three");
        assert_eq!(lines(&path).iter().map(|e| e.seq).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn nothing_follows_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let journal = Journal::open(&path).unwrap();
        let ended = || RunEventKind::RunEnded {
            state: RunState::Succeeded,
            message: String::new(),
            failure: None,
            ms: 1,
        };
        journal.append(ended());
        journal.append(ended());
        journal.info("late");
        assert_eq!(lines(&path).len(), 1);
        // Nor by somebody who comes later.
        let journal = Journal::open(&path).unwrap();
        assert_eq!(journal.ended(), Some(RunState::Succeeded));
        journal.append(ended());
        assert_eq!(lines(&path).len(), 1);
    }

    #[test]
    fn a_dropped_step_failed_and_keeps_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let journal = Journal::open(&path).unwrap();
        journal.phase(Phase::Customizing);
        journal.step("customize/1", "Shell \"ok\"").succeed("");
        drop(journal.step("customize/2", "Shell \"bad\""));
        let (phase, step) = journal.position();
        assert_eq!((phase, step.unwrap().id.as_str()), (Phase::Customizing, "customize/2"));
        assert!(lines(&path).iter().any(|e| matches!(
            &e.event,
            RunEventKind::StepEnded { step, outcome: StepOutcome::Failed, .. } if step.id == "customize/2"
        )));
    }

    #[test]
    fn room_for_the_end_is_taken_and_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let journal = Journal::open(&path).unwrap();
        assert_eq!(std::fs::metadata(dir.path().join("events.reserve")).unwrap().len(), RESERVE as u64);
        journal.info("one");
        let end =
            RunEventKind::RunEnded { state: RunState::Failed, message: String::new(), failure: None, ms: 1 };
        journal.append(end);
        assert!(!dir.path().join("events.reserve").exists(), "given back at the end");
        assert_eq!(lines(&path).len(), 2);
    }

    #[test]
    fn progress_is_thinned() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let journal = Journal::open(&path).unwrap();
        let step = journal.step("inputs", "Inputs");
        for done in 0..10_000 {
            step.progress(done, 10_000, Unit::Bytes);
        }
        step.succeed("");
        assert!(lines(&path).len() < 20);
    }
}

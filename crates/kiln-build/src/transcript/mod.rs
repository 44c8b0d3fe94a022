//! The transcript of a run: what it ran on, what passed, what that proves, and all that was said to the guest.
//!
//! ```text
//!  boot, generalize ── what was seen ──► Transcript ◄── exchanges ── the WinRM client's recorder (work/exchanges.jsonl)
//!  finish ── publish ─► RUN_DIR/transcript.jsonl: the head (one line), then the exchanges, one a line
//! ```
//!
//! Made only for a run whose request asks for it (`transcript`), for whoever wants to show what Kiln does on a Windows of
//! their own: `kiln certify-windows`. Secrets are kept out by the recorder; the head holds none, and what a guest said in
//! it goes through the same sieve.
//!
//! INVARIANT: a transcript is whole or not there. It is written when all is known, aside, synced and renamed, before the
//! run's end is told. A worker that is killed leaves none.
//!
//! How it fails: never the run. What could not be written is a warning.

mod head;

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_guest::os::windows::facts::WindowsFacts;
use kiln_guest::os::windows::proof::{DiskWords, Proof};
use kiln_guest::winrm::{Recorder, Tally};
use kiln_host::digest::sha256_file;
use kiln_host::process::Invocation;
use kiln_host::publish::Aside;
use kiln_model::Sha256;
use kiln_model::event::{NoticeLevel, RunEvent, RunEventKind, StepOutcome, read_events};
use kiln_model::plan::{BuildPlan, Customizer, InputLocation};
use kiln_model::run::RunState;
use kiln_qemu::firmware::Firmware;
use kiln_qemu::host::Accelerator;

pub use head::{
    FileWords, GeneralizedWords, Head, HeadError, HostWords, ImageWords, ResultWords, StepWords,
    TRANSCRIPT_FORMAT,
};

use crate::run_dir::{RunDir, RunRequest};

/// A transcript in the making; clones add to the same one.
#[derive(Debug, Clone, Default)]
pub struct Transcript {
    inner: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    host: HostWords,
    guest: Option<WindowsFacts>,
    disk: Option<DiskWords>,
    generalized: Option<GeneralizedWords>,
    exchanges: Option<(PathBuf, Recorder)>,
}

impl Transcript {
    /// Begins to take exchanges down, in a file at `exchanges`.
    pub(crate) fn open(&self, exchanges: &Path, qemu: &str) -> io::Result<()> {
        let file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(exchanges)?;
        let mut seen = self.seen();
        seen.host = HostWords { qemu: qemu.to_owned(), ..HostWords::here() };
        seen.exchanges = Some((exchanges.to_owned(), Recorder::new(file)));
        Ok(())
    }

    /// For the login; `None` before there is a place for its lines.
    pub(crate) fn recorder(&self) -> Option<Recorder> {
        self.seen().exchanges.as_ref().map(|(_, recorder)| recorder.clone())
    }

    pub(crate) fn accelerator(&self, found: &Accelerator) {
        self.seen().host.accelerator = match found {
            Accelerator::Kvm { cpu_model } => format!("KVM, {cpu_model}"),
            Accelerator::Tcg { reason } => format!("TCG: {reason}"),
        };
    }

    /// What the machine starts with: OVMF has no version of its own, so its digest stands for one.
    pub(crate) fn firmware(&self, firmware: &Firmware, swtpm: Option<&Path>) {
        let firmware = match firmware {
            Firmware::Bios => None,
            Firmware::Uefi { code, .. } => {
                let sha256 = sha256_file(code, &mut |_| Ok(())).ok().map(Sha256::from);
                Some(FileWords { path: code.display().to_string(), sha256 })
            }
        };
        let swtpm = swtpm.map(|program| {
            let said =
                Invocation::new(program).arg("--version").run_blocking().map(|output| output.stdout_text());
            said.unwrap_or_default().lines().next().unwrap_or_default().to_owned()
        });
        let mut seen = self.seen();
        seen.host.firmware = firmware;
        seen.host.swtpm = swtpm;
    }

    /// What the guest says of itself.
    pub(crate) fn guest(&self, facts: &WindowsFacts) {
        self.seen().guest = Some(facts.clone());
    }

    /// What the base image's own registry says.
    pub(crate) fn disk(&self, words: DiskWords) {
        self.seen().disk = Some(words);
    }

    pub(crate) fn generalized(&self, words: GeneralizedWords) {
        self.seen().generalized = Some(words);
    }

    /// Writes it beside the run's other files.
    pub(crate) fn publish(
        &self,
        dir: &RunDir,
        request: &RunRequest,
        plan: &BuildPlan,
        state: RunState,
        message: &str,
    ) -> io::Result<()> {
        let text = std::fs::read(dir.events())?;
        let events = read_events(&text).map_err(io::Error::other)?.events;
        let seen = self.seen();
        let (exchanges, tally) = match &seen.exchanges {
            Some((path, recorder)) => (Some(path), recorder.finish()?),
            None => (None, Tally::default()),
        };
        let sha256 = match exchanges {
            Some(path) => sha256_file(path, &mut |_| Ok(()))?,
            None => kiln_host::digest::sha256(&[]),
        };
        let mut head = head(&seen, request, plan, &events, state, message);
        head.exchanges = tally.exchanges;
        head.omitted = tally.omitted;
        head.exchanges_sha256 = sha256.into();
        let line = head.to_line();
        // What guest and host said of themselves must not smuggle out what the recorder keeps back.
        let line = match &seen.exchanges {
            Some((_, recorder)) => recorder.redacted(&line),
            None => line,
        };
        let mut aside = Aside::create(dir.transcript(), 0o600)?;
        aside.file_mut().write_all(line.as_bytes())?;
        if let Some(path) = exchanges {
            io::copy(&mut File::open(path)?, aside.file_mut())?;
        }
        aside.publish()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Each word is set whole; a panic in between leaves the others as they were.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All but what the exchanges are.
fn head(
    seen: &Seen,
    request: &RunRequest,
    plan: &BuildPlan,
    events: &[RunEvent],
    state: RunState,
    message: &str,
) -> Head {
    let proof = Proof::of(seen.guest.as_ref(), seen.disk.as_ref());
    let started_at = events.first().map(|event| event.time.clone()).unwrap_or_default();
    let name = format!("transcript-{}-{}.jsonl", proof.file_part(seen.guest.as_ref()), compact(&started_at));
    let failure = (state != RunState::Succeeded).then_some(message);
    let mut head = Head {
        kind: head::Kind::Transcript,
        format: TRANSCRIPT_FORMAT,
        proof: proof.of_run(&name, failure),
        name,
        run_id: request.run_id.to_string(),
        started_at,
        outcome: state,
        message: message.to_owned(),
        host: seen.host.clone(),
        image: ImageWords::of(&plan.source),
        guest: seen.guest.clone(),
        disk: seen.disk.clone(),
        customizers: without_places(plan),
        steps: Vec::new(),
        warnings: Vec::new(),
        generalized: seen.generalized.clone(),
        results: Vec::new(),
        exchanges: 0,
        omitted: 0,
        exchanges_sha256: Sha256::from([0; 32]),
    };
    for RunEvent { event, .. } in events {
        match event {
            RunEventKind::RunStarted { kiln_version, .. } => head.host.kiln.clone_from(kiln_version),
            RunEventKind::StepEnded { step, outcome, message, ms } => {
                let word = match outcome {
                    StepOutcome::Succeeded => proof.words(),
                    StepOutcome::Failed => "failed".to_owned(),
                    StepOutcome::Canceled => "canceled".to_owned(),
                };
                head.steps.push(StepWords {
                    id: step.id.clone(),
                    title: step.title.clone(),
                    outcome: *outcome,
                    message: message.clone(),
                    ms: *ms,
                    word,
                });
            }
            RunEventKind::Notice { level: NoticeLevel::Warning, text } => head.warnings.push(text.clone()),
            RunEventKind::OutputPublished { output } => head.results.push(ResultWords {
                file: output.file.clone(),
                size: output.size,
                virtual_size: output.virtual_size,
                sha256: output.sha256,
            }),
            _ => {}
        }
    }
    head
}

/// What was asked for. Of a file of this host its name is enough: where people keep theirs is their own.
fn without_places(plan: &BuildPlan) -> Vec<Customizer> {
    let mut plan = plan.redacted();
    for input in plan.inputs_mut() {
        if let InputLocation::File(path) = &input.location {
            input.location = InputLocation::File(path.file_name().unwrap_or_default().into());
        }
    }
    plan.customizers
}

/// `20261127T181221Z` of `2026-11-27T18:12:21.000Z`.
fn compact(time: &str) -> String {
    let seconds = time.split('.').next().unwrap_or_default();
    let kept: String = seconds.chars().filter(|c| c.is_ascii_digit() || *c == 'T').collect();
    format!("{kept}Z")
}

#[cfg(test)]
mod tests;

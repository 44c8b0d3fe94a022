//! Run events: the one truth about a run.
//!
//! A worker appends them, one JSON object a line, to `events.jsonl` in the run's
//! directory; everything else (progress on a terminal, the API's status, history)
//! is read from there. Guest output is not here: it goes to `customization.log`.
//!
//! The format is a promise: a golden file holds it, and [`EVENTS_FORMAT`] in the
//! first event says which one it is.

use serde::{Deserialize, Serialize};

use crate::Sha256;
use crate::json::{self, FormatError};
use crate::run::{Fault, Phase, RunState};

/// The newest event format this build reads and the one it writes.
pub const EVENTS_FORMAT: u32 = 1;

/// One line of `events.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunEvent {
    /// 0 for the first event; no gaps.
    pub seq: u64,
    /// RFC 3339 with milliseconds, UTC. For people; order is `seq`.
    pub time: String,
    /// Milliseconds since the run started, by a monotonic clock.
    pub elapsed_ms: u64,
    pub event: RunEventKind,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "kind")]
#[expect(clippy::large_enum_variant, reason = "events are few, and written one at a time")]
pub enum RunEventKind {
    RunStarted {
        format: u32,
        run_id: String,
        template_name: String,
        template_sha256: Sha256,
        /// Name and version of the base image, for example `debian-12 12.20250101.0`.
        source: String,
        kiln_version: String,
        /// 1 for the first worker of this run.
        attempt: u32,
    },
    PhaseStarted {
        phase: Phase,
    },
    StepStarted {
        step: StepRef,
    },
    /// Not more than two a second for each step.
    StepProgress {
        step: StepRef,
        done: u64,
        /// 0 where the end is not known.
        total: u64,
        unit: Unit,
    },
    StepEnded {
        step: StepRef,
        outcome: StepOutcome,
        /// One sentence: what came out, or what went wrong.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        message: String,
        ms: u64,
    },
    /// Something a person should know; never a reason to stop.
    Notice {
        level: NoticeLevel,
        text: String,
    },
    OutputPublished {
        output: RunOutput,
    },
    RunEnded {
        state: RunState,
        /// One sentence. For failures: the cause.
        message: String,
        /// Of a run that failed, or that could not serve all its targets.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failure: Option<Failure>,
        ms: u64,
    },
}

/// A step of a run: a customizer of the template, or something Kiln does itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepRef {
    /// Unique in the run, for example `inputs`, `boot`, `customize/2`, `distribute/out`.
    pub id: String,
    /// What a person reads: `Shell "install nginx"`.
    pub title: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Unit {
    Bytes,
    Items,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StepOutcome {
    Succeeded,
    Failed,
    Canceled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NoticeLevel {
    Info,
    Warning,
}

/// Why a run failed, as data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    pub fault: Fault,
    pub phase: Phase,
    /// The failing step, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepRef>,
    /// The cause in one sentence.
    pub cause: String,
    /// Each underlying error, outermost first.
    pub chain: Vec<String>,
    /// The last lines of `customization.log`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_tail: Vec<String>,
    /// The last lines of the serial console.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub console_tail: Vec<String>,
}

/// The newest run output format this build reads and the one it writes.
pub const RUN_OUTPUT_FORMAT: u32 = 1;

/// What a distributor left: the JSON file beside the artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunOutput {
    pub format: u32,
    /// `runOutputName` of the template.
    pub name: String,
    /// What it was distributed as: `VHD`.
    pub r#type: String,
    pub run_id: String,
    /// File name of the artifact, beside this file.
    pub file: String,
    /// Length of the file, bytes.
    pub size: u64,
    /// Size of the disk, bytes: a whole number of MiB.
    pub virtual_size: u64,
    /// Digest of the file, as `sha256sum FILE` prints it.
    pub sha256: Sha256,
    /// The file's extent digest, `kiln-extents-2`: of its length and of those of its blocks of 64 KiB that are not all
    /// zeros, so that checking the file again costs a read of its data and not of its size. Older records have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extents: Option<Sha256>,
    /// Of all that led to the image, where a build kept it: a later build that comes to the same leaves the file as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Sha256>,
    pub source: OutputSource,
    pub template_name: String,
    pub template_sha256: Sha256,
    /// Hyper-V generation, `V1` or `V2`.
    pub generation: crate::catalog::Generation,
    /// Records of before Windows guests have none.
    #[serde(default = "linux")]
    pub os: crate::catalog::Os,
    pub tags: std::collections::BTreeMap<String, String>,
    /// RFC 3339, UTC.
    pub created_at: String,
    pub kiln_version: String,
    /// What is known about it: `booted in QEMU; not tried on Azure`.
    pub status: String,
}

const fn linux() -> crate::catalog::Os {
    crate::catalog::Os::Linux
}

/// The base image an artifact was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutputSource {
    pub name: String,
    pub version: String,
    pub sha256: Sha256,
    /// As the template wrote it: `Debian:debian-12:12-gen2:latest`.
    pub requested: String,
}

impl RunOutput {
    /// The content of the JSON file beside an artifact.
    pub fn to_json(&self) -> String {
        json::pretty(self)
    }

    /// Reads such a file.
    ///
    /// # Errors
    /// A newer format, a torn or foreign file.
    pub fn from_json(text: &str) -> Result<Self, FormatError> {
        json::read("the run output", text, RUN_OUTPUT_FORMAT)
    }
}

impl RunEvent {
    /// One line of `events.jsonl`, with its line feed.
    pub fn to_line(&self) -> String {
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }
}

/// The events of a run as far as they are whole.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EventLog {
    pub events: Vec<RunEvent>,
    /// Bytes of the file that hold them. What is behind is a torn last line: who appends
    /// next cuts the file here.
    pub whole_bytes: usize,
}

const EVENTS: &str = "events.jsonl";

/// Reads `events.jsonl`. A torn last line is cut; an empty file has no events.
///
/// # Errors
/// A newer format; a line in the middle that is no event; sequence numbers with gaps.
pub fn read_events(bytes: &[u8]) -> Result<EventLog, FormatError> {
    let mut log = EventLog::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        let line_number = log.events.len() + 1;
        let (line, whole) = match rest.iter().position(|&byte| byte == b'\n') {
            Some(end) => (&rest[..=end], true),
            None => (rest, false),
        };
        rest = &rest[line.len()..];
        // A crash can leave a line without its end, or its room without its bytes (zeros).
        let torn = !whole || rest.iter().all(|&byte| byte == 0) && line.contains(&0);
        let malformed = |source| FormatError::Malformed { what: EVENTS, line: line_number, source };
        let value: serde_json::Value = match serde_json::from_slice(line) {
            Ok(value) => value,
            Err(_) if torn => break,
            Err(error) => return Err(malformed(error)),
        };
        if log.events.is_empty() {
            let format = value.pointer("/event/format");
            json::check_format(EVENTS, format, EVENTS_FORMAT)?;
        }
        let event: RunEvent = serde_json::from_value(value).map_err(malformed)?;
        let expected = log.events.len() as u64;
        if event.seq != expected {
            return Err(FormatError::Inconsistent {
                what: EVENTS,
                detail: format!("line {line_number} has number {} where {expected} follows", event.seq),
            });
        }
        log.events.push(event);
        log.whole_bytes = bytes.len() - rest.len();
    }
    Ok(log)
}

#[cfg(test)]
mod tests;

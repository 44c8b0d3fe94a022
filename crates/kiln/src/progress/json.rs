//! `--json`: the run's events, one a line, and one object at the end.

use std::path::Path;

use kiln_model::Problem;
use kiln_model::event::{Failure, RunEvent, RunOutput};
use kiln_model::run::{Phase, RunState};
use serde::Serialize;

use super::Outcome;
use super::report::{Place, lasted};
use crate::exit::ExitStatus;

/// The newest format of the result object. The lines before it are the run's events,
/// which carry a format of their own.
pub const RESULT_FORMAT: u32 = 1;

/// One event as one line.
pub fn line(event: &RunEvent) -> String {
    // Serializing our own types to a string does not fail; the line would say so if it did.
    serde_json::to_string(event).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
}

/// The last object of `kiln build --json`, one line.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Result<'a> {
    format: u32,
    kind: &'static str,
    run_id: &'a str,
    /// Of a run on this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    run_dir: Option<&'a Path>,
    /// Of a run on a server: its address, and the template's name there.
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<&'a str>,
    state: RunState,
    message: &'a str,
    exit_status: u8,
    ms: u64,
    phases: Vec<PhaseTime>,
    outputs: Vec<OutputFile<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<&'a Failure>,
}

#[derive(Debug, Serialize)]
struct PhaseTime {
    phase: Phase,
    ms: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OutputFile<'a> {
    /// Where the artifact lies, absolute; none where it is still on the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<std::path::PathBuf>,
    output: &'a RunOutput,
}

/// The result of a run that ended, as one line.
pub fn final_object(
    outcome: &Outcome,
    place: Place<'_>,
    output_dir: Option<&Path>,
    status: ExitStatus,
) -> String {
    let (run_dir, server, template) = match place {
        Place::Here(run_dir) => (Some(run_dir.path()), None, None),
        Place::Server { server, template } => (None, Some(server), Some(template)),
    };
    let (state, message, ms, failure) = match &outcome.end {
        Some(end) => (end.state, end.message.as_str(), end.ms, end.failure.as_ref()),
        None => (RunState::Failed, "the run left no end", 0, None),
    };
    let result = Result {
        format: RESULT_FORMAT,
        kind: "result",
        run_id: &outcome.run.run_id,
        run_dir,
        server,
        template,
        state,
        message,
        exit_status: status.number(),
        ms,
        phases: outcome
            .run
            .phases
            .iter()
            .map(|phase| PhaseTime { phase: phase.phase, ms: lasted(phase, ms) })
            .collect(),
        outputs: outcome
            .run
            .outputs
            .iter()
            .map(|output| OutputFile { path: output_dir.map(|folder| folder.join(&output.file)), output })
            .collect(),
        failure,
    };
    serde_json::to_string(&result).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
}

/// The result of a build that never became a run, as one line: its problems, or what else was in the way.
pub fn refusal(message: &str, problems: &[Problem], status: ExitStatus) -> String {
    let result = Refusal {
        format: RESULT_FORMAT,
        kind: "result",
        state: RunState::Failed,
        message,
        exit_status: status.number(),
        problems,
    };
    serde_json::to_string(&result).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Refusal<'a> {
    format: u32,
    kind: &'static str,
    state: RunState,
    message: &'a str,
    exit_status: u8,
    problems: &'a [Problem],
}

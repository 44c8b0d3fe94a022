//! The WindowsUpdate customizer: rounds as SYSTEM's task, with a restart where one is wanted.
//!
//! `kiln_guest::os::windows::update` holds the bounds and the meaning of the answers.

use std::time::Duration;

use kiln_guest::lines::LineSplitter;
use kiln_guest::os::windows::task::RunAs;
use kiln_guest::os::windows::update::{
    Filter, RoundAnswer, RoundLimits, UpdateChoice, UpdateLimits, UpdateStep, Updates, round_answer,
    round_script,
};
use kiln_guest::os::windows::{restart::DEFAULT_COMMAND, script};
use kiln_model::plan::{Customizer, UpdateFilter};

use super::powershell::{PlacedFile, path, remove};
use super::task::{self, Output, TaskOutcome};
use super::{OutputLog, restart};
use crate::context::Run;
use crate::error::BuildError;
use crate::guest::WindowsGuest;
use crate::log::Stream;

/// Of one restart: Windows may install for a long time while it goes down and comes up.
const RESTART_LIMIT: Duration = Duration::from_secs(4 * 3600);
/// A line of a round's answer.
const MOST_LINE: usize = 64 << 10;

pub(super) async fn run(
    run: &Run,
    guest: &mut WindowsGuest,
    customizer: &Customizer,
    criteria: &str,
    filters: &[UpdateFilter],
    limit: u32,
) -> Result<String, BuildError> {
    let title = customizer.title();
    let choice = UpdateChoice {
        criteria: criteria.to_owned(),
        filters: filters
            .iter()
            .map(|filter| Filter { include: filter.include, expression: filter.expression.clone() })
            .collect(),
        limit: limit.into(),
    };
    let mut updates = Updates::new(UpdateLimits::default());
    let (mut rounds, mut restarts) = (0_u32, 0_u32);
    let mut step = UpdateStep::RunRound;
    loop {
        step = match step {
            UpdateStep::Done => {
                return Ok(format!("{rounds} rounds, {restarts} restarts"));
            }
            UpdateStep::Failed(why) => {
                return Err(BuildError::Customizer { title, detail: why, source: None });
            }
            UpdateStep::Restart => {
                restarts += 1;
                let wanted =
                    restart::Wanted { command: DEFAULT_COMMAND, check: None, timeout: RESTART_LIMIT };
                restart::restart(run, guest, &title, &wanted).await?;
                updates.restarted()
            }
            UpdateStep::RunRound => {
                rounds += 1;
                run.log.say(format!("Running Windows update, round {rounds}..."));
                let text = round_script(&choice, updates.left_out(), &RoundLimits::default());
                let (outcome, answers) = round(run, guest, &title, &text).await?;
                let (lines, next) = match outcome {
                    TaskOutcome::Exited { code } => updates.round_ended(code, &answers),
                    TaskOutcome::Died { why, restarted } => {
                        run.log.say(why);
                        updates.round_lost(restarted)
                    }
                };
                for line in &lines {
                    run.log.say(line);
                }
                next
            }
        };
    }
}

async fn round(
    run: &Run,
    guest: &mut WindowsGuest,
    title: &str,
    text: &str,
) -> Result<(TaskOutcome, Vec<RoundAnswer>), BuildError> {
    let file = path(format!("c:/Windows/Temp/packer-windows-update-{}.ps1", uuid::Uuid::new_v4()))?;
    let arguments = script::file_arguments(&file);
    let files = [PlacedFile { path: file.clone(), bytes: script::file_bytes(text) }];
    let mut answers = Answers::new();
    let ended =
        task::run_to_any_end(run, guest, title, RunAs::System, &arguments, &files, &mut answers).await;
    remove(run, guest, &[&file]).await;
    Ok((ended?, answers.found))
}

/// A round's standard output is answers, each one told in the log; what else is printed is shown as it is.
struct Answers {
    lines: LineSplitter,
    found: Vec<RoundAnswer>,
}

impl Answers {
    fn new() -> Self {
        Self { lines: LineSplitter::new(MOST_LINE), found: Vec::new() }
    }
}

impl Output for Answers {
    fn take(&mut self, log: &mut OutputLog<'_>, stream: Stream, bytes: &[u8]) {
        if stream == Stream::Err {
            log.take(stream, bytes);
            return;
        }
        let found = &mut self.found;
        self.lines.push(bytes, |line, _| match round_answer(&String::from_utf8_lossy(line)) {
            Some(answer) => {
                let told = match &answer {
                    RoundAnswer::Update(result) => Some(result.line()),
                    RoundAnswer::Note { text } => Some(text.clone()),
                    // Told with what comes of the round.
                    RoundAnswer::Round { .. } => None,
                };
                if let Some(told) = told {
                    log.take(Stream::Out, format!("{told}\n").as_bytes());
                }
                found.push(answer);
            }
            None => {
                log.take(Stream::Out, line);
                log.take(Stream::Out, b"\n");
            }
        });
    }
}

//! Inputs: every script and file a template names, on the shelf before a machine starts.
//!
//! INVARIANT: a download with a checksum is used only after it matched (the library
//! publishes nothing else), and a wrong one fails the run before QEMU is started.

use std::collections::HashMap;

use kiln_library::{InputProgress, StoredInput};
use kiln_model::event::Unit;
use kiln_model::plan::InputRef;

use crate::context::Run;
use crate::error::BuildError;

/// What was fetched, by the customizer's position.
#[derive(Debug, Default)]
pub struct Inputs {
    by_position: HashMap<u32, StoredInput>,
}

impl Inputs {
    /// The input of the customizer at `position`.
    pub fn get(&self, position: u32) -> Option<&StoredInput> {
        self.by_position.get(&position)
    }
}

impl FromIterator<(u32, StoredInput)> for Inputs {
    fn from_iter<I: IntoIterator<Item = (u32, StoredInput)>>(stored: I) -> Self {
        Self { by_position: stored.into_iter().collect() }
    }
}

/// Fetches them all, in parallel, each once.
pub async fn fetch(run: &Run) -> Result<Inputs, BuildError> {
    let wants: Vec<(u32, InputRef)> = run
        .plan
        .customizers
        .iter()
        .filter_map(|customizer| Some((customizer.position, customizer.input()?.clone())))
        .collect();
    if wants.is_empty() {
        return Ok(Inputs::default());
    }
    let step = run.journal.step("inputs", format!("fetch and check {} input(s)", wants.len()));
    let refs: Vec<InputRef> = wants.iter().map(|(_, input)| input.clone()).collect();
    let bytes = std::sync::Mutex::new(vec![(0_u64, 0_u64); refs.len()]);
    let report = |progress: InputProgress| {
        let (input, done, total) = match progress {
            InputProgress::Received { input, done, total } => (input, done, total.unwrap_or(0)),
            InputProgress::Stored { input, size, .. } => (input, size, size),
            InputProgress::Retrying { message, .. } => {
                run.log.error(&message);
                run.journal.warn(message);
                return;
            }
            InputProgress::Present { .. } | InputProgress::Started { .. } => return,
        };
        let mut bytes = bytes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        bytes[input] = (done, total.max(done));
        let (done, total) = bytes.iter().fold((0, 0), |(d, t), (done, total)| (d + done, t + total));
        step.progress(done, total, Unit::Bytes);
    };
    let results = run.library.ensure_inputs(&refs, &run.settings.fetch, report, &run.control).await;

    let mut inputs = Inputs::default();
    let mut first_failure = None;
    for ((position, input), result) in wants.into_iter().zip(results) {
        let title = title_at(run, position);
        match result {
            Ok(stored) => {
                run.log.say(format!(
                    "Fetched {} for {title}: {} bytes, sha256 {}{}",
                    input.location.redacted(),
                    stored.size,
                    stored.sha256,
                    if input.sha256.is_some() { ", checksum matches" } else { "" },
                ));
                inputs.by_position.insert(position, stored);
            }
            // A failed fetch is in the log under its customizer's name, although no
            // machine was started.
            Err(source) => {
                let error = BuildError::Input { title: title.clone(), source };
                run.log.error(format!("{title}: {}", error.sentence()));
                first_failure.get_or_insert(error);
            }
        }
    }
    match first_failure {
        Some(error) => {
            run.log.say("No virtual machine was started.");
            Err(error)
        }
        None => {
            step.succeed(format!("{} bytes", total_size(&inputs)));
            Ok(inputs)
        }
    }
}

fn total_size(inputs: &Inputs) -> u64 {
    inputs.by_position.values().map(|input| input.size).sum()
}

fn title_at(run: &Run, position: u32) -> String {
    let customizer = run.plan.customizers.iter().find(|customizer| customizer.position == position);
    customizer.map_or_else(|| format!("customizer #{position}"), |customizer| customizer.title())
}

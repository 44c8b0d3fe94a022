//! `kiln checkpoints`: what builds kept of their machines; what of it a build would reuse; removing it.

use std::time::SystemTime;

use kiln_build::checkpoint::age;
use kiln_library::{CheckpointKind, Library, LibraryError, Removed, ShelvedCheckpoint};
use serde::Serialize;

use super::prepare::{Prepared, prepare};
use super::shelves::Shelves;
use super::{End, Surroundings, plan, signals};
use crate::args::{CheckpointsClearArgs, CheckpointsCommand, CheckpointsExplainArgs};
use crate::exit::{ExitStatus, Failure};
use crate::settings::{Folders, TemplateInput};
use crate::ui::guest_text::neutralize;
use crate::ui::table::table;
use crate::ui::text;

/// The newest format of `kiln checkpoints list|explain --json`.
const CHECKPOINTS_FORMAT: u32 = 1;
/// Of an id, as the table shows it.
const SHORT: usize = 12;

pub async fn run(around: &Surroundings<'_>, command: CheckpointsCommand) -> End {
    let folders = Folders::resolve(around.environment).map_err(Failure::host)?;
    let shelves = Shelves::open(&folders)?;
    match command {
        CheckpointsCommand::List(args) => list(around, shelves.library()?, args.json),
        CheckpointsCommand::Explain(args) => explain(around, &shelves, args).await,
        CheckpointsCommand::Clear(args) => clear(around, shelves.library()?, &args),
    }
}

#[derive(Serialize)]
struct ListView<'a> {
    format: u32,
    checkpoints: Vec<CheckpointView<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CheckpointView<'a> {
    id: &'a str,
    kind: CheckpointKind,
    /// The last step behind it.
    after: &'a str,
    /// How many customizers are behind it.
    customizers: usize,
    base_image: String,
    with_memory: bool,
    /// Bytes on the disk.
    size: u64,
    in_use: bool,
    created_at: &'a str,
    last_used_seconds_ago: u64,
}

impl<'a> CheckpointView<'a> {
    fn of(kept: &'a ShelvedCheckpoint) -> Self {
        let manifest = &kept.manifest;
        let used = SystemTime::now().duration_since(kept.last_used).unwrap_or_default();
        Self {
            id: &manifest.id,
            kind: manifest.kind,
            after: manifest.steps.last().map_or("", |step| step.title.as_str()),
            customizers: manifest.steps.len().saturating_sub(1),
            base_image: format!("{} {}", manifest.base.name, manifest.base.version),
            with_memory: manifest.memory.is_some(),
            size: kept.bytes_on_disk,
            in_use: kept.in_use,
            created_at: &manifest.created_at,
            last_used_seconds_ago: used.as_secs(),
        }
    }

    fn row(&self) -> [String; 6] {
        let what = match self.kind {
            CheckpointKind::Image => "finished image",
            CheckpointKind::Checkpoint if self.with_memory => "disk and memory",
            CheckpointKind::Checkpoint => "disk",
        };
        let used = match self.in_use {
            true => "now".to_owned(),
            false => format!("{} ago", age(self.last_used_seconds_ago)),
        };
        let after = match self.kind {
            CheckpointKind::Image => "generalizing".to_owned(),
            CheckpointKind::Checkpoint => neutralize(self.after),
        };
        [
            self.id.chars().take(SHORT).collect(),
            self.base_image.clone(),
            what.to_owned(),
            text::bytes(self.size),
            used,
            after,
        ]
    }
}

fn list(around: &Surroundings<'_>, library: &Library, json: bool) -> End {
    let printer = around.printer;
    let kept = library.checkpoints().map_err(failure)?;
    let views: Vec<CheckpointView<'_>> = kept.iter().map(CheckpointView::of).collect();
    if json {
        let view = ListView { format: CHECKPOINTS_FORMAT, checkpoints: views };
        printer.data(&serde_json::to_string_pretty(&view).map_err(anyhow::Error::from)?);
        return Ok(ExitStatus::Done);
    }
    let rows: Vec<[String; 6]> = views.iter().map(CheckpointView::row).collect();
    let heads = ["ID", "BASE IMAGE", "WHAT", "SIZE", "USED", "AFTER"];
    table(heads, &rows, printer.out).iter().for_each(|line| printer.data(line));
    let total = views.iter().map(|view| view.size).sum();
    printer.talk(&format!("{}, {} together", text::count(views.len(), "checkpoint"), text::bytes(total)));
    Ok(ExitStatus::Done)
}

#[derive(Serialize)]
struct ExplainView<'a> {
    format: u32,
    /// Sentences.
    reuse: &'a [String],
}

async fn explain(around: &Surroundings<'_>, shelves: &Shelves, args: CheckpointsExplainArgs) -> End {
    let CheckpointsExplainArgs { file, policy, json } = args;
    let printer = around.printer;
    let template = TemplateInput::resolve(file);
    let Prepared { plan, .. } = match prepare(around, &template, shelves) {
        Ok(prepared) => prepared,
        Err(why) => return super::refused(around, &template.shown(), json, why),
    };
    let control = signals::control().map_err(|error| Failure::new(kiln_model::run::Fault::Host, error))?;
    let inputs = plan::fetch(around, shelves, &plan, &control).await?;
    let said = plan::reuse(shelves, &plan, &inputs, policy.as_deref())?.said;
    if json {
        let view = ExplainView { format: CHECKPOINTS_FORMAT, reuse: &said };
        printer.data(&serde_json::to_string_pretty(&view).map_err(anyhow::Error::from)?);
    } else {
        said.iter().for_each(|line| printer.data(&neutralize(line)));
    }
    Ok(ExitStatus::Done)
}

fn clear(around: &Surroundings<'_>, library: &Library, args: &CheckpointsClearArgs) -> End {
    let printer = around.printer;
    let kept = library.checkpoints().map_err(failure)?;
    let mut wanted = Vec::new();
    for beginning in &args.ids {
        let found: Vec<&ShelvedCheckpoint> =
            kept.iter().filter(|kept| kept.manifest.id.starts_with(beginning.as_str())).collect();
        match found[..] {
            [one] => wanted.push(one),
            [] => {
                let error = anyhow::anyhow!("no checkpoint has an id that begins with {beginning:?}");
                return Err(Failure::input(error));
            }
            _ => {
                let error = anyhow::anyhow!("several checkpoints have ids that begin with {beginning:?}");
                return Err(Failure::input(error));
            }
        }
    }
    if args.ids.is_empty() {
        wanted = kept.iter().collect();
    }
    let (mut bytes, mut count, mut used) = (0, 0, 0);
    for kept in wanted {
        let removed = match library.remove_checkpoint(&kept.manifest.id) {
            // With one that it lay on.
            Err(LibraryError::NoSuchCheckpoint { .. }) => continue,
            removed => removed.map_err(failure)?,
        };
        match removed {
            Removed::Gone(gone) => {
                count += gone.ids.len();
                bytes += gone.bytes;
            }
            Removed::InUse { .. } => used += 1,
        }
    }
    printer.talk(&format!("removed {}, {}", text::count(count, "checkpoint"), text::bytes(bytes)));
    if used > 0 {
        printer.warning(&format!("{} of them in use by a build stay", used));
    }
    Ok(ExitStatus::Done)
}

fn failure(error: LibraryError) -> Failure {
    Failure::new(error.fault(), error)
}

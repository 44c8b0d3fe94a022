//! Runs: their history, and one of them in full.
//!
//! Azure has no run history; this one lies beside the contract, in its manner: a run is a resource below its template,
//! lists are paged with `nextLink`. The rows of the store answer lists; one run in full is folded from its
//! `events.jsonl`, the one truth about it. A template's runs stay readable when the template is gone.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_build::run_dir::RunId;
use kiln_model::RunView;
use kiln_model::event::read_events;
use kiln_model::run::RunState;
use serde_json::{Map, Value, json};

use super::answer::{Answer, ArmError, ok};
use super::call::Call;
use super::images;
use super::paging;
use super::route::WhichRun;
use crate::daemon::Daemon;
use crate::store::{OutputRecord, RunFilter, RunRecord, StoreError, TEMPLATE_TYPE, TemplateId};

/// Runs on a page, unless `$top` asks for another number.
const PAGE: usize = 100;
const MOST: usize = 1000;
/// Events of a run that went on for all of its 16 hours are well below this. Bytes.
const MOST_EVENTS: u64 = 256 << 20;

/// GET `/kiln/runs`: of all templates, or of the one that `template` names.
pub(super) async fn list_all(daemon: &Daemon, call: Call) -> Answer {
    let template = call.parameter("template")?.map(template_named).transpose()?;
    list(daemon, call, template).await
}

/// GET `…/imageTemplates/{t}/runs`; newest first.
pub(super) async fn list(daemon: &Daemon, call: Call, template: Option<TemplateId>) -> Answer {
    let state = call.parameter("state")?.map(state_named).transpose()?;
    let limit = page_size(&call)?;
    let after = paging::place(&call)?;
    let first = after.is_none() && state.is_none();
    let asked = template.clone();
    let (page, exists) = daemon
        .store
        .read(move |store| {
            let filter = RunFilter { template, state };
            let page = store.runs(&filter, after.as_deref(), limit)?;
            let unknown = match &filter.template {
                Some(id) if first && page.items.is_empty() => store.template(id)?.is_none(),
                _ => false,
            };
            Ok::<_, StoreError>((page, !unknown))
        })
        .await
        .map_err(place_error)?;
    if let (Some(id), false) = (asked, exists) {
        return Err(ArmError::not_found(
            "ResourceNotFound",
            format!(
                "The Resource '{TEMPLATE_TYPE}/{}' under resource group '{}' was not found, and it has no past runs.",
                id.name, id.resource_group
            ),
        ));
    }
    let items: Vec<Value> = page.items.iter().map(|run| view(run, &call.base)).collect();
    Ok(ok(&paging::page_of(&call, items, page.next, &["api-version", "template", "state", "$top"])?))
}

/// GET `…/runs/{run}`: the row, and all that its events tell.
pub(super) async fn show(daemon: &Daemon, call: Call, template: &TemplateId, which: &WhichRun) -> Answer {
    let run = find(daemon, template, which).await?;
    let id = run.id.clone();
    let outputs = daemon.store.read(move |store| store.outputs_of_run(&id)).await.map_err(internal)?;
    let mut shown = view(&run, &call.base);
    shown["properties"]["outputs"] = outputs.iter().map(|output| output_view(output, &call.base)).collect();
    let events = run_folder(daemon, &run.id).join("events.jsonl");
    let told = tokio::task::spawn_blocking(move || read_view(events));
    match told.await.map_err(|error| ArmError::internal(&error))? {
        Ok(Some(told)) => add_events(&mut shown["properties"], &told),
        Ok(None) => {}
        // The row is still true; the log says what is wrong with the rest.
        Err(error) => tracing::warn!(run = %run.id, %error, "cannot read the events of a run"),
    }
    Ok(ok(&shown))
}

/// POST `…/runs/{run}/retry`.
pub(super) async fn retry(
    daemon: &Arc<Daemon>,
    call: Call,
    template: &TemplateId,
    which: &WhichRun,
) -> Answer {
    let failed = find(daemon, template, which).await?;
    images::retry(daemon, call, template, &failed.id).await
}

/// The run a path names.
///
/// # Errors
/// 404: there is none, or it is another template's.
pub(super) async fn find(
    daemon: &Daemon,
    template: &TemplateId,
    which: &WhichRun,
) -> Result<RunRecord, ArmError> {
    let (template, which) = (template.clone(), which.clone());
    let name = template.name.clone();
    let wanted = match &which {
        WhichRun::Latest => None,
        WhichRun::Id(id) => Some(id.clone()),
    };
    let found = daemon.store.read(move |store| match wanted {
        Some(id) => Ok::<_, StoreError>(store.run(&id)?.filter(|run| run.template == template)),
        None => {
            let filter = RunFilter { template: Some(template), state: None };
            Ok(store.runs(&filter, None, 1)?.items.into_iter().next())
        }
    });
    found.await.map_err(internal)?.ok_or_else(|| {
        let text = match which {
            WhichRun::Latest => format!("The image template '{name}' has no runs."),
            WhichRun::Id(id) => format!("The image template '{name}' has no run '{id}'."),
        };
        ArmError::not_found("RunNotFound", text)
    })
}

/// Where a run's files lie. An id is a plain name, so this is directly below the folder of runs.
pub(super) fn run_folder(daemon: &Daemon, run: &RunId) -> PathBuf {
    daemon.paths.runs().join(run.as_str())
}

/// `$top`, within bounds.
pub(super) fn page_size(call: &Call) -> Result<usize, ArmError> {
    match call.parameter("$top")? {
        None => Ok(PAGE),
        Some(text) => match text.parse() {
            Ok(count @ 1..=MOST) => Ok(count),
            _ => Err(ArmError::bad_request(
                "InvalidParameter",
                format!("'$top' must be a number from 1 to {MOST}."),
            )
            .target("$top")),
        },
    }
}

/// 400 for a `$skipToken` that no page gave, else 500.
pub(super) fn place_error(error: StoreError) -> ArmError {
    match error {
        StoreError::BadPlace(_) => paging::bad_token(),
        error => internal(error),
    }
}

pub(super) fn internal(error: StoreError) -> ArmError {
    ArmError::internal(&error)
}

/// The template of an ARM id.
fn template_named(id: &str) -> Result<TemplateId, ArmError> {
    use super::route::{ImagesRoute, Route};
    match Route::parse(id) {
        Ok(Route::Images(ImagesRoute::Template(id))) => Ok(id),
        _ => {
            Err(ArmError::bad_request("InvalidParameter", "'template' must be the id of an image template.")
                .target("template"))
        }
    }
}

fn state_named(text: &str) -> Result<RunState, ArmError> {
    use RunState::*;
    let all = [Running, Canceling, Succeeded, PartiallySucceeded, Failed, Canceled];
    all.into_iter().find(|state| text.eq_ignore_ascii_case(&format!("{state:?}"))).ok_or_else(|| {
        let names = all.map(|state| format!("{state:?}")).join(", ");
        ArmError::bad_request("InvalidParameter", format!("'state' must be one of {names}.")).target("state")
    })
}

/// A run as a list shows it.
fn view(run: &RunRecord, base: &str) -> Value {
    let id = format!("{}/runs/{}", run.template.arm_id(), run.id);
    let mut properties = Map::new();
    let mut say = |name: &str, value: Value| {
        if !value.is_null() {
            properties.insert(name.to_owned(), value);
        }
    };
    say("template", json!(run.template.arm_id()));
    say("runState", json!(run.state));
    // As in lastRunStatus: where an ended run was means nothing any more.
    say("runSubState", if run.state.is_final() { Value::Null } else { json!(run.phase) });
    say("message", json!(run.message));
    say("fault", json!(run.fault));
    say("queuedTime", json!(run.queued_at));
    say("startTime", json!(run.started_at));
    say("endTime", json!(run.ended_at));
    say("startedBy", json!(run.started_by));
    say("operationId", json!(run.operation));
    say("attempt", json!(run.attempt));
    say("memoryMiB", json!(run.memory_mib));
    say("cpus", json!(run.cpus));
    say("logUri", json!(format!("{base}{id}/log")));
    say("eventsUri", json!(format!("{base}{id}/events")));
    json!({"id": id, "name": run.id, "type": format!("{TEMPLATE_TYPE}/runs"), "properties": properties})
}

fn output_view(output: &OutputRecord, base: &str) -> Value {
    json!({
        "runOutputName": output.name,
        "type": output.output.r#type,
        "artifactUri": format!("{base}{}", super::artifacts::address(&output.run, &output.output.file)),
        "size": output.output.size,
        "virtualSize": output.output.virtual_size,
        "sha256": output.output.sha256,
        "source": output.output.source,
        "tags": output.output.tags,
        "createdTime": output.created_at,
    })
}

/// Blocking. `None` where the run has no events yet.
fn read_view(events: PathBuf) -> io::Result<Option<RunView>> {
    let file = match super::files::open_regular(&events) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MOST_EVENTS), &mut bytes)?;
    let log = read_events(&bytes).map_err(io::Error::other)?;
    RunView::of(&log.events).map(Some).map_err(io::Error::other)
}

fn add_events(properties: &mut Value, told: &RunView) {
    properties["source"] = json!(told.source);
    properties["elapsedMs"] = json!(told.elapsed_ms);
    properties["phases"] = told
        .phases
        .iter()
        .map(|phase| json!({"phase": phase.phase, "startedMs": phase.started_ms, "endedMs": phase.ended_ms}))
        .collect();
    properties["steps"] = told
        .steps
        .iter()
        .map(|step| {
            json!({
                "id": step.step.id,
                "title": step.step.title,
                "phase": step.phase,
                "attempt": step.attempt,
                "startedMs": step.started_ms,
                "ms": step.ms,
                "outcome": step.outcome,
                "message": step.message,
                "progress": step.progress.map(|progress| {
                    json!({"done": progress.done, "total": progress.total, "unit": progress.unit})
                }),
            })
        })
        .collect();
    properties["notices"] =
        told.notices.iter().map(|(level, text)| json!({"level": level, "text": text})).collect();
    properties["failure"] = json!(told.failure);
}

//! `kiln run retry`: a run that failed, once more, from the step that failed.
//!
//! ```text
//!  NAME ─┬─ a run of this host: its folder, its id, or the end of that ─► its plan (or a corrected template's), its
//!        │                                                               wishes ─► a new run, as `kiln build` makes one
//!        └─ a template of a server ─► (the corrected template is stored) ─► its newest run is retried there, and watched
//! ```
//! What makes it more than a build: what was good for the run that failed still is, however long ago that was. That is
//! said in the new run's request, and decided where every run decides what to reuse.

use anyhow::{Context as _, anyhow};
use kiln_build::run_dir::{CheckpointWishes, RunDir, RunRequest};
use kiln_daemon::settle;
use kiln_model::event::{RunEvent, read_events};
use kiln_model::plan::{BuildPlan, Customizer};
use kiln_model::policy::CachePolicy;
use kiln_model::run::RunState;
use serde_json::Value;

use super::build::{Wanted, make_run, see_through, told_in_json};
use super::prepare::{NoPlan, Prepared, prepare};
use super::run::{find_run, watch};
use super::session::with_server;
use super::shelves::Shelves;
use super::signals::Signals;
use super::template::{Upload, text};
use super::{End, Surroundings, runs_here};
use crate::args::RunRetryArgs;
use crate::client::run_id;
use crate::exit::Failure;
use crate::progress::{Ended, Outcome};
use crate::settings::{self, Folders, TemplateInput};
use crate::ui::guest_text::neutralize;

pub async fn run(around: &Surroundings<'_>, args: RunRetryArgs) -> End {
    let json = args.json;
    let ended = retry(around, args).await;
    told_in_json(around, json, ended)
}

async fn retry(around: &Surroundings<'_>, args: RunRetryArgs) -> End {
    let folders = Folders::resolve(around.environment).map_err(Failure::host)?;
    // Both name something at a server.
    let here = args.run.is_none() && args.server.server.is_none();
    let found = if here { runs_here::find(&args.name, &folders.runs)? } else { None };
    match found {
        Some(dir) => retry_here(around, args, &folders, &dir).await,
        None => retry_there(around, args, here).await,
    }
}

async fn retry_here(around: &Surroundings<'_>, args: RunRetryArgs, folders: &Folders, dir: &RunDir) -> End {
    let RunRetryArgs { name: _, run: _, file, output, json, server: _ } = args;
    settings::ensure_private(&folders.runtime).map_err(Failure::host)?;
    let Failed { request, plan: old_plan, started, said } = Failed::read(dir)?;
    let (plan, library) = match file {
        None => (old_plan.clone(), request.library.clone()),
        Some(file) => {
            if folders.library != request.library {
                return Err(Failure::input(anyhow!(
                    "the run {} belongs to another data folder: its library is {}",
                    request.run_id,
                    request.library.display()
                ))
                .hint("set KILN_DATA to the folder that this library lies in"));
            }
            let shelves = Shelves::open(folders)?;
            let input = TemplateInput::resolve(file);
            match prepare(around, &input, &shelves) {
                Ok(Prepared { plan, problems }) => {
                    super::show_problems(around, &input.shown(), &problems);
                    (plan, folders.library.clone())
                }
                Err(NoPlan::Other(failure)) => return Err(failure),
                Err(why) => return super::refused(around, &input.shown(), json, why),
            }
        }
    };
    let checkpoints = match request.checkpoints {
        Some(wishes) => {
            let policy = carried_over(&wishes.policy, &old_plan.customizers, &plan.customizers)?;
            Some(CheckpointWishes { policy, ..wishes }.retried(started))
        }
        None => None,
    };
    around.printer.talk(&format!("retrying {}: {}", request.run_id, neutralize(&said)));
    if checkpoints.is_none() {
        around.printer.warning("nothing was kept of that run: the new one begins with the base image");
    }
    let output = match output {
        Some(given) => settings::output_folder(&given).map_err(Failure::input)?,
        None => request.output_dir,
    };
    let wanted = Wanted {
        output: &output,
        keep_on_error: request.keep_on_error,
        transcript: false,
        checkpoints,
        json,
    };
    // From here on a signal is a request to the run, not the end of this process.
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    // Beside the old one, on the file system of its library.
    let runs = dir.path().parent().unwrap_or(&folders.runs);
    let run_dir = make_run(&wanted, runs, &library, &plan)?;
    see_through(around, &wanted, &run_dir, &mut signals).await
}

/// A run of this host that can be retried.
struct Failed {
    request: RunRequest,
    plan: BuildPlan,
    /// When it began, as its first event has it.
    started: String,
    /// How it ended, in words.
    said: String,
}

impl Failed {
    fn read(dir: &RunDir) -> Result<Self, Failure> {
        let request = dir.read_request().map_err(Failure::input)?;
        let id = &request.run_id;
        if let Some(template) = template_of(dir) {
            return Err(Failure::input(anyhow!("the run {id} is a server's, of the template {template}"))
                .hint(format!("`kiln run retry {template} --run {id}` retries it there")));
        }
        if request.transcript {
            return Err(Failure::input(anyhow!("the run {id} is one of `kiln certify-windows`"))
                .hint("`kiln certify-windows` begins anew"));
        }
        let mut events = events(dir)?;
        if end_of(&events).is_none() {
            end_if_dead(dir, &request)?;
            events = self::events(dir)?;
        }
        let end = end_of(&events).ok_or_else(|| Failure::input(anyhow!("the run {id} left no end")))?;
        let said = match end.state {
            RunState::Failed | RunState::Canceled | RunState::PartiallySucceeded => said_of(&end),
            RunState::Succeeded | RunState::Running | RunState::Canceling => {
                return Err(Failure::input(anyhow!("the run {id} has succeeded: there is nothing to retry"))
                    .hint("`kiln build` with its template builds it anew"));
            }
        };
        let text = std::fs::read_to_string(dir.plan())
            .with_context(|| format!("cannot read {}", dir.plan().display()))
            .map_err(Failure::input)?;
        let plan = BuildPlan::from_json(&text)
            .with_context(|| format!("the plan of the run {id} cannot be used any more"))
            .map_err(Failure::input)?;
        let started = events.first().map(|event| event.time.clone()).unwrap_or_default();
        Ok(Self { request, plan, started, said })
    }
}

/// Of a server's run: the template it is of.
fn template_of(dir: &RunDir) -> Option<String> {
    let origin = std::fs::read(dir.path().join("origin.json")).ok()?;
    let origin: Value = serde_json::from_slice(&origin).ok()?;
    Some(text(&origin, "/template"))
}

fn events(dir: &RunDir) -> Result<Vec<RunEvent>, Failure> {
    let bytes = match std::fs::read(dir.events()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => {
            read.with_context(|| format!("cannot read {}", dir.events().display())).map_err(Failure::input)?
        }
    };
    let log = read_events(&bytes)
        .with_context(|| format!("{} cannot be used any more", dir.events().display()))
        .map_err(Failure::input)?;
    Ok(log.events)
}

fn end_of(events: &[RunEvent]) -> Option<Ended> {
    let mut outcome = Outcome::default();
    events.iter().for_each(|event| outcome.fold(event));
    outcome.end
}

/// `Shell "second" failed: Script exited with …`.
fn said_of(end: &Ended) -> String {
    let step = end.failure.as_ref().and_then(|failure| failure.step.as_ref());
    match (end.state, step) {
        (RunState::Canceled, _) => end.message.clone(),
        (_, Some(step)) if end.message.starts_with(&step.title) => {
            let cause = end.message[step.title.len()..].trim_start_matches(':').trim_start();
            format!("{} failed: {cause}", step.title)
        }
        (_, Some(step)) => format!("{} failed: {}", step.title, end.message),
        (_, None) => format!("it failed: {}", end.message),
    }
}

/// A run whose worker died and that nobody has ended since is ended now.
fn end_if_dead(dir: &RunDir, request: &RunRequest) -> Result<(), Failure> {
    let id = &request.run_id;
    let began = dir.read_claim().map_err(Failure::input)?.is_some();
    let held = kiln_host::lock::is_held(dir.lock())
        .with_context(|| format!("cannot look at {}", dir.lock().display()))
        .map_err(Failure::host)?;
    if held {
        return Err(Failure::input(anyhow!("the run {id} still runs: only one that has failed is retried")));
    }
    if !began {
        return Err(Failure::input(anyhow!(
            "the run {id} has not begun: only one that has failed is retried"
        )));
    }
    settle(dir, "it was not there any more when the run was to be retried")
        .with_context(|| format!("the worker of the run {id} is gone, and the run cannot be ended"))
        .map_err(Failure::host)?;
    Ok(())
}

/// A policy for the customizers of a corrected template: what it says of one goes with that one. By its name; or by its
/// position, where up to there nothing is new.
fn carried_over(
    policy: &CachePolicy,
    old: &[Customizer],
    new: &[Customizer],
) -> Result<CachePolicy, Failure> {
    let mut carried = CachePolicy { steps: Default::default(), ..policy.clone() };
    for (position, said) in &policy.steps {
        let to = moved_to(*position, old, new).ok_or_else(|| {
            let name = old.iter().find(|customizer| customizer.position == *position);
            let name = name.map(|customizer| customizer.name.as_str()).filter(|name| !name.is_empty());
            let which = name.map_or_else(|| format!("at position {position}"), |name| format!("{name:?}"));
            Failure::input(anyhow!(
                "the failed run's policy speaks of the customizer {which}, which cannot be told in the corrected template"
            ))
            .hint("`kiln build` with `--policy` builds it with a policy of its own")
        })?;
        carried.steps.insert(to, *said);
    }
    Ok(carried)
}

fn moved_to(position: u32, old: &[Customizer], new: &[Customizer]) -> Option<u32> {
    let named = |all: &[Customizer], name: &str| -> Vec<u32> {
        all.iter()
            .filter(|customizer| customizer.name == name)
            .map(|customizer| customizer.position)
            .collect()
    };
    let was = old.iter().find(|customizer| customizer.position == position)?;
    if !was.name.is_empty() && named(old, &was.name).len() == 1 {
        let there = named(new, &was.name);
        return if let [one] = there[..] { Some(one) } else { None };
    }
    let upto = |all: &[Customizer]| -> Vec<_> {
        all.iter()
            .filter(|customizer| customizer.position <= position)
            .map(|customizer| (customizer.name.clone(), std::mem::discriminant(&customizer.action)))
            .collect()
    };
    let (before, after) = (upto(old), upto(new));
    (before == after).then_some(position)
}

/// `looked` where there is no such run of this host.
async fn retry_there(around: &Surroundings<'_>, args: RunRetryArgs, looked: bool) -> End {
    let RunRetryArgs { name, run, file, output, json, server } = args;
    if output.is_some() {
        return Err(Failure::input(anyhow!(
            "--output is for runs of this host, and {name} is none of those"
        ))
        .hint("what a server's run makes stays there: `kiln output download` brings it here"));
    }
    let stored = file.is_none();
    let upload = match file {
        None => None,
        Some(file) => {
            let input = TemplateInput::resolve(file);
            match Upload::prepare(around, &input) {
                Ok((upload, problems)) => {
                    super::show_problems(around, &input.shown(), &problems);
                    Some(upload)
                }
                Err(why) => return super::refused(around, &input.shown(), json, why),
            }
        }
    };
    with_server(around, server, async |client| {
        let failed = find_run(client, &name, run.clone()).await.map_err(|failure| match looked {
            true => failure.hint(format!("no run of this host is named {name}, or ends so")),
            false => failure,
        })?;
        let id = run_id(&failed).ok_or_else(|| client.link.strange("a run has no id"))?;
        let state = text(&failed, "/properties/runState");
        match state.as_str() {
            "Failed" | "Canceled" | "PartiallySucceeded" => {}
            "Succeeded" => {
                return Err(Failure::input(anyhow!(
                    "the run {id} of {name} has succeeded: there is nothing to retry"
                ))
                .hint(format!("`kiln run start {name}` runs it anew")));
            }
            _ => {
                return Err(Failure::input(anyhow!(
                    "the run {id} of {name} is {state}: only one that has failed is retried"
                ))
                .hint(format!("`kiln run watch {name}` shows it")));
            }
        }
        let step = text(&failed, "/properties/failure/step/title");
        let message = text(&failed, "/properties/message");
        let said = if step.is_empty() { message } else { format!("{step} failed: {message}") };
        around.printer.talk(&format!("retrying {id} of {name}: {}", neutralize(&said)));
        if stored {
            around
                .printer
                .hint("the server has the template's files as they were stored; `--file` stores them anew");
        }
        if let Some(upload) = upload {
            upload.put(around, client, &name, true).await?;
        }
        let run = client.retry_run(&name, &id).await?;
        watch(around, client, &name, Some(run), json).await
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use std::collections::BTreeMap;

    use kiln_build::run_dir::{REQUEST_FORMAT, RunId};
    use kiln_model::plan::{CustomizerAction, Script};
    use kiln_model::policy::{Cache, StepPolicy};

    use super::*;
    use crate::progress::report::tests::{CANCELED_RUN, FAILED_RUN, GOOD_RUN};

    fn run_dir(runs: &Path, id: &str, events: Option<&str>) -> RunDir {
        let id: RunId = id.parse().unwrap();
        let dir = RunDir::create(runs, &id).unwrap();
        dir.write_request(&RunRequest {
            format: REQUEST_FORMAT,
            run_id: id,
            output_dir: runs.join("out"),
            keep_on_error: false,
            library: runs.join("library"),
            operation: None,
            transcript: false,
            checkpoints: None,
        })
        .unwrap();
        if let Some(events) = events {
            std::fs::write(dir.events(), events).unwrap();
        }
        dir
    }

    fn refusal(dir: &RunDir) -> String {
        let Err(failure) = Failed::read(dir) else { panic!("it can be retried") };
        format!("{:#}", failure.error)
    }

    #[test]
    fn only_what_has_ended_without_success_is_retried() {
        let home = tempfile::tempdir().unwrap();
        let runs = home.path();
        let good = run_dir(runs, "20260102T030405Z-good-000001", Some(GOOD_RUN));
        assert!(refusal(&good).contains("has succeeded"), "{}", refusal(&good));
        let unbegun = run_dir(runs, "20260102T030405Z-new-000002", None);
        assert!(refusal(&unbegun).contains("has not begun"), "{}", refusal(&unbegun));
        let running: String = FAILED_RUN.lines().take(3).map(|line| format!("{line}\n")).collect();
        let running = run_dir(runs, "20260102T030405Z-runs-000003", Some(&running));
        let lock = kiln_host::lock::FileLock::try_exclusive(running.lock()).unwrap().unwrap();
        assert!(refusal(&running).contains("still runs"), "{}", refusal(&running));
        drop(lock);
        let of_server = run_dir(runs, "20260102T030405Z-theirs-000004", Some(FAILED_RUN));
        std::fs::write(of_server.path().join("origin.json"), r#"{"format":1,"template":"t"}"#).unwrap();
        assert!(refusal(&of_server).contains("of the template t"), "{}", refusal(&of_server));
        // These are retried, but for the plan that they lack here.
        for (number, events) in [(5, FAILED_RUN), (6, CANCELED_RUN)] {
            let dir = run_dir(runs, &format!("20260102T030405Z-bad-00000{number}"), Some(events));
            assert!(refusal(&dir).contains("plan.json"), "{}", refusal(&dir));
        }
    }

    #[test]
    fn the_step_that_failed_is_named_once() {
        let end = |events: &str| {
            let events: Vec<RunEvent> =
                events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            said_of(&end_of(&events).unwrap())
        };
        assert_eq!(
            end(FAILED_RUN),
            "Shell \"install nginx\" failed: Script exited with non-zero exit status: 100. Allowed exit codes are: [0]"
        );
        assert_eq!(end(CANCELED_RUN), "canceled; nothing of it was kept");
    }

    #[test]
    fn a_policy_goes_with_its_customizers() {
        let shells = |names: &[&str]| -> Vec<Customizer> {
            let action = || CustomizerAction::Shell { script: Script::Inline(Vec::new()) };
            (1..)
                .zip(names)
                .map(|(position, name)| Customizer { position, name: (*name).to_owned(), action: action() })
                .collect()
        };
        let secret = StepPolicy { cache: None, secret: true };
        let never = StepPolicy { cache: Some(Cache::Never), secret: false };
        let policy = |steps: &[(u32, &StepPolicy)]| CachePolicy {
            max_age: 7,
            steps: steps.iter().map(|(position, step)| (*position, **step)).collect::<BTreeMap<_, _>>(),
        };
        let old = shells(&["a", "", "b"]);
        let given = policy(&[(1, &never), (3, &secret)]);
        assert_eq!(carried_over(&given, &old, &old).unwrap(), given);
        let moved = carried_over(&given, &old, &shells(&["new", "a", "", "b"])).unwrap();
        assert_eq!(moved, policy(&[(2, &never), (4, &secret)]));
        // Without a name it is known only while nothing is new before it.
        let unnamed = policy(&[(2, &secret)]);
        assert_eq!(carried_over(&unnamed, &old, &shells(&["a", "", "c"])).unwrap(), unnamed);
        for other in [&["new", "a", "", "b"][..], &["a"], &["a", "now it has one", "b"]] {
            let refused = carried_over(&unnamed, &old, &shells(other)).unwrap_err();
            assert!(format!("{:#}", refused.error).contains("at position 2"), "{other:?}");
        }
        let refused = carried_over(&given, &old, &shells(&["a", "", "B"])).unwrap_err();
        assert!(format!("{:#}", refused.error).contains("\"b\""));
    }
}

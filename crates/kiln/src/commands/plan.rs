//! `kiln plan`: what a build would do, in order. Inputs are fetched and checked for
//! it, so that their digests and sizes are those a build would use; nothing is started.

use std::path::Path;

use kiln_build::checkpoint::{Choice, Start, forecast};
use kiln_host::wait::Control;
use kiln_library::{InputError, InputProgress, StoredInput};
use kiln_model::catalog::Os;
use kiln_model::plan::{BuildPlan, Customizer, CustomizerAction, Distributor, InputRef, Script};
use serde::Serialize;

use super::prepare::{NoPlan, Prepared, policy as policy_of, prepare};
use super::shelves::Shelves;
use super::{End, Surroundings, signals};
use crate::exit::{ExitStatus, Failure};
use crate::progress::transfer::Transfers;
use crate::settings::{self, Folders, PlanSettings};
use crate::ui::guest_text::neutralize;
use crate::ui::{Paint, problems, text};

/// The newest format of `kiln plan --json`. The plan inside carries its own.
const PLAN_VIEW_FORMAT: u32 = 1;

pub async fn run(around: &Surroundings<'_>, settings: PlanSettings) -> End {
    let printer = around.printer;
    let folders = Folders::resolve(around.environment).map_err(Failure::host)?;
    let shelves = Shelves::open(&folders)?;
    let file = settings.template.shown();
    let Prepared { plan, problems } = match prepare(around, &settings.template, &shelves) {
        Ok(prepared) => prepared,
        Err(NoPlan::Other(failure)) => return Err(failure),
        Err(NoPlan::Problems(found)) => {
            if settings.json {
                printer.raw_data(found.to_json(&file).as_bytes());
            } else {
                super::show_problems(around, &file, &found);
            }
            return Ok(ExitStatus::Failed);
        }
    };

    let control = signals::control().map_err(|error| Failure::new(kiln_model::run::Fault::Host, error))?;
    let inputs = fetch(around, &shelves, &plan, &control).await?;
    let reuse = match &settings.reuse {
        Some(policy) => Some(reuse(&shelves, &plan, &inputs, policy.as_deref())?),
        None => None,
    };

    if settings.json {
        let view = View {
            format: PLAN_VIEW_FORMAT,
            plan: plan.redacted(),
            inputs: inputs.iter().map(InputView::of).collect(),
            reuse: reuse.as_ref().map(|choice| choice.said.as_slice()),
            problems: &problems,
        };
        let text = serde_json::to_string_pretty(&view).map_err(anyhow::Error::from)?;
        printer.data(&text);
    } else {
        for problem in problems.iter() {
            problems::lines(&file, problem, printer.err).iter().for_each(|line| printer.talk(line));
        }
        plan.warnings.iter().for_each(|warning| printer.warning(&neutralize(warning)));
        lines(&plan, &inputs, reuse.as_ref(), printer.out).iter().for_each(|line| printer.data(line));
    }
    Ok(ExitStatus::Done)
}

/// What a build would reuse.
pub(super) fn reuse(
    shelves: &Shelves,
    plan: &BuildPlan,
    inputs: &[FetchedInput<'_>],
    policy: Option<&Path>,
) -> Result<Choice, Failure> {
    let policy = policy_of(policy, plan)?;
    let digest = |position| {
        let found = inputs.iter().find(|fetched| fetched.customizer.position == position);
        found.map(|fetched| fetched.stored.sha256)
    };
    forecast(plan, &digest, &policy, shelves.library()?).map_err(|error| Failure::new(error.fault(), error))
}

/// An input of the plan, as it lies on the shelf.
pub(super) struct FetchedInput<'a> {
    customizer: &'a Customizer,
    input: &'a InputRef,
    stored: StoredInput,
}

pub(super) async fn fetch<'a>(
    around: &Surroundings<'_>,
    shelves: &Shelves,
    plan: &'a BuildPlan,
    control: &Control,
) -> Result<Vec<FetchedInput<'a>>, Failure> {
    let wants: Vec<(&Customizer, &InputRef)> =
        plan.customizers.iter().filter_map(|customizer| Some((customizer, customizer.input()?))).collect();
    if wants.is_empty() {
        return Ok(Vec::new());
    }
    let fetch = settings::fetch(around.environment).map_err(Failure::host)?;
    let refs: Vec<InputRef> = wants.iter().map(|(_, input)| (*input).clone()).collect();
    let transfers = Transfers::new(around.printer, around.verbose > 0);
    let report = |progress: InputProgress| match progress {
        InputProgress::Received { input, done, total } => {
            transfers.advance(input, &refs[input].location.redacted(), done, total);
        }
        InputProgress::Retrying { message, after, .. } => {
            transfers.talk(&format!("{message}; again in {}", text::duration(after)));
        }
        InputProgress::Stored { input, .. } | InputProgress::Present { input, .. } => transfers.end(input),
        InputProgress::Started { .. } => {}
    };
    let results = shelves.library()?.ensure_inputs(&refs, &fetch, report, control).await;
    drop(transfers);

    let mut fetched = Vec::new();
    let mut failures: Vec<(&Customizer, InputError)> = Vec::new();
    for ((customizer, input), result) in wants.into_iter().zip(results) {
        match result {
            Ok(stored) => fetched.push(FetchedInput { customizer, input, stored }),
            Err(error) => failures.push((customizer, error)),
        }
    }
    // All of them are shown; the last one is the command's own error.
    let last = failures.pop();
    for (customizer, error) in failures {
        let context = format!("{} has no input", neutralize(&customizer.title()));
        around.printer.error(&anyhow::Error::new(error).context(context));
    }
    match last {
        None => Ok(fetched),
        Some((customizer, error)) => {
            let fault = error.fault();
            let context = format!("{} has no input", neutralize(&customizer.title()));
            Err(Failure::new(fault, anyhow::Error::new(error).context(context)))
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct View<'a> {
    format: u32,
    plan: BuildPlan,
    inputs: Vec<InputView>,
    /// What of earlier builds would serve, and why not more: sentences. Nothing where nothing is to be reused.
    #[serde(skip_serializing_if = "Option::is_none")]
    reuse: Option<&'a [String]>,
    problems: &'a [kiln_model::Problem],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InputView {
    /// Position of the customizer, from 1.
    customizer: u32,
    address: String,
    sha256: kiln_model::Sha256,
    /// Bytes.
    size: u64,
    /// The template gives the digest, and it is this one.
    checked: bool,
}

impl InputView {
    fn of(fetched: &FetchedInput<'_>) -> Self {
        Self {
            customizer: fetched.customizer.position,
            address: fetched.input.location.redacted(),
            sha256: fetched.stored.sha256,
            size: fetched.stored.size,
            checked: fetched.input.sha256.is_some(),
        }
    }
}

/// The plan in the order in which it would happen.
fn lines(plan: &BuildPlan, inputs: &[FetchedInput<'_>], reuse: Option<&Choice>, paint: Paint) -> Vec<String> {
    let source = &plan.source;
    let machine = &plan.machine;
    let row = |name: &str, value: String| format!("{} {value}", paint.faint(format!("{name:<11}")));
    let disk = if machine.disk_bytes > source.virtual_size {
        format!(
            "disk {} (the base has {})",
            text::bytes(machine.disk_bytes),
            text::bytes(source.virtual_size)
        )
    } else {
        format!("disk {}", text::bytes(machine.disk_bytes))
    };
    let mut lines = vec![
        row("template", format!("{} (sha256 {})", neutralize(&plan.template_name), plan.template_sha256)),
        row(
            "base image",
            format!("{} {} for {}", source.name, source.version, neutralize(&plan.source_requested)),
        ),
        row("", format!("{:?}, generation {:?}, sha256 {}", source.os, source.generation, source.sha256)),
        row(
            "machine",
            format!(
                "{}: {}, {} memory, {disk}",
                neutralize(&machine.vm_size.name),
                text::count(machine.vcpus as usize, "vCPU"),
                text::bytes(machine.memory_mib << 20),
            ),
        ),
        row("time limit", format!("{} minutes", plan.timeout_minutes)),
        paint.heading("Building"),
    ];
    for fetched in inputs {
        let checked = if fetched.input.sha256.is_some() { "checksum matches" } else { "no checksum given" };
        lines.push(format!("  input {}", neutralize(&fetched.input.location.redacted())));
        lines.push(format!(
            "        {}, sha256 {} ({checked})",
            text::bytes(fetched.stored.size),
            fetched.stored.sha256
        ));
    }
    let said = reuse.into_iter().flat_map(|choice| &choice.said);
    lines.extend(said.map(|line| format!("  {}", neutralize(line))));
    let boots = reuse.is_none_or(|choice| choice.start == Start::Base);
    lines.extend(boots.then(|| {
        match source.os {
            Os::Linux => "  boot the base image on an overlay, log in with a key made for the run".to_owned(),
            Os::Windows => {
                "  boot the base image on an overlay, log in over WinRM with an account made for the run"
                    .to_owned()
            }
        }
    }));
    lines.push(paint.heading("Customizing"));
    for customizer in &plan.customizers {
        lines.push(format!(
            "  {}. {}: {}",
            customizer.position,
            neutralize(&customizer.title()),
            neutralize(&action(customizer))
        ));
    }
    match &plan.deprovision {
        Some(command) => {
            lines.push(
                "  deprovision, with /tmp/DeprovisioningScript.sh if a customizer makes one, else:"
                    .to_owned(),
            );
            lines.push(format!("     {}", neutralize(command)));
        }
        None => lines.push(
            "  deprovision, with c:\\DeprovisioningScript.ps1 if a customizer makes one, else by Sysprep"
                .to_owned(),
        ),
    }
    lines.push(paint.heading("Distributing"));
    for distributor in &plan.distributors {
        let Distributor::Vhd { run_output_name, tags } = distributor;
        let name = neutralize(run_output_name);
        lines.push(format!("  VHD \"{name}\": {name}.vhd, a disk of {}", text::bytes(machine.disk_bytes)));
        if !tags.is_empty() {
            let tags: Vec<String> =
                tags.iter().map(|(key, value)| neutralize(&format!("{key}={value}"))).collect();
            lines.push(format!("     tags {}", tags.join(", ")));
        }
    }
    lines
}

fn action(customizer: &Customizer) -> String {
    let script = |script: &Script| match script {
        Script::Inline(entries) => format!("{} inline", text::count(entries.len(), "line")),
        Script::Fetched(input) => input.location.redacted(),
    };
    match &customizer.action {
        CustomizerAction::Shell { script: what } => script(what),
        CustomizerAction::PowerShell { script: what, run_elevated, .. } => {
            format!("{}{}", script(what), if *run_elevated { ", elevated" } else { "" })
        }
        CustomizerAction::File { source, destination } => {
            format!("{} to {destination}", source.location.redacted())
        }
        CustomizerAction::WindowsRestart { command, .. } => command.clone(),
        CustomizerAction::WindowsUpdate { search_criteria, filters, limit } => {
            format!(
                "{search_criteria}; {}; at most {} a round",
                text::count(filters.len(), "filter"),
                text::count(usize::try_from(*limit).unwrap_or(usize::MAX), "update"),
            )
        }
    }
}

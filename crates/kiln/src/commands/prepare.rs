//! From a template file to a plan: what `validate`, `plan` and `build` share.
//!
//! ```text
//!  file ─ read ─► bytes ─ Document::parse ─► check ─► choose the base image ─► BuildPlan
//! ```
//! Every problem found on the way is reported, not only the first.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::Context as _;
use kiln_daemon::shelves;
use kiln_model::plan::{BuildPlan, HostLimits};
use kiln_model::policy::{CachePolicy, MAX_POLICY_BYTES};
use kiln_model::template::CheckedTemplate;
use kiln_model::{CheckContext, Checked, Document, MAX_TEMPLATE_BYTES, Problems, check};

use super::Surroundings;
use super::shelves::Shelves;
use crate::exit::Failure;
use crate::settings::{self, Folders, TemplateInput};

/// A template that became a plan, with what is to be said about it.
#[derive(Debug)]
pub struct Prepared {
    pub plan: BuildPlan,
    /// Warnings and notes.
    pub problems: Problems,
}

/// Why there is no plan.
#[derive(Debug)]
pub enum NoPlan {
    /// The template has errors.
    Problems(Problems),
    /// Something else was in the way: no such file, no such image, no library.
    Other(Failure),
}

impl From<Failure> for NoPlan {
    fn from(failure: Failure) -> Self {
        Self::Other(failure)
    }
}

/// The template's bytes: no more of them than a template may have, and one to tell.
pub fn read(input: &TemplateInput) -> Result<Vec<u8>, Failure> {
    let limit = MAX_TEMPLATE_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    let read = match input {
        TemplateInput::StandardInput => io::stdin().lock().take(limit).read_to_end(&mut bytes),
        TemplateInput::File(path) => {
            File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes))
        }
    };
    read.with_context(|| format!("cannot read the template {}", input.shown())).map_err(Failure::input)?;
    Ok(bytes)
}

/// Parses and checks. The problems are all there are; the template is there if none is an error.
pub fn check_template(
    input: &TemplateInput,
    bytes: &[u8],
    shelves: &Shelves,
    azure: bool,
) -> (Problems, Option<CheckedTemplate>) {
    let (problems, checked) = check_document(input, bytes, shelves, azure);
    (problems, checked.map(|(_, template)| template))
}

/// The same, with the text it was read from.
pub fn check_document(
    input: &TemplateInput,
    bytes: &[u8],
    shelves: &Shelves,
    azure: bool,
) -> (Problems, Option<(Document, CheckedTemplate)>) {
    let hint = match input {
        // What a run is called when the template does not say it.
        TemplateInput::StandardInput => "template".to_owned(),
        TemplateInput::File(path) => {
            path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
        }
    };
    match Document::parse(bytes, &hint) {
        Err(problems) => (problems, None),
        Ok(document) => {
            let Checked { problems, template } =
                check(&document, &CheckContext { catalog: &shelves.catalog, azure });
            (problems, template.map(|template| (document, template)))
        }
    }
}

/// All the way to a plan.
pub fn prepare(
    around: &Surroundings<'_>,
    input: &TemplateInput,
    shelves: &Shelves,
) -> Result<Prepared, NoPlan> {
    prepare_text(around, input, &read(input)?, shelves)
}

/// The same for a text that was read, or made. `input` names it.
pub fn prepare_text(
    around: &Surroundings<'_>,
    input: &TemplateInput,
    bytes: &[u8],
    shelves: &Shelves,
) -> Result<Prepared, NoPlan> {
    let (problems, template) = check_template(input, bytes, shelves, false);
    let Some(template) = template else { return Err(NoPlan::Problems(problems)) };
    let host = host_limits(around).map_err(Failure::host)?;
    match shelves.plan(&template, host) {
        Ok(plan) => Ok(Prepared { plan, problems }),
        Err(shelves::NoPlan::Problems(refused)) => Err(NoPlan::Problems(shelves::joined(problems, refused))),
        Err(shelves::NoPlan::Image(error)) => Err(NoPlan::Other(Failure::input(error))),
    }
}

fn host_limits(around: &Surroundings<'_>) -> anyhow::Result<HostLimits> {
    let folders = Folders::resolve(around.environment)?;
    let budget_mib = settings::memory(around.environment)?;
    shelves::host_limits(&folders.runtime, budget_mib).context("cannot tell how much memory this host has")
}

/// The policy of a file for this plan; the usual one where there is no file.
pub fn policy(file: Option<&Path>, plan: &BuildPlan) -> Result<CachePolicy, Failure> {
    let Some(file) = file else { return Ok(CachePolicy::default()) };
    let mut text = String::new();
    let limit = MAX_POLICY_BYTES as u64;
    File::open(file)
        .and_then(|opened| opened.take(limit).read_to_string(&mut text))
        .with_context(|| format!("cannot read the policy {}", file.display()))
        .map_err(Failure::input)?;
    CachePolicy::read(&text, &plan.customizers).map_err(|wrong| {
        Failure::input(anyhow::anyhow!(
            "the policy {} is no policy:\n  {}",
            file.display(),
            wrong.join("\n  ")
        ))
    })
}

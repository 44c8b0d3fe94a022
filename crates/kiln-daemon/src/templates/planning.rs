//! The plan of a run: what `latest` means is decided here, and inputs are the stored copies.
//!
//! A plan of the daemon holds no address and no secret of one: an input is a digest, and the name of where it came from.
//! A copy that has gone from the shelf is an error and not fetched again: the template would be another one.

use std::io;
use std::sync::Arc;

use kiln_model::Problems;
use kiln_model::catalog::ChooseError;
use kiln_model::plan::{BuildPlan, HostLimits, InputLocation};
use kiln_model::run::Fault;

use super::Templates;
use super::reading::{address_of, reread_record};
use crate::runs::{Planner, Unplannable};
use crate::shelves::{NoPlan, Shelves, ShelvesError};
use crate::store::{StoreError, TemplateId, TemplateRecord};

/// Why a stored template has no plan now.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// What this Kiln does not build, or what this host and base image do not allow.
    #[error("the template cannot be built: {0}")]
    Problems(Problems),
    #[error("the base image is not here")]
    Image(#[source] ChooseError),
    /// The address is redacted.
    #[error(
        "the stored copy of {address} is gone from the library; put the template again with kilnReplace=true"
    )]
    CopyGone { address: String },
    #[error("the catalog or the library cannot be read")]
    Shelves(#[from] ShelvesError),
    #[error("cannot look at the library")]
    Library(#[source] io::Error),
}

impl PlanError {
    pub fn fault(&self) -> Fault {
        match self {
            Self::Problems(_) => Fault::Template,
            Self::Image(_) | Self::CopyGone { .. } | Self::Library(_) => Fault::Host,
            Self::Shelves(error) => error.fault(),
        }
    }

    /// All of what is wrong in one text, for `lastRunStatus.message`.
    pub fn text(&self) -> String {
        match self {
            Self::Problems(problems) => {
                let all: Vec<String> = problems
                    .errors()
                    .map(|problem| match &problem.help {
                        Some(help) => format!("{} ({}; {help})", problem.message, problem.pointer),
                        None => format!("{} ({})", problem.message, problem.pointer),
                    })
                    .collect();
                format!("The template cannot be built: {}", all.join("; "))
            }
            error => super::provision::with_causes(error),
        }
    }
}

impl Templates {
    /// The plan of a run that begins now. Blocks.
    ///
    /// # Errors
    /// See [`PlanError`]; nothing was started.
    pub fn plan(&self, record: &TemplateRecord, host: HostLimits) -> Result<BuildPlan, PlanError> {
        let shelves = Shelves::open(&self.settings().shelves)?;
        let template = reread_record(record, &shelves.catalog).map_err(PlanError::Problems)?;
        let mut plan = shelves.plan(&template, host).map_err(|error| match error {
            NoPlan::Problems(problems) => PlanError::Problems(problems),
            NoPlan::Image(error) => PlanError::Image(error),
        })?;
        let library = shelves.library()?;
        for input in plan.inputs_mut() {
            let address = input.location.redacted();
            let whole = address_of(&input.location);
            let copy = record.copies.iter().find(|copy| copy.address == whole);
            let there = match copy {
                Some(copy) => library.input_path(copy.sha256).try_exists().map_err(PlanError::Library)?,
                None => false,
            };
            let Some(copy) = copy.filter(|_| there) else { return Err(PlanError::CopyGone { address }) };
            input.sha256 = Some(copy.sha256);
            input.location = InputLocation::Stored { address };
        }
        self.remember_version(record, plan.source.version.clone());
        Ok(plan)
    }

    /// [`Templates::plan`] for those who run them.
    pub fn planner(&self) -> Planner {
        let templates = self.clone();
        Arc::new(move |record, host| {
            templates
                .plan(record, host)
                .map_err(|error| Unplannable { fault: error.fault(), cause: error.text() })
        })
    }

    /// Keeps what `exactVersion` says, beside the run's own way: a run does not fail for it.
    fn remember_version(&self, record: &TemplateRecord, version: String) {
        if record.exact_version.as_ref() == Some(&version) {
            return;
        }
        let (store, id) = (self.inner.store.clone(), record.id.clone());
        let source = record.properties.get("source").cloned();
        self.spawn(async move {
            if let Err(error) = remember(store, &id, source, version).await {
                tracing::warn!(template = %id, %error, "the exact version of the source is not stored");
            }
        });
    }
}

async fn remember(
    store: crate::store::Store,
    id: &TemplateId,
    source: Option<serde_json::Value>,
    version: String,
) -> Result<(), StoreError> {
    let id = id.clone();
    store
        .write(move |writer| {
            // Of another source by now, it would not be true.
            let same =
                writer.template(&id)?.filter(|record| record.properties.get("source") == source.as_ref());
            let Some(mut record) = same else { return Ok(()) };
            record.exact_version = Some(version);
            writer.update_template(&record).map(drop)
        })
        .await
}

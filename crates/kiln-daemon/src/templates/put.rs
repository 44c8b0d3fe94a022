//! PUT: what it may do, and to what.
//!
//! ```text
//!  there is       │ plain PUT          │ with replace (option, setting, tag)
//!  ───────────────┼────────────────────┼──────────────────────────────────────────────────────
//!  nothing        │ Creating           │ Creating
//!  Failed         │ Conflict           │ Creating: there is nothing to keep
//!  Succeeded      │ Conflict           │ Updating: it stays as it is until the new one's files are here
//!  being changed, │ Conflict           │ OperationNotAllowed
//!  or with a run  │                    │
//! ```
//! A replacement keeps the template's history, triggers and run outputs. If its files cannot be had, the operation fails
//! and the template is what it was: usable.

use kiln_model::api::ApiVersion;
use kiln_model::{Problem, Problems};
use serde_json::Value;

use super::error::NO_UPDATE;
use super::reading::{Wanted, check_name, read_body};
use super::uploads::Uploads;
use super::{Accepted, NotAllowed, PutOptions, REPLACE_TAG, TemplateError, Templates, WRITE, now, operation};
use crate::shelves::Shelves;
use crate::store::{
    OperationKind, PendingTask, PendingWork, ProvisioningState, Replacement, TemplateId, TemplateRecord,
    Writer,
};

impl Templates {
    /// Stores a template, and begins to fetch its files.
    ///
    /// # Errors
    /// The body is wrong, or there is such a template already; see [`TemplateError`].
    pub async fn put(
        &self,
        id: &TemplateId,
        version: ApiVersion,
        body: &[u8],
        options: PutOptions,
    ) -> Result<Accepted, TemplateError> {
        check_name("ImageTemplate", &id.name)?;
        let existing = self.find(id).await?;
        let wanted = {
            let (templates, id, body) = (self.clone(), id.clone(), body.to_vec());
            let uploads = options.uploads;
            // Reading a body of the full size takes a while.
            blocking(move || templates.read_put(&id, version, &body, existing.as_ref(), uploads)).await?
        };
        let replace = options.replace
            || self.settings().replace
            || wanted
                .tags
                .get(REPLACE_TAG)
                .and_then(Value::as_str)
                .is_some_and(|text| text.eq_ignore_ascii_case("true"));
        let refusals = wanted.template.refusals();
        let notes = Problems::new(
            wanted
                .notes
                .iter()
                .cloned()
                .chain(refusals.into_iter().map(|refusal| as_warning(&refusal)))
                .collect(),
        );
        let id = id.clone();
        let mut accepted = self
            .inner
            .store
            .write(move |writer| store_put(writer, id, version, wanted, &options, replace))
            .await?;
        accepted.notes = notes;
        self.provision(accepted.template.id.clone(), accepted.operation.id.clone());
        Ok(accepted)
    }

    fn read_put(
        &self,
        id: &TemplateId,
        version: ApiVersion,
        body: &[u8],
        existing: Option<&TemplateRecord>,
        uploads: Option<kiln_model::Sha256>,
    ) -> Result<Wanted, TemplateError> {
        let shelves = Shelves::open(&self.settings().shelves)?;
        let known = existing.map(|record| &record.properties);
        let wanted = read_body(body, id, version, known, &shelves.catalog)?;
        // What can never be had is told now, not after ten attempts.
        let uploads = Uploads::read(shelves.library()?, uploads)?;
        let refused = uploads.refused(&wanted.template, &self.settings().file_roots);
        if refused.is_empty() { Ok(wanted) } else { Err(TemplateError::Invalid(Problems::new(refused))) }
    }
}

/// Decides and writes; one transaction.
fn store_put(
    writer: &Writer<'_>,
    id: TemplateId,
    version: ApiVersion,
    wanted: Wanted,
    options: &PutOptions,
    replace: bool,
) -> Result<Accepted, TemplateError> {
    let at = now();
    let Wanted { location, tags, identity, properties, .. } = wanted;
    let operation = operation(OperationKind::PutTemplate, &id, "", &location, &at);
    let work = |task| Some(PendingWork { operation: operation.id.clone(), task });
    let create = PendingTask::Create { uploads: options.uploads };
    let existing = writer.template(&id)?;
    let created = existing.is_none();
    let template = match existing {
        None => {
            let record = TemplateRecord {
                id,
                location,
                tags,
                identity,
                properties,
                api_version: version.to_string(),
                provisioning: ProvisioningState::Creating,
                provisioning_error: None,
                copies: Vec::new(),
                pending: work(create),
                exact_version: None,
                last_run: None,
                created_at: at.clone(),
                created_by: options.by.clone(),
                modified_at: at,
                modified_by: options.by.clone(),
                generation: 1,
            };
            writer.insert_template(&record)?;
            record
        }
        Some(old) => {
            allow_replacement(writer, &old, replace)?;
            let by = Replacement {
                location,
                tags,
                identity,
                properties,
                api_version: version.to_string(),
                by: options.by.clone(),
                at,
            };
            if old.provisioning == ProvisioningState::Failed {
                let record = TemplateRecord {
                    provisioning: ProvisioningState::Creating,
                    provisioning_error: None,
                    pending: work(create),
                    // Those of the addresses it repeats are still good.
                    ..replaced(old, by)
                };
                writer.update_template(&record)?;
                record
            } else {
                let mut record = old;
                record.provisioning = ProvisioningState::Updating;
                let task = PendingTask::Replace { by: Box::new(by.clone()), uploads: options.uploads };
                record.pending = work(task);
                writer.update_template(&record)?;
                // The answer is what it is to become.
                replaced(record, by)
            }
        }
    };
    writer.insert_operation(&operation)?;
    Ok(Accepted { template, operation, created, notes: Problems::default() })
}

/// # Errors
/// It is not to be replaced, or not now.
fn allow_replacement(writer: &Writer<'_>, old: &TemplateRecord, replace: bool) -> Result<(), TemplateError> {
    if !replace {
        let failed = old.provisioning == ProvisioningState::Failed;
        let more = if failed { ". Its creation failed: delete it, then create it again" } else { "" };
        return Err(TemplateError::Conflict(format!("{NO_UPDATE}{more}")));
    }
    allow_change(writer, old)
}

/// # Errors
/// It is being changed, or a run of it is active.
pub(super) fn allow_change(writer: &Writer<'_>, old: &TemplateRecord) -> Result<(), TemplateError> {
    let run = writer.active_run(&old.id)?.map(|run| run.state);
    let settled = matches!(
        old.provisioning,
        ProvisioningState::Succeeded | ProvisioningState::Failed | ProvisioningState::Canceled
    );
    if settled && run.is_none() {
        return Ok(());
    }
    Err(TemplateError::NotAllowed(NotAllowed { operation: WRITE, provisioning: old.provisioning, run }))
}

/// `old` as `by` wants it, with its history.
pub(super) fn replaced(old: TemplateRecord, by: Replacement) -> TemplateRecord {
    let Replacement { location, tags, identity, properties, api_version, by, at } = by;
    TemplateRecord {
        location,
        tags,
        identity,
        properties,
        api_version,
        modified_at: at,
        modified_by: by,
        exact_version: None,
        ..old
    }
}

/// Valid, and not built by this version: no error of the PUT.
fn as_warning(refusal: &Problem) -> Problem {
    Problem { severity: kiln_model::Severity::Warning, ..refusal.clone() }
}

/// Runs what takes a while on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TemplateError> + Send + 'static,
) -> Result<T, TemplateError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down.
            Err(_) => Err(crate::store::StoreError::Closed.into()),
        },
    }
}

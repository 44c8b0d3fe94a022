//! DELETE: the ways out.
//!
//! ```text
//!  DELETE ─► busy? (being changed, or a run is active) ── yes, without force ─► OperationNotAllowed
//!               │ no, or force
//!               ▼
//!           Deleting ─► fetching is stopped ─► an active run is canceled, awaited ─► row, triggers, run outputs go
//!                                                   │ it does not end                      (with purge: artifacts, too)
//!                                                   ▼
//!                                      the operation fails; the template is what it was
//! ```
//! Runs and their artifacts stay unless a purge is asked for: in Azure, a VHD goes with its template; here it may be all
//! that somebody has of a day's work.

use std::collections::BTreeSet;
use std::error::Error;
use std::io;
use std::time::Duration;

use kiln_build::run_dir::RunId;
use kiln_model::api::ApiVersion;

use super::{DELETE, NotAllowed, TemplateError, Templates, ended, now, operation, template_of};
use crate::runs::{CancelError, Runs};
use crate::store::{
    OperationError, OperationKind, OperationRecord, OperationStatus, OutputRecord, PendingTask, PendingWork,
    ProvisioningState, RunFilter, StoreError, TemplateId, TemplateRecord,
};

/// A run that was told to end by force has ended, or its host is in trouble.
const RUN_PATIENCE: Duration = Duration::from_secs(5 * 60);

/// Runs of a template that are looked at in one go.
const PAGE: usize = 500;

#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Also while it is being changed or run.
    pub force: bool,
    /// The artifacts of its runs go, too.
    pub purge: bool,
    /// Id of the principal.
    pub by: String,
}

/// What a deletion met.
enum Begun {
    Nothing,
    /// One is under way.
    Already(OperationRecord),
    New {
        operation: OperationRecord,
        overtaken: Option<String>,
    },
}

impl Templates {
    /// Begins to delete a template; `None` if there is none.
    ///
    /// # Errors
    /// It is busy, and not to be deleted by force.
    pub async fn delete(
        &self,
        id: &TemplateId,
        _version: ApiVersion,
        options: DeleteOptions,
        runs: &Runs,
    ) -> Result<Option<OperationRecord>, TemplateError> {
        let asked = id.clone();
        let begun = self.inner.store.write(move |writer| begin(writer, &asked, &options)).await?;
        match begun {
            Begun::Nothing => Ok(None),
            Begun::Already(operation) => Ok(Some(operation)),
            Begun::New { operation, overtaken } => {
                if let Some(overtaken) = overtaken {
                    self.stop_provisioning(&overtaken);
                }
                self.go_on_deleting(id.clone(), operation.id.clone(), runs.clone());
                Ok(Some(operation))
            }
        }
    }

    /// Takes up deletions of an earlier daemon.
    pub(super) async fn resume_deletions(&self, runs: &Runs) -> Result<(), StoreError> {
        let unfinished = self.inner.store.read(|reader| reader.unfinished_operations()).await?;
        for operation in unfinished.into_iter().filter(|op| op.kind == OperationKind::DeleteTemplate) {
            match template_of(&operation) {
                Some(id) => self.go_on_deleting(id, operation.id, runs.clone()),
                None => self.abandon(operation.id).await?,
            }
        }
        Ok(())
    }

    fn go_on_deleting(&self, id: TemplateId, operation: String, runs: Runs) {
        let templates = self.clone();
        self.spawn(async move {
            let stop = templates.inner.stop.clone();
            let deleting = templates.delete_now(&id, &operation, &runs);
            let ended = tokio::select! {
                ended = deleting => ended,
                // The next daemon goes on.
                () = stop.cancelled() => return,
            };
            if let Err(error) = ended {
                tracing::error!(template = %id, error = &error as &dyn Error, "a template cannot be deleted");
            }
        });
    }

    async fn delete_now(&self, id: &TemplateId, operation: &str, runs: &Runs) -> Result<(), TemplateError> {
        let Some((purge, by)) = self.find(id).await?.and_then(|record| asked(&record, operation)) else {
            return Ok(self.abandon(operation.to_owned()).await?);
        };
        if let Err(failure) = self.end_run(id, &by, runs).await? {
            return self.keep(id.clone(), operation.to_owned(), failure).await;
        }
        if purge && let Err(error) = self.purge(id, runs).await {
            tracing::warn!(template = %id, %error, "its artifacts cannot be removed");
            let failure = OperationError {
                code: "ServerError".to_owned(),
                message: format!("Internal error occurred. The artifacts cannot be removed: {error}"),
            };
            return self.keep(id.clone(), operation.to_owned(), failure).await;
        }
        let (id, operation) = (id.clone(), operation.to_owned());
        self.inner
            .store
            .write(move |writer| -> Result<_, StoreError> {
                writer.delete_template(&id)?;
                match writer.operation(&operation)? {
                    Some(work) => writer.update_operation(&ended(work, None)),
                    None => Ok(()),
                }
            })
            .await?;
        Ok(())
    }

    /// Cancels the active run, if there is one, and waits for its end. The inner error is the operation's.
    async fn end_run(
        &self,
        id: &TemplateId,
        by: &str,
        runs: &Runs,
    ) -> Result<Result<(), OperationError>, TemplateError> {
        let active = {
            let id = id.clone();
            self.inner.store.read(move |reader| reader.active_run(&id)).await?
        };
        let Some(run) = active else { return Ok(Ok(())) };
        match runs.cancel(id, by, ApiVersion::DEFAULT.as_str(), true).await {
            Ok(_) | Err(CancelError::NotRunning { .. } | CancelError::AlreadyCanceling { .. }) => {}
            Err(CancelError::NotFound(_)) => return Ok(Ok(())),
            Err(CancelError::Store(error)) => return Err(error.into()),
        }
        match tokio::time::timeout(RUN_PATIENCE, runs.wait(&run.id)).await {
            Ok(ended) => {
                ended?;
                Ok(Ok(()))
            }
            Err(_) => Ok(Err(OperationError {
                code: "OperationNotAllowed".to_owned(),
                message: format!(
                    "The run {} was canceled and did not end within {} minutes; delete the template again when it has.",
                    run.id,
                    RUN_PATIENCE.as_secs() / 60
                ),
            })),
        }
    }

    /// It stays, and is what it was.
    async fn keep(
        &self,
        id: TemplateId,
        operation: String,
        failure: OperationError,
    ) -> Result<(), TemplateError> {
        self.inner
            .store
            .write(move |writer| -> Result<_, StoreError> {
                if let Some(mut record) = writer.template(&id)?.filter(|r| asked(r, &operation).is_some()) {
                    if let Some(PendingTask::Delete { before, .. }) =
                        record.pending.take().map(|work| work.task)
                    {
                        record.provisioning = before;
                    }
                    writer.update_template(&record)?;
                }
                match writer.operation(&operation)? {
                    Some(work) => writer.update_operation(&ended(work, Some(failure))),
                    None => Ok(()),
                }
            })
            .await?;
        Ok(())
    }

    /// Removes what its runs distributed: files first, then what is said of them.
    async fn purge(&self, id: &TemplateId, runs: &Runs) -> Result<(), PurgeError> {
        let mut found: BTreeSet<String> = BTreeSet::new();
        let mut after: Option<String> = None;
        loop {
            let (filter, place) = (RunFilter { template: Some(id.clone()), state: None }, after.take());
            let page =
                self.inner.store.read(move |reader| reader.runs(&filter, place.as_deref(), PAGE)).await?;
            found.extend(page.items.into_iter().map(|run| run.id.as_str().to_owned()));
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        for run in found {
            let Ok(run) = run.parse::<RunId>() else { continue };
            let folder = runs.artifacts_root().join(run.as_str());
            let removed = tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            });
            removed.await.map_err(io::Error::other)??;
            self.inner
                .store
                .write(move |writer| -> Result<_, StoreError> {
                    for OutputRecord { run, output, .. } in writer.outputs_of_run(&run)? {
                        writer.delete_artifact(&run, &output.file)?;
                    }
                    Ok(())
                })
                .await?;
        }
        Ok(())
    }
}

/// Artifacts that stay.
#[derive(Debug, thiserror::Error)]
enum PurgeError {
    #[error("a file cannot be removed: {0}")]
    Disk(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One transaction.
fn begin(
    writer: &crate::store::Writer<'_>,
    id: &TemplateId,
    options: &DeleteOptions,
) -> Result<Begun, TemplateError> {
    let Some(mut record) = writer.template(id)? else { return Ok(Begun::Nothing) };
    if record.provisioning == ProvisioningState::Deleting
        && let Some(work) = &record.pending
        && let Some(operation) = writer.operation(&work.operation)?
    {
        return Ok(Begun::Already(operation));
    }
    let run = writer.active_run(id)?.map(|run| run.state);
    let changing = matches!(record.provisioning, ProvisioningState::Creating | ProvisioningState::Updating);
    if (changing || run.is_some()) && !options.force {
        let provisioning = record.provisioning;
        return Err(TemplateError::NotAllowed(NotAllowed { operation: DELETE, provisioning, run }));
    }
    let at = now();
    let operation = operation(OperationKind::DeleteTemplate, &record.id, "", &record.location, &at);
    // What was being made of it is not made any more.
    let before = match record.provisioning {
        ProvisioningState::Creating => ProvisioningState::Failed,
        ProvisioningState::Updating => ProvisioningState::Succeeded,
        other => other,
    };
    let overtaken = record.pending.take().map(|work| work.operation);
    if let Some(overtaken) = &overtaken
        && let Some(work) = writer.operation(overtaken)?.filter(|work| work.ended_at.is_none())
    {
        let error = OperationError {
            code: "Canceled".to_owned(),
            message: "The template is deleted by force.".to_owned(),
        };
        let canceled = OperationRecord { status: OperationStatus::Canceled, ..ended(work, Some(error)) };
        writer.update_operation(&canceled)?;
    }
    let task = PendingTask::Delete { purge: options.purge, by: options.by.clone(), before };
    record.pending = Some(PendingWork { operation: operation.id.clone(), task });
    record.provisioning = ProvisioningState::Deleting;
    writer.update_template(&record)?;
    writer.insert_operation(&operation)?;
    Ok(Begun::New { operation, overtaken })
}

/// What that operation asks for, if the template still is to be deleted by it.
fn asked(record: &TemplateRecord, operation: &str) -> Option<(bool, String)> {
    let work = record.pending.as_ref().filter(|work| work.operation.eq_ignore_ascii_case(operation))?;
    match &work.task {
        PendingTask::Delete { purge, by, .. } => Some((*purge, by.clone())),
        _ => None,
    }
}

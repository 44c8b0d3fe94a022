//! Fetching the files of a template: what stands between Creating (or Updating) and Succeeded.
//!
//! ```text
//!  row with pending work ─► its turn ─► copies kept, uploaded, of this host, fetched ─► one transaction: row and operation
//!        ▲                                                              │ stopped by the end of the daemon
//!        └──────────────── the next daemon begins again ◄───────────────┘
//! ```
//! The row says what is to be done ([`PendingWork`]); whoever ends it takes that away in the same transaction. A task
//! that finds another work than its own there has been overtaken, and changes nothing.

use kiln_host::wait::Control;
use kiln_library::{FetchError, InputError, InputProgress, Library};
use kiln_model::plan::{InputLocation, InputRef};
use kiln_model::run::Fault;
use kiln_model::template::CheckedTemplate;
use std::error::Error;
use std::sync::PoisonError;
use tokio_util::sync::CancellationToken;

use super::put::{blocking, replaced};
use super::reading::{address_of, reread_record, reread_replacement};
use super::uploads::{HostFile, Uploads};
use super::{TemplateError, Templates, ended, now, template_of};
use crate::shelves::Shelves;
use crate::store::{
    InputCopy, OperationError, OperationKind, PendingTask, PendingWork, ProvisioningError, ProvisioningState,
    StoreError, TemplateId, TemplateRecord,
};

/// Bytes of a `file:` of this host at most, the size AIB's own storage would take in one piece is far below.
const LARGEST_HOST_FILE: u64 = 64 << 30;

/// Characters of a provisioning error: several files may be missing.
const LONGEST_MESSAGE: usize = 8 * 1024;

/// How fetching ended.
enum Outcome {
    Copies {
        template: Box<CheckedTemplate>,
        copies: Vec<InputCopy>,
    },
    Failed(ProvisioningError),
    /// By the end of the daemon, or by whoever takes the template away.
    Stopped,
}

impl Templates {
    /// Takes up creations and replacements of an earlier daemon.
    pub(super) async fn resume_creations(&self) -> Result<(), StoreError> {
        let unfinished = self.inner.store.read(|reader| reader.unfinished_operations()).await?;
        for operation in unfinished {
            match (operation.kind, template_of(&operation)) {
                (OperationKind::PutTemplate, Some(id)) => self.provision(id, operation.id),
                // These end in the transaction that begins them.
                (
                    OperationKind::PatchTemplate | OperationKind::PutTrigger | OperationKind::DeleteTrigger,
                    _,
                ) => {
                    tracing::warn!(operation = operation.id, "an operation without an end is ended");
                    self.abandon(operation.id).await?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Begins to fetch beside the requests.
    pub(super) fn provision(&self, id: TemplateId, operation: String) {
        let cancel = self.inner.stop.child_token();
        self.inner
            .canceled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(operation.clone(), cancel.clone());
        let templates = self.clone();
        self.spawn(async move {
            if let Err(error) = templates.provision_now(&id, &operation, cancel).await {
                // It stays as it is in the store, and is taken up by the next daemon.
                tracing::error!(template = %id, error = &error as &dyn Error, "a template cannot be provisioned");
            }
            templates.inner.canceled.lock().unwrap_or_else(PoisonError::into_inner).remove(&operation);
        });
    }

    /// Ends the fetching of that operation.
    pub(super) fn stop_provisioning(&self, operation: &str) {
        let canceled = self.inner.canceled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(token) = canceled.get(operation) {
            token.cancel();
        }
    }

    async fn provision_now(
        &self,
        id: &TemplateId,
        operation: &str,
        cancel: CancellationToken,
    ) -> Result<(), TemplateError> {
        let turn = tokio::select! {
            turn = self.inner.at_a_time.acquire() => turn.map_err(|_| StoreError::Closed)?,
            () = cancel.cancelled() => return Ok(()),
        };
        let record = self.find(id).await?;
        let Some(record) = record.filter(|record| is_work_of(record, operation)) else {
            return Ok(self.abandon(operation.to_owned()).await?);
        };
        let outcome = match self.fetch(record, cancel).await {
            Err(TemplateError::Store(error)) => return Err(error.into()),
            // It would be in the making for ever.
            Err(error) => {
                tracing::error!(template = %id, error = &error as &dyn Error, "a template cannot be provisioned");
                let message = format!("Internal error occurred. {}", with_causes(&error));
                Outcome::Failed(ProvisioningError { code: "ServerError".to_owned(), message })
            }
            Ok(outcome) => outcome,
        };
        drop(turn);
        self.finish(id.clone(), operation.to_owned(), outcome).await
    }

    /// Makes sure that there is a copy of every file.
    async fn fetch(
        &self,
        record: TemplateRecord,
        cancel: CancellationToken,
    ) -> Result<Outcome, TemplateError> {
        let prepared = {
            let templates = self.clone();
            blocking(move || templates.prepare_fetch(&record)).await?
        };
        let Prepared { library, template, kept, uploads } = match prepared {
            Ok(prepared) => *prepared,
            Err(error) => return Ok(Outcome::Failed(error)),
        };
        let control = Control::new(cancel, None);
        let mut copies: Vec<InputCopy> = Vec::new();
        let mut wants: Vec<InputRef> = Vec::new();
        let mut failures: Vec<(Fault, String)> = Vec::new();
        for (input, _) in template.inputs() {
            let address = address_of(&input.location);
            let source = match uploads.find(&input.location) {
                Some(sha256) => Source::Uploaded(sha256),
                None => match (kept.iter().find(|copy| copy.address == address), &input.location) {
                    // A digest that changed asks for another file at the same address.
                    (Some(copy), _) if input.sha256.is_none_or(|wanted| wanted == copy.sha256) => {
                        Source::Kept(copy.clone())
                    }
                    (_, InputLocation::File(path)) => Source::Host(path.clone()),
                    _ => Source::Address,
                },
            };
            let stored = match source {
                Source::Address => {
                    wants.push(input.clone());
                    continue;
                }
                Source::Uploaded(sha256) => match library.find_input(sha256, &control).await {
                    Ok(Some(stored)) => Ok(stored),
                    Ok(None) => Err((
                        Fault::Template,
                        format!(
                            "the uploaded copy of {} (sha256 {sha256}) is not here",
                            input.location.redacted()
                        ),
                    )),
                    Err(error) => Err((error.fault(), with_causes(&error))),
                },
                Source::Kept(copy) => match library.find_input(copy.sha256, &control).await {
                    Ok(Some(stored)) => Ok(stored),
                    // Gone or damaged: it is fetched again, and has to be the same.
                    Ok(None) => {
                        wants.push(InputRef { sha256: Some(copy.sha256), ..input.clone() });
                        continue;
                    }
                    Err(error) => Err((error.fault(), with_causes(&error))),
                },
                Source::Host(path) => {
                    let roots = self.settings().file_roots.clone();
                    let opened = tokio::task::spawn_blocking(move || HostFile::open(&path, &roots)).await;
                    match opened {
                        Ok(Ok(host)) => {
                            let file = tokio::fs::File::from_std(host.file);
                            let stored = library.store_input(None, LARGEST_HOST_FILE, file, &control).await;
                            stored.map_err(|error| {
                                (
                                    Fault::Host,
                                    format!("{}: {}", input.location.redacted(), with_causes(&error)),
                                )
                            })
                        }
                        Ok(Err(error)) => Err((
                            Fault::Template,
                            format!("{}: {}", input.location.redacted(), with_causes(&error)),
                        )),
                        Err(_) => return Ok(Outcome::Stopped),
                    }
                }
            };
            let checked = stored.and_then(|stored| match input.sha256 {
                Some(expected) if expected != stored.sha256 => {
                    let address = input.location.redacted();
                    let error = InputError::Checksum { address, expected, actual: stored.sha256 };
                    Err((error.fault(), error.to_string()))
                }
                _ => Ok(stored),
            });
            match checked {
                Ok(stored) => copies.push(InputCopy { address, sha256: stored.sha256, size: stored.size }),
                Err(failure) => failures.push(failure),
            }
        }
        let name = template.name.clone();
        let report = |progress: InputProgress| match progress {
            InputProgress::Retrying { message, .. } => tracing::warn!(template = name, "{message}"),
            InputProgress::Stored { address, sha256, size, .. } => {
                tracing::info!(template = name, address, %sha256, size, "a copy is stored");
            }
            _ => {}
        };
        let fetched = library.ensure_inputs(&wants, &self.settings().fetch, report, &control).await;
        for (want, answer) in wants.iter().zip(fetched) {
            match answer {
                Ok(stored) => copies.push(InputCopy {
                    address: address_of(&want.location),
                    sha256: stored.sha256,
                    size: stored.size,
                }),
                Err(error) => failures.push((error.fault(), input_text(&error))),
            }
        }
        if control.is_canceled() {
            return Ok(Outcome::Stopped);
        }
        if failures.is_empty() {
            copies.sort_by(|a, b| a.address.cmp(&b.address));
            copies.dedup_by(|a, b| a.address == b.address);
            return Ok(Outcome::Copies { template, copies });
        }
        Ok(Outcome::Failed(failed(&template, failures)))
    }

    /// What has to be had, by the record and the catalog of today. Blocks.
    fn prepare_fetch(
        &self,
        record: &TemplateRecord,
    ) -> Result<Result<Box<Prepared>, ProvisioningError>, TemplateError> {
        let shelves = Shelves::open(&self.settings().shelves)?;
        let (read, uploads) = match record.pending.as_ref().map(|work| &work.task) {
            Some(PendingTask::Replace { by, uploads }) => {
                (reread_replacement(&record.id, by, &shelves.catalog), *uploads)
            }
            Some(PendingTask::Create { uploads }) => (reread_record(record, &shelves.catalog), *uploads),
            _ => (reread_record(record, &shelves.catalog), None),
        };
        let other = |message: String| Ok(Err(ProvisioningError { code: "Other".to_owned(), message }));
        let template = match read {
            Ok(template) => Box::new(template),
            // It was good when it was put: a newer program, or another catalog.
            Err(problems) => return other(TemplateError::Invalid(problems).to_string()),
        };
        let library = shelves.library()?.clone();
        let uploads = match Uploads::read(&library, uploads) {
            Ok(uploads) => uploads,
            Err(error) => return other(error.to_string()),
        };
        Ok(Ok(Box::new(Prepared { library, template, kept: kept(record), uploads })))
    }

    async fn finish(&self, id: TemplateId, operation: String, outcome: Outcome) -> Result<(), TemplateError> {
        let outcome = match outcome {
            Outcome::Stopped => return Ok(()),
            outcome => outcome,
        };
        let auto_run = matches!(&outcome, Outcome::Copies { template, .. } if template.auto_run.value);
        let good = self
            .inner
            .store
            .write(move |writer| -> Result<_, StoreError> {
                let record = writer.template(&id)?.filter(|record| is_work_of(record, &operation));
                let Some(record) = record else { return Ok(None) };
                let Some(work) = writer.operation(&operation)? else { return Ok(None) };
                let (record, error) = settled(record, outcome);
                writer.update_template(&record)?;
                let good = error.is_none();
                writer.update_operation(&ended(work, error))?;
                Ok(good.then_some(record))
            })
            .await?;
        if let Some(record) = good.filter(|_| auto_run) {
            self.auto_run(&record.id, &record.modified_by, &record.api_version).await;
        }
        Ok(())
    }

    /// An operation that nobody works on has an end, too.
    pub(super) async fn abandon(&self, operation: String) -> Result<(), StoreError> {
        self.inner
            .store
            .write(move |writer| {
                let Some(work) = writer.operation(&operation)? else { return Ok(()) };
                if work.ended_at.is_some() {
                    return Ok(());
                }
                let error = OperationError {
                    code: "ServerError".to_owned(),
                    message: "Internal error occurred. The server ended before the operation did.".to_owned(),
                };
                writer.update_operation(&ended(work, Some(error)))
            })
            .await
    }
}

struct Prepared {
    library: Library,
    template: Box<CheckedTemplate>,
    /// Copies that need not be fetched.
    kept: Vec<InputCopy>,
    uploads: Uploads,
}

/// Where a file comes from.
enum Source {
    Uploaded(kiln_model::Sha256),
    Kept(InputCopy),
    Host(std::path::PathBuf),
    Address,
}

/// Copies of the template as it was, for addresses that a client cannot know whole. Others are fetched again: whoever
/// puts an address wants what is there now.
fn kept(record: &TemplateRecord) -> Vec<InputCopy> {
    let secret = |copy: &&InputCopy| kiln_model::plan::redact_url(&copy.address) != copy.address;
    record.copies.iter().filter(secret).cloned().collect()
}

fn is_work_of(record: &TemplateRecord, operation: &str) -> bool {
    record.pending.as_ref().is_some_and(|PendingWork { operation: of, task }| {
        of.eq_ignore_ascii_case(operation)
            && matches!(task, PendingTask::Create { .. } | PendingTask::Replace { .. })
    })
}

/// The template after its files were fetched, or were not; the error is the operation's.
fn settled(mut record: TemplateRecord, outcome: Outcome) -> (TemplateRecord, Option<OperationError>) {
    let task = record.pending.take().map(|work| work.task);
    match outcome {
        Outcome::Copies { copies, .. } => {
            if let Some(PendingTask::Replace { by, .. }) = task {
                record = replaced(record, *by);
            }
            record.copies = copies;
            record.provisioning = ProvisioningState::Succeeded;
            record.provisioning_error = None;
            (record, None)
        }
        Outcome::Failed(ProvisioningError { code, message }) => {
            if let Some(PendingTask::Replace { .. }) = task {
                // What was to be replaced is still good.
                record.provisioning = ProvisioningState::Succeeded;
            } else {
                record.provisioning = ProvisioningState::Failed;
                record.provisioning_error =
                    Some(ProvisioningError { code: code.clone(), message: message.clone() });
                record.modified_at = now();
            }
            (record, Some(OperationError { code, message }))
        }
        Outcome::Stopped => (record, None),
    }
}

/// The provisioning error of files that could not be had: the codes are the contract's.
fn failed(template: &CheckedTemplate, failures: Vec<(Fault, String)>) -> ProvisioningError {
    let ours = failures.iter().any(|(fault, _)| matches!(fault, Fault::Host | Fault::Bug));
    let customizes = template.customizers.iter().any(|step| step.action.input().is_some());
    let code = match (ours, customizes) {
        (true, _) => "ServerError",
        (false, true) => "NoCustomizerScript",
        (false, false) => "NoValidatorScript",
    };
    let texts: Vec<String> = failures.into_iter().map(|(_, text)| text).collect();
    let mut message = texts.join("\n");
    if message.len() > LONGEST_MESSAGE {
        let end = (0..=LONGEST_MESSAGE).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    ProvisioningError { code: code.to_owned(), message }
}

/// With its causes; a refused address is told without the ten attempts it did not get.
fn input_text(error: &InputError) -> String {
    match error {
        InputError::Download { source, address, .. } if matches!(**source, FetchError::Forbidden { .. }) => {
            format!("{address} is not fetched: {}", with_causes(&**source))
        }
        error => with_causes(error),
    }
}

/// An error and its causes on one line.
pub(super) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

//! TEMPLATES: from a request to a stored template, its files with it, and to the plan of a run.
//!
//! ```text
//!  PUT ─ read, check ─► row: Creating ─► fetch its files (10 attempts each) ─► copies ─► Succeeded | Failed
//!           │ errors                                                             │
//!           ▼                                                                    ▼
//!     TemplateError: AIB's code and text                        plan: inputs are copies, by digest
//! ```
//!
//! | module      | owns                                                                     |
//! |-------------|--------------------------------------------------------------------------|
//! | `reading`   | bodies and records through the one check; redacted addresses made whole    |
//! | `put`       | what a PUT may do, and to what                                           |
//! | `provision` | fetching the files; survives restarts                                    |
//! | `uploads`   | copies that a client brought; files of this host that may be read        |
//! | `patch`     | identity, tags, distribute, vmProfile                                    |
//! | `delete`    | the ways out                                                             |
//! | `triggers`  | stored, honestly inactive                                                |
//! | `planning`  | the plan of a run, over the stored copies                                |
//! | `view`      | what GET says, by api-version                                            |
//! | `error`     | codes and texts of refusals                                              |
//!
//! A template may be stored although this Kiln cannot build it (a gallery target, say): it is a good template, `check`
//! says so, and it is good to have it when the newer Kiln comes. What cannot be built comes back with the answer to the
//! PUT as a note ([`Accepted::notes`]), and a run of it is refused before a machine starts, naming source, target or
//! field.
//!
//! INVARIANT: a template that is `Succeeded` has a copy of every file it names. A run never goes to the address again.

mod delete;
mod error;
mod patch;
mod planning;
mod provision;
mod put;
mod reading;
mod triggers;
mod uploads;
mod view;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kiln_library::{AddressPolicy, FetchSettings};
use kiln_model::{Problems, Sha256};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use delete::DeleteOptions;
pub use error::{Detail, NotAllowed, TemplateError};
pub use planning::PlanError;
pub use triggers::AcceptedTrigger;
pub use view::{output_view, trigger_view, view};

use crate::runs::{EnqueueError, Runs};
use crate::shelves::ShelvesSettings;
use crate::store::{
    OperationError, OperationKind, OperationRecord, OperationStatus, Store, StoreError, TemplateId,
    TemplateRecord,
};

/// Actions of the operations list, as refusals name them.
pub const WRITE: &str = "Microsoft.VirtualMachineImages/imageTemplates/write";
pub const DELETE: &str = "Microsoft.VirtualMachineImages/imageTemplates/delete";
pub const RUN: &str = "Microsoft.VirtualMachineImages/imageTemplates/run/action";
pub const CANCEL: &str = "Microsoft.VirtualMachineImages/imageTemplates/cancel/action";

/// Templates whose files are fetched at the same time; each fetches up to four.
const PROVISIONED_AT_A_TIME: usize = 4;

/// The tag that makes a PUT over an existing template replace it.
pub const REPLACE_TAG: &str = "kiln.replace";

#[derive(Debug, Clone)]
pub struct TemplatesSettings {
    pub shelves: ShelvesSettings,
    /// Its address policy is set by `allow_private`.
    pub fetch: FetchSettings,
    /// Folders whose files `file:` addresses may name.
    pub file_roots: Vec<PathBuf>,
    /// Loopback and link-local addresses may be fetched from.
    pub allow_private: bool,
    /// Every PUT over an existing template replaces it.
    pub replace: bool,
}

/// The templates of the store. Cheap to clone.
#[derive(Clone)]
pub struct Templates {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    settings: TemplatesSettings,
    runtime: Handle,
    at_a_time: Semaphore,
    /// Ended when the daemon ends: what is not done is begun again by the next one.
    stop: CancellationToken,
    /// By operation: a deletion by force ends a creation.
    canceled: Mutex<HashMap<String, CancellationToken>>,
    tasks: Mutex<JoinSet<()>>,
    /// There once runs are open; `autoRun` needs them.
    runs: watch::Sender<Option<Runs>>,
}

/// What a request asks for besides its body.
#[derive(Debug, Clone, Default)]
pub struct PutOptions {
    /// Over an existing template, too.
    pub replace: bool,
    /// Digest of an uploaded manifest, `{address: sha256}`: those addresses have uploaded copies.
    pub uploads: Option<Sha256>,
    /// Id of the principal.
    pub by: String,
}

/// A change that was taken on. The template as it is to be answered; whole addresses: no `Debug`.
pub struct Accepted {
    pub template: TemplateRecord,
    /// In progress, or ended already.
    pub operation: OperationRecord,
    pub created: bool,
    /// Warnings and notes about the template, what this Kiln cannot build among them.
    pub notes: Problems,
}

impl Templates {
    /// Opens the templates and goes on with creations that were cut off. Needs a runtime.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn open(store: Store, settings: TemplatesSettings) -> Result<Templates, StoreError> {
        let mut settings = settings;
        if !settings.allow_private {
            settings.fetch.addresses = AddressPolicy::Public;
        }
        let templates = Self {
            inner: Arc::new(Inner {
                store,
                settings,
                runtime: Handle::current(),
                at_a_time: Semaphore::new(PROVISIONED_AT_A_TIME),
                stop: CancellationToken::new(),
                canceled: Mutex::default(),
                tasks: Mutex::default(),
                runs: watch::Sender::new(None),
            }),
        };
        templates.resume_creations().await?;
        Ok(templates)
    }

    /// Runs are open: deletions that were cut off go on, and `autoRun` is obeyed from here on.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn attach(&self, runs: Runs) -> Result<(), StoreError> {
        self.resume_deletions(&runs).await?;
        self.inner.runs.send_replace(Some(runs));
        Ok(())
    }

    /// `autoRun`: the template runs once after it was created or replaced.
    async fn auto_run(&self, id: &TemplateId, by: &str, api_version: &str) {
        let mut there = self.inner.runs.subscribe();
        let runs = tokio::select! {
            runs = there.wait_for(Option::is_some) => runs.ok().and_then(|runs| runs.clone()),
            () = self.inner.stop.cancelled() => None,
        };
        let Some(runs) = runs else { return };
        match runs.enqueue(id, by, api_version).await {
            Ok(run) => tracing::info!(template = %id, run = %run.id, "autoRun"),
            // Somebody was quicker, to run it or to take it away.
            Err(
                EnqueueError::NotFound(_)
                | EnqueueError::NotAllowed { .. }
                | EnqueueError::NoRun(_)
                | EnqueueError::NotFailed { .. },
            ) => {}
            Err(EnqueueError::Store(error)) => {
                tracing::error!(template = %id, error = &error as &dyn std::error::Error, "autoRun failed");
            }
        }
    }

    /// Stops fetching. What is not done is begun again by the next daemon.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        // They hold us, too.
        self.inner.runs.send_replace(None);
        let mut tasks = std::mem::take(&mut *self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        // They end at their next wait; a disk that does not answer is not waited for.
        let all = async { while tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(SHUTDOWN_PATIENCE, all).await;
    }

    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    fn settings(&self) -> &TemplatesSettings {
        &self.inner.settings
    }

    async fn find(&self, id: &TemplateId) -> Result<Option<TemplateRecord>, StoreError> {
        let id = id.clone();
        self.inner.store.read(move |reader| reader.template(&id)).await
    }

    /// Runs something beside the requests, until the daemon ends.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that ended are forgotten, one panic or another with them: it is in the log.
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(task, &self.inner.runtime);
    }
}

/// How long ending tasks are waited for.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// Now, as records have it.
fn now() -> String {
    Timestamp::now().to_string()
}

/// `West US 2` is `westus2` in the address of an operation.
fn location_name(location: &str) -> String {
    let name: String =
        location.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    if name.is_empty() { "local".to_owned() } else { name }
}

/// A new operation on a template, or on what lies under it.
fn operation(kind: OperationKind, id: &TemplateId, below: &str, location: &str, at: &str) -> OperationRecord {
    OperationRecord {
        id: Uuid::new_v4().to_string(),
        kind,
        subscription: id.subscription.clone(),
        location: location_name(location),
        resource: format!("{}{below}", id.arm_id()),
        status: OperationStatus::InProgress,
        started_at: at.to_owned(),
        ended_at: None,
        error: None,
        run: None,
    }
}

/// The operation, ended now.
fn ended(operation: OperationRecord, error: Option<OperationError>) -> OperationRecord {
    let status = if error.is_none() { OperationStatus::Succeeded } else { OperationStatus::Failed };
    OperationRecord { status, ended_at: Some(now()), error, ..operation }
}

/// The template that an operation works on.
fn template_of(operation: &OperationRecord) -> Option<TemplateId> {
    let words: Vec<&str> = operation.resource.split('/').skip(1).collect();
    match words.as_slice() {
        [
            "subscriptions",
            subscription,
            "resourceGroups",
            group,
            "providers",
            _,
            "imageTemplates",
            name,
            ..,
        ] => Some(TemplateId {
            subscription: (*subscription).to_owned(),
            resource_group: (*group).to_owned(),
            name: (*name).to_owned(),
        }),
        _ => None,
    }
}

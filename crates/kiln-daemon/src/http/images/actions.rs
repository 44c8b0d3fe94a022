//! Run, run again, and cancel. Bodies are read and mean nothing; there need be none.

use std::sync::Arc;

use axum::http::StatusCode;
use kiln_build::run_dir::RunId;
use kiln_model::api::ApiVersion;

use super::super::answer::{Answer, ArmError};
use super::super::call::Call;
use super::{operations, refusals};
use crate::daemon::Daemon;
use crate::store::{RunRecord, TemplateId};

pub async fn run(daemon: &Arc<Daemon>, mut call: Call, version: ApiVersion, id: TemplateId) -> Answer {
    call.bytes().await?;
    super::find(daemon, &id).await?;
    let run = daemon.runs.enqueue(&id, call.by(), version.as_str()).await?;
    begun(daemon, call, version, run).await
}

/// Kiln's own: see `OwnRoute::Retry`.
pub async fn retry(daemon: &Arc<Daemon>, mut call: Call, id: &TemplateId, failed: &RunId) -> Answer {
    let version = call.version()?;
    call.bytes().await?;
    let run = daemon.runs.retry(id, failed, call.by()).await?;
    begun(daemon, call, version, run).await
}

async fn begun(daemon: &Daemon, call: Call, version: ApiVersion, run: RunRecord) -> Answer {
    // Written with the run.
    let name = run.operation;
    let operation = daemon
        .store
        .read(move |store| -> Result<_, ArmError> {
            store.operation(&name)?.ok_or_else(|| refusals::no_operation(&name, ""))
        })
        .await?;
    operations::accepted(&call, version, &operation, StatusCode::ACCEPTED, None)
}

pub async fn cancel(daemon: &Arc<Daemon>, mut call: Call, version: ApiVersion, id: TemplateId) -> Answer {
    call.bytes().await?;
    super::find(daemon, &id).await?;
    let force = call.is_set("kilnForce")?;
    let operation = daemon.runs.cancel(&id, call.by(), version.as_str(), force).await?;
    operations::accepted(&call, version, &operation, StatusCode::ACCEPTED, None)
}

//! Kiln's own paths, beside the contract: runs, logs, artifacts, inputs, the host.

use std::sync::Arc;

use super::answer::Answer;
use super::call::Call;
use super::logs::RunFile;
use super::route::OwnRoute;
use super::{artifacts, host, inputs, logs, openapi, runs};
use crate::daemon::Daemon;

pub async fn answer(daemon: &Arc<Daemon>, route: OwnRoute, call: Call) -> Answer {
    match route {
        OwnRoute::Runs(template) => runs::list(daemon, call, Some(template)).await,
        OwnRoute::AllRuns => runs::list_all(daemon, call).await,
        OwnRoute::Run(template, which) => runs::show(daemon, call, &template, &which).await,
        OwnRoute::Log(template, which) => {
            logs::stream_file(daemon, call, &template, &which, RunFile::CustomizationLog).await
        }
        OwnRoute::Events(template, which) => {
            logs::stream_file(daemon, call, &template, &which, RunFile::Events).await
        }
        OwnRoute::CustomizationLog(template, which) => {
            logs::download(daemon, call, &template, &which, RunFile::CustomizationLog).await
        }
        OwnRoute::ValidationLog(template, which) => {
            logs::download(daemon, call, &template, &which, RunFile::ValidationLog).await
        }
        OwnRoute::Retry(template, which) => runs::retry(daemon, call, &template, &which).await,
        OwnRoute::Artifact { run, file } => artifacts::download(daemon, call, &run, &file).await,
        OwnRoute::Input(sha256) => inputs::answer(daemon, call, sha256).await,
        OwnRoute::Status => host::status(daemon).await,
        OwnRoute::Gc => host::collect(daemon, call).await,
        OwnRoute::Activity => host::activity(daemon, call).await,
        OwnRoute::Health => host::health(daemon).await,
        OwnRoute::OpenApi => Ok(openapi::document()),
    }
}

//! `kiln worker RUN_DIR`: executes one run. Started by whoever prepared the run; what
//! it does is told by the run directory, not by this process's output.

use std::path::PathBuf;

use anyhow::Context as _;
use kiln_build::run_dir::RunDir;
use tokio_util::sync::CancellationToken;

use super::signals::Signals;
use super::{End, Surroundings};
use crate::exit::{ExitStatus, Failure};
use crate::settings::{self, Folders};

pub async fn run(around: &Surroundings<'_>, run_dir: PathBuf) -> End {
    let folders = Folders::resolve(around.environment).map_err(Failure::host)?;
    settings::ensure_private(&folders.runtime).map_err(Failure::host)?;
    let settings = settings::worker(around.environment, &folders).map_err(Failure::host)?;
    let run_dir = RunDir::open(&run_dir).map_err(Failure::input)?;

    let cancel = CancellationToken::new();
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    let canceled = cancel.clone();
    tokio::spawn(async move {
        signals.next().await;
        canceled.cancel();
    });
    let state = kiln_build::work(run_dir, settings, cancel).await.map_err(Failure::host)?;
    Ok(ExitStatus::of_run(state, None))
}

//! Removing what a plan lists. Each item is looked at again: the plan may be old.

use std::io;
use std::path::Path;

use kiln_build::run_dir::RunId;
use kiln_host::lock::FileLock;
use serde::Serialize;

use super::decide::{record_of, wanted_before};
use super::find::{Before, bytes_below};
use super::{GcError, GcItem, GcPlan, GcWhat, Places, REMOVED};
use crate::store::{Log, Store, StoreError, TemplateId};

/// What went.
#[derive(Debug, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct GcDone {
    pub removed: Vec<GcItem>,
    /// Needed again by now, or gone already.
    pub kept: Vec<GcItem>,
    pub failed: Vec<GcFailure>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GcFailure {
    pub item: GcItem,
    /// With its causes.
    pub error: String,
}

/// Removes it. One thing that cannot be removed does not keep the others.
pub async fn carry_out(store: &Store, places: &Places, plan: &GcPlan) -> GcDone {
    let mut done = GcDone::default();
    for item in &plan.items {
        match remove(store, places, plan, item).await {
            Ok(true) => done.removed.push(item.clone()),
            Ok(false) => done.kept.push(item.clone()),
            Err(error) => {
                let error = with_causes(&error);
                tracing::warn!(item = ?item.what, error, "retention could not remove something");
                done.failed.push(GcFailure { item: item.clone(), error });
            }
        }
    }
    done
}

/// Removes every artifact of a template that is no run output: all of them, once the template is gone.
pub async fn remove_artifacts(store: &Store, places: &Places, template: &TemplateId) -> Result<(), GcError> {
    let id = template.clone();
    for output in store.read(move |r| r.artifacts(&id)).await? {
        remove_artifact(store, places, &output.run, &output.output.file).await?;
    }
    Ok(())
}

/// Whether it is gone by this.
async fn remove(store: &Store, places: &Places, plan: &GcPlan, item: &GcItem) -> Result<bool, GcError> {
    match &item.what {
        GcWhat::Run { run } => remove_run(store, places, run).await,
        GcWhat::RunDirectory { run } => {
            let id = run.clone();
            if store.read(move |r| r.run(&id)).await?.is_some() {
                return Ok(false);
            }
            let path = places.runs.join(run.as_str());
            blocking(move || Ok(lock(&path)?.map(|lock| remove_folder(&path, lock)).transpose()?.is_some()))
                .await
        }
        GcWhat::WorkFolder { run } => {
            let id = run.clone();
            let record = store.read(move |r| r.run(&id)).await?;
            if !record.is_some_and(|record| record.state.is_final()) {
                return Ok(false);
            }
            let path = places.runs.join(run.as_str());
            blocking(move || {
                let Some(_lock) = lock(&path)? else { return Ok(false) };
                let work = path.join("work");
                std::fs::remove_dir_all(&work).map_or_else(absent, |()| Ok(true)).map_err(disk(&work))
            })
            .await
        }
        GcWhat::Artifact { run, file } => remove_artifact(store, places, run, file).await,
        GcWhat::ArtifactFile { run, file } => {
            let (id, name) = (run.clone(), file.clone());
            let known = store.read(move |r| r.outputs_of_run(&id)).await?;
            let belongs = |output: &str| output == name || record_of(output) == name;
            if known.iter().any(|output| belongs(&output.output.file)) {
                return Ok(false);
            }
            let folder = places.artifacts.join(run.as_str());
            let file = file.clone();
            blocking(move || remove_files(&folder, &[file])).await
        }
        GcWhat::Leftover => {
            let Some(path) = item.path.clone() else { return Ok(false) };
            blocking(move || {
                std::fs::remove_dir_all(&path).map_or_else(absent, |()| Ok(true)).map_err(disk(&path))
            })
            .await
        }
        GcWhat::Input { sha256 } => {
            // A template may have come to need it; then it was also wanted just now.
            let (library, sha256) = (places.library.clone(), *sha256);
            let since = wanted_before(plan.now, &plan.retention);
            blocking(move || library.remove_input(sha256, since).map_err(GcError::from)).await
        }
        GcWhat::Operations { .. } => {
            remove_older(store, Log::Operations, Before::new(plan.now).operations).await
        }
        GcWhat::Activity { .. } => remove_older(store, Log::Activity, Before::new(plan.now).activity).await,
    }
}

async fn remove_run(store: &Store, places: &Places, run: &RunId) -> Result<bool, GcError> {
    let path = places.runs.join(run.as_str());
    let locked = path.clone();
    // Without a directory only its row is left.
    let (has_directory, lock) = blocking(move || Ok((locked.is_dir(), lock(&locked)?))).await?;
    if has_directory && lock.is_none() {
        return Ok(false);
    }
    let id = run.clone();
    let gone = store.write(move |w| -> Result<bool, StoreError> {
        match w.run(&id)? {
            Some(record) if !record.state.is_final() => Ok(false),
            _ => w.delete_run(&id).map(|_| true),
        }
    });
    if !gone.await? {
        return Ok(false);
    }
    match lock {
        Some(lock) => blocking(move || remove_folder(&path, lock).map(|()| true)).await,
        None => Ok(true),
    }
}

async fn remove_artifact(store: &Store, places: &Places, run: &RunId, file: &str) -> Result<bool, GcError> {
    let (id, name) = (run.clone(), file.to_owned());
    let stays = store.write(move |w| -> Result<bool, StoreError> {
        let active = w.run(&id)?.is_some_and(|record| !record.state.is_final());
        Ok(active || !w.delete_artifact(&id, &name)? && w.artifact(&id, &name)?.is_some())
    });
    if stays.await? {
        return Ok(false);
    }
    let folder = places.artifacts.join(run.as_str());
    let files = [file.to_owned(), record_of(file)];
    blocking(move || remove_files(&folder, &files).map(|_| true)).await
}

async fn remove_older(store: &Store, log: Log, before: i64) -> Result<bool, GcError> {
    while store.write(move |w| w.remove_older(log, before)).await? > 0 {}
    Ok(true)
}

/// The lock of a run's directory; `None` while somebody holds it, or where the directory is gone.
fn lock(path: &Path) -> Result<Option<FileLock>, GcError> {
    match FileLock::try_exclusive(path.join("lock")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        lock => lock.map_err(disk(path)),
    }
}

/// Its name goes first, so that no half of it is taken for a run.
fn remove_folder(path: &Path, lock: FileLock) -> Result<(), GcError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!("{REMOVED}{name}"));
    std::fs::rename(path, &aside).map_err(disk(path))?;
    drop(lock);
    tracing::info!(path = %path.display(), bytes = bytes_below(&aside), "retention removes a run");
    std::fs::remove_dir_all(&aside).map_err(disk(&aside))
}

/// Whether one of them was there. An empty folder goes, too.
fn remove_files(folder: &Path, names: &[String]) -> Result<bool, GcError> {
    let mut any = false;
    for name in names {
        let path = folder.join(name);
        any |= std::fs::remove_file(&path).map_or_else(absent, |()| Ok(true)).map_err(disk(&path))?;
    }
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => {
            absent(error).map_err(disk(folder))?;
        }
        _ => {}
    }
    Ok(any)
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn absent(error: io::Error) -> io::Result<bool> {
    if error.kind() == io::ErrorKind::NotFound { Ok(false) } else { Err(error) }
}

fn disk(path: &Path) -> impl FnOnce(io::Error) -> GcError {
    let path = path.to_owned();
    move |source| GcError::Remove { path, source }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, GcError> + Send + 'static,
) -> Result<T, GcError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(GcError::Stopped),
        },
    }
}

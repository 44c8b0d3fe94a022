//! What there is: rows of the store, and what lies on the disk.
//!
//! A run's directory may be its worker's, and we may be root: no link in there is followed, no pipe waited for.

use std::collections::{BTreeMap, HashSet};
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use kiln_build::run_dir::{RunDir, RunId, RunRequest};
use kiln_library::ShelvedInput;
use kiln_model::Sha256;
use kiln_model::plan::BuildPlan;

use super::{ACTIVITY_DAYS, GcError, OPERATION_DAYS, Places, REMOVED};
use crate::settle::read_own;
use crate::store::{ArtifactAge, Log, Reader, RunAge, StoreError};

/// Microseconds since 1970; older rows of a log go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before {
    pub operations: i64,
    pub activity: i64,
}

impl Before {
    pub fn new(now: Timestamp) -> Self {
        Self { operations: ago(now, OPERATION_DAYS), activity: ago(now, ACTIVITY_DAYS) }
    }
}

/// Microseconds since 1970 at that many days before `now`.
pub(super) fn ago(now: Timestamp, days: i64) -> i64 {
    now.as_microsecond().saturating_sub(SignedDuration::from_hours(24 * days).as_micros() as i64)
}

/// What the store says.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// In the order they were queued.
    pub runs: Vec<RunAge>,
    pub artifacts: Vec<ArtifactAge>,
    pub copies: HashSet<Sha256>,
    pub old_operations: u64,
    pub old_activity: u64,
}

#[derive(Debug, Default)]
pub(super) struct Found {
    pub rows: Rows,
    pub directories: BTreeMap<RunId, RunFolder>,
    pub files: BTreeMap<RunId, Vec<ArtifactFile>>,
    /// What an earlier removal did not finish, with its size.
    pub leftovers: Vec<(PathBuf, u64)>,
    pub inputs: Vec<ShelvedInput>,
    /// Inputs of runs that have not ended.
    pub inputs_of_runs: HashSet<Sha256>,
}

/// A run directory.
#[derive(Debug, Default, Clone)]
pub(super) struct RunFolder {
    /// On the disk, all of it.
    pub bytes: u64,
    /// Of them, in its work folder, unless that is to be kept with the run.
    pub work: Option<u64>,
    /// When something last happened in it; microseconds since 1970.
    pub changed: i64,
    /// Somebody holds its lock.
    pub is_held: bool,
}

/// A file in the artifacts' folder of a run.
#[derive(Debug, Clone)]
pub(super) struct ArtifactFile {
    pub name: String,
    pub bytes: u64,
    pub changed: i64,
}

pub(super) fn rows(r: &Reader<'_>, before: Before) -> Result<Rows, StoreError> {
    Ok(Rows {
        runs: r.run_ages()?,
        artifacts: r.artifact_ages()?,
        copies: r.copies_in_use()?,
        old_operations: r.older(Log::Operations, before.operations)?,
        old_activity: r.older(Log::Activity, before.activity)?,
    })
}

/// Looks at the disk. The store was asked first: what was begun since is younger than anything that goes.
pub(super) fn found(rows: Rows, places: &Places) -> Result<Found, GcError> {
    let mut found = Found { rows, inputs: places.library.inputs()?, ..Found::default() };
    let unfinished: HashSet<RunId> =
        found.rows.runs.iter().filter(|run| run.ended.is_none()).map(|run| run.run.clone()).collect();
    for path in entries(&places.runs)? {
        match run_of(&path) {
            Some(id) => {
                let Some(folder) = run_folder(&path) else { continue };
                if folder.is_held || unfinished.contains(&id) {
                    found.inputs_of_runs.extend(inputs_of(&path));
                }
                found.directories.insert(id, folder);
            }
            None => found.leftovers.extend(leftover(path)),
        }
    }
    for path in entries(&places.artifacts)? {
        match run_of(&path) {
            Some(id) => {
                let files = entries(&path)?.into_iter().filter_map(|file| artifact_file(&file));
                found.files.insert(id, files.collect());
            }
            None => found.leftovers.extend(leftover(path)),
        }
    }
    Ok(found)
}

fn run_of(path: &Path) -> Option<RunId> {
    path.file_name()?.to_str()?.parse().ok()
}

fn leftover(path: PathBuf) -> Option<(PathBuf, u64)> {
    let ours = path.file_name()?.to_str()?.starts_with(REMOVED);
    let bytes = ours.then(|| bytes_below(&path))?;
    Some((path, bytes))
}

/// `None` for what is no directory, or gone meanwhile.
fn run_folder(path: &Path) -> Option<RunFolder> {
    let metadata = std::fs::symlink_metadata(path).ok().filter(Metadata::is_dir)?;
    let dir = RunDir::open(path).ok()?;
    let times = [Some(metadata), std::fs::symlink_metadata(dir.events()).ok()];
    let request = read_own(&dir.request()).ok();
    let request = request.and_then(|bytes| serde_json::from_slice::<RunRequest>(&bytes).ok());
    let kept = request.is_some_and(|request| request.keep_on_error) || kiln_build::debug::is_left(&dir);
    let work = std::fs::symlink_metadata(dir.work()).is_ok() && !kept;
    Some(RunFolder {
        bytes: bytes_below(path),
        work: work.then(|| bytes_below(&dir.work())),
        changed: times.iter().flatten().map(changed).max()?,
        // A lock that cannot be asked for may be held.
        is_held: kiln_host::lock::is_held(dir.lock()).unwrap_or(true),
    })
}

fn artifact_file(path: &Path) -> Option<ArtifactFile> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    let name = path.file_name()?.to_str()?.to_owned();
    Some(ArtifactFile { name, bytes: metadata.blocks() * 512, changed: changed(&metadata) })
}

fn changed(metadata: &Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000).saturating_add(metadata.mtime_nsec() / 1000)
}

/// Digests that the plan of a run names.
fn inputs_of(path: &Path) -> Vec<Sha256> {
    let plan = read_own(&path.join("plan.json")).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let plan = plan.and_then(|text| BuildPlan::from_json(&text).ok());
    let customizers = plan.map(|plan| plan.customizers).unwrap_or_default();
    customizers.iter().filter_map(|customizer| customizer.input()?.sha256).collect()
}

/// An absent folder is empty.
fn entries(path: &Path) -> Result<Vec<PathBuf>, GcError> {
    let listed = std::fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>());
    match listed {
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => {
            Ok(Vec::new())
        }
        listed => listed.map_err(|source| GcError::List { path: path.to_owned(), source }),
    }
}

/// On the disk; holes take none. What cannot be seen, or lies deeper than Kiln puts anything, counts nothing.
pub(super) fn bytes_below(path: &Path) -> u64 {
    fn sum(path: &Path, depth: u32) -> u64 {
        let Ok(metadata) = std::fs::symlink_metadata(path) else { return 0 };
        let mut bytes = metadata.blocks() * 512;
        if metadata.is_dir() && depth > 0 {
            for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
                bytes += sum(&entry.path(), depth - 1);
            }
        }
        bytes
    }
    sum(path, 16)
}

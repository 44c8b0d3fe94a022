//! What became of a run that a former server left.
//!
//! ```text
//!  no directory, never started ──────────► Queued    waits again, at its old place
//!  directory without a request ──────────► Queued    it was being prepared; nothing ran in it
//!  prepared, nobody claimed it ──────────► Prepared  its worker is started (a late first one wins the lock)
//!  somebody holds the lock ──────────────► Working   followed on
//!  claimed, nobody holds the lock ───────► Silent    ended meanwhile, or its worker died: settled
//!  started, no directory ────────────────► Lost      Failed, and why
//! ```

use std::path::Path;

use kiln_build::run_dir::{RunDir, RunDirError};

use super::Inner;
use super::course::Beginning;
use crate::store::RunRecord;

pub(super) fn found(inner: &Inner, run: &RunRecord) -> Result<Beginning, RunDirError> {
    let path = inner.settings.runs_root.join(run.id.as_str());
    if !path.is_dir() {
        return Ok(if run.started_at.is_some() { Beginning::Lost } else { Beginning::Queued });
    }
    let dir = RunDir::open(&path)?;
    if !dir.request().exists() {
        if run.started_at.is_none() {
            std::fs::remove_dir_all(&path).map_err(|source| RunDirError::Io {
                act: "remove",
                path: path.clone(),
                source,
            })?;
            return Ok(Beginning::Queued);
        }
        return Ok(Beginning::Lost);
    }
    match inner.executor.find(&dir) {
        Ok(Some(worker)) => Ok(Beginning::Working(dir, worker)),
        Ok(None) if dir.claim().exists() || dir.events().exists() => {
            let how = how_it_went(&dir);
            Ok(Beginning::Silent(dir, how))
        }
        Ok(None) => Ok(Beginning::Prepared(dir)),
        Err(source) => Err(RunDirError::Io { act: "look at the lock of", path, source }),
    }
}

fn how_it_went(dir: &RunDir) -> String {
    let boot = std::fs::read_to_string(Path::new("/proc/sys/kernel/random/boot_id")).unwrap_or_default();
    match dir.read_claim() {
        Ok(Some(claim)) if claim.boot_id != boot.trim() => "this host was restarted meanwhile".to_owned(),
        _ => "it was gone when the server looked for it".to_owned(),
    }
}

//! What retention asks of the store, and what it removes.
//!
//! These questions go over everything, in the order of some index; nobody waits for their answers.

use std::collections::HashSet;

use kiln_build::run_dir::RunId;
use kiln_model::Sha256;
use rusqlite::params;

use super::rows::{self, plain, run_id};
use super::{InputCopy, Reader, StoreError, Writer};

/// Rows of a log that go in one transaction.
const AT_A_TIME: i64 = 1000;

/// A run, as far as retention looks at it. Times are microseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunAge {
    pub run: RunId,
    /// Same for runs of one template.
    pub template: String,
    pub queued: i64,
    /// `None` while it has not ended.
    pub ended: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ArtifactAge {
    pub run: RunId,
    pub file: String,
    /// It is its template's run output of that name.
    pub is_output: bool,
    pub created: i64,
}

/// A log that only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Log {
    /// Operations that have ended.
    Operations,
    Activity,
}

impl Reader<'_> {
    /// All runs, in the order they were queued.
    pub(crate) fn run_ages(&self) -> Result<Vec<RunAge>, StoreError> {
        let sql = "SELECT id, template_key, queued_us, ended_us, finished FROM runs ORDER BY queued_us, id";
        self.rows("run", sql, [], |row| {
            let queued: i64 = plain(row, "queued_us")?;
            let finished: bool = plain(row, "finished")?;
            let ended = finished.then_some(plain::<Option<i64>>(row, "ended_us")?.unwrap_or(queued));
            Ok(RunAge { run: run_id(row, "id")?, template: plain(row, "template_key")?, queued, ended })
        })
    }

    pub(crate) fn artifact_ages(&self) -> Result<Vec<ArtifactAge>, StoreError> {
        // The condition makes a search of what would be a scan: all runs have a name.
        let sql = "SELECT a.run, a.file, a.created_us, EXISTS (SELECT 1 FROM run_outputs o \
             WHERE o.run = a.run AND o.file = a.file) AS is_output FROM artifacts a WHERE a.run > ''";
        self.rows("artifact", sql, [], |row| {
            Ok(ArtifactAge {
                run: run_id(row, "run")?,
                file: plain(row, "file")?,
                is_output: plain(row, "is_output")?,
                created: plain(row, "created_us")?,
            })
        })
    }

    /// Every stored copy that a template names.
    pub(crate) fn copies_in_use(&self) -> Result<HashSet<Sha256>, StoreError> {
        let sql = "SELECT copies FROM templates WHERE key > ''";
        let copies = self.rows("template", sql, [], |row| rows::json::<Vec<InputCopy>>(row, "copies"))?;
        Ok(copies.into_iter().flatten().map(|copy| copy.sha256).collect())
    }

    /// How many rows of a log are older.
    pub(crate) fn older(&self, log: Log, before: i64) -> Result<u64, StoreError> {
        let sql = match log {
            Log::Operations => {
                "SELECT count(*) AS n FROM operations WHERE ended_us IS NOT NULL AND ended_us < ?1"
            }
            Log::Activity => "SELECT count(*) AS n FROM activity WHERE at_us < ?1",
        };
        Ok(self.row("log", sql, [before], |row| rows::count(row, "n"))?.unwrap_or(0))
    }
}

impl Writer<'_> {
    /// Removes some of the rows that are older; 0 when there are none left.
    pub(crate) fn remove_older(&self, log: Log, before: i64) -> Result<usize, StoreError> {
        let sql = match log {
            Log::Operations => {
                "DELETE FROM operations WHERE rowid IN (SELECT rowid FROM operations \
                 WHERE ended_us IS NOT NULL AND ended_us < ?1 LIMIT ?2)"
            }
            Log::Activity => {
                "DELETE FROM activity WHERE seq IN (SELECT seq FROM activity WHERE at_us < ?1 LIMIT ?2)"
            }
        };
        self.execute(sql, params![before, AT_A_TIME])
    }
}

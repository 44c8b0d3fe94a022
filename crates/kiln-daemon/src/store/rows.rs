//! From rows to records, and the small conversions both ways.

use std::str::FromStr;

use kiln_build::run_dir::RunId;
use rusqlite::types::FromSql;
use rusqlite::{Params, Row};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::StoreError;
use super::read::Reader;
use super::records::*;

/// A column does not hold what it should.
#[derive(Debug)]
pub(super) enum RowError {
    Sqlite(rusqlite::Error),
    Content { column: &'static str, detail: String },
}

impl From<rusqlite::Error> for RowError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

type Read<T> = Result<T, RowError>;

impl Reader<'_> {
    /// The one door for questions: every statement is prepared once for each connection.
    pub(super) fn rows<T>(
        &self,
        what: &'static str,
        sql: &str,
        params: impl Params,
        read: impl Fn(&Row<'_>) -> Read<T>,
    ) -> Result<Vec<T>, StoreError> {
        #[cfg(test)]
        super::tests::check_plan(self.connection, sql);
        let mut records = Vec::new();
        let ask = || -> Read<()> {
            let mut statement = self.connection.prepare_cached(sql)?;
            let mut rows = statement.query(params)?;
            while let Some(row) = rows.next()? {
                records.push(read(row)?);
            }
            Ok(())
        };
        match ask() {
            Ok(()) => Ok(records),
            Err(RowError::Sqlite(error)) => Err(self.sqlite(error)),
            Err(RowError::Content { column, detail }) => Err(StoreError::Unreadable { what, column, detail }),
        }
    }

    /// As [`Reader::rows`], where there is one at most.
    pub(super) fn row<T>(
        &self,
        what: &'static str,
        sql: &str,
        params: impl Params,
        read: impl Fn(&Row<'_>) -> Read<T>,
    ) -> Result<Option<T>, StoreError> {
        Ok(self.rows(what, sql, params, read)?.into_iter().next())
    }
}

pub(super) const TEMPLATE: &str = "subscription, resource_group, name, location, tags, identity, properties, \
     api_version, provisioning, provisioning_error, copies, pending, exact_version, last_run, created_at, created_by, modified_at, \
     modified_by, generation";

pub(super) fn template(row: &Row<'_>) -> Read<TemplateRecord> {
    Ok(TemplateRecord {
        id: template_id(row, "name")?,
        location: plain(row, "location")?,
        tags: json(row, "tags")?,
        identity: optional_json(row, "identity")?,
        properties: json(row, "properties")?,
        api_version: plain(row, "api_version")?,
        provisioning: word(row, "provisioning")?,
        provisioning_error: optional_json(row, "provisioning_error")?,
        copies: json(row, "copies")?,
        pending: optional_json(row, "pending")?,
        exact_version: plain(row, "exact_version")?,
        last_run: optional_json(row, "last_run")?,
        created_at: plain(row, "created_at")?,
        created_by: plain(row, "created_by")?,
        modified_at: plain(row, "modified_at")?,
        modified_by: plain(row, "modified_by")?,
        generation: count(row, "generation")?,
    })
}

pub(super) const TRIGGER: &str = "t.subscription, t.resource_group, t.name AS template, r.name, r.kind, \
     r.created_at, r.created_by, r.modified_at, r.modified_by";

pub(super) fn trigger(row: &Row<'_>) -> Read<TriggerRecord> {
    Ok(TriggerRecord {
        template: template_id(row, "template")?,
        name: plain(row, "name")?,
        kind: plain(row, "kind")?,
        created_at: plain(row, "created_at")?,
        created_by: plain(row, "created_by")?,
        modified_at: plain(row, "modified_at")?,
        modified_by: plain(row, "modified_by")?,
    })
}

pub(super) const RUN: &str = "id, subscription, resource_group, template, operation, state, phase, message, \
     fault, queued_at, started_at, ended_at, memory_mib, cpus, attempt, started_by, holds_since";

pub(super) fn run(row: &Row<'_>) -> Read<RunRecord> {
    Ok(RunRecord {
        id: run_id(row, "id")?,
        template: template_id(row, "template")?,
        operation: plain(row, "operation")?,
        state: word(row, "state")?,
        phase: optional_word(row, "phase")?,
        message: plain(row, "message")?,
        fault: optional_word(row, "fault")?,
        queued_at: plain(row, "queued_at")?,
        started_at: plain(row, "started_at")?,
        ended_at: plain(row, "ended_at")?,
        memory_mib: count(row, "memory_mib")?,
        cpus: plain(row, "cpus")?,
        attempt: plain(row, "attempt")?,
        started_by: plain(row, "started_by")?,
        holds_since: plain(row, "holds_since")?,
    })
}

pub(super) const OPERATION: &str =
    "id, kind, subscription, location, resource, status, started_at, ended_at, error, run";

pub(super) fn operation(row: &Row<'_>) -> Read<OperationRecord> {
    Ok(OperationRecord {
        id: plain(row, "id")?,
        kind: word(row, "kind")?,
        subscription: plain(row, "subscription")?,
        location: plain(row, "location")?,
        resource: plain(row, "resource")?,
        status: word(row, "status")?,
        started_at: plain(row, "started_at")?,
        ended_at: plain(row, "ended_at")?,
        error: optional_json(row, "error")?,
        run: match plain::<Option<String>>(row, "run")? {
            Some(_) => Some(run_id(row, "run")?),
            None => None,
        },
    })
}

pub(super) const OUTPUT: &str =
    "a.subscription, a.resource_group, a.template, a.name, a.run, a.output, a.created_at";

pub(super) fn output(row: &Row<'_>) -> Read<OutputRecord> {
    Ok(OutputRecord {
        template: template_id(row, "template")?,
        name: plain(row, "name")?,
        run: run_id(row, "run")?,
        output: json(row, "output")?,
        created_at: plain(row, "created_at")?,
    })
}

pub(super) const RESOURCE_GROUP: &str = "subscription, name, location, tags";

pub(super) fn resource_group(row: &Row<'_>) -> Read<ResourceGroupRecord> {
    Ok(ResourceGroupRecord {
        subscription: plain(row, "subscription")?,
        name: plain(row, "name")?,
        location: plain(row, "location")?,
        tags: json(row, "tags")?,
    })
}

pub(super) const ACTIVITY: &str = "seq, at, by, action, resource, outcome";

pub(super) fn activity(row: &Row<'_>) -> Read<ActivityRecord> {
    Ok(ActivityRecord {
        seq: count(row, "seq")?,
        at: plain(row, "at")?,
        by: plain(row, "by")?,
        action: plain(row, "action")?,
        resource: plain(row, "resource")?,
        outcome: plain(row, "outcome")?,
    })
}

pub(super) fn template_id(row: &Row<'_>, name: &'static str) -> Read<TemplateId> {
    Ok(TemplateId {
        subscription: plain(row, "subscription")?,
        resource_group: plain(row, "resource_group")?,
        name: plain(row, name)?,
    })
}

pub(super) fn plain<T: FromSql>(row: &Row<'_>, column: &'static str) -> Read<T> {
    Ok(row.get(column)?)
}

/// SQLite's numbers have a sign.
pub(super) fn count(row: &Row<'_>, column: &'static str) -> Read<u64> {
    u64::try_from(row.get::<_, i64>(column)?)
        .map_err(|_| RowError::Content { column, detail: "it is negative".to_owned() })
}

pub(super) fn run_id(row: &Row<'_>, column: &'static str) -> Read<RunId> {
    RunId::from_str(&plain::<String>(row, column)?)
        .map_err(|_| RowError::Content { column, detail: "it is not a run id".to_owned() })
}

pub(super) fn json<T: DeserializeOwned>(row: &Row<'_>, column: &'static str) -> Read<T> {
    parse(column, &plain::<String>(row, column)?)
}

fn optional_json<T: DeserializeOwned>(row: &Row<'_>, column: &'static str) -> Read<Option<T>> {
    plain::<Option<String>>(row, column)?.map(|text| parse(column, &text)).transpose()
}

fn parse<T: DeserializeOwned>(column: &'static str, text: &str) -> Read<T> {
    // The parser's own words may quote what is there.
    serde_json::from_str(text).map_err(|error| RowError::Content {
        column,
        detail: format!(
            "{:?} error at line {}, column {} of its JSON",
            error.classify(),
            error.line(),
            error.column()
        ),
    })
}

/// A variant of a closed set, by its name.
pub(super) fn word<T: DeserializeOwned>(row: &Row<'_>, column: &'static str) -> Read<T> {
    from_word(column, plain(row, column)?)
}

fn optional_word<T: DeserializeOwned>(row: &Row<'_>, column: &'static str) -> Read<Option<T>> {
    plain::<Option<String>>(row, column)?.map(|text| from_word(column, text)).transpose()
}

fn from_word<T: DeserializeOwned>(column: &'static str, text: String) -> Read<T> {
    serde_json::from_value(Value::String(text)).map_err(|_| RowError::Content {
        column,
        detail: "it is a word this program does not know".to_owned(),
    })
}

/// The name of a variant of a closed set.
pub(super) fn to_word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(text)) => text,
        other => unreachable!("closed sets are words: {other:?}"),
    }
}

pub(super) fn to_json(value: &impl Serialize) -> String {
    // Maps with text keys and plain values: nothing in a record can fail.
    serde_json::to_string(value).unwrap_or_default()
}

/// The lookup key of a template: see [`TemplateId::key`], but short, since each run has it in two indexes.
pub(super) fn key(id: &TemplateId) -> String {
    format!("{}/{}/{}", id.subscription, id.resource_group, id.name).to_ascii_lowercase()
}

/// A name in a folder, which leads nowhere else.
pub(super) fn is_plain_name(file: &str) -> bool {
    !matches!(file, "" | "." | "..") && !file.contains(['/', '\0'])
}

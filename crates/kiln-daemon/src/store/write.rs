//! Every change of the store, and what no change may do.
//!
//! INVARIANT: a run ends once ([`RunState::may_become`]); so does an operation. A template has one active run.
//! `lastRunStatus` is derived: whoever changes a run changes it in the same transaction, and nobody else does.

use std::ops::Deref;
use std::path::Path;

use kiln_build::run_dir::RunId;
use rusqlite::{Connection, Params, named_params, params};

use super::read::Reader;
use super::rows::{RUN, is_plain_name, key, run, to_json, to_word};
use super::*;

/// The store inside one transaction. Sees what it has changed.
pub struct Writer<'a> {
    reader: Reader<'a>,
}

impl<'a> Deref for Writer<'a> {
    type Target = Reader<'a>;

    fn deref(&self) -> &Reader<'a> {
        &self.reader
    }
}

impl<'a> Writer<'a> {
    pub(super) fn new(connection: &'a Connection, path: &'a Path) -> Self {
        Self { reader: Reader::new(connection, path) }
    }

    /// # Errors
    /// [`StoreError::Exists`] where there is a template of that id, in whatever case.
    pub fn insert_template(&self, template: &TemplateRecord) -> Result<(), StoreError> {
        const WHAT: &str = "template";
        let TemplateRecord { id, .. } = template;
        for part in [&id.subscription, &id.resource_group, &id.name] {
            if part.is_empty() || part.contains('/') {
                let detail = "a part of its id is empty or has a slash".to_owned();
                return Err(StoreError::Unstorable { what: WHAT, name: id.to_string(), detail });
            }
        }
        if self.template(id)?.is_some() {
            return Err(StoreError::Exists { what: WHAT, name: id.to_string() });
        }
        self.execute(
            "INSERT INTO templates (key, subscription, resource_group, name, location, tags, identity, \
             properties, api_version, provisioning, provisioning_error, copies, pending, exact_version, last_run, created_at, \
             created_us, created_by, modified_at, modified_by, generation) \
             VALUES (:key, :subscription, :resource_group, :name, :location, :tags, :identity, :properties, \
             :api_version, :provisioning, :provisioning_error, :copies, :pending, :exact_version, NULL, :created_at, :created_us, \
             :created_by, :modified_at, :modified_by, 1)",
            named_params! {
                ":key": key(id),
                ":subscription": id.subscription,
                ":resource_group": id.resource_group,
                ":name": id.name,
                ":location": template.location,
                ":tags": to_json(&template.tags),
                ":identity": template.identity.as_ref().map(to_json),
                ":properties": to_json(&template.properties),
                ":api_version": template.api_version,
                ":provisioning": to_word(&template.provisioning),
                ":provisioning_error": template.provisioning_error.as_ref().map(to_json),
                ":copies": to_json(&template.copies),
                ":pending": template.pending.as_ref().map(to_json),
                ":exact_version": template.exact_version,
                ":created_at": template.created_at,
                ":created_us": micros(WHAT, &id.to_string(), &template.created_at)?,
                ":created_by": template.created_by,
                ":modified_at": template.modified_at,
                ":modified_by": template.modified_by,
            },
        )?;
        Ok(())
    }

    /// Stores everything of the template but its id, creation, `last_run` (which belongs to its runs) and generation, which
    /// goes up by one and is the answer.
    pub fn update_template(&self, template: &TemplateRecord) -> Result<u64, StoreError> {
        let changed = self.execute(
            "UPDATE templates SET location = :location, tags = :tags, identity = :identity, \
             properties = :properties, api_version = :api_version, provisioning = :provisioning, \
             provisioning_error = :provisioning_error, copies = :copies, pending = :pending, exact_version = :exact_version, modified_at = :modified_at, \
             modified_by = :modified_by, generation = generation + 1 WHERE key = :key",
            named_params! {
                ":key": key(&template.id),
                ":location": template.location,
                ":tags": to_json(&template.tags),
                ":identity": template.identity.as_ref().map(to_json),
                ":properties": to_json(&template.properties),
                ":api_version": template.api_version,
                ":provisioning": to_word(&template.provisioning),
                ":provisioning_error": template.provisioning_error.as_ref().map(to_json),
                ":copies": to_json(&template.copies),
                ":pending": template.pending.as_ref().map(to_json),
                ":exact_version": template.exact_version,
                ":modified_at": template.modified_at,
                ":modified_by": template.modified_by,
            },
        )?;
        let missing = || StoreError::Missing { what: "template", name: template.id.to_string() };
        if changed == 0 {
            return Err(missing());
        }
        Ok(self.template(&template.id)?.ok_or_else(missing)?.generation)
    }

    /// Removes the template, its triggers and its run outputs; its runs and their artifacts stay. Returns whether it was
    /// there.
    pub fn delete_template(&self, id: &TemplateId) -> Result<bool, StoreError> {
        Ok(self.execute("DELETE FROM templates WHERE key = ?1", [key(id)])? > 0)
    }

    /// # Errors
    /// [`StoreError::Exists`] where there is a run of that id, or where the template has an active run and this is one too.
    pub fn insert_run(&self, record: &RunRecord) -> Result<(), StoreError> {
        if self.run(&record.id)?.is_some() {
            return Err(StoreError::Exists { what: "run", name: record.id.to_string() });
        }
        if !record.state.is_final()
            && let Some(active) = self.active_run(&record.template)?
        {
            let name = format!("{} of {}", active.id, record.template);
            return Err(StoreError::Exists { what: "active run", name });
        }
        self.put_run(
            "INSERT INTO runs (id, template_key, subscription, resource_group, template, operation, state, \
             finished, phase, message, fault, queued_at, queued_us, started_at, ended_at, ended_us, \
             memory_mib, cpus, attempt, started_by, holds_since) \
             VALUES (:id, :template_key, :subscription, :resource_group, :template, :operation, :state, \
             :finished, :phase, :message, :fault, :queued_at, :queued_us, :started_at, :ended_at, :ended_us, \
             :memory_mib, :cpus, :attempt, :started_by, :holds_since)",
            record,
        )
    }

    /// Storing the end of a run again, exactly as it is stored, does nothing.
    ///
    /// # Errors
    /// [`StoreError::Transition`] for what [`kiln_model::run::RunState::may_become`] forbids.
    pub fn update_run(&self, record: &RunRecord) -> Result<(), StoreError> {
        let Some(stored) = self.run(&record.id)? else {
            return Err(StoreError::Missing { what: "run", name: record.id.to_string() });
        };
        let (from, to) = (stored.state, record.state);
        if stored == *record {
            return Ok(());
        }
        // Still running: its phase may have changed, or its message.
        if !from.may_become(to) && (from != to || from.is_final()) {
            return Err(StoreError::Transition { run: record.id.to_string(), from, to });
        }
        self.put_run(
            "UPDATE runs SET template_key = :template_key, subscription = :subscription, \
             resource_group = :resource_group, template = :template, operation = :operation, state = :state, \
             finished = :finished, phase = :phase, message = :message, fault = :fault, \
             queued_at = :queued_at, queued_us = :queued_us, started_at = :started_at, ended_at = :ended_at, \
             ended_us = :ended_us, memory_mib = :memory_mib, cpus = :cpus, attempt = :attempt, \
             started_by = :started_by, holds_since = :holds_since WHERE id = :id",
            record,
        )
    }

    /// Forgets a run; its artifacts stay known. Returns whether it was there. What its template says of its last run stays
    /// said.
    pub fn delete_run(&self, id: &RunId) -> Result<bool, StoreError> {
        Ok(self.execute("DELETE FROM runs WHERE id = ?1", [id.as_str()])? > 0)
    }

    fn put_run(&self, sql: &str, record: &RunRecord) -> Result<(), StoreError> {
        let RunRecord { id, template, .. } = record;
        let time = |text: &str| micros("run", id.as_str(), text);
        self.execute(
            sql,
            named_params! {
                ":id": id.as_str(),
                ":template_key": key(template),
                ":subscription": template.subscription,
                ":resource_group": template.resource_group,
                ":template": template.name,
                ":operation": record.operation,
                ":state": to_word(&record.state),
                ":finished": record.state.is_final(),
                ":phase": record.phase.as_ref().map(to_word),
                ":message": record.message,
                ":fault": record.fault.map(|fault| to_word(&fault)),
                ":queued_at": record.queued_at,
                ":queued_us": time(&record.queued_at)?,
                ":started_at": record.started_at,
                ":ended_at": record.ended_at,
                ":ended_us": record.ended_at.as_deref().map(time).transpose()?,
                ":memory_mib": integer("run", id.as_str(), record.memory_mib)?,
                ":cpus": record.cpus,
                ":attempt": record.attempt,
                ":started_by": record.started_by,
                ":holds_since": record.holds_since,
            },
        )?;
        self.refresh_last_run(template)
    }

    /// Makes the template say what its newest run says. Runs of an earlier template of that name do not count.
    fn refresh_last_run(&self, template: &TemplateId) -> Result<(), StoreError> {
        let sql = &format!(
            "SELECT {RUN} FROM runs WHERE template_key = ?1 AND queued_us >= \
             (SELECT created_us FROM templates WHERE key = ?1) ORDER BY queued_us DESC, id DESC LIMIT 1"
        );
        let Some(newest) = self.row("run", sql, [key(template)], run)? else { return Ok(()) };
        let last = LastRun {
            run: newest.id,
            state: newest.state,
            phase: newest.phase,
            message: newest.message,
            started_at: newest.started_at.unwrap_or(newest.queued_at),
            ended_at: newest.ended_at,
        };
        self.execute("UPDATE templates SET last_run = ?2 WHERE key = ?1", [key(template), to_json(&last)])?;
        Ok(())
    }

    pub fn insert_operation(&self, operation: &OperationRecord) -> Result<(), StoreError> {
        if self.operation(&operation.id)?.is_some() {
            return Err(StoreError::Exists { what: "operation", name: operation.id.clone() });
        }
        self.put_operation(
            "INSERT INTO operations (id, kind, subscription, location, resource, status, started_at, \
             started_us, ended_at, ended_us, error, run) \
             VALUES (:id, :kind, :subscription, :location, :resource, :status, :started_at, :started_us, \
             :ended_at, :ended_us, :error, :run)",
            operation,
        )
    }

    /// Storing the end of an operation again, exactly as it is stored, does nothing.
    ///
    /// # Errors
    /// [`StoreError::OperationEnded`] when it has ended otherwise.
    pub fn update_operation(&self, operation: &OperationRecord) -> Result<(), StoreError> {
        let Some(stored) = self.operation(&operation.id)? else {
            return Err(StoreError::Missing { what: "operation", name: operation.id.clone() });
        };
        if stored == *operation {
            return Ok(());
        }
        if stored.status != OperationStatus::InProgress {
            return Err(StoreError::OperationEnded(operation.id.clone()));
        }
        self.put_operation(
            "UPDATE operations SET kind = :kind, subscription = :subscription, location = :location, \
             resource = :resource, status = :status, started_at = :started_at, started_us = :started_us, \
             ended_at = :ended_at, ended_us = :ended_us, error = :error, run = :run WHERE id = :id",
            operation,
        )
    }

    fn put_operation(&self, sql: &str, operation: &OperationRecord) -> Result<(), StoreError> {
        const WHAT: &str = "operation";
        let time = |text: &str| micros(WHAT, &operation.id, text);
        if (operation.status == OperationStatus::InProgress) != operation.ended_at.is_none() {
            let detail = "it has an end exactly if it is not in progress".to_owned();
            return Err(StoreError::Unstorable { what: WHAT, name: operation.id.clone(), detail });
        }
        self.execute(
            sql,
            named_params! {
                ":id": operation.id.to_ascii_lowercase(),
                ":kind": to_word(&operation.kind),
                ":subscription": operation.subscription,
                ":location": operation.location,
                ":resource": operation.resource,
                ":status": to_word(&operation.status),
                ":started_at": operation.started_at,
                ":started_us": time(&operation.started_at)?,
                ":ended_at": operation.ended_at,
                ":ended_us": operation.ended_at.as_deref().map(time).transpose()?,
                ":error": operation.error.as_ref().map(to_json),
                ":run": operation.run.as_ref().map(RunId::as_str),
            },
        )?;
        Ok(())
    }

    /// Stores an artifact, and makes it the template's run output of that name if the template is there. The one it follows
    /// stays as an artifact of its run. Doing it again does nothing.
    pub fn put_output(&self, output: &OutputRecord) -> Result<(), StoreError> {
        let OutputRecord { template, name, run, output: file, .. } = output;
        if !is_plain_name(&file.file) {
            let detail = format!("{:?} is not the name of a file", file.file);
            return Err(StoreError::Unstorable { what: "run output", name: name.clone(), detail });
        }
        self.execute(
            "INSERT INTO artifacts (run, file, template_key, subscription, resource_group, template, name, \
             output, created_at, created_us) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) \
             ON CONFLICT (run, file) DO UPDATE SET output = excluded.output, \
             created_at = excluded.created_at, created_us = excluded.created_us",
            params![
                run.as_str(),
                file.file,
                key(template),
                template.subscription,
                template.resource_group,
                template.name,
                name,
                to_json(file),
                output.created_at,
                micros("run output", name, &output.created_at)?,
            ],
        )?;
        self.execute(
            "INSERT INTO run_outputs (template_key, name_key, run, file) \
             SELECT key, ?2, ?3, ?4 FROM templates WHERE key = ?1 \
             ON CONFLICT (template_key, name_key) DO UPDATE SET run = excluded.run, file = excluded.file",
            params![key(template), name.to_ascii_lowercase(), run.as_str(), file.file],
        )?;
        Ok(())
    }

    /// Forgets an artifact. Returns whether it was there; one that is a template's run output stays, and is not.
    pub fn delete_artifact(&self, run: &RunId, file: &str) -> Result<bool, StoreError> {
        let sql = "DELETE FROM artifacts WHERE run = ?1 AND file = ?2 AND NOT EXISTS \
             (SELECT 1 FROM run_outputs o WHERE o.run = artifacts.run AND o.file = artifacts.file)";
        Ok(self.execute(sql, [run.as_str(), file])? > 0)
    }

    /// Makes a trigger or replaces the one of that name.
    ///
    /// # Errors
    /// [`StoreError::Missing`] where its template is not there.
    pub fn put_trigger(&self, trigger: &TriggerRecord) -> Result<(), StoreError> {
        let changed = self.execute(
            "INSERT INTO triggers (template_key, name_key, name, kind, created_at, created_by, modified_at, \
             modified_by) SELECT key, :name_key, :name, :kind, :created_at, :created_by, :modified_at, \
             :modified_by FROM templates WHERE key = :key \
             ON CONFLICT (template_key, name_key) DO UPDATE SET kind = excluded.kind, \
             modified_at = excluded.modified_at, modified_by = excluded.modified_by",
            named_params! {
                ":key": key(&trigger.template),
                ":name_key": trigger.name.to_ascii_lowercase(),
                ":name": trigger.name,
                ":kind": trigger.kind,
                ":created_at": trigger.created_at,
                ":created_by": trigger.created_by,
                ":modified_at": trigger.modified_at,
                ":modified_by": trigger.modified_by,
            },
        )?;
        if changed == 0 {
            return Err(StoreError::Missing { what: "template", name: trigger.template.to_string() });
        }
        Ok(())
    }

    pub fn delete_trigger(&self, template: &TemplateId, name: &str) -> Result<bool, StoreError> {
        let keys = [key(template), name.to_ascii_lowercase()];
        Ok(self.execute("DELETE FROM triggers WHERE template_key = ?1 AND name_key = ?2", keys)? > 0)
    }

    /// Makes a resource group, or changes the tags of the one that is there: its name and place stay as first written.
    pub fn put_resource_group(&self, group: &ResourceGroupRecord) -> Result<(), StoreError> {
        self.execute(
            "INSERT INTO resource_groups (subscription_key, name_key, subscription, name, location, tags) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
             ON CONFLICT (subscription_key, name_key) DO UPDATE SET tags = excluded.tags",
            params![
                group.subscription.to_ascii_lowercase(),
                group.name.to_ascii_lowercase(),
                group.subscription,
                group.name,
                group.location,
                to_json(&group.tags),
            ],
        )?;
        Ok(())
    }

    pub fn delete_resource_group(&self, subscription: &str, name: &str) -> Result<bool, StoreError> {
        let sql = "DELETE FROM resource_groups WHERE subscription_key = ?1 AND name_key = ?2";
        Ok(self.execute(sql, [subscription.to_ascii_lowercase(), name.to_ascii_lowercase()])? > 0)
    }

    /// Adds to the activity log; the number it got.
    pub fn append_activity(&self, activity: &ActivityRecord) -> Result<u64, StoreError> {
        self.execute(
            "INSERT INTO activity (at, at_us, by, action, resource, outcome) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                activity.at,
                micros("activity", &activity.action, &activity.at)?,
                activity.by,
                activity.action,
                activity.resource,
                activity.outcome,
            ],
        )?;
        Ok(self.connection.last_insert_rowid().unsigned_abs())
    }

    /// The one door for changes; how many rows changed.
    pub(super) fn execute(&self, sql: &str, params: impl Params) -> Result<usize, StoreError> {
        #[cfg(test)]
        super::tests::check_plan(self.connection, sql);
        let changed = self.connection.prepare_cached(sql).and_then(|mut change| change.execute(params));
        changed.map_err(|error| self.sqlite(error))
    }
}

fn micros(what: &'static str, name: &str, time: &str) -> Result<i64, StoreError> {
    match time.parse::<jiff::Timestamp>() {
        Ok(time) => Ok(time.as_microsecond()),
        Err(_) => {
            let detail = format!("{time:?} is not an RFC 3339 time");
            Err(StoreError::Unstorable { what, name: name.to_owned(), detail })
        }
    }
}

fn integer(what: &'static str, name: &str, number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| {
        let detail = format!("{number} is too large");
        StoreError::Unstorable { what, name: name.to_owned(), detail }
    })
}

//! Every question that is asked of the store.
//!
//! Lists are paged by key, never by offset: a page costs the same wherever it lies, and what is inserted or removed
//! meanwhile neither repeats nor hides what was there.

use std::path::Path;

use kiln_build::run_dir::RunId;
use kiln_model::run::RunState;
use rusqlite::types::Value;
use rusqlite::{Connection, params, params_from_iter};

use super::rows::{self, ACTIVITY, OPERATION, OUTPUT, RESOURCE_GROUP, RUN, TEMPLATE, TRIGGER, key};
use super::{
    ActivityRecord, OperationRecord, OutputRecord, ResourceGroupRecord, RunRecord, StoreError, TemplateId,
    TemplateRecord, TriggerRecord,
};

/// One snapshot of the store.
pub struct Reader<'a> {
    pub(super) connection: &'a Connection,
    path: &'a Path,
}

/// Part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Where the next page begins (`after` of the same question); `None` on the last.
    pub next: Option<String>,
}

/// Whose templates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    pub subscription: String,
    /// Of all groups where there is none.
    pub resource_group: Option<String>,
}

/// Which runs; all of them by default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunFilter {
    pub template: Option<TemplateId>,
    pub state: Option<RunState>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(connection: &'a Connection, path: &'a Path) -> Self {
        Self { connection, path }
    }

    pub(super) fn sqlite(&self, error: rusqlite::Error) -> StoreError {
        StoreError::sqlite(self.path, error)
    }

    pub fn template(&self, id: &TemplateId) -> Result<Option<TemplateRecord>, StoreError> {
        let sql = &format!("SELECT {TEMPLATE} FROM templates WHERE key = ?1");
        self.row("template", sql, [key(id)], rows::template)
    }

    /// Templates in the order of their lower-case ids.
    ///
    /// # Errors
    /// [`StoreError::BadPlace`] for a place outside the scope.
    pub fn templates(
        &self,
        scope: &Scope,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<TemplateRecord>, StoreError> {
        let mut first = format!("{}/", scope.subscription);
        if let Some(group) = &scope.resource_group {
            first.push_str(group);
            first.push('/');
        }
        first.make_ascii_lowercase();
        // `0` comes right after `/`.
        let behind = format!("{}0", &first[..first.len() - 1]);
        let after = match after {
            None => first,
            Some(after) => Some(after.to_ascii_lowercase())
                .filter(|after| after.starts_with(&first))
                .ok_or_else(|| StoreError::BadPlace(after.to_owned()))?,
        };
        let sql =
            &format!("SELECT {TEMPLATE} FROM templates WHERE key > ?1 AND key < ?2 ORDER BY key LIMIT ?3");
        let found = self.rows("template", sql, params![after, behind, one_more(limit)], rows::template)?;
        Ok(page(found, limit, |template| key(&template.id)))
    }

    /// Templates that something is still to be done about, in the order of their ids.
    pub fn pending_templates(&self) -> Result<Vec<TemplateRecord>, StoreError> {
        let sql = &format!("SELECT {TEMPLATE} FROM templates WHERE pending IS NOT NULL ORDER BY key");
        self.rows("template", sql, [], rows::template)
    }

    pub fn run(&self, id: &RunId) -> Result<Option<RunRecord>, StoreError> {
        let sql = &format!("SELECT {RUN} FROM runs WHERE id = ?1");
        self.row("run", sql, [id.as_str()], rows::run)
    }

    /// The template's run that has not ended.
    pub fn active_run(&self, template: &TemplateId) -> Result<Option<RunRecord>, StoreError> {
        let sql = &format!("SELECT {RUN} FROM runs WHERE template_key = ?1 AND finished = 0");
        self.row("run", sql, [key(template)], rows::run)
    }

    /// Runs that have not ended, in the order they were queued.
    pub fn unfinished_runs(&self) -> Result<Vec<RunRecord>, StoreError> {
        let sql = &format!("SELECT {RUN} FROM runs WHERE finished = 0 ORDER BY queued_us, id");
        self.rows("run", sql, [], rows::run)
    }

    /// Past and present runs, the newest first.
    ///
    /// # Errors
    /// [`StoreError::BadPlace`] for an `after` that no page gave.
    pub fn runs(
        &self,
        filter: &RunFilter,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<RunRecord>, StoreError> {
        let (time, id) = match after {
            None => (i64::MAX, String::new()),
            Some(place) => run_place(place).ok_or_else(|| StoreError::BadPlace(place.to_owned()))?,
        };
        let more = one_more(limit);
        let template = filter.template.as_ref().map(key);
        let state = filter.state.map(|state| rows::to_word(&state));
        let read = |row: &rusqlite::Row<'_>| Ok((rows::run(row)?, rows::plain::<i64>(row, "queued_us")?));
        let mut params: Vec<Value> = vec![time.into(), id.into(), more.into()];
        let (index, condition) = match (&template, &state) {
            (None, None) => ("runs_by_time", ""),
            (Some(_), None) => ("runs_by_template", "template_key = ?4 AND"),
            (None, Some(_)) => ("runs_by_state", "state = ?4 AND"),
            // Runs of one template are far fewer than runs in one state, which SQLite does not know.
            (Some(_), Some(_)) => ("runs_by_template", "template_key = ?4 AND state = ?5 AND"),
        };
        params.extend(template.into_iter().chain(state).map(Value::from));
        let sql = &format!(
            "SELECT queued_us, {RUN} FROM runs INDEXED BY {index} WHERE {condition} (queued_us, id) < (?1, ?2) \
             ORDER BY queued_us DESC, id DESC LIMIT ?3"
        );
        let found = self.rows("run", sql, params_from_iter(params), read)?;
        let page = page(found, limit, |(run, time)| format!("{time}.{}", run.id));
        Ok(Page { items: page.items.into_iter().map(|(run, _)| run).collect(), next: page.next })
    }

    /// Operations, running or ended, by id.
    pub fn operation(&self, id: &str) -> Result<Option<OperationRecord>, StoreError> {
        let sql = &format!("SELECT {OPERATION} FROM operations WHERE id = ?1");
        self.row("operation", sql, [id.to_ascii_lowercase()], rows::operation)
    }

    /// Operations that have not ended, the oldest first.
    pub fn unfinished_operations(&self) -> Result<Vec<OperationRecord>, StoreError> {
        let sql =
            &format!("SELECT {OPERATION} FROM operations WHERE ended_us IS NULL ORDER BY started_us, id");
        self.rows("operation", sql, [], rows::operation)
    }

    /// The template's run outputs, by name.
    pub fn outputs(&self, template: &TemplateId) -> Result<Vec<OutputRecord>, StoreError> {
        let sql = &format!(
            "SELECT {OUTPUT} FROM run_outputs o JOIN artifacts a ON a.run = o.run AND a.file = o.file \
             WHERE o.template_key = ?1 ORDER BY o.name_key"
        );
        self.rows("run output", sql, [key(template)], rows::output)
    }

    pub fn output(&self, template: &TemplateId, name: &str) -> Result<Option<OutputRecord>, StoreError> {
        let sql = &format!(
            "SELECT {OUTPUT} FROM run_outputs o JOIN artifacts a ON a.run = o.run AND a.file = o.file \
             WHERE o.template_key = ?1 AND o.name_key = ?2"
        );
        self.row("run output", sql, [key(template), name.to_ascii_lowercase()], rows::output)
    }

    /// What a run distributed and what is still there, by file name.
    pub fn outputs_of_run(&self, run: &RunId) -> Result<Vec<OutputRecord>, StoreError> {
        let sql = &format!("SELECT {OUTPUT} FROM artifacts a WHERE a.run = ?1 ORDER BY a.file");
        self.rows("artifact", sql, [run.as_str()], rows::output)
    }

    /// `file` is the file's name in the artifacts' folder of the run.
    pub fn artifact(&self, run: &RunId, file: &str) -> Result<Option<OutputRecord>, StoreError> {
        let sql = &format!("SELECT {OUTPUT} FROM artifacts a WHERE a.run = ?1 AND a.file = ?2");
        self.row("artifact", sql, [run.as_str(), file], rows::output)
    }

    /// Every artifact of the template's runs that is still there, current or not.
    pub fn artifacts(&self, template: &TemplateId) -> Result<Vec<OutputRecord>, StoreError> {
        let sql =
            &format!("SELECT {OUTPUT} FROM artifacts a WHERE a.template_key = ?1 ORDER BY a.run, a.file");
        self.rows("artifact", sql, [key(template)], rows::output)
    }

    /// The template's triggers, by name.
    pub fn triggers(&self, template: &TemplateId) -> Result<Vec<TriggerRecord>, StoreError> {
        let sql = &format!(
            "SELECT {TRIGGER} FROM triggers r JOIN templates t ON t.key = r.template_key \
             WHERE r.template_key = ?1 ORDER BY r.name_key"
        );
        self.rows("trigger", sql, [key(template)], rows::trigger)
    }

    pub fn trigger(&self, template: &TemplateId, name: &str) -> Result<Option<TriggerRecord>, StoreError> {
        let sql = &format!(
            "SELECT {TRIGGER} FROM triggers r JOIN templates t ON t.key = r.template_key \
             WHERE r.template_key = ?1 AND r.name_key = ?2"
        );
        self.row("trigger", sql, [key(template), name.to_ascii_lowercase()], rows::trigger)
    }

    /// Resource groups that were made through the API, by name.
    pub fn resource_groups(&self, subscription: &str) -> Result<Vec<ResourceGroupRecord>, StoreError> {
        let sql = &format!(
            "SELECT {RESOURCE_GROUP} FROM resource_groups WHERE subscription_key = ?1 ORDER BY name_key"
        );
        self.rows("resource group", sql, [subscription.to_ascii_lowercase()], rows::resource_group)
    }

    pub fn resource_group(
        &self,
        subscription: &str,
        name: &str,
    ) -> Result<Option<ResourceGroupRecord>, StoreError> {
        let sql = &format!(
            "SELECT {RESOURCE_GROUP} FROM resource_groups WHERE subscription_key = ?1 AND name_key = ?2"
        );
        let keys = [subscription.to_ascii_lowercase(), name.to_ascii_lowercase()];
        self.row("resource group", sql, keys, rows::resource_group)
    }

    /// The activity log, the newest first; `after` is the number of the last one seen.
    pub fn activity(&self, after: Option<u64>, limit: usize) -> Result<Page<ActivityRecord>, StoreError> {
        let after = after.and_then(|seq| i64::try_from(seq).ok()).unwrap_or(i64::MAX);
        let sql = &format!("SELECT {ACTIVITY} FROM activity WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2");
        let found = self.rows("activity", sql, params![after, one_more(limit)], rows::activity)?;
        Ok(page(found, limit, |record| record.seq.to_string()))
    }
}

/// One behind the page tells whether there is a next.
fn one_more(limit: usize) -> i64 {
    i64::try_from(limit.max(1)).unwrap_or(i64::MAX).saturating_add(1)
}

fn page<T>(mut items: Vec<T>, limit: usize, place: impl Fn(&T) -> String) -> Page<T> {
    let limit = limit.max(1);
    let more = items.len() > limit;
    items.truncate(limit);
    Page { next: items.last().filter(|_| more).map(place), items }
}

/// `<microseconds>.<run id>`.
fn run_place(text: &str) -> Option<(i64, String)> {
    let (time, id) = text.split_once('.')?;
    Some((time.parse().ok()?, id.parse::<RunId>().ok()?.to_string()))
}

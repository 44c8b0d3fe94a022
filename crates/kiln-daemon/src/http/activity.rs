//! Who changed what: a row for each change that was made, begun, or refused for the state of things or for who asked.

use axum::http::{Method, StatusCode};

use super::answer::Answer;
use super::path::Query;
use super::route::{OwnRoute, Route};
use crate::daemon::Daemon;
use crate::store::{ActivityRecord, StoreError};

/// A request that changes something.
pub struct Change {
    action: String,
    resource: String,
}

impl Change {
    /// `None` for what only looks, and for what is open to everybody.
    pub fn of(route: &Route, method: &Method, query: &Query) -> Option<Self> {
        let looks = matches!(*method, Method::GET | Method::HEAD)
            || (*route == Route::Own(OwnRoute::Gc) && query.is_set("dryRun").unwrap_or(true));
        (!looks && !route.is_open()).then(|| Self { action: route.action(method), resource: route.scope() })
    }

    /// The row, if how it was answered is worth one.
    pub fn row(self, by: String, answer: &Answer) -> Option<ActivityRecord> {
        let outcome = match answer {
            // Nothing was there to be deleted.
            Ok(response) if response.status() == StatusCode::NO_CONTENT => return None,
            Ok(response) if response.status() == StatusCode::ACCEPTED => "Accepted".to_owned(),
            Ok(_) => "Succeeded".to_owned(),
            Err(error) if error.status == StatusCode::CONFLICT => error.code.clone(),
            Err(_) => return None,
        };
        let at = jiff::Timestamp::now().to_string();
        Some(ActivityRecord { seq: 0, at, by, action: self.action, resource: self.resource, outcome })
    }
}

/// A row that cannot be written fails nothing: what was asked for has happened.
pub async fn append(daemon: &Daemon, row: ActivityRecord) {
    let ActivityRecord { by, action, resource, outcome, .. } = &row;
    tracing::info!(by, action, resource, outcome, "a change");
    let written = daemon.store.write(move |store| store.append_activity(&row)).await;
    if let Err(error) = written.map_err(|error: StoreError| error) {
        tracing::error!("a change is missing in the activity log: {error}");
    }
}

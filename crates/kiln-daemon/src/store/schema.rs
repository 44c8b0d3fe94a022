//! The schema, as numbered steps.
//!
//! Step `n` brings a database of `user_version` n to n + 1, in one transaction with the new number. Steps that have been
//! released never change; a change is a new step. The golden file `schema/golden.sql` shows what all of them make together.
//!
//! Keys are lower case (ARM ids ignore case); what was written first is kept beside them for display. Times are kept as
//! they were given, and as microseconds since 1970 (`…_us`) where rows are ordered or aged by them.

use rusqlite::Connection;

/// `PRAGMA application_id` of Kiln's databases: "KILN".
pub(super) const APPLICATION_ID: i32 = 0x4B49_4C4E;

/// The schema this build knows; `PRAGMA user_version` of its databases.
pub(super) const VERSION: i64 = STEPS.len() as i64;

const STEPS: &[&str] = &[include_str!("schema/1.sql"), include_str!("schema/2.sql")];

/// Brings the database to [`VERSION`]. Returns whether there was none before.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<bool> {
    let tx = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let (_, from) = numbers(&tx)?;
    for (number, step) in (1..).zip(STEPS) {
        if number > from {
            tx.execute_batch(step)?;
        }
    }
    if from < VERSION {
        tx.pragma_update(None, "user_version", VERSION)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    tx.commit()?;
    Ok(from == 0)
}

/// `application_id` and `user_version`.
pub(super) fn numbers(connection: &Connection) -> rusqlite::Result<(i32, i64)> {
    let application = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    Ok((application, connection.pragma_query_value(None, "user_version", |row| row.get(0))?))
}

/// There is nothing in it, not even a table.
pub(super) fn is_empty(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)", [], |row| row.get(0))
}

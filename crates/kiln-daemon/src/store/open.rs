//! Opening the file: what is taken for ours, and what is refused untouched.
//!
//! A database in write-ahead mode lives in two files. Closing it would fold the log into it, so nothing is closed that
//! way before it is known to be ours: the header is read as plain bytes first, then SQLite looks at the whole.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, ffi};

use super::StoreError;
use super::schema::{self, APPLICATION_ID, VERSION};

/// Only another program's transaction is waited for; ours queue.
const BUSY: Duration = Duration::from_secs(5);
/// A log that once grew (a large change, a long snapshot) is cut back to this, bytes.
const LOG_KEPT: i64 = 16 << 20;
/// Prepared statements kept by each connection; the store has about this many.
const STATEMENTS: usize = 64;
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// The writing connection, of an up-to-date database; and whether that was just made.
pub(super) fn writer(path: &Path) -> Result<(Connection, bool), StoreError> {
    let sqlite = |error| StoreError::sqlite(path, error);
    check_header(path)?;
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // Looking leaves no trace: see above.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(sqlite)?;
    // A kiln that was killed may have left its numbers in the log only.
    let (application, found) = schema::numbers(&connection).map_err(sqlite)?;
    if application != APPLICATION_ID && !schema::is_empty(&connection).map_err(sqlite)? {
        return Err(StoreError::Foreign { path: path.to_owned(), what: "another program's" });
    }
    refuse_newer(path, found)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map_err(sqlite)?;

    std::fs::set_permissions(path, Permissions::from_mode(0o600))
        .map_err(StoreError::disk("close to other users", path))?;
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0)).map_err(sqlite)?;
    if mode != "wal" {
        let source = io::Error::other("its file system cannot share memory; use a local disk");
        return Err(StoreError::Disk { act: "keep a log beside", path: path.to_owned(), source });
    }
    connection.pragma_update(None, "synchronous", "full").map_err(sqlite)?;
    connection.pragma_update(None, "journal_size_limit", LOG_KEPT).map_err(sqlite)?;
    let is_new = schema::migrate(&mut connection).map_err(sqlite)?;
    Ok((connection, is_new))
}

/// A reading connection, while the writer's is open.
pub(super) fn reader(path: &Path) -> Result<Connection, StoreError> {
    connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection, StoreError> {
    let sqlite = |error| StoreError::sqlite(path, error);
    // No URIs: a path is a path. One thread at a time uses a connection.
    let connection =
        Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(sqlite)?;
    connection.busy_timeout(BUSY).map_err(sqlite)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true).map_err(sqlite)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false).map_err(sqlite)?;
    connection.pragma_update(None, "foreign_keys", true).map_err(sqlite)?;
    Ok(connection)
}

/// Makes an empty file where there is none; else looks whether this one is ours.
fn check_header(path: &Path) -> Result<(), StoreError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(StoreError::disk("make", folder))?;
    let mut header = Vec::new();
    match File::open(path) {
        Ok(file) => {
            file.take(100).read_to_end(&mut header).map_err(StoreError::disk("read", path))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(StoreError::disk("open", path)(error)),
    }
    if header.is_empty() {
        // SQLite would drop that log: it may be all that is left of somebody's templates.
        if has_log(path) {
            return Err(StoreError::LogWithoutDatabase { path: path.to_owned(), log: log_of(path) });
        }
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(StoreError::disk("create", path))?;
        return Ok(());
    }
    let foreign = |what| Err(StoreError::Foreign { path: path.to_owned(), what });
    if header.len() < 100 || !header.starts_with(MAGIC) {
        return foreign("not SQLite");
    }
    // Offsets 60 and 68 of the header: https://sqlite.org/fileformat2.html, section 1.3.
    let number = |at: usize| i32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (version, application) = (number(60), number(68));
    // Both are 0 until the first transaction has left the log: see above.
    if application != APPLICATION_ID && (application, version) != (0, 0) {
        return foreign("another program's");
    }
    refuse_newer(path, version.into())?;
    // SQLite would read a cut last page as if it ended in zeros. With a log, that page may be written anew from there.
    let length = std::fs::metadata(path).map_err(StoreError::disk("read", path))?.len();
    let page = match u64::from(u16::from_be_bytes([header[16], header[17]])) {
        1 => 65536,
        page => page.max(1),
    };
    if length % page != 0 && !has_log(path) {
        let cut = Some("its last page is cut".to_owned());
        let source = rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), cut);
        return Err(StoreError::Damaged { path: path.to_owned(), source });
    }
    Ok(())
}

fn has_log(path: &Path) -> bool {
    log_of(path).metadata().is_ok_and(|log| log.len() > 0)
}

fn refuse_newer(path: &Path, found: i64) -> Result<(), StoreError> {
    if found > VERSION {
        return Err(StoreError::Newer { path: path.to_owned(), found, known: VERSION });
    }
    Ok(())
}

/// The write-ahead log of a database.
fn log_of(path: &Path) -> PathBuf {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    log.into()
}

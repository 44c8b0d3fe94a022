//! Files that are not what they should be: named, and left as they are.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;

use expect_test::expect_file;
use rusqlite::config::DbConfig;

use super::*;

/// Every file of a folder.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let files =
        entries.map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()));
    // Not content: an empty log, and the index over it that processes share and whoever comes first makes anew.
    files
        .filter(|(name, bytes)| !(name.ends_with("-shm") || name.ends_with("-wal") && bytes.is_empty()))
        .collect()
}

/// Opening fails, twice alike, and changes nothing.
fn refused(path: &Path) -> StoreError {
    let before = contents(path.parent().unwrap());
    let error = Store::open(path).unwrap_err();
    let again = Store::open(path).unwrap_err();
    assert_eq!(error.to_string(), again.to_string());
    assert!(before == contents(path.parent().unwrap()), "it was touched: {error}");
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    error
}

/// A database with something in it, closed.
fn filled(dir: &Path) -> PathBuf {
    let path = dir.join("kiln.db");
    let (connection, _) = open::writer(&path).unwrap();
    let w = Writer::new(&connection, &path);
    connection.execute_batch("BEGIN").unwrap();
    for n in 0..300 {
        w.insert_template(&template(&format!("t{n}"))).unwrap();
        w.insert_run(&run(&id(&format!("t{n}")), n, n.into())).unwrap();
    }
    connection.execute_batch("COMMIT").unwrap();
    path
}

fn raw(path: &Path) -> Connection {
    Connection::open(path).unwrap()
}

#[test]
fn the_schema_is_golden() {
    let desk = Desk::new();
    let mut statement = desk
        .connection
        .prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY tbl_name, type DESC, name")
        .unwrap();
    let parts: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let text = format!("-- user_version {}\n\n{};\n", schema::VERSION, parts.join(";\n\n"));
    expect_file!["../schema/golden.sql"].assert_eq(&text);
}

#[test]
fn its_files_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data/server/kiln.db");
    let store = Store::open(&path).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    for entry in std::fs::read_dir(path.parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    drop(store);
    // As a restored backup may be.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let _store = Store::open(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
}

#[test]
fn a_newer_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = filled(dir.path());
    raw(&path).pragma_update(None, "user_version", schema::VERSION + 1).unwrap();
    let error = refused(&path);
    assert!(matches!(error, StoreError::Newer { found, .. } if found == schema::VERSION + 1), "{error}");

    // The number is in the log only: the newer kiln was killed right after it began.
    let dir = tempfile::tempdir().unwrap();
    let path = filled(dir.path());
    let connection = raw(&path);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
    connection.pragma_update(None, "user_version", schema::VERSION + 1).unwrap();
    drop(connection);
    assert!(contents(dir.path()).contains_key("kiln.db-wal"));
    let error = refused(&path);
    assert!(matches!(error, StoreError::Newer { .. }), "{error}");
}

#[test]
fn what_is_not_ours_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kiln.db");
    for text in [
        "x",
        "hello, I am a text, and I am longer than the header of a database is, which has 100 bytes, you know",
    ] {
        std::fs::write(&path, text).unwrap();
        assert!(matches!(refused(&path), StoreError::Foreign { .. }));
    }
    std::fs::remove_file(&path).unwrap();
    let connection = raw(&path);
    connection.execute_batch("CREATE TABLE bookmarks (x); PRAGMA user_version = 1").unwrap();
    drop(connection);
    assert!(matches!(refused(&path), StoreError::Foreign { what: "another program's", .. }));
    std::fs::remove_file(&path).unwrap();
    let connection = raw(&path);
    connection.execute_batch("CREATE TABLE bookmarks (x)").unwrap();
    drop(connection);
    assert!(matches!(refused(&path), StoreError::Foreign { what: "another program's", .. }));
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Disk { .. })));
}

#[test]
fn a_cut_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = filled(dir.path());
    let whole = std::fs::read(&path).unwrap();
    for length in [200, 4096, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = refused(&path);
        assert!(matches!(error, StoreError::Damaged { .. }), "{length}: {error:?}");
    }
    std::fs::write(&path, &whole[..50]).unwrap();
    assert!(matches!(refused(&path), StoreError::Foreign { .. }));
}

/// Killed in the middle of its first transaction: nothing is in the file but SQLite's own header.
#[test]
fn one_that_was_only_begun_is_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kiln.db");
    raw(&path).pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).unwrap();
    assert!(std::fs::metadata(&path).unwrap().len() > 0);
    assert!(Store::open(&path).unwrap().is_new());
}

/// SQLite itself would begin a new database and drop the log.
#[test]
fn a_log_is_not_thrown_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = filled(dir.path());
    let connection = raw(&path);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
    connection.execute_batch("DELETE FROM templates").unwrap();
    drop(connection);
    std::fs::write(&path, "").unwrap();
    assert!(matches!(refused(&path), StoreError::LogWithoutDatabase { .. }));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(refused(&path), StoreError::LogWithoutDatabase { .. }));
}

#[tokio::test]
async fn rot_in_the_middle_is_told_when_it_is_met() {
    let dir = tempfile::tempdir().unwrap();
    let path = filled(dir.path());
    let mut bytes = std::fs::read(&path).unwrap();
    let half = bytes.len() / 2;
    bytes[half..].fill(0xAA);
    std::fs::write(&path, bytes).unwrap();
    let store = Store::open(&path).unwrap();
    let error = store.read(|r| r.runs(&RunFilter::default(), None, 1000)).await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
}

#[tokio::test]
async fn another_program_is_waited_for_and_then_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = filled(dir.path());
    let store = Store::open(&path).unwrap();
    let other = raw(&path);
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.write(|w| w.insert_template(&template("new"))).await }
    });
    // Long enough for it to have asked.
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    other.execute_batch("COMMIT").unwrap();
    waiting.await.unwrap().unwrap();

    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    // Not as long as usual.
    store.inner.writer.lock().await.busy_timeout(std::time::Duration::from_millis(50)).unwrap();
    let error = store.write(|w| w.insert_template(&template("newer"))).await.unwrap_err();
    assert!(matches!(error, StoreError::Busy { .. }), "{error:?}");
    assert_eq!(store.read(|r| r.pending_templates()).await.unwrap().len(), 301, "reading goes on");
}

#[tokio::test]
async fn a_full_disk_keeps_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = filled(dir.path());
    let store = Store::open(&path).unwrap();
    let limit = |pages: u32| format!("PRAGMA max_page_count = {pages}");
    store.inner.writer.lock().await.execute_batch(&limit(1)).unwrap();
    let add = |w: &Writer<'_>| (0..1000).try_for_each(|n| w.insert_template(&template(&format!("more{n}"))));
    let error = store.write(add).await.unwrap_err();
    assert!(matches!(error, StoreError::NoRoom { .. }), "{error:?}");
    assert_eq!(store.read(|r| r.pending_templates()).await.unwrap().len(), 300);
    store.inner.writer.lock().await.execute_batch(&limit(1_000_000)).unwrap();
    store.write(add).await.unwrap();
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let error = Store::open(Path::new("/proc/kiln/kiln.db")).unwrap_err();
    assert!(matches!(error, StoreError::Disk { .. }), "{error:?}");
    assert!(error.to_string().contains("/proc/kiln"), "{error}");
}

//! Many callers at once, callers that go away, and a process that is killed.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader};
use std::sync::mpsc;
use std::time::Duration;

use kiln_host::process::{Invocation, Sink, SpawnOptions};

use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("kiln.db")).unwrap();
    (dir, store)
}

async fn count(store: &Store) -> usize {
    store.read(|r| r.pending_templates()).await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_sees_one_moment_and_nobody_waits_for_it() {
    let (_dir, store) = store();
    let (asked, is_asked) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let reading = tokio::spawn({
        let store = store.clone();
        async move {
            let ask = move |r: &Reader<'_>| {
                let before = r.pending_templates()?.len();
                asked.send(()).unwrap();
                may_go_on.recv_timeout(Duration::from_secs(10)).unwrap();
                Ok::<_, StoreError>((before, r.pending_templates()?.len()))
            };
            store.read(ask).await.unwrap()
        }
    });
    tokio::task::spawn_blocking(move || is_asked.recv_timeout(Duration::from_secs(10)).unwrap())
        .await
        .unwrap();
    store.write(|w| w.insert_template(&template("t"))).await.unwrap();
    assert_eq!(count(&store).await, 1);
    go_on.send(()).unwrap();
    assert_eq!(reading.await.unwrap(), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once() {
    let (_dir, store) = store();
    let tasks: Vec<_> = (0..40)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                store.write(move |w| w.insert_template(&template(&format!("t{n}")))).await.unwrap();
                count(&store).await
            })
        })
        .collect();
    for task in tasks {
        assert!(task.await.unwrap() > 0);
    }
    assert_eq!(count(&store).await, 40);
}

#[tokio::test]
async fn what_errs_or_panics_leaves_nothing() {
    let (_dir, store) = store();
    let answer = store
        .write(|w| {
            w.insert_template(&template("t"))?;
            Err::<(), _>(StoreError::Closed)
        })
        .await;
    assert!(matches!(answer, Err(StoreError::Closed)));
    let panics = tokio::spawn({
        let store = store.clone();
        async move {
            let change = |w: &Writer<'_>| -> Result<(), StoreError> {
                w.insert_template(&template("t"))?;
                panic!("on purpose")
            };
            store.write(change).await
        }
    });
    assert!(panics.await.unwrap_err().is_panic());
    assert_eq!(count(&store).await, 0);
    store.write(|w| w.insert_template(&template("t"))).await.unwrap();
}

/// A client that hangs up: what was begun is done whole.
#[tokio::test]
async fn a_caller_that_goes_away_leaves_no_half() {
    let (_dir, store) = store();
    let (begun, has_begun) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let caller = tokio::spawn({
        let store = store.clone();
        async move {
            let change = move |w: &Writer<'_>| {
                w.insert_template(&template("a"))?;
                begun.send(()).unwrap();
                may_go_on.recv_timeout(Duration::from_secs(10)).unwrap();
                w.insert_template(&template("b"))
            };
            store.write(change).await
        }
    });
    tokio::task::spawn_blocking(move || has_begun.recv_timeout(Duration::from_secs(10)).unwrap())
        .await
        .unwrap();
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    go_on.send(()).unwrap();
    // The next one waits for it.
    store.write(|w| w.insert_template(&template("c"))).await.unwrap();
    assert_eq!(count(&store).await, 3);
}

#[tokio::test]
async fn everything_is_there_after_opening_again() {
    let (dir, store) = store();
    assert!(store.is_new());
    store.write(|w| w.insert_template(&template("t"))).await.unwrap();
    assert_eq!(count(&store).await, 1);
    let path = store.path().to_owned();
    drop(store);
    let left: HashSet<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, HashSet::from(["kiln.db".into()]), "a closed database is one file");
    let store = Store::open(&path).unwrap();
    assert!(!store.is_new());
    assert_eq!(count(&store).await, 1);
}

/// Tells which of its pairs are kept, until somebody kills it.
#[tokio::test]
#[ignore = "a part of the next test, which runs it as a process of its own"]
async fn pairs_without_end() {
    let path = Path::new("pairs.db");
    if !path.with_extension("wanted").exists() {
        return;
    }
    let store = Store::open(path).unwrap();
    for n in 0..100_000 {
        store
            .write(move |w| {
                w.insert_template(&template(&format!("{n}-a")))?;
                println!("half {n}");
                w.insert_template(&template(&format!("{n}-b")))
            })
            .await
            .unwrap();
        println!("kept {n}");
    }
}

#[tokio::test]
async fn a_killed_process_leaves_whole_transactions_only() {
    for (round, last) in ["half 0", "kept 3", "half 25", "kept 60"].into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pairs.wanted"), "").unwrap();
        let mut child = Invocation::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::sharing::pairs_without_end", "--ignored", "--nocapture"])
            .current_dir(dir.path())
            .spawn(SpawnOptions { stdout: Sink::Pipe, ..SpawnOptions::default() })
            .unwrap();
        let mut kept = Vec::new();
        for line in BufReader::new(child.take_stdout().unwrap()).lines() {
            let line = line.unwrap();
            if let Some((_, n)) = line.split_once("kept ") {
                kept.push(n.to_owned());
            }
            if line.ends_with(last) {
                child.kill_group();
                break;
            }
        }
        child.wait().await.unwrap();
        let store = Store::open(&dir.path().join("pairs.db")).unwrap();
        let found = store.read(|r| r.pending_templates()).await.unwrap();
        let found: HashSet<String> = found.into_iter().map(|template| template.id.name).collect();
        for n in &kept {
            assert!(found.contains(&format!("{n}-a")), "round {round}: {n} was kept, and is gone");
        }
        for name in &found {
            let (n, _) = name.split_once('-').unwrap();
            assert!(found.contains(&format!("{n}-a")) && found.contains(&format!("{n}-b")), "half of {n}");
        }
        if let Some(n) = last.strip_prefix("kept ") {
            assert!(kept.iter().any(|kept| kept == n), "it ended too early: {kept:?}");
        }
    }
}

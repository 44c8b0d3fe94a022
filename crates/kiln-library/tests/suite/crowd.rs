//! The shelf of checkpoints in a crowd: other processes and threads, some of them killed.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use kiln_host::process::{Child, Invocation, SpawnOptions};
use kiln_library::{Library, LibraryError, Removed};

use crate::checkpoints::{KIB, draft, home, ids, of_key, publish, record, shelve};
use crate::store::{Store, shown, soon};

fn in_tmp(library: &Library) -> usize {
    std::fs::read_dir(library.root().join("tmp")).unwrap().count()
}

fn child(name: &str, store: &Store) -> Child {
    let this = std::env::current_exe().unwrap();
    Invocation::new(this)
        .args(["--exact", &format!("crowd::{name}"), "--ignored"])
        .current_dir(store.dir.path())
        .spawn(SpawnOptions::default())
        .unwrap()
}

async fn appears(path: &Path) {
    for _ in 0..2000 {
        if path.exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} did not appear", path.display());
}

/// Leases what `lease` names, and waits to be killed.
#[tokio::test]
#[ignore = "started by another test"]
async fn lease_in_child() {
    let library = Library::open("library").unwrap();
    let id = std::fs::read_to_string("lease").unwrap();
    let _lease = library.lease_checkpoint(&id).unwrap().unwrap();
    std::fs::write("leased", "").unwrap();
    let _ = soon().sleep(Duration::from_secs(60)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_keeps_what_it_leases_until_it_is_killed() {
    let store = Store::new();
    let library = &store.library;
    let a = shelve(library, "a", None);
    let b = shelve(library, "b", Some(&a));
    std::fs::write(store.dir.path().join("lease"), &b).unwrap();
    let process = child("lease_in_child", &store);
    appears(&store.dir.path().join("leased")).await;
    assert!(library.checkpoints().unwrap().iter().all(|shelved| shelved.in_use));
    assert!(library.lease_checkpoint(&a).unwrap().is_some());
    assert!(matches!(library.remove_checkpoint(&a).unwrap(), Removed::InUse { .. }));
    assert!(library.evict_checkpoints(0).unwrap().ids.is_empty());
    process.kill_group();
    process.wait().await.unwrap();
    assert!(matches!(library.remove_checkpoint(&a).unwrap(), Removed::Gone(gone) if gone.ids == [b, a]));
}

/// Makes a draft, and waits to be killed.
#[tokio::test]
#[ignore = "started by another test"]
async fn draft_in_child() {
    let library = Library::open("library").unwrap();
    let _draft = draft(&library, KIB);
    std::fs::write("drafted", "").unwrap();
    let _ = soon().sleep(Duration::from_secs(60)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_maker_leaves_nothing_on_the_shelf() {
    let store = Store::new();
    let process = child("draft_in_child", &store);
    appears(&store.dir.path().join("drafted")).await;
    Library::open(store.library.root()).unwrap();
    assert_eq!(in_tmp(&store.library), 1, "its maker lives");
    process.kill_group();
    process.wait().await.unwrap();
    Library::open(store.library.root()).unwrap();
    assert!(store.files().is_empty(), "{:?}", store.files());
}

/// Evicts down to what `limit` says, when `go` is there.
#[tokio::test]
#[ignore = "started by another test"]
async fn evict_in_child() {
    let library = Library::open("library").unwrap();
    let limit = std::fs::read_to_string("limit").unwrap().parse().unwrap();
    appears("go".as_ref()).await;
    let evicted = library.evict_checkpoints(limit).unwrap();
    std::fs::write(format!("evicted-{}", std::process::id()), evicted.ids.join("\n")).unwrap();
}

/// Neither takes more than is needed, since each counts what the other takes.
#[tokio::test(flavor = "multi_thread")]
async fn two_processes_evict_no_more_than_one() {
    let store = Store::new();
    let library = &store.library;
    let all: Vec<String> = (0..60).map(|number| shelve(library, &format!("{number}"), None)).collect();
    let each = library.checkpoints().unwrap()[0].bytes_on_disk;
    std::fs::write(store.dir.path().join("limit"), (each * 20).to_string()).unwrap();
    let (first, second) = (child("evict_in_child", &store), child("evict_in_child", &store));
    std::fs::write(store.dir.path().join("go"), "").unwrap();
    let mut evicted = Vec::new();
    for process in [first, second] {
        assert!(process.wait().await.unwrap().success());
        let words = store.dir.path().join(format!("evicted-{}", process.pid()));
        evicted.extend(std::fs::read_to_string(words).unwrap().lines().map(str::to_owned));
    }
    evicted.sort();
    let mut expected = all[..40].to_vec();
    expected.sort();
    assert_eq!(evicted, expected);
    let mut left = all[40..].to_vec();
    left.sort();
    assert_eq!(ids(library), left);
}

/// An asker has a lock for a moment: not the one that a lease needs.
#[test]
fn asking_makes_nobody_miss_what_is_there() {
    let store = Store::new();
    let library = &store.library;
    let id = shelve(library, "a", None);
    let asked = File::open(home(library, &id).join("keys.json")).unwrap();
    asked.try_lock().unwrap();
    let lease = library.lease_checkpoint(&id).unwrap().unwrap();
    // It counts, although the next asker does not see it.
    asked.unlock().unwrap();
    assert!(library.evict_checkpoints(0).unwrap().ids.is_empty());
    drop(lease);

    // Who removes it has the other one: it is not used, and cannot be had.
    let removing = File::open(record(library, &id)).unwrap();
    removing.try_lock().unwrap();
    assert!(!library.checkpoints().unwrap()[0].in_use);
    assert!(library.lease_checkpoint(&id).unwrap().is_none());
    removing.unlock().unwrap();
    assert!(library.lease_checkpoint(&id).unwrap().is_some());
}

/// Those who lease, publish, ask, remove and evict at the same time: whoever got a lease has all its files, whoever
/// publishes finds its parent.
#[test]
fn in_a_crowd_a_lease_is_worth_what_it_says() {
    let store = Store::new();
    let library = &store.library;
    let kept = publish(library, "kept", None);
    let kept_id = kept.manifest().id.clone();
    let end = std::time::Instant::now() + Duration::from_secs(2);
    let going = || std::time::Instant::now() < end;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while going() {
                let one = publish(library, "one", Some(&kept_id));
                let id = one.manifest().id.clone();
                let two = publish(library, "two", Some(&id));
                drop((one, two));
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while going() {
                    let lease = library.lease_checkpoint(&kept_id).unwrap();
                    assert!(lease.is_some(), "missed, although it was there all the time");
                    for found in of_key(library, "two") {
                        let Some(lease) = library.lease_checkpoint(&found.id).unwrap() else { continue };
                        assert_eq!(lease.chain().len(), 3);
                        for link in lease.chain() {
                            let disk = link.path_of(&link.manifest().disks[0]);
                            assert_eq!(disk.metadata().unwrap().len(), 64 * KIB as u64);
                        }
                    }
                }
            });
        }
        scope.spawn(|| {
            while going() {
                library.checkpoints().unwrap();
            }
        });
        scope.spawn(|| {
            while going() {
                library.evict_checkpoints(200 * KIB as u64).unwrap();
                for found in of_key(library, "one") {
                    match library.remove_checkpoint(&found.id) {
                        Ok(_) | Err(LibraryError::NoSuchCheckpoint { .. }) => {}
                        Err(error) => panic!("{}", shown(&error)),
                    }
                }
            }
        });
    });
    for shelved in library.checkpoints().unwrap() {
        assert!(library.lease_checkpoint(&shelved.manifest.id).unwrap().is_some(), "{shelved:?}");
    }
    assert_eq!(in_tmp(library), 0);
    drop(kept);
}

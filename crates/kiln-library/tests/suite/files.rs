//! Inputs from this host's disk.

use kiln_library::{FetchError, InputError};
use kiln_model::run::Fault;

use crate::store::{Store, noise, sha256, shown, want, want_file};

fn cause(error: &InputError) -> &FetchError {
    match error {
        InputError::Download { source, .. } => source,
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_read_once_and_then_lies_on_the_shelf() {
    let store = Store::new();
    let path = store.dir.path().join("set up ü.sh");
    let body = noise(700_000, 30);
    std::fs::write(&path, &body).unwrap();
    let by_address = format!("file://{}/set%20up%20%C3%BC.sh", store.dir.path().display());
    let wants = [want_file(&path), want(&by_address, None), want(&by_address, Some(&body))];
    for answer in store.ensure(&wants).await {
        let stored = answer.unwrap();
        assert_eq!((stored.sha256, stored.size), (sha256(&body), 700_000));
        assert_eq!(std::fs::read(stored.path).unwrap(), body);
    }
    assert_eq!(store.files().len(), 1);
    std::fs::remove_file(&path).unwrap();
    let mut wanted = want_file(&path);
    wanted.sha256 = Some(sha256(&body));
    store.ensure_one(wanted).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_regular_files_are_taken() {
    let store = Store::new();
    let dir = store.dir.path().join("scripts");
    std::fs::create_dir(&dir).unwrap();
    let error = store.ensure_one(want_file(&dir)).await.unwrap_err();
    assert!(
        matches!(cause(&error), FetchError::IsDirectory { .. }) && shown(&error).contains("archive"),
        "{error}"
    );

    let pipe = store.dir.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .unwrap();
    for special in [pipe.as_path(), "/dev/zero".as_ref(), "/dev/null".as_ref()] {
        let error = store.ensure_one(want_file(special)).await.unwrap_err();
        assert!(matches!(cause(&error), FetchError::NotRegular { .. }), "{error}");
        assert_eq!(error.fault(), Fault::Template);
    }
    let error = store.ensure_one(want_file(&dir.join("missing"))).await.unwrap_err();
    assert!(
        matches!(cause(&error), FetchError::Unreadable { .. }) && error.fault() == Fault::Template,
        "{error}"
    );
    assert!(store.retries().is_empty() && store.files().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_another_checksum_is_not_used() {
    let store = Store::new();
    let path = store.dir.path().join("a.sh");
    std::fs::write(&path, "one thing").unwrap();
    let mut wanted = want_file(&path);
    wanted.sha256 = Some(sha256(b"another"));
    let error = store.ensure_one(wanted).await.unwrap_err();
    assert!(matches!(error, InputError::Checksum { .. }) && error.to_string().contains("a.sh"), "{error}");
    assert!(store.files().is_empty());
}

/// `/proc` files say they are empty and are not: what was read is not what was announced.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_what_it_says_is_refused() {
    let store = Store::new();
    let error = store.ensure_one(want_file("/proc/self/status".as_ref())).await.unwrap_err();
    assert!(matches!(cause(&error), FetchError::Changed { .. }), "{error}");
    assert!(store.files().is_empty());
}

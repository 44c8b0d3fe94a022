//! What only a process of its own can show: being killed, and the environment.
//!
//! The test binary starts itself. What the child needs to know lies in files of its working folder, since only settings
//! modules read the environment.

use std::path::Path;
use std::time::Duration;

use kiln_host::process::{Invocation, SpawnOptions};
use kiln_library::Library;
use kiln_model::run::Fault;

use crate::server::{Act, Authority, Server, broken_after, head, honest, ok};
use crate::store::{Store, noise, quick, sha256, shown, soon, want};

fn child(name: &str, dir: &Path) -> Invocation {
    let this = std::env::current_exe().unwrap();
    Invocation::new(this).args(["--exact", &format!("processes::{name}"), "--ignored"]).current_dir(dir)
}

/// Fetches what `address` and `digest` say into `library`.
#[tokio::test]
#[ignore = "started by other tests"]
async fn fetch_in_child() {
    let library = Library::open("library").unwrap();
    let address = std::fs::read_to_string("address").unwrap();
    let mut wanted = want(&address, None);
    wanted.sha256 = std::fs::read_to_string("digest").ok().map(|digest| digest.parse().unwrap());
    let answers = library.ensure_inputs(&[wanted], &quick(), |_| (), &soon()).await;
    answers[0].as_ref().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_fetch_leaves_nothing_published_and_is_gone_on_with() {
    const HALF: usize = 3 << 20;
    let store = Store::new();
    let body = noise(HALF * 2, 40);
    let server = Server::start({
        let body = body.clone();
        move |request| match request.number {
            0 => {
                let mut acts = broken_after(&body, HALF, "\"v1\"");
                acts.push(Act::Hang);
                acts
            }
            _ => honest(request, &body, "\"v1\""),
        }
    })
    .await;
    let address = server.url("/big.tar");
    std::fs::write(store.dir.path().join("address"), &address).unwrap();
    std::fs::write(store.dir.path().join("digest"), sha256(&body).to_string()).unwrap();
    let process = child("fetch_in_child", store.dir.path()).spawn(SpawnOptions::default()).unwrap();
    // It has begun when half of it is on the disk.
    for _ in 0..1000 {
        let there = || {
            Some(
                std::fs::read_dir(store.library.root().join("tmp"))
                    .ok()?
                    .flatten()
                    .filter_map(|entry| entry.metadata().ok())
                    .map(|metadata| metadata.len())
                    .max()?
                    >= HALF as u64,
            )
        };
        if there() == Some(true) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    process.kill_group();
    process.wait().await.unwrap();
    assert!(!store.files().iter().any(|file| file.starts_with("inputs")), "{:?}", store.files());
    assert_eq!(store.only_part().metadata().unwrap().len(), HALF as u64);

    // A library that is opened meanwhile keeps it.
    Library::open(store.library.root()).unwrap();
    let stored = store.ensure_one(want(&address, Some(&body))).await.unwrap();
    assert_eq!(std::fs::read(&stored.path).unwrap(), body);
    let seen = server.seen();
    assert_eq!((seen.len(), seen[1].range()), (2, Some(HALF)));
    assert_eq!(store.files(), [format!("inputs/sha256/{}", stored.sha256)]);
}

/// A torn part: the disk was not as far as its length says.
#[tokio::test(flavor = "multi_thread")]
async fn a_spoiled_part_costs_a_fetch_and_nothing_else() {
    let mut store = Store::new();
    store.settings.attempts = 1;
    let body = noise(4 << 20, 41);
    let server = Server::start({
        let body = body.clone();
        move |request| match request.number {
            0 => broken_after(&body, 2 << 20, "\"v1\""),
            _ => honest(request, &body, "\"v1\""),
        }
    })
    .await;
    let wanted = want(&server.url("/a"), Some(&body));
    store.ensure_one(wanted.clone()).await.unwrap_err();
    let part = store.only_part();
    let mut spoiled = std::fs::read(&part).unwrap();
    let middle = spoiled.len() / 2;
    spoiled[middle] ^= 1;
    std::fs::write(&part, spoiled).unwrap();
    let stored = store.ensure_one(wanted).await.unwrap();
    assert_eq!(std::fs::read(stored.path).unwrap(), body);
    assert_eq!(server.hits(), 3);
    assert_eq!(store.files().len(), 1, "{:?}", store.files());
}

/// All of it had arrived when the process died: nothing is asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn a_complete_part_needs_no_request() {
    let mut store = Store::new();
    store.settings.attempts = 1;
    let body = noise(4 << 20, 42);
    let server = Server::start({
        let body = body.clone();
        move |_| broken_after(&body, 2 << 20, "\"v1\"")
    })
    .await;
    let wanted = want(&server.url("/a"), Some(&body));
    store.ensure_one(wanted.clone()).await.unwrap_err();
    std::fs::write(store.only_part(), &body).unwrap();
    assert_eq!(store.ensure_one(wanted).await.unwrap().size, body.len() as u64);
    assert_eq!(server.hits(), 1);
}

/// On a disk of 4 MiB.
#[tokio::test]
#[ignore = "started by another test"]
async fn fetch_onto_a_full_disk() {
    let library = Library::open("library").unwrap();
    let address = std::fs::read_to_string("address").unwrap();
    let answers = library.ensure_inputs(&[want(&address, None)], &quick(), |_| (), &soon()).await;
    let error = answers[0].as_ref().unwrap_err();
    assert_eq!(error.fault(), Fault::Host, "{}", shown(error));
    assert!(
        shown(error).contains("No space left") && shown(error).contains("library/tmp"),
        "{}",
        shown(error)
    );
    assert!(std::fs::read_dir("library/tmp").unwrap().next().is_none());
}

/// The server does not say how much it will be; the disk finds out.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_the_hosts_fault_and_not_tried_again() {
    let store = Store::new();
    let server = Server::start(|_| vec![head("200 OK", &[]), Act::Endless]).await;
    std::fs::write(store.dir.path().join("address"), server.url("/a")).unwrap();
    let run = child("fetch_onto_a_full_disk", store.dir.path());
    let small = Invocation::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-ec"])
        .arg("mount -t tmpfs -o size=4m tmpfs library; exec \"$@\"")
        .arg("sh")
        .arg(run.program())
        .args(run.arguments())
        .current_dir(store.dir.path());
    small.run(&soon()).await.unwrap();
    assert_eq!(server.hits(), 1);
}

/// The host's trust store is chosen as for other tools: by SSL_CERT_FILE.
#[tokio::test(flavor = "multi_thread")]
async fn ssl_cert_file_is_the_trust_store() {
    let store = Store::new();
    let authority = Authority::new();
    let server = Server::start_tls(&authority, |_| ok(b"safe")).await;
    std::fs::write(store.dir.path().join("address"), server.url("/a")).unwrap();
    let pem = store.dir.path().join("ca.pem");
    for (contents, trusted) in
        [(authority.pem.clone(), true), (Authority::new().pem, false), (String::new(), false)]
    {
        std::fs::write(&pem, contents).unwrap();
        let child = child("fetch_in_child", store.dir.path()).env("SSL_CERT_FILE", &pem);
        assert_eq!(child.run(&soon()).await.is_ok(), trusted);
    }
    assert_eq!(server.hits(), 1);
}

/// A host without any trusted certificate still fetches by http.
#[tokio::test(flavor = "multi_thread")]
async fn http_needs_no_trust_store() {
    let store = Store::new();
    let server = Server::start(|_| ok(b"plain")).await;
    std::fs::write(store.dir.path().join("address"), server.url("/a")).unwrap();
    let none = store.dir.path().join("none.pem");
    std::fs::write(&none, "").unwrap();
    let child = child("fetch_in_child", store.dir.path());
    child
        .env("SSL_CERT_FILE", &none)
        .env("SSL_CERT_DIR", store.dir.path().join("nowhere"))
        .run(&soon())
        .await
        .unwrap();
}

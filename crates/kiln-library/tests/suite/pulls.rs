//! Images of the catalog from servers that are not always at their best.

use std::sync::Mutex;
use std::time::Duration;

use kiln_library::{FetchError, ImageError, ImageOrigin, ImageProgress, Imported};
use kiln_model::catalog::{
    Arch, CatalogEntry, CatalogSource, Checksum, ChecksumAlgorithm, DiskFormat, Generation, Login, Os,
    ServedName,
};
use kiln_model::run::Fault;
use sha2::Digest as _;

use crate::images::{bootable, qcow2_of};
use crate::server::{Act, Request, Server, answer, broken_after, head, honest, ok, redirect, status};
use crate::store::{Store, noise, qemu_img, sha256, shown, soon};

pub fn entry(addresses: &[String], checksum: Checksum, version: Option<&str>) -> CatalogEntry {
    CatalogEntry {
        name: "mini-1".to_owned(),
        platform: vec![ServedName {
            publisher: "Mini".to_owned(),
            offer: "mini".to_owned(),
            sku: "1".to_owned(),
            generation: None,
        }],
        os: Os::Linux,
        generations: vec![Generation::V2],
        arch: Arch::X86_64,
        login: Login::CloudInit,
        format: DiskFormat::Qcow2,
        source: CatalogSource::Url {
            addresses: addresses.to_vec(),
            checksum,
            version: version.map(str::to_owned),
        },
    }
}

async fn pull(store: &Store, entry: &CatalogEntry) -> Result<Imported, ImageError> {
    store.library.pull(entry, &store.settings, &qemu_img(), &|_| (), &soon()).await
}

fn sums(server: &Server, algorithm: ChecksumAlgorithm) -> Checksum {
    Checksum::File { addresses: vec![server.url("/SUMS")], algorithm }
}

/// Large enough that a broken transfer is worth going on with.
fn image(store: &Store) -> Vec<u8> {
    let mut disk = bootable(8 << 20);
    disk[1 << 20..5 << 20].copy_from_slice(&noise(4 << 20, 50));
    std::fs::read(qcow2_of(store, &disk)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn checksum_files_of_all_kinds_are_understood() {
    let store = Store::new();
    let body = image(&store);
    let (hex, hex512) = (sha256(&body).to_string(), kiln_host::digest::hex(&sha2::Sha512::digest(&body)));
    let cases = [
        (format!("{hex} *mini.qcow2\n{} *other.qcow2\n", "0".repeat(64)), ChecksumAlgorithm::Sha256),
        (format!("# mini.qcow2: 1 byte\nSHA256 (mini.qcow2) = {hex}\n"), ChecksumAlgorithm::Sha256),
        (format!("{hex512}  mini.qcow2\n"), ChecksumAlgorithm::Sha512),
    ];
    for (number, (text, algorithm)) in cases.into_iter().enumerate() {
        let server = Server::start({
            let body = body.clone();
            move |request| {
                if request.target == "/SUMS" { ok(text.as_bytes()) } else { honest(request, &body, "\"v1\"") }
            }
        })
        .await;
        let version = format!("1.{number}");
        let entry = entry(&[server.url("/mini.qcow2")], sums(&server, algorithm), Some(&version));
        let pulled = pull(&store, &entry).await.unwrap();
        assert_eq!((pulled.image.sha256, pulled.image.virtual_size), (sha256(&body), 8 << 20));
        assert_eq!(pulled.image.generations, [Generation::V2], "the catalog's word");
        assert_eq!(std::fs::read(&pulled.image.path).unwrap(), body);
        assert_eq!(server.hits(), 2);
        let again = pull(&store, &entry).await.unwrap();
        assert!(again.was_there() && again.image == pulled.image);
        assert_eq!(server.hits(), 3, "only the checksum file is asked for again");
    }
    assert_eq!(store.library.images().unwrap().len(), 3);
    assert!(std::fs::read_dir(store.library.root().join("tmp")).unwrap().next().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn several_addresses_and_a_broken_line() {
    let store = Store::new();
    let body = image(&store);
    let server = Server::start({
        let body = body.clone();
        move |request: &Request| match (request.target.as_str(), request.number) {
            ("/gone/mini.qcow2", _) => status("404 Not Found"),
            ("/liar/mini.qcow2", _) => ok(b"<html>Welcome to the hotel's network</html>"),
            ("/moved/mini.qcow2", _) => redirect("/real/mini.qcow2?token=CANARY"),
            (_, 3) => broken_after(&body, 2 << 20, "\"v1\""),
            _ => honest(request, &body, "\"v1\""),
        }
    })
    .await;
    let addresses: Vec<String> =
        ["gone", "liar", "moved"].iter().map(|place| server.url(&format!("/{place}/mini.qcow2"))).collect();
    let entry = entry(&addresses, Checksum::Sha256(sha256(&body)), Some("1.0"));
    let news = Mutex::new(Vec::new());
    let tell = |item: ImageProgress| news.lock().unwrap().push(item);
    let pulled = store.library.pull(&entry, &store.settings, &qemu_img(), &tell, &soon()).await.unwrap();
    assert_eq!(pulled.image.sha256, sha256(&body));
    let seen = server.seen();
    let paths: Vec<_> = seen.iter().map(|request| request.target.split('/').nth(1).unwrap()).collect();
    assert_eq!(paths, ["gone", "liar", "moved", "real", "moved", "real"]);
    assert!(seen[5].range().is_some());
    let ImageOrigin::Pulled { address, .. } = store.library.record("mini-1", "1.0").unwrap().origin else {
        panic!()
    };
    assert_eq!(address, server.url("/real/mini.qcow2?<redacted>"));
    let news = news.into_inner().unwrap();
    let retries: Vec<_> = news.iter().filter(|item| matches!(item, ImageProgress::Retrying { .. })).collect();
    assert_eq!(retries.len(), 3, "{retries:?}");
    let total = body.len() as u64;
    assert!(news.iter().any(|item| matches!(item, ImageProgress::Downloading { done, total: Some(all) } if *done == total && *all == total)));
    assert!(!format!("{news:?}").contains("CANARY"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moving_address_gets_a_version_from_the_server() {
    let store = Store::new();
    let (old, new) = (image(&store), std::fs::read(qcow2_of(&store, &bootable(4 << 20))).unwrap());
    let same_time = [("Last-Modified", "Wed, 21 Aug 2024 14:30:59 GMT")];
    for (body, version) in [(&old, "20240821.1430"), (&new, "20240821.1430.1")] {
        let server = Server::start({
            let body = body.clone();
            move |request| match request.target.as_str() {
                "/SUMS" => ok(format!("{}  mini.qcow2", sha256(&body)).as_bytes()),
                _ => answer("200 OK", &same_time, &body),
            }
        })
        .await;
        let entry =
            entry(&[server.url("/latest/mini.qcow2")], sums(&server, ChecksumAlgorithm::Sha256), None);
        assert_eq!(pull(&store, &entry).await.unwrap().image.version, version);
        assert!(pull(&store, &entry).await.unwrap().was_there());
        assert_eq!(server.hits(), 3);
    }
    let images = store.library.images().unwrap();
    assert_eq!(images.last().unwrap().sha256, sha256(&new), "the newest is last");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_moves_between_checksum_and_file() {
    let store = Store::new();
    let body = image(&store);
    let server = Server::start({
        let body = body.clone();
        move |request| match (request.target.as_str(), request.number) {
            ("/SUMS", 0) => ok(format!("{}  mini.qcow2", sha256(b"yesterday's")).as_bytes()),
            ("/SUMS", _) => ok(format!("{}  mini.qcow2", sha256(&body)).as_bytes()),
            _ => honest(request, &body, "\"v2\""),
        }
    })
    .await;
    let entry = entry(&[server.url("/mini.qcow2")], sums(&server, ChecksumAlgorithm::Sha256), None);
    assert_eq!(pull(&store, &entry).await.unwrap().image.sha256, sha256(&body));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_not_stored() {
    let mut store = Store::new();
    store.settings.attempts = 2;
    store.settings.stall_timeout = Duration::from_millis(300);
    store.settings.least_rate = 1000;
    let server = Server::start(|request| match request.target.as_str() {
        "/SUMS" => ok(format!("{}  mini.qcow2", sha256(b"the right one")).as_bytes()),
        "/EMPTY" => ok(b""),
        "/ENDLESS" => vec![head("200 OK", &[]), Act::Endless],
        "/short/mini.qcow2" => vec![head("200 OK", &[("Content-Length", "99")]), Act::Send(b"half".to_vec())],
        "/slow/mini.qcow2" => vec![head("200 OK", &[]), Act::Drip(vec![0; 9999], Duration::from_millis(20))],
        "/page/mini.qcow2" => ok(b"<!DOCTYPE html><html></html>"),
        _ => ok(b"the wrong one"),
    })
    .await;
    let at = |place: &str, checksum: Checksum| entry(&[server.url(place)], checksum, Some("1.0"));
    let right = || sums(&server, ChecksumAlgorithm::Sha256);

    let error = pull(&store, &at("/wrong/mini.qcow2", right())).await.unwrap_err();
    assert!(
        matches!(&error, ImageError::Fetch { source, .. } if matches!(**source, FetchError::WrongDigest { .. })),
        "{}",
        shown(&error)
    );
    let error = pull(&store, &at("/short/mini.qcow2", right())).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Remote, "{}", shown(&error));
    let error = pull(&store, &at("/slow/mini.qcow2", right())).await.unwrap_err();
    assert!(
        matches!(&error, ImageError::Fetch { source, .. } if matches!(**source, FetchError::Stalled { .. })),
        "{}",
        shown(&error)
    );
    let none = Checksum::File { addresses: vec![server.url("/EMPTY")], algorithm: ChecksumAlgorithm::Sha256 };
    let error = pull(&store, &at("/wrong/mini.qcow2", none)).await.unwrap_err();
    assert!(matches!(error, ImageError::NoChecksum { .. }), "{}", shown(&error));
    let endless =
        Checksum::File { addresses: vec![server.url("/ENDLESS")], algorithm: ChecksumAlgorithm::Sha256 };
    let error = pull(&store, &at("/wrong/mini.qcow2", endless)).await.unwrap_err();
    assert!(shown(&error).contains("longer than"), "{}", shown(&error));
    // Right by its digest, and still no disk.
    let page = Checksum::Sha256(sha256(b"<!DOCTYPE html><html></html>"));
    let error = pull(&store, &at("/page/mini.qcow2", page)).await.unwrap_err();
    assert!(
        matches!(&error, ImageError::Refused { reason, .. } if reason.contains("web page")),
        "{}",
        shown(&error)
    );

    assert!(store.files().is_empty(), "{:?}", store.files());
    let mut recipe = at("/", right());
    recipe.source = CatalogSource::Recipe { folder: "mini".to_owned() };
    let error = pull(&store, &recipe).await.unwrap_err();
    assert!(error.to_string().contains("kiln images build mini-1"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_taken_by_another_file_is_refused_before_anything_is_fetched() {
    let store = Store::new();
    let body = image(&store);
    let server = Server::start({
        let body = body.clone();
        move |request| honest(request, &body, "\"v1\"")
    })
    .await;
    let address = [server.url("/mini.qcow2")];
    pull(&store, &entry(&address, Checksum::Sha256(sha256(&body)), Some("1.0"))).await.unwrap();
    let other = entry(&address, Checksum::Sha256(sha256(b"other")), Some("1.0"));
    let error = pull(&store, &other).await.unwrap_err();
    assert!(error.to_string().contains("kiln images remove mini-1 1.0"), "{error}");
    assert_eq!(server.hits(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_pull_the_same_fetch_it_once() {
    let store = Store::new();
    let body = image(&store);
    let server = Server::start({
        let body = body.clone();
        move |request| {
            let mut acts = vec![Act::Pause(Duration::from_millis(200))];
            acts.extend(honest(request, &body, "\"v1\""));
            acts
        }
    })
    .await;
    let entry = entry(&[server.url("/mini.qcow2")], Checksum::Sha256(sha256(&body)), None);
    let (one, two) = tokio::join!(pull(&store, &entry), pull(&store, &entry));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert!(one.image == two.image && one.was_there() != two.was_there());
    assert_eq!(server.hits(), 1);
    assert!(std::fs::read_dir(store.library.root().join("tmp")).unwrap().next().is_none());
}

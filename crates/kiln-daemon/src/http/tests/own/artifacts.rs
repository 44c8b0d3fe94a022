use std::fs::File;
use std::os::unix::fs::FileExt as _;

use axum::body::Body;
use axum::http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use kiln_model::run::RunState;
use tower::ServiceExt as _;

use super::Server;

/// A server with a run `out` of that many bytes; its first and last ones are `first` and `last`, all else is a hole.
async fn with_artifact(size: u64) -> (Server, String) {
    let server = Server::open().await;
    let run = server.add_run("t1", 1, RunState::Succeeded).await;
    server.add_output(&run, "out", size).await;
    let folder = server.artifacts_of(&run.id);
    std::fs::create_dir_all(&folder).unwrap();
    let file = File::create(folder.join("out.vhd")).unwrap();
    file.set_len(size).unwrap();
    file.write_all_at(b"first", 0).unwrap();
    file.write_all_at(b"last", size - 4).unwrap();
    std::fs::write(folder.join("out.json"), "{\"format\":1}\n").unwrap();
    std::fs::write(folder.join("secret"), "secret").unwrap();
    (server, format!("/kiln/artifacts/{}/out.vhd", run.id))
}

async fn ask(server: &Server, method: Method, path: &str, headers: &[(&str, &str)]) -> super::super::Seen {
    let mut request = server.request(method, path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    server.send(request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn an_artifact_comes_whole_and_in_parts() {
    let (server, path) = with_artifact(1000).await;
    let whole = server.get(&path).await;
    assert_eq!(whole.status, StatusCode::OK);
    assert_eq!(whole.text.len(), 1000);
    assert!(whole.text.starts_with("first\0") && whole.text.ends_with("\0last"));
    let etag = whole.header("etag").to_owned();
    assert_eq!(etag, format!("\"{}\"", kiln_host::digest::hex(&kiln_host::digest::sha256(b"out"))));
    assert_eq!(whole.header("content-length"), "1000");
    assert_eq!(whole.header("accept-ranges"), "bytes");
    assert_eq!(whole.header("content-type"), "application/octet-stream");
    assert_eq!(whole.header("content-disposition"), "attachment; filename=\"out.vhd\"");
    let modified = whole.header("last-modified").to_owned();

    let head = server.ask(Method::HEAD, &path).await;
    assert_eq!(
        (head.header("content-length"), head.header("etag"), head.text.as_str()),
        ("1000", etag.as_str(), "")
    );

    for (headers, status, text, range) in [
        (&[("range", "bytes=0-4")][..], 206, "first", Some("bytes 0-4/1000")),
        (&[("range", "bytes=-4")], 206, "last", Some("bytes 996-999/1000")),
        (&[("range", "bytes=998-")], 206, "st", Some("bytes 998-999/1000")),
        (&[("range", "bytes=998-"), ("if-range", &etag)], 206, "st", Some("bytes 998-999/1000")),
        (&[("range", "bytes=1000-")], 416, "", Some("bytes */1000")),
        (&[("if-none-match", &etag)], 304, "", None),
        (&[("if-modified-since", &modified)], 304, "", None),
        (&[("if-match", "\"other\"")], 412, "", None),
    ] {
        let seen = ask(&server, Method::GET, &path, headers).await;
        assert_eq!((seen.status.as_u16(), seen.text.as_str()), (status, text), "{headers:?}");
        assert_eq!(
            seen.headers.get("content-range").map(|value| value.to_str().unwrap()),
            range,
            "{headers:?}"
        );
        assert_eq!(seen.header("etag"), etag, "{headers:?}");
    }
    // A part of another version would be spliced to ours: the whole comes.
    let other = ask(&server, Method::GET, &path, &[("range", "bytes=0-4"), ("if-range", "\"other\"")]).await;
    assert_eq!((other.status.as_u16(), other.text.len()), (200, 1000));
}

#[tokio::test]
async fn only_what_a_record_names_is_there() {
    let (server, path) = with_artifact(1000).await;
    let folder = path.trim_end_matches("out.vhd");
    let record = server.get(&format!("{folder}out.json")).await;
    assert_eq!((record.status.as_u16(), record.text.as_str()), (200, "{\"format\":1}\n"));
    assert_eq!(record.header("content-type"), "application/json");
    for (name, status) in [
        ("secret", 404),
        ("OUT.VHD", 404),
        ("", 404),
        ("..%2f..%2fserver%2fkiln.db", 400),
        ("..", 400),
        ("%2e%2e/server/kiln.db", 400),
        ("out.vhd/x", 404),
        ("out.vhd%00", 400),
    ] {
        let seen = server.get(&format!("{folder}{name}")).await;
        assert_eq!(seen.status.as_u16(), status, "{name}: {seen:?}");
    }
    let stranger = server.get("/kiln/artifacts/20260102T030405Z-t1-000000/out.vhd").await;
    assert_eq!(stranger.code(), "ArtifactNotFound");

    // A worker owns the folder: what it put in the artifact's place is not followed.
    let run = path.split('/').nth(3).unwrap();
    let file = server.daemon.paths.artifacts().join(run).join("out.vhd");
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(server.daemon.paths.database(), &file).unwrap();
    let link = server.get(&path).await;
    assert_eq!(link.code(), "ArtifactDamaged");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(server.get(&path).await.code(), "ArtifactRemoved");
    std::fs::write(&file, "short").unwrap();
    assert_eq!(server.get(&path).await.code(), "ArtifactDamaged");
}

#[tokio::test]
async fn thirty_gigabytes_of_holes_are_streamed_from_nowhere() {
    const SIZE: u64 = (30 << 30) + 512;
    let (server, path) = with_artifact(SIZE).await;
    let tail = ask(&server, Method::GET, &path, &[("range", "bytes=-4")]).await;
    assert_eq!(tail.text, "last");

    let request = server.request(Method::GET, &path).body(Body::empty()).unwrap();
    let mut body = server.router.clone().oneshot(request).await.unwrap().into_body();
    let (mut received, mut end) = (0, Vec::new());
    while let Some(frame) = body.frame().await {
        let bytes = frame.unwrap().into_data().unwrap();
        assert!(bytes.len() <= 256 << 10, "{} bytes in one piece", bytes.len());
        received += bytes.len() as u64;
        end = bytes[bytes.len().saturating_sub(4)..].to_vec();
    }
    assert_eq!((received, end.as_slice()), (SIZE, &b"last"[..]));
}

#[tokio::test]
async fn an_artifact_that_shrinks_is_not_taken_for_whole() {
    let (server, path) = with_artifact(2 << 20).await;
    let address = server.listen().await;
    let run = path.split('/').nth(3).unwrap();
    let file = server.daemon.paths.artifacts().join(run).join("out.vhd");
    // Data throughout: it is read piece by piece.
    std::fs::write(&file, vec![7; 2 << 20]).unwrap();
    let mut open = super::Open::get(address, &path, &[]).await;
    let mut received = open.next().await.unwrap().unwrap().len();
    File::options().write(true).open(&file).unwrap().set_len(1).unwrap();
    let mut broken = false;
    while let Some(bytes) = open.next().await {
        match bytes {
            Ok(bytes) => received += bytes.len(),
            Err(_) => {
                broken = true;
                break;
            }
        }
    }
    // All that was sent before the file shrank may have been the whole of it.
    assert!(broken || received == 2 << 20, "an end after {received} bytes");
}

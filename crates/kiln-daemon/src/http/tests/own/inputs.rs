use axum::body::Body;
use axum::http::Method;
use kiln_host::digest::{hex, sha256};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::Server;

async fn put(server: &Server, path: &str, body: &'static str) -> super::super::Seen {
    server.send(server.request(Method::PUT, path).body(Body::from(body)).unwrap()).await
}

fn left(server: &Server) -> (usize, usize) {
    let count = |path: &str| {
        std::fs::read_dir(server.daemon.paths.library().join(path)).map_or(0, |entries| entries.count())
    };
    (count("inputs/sha256"), count("tmp"))
}

#[tokio::test]
async fn an_input_is_kept_under_the_digest_it_has() {
    let server = Server::open().await;
    let path = format!("/kiln/inputs/{}", hex(&sha256(b"hello")));
    let absent = server.ask(Method::HEAD, &path).await;
    assert_eq!((absent.status.as_u16(), absent.text.as_str()), (404, ""));
    assert_eq!(server.get(&path).await.code(), "InputNotFound");

    let wrong = put(&server, &path, "jello").await;
    assert_eq!((wrong.status.as_u16(), wrong.code()), (400, "ChecksumMismatch".to_owned()));
    assert_eq!(left(&server), (0, 0));

    let stored = put(&server, &path.to_uppercase().replace("/KILN/INPUTS", "/Kiln/Inputs"), "hello").await;
    assert_eq!((stored.status.as_u16(), stored.json()["size"].clone()), (201, 5.into()));
    assert_eq!(server.get(&path).await.json(), stored.json());
    assert_eq!(server.ask(Method::HEAD, &path).await.status.as_u16(), 200);
    // It is there: what is sent now is not looked at.
    assert_eq!(put(&server, &path, "anything").await.status.as_u16(), 200);
    assert_eq!(left(&server), (1, 0));
    for bad in ["/kiln/inputs/abc", "/kiln/inputs/..%2f..%2fx"] {
        assert!(matches!(server.get(bad).await.status.as_u16(), 400 | 404), "{bad}");
    }
}

#[tokio::test]
async fn a_torn_upload_leaves_nothing() {
    let server = Server::open().await;
    let address = server.listen().await;
    let path = format!("/kiln/inputs/{}", hex(&sha256(b"hello")));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhel");
    stream.write_all(head.as_bytes()).await.unwrap();
    let tmp = server.daemon.paths.library().join("tmp");
    let parts = || std::fs::read_dir(&tmp).map_or(0, |entries| entries.count());
    let until = async |wanted: usize| {
        while parts() != wanted {
            // The server works on its own time; the test's own bound is below.
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let bound = std::time::Duration::from_secs(10);
    tokio::time::timeout(bound, until(1)).await.expect("the upload begins");
    drop(stream);
    tokio::time::timeout(bound, until(0)).await.expect("what came is removed");
    assert_eq!(left(&server), (0, 0));
}

#[tokio::test]
async fn an_input_over_the_limit_is_refused_unread() {
    let server = Server::open().await;
    let address = server.listen().await;
    let path = format!("/kiln/inputs/{}", hex(&sha256(b"hello")));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = crate::http::inputs::MAX_INPUT + 1;
    let head = format!(
        "PUT {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer);
    tokio::time::timeout(std::time::Duration::from_secs(10), read).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert_eq!(left(&server), (0, 0));
}

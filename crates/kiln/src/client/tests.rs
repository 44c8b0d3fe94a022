//! The client against servers that misbehave.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kiln_model::Sha256;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::progress::transfer::Transfers;
use crate::ui::{ColorWishes, Printer};

/// What a connection gets: bytes as they are; it is closed behind them.
type Reply = Vec<u8>;

/// A server on a socket that answers each connection's one request with the next reply.
struct Server {
    folder: tempfile::TempDir,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(replies: Vec<Reply>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&requests);
        tokio::spawn(async move {
            for reply in replies {
                let (stream, _) = listener.accept().await.unwrap();
                let request = answer(stream, &reply).await;
                heard.lock().unwrap().push(request);
            }
        });
        Self { folder, requests }
    }

    fn link(&self) -> Link {
        Link::socket(&self.socket(), None).unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    fn client(&self) -> Client {
        let scope = Scope { subscription: "s".into(), resource_group: "g".into(), location: "here".into() };
        Client { link: self.link(), scope }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

async fn answer(mut stream: UnixStream, reply: &[u8]) -> String {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => request.extend_from_slice(&buffer[..count]),
        }
    }
    let _ = stream.write_all(reply).await;
    let _ = stream.shutdown().await;
    String::from_utf8_lossy(&request).to_ascii_lowercase()
}

fn reply(status: &str, headers: &str, body: &[u8]) -> Reply {
    let head =
        format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn ok(body: &str) -> Reply {
    reply("200 OK", "", body.as_bytes())
}

/// A connection that is lost after the request.
fn nothing() -> Reply {
    Vec::new()
}

/// Fewer bytes than announced.
fn torn(mut reply: Reply, bytes: usize) -> Reply {
    reply.truncate(reply.len() - bytes);
    reply
}

#[tokio::test]
async fn a_read_is_repeated_when_a_server_that_answered_is_gone_for_a_moment() {
    let server = Server::start(vec![ok("{}"), nothing(), nothing(), ok(r#"{"a":1}"#)]);
    let client = server.client();
    client.get("/first").await.unwrap();
    assert_eq!(client.get("/second").await.unwrap()["a"], 1);
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test]
async fn a_first_contact_is_not_insisted_on() {
    let server = Server::start(vec![nothing()]);
    let error = server.client().get("/").await.unwrap_err();
    assert!(matches!(error, ClientError::Broken { .. }), "{error}");

    let gone = Link::socket(Path::new("/nonexistent/socket"), None).unwrap();
    let error = gone.send(&Ask::get("/")).await.err().unwrap();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("/nonexistent/socket"), "{error}");
}

#[tokio::test]
async fn a_change_that_may_have_arrived_is_not_repeated() {
    let server = Server::start(vec![ok("{}"), nothing(), ok("{}")]);
    let client = server.client();
    client.get("/first").await.unwrap();
    let error = client.change(&Ask::new(Method::POST, "/run")).await.unwrap_err();
    assert!(matches!(error, ClientError::Broken { .. }), "{error}");
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn a_busy_server_is_asked_again_when_it_says() {
    let server = Server::start(vec![reply("503 Service Unavailable", "Retry-After: 1\r\n", b""), ok("{}")]);
    server.client().get("/").await.unwrap();
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn what_a_server_refuses_is_said_in_its_words() {
    let body = br#"{"error":{"code":"ResourceNotFound","message":"not here"}}"#;
    let server = Server::start(vec![reply("404 Not Found", "", body), reply("409 Conflict", "", b"<html>")]);
    let client = server.client();
    let error = client.get("/").await.unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(error.to_string(), "ResourceNotFound: not here");
    let error = client.get("/").await.unwrap_err();
    assert!(!error.is_not_found());
    assert_eq!(error.to_string(), "the server answered 409 without saying why");
}

#[tokio::test]
async fn a_list_has_all_its_pages_whatever_name_the_server_has() {
    let page = |items: &str, next: &str| ok(&format!(r#"{{"value":[{items}]{next}}}"#));
    let server = Server::start(vec![
        page("1,2", r#","nextLink":"https://another.name:1/list?$skipToken=x""#),
        page("3", r#","nextLink":null"#),
    ]);
    assert_eq!(server.client().list("/list".into()).await.unwrap(), [1, 2, 3]);
    assert!(server.requests()[1].starts_with("get /list?$skiptoken=x "), "{:?}", server.requests());
}

#[tokio::test]
async fn an_operation_is_polled_to_its_end() {
    let accepted = reply(
        "202 Accepted",
        "Azure-AsyncOperation: https://another.name/operations/1?api-version=2020-02-14\r\nRetry-After: 1\r\n",
        b"",
    );
    let server = Server::start(vec![
        accepted,
        reply("200 OK", "Retry-After: 1\r\n", br#"{"status":"InProgress"}"#),
        ok(r#"{"status":"Failed","error":{"code":"PackerBuildFailed","message":"why"}}"#),
    ]);
    let client = server.client();
    let (pending, body) = client.change(&Ask::new(Method::POST, "/run")).await.unwrap();
    assert_eq!(body, Value::Null);
    let mut ticks = 0;
    let ended = client.wait(&pending.unwrap(), || ticks += 1).await.unwrap();
    assert_eq!(ended, Operation::Failed("PackerBuildFailed".into(), "why".into()));
    assert_eq!(ticks, 2);
    assert!(server.requests()[1].starts_with("get /operations/1?api-version=2020-02-14 "));
}

#[tokio::test]
async fn a_stream_goes_on_where_it_broke() {
    let part = |body: &str| {
        torn(reply("200 OK", "Content-Type: text/event-stream\r\n", (body.to_owned() + "xxxx").as_bytes()), 4)
    };
    let server = Server::start(vec![
        part("id: 3\ndata: one\n\nid: 9\ndata: tw"),
        part(":\n\n"),
        part("id: 9\ndata: two\n\nevent: end\nid: end\ndata: {}\n\n"),
    ]);
    let link = server.link();
    let mut stream = Stream::new(&link, "/log".into());
    let mut seen = Vec::new();
    loop {
        let event = stream.next().await.unwrap();
        seen.push(event.data.clone());
        if event.name == "end" {
            break;
        }
    }
    assert_eq!(seen, ["one", "two", "{}"]);
    let requests = server.requests();
    let last_id = |at: usize| requests[at].lines().find_map(|line| line.strip_prefix("last-event-id: "));
    assert_eq!([last_id(0), last_id(1)], [None, Some("3")]);
}

/// Downloads `bytes` from a server that answers so; what is there then, and how it ended.
async fn downloaded(
    replies: Vec<Reply>,
    bytes: &[u8],
) -> (Option<Vec<u8>>, Result<(), ClientError>, Vec<String>) {
    let server = Server::start(replies);
    let printer = Printer::new(ColorWishes::default());
    let wanted = Download {
        path: "/kiln/artifacts/r/a.vhd".into(),
        to: server.folder.path().join("a.vhd"),
        size: bytes.len() as u64,
        sha256: Sha256::from_bytes(kiln_host::digest::sha256(bytes)),
    };
    let done = download(&server.client(), 0, &wanted, &Transfers::new(&printer, true)).await;
    let left: Vec<_> = std::fs::read_dir(server.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != "s" && name != "a.vhd")
        .collect();
    assert!(left.is_empty(), "{left:?}");
    (std::fs::read(&wanted.to).ok(), done, server.requests())
}

const TAG: &str = "ETag: \"t\"\r\n";

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() {
    let bytes: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    let half = bytes.len() / 2;
    let rest = format!("{TAG}Content-Range: bytes {half}-{}/{}\r\n", bytes.len() - 1, bytes.len());
    let replies = vec![
        torn(reply("200 OK", TAG, &bytes), bytes.len() - half),
        reply("206 Partial Content", &rest, &bytes[half..]),
    ];
    let (there, done, requests) = downloaded(replies, &bytes).await;
    done.unwrap();
    assert!(there.unwrap() == bytes);
    assert!(requests[1].contains(&format!("range: bytes={half}-\r\n")), "{}", requests[1]);
    assert!(requests[1].contains("if-range: \"t\"\r\n"), "{}", requests[1]);
}

#[tokio::test]
async fn a_file_that_changed_meanwhile_is_fetched_anew() {
    let bytes = vec![5; 300_000];
    let replies = vec![torn(reply("200 OK", TAG, &[6; 300_000]), 40_000), reply("200 OK", TAG, &bytes)];
    let (there, done, _) = downloaded(replies, &bytes).await;
    done.unwrap();
    assert!(there.unwrap() == bytes);
}

#[tokio::test]
async fn what_is_not_what_it_should_be_does_not_appear() {
    let bytes = vec![5; 100_000];
    for wrong in [vec![6; 100_000], vec![5; 100_001], vec![5; 99_999]] {
        let (there, done, _) = downloaded(vec![reply("200 OK", "", &wrong)], &bytes).await;
        assert!(there.is_none() && done.is_err(), "{done:?}");
    }
}

#[test]
fn names_cannot_leave_their_segment() {
    assert_eq!(encode("a-b_c.d~e"), "a-b_c.d~e");
    assert_eq!(encode("../x?y#z&a=b c/é"), "..%2Fx%3Fy%23z%26a%3Db%20c%2F%C3%A9");
}

#[test]
fn only_the_path_of_an_address_counts() {
    for (address, path) in [
        ("https://other:1/a/b?x=y", Ok("/a/b?x=y")),
        ("https://other/a", Ok("/a")),
        ("/a?b", Ok("/a?b")),
        ("nonsense", Err(())),
    ] {
        assert_eq!(path_of(address), path.map(str::to_owned), "{address}");
    }
}

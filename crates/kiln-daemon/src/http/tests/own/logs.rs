use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use axum::http::Method;
use kiln_build::journal::Journal;
use kiln_build::run_dir::{REQUEST_FORMAT, RunDir, RunRequest};
use kiln_host::lock::FileLock;
use kiln_model::event::{EVENTS_FORMAT, RunEventKind};
use kiln_model::run::RunState;

use super::{Open, Server};
use crate::config::Config;

const SSE: (&str, &str) = ("accept", "text/event-stream");
const BOUND: Duration = Duration::from_secs(20);

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// Waits for what the server does on its own time.
async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let wait = async {
        while !is() {
            // What is asked are files and descriptors, which tell nobody.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(BOUND, wait).await.unwrap_or_else(|_| panic!("{what} within {BOUND:?}"));
}

/// How often this process has the file open.
fn open_count(path: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    links
        .filter(|link| {
            link.as_ref().is_ok_and(|link| std::fs::read_link(link.path()).is_ok_and(|to| to == path))
        })
        .count()
}

/// `(id, name, data)` of each whole event.
fn events(text: &str) -> Vec<(String, String, String)> {
    let whole = text.rfind("\n\n").map_or("", |end| &text[..end]);
    let event = |block: &str| {
        let field = |name: &str| {
            let lines = block.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            lines.collect::<Vec<_>>().join("\n")
        };
        (field("id"), field("event"), field("data"))
    };
    whole.split("\n\n").filter(|block| block.contains("id: ")).map(event).collect()
}

#[tokio::test]
async fn a_log_is_followed_until_its_run_ends() {
    let server = Server::open().await;
    let address = server.listen().await;
    let run = server.add_run("t1", 1, RunState::Running).await;
    let log = server.run_folder(&run.id).join("customization.log");
    // It is asked for before there is one.
    let mut plain = Open::get(address, &server.log_path(&run, "log"), &[]).await;
    assert_eq!(plain.response.status(), 200);
    assert_eq!(plain.response.headers()["content-type"], "text/plain; charset=utf-8");
    assert_eq!(plain.response.headers()["x-content-type-options"], "nosniff");
    assert_eq!(plain.response.headers()["kiln-run-id"], *run.id.as_str());
    append(&log, "one\nhal");
    assert_eq!(plain.next().await.unwrap().unwrap(), b"one\nhal", "bytes as they are");
    append(&log, "f\n");
    assert_eq!(plain.next().await.unwrap().unwrap(), b"f\n");
    append(&log, "the last\n");
    server.end(&run, RunState::Failed).await;
    assert_eq!(plain.until_end().await, b"the last\n", "and an end");
    // After the end it is a file like any other.
    let whole = server.get(&server.log_path(&run, "log")).await;
    assert_eq!(whole.text, "one\nhalf\nthe last\n");
    let rest = server.get(&server.log_path(&run, "log?offset=4")).await;
    assert_eq!(rest.text, "half\nthe last\n");
    let latest = server.get("B/imageTemplates/T1/runs/Latest/log").await;
    assert_eq!((latest.text.as_str(), latest.header("kiln-run-id")), (whole.text.as_str(), run.id.as_str()));
}

#[tokio::test]
async fn a_run_that_is_followed_tells_its_watchers() {
    let server = Server::open().await;
    let run = server.add_run("t1", 1, RunState::Running).await;
    let dir = RunDir::open(&server.run_folder(&run.id)).unwrap();
    let request = RunRequest {
        format: REQUEST_FORMAT,
        run_id: run.id.clone(),
        output_dir: server.artifacts_of(&run.id),
        keep_on_error: false,
        library: server.daemon.paths.library(),
        operation: Some(run.operation.clone()),
        transcript: false,
        checkpoints: None,
    };
    dir.write_request(&request).unwrap();
    let Server { daemon, router, folder } = server;
    drop(router);
    daemon.shutdown().await;
    drop(daemon);
    // Its worker lives on: the next server finds it by its lock, and follows it.
    let lock = FileLock::try_exclusive(dir.lock()).unwrap().unwrap();
    let server = Server::at(folder, Config::default()).await;
    assert!(server.daemon.runs.subscribe(&run.id).is_some());
    let status = server.get("/kiln/status").await.json();
    assert_eq!(status["runs"]["active"], 1, "{status:#}");

    let address = server.listen().await;
    let mut log = Open::get(address, &server.log_path(&run, "log"), &[SSE]).await;
    let events_of = Open::get(address, &server.log_path(&run, "events"), &[]).await;
    let journal = Journal::open(&dir.events()).unwrap();
    journal.append(RunEventKind::RunStarted {
        format: EVENTS_FORMAT,
        run_id: run.id.to_string(),
        template_name: "t1".to_owned(),
        template_sha256: kiln_model::Sha256::from_bytes([0; 32]),
        source: "none".to_owned(),
        kiln_version: "0".to_owned(),
        attempt: 1,
    });
    for number in 0..3 {
        append(&dir.customization_log(), &format!("line {number}\n"));
        let seen = String::from_utf8(log.next().await.unwrap().unwrap()).unwrap();
        assert_eq!(
            events(&seen),
            [(((number + 1) * 7).to_string(), String::new(), format!("line {number}"))]
        );
    }
    let end =
        RunEventKind::RunEnded { state: RunState::Failed, message: "no".to_owned(), failure: None, ms: 1 };
    journal.append(end);
    drop(lock);
    // The end comes from what the worker wrote: nobody touched the row.
    let last = events(&String::from_utf8(log.until_end().await).unwrap());
    assert_eq!(last, [("end".to_owned(), "end".to_owned(), "{\"state\":\"Failed\"}".to_owned())]);
    assert_eq!(events_of.until_end().await, std::fs::read(dir.events()).unwrap());
}

#[tokio::test]
async fn an_event_source_that_comes_back_loses_and_doubles_nothing() {
    let server = Server::open().await;
    let address = server.listen().await;
    let run = server.add_run("t1", 1, RunState::Running).await;
    let log = server.run_folder(&run.id).join("customization.log");
    let lines: Vec<String> =
        (0..400).map(|number| format!("line {number} {}", "x".repeat(number % 60))).collect();
    let path = server.log_path(&run, "log");
    let writing = {
        let lines = lines.clone();
        tokio::spawn(async move {
            for line in lines {
                // Torn, as a writer's lines may be seen.
                let (start, end) = line.split_at(line.len() / 2);
                append(&log, start);
                tokio::task::yield_now().await;
                append(&log, &format!("{end}\n"));
                // A guest prints over time: the watcher is to catch up in between.
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
            append(&log, "no end");
        })
    };
    let mut seen = Vec::new();
    let mut last_id = String::new();
    let mut connections = 0;
    let end = 'run: loop {
        connections += 1;
        let headers = [SSE, ("last-event-id", last_id.as_str())];
        let mut open = Open::get(address, &path, &headers).await;
        assert_eq!(open.response.headers()["content-type"], "text/event-stream");
        let mut text = String::new();
        // A few frames, then the line is cut.
        for _ in 0..2 {
            let Some(frame) = open.next().await else { break };
            text.push_str(&String::from_utf8(frame.unwrap()).unwrap());
            if writing.is_finished() && seen.len() + events(&text).len() >= lines.len() {
                server.end(&run, RunState::Succeeded).await;
                while let Some(frame) = open.next().await {
                    text.push_str(&String::from_utf8(frame.unwrap()).unwrap());
                }
            }
        }
        for (id, name, data) in events(&text) {
            if name == "end" {
                assert_eq!(id, "end");
                break 'run data;
            }
            last_id = id;
            seen.push(data);
        }
    };
    assert!(connections > 2, "{connections} connections");
    assert_eq!(end, r#"{"state":"Succeeded"}"#);
    let mut expected = lines;
    expected.push("no end".to_owned());
    assert_eq!(seen, expected);

    // Whoever has seen the end is told not to come back.
    let again = Open::get(address, &path, &[SSE, ("last-event-id", "end")]).await;
    assert_eq!(again.response.status(), 204);
    let bad = Open::get(address, &path, &[SSE, ("last-event-id", "x")]).await;
    assert_eq!(bad.response.status(), 400);
}

#[tokio::test]
async fn two_hundred_watchers_see_everything_and_leave_nothing() {
    let server = Server::open().await;
    let address = server.listen().await;
    let run = server.add_run("t1", 1, RunState::Running).await;
    let log = server.run_folder(&run.id).join("customization.log");
    append(&log, "before\n");
    let path = server.log_path(&run, "log");
    let watchers = (0..200).map(|_| async { Open::get(address, &path, &[]).await });
    let mut watchers = futures_util::future::join_all(watchers).await;
    for watcher in &mut watchers {
        assert_eq!(watcher.next().await.unwrap().unwrap(), b"before\n");
    }
    // Half of them go away in the middle.
    watchers.truncate(100);
    until("those who went away have let go of the log", || open_count(&log) <= 100).await;
    let piece = "y".repeat(1 << 20) + "\n";
    append(&log, &piece);
    server.end(&run, RunState::Succeeded).await;
    let ends = watchers.into_iter().map(|watcher| tokio::spawn(watcher.until_end()));
    for end in futures_util::future::join_all(ends).await {
        assert!(end.unwrap() == piece.as_bytes());
    }
    until("the log is closed", || open_count(&log) == 0).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_one_piece() {
    let server = Server::open().await;
    let address = server.listen().await;
    let run = server.add_run("t1", 1, RunState::Running).await;
    let log = server.run_folder(&run.id).join("customization.log");
    append(&log, &"z".repeat(64 << 20));
    let slow = Open::get(address, &server.log_path(&run, "log"), &[]).await;
    // The connection's buffers fill up; then nothing more is read of the log.
    let position = || -> u64 {
        let io = std::fs::read_to_string("/proc/self/io").unwrap();
        io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
    };
    let mut before = position();
    until("reading stops", || {
        // That nothing happens has no event: a while without any read is the sign.
        std::thread::sleep(Duration::from_millis(100));
        let now = position();
        let read = now - before;
        before = now;
        read < 1 << 20
    })
    .await;
    // Had the server read on, the client would still get what is gone now.
    OpenOptions::new().write(true).open(&log).unwrap().set_len(0).unwrap();
    server.end(&run, RunState::Canceled).await;
    let received = slow.until_end().await.len();
    assert!(received < 32 << 20, "{received} bytes were read for a client that takes none");
}

#[tokio::test]
async fn events_are_whole_lines() {
    let server = Server::open().await;
    let address = server.listen().await;
    let run = server.add_run("t1", 1, RunState::Running).await;
    let file = server.run_folder(&run.id).join("events.jsonl");
    append(&file, "{\"seq\":0}\n{\"seq\":");
    let mut open = Open::get(address, &server.log_path(&run, "events"), &[]).await;
    assert_eq!(open.response.headers()["content-type"], "application/x-ndjson");
    assert_eq!(open.next().await.unwrap().unwrap(), b"{\"seq\":0}\n", "not the torn one");
    // Its worker died in it; the next one cuts it off and writes its own.
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(10).unwrap();
    append(&file, "{\"seq\":1,\"next\":true}\n{\"torn");
    server.end(&run, RunState::Failed).await;
    let rest = String::from_utf8(open.until_end().await).unwrap();
    assert_eq!(rest, "{\"seq\":1,\"next\":true}\n");
    let sse = Open::get(address, &server.log_path(&run, "events"), &[SSE]).await.until_end().await;
    let sse = events(&String::from_utf8(sse).unwrap());
    assert_eq!(sse[0], ("10".to_owned(), String::new(), "{\"seq\":0}".to_owned()));
    assert_eq!(sse[2], ("end".to_owned(), "end".to_owned(), "{\"state\":\"Failed\"}".to_owned()));
}

#[tokio::test]
async fn logs_of_all_kinds_and_their_absence() {
    let server = Server::open().await;
    let run = server.add_run("t1", 1, RunState::Running).await;
    for name in ["customization.log", "validation.log"] {
        let seen = server.get(&server.log_path(&run, name)).await;
        assert_eq!((seen.status.as_u16(), seen.code()), (404, "LogNotFound".to_owned()), "{name}");
        assert!(seen.text.contains(name), "{}", seen.text);
    }
    let folder = server.run_folder(&run.id);
    append(&folder.join("customization.log"), "0123456789");
    append(&folder.join("validation.log"), "fine\n");
    let path = server.log_path(&run, "customization.log");
    assert_eq!(server.get(&path).await.text, "0123456789", "as it is now, though the run goes on");
    let part = server.request(Method::GET, &path).header("range", "bytes=2-3");
    let part = server.send(part.body(axum::body::Body::empty()).unwrap()).await;
    assert_eq!((part.status.as_u16(), part.text.as_str()), (206, "23"));
    assert_eq!(server.get(&server.log_path(&run, "validation.log")).await.text, "fine\n");
    // Not waiting is possible, too.
    assert_eq!(server.get(&server.log_path(&run, "log?follow=false")).await.text, "0123456789");
    let head = server.ask(Method::HEAD, &server.log_path(&run, "log")).await;
    assert_eq!((head.status.as_u16(), head.text.as_str()), (200, ""));
    for (query, status) in [("follow=maybe", 400), ("offset=-1", 400), ("offset=x", 400), ("offset=11", 416)]
    {
        let seen = server.get(&server.log_path(&run, &format!("log?{query}"))).await;
        assert_eq!(seen.status.as_u16(), status, "{query}");
    }
    // The worker owns the folder: a link is not followed.
    let other = server.add_run("t2", 1, RunState::Failed).await;
    std::os::unix::fs::symlink(
        server.daemon.paths.database(),
        server.run_folder(&other.id).join("customization.log"),
    )
    .unwrap();
    let link = server.get(&server.log_path(&other, "customization.log")).await;
    assert_eq!(link.status.as_u16(), 500, "{link:?}");
    assert!(!link.text.contains("SQLite"));
}

#[tokio::test]
async fn a_server_that_shuts_down_ends_its_streams_in_their_own_way() {
    let server = Server::open().await;
    let run = server.add_run("t1", 1, RunState::Running).await;
    append(&server.run_folder(&run.id).join("customization.log"), "one\n");
    let closing = tokio_util::sync::CancellationToken::new();
    let ask = |accept: &'static str| {
        let request = server.request(Method::GET, &server.log_path(&run, "log"));
        let request = request.header("accept", accept).extension(crate::serve::Closing(closing.clone()));
        let answer = tower::ServiceExt::oneshot(
            server.router.clone(),
            request.body(axum::body::Body::empty()).unwrap(),
        );
        async move {
            let mut body = answer.await.unwrap().into_body();
            let first = http_body_util::BodyExt::frame(&mut body).await.unwrap().unwrap();
            assert!(String::from_utf8_lossy(first.data_ref().unwrap()).contains("one"));
            body
        }
    };
    let (mut plain, mut sse) = (ask("*/*").await, ask("text/event-stream").await);
    closing.cancel();
    // The run goes on: that it has ended must not be read out of it.
    let broken = tokio::time::timeout(BOUND, http_body_util::BodyExt::frame(&mut plain)).await.unwrap();
    assert!(broken.unwrap().is_err());
    let ended = tokio::time::timeout(BOUND, http_body_util::BodyExt::frame(&mut sse)).await.unwrap();
    assert!(ended.is_none());
}

//! Inputs from servers that break off, lie, change their minds or say no.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kiln_host::wait::{Control, Interrupted};
use kiln_library::{FetchError, InputError, InputProgress, Library};
use kiln_model::run::Fault;

use crate::server::{Act, Server, answer, broken_after, head, honest, ok, redirect, rest, status};
use crate::store::{Store, noise, sha256, shown, soon, want};

const BIG: usize = 3 << 20;

fn cause(error: &InputError) -> &FetchError {
    match error {
        InputError::Download { source, .. } => source,
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_the_shelf_needs_no_network() {
    let store = Store::new();
    let body = noise(1000, 1);
    let server = Server::start({
        let body = body.clone();
        move |_| ok(&body)
    })
    .await;
    let stored = store.ensure_one(want(&server.url("/a.sh"), Some(&body))).await.unwrap();
    assert_eq!((stored.sha256, stored.size), (sha256(&body), 1000));
    assert_eq!(std::fs::read(&stored.path).unwrap(), body);
    assert_eq!(store.files(), [format!("inputs/sha256/{}", stored.sha256)]);
    drop(server);
    // Another name for the same bytes, at a place where nobody listens.
    let again = store.ensure_one(want("http://127.0.0.1:1/b.sh", Some(&body))).await.unwrap();
    assert_eq!(again, stored);
    let progress = store.progress.lock().unwrap();
    assert!(matches!(progress.last(), Some(InputProgress::Present { input: 0, .. })), "{progress:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_checksum_it_is_fetched_each_time() {
    let store = Store::new();
    let server = Server::start(|request| ok(format!("version {}", request.number).as_bytes())).await;
    for number in 0..2 {
        let stored = store.ensure_one(want(&server.url("/a"), None)).await.unwrap();
        assert_eq!(std::fs::read_to_string(stored.path).unwrap(), format!("version {number}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_file_is_a_file() {
    let store = Store::new();
    let server = Server::start(|_| ok(b"")).await;
    let stored = store.ensure_one(want(&server.url("/empty"), Some(b""))).await.unwrap();
    assert_eq!(stored.size, 0);
    let unannounced = Server::start(|_| vec![head("200 OK", &[])]).await;
    assert_eq!(store.ensure_one(want(&unannounced.url("/empty"), None)).await.unwrap().size, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_address_is_fetched_once_and_each_digest_once() {
    let store = Store::new();
    let body = noise(50_000, 2);
    let server = Server::start({
        let body = body.clone();
        move |_| ok(&body)
    })
    .await;
    let (a, b) = (server.url("/a"), server.url("/b"));
    let wants = [want(&a, Some(&body)), want(&b, Some(&body)), want(&a, None), want(&a, Some(&body))];
    let answers = store.ensure(&wants).await;
    assert!(answers.iter().all(|answer| answer.as_ref().unwrap().sha256 == sha256(&body)));
    assert_eq!(server.hits(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_one_address_fails_another_of_the_same_digest_serves() {
    let store = Store::new();
    let body = noise(5000, 3);
    let server = Server::start({
        let body = body.clone();
        move |request| if request.target == "/gone" { status("404 Not Found") } else { ok(&body) }
    })
    .await;
    let wants = [want(&server.url("/gone"), Some(&body)), want(&server.url("/here"), Some(&body))];
    let answers = store.ensure(&wants).await;
    assert!(matches!(cause(answers[0].as_ref().unwrap_err()), FetchError::Status { status: 404, .. }));
    assert_eq!(answers[1].as_ref().unwrap().size, 5000);
}

#[tokio::test(flavor = "multi_thread")]
async fn four_at_a_time() {
    let store = Store::new();
    let server = Server::start(|request| {
        let mut acts = vec![Act::Pause(Duration::from_millis(100))];
        acts.extend(ok(request.target.as_bytes()));
        acts
    })
    .await;
    let wants: Vec<_> = (0..12).map(|number| want(&server.url(&format!("/{number}")), None)).collect();
    let answers = store.ensure(&wants).await;
    for (number, answer) in answers.iter().enumerate() {
        let text = std::fs::read_to_string(&answer.as_ref().unwrap().path).unwrap();
        assert_eq!(text, format!("/{number}"));
    }
    assert_eq!(server.most_at_once(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_transfer_goes_on_where_it_broke() {
    let store = Store::new();
    let body = noise(BIG, 4);
    for digest_known in [true, false] {
        let server = Server::start({
            let body = body.clone();
            move |request| match request.number {
                0 => broken_after(&body, BIG / 2, "\"v1\""),
                _ => honest(request, &body, "\"v1\""),
            }
        })
        .await;
        let known = digest_known.then_some(body.as_slice());
        let address = server.url(if digest_known { "/known" } else { "/unknown" });
        let wanted = want(&address, known);
        let stored = store.ensure_one(wanted).await.unwrap();
        assert_eq!(stored.sha256, sha256(&body));
        let seen = server.seen();
        assert_eq!(seen.len(), 2);
        assert!(seen[1].range().is_some_and(|first| first > 0 && first <= BIG / 2), "{seen:?}");
        assert_eq!(seen[1].header("if-range"), Some("\"v1\""));
        std::fs::remove_file(stored.path).unwrap();
    }
    assert!(store.files().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ranges_is_asked_for_everything_again() {
    let store = Store::new();
    let body = noise(BIG, 5);
    let server = Server::start({
        let body = body.clone();
        move |request| match request.number {
            0 => broken_after(&body, BIG / 2, "\"v1\""),
            // It does not know what a range is.
            _ => answer("200 OK", &[("ETag", "\"v1\"")], &body),
        }
    })
    .await;
    let stored = store.ensure_one(want(&server.url("/a"), Some(&body))).await.unwrap();
    assert_eq!(std::fs::read(stored.path).unwrap(), body);
    assert_eq!(server.hits(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_cannot_be_had_or_is_another_one_is_not_spliced() {
    for lie in 0..4 {
        let store = Store::new();
        let body = noise(BIG, 6);
        let server = Server::start({
            let body = body.clone();
            move |request| match (request.number, request.range(), lie) {
                (0, _, _) => broken_after(&body, BIG / 2, "\"v1\""),
                (_, Some(_), 0) => status("416 Range Not Satisfiable"),
                // From the beginning, though called partial.
                (_, Some(_), 1) => rest(&body, 0, "\"v1\""),
                // Without saying which part.
                (_, Some(first), 2) => answer("206 Partial Content", &[("ETag", "\"v1\"")], &body[first..]),
                (_, Some(_), _) => status("400 Bad Request"),
                _ => answer("200 OK", &[], &body),
            }
        })
        .await;
        // Nothing but care protects a file without a digest.
        let location = want(&server.url("/a"), None);
        let mut known = location.clone();
        known.sha256 = (lie % 2 == 0).then(|| sha256(&body));
        let stored = store.ensure_one(known).await.unwrap();
        assert_eq!(stored.sha256, sha256(&body), "lie {lie}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_between_two_ranges_is_fetched_whole() {
    let (old, new) = (noise(BIG, 7), noise(BIG, 8));
    // (does the server honour If-Range, does it name the new version, is the digest known)
    for (honours, names, known) in [
        (true, true, true),
        (true, true, false),
        (false, true, true),
        (false, true, false),
        (false, false, true),
        (false, false, false),
    ] {
        let store = Store::new();
        let server = Server::start({
            let (old, new) = (old.clone(), new.clone());
            move |request| match (request.number, request.range()) {
                (0, _) => broken_after(&old, BIG / 2, "\"v1\""),
                (_, Some(_)) if honours => honest(request, &new, "\"v2\""),
                (_, Some(first)) if names => rest(&new, first, "\"v2\""),
                (_, Some(first)) => {
                    let range = format!("bytes {first}-{}/{}", new.len() - 1, new.len());
                    answer("206 Partial Content", &[("Content-Range", &range)], &new[first..])
                }
                _ => answer("200 OK", &[("ETag", "\"v2\"")], &new),
            }
        })
        .await;
        let stored = store.ensure_one(want(&server.url("/a"), known.then_some(&new))).await.unwrap();
        assert_eq!(stored.sha256, sha256(&new), "{honours} {names} {known}");
        assert!(server.hits() <= 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_its_length_is_fetched_whole() {
    let (old, new) = (noise(BIG, 9), noise(BIG + 100, 10));
    let store = Store::new();
    let server = Server::start({
        let (old, new) = (old.clone(), new.clone());
        move |request| match (request.number, request.range()) {
            (0, _) => broken_after(&old, BIG / 2, "\"same\""),
            (_, Some(first)) => rest(&new, first, "\"same\""),
            _ => answer("200 OK", &[("ETag", "\"same\"")], &new),
        }
    })
    .await;
    let stored = store.ensure_one(want(&server.url("/a"), None)).await.unwrap();
    assert_eq!(stored.sha256, sha256(&new));
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_passes() {
    let store = Store::new();
    let server = Server::start(|request| match request.number {
        0 => status("500 Internal Server Error"),
        1 => status("503 Service Unavailable"),
        2 => status("429 Too Many Requests"),
        // Hangs up without a word.
        3 => vec![],
        4 => vec![Act::Send(b"HTTP/1.1 200 O".to_vec())],
        5 => vec![Act::Send(b"\x16\x03\x01 what?\r\n\r\n".to_vec())],
        6 => status("408 Request Timeout"),
        _ => ok(b"at last"),
    })
    .await;
    let address = server.url("/setup.sh?sig=CANARY");
    let stored = store.ensure_one(want(&address, None)).await.unwrap();
    assert_eq!(std::fs::read(stored.path).unwrap(), b"at last");
    let retries = store.retries();
    assert_eq!(retries.len(), 7);
    let shown = server.url("/setup.sh?<redacted>");
    let begin = format!("Downloading external file ({shown}) to local file (");
    let end = format!(
        ".0.customizer.fp) [attempt 1 of 10] failed: Error downloading '{shown}': {shown} answered 500 (Internal Server Error)"
    );
    assert!(retries[0].starts_with(&begin) && retries[0].ends_with(&end), "{}", retries[0]);
    assert!(retries.iter().all(|retry| !retry.contains("CANARY")));
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_that_does_not_pass_ends_after_the_attempts() {
    let mut store = Store::new();
    store.settings.attempts = 4;
    let server = Server::start(|_| status("500 Internal Server Error")).await;
    let error = store.ensure_one(want(&server.url("/a"), None)).await.unwrap_err();
    assert_eq!(server.hits(), 4);
    assert!(error.to_string().contains("[attempt 4 of 4]"), "{error}");
    assert_eq!(error.fault(), Fault::Remote);
    assert!(store.files().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_no_is_a_no() {
    for no in ["404 Not Found", "403 Forbidden", "401 Unauthorized", "410 Gone", "400 Bad Request"] {
        let store = Store::new();
        let server = Server::start(move |_| status(no)).await;
        let error = store.ensure_one(want(&server.url("/a"), None)).await.unwrap_err();
        assert_eq!((server.hits(), error.fault()), (1, Fault::Template), "{no}");
        assert!(shown(&error).contains(&no[..3]), "{error}");
        assert!(store.files().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_no_file_are_not_taken_for_one() {
    for strange in ["204 No Content", "206 Partial Content", "304 Not Modified", "300 Multiple Choices"] {
        let mut store = Store::new();
        store.settings.attempts = 2;
        let server = Server::start(move |_| vec![head(strange, &[]), Act::Send(b"x".to_vec())]).await;
        store.ensure_one(want(&server.url("/a"), None)).await.unwrap_err();
        assert!(store.files().is_empty(), "{strange}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_checksum_is_final_and_leaves_nothing() {
    let store = Store::new();
    let server = Server::start(|_| ok(b"not what was meant")).await;
    let wants = [
        want(&server.url("/a?sig=CANARY"), Some(b"what was meant")),
        want(&server.url("/a?sig=CANARY"), Some(b"or this")),
    ];
    let answers = store.ensure(&wants).await;
    assert_eq!(server.hits(), 1);
    for (answer, meant) in answers.iter().zip([&b"what was meant"[..], b"or this"]) {
        let error = answer.as_ref().unwrap_err();
        let InputError::Checksum { expected, actual, .. } = error else { panic!("{error}") };
        assert_eq!((*expected, *actual), (sha256(meant), sha256(b"not what was meant")));
        assert_eq!(error.fault(), Fault::Template);
        assert!(error.to_string().contains(&expected.to_string()) && !shown(error).contains("CANARY"));
    }
    assert!(store.files().is_empty(), "{:?}", store.files());
    // Also when only one digest is wanted, which takes another way.
    store.ensure_one(want(&server.url("/a"), Some(b"what was meant"))).await.unwrap_err();
    assert_eq!(server.hits(), 2);
    assert!(store.files().is_empty(), "{:?}", store.files());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_with_a_right_and_a_wrong_checksum() {
    let store = Store::new();
    let server = Server::start(|_| ok(b"content")).await;
    let url = server.url("/a");
    let answers =
        store.ensure(&[want(&url, Some(b"content")), want(&url, Some(b"other")), want(&url, None)]).await;
    assert!(answers[0].is_ok() && answers[2].is_ok());
    assert!(matches!(answers[1], Err(InputError::Checksum { .. })));
    assert_eq!(server.hits(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_is_too_long_is_not_believed() {
    let mut store = Store::new();
    store.settings.attempts = 3;
    let server =
        Server::start(|_| vec![head("200 OK", &[("Content-Length", "1000")]), Act::Send(vec![b'x'; 900])])
            .await;
    let error = store.ensure_one(want(&server.url("/a"), None)).await.unwrap_err();
    assert_eq!((server.hits(), error.fault()), (3, Fault::Remote), "{}", shown(&error));
    assert!(store.files().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_is_too_short_is_found_by_the_checksum() {
    let store = Store::new();
    let body = noise(1000, 11);
    let server = Server::start({
        let body = body.clone();
        move |_| vec![head("200 OK", &[("Content-Length", "900")]), Act::Send(body.clone())]
    })
    .await;
    let error = store.ensure_one(want(&server.url("/a"), Some(&body))).await.unwrap_err();
    assert!(
        matches!(error, InputError::Checksum { actual, .. } if actual == sha256(&body[..900])),
        "{error}"
    );
    assert!(store.files().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_break_off_are_noticed() {
    let mut store = Store::new();
    store.settings.attempts = 2;
    let server = Server::start(|request| {
        let end: &[u8] = if request.number == 0 { b"" } else { b"0\r\n\r\n" };
        vec![
            head("200 OK", &[("Transfer-Encoding", "chunked")]),
            Act::Send([b"5\r\nhello\r\n", end].concat()),
        ]
    })
    .await;
    let stored = store.ensure_one(want(&server.url("/a"), None)).await.unwrap();
    assert_eq!((std::fs::read(stored.path).unwrap().as_slice(), server.hits()), (&b"hello"[..], 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn drips_are_a_stall() {
    let mut store = Store::new();
    store.settings.attempts = 2;
    store.settings.stall_timeout = Duration::from_millis(300);
    store.settings.least_rate = 1000;
    let server = Server::start(|_| {
        vec![
            head("200 OK", &[("Content-Length", "100000")]),
            Act::Drip(vec![b'x'; 100_000], Duration::from_millis(10)),
        ]
    })
    .await;
    let begin = Instant::now();
    let error = store.ensure_one(want(&server.url("/a"), None)).await.unwrap_err();
    assert!(matches!(cause(&error), FetchError::Stalled { received: 1.., .. }), "{}", shown(&error));
    assert!(begin.elapsed() < Duration::from_secs(5) && server.hits() == 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_line_is_not_a_stall() {
    let mut store = Store::new();
    store.settings.stall_timeout = Duration::from_millis(200);
    store.settings.least_rate = 20;
    let server = Server::start(|_| {
        vec![
            head("200 OK", &[("Content-Length", "60")]),
            Act::Drip(vec![b'x'; 60], Duration::from_millis(10)),
        ]
    })
    .await;
    assert_eq!(store.ensure_one(want(&server.url("/a"), None)).await.unwrap().size, 60);
    assert_eq!(server.hits(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_not_waited_out() {
    let mut store = Store::new();
    store.settings.attempts = 1;
    store.settings.connect_timeout = Duration::from_millis(100);
    store.settings.stall_timeout = Duration::from_millis(200);
    let slow_header = || {
        vec![Act::Drip(
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".repeat(9),
            Duration::from_millis(50),
        )]
    };
    let after_header = || vec![head("200 OK", &[("Content-Length", "5")]), Act::Hang];
    for (script, silent) in
        [(slow_header as fn() -> Vec<Act>, "header"), (|| vec![Act::Hang], "all"), (after_header, "body")]
    {
        let server = Server::start(move |_| script()).await;
        let begin = Instant::now();
        let error = store.ensure_one(want(&server.url("/a"), None)).await.unwrap_err();
        let found = cause(&error);
        assert!(
            matches!(found, FetchError::NoAnswer { .. } | FetchError::Stalled { .. }),
            "{silent}: {found}"
        );
        assert_eq!(matches!(found, FetchError::Stalled { .. }), silent == "body");
        assert!(begin.elapsed() < Duration::from_secs(3));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cancellation_ends_every_wait() {
    let mut store = Store::new();
    store.settings.first_pause = Duration::from_secs(20);
    store.settings.longest_pause = Duration::from_secs(20);
    let scripts: [fn() -> Vec<Act>; 3] = [
        || vec![Act::Hang],
        || vec![head("200 OK", &[("Content-Length", "5")]), Act::Hang],
        // Then it is the pause that is waited in.
        || status("500 Internal Server Error"),
    ];
    for script in scripts {
        let server = Server::start(move |_| script()).await;
        let control = soon();
        let wants = [want(&server.url("/a"), None)];
        let ensured = store.library.ensure_inputs(&wants, &store.settings, |_| (), &control);
        let canceled = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            control.cancel();
            Instant::now()
        };
        let (answers, at) = tokio::join!(ensured, canceled);
        assert!(at.elapsed() < Duration::from_secs(1));
        assert_eq!(answers[0].as_ref().unwrap_err().interrupted(), Some(Interrupted::Canceled));
    }
    assert!(store.files().is_empty());
    let over = Control::ending_in(Duration::ZERO);
    let answers = store
        .library
        .ensure_inputs(&[want("http://127.0.0.1:1/", None)], &store.settings, |_| (), &over)
        .await;
    assert_eq!(answers[0].as_ref().unwrap_err().interrupted(), Some(Interrupted::DeadlinePassed));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_disk_holds_is_not_begun() {
    let store = Store::new();
    let server =
        Server::start(|_| vec![head("200 OK", &[("Content-Length", "1000000000000000000")]), Act::Hang])
            .await;
    let error = store.ensure_one(want(&server.url("/a"), None)).await.unwrap_err();
    assert_eq!((server.hits(), error.fault()), (1, Fault::Host));
    let text = shown(&error);
    assert!(text.contains(&store.library.root().display().to_string()) && text.contains("MiB"), "{text}");
    assert!(store.files().is_empty(), "{:?}", store.files());
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_followed_so_far() {
    let store = Store::new();
    let server = Server::start(|request| {
        let number: u32 = request.target[1..].parse().unwrap();
        // Relative, absolute, and by path.
        match number {
            0 => ok(b"there"),
            odd if odd % 2 == 1 => redirect(&format!("{}", odd - 1)),
            even => redirect(&format!("/{}", even - 1)),
        }
    })
    .await;
    let stored = store.ensure_one(want(&server.url("/10"), None)).await.unwrap();
    assert_eq!((std::fs::read(stored.path).unwrap().as_slice(), server.hits()), (&b"there"[..], 11));
    let error = store.ensure_one(want(&server.url("/11"), None)).await.unwrap_err();
    assert!(matches!(cause(&error), FetchError::TooManyRedirects { limit: 10, .. }), "{error}");
    assert_eq!(server.hits(), 22, "asked once, not ten times");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_to_elsewhere_are_not_followed() {
    for to in ["file:///etc/passwd?CANARY", "ftp://h/CANARY", "gopher:CANARY", "http://[CANARY", ""] {
        let mut store = Store::new();
        store.settings.attempts = 1;
        let server =
            Server::start(move |_| if to.is_empty() { status("302 Found") } else { redirect(to) }).await;
        let error = store.ensure_one(want(&server.url("/a"), None)).await.unwrap_err();
        assert!(
            matches!(cause(&error), FetchError::Redirect { .. } | FetchError::Protocol { .. }),
            "{to}: {error}"
        );
        assert_eq!(server.hits(), 1);
    }
}

/// Two libraries on one root are two processes as far as locks go: each opens its own files.
#[tokio::test(flavor = "multi_thread")]
async fn two_that_want_the_same_digest_fetch_it_once() {
    let store = Store::new();
    let body = noise(BIG, 12);
    let server = Server::start({
        let body = body.clone();
        move |request| {
            let mut acts = vec![Act::Pause(Duration::from_millis(300))];
            acts.extend(honest(request, &body, "\"v1\""));
            acts
        }
    })
    .await;
    let other = Library::open(store.library.root()).unwrap();
    let (one, two) = ([want(&server.url("/a"), Some(&body))], [want(&server.url("/b"), Some(&body))]);
    let (control, also) = (soon(), soon());
    let (mine, theirs) = tokio::join!(
        store.library.ensure_inputs(&one, &store.settings, |_| (), &control),
        other.ensure_inputs(&two, &store.settings, |_| (), &also),
    );
    assert_eq!(mine[0].as_ref().unwrap(), theirs[0].as_ref().unwrap());
    assert_eq!(server.hits(), 1);
    assert_eq!(store.files().len(), 1, "{:?}", store.files());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_goes_on_when_the_other_fails() {
    let store = Store::new();
    let body = noise(BIG, 13);
    let failing = Arc::new(AtomicBool::new(true));
    let server = Server::start({
        let (body, failing) = (body.clone(), failing.clone());
        move |request| {
            if failing.swap(false, Ordering::SeqCst) {
                let mut acts = vec![Act::Pause(Duration::from_millis(200))];
                acts.extend(status("404 Not Found"));
                return acts;
            }
            honest(request, &body, "\"v1\"")
        }
    })
    .await;
    let wants = [want(&server.url("/a"), Some(&body))];
    let (control, also) = (soon(), soon());
    let (one, two) = tokio::join!(
        store.library.ensure_inputs(&wants, &store.settings, |_| (), &control),
        store.library.ensure_inputs(&wants, &store.settings, |_| (), &also),
    );
    let found = [&one[0], &two[0]].iter().filter(|answer| answer.is_ok()).count();
    assert_eq!((found, server.hits()), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_input_on_the_shelf_is_fetched_anew() {
    let store = Store::new();
    let body = noise(1000, 14);
    let server = Server::start({
        let body = body.clone();
        move |_| ok(&body)
    })
    .await;
    let wanted = want(&server.url("/a"), Some(&body));
    let stored = store.ensure_one(wanted.clone()).await.unwrap();
    std::fs::remove_file(&stored.path).unwrap();
    std::fs::write(&stored.path, noise(1000, 15)).unwrap();
    assert_eq!(store.ensure_one(wanted).await.unwrap(), stored);
    assert_eq!(std::fs::read(&stored.path).unwrap(), body);
    assert_eq!(server.hits(), 2);
}

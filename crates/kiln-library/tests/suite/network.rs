//! Trust, proxies and secrets.

use std::net::SocketAddr;

use kiln_library::{AddressPolicy, FetchError, InputError, ProxySettings};
use kiln_model::run::Fault;

use crate::server::{Act, Authority, Server, answer, broken_after, head, honest, ok, redirect, status};
use crate::store::{Store, noise, shown, walk, want};

fn cause(error: &InputError) -> &FetchError {
    match error {
        InputError::Download { source, .. } => source,
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_trusted_by_the_ca_file_and_by_no_other() {
    let mut store = Store::new();
    let authority = Authority::new();
    let server = Server::start_tls(&authority, |_| ok(b"safe")).await;
    let wanted = want(&server.url("/a"), None);

    let error = store.ensure_one(wanted.clone()).await.unwrap_err();
    assert!(matches!(cause(&error), FetchError::Certificate { .. }), "{}", shown(&error));
    assert_eq!((store.retries().len(), error.fault()), (0, Fault::Remote), "asking again is no use");

    let file = store.dir.path().join("ca.pem");
    std::fs::write(&file, Authority::new().pem).unwrap();
    store.settings.ca_file = Some(file.clone());
    let error = store.ensure_one(wanted.clone()).await.unwrap_err();
    assert!(matches!(cause(&error), FetchError::Certificate { .. }), "{}", shown(&error));
    assert_eq!(server.hits(), 0);

    std::fs::write(&file, format!("{}\n{}", Authority::new().pem, authority.pem)).unwrap();
    let stored = store.ensure_one(wanted).await.unwrap();
    assert_eq!(std::fs::read(stored.path).unwrap(), b"safe");

    // The right authority, but for another name.
    let elsewhere = format!("https://127.0.0.2:{}/a", server.addr.port());
    let error = store.ensure_one(want(&elsewhere, None)).await.unwrap_err();
    assert!(
        matches!(cause(&error), FetchError::Certificate { .. } | FetchError::Transport { .. }),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_file_that_is_none_is_named() {
    let mut store = Store::new();
    let path = store.dir.path().join("my-ca.pem");
    store.settings.ca_file = Some(path.clone());
    for text in [
        None,
        Some(""),
        Some("nonsense"),
        Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ] {
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let error = store.ensure_one(want("https://127.0.0.1:1/", None)).await.unwrap_err();
        assert!(matches!(cause(&error), FetchError::Settings { .. }), "{text:?}: {}", shown(&error));
        assert_eq!(error.fault(), Fault::Host);
        assert_eq!(
            shown(&error).contains("my-ca.pem"),
            text.is_none_or(|text| !text.contains("BEGIN")),
            "{text:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_way_leads_from_https_to_http() {
    let mut store = Store::new();
    let authority = Authority::new();
    let file = store.dir.path().join("ca.pem");
    std::fs::write(&file, &authority.pem).unwrap();
    store.settings.ca_file = Some(file);
    let plain = Server::start(|_| ok(b"overheard")).await;
    let target = plain.url("/b?sig=CANARY");
    let server = Server::start_tls(&authority, move |_| redirect(&target)).await;
    let error = store.ensure_one(want(&server.url("/a"), None)).await.unwrap_err();
    assert!(matches!(cause(&error), FetchError::Redirect { .. }) && plain.hits() == 0, "{error}");
    assert!(!shown(&error).contains("CANARY"));
    // The other way is fine.
    let target = server.url("/a");
    let up = Server::start(move |_| redirect(&target)).await;
    let error = store.ensure_one(want(&up.url("/"), None)).await.unwrap_err();
    assert!(shown(&error).contains("from https to http"), "it came as far as the second: {error}");
}

/// Passes on what it is asked for, as far as a proxy without understanding can.
fn proxy_script(target: SocketAddr) -> impl Fn(&crate::server::Request) -> Vec<Act> {
    move |request| match request.method.as_str() {
        "CONNECT" => vec![Act::Send(b"HTTP/1.1 200 Connected\r\n\r\n".to_vec()), Act::Tunnel(target)],
        _ => ok(format!("by proxy: {}", request.target).as_bytes()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_are_used_except_where_told_otherwise() {
    let mut store = Store::new();
    let authority = Authority::new();
    let file = store.dir.path().join("ca.pem");
    std::fs::write(&file, &authority.pem).unwrap();
    store.settings.ca_file = Some(file);
    let plain = Server::start(|_| ok(b"direct")).await;
    let secure = Server::start_tls(&authority, |_| ok(b"secure")).await;
    let proxy = Server::start(proxy_script(secure.addr)).await;
    let address = format!("http://me:CANARY@127.0.0.1:{}", proxy.addr.port());
    store.settings.proxy = ProxySettings::all(address);

    let stored = store.ensure_one(want(&plain.url("/a"), None)).await.unwrap();
    assert_eq!(std::fs::read_to_string(stored.path).unwrap(), format!("by proxy: {}", plain.url("/a")));
    assert_eq!((plain.hits(), proxy.hits()), (0, 1));
    // me:CANARY
    assert_eq!(proxy.seen()[0].header("proxy-authorization"), Some("Basic bWU6Q0FOQVJZ"));

    let stored = store.ensure_one(want(&secure.url("/a"), None)).await.unwrap();
    assert_eq!(std::fs::read(stored.path).unwrap(), b"secure");
    let connect = &proxy.seen()[1];
    assert_eq!((connect.method.as_str(), connect.target.clone()), ("CONNECT", secure.addr.to_string()));
    assert_eq!(secure.seen()[0].header("proxy-authorization"), None);

    store.settings.proxy.direct = Some("example.com, 127.0.0.0/8".to_owned());
    for server in [&plain, &secure] {
        store.ensure_one(want(&server.url("/a"), None)).await.unwrap();
    }
    assert_eq!((plain.hits(), secure.hits(), proxy.hits()), (1, 2, 2));

    store.settings.attempts = 2;
    store.settings.proxy = ProxySettings::all("http://me:CANARY@127.0.0.1:1");
    let error = store.ensure_one(want(&plain.url("/a"), None)).await.unwrap_err();
    assert!(!shown(&error).contains("CANARY"), "{}", shown(&error));
    store.settings.proxy = ProxySettings::all("me:CANARY@:@::");
    let error = store.ensure_one(want(&plain.url("/a"), None)).await.unwrap_err();
    assert!(matches!(cause(&error), FetchError::Settings { .. }), "{error}");
    assert!(!shown(&error).contains("CANARY"), "{}", shown(&error));
}

/// A secret in an address goes to the server it is for, and nowhere else.
#[tokio::test(flavor = "multi_thread")]
async fn secrets_stay_out_of_errors_progress_and_files() {
    let mut store = Store::new();
    store.settings.attempts = 2;
    store.settings.stall_timeout = std::time::Duration::from_millis(200);
    let body = noise(3 << 20, 20);
    let server = Server::start({
        let body = body.clone();
        move |request| {
            let path = request.target.split('?').next().unwrap();
            match path {
                "/broken" => broken_after(&body, 2 << 20, "\"v1\""),
                "/hang" => vec![head("200 OK", &[("Content-Length", "9")]), Act::Hang],
                "/loop" => redirect("/loop?next=CANARY2"),
                "/away" => redirect("ftp://u:CANARY2@h/x?CANARY2"),
                "/odd" => answer("302 Found", &[("Location", "http://[CANARY2")], b""),
                "/nonsense" => vec![Act::Send(b"CANARY2 is no http\r\n\r\n".to_vec())],
                "/deny" => status("403 Forbidden"),
                "/error" => answer("500 CANARY2", &[], b"CANARY2"),
                _ => honest(request, &body, "\"v1\""),
            }
        }
    })
    .await;
    let port = server.addr.port();
    let mut errors = String::new();
    for path in ["broken", "hang", "loop", "away", "odd", "nonsense", "deny", "error"] {
        for known in [None, Some(body.as_slice())] {
            let url = format!("http://user:CANARY@127.0.0.1:{port}/{path}?sv=1&sig=CANARY#CANARY");
            let error = store.ensure_one(want(&url, known)).await.unwrap_err();
            errors.push_str(&shown(&error));
        }
    }
    for url in [
        "http://CANARY@127.0.0.1:1/a?CANARY",
        "ftp://h/?CANARY",
        "http://[?CANARY",
        "https://h:99999/?CANARY",
    ] {
        errors.push_str(&shown(&store.ensure_one(want(url, None)).await.unwrap_err()));
    }
    let url = format!("http://user:CANARY@127.0.0.1:{port}/fine?sig=CANARY");
    store.ensure_one(want(&url, Some(&body))).await.unwrap();
    errors.push_str(&format!("{:?}", store.progress.lock().unwrap()));
    assert!(!errors.contains("CANARY"), "{errors}");
    assert!(errors.contains("redacted") && errors.len() > 5000, "there was something to look through");
    let files = walk(store.library.root());
    assert!(files.len() >= 2);
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(6).any(|window| window == b"CANARY"), "{}", file.display());
        assert!(!file.to_string_lossy().contains("CANARY"));
    }
    // The server itself got what it is to get.
    let last = server.seen().pop().unwrap();
    assert_eq!(last.target, "/fine?sig=CANARY");
    assert_eq!(last.header("authorization"), Some("Basic dXNlcjpDQU5BUlk="));
    assert_eq!(last.header("referer"), None);
}

/// Credentials are for the host they were given for.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_do_not_follow_a_redirect() {
    let store = Store::new();
    let other = Server::start(|_| ok(b"there")).await;
    let target = other.url("/b");
    let server = Server::start(move |_| redirect(&target)).await;
    let url = format!("http://user:CANARY@127.0.0.1:{}/a?sig=CANARY", server.addr.port());
    store.ensure_one(want(&url, None)).await.unwrap();
    assert!(server.seen()[0].header("authorization").is_some());
    assert!(!format!("{:?}", other.seen()).contains("CANARY"));
    assert_eq!(other.seen()[0].header("authorization"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_named() {
    let mut store = Store::new();
    store.settings.attempts = 2;
    let error = store.ensure_one(want("http://127.0.0.1:1/a", None)).await.unwrap_err();
    let text = shown(&error);
    assert!(text.contains("cannot connect to 127.0.0.1:1") && text.contains("refused"), "{text}");
    assert_eq!((error.fault(), store.retries().len()), (Fault::Remote, 1));
    let error = store.ensure_one(want("http://no-such-host.invalid/a", None)).await.unwrap_err();
    assert!(shown(&error).contains("cannot connect to no-such-host.invalid"), "{error}");
}

/// An address of this host that is not loopback, if it has one. Nothing is sent.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|addr| addr.ip()).filter(|address| !address.is_loopback())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_fetch_does_not_reach_this_host_by_any_way() {
    let inside = Server::start(|_| ok(b"inside")).await;
    let mut store = Store::new();
    store.settings.addresses = AddressPolicy::Public;
    let port = inside.addr.port();
    for host in ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "0.0.0.0", "127.1", "[::ffff:127.0.0.1]"] {
        let error =
            store.ensure_one(want(&format!("http://{host}:{port}/a?sig=CANARY"), None)).await.unwrap_err();
        assert!(matches!(cause(&error), FetchError::Forbidden { .. }), "{host}: {}", shown(&error));
        assert_eq!((error.fault(), store.retries().len()), (Fault::Template, 0), "{host}");
        assert!(!shown(&error).contains("CANARY"));
    }

    // What is ordinary is asked, and does not lead inside.
    let Some(address) = own_address() else { panic!("this host has no address but loopback") };
    let to = inside.url("/secret");
    let outside = Server::start_at(&format!("{address}:0"), move |request| match request.target.as_str() {
        "/file" => ok(b"outside"),
        _ => redirect(&to),
    })
    .await;
    let url = |path: &str| format!("http://{address}:{}{path}", outside.addr.port());
    assert_eq!(store.ensure_one(want(&url("/file"), None)).await.unwrap().size, 7);
    let error = store.ensure_one(want(&url("/jump"), None)).await.unwrap_err();
    assert!(matches!(cause(&error), FetchError::Forbidden { .. }), "{}", shown(&error));
    assert_eq!(inside.hits(), 0);

    store.settings.addresses = AddressPolicy::Any;
    assert_eq!(store.ensure_one(want(&url("/jump"), None)).await.unwrap().size, 6, "allowed, it is followed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_the_operators_choice_and_no_way_around() {
    let proxy = Server::start(|_| ok(b"by proxy")).await;
    let mut store = Store::new();
    store.settings.addresses = AddressPolicy::Public;
    // By name, so that the look-up is needed.
    store.settings.proxy = ProxySettings::all(format!("http://localhost:{}", proxy.addr.port()));
    let stored = store.ensure_one(want("http://files.example/a", None)).await.unwrap();
    assert_eq!(stored.size, 8);
    for address in ["http://169.254.169.254/latest", "http://localhost:1/a"] {
        let error = store.ensure_one(want(address, None)).await.unwrap_err();
        assert!(
            matches!(cause(&error), FetchError::Forbidden { .. } | FetchError::BadAddress { .. }),
            "{address}: {}",
            shown(&error)
        );
    }
    assert_eq!(proxy.hits(), 1, "the proxy is not asked for them either");
}

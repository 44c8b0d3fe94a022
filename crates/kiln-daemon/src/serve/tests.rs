use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

use super::accept::{Places, run_with};
use super::connection::Limits;
use super::*;
use crate::config::{Config, Environment, Listen};
use crate::daemon::Paths;

/// Far more than anything here takes; a test that meets it has failed.
const LONG: Duration = Duration::from_secs(20);

fn quick() -> Limits {
    // Long enough for a handshake on a busy host.
    let short = Duration::from_secs(1);
    Limits { handshake: 2 * short, head: short, idle: short, body: short, write_stall: short, grace: short }
}

struct Server {
    dir: tempfile::TempDir,
    address: SocketAddr,
    identity: Option<SocketAddr>,
    socket: PathBuf,
    shutdown: CancellationToken,
    running: Option<JoinHandle<Result<(), ServeError>>>,
}

fn config() -> Config {
    Config { listen: vec![Listen { host: "127.0.0.1".to_owned(), port: 0 }], ..Config::default() }
}

async fn bind(dir: &Path, config: &Config) -> Result<Listeners, ServeError> {
    let paths = Paths::new(dir.to_owned());
    std::fs::create_dir_all(paths.server()).unwrap();
    let environment = Environment::open(&paths.server(), config).unwrap();
    let settings = ListenSettings { default_socket: Some(dir.join("kiln.sock")), tcp: true };
    Listeners::bind(config, &paths, &environment, settings).await
}

async fn start(limits: Limits, places: Places) -> Server {
    let mut config = config();
    config.access.managed_identity.http = Some(0);
    let dir = tempfile::tempdir().unwrap();
    let listeners = bind(dir.path(), &config).await.unwrap();
    let (address, identity) = (listeners.addresses()[0], listeners.identity_address());
    let socket = listeners.socket().unwrap().to_owned();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(run_with(listeners, router(), shutdown.clone(), limits, places));
    Server { dir, address, identity, socket, shutdown, running: Some(running) }
}

async fn quick_server() -> Server {
    start(quick(), Places::new(64, 32)).await
}

async fn patient_server() -> Server {
    start(Limits::default(), Places::new(64, 32)).await
}

impl Server {
    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn tls(
        &self,
        versions: &[&'static rustls::SupportedProtocolVersion],
        alpn: &[u8],
    ) -> impl Wire + use<> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.dir.path().join("server/tls/ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![alpn.to_vec()];
        let name = ServerName::try_from("localhost").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, self.tcp().await).await.unwrap()
    }

    async fn http1(&self) -> impl Wire + use<> {
        self.tls(rustls::ALL_VERSIONS, b"http/1.1").await
    }

    async fn stop(&mut self) {
        self.shutdown.cancel();
        tokio::time::timeout(LONG, self.running.take().unwrap()).await.unwrap().unwrap().unwrap();
    }
}

trait Wire: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Wire for T {}

/// Says who asks, at `/`; `/echo` gives the body back or says why not; `/slow` takes half a second; `/flood` never ends;
/// `/live` never ends but with the server.
fn router() -> Router {
    Router::new().fallback(|request: Request<Body>| async move {
        let peer = request.extensions().get::<Peer>().cloned();
        let identity = request.extensions().get::<IdentityOnly>().is_some();
        let closing = request.extensions().get::<Closing>().cloned().unwrap();
        match request.uri().path() {
            "/echo" => match request.into_body().collect().await {
                Ok(body) => Body::from(body.to_bytes()),
                Err(error) => Body::from(format!("failed: {error}")),
            },
            "/slow" => {
                // An answer that is still under way when the server is told to end.
                tokio::time::sleep(Duration::from_millis(500)).await;
                Body::from("slow")
            }
            "/flood" => Body::from_stream(futures_util::stream::repeat_with(|| {
                Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 64 * 1024]))
            })),
            "/live" => Body::from_stream(
                futures_util::stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"on;")) })
                    .chain(futures_util::stream::once(async move {
                        closing.0.cancelled().await;
                        Ok(Bytes::from_static(b"bye"))
                    })),
            ),
            _ => Body::from(format!("{peer:?} {identity}")),
        }
    })
}

async fn ask(wire: &mut (impl AsyncRead + AsyncWrite + Unpin), path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    wire.write_all(request.as_bytes()).await.unwrap();
    answer(wire).await
}

/// Head and body, by its content-length.
async fn answer(wire: &mut (impl AsyncRead + Unpin)) -> String {
    let mut got = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&got).to_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            if length.is_none_or(|length| body.len() >= length) {
                return String::from_utf8(got).unwrap();
            }
        }
        match tokio::time::timeout(LONG, wire.read(&mut bytes)).await.expect("an answer") {
            Ok(0) | Err(_) => return String::from_utf8(got).unwrap(),
            Ok(read) => got.extend(&bytes[..read]),
        }
    }
}

/// Whether the server ends the connection by itself, and how long that took.
async fn ends(wire: &mut (impl AsyncRead + Unpin)) -> Duration {
    let begun = Instant::now();
    let mut rest = Vec::new();
    let _ =
        tokio::time::timeout(LONG, wire.read_to_end(&mut rest)).await.expect("the connection to be ended");
    begun.elapsed()
}

#[tokio::test]
async fn each_door_says_who_is_there() {
    let server = patient_server().await;
    let over_tls = ask(&mut server.http1().await, "/").await;
    assert!(over_tls.contains("Tcp(127.0.0.1:") && over_tls.ends_with("false"), "{over_tls}");
    let mut unix = UnixStream::connect(&server.socket).await.unwrap();
    let uid = rustix::process::geteuid().as_raw();
    let local = ask(&mut unix, "/").await;
    let expected = format!("Unix {{ uid: {uid}, pid: Some({}) }}) false", std::process::id());
    assert!(local.ends_with(&expected), "{local}");
    let mut plain = TcpStream::connect(server.identity.unwrap()).await.unwrap();
    let identity = ask(&mut plain, "/").await;
    assert!(identity.contains("Tcp(127.0.0.1:") && identity.ends_with("true"), "{identity}");
}

#[tokio::test]
async fn tls_is_1_2_or_1_3_and_http_is_1_or_2() {
    let server = patient_server().await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut wire = server.tls(&[version], b"http/1.1").await;
        assert!(ask(&mut wire, "/").await.starts_with("HTTP/1.1 200 OK"));
    }
    let wire = TokioIo::new(server.tls(rustls::ALL_VERSIONS, b"h2").await);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), wire).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("https://localhost/echo").body(Body::from("two")).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.version(), axum::http::Version::HTTP_2);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "two");

    // Plain http on the TLS port is no request.
    let mut plain = server.tcp().await;
    plain.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut got = Vec::new();
    let _ = tokio::time::timeout(LONG, plain.read_to_end(&mut got)).await.unwrap();
    assert!(!got.starts_with(b"HTTP"), "{got:?}");
}

#[tokio::test]
async fn a_handshake_that_does_not_come_is_not_awaited() {
    let server = quick_server().await;
    ends(&mut server.tcp().await).await;
    let mut begun = server.tcp().await;
    begun.write_all(&[0x16, 0x03, 0x01]).await.unwrap();
    ends(&mut begun).await;
}

#[tokio::test]
async fn headers_that_trickle_are_not_awaited() {
    // It is not for being idle that they end.
    let server = start(Limits { idle: 2 * LONG, ..quick() }, Places::new(8, 8)).await;
    // Not a byte; the first line; and one byte after the other, each in time, but not all of them.
    ends(&mut server.http1().await).await;
    let mut half = server.http1().await;
    half.write_all(b"GET / HTTP/1.1\r\nHost: local").await.unwrap();
    ends(&mut half).await;
    let (mut read, mut write) = tokio::io::split(server.http1().await);
    let slow = tokio::spawn(async move {
        for byte in b"GET / HTTP/1.1\r\nX: ".iter().chain(std::iter::repeat(&b'x')) {
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    ends(&mut read).await;
    slow.abort();
    // The second request of a connection is held to the same.
    let mut wire = server.http1().await;
    assert!(ask(&mut wire, "/").await.starts_with("HTTP/1.1 200"));
    wire.write_all(b"GET / HTTP").await.unwrap();
    ends(&mut wire).await;
}

#[tokio::test]
async fn an_idle_connection_outlasts_the_limit_on_headers() {
    let limits = Limits { head: Duration::from_millis(500), idle: Duration::from_secs(4), ..quick() };
    let server = start(limits, Places::new(8, 8)).await;
    let mut wire = server.http1().await;
    for _ in 0..2 {
        assert!(ask(&mut wire, "/").await.starts_with("HTTP/1.1 200"));
        tokio::time::sleep(2 * limits.head).await;
    }
    // A request may take as long as it likes.
    assert!(ask(&mut wire, "/slow").await.ends_with("slow"));
    let idle = ends(&mut wire).await;
    assert!(idle > limits.head, "{idle:?}");
}

#[tokio::test]
async fn a_body_that_stops_coming_fails_its_request() {
    let server = quick_server().await;
    let mut wire = server.http1().await;
    wire.write_all(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc").await.unwrap();
    assert!(answer(&mut wire).await.contains("failed: "));
}

#[tokio::test]
async fn who_does_not_read_is_not_written_to_for_ever() {
    let server = start(quick(), Places::new(1, 1)).await;
    let mut greedy = server.http1().await;
    greedy.write_all(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    // There is one place: another gets in only when the first was given up.
    let mut unix = UnixStream::connect(&server.socket).await.unwrap();
    assert!(ask(&mut unix, "/").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn heads_have_a_size() {
    let server = patient_server().await;
    let mut wire = server.http1().await;
    let long = "x".repeat(100 * 1024);
    let _ =
        wire.write_all(format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n\r\n").as_bytes()).await;
    assert!(answer(&mut wire).await.starts_with("HTTP/1.1 431"));
    let mut wire = server.http1().await;
    let many: String = (0..200).map(|n| format!("X-{n}: y\r\n")).collect();
    let _ = wire.write_all(format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes()).await;
    assert!(answer(&mut wire).await.starts_with("HTTP/1.1 431"));
}

#[tokio::test]
async fn when_places_run_out_idle_ones_go_and_the_local_command_gets_in() {
    let server = start(Limits::default(), Places::new(4, 3)).await;
    let mut idle = server.http1().await;
    assert!(ask(&mut idle, "/").await.starts_with("HTTP/1.1 200"));
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut wire = server.http1().await;
        wire.write_all(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        assert!(answer(&mut wire).await.starts_with("HTTP/1.1 200"));
        busy.push(wire);
    }
    let (mut another, _) = tokio::join!(server.http1(), ends(&mut idle));
    another.write_all(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert!(answer(&mut another).await.starts_with("HTTP/1.1 200"));
    // Now TCP is full: who comes waits, and the socket does not.
    let waiting = tokio::time::timeout(Duration::from_millis(500), server.http1()).await;
    assert!(waiting.is_err(), "there was a place");
    let mut unix = UnixStream::connect(&server.socket).await.unwrap();
    assert!(ask(&mut unix, "/").await.starts_with("HTTP/1.1 200"));
    drop(busy);
    assert!(ask(&mut server.http1().await, "/").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn requests_in_flight_end_well_and_endless_ones_are_told() {
    let mut server = patient_server().await;
    let endpoint = server.dir.path().join("server/endpoint.json");
    let mut slow = server.http1().await;
    slow.write_all(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut live = server.http1().await;
    live.write_all(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert!(answer(&mut live).await.starts_with("HTTP/1.1 200"));
    let mut idle = UnixStream::connect(&server.socket).await.unwrap();
    assert!(ask(&mut idle, "/").await.starts_with("HTTP/1.1 200"));
    let said = read_endpoint(&server.dir.path().join("server")).unwrap();
    assert_eq!(said.url, format!("https://localhost:{}", server.address.port()));
    assert_eq!(said.pid, std::process::id());

    server.stop().await;
    assert!(answer(&mut slow).await.ends_with("slow"));
    let mut rest = String::new();
    live.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("bye") && rest.ends_with("0\r\n\r\n"), "{rest:?}");
    ends(&mut idle).await;
    assert!(TcpStream::connect(server.address).await.is_err());
    assert!(!server.socket.exists() && !endpoint.exists());
}

#[tokio::test]
async fn what_does_not_end_is_cut_off() {
    let mut server = quick_server().await;
    let mut flood = server.http1().await;
    flood.write_all(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let reader = tokio::spawn(async move {
        let mut bytes = vec![0; 1 << 16];
        while flood.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.stop().await;
    tokio::time::timeout(LONG, reader).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_sockets_file_is_private_and_a_dead_servers_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kiln.sock");
    let mode = |path: &Path| std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;

    // A file that nobody answers on.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let first = bind(dir.path(), &config()).await.unwrap();
    assert_eq!(mode(&path), 0o600);
    let error = bind(dir.path(), &config()).await.err().unwrap();
    assert!(
        matches!(error, ServeError::SocketInUse { .. }) && error.to_string().contains("--socket"),
        "{error}"
    );
    drop(first);
    assert!(!path.exists());

    let mut open = config();
    open.socket.group = Some(rustix::process::getegid().as_raw().to_string());
    let listeners = bind(dir.path(), &open).await.unwrap();
    assert_eq!(mode(&path), 0o660);
    // Taken over by another: not ours to remove.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "another's").unwrap();
    drop(listeners);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "another's");
    assert!(matches!(bind(dir.path(), &open).await.err(), Some(ServeError::NotASocket { .. })));
    std::fs::remove_file(&path).unwrap();
    open.socket.group = Some("no-such-group".to_owned());
    assert!(matches!(bind(dir.path(), &open).await.err(), Some(ServeError::NoGroup { .. })));
    let names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["server"], "nothing is left beside it");
}

#[tokio::test]
async fn what_cannot_be_bound_says_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let port = taken.local_addr().unwrap().port();
    for (host, port, advice) in [
        ("127.0.0.1", port, "--listen HOST:PORT"),
        // TEST-NET-1 (RFC 5737).
        ("192.0.2.1", 8441, "no such address"),
    ] {
        let config = Config { listen: vec![Listen { host: host.to_owned(), port }], ..Config::default() };
        let error = bind(dir.path(), &config).await.err().unwrap().to_string();
        assert!(error.contains(advice) && error.contains(host), "{error}");
    }
}

#[tokio::test]
async fn silent_connections_keep_nobody_out_for_long() {
    let server = start(quick(), Places::new(16, 12)).await;
    let mut silent = Vec::new();
    for _ in 0..30 {
        silent.push(server.tcp().await);
    }
    let mut unix = UnixStream::connect(&server.socket).await.unwrap();
    assert!(ask(&mut unix, "/").await.starts_with("HTTP/1.1 200"));
    // Twelve at a time are given up, after their handshake's limit.
    assert!(ask(&mut server.http1().await, "/").await.starts_with("HTTP/1.1 200"));
}

//! An HTTP server that does what it is told, right or wrong.
//!
//! A script is asked for each request what to do on the connection, byte by byte. After that the connection is closed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

#[derive(Debug, Clone)]
pub struct Request {
    /// From 0, over all connections.
    pub number: usize,
    pub method: String,
    /// As on the request line: a proxy sees the whole address.
    pub target: String,
    pub headers: BTreeMap<String, String>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// First byte of `Range: bytes=N-`.
    pub fn range(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

pub enum Act {
    Send(Vec<u8>),
    Pause(Duration),
    /// One byte at a time.
    Drip(Vec<u8>, Duration),
    /// Whatever comes, to there and back: what a proxy does after CONNECT.
    Tunnel(SocketAddr),
    /// Until the client goes away.
    Hang,
    /// Bytes and bytes, until the client goes away.
    Endless,
}

pub struct Server {
    pub addr: SocketAddr,
    scheme: &'static str,
    seen: Arc<Mutex<Vec<Request>>>,
    most: Arc<AtomicUsize>,
    _stop: tokio::sync::oneshot::Sender<()>,
}

type Script = Arc<dyn Fn(&Request) -> Vec<Act> + Send + Sync>;

impl Server {
    pub async fn start(script: impl Fn(&Request) -> Vec<Act> + Send + Sync + 'static) -> Self {
        Self::run(None, Arc::new(script)).await
    }

    pub async fn start_tls(
        authority: &Authority,
        script: impl Fn(&Request) -> Vec<Act> + Send + Sync + 'static,
    ) -> Self {
        Self::run(Some(authority.acceptor()), Arc::new(script)).await
    }

    /// Elsewhere than on loopback.
    pub async fn start_at(addr: &str, script: impl Fn(&Request) -> Vec<Act> + Send + Sync + 'static) -> Self {
        Self::listen(addr, None, Arc::new(script)).await
    }

    async fn run(tls: Option<TlsAcceptor>, script: Script) -> Self {
        Self::listen("127.0.0.1:0", tls, script).await
    }

    async fn listen(addr: &str, tls: Option<TlsAcceptor>, script: Script) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let server = Self { addr, scheme, seen: seen.clone(), most: most.clone(), _stop: stop };
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    _ = &mut stopped => return,
                    accepted = listener.accept() => accepted.unwrap().0,
                };
                let (tls, script, seen) = (tls.clone(), script.clone(), seen.clone());
                let pauses = Pauses { now: now.clone(), most: most.clone() };
                tokio::spawn(async move {
                    match tls {
                        None => converse(stream, &script, &seen, &pauses).await,
                        // A client that does not trust us hangs up here.
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                converse(stream, &script, &seen, &pauses).await;
                            }
                        }
                    }
                });
            }
        });
        server
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}://127.0.0.1:{}{path}", self.scheme, self.addr.port())
    }

    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    pub fn hits(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// Requests that were in a pause at one time.
    pub fn most_at_once(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

struct Pauses {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    script: &Script,
    seen: &Mutex<Vec<Request>>,
    pauses: &Pauses,
) {
    let Some(request) = read_request(&mut stream, seen).await else { return };
    for act in script(&request) {
        // The client may hang up at any time.
        let done = match act {
            Act::Send(bytes) => stream.write_all(&bytes).await,
            Act::Pause(time) => {
                pauses.most.fetch_max(pauses.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(time).await;
                pauses.now.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            }
            Act::Drip(bytes, every) => drip(&mut stream, &bytes, every).await,
            Act::Tunnel(to) => {
                let mut other = TcpStream::connect(to).await.unwrap();
                tokio::io::copy_bidirectional(&mut stream, &mut other).await.map(drop)
            }
            Act::Endless => {
                while stream.write_all(&[b'x'; 65536]).await.is_ok() {}
                Ok(())
            }
            Act::Hang => {
                let mut rest = [0];
                while stream.read(&mut rest).await.is_ok_and(|count| count > 0) {}
                Ok(())
            }
        };
        if done.is_err() {
            return;
        }
    }
    let _ = stream.shutdown().await;
}

async fn drip(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8], every: Duration) -> std::io::Result<()> {
    for byte in bytes {
        stream.write_all(&[*byte]).await?;
        stream.flush().await?;
        tokio::time::sleep(every).await;
    }
    Ok(())
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin), seen: &Mutex<Vec<Request>>) -> Option<Request> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.push(stream.read_u8().await.ok()?);
    }
    let text = String::from_utf8(text).unwrap();
    let mut lines = text.lines();
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let mut seen = seen.lock().unwrap();
    let request = Request { number: seen.len(), method, target, headers };
    seen.push(request.clone());
    Some(request)
}

pub fn head(status: &str, headers: &[(&str, &str)]) -> Act {
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    Act::Send(format!("HTTP/1.1 {status}\r\nConnection: close\r\n{lines}\r\n").into_bytes())
}

/// A whole answer.
pub fn answer(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<Act> {
    let length = body.len().to_string();
    let mut all = vec![("Content-Length", length.as_str())];
    all.extend_from_slice(headers);
    vec![head(status, &all), Act::Send(body.to_vec())]
}

pub fn ok(body: &[u8]) -> Vec<Act> {
    answer("200 OK", &[], body)
}

pub fn status(status: &str) -> Vec<Act> {
    answer(status, &[], b"<html>sorry</html>")
}

pub fn redirect(to: &str) -> Vec<Act> {
    answer("302 Found", &[("Location", to)], b"")
}

/// The rest from `first` on, as an honest server sends it.
pub fn rest(body: &[u8], first: usize, etag: &str) -> Vec<Act> {
    let range = format!("bytes {first}-{}/{}", body.len() - 1, body.len());
    answer("206 Partial Content", &[("Content-Range", &range), ("ETag", etag)], &body[first..])
}

/// What an honest server does, ranges and their conditions included.
pub fn honest(request: &Request, body: &[u8], etag: &str) -> Vec<Act> {
    match request.range() {
        Some(first) if request.header("if-range").is_none_or(|tag| tag == etag) => rest(body, first, etag),
        _ => answer("200 OK", &[("ETag", etag)], body),
    }
}

/// The whole is announced, `count` bytes come.
pub fn broken_after(body: &[u8], count: usize, etag: &str) -> Vec<Act> {
    let length = body.len().to_string();
    vec![
        head("200 OK", &[("Content-Length", &length), ("ETag", etag)]),
        Act::Send(body[..count].to_vec()),
        // So that the bytes arrive before the end does.
        Act::Pause(Duration::from_millis(50)),
    ]
}

/// A certificate authority of its own, and a server certificate for 127.0.0.1 and localhost.
pub struct Authority {
    pub pem: String,
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
        let authority_key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&authority_key).unwrap();
        let issuer = Issuer::new(params, authority_key);
        let key = KeyPair::generate().unwrap();
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        Self { pem: authority.pem(), chain: vec![leaf.der().clone()], key: key.serialize_der() }
    }

    fn acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()));
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

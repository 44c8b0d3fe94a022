//! How requests reach a server: over its socket, where the kernel says who we are, or
//! over TLS with a token.
//!
//! A request that only reads is repeated when the connection is lost, for [`PATIENCE`]:
//! a server that is restarted is not an end. One that changes something is repeated only
//! if it cannot have arrived.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Body, Certificate, Method, Response, StatusCode, Url};

use super::error::{ClientError, Refusal, RefusalKind};
use super::local::Local;
use super::sign_in::SignIn;

/// How long a server that once answered may be away.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// For a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// For an answer's first byte.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Of an error's body.
const ERROR_BYTES: usize = 64 << 10;
/// Between two attempts: doubled each time, up to the second of these.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A request whose body, if any, is small enough to be sent again.
#[derive(Clone)]
pub struct Ask {
    pub method: Method,
    /// Percent-encoded, with its query.
    pub path: String,
    pub body: Option<Vec<u8>>,
    pub headers: HeaderMap,
}

impl Ask {
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), body: None, headers: HeaderMap::new() }
    }

    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    #[must_use]
    pub fn json(mut self, body: &serde_json::Value) -> Self {
        self.body = Some(body.to_string().into_bytes());
        self.headers.insert(reqwest::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self
    }

    #[must_use]
    pub fn header(mut self, name: reqwest::header::HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    fn is_read(&self) -> bool {
        self.method == Method::GET || self.method == Method::HEAD
    }
}

pub struct Link {
    http: reqwest::Client,
    base: Url,
    /// What messages call the server.
    shown: String,
    sign_in: Option<SignIn>,
    /// The data folder's own socket: when nobody serves it, this process does.
    local: Option<Arc<Local>>,
    /// It answered once: when it is away now, it may come back.
    heard: AtomicBool,
}

impl Link {
    /// Over a socket.
    pub fn socket(path: &Path, local: Option<Arc<Local>>) -> Result<Self, ClientError> {
        let shown = format!("unix:{}", path.display());
        let http = builder().unix_socket(PathBuf::from(path)).build();
        let base = Url::parse("http://localhost");
        match (http, base) {
            (Ok(http), Ok(base)) => {
                Ok(Self { http, base, shown, sign_in: None, local, heard: AtomicBool::new(false) })
            }
            (Err(source), _) => Err(ClientError::Unreachable { server: shown, source }),
            (_, Err(error)) => Err(ClientError::Strange { server: shown, why: error.to_string() }),
        }
    }

    /// Over TLS; `ca_file` is trusted besides the host's own authorities.
    pub fn tls(address: &str, ca_file: Option<&Path>, sign_in: Option<SignIn>) -> Result<Self, ClientError> {
        let shown = address.to_owned();
        let base = Url::parse(address)
            .map_err(|error| ClientError::Strange { server: shown.clone(), why: error.to_string() })?;
        let own = match ca_file {
            None => Vec::new(),
            Some(path) => certificates(path)?,
        };
        let http = match builder().tls_certs_merge(own.clone()).build() {
            Ok(http) => http,
            // A host without any trusted certificates can still trust ours.
            Err(first) => builder().tls_certs_only(own).build().map_err(|_| ClientError::Unreachable {
                server: shown.clone(),
                source: first.without_url(),
            })?,
        };
        Ok(Self { http, base, shown, sign_in, local: None, heard: AtomicBool::new(false) })
    }

    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Sends, and gives an answer that is no refusal.
    pub async fn send(&self, ask: &Ask) -> Result<Response, ClientError> {
        let give_up = Instant::now() + PATIENCE;
        let mut pause = PAUSE.0;
        let mut renewed = false;
        loop {
            let error = match self.once(ask).await {
                Ok(response) => match self.accepted(response).await {
                    Ok(response) => return Ok(response),
                    Err(Rejected { refusal, .. })
                        if refusal.kind == RefusalKind::SignIn && !renewed && self.forget_token().await =>
                    {
                        renewed = true;
                        continue;
                    }
                    Err(Rejected { refusal, after })
                        if refusal.kind == RefusalKind::Busy && Instant::now() + after < give_up =>
                    {
                        // The server said how long.
                        tokio::time::sleep(after).await;
                        continue;
                    }
                    Err(Rejected { refusal, .. }) => return Err(refusal.into()),
                },
                Err(error) => error,
            };
            let cannot_have_arrived = matches!(error, ClientError::Unreachable { .. });
            let may_repeat = ask.is_read() || cannot_have_arrived;
            if let (true, Some(local)) = (may_repeat, &self.local) {
                local.ensure_served().await?;
            } else if !self.heard.load(Ordering::Relaxed) || !may_repeat {
                return Err(error);
            }
            if Instant::now() + pause >= give_up {
                return Err(error);
            }
            // Nothing tells when a server is back; soon at first, for one that only restarts.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Sends a body that can be sent only once.
    pub async fn send_stream(
        &self,
        method: Method,
        path: &str,
        length: u64,
        body: Body,
    ) -> Result<Response, ClientError> {
        let mut request = self
            .http
            .request(method, self.address(path)?)
            .header(reqwest::header::CONTENT_LENGTH, length)
            .body(body);
        if let Some(sign_in) = &self.sign_in {
            request = request.header(AUTHORIZATION, sign_in.header(&self.http, &self.base).await?);
        }
        let response = request.send().await.map_err(|error| self.transport(error))?;
        self.accepted(response).await.map_err(|rejected| rejected.refusal.into())
    }

    async fn once(&self, ask: &Ask) -> Result<Response, ClientError> {
        let mut request =
            self.http.request(ask.method.clone(), self.address(&ask.path)?).headers(ask.headers.clone());
        if let Some(body) = &ask.body {
            request = request.body(body.clone());
        }
        if let Some(sign_in) = &self.sign_in {
            request = request.header(AUTHORIZATION, sign_in.header(&self.http, &self.base).await?);
        }
        match tokio::time::timeout(ANSWER_LIMIT, request.send()).await {
            Ok(Ok(response)) => {
                self.heard.store(true, Ordering::Relaxed);
                Ok(response)
            }
            Ok(Err(error)) => Err(self.transport(error)),
            Err(_) => {
                Err(ClientError::Silent { server: self.shown.clone(), seconds: ANSWER_LIMIT.as_secs() })
            }
        }
    }

    fn address(&self, path: &str) -> Result<Url, ClientError> {
        self.base
            .join(path)
            .map_err(|error| ClientError::Strange { server: self.shown.clone(), why: error.to_string() })
    }

    /// An error of the HTTP client, without its address.
    pub fn transport(&self, error: reqwest::Error) -> ClientError {
        let server = self.shown.clone();
        let source = error.without_url();
        if source.is_connect() || source.is_builder() {
            ClientError::Unreachable { server, source }
        } else {
            ClientError::Broken { server, source }
        }
    }

    pub fn strange(&self, why: impl Into<String>) -> ClientError {
        ClientError::Strange { server: self.shown.clone(), why: why.into() }
    }

    async fn forget_token(&self) -> bool {
        match &self.sign_in {
            Some(sign_in) => {
                sign_in.forget().await;
                true
            }
            None => false,
        }
    }

    /// The one place of the client that knows what a status means.
    async fn accepted(&self, response: Response) -> Result<Response, Rejected> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let kind = match status {
            StatusCode::UNAUTHORIZED => RefusalKind::SignIn,
            StatusCode::NOT_FOUND | StatusCode::GONE => RefusalKind::NotFound,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => RefusalKind::Busy,
            status if status.is_server_error() => RefusalKind::Server,
            _ => RefusalKind::Request,
        };
        let after = retry_after(response.headers()).unwrap_or(Duration::from_secs(2));
        let mut response = response;
        let mut body = Vec::new();
        while let Ok(Ok(Some(chunk))) = tokio::time::timeout(ANSWER_LIMIT, response.chunk()).await {
            let room = ERROR_BYTES - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if body.len() == ERROR_BYTES {
                break;
            }
        }
        Err(Rejected { refusal: Refusal::of(kind, status.as_str(), &body), after })
    }
}

struct Rejected {
    refusal: Refusal,
    /// When it may be asked again.
    after: Duration,
}

/// `Retry-After` in seconds, within reason.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.clamp(1, 60)))
}

fn builder() -> reqwest::ClientBuilder {
    static PROVIDER: Once = Once::new();
    // An error means that the program has chosen one already: then that one is used.
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    reqwest::Client::builder()
        // The environment is not ours to read; a server is reached directly.
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(CONNECT_LIMIT)
        .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, ClientError> {
    let here = |source| ClientError::Here {
        what: format!("the certificate authority {} cannot be used", path.display()),
        source,
    };
    let invalid = |why: &str| here(std::io::Error::new(std::io::ErrorKind::InvalidData, why.to_owned()));
    let pem = std::fs::read(path).map_err(here)?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(certificates) if certificates.is_empty() => Err(invalid("the file holds no certificate")),
        Ok(certificates) => Ok(certificates),
        Err(_) => Err(invalid("the file is not PEM")),
    }
}

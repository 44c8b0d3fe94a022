//! HTTP/1.1 over one connection that is ours alone.
//!
//! A login by NTLM belongs to the TCP connection, so connections are never pooled: whoever holds a [`Wire`] knows
//! which one it speaks on. Dropping it cuts the connection.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::error::LinkFailure;
use super::login::{Transport, WinrmLimits, WinrmLogin};
use super::tls::{self, NoTls};

/// More than any envelope a server is asked for; a guest that sends more means harm.
const ANSWER_LIMIT: usize = 16 * 1024 * 1024;

pub(crate) struct Wire {
    sender: SendRequest<Full<Bytes>>,
    addr: SocketAddr,
    /// The TLS channel's binding, when there is TLS.
    pub(crate) binding: Option<Vec<u8>>,
    driver: JoinHandle<()>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

pub(crate) struct HttpAnswer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl HttpAnswer {
    pub(crate) fn content_type(&self) -> &str {
        self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

async fn dial(addr: SocketAddr, limits: &WinrmLimits) -> Result<TcpStream, LinkFailure> {
    let tcp = tokio::time::timeout(limits.silence, TcpStream::connect(addr))
        .await
        .map_err(|_| LinkFailure::Silent { limit: limits.silence })?
        .map_err(LinkFailure::from_connect)?;
    // A request is one write, and the answer to it is waited for.
    tcp.set_nodelay(true).map_err(LinkFailure::NoConnection)?;
    Ok(tcp)
}

/// One look at the certificate that is shown at `addr`: its SHA-256 digest.
pub(crate) async fn shown_certificate(
    addr: SocketAddr,
    limits: &WinrmLimits,
) -> Result<[u8; 32], LinkFailure> {
    let shown = tls::shown(dial(addr, limits).await?);
    let shown = tokio::time::timeout(limits.silence, shown)
        .await
        .map_err(|_| LinkFailure::Silent { limit: limits.silence })?;
    shown.map_err(|failure| match failure {
        NoTls::Handshake(error) => LinkFailure::Tls(error),
        // No certificate is wrong where none is pinned.
        NoTls::WrongCertificate { got } => LinkFailure::WrongCertificate { expected: got.clone(), got },
    })
}

impl Wire {
    pub(crate) async fn open(login: &WinrmLogin, limits: &WinrmLimits) -> Result<Self, LinkFailure> {
        let addr = login.addr;
        let silent = |_| LinkFailure::Silent { limit: limits.silence };
        let tcp = dial(addr, limits).await?;
        match &login.transport {
            Transport::Http => Self::start(tcp, addr, None).await,
            Transport::Https { pin, .. } => {
                let shaken =
                    tokio::time::timeout(limits.silence, tls::connect(tcp, pin)).await.map_err(silent)?;
                let (stream, binding) = shaken.map_err(|failure| match failure {
                    NoTls::WrongCertificate { got } => {
                        LinkFailure::WrongCertificate { expected: pin.clone(), got }
                    }
                    NoTls::Handshake(error) => LinkFailure::Tls(error),
                })?;
                Self::start(stream, addr, Some(binding)).await
            }
        }
    }

    async fn start<S>(stream: S, addr: SocketAddr, binding: Option<Vec<u8>>) -> Result<Self, LinkFailure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(LinkFailure::Http)?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%addr, %error, "a connection to the guest ended");
            }
        });
        Ok(Self { sender, addr, binding, driver })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Sends one request and reads its answer to the end, within `limit`.
    pub(crate) async fn post(
        &mut self,
        content_type: &'static str,
        authorization: Option<HeaderValue>,
        extra: Option<(HeaderName, HeaderValue)>,
        body: Vec<u8>,
        limit: Duration,
    ) -> Result<HttpAnswer, LinkFailure> {
        let host = HeaderValue::from_str(&self.addr.to_string()).map_err(|_| LinkFailure::NotSent)?;
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = hyper::Uri::from_static("/wsman");
        let headers = request.headers_mut();
        headers.insert(HOST, host);
        headers.insert(USER_AGENT, HeaderValue::from_static("kiln"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(mut value) = authorization {
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        if let Some((name, value)) = extra {
            headers.insert(name, value);
        }
        let exchange = async {
            self.sender.ready().await.map_err(|_| LinkFailure::NotSent)?;
            let sent = self.sender.send_request(request).await;
            let answer = sent.map_err(|error| {
                // hyper's word for a request that it still held when the connection was found to be gone.
                if error.is_canceled() { LinkFailure::NotSent } else { LinkFailure::Http(error) }
            })?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER_LIMIT).collect().await.map_err(|error| match error
                .downcast::<hyper::Error>(
            ) {
                Ok(error) => LinkFailure::Http(*error),
                Err(_too_long) => LinkFailure::TooLong { limit: ANSWER_LIMIT },
            })?;
            Ok(HttpAnswer { status: head.status, headers: head.headers, body: body.to_bytes() })
        };
        tokio::time::timeout(limit, exchange).await.map_err(|_| LinkFailure::Silent { limit })?
    }
}

//! The bytes under an SSH session: a TCP connection whose banner has been read, and that can be cut at once.
//!
//! User-mode networking accepts a TCP connection while the guest is still down, so a connection means nothing until
//! the server has spoken. [`Link::open`] therefore reads up to the SSH identification line under a limit of its own
//! and gives the bytes read back to whoever reads the link afterwards.
//!
//! A session's task lives as long as its link. The [`CancellationToken`] of a link ends both at once, also in the
//! middle of a key exchange or of a write that the other side never takes.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// RFC 4253, 4.2: the identification line is at most 255 bytes; lines before it are allowed. This is for all of them.
const PREAMBLE_LIMIT: usize = 8 * 1024;

/// Why there is no SSH server to talk to.
#[derive(Debug)]
pub(crate) enum NoBanner {
    Connect(io::Error),
    /// TCP was accepted, then nothing came within the limit.
    Silent,
    /// TCP was accepted and closed again.
    Closed,
    /// Something else answers there; the first bytes of what it said.
    NotSsh(Vec<u8>),
}

pub(crate) struct Link {
    stream: TcpStream,
    /// What was read while looking for the banner, and how much of it has been given back.
    preamble: Vec<u8>,
    given: usize,
    severed: Pin<Box<WaitForCancellationFutureOwned>>,
    severed_write: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Link {
    /// Connects and reads the banner, both within `limit`.
    pub(crate) async fn open(
        addr: SocketAddr,
        limit: Duration,
        severed: &CancellationToken,
    ) -> Result<Self, NoBanner> {
        let opening = async {
            let mut stream = TcpStream::connect(addr).await.map_err(NoBanner::Connect)?;
            // Small packets that wait for an answer are all this link carries outside of uploads.
            stream.set_nodelay(true).map_err(NoBanner::Connect)?;
            let preamble = read_preamble(&mut stream).await?;
            Ok((stream, preamble))
        };
        let (stream, preamble) =
            tokio::time::timeout(limit, opening).await.map_err(|_| NoBanner::Silent)??;
        Ok(Self {
            stream,
            preamble,
            given: 0,
            severed: Box::pin(severed.clone().cancelled_owned()),
            severed_write: Box::pin(severed.clone().cancelled_owned()),
        })
    }
}

/// Reads until a whole line starting with `SSH-` is there.
async fn read_preamble(stream: &mut TcpStream) -> Result<Vec<u8>, NoBanner> {
    let mut preamble = Vec::new();
    loop {
        let count = stream.read_buf(&mut preamble).await.map_err(|_reset| NoBanner::Closed)?;
        let mut complete =
            preamble.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
        if complete.any(|line| line.starts_with(b"SSH-")) {
            return Ok(preamble);
        }
        if count == 0 {
            return Err(if preamble.is_empty() { NoBanner::Closed } else { NoBanner::NotSsh(preamble) });
        }
        if preamble.len() > PREAMBLE_LIMIT {
            return Err(NoBanner::NotSsh(preamble));
        }
    }
}

fn severed() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was given up on this side")
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.severed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(severed()));
        }
        let this = &mut *self;
        let left = &this.preamble[this.given..];
        if left.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let count = left.len().min(buf.remaining());
        buf.put_slice(&left[..count]);
        this.given += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Link {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.severed_write.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(severed()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

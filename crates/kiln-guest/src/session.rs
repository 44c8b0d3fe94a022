//! One SSH session: the login, the checked host key, commands over channels.
//!
//! A session ends for good: when its link breaks, when the guest stays silent (keep-alives), or when the last holder
//! drops it. Then every channel on it ends too, and [`Session::closed`] resolves. Whether to make another one is
//! [`Guest`](crate::Guest)'s decision.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use russh::client::{self, AuthResult, Handle, Msg};
use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{AlgorithmKind, ChannelMsg, ChannelWriteHalf, Disconnect, Preferred, cipher};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::connect::{AttemptFailure, Limits, Login};
use crate::keys::PublicKey;
use crate::link::Link;

/// A quiet guest is asked for a sign of life; after this many unanswered ones the session is over.
const MISSED_KEEP_ALIVES: usize = 3;
/// A write that nobody takes blocks the session's own timers, so it gets a limit too, in keep-alive intervals.
/// More than the keep-alives need, so that those decide while anything still moves.
const STUCK_WRITE: u32 = 6;

pub(crate) struct Session {
    handle: Handle<Gatekeeper>,
    closed: CancellationToken,
    /// Learned by [`crate::Guest`] when first needed.
    pub(crate) boot_id: OnceLock<String>,
    /// Ends the task behind the session with it, whatever that task is waiting for.
    _severed: DropGuard,
}

/// Which of a command's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// What a command reads.
pub(crate) enum Stdin<'a> {
    Bytes(&'a [u8]),
    /// Chunks from a reader of its own; the callback hears how many bytes are on their way.
    Chunks(mpsc::Receiver<Vec<u8>>, &'a mut (dyn FnMut(u64) + Send)),
}

pub(crate) enum CommandEnd {
    Exited(u32),
    Signaled(String),
    /// The caller's sink wanted no more; the channel was closed, the command may still run.
    Stopped,
}

/// Why a command has no end.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The link was gone before the command was asked for: it did not run.
    BeforeStart,
    /// The link broke, or the server dropped the channel: the command may or may not have run.
    Lost,
    /// The link is fine, the server does not want to.
    Refused(String),
}

impl Session {
    pub(crate) async fn open(login: &Login, limits: &Limits) -> Result<Self, AttemptFailure> {
        let severed = CancellationToken::new();
        // Also cuts the link when this future is dropped half way.
        let severing = severed.clone().drop_guard();
        let link = Link::open(login.addr, limits.banner, &severed)
            .await
            .map_err(|failure| AttemptFailure::from_link(failure, limits))?;
        let (handle, closed) = tokio::time::timeout(limits.handshake, log_in(link, login, limits))
            .await
            .map_err(|_| AttemptFailure::HandshakeTimeout { limit: limits.handshake })??;
        Ok(Self { handle, closed, boot_id: OnceLock::new(), _severed: severing })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Says goodbye. The server's side ends at once instead of when it notices.
    pub(crate) async fn disconnect(&self) {
        let _gone_already = self.handle.disconnect(Disconnect::ByApplication, "", "en").await;
        self.closed().await;
    }

    /// Runs a command to its end: feeds `stdin`, then end of file, and hands over both outputs as they come.
    ///
    /// Dropping the future closes the channel; the command itself is not killed by that.
    pub(crate) async fn run(
        &self,
        command: &str,
        stdin: Stdin<'_>,
        mut on_output: impl FnMut(Stream, &[u8]) -> ControlFlow<()>,
    ) -> Result<CommandEnd, Broken> {
        let channel = match self.handle.channel_open_session().await {
            Ok(channel) => channel,
            Err(russh::Error::ChannelOpenFailure(reason)) => {
                return Err(Broken::Refused(format!("{reason:?}")));
            }
            Err(_) => return Err(Broken::BeforeStart),
        };
        let (mut reader, writer) = channel.split();
        let writer = ClosingWriter(Arc::new(writer));
        writer.0.exec(true, command).await.map_err(|_| Broken::BeforeStart)?;

        let feeding = feed(&writer.0, stdin);
        tokio::pin!(feeding);
        let mut fed = false;
        let mut end = None;
        loop {
            tokio::select! {
                biased;
                message = reader.wait() => match message {
                    Some(ChannelMsg::Data { data }) => {
                        if on_output(Stream::Stdout, &data).is_break() {
                            return Ok(CommandEnd::Stopped);
                        }
                    }
                    Some(ChannelMsg::ExtendedData { data, ext: 1 }) => {
                        if on_output(Stream::Stderr, &data).is_break() {
                            return Ok(CommandEnd::Stopped);
                        }
                    }
                    Some(ChannelMsg::ExitStatus { exit_status }) => end = Some(CommandEnd::Exited(exit_status)),
                    Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                        end = Some(CommandEnd::Signaled(format!("{signal_name:?}")));
                    }
                    Some(ChannelMsg::Failure) => return Err(Broken::Refused("request failed".to_owned())),
                    Some(ChannelMsg::Close) | None => return end.ok_or(Broken::Lost),
                    Some(_) => {}
                },
                // A command may end without reading its input: its end tells more than a failed write.
                () = &mut feeding, if !fed => fed = true,
            }
        }
    }
}

async fn log_in(
    link: Link,
    login: &Login,
    limits: &Limits,
) -> Result<(Handle<Gatekeeper>, CancellationToken), AttemptFailure> {
    let config = client::Config {
        preferred: Preferred {
            // Only the kind of key we injected: a server with several kinds must prove itself by ours.
            key: Cow::Owned(vec![login.host_key.algorithm()]),
            cipher: Cow::Borrowed(CIPHERS),
            // Loopback is faster than any compression.
            compression: Cow::Borrowed(&[russh::compression::NONE]),
            ..Preferred::DEFAULT
        },
        keepalive_interval: Some(limits.keep_alive),
        keepalive_max: MISSED_KEEP_ALIVES,
        inactivity_timeout: Some(limits.keep_alive * STUCK_WRITE),
        ..client::Config::default()
    };
    let closed = CancellationToken::new();
    let gatekeeper = Gatekeeper { expected: login.host_key.clone(), _closed: closed.clone().drop_guard() };
    let mut handle = client::connect_stream(Arc::new(config), link, gatekeeper)
        .await
        .map_err(|refusal| refusal.into_failure(login))?;
    let key = PrivateKeyWithHashAlg::new(login.key.private_key(), None);
    match handle.authenticate_publickey(login.user.as_str(), key).await {
        Ok(AuthResult::Success) => Ok((handle, closed)),
        Ok(AuthResult::Failure { .. }) => Err(AttemptFailure::KeyRefused { user: login.user.clone() }),
        Err(error) => Err(AttemptFailure::Handshake(error)),
    }
}

/// AES-GCM has instructions of its own on the host; ChaCha20 for guests without them comes next.
const CIPHERS: &[cipher::Name] =
    &[cipher::AES_128_GCM, cipher::AES_256_GCM, cipher::CHACHA20_POLY1305, cipher::AES_256_CTR];

/// Lets in the one server whose host key we injected.
struct Gatekeeper {
    expected: PublicKey,
    /// The session's task owns the gatekeeper: when the task ends, however it does, the session is closed.
    _closed: DropGuard,
}

#[derive(Debug)]
enum Refusal {
    WrongHostKey { got: String },
    Ssh(russh::Error),
}

impl From<russh::Error> for Refusal {
    fn from(error: russh::Error) -> Self {
        Self::Ssh(error)
    }
}

impl Refusal {
    fn into_failure(self, login: &Login) -> AttemptFailure {
        let wrong_key = |got| AttemptFailure::WrongHostKey { expected: login.host_key.fingerprint(), got };
        match self {
            Self::WrongHostKey { got } => wrong_key(got),
            Self::Ssh(russh::Error::NoCommonAlgo { kind: AlgorithmKind::Key, theirs, .. }) => wrong_key(
                format!("of another kind ({})", crate::error::excerpt(theirs.join(", ").as_bytes())),
            ),
            Self::Ssh(error) => AttemptFailure::Handshake(error),
        }
    }
}

impl client::Handler for Gatekeeper {
    type Error = Refusal;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Refusal> {
        match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => {
                let got = PublicKey::from(key.clone());
                if got == self.expected {
                    return Ok(true);
                }
                Err(Refusal::WrongHostKey { got: got.fingerprint() })
            }
            PublicKeyOrCertificate::Certificate(_) => {
                Err(Refusal::WrongHostKey { got: "a certificate".to_owned() })
            }
        }
    }
}

async fn feed(writer: &ChannelWriteHalf<Msg>, stdin: Stdin<'_>) {
    let fed = async {
        match stdin {
            Stdin::Bytes(bytes) => writer.data_bytes(bytes.to_vec()).await?,
            Stdin::Chunks(mut chunks, sent) => {
                let mut total = 0;
                while let Some(chunk) = chunks.recv().await {
                    total += chunk.len() as u64;
                    writer.data_bytes(chunk).await?;
                    sent(total);
                }
            }
        }
        writer.eof().await
    };
    if let Err(error) = fed.await {
        tracing::debug!(%error, "a command's input was not taken to its end");
    }
}

/// Closes the channel when the command is no longer waited for, so that an abandoned one does not pile up output.
struct ClosingWriter(Arc<ChannelWriteHalf<Msg>>);

impl Drop for ClosingWriter {
    fn drop(&mut self) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // Short and bounded: the message is taken by the session's task or fails with it.
            let writer = Arc::clone(&self.0);
            runtime.spawn(async move { writer.close().await });
        }
    }
}

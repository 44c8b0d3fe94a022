//! A disk of any format, read through QEMU without root and without a mount.
//!
//! ```text
//!   spawn_blocking: parse ── Ask(offset, length) ──► this task ── NBD over a Unix socket ──► qemu-nbd --read-only
//!                         ◄── bytes ────────────────     │
//!                                                        └─ beside it: the child's end, the control, a limit
//! ```
//!
//! Who owns what: the child dies with [`with_disk`], and so does the folder with its socket, which only we can enter. The
//! parsing thread holds nothing but its end of the queue: when the queue is gone, its next read fails, and it ends.
//!
//! How it fails: a child that ends early is an error with its own words, one that is silent is given up after a limit.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_host::process::{Child, Invocation, Sink, SpawnOptions, describe_status};
use kiln_host::wait::Control;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::OfflineError;
use super::nbd::Nbd;
use super::source::{Cached, Fault, ReadAt};
use crate::disk::DiskFormat;
use crate::qemu_img::QemuImg;

/// Until the server has opened a disk and greets. It opens a chain of files and reads their headers.
const OPEN_LIMIT: Duration = Duration::from_secs(60);
/// Until 64 KiB are read: long for a sleeping disk, short for a dead network share.
const READ_LIMIT: Duration = Duration::from_secs(120);

/// Of a child whose connection is gone, until it has ended.
const END_LIMIT: Duration = Duration::from_secs(5);

/// The connection broke. Other errors are of the disk, or of what was said.
fn is_lost(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | BrokenPipe | ConnectionReset)
}

/// A read that the parsing thread waits for.
struct Ask {
    offset: u64,
    length: u32,
    answer: oneshot::Sender<io::Result<Vec<u8>>>,
}

/// The parsing thread's end.
struct Remote {
    asks: mpsc::Sender<Ask>,
    size: u64,
}

impl ReadAt for Remote {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        let length = buffer.len();
        let failed = |source| Fault::Disk { offset, length, source };
        let gone = || failed(io::Error::other("nobody reads any more"));
        let (answer, answered) = oneshot::channel();
        let asked = u32::try_from(length).map_err(|_| gone())?;
        self.asks.blocking_send(Ask { offset, length: asked, answer }).map_err(|_| gone())?;
        let bytes = answered.blocking_recv().map_err(|_| gone())?.map_err(failed)?;
        if bytes.len() != length {
            return Err(gone());
        }
        buffer.copy_from_slice(&bytes);
        Ok(())
    }
}

/// Lets `work` read a disk, on a thread for blocking work. It ends soon after the future does, however that ends.
pub(super) async fn with_disk<T: Send + 'static>(
    img: &QemuImg,
    disk: &Path,
    format: DiskFormat,
    control: &Control,
    work: impl FnOnce(&dyn ReadAt) -> Result<T, Fault> + Send + 'static,
) -> Result<T, OfflineError> {
    let mut export = Export::open(img, disk, format, control).await?;
    let (asks, mut asked) = mpsc::channel::<Ask>(1);
    let remote = Remote { asks, size: export.nbd.size() };
    let mut working = tokio::task::spawn_blocking(move || work(&Cached::new(remote)));
    loop {
        tokio::select! {
            biased;
            why = control.interrupted() => return Err(why.into()),
            Some(ask) = asked.recv() => {
                let read = export.server.beside(export.nbd.read(ask.offset, ask.length), READ_LIMIT, control);
                // Whoever asked is told by the end of the queue when this ends in an error.
                let answer = match read.await? {
                    Err(error) if is_lost(&error) || error.kind() == io::ErrorKind::InvalidData => {
                        return Err(export.server.broken(error, control).await);
                    }
                    answer => answer,
                };
                let _ = ask.answer.send(answer);
            }
            done = &mut working => {
                let done = done.map_err(|gone| OfflineError::Lost { disk: disk.to_owned(), source: gone.into() })?;
                return done.map_err(|source| OfflineError::Read { disk: disk.to_owned(), source });
            }
        }
    }
}

/// A running server and a connection to it.
struct Export {
    server: Server,
    nbd: Nbd,
}

struct Server {
    child: Child,
    disk: PathBuf,
    /// Holds the socket and what the server says.
    dir: tempfile::TempDir,
}

impl Export {
    async fn open(
        img: &QemuImg,
        disk: &Path,
        format: DiskFormat,
        control: &Control,
    ) -> Result<Self, OfflineError> {
        let server = Server::start(img, disk, format)?;
        let socket = server.dir.path().join(SOCKET);
        let connecting = async { Nbd::negotiate(connect(&socket).await?).await };
        let nbd = server.beside(connecting, OPEN_LIMIT, control).await?;
        match nbd {
            Ok(nbd) => Ok(Self { server, nbd }),
            Err(source) => Err(server.broken(source, control).await),
        }
    }
}

const SOCKET: &str = "nbd";
const WORDS: &str = "stderr";

impl Server {
    fn start(img: &QemuImg, disk: &Path, format: DiskFormat) -> Result<Self, OfflineError> {
        let open = |source| OfflineError::Open { disk: disk.to_owned(), source };
        // An absolute path is nothing but a path to QEMU, which takes "nbd:…" for something else.
        let path = std::fs::canonicalize(disk).map_err(open)?;
        std::fs::File::open(&path).map_err(open)?;
        let folder = |source| OfflineError::Lost { disk: disk.to_owned(), source };
        let dir = tempfile::Builder::new().prefix("kiln-").tempdir().map_err(folder)?;
        let words = std::fs::File::create(dir.path().join(WORDS)).map_err(folder)?;
        let command = Invocation::new(program(img))
            .env("LC_ALL", "C")
            .args(["--read-only", "--format", format.name(), "--socket"])
            .arg(dir.path().join(SOCKET))
            .arg("--")
            .arg(&path);
        let options =
            SpawnOptions { stderr: Sink::File(words), no_new_privs: true, ..SpawnOptions::default() };
        Ok(Self { child: command.spawn(options)?, disk: disk.to_owned(), dir })
    }

    /// Waits for `future`, the child's end, the control and the limit, whatever comes first.
    async fn beside<F: Future>(
        &self,
        future: F,
        limit: Duration,
        control: &Control,
    ) -> Result<F::Output, OfflineError> {
        tokio::select! {
            biased;
            why = control.interrupted() => Err(why.into()),
            output = future => Ok(output),
            ended = self.child.wait() => {
                let status = describe_status(ended?);
                Err(OfflineError::Serve { disk: self.disk.clone(), how: format!("{status}{}", self.words()) })
            }
            () = tokio::time::sleep(limit) => {
                let how = format!("no answer for {} s{}", limit.as_secs(), self.words());
                Err(OfflineError::Serve { disk: self.disk.clone(), how })
            }
        }
    }

    /// A connection that failed. Where it broke, the child is most often at its end, and has said why: it listens before
    /// it opens the disk.
    async fn broken(&self, source: io::Error, control: &Control) -> OfflineError {
        let mut how = source.to_string();
        if is_lost(&source) {
            match control.within(END_LIMIT).guard(self.child.wait()).await {
                Ok(Ok(status)) => how = describe_status(status),
                Ok(Err(error)) => return error.into(),
                Err(_) => {
                    if let Err(why) = control.check() {
                        return why.into();
                    }
                }
            }
        }
        OfflineError::Serve { disk: self.disk.clone(), how: how + &self.words() }
    }

    /// What the child has said, for an error; never more than 4 KiB.
    fn words(&self) -> String {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        let read = std::fs::File::open(self.dir.path().join(WORDS))
            .and_then(|file| file.take(4096).read_to_end(&mut bytes));
        let text = String::from_utf8_lossy(&bytes);
        match (read, text.trim()) {
            (Err(_), _) | (_, "") => String::new(),
            (Ok(_), words) => format!("; it said: {words}"),
        }
    }
}

/// The server lies beside qemu-img, in one package with it; or on `PATH`.
fn program(img: &QemuImg) -> PathBuf {
    let beside = img.program().with_file_name("qemu-nbd");
    if beside.is_file() { beside } else { "qemu-nbd".into() }
}

/// The server cannot tell when it listens, short of becoming a daemon. A refused connection costs nothing: so again,
/// after a pause that doubles up to a tenth of a second. The caller ends it.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let mut pause = Duration::from_millis(2);
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(100));
            }
            Err(error) => return Err(error),
        }
    }
}

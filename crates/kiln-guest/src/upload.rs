//! Files into the guest: any size, streamed, checked where they lie, there whole or not at all.
//!
//! One command in the guest takes the file (`upload.sh`): from its standard input, for which one thread here reads it and
//! one channel carries it, so memory stays bounded by the channel's window; or from a medium in the machine's drive, and
//! then nothing goes over the link but the answer.
//!
//! INVARIANT: a file's checksum is checked again inside the guest, on the bytes as they lie on its disk, before the
//! file gets its name. Guarded by `upload.sh`, the only way a file gets in, and its tests.

use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

use kiln_host::digest::hex;
use kiln_host::wait::Control;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::error::{GuestError, excerpt};
use crate::guest::{Guest, script_command};
use crate::session::{Broken, CommandEnd, Session, Stdin};
use crate::step::nonce;

/// Where an upload takes the file's bytes from.
#[derive(Debug, Clone, Copy)]
pub enum UploadFrom<'a> {
    /// A file of this host, sent over the link.
    Link(&'a Path),
    /// A file on an ISO 9660 volume in the machine's drive.
    Medium { label: &'a str, name: &'a str, bytes: u64 },
}

impl<'a> From<&'a Path> for UploadFrom<'a> {
    fn from(local: &'a Path) -> Self {
        Self::Link(local)
    }
}

/// What an upload left in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uploaded {
    pub bytes: u64,
    pub placed_as: PlacedAs,
}

/// Whose hand placed a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlacedAs {
    LoginUser,
    /// By sudo, because the login user may not write there. A new file is root's then.
    Root,
}

/// Why a file did not get to its place. The guest is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum UploadFailure {
    #[error("cannot read the file")]
    Read(#[source] std::io::Error),
    /// Not the file's fault: it may come over the link.
    #[error("the guest cannot read the medium: {detail}")]
    NoMedium { detail: String },
    #[error("the destination {remote:?} is not a full path of a file")]
    BadDestination { remote: String },
    #[error(
        "the directory {directory} does not exist in the guest (no such file or directory); it is not made"
    )]
    NoDirectory { directory: String },
    #[error("{path} is a directory in the guest; end it with a slash or add a file name")]
    IsDirectory { path: String },
    #[error("the login user may not write there (permission denied): {detail}")]
    Denied { detail: String },
    #[error("the file system there is read-only in the guest: {detail}")]
    ReadOnly { detail: String },
    #[error("the guest's disk is full: {detail}")]
    DiskFull { detail: String },
    #[error("writing failed in the guest: {detail}")]
    Write { detail: String },
    #[error("the sha256 digest of what arrived is {got}, expected {expected}")]
    DigestMismatch { expected: String, got: String },
    #[error("{got} of {expected} bytes arrived; did the file change meanwhile?")]
    SizeMismatch { expected: u64, got: String },
    #[error(
        "the guest has no program to take a sha256 digest with (sha256sum, openssl, busybox, shasum, python3)"
    )]
    NoDigestProgram,
    #[error("the guest's answer makes no sense: {said}")]
    Unclear { said: String },
}

/// Read from disk and sent in pieces of this many bytes; sixteen SSH packets.
const CHUNK: usize = 512 * 1024;
/// Pieces read ahead.
const READ_AHEAD: usize = 4;
/// A file whose link breaks is sent again from its start, this often within the limit for a lost guest.
const SEND_LIMIT: u32 = 10;

impl Guest {
    /// Puts the file `from` at `remote`, a full path in a directory that exists (see
    /// [`resolve_destination`](crate::resolve_destination)), with `mode` when it is new there. A file that was there
    /// keeps owner and mode. The login user writes it; with `privileged`, sudo does where that user may not, and a
    /// new file is root's. `progress` hears the bytes sent so far; they begin anew when a lost link is mended.
    ///
    /// # Errors
    /// [`GuestError::Upload`] with the [`UploadFailure`]; those of a lost guest.
    #[expect(
        clippy::too_many_arguments,
        reason = "a file, its place, its proof, and how to wait: all of one act"
    )]
    pub async fn upload(
        &self,
        from: UploadFrom<'_>,
        remote: &str,
        mode: u32,
        expected_sha256: [u8; 32],
        privileged: bool,
        mut progress: impl FnMut(u64) + Send,
        control: &Control,
    ) -> Result<Uploaded, GuestError> {
        let local = match from {
            UploadFrom::Link(local) => local.display().to_string(),
            UploadFrom::Medium { label, name, .. } => format!("{name} on {label}"),
        };
        let failed =
            |failure| GuestError::Upload { local: local.clone(), remote: remote.to_owned(), failure };
        if !remote.starts_with('/') || remote.ends_with('/') || remote.contains('\0') {
            return Err(failed(UploadFailure::BadDestination { remote: remote.to_owned() }));
        }
        let (bytes, label, name) = match from {
            UploadFrom::Link(local) => {
                let found = std::fs::metadata(local).map_err(|error| failed(UploadFailure::Read(error)))?;
                (found.len(), "", "")
            }
            UploadFrom::Medium { label, name, bytes } => (bytes, label, name),
        };
        let expected = hex(&expected_sha256);
        let begin = Instant::now();
        let mut sends = 0;
        loop {
            sends += 1;
            let session = self.session(control).await?;
            // Its own name for each attempt: the rest of a broken one may still be on its way out.
            let marker = format!("kiln-upload-{}", nonce());
            let (size, mode) = (bytes.to_string(), format!("{mode:o}"));
            let may_sudo = if privileged { "root" } else { "" };
            let args = [marker.as_str(), remote, &expected, &size, &mode, may_sudo, label, name];
            let command = script_command(include_str!("upload.sh"), &args);
            let done = match from {
                UploadFrom::Link(local) => {
                    control.guard(send(&session, &command, local, &mut progress)).await?
                }
                UploadFrom::Medium { .. } => {
                    control.guard(attend(&session, &command, &marker, &mut progress)).await?
                }
            };
            match done {
                Ok(answer) => {
                    let placed_as =
                        read_answer(&answer, &marker, &expected, bytes, remote).map_err(failed)?;
                    let seconds = begin.elapsed().as_secs_f64();
                    tracing::debug!(remote, bytes, seconds, ?placed_as, "uploaded");
                    return Ok(Uploaded { bytes, placed_as });
                }
                Err(SendError::Read(error)) => return Err(failed(UploadFailure::Read(error))),
                Err(SendError::Broken(Broken::Refused(reason))) => {
                    return Err(GuestError::CommandRefused { act: "an upload".to_owned(), reason });
                }
                Err(SendError::Broken(_)) => {
                    if begin.elapsed() >= self.limits().reconnect || sends >= SEND_LIMIT {
                        return Err(GuestError::LinkLost { act: format!("the upload of {remote}") });
                    }
                    tracing::debug!(remote, sends, "link lost during an upload, sending again");
                    self.settle(&session, control).await?;
                }
            }
        }
    }
}

enum SendError {
    Read(std::io::Error),
    Broken(Broken),
}

/// More than our script ever says, with a line for each 64 MiB of a file.
const ANSWER_LIMIT: usize = 256 * 1024;

/// Hears of a file that the guest takes from its medium.
async fn attend(
    session: &Session,
    command: &str,
    marker: &str,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<Vec<u8>, SendError> {
    let at = format!("{marker} at ");
    let mut answer = Vec::new();
    let end = session
        .run(command, Stdin::Bytes(b""), |_, bytes| {
            if answer.len() < ANSWER_LIMIT {
                answer.extend_from_slice(bytes);
            }
            let said = String::from_utf8_lossy(&answer);
            // A line that is not whole yet is heard with its end.
            let reached = said.rsplit_once(&at).and_then(|(_, rest)| rest.split_once('\n')?.0.parse().ok());
            if let Some(reached) = reached {
                progress(reached);
            }
            ControlFlow::Continue(())
        })
        .await;
    answered(end, answer)
}

fn answered(end: Result<CommandEnd, Broken>, answer: Vec<u8>) -> Result<Vec<u8>, SendError> {
    match end {
        Ok(CommandEnd::Exited(_) | CommandEnd::Stopped) => Ok(answer),
        // Killed together with its session: the guest goes down, or somebody cleans up.
        Ok(CommandEnd::Signaled(_)) => Err(SendError::Broken(Broken::Lost)),
        Err(broken) => Err(SendError::Broken(broken)),
    }
}

async fn send(
    session: &Session,
    command: &str,
    local: &Path,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<Vec<u8>, SendError> {
    let mut file = std::fs::File::open(local).map_err(SendError::Read)?;
    let (sender, chunks) = mpsc::channel(READ_AHEAD);
    // Ends with the file, with an error, or when the receiver is dropped with the command.
    let reader = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            if (&mut file).take(CHUNK as u64).read_to_end(&mut chunk)? == 0 {
                return Ok(());
            }
            if sender.blocking_send(chunk).is_err() {
                return Ok(());
            }
        }
    });
    let mut answer = Vec::new();
    let end = session
        .run(command, Stdin::Chunks(chunks, progress), |_, bytes| {
            if answer.len() < ANSWER_LIMIT {
                answer.extend_from_slice(bytes);
            }
            ControlFlow::Continue(())
        })
        .await;
    // A file that could not be read to its end arrives short; the read error says why.
    if let Ok(Err(error)) = reader.await {
        return Err(SendError::Read(error));
    }
    answered(end, answer)
}

fn read_answer(
    answer: &[u8],
    marker: &str,
    expected: &str,
    bytes: u64,
    remote: &str,
) -> Result<PlacedAs, UploadFailure> {
    let text = String::from_utf8_lossy(answer);
    // The last of its lines: the others tell how far it is.
    let Some((_, rest)) = text.rsplit_once(&format!("{marker} ")) else {
        return Err(UploadFailure::Unclear { said: excerpt(answer) });
    };
    let (result, detail) = rest.split_once(' ').unwrap_or((rest, ""));
    let detail = excerpt(detail.as_bytes());
    Err(match result {
        "placed" if detail == "root" => return Ok(PlacedAs::Root),
        "placed" => return Ok(PlacedAs::LoginUser),
        "nodir" => {
            let directory = remote.rsplit_once('/').map_or("/", |(directory, _)| directory);
            UploadFailure::NoDirectory { directory: directory.to_owned() }
        }
        "isdir" => UploadFailure::IsDirectory { path: remote.to_owned() },
        "nomedium" => UploadFailure::NoMedium { detail },
        "short" => UploadFailure::SizeMismatch { expected: bytes, got: detail },
        "digest" => UploadFailure::DigestMismatch { expected: expected.to_owned(), got: detail },
        "nodigest" => UploadFailure::NoDigestProgram,
        "write" | "denied" => {
            // strerror(3) in the C locale, which our script sets.
            if detail.contains("No space left on device") || detail.contains("Disk quota exceeded") {
                UploadFailure::DiskFull { detail }
            } else if detail.contains("Read-only file system") {
                UploadFailure::ReadOnly { detail }
            } else if result == "denied" || detail.contains("Permission denied") {
                UploadFailure::Denied { detail }
            } else {
                UploadFailure::Write { detail }
            }
        }
        _ => UploadFailure::Unclear { said: excerpt(answer) },
    })
}

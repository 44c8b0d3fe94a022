//! Files into the guest: any size, streamed, checked where they lie, there whole or not at all.
//!
//! ```text
//!   PowerShell   one command that reads base64 from its input (`upload_reader.ps1`), fed by large Sends
//!   Batch        where there is none: lines of base64 echoed into a file, decoded and hashed by certutil
//! ```
//!
//! The first way takes four Sends for a MiB, the second some 180 commands.
//!
//! INVARIANT: a file's checksum is checked again inside the guest, on the bytes as they lie on its disk, before the
//! file gets its name. Guarded by `upload_reader.ps1` and by [`WinrmGuest::upload`], and their tests.

use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kiln_host::digest::hex;
use kiln_host::wait::Control;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::command::{CommandLine, encoded};
use super::error::WinrmError;
use super::guest::{Ended, Input, WinrmGuest};
use crate::error::excerpt;
use crate::guest::{ExecOutput, without_comments};
use crate::os::windows::medium::{PLACE, PLACE_MARK};
use crate::session::Stream;
use crate::step::nonce;
use crate::upload::UploadFailure;

/// What an upload left in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WinrmUploaded {
    pub bytes: u64,
    pub way: UploadWay,
}

/// How a file got in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadWay {
    PowerShell,
    Batch,
}

/// Bytes of the file in one line of base64: a multiple of 3, so that lines need no padding.
const LINE: usize = 48 * 1024;
/// Lines read ahead. A piece for the sender is as many as come together, see [`PIECE_LINES`].
const READ_AHEAD: usize = 4;
/// Lines in one piece: more text than fits into one envelope, so that the sender fills each.
const PIECE_LINES: usize = 32;
/// A file whose link breaks is sent again from its start, this often within the limit for a lost guest.
const SEND_LIMIT: u32 = 5;
/// Base64 digits in one echoed line, below cmd.exe's limit with room for the file's name.
const ECHO: usize = 7600;
pub(super) const MARKER: &str = "kiln-upload ";

impl WinrmGuest {
    /// Puts the file `local` at `remote`, a full path in a directory that exists. A file that was there keeps owner
    /// and rights. `progress` hears the bytes of the file sent so far; they begin anew when a lost link is mended.
    ///
    /// # Errors
    /// [`WinrmError::Upload`] with the [`UploadFailure`]; those of a lost guest.
    pub async fn upload(
        &self,
        local: &Path,
        remote: &str,
        expected_sha256: [u8; 32],
        mut progress: impl FnMut(u64) + Send,
        control: &Control,
    ) -> Result<WinrmUploaded, WinrmError> {
        let failed = |failure| WinrmError::Upload {
            local: local.display().to_string(),
            remote: remote.to_owned(),
            failure,
        };
        if remote.is_empty() || remote.ends_with(['/', '\\']) || remote.contains(['\0', '\r', '\n']) {
            return Err(failed(UploadFailure::BadDestination { remote: remote.to_owned() }));
        }
        let bytes = std::fs::metadata(local).map_err(|error| failed(UploadFailure::Read(error)))?.len();
        let expected = hex(&expected_sha256);
        let begin = Instant::now();
        let mut sends = 0;
        loop {
            sends += 1;
            let error = match self.send_file(local, remote, &expected, &mut progress, control).await {
                Ok(answer) => {
                    let Some(said) = find_answer(&answer) else {
                        tracing::debug!(said = answer.excerpt(), "no PowerShell took the file");
                        self.upload_by_batch(local, remote, &expected, &mut progress, control).await?;
                        return Ok(WinrmUploaded { bytes, way: UploadWay::Batch });
                    };
                    read_answer(&said, &expected, bytes, remote).map_err(failed)?;
                    let seconds = begin.elapsed().as_secs_f64();
                    tracing::debug!(remote, bytes, seconds, "uploaded");
                    return Ok(WinrmUploaded { bytes, way: UploadWay::PowerShell });
                }
                Err(SendError::Read(error)) => return Err(failed(UploadFailure::Read(error))),
                Err(SendError::Winrm(error)) => error,
            };
            let lost = matches!(
                error,
                WinrmError::LinkLost { .. } | WinrmError::ShellGone { .. } | WinrmError::EndLost { .. }
            );
            if !lost || sends >= SEND_LIMIT || begin.elapsed() >= self.limits.reconnect {
                return Err(error);
            }
            tracing::debug!(remote, sends, %error, "link lost during an upload, sending again");
        }
    }

    async fn send_file(
        &self,
        local: &Path,
        remote: &str,
        expected: &str,
        progress: &mut (dyn FnMut(u64) + Send),
        control: &Control,
    ) -> Result<ExecOutput, SendError> {
        /// More than our reader ever says.
        const ANSWER_LIMIT: usize = 64 * 1024;
        let line = CommandLine::cmd(format!("the upload of {remote}"), encoded(&reader()));
        let mut file = std::fs::File::open(local).map_err(SendError::Read)?;
        let head = format!("{}\r\n{expected}\r\n", BASE64.encode(remote));
        let (sender, pieces) = mpsc::channel(READ_AHEAD);
        // Ends with the file, with an error, or when the receiver is dropped with the command.
        let reading = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
            let mut piece = head.into_bytes();
            loop {
                let mut ended = false;
                for _ in 0..PIECE_LINES {
                    let mut bytes = Vec::with_capacity(LINE);
                    let count = u64::try_from(LINE).unwrap_or(u64::MAX);
                    (&mut file).take(count).read_to_end(&mut bytes)?;
                    ended = bytes.is_empty();
                    if ended {
                        break;
                    }
                    piece.extend_from_slice(BASE64.encode(bytes).as_bytes());
                    piece.extend_from_slice(b"\r\n");
                }
                if sender.blocking_send(std::mem::take(&mut piece)).is_err() || ended {
                    return Ok(());
                }
            }
        });
        let mut output = ExecOutput { code: 0, stdout: Vec::new(), stderr: Vec::new() };
        // Heard in bytes of base64 with line ends; the file's own are three quarters of that.
        let mut sent = |text: u64| progress(text / 4 * 3);
        let ended = self
            .run_with(
                &line,
                Input::Pieces(pieces, &mut sent),
                &mut |stream, bytes| {
                    let into = match stream {
                        Stream::Stdout => &mut output.stdout,
                        Stream::Stderr => &mut output.stderr,
                    };
                    if into.len() < ANSWER_LIMIT {
                        into.extend_from_slice(bytes);
                    }
                    ControlFlow::Continue(())
                },
                control,
            )
            .await;
        // A file that could not be read to its end arrives short; the read error says why.
        if let Ok(Err(error)) = reading.await {
            return Err(SendError::Read(error));
        }
        match ended.map_err(SendError::Winrm)? {
            Ended::Exited(end) => output.code = end.code,
            Ended::Stopped => {}
        }
        Ok(output)
    }

    /// Without PowerShell: cmd.exe writes the base64, certutil decodes and hashes it.
    async fn upload_by_batch(
        &self,
        local: &Path,
        remote: &str,
        expected: &str,
        progress: &mut (dyn FnMut(u64) + Send),
        control: &Control,
    ) -> Result<(), WinrmError> {
        let failed = |failure| WinrmError::Upload {
            local: local.display().to_string(),
            remote: remote.to_owned(),
            failure,
        };
        // What cmd.exe would replace or end a quoted word by cannot be quoted on its command line.
        if remote.contains(['%', '"', '!', '^']) {
            return Err(failed(UploadFailure::BadDestination { remote: remote.to_owned() }));
        }
        let act = format!("the upload of {remote}");
        let run = async |line: String| self.exec(&CommandLine::cmd(act.as_str(), line), None, control).await;
        let batch = Batch::new(remote, &nonce());
        let mut file = std::fs::File::open(local).map_err(|error| failed(UploadFailure::Read(error)))?;
        let mut sent = 0;
        loop {
            let mut bytes = Vec::with_capacity(ECHO / 4 * 3);
            let count = u64::try_from(ECHO / 4 * 3).unwrap_or(u64::MAX);
            let read = std::io::Read::by_ref(&mut file).take(count).read_to_end(&mut bytes);
            read.map_err(|error| failed(UploadFailure::Read(error)))?;
            if bytes.is_empty() {
                break;
            }
            let output = run(batch.append(&BASE64.encode(&bytes))).await?;
            if !output.success() {
                return Err(failed(UploadFailure::Write { detail: output.excerpt() }));
            }
            sent += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            progress(sent);
        }
        let decoded = run(batch.decode(sent == 0)).await?;
        let got =
            if decoded.success() { read_certutil_digest(&run(batch.hash()).await?.text()) } else { None };
        let outcome = match got {
            Some(got) if got == expected => {
                let placed = run(batch.place()).await?;
                if placed.success() { Ok(()) } else { Err(UploadFailure::Write { detail: placed.excerpt() }) }
            }
            Some(got) => Err(UploadFailure::DigestMismatch { expected: expected.to_owned(), got }),
            None if decoded.success() => Err(UploadFailure::NoDigestProgram),
            None => Err(UploadFailure::Write { detail: decoded.excerpt() }),
        };
        let _best_effort = run(batch.remove()).await;
        outcome.map_err(failed)
    }
}

enum SendError {
    Read(std::io::Error),
    Winrm(WinrmError),
}

/// The reader's text as the guest gets it: its explanations and indents would not fit into a command line.
pub(super) fn reader() -> String {
    let text = without_comments(&include_str!("upload_reader.ps1").replace(PLACE_MARK, PLACE));
    text.lines().flat_map(|line| [line.trim_start(), "\n"]).collect()
}

/// The lines of a batch upload, all for cmd.exe.
struct Batch {
    text: String,
    partial: String,
    remote: String,
}

impl Batch {
    fn new(remote: &str, nonce: &str) -> Self {
        Self {
            text: format!("%TEMP%\\kiln-{nonce}.b64"),
            partial: format!("{remote}.{nonce}.kiln"),
            remote: remote.to_owned(),
        }
    }

    /// The redirection stands first: a digit at the end of the text would be taken for the number of a stream.
    fn append(&self, base64: &str) -> String {
        format!(">>\"{}\" echo {base64}", self.text)
    }

    fn decode(&self, empty: bool) -> String {
        if empty {
            // A command that prints nothing.
            return format!("cd . > \"{}\"", self.partial);
        }
        format!("certutil -f -decode \"{}\" \"{}\"", self.text, self.partial)
    }

    fn hash(&self) -> String {
        format!("certutil -hashfile \"{}\" SHA256", self.partial)
    }

    fn place(&self) -> String {
        format!("move /y \"{}\" \"{}\"", self.partial, self.remote)
    }

    fn remove(&self) -> String {
        format!("del /q \"{}\" \"{}\" 2>nul", self.text, self.partial)
    }
}

/// certutil prints the digest on a line of its own, with spaces between its bytes before Windows 10.
fn read_certutil_digest(output: &str) -> Option<String> {
    output.lines().find_map(|line| {
        let digits: String = line.chars().filter(|c| !c.is_whitespace()).collect();
        let is_digest = digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_digest.then(|| digits.to_lowercase())
    })
}

/// The reader's line, wherever it stands.
fn find_answer(output: &ExecOutput) -> Option<String> {
    let text = output.text();
    text.lines().find_map(|line| line.trim().strip_prefix(MARKER)).map(str::to_owned)
}

pub(super) fn read_answer(said: &str, expected: &str, bytes: u64, remote: &str) -> Result<(), UploadFailure> {
    let (result, detail) = said.split_once(' ').unwrap_or((said, ""));
    let shown = excerpt(detail.as_bytes());
    Err(match result {
        "placed" => {
            let (size, digest) = detail.split_once(' ').unwrap_or((detail, ""));
            if digest.trim() != expected {
                return Err(UploadFailure::DigestMismatch { expected: expected.to_owned(), got: shown });
            }
            if size.parse() != Ok(bytes) {
                return Err(UploadFailure::SizeMismatch { expected: bytes, got: shown });
            }
            return Ok(());
        }
        "nodir" => {
            let directory = remote.rsplit_once(['/', '\\']).map_or("", |(directory, _)| directory);
            UploadFailure::NoDirectory { directory: directory.to_owned() }
        }
        "isdir" => UploadFailure::IsDirectory { path: remote.to_owned() },
        "digest" => UploadFailure::DigestMismatch { expected: expected.to_owned(), got: shown },
        "denied" => UploadFailure::Denied { detail: shown },
        "full" => UploadFailure::DiskFull { detail: shown },
        "readonly" => UploadFailure::ReadOnly { detail: shown },
        "nomedium" => UploadFailure::NoMedium { detail: shown },
        "write" => UploadFailure::Write { detail: shown },
        _ => UploadFailure::Unclear { said: excerpt(said.as_bytes()) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reader_fits_into_a_command_line() {
        let line = CommandLine::cmd("an upload", encoded(&reader()));
        assert!(line.check().is_ok(), "{} characters", line.command.len());
    }

    #[test]
    fn each_answer_of_the_reader_has_its_meaning() {
        let expected = "ab".repeat(32);
        let read =
            |said: &str| read_answer(said, &expected, 5, r"C:\dir\file").map_err(|error| error.to_string());
        assert_eq!(read(&format!("placed 5 {expected}")), Ok(()));
        for (said, meaning) in [
            (format!("placed 4 {expected}"), "of 5 bytes arrived"),
            ("placed 5 00".to_owned(), "digest"),
            ("nodir no directory".to_owned(), r"C:\dir does not exist"),
            ("isdir a directory".to_owned(), "is a directory"),
            ("digest 00".to_owned(), "is 00"),
            ("denied why".to_owned(), "may not write"),
            ("full why".to_owned(), "disk is full"),
            ("readonly why".to_owned(), "read-only"),
            ("nomedium why".to_owned(), "cannot read the medium"),
            ("write why".to_owned(), "writing failed"),
            ("what".to_owned(), "makes no sense"),
        ] {
            let error = read(&said).unwrap_err();
            assert!(error.contains(meaning), "{said}: {error}");
        }
    }

    #[test]
    fn the_batch_lines_fit_and_quote_what_they_name() {
        let batch = Batch::new(r"C:\Program Files\a.txt", "n");
        let append = CommandLine::cmd("an upload", batch.append(&"A".repeat(ECHO)));
        assert!(append.check().is_ok());
        assert_eq!(batch.append("QQ=="), r#">>"%TEMP%\kiln-n.b64" echo QQ=="#);
        assert_eq!(
            batch.decode(false),
            r#"certutil -f -decode "%TEMP%\kiln-n.b64" "C:\Program Files\a.txt.n.kiln""#
        );
        assert_eq!(batch.place(), r#"move /y "C:\Program Files\a.txt.n.kiln" "C:\Program Files\a.txt""#);
    }

    #[test]
    fn certutils_digest_is_read_in_both_its_forms() {
        let digest = "ab".repeat(32);
        let spaced = vec!["ab"; 32].join(" ");
        for form in [&digest, &spaced] {
            let output =
                format!("SHA256 hash of C:\\a:\r\n{form}\r\nCertUtil: -hashfile command completed.\r\n");
            assert_eq!(read_certutil_digest(&output), Some(digest.clone()));
        }
        assert_eq!(read_certutil_digest("CertUtil: -hashfile command FAILED: 0x80070002"), None);
    }
}

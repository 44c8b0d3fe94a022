//! A transfer on its way in: a file in `tmp` that knows its digest so far.
//!
//! A *keyed* part has a name that follows from what is wanted, so whoever wants the same waits for it, and a later
//! process goes on where a dead one stopped. Its *note* says what the bytes are part of. A part without a note is
//! begun anew.
//!
//! The digest is taken of the bytes as they are written. Bytes of an earlier process are read again first.

use std::fs::{File, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use kiln_host::publish;
use kiln_host::wait::Control;
use kiln_model::Sha256;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use crate::FetchError;
use crate::background::{self, Ended};
use crate::hold::{hold_file, try_hold_file};
use crate::library::read_record;

const NOTE_FORMAT: u32 = 1;
/// Less is fetched again sooner than it is gone on with. Bytes.
pub(super) const WORTH_KEEPING: u64 = 1 << 20;
const CHUNK: usize = 256 << 10;

/// What the bytes of a part belong to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Note {
    format: u32,
    /// Digest of the whole address: the address itself may be secret.
    pub address: Sha256,
    /// What the server calls this version of the file: its ETag, or else its Last-Modified.
    pub validator: Option<String>,
    /// Length of the whole file, bytes.
    pub total: Option<u64>,
    pub last_modified: Option<String>,
}

impl Note {
    pub fn new(
        address: Sha256,
        validator: Option<String>,
        total: Option<u64>,
        last_modified: Option<String>,
    ) -> Self {
        Self { format: NOTE_FORMAT, address, validator, total, last_modified }
    }
}

/// The digests of a whole file.
#[derive(Debug, Clone)]
pub(crate) struct Digests {
    pub sha256: Sha256,
    /// Where it was asked for.
    pub sha512: Option<[u8; 64]>,
}

/// A file being received. Held against other processes while it lives. Dropped unpublished, it is removed, unless it
/// can be gone on with.
#[derive(Debug)]
pub(crate) struct Part {
    file: tokio::fs::File,
    path: PathBuf,
    keyed: bool,
    published: bool,
    sha256: sha2::Sha256,
    sha512: Option<sha2::Sha512>,
    length: u64,
    /// No more is taken.
    limit: u64,
    note: Option<Note>,
    /// Whether the bytes come from more than one answer.
    spliced: bool,
}

impl Part {
    /// The part for `key`, waiting while another process or task works on it.
    pub async fn keyed(
        tmp: &Path,
        key: &str,
        with_sha512: bool,
        control: &Control,
    ) -> Result<Self, FetchError> {
        let path = tmp.join(format!("fetch-{key}.part"));
        let file = hold_file(&path, control).await?.map_err(disk("open", &path))?;
        let mut part = Self::around(file, path, true);
        part.sha512 = with_sha512.then(sha2::Sha512::new);
        part.take_up(control).await?;
        Ok(part)
    }

    /// A part of its own, which nobody can go on with.
    pub fn once(tmp: &Path) -> Result<Self, FetchError> {
        loop {
            let named =
                tempfile::Builder::new().prefix("once-").suffix(".part").rand_bytes(12).tempfile_in(tmp);
            let (file, path) = named
                .and_then(|named| named.keep().map_err(|error| error.error))
                .map_err(disk("make a file in", tmp))?;
            drop(file);
            // Held under its name: a sweeper may have been there in between.
            if let Some(file) = try_hold_file(&path).map_err(disk("open", &path))? {
                return Ok(Self::around(file, path, false));
            }
        }
    }

    /// As [`Part::once`], for files that cannot be long.
    pub fn once_up_to(tmp: &Path, limit: u64) -> Result<Self, FetchError> {
        let mut part = Self::once(tmp)?;
        part.limit = limit;
        Ok(part)
    }

    fn around(file: File, path: PathBuf, keyed: bool) -> Self {
        Self {
            file: tokio::fs::File::from_std(file),
            path,
            keyed,
            published: false,
            sha256: sha2::Sha256::new(),
            sha512: None,
            length: 0,
            limit: u64::MAX,
            note: None,
            spliced: false,
        }
    }

    /// Goes on with what an earlier process left, if it left a note.
    async fn take_up(&mut self, control: &Control) -> Result<(), FetchError> {
        let note = read_record::<Note>(&self.note_path(), NOTE_FORMAT).ok();
        let length = self.file.metadata().await.map_err(disk("read", &self.path))?.len();
        let Some(note) = note.filter(|note| length > 0 && note.total.is_none_or(|total| length <= total))
        else {
            return self.restart().await;
        };
        let path = self.path.clone();
        let (mut sha256, mut sha512) = (sha2::Sha256::new(), self.sha512.take());
        let read = background::run(control, &|_| (), move |line| {
            let mut file = File::open(path)?;
            let mut buffer = vec![0; CHUNK];
            let mut done = 0;
            while done < length {
                let wanted = CHUNK.min(usize::try_from(length - done).unwrap_or(CHUNK));
                file.read_exact(&mut buffer[..wanted])?;
                sha256.update(&buffer[..wanted]);
                if let Some(sha512) = &mut sha512 {
                    sha512.update(&buffer[..wanted]);
                }
                done += wanted as u64;
                line.report(done)?;
            }
            Ok((sha256, sha512))
        });
        (self.sha256, self.sha512) = read.await.map_err(ended("read", &self.path))?;
        self.file.seek(io::SeekFrom::Start(length)).await.map_err(disk("read", &self.path))?;
        self.length = length;
        self.note = Some(note);
        self.spliced = true;
        Ok(())
    }

    /// Forgets everything received.
    pub async fn restart(&mut self) -> Result<(), FetchError> {
        self.forget_note();
        let emptied = async {
            self.file.flush().await?;
            self.file.set_len(0).await?;
            self.file.seek(io::SeekFrom::Start(0)).await
        };
        emptied.await.map_err(disk("empty", &self.path))?;
        self.sha256 = sha2::Sha256::new();
        self.sha512 = self.sha512.take().map(|_| sha2::Sha512::new());
        self.length = 0;
        self.spliced = false;
        Ok(())
    }

    /// Says what the bytes are part of, so that they can be gone on with.
    pub fn note(&mut self, note: Note) {
        if self.note.as_ref() == Some(&note) {
            return;
        }
        if self.keyed {
            let text = serde_json::to_vec(&note).unwrap_or_default();
            // Without it a later process begins anew: slower, not wrong.
            if let Err(error) = publish::write_file(self.note_path(), &text, 0o600) {
                tracing::warn!(path = %self.path.display(), %error, "cannot keep the note of a transfer");
            }
        }
        self.note = Some(note);
    }

    pub fn noted(&self) -> Option<&Note> {
        self.note.as_ref()
    }

    /// Says that the next bytes come from another answer than the ones before.
    pub fn splice(&mut self) {
        self.spliced = true;
    }

    pub fn is_spliced(&self) -> bool {
        self.spliced
    }

    /// Bytes received so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        if bytes.len() as u64 > self.limit - self.length {
            return Err(FetchError::TooLong { limit: self.limit });
        }
        self.file.write_all(bytes).await.map_err(disk("write", &self.path))?;
        self.sha256.update(bytes);
        if let Some(sha512) = &mut self.sha512 {
            sha512.update(bytes);
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Ends the writing: what was received is in the file, and this is its digest.
    pub async fn digests(&mut self) -> Result<Digests, FetchError> {
        self.file.flush().await.map_err(disk("write", &self.path))?;
        Ok(Digests {
            sha256: Sha256::from_bytes(self.sha256.clone().finalize().into()),
            sha512: self.sha512.clone().map(|sha512| sha512.finalize().into()),
        })
    }

    /// Reads a file of this host into the part. It must be a regular file and stay the same meanwhile.
    pub async fn copy_from(
        &mut self,
        source: &Path,
        control: &Control,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<(), FetchError> {
        self.restart().await?;
        let (file, length) = open_regular(source)?;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        kiln_host::space::ensure_room(dir, length)?;
        let before = file.metadata().map_err(unreadable(source))?;
        let mut file = tokio::fs::File::from_std(file);
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = control.guard(file.read(&mut buffer)).await?.map_err(unreadable(source))?;
            if count == 0 {
                break;
            }
            self.write(&buffer[..count]).await?;
            progress(self.length, length);
        }
        let after = file.metadata().await.map_err(unreadable(source))?;
        let same = before.len() == self.length
            && after.len() == self.length
            && before.modified().ok() == after.modified().ok();
        if same { Ok(()) } else { Err(FetchError::Changed { path: source.to_owned() }) }
    }

    /// What was received, for small files that are read rather than kept.
    pub fn read_text(&self) -> Result<String, FetchError> {
        let bytes = std::fs::read(&self.path).map_err(disk("read", &self.path))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Makes the file appear at `dest`, in the same file system, read-only. What was there is replaced: names are
    /// digests, so it was the same or damaged.
    pub async fn publish(mut self, dest: &Path) -> Result<(), FetchError> {
        self.file.flush().await.map_err(disk("write", &self.path))?;
        let (path, target) = (self.path.clone(), dest.to_owned());
        // Not to be given up half-way: it ends when the disk has the bytes.
        let to_the_end = Control::new(CancellationToken::new(), None);
        let shown = background::run(&to_the_end, &|_| (), move |_| {
            let file = File::open(&path)?;
            file.set_permissions(Permissions::from_mode(0o400))?;
            file.sync_all()?;
            std::fs::rename(&path, &target)?;
            publish::sync_dir(target.parent().unwrap_or(Path::new(".")))
        });
        shown.await.map_err(ended("publish", dest))?;
        self.published = true;
        self.forget_note();
        Ok(())
    }

    /// Nothing of it is to stay: it has been made something else of.
    pub fn discard(mut self) {
        self.forget_note();
    }

    fn note_path(&self) -> PathBuf {
        self.path.with_extension("note")
    }

    fn forget_note(&mut self) {
        self.note = None;
        if self.keyed {
            // Not being there is the usual case.
            let _ = std::fs::remove_file(self.note_path());
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let resumable = self.keyed && self.note.is_some() && self.length >= WORTH_KEEPING;
        if !self.published && !resumable {
            // Still held, so nobody else's. Being gone already is fine.
            let _ = std::fs::remove_file(&self.path);
            self.forget_note();
        }
    }
}

/// Opens a regular file of this host. A pipe or a device is refused without waiting for it.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64), FetchError> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map(File::from)
        .map_err(|error| unreadable(path)(error.into()))?;
    let metadata = file.metadata().map_err(unreadable(path))?;
    match metadata.file_type() {
        kind if kind.is_file() => Ok((file, metadata.len())),
        kind if kind.is_dir() => Err(FetchError::IsDirectory { path: path.to_owned() }),
        _ => Err(FetchError::NotRegular { path: path.to_owned() }),
    }
}

fn ended(act: &'static str, path: &Path) -> impl FnOnce(Ended) -> FetchError {
    move |ended| match ended {
        Ended::Interrupted(why) => why.into(),
        Ended::Failed(source) => disk(act, path)(source),
    }
}

pub(crate) fn disk(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FetchError {
    move |source| FetchError::Disk { act, path: path.to_owned(), source }
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> FetchError {
    move |source| FetchError::Unreadable { path: path.to_owned(), source }
}

//! The library as a folder.
//!
//! ```text
//!  root/
//!    library.json                     {"format":1}; a newer one is refused, untouched
//!    images/<name>/<version>/         read-only once it is there
//!      disk.qcow2 | disk.vhd | disk.raw
//!      image.json                     what it is; runs that use the image hold it together
//!      read.json                      when the disk was last read in full, and what it looked like
//!      provenance.json                of images made by a recipe
//!    inputs/sha256/<digest>           files that templates name
//!    checkpoints/<id>/                machines as they stood after a step; see `checkpoints`
//!    tmp/                             what is being made; held by its maker
//!      fetch-<key>.part, .note        a transfer; stays when its process dies, and is gone on with
//!      once-<random>.part             a transfer nobody can go on with
//!      image-<random>/                an image on its way in or out
//!      checkpoint-<id>/               a checkpoint on its way in
//!      removed-<random>/              checkpoints on their way out
//! ```
//!
//! INVARIANT: what appears on a shelf appears complete or not at all: it is written in `tmp`, synced, and renamed.
//! All of it lies in one file system. Whoever is killed leaves things in `tmp` only; they are not held any more, and
//! [`Library::open`] sweeps them: at once, but transfers that can be gone on with after [`KEEP_PARTS`].
//!
//! `inputs`, `checkpoints` and `tmp` are closed to other users: inputs may be secret, and so is the memory of a machine.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kiln_host::publish;

use crate::LibraryError;
use crate::hold::{Share, try_hold};

/// The newest format of a library this build reads and the one it writes.
pub const LIBRARY_FORMAT: u32 = 1;

/// Half a download is worth keeping while somebody may still want the rest.
const KEEP_PARTS: Duration = Duration::from_secs(7 * 24 * 3600);

/// Records are small; a larger file is none.
pub(crate) const LARGEST_RECORD: u64 = 1 << 20;

/// A library on this host's disk. Cheap to clone; threads and processes may share one.
#[derive(Debug, Clone)]
pub struct Library {
    root: PathBuf,
}

impl Library {
    /// Opens the library at `root`, making it where there is none, and sweeps what killed processes left in it.
    ///
    /// # Errors
    /// The folder cannot be made or read; its format is newer than this build.
    pub fn open(root: impl AsRef<Path>) -> Result<Library, LibraryError> {
        let root = root.as_ref();
        make_folder(root, 0o755)?;
        let root = std::path::absolute(root).map_err(LibraryError::disk("find", root))?;
        let library = Self { root };
        let record = library.root.join("library.json");
        match read_record::<serde::de::IgnoredAny>(&record, LIBRARY_FORMAT) {
            Ok(_) => {}
            Err(LibraryError::Disk { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                // Two processes may both come here; both write the same.
                let text = format!("{{\"format\":{LIBRARY_FORMAT}}}\n");
                publish::write_file(&record, text.as_bytes(), 0o644)
                    .map_err(LibraryError::disk("write", &record))?;
            }
            Err(error) => return Err(error),
        }
        make_folder(&library.images_dir(), 0o755)?;
        make_folder(&library.inputs_dir(), 0o700)?;
        make_folder(&library.checkpoints_dir(), 0o700)?;
        make_folder(&library.tmp(), 0o700)?;
        library.sweep()?;
        Ok(library)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn images_dir(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn inputs_dir(&self) -> PathBuf {
        self.root.join("inputs").join("sha256")
    }

    pub(crate) fn checkpoints_dir(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// A folder in `tmp` of our own, mode 0700.
    pub(crate) fn make_folder_aside(&self, making: Making) -> io::Result<FolderAside> {
        loop {
            let path = tempfile::Builder::new()
                .prefix(making.prefix())
                .rand_bytes(12)
                .permissions(Permissions::from_mode(0o700))
                .tempdir_in(self.tmp())?
                .keep();
            // A sweeper may have found it before it was held: then it is gone, or will be.
            match try_hold(&path, Share::Alone) {
                Ok(Some(held)) => return Ok(FolderAside { path, _held: held }),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Removes what nobody makes any more. One thing that cannot be removed does not keep the library shut.
    fn sweep(&self) -> Result<(), LibraryError> {
        let tmp = self.tmp();
        for entry in std::fs::read_dir(&tmp).map_err(LibraryError::disk("list", &tmp))? {
            let entry = entry.map_err(LibraryError::disk("list", &tmp))?;
            if let Err(error) = sweep_entry(&entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "cannot sweep");
            }
        }
        // Asides of records (kiln_host::publish) lie beside what they were to become.
        for dir in [&self.root, &tmp] {
            if let Err(error) = publish::remove_leftovers(dir) {
                tracing::warn!(path = %dir.display(), %error, "cannot sweep");
            }
        }
        Ok(())
    }
}

/// What a folder in `tmp` is for. Its name says so, and [`Library::open`] sweeps folders of these names only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Making {
    Image,
    Checkpoint,
    /// A place for checkpoints that leave the shelf.
    Removed,
}

impl Making {
    const ALL: [Self; 3] = [Self::Image, Self::Checkpoint, Self::Removed];

    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Image => "image-",
            Self::Checkpoint => "checkpoint-",
            Self::Removed => "removed-",
        }
    }
}

/// A folder in `tmp`, held while it lives and removed with what is left in it.
#[derive(Debug)]
pub(crate) struct FolderAside {
    path: PathBuf,
    _held: File,
}

impl FolderAside {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for FolderAside {
    fn drop(&mut self) {
        // On the shelf now, or never to be. What cannot be removed here is swept later.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn sweep_entry(path: &Path) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let old = |path: &Path| -> io::Result<bool> {
        // A clock set back makes things younger, never older.
        Ok(SystemTime::now().duration_since(path.metadata()?.modified()?).is_ok_and(|age| age > KEEP_PARTS))
    };
    let swept = || -> io::Result<()> {
        let is_note = name.ends_with(".note");
        if is_note {
            let part = path.with_extension("part");
            return if !part.exists() && old(path)? { std::fs::remove_file(path) } else { Ok(()) };
        }
        if name.starts_with("fetch-") && !old(path)? {
            return Ok(());
        }
        let mut prefixes = ["fetch-", "once-"].into_iter().chain(Making::ALL.map(Making::prefix));
        let ours = prefixes.any(|prefix| name.starts_with(prefix));
        if !ours || try_hold(path, Share::Alone)?.is_none() {
            return Ok(());
        }
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
    };
    match swept() {
        // Its maker finished, or another sweeper was quicker.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        swept => swept,
    }
}

fn make_folder(path: &Path, mode: u32) -> Result<(), LibraryError> {
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(LibraryError::disk("make", path))
}

/// Reads a JSON record, its format first: a newer one may mean anything.
pub(crate) fn read_record<T: serde::de::DeserializeOwned>(
    path: &Path,
    known: u32,
) -> Result<T, LibraryError> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LARGEST_RECORD).read_to_end(&mut text))
        .map_err(LibraryError::disk("read", path))?;
    let unreadable = |source| LibraryError::Unreadable { path: path.to_owned(), source };
    let fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&text).map_err(unreadable)?;
    let Some(format) = fields.get("format").and_then(serde_json::Value::as_u64) else {
        return Err(LibraryError::Contradiction {
            path: path.to_owned(),
            what: "it gives no format".to_owned(),
        });
    };
    if format > u64::from(known) {
        return Err(LibraryError::NewerFormat { path: path.to_owned(), found: format, known });
    }
    serde_json::from_value(fields.into()).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_made_once_and_opened_often() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("data/library");
        Library::open(&root).unwrap();
        assert_eq!(std::fs::read_to_string(root.join("library.json")).unwrap(), "{\"format\":1}\n");
        std::fs::write(root.join("inputs/sha256/keep"), "x").unwrap();
        Library::open(&root).unwrap();
        assert!(root.join("inputs/sha256/keep").exists());
    }

    #[test]
    fn a_newer_library_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("library.json");
        std::fs::write(&record, "{\"format\": 2, \"shelves\": []}").unwrap();
        let error = Library::open(dir.path()).unwrap_err();
        assert!(matches!(error, LibraryError::NewerFormat { found: 2, known: 1, .. }), "{error}");
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["library.json"]);
        assert_eq!(std::fs::read_to_string(&record).unwrap(), "{\"format\": 2, \"shelves\": []}");
    }

    #[test]
    fn damaged_records_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "nonsense", "[1]", "{\"format\":-1}", "{\"format\":\"1\"}"] {
            std::fs::write(dir.path().join("library.json"), text).unwrap();
            let error = Library::open(dir.path()).unwrap_err();
            assert!(error.to_string().contains("library.json"), "{text}: {error}");
        }
    }

    #[test]
    fn opening_sweeps_what_the_dead_left_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let library = Library::open(dir.path()).unwrap();
        let tmp = library.tmp();
        let living = library.make_folder_aside(Making::Image).unwrap();
        std::fs::write(living.path().join("disk.qcow2"), "half").unwrap();
        std::fs::create_dir(tmp.join("image-dead")).unwrap();
        std::fs::write(tmp.join("image-dead/disk.qcow2"), "half").unwrap();
        for dead in ["checkpoint-dead", "removed-dead/one"] {
            std::fs::create_dir_all(tmp.join(dead)).unwrap();
            std::fs::write(tmp.join(dead).join("memory"), "half").unwrap();
        }
        std::fs::write(tmp.join("once-dead.part"), "half").unwrap();
        std::fs::write(tmp.join("fetch-young.part"), "half").unwrap();
        let old = File::create(tmp.join("fetch-old.part")).unwrap();
        old.set_modified(SystemTime::now() - KEEP_PARTS - Duration::from_secs(60)).unwrap();
        drop(old);
        std::fs::write(tmp.join(".fetch-x.note.abc.kiln-aside"), "half").unwrap();
        std::fs::write(tmp.join("somebody's"), "").unwrap();
        Library::open(dir.path()).unwrap();
        let mut names: Vec<_> =
            std::fs::read_dir(&tmp).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        let name = living.path().file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(names, ["fetch-young.part", &name, "somebody's"]);
        drop(living);
        assert!(!tmp.join(name).exists());
    }
}

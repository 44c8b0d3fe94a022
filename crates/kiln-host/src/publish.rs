//! Publishing: a file appears complete or not at all.
//!
//! ```text
//!   Aside::create(dest)      .dest.Ab3x9Z.kiln-aside   in dest's own folder, flock held
//!        │ write, by us or by a program that is given path()
//!        │ publish(): sync the file, rename it to dest, sync the folder
//!        ▼
//!      dest                  or nothing: dropping the Aside removes it
//! ```
//!
//! The lock on an aside lives as long as its maker. A maker that was killed leaves the file but not the lock, so
//! [`remove_leftovers`] can tell what is left over from what is being written, in a folder that several processes share.
//!
//! INVARIANT: an artifact appears complete or not at all: write aside, sync, rename, then the run output.
//! Guarded here: the only way from an [`Aside`] to its destination is [`Aside::publish`].

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

const SUFFIX: &str = ".kiln-aside";
/// Of the destination's name, to be recognised; the whole may exceed the 255 bytes a name can have.
const NAME_KEPT: usize = 100;

/// A file being made, beside the place where it will appear.
#[derive(Debug)]
pub struct Aside {
    file: File,
    path: Option<tempfile::TempPath>,
    dest: PathBuf,
}

impl Aside {
    /// Creates an empty file with `mode` (less the umask) in the folder of `dest`, which must exist.
    pub fn create(dest: impl AsRef<Path>, mode: u32) -> io::Result<Self> {
        let dest = dest.as_ref();
        let name = dest.file_name().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{} names no file", dest.display()))
        })?;
        let name: String = name.to_string_lossy().chars().take(NAME_KEPT / 4).collect();
        loop {
            let (file, path) = tempfile::Builder::new()
                .prefix(&format!(".{name}."))
                .suffix(SUFFIX)
                .permissions(Permissions::from_mode(mode))
                .tempfile_in(folder_of(dest))?
                .into_parts();
            // A cleaner may have found it in the moment before it was locked: then it is gone, and we begin again.
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
            if file.metadata()?.nlink() > 0 {
                return Ok(Self { file, path: Some(path), dest: dest.to_owned() });
            }
        }
    }

    /// Where to write. Programs may be given this path as long as they write into the file that is there.
    pub fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(&self.dest)
    }

    /// The file, open for reading and writing.
    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn file_mut(&mut self) -> &mut File {
        &mut self.file
    }

    /// Where it will appear.
    pub fn dest(&self) -> &Path {
        &self.dest
    }

    /// Makes it appear, replacing what was there. Blocks until the bytes and the name are on the disk. On an error
    /// nothing has appeared, and the file is removed.
    pub fn publish(mut self) -> io::Result<()> {
        let Some(path) = self.path.take() else { return Ok(()) };
        self.file.sync_all()?;
        path.persist(&self.dest).map_err(|error| error.error)?;
        sync_dir(folder_of(&self.dest))
    }
}

/// Writes a whole file so that it appears complete or not at all, with `mode` less the umask.
pub fn write_file(dest: impl AsRef<Path>, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut aside = Aside::create(dest, mode)?;
    aside.file_mut().write_all(bytes)?;
    aside.publish()
}

/// Makes the names in a folder durable.
pub fn sync_dir(dir: impl AsRef<Path>) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes what killed makers left in `dir` (not below), and says what. Files still being made are left alone.
pub fn remove_leftovers(dir: impl AsRef<Path>) -> io::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_aside = name.starts_with('.') && name.ends_with(SUFFIX) && entry.file_type()?.is_file();
        if !is_aside {
            continue;
        }
        let file = match OpenOptions::new().read(true).write(true).open(entry.path()) {
            Ok(file) => file,
            // Published or removed since it was listed, or another user's.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) =>
            {
                continue;
            }
            Err(error) => return Err(error),
        };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        // Between the opening and the lock it may have been published: what has the name now is another file, or none.
        let opened = file.metadata()?;
        let still_there = std::fs::symlink_metadata(entry.path())
            .is_ok_and(|named| named.ino() == opened.ino() && named.dev() == opened.dev());
        if still_there {
            std::fs::remove_file(entry.path())?;
            removed.push(entry.path());
        }
    }
    Ok(removed)
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn nothing_appears_before_it_is_published() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("image.vhd");
        let mut aside = Aside::create(&dest, 0o644).unwrap();
        aside.file_mut().write_all(b"half").unwrap();
        assert!(!dest.exists());
        assert!(aside.path().parent() == dest.parent());
        aside.file_mut().write_all(b" and half").unwrap();
        aside.publish().unwrap();
        assert_eq!(std::fs::read(&dest).unwrap(), b"half and half");
        assert_eq!(names(dir.path()), ["image.vhd"]);
    }

    #[test]
    fn a_dropped_aside_leaves_nothing_and_the_old_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("a");
        write_file(&dest, b"old", 0o600).unwrap();
        let mut aside = Aside::create(&dest, 0o600).unwrap();
        aside.file_mut().write_all(b"new").unwrap();
        drop(aside);
        assert_eq!(std::fs::read(&dest).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a"]);
        write_file(&dest, b"new", 0o600).unwrap();
        assert_eq!(std::fs::read(&dest).unwrap(), b"new");
        assert_eq!(dest.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_publish_that_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("taken");
        let aside = Aside::create(&dest, 0o600).unwrap();
        std::fs::create_dir(&dest).unwrap();
        aside.publish().unwrap_err();
        assert_eq!(names(dir.path()), ["taken"]);
    }

    #[test]
    fn leftovers_are_removed_but_not_what_is_being_made() {
        let dir = tempfile::tempdir().unwrap();
        let living = Aside::create(dir.path().join("living"), 0o600).unwrap();
        let dead = dir.path().join(".dead.123456.kiln-aside");
        std::fs::write(&dead, "half").unwrap();
        std::fs::write(dir.path().join("data.kiln-aside"), "a user's own file").unwrap();
        assert_eq!(remove_leftovers(dir.path()).unwrap(), [dead]);
        assert!(living.path().exists());
        living.publish().unwrap();
        assert_eq!(names(dir.path()), ["data.kiln-aside", "living"]);
    }

    #[test]
    fn long_and_odd_names_fit() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["ü".repeat(120), "x".repeat(255)] {
            write_file(dir.path().join(&name), b"", 0o600).unwrap();
        }
        assert!(Aside::create("/", 0o600).is_err());
    }
}

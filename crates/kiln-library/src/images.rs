//! Base images on the shelf: what there is, who uses it, how it goes.
//!
//! An image's folder appears whole, by a rename, and is not written after that except for `read.json`, which only
//! remembers when the disk was last read. Who uses an image holds its `image.json` together with others; who removes
//! it holds it alone, takes the folder off the shelf by a rename, and only then deletes it.
//!
//! INVARIANT: a base image is never written. Its disk file is read-only, and everything here opens it for reading.

use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use kiln_host::digest::sha256_file;
use kiln_host::publish;
use kiln_host::wait::Control;
use kiln_model::Sha256;
use kiln_model::catalog::{Arch, DiskFormat, Generation, Login, Os, ServedName, StoredImage};
use serde::{Deserialize, Serialize};

use crate::background;
use crate::hold::{Share, try_hold};
use crate::library::{Making, read_record};
use crate::{ImageProgress, Library, LibraryError};

/// The newest format of `image.json` this build reads and the one it writes.
pub const IMAGE_FORMAT: u32 = 1;

const RECORD: &str = "image.json";
const LAST_READ: &str = "read.json";
pub(crate) const PROVENANCE: &str = "provenance.json";

/// All that is known about an image: `image.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    pub image: StoredImage,
    pub origin: ImageOrigin,
}

/// How an image came to its shelf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "kind")]
pub enum ImageOrigin {
    /// Put there by hand. The digest is of the file as it was given.
    Imported { sha256: Sha256 },
    /// Fetched. The digest is of the file as it was sent; the address is redacted.
    Pulled {
        address: String,
        sha256: Sha256,
        /// Where its publisher gives that one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sha512: Option<String>,
    },
    /// Made by a recipe; `provenance.json` lies beside it.
    Built { sha256: Sha256 },
}

impl ImageOrigin {
    /// Digest of the file before it was converted, if it was.
    pub fn sha256(&self) -> Sha256 {
        match self {
            Self::Imported { sha256 } | Self::Pulled { sha256, .. } | Self::Built { sha256 } => *sha256,
        }
    }
}

/// `image.json`, as it lies there. Paths are relative: a library may be moved.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    format: u32,
    name: String,
    version: String,
    /// The disk's file name, beside this file.
    file: String,
    disk_format: DiskFormat,
    sha256: Sha256,
    virtual_size: u64,
    os: Os,
    generations: Vec<Generation>,
    arch: Arch,
    login: Login,
    platform: Vec<ServedName>,
    stored_at: String,
    origin: ImageOrigin,
}

/// `read.json`: the file that had the digest when it was last read in full.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LastRead {
    format: u32,
    sha256: Sha256,
    inode: u64,
    size: u64,
    /// Nanoseconds since 1970.
    modified: i128,
}

impl LastRead {
    fn new(sha256: Sha256, metadata: &Metadata) -> Self {
        let modified = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Self { format: IMAGE_FORMAT, sha256, inode: metadata.ino(), size: metadata.len(), modified }
    }

    fn write(&self, dir: &Path) -> Result<(), LibraryError> {
        let path = dir.join(LAST_READ);
        let text = serde_json::to_vec(self)
            .map_err(|source| LibraryError::Unreadable { path: path.clone(), source })?;
        publish::write_file(&path, &text, 0o644).map_err(LibraryError::disk("write", path))
    }
}

/// How hard to look at an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Read the disk only if it is not the file that was last read, by inode, size and time.
    IfChanged,
    /// Read it.
    Full,
}

/// What [`Library::verify`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    Remembered,
    Read,
}

/// While it lives, the image stays. Held across processes; gone with the process that holds it.
#[derive(Debug)]
pub struct ImageLease {
    _held: File,
}

impl Library {
    /// Every image on the shelf, by name and then by version, oldest first. A damaged one does not hide the others: it
    /// is left out, with a warning in the log.
    pub fn images(&self) -> Result<Vec<StoredImage>, LibraryError> {
        let mut images = Vec::new();
        let root = self.images_dir();
        for name in folders(&root)? {
            for version in folders(&root.join(&name))? {
                match self.record(&name, &version) {
                    Ok(record) => images.push(record.image),
                    // Removed since it was listed, or not ours.
                    Err(
                        LibraryError::NoSuchImage { .. }
                        | LibraryError::BadName { .. }
                        | LibraryError::BadVersion { .. },
                    ) => {}
                    Err(error) => {
                        tracing::warn!(image = %format!("{name} {version}"), error = &error as &dyn std::error::Error, "left out")
                    }
                }
            }
        }
        images.sort_by_cached_key(|image| (image.name.clone(), numbers(&image.version)));
        Ok(images)
    }

    /// What is known about one image.
    pub fn record(&self, name: &str, version: &str) -> Result<ImageRecord, LibraryError> {
        let dir = self.image_dir(name, version)?;
        let written: Written = match read_record(&dir.join(RECORD), IMAGE_FORMAT) {
            Err(LibraryError::Disk { source, .. })
                if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                return Err(LibraryError::NoSuchImage { name: name.to_owned(), version: version.to_owned() });
            }
            read => read?,
        };
        let contradiction =
            |what: &str| LibraryError::Contradiction { path: dir.join(RECORD), what: what.to_owned() };
        if written.name != name || written.version != version {
            return Err(contradiction("it is the record of another image"));
        }
        // A name only: it must not lead out of the folder.
        if Path::new(&written.file).file_name() != Some(written.file.as_ref()) {
            return Err(contradiction("`file` is not a file name"));
        }
        let Some(&generation) = written.generations.first() else {
            return Err(contradiction("it boots as no generation"));
        };
        if let Some(trouble) = written.login.trouble(written.os) {
            return Err(contradiction(trouble));
        }
        let image = StoredImage {
            path: dir.join(&written.file),
            name: written.name,
            version: written.version,
            platform: written.platform,
            os: written.os,
            generation,
            generations: written.generations,
            arch: written.arch,
            login: written.login,
            format: written.disk_format,
            sha256: written.sha256,
            virtual_size: written.virtual_size,
            stored_at: written.stored_at,
        };
        Ok(ImageRecord { image, origin: written.origin })
    }

    /// The record of how a recipe made it, as text; `None` for other images.
    pub fn provenance(&self, name: &str, version: &str) -> Result<Option<String>, LibraryError> {
        let path = self.image_dir(name, version)?.join(PROVENANCE);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(LibraryError::disk("read", path)(error)),
        }
    }

    /// Makes sure that the disk still is what it was when it was stored.
    ///
    /// # Errors
    /// [`LibraryError::Damaged`] when it is not.
    pub async fn verify(
        &self,
        image: &StoredImage,
        how: Check,
        progress: &(dyn Fn(ImageProgress) + Send + Sync),
        control: &Control,
    ) -> Result<Checked, LibraryError> {
        let dir = self.image_dir(&image.name, &image.version)?;
        let metadata = image.path.metadata().map_err(LibraryError::disk("read", &image.path))?;
        let now = LastRead::new(image.sha256, &metadata);
        let last = read_record::<LastRead>(&dir.join(LAST_READ), IMAGE_FORMAT).ok();
        if how == Check::IfChanged && last.as_ref() == Some(&now) {
            return Ok(Checked::Remembered);
        }
        let total = metadata.len();
        let path = image.path.clone();
        let digest =
            background::run(control, &|done| progress(ImageProgress::Reading { done, total }), move |line| {
                sha256_file(&path, &mut |done| line.report(done))
            })
            .await
            .map_err(LibraryError::ended("read", &image.path))?;
        let actual = Sha256::from_bytes(digest);
        if actual != image.sha256 {
            return Err(LibraryError::Damaged { path: image.path.clone(), expected: image.sha256, actual });
        }
        if last.as_ref() != Some(&now) {
            // Left by one who was killed here.
            let _ = publish::remove_leftovers(&dir);
            // Only a memory: without it the disk is read again next time.
            if let Err(error) = now.write(&dir) {
                tracing::warn!(%error, "cannot remember that the image was read");
            }
        }
        Ok(Checked::Read)
    }

    /// Keeps the image from being removed while the lease lives.
    pub fn use_image(&self, image: &StoredImage) -> Result<ImageLease, LibraryError> {
        let (name, version) = (image.name.clone(), image.version.clone());
        let record = self.image_dir(&name, &version)?.join(RECORD);
        match try_hold(&record, Share::Together) {
            Ok(Some(held)) => Ok(ImageLease { _held: held }),
            // Held alone: it is being removed at this moment.
            Ok(None) => Err(LibraryError::NoSuchImage { name, version }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(LibraryError::NoSuchImage { name, version })
            }
            Err(error) => Err(LibraryError::disk("hold", record)(error)),
        }
    }

    /// Removes an image that nobody uses.
    pub fn remove(&self, name: &str, version: &str) -> Result<(), LibraryError> {
        let dir = self.image_dir(name, version)?;
        let record = dir.join(RECORD);
        let (name, version) = (name.to_owned(), version.to_owned());
        let _held = match try_hold(&record, Share::Alone) {
            Ok(Some(held)) => held,
            Ok(None) => return Err(LibraryError::InUse { name, version }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(LibraryError::NoSuchImage { name, version });
            }
            Err(error) => return Err(LibraryError::disk("hold", record)(error)),
        };
        let aside = self.make_folder_aside(Making::Image).map_err(LibraryError::disk("write", self.tmp()))?;
        std::fs::rename(&dir, aside.path().join("removed")).map_err(LibraryError::disk("remove", &dir))?;
        let shelf = self.images_dir().join(&name);
        publish::sync_dir(&shelf).map_err(LibraryError::disk("sync", &shelf))?;
        // Only when it was the last version; a new one may be on its way.
        let _ = std::fs::remove_dir(&shelf);
        std::fs::remove_dir_all(aside.path()).map_err(LibraryError::disk("remove", aside.path()))
    }

    /// Puts a folder of `tmp` that holds a disk onto the shelf, whole.
    ///
    /// # Errors
    /// [`LibraryError::AlreadyStored`] when name and version are taken.
    pub(crate) fn shelve(&self, aside: &Path, record: ImageRecord) -> Result<StoredImage, LibraryError> {
        let ImageRecord { mut image, origin } = record;
        let target = self.image_dir(&image.name, &image.version)?;
        let file = image.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let path = aside.join(&file);
        let written = Written {
            format: IMAGE_FORMAT,
            name: image.name.clone(),
            version: image.version.clone(),
            file: file.clone(),
            disk_format: image.format,
            sha256: image.sha256,
            virtual_size: image.virtual_size,
            os: image.os,
            generations: image.generations.clone(),
            arch: image.arch,
            login: image.login.clone(),
            platform: image.platform.clone(),
            stored_at: image.stored_at.clone(),
            origin,
        };
        let disk = File::open(&path).map_err(LibraryError::disk("open", &path))?;
        disk.set_permissions(Permissions::from_mode(0o444))
            .and_then(|()| disk.sync_all())
            .map_err(LibraryError::disk("sync", &path))?;
        let metadata = disk.metadata().map_err(LibraryError::disk("read", &path))?;
        LastRead::new(image.sha256, &metadata).write(aside)?;
        let record = aside.join(RECORD);
        let mut text = serde_json::to_vec_pretty(&written)
            .map_err(|source| LibraryError::Unreadable { path: record.clone(), source })?;
        text.push(b'\n');
        publish::write_file(&record, &text, 0o644).map_err(LibraryError::disk("write", &record))?;
        std::fs::set_permissions(aside, Permissions::from_mode(0o755))
            .and_then(|()| publish::sync_dir(aside))
            .map_err(LibraryError::disk("sync", aside))?;
        let shelf = self.images_dir().join(&image.name);
        loop {
            std::fs::create_dir_all(&shelf).map_err(LibraryError::disk("make", &shelf))?;
            match std::fs::rename(aside, &target) {
                Ok(()) => break,
                // The last version of that name was removed in between, and the folder with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !shelf.exists() => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                    ) =>
                {
                    return Err(LibraryError::AlreadyStored { name: image.name, version: image.version });
                }
                Err(error) => return Err(LibraryError::disk("publish", &target)(error)),
            }
        }
        publish::sync_dir(&shelf)
            .and_then(|()| publish::sync_dir(self.images_dir()))
            .map_err(LibraryError::disk("sync", &shelf))?;
        image.path = target.join(file);
        Ok(image)
    }

    fn image_dir(&self, name: &str, version: &str) -> Result<PathBuf, LibraryError> {
        check_name(name)?;
        check_version(version)?;
        Ok(self.images_dir().join(name).join(version))
    }
}

/// Names are folder names, and stand in commands and addresses.
pub(crate) fn check_name(name: &str) -> Result<(), LibraryError> {
    let bytes = name.as_bytes();
    let fine = bytes.len() <= 64
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(b));
    if fine && !bytes[0].is_ascii_uppercase() {
        Ok(())
    } else {
        Err(LibraryError::BadName { text: name.to_owned() })
    }
}

/// Numbers separated by dots, so that `latest` means something.
pub(crate) fn check_version(version: &str) -> Result<(), LibraryError> {
    let fine = version.len() <= 64
        && version.split('.').all(|part| {
            !part.is_empty() && part.len() <= 18 && part.bytes().all(|byte| byte.is_ascii_digit())
        });
    if fine { Ok(()) } else { Err(LibraryError::BadVersion { text: version.to_owned() }) }
}

/// The parts of a version; those that are no numbers count as 0.
pub(crate) fn numbers(version: &str) -> Vec<u64> {
    version.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

/// Names of the folders in `dir`, sorted; a missing one has none.
fn folders(dir: &Path) -> Result<Vec<String>, LibraryError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(LibraryError::disk("list", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(LibraryError::disk("list", dir))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names.extend(entry.file_name().into_string().ok());
        }
    }
    names.sort();
    Ok(names)
}

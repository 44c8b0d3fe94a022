//! Files that no network is needed for: uploaded by a client, or on this host under a folder that is open to templates.
//!
//! INVARIANT: a `file:` address gets a file of this host only if it lies under one of the roots after all links are
//! resolved, is a regular file, and may be read without rights: else any client could bake the host's files into an image.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use kiln_library::{Library, file_address};
use kiln_model::plan::InputLocation;
use kiln_model::problem::{Code, Place};
use kiln_model::template::CheckedTemplate;
use kiln_model::{Problem, Sha256};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::TemplateError;

/// A manifest is small; a larger file is none.
const LARGEST_MANIFEST: u64 = 4 << 20;

/// Which addresses have uploaded copies.
#[derive(Default)]
pub(super) struct Uploads(Vec<(InputLocation, Sha256)>);

impl Uploads {
    /// Reads the manifest of that digest from the shelf: a JSON object, `{address: sha256}`. Blocks.
    ///
    /// # Errors
    /// There is none, or it is something else.
    pub fn read(library: &Library, manifest: Option<Sha256>) -> Result<Self, TemplateError> {
        let Some(digest) = manifest else { return Ok(Self::default()) };
        let bad = |what: String| {
            let message = format!("kilnUploads={digest}: {what}");
            TemplateError::invalid(Problem::error(Code::BadValue, &Place::default(), message))
        };
        let mut text = Vec::new();
        match File::open(library.input_path(digest)) {
            Ok(file) => {
                file.take(LARGEST_MANIFEST)
                    .read_to_end(&mut text)
                    .map_err(|error| bad(format!("the manifest cannot be read: {error}")))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(
                    bad("there is no such upload; put the manifest to /kiln/inputs first".to_owned()),
                );
            }
            Err(error) => return Err(bad(format!("the manifest cannot be read: {error}"))),
        }
        let entries: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&text)
            .map_err(|_| bad("the manifest is no JSON object of addresses and digests".to_owned()))?;
        let entries = entries.into_iter().map(|(address, digest)| {
            let digest = digest.as_str().and_then(|text| text.parse().ok());
            digest.map(|digest| (location_of(&address), digest))
        });
        let entries: Option<Vec<_>> = entries.collect();
        entries.map(Self).ok_or_else(|| bad("a value of the manifest is no sha256 digest".to_owned()))
    }

    pub fn find(&self, location: &InputLocation) -> Option<Sha256> {
        self.0.iter().find(|(known, _)| known == location).map(|(_, digest)| *digest)
    }

    /// Files of this host that the template names and may not have.
    pub fn refused(&self, template: &CheckedTemplate, roots: &[PathBuf]) -> Vec<Problem> {
        let inputs = template.inputs().into_iter();
        let refused = inputs.filter_map(|(input, place)| match &input.location {
            InputLocation::File(path) if self.find(&input.location).is_none() => {
                let error = HostFile::open(path, roots).err()?;
                let message = format!("Validation failed: {}: {error}", input.location.redacted());
                Some(Problem::error(Code::BadValue, place, message))
            }
            _ => None,
        });
        refused.collect()
    }
}

/// As the check reads addresses.
fn location_of(address: &str) -> InputLocation {
    match file_address(address) {
        Some(Ok(path)) => InputLocation::File(path),
        _ => InputLocation::Url(address.to_owned()),
    }
}

/// Why a `file:` address is refused. Says nothing about files outside the roots.
#[derive(Debug, thiserror::Error)]
pub(super) enum HostFileError {
    #[error(
        "a file: address is one of the server's host, and no folder there is open to it (inputs.fileRoots); `kiln build` and `kiln template put` upload local files instead"
    )]
    Outside,
    #[error("it is not a regular file")]
    NotRegular,
    #[error("it is not readable for everybody, and this server runs as root")]
    Private,
    #[error("it cannot be opened")]
    Unreadable(#[source] io::Error),
}

/// A file of this host that a template may have.
pub(super) struct HostFile {
    pub file: File,
}

impl HostFile {
    /// Opens `path` if it lies under one of `roots`. The kernel resolves the links, and does not leave the root: nobody
    /// can put another file there between a look and the opening. Blocks.
    pub fn open(path: &Path, roots: &[PathBuf]) -> Result<Self, HostFileError> {
        if path.components().any(|part| matches!(part, Component::ParentDir)) {
            return Err(HostFileError::Outside);
        }
        // As it is written, and as its folder really is: a root may be given either way.
        let real = path.parent().and_then(|folder| folder.canonicalize().ok());
        let real = real.zip(path.file_name()).map(|(folder, name)| folder.join(name));
        let mut found = HostFileError::Outside;
        for root in roots {
            let real_root = root.canonicalize().unwrap_or_else(|_| root.clone());
            let below = path
                .strip_prefix(root)
                .ok()
                .or_else(|| real.as_deref().and_then(|real| real.strip_prefix(&real_root).ok()));
            let Some(below) = below.filter(|below| !below.as_os_str().is_empty()) else { continue };
            match open_beneath(&real_root, below) {
                Ok(file) => return Self::regular(file),
                // A link that leads out.
                Err(rustix::io::Errno::XDEV) => {}
                Err(error) => found = HostFileError::Unreadable(error.into()),
            }
        }
        Err(found)
    }

    fn regular(file: File) -> Result<Self, HostFileError> {
        let metadata = file.metadata().map_err(HostFileError::Unreadable)?;
        if !metadata.is_file() {
            return Err(HostFileError::NotRegular);
        }
        if rustix::process::geteuid().is_root() && metadata.mode() & 0o004 == 0 {
            return Err(HostFileError::Private);
        }
        Ok(Self { file })
    }
}

fn open_beneath(root: &Path, below: &Path) -> rustix::io::Result<File> {
    let folder = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // A pipe or a device is not waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(folder, below, flags, Mode::empty(), resolve).map(File::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn only_regular_files_under_a_root_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (root, secret) = (dir.path().join("open"), dir.path().join("secret"));
        std::fs::create_dir_all(root.join("deep")).unwrap();
        std::fs::create_dir(&secret).unwrap();
        let write = |path: &Path| {
            std::fs::write(path, "x").unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
        };
        write(&root.join("deep/a.sh"));
        write(&secret.join("key"));
        symlink("deep/a.sh", root.join("inside")).unwrap();
        symlink(secret.join("key"), root.join("outside")).unwrap();
        symlink("../secret", root.join("folder")).unwrap();
        symlink(&root, dir.path().join("linked-root")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, root.join("pipe"), rustix::fs::FileType::Fifo, Mode::RUSR, 0)
            .unwrap();

        let roots = [root.clone()];
        let open =
            |path: PathBuf| HostFile::open(&path, &roots).map(|_| ()).map_err(|error| format!("{error:?}"));
        assert_eq!(open(root.join("deep/a.sh")), Ok(()));
        assert_eq!(open(root.join("inside")), Ok(()));
        assert_eq!(open(dir.path().join("linked-root/deep/a.sh")), Ok(()), "another way to the root");
        for (path, why) in [
            (root.join("outside"), "Outside"),
            (root.join("folder/key"), "Outside"),
            (root.join("deep/../../secret/key"), "Outside"),
            (secret.join("key"), "Outside"),
            (PathBuf::from("/etc/shadow"), "Outside"),
            (root.clone(), "Outside"),
            (root.join("deep"), "NotRegular"),
            (root.join("pipe"), "NotRegular"),
            (root.join("gone"), "Unreadable"),
        ] {
            let error = open(path.clone()).expect_err(&path.display().to_string());
            assert!(error.contains(why), "{}: {error}", path.display());
        }
        let none = HostFile::open(&root.join("deep/a.sh"), &[]).err().map(|error| format!("{error:?}"));
        assert_eq!(none.as_deref(), Some("Outside"), "no roots is the default");
    }
}

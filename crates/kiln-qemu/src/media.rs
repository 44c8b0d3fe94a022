//! Media a guest reads and we make: ISO 9660 volumes for the machine's one drive, such as the seed that cloud-init's
//! NoCloud looks for.
//!
//! xorriso writes them, with Rock Ridge for Linux and Joliet for Windows. The same files give the same bytes. A medium may
//! hold private keys: it is readable by its owner only, and appears whole or not at all.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use kiln_host::process::{Invocation, ProcessError, find_program};
use kiln_host::wait::Control;

/// The label cloud-init's NoCloud datasource looks for.
pub const CLOUD_INIT_LABEL: &str = "CIDATA";
/// Of the medium with a Windows' answer files; Windows goes by their names.
pub const ANSWERS_LABEL: &str = "KILNSEED";
/// Of the medium with a Windows' inputs.
pub const INPUTS_LABEL: &str = "KILNINPUTS";
/// The largest file that every guest reads from such a volume: an extent has its length in 32 bits (ECMA-119, 9.1.4), and
/// files of several extents are not for everybody.
pub const FILE_LIMIT: u64 = u32::MAX as u64 - 2048;

#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    #[error("xorriso is not installed, and a machine's media are written by it; install the package xorriso")]
    NoXorriso,
    #[error("{label:?} is no label for a medium: 1 to 32 of A-Z, 0-9, '-' and '_'")]
    Label { label: String },
    #[error("{name:?} is no name for a file on a medium")]
    Name { name: String },
    #[error("cannot put {name} on the medium {}", .medium.display())]
    File { medium: PathBuf, name: String, source: io::Error },
    #[error("cannot write the medium {}", .medium.display())]
    Write { medium: PathBuf, source: io::Error },
    #[error("cannot write the medium {}", .medium.display())]
    Xorriso { medium: PathBuf, source: ProcessError },
}

impl MediaError {
    /// Whether the writing was canceled, or its time over.
    pub fn interrupted(&self) -> Option<kiln_host::wait::Interrupted> {
        match self {
            Self::Xorriso { source, .. } => source.interrupted(),
            _ => None,
        }
    }
}

/// What a file on a medium has in it.
#[derive(Debug, Clone, Copy)]
pub enum Contents<'a> {
    Bytes(&'a [u8]),
    /// Those of a file of this host, which stays as it is meanwhile.
    File(&'a Path),
}

/// The program that writes media.
#[derive(Debug, Clone)]
pub struct MediaWriter {
    xorriso: PathBuf,
}

/// xorriso's own word on how far it is comes once a second, and is for people.
const TELL_EVERY: Duration = Duration::from_millis(250);
/// 1980-01-01: the date of every file, and of the volume.
const DATE: &str = "1980010100000000";
const EPOCH: &str = "315532800";

impl MediaWriter {
    /// # Errors
    /// [`MediaError::NoXorriso`].
    pub fn find(search_path: &OsStr) -> Result<Self, MediaError> {
        let xorriso = find_program("xorriso", search_path).ok_or(MediaError::NoXorriso)?;
        Ok(Self { xorriso })
    }

    /// Writes a medium with `label` and `files` (name, with slashes where it is in a folder) to `dest`, mode 0600.
    ///
    /// # Errors
    /// Labels and names that no medium can have, a disk that cannot be written, xorriso's own words.
    pub async fn write(
        &self,
        dest: &Path,
        label: &str,
        files: &[(&str, Contents<'_>)],
        control: &Control,
    ) -> Result<(), MediaError> {
        self.write_telling(dest, label, files, &|_bytes| (), control).await
    }

    /// The same, telling now and then how many bytes of it are written.
    ///
    /// # Errors
    /// Those of [`MediaWriter::write`].
    pub async fn write_telling(
        &self,
        dest: &Path,
        label: &str,
        files: &[(&str, Contents<'_>)],
        progress: &(dyn Fn(u64) + Send + Sync),
        control: &Control,
    ) -> Result<(), MediaError> {
        let allowed = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"-_".contains(byte);
        if label.is_empty() || label.len() > 32 || !label.as_bytes().iter().all(allowed) {
            return Err(MediaError::Label { label: label.into() });
        }
        let write = |source| MediaError::Write { medium: dest.to_owned(), source };
        let beside = dest.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Private (0700), and gone however this ends.
        let aside = tempfile::Builder::new().prefix(".medium-").tempdir_in(beside).map_err(write)?;
        let (tree, medium) = (aside.path().join("tree"), aside.path().join("medium"));
        std::fs::DirBuilder::new().mode(0o700).create(&tree).map_err(write)?;
        for (name, contents) in files {
            lay(&tree, name, *contents, dest)?;
        }
        let options =
            ["-as", "mkisofs", "-quiet", "-follow-links", "-rational-rock", "-joliet", "-joliet-long"];
        let invocation = Invocation::new(&self.xorriso)
            .env("SOURCE_DATE_EPOCH", EPOCH)
            .args(options)
            .args(["-iso-level", "3", "--set_all_file_dates", DATE, "-V", label, "-o"])
            .arg(&medium)
            .arg(&tree);
        let writing = invocation.run(control);
        tokio::pin!(writing);
        let mut tick = tokio::time::interval(TELL_EVERY);
        let written = loop {
            tokio::select! {
                written = &mut writing => break written,
                _ = tick.tick() => progress(std::fs::metadata(&medium).map_or(0, |so_far| so_far.len())),
            }
        };
        written.map_err(|source| MediaError::Xorriso { medium: dest.to_owned(), source })?;
        std::fs::set_permissions(&medium, std::fs::Permissions::from_mode(0o600)).map_err(write)?;
        std::fs::rename(&medium, dest).map_err(write)
    }
}

/// Puts a file where xorriso will find it: its bytes, or a link to it.
fn lay(tree: &Path, name: &str, contents: Contents<'_>, medium: &Path) -> Result<(), MediaError> {
    let path = Path::new(name);
    if name.is_empty() || path.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(MediaError::Name { name: name.to_owned() });
    }
    let place = tree.join(path);
    let lay = || -> io::Result<()> {
        if let Some(folder) = place.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        match contents {
            Contents::Bytes(bytes) => {
                let mut file =
                    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&place)?;
                io::Write::write_all(&mut file, bytes)
            }
            // Absolute, or it would be looked for from the link's own folder.
            Contents::File(from) => {
                // xorriso would put a link that leads nowhere on the medium, and call that success.
                std::fs::File::open(from)?;
                std::os::unix::fs::symlink(std::path::absolute(from)?, &place)
            }
        }
    };
    lay().map_err(|source| MediaError::File { medium: medium.to_owned(), name: name.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [(&str, Contents<'_>); 3] = [
        ("meta-data", Contents::Bytes(b"instance-id: run-1\n")),
        ("user-data", Contents::Bytes(b"#cloud-config\n")),
        ("inputs/a long name, with everything.yaml", Contents::Bytes(b"")),
    ];

    fn writer() -> MediaWriter {
        MediaWriter::find("/usr/bin".as_ref()).unwrap()
    }

    fn in_time() -> Control {
        Control::ending_in(Duration::from_secs(60))
    }

    /// As 7-Zip and Windows read it (Joliet), or Linux (Rock Ridge).
    fn read(medium: &Path, extension: &str, name: &str) -> Vec<u8> {
        let asked = Invocation::new("isoinfo").args([extension, "-x", &format!("/{name}"), "-i"]).arg(medium);
        asked.run_blocking().unwrap().stdout
    }

    #[tokio::test]
    async fn the_medium_is_what_others_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed.iso");
        let large = dir.path().join("large = file");
        std::fs::write(&large, vec![0x5a; 3_000_000]).unwrap();
        let mut files = FILES.to_vec();
        files.push(("inputs/large.bin", Contents::File(&large)));
        writer().write(&path, CLOUD_INIT_LABEL, &files, &in_time()).await.unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);

        let tags =
            Invocation::new("/sbin/blkid").args(["-p", "-o", "export"]).arg(&path).run_blocking().unwrap();
        let tags = tags.stdout_text();
        assert!(tags.contains("LABEL=CIDATA\n") && tags.contains("TYPE=iso9660\n"), "{tags}");
        for (name, contents) in files {
            let expected = match contents {
                Contents::Bytes(bytes) => bytes.to_vec(),
                Contents::File(path) => std::fs::read(path).unwrap(),
            };
            for extension in ["-R", "-J"] {
                assert!(read(&path, extension, name) == expected, "{name} {extension}");
            }
        }
    }

    #[tokio::test]
    async fn the_same_files_give_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("1"), dir.path().join("2"));
        writer().write(&one, "CIDATA", &FILES, &in_time()).await.unwrap();
        // Dates have seconds.
        std::thread::sleep(Duration::from_millis(1100));
        writer().write(&two, "CIDATA", &FILES, &in_time()).await.unwrap();
        assert!(std::fs::read(one).unwrap() == std::fs::read(two).unwrap());
    }

    #[tokio::test]
    async fn what_cannot_be_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let medium = dir.path().join("x");
        for label in ["", "cidata", "A LABEL OF MORE THAN 32 CHARACTERS", "A B", "Ä"] {
            let error = writer().write(&medium, label, &[], &in_time()).await.unwrap_err();
            assert!(matches!(error, MediaError::Label { .. }), "{error}");
        }
        for name in ["", "/etc/passwd", "../x", "a/../../x"] {
            let files = [(name, Contents::Bytes(b""))];
            let error = writer().write(&medium, "A", &files, &in_time()).await.unwrap_err();
            assert!(matches!(error, MediaError::Name { .. }), "{error}");
        }
        let nowhere = [("a", Contents::File(Path::new("/nowhere")))];
        let error = writer().write(&medium, "A", &nowhere, &in_time()).await.unwrap_err();
        assert!(matches!(error, MediaError::File { .. }), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

//! Media a guest reads and we make: small FAT images, such as the seed that cloud-init's NoCloud looks for.
//!
//! A seed holds private keys: it is readable by its owner only, and appears whole or not at all. The same files give the
//! same bytes.

use std::io::{self, Cursor, Write as _};
use std::path::{Path, PathBuf};

use fatfs::{Date, DateTime, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};
use kiln_host::publish;

/// The label cloud-init's NoCloud datasource looks for.
pub const CLOUD_INIT_LABEL: &str = "CIDATA";
/// Of the medium with a Windows' answer files; Windows goes by their names.
pub const ANSWERS_LABEL: &str = "KILNSEED";

#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    #[error("{label:?} is no FAT label: 1 to 11 of A-Z, 0-9, '-' and '_'")]
    Label { label: String },
    #[error("a medium of {size} bytes: media are limited to {MEDIUM_LIMIT}")]
    TooLarge { size: u64 },
    #[error("cannot put {name} on the medium {}", .medium.display())]
    File { medium: PathBuf, name: String, source: io::Error },
    #[error("cannot write the medium {}", .medium.display())]
    Write { medium: PathBuf, source: io::Error },
}

/// Media are made in memory.
const MEDIUM_LIMIT: u64 = 256 << 20;
/// Below a few hundred KiB there is no valid FAT; above, an empty file system costs nothing.
const SMALLEST: u64 = 1 << 20;
/// FAT rounds every file up to a cluster, and keeps tables and a root folder.
const PER_FILE: u64 = 16 << 10;
/// Any number will do, as long as it is the same each time: "KILN".
const VOLUME_ID: u32 = 0x4b49_4c4e;

/// Writes a FAT image with `label` and `files` (name in the root folder, contents) to `dest`, mode 0600.
pub fn seed_medium(dest: impl AsRef<Path>, label: &str, files: &[(&str, &[u8])]) -> Result<(), MediaError> {
    let dest = dest.as_ref();
    let medium = || dest.to_owned();
    let label_bytes = fat_label(label).ok_or_else(|| MediaError::Label { label: label.into() })?;
    let contents: u64 = files.iter().map(|(_, bytes)| bytes.len() as u64 + PER_FILE).sum();
    let size = (contents + contents / 8).next_multiple_of(SMALLEST).max(SMALLEST);
    if size > MEDIUM_LIMIT {
        return Err(MediaError::TooLarge { size });
    }
    let mut image = vec![0; usize::try_from(size).map_err(|_| MediaError::TooLarge { size })?];
    let options = FormatVolumeOptions::new().volume_id(VOLUME_ID).volume_label(label_bytes);
    let formatted = fatfs::format_volume(Cursor::new(&mut image[..]), options);
    formatted.map_err(|source| MediaError::Write { medium: medium(), source })?;
    fill(&mut image, files).map_err(|(name, source)| MediaError::File {
        medium: medium(),
        name: name.into(),
        source,
    })?;
    publish::write_file(dest, &image, 0o600).map_err(|source| MediaError::Write { medium: medium(), source })
}

fn fill<'a>(image: &mut [u8], files: &[(&'a str, &[u8])]) -> Result<(), (&'a str, io::Error)> {
    let options = FsOptions::new().time_provider(&FIXED_TIME);
    let system = FileSystem::new(Cursor::new(image), options).map_err(|error| ("the file system", error))?;
    for (name, bytes) in files {
        let written = system.root_dir().create_file(name).and_then(|mut file| {
            file.truncate()?;
            file.write_all(bytes)?;
            file.flush()
        });
        written.map_err(|error| (*name, error))?;
    }
    system.unmount().map_err(|error| ("the file system", error))
}

fn fat_label(label: &str) -> Option<[u8; 11]> {
    let allowed = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"-_".contains(byte);
    if label.is_empty() || label.len() > 11 || !label.as_bytes().iter().all(allowed) {
        return None;
    }
    let mut bytes = [b' '; 11];
    bytes[..label.len()].copy_from_slice(label.as_bytes());
    Some(bytes)
}

/// FAT's first moment, for every file.
#[derive(Debug)]
struct FixedTime;

static FIXED_TIME: FixedTime = FixedTime;

impl TimeProvider for FixedTime {
    fn get_current_date(&self) -> Date {
        Date { year: 1980, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime { date: self.get_current_date(), time: Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use kiln_host::process::Invocation;

    use super::*;

    const FILES: [(&str, &[u8]); 3] = [
        ("meta-data", b"instance-id: run-1\n"),
        ("user-data", b"#cloud-config\n"),
        ("network-config with a long name.yaml", b""),
    ];

    #[test]
    fn the_medium_is_what_others_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed.img");
        let large = vec![0x5a; 3_000_000];
        let mut files = FILES.to_vec();
        files.push(("large.bin", &large));
        seed_medium(&path, CLOUD_INIT_LABEL, &files).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);

        let tags =
            Invocation::new("/sbin/blkid").args(["-p", "-o", "export"]).arg(&path).run_blocking().unwrap();
        let tags = tags.stdout_text();
        assert!(tags.contains("LABEL=CIDATA\n") && tags.contains("TYPE=vfat\n"), "{tags}");
        Invocation::new("/sbin/fsck.vfat").arg("-n").arg(&path).run_blocking().unwrap();
        for (name, bytes) in files {
            let read = Invocation::new("mtype").arg("-i").arg(&path).arg(format!("::{name}")).run_blocking();
            assert!(read.unwrap().stdout == bytes, "{name}");
        }
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("1"), dir.path().join("2"));
        seed_medium(&one, "CIDATA", &FILES).unwrap();
        seed_medium(&two, "CIDATA", &FILES).unwrap();
        assert!(std::fs::read(one).unwrap() == std::fs::read(two).unwrap());
    }

    #[test]
    fn many_small_files_fit() {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..200).map(|number| format!("file-{number}")).collect();
        let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
        let error = seed_medium(dir.path().join("many"), "MANY", &files);
        error.unwrap();
    }

    #[test]
    fn what_cannot_be_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for label in ["", "cidata", "TWELVE_CHARS", "A B", "Ä"] {
            assert!(matches!(seed_medium(dir.path().join("x"), label, &[]), Err(MediaError::Label { .. })));
        }
        let error = seed_medium(dir.path().join("x"), "A", &[("a/b", b"")]).unwrap_err();
        assert!(matches!(error, MediaError::File { .. }), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

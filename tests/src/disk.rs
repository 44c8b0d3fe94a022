//! Looking into a disk without booting it, mounting it, or being root: partition tables
//! read here, ext4 by `debugfs`, which knows nothing of Kiln.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::program::{command, finish, output};

/// GPT type "Linux root (x86-64)" of the Discoverable Partitions Specification, as on disk.
const LINUX_ROOT: [u8; 16] =
    [0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09];
/// GPT type "Linux filesystem data", as on disk.
const LINUX_DATA: [u8; 16] =
    [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4];
const SECTOR: u64 = 512;
/// One question to a disk that lies in a file.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

/// A disk whose bytes lie plainly in a file: raw, or a fixed VHD (its footer follows them).
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    root_offset: u64,
}

/// What debugfs says of a file in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Type and permission bits, octal as in stat(2).
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
}

impl Entry {
    pub fn is_folder(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }
    pub fn is_file(&self) -> bool {
        self.mode & 0o170_000 == 0o100_000
    }
    pub fn is_link(&self) -> bool {
        self.mode & 0o170_000 == 0o120_000
    }
}

impl Disk {
    pub fn open(path: &Path) -> Self {
        let root_offset = root_offset(path);
        Self { path: path.to_owned(), root_offset }
    }

    /// The same content in a plain file: for QCOW2 images.
    pub fn plain_copy(image: &Path, into: &Path) -> Self {
        output("qemu-img", ["convert", "-O", "raw", image.to_str().unwrap(), into.to_str().unwrap()]);
        Self::open(into)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn debugfs(&self, arguments: &[&str]) -> crate::program::Ended {
        let mut debugfs = command("debugfs");
        debugfs.args(arguments).arg(format!("{}?offset={}", self.path.display(), self.root_offset));
        debugfs
            .env("PATH", format!("{}:/usr/sbin:/sbin", crate::settings::search_path()))
            .env("DEBUGFS_PAGER", "cat");
        finish(&mut debugfs, LIMIT)
    }

    /// The content of a file; `None` where there is none.
    pub fn read(&self, path: &str) -> Option<Vec<u8>> {
        let ended = self.debugfs(&["-R", &format!("cat \"{path}\"")]);
        // debugfs exits with 0 either way.
        (!ended.stderr.contains("File not found")).then_some(ended.stdout)
    }

    pub fn text(&self, path: &str) -> String {
        let bytes = self.read(path).unwrap_or_else(|| panic!("{path} is not on {}", self.path.display()));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub fn exists(&self, path: &str) -> bool {
        let (folder, name) = path.rsplit_once('/').unwrap();
        let folder = if folder.is_empty() { "/" } else { folder };
        self.list(&[folder.to_owned()]).remove(folder).is_some_and(|entries| entries.contains_key(name))
    }

    /// Names in a folder; empty where there is none.
    pub fn names(&self, folder: &str) -> Vec<String> {
        self.list(&[folder.to_owned()]).remove(folder).unwrap_or_default().into_keys().collect()
    }

    /// The entries of several folders at once.
    pub fn list(&self, folders: &[String]) -> BTreeMap<String, BTreeMap<String, Entry>> {
        let script = tempfile::NamedTempFile::new().unwrap();
        let commands: String = folders.iter().map(|folder| format!("ls -p \"{folder}\"\n")).collect();
        std::fs::write(script.path(), commands).unwrap();
        let ended = self.debugfs(&["-f", script.path().to_str().unwrap()]);
        let mut lists = BTreeMap::new();
        let mut current: Option<&str> = None;
        for line in ended.text().lines() {
            if let Some(echoed) = line.strip_prefix("debugfs: ls -p \"") {
                current = Some(
                    folders
                        .iter()
                        .find(|folder| echoed.trim_end() == format!("{folder}\""))
                        .map(String::as_str)
                        .unwrap(),
                );
            } else if let Some(folder) = current
                && let ["", _inode, mode, uid, gid, name, size, ..] = line.split('/').collect::<Vec<_>>()[..]
                && name != "."
                && name != ".."
            {
                let entry = Entry {
                    mode: u32::from_str_radix(mode, 8).unwrap(),
                    uid: uid.parse().unwrap(),
                    gid: gid.parse().unwrap(),
                    size: size.parse().unwrap_or(0),
                };
                lists.entry(folder.to_owned()).or_insert_with(BTreeMap::new).insert(name.to_owned(), entry);
            }
        }
        lists
    }

    /// Copies everything below `folder` to this host, for its content only.
    pub fn dump(&self, folder: &str, into: &Path) {
        self.debugfs(&["-R", &format!("rdump \"{folder}\" \"{}\"", into.display())]);
    }

    /// Whether `needle` lies anywhere in the file's bytes, used or free.
    pub fn holds_bytes(&self, needle: &[u8]) -> bool {
        find_bytes(&self.path, needle)
    }

    /// Bytes that the file takes on this host's disk.
    pub fn allocated(&self) -> u64 {
        self.path.metadata().unwrap().blocks() * 512
    }

    /// The size of the root file system by its superblock (ext4: blocks × block size), bytes.
    pub fn root_size(&self) -> u64 {
        let file = File::open(&self.path).unwrap();
        let mut superblock = [0; 1024];
        file.read_exact_at(&mut superblock, self.root_offset + 1024).unwrap();
        let u32_at = |at: usize| u64::from(u32::from_le_bytes(superblock[at..at + 4].try_into().unwrap()));
        assert_eq!(&superblock[56..58], b"\x53\xef", "ext4's magic number");
        u32_at(4) << (10 + u32_at(24))
    }
}

/// Where the root file system starts, bytes.
fn root_offset(path: &Path) -> u64 {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, SECTOR).unwrap();
    if &sector[..8] == b"EFI PART" {
        let u64_at = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let (table, count) = (u64_at(&sector, 72), u32::from_le_bytes(sector[80..84].try_into().unwrap()));
        for number in 0..u64::from(count) {
            let mut entry = [0; 128];
            file.read_exact_at(&mut entry, table * SECTOR + number * 128).unwrap();
            if entry[..16] == LINUX_ROOT || entry[..16] == LINUX_DATA {
                return u64_at(&entry, 32) * SECTOR;
            }
        }
        panic!("{} has no Linux root partition", path.display());
    }
    file.read_exact_at(&mut sector, 0).unwrap();
    assert_eq!(&sector[510..], b"\x55\xaa", "{} has no partition table", path.display());
    let entry = &sector[446..462];
    assert_eq!(entry[4], 0x83, "the first partition of {} is a Linux one", path.display());
    u64::from(u32::from_le_bytes(entry[8..12].try_into().unwrap())) * SECTOR
}

/// Searches the data of a sparse file; holes are zeros and are not read.
pub fn find_bytes(path: &Path, needle: &[u8]) -> bool {
    use rustix::fs::{SeekFrom, seek};
    assert!(needle.len() >= 8 && needle.iter().any(|byte| *byte != 0), "a needle, not hay");
    let file = File::open(path).unwrap();
    let length = file.metadata().unwrap().len();
    let mut at = 0;
    let mut window = vec![0; 4 << 20];
    while at < length {
        let Ok(start) = seek(&file, SeekFrom::Data(at)) else { return false };
        let end = seek(&file, SeekFrom::Hole(start)).unwrap();
        // A needle over the edge of a hole would have zeros in it: it cannot.
        let mut from = start;
        while from < end {
            let take = usize::try_from((end - from).min(window.len() as u64)).unwrap();
            file.read_exact_at(&mut window[..take], from).unwrap();
            if contains(&window[..take], needle) {
                return true;
            }
            let step = if from + take as u64 >= end { take } else { take - needle.len() + 1 };
            from += step as u64;
        }
        at = end;
    }
    false
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    use std::io::BufRead as _;
    let mut rest = hay;
    // The standard library's fast search for one byte, also in an unoptimized build.
    while rest.skip_until(needle[0]).unwrap() > 0 {
        let found = hay.len() - rest.len() - 1;
        if hay[found..].starts_with(needle) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needles_are_found_across_windows_and_holes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        let window = 4 << 20;
        for at in [0, window - 4, window * 3 + 77, (64 << 20) - 8] {
            file.as_file().write_all_at(b"NEEDLE88", at).unwrap();
            assert!(find_bytes(file.path(), b"NEEDLE88"), "at {at}");
            file.as_file().write_all_at(&[0; 8], at).unwrap();
            assert!(!find_bytes(file.path(), b"NEEDLE88"), "not at {at} any more");
        }
        // Dense around the edge of a window.
        file.as_file().write_all_at(&vec![b'x'; 9 << 20], 0).unwrap();
        file.as_file().write_all_at(b"NEEDLE88", window - 3).unwrap();
        assert!(find_bytes(file.path(), b"NEEDLE88"));
    }
}

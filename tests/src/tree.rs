//! The file tree of a disk as a table, and what is different between two.

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::disk::{Disk, Entry};

/// Path → type, mode, owner, and size with digest, in one line each.
pub type Tree = BTreeMap<String, String>;

/// Everything on the root file system of `disk`.
pub fn of(disk: &Disk) -> Tree {
    let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
    let mut folders = vec!["/".to_owned()];
    while !folders.is_empty() {
        let mut next = Vec::new();
        for (folder, found) in disk.list(&folders) {
            for (name, entry) in found {
                let path = format!("{}/{name}", folder.trim_end_matches('/'));
                if entry.is_folder() {
                    next.push(path.clone());
                }
                entries.insert(path, entry);
            }
        }
        folders = next;
    }
    assert!(entries.contains_key("/etc/passwd"), "the walk did not work: {} entries", entries.len());
    let content = tempfile::tempdir_in(crate::settings::scratch()).unwrap();
    disk.dump("/", content.path());
    entries
        .into_iter()
        .map(|(path, entry)| {
            let here = content.path().join(&path[1..]);
            let what = if entry.is_file() {
                format!("{} bytes {}", entry.size, digest(&here))
            } else if entry.is_link() {
                format!(
                    "-> {}",
                    std::fs::read_link(&here).map_or_else(|e| e.to_string(), |to| to.display().to_string())
                )
            } else {
                String::new()
            };
            (path, format!("{:06o} {}:{} {what}", entry.mode, entry.uid, entry.gid).trim_end().to_owned())
        })
        .collect()
}

fn digest(file: &Path) -> String {
    use std::fmt::Write as _;
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) => return error.to_string(),
    };
    Sha256::digest(bytes).iter().take(8).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// One path that is not the same in both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub path: String,
    pub before: Option<String>,
    pub after: Option<String>,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.before, &self.after) {
            (None, Some(after)) => write!(f, "added   {}  {after}", self.path),
            (Some(before), None) => write!(f, "removed {}  {before}", self.path),
            (before, after) => {
                let (before, after) = (before.as_deref().unwrap_or(""), after.as_deref().unwrap_or(""));
                write!(f, "changed {}  {before} => {after}", self.path)
            }
        }
    }
}

pub fn differences(before: &Tree, after: &Tree) -> Vec<Difference> {
    let mut paths: Vec<&String> = before.keys().chain(after.keys()).collect();
    paths.sort();
    paths.dedup();
    paths
        .into_iter()
        .filter(|path| before.get(*path) != after.get(*path))
        .map(|path| Difference {
            path: path.clone(),
            before: before.get(path).cloned(),
            after: after.get(path).cloned(),
        })
        .collect()
}

//! What the host really has: disk room, memory, processors.
//!
//! Containers and user quotas make the obvious numbers wrong, so each function asks for what *this process* can use.

use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// A folder without room for what is to be written there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} has {} MiB free but {} MiB are needed; make room there or choose another folder",
    .dir.display(), .free >> 20, .need.div_ceil(1 << 20)
)]
pub struct Shortfall {
    pub dir: PathBuf,
    /// Bytes.
    pub need: u64,
    /// Bytes.
    pub free: u64,
}

/// Why room is not certain.
#[derive(Debug, thiserror::Error)]
pub enum SpaceError {
    #[error("cannot tell how much room {} has", .dir.display())]
    Unknown { dir: PathBuf, source: io::Error },
    #[error(transparent)]
    Short(#[from] Shortfall),
}

/// Bytes that an unprivileged process can still write into the file system of `dir`.
pub fn free_bytes(dir: impl AsRef<Path>) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir.as_ref())?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// An error when `dir` has less than `need` bytes free.
pub fn ensure_room(dir: impl AsRef<Path>, need: u64) -> Result<(), SpaceError> {
    let dir = dir.as_ref().to_owned();
    match free_bytes(&dir) {
        Ok(free) if free < need => Err(Shortfall { dir, need, free }.into()),
        Ok(_) => Ok(()),
        Err(source) => Err(SpaceError::Unknown { dir, source }),
    }
}

/// Bytes a file takes on the disk; holes take none.
pub fn allocated_bytes(path: impl AsRef<Path>) -> io::Result<u64> {
    // st_blocks counts in 512 bytes whatever the file system's block size is (stat(2)).
    Ok(std::fs::metadata(path)?.blocks() * 512)
}

/// Whether files in `dir` can have holes, found out by making one.
pub fn supports_sparse(dir: impl AsRef<Path>) -> io::Result<bool> {
    const LENGTH: u64 = 4 << 20;
    let file: File = tempfile::tempfile_in(dir)?;
    file.set_len(LENGTH)?;
    file.write_all_at(&[1], LENGTH - 1)?;
    // Some file systems allocate late: only what is on the disk counts.
    file.sync_all()?;
    Ok(file.metadata()?.blocks() * 512 < LENGTH / 2)
}

/// MiB of memory that can be had now without swapping: the kernel's own estimate, or less where a control group
/// limits this process.
pub fn memory_available_mib() -> io::Result<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let available = meminfo_kib(&meminfo, "MemAvailable")
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no MemAvailable in /proc/meminfo"))?;
    let host = available << 10;
    let bytes = cgroup_room(Path::new("/sys/fs/cgroup")).map_or(host, |room| room.min(host));
    Ok(bytes >> 20)
}

/// MiB of memory there are at all, or the least limit of a control group this process is in.
pub fn memory_total_mib() -> io::Result<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let total = meminfo_kib(&meminfo, "MemTotal")
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no MemTotal in /proc/meminfo"))?;
    let limits = cgroup_folders(Path::new("/sys/fs/cgroup")).into_iter();
    let limit = limits.filter_map(|dir| cgroup_number(&dir, "memory.max")).min();
    Ok(limit.map_or(total << 10, |limit| limit.min(total << 10)) >> 20)
}

fn meminfo_kib(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Room under the nearest memory limit of our control group and those above it (cgroup v2); `None` without one.
fn cgroup_room(root: &Path) -> Option<u64> {
    cgroup_folders(root)
        .iter()
        .filter_map(|dir| {
            let limit = cgroup_number(dir, "memory.max")?;
            // Cached file pages count as used but are given back under pressure.
            let stat = std::fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
            let cached = stat
                .lines()
                .find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<u64>().ok())
                .unwrap_or(0);
            let used = cgroup_number(dir, "memory.current")?.saturating_sub(cached);
            Some(limit.saturating_sub(used))
        })
        .min()
}

/// The folders of our control group and those above it; none without cgroup v2.
fn cgroup_folders(root: &Path) -> Vec<PathBuf> {
    let membership = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(own) = membership.lines().find_map(|line| line.strip_prefix("0::")) else { return Vec::new() };
    let leaf = root.join(own.trim_start_matches('/'));
    leaf.ancestors().take_while(|dir| dir.starts_with(root)).map(Path::to_owned).collect()
}

/// "max" is no number and so no limit.
fn cgroup_number(dir: &Path, file: &str) -> Option<u64> {
    std::fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok()
}

/// Processors this process may use, after affinity and control-group quotas.
pub fn cpus() -> u32 {
    let count = std::thread::available_parallelism().map_or(1, NonZero::get);
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_take_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        File::create(&path).unwrap().set_len(1 << 30).unwrap();
        assert!(allocated_bytes(&path).unwrap() < 1 << 20);
        assert!(supports_sparse(dir.path()).unwrap());
        supports_sparse(dir.path().join("absent")).unwrap_err();
    }

    #[test]
    fn a_shortfall_names_folder_need_and_room() {
        let dir = tempfile::tempdir().unwrap();
        ensure_room(dir.path(), 1).unwrap();
        let Err(SpaceError::Short(short)) = ensure_room(dir.path(), u64::MAX) else { panic!("room for all") };
        assert_eq!(short.need, u64::MAX);
        let short = Shortfall { dir: "/srv/kiln".into(), need: (5 << 30) + 1, free: 3 << 20 };
        assert_eq!(
            short.to_string(),
            "/srv/kiln has 3 MiB free but 5121 MiB are needed; make room there or choose another folder"
        );
    }

    #[test]
    fn the_host_has_something() {
        assert!(cpus() >= 1);
        let available = memory_available_mib().unwrap();
        let total =
            meminfo_kib(&std::fs::read_to_string("/proc/meminfo").unwrap(), "MemTotal").unwrap() >> 10;
        assert!(available > 0 && available <= total);
        let given = memory_total_mib().unwrap();
        assert!(given >= available && given <= total);
    }
}

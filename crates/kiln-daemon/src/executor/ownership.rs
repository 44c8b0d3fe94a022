//! Files for a worker that runs as another user.
//!
//! A server that runs as root makes a run's directory, the stored inputs and their
//! locks as root; its workers do not run as root and must read and lock them. So
//! what a run needs is given to the workers' user before the run starts.
//!
//! That user can write to these folders, and we walk them as root. Nothing is
//! followed: each entry is opened by its folder's descriptor without following
//! links, and a file with a second name somewhere else stays whose it is.

use std::fs::File;
use std::io;
use std::path::Path;

use kiln_host::process::Identity;
use rustix::fs::{CWD, Dir, FileType, Gid, Mode, OFlags, Uid};

/// Kiln's folders lie less deep in one another; whoever makes deeper ones is after our stack.
const DEPTH: u32 = 16;

/// Gives one open file.
pub fn give_file(file: &File, to: &Identity) -> io::Result<()> {
    let (uid, gid) = ids(to);
    if rustix::fs::fstat(file)?.st_nlink != 1 {
        return Err(io::Error::other("it has a second name, and may be somebody else's file"));
    }
    Ok(rustix::fs::fchown(file, Some(uid), Some(gid))?)
}

/// Gives a folder and all that is in it. A folder that is not there is no error.
pub fn give_tree(root: &Path, to: &Identity) -> io::Result<()> {
    match rustix::fs::openat(CWD, root, FOLDER, Mode::empty()) {
        Ok(folder) => give_folder(&folder, to, DEPTH),
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::RDONLY).union(OFlags::CLOEXEC);

fn give_folder(folder: &impl std::os::fd::AsFd, to: &Identity, depth: u32) -> io::Result<()> {
    let (uid, gid) = ids(to);
    let too_deep = || io::Error::other("folders lie deeper in one another than Kiln makes them");
    let depth = depth.checked_sub(1).ok_or_else(too_deep)?;
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = match rustix::fs::statat(folder, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Downloads come and go meanwhile.
            Err(rustix::io::Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => match rustix::fs::openat(folder, name, FOLDER, Mode::empty()) {
                Ok(inner) => give_folder(&inner, to, depth)?,
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {}
                Err(error) => return Err(error.into()),
            },
            FileType::RegularFile if stat.st_uid != uid.as_raw() => {
                // A path descriptor: neither a FIFO nor a device put there meanwhile does anything when opened so.
                let open = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = match rustix::fs::openat(folder, name, open, Mode::empty()) {
                    Ok(file) => file,
                    Err(rustix::io::Errno::NOENT) => continue,
                    Err(error) => return Err(error.into()),
                };
                let stat = rustix::fs::fstat(&file)?;
                // A second name may be another folder's: root's own file linked in here, to be given away.
                if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 1 {
                    rustix::fs::chownat(&file, c"", Some(uid), Some(gid), rustix::fs::AtFlags::EMPTY_PATH)?;
                }
            }
            _ => {}
        }
    }
    Ok(rustix::fs::fchown(folder, Some(uid), Some(gid))?)
}

fn ids(identity: &Identity) -> (Uid, Gid) {
    (Uid::from_raw(identity.uid()), Gid::from_raw(identity.gid()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    #[test]
    fn all_of_a_folder_is_given_and_nothing_beyond_it() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not root: nothing can be given away");
            return;
        }
        let to = Identity::of("nobody").unwrap();
        let place = tempfile::tempdir().unwrap();
        let (outside, tree) = (place.path().join("outside"), place.path().join("tree"));
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        for file in [outside.join("secret"), outside.join("linked"), tree.join("a/b/file")] {
            std::fs::write(file, "x").unwrap();
        }
        symlink(outside.join("secret"), tree.join("a/link")).unwrap();
        symlink(&outside, tree.join("a/folder-link")).unwrap();
        std::fs::hard_link(outside.join("linked"), tree.join("a/hard")).unwrap();
        give_tree(&tree, &to).unwrap();
        for given in [tree.clone(), tree.join("a"), tree.join("a/b"), tree.join("a/b/file")] {
            assert_eq!(given.symlink_metadata().unwrap().uid(), to.uid(), "{}", given.display());
        }
        for kept in [outside.clone(), outside.join("secret"), outside.join("linked"), tree.join("a/link")] {
            assert_eq!(kept.symlink_metadata().unwrap().uid(), 0, "{}", kept.display());
        }
        give_tree(&tree.join("absent"), &to).unwrap();
    }
}

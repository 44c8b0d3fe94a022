//! The Unix socket's file: its permissions are the local command's sign-in.
//!
//! It is bound under another name, gets its permissions and its group, and only then its own name: nobody connects in
//! between. A file left by a server that was killed is replaced, one that a server answers on is not.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use super::ServeError;

/// A listening socket and its file, which goes when this is dropped.
pub(super) struct SocketFile {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: a successor's file of the same name is not ours to remove.
    identity: (u64, u64),
}

impl SocketFile {
    pub(super) fn bind(path: &Path, mode: u32, group: Option<&str>) -> Result<Self, ServeError> {
        let failed = |act| move |source| ServeError::Socket { act, path: path.to_owned(), source };
        let gid = match group {
            Some(group) => {
                Some(group_id(group).ok_or_else(|| ServeError::NoGroup { group: group.to_owned() })?)
            }
            None => None,
        };
        match std::fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                return Err(ServeError::NotASocket { path: path.to_owned() });
            }
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                Ok(_) => return Err(ServeError::SocketInUse { path: path.to_owned() }),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(failed("ask who is on")(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("look at")(error)),
        }
        // Short, for a socket's path is; with our process id, for nobody else may take it away.
        let aside = path.with_file_name(format!(".k{}", std::process::id()));
        let _ = std::fs::remove_file(&aside);
        let listener = UnixListener::bind(&aside).map_err(failed("make"))?;
        let finish = || {
            if gid.is_some() {
                std::os::unix::fs::chown(&aside, None, gid)?;
            }
            std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(mode))?;
            std::fs::rename(&aside, path)?;
            std::fs::symlink_metadata(path)
        };
        match finish() {
            Ok(file) => Ok(Self { listener, path: path.to_owned(), identity: (file.dev(), file.ino()) }),
            Err(error) => {
                let _ = std::fs::remove_file(&aside);
                Err(failed("set up")(error))
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours =
            std::fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.identity);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A group's number, by number or by its name in `/etc/group`. Groups that come from elsewhere (LDAP) go by number.
fn group_id(group: &str) -> Option<u32> {
    if let Ok(number) = group.parse() {
        return Some(number);
    }
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(group)).then(|| fields.nth(1)?.parse().ok())?
    })
}

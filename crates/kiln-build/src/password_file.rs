//! The file that holds the password of an image's own account.
//!
//! It is read once, by the run's own process, before anything is fetched or started; the password lives in memory that
//! is wiped. No error shows a byte of it.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use zeroize::Zeroizing;

/// Bytes; the longest password of a Windows account has 127 characters.
const LONGEST: usize = 1024;
/// What everybody may do with a file.
const EVERYBODY: u32 = 0o007;

/// A file that is no password file. Each says which, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum PasswordFileError {
    #[error("the password file {} cannot be read: put the account's password there, or import the image with \
             another --password-file", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("the password file {} is no regular file: name a file that holds the password", .path.display())]
    NotRegular { path: PathBuf },
    #[error(
        "the password file {path} is open to everybody on this host (mode {mode:04o}): run `chmod 640 {path}`",
        path = .path.display()
    )]
    Open { path: PathBuf, mode: u32 },
    #[error("the password file {} has more than {LONGEST} bytes: it holds the password and nothing else", .path.display())]
    TooLong { path: PathBuf },
    #[error("the password file {} is not UTF-8: write the password as UTF-8", .path.display())]
    NotText { path: PathBuf },
    #[error("the password file {} holds no password: write it there", .path.display())]
    Empty { path: PathBuf },
    #[error(
        "the password in {} has fewer than {least} bytes, and could not be kept out of the transcript: give the \
         account a longer one",
        .path.display()
    )]
    TooShortToHide { path: PathBuf, least: usize },
}

/// The password in `path`: all of it but one line end behind it.
///
/// # Errors
/// [`PasswordFileError`].
pub fn read(path: &Path) -> Result<Zeroizing<String>, PasswordFileError> {
    let path_buf = || path.to_owned();
    let unreadable = |source: io::Error| PasswordFileError::Unreadable { path: path_buf(), source };
    // A pipe is not waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map(File::from)
        .map_err(|error| unreadable(error.into()))?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(PasswordFileError::NotRegular { path: path_buf() });
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & EVERYBODY != 0 {
        return Err(PasswordFileError::Open { path: path_buf(), mode });
    }
    // One byte more shows that it is too long. As large as it gets from the start: what a buffer leaves behind when it
    // grows is not wiped.
    let mut bytes = Zeroizing::new([0; LONGEST + 1]);
    let mut length = 0;
    while length < bytes.len() {
        match (&file).read(&mut bytes[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    if length > LONGEST {
        return Err(PasswordFileError::TooLong { path: path_buf() });
    }
    let text =
        std::str::from_utf8(&bytes[..length]).map_err(|_| PasswordFileError::NotText { path: path_buf() })?;
    let password = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    if password.is_empty() {
        return Err(PasswordFileError::Empty { path: path_buf() });
    }
    Ok(Zeroizing::new(password.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    fn file(folder: &Path, bytes: &[u8], mode: u32) -> PathBuf {
        let path = folder.join("password");
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn all_but_one_line_end_is_the_password() {
        let folder = tempfile::tempdir().unwrap();
        let longest = "x".repeat(LONGEST);
        for (bytes, password) in [
            ("word", "word"),
            ("word\n", "word"),
            ("word\r\n", "word"),
            ("word\n\n", "word\n"),
            (" w\u{f6}rd \r", " w\u{f6}rd \r"),
            (longest.as_str(), longest.as_str()),
        ] {
            for mode in [0o600, 0o640, 0o400] {
                let path = file(folder.path(), bytes.as_bytes(), mode);
                assert_eq!(*read(&path).unwrap(), password, "{bytes:?}");
                std::fs::remove_file(path).unwrap();
            }
        }
    }

    #[test]
    fn what_is_no_password_file_says_what_to_do_and_shows_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path, part: &str| {
            let error = read(path).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
            assert!(!format!("{error:?}{error}").contains("canary"), "{error:?}");
        };
        for mode in [0o644, 0o604, 0o601, 0o642] {
            let path = file(folder.path(), b"canary", mode);
            refused(&path, &format!("(mode {mode:04o}): run `chmod 640 {}`", path.display()));
        }
        refused(&file(folder.path(), &[b'x'; LONGEST + 1], 0o600), "more than 1024 bytes");
        refused(&file(folder.path(), b"canary\xff", 0o600), "not UTF-8");
        for empty in ["", "\n", "\r\n"] {
            refused(&file(folder.path(), empty.as_bytes(), 0o600), "holds no password");
        }
        refused(folder.path(), "no regular file");
        refused(&folder.path().join("nowhere"), "cannot be read: put the account's password there");
        // Nobody writes into it, and nobody waits for that.
        let pipe = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::from(0o600)).unwrap();
        refused(&pipe, "no regular file");
    }
}

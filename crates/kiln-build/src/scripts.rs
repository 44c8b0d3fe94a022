//! Fetched scripts on their way into a guest.
//!
//! | script | travels | line ends, for Shell |
//! |--|--|--|
//! | small | with the command that starts it | converted in memory |
//! | large | as a file: on the medium or over the connection, its digest checked in the guest | of a copy in the run's work folder |
//!
//! A large one is never whole in memory here. CRLF becomes LF wherever it is in a Shell customizer's script, also
//! in what may follow its last command: the service does the same.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use kiln_host::digest::HashingWriter;
use kiln_library::StoredInput;
use kiln_model::Sha256;
use kiln_model::plan::{Customizer, CustomizerAction};

use crate::context::Run;
use crate::error::BuildError;

/// Above this many bytes a script is a large one. To be a file of its own costs one more command, which mounts and takes a
/// digest: as long as a connection takes for about so many bytes (a quarter to half a second in an emulated guest). Below
/// it, and on a medium that is there for nothing else, the round costs more than it saves.
pub(crate) const LARGE_SCRIPT: u64 = 1 << 20;

/// Read at once.
const CHUNK: usize = 256 << 10;

/// Whether what is fetched for a customizer gets into the guest as a file, and not with a command.
pub(crate) fn is_file(action: &CustomizerAction, bytes: u64) -> bool {
    matches!(action, CustomizerAction::File { .. }) || bytes > LARGE_SCRIPT
}

/// Whether the guest is to have other bytes than those that were fetched.
pub(crate) fn is_converted(action: &CustomizerAction) -> bool {
    matches!(action, CustomizerAction::Shell { .. })
}

/// What was fetched for a customizer, as a file with the bytes that the guest is to have.
///
/// # Errors
/// [`BuildError::Io`] of the copy; [`BuildError::Interrupted`].
pub(crate) async fn as_file(
    run: &Run,
    customizer: &Customizer,
    input: &StoredInput,
) -> Result<StoredInput, BuildError> {
    if !is_converted(&customizer.action) {
        return Ok(input.clone());
    }
    let (from, to) = (input.path.clone(), run.workspace.script(customizer.position));
    let named = to.clone();
    let copying = tokio::task::spawn_blocking(move || unix_copy(&from, &to));
    let copied = run.control.guard(copying).await?.map_err(io::Error::other).flatten();
    copied.map_err(BuildError::io("write", named))
}

/// The same, for a script that travels with a command.
///
/// # Errors
/// [`BuildError::Io`].
pub(crate) fn as_bytes(customizer: &Customizer, input: &StoredInput) -> Result<Vec<u8>, BuildError> {
    let fetched = std::fs::read(&input.path).map_err(BuildError::io("read", &input.path))?;
    if !is_converted(&customizer.action) {
        return Ok(fetched);
    }
    let mut unix = Vec::with_capacity(fetched.len());
    unix_lines(&fetched[..], &mut unix).map_err(BuildError::io("read", &input.path))?;
    Ok(unix)
}

fn unix_copy(from: &Path, to: &Path) -> io::Result<StoredInput> {
    let mut copy = BufWriter::with_capacity(CHUNK, HashingWriter::new(File::create(to)?));
    unix_lines(File::open(from)?, &mut copy)?;
    let hashed = copy.into_inner().map_err(io::IntoInnerError::into_error)?;
    let size = hashed.count();
    let (_, digest) = hashed.finish();
    Ok(StoredInput { sha256: Sha256::from_bytes(digest), size, path: to.to_owned() })
}

/// Scripts written on Windows: CRLF would end up in every command.
fn unix_lines(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    // The last byte was a carriage return, and waits for what follows it.
    let mut held = false;
    loop {
        let count = match from.read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            count => count?,
        };
        let mut rest = &chunk[..count];
        if held && !rest.starts_with(b"\n") {
            to.write_all(b"\r")?;
        }
        if count == 0 {
            return Ok(());
        }
        held = rest.ends_with(b"\r");
        if held {
            rest = &rest[..count - 1];
        }
        while let Some(at) = rest.windows(2).position(|pair| pair == b"\r\n") {
            to.write_all(&rest[..at])?;
            rest = &rest[at + 1..];
        }
        to.write_all(rest)?;
    }
}

/// How a script begins: enough to tell what runs it.
pub(crate) fn head(path: &Path) -> Result<Vec<u8>, BuildError> {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(4).read_to_end(&mut head));
    read.map_err(BuildError::io("read", path))?;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use kiln_host::digest::sha256;

    use super::*;

    /// Gives out so many bytes at a time.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    #[test]
    fn only_crlf_changes_wherever_a_chunk_ends() {
        for (from, to) in [
            (&b"a\r\nb\r\n"[..], &b"a\nb\n"[..]),
            (b"a\rb\n", b"a\rb\n"),
            (b"\r\r\n", b"\r\n"),
            (b"\r\n\r\n\n", b"\n\n\n"),
            (b"a\r", b"a\r"),
            (b"\r\r", b"\r\r"),
            (b"", b""),
            (b"\xff\r\n\xfe", b"\xff\n\xfe"),
        ] {
            for at_a_time in 1..=from.len().max(1) {
                let mut unix = Vec::new();
                unix_lines(Pieces(from, at_a_time), &mut unix).unwrap();
                assert_eq!(unix, to, "{from:?}, {at_a_time} at a time");
            }
        }
    }

    #[test]
    fn a_copy_has_its_own_size_and_digest_and_the_original_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        // Longer than a chunk, and each line end once at its border.
        let windows = "#!/bin/sh\r\n".repeat(CHUNK / 5).into_bytes();
        let unix = "#!/bin/sh\n".repeat(CHUNK / 5).into_bytes();
        std::fs::write(&from, &windows).unwrap();
        let copied = unix_copy(&from, &to).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), unix);
        assert_eq!(std::fs::read(&from).unwrap(), windows);
        assert_eq!(copied.size, unix.len() as u64);
        assert_eq!((copied.sha256.as_bytes(), copied.path), (&sha256(&unix), to));
        assert_eq!(head(&from).unwrap(), b"#!/b");
        std::fs::write(&from, "#").unwrap();
        assert_eq!(head(&from).unwrap(), b"#");
    }
}

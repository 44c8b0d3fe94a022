//! Reading a finished VHD back.

use std::io;
use std::path::Path;

use kiln_host::digest;
use kiln_host::extents::extent_digest;
use kiln_host::wait::Control;

use super::{FooterError, VhdError, read_fixed};

/// Whether the VHD at `path` is still the one whose extent digest (`kiln-extents-2`) is `expected`: a fixed VHD, of the
/// length that its footer says, with the very same bytes. Costs a read of its data; holes cost nothing.
///
/// # Errors
/// A file that cannot be read, one that is not there among them, and an interruption.
pub async fn verify(path: impl AsRef<Path>, expected: [u8; 32], control: &Control) -> Result<bool, VhdError> {
    let path = path.as_ref().to_owned();
    blocking(control, move |control| match read_fixed(&path) {
        Ok(_) => Ok(extents(&path, control)? == expected),
        Err(FooterError::Read(source)) => Err(VhdError::Read { path, source }),
        Err(_) => Ok(false),
    })
    .await
}

/// The extent digest of a file.
pub(super) fn extents(path: &Path, control: &Control) -> Result<[u8; 32], VhdError> {
    extent_digest(path, &|_| control.check().map_err(io::Error::other))
        .map_err(|source| unread(path, source, control))
}

/// The SHA-256 of a file; `progress` is told the bytes done, holes included.
pub(super) fn sha256(path: &Path, progress: &dyn Fn(u64), control: &Control) -> Result<[u8; 32], VhdError> {
    let mut on_chunk = |done| {
        progress(done);
        control.check().map_err(io::Error::other)
    };
    digest::sha256_file(path, &mut on_chunk).map_err(|source| unread(path, source, control))
}

fn unread(path: &Path, source: io::Error, control: &Control) -> VhdError {
    match control.check() {
        Err(why) => VhdError::Interrupted(why),
        Ok(()) => VhdError::Read { path: path.to_owned(), source },
    }
}

/// Runs what blocks on a thread that may. It is told to end when the future is dropped.
pub(super) async fn blocking<T: Send + 'static>(
    control: &Control,
    work: impl FnOnce(&Control) -> Result<T, VhdError> + Send + 'static,
) -> Result<T, VhdError> {
    let ends = EndOnDrop(control.child());
    let control = ends.0.clone();
    tokio::task::spawn_blocking(move || work(&control)).await?
}

struct EndOnDrop(Control);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

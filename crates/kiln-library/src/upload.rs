//! An input file that somebody sends instead of having it fetched.
//!
//! The bytes go into a part in `tmp` and are hashed on the way; under its digest the file appears whole or not at all.
//! An upload that tears leaves nothing.

use std::time::Duration;

use kiln_host::wait::Control;
use kiln_model::Sha256;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::error::UploadError;
use crate::fetch::Part;
use crate::{FetchError, Library, StoredInput};

const CHUNK: usize = 256 << 10;
/// A sender that is silent for so long has gone, whatever its connection says.
const SILENCE: Duration = Duration::from_secs(60);

impl Library {
    /// Puts what `reader` gives on the shelf of inputs, if its digest is `expected` (any where there is none).
    ///
    /// # Errors
    /// More than `limit` bytes; another digest; a reader that fails or falls silent; a disk that is full or fails.
    /// Nothing of the file is kept then.
    pub async fn store_input(
        &self,
        expected: Option<Sha256>,
        limit: u64,
        reader: impl AsyncRead + Unpin,
        control: &Control,
    ) -> Result<StoredInput, UploadError> {
        self.store_input_within(SILENCE, expected, limit, reader, control).await
    }

    async fn store_input_within(
        &self,
        silence: Duration,
        expected: Option<Sha256>,
        limit: u64,
        mut reader: impl AsyncRead + Unpin,
        control: &Control,
    ) -> Result<StoredInput, UploadError> {
        let mut part = Part::once_up_to(&self.tmp(), limit)?;
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = control
                .within(silence)
                .guard(reader.read(&mut buffer))
                .await
                .map_err(|why| match control.check() {
                    Ok(()) => UploadError::Silent { after: silence },
                    Err(_) => UploadError::Store(why.into()),
                })?
                .map_err(UploadError::Torn)?;
            if count == 0 {
                break;
            }
            part.write(&buffer[..count]).await?;
        }
        let (sha256, size) = (part.digests().await?.sha256, part.length());
        if let Some(expected) = expected.filter(|expected| *expected != sha256) {
            return Err(UploadError::Digest { expected, found: sha256 });
        }
        let path = self.inputs_dir().join(sha256.to_string());
        part.publish(&path).await?;
        Ok(StoredInput { sha256, size, path })
    }
}

impl From<FetchError> for UploadError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::TooLong { limit } => Self::TooLong { limit },
            error => Self::Store(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use kiln_host::digest::sha256;
    use tokio::io::ReadBuf;
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// Gives some bytes, then fails.
    struct Torn(usize);

    impl AsyncRead for Torn {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.0 == 0 {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            self.0 -= 1;
            buffer.put_slice(b"some");
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn only_whole_and_right_uploads_appear() {
        let dir = tempfile::tempdir().unwrap();
        let library = Library::open(dir.path()).unwrap();
        let control = Control::new(CancellationToken::new(), None);
        let right = Sha256::from_bytes(sha256(b"hello"));
        let wrong = Sha256::from_bytes(sha256(b"other"));
        let left = || {
            let count = |path| std::fs::read_dir(path).unwrap().count();
            (count(library.inputs_dir()), count(library.tmp()))
        };

        let error = library.store_input(Some(wrong), 100, &b"hello"[..], &control).await.unwrap_err();
        assert!(
            matches!(error, UploadError::Digest { expected, found } if expected == wrong && found == right)
        );
        let error = library.store_input(Some(right), 4, &b"hello"[..], &control).await.unwrap_err();
        assert!(matches!(error, UploadError::TooLong { limit: 4 }));
        let error = library.store_input(Some(right), 100, Torn(3), &control).await.unwrap_err();
        assert!(matches!(error, UploadError::Torn(_)));
        assert_eq!(left(), (0, 0), "nothing is left of them");

        let stored = library.store_input(Some(right), 5, &b"hello"[..], &control).await.unwrap();
        assert_eq!((stored.sha256, stored.size), (right, 5));
        assert_eq!(std::fs::read(&stored.path).unwrap(), b"hello");
        assert_eq!(library.find_input(right, &control).await.unwrap(), Some(stored));
        // Sent twice is sent once.
        library.store_input(None, 5, &b"hello"[..], &control).await.unwrap();
        assert_eq!(left(), (1, 0));
    }

    #[tokio::test]
    async fn a_silent_sender_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let library = Library::open(dir.path()).unwrap();
        let control = Control::new(CancellationToken::new(), None);
        let (_kept_open, reader) = tokio::io::duplex(16);
        let short = Duration::from_millis(20);
        let error = library.store_input_within(short, None, 100, reader, &control).await.unwrap_err();
        assert!(matches!(error, UploadError::Silent { .. }), "{error}");
    }
}

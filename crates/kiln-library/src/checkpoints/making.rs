//! Who makes a state at this moment: of several runs that come to the same, one makes it and the others wait.
//!
//! ```text
//!   make_alone(key) ─► Making       held until the state is on the shelf, or will never be
//!        └ somebody else has it ─► made_elsewhere(key) ─► look at the shelf again
//! ```
//! The hold is a locked file of the key's name in `checkpoints.making/`. It is gone with the process that has it, so
//! whoever waits for a run that died goes on. Whoever waits holds nothing itself, so nobody waits in a circle.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use kiln_host::wait::Control;
use kiln_model::Sha256;

use crate::hold::{hold_file, try_hold_file};
use crate::{Library, LibraryError};

/// The right to make a state, until it is dropped.
#[derive(Debug)]
pub struct Making {
    path: PathBuf,
    file: File,
}

impl Drop for Making {
    fn drop(&mut self) {
        // The name first: whoever has opened it meanwhile finds that it means another file now.
        let _ = std::fs::remove_file(&self.path);
        // A program that is being started may have it open a moment longer.
        let _ = self.file.unlock();
    }
}

impl Library {
    /// Takes the making of the state with this key; `None` while somebody else has it.
    pub fn make_alone(&self, key: Sha256) -> Result<Option<Making>, LibraryError> {
        let path = self.making_path(key)?;
        let held = try_hold_file(&path).map_err(LibraryError::disk("hold", &path))?;
        Ok(held.map(|file| Making { path, file }))
    }

    /// Waits until nobody makes the state with this key.
    pub async fn made_elsewhere(&self, key: Sha256, control: &Control) -> Result<(), LibraryError> {
        let path = self.making_path(key)?;
        let file = hold_file(&path, control).await?.map_err(LibraryError::disk("hold", &path))?;
        drop(Making { path, file });
        Ok(())
    }

    fn making_path(&self, key: Sha256) -> Result<PathBuf, LibraryError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let folder = self.root().join("checkpoints.making");
        match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(LibraryError::disk("make", folder)(error))
            }
            _ => Ok(folder.join(key.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn one_makes_it_and_the_others_wait() {
        let dir = tempfile::tempdir().unwrap();
        let library = Library::open(dir.path()).unwrap();
        let (key, other) = (Sha256::from_bytes([1; 32]), Sha256::from_bytes([2; 32]));
        let making = library.make_alone(key).unwrap().unwrap();
        assert!(library.make_alone(key).unwrap().is_none());
        assert!(library.make_alone(other).unwrap().is_some(), "another state is another's");
        let control = Control::ending_in(Duration::from_millis(200));
        let waited = library.made_elsewhere(key, &control).await.unwrap_err();
        assert!(waited.interrupted().is_some(), "{waited}");

        let control = Control::ending_in(Duration::from_secs(20));
        let waiting = library.made_elsewhere(key, &control);
        let ending = async {
            tokio::task::yield_now().await;
            drop(making);
        };
        let (waited, ()) = tokio::join!(waiting, ending);
        waited.unwrap();
        assert!(library.make_alone(key).unwrap().is_some(), "who waited holds nothing");
        let left = std::fs::read_dir(dir.path().join("checkpoints.making")).unwrap().count();
        assert_eq!(left, 0, "no lock files pile up");
    }
}

use kiln_host::wait::Control;
use kiln_model::Sha256;
use kiln_model::catalog::StoredImage;

use crate::{ImageProgress, Library, LibraryError};

/// What `image.json` says beside what [`StoredImage`] has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    pub image: StoredImage,
    pub origin: ImageOrigin,
}

/// How an image came to its shelf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageOrigin {
    Imported { sha256: Sha256 },
    Pulled { address: String, sha256: Sha256 },
    Built,
}

/// How hard to look at an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Read the file only when it is not the one that was last read, by inode, size and time.
    IfChanged,
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    Remembered,
    Read,
}

/// While it lives the image cannot be removed.
#[derive(Debug)]
pub struct ImageLease {}

impl Library {
    /// Every image on the shelf, by name and then version, oldest first. Damaged ones are left out, with a warning in the log.
    pub fn images(&self) -> Result<Vec<StoredImage>, LibraryError> {
        todo!()
    }
    pub fn record(&self, name: &str, version: &str) -> Result<ImageRecord, LibraryError> {
        let _ = (name, version);
        todo!()
    }
    pub async fn verify(
        &self,
        image: &StoredImage,
        how: Check,
        progress: &(dyn Fn(ImageProgress) + Send + Sync),
        control: &Control,
    ) -> Result<Checked, LibraryError> {
        let _ = (image, how, progress, control);
        todo!()
    }
    pub fn use_image(&self, image: &StoredImage) -> Result<ImageLease, LibraryError> {
        let _ = image;
        todo!()
    }
    pub fn remove(&self, name: &str, version: &str) -> Result<(), LibraryError> {
        let _ = (name, version);
        todo!()
    }
}

use std::path::PathBuf;
use std::time::Duration;

use kiln_host::wait::Control;
use kiln_model::Sha256;
use kiln_model::catalog::{Arch, Generation, Login, Os, ServedName, StoredImage};

use crate::{ImageError, Library};

#[derive(Debug, Clone)]
pub struct ImportRequest {
    pub path: PathBuf,
    pub name: String,
    pub version: String,
    pub platform: Vec<ServedName>,
    pub os: Os,
    /// Preferred first. Empty: what the disk's partitions say.
    pub generations: Vec<Generation>,
    pub arch: Arch,
    pub login: Login,
    /// Of the file as it is given.
    pub sha256: Option<Sha256>,
}

/// A base image made by a recipe.
#[derive(Debug, Clone)]
pub struct BuiltImage {
    pub image: ImportRequest,
    /// Kept beside the image.
    pub provenance: PathBuf,
}

#[derive(Debug, Clone)]
pub enum ImageProgress {
    Downloading { done: u64, total: Option<u64> },
    Retrying { attempt: u32, attempts: u32, after: Duration, message: String },
    Reading { done: u64, total: u64 },
    Copying { done: u64, total: u64 },
    Converting,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskProbe {
    pub generations: Vec<Generation>,
}

#[derive(Debug, Clone)]
pub struct Imported {
    pub image: StoredImage,
    pub probe: DiskProbe,
    /// The library had it already, with the same contents.
    pub already_there: bool,
}

impl Library {
    pub async fn import(
        &self,
        request: &ImportRequest,
        progress: &(dyn Fn(ImageProgress) + Send + Sync),
        control: &Control,
    ) -> Result<Imported, ImageError> {
        let _ = (request, progress, control);
        todo!()
    }
    pub async fn adopt_built(
        &self,
        built: &BuiltImage,
        progress: &(dyn Fn(ImageProgress) + Send + Sync),
        control: &Control,
    ) -> Result<Imported, ImageError> {
        let _ = (built, progress, control);
        todo!()
    }
}

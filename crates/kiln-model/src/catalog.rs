//! The catalog: which base image a PlatformImage of a template means here.
//!
//! A catalog *entry* says what an image is and where it comes from (an address or
//! a recipe). Whether its bytes are on the shelf is the library's knowledge; it
//! hands `StoredImage`s to [`crate::check`] and to plan making.

use serde::{Deserialize, Serialize};

use crate::Sha256;
use crate::json::FormatError;

/// The newest catalog format this build reads and the one it writes.
pub const CATALOG_FORMAT: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Os {
    Linux,
    Windows,
}

/// Hyper-V generation: 1 boots by BIOS, 2 by UEFI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Generation {
    V1,
    V2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Arch {
    #[serde(rename = "x86_64")]
    X86_64,
    #[serde(rename = "aarch64")]
    Aarch64,
}

/// How the bytes of a disk are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    Raw,
    Qcow2,
    /// Fixed or dynamic VHD ("vpc" to QEMU).
    Vhd,
    Vhdx,
    Vmdk,
}

/// How a build gets into the guest for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Login {
    /// cloud-init reads the build's account and keys from NoCloud media.
    CloudInit,
}

/// A Marketplace image name: publisher, offer and sku compare without case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlatformName {
    pub publisher: String,
    pub offer: String,
    pub sku: String,
}

impl PlatformName {
    /// The same name, whatever its letters' case.
    pub fn matches(&self, other: &PlatformName) -> bool {
        self.publisher.eq_ignore_ascii_case(&other.publisher)
            && self.offer.eq_ignore_ascii_case(&other.offer)
            && self.sku.eq_ignore_ascii_case(&other.sku)
    }
}

impl std::fmt::Display for PlatformName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.publisher, self.offer, self.sku)
    }
}

/// A Marketplace name an image answers to, and the generation it means by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServedName {
    pub publisher: String,
    pub offer: String,
    pub sku: String,
    /// For images that boot both ways. Absent: the first of the image's generations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
}

impl ServedName {
    pub fn name(&self) -> PlatformName {
        PlatformName { publisher: self.publisher.clone(), offer: self.offer.clone(), sku: self.sku.clone() }
    }
}

/// An image that lies in the library, complete and with a known digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredImage {
    /// Name in the catalog, for example `debian-12`.
    pub name: String,
    /// What `latest` chooses from; compared number by number.
    pub version: String,
    /// The Marketplace names this image answers to.
    pub platform: Vec<ServedName>,
    pub os: Os,
    /// The one a run boots; [`Catalog::choose`] sets it from the name that was asked for.
    pub generation: Generation,
    /// All it can boot; never empty, holds `generation`.
    pub generations: Vec<Generation>,
    pub arch: Arch,
    pub login: Login,
    pub format: DiskFormat,
    /// Digest of the file as it lies in the library.
    pub sha256: Sha256,
    /// Size of the disk inside, bytes.
    pub virtual_size: u64,
    /// Where the file lies on this host.
    pub path: std::path::PathBuf,
    /// RFC 3339, UTC: when it was put on the shelf. Decides between equal versions.
    pub stored_at: String,
}

/// All images known by name, whether or not their bytes are on the shelf.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Catalog {
    entries: Vec<CatalogEntry>,
}

/// One image of the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CatalogEntry {
    /// Short name, for example `debian-12`: lower-case letters, digits, `.`, `-`, `_`.
    pub name: String,
    pub platform: Vec<ServedName>,
    pub os: Os,
    /// What it can boot, preferred first; never empty.
    pub generations: Vec<Generation>,
    pub arch: Arch,
    pub login: Login,
    pub format: DiskFormat,
    pub source: CatalogSource,
}

/// Where the bytes come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum CatalogSource {
    /// A published disk file.
    Url {
        /// The same file at several places; tried in order. http or https.
        addresses: Vec<String>,
        checksum: Checksum,
        /// The version to store it under. Absent: the address is a moving one, and who
        /// pulls derives the version from what the server says (`Last-Modified`).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<String>,
    },
    /// Built here: a folder below the catalog's own.
    Recipe { folder: String },
    /// Put on the shelf by hand.
    Imported,
}

/// How the bytes of a pulled file are known to be right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Checksum {
    Sha256(Sha256),
    /// A checksum file beside the image; it has a line for the image's file name.
    File {
        /// Tried in order.
        addresses: Vec<String>,
        algorithm: ChecksumAlgorithm,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChecksumAlgorithm {
    Sha256,
    Sha512,
}

/// The catalog's text cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("the catalog {origin} cannot be read")]
    Yaml {
        origin: String,
        #[source]
        source: Box<serde_yaml::Error>,
    },
    #[error("the catalog {origin} cannot be used")]
    Format {
        origin: String,
        #[source]
        source: FormatError,
    },
    #[error("the catalog {origin}: entry \"{entry}\": {detail}")]
    Entry { origin: String, entry: String, detail: String },
}

/// No stored image fits what the template asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    #[error("no image is known for {name}{}", nearest_hint(.nearest))]
    UnknownName { name: PlatformName, nearest: Vec<PlatformName> },
    #[error("the image {entry} for {name} is not in the library: run `{run}`")]
    NotStored { name: PlatformName, entry: String, run: String },
    #[error("the library has {entry} for {name}, but not version {version}: it has {}", .stored.join(", "))]
    NoSuchVersion { name: PlatformName, entry: String, version: String, stored: Vec<String> },
}

fn nearest_hint(nearest: &[PlatformName]) -> String {
    let _ = nearest;
    String::new()
}

impl Catalog {
    /// Reads a catalog file. `origin` names it in errors.
    ///
    /// # Errors
    /// Not YAML, a newer format, entries that contradict themselves.
    pub fn parse(text: &str, origin: &str) -> Result<Catalog, CatalogError> {
        let _ = (text, origin);
        todo!()
    }

    /// This catalog, with `over`'s entries put before and in place of those of the same name.
    #[must_use]
    pub fn overlaid(self, over: Catalog) -> Catalog {
        let _ = over;
        self
    }

    /// This catalog, with an entry for each stored image that it does not know (imported by hand).
    #[must_use]
    pub fn with_stored(self, stored: &[StoredImage]) -> Catalog {
        let _ = stored;
        self
    }

    pub fn entries(&self) -> &[CatalogEntry] {
        &self.entries
    }

    /// The entry of that short name.
    pub fn entry(&self, name: &str) -> Option<&CatalogEntry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// The entry that answers to a Marketplace name.
    pub fn find(&self, name: &PlatformName) -> Option<&CatalogEntry> {
        self.entries.iter().find(|entry| entry.platform.iter().any(|served| served.name().matches(name)))
    }

    /// The stored image that `name` and `version` (`latest`, or an exact one) mean now,
    /// with its generation set to the one the name stands for.
    ///
    /// # Errors
    /// Nothing fits; the error says what to run.
    pub fn choose(
        &self,
        stored: &[StoredImage],
        name: &PlatformName,
        version: &str,
    ) -> Result<StoredImage, ChooseError> {
        let _ = (stored, name, version);
        todo!()
    }
}

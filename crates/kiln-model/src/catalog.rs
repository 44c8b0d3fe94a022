//! The catalog: which base image a PlatformImage of a template means here.
//!
//! A catalog *entry* says what an image is and where it comes from (an address or
//! a recipe). Whether its bytes are on the shelf is the library's knowledge; it
//! hands `StoredImage`s to [`crate::check`] and to plan making.

use serde::{Deserialize, Serialize};

use crate::Sha256;

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

/// An image that lies in the library, complete and with a known digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredImage {
    /// Name in the catalog, for example `debian-12`.
    pub name: String,
    /// What `latest` chooses from; compared number by number.
    pub version: String,
    /// The Marketplace names this image answers to.
    pub platform: Vec<PlatformName>,
    pub os: Os,
    pub generation: Generation,
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

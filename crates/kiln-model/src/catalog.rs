//! The catalog: which base image a PlatformImage of a template means here.
//!
//! A catalog *entry* says what an image is and where it comes from (an address or
//! a recipe). Whether its bytes are on the shelf is the library's knowledge; it
//! hands `StoredImage`s to [`crate::check`] and to plan making.

mod login;

use serde::{Deserialize, Serialize};

pub use login::{Credentials, CredentialsError, Listener, Login, certificate_digest};

use crate::Sha256;
use crate::json::{self, FormatError};

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
    NotStored { name: String, entry: String, run: String },
    #[error("the library has {entry} for {name}, but not version {version}: it has {}", .stored.join(", "))]
    NoSuchVersion { name: String, entry: String, version: String, stored: Vec<String> },
}

fn nearest_hint(nearest: &[PlatformName]) -> String {
    if nearest.is_empty() {
        return ": import one with `kiln images import`".to_owned();
    }
    let names: Vec<String> = nearest.iter().map(ToString::to_string).collect();
    format!("; similar names are {}. Or import one with `kiln images import`", names.join(", "))
}

/// A catalog file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CatalogFile {
    #[serde(rename = "format")]
    _format: u32,
    images: Vec<CatalogEntry>,
}

/// What is looked at first: a newer file may have anything else in it.
#[derive(Deserialize)]
struct CatalogHead {
    #[serde(default)]
    format: serde_json::Value,
}

impl Catalog {
    /// Reads a catalog file. `origin` names it in errors.
    ///
    /// # Errors
    /// Not YAML, a newer format, entries that contradict themselves.
    pub fn parse(text: &str, origin: &str) -> Result<Catalog, CatalogError> {
        let yaml = |source| CatalogError::Yaml { origin: origin.to_owned(), source: Box::new(source) };
        let head: CatalogHead = serde_yaml::from_str(text).map_err(yaml)?;
        json::check_format("the catalog", Some(&head.format), CATALOG_FORMAT)
            .map_err(|source| CatalogError::Format { origin: origin.to_owned(), source })?;
        let file: CatalogFile = serde_yaml::from_str(text).map_err(yaml)?;
        let mut catalog = Catalog::default();
        for entry in file.images {
            let trouble = entry.trouble().or_else(|| catalog.collision(&entry));
            if let Some(detail) = trouble {
                return Err(CatalogError::Entry { origin: origin.to_owned(), entry: entry.name, detail });
            }
            catalog.entries.push(entry);
        }
        Ok(catalog)
    }

    /// Why `entry` cannot stand beside those that are there.
    fn collision(&self, entry: &CatalogEntry) -> Option<String> {
        if self.entry(&entry.name).is_some() {
            return Some("another entry has this name".to_owned());
        }
        entry.platform.iter().find_map(|served| {
            let name = served.name();
            let other = self.find(&name)?;
            Some(format!("{name} is served by \"{}\" already", other.name))
        })
    }

    /// This catalog, with `over`'s entries put before and in place of those of the same name.
    #[must_use]
    pub fn overlaid(self, over: Catalog) -> Catalog {
        let mut entries = over.entries;
        let shadowed = |entry: &CatalogEntry| entries.iter().any(|known| known.name == entry.name);
        let rest: Vec<CatalogEntry> = self.entries.into_iter().filter(|entry| !shadowed(entry)).collect();
        // Of two entries that answer to one name the first is found: the one of `over`.
        entries.extend(rest);
        Catalog { entries }
    }

    /// This catalog, with an entry for each stored image that it does not know (imported by hand).
    #[must_use]
    pub fn with_stored(mut self, stored: &[StoredImage]) -> Catalog {
        for image in stored {
            match self.entries.iter_mut().find(|entry| entry.name == image.name) {
                None => self.entries.push(CatalogEntry {
                    name: image.name.clone(),
                    platform: image.platform.clone(),
                    os: image.os,
                    generations: image.generations.clone(),
                    arch: image.arch,
                    login: image.login.clone(),
                    format: image.format,
                    source: CatalogSource::Imported,
                }),
                // Another version of an imported image may answer to other names.
                Some(entry) if entry.source == CatalogSource::Imported => {
                    for served in &image.platform {
                        if !entry.platform.contains(served) {
                            entry.platform.push(served.clone());
                        }
                    }
                }
                Some(_) => {}
            }
        }
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

    /// Known Marketplace names that may have been meant, nearest first.
    pub fn nearest(&self, name: &PlatformName) -> Vec<PlatformName> {
        let all: Vec<(String, PlatformName)> = self
            .entries
            .iter()
            .flat_map(|entry| &entry.platform)
            .map(|served| (served.name().to_string(), served.name()))
            .collect();
        crate::suggest::several(&name.to_string(), all.iter().map(|(text, _)| text.as_str()), 3)
            .into_iter()
            .filter_map(|near| all.iter().find(|(text, _)| text == near).map(|(_, name)| name.clone()))
            .collect()
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
        let (entry, generation) = match self.find(name) {
            Some(entry) => (entry.name.clone(), entry.generation_of(name)),
            // Stored, and in no catalog: its own record says what it answers to.
            None => {
                let image = stored.iter().find(|image| served_as(&image.platform, name).is_some());
                let Some(image) = image else {
                    return Err(ChooseError::UnknownName { name: name.clone(), nearest: self.nearest(name) });
                };
                (image.name.clone(), served_as(&image.platform, name).and_then(|served| served.generation))
            }
        };
        let of_entry: Vec<&StoredImage> = stored.iter().filter(|image| image.name == entry).collect();
        if of_entry.is_empty() {
            let run = self.entry(&entry).map_or_else(String::new, CatalogEntry::how_to_get);
            return Err(ChooseError::NotStored { name: name.to_string(), entry, run });
        }
        let newest = of_entry
            .iter()
            .filter(|image| version.eq_ignore_ascii_case("latest") || image.version == version)
            .max_by(|a, b| {
                compare_versions(&a.version, &b.version).then_with(|| a.stored_at.cmp(&b.stored_at))
            });
        let Some(newest) = newest else {
            let mut versions: Vec<String> = of_entry.iter().map(|image| image.version.clone()).collect();
            versions.sort_by(|a, b| compare_versions(a, b));
            versions.dedup();
            return Err(ChooseError::NoSuchVersion {
                name: name.to_string(),
                entry,
                version: version.to_owned(),
                stored: versions,
            });
        };
        let mut chosen = (*newest).clone();
        if let Some(generation) = generation.filter(|wanted| chosen.generations.contains(wanted)) {
            chosen.generation = generation;
        }
        Ok(chosen)
    }
}

fn served_as<'a>(platform: &'a [ServedName], name: &PlatformName) -> Option<&'a ServedName> {
    platform.iter().find(|served| served.name().matches(name))
}

impl CatalogEntry {
    /// The generation that a name of this entry stands for.
    pub fn generation_of(&self, name: &PlatformName) -> Option<Generation> {
        served_as(&self.platform, name)
            .and_then(|served| served.generation)
            .or_else(|| self.generations.first().copied())
    }

    /// The command that puts the image on the shelf.
    pub fn how_to_get(&self) -> String {
        match self.source {
            CatalogSource::Url { .. } => format!("kiln images pull {}", self.name),
            CatalogSource::Recipe { .. } => format!("kiln images build {}", self.name),
            CatalogSource::Imported => format!("kiln images import FILE --name {}", self.name),
        }
    }

    fn trouble(&self) -> Option<String> {
        let name_ok = !self.name.is_empty()
            && !self.name.starts_with('.')
            && self
                .name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_'));
        if !name_ok {
            return Some("a name has lower-case letters, digits, '.', '-' and '_'".to_owned());
        }
        if self.generations.is_empty() {
            return Some("it boots in no generation".to_owned());
        }
        if let Some(trouble) = self.login.trouble(self.os) {
            return Some(trouble.to_owned());
        }
        for (index, served) in self.platform.iter().enumerate() {
            if let Some(generation) = served.generation
                && !self.generations.contains(&generation)
            {
                return Some(format!("{} asks for {generation:?}, which it cannot boot", served.name()));
            }
            if self.platform[..index].iter().any(|other| other.name().matches(&served.name())) {
                return Some(format!("{} is there twice", served.name()));
            }
        }
        let web = |address: &String| address.starts_with("https://") || address.starts_with("http://");
        match &self.source {
            CatalogSource::Url { addresses, checksum, .. } => {
                let files = match checksum {
                    Checksum::Sha256(_) => &[][..],
                    Checksum::File { addresses, .. } if addresses.is_empty() => {
                        return Some("the checksum file has no address".to_owned());
                    }
                    Checksum::File { addresses, .. } => addresses.as_slice(),
                };
                if addresses.is_empty() {
                    return Some("it has no address".to_owned());
                }
                addresses
                    .iter()
                    .chain(files)
                    .find(|address| !web(address))
                    .map(|bad| format!("\"{}\" is no http or https address", crate::plan::redact_url(bad)))
            }
            CatalogSource::Recipe { folder } => {
                let inside = !folder.is_empty()
                    && folder.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
                (!inside).then(|| format!("the recipe folder \"{folder}\" is not below the catalog's"))
            }
            CatalogSource::Imported => None,
        }
    }
}

impl Generation {
    /// What boots it.
    pub fn firmware(self) -> &'static str {
        match self {
            Generation::V1 => "BIOS",
            Generation::V2 => "UEFI",
        }
    }
}

/// Number by number: 12.10 is newer than 12.9, 1.0 is newer than 1. Parts that are no
/// numbers are older than numbers and compare as text.
pub fn compare_versions(a: &str, b: &str) -> std::cmp::Ordering {
    let key = |part: &str| -> (bool, usize, String) {
        let number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if number {
            // Of any length: without leading zeros, the longer number is the larger.
            let digits = part.trim_start_matches('0');
            (true, digits.len(), digits.to_owned())
        } else {
            (false, 0, part.to_owned())
        }
    };
    a.split('.').map(key).cmp(b.split('.').map(key))
}

#[cfg(test)]
mod tests;

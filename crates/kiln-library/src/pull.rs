//! Pulling: an image of the catalog, fetched from where it is published.
//!
//! The digest is known before the first byte: the catalog gives it, or a checksum file of the publisher does. So what is
//! on the shelf already is not fetched again, a broken transfer is gone on with from any of the addresses, and nothing
//! else can get onto the shelf.
//!
//! # Versions
//! An entry with a version is stored under it. Without one the address is a moving one ("latest"): the version is the
//! time the server gives for the file (`Last-Modified`, as `YYYYMMDD.HHMM` in UTC), or that of the fetch where it gives
//! none. If another file has that version already, a further number is appended, so that the newest wins.

use kiln_host::wait::Control;
use kiln_model::Sha256;
use kiln_model::catalog::{CatalogEntry, CatalogSource, Checksum, StoredImage};
use kiln_model::plan::{InputLocation, redact_url};
use kiln_qemu::qemu_img::QemuImg;
use reqwest::Url;

use crate::fetch::{Expected, Failed, Fetched, Fetcher, News, Part, address_key, parse_address};
use crate::import::{Owner, Progress, Taking};
use crate::{
    FetchError, FetchSettings, ImageError, ImageOrigin, ImageProgress, ImportRequest, Imported, Library,
    LibraryError, checksums,
};

/// A checksum file names a few hundred files at most.
const LARGEST_CHECKSUM_FILE: u64 = 4 << 20;
/// Files with the same time on one server.
const MOST_OF_A_TIME: u32 = 100;

impl Library {
    /// Fetches an image of the catalog and puts it on the shelf; what is there already is not fetched again.
    pub async fn pull(
        &self,
        entry: &CatalogEntry,
        settings: &FetchSettings,
        qemu_img: &QemuImg,
        progress: Progress<'_>,
        control: &Control,
    ) -> Result<Imported, ImageError> {
        let name = &entry.name;
        let not_pullable = |reason: String| ImageError::NotPullable { name: name.clone(), reason };
        let (addresses, checksum, version) = match &entry.source {
            CatalogSource::Url { addresses, checksum, version } => (addresses, checksum, version.as_deref()),
            CatalogSource::Recipe { .. } => {
                return Err(not_pullable(format!("it is made by a recipe: run `kiln images build {name}`")));
            }
            CatalogSource::Imported => {
                return Err(not_pullable(format!(
                    "it was imported by hand: run `kiln images import` for {name}"
                )));
            }
        };
        let pull = Pull {
            library: self,
            entry,
            fetcher: Fetcher::new(settings),
            attempts: settings.attempts.max(1),
            progress,
            control,
        };
        let urls = pull.urls(addresses)?;
        let file = match addresses.first() {
            Some(first) => InputLocation::Url(first.clone()).file_name(),
            None => return Err(not_pullable("its catalog entry has no address".to_owned())),
        };
        let mut expected = pull.expected(checksum, &file).await?;
        if let Some(image) = pull.stored(&expected, version)? {
            return Ok(Imported { image, probe: None });
        }
        let (part, fetched) = loop {
            let mut part = pull.part(&expected).await?;
            // Whoever held the part before may have been pulling the same.
            if let Some(image) = pull.stored(&expected, version)? {
                part.discard();
                return Ok(Imported { image, probe: None });
            }
            let Failed { address, error, .. } = match pull.fetch(&urls, &mut part, expected).await {
                Ok(fetched) => break (part, fetched),
                Err(failed) => failed,
            };
            if let (FetchError::WrongDigest { .. }, Checksum::File { .. }) = (&error, checksum) {
                // A moving address may have moved between the two requests: then the checksum file has, too.
                let now = pull.expected(checksum, &file).await?;
                if now != expected {
                    expected = now;
                    continue;
                }
            }
            return Err(ImageError::Fetch { name: name.clone(), address, source: Box::new(error) });
        };
        let sha256 = fetched.digests.sha256;
        let version = match version {
            Some(version) => version.to_owned(),
            None => pull.free_version(&fetched, sha256)?,
        };
        let request = ImportRequest {
            path: part.path().to_owned(),
            name: name.clone(),
            version,
            platform: entry.platform.clone(),
            os: entry.os,
            generations: entry.generations.clone(),
            arch: entry.arch,
            login: entry.login.clone(),
            sha256: None,
        };
        let origin = |sha256| ImageOrigin::Pulled {
            address: fetched.address.clone(),
            sha256,
            sha512: match expected {
                Expected::Sha512(_) => Some(expected.hex()),
                Expected::Sha256(_) => None,
            },
        };
        let taking =
            Taking { library: self, request: &request, qemu_img, progress, control, provenance: None };
        let imported = taking.take(Owner::Library, Some(sha256), origin).await?;
        part.discard();
        Ok(imported)
    }
}

/// One call of [`Library::pull`].
struct Pull<'a> {
    library: &'a Library,
    entry: &'a CatalogEntry,
    fetcher: Fetcher,
    attempts: u32,
    progress: Progress<'a>,
    control: &'a Control,
}

impl Pull<'_> {
    fn urls(&self, addresses: &[String]) -> Result<Vec<Url>, ImageError> {
        let parse = |address: &String| {
            parse_address(address).map_err(|source| ImageError::Fetch {
                name: self.entry.name.clone(),
                address: redact_url(address),
                source: Box::new(source),
            })
        };
        addresses.iter().map(parse).collect()
    }

    /// What the image's file must be.
    async fn expected(&self, checksum: &Checksum, file: &str) -> Result<Expected, ImageError> {
        let (addresses, algorithm) = match checksum {
            Checksum::Sha256(digest) => return Ok(Expected::Sha256(*digest)),
            Checksum::File { addresses, algorithm } => (addresses, *algorithm),
        };
        let name = self.entry.name.clone();
        let urls = self.urls(addresses)?;
        let failed = |address: String| {
            move |source| ImageError::FetchChecksums { name, address, source: Box::new(source) }
        };
        let shown = addresses.first().map(|address| redact_url(address)).unwrap_or_default();
        let mut part = match Part::once_up_to(&self.library.tmp(), LARGEST_CHECKSUM_FILE) {
            Ok(part) => part,
            Err(error) => return Err(failed(shown)(error)),
        };
        let quiet = |news: News<'_>| {
            if let News::Retrying { .. } = news {
                self.tell(news);
            }
        };
        let fetched = self.fetcher.fetch(&urls, &mut part, None, &quiet, self.control).await;
        let fetched = match fetched {
            Ok(fetched) => fetched,
            Err(Failed { address, error, .. }) => return Err(failed(address)(error)),
        };
        let text = match part.read_text() {
            Ok(text) => text,
            Err(error) => return Err(failed(fetched.address)(error)),
        };
        checksums::find(&text, file, algorithm)
            .ok_or_else(|| ImageError::NoChecksum { address: fetched.address, file: file.to_owned() })
    }

    /// The image that came from that very file, if the library has it.
    fn stored(
        &self,
        expected: &Expected,
        version: Option<&str>,
    ) -> Result<Option<StoredImage>, LibraryError> {
        let name = &self.entry.name;
        let is_it = |origin: &ImageOrigin| match (origin, expected) {
            (ImageOrigin::Pulled { sha512: Some(sha512), .. }, Expected::Sha512(_)) => {
                *sha512 == expected.hex()
            }
            (_, Expected::Sha512(_)) => false,
            (origin, Expected::Sha256(sha256)) => origin.sha256() == *sha256,
        };
        if let Some(version) = version {
            return match self.library.record(name, version) {
                Ok(record) if is_it(&record.origin) => Ok(Some(record.image)),
                Ok(_) => Err(LibraryError::AlreadyStored { name: name.clone(), version: version.to_owned() }),
                Err(LibraryError::NoSuchImage { .. }) => Ok(None),
                Err(error) => Err(error),
            };
        }
        // The newest that is the same file.
        let images = self.library.images()?;
        for image in images.into_iter().rev().filter(|image| image.name == *name) {
            if is_it(&self.library.record(name, &image.version)?.origin) {
                return Ok(Some(image));
            }
        }
        Ok(None)
    }

    /// The transfer of that file, waiting while another process works on it.
    async fn part(&self, expected: &Expected) -> Result<Part, ImageError> {
        let with_sha512 = matches!(expected, Expected::Sha512(_));
        let key = address_key(&format!("image {}", expected.hex())).to_string();
        let tmp = self.library.tmp();
        Part::keyed(&tmp, &key, with_sha512, self.control)
            .await
            .map_err(|source| ImageError::Keep { name: self.entry.name.clone(), source: Box::new(source) })
    }

    async fn fetch(&self, urls: &[Url], part: &mut Part, expected: Expected) -> Result<Fetched, Failed> {
        let tell = |news: News<'_>| self.tell(news);
        self.fetcher.fetch(urls, part, Some(expected), &tell, self.control).await
    }

    fn tell(&self, news: News<'_>) {
        (self.progress)(match news {
            News::Received { done, total } => ImageProgress::Downloading { done, total },
            News::Retrying { attempt, after, error } => ImageProgress::Retrying {
                attempt,
                attempts: self.attempts,
                after,
                message: crate::error::with_causes(error),
            },
        });
    }

    /// A version for the file of a moving address.
    fn free_version(&self, fetched: &Fetched, sha256: Sha256) -> Result<String, LibraryError> {
        let base = moving_version(fetched.last_modified.as_deref(), jiff::Timestamp::now());
        let mut version = base.clone();
        for further in 1..=MOST_OF_A_TIME {
            match self.library.stored_from(&self.entry.name, &version, sha256) {
                Err(LibraryError::AlreadyStored { .. }) => version = format!("{base}.{further}"),
                Ok(_) => return Ok(version),
                Err(error) => return Err(error),
            }
        }
        Err(LibraryError::AlreadyStored { name: self.entry.name.clone(), version })
    }
}

/// `20240821.1430` for the time a server gives (RFC 9110, section 5.6.7), or for `now`.
fn moving_version(last_modified: Option<&str>, now: jiff::Timestamp) -> String {
    let given = last_modified.and_then(|text| jiff::fmt::rfc2822::parse(text).ok());
    given.map_or(now, |zoned| zoned.timestamp()).strftime("%Y%m%d.%H%M").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_moving_addresses() {
        let now: jiff::Timestamp = "2025-02-03T04:05:06Z".parse().unwrap();
        for (given, version) in [
            (Some("Wed, 21 Aug 2024 14:30:59 GMT"), "20240821.1430"),
            (Some("Wed, 21 Aug 2024 00:05:59 +0200"), "20240820.2205"),
            (Some("yesterday"), "20250203.0405"),
            (None, "20250203.0405"),
        ] {
            assert_eq!(moving_version(given, now), version, "{given:?}");
            crate::images::check_version(version).unwrap();
        }
    }
}

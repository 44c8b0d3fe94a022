//! Input files: what the customizers of a template need, fetched before a machine starts.
//!
//! ```text
//!  wants ─► groups (one digest, or one address) ─► at most 4 at a time ─► shelf? ─► fetch ─► digest ─► inputs/sha256/<digest>
//! ```
//!
//! A file that is wanted by its digest and lies on the shelf needs no network. It is read again each time, since a shelf
//! is only a disk. A file that is wanted without a digest is fetched each time: who wants it so wants what is there now.
//! Each distinct address is fetched at most once, and of several addresses with the same digest only as many as it
//! takes. Other processes that fetch the same digest are waited for.
//!
//! INVARIANT: a download with a checksum is used only after it matched: nothing else gets a [`StoredInput`].

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use kiln_host::digest::sha256_file;
use kiln_host::wait::Control;
use kiln_model::Sha256;
use kiln_model::plan::{InputLocation, InputRef};

use crate::background;
use crate::error::{download_words, with_causes};
use crate::fetch::{Expected, Failed, Fetcher, News, Part, address_key, parse_address};
use crate::hold::{Share, try_hold};
use crate::{FetchError, FetchSettings, InputError, Library, LibraryError};

/// Enough to fill most lines; more would only wait for each other.
const AT_A_TIME: usize = 4;

/// An input file on the shelf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredInput {
    pub sha256: Sha256,
    /// Bytes.
    pub size: u64,
    /// Read-only, and the same for everyone who wants these bytes.
    pub path: PathBuf,
}

/// What [`Library::inputs`] tells of an input; it has not been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShelvedInput {
    pub sha256: Sha256,
    /// Bytes.
    pub size: u64,
    /// When it came, or was last looked for.
    pub last_wanted: SystemTime,
}

/// `input` is the place in the list of wants, from 0; of several that want one address, the first. Addresses are
/// redacted.
#[derive(Debug, Clone)]
pub enum InputProgress {
    /// It was on the shelf.
    Present {
        input: usize,
        address: String,
    },
    Started {
        input: usize,
        address: String,
    },
    /// A few times a second; bytes.
    Received {
        input: usize,
        done: u64,
        total: Option<u64>,
    },
    /// `message` is the one of [`InputError::Download`], with its causes.
    Retrying {
        input: usize,
        attempt: u32,
        attempts: u32,
        after: Duration,
        message: String,
    },
    Stored {
        input: usize,
        address: String,
        sha256: Sha256,
        size: u64,
    },
}

type Answer = Result<StoredInput, InputError>;

/// One address, and who wants it.
struct Source<'a> {
    location: &'a InputLocation,
    wants: Vec<usize>,
}

impl Library {
    /// Puts every wanted file on the shelf; the answers are in the order of `wants`.
    ///
    /// What can be had is put there even if something else fails.
    pub async fn ensure_inputs(
        &self,
        wants: &[InputRef],
        settings: &FetchSettings,
        progress: impl Fn(InputProgress) + Send + Sync,
        control: &Control,
    ) -> Vec<Answer> {
        let ensuring = Ensuring {
            library: self,
            wants,
            fetcher: Fetcher::new(settings),
            attempts: settings.attempts.max(1),
            progress: &progress,
            control,
            groups: Mutex::new(group(wants)),
            answers: Mutex::new(vec![None; wants.len()]),
        };
        // They share one task: it is the network they wait for.
        tokio::join!(ensuring.work(), ensuring.work(), ensuring.work(), ensuring.work());
        const { assert!(AT_A_TIME == 4) };
        let answers = ensuring.answers.into_inner().unwrap_or_else(PoisonError::into_inner);
        let complete: Vec<Answer> = answers.into_iter().flatten().collect();
        assert_eq!(complete.len(), wants.len(), "every want is answered");
        complete
    }

    /// Where the input of that digest lies, if it is on the shelf.
    pub fn input_path(&self, sha256: Sha256) -> PathBuf {
        self.inputs_dir().join(sha256.to_string())
    }

    /// The input of that digest, if it is on the shelf and undamaged. Asking counts as wanting it: it stays for a while.
    pub async fn find_input(
        &self,
        sha256: Sha256,
        control: &Control,
    ) -> Result<Option<StoredInput>, LibraryError> {
        let path = self.input_path(sha256);
        let size = match path.metadata() {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(LibraryError::disk("read", &path)(error)),
        };
        let file = path.clone();
        let digest = background::run(control, &|_| (), move |line| {
            // Who removes it holds it alone, and looks at its time first.
            let Some(held) = held_together(&file)? else { return Ok(None) };
            // Only its owner may; another user's shelf keeps its own times.
            if let Err(error) = held.set_modified(SystemTime::now()) {
                tracing::debug!(path = %file.display(), %error, "cannot remember that an input was wanted");
            }
            sha256_file(&file, &mut |done| line.report(done)).map(Some)
        });
        let Some(found) = digest.await.map_err(LibraryError::ended("read", &path))? else { return Ok(None) };
        let found = Sha256::from_bytes(found);
        if found != sha256 {
            // It is replaced when the right one has been fetched.
            tracing::warn!(path = %path.display(), %found, "an input on the shelf is damaged");
            return Ok(None);
        }
        Ok(Some(StoredInput { sha256, size, path }))
    }

    /// Every input on the shelf, in no order.
    pub fn inputs(&self) -> Result<Vec<ShelvedInput>, LibraryError> {
        let dir = self.inputs_dir();
        let failed = |source| LibraryError::disk("list", &dir)(source);
        let mut inputs = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // What is named otherwise is not ours.
            let Some(sha256) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            match entry.metadata() {
                Ok(metadata) => inputs.push(ShelvedInput {
                    sha256,
                    size: metadata.len(),
                    last_wanted: metadata.modified().map_err(failed)?,
                }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(inputs)
    }

    /// Removes an input from the shelf, unless somebody wanted it after `since`, or reads it now. Returns whether it is
    /// gone by this.
    pub fn remove_input(&self, sha256: Sha256, since: SystemTime) -> Result<bool, LibraryError> {
        let path = self.inputs_dir().join(sha256.to_string());
        let removed = || -> io::Result<bool> {
            let Some(held) = try_hold(&path, Share::Alone)? else { return Ok(false) };
            if held.metadata()?.modified()? > since {
                return Ok(false);
            }
            std::fs::remove_file(&path)?;
            Ok(true)
        };
        match removed() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            removed => removed.map_err(LibraryError::disk("remove", &path)),
        }
    }
}

/// `None` for what is just being removed, or gone.
fn held_together(path: &Path) -> io::Result<Option<File>> {
    match try_hold(path, Share::Together) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        held => held,
    }
}

/// Addresses that are to give the same digest go together; the others each for itself.
fn group(wants: &[InputRef]) -> VecDeque<Vec<Source<'_>>> {
    let mut sources: Vec<Source> = Vec::new();
    for (input, want) in wants.iter().enumerate() {
        match sources.iter_mut().find(|source| *source.location == want.location) {
            Some(source) => source.wants.push(input),
            None => sources.push(Source { location: &want.location, wants: vec![input] }),
        }
    }
    let mut groups: VecDeque<Vec<Source>> = VecDeque::new();
    let mut of_digest: BTreeMap<Sha256, usize> = BTreeMap::new();
    for source in sources {
        let digests: Vec<Sha256> = source.wants.iter().filter_map(|input| wants[*input].sha256).collect();
        let known = match digests.first() {
            // Two digests for one address: one of them will be found wrong.
            Some(first) if digests.iter().all(|digest| digest == first) => of_digest.get(first).copied(),
            _ => None,
        };
        if let Some(place) = known {
            groups[place].push(source);
            continue;
        }
        for digest in digests {
            of_digest.entry(digest).or_insert(groups.len());
        }
        groups.push_back(vec![source]);
    }
    groups
}

/// One call of [`Library::ensure_inputs`].
struct Ensuring<'a, P> {
    library: &'a Library,
    wants: &'a [InputRef],
    fetcher: Fetcher,
    attempts: u32,
    progress: &'a P,
    control: &'a Control,
    groups: Mutex<VecDeque<Vec<Source<'a>>>>,
    answers: Mutex<Vec<Option<Answer>>>,
}

impl<P: Fn(InputProgress) + Send + Sync> Ensuring<'_, P> {
    async fn work(&self) {
        loop {
            let next = self.groups.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(group) = next else { return };
            for source in group {
                self.ensure(&source).await;
            }
        }
    }

    /// Answers everyone who wants this address.
    async fn ensure(&self, source: &Source<'_>) {
        let address = source.location.redacted();
        let mut left = Vec::new();
        for &input in &source.wants {
            match self.on_shelf(self.wants[input].sha256).await {
                Ok(Some(stored)) => {
                    (self.progress)(InputProgress::Present { input, address: address.clone() });
                    self.answer(input, Ok(stored));
                }
                Ok(None) => left.push(input),
                Err(error) => self.answer(input, Err(store_error(&address, error))),
            }
        }
        let Some(&first) = left.first() else { return };
        match self.obtain(first, &left, source.location).await {
            Ok(stored) => {
                for input in left {
                    let answer = match self.wants[input].sha256 {
                        Some(expected) if expected != stored.sha256 => Err(InputError::Checksum {
                            address: address.clone(),
                            expected,
                            actual: stored.sha256,
                        }),
                        _ => Ok(stored.clone()),
                    };
                    self.answer(input, answer);
                }
            }
            Err(error) => {
                for input in left {
                    let mut error = error.clone();
                    // Each is told of the digest it named itself.
                    if let (InputError::Checksum { expected, .. }, Some(own)) =
                        (&mut error, self.wants[input].sha256)
                    {
                        *expected = own;
                    }
                    self.answer(input, Err(error));
                }
            }
        }
    }

    async fn on_shelf(&self, sha256: Option<Sha256>) -> Result<Option<StoredInput>, LibraryError> {
        match sha256 {
            Some(sha256) => self.library.find_input(sha256, self.control).await,
            None => Ok(None),
        }
    }

    /// Fetches the file and puts it on the shelf under the digest it has, if any of `left` may have it.
    async fn obtain(&self, first: usize, left: &[usize], location: &InputLocation) -> Answer {
        let address = location.redacted();
        if let InputLocation::Stored { .. } = location {
            return Err(InputError::Gone { address, sha256: self.wants[first].sha256 });
        }
        let failed = |attempt, error| self.download_error(first, location, attempt, error);
        let place = Place::of(location).map_err(|error| failed(1, error))?;
        // One digest that all agree on can be waited for and gone on with.
        let agreed = self.wants[first]
            .sha256
            .filter(|digest| left.iter().all(|input| self.wants[*input].sha256 == Some(*digest)));
        let tmp = self.library.tmp();
        let part = match (agreed, &place) {
            (Some(digest), Place::Url(_)) => {
                Part::keyed(&tmp, &digest.to_string(), false, self.control).await
            }
            _ => Part::once(&tmp),
        };
        let mut part = part.map_err(|error| failed(1, error))?;
        // Whoever held the part before may have been fetching the same.
        let found = self.on_shelf(agreed).await.map_err(|error| store_error(&address, error))?;
        if let Some(stored) = found {
            part.discard();
            (self.progress)(InputProgress::Present { input: first, address });
            return Ok(stored);
        }
        (self.progress)(InputProgress::Started { input: first, address: address.clone() });
        let digests = match place {
            Place::Url(url) => {
                let tell = |news: News<'_>| self.tell(first, location, news);
                let expected = agreed.map(Expected::Sha256);
                let fetched = self.fetcher.fetch(&[url], &mut part, expected, &tell, self.control).await;
                match (fetched, agreed) {
                    (Ok(fetched), _) => Ok(fetched.digests),
                    (Err(Failed { error: FetchError::WrongDigest { sha256, .. }, .. }), Some(expected)) => {
                        return Err(InputError::Checksum { address, expected, actual: sha256 });
                    }
                    (Err(Failed { attempt, error, .. }), _) => Err(failed(attempt, error)),
                }
            }
            Place::File(path) => {
                let tell = |done, total| {
                    (self.progress)(InputProgress::Received { input: first, done, total: Some(total) });
                };
                let copied = part.copy_from(&path, self.control, &tell).await;
                copied.map_err(|error| failed(1, error))?;
                part.digests().await.map_err(|error| failed(1, error))
            }
        }?;
        let (sha256, size) = (digests.sha256, part.length());
        let wanted = |input: &usize| self.wants[*input].sha256.is_none_or(|expected| expected == sha256);
        if !left.iter().any(wanted) {
            // `ensure` puts each one's own in place of this one.
            let expected = self.wants[first].sha256.unwrap_or(sha256);
            return Err(InputError::Checksum { address, expected, actual: sha256 });
        }
        let path = self.library.input_path(sha256);
        part.publish(&path).await.map_err(|error| failed(1, error))?;
        (self.progress)(InputProgress::Stored { input: first, address, sha256, size });
        Ok(StoredInput { sha256, size, path })
    }

    fn tell(&self, input: usize, location: &InputLocation, news: News<'_>) {
        (self.progress)(match news {
            News::Received { done, total } => InputProgress::Received { input, done, total },
            News::Retrying { attempt, after, error } => {
                let address = location.redacted();
                let local = local_name(&address, input);
                let words = download_words(&address, &local, attempt, self.attempts);
                let message = format!("{words}: {}", with_causes(error));
                InputProgress::Retrying { input, attempt, attempts: self.attempts, after, message }
            }
        });
    }

    fn download_error(
        &self,
        input: usize,
        location: &InputLocation,
        attempt: u32,
        error: FetchError,
    ) -> InputError {
        let address = location.redacted();
        InputError::Download {
            local: local_name(&address, input),
            address,
            attempt,
            attempts: self.attempts,
            source: Arc::new(error),
        }
    }

    fn answer(&self, input: usize, answer: Answer) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)[input] = Some(answer);
    }
}

/// Where the bytes are, ready to be asked.
enum Place {
    Url(reqwest::Url),
    File(PathBuf),
}

impl Place {
    fn of(location: &InputLocation) -> Result<Self, FetchError> {
        match location {
            InputLocation::File(path) => Ok(Self::File(path.clone())),
            InputLocation::Stored { .. } => {
                Err(FetchError::BadAddress { reason: "it is a stored copy".to_owned() })
            }
            InputLocation::Url(text) => match file_address(text) {
                Some(path) => path.map(Self::File),
                None => parse_address(text).map(Self::Url),
            },
        }
    }
}

/// The path that a `file:` address names: `file:///abs` or `file:/abs`, percent-encoded (RFC 8089). `None` for other
/// schemes.
pub fn file_address(text: &str) -> Option<Result<PathBuf, FetchError>> {
    let text = text.trim();
    let rest = text.get(..5).filter(|scheme| scheme.eq_ignore_ascii_case("file:")).map(|_| &text[5..])?;
    let bad = |reason: &str| Some(Err(FetchError::BadAddress { reason: reason.to_owned() }));
    if !rest.starts_with('/') {
        return bad("a file: address needs an absolute path, such as file:///srv/scripts/setup.sh");
    }
    match reqwest::Url::parse(text).ok().and_then(|url| url.to_file_path().ok()) {
        Some(path) => Some(Ok(path)),
        None => bad("a file: address names a file of this host; use file:///path"),
    }
}

fn store_error(address: &str, error: LibraryError) -> InputError {
    InputError::Store { address: address.to_owned(), source: Arc::new(error) }
}

/// A name in the form of that service. The digits are of the redacted address: they stand for nothing.
fn local_name(address: &str, input: usize) -> String {
    format!("{}.{input}.customizer.fp", &address_key(address).to_string()[..5])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(url: &str, digest: Option<u8>) -> InputRef {
        InputRef {
            location: InputLocation::Url(url.to_owned()),
            sha256: digest.map(|byte| Sha256::from_bytes([byte; 32])),
        }
    }

    #[test]
    fn each_address_is_asked_once_and_equal_digests_go_together() {
        let wants = [
            want("http://h/a", Some(1)),
            want("http://h/b", None),
            want("http://h/c", Some(1)),
            want("http://h/a", None),
            want("http://h/d", Some(2)),
            want("http://h/e", Some(1)),
            want("http://h/e", Some(2)),
        ];
        let groups: Vec<Vec<Vec<usize>>> = group(&wants)
            .into_iter()
            .map(|group| group.into_iter().map(|source| source.wants).collect())
            .collect();
        assert_eq!(groups, [vec![vec![0, 3], vec![2]], vec![vec![1]], vec![vec![4]], vec![vec![5, 6]]]);
    }

    #[tokio::test]
    async fn an_input_goes_when_nobody_wanted_it_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let library = Library::open(dir.path()).unwrap();
        let control = Control::ending_in(Duration::from_secs(10));
        let sha256: Sha256 =
            "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae".parse().unwrap();
        let path = dir.path().join("inputs/sha256").join(sha256.to_string());
        std::fs::write(&path, "foo").unwrap();
        std::fs::write(dir.path().join("inputs/sha256/note"), "not ours").unwrap();
        let (now, day) = (SystemTime::now(), Duration::from_secs(24 * 3600));
        File::open(&path).unwrap().set_modified(now - 40 * day).unwrap();
        let shelved = library.inputs().unwrap();
        assert_eq!(shelved, [ShelvedInput { sha256, size: 3, last_wanted: now - 40 * day }]);

        let reading = try_hold(&path, Share::Together).unwrap().unwrap();
        assert!(!library.remove_input(sha256, now - 30 * day).unwrap(), "somebody reads it");
        drop(reading);
        assert!(library.find_input(sha256, &control).await.unwrap().is_some());
        assert!(!library.remove_input(sha256, now - 30 * day).unwrap(), "somebody wanted it just now");
        File::open(&path).unwrap().set_modified(now - 40 * day).unwrap();
        assert!(library.remove_input(sha256, now - 30 * day).unwrap());
        assert!(!library.remove_input(sha256, now).unwrap(), "it is gone already");
        assert!(library.find_input(sha256, &control).await.unwrap().is_none());
    }

    #[test]
    fn file_addresses() {
        for (text, path) in [
            ("file:///a/b", "/a/b"),
            ("file:/a/b", "/a/b"),
            ("FILE:///a%20b/%c3%bc", "/a b/ü"),
            ("file://localhost/a", "/a"),
        ] {
            assert_eq!(file_address(text).unwrap().unwrap(), PathBuf::from(path), "{text}");
        }
        for text in ["file:", "file:a/b", "file:./a", "file://server/share"] {
            assert!(file_address(text).unwrap().is_err(), "{text}");
        }
        for text in ["http://h/a", "", "fil", "üüüü", "/a"] {
            assert!(file_address(text).is_none(), "{text}");
        }
    }
}

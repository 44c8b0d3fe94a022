//! What the tests share: a library, wants, settings that do not take long.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use kiln_host::digest;
use kiln_host::process::find_program;
use kiln_host::wait::Control;
use kiln_library::{FetchSettings, InputError, InputProgress, Library, StoredInput};
use kiln_model::Sha256;
use kiln_model::plan::{InputLocation, InputRef};
use kiln_qemu::qemu_img::QemuImg;

pub struct Store {
    pub dir: tempfile::TempDir,
    pub library: Library,
    pub settings: FetchSettings,
    pub progress: Mutex<Vec<InputProgress>>,
}

impl Store {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let library = Library::open(dir.path().join("library")).unwrap();
        Self { dir, library, settings: quick(), progress: Mutex::default() }
    }

    pub async fn ensure(&self, wants: &[InputRef]) -> Vec<Result<StoredInput, InputError>> {
        let progress = |news| self.progress.lock().unwrap().push(news);
        self.library.ensure_inputs(wants, &self.settings, progress, &soon()).await
    }

    pub async fn ensure_one(&self, want: InputRef) -> Result<StoredInput, InputError> {
        self.ensure(&[want]).await.pop().unwrap()
    }

    pub fn retries(&self) -> Vec<String> {
        let progress = self.progress.lock().unwrap();
        let retry = |news: &InputProgress| match news {
            InputProgress::Retrying { message, .. } => Some(message.clone()),
            _ => None,
        };
        progress.iter().filter_map(retry).collect()
    }

    /// Names below the library's folder, its own record left out.
    pub fn files(&self) -> Vec<String> {
        let mut files: Vec<String> = walk(self.library.root())
            .iter()
            .map(|path| path.strip_prefix(self.library.root()).unwrap().to_string_lossy().into_owned())
            .filter(|path| path != "library.json")
            .collect();
        files.sort();
        files
    }

    /// The one transfer that lies unfinished.
    pub fn only_part(&self) -> PathBuf {
        let parts: Vec<_> = walk(self.library.root())
            .into_iter()
            .filter(|path| path.extension().is_some_and(|e| e == "part"))
            .collect();
        assert_eq!(parts.len(), 1, "{:?}", self.files());
        parts[0].clone()
    }
}

pub fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files
}

/// As usual, but no pause is felt and nobody is waited for long.
pub fn quick() -> FetchSettings {
    FetchSettings {
        connect_timeout: Duration::from_secs(5),
        stall_timeout: Duration::from_secs(5),
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(5),
        ..FetchSettings::default()
    }
}

/// No test takes longer; a hang becomes a failure.
pub fn soon() -> Control {
    Control::ending_in(Duration::from_secs(25))
}

pub fn want(url: &str, content: Option<&[u8]>) -> InputRef {
    InputRef { location: InputLocation::Url(url.to_owned()), sha256: content.map(sha256) }
}

pub fn want_file(path: &Path) -> InputRef {
    InputRef { location: InputLocation::File(path.to_owned()), sha256: None }
}

pub fn sha256(bytes: &[u8]) -> Sha256 {
    Sha256::from_bytes(digest::sha256(bytes))
}

/// Bytes without a pattern that a mistake could hide in.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed * 2 + 1;
    (0..length)
        .map(|_| {
            // xorshift64 (Marsaglia, 2003)
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[5]
        })
        .collect()
}

/// Everything a person might be shown of an error.
pub fn shown(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = format!("{error} {error:?}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!("\n{error} {error:?}"));
        cause = error.source();
    }
    text
}

pub fn qemu_img() -> QemuImg {
    let path = find_program("qemu-img", "/usr/local/bin:/usr/bin:/bin".as_ref());
    QemuImg::new(path.expect("qemu-img: apt-get install qemu-utils"))
}

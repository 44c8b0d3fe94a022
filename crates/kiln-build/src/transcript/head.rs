//! The first line of a transcript. A promise to whoever keeps such files: a golden test holds it.

use kiln_guest::os::windows::facts::WindowsFacts;
use kiln_guest::os::windows::proof::DiskWords;
use kiln_host::digest::sha256_file;
use kiln_model::Sha256;
use kiln_model::catalog::{DiskFormat, Generation, StoredImage};
use kiln_model::event::StepOutcome;
use kiln_model::plan::Customizer;
use kiln_model::run::RunState;
use serde::{Deserialize, Serialize};

/// The newest transcript format this build reads and the one it writes.
pub const TRANSCRIPT_FORMAT: u32 = 1;

/// What a transcript begins with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Head {
    pub kind: Kind,
    pub format: u32,
    /// The file's own name.
    pub name: String,
    pub run_id: String,
    /// RFC 3339, UTC.
    pub started_at: String,
    pub outcome: RunState,
    /// One sentence: what came out, or what went wrong.
    pub message: String,
    /// What is proven, in the product's words.
    pub proof: String,
    pub host: HostWords,
    pub image: ImageWords,
    /// What the guest said of itself; none if it came to no answer.
    pub guest: Option<WindowsFacts>,
    /// What the base image's registry says, read from outside.
    pub disk: Option<DiskWords>,
    /// What was asked for.
    pub customizers: Vec<Customizer>,
    /// In the order in which they ended.
    pub steps: Vec<StepWords>,
    pub warnings: Vec<String>,
    pub generalized: Option<GeneralizedWords>,
    pub results: Vec<ResultWords>,
    /// How many lines follow.
    pub exchanges: u64,
    /// Of these, without what was said, for want of room.
    pub omitted: u64,
    /// Of all bytes after this line.
    pub exchanges_sha256: Sha256,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    Transcript,
}

/// What a run ran on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostWords {
    /// Kiln's version.
    pub kiln: String,
    /// Of the program itself.
    pub kiln_sha256: Option<Sha256>,
    pub kernel: String,
    pub cpu: String,
    pub cpus: u32,
    pub qemu: String,
    pub accelerator: String,
    /// None: BIOS, which is QEMU's own.
    pub firmware: Option<FileWords>,
    pub swtpm: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileWords {
    pub path: String,
    pub sha256: Option<Sha256>,
}

/// The base image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageWords {
    pub name: String,
    pub version: String,
    pub sha256: Sha256,
    pub generation: Generation,
    pub format: DiskFormat,
    /// Bytes.
    pub virtual_size: u64,
}

/// One step, and what its passing proves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepWords {
    pub id: String,
    pub title: String,
    pub outcome: StepOutcome,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    pub ms: u64,
    pub word: String,
}

/// What the finished disk says, and what the guest said before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GeneralizedWords {
    pub image_state: Option<String>,
    /// The file system was not shut down cleanly.
    pub dirty: bool,
    pub rearms_left_before: Option<i64>,
    /// None where the disk does not tell: a Windows has it in an encrypted store.
    pub rearms_left_after: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResultWords {
    pub file: String,
    /// Bytes.
    pub size: u64,
    pub virtual_size: u64,
    pub sha256: Sha256,
}

/// A transcript's first line cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    #[error("the transcript has format {found}, this Kiln reads up to {TRANSCRIPT_FORMAT}: use a newer Kiln")]
    Newer { found: u64 },
    #[error("it is no transcript")]
    Malformed(#[from] serde_json::Error),
}

impl Head {
    /// One line, with its end.
    pub fn to_line(&self) -> String {
        // Our own types, with string keys and no floats: they always serialize.
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }

    /// From a transcript's first line. The number is looked at first, so that a newer one is called newer.
    pub fn from_line(line: &str) -> Result<Self, HeadError> {
        let value: serde_json::Value = serde_json::from_str(line)?;
        match value["format"].as_u64() {
            Some(found) if found > u64::from(TRANSCRIPT_FORMAT) => Err(HeadError::Newer { found }),
            _ => Ok(serde_json::from_value(value)?),
        }
    }
}

impl HostWords {
    /// What this process can see by itself.
    pub(super) fn here() -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let name = rustix::system::uname();
        Self {
            // The program that runs, also when another one has taken its place on the disk.
            kiln_sha256: sha256_file("/proc/self/exe", &mut |_| Ok(())).ok().map(Sha256::from),
            kernel: format!("{} {}", name.sysname().to_string_lossy(), name.release().to_string_lossy()),
            cpu: model.map(|(_, name)| name.trim().to_owned()).unwrap_or_default(),
            cpus: kiln_host::space::cpus(),
            ..Self::default()
        }
    }
}

impl ImageWords {
    pub(super) fn of(image: &StoredImage) -> Self {
        Self {
            name: image.name.clone(),
            version: image.version.clone(),
            sha256: image.sha256,
            generation: image.generation,
            format: image.format,
            virtual_size: image.virtual_size,
        }
    }
}

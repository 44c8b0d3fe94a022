//! The run directory: all that a run makes, under one name that derives from its id.
//!
//! ```text
//!  runs/<RunId>/
//!    plan.json            what to do; never changes                    (who prepares the run)
//!    request.json         where to put it, what to keep                (who prepares the run)
//!    origin.json          whose run it is, where it is a daemon's      (who prepares the run)
//!    lock                 held as long as a worker lives               (worker)
//!    claim.json           which worker: host, boot, pid, attempt       (worker)
//!    events.jsonl         the one truth about the run                  (holder of the lock only)
//!    events.reserve       room for the end of the run; gone with it    (holder of the lock only)
//!    customization.log    guest output, in AIB's form                  (worker)
//!    serial.log           the guest's serial console                   (QEMU)
//!    qemu.log             what QEMU itself said                        (QEMU)
//!    transcript.jsonl     what was said to the guest, where that was asked for; whole or not there  (worker)
//!    requests/            a file a request, for example `cancel`       (anybody)
//!    work/                layers, media, keys; gone at the end         (worker)
//!    debug-<pid>/         a look at a machine that was left; gone with the look  (kiln debug)
//! ```
//!
//! INVARIANT: all a run makes lies under its run directory (and, complete, in its
//! output folder); sockets lie in a short folder of their own, named by the same id,
//! since a socket's path has 108 bytes at most (unix(7)).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use jiff::Timestamp;
use kiln_model::policy::CachePolicy;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

/// The newest request format this build reads and the one it writes.
pub const REQUEST_FORMAT: u32 = 1;
/// The newest claim format this build reads and the one it writes.
pub const CLAIM_FORMAT: u32 = 1;

/// The name of a run: sorts by time, says which template, never repeats.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(String);

/// The text is not the name of a run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a run id (letters, digits and hyphens, at most 64)")]
pub struct InvalidRunId(String);

impl RunId {
    /// `20261123T172233Z-hello-3f9a1c`.
    pub fn new(template_name: &str) -> Self {
        let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let name: String = template_name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .take(32)
            .collect();
        let random = uuid::Uuid::new_v4().simple().to_string();
        Self(format!("{now}-{}-{}", name.trim_matches('-'), &random[..6]))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Short enough for a socket's folder, and still one of a kind on a host.
    pub fn short(&self) -> &str {
        self.0.rsplit('-').next().unwrap_or(&self.0)
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RunId {
    type Err = InvalidRunId;

    fn from_str(text: &str) -> Result<Self, InvalidRunId> {
        let fits = (1..=64).contains(&text.len())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !text.starts_with('-');
        if fits { Ok(Self(text.to_owned())) } else { Err(InvalidRunId(text.to_owned())) }
    }
}

impl TryFrom<String> for RunId {
    type Error = InvalidRunId;

    fn try_from(text: String) -> Result<Self, InvalidRunId> {
        text.parse()
    }
}

impl From<RunId> for String {
    fn from(id: RunId) -> String {
        id.0
    }
}

/// `request.json`: what the one who starts a run wants of it, beside the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunRequest {
    pub format: u32,
    pub run_id: RunId,
    /// Where distributors put their artifacts; absolute.
    pub output_dir: PathBuf,
    /// Keep the overlay and media of a failed run for a look at them.
    pub keep_on_error: bool,
    /// The library with base images and inputs; absolute.
    pub library: PathBuf,
    /// The operation of a server whose end is this run's end: every line of `customization.log` begins with its id, and
    /// the output folder is this run's alone. A run of the command line has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Take down all that is said to the guest, for `transcript.jsonl`. Nothing that a template can ask for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub transcript: bool,
    /// What of earlier runs may serve, and what is kept for later ones. None: neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<CheckpointWishes>,
}

/// What a run may take from the shelf of checkpoints, and put there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CheckpointWishes {
    /// What earlier runs made may serve.
    pub reuse: bool,
    pub keep: bool,
    /// Of the whole shelf, bytes; what was used longest ago goes first.
    pub size_limit: u64,
    pub policy: CachePolicy,
    /// The start of the run that is retried (of the first one, where a retry is retried). RFC 3339, UTC. What was good then
    /// still is, and what was made since: a step grows no older than it was then. Without `reuse` only what was made since
    /// may serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds_since: Option<String>,
}

impl CheckpointWishes {
    /// [`CheckpointWishes::holds_since`] as a time; a text that is none counts as not given.
    pub fn since(&self) -> Option<Timestamp> {
        self.holds_since.as_deref()?.parse().ok()
    }

    /// Whether anything that was kept may serve.
    pub fn may_reuse(&self) -> bool {
        self.reuse || self.since().is_some()
    }

    /// The wishes for a run that retries one with these wishes, which started at `started`.
    #[must_use]
    pub fn retried(self, started: String) -> Self {
        Self { holds_since: Some(self.holds_since.unwrap_or(started)), ..self }
    }
}

/// `claim.json`: the worker that runs, or ran last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Claim {
    pub format: u32,
    /// `local` for a worker on the host that prepared the run.
    pub executor: String,
    pub host: String,
    /// `/proc/sys/kernel/random/boot_id` of the host.
    pub boot_id: String,
    pub pid: u32,
    /// When that process started, clock ticks since the boot: with boot and pid it names one process only.
    pub start_ticks: u64,
    /// When the run was claimed. RFC 3339, UTC.
    pub start_time: String,
    /// 1 for the first worker of a run.
    pub attempt: u32,
    /// The folder of this run's sockets on that host.
    pub sockets: PathBuf,
}

impl Claim {
    /// The process that made it.
    pub fn mark(&self) -> kiln_host::process::ProcessMark {
        kiln_host::process::ProcessMark {
            boot_id: self.boot_id.clone(),
            pid: self.pid,
            start_ticks: self.start_ticks,
        }
    }
}

/// A request to a running worker: a file under `requests/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// End the run, clean up, say so.
    Cancel,
}

impl Request {
    pub fn file_name(self) -> &'static str {
        match self {
            Request::Cancel => "cancel",
        }
    }
}

/// A file of a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    #[error("could not {act} {}", path.display())]
    Io { act: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is not what this program writes", path.display())]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error(
        "{} has format {found}; this program reads formats up to {known}: use the newer kiln that wrote it",
        path.display()
    )]
    Newer { path: PathBuf, found: u64, known: u32 },
}

impl RunDirError {
    pub(crate) fn io(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| RunDirError::Io { act, path: path.to_owned(), source }
    }
}

/// One run's directory.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Makes `runs_root/<id>` for a new run. Private to the user: work/ will hold keys.
    pub fn create(runs_root: &Path, id: &RunId) -> Result<Self, RunDirError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let dir = Self { path: runs_root.join(id.as_str()) };
        std::fs::create_dir_all(runs_root).map_err(RunDirError::io("create", runs_root))?;
        let mut private = std::fs::DirBuilder::new();
        private.mode(0o700);
        for path in [dir.path.clone(), dir.requests()] {
            private.create(&path).map_err(RunDirError::io("create", &path))?;
        }
        Ok(dir)
    }

    /// The run directory at `path`, which must be there.
    pub fn open(path: &Path) -> Result<Self, RunDirError> {
        let path = path.canonicalize().map_err(RunDirError::io("open", path))?;
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
    pub fn plan(&self) -> PathBuf {
        self.path.join("plan.json")
    }
    pub fn request(&self) -> PathBuf {
        self.path.join("request.json")
    }
    pub fn lock(&self) -> PathBuf {
        self.path.join("lock")
    }
    pub fn claim(&self) -> PathBuf {
        self.path.join("claim.json")
    }
    pub fn events(&self) -> PathBuf {
        self.path.join("events.jsonl")
    }
    pub fn customization_log(&self) -> PathBuf {
        self.path.join("customization.log")
    }
    pub fn serial_log(&self) -> PathBuf {
        self.path.join("serial.log")
    }
    pub fn qemu_log(&self) -> PathBuf {
        self.path.join("qemu.log")
    }
    /// What an emulated TPM says.
    pub fn tpm_log(&self) -> PathBuf {
        self.path.join("tpm.log")
    }
    /// The guest's screen when nobody answered.
    pub fn screenshot(&self) -> PathBuf {
        self.path.join("screen.png")
    }
    /// What was said to the guest and what it proves: see [`crate::transcript`].
    pub fn transcript(&self) -> PathBuf {
        self.path.join("transcript.jsonl")
    }
    /// What the worker itself wrote to its standard error.
    pub fn worker_log(&self) -> PathBuf {
        self.path.join("worker.log")
    }
    pub fn requests(&self) -> PathBuf {
        self.path.join("requests")
    }
    pub fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// Leaves a request for the worker. Asking twice is asking once.
    pub fn ask(&self, request: Request) -> Result<(), RunDirError> {
        let path = self.requests().join(request.file_name());
        let folder = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = OFlags::CREATE | OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Whoever asks may be root, and the folder the worker's: no link of its making is followed.
        rustix::fs::open(self.requests(), folder, Mode::empty())
            .and_then(|folder| rustix::fs::openat(folder, request.file_name(), file, Mode::from(0o600)))
            .map(drop)
            .map_err(|error| RunDirError::io("write", &path)(error.into()))
    }

    pub fn is_asked(&self, request: Request) -> bool {
        self.requests().join(request.file_name()).exists()
    }

    pub fn read_request(&self) -> Result<RunRequest, RunDirError> {
        read_json(&self.request(), REQUEST_FORMAT)
    }

    pub fn write_request(&self, request: &RunRequest) -> Result<(), RunDirError> {
        write_json(&self.request(), request)
    }

    /// The claim, if a worker ever made one.
    pub fn read_claim(&self) -> Result<Option<Claim>, RunDirError> {
        match read_json(&self.claim(), CLAIM_FORMAT) {
            Err(RunDirError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    pub fn write_claim(&self, claim: &Claim) -> Result<(), RunDirError> {
        write_json(&self.claim(), claim)
    }
}

/// Reads a JSON file that begins with a format number, refusing newer ones by name.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path, known: u32) -> Result<T, RunDirError> {
    #[derive(Deserialize)]
    struct Head {
        format: u64,
    }
    let bytes = std::fs::read(path).map_err(RunDirError::io("read", path))?;
    let parse = |source| RunDirError::Parse { path: path.to_owned(), source };
    let head: Head = serde_json::from_slice(&bytes).map_err(parse)?;
    if head.format > u64::from(known) {
        return Err(RunDirError::Newer { path: path.to_owned(), found: head.format, known });
    }
    serde_json::from_slice(&bytes).map_err(|source| RunDirError::Parse { path: path.to_owned(), source })
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), RunDirError> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|source| RunDirError::Parse { path: path.to_owned(), source })?;
    bytes.push(b'\n');
    kiln_host::publish::write_file(path, &bytes, 0o600).map_err(RunDirError::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn request() -> RunRequest {
        RunRequest {
            format: REQUEST_FORMAT,
            run_id: "20260102T030405Z-hello-3f9a1c".parse().unwrap(),
            output_dir: "/srv/images".into(),
            keep_on_error: false,
            library: "/srv/kiln/library".into(),
            operation: None,
            transcript: false,
            checkpoints: None,
        }
    }

    #[test]
    fn asking_twice_is_asking_once_and_follows_no_link() {
        let root = tempfile::tempdir().unwrap();
        let dir = RunDir::create(root.path(), &request().run_id).unwrap();
        assert!(!dir.is_asked(Request::Cancel));
        dir.ask(Request::Cancel).unwrap();
        dir.ask(Request::Cancel).unwrap();
        assert!(dir.is_asked(Request::Cancel));
        let (outside, cancel) = (root.path().join("outside"), dir.requests().join("cancel"));
        std::fs::write(&outside, "kept").unwrap();
        std::fs::remove_file(&cancel).unwrap();
        std::os::unix::fs::symlink(&outside, &cancel).unwrap();
        dir.ask(Request::Cancel).unwrap_err();
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "kept");
    }

    #[test]
    fn a_servers_request_is_golden() {
        let operation = Some("0a1b2c3d-0000-4000-8000-000000000000".into());
        let request = RunRequest { operation, ..request() };
        let root = tempfile::tempdir().unwrap();
        let dir = RunDir::create(root.path(), &request.run_id).unwrap();
        dir.write_request(&request).unwrap();
        expect![[r#"
            {
              "format": 1,
              "runId": "20260102T030405Z-hello-3f9a1c",
              "outputDir": "/srv/images",
              "keepOnError": false,
              "library": "/srv/kiln/library",
              "operation": "0a1b2c3d-0000-4000-8000-000000000000"
            }
        "#]]
        .assert_eq(&std::fs::read_to_string(dir.request()).unwrap());
        assert_eq!(dir.read_request().unwrap(), request);
    }

    #[test]
    fn wishes_are_golden() {
        let wishes = CheckpointWishes {
            reuse: true,
            keep: false,
            size_limit: 20 << 30,
            policy: CachePolicy::default(),
            holds_since: None,
        };
        let request = RunRequest { checkpoints: Some(wishes), ..request() };
        let root = tempfile::tempdir().unwrap();
        let dir = RunDir::create(root.path(), &request.run_id).unwrap();
        dir.write_request(&request).unwrap();
        expect![[r#"
            {
              "format": 1,
              "runId": "20260102T030405Z-hello-3f9a1c",
              "outputDir": "/srv/images",
              "keepOnError": false,
              "library": "/srv/kiln/library",
              "checkpoints": {
                "reuse": true,
                "keep": false,
                "sizeLimit": 21474836480,
                "policy": {
                  "maxAge": 86400
                }
              }
            }
        "#]]
        .assert_eq(&std::fs::read_to_string(dir.request()).unwrap());
        assert_eq!(dir.read_request().unwrap(), request);
    }

    #[test]
    fn a_retry_of_a_retry_holds_since_the_first_run() {
        let wishes = CheckpointWishes {
            reuse: false,
            keep: true,
            size_limit: 1,
            policy: CachePolicy::default(),
            holds_since: None,
        };
        assert!(!wishes.may_reuse());
        let first = wishes.retried("2026-01-02T03:04:05.678Z".into());
        assert!(first.may_reuse() && !first.reuse, "nothing older than the run that is retried");
        expect![[r#"{"reuse":false,"keep":true,"sizeLimit":1,"policy":{"maxAge":86400},"holdsSince":"2026-01-02T03:04:05.678Z"}"#]]
            .assert_eq(&serde_json::to_string(&first).unwrap());
        let second = first.clone().retried("2026-01-03T00:00:00Z".into());
        assert_eq!(second, first);
        assert_eq!(second.since().unwrap().to_string(), "2026-01-02T03:04:05.678Z");
    }

    #[test]
    fn ids_are_names_and_nothing_else() {
        let id = RunId::new("Hello_World.1/../x");
        assert_eq!(id.as_str().parse::<RunId>().unwrap(), id);
        assert!(id.as_str().contains("-hello-world-1"), "{id}");
        for bad in ["", "-x", "a/b", "..", "a b", &"x".repeat(65)] {
            assert!(bad.parse::<RunId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn request_file_is_golden() {
        let root = tempfile::tempdir().unwrap();
        let dir = RunDir::create(root.path(), &request().run_id).unwrap();
        dir.write_request(&request()).unwrap();
        expect![[r#"
            {
              "format": 1,
              "runId": "20260102T030405Z-hello-3f9a1c",
              "outputDir": "/srv/images",
              "keepOnError": false,
              "library": "/srv/kiln/library"
            }
        "#]]
        .assert_eq(&std::fs::read_to_string(dir.request()).unwrap());
        assert_eq!(dir.read_request().unwrap(), request());
    }

    #[test]
    fn claim_file_is_golden() {
        let root = tempfile::tempdir().unwrap();
        let dir = RunDir::create(root.path(), &request().run_id).unwrap();
        assert!(dir.read_claim().unwrap().is_none());
        let claim = Claim {
            format: CLAIM_FORMAT,
            executor: "local".into(),
            host: "forge".into(),
            boot_id: "6f0c0d9e-0000-4000-8000-000000000000".into(),
            pid: 4711,
            start_ticks: 86_400,
            start_time: "2026-01-02T03:04:05.678Z".into(),
            attempt: 1,
            sockets: "/run/user/1000/kiln/3f9a1c".into(),
        };
        dir.write_claim(&claim).unwrap();
        expect![[r#"
            {
              "format": 1,
              "executor": "local",
              "host": "forge",
              "bootId": "6f0c0d9e-0000-4000-8000-000000000000",
              "pid": 4711,
              "startTicks": 86400,
              "startTime": "2026-01-02T03:04:05.678Z",
              "attempt": 1,
              "sockets": "/run/user/1000/kiln/3f9a1c"
            }
        "#]]
        .assert_eq(&std::fs::read_to_string(dir.claim()).unwrap());
        assert_eq!(dir.read_claim().unwrap(), Some(claim));
    }

    #[test]
    fn newer_formats_are_refused_and_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let dir = RunDir::create(root.path(), &request().run_id).unwrap();
        let text = r#"{"format": 2, "somethingNew": true}"#;
        std::fs::write(dir.request(), text).unwrap();
        let error = dir.read_request().unwrap_err();
        assert!(matches!(error, RunDirError::Newer { found: 2, known: 1, .. }), "{error}");
        assert_eq!(std::fs::read_to_string(dir.request()).unwrap(), text);
    }
}

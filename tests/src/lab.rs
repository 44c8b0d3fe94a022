//! The lab's WinRM server (tests/lab), started for one test. No Windows, and no test of one.
//!
//! ```text
//!  Lab::start(args) ── stdin held open ──► winrmd.py ── its first line ──► address, pin
//!      rules(…) / fired()    what it treats badly, and how often it did  (control socket)
//!      log()                 one line a request: round trips, sizes, faults
//! ```
//! The server ends with its standard input, so it goes with the test however that ends.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::program::{self, command, finish};
use crate::settings;

/// The account that every lab has. The password is no secret, and not plain to quote either.
pub const USER: &str = "kiln";
pub const PASSWORD: &str = "Tr0ub4dor&3 \u{e4}\u{df}";

/// A moment for Python, its certificate and the listener.
const START_LIMIT: Duration = Duration::from_secs(60);
const END_LIMIT: Duration = Duration::from_secs(15);
/// 10 MiB are some 1800 commands, 10 to 60 ms each.
const UPLOAD_LIMIT: Duration = Duration::from_secs(300);
/// The control socket answers at once.
const CONTROL_LIMIT: Duration = Duration::from_secs(10);

/// A running server; ends when dropped.
#[derive(Debug)]
pub struct Lab {
    folder: tempfile::TempDir,
    root: PathBuf,
    child: Child,
    stdin: Option<ChildStdin>,
    ready: Value,
}

impl Lab {
    /// With more arguments to `winrmd.py` (`--make-cert`, `--acceptor gss`, …); none where the lab is not installed.
    pub fn start(args: &[&str]) -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("kiln-lab-").tempdir().unwrap();
        let root = folder.path().join("c");
        std::fs::create_dir(&root).unwrap();
        Self::start_in(folder, root, args)
    }

    /// The same with Wine's cmd.exe, registry and `c:\`, on a copy of the prefix that `scripts/wine-lab` made.
    pub fn start_wine(args: &[&str]) -> Option<Self> {
        let place = settings::wine()?;
        // Files are linked, so it lies on the same file system.
        let folder = tempfile::Builder::new().prefix("run-").tempdir_in(&place).unwrap();
        let root = folder.path().join("prefix/drive_c");
        let template = place.join("prefix");
        let wine = ["--backend", "wine", "--wine", template.to_str().unwrap()];
        Self::start_in(folder, root, &[&wine, args].concat())
    }

    fn start_in(folder: tempfile::TempDir, root: PathBuf, args: &[&str]) -> Option<Self> {
        let python = settings::lab()?.join("bin/python");
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("users"), format!(":{USER}:{PASSWORD}\n")).unwrap();
        let log = std::fs::File::create(at("stderr")).unwrap();
        let mut server = command(python);
        server.arg("-B").arg(settings::repository().join("tests/lab/winrmd.py"));
        server.arg("--users").arg(at("users")).arg("--root").arg(&root).arg("--log").arg(at("log"));
        server.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = server.spawn().unwrap_or_else(|error| panic!("cannot start {server:?}: {error}"));
        let stdin = child.stdin.take();
        let (sender, first) = std::sync::mpsc::channel();
        let stdout = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(stdout).read_line(&mut line);
            // Nobody waits any more when the test has ended.
            let _ = sender.send(read.map(|_| line));
        });
        let line = first.recv_timeout(START_LIMIT).expect("the lab's first line").unwrap();
        let ready = serde_json::from_str(&line).unwrap_or_else(|error| {
            panic!("the lab: {error}: {line}\n{}", std::fs::read_to_string(at("stderr")).unwrap())
        });
        Some(Self { folder, root, child, stdin, ready })
    }

    pub fn address(&self) -> SocketAddr {
        let port = self.ready["port"].as_u64().unwrap();
        format!("{}:{port}", self.ready["address"].as_str().unwrap()).parse().unwrap()
    }

    pub fn url(&self) -> String {
        format!("{}://{}/wsman", self.ready["scheme"].as_str().unwrap(), self.address())
    }

    /// SHA-256 of the certificate's DER in hex, as the guest's bootstrap prints it; none over plain HTTP.
    pub fn pin(&self) -> Option<String> {
        self.ready["sha256"].as_str().map(str::to_owned)
    }

    /// SHA-1 of the same, which Windows calls the thumbprint.
    pub fn thumbprint(&self) -> Option<String> {
        self.ready["sha1"].as_str().map(str::to_owned)
    }

    /// Whether PowerShell is the real engine here.
    pub fn has_engine(&self) -> bool {
        self.ready["engine"] == true
    }

    /// The folder that is the lab's `c:\`.
    pub fn root(&self) -> PathBuf {
        self.root.clone()
    }

    /// Replaces the rules (tests/lab/labd/rules.py says what there is); their counts begin anew.
    pub fn rules(&self, rules: &Value) {
        self.control(&json!({"do": "rules", "rules": rules}));
    }

    /// How often each rule fired, in their order.
    pub fn fired(&self) -> Vec<u64> {
        let answer = self.control(&json!({"do": "rules"}));
        answer["rules"].as_array().unwrap().iter().map(|rule| rule["fired"].as_u64().unwrap()).collect()
    }

    /// As if the machine restarted now, and took `seconds` for it.
    pub fn restart(&self, seconds: f64) {
        self.control(&json!({"do": "restart", "seconds": seconds}));
    }

    /// `boot` (counted from 1), `boot_id`, `shells`, `commands`.
    pub fn state(&self) -> Value {
        self.control(&json!({"do": "state"}))
    }

    /// Sends a file as Packer's uploader does (echo_upload.py), the yardstick of uploads; how long it took.
    ///
    /// `remote` with forward slashes. Needs PowerShell, [`Self::has_engine`].
    pub fn upload_by_echoes(&self, local: &Path, remote: &str) -> Duration {
        let scheme = self.ready["scheme"].as_str().unwrap();
        let mut upload = command(settings::lab().unwrap().join("bin/python"));
        upload.arg("-B").arg(settings::repository().join("tests/lab/echo_upload.py"));
        upload.args([scheme, &self.address().port().to_string(), USER]).arg(local).arg(remote);
        upload.env("LAB_PASSWORD", PASSWORD);
        let ended = finish(&mut upload, UPLOAD_LIMIT);
        assert!(ended.status.success(), "{}", ended.stderr);
        let said: Value = serde_json::from_slice(&ended.stdout).unwrap();
        assert_eq!(said["sha256"].as_str().unwrap(), program::sha256sum(local), "the file arrived");
        Duration::from_secs_f64(said["seconds"].as_f64().unwrap())
    }

    fn control(&self, asked: &Value) -> Value {
        let stream = UnixStream::connect(self.ready["control"].as_str().unwrap()).unwrap();
        stream.set_read_timeout(Some(CONTROL_LIMIT)).unwrap();
        writeln!(&stream, "{asked}").unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap();
        assert!(answer.get("error").is_none(), "the lab: {answer}");
        answer
    }

    /// Every line of the log so far; a request's is there before its answer is.
    pub fn log(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// How many requests of one action (`Create`, `Receive`, `auth`, …) came.
    pub fn requests(&self, action: &str) -> usize {
        self.log().iter().filter(|line| line["event"] == "request" && line["action"] == action).count()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // It ends its commands itself; killed, it would leave them.
        drop(self.stdin.take());
        let deadline = Instant::now() + END_LIMIT;
        let mut ended = false;
        while !ended && Instant::now() < deadline {
            ended = self.child.try_wait().is_ok_and(|status| status.is_some());
            // The standard library has no wait with a limit.
            std::thread::sleep(Duration::from_millis(10));
        }
        if !ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let stderr = std::fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default();
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            program::say(&format!("the lab's log:\n{log}{stderr}"));
        } else {
            assert!(ended, "the lab did not end with its standard input");
        }
    }
}

//! Files into the guest: against a server that keeps what it is sent, and the reader's text in a real engine.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kiln_host::digest::hex;
use kiln_host::process::{Invocation, ProcessError};
use sha2::{Digest as _, Sha256};

use super::server::{Reply, Seen, Server, control, output};
use crate::upload::UploadFailure;
use crate::winrm::command::{FROM_STDIN, encoded};
use crate::winrm::upload::reader;
use crate::winrm::{FaultCode, UploadWay, WinrmError};

const REMOTE: &str = r"C:\Windows\Temp\größe.bin";

/// What arrived by standard input, as the reader takes it.
#[derive(Default)]
struct Taken {
    text: String,
    ended: bool,
    sends: usize,
}

impl Taken {
    fn answer(&self) -> String {
        let mut lines = self.text.lines();
        let path = BASE64.decode(lines.next().unwrap()).unwrap();
        assert_eq!(String::from_utf8(path).unwrap(), REMOTE);
        let expected = lines.next().unwrap();
        let bytes: Vec<u8> = lines.flat_map(|line| BASE64.decode(line).unwrap()).collect();
        let digest = hex(&Sha256::digest(&bytes));
        let result = if digest == expected {
            format!("placed {} {digest}", bytes.len())
        } else {
            format!("digest {digest}")
        };
        output(&format!("kiln-upload {result}\r\n"), "", Some(0))
    }

    fn take(&mut self, seen: &Seen) -> Option<Reply> {
        match seen.action.as_str() {
            "Send" => {
                let stream = seen.root.find("Stream")?;
                self.text.push_str(&String::from_utf8(BASE64.decode(&stream.text).unwrap()).unwrap());
                self.ended = stream.attribute("End") == Some("true");
                self.sends += 1;
                None
            }
            "Receive" if self.ended => Some(Reply::Body(self.answer())),
            "Receive" => Some(Reply::Fault(FaultCode::OperationTimedOut.number())),
            _ => None,
        }
    }
}

async fn reading_server() -> (Server, Arc<Mutex<Taken>>) {
    let taken: Arc<Mutex<Taken>> = Arc::default();
    let into = Arc::clone(&taken);
    let server = Server::start(true, move |seen| into.lock().unwrap().take(seen)).await;
    (server, taken)
}

fn file(dir: &Path, size: usize) -> (PathBuf, [u8; 32]) {
    let path = dir.join("file");
    let bytes: Vec<u8> = (0..size).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    std::fs::write(&path, &bytes).unwrap();
    (path, Sha256::digest(&bytes).into())
}

#[tokio::test]
async fn a_file_arrives_whole_in_few_posts() {
    let dir = tempfile::tempdir().unwrap();
    for size in [0, 1, 48 * 1024, 1024 * 1024, 5 * 1024 * 1024 + 1] {
        let (server, taken) = reading_server().await;
        let guest = server.guest().await;
        let (path, digest) = file(dir.path(), size);
        let mut heard = 0;
        let uploaded = guest.upload(&path, REMOTE, digest, |bytes| heard = bytes, &control()).await.unwrap();
        assert_eq!(uploaded.way, UploadWay::PowerShell);
        let size = u64::try_from(size).unwrap();
        assert_eq!(uploaded.bytes, size);
        assert!(heard >= size, "{heard} of {size}");
        let sends = taken.lock().unwrap().sends;
        assert!(sends <= 1 + usize::try_from(size).unwrap() / 200_000, "{sends} posts for {size} bytes");
    }
}

#[tokio::test]
async fn a_file_that_arrives_changed_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = reading_server().await;
    let (path, _) = file(dir.path(), 10);
    let error = server.guest().await.upload(&path, REMOTE, [7; 32], |_| (), &control()).await.unwrap_err();
    assert!(
        matches!(error, WinrmError::Upload { failure: UploadFailure::DigestMismatch { .. }, .. }),
        "{error}"
    );
    for remote in ["", r"C:\dir\", "C:/dir/", "a\nb"] {
        let error =
            server.guest().await.upload(&path, remote, [7; 32], |_| (), &control()).await.unwrap_err();
        assert!(
            matches!(error, WinrmError::Upload { failure: UploadFailure::BadDestination { .. }, .. }),
            "{remote:?}: {error}"
        );
    }
}

#[tokio::test]
async fn an_upload_whose_link_breaks_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    let (server, taken) = reading_server().await;
    let guest = server.guest().await;
    let (path, digest) = file(dir.path(), 600_000);
    server.say("Send", Reply::Close);
    guest.upload(&path, REMOTE, digest, |_| (), &control()).await.unwrap();
    assert!(taken.lock().unwrap().ended);
}

/// The few commands of cmd.exe and certutil that a batch upload uses, on files in memory.
#[derive(Default)]
struct Cmd {
    files: HashMap<String, Vec<u8>>,
    answer: (String, u32),
    spoil: bool,
}

impl Cmd {
    fn take(&mut self, seen: &Seen) -> Option<Reply> {
        match seen.action.as_str() {
            "Command" => {
                self.answer = self.run(&seen.text_of("Command"));
                None
            }
            "Receive" => Some(Reply::Body(output(&self.answer.0, "", Some(self.answer.1)))),
            _ => None,
        }
    }

    fn run(&mut self, line: &str) -> (String, u32) {
        let names: Vec<String> = line.split('"').skip(1).step_by(2).map(str::to_owned).collect();
        if line.starts_with("powershell") {
            return ("'powershell' is not recognized as an internal or external command".to_owned(), 9009);
        }
        if let Some((_, text)) = line.strip_prefix(">>").and_then(|line| line.split_once(" echo ")) {
            let file = self.files.entry(names[0].clone()).or_default();
            file.extend_from_slice(text.as_bytes());
            file.extend_from_slice(b"\r\n");
        } else if line.starts_with("cd . > ") {
            self.files.insert(names[0].clone(), Vec::new());
        } else if line.starts_with("certutil -f -decode ") {
            let text = String::from_utf8(self.files[&names[0]].clone()).unwrap();
            let mut bytes: Vec<u8> = text.lines().flat_map(|line| BASE64.decode(line).unwrap()).collect();
            if self.spoil {
                bytes.push(0);
            }
            self.files.insert(names[1].clone(), bytes);
        } else if line.starts_with("certutil -hashfile ") {
            let digest = hex(&Sha256::digest(&self.files[&names[0]]));
            return (format!("SHA256 hash of {}:\r\n{digest}\r\n", names[0]), 0);
        } else if line.starts_with("move /y ") {
            let bytes = self.files.remove(&names[0]).unwrap();
            self.files.insert(names[1].clone(), bytes);
        } else if line.starts_with("del /q ") {
            for name in names {
                self.files.remove(&name);
            }
        } else {
            return (format!("unknown command: {line}"), 250);
        }
        (String::new(), 0)
    }
}

#[tokio::test]
async fn without_powershell_cmd_takes_the_file() {
    let dir = tempfile::tempdir().unwrap();
    for (size, spoil) in [(0, false), (20_000, false), (20_000, true)] {
        let cmd = Arc::new(Mutex::new(Cmd { spoil, ..Cmd::default() }));
        let inside = Arc::clone(&cmd);
        let server = Server::start(true, move |seen| inside.lock().unwrap().take(seen)).await;
        let (path, digest) = file(dir.path(), size);
        let uploaded = server.guest().await.upload(&path, REMOTE, digest, |_| (), &control()).await;
        let files = &cmd.lock().unwrap().files;
        if spoil {
            let error = uploaded.unwrap_err();
            assert!(
                matches!(error, WinrmError::Upload { failure: UploadFailure::DigestMismatch { .. }, .. }),
                "{error}"
            );
            assert!(files.is_empty(), "something is left");
        } else {
            assert_eq!(uploaded.unwrap().way, UploadWay::Batch);
            assert_eq!(files.len(), 1, "something is left");
            assert_eq!(files[REMOTE], std::fs::read(&path).unwrap());
        }
    }
}

/// The folder of a PowerShell engine, where the environment names one.
fn engine() -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "tests have no settings module in this crate")]
    let folder = std::env::var_os("KILN_PWSH").map(PathBuf::from)?;
    Some(folder.join("pwsh")).filter(|pwsh| pwsh.is_file())
}

/// What the reader says to `input`.
fn read_in_engine(pwsh: &Path, input: &str) -> String {
    let line = encoded(&reader());
    // On Linux there is no policy to be set, and not every engine ignores it there.
    let words = line.split(' ').skip(1).filter(|word| !matches!(*word, "-ExecutionPolicy" | "Bypass"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), input).unwrap();
    let output = Invocation::new("sh")
        .args(["-c", "exec \"$@\" <\"$0\""])
        .arg(file.path())
        .arg(pwsh)
        .args(words)
        .run_blocking()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The same as Windows PowerShell runs it, which reads a redirected input itself: the lines come by the pipeline.
fn read_from_pipeline(pwsh: &Path, input: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (lines, script) = (dir.path().join("lines"), dir.path().join("script.ps1"));
    std::fs::write(&lines, input).unwrap();
    std::fs::write(
        &script,
        format!("[IO.File]::ReadAllLines('{}') | . {{\n{}}}\n", lines.display(), reader()),
    )
    .unwrap();
    let output = Invocation::new(pwsh).args(["-NoProfile", "-File"]).arg(&script).run_blocking().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_reader_in_a_real_engine() {
    let Some(pwsh) = engine() else {
        println!("skipped: KILN_PWSH names no folder with a PowerShell engine (pwsh)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("größe.bin");
    let bytes: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let digest = hex(&Sha256::digest(&bytes));
    let input = |target: &Path, digest: &str, bytes: &[u8]| {
        let lines: String = bytes.chunks(48 * 1024).map(|line| BASE64.encode(line) + "\r\n").collect();
        format!("{}\r\n{digest}\r\n{lines}", BASE64.encode(target.to_str().unwrap()))
    };
    // New, then in the place of what is there.
    for read in [read_in_engine, read_from_pipeline] {
        let said = read(&pwsh, &input(&target, &digest, &bytes));
        assert_eq!(said.trim(), format!("kiln-upload placed 200000 {digest}"));
        assert_eq!(std::fs::read(&target).unwrap(), bytes);
    }
    for (target, digest, bytes, expected) in [
        (target.clone(), "00".repeat(32), &bytes[..], "kiln-upload digest "),
        (dir.path().join("none/file"), digest.clone(), &bytes, "kiln-upload nodir "),
        (dir.path().to_owned(), digest.clone(), &bytes, "kiln-upload isdir "),
    ] {
        let said = read_in_engine(&pwsh, &input(&target, &digest, bytes));
        assert!(said.starts_with(expected), "{said}");
    }
    assert!(read_in_engine(&pwsh, "").starts_with("kiln-upload write "));
    let empty = hex(&Sha256::digest(b""));
    let said = read_in_engine(&pwsh, &input(&dir.path().join("empty"), &empty, b""));
    assert_eq!(said.trim(), format!("kiln-upload placed 0 {empty}"));
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(std::fs::read(&target).unwrap(), bytes, "a refused upload changed what was there");
}

#[test]
fn a_long_text_in_a_real_engine() {
    let Some(pwsh) = engine() else {
        println!("skipped: KILN_PWSH names no folder with a PowerShell engine (pwsh)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (text, script) =
        (BASE64.encode("\"the end: $(1 + 1) \u{e9}\"\nexit 5\n"), dir.path().join("script.ps1"));
    // As Windows PowerShell runs it: the line comes by the pipeline. By standard input it is run in the lab.
    std::fs::write(&script, format!("'{text}' | . {{\n{FROM_STDIN}\n}}\n")).unwrap();
    let ended = Invocation::new(pwsh).args(["-NoProfile", "-File"]).arg(&script).run_blocking().unwrap_err();
    match ended {
        ProcessError::Failed { code, stderr, .. } => assert_eq!(code, Some(5), "{stderr}"),
        error => panic!("{error}"),
    }
}

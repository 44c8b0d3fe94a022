//! The WinRM client against the lab's server (`tests/lab`): NTLM, SPNEGO, TLS and PowerShell there are other people's.
//!
//! No Windows, and no test of one. Where the lab's Python environment is not installed (`KILN_LAB`, else beside the
//! test data), these tests say so and pass.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kiln_guest::Stream;
use kiln_guest::winrm::{
    Authentication, CertificatePin, CommandLine, Password, Recorder, Transport, UploadWay, WinrmError,
    WinrmGuest, WinrmLimits, WinrmLogin,
};
use kiln_host::wait::Control;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::control;

const USER: &str = "kiln";
const PASSWORD: &str = "Tr0ub4dor&3 \u{e4}\u{df}";

struct Lab {
    folder: tempfile::TempDir,
    /// The server ends with its standard input.
    _child: Held,
    ready: Value,
}

struct Held(std::process::Child);

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _reaped = self.0.wait();
    }
}

fn python() -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "tests have no settings module in this crate")]
    let place = std::env::var_os("KILN_LAB").map(PathBuf::from);
    let place = place.unwrap_or_else(|| repository().join("target/test-data/lab"));
    Some(place.join("bin/python")).filter(|python| python.is_file())
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

impl Lab {
    fn start(args: &[&str], rules: Value) -> Option<Self> {
        Self::start_with(args, rules, true)
    }

    fn start_with(args: &[&str], rules: Value, powershell: bool) -> Option<Self> {
        let script = repository().join("tests/lab/winrmd.py");
        let Some(python) = python().filter(|_| script.is_file()) else {
            println!("skipped: the lab is not installed (scripts/lab)");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("users"), format!(":{USER}:{PASSWORD}\n")).unwrap();
        std::fs::write(at("rules"), rules.to_string()).unwrap();
        std::fs::create_dir(at("c")).unwrap();
        #[expect(
            clippy::disallowed_methods,
            reason = "a server whose standard input is held; not a tool of Kiln's"
        )]
        let mut server = std::process::Command::new(python);
        server.arg("-B").arg(script);
        for (option, name) in [("--users", "users"), ("--root", "c"), ("--rules", "rules"), ("--log", "log")]
        {
            server.arg(option).arg(at(name));
        }
        if !powershell {
            server.env_remove("KILN_PWSH");
        }
        let log = std::fs::File::create(at("stderr")).unwrap();
        let mut child = server
            .args(args)
            .arg("--prelude")
            .arg(repository().join("tests/lab/boot.ps1"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{error}: {}", std::fs::read_to_string(at("stderr")).unwrap()));
        Some(Self { folder, _child: Held(child), ready })
    }

    fn login(&self, authentication: Authentication) -> WinrmLogin {
        let port = self.ready["port"].as_u64().unwrap();
        let addr: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
        let transport = match self.ready["sha256"].as_str() {
            Some(pin) => Transport::Https { pin: CertificatePin::from_sha256(pin).unwrap(), authentication },
            None => Transport::Http,
        };
        WinrmLogin {
            addr,
            transport,
            user: USER.to_owned(),
            password: Password::new(PASSWORD),
            recorder: None,
        }
    }

    async fn guest(&self, authentication: Authentication) -> WinrmGuest {
        WinrmGuest::connect_with(self.login(authentication), limits(), |_| (), &control()).await.unwrap()
    }

    fn has_engine(&self) -> bool {
        self.ready["engine"] == true
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

fn limits() -> WinrmLimits {
    WinrmLimits {
        refused_login: Duration::from_millis(500),
        operation_timeout: Duration::from_secs(2),
        answer_grace: Duration::from_secs(3),
        reconnect: Duration::from_secs(20),
        busy: Duration::from_secs(10),
        ..WinrmLimits::default()
    }
}

/// Each way in, by each acceptor.
const WAYS: &[(&[&str], Authentication)] = &[
    (&["--acceptor", "pyspnego"], Authentication::Negotiate),
    (&["--acceptor", "gss"], Authentication::Negotiate),
    (&["--acceptor", "pyspnego", "--make-cert"], Authentication::Negotiate),
    (&["--acceptor", "gss", "--make-cert"], Authentication::Negotiate),
    (&["--make-cert", "--basic"], Authentication::Basic),
];

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_by_each_way_in() {
    for (args, authentication) in WAYS {
        let Some(lab) = Lab::start(args, json!([])) else { return };
        let guest = lab.guest(*authentication).await;
        let cmd = |line: &str| CommandLine::cmd("a test", line);
        let done = guest.exec(&cmd("echo out& echo err 1>&2& exit 7"), None, &control()).await.unwrap();
        assert_eq!((done.code, done.text().as_str()), (7, "out"), "{args:?}");
        assert!(done.excerpt().contains("err"), "{args:?}: {done:?}");
        // Quiet for longer than an operation may last.
        let done = guest.exec(&cmd("ping -n 4 127.0.0.1 >nul& echo over"), None, &control()).await.unwrap();
        assert_eq!(done.text(), "over", "{args:?}");
        let input = "line\r\n".repeat(100_000);
        let done = guest.exec(&cmd("sort"), Some(input.as_bytes()), &control()).await.unwrap();
        assert_eq!(done.stdout.len(), input.len(), "{args:?}");
        guest.close().await;
        let wrong = WinrmLogin { password: Password::new("wrong"), ..lab.login(*authentication) };
        let error = WinrmGuest::connect_with(wrong, limits(), |_| (), &control()).await.unwrap_err();
        assert!(matches!(error, WinrmError::LoginRefused { .. }), "{args:?}: {error}");
        assert!(!lab.log().contains(PASSWORD));
    }
}

/// A file in memory.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exchanges_are_taken_down_without_the_password() {
    for (args, authentication) in WAYS {
        let Some(lab) = Lab::start(args, json!([])) else { return };
        let memory = Memory::default();
        let recorder = Recorder::new(memory.clone());
        let login = WinrmLogin { recorder: Some(recorder.clone()), ..lab.login(*authentication) };
        let guest = WinrmGuest::connect_with(login, limits(), |_| (), &control()).await.unwrap();
        // The guest says it back.
        let echo = CommandLine::cmd("a test", format!("echo \"{PASSWORD}\""));
        let sort = CommandLine::cmd("a test", "sort");
        for (line, input) in [(echo, None), (sort, Some(PASSWORD.as_bytes()))] {
            let done = guest.exec(&line, input, &control()).await.unwrap();
            assert!(done.text().contains(PASSWORD), "{args:?}: {done:?}");
        }
        guest.close().await;
        let tally = recorder.finish().unwrap();
        let text = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), tally.omitted), (usize::try_from(tally.exchanges).unwrap(), 0));
        for action in ["Identify", "Create", "Command", "Send", "Receive", "Signal", "Delete"] {
            let is = |line: &&Value| line["action"].as_str().unwrap().ends_with(action);
            let found = lines.iter().find(is).unwrap_or_else(|| panic!("{args:?}: no {action}"));
            let inside = |key: &str| found[key].as_str().unwrap_or_default().contains("Envelope>");
            // Nobody waits for the answer to a Send when its command is over.
            let answered = inside("response") || action == "Send";
            assert!(inside("request") && answered, "{args:?}: {found}");
        }
        let encoded = BASE64.encode(PASSWORD);
        assert!(!text.contains(PASSWORD) && !text.contains(&encoded), "{args:?}: {text}");
        assert!(text.contains("echo &quot;[removed]&quot;"), "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_arrive_in_few_posts() {
    for (args, authentication) in WAYS {
        let Some(lab) = Lab::start(args, json!([])) else { return };
        let guest = lab.guest(*authentication).await;
        let local = lab.folder.path().join("local");
        let bytes: Vec<u8> =
            (0..3 * 1024 * 1024_u32).map(|n| n.to_le_bytes()[usize::from(n.to_le_bytes()[1] % 4)]).collect();
        std::fs::write(&local, &bytes).unwrap();
        let digest = Sha256::digest(&bytes).into();
        let bytes = &bytes;
        if lab.has_engine() {
            let remote = "c:/Windows/Temp/a file.bin";
            let before = lab.log().lines().count();
            let uploaded = guest.upload(&local, remote, digest, |_| (), &control()).await.unwrap();
            assert_eq!(uploaded.way, UploadWay::PowerShell);
            let posts = lab.log().lines().count() - before;
            println!("{args:?}: {posts} requests for 3 MiB");
            assert!(posts <= 40, "{posts} requests");
            assert!(found(&lab.folder.path().join("c"), "a file.bin") == *bytes);
        }
        guest.close().await;
    }
}

/// The quotas of Windows 7 and Server 2008 R2, or nearly.
#[tokio::test(flavor = "multi_thread")]
async fn small_quotas_are_lived_with() {
    let quotas = ["--make-cert", "--max-operations", "15", "--max-shells", "2", "--max-envelope-kb", "150"];
    let Some(lab) = Lab::start(&quotas, json!([])) else { return };
    // One that renews its shells in time, and one that learns it by faults.
    for commands_per_shell in [12, u32::MAX] {
        let login = lab.login(Authentication::Negotiate);
        let limits = WinrmLimits { commands_per_shell, ..limits() };
        let guest = WinrmGuest::connect_with(login, limits, |_| (), &control()).await.unwrap();
        for number in 0..40 {
            let line = CommandLine::cmd("a test", format!("echo {number}"));
            let done = guest.exec(&line, None, &control()).await.unwrap();
            assert_eq!(done.text(), number.to_string());
        }
        let input = "line\r\n".repeat(200_000);
        let line = CommandLine::cmd("a test", "sort");
        let done = guest.exec(&line, Some(input.as_bytes()), &control()).await.unwrap();
        assert_eq!(done.stdout.len(), input.len());
        guest.close().await;
    }
    println!("faults seen: {}", lab.log().matches("\"fault\": 2").count());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_powershell_files_arrive_all_the_same() {
    let Some(lab) = Lab::start_with(&["--make-cert"], json!([]), false) else { return };
    let guest = lab.guest(Authentication::Negotiate).await;
    let local = lab.folder.path().join("local");
    for size in [0, 50_000] {
        std::fs::write(&local, vec![0xa5; size]).unwrap();
        let digest = Sha256::digest(vec![0xa5; size]).into();
        let remote = r"C:\Windows\Temp\a file.bin";
        let uploaded = guest.upload(&local, remote, digest, |_| (), &control()).await.unwrap();
        assert_eq!(uploaded.way, UploadWay::Batch);
        assert_eq!(found(&lab.folder.path().join("c"), "a file.bin"), vec![0xa5; size]);
    }
    guest.close().await;
}

/// The file of that name somewhere below `folder`.
fn found(folder: &Path, name: &str) -> Vec<u8> {
    fn look(folder: &Path, name: &str) -> Option<PathBuf> {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                if let Some(path) = look(&entry, name) {
                    return Some(path);
                }
            } else if entry.file_name().is_some_and(|found| found == name) {
                return Some(entry);
            }
        }
        None
    }
    std::fs::read(look(folder, name).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn powershell_speaks_and_fails_readably() {
    let Some(lab) = Lab::start(&["--make-cert"], json!([])) else { return };
    if !lab.has_engine() {
        println!("skipped: KILN_PWSH names no folder with a PowerShell engine (pwsh)");
        return;
    }
    let guest = lab.guest(Authentication::Negotiate).await;
    let text = "'out \u{e9}'; Write-Warning 'careful'; Write-Error 'bad <thing>'; exit 3";
    let done = guest.ask_powershell("a test", text, &control()).await.unwrap();
    let stderr = String::from_utf8(done.stderr.clone()).unwrap();
    assert_eq!((done.code, done.text().as_str()), (3, "out \u{e9}"), "{stderr}");
    assert!(stderr.contains("WARNING: careful\n") && stderr.contains("bad <thing>"), "{stderr}");
    assert!(!stderr.contains("CLIXML") && !stderr.contains("_x000"), "{stderr}");
    // Too long for a command line.
    let long = format!("# {}\n'the end'; exit 4", "x".repeat(20_000));
    let done = guest.ask_powershell("a test", &long, &control()).await.unwrap();
    assert_eq!((done.code, done.text().as_str()), (4, "the end"), "{}", done.excerpt());
    guest.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_is_proven_by_the_boot_id() {
    for args in [&["--restart-seconds", "3"][..], &["--restart-seconds", "3", "--make-cert"]] {
        let Some(lab) = Lab::start(args, json!([])) else { return };
        if !lab.has_engine() {
            println!("skipped: KILN_PWSH names no folder with a PowerShell engine (pwsh)");
            return;
        }
        let guest = lab.guest(Authentication::Negotiate).await;
        let old = guest.boot_id(&control()).await.unwrap();
        let shutdown = CommandLine::cmd("a restart", "shutdown /r /f /t 0");
        let ended = guest.exec(&shutdown, None, &control()).await;
        println!("{args:?}: the restart command ended with {ended:?}");
        let waiting = control();
        loop {
            match guest.boot_id(&waiting).await {
                Ok(now) if now.is_another_than(&old) => break,
                other => waiting.check().unwrap_or_else(|why| panic!("no other boot: {other:?} ({why})")),
            }
            // Nothing announces a boot that is done.
            waiting.sleep(std::time::Duration::from_millis(200)).await.unwrap();
        }
        guest.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_on_the_way_is_mended() {
    let rules: &[Value] = &[
        json!({"on": "auth", "fault": "status", "code": 503}),
        json!({"on": "auth", "fault": "close"}),
        json!({"on": "connect", "fault": "refuse"}),
        json!({"on": "Create", "fault": "fault", "code": 2_150_859_173_u32}),
        json!({"on": "Command", "fault": "fault", "code": 2_150_859_174_u32}),
        json!({"on": "Command", "fault": "status", "code": 401}),
        json!({"on": "Receive", "fault": "close"}),
        json!({"on": "Receive", "fault": "reset"}),
        json!({"on": "Receive", "fault": "half-open"}),
        json!({"on": "Receive", "fault": "status", "code": 503}),
        json!({"on": "Receive", "fault": "fault", "code": 2_150_858_793_u32}),
        json!({"on": "Receive", "fault": "split", "size": 1, "times": 0}),
        json!({"on": "Receive", "fault": "chunked", "size": 7}),
        json!({"on": "Receive", "fault": "drip", "bytes": 64, "every_ms": 5}),
    ];
    for rule in rules {
        for args in [&[][..], &["--make-cert"]] {
            let Some(lab) = Lab::start(args, json!([rule])) else { return };
            let guest = lab.guest(Authentication::Negotiate).await;
            let line = CommandLine::cmd("a test", "echo one& echo two");
            let done = guest.exec(&line, None, &control()).await;
            let done = done.unwrap_or_else(|error| panic!("{rule} {args:?}: {error:?}"));
            assert_eq!((done.code, done.stdout.as_slice()), (0, &b"one\r\ntwo\r\n"[..]), "{rule} {args:?}");
            guest.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_be_believed_is_not() {
    for (rule, sealed_only) in [
        (json!({"on": "Receive", "fault": "bad-mic"}), true),
        (json!({"on": "Receive", "fault": "corrupt"}), true),
        (json!({"on": "Receive", "fault": "wrong-length", "delta": 1}), true),
        (json!({"on": "Receive", "fault": "unsealed"}), true),
        (json!({"on": "Receive", "fault": "truncate"}), false),
        (json!({"on": "Receive", "fault": "relates-to"}), false),
        (json!({"on": "Receive", "fault": "no-exit-code"}), false),
        (json!({"on": "Command", "fault": "close", "after": true}), false),
        (json!({"on": "Receive", "fault": "restart", "seconds": 1}), false),
    ] {
        for args in [&[][..], &["--make-cert"]] {
            if sealed_only && !args.is_empty() {
                continue;
            }
            let Some(lab) = Lab::start(args, json!([rule])) else { return };
            let guest = lab.guest(Authentication::Negotiate).await;
            let output = Arc::new(Mutex::new(Vec::new()));
            let into = Arc::clone(&output);
            let take = move |stream, bytes: &[u8]| {
                if stream == Stream::Stdout {
                    into.lock().unwrap().extend_from_slice(bytes);
                }
            };
            let line = CommandLine::cmd("a test", "echo one");
            let ended = guest.run(&line, None, take, &control()).await;
            let output = String::from_utf8_lossy(&output.lock().unwrap()).into_owned();
            println!("{rule} {args:?}: {ended:?} {output:?}");
            // Nothing false: the whole output, or a gap that is counted, or an error.
            if let Ok(end) = ended {
                assert!(end.gaps > 0 || output == "one\r\n", "{rule} {args:?}: {end:?} {output:?}");
            }
            guest.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_wait_ends_the_command_in_the_guest() {
    for args in [&[][..], &["--make-cert"]] {
        let Some(lab) = Lab::start(args, json!([])) else { return };
        let guest = lab.guest(Authentication::Negotiate).await;
        let line = CommandLine::cmd("a test", "ping -n 60 127.0.0.1 >nul");
        let error = guest.exec(&line, None, &Control::ending_in(Duration::from_secs(1))).await.unwrap_err();
        assert!(error.interrupted().is_some(), "{error}");
        assert!(lab.log().contains("Signal"), "{}", lab.log());
        guest.close().await;
    }
}

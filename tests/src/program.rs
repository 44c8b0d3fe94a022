//! Other people's programs, run to their end under a deadline.

use std::ffi::OsStr;
use std::io::{Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// How a program ended, and what it said.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ended {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// A command in a process group of its own.
#[expect(
    clippy::disallowed_methods,
    reason = "the harness drives programs as a person does, not through Kiln's door"
)]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.process_group(0).env("LC_ALL", "C.UTF-8");
    command
}

/// Whether `name` can be started at all.
pub fn is_there(name: &str) -> bool {
    crate::settings::search_path()
        .split(':')
        .chain(["/usr/sbin", "/sbin"])
        .any(|folder| Path::new(folder).join(name).is_file())
}

/// Runs `command` to its end; at the deadline its process group is killed and the test fails.
pub fn finish(command: &mut Command, limit: Duration) -> Ended {
    let shown = format!("{command:?}");
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {shown}: {error}"));
    finish_child(child, &shown, limit)
}

pub(crate) fn finish_child(mut child: Child, shown: &str, limit: Duration) -> Ended {
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait(&mut child, shown, limit);
    Ended {
        status,
        stdout: stdout.join().unwrap(),
        stderr: String::from_utf8_lossy(&stderr.join().unwrap()).into_owned(),
    }
}

/// Waits for a child; at the deadline its group is killed and the test fails.
pub(crate) fn wait(child: &mut Child, shown: &str, limit: Duration) -> ExitStatus {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
            panic!("{shown} did not end within {} s", limit.as_secs());
        }
        // The standard library has no wait with a limit.
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn collect(from: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            from.read_to_end(&mut bytes).unwrap();
        }
        bytes
    })
}

/// Runs `program` and expects success; answers its standard output.
pub fn output<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> String {
    let mut command = command(program);
    command.args(args);
    let ended = finish(&mut command, Duration::from_secs(300));
    assert!(ended.status.success(), "{command:?}: {}\n{}", ended.status, ended.stderr);
    ended.text()
}

/// `sha256sum FILE`, in the words of coreutils.
pub fn sha256sum(file: &Path) -> String {
    output("sha256sum", ["--".as_ref(), file.as_os_str()]).split(' ').next().unwrap().to_owned()
}

/// Waits until `ready` answers something.
///
/// For what has no event to wait for from outside: files of another process, /proc.
pub fn until<T>(what: &str, limit: Duration, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {} s", limit.as_secs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// One line to the person at the terminal, past the test framework's capture.
pub fn say(line: &str) {
    let name = std::thread::current().name().unwrap_or("test").to_owned();
    let _ = writeln!(std::io::stderr(), "{name}: {line}");
}

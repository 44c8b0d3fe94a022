//! The command under test, in a home of its own.
//!
//! ```text
//!  scratch/<random>/
//!    data/library/images ─► the shared base images     KILN_DATA (inputs and runs are this home's own)
//!    out/                                              artifacts
//!    template.json
//!  /tmp/kt<random>/                                    XDG_RUNTIME_DIR: sockets have short paths
//! ```
//! Dropping a home ends whatever of it still runs: a failed test leaves no guest behind.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::census::{self, Process};
use crate::program::{self, command, finish, until};
use crate::settings;
use crate::slots::{self, Slot};
use crate::template::Template;

/// No build of these tests takes longer, unless it says so; a hanging one fails its test.
const BUILD_LIMIT: Duration = Duration::from_secs(15 * 60);

/// A home for the command.
#[derive(Debug)]
pub struct Kiln {
    home: TempDir,
    runtime: TempDir,
    environment: BTreeMap<String, String>,
    wrapper: Vec<String>,
}

impl Kiln {
    /// With the shared base images, which this home can read but not change.
    pub fn new() -> Self {
        let kiln = Self::empty();
        symlink(settings::test_data().join("library/images"), kiln.data().join("library/images")).unwrap();
        kiln
    }

    /// With the base images and a shelf of its own for more (linked: no bytes are copied).
    pub fn with_own_shelf() -> Self {
        let kiln = Self::empty();
        let from = settings::test_data().join("library/images");
        let to = kiln.data().join("library/images");
        program::output("cp", ["-al".as_ref(), from.as_os_str(), to.as_os_str()]);
        kiln
    }

    /// With a library that holds nothing.
    pub fn empty() -> Self {
        let home = tempfile::Builder::new().prefix("home-").tempdir_in(settings::scratch()).unwrap();
        let runtime = tempfile::Builder::new().prefix("kt").tempdir_in("/tmp").unwrap();
        std::fs::create_dir_all(home.path().join("data/library")).unwrap();
        let environment = [
            ("KILN_DATA", home.path().join("data")),
            ("KILN_IMAGES", settings::repository().join("images")),
            // One accelerator verdict serves all.
            ("XDG_CACHE_HOME", settings::test_data().join("cache")),
            ("XDG_CONFIG_HOME", home.path().join("config")),
            ("XDG_RUNTIME_DIR", runtime.path().to_owned()),
            ("HOME", home.path().to_owned()),
            // A test is about one build, and its room is small; those about several say so.
            ("KILN_CHECKPOINTS", "off".into()),
        ];
        let environment = environment
            .into_iter()
            .map(|(name, path)| (name.to_owned(), path.display().to_string()))
            .collect();
        Self { home, runtime, environment, wrapper: Vec::new() }
    }

    /// Sets a variable of the command's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.insert(name.to_owned(), value.into());
        self
    }

    /// With a QEMU that is another one to whoever looks: by its digest.
    #[must_use]
    pub fn with_another_qemu(self) -> Self {
        let programs = self.path().join("another-qemu");
        std::fs::create_dir(&programs).unwrap();
        let path = settings::search_path();
        let find = |name: &str| {
            std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file()).unwrap()
        };
        let other = programs.join("qemu-system-x86_64");
        std::fs::write(&other, format!("#!/bin/sh\nexec {} \"$@\"\n", find("qemu-system-x86_64").display()))
            .unwrap();
        std::fs::set_permissions(&other, Permissions::from_mode(0o755)).unwrap();
        symlink(find("qemu-img"), programs.join("qemu-img")).unwrap();
        let path = format!("{}:{path}", programs.display());
        self.env("PATH", path)
    }

    /// Runs the command by another one, for example `unshare -rn`.
    #[must_use]
    pub fn wrapped(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    pub fn path(&self) -> &Path {
        self.home.path()
    }
    pub fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }
    pub fn out(&self) -> PathBuf {
        self.home.path().join("out")
    }
    pub fn runtime(&self) -> &Path {
        self.runtime.path()
    }

    /// The command with `args`, not started yet.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let bin = settings::kiln_bin();
        let mut command = match self.wrapper.split_first() {
            Some((program, rest)) => {
                let mut command = command(program);
                command.args(rest).arg(bin);
                command
            }
            None => command(bin),
        };
        command.args(args).envs(&self.environment).current_dir(self.home.path());
        for proxy in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env_remove(proxy);
        }
        command
    }

    /// Runs a command that needs no guest.
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> program::Ended {
        finish(&mut self.command(args), Duration::from_secs(180))
    }

    /// Writes `template` and builds it to the end.
    pub fn build(&self, template: &Template) -> Ended {
        self.start(template).wait()
    }

    /// Builds what ends before a machine starts: it need not wait for a guest's slot.
    pub fn build_without_guest(&self, template: &Template) -> Ended {
        self.build_without_guest_with(template, &[])
    }

    /// The same with more arguments.
    pub fn build_without_guest_with(&self, template: &Template, args: &[&str]) -> Ended {
        self.begin(template, args, None).wait()
    }

    /// Writes `template` and starts its build, when there is a slot for a guest.
    pub fn start(&self, template: &Template) -> Running<'_> {
        self.start_with(template, &[])
    }

    /// Starts a build that waits for another one of this home for the most part: it shares that one's slot.
    pub fn start_beside(&self, template: &Template) -> Running<'_> {
        self.begin(template, &[], None)
    }

    /// The same with more arguments.
    pub fn start_with(&self, template: &Template, args: &[&str]) -> Running<'_> {
        self.begin(template, args, Some(slots::take()))
    }

    /// Starts another command that builds, when there is a slot for a guest.
    pub fn start_command(&self, args: &[&str]) -> Running<'_> {
        let mut command = self.command(args);
        command.arg("--json");
        self.running(command, Some(slots::take()))
    }

    fn begin(&self, template: &Template, args: &[&str], slot: Option<Slot>) -> Running<'_> {
        let file = self.home.path().join("template.json");
        std::fs::write(&file, template.text()).unwrap();
        let mut command = self.command(["build", "--json", "-o"]);
        command.arg(self.out()).args(args).arg(&file);
        self.running(command, slot)
    }

    fn running(&self, mut command: Command, slot: Option<Slot>) -> Running<'_> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let seen = Arc::new(Seen::default());
        let events = child.stdout.take().unwrap();
        let reading = Arc::clone(&seen);
        std::thread::spawn(move || {
            for line in BufReader::new(events).lines().map_while(Result::ok) {
                reading.add(Some(serde_json::from_str(&line).unwrap_or(Value::String(line))));
            }
            reading.add(None);
        });
        let stderr = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).collect::<Vec<_>>().join("\n")
        });
        Running { kiln: self, child, seen, stderr, started: Instant::now(), slot }
    }

    /// Processes of this home: workers, machines, commands.
    pub fn processes(&self) -> Vec<Process> {
        census::naming(self.home.path())
    }

    /// Run directories, oldest first.
    pub fn runs(&self) -> Vec<PathBuf> {
        files(&self.data().join("runs"))
    }

    /// What lies in the output folder.
    pub fn artifacts(&self) -> Vec<String> {
        files(&self.out())
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect()
    }

    /// INVARIANT under test: no process outlives its run, and nothing half-made stays.
    pub fn assert_nothing_left(&self) {
        until("every process of the run is gone", Duration::from_secs(10), || {
            self.processes().is_empty().then_some(())
        });
        assert_eq!(self.artifacts(), [""; 0], "nothing half-made in the output folder");
        for run in self.runs() {
            assert!(!run.join("work").exists(), "the work folder is gone: {:?}", files(&run.join("work")));
        }
        let sockets = self.runtime.path().join("kiln");
        // Where builds tell each other what they use stays; of none of them anything does.
        let left: Vec<_> = files(&sockets).into_iter().filter(|path| !path.ends_with("memory")).collect();
        assert_eq!(left, Vec::<PathBuf>::new(), "no sockets are left");
        self.assert_no_memory_taken();
        let tmp: Vec<PathBuf> = files(&self.data().join("library/tmp"))
            .into_iter()
            // Half a download is kept on purpose: the next run goes on with it.
            .filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with("fetch-"))
            .collect();
        assert_eq!(tmp, Vec::<PathBuf>::new(), "nothing half-made in the library");
    }
}

impl Kiln {
    /// No build of this home holds memory for a guest. The ticket of a worker that was killed is nobody's: no lock is on
    /// it, and the next build removes it.
    pub fn assert_no_memory_taken(&self) {
        let builds = self.runtime.path().join("kiln/memory/builds");
        let held: Vec<_> = files(&builds)
            .into_iter()
            .filter(|ticket| File::open(ticket).unwrap().try_lock().is_err())
            .collect();
        assert_eq!(held, Vec::<PathBuf>::new(), "no memory is taken");
    }
}

impl Default for Kiln {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Kiln {
    fn drop(&mut self) {
        for process in self.processes() {
            if std::thread::panicking() {
                program::say(&format!("ending what is left: {} {}", process.pid, process.command));
            }
            let _ = kill_process(Pid::from_raw(process.pid).unwrap(), Signal::KILL);
        }
        if std::thread::panicking() {
            let home = std::mem::replace(&mut self.home, tempfile::tempdir().unwrap());
            program::say(&format!("kept for a look: {}", home.keep().display()));
        }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// What has come on standard output so far.
#[derive(Debug, Default)]
struct Seen {
    lines: Mutex<(Vec<Value>, bool)>,
    more: Condvar,
}

impl Seen {
    fn add(&self, line: Option<Value>) {
        let mut lines = self.lines.lock().unwrap();
        match line {
            Some(line) => lines.0.push(line),
            None => lines.1 = true,
        }
        self.more.notify_all();
    }
}

/// A build under way.
#[derive(Debug)]
pub struct Running<'a> {
    kiln: &'a Kiln,
    child: Child,
    seen: Arc<Seen>,
    stderr: std::thread::JoinHandle<String>,
    started: Instant,
    /// Given back when the build has ended, or sooner.
    slot: Option<Slot>,
}

impl Running<'_> {
    /// From here on its guest only waits for time to pass: another guest may run.
    pub fn give_slot_back(&mut self) {
        self.slot = None;
    }

    /// Waits for an event that `wanted` accepts; fails the test when the build ends without it.
    pub fn until_event(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut lines = self.seen.lines.lock().unwrap();
        let mut looked = 0;
        loop {
            while looked < lines.0.len() {
                let event = &lines.0[looked]["event"];
                if wanted(event) {
                    return event.clone();
                }
                looked += 1;
            }
            assert!(!lines.1, "the build ended before {what}:\n{}", shown(&lines.0));
            let (held, timeout) = self.seen.more.wait_timeout(lines, BUILD_LIMIT).unwrap();
            lines = held;
            assert!(!timeout.timed_out(), "the build is stuck before {what}");
        }
    }

    /// Waits until the step with this id has started (`boot`, `customize/2`, …).
    pub fn until_step(&self, id: &str) {
        self.until_event(&format!("the step {id}"), |event| {
            event["kind"] == "stepStarted" && event["step"]["id"] == id
        });
    }

    /// Waits until the step has ended.
    pub fn until_step_ended(&self, id: &str) {
        self.until_event(&format!("the end of {id}"), |event| {
            event["kind"] == "stepEnded" && event["step"]["id"] == id
        });
    }

    /// The directory of this home's newest run.
    pub fn run_dir(&self) -> PathBuf {
        until("a run directory", Duration::from_secs(30), || self.kiln.runs().pop())
    }

    /// The worker's process, by its claim.
    pub fn worker(&self) -> Process {
        let claim = self.run_dir().join("claim.json");
        let pid = until("a claim", Duration::from_secs(30), || {
            let claim: Value = serde_json::from_slice(&std::fs::read(&claim).ok()?).ok()?;
            claim["pid"].as_i64()
        });
        let pid = i32::try_from(pid).unwrap();
        self.kiln.processes().into_iter().find(|process| process.pid == pid).expect("the worker lives")
    }

    /// The machine's process.
    pub fn qemu(&self) -> Process {
        until("a QEMU process", Duration::from_secs(30), || census::qemu_of(self.kiln.path()))
    }

    /// Ctrl-C, as a terminal sends it: to the command alone (its worker has a session of its own).
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn wait(self) -> Ended {
        self.wait_within(BUILD_LIMIT)
    }

    /// For a guest that takes longer than others.
    pub fn wait_within(mut self, limit: Duration) -> Ended {
        let status = program::wait(&mut self.child, "kiln build", limit);
        let stderr = self.stderr.join().unwrap();
        let mut lines = self.seen.lines.lock().unwrap();
        while !lines.1 {
            lines = self.seen.more.wait(lines).unwrap();
        }
        let mut events = std::mem::take(&mut lines.0);
        let result = if events.last().is_some_and(|line| line["kind"] == "result") {
            events.pop().unwrap()
        } else {
            Value::Null
        };
        // Two that began in one second do not sort by their names.
        let told = result["runDir"].as_str().map(PathBuf::from);
        Ended {
            exit: status.code(),
            events,
            result,
            stderr,
            run_dir: told.or_else(|| self.kiln.runs().pop()),
            took: self.started.elapsed(),
        }
    }
}

/// A build that has ended.
#[derive(Debug)]
pub struct Ended {
    /// `None` when a signal ended it.
    pub exit: Option<i32>,
    /// The lines of `--json` but the last.
    pub events: Vec<Value>,
    /// The last line: the result object.
    pub result: Value,
    pub stderr: String,
    pub run_dir: Option<PathBuf>,
    pub took: Duration,
}

impl Ended {
    /// Fails the test with everything a person wants to see, unless the build succeeded.
    #[must_use]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.exit, Some(0), "{}", self.story());
        assert_eq!(self.result["state"], "Succeeded", "{}", self.story());
        self
    }

    /// Fails the test unless the build failed as a build fails: exit code 1, the cause named.
    #[must_use]
    pub fn failed(self) -> Self {
        assert_eq!(self.exit, Some(1), "{}", self.story());
        assert_eq!(self.result["state"], "Failed", "{}", self.story());
        assert_one_sentence(&self.cause());
        self
    }

    #[must_use]
    pub fn canceled(self) -> Self {
        assert_eq!(self.exit, Some(1), "{}", self.story());
        assert_eq!(self.result["state"], "Canceled", "{}", self.story());
        self
    }

    pub fn cause(&self) -> String {
        self.result["message"].as_str().unwrap_or("").to_owned()
    }

    /// The failing step, as a person reads it.
    pub fn failed_step(&self) -> String {
        self.result["failure"]["step"]["title"].as_str().unwrap_or("").to_owned()
    }

    pub fn run_file(&self, name: &str) -> String {
        let path = self.run_dir.as_ref().expect("there was a run").join(name);
        std::fs::read(&path).map_or_else(
            |error| panic!("{}: {error}", path.display()),
            |b| String::from_utf8_lossy(&b).into_owned(),
        )
    }

    pub fn log(&self) -> String {
        self.run_file("customization.log")
    }

    pub fn notices(&self, level: &str) -> Vec<String> {
        self.events
            .iter()
            .map(|line| &line["event"])
            .filter(|event| event["kind"] == "notice" && event["level"] == level)
            .map(|event| event["text"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The one artifact.
    pub fn vhd(&self) -> PathBuf {
        self.result["outputs"][0]["path"]
            .as_str()
            .unwrap_or_else(|| panic!("no output: {}", self.story()))
            .into()
    }

    /// When the first event of this kind and step was written. Times of one form sort as texts.
    pub fn time_of(&self, kind: &str, step: &str) -> String {
        let found = self
            .events
            .iter()
            .find(|line| line["event"]["kind"] == kind && line["event"]["step"]["id"] == step)
            .unwrap_or_else(|| panic!("no {kind} of {step}: {}", self.story()));
        found["time"].as_str().unwrap().to_owned()
    }

    /// Every step that ended well, by id.
    pub fn steps_done(&self) -> Vec<String> {
        self.events
            .iter()
            .map(|line| &line["event"])
            .filter(|event| event["kind"] == "stepEnded" && event["outcome"] == "succeeded")
            .map(|event| event["step"]["id"].as_str().unwrap().to_owned())
            .collect()
    }

    pub fn story(&self) -> String {
        let log = self
            .run_dir
            .as_ref()
            .and_then(|dir| std::fs::read(dir.join("customization.log")).ok())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(30).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        format!(
            "exit {:?} after {:?}\nresult: {:#}\nstderr:\n{}\nlog:\n{}",
            self.exit,
            self.took,
            self.result,
            self.stderr,
            tail.join("\n")
        )
    }
}

fn shown(lines: &[Value]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// One sentence: something is said, on one line, and no debug output in it.
pub fn assert_one_sentence(text: &str) {
    assert!(text.len() > 10 && !text.contains('\n'), "one sentence: {text:?}");
    for debug in ["Some(", "Err(", "Error {", "os error 0", "panicked at"] {
        assert!(!text.contains(debug), "words for people: {text:?}");
    }
}

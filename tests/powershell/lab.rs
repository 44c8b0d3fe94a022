//! One text, run in the engine, with doubles before it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use kiln_tests::program::{command, finish};
use kiln_tests::settings;
use serde_json::Value;
use tempfile::TempDir;

/// Long enough for a loaded machine; no case waits for more than seconds by itself.
const LIMIT: Duration = Duration::from_secs(120);
const DOUBLES: &str = include_str!("doubles.ps1");

/// A folder of its own for one test, and the engine.
pub struct Lab {
    dir: TempDir,
    engine: PathBuf,
}

/// What a text did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// The engine's program: `KILN_PWSH`, else what the PATH has.
pub fn engine() -> Option<PathBuf> {
    let on_path = || {
        let path = settings::search_path();
        path.split(':').map(|folder| Path::new(folder).join("pwsh")).find(|pwsh| pwsh.is_file())
    };
    settings::pwsh().map(|folder| folder.join("pwsh")).or_else(on_path)
}

/// A lab, or the end of the test with the reason shown.
macro_rules! lab {
    () => {
        match crate::lab::Lab::new() {
            Some(lab) => lab,
            None => kiln_tests::skip!("neither KILN_PWSH nor PATH has a PowerShell engine (pwsh)"),
        }
    };
}
pub(crate) use lab;

impl Lab {
    pub fn new() -> Option<Self> {
        let engine = engine()?;
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("c/Windows/System32")).unwrap();
        Some(Self { dir, engine })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// As a word for a text.
    pub fn shown(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn engine(&self) -> &str {
        self.engine.to_str().unwrap()
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// A program, as a shell script.
    pub fn program(&self, name: &str, script: &str) -> PathBuf {
        let path = self.write(name, format!("#!/bin/sh\n{script}\n"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// What is in a file of the lab; nothing where there is none.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub fn calls(&self) -> Vec<String> {
        self.read("calls").lines().map(str::to_owned).collect()
    }

    /// The engine, called as Windows PowerShell is.
    pub fn command(&self) -> Command {
        let mut command = command(&self.engine);
        command.env("LABPWSH_AS", "powershell").env("LAB_DIR", self.dir.path());
        command
    }

    /// Runs `text` as a file, after the doubles and `prelude`.
    pub fn run(&self, prelude: &str, text: &str) -> Ran {
        let prelude = self.write("prelude.ps1", format!("{DOUBLES}\n{prelude}"));
        let file = self.write("text.ps1", text);
        let mut command = self.command();
        command.env("LABPWSH_PRELUDE", prelude).args(["-NoProfile", "-NonInteractive", "-File"]).arg(file);
        ended(&mut command)
    }

    /// Runs `text` as a file with no doubles: for what a user's script may do.
    pub fn run_bare(&self, text: &[u8]) -> Ran {
        let file = self.write("bare.ps1", text);
        let mut command = self.command();
        command.args(["-NonInteractive", "-File"]).arg(file);
        ended(&mut command)
    }

    /// Runs one of our command lines, which names `powershell`, by a shell that reads quotes as cmd.exe does.
    pub fn run_line(&self, line: &str, input: Option<&str>) -> Ran {
        let arguments = line.strip_prefix("powershell ").expect("a command line of powershell");
        let mut command = self.command();
        command.args(words(&without_policy(arguments)));
        match input {
            None => ended(&mut command),
            Some(input) => with_input(&mut command, &self.write("input", input)),
        }
    }

    /// Like [`Lab::run`], with lines of standard input.
    pub fn run_with_input(&self, prelude: &str, text: &str, input: &str) -> Ran {
        let prelude = self.write("prelude.ps1", format!("{DOUBLES}\n{prelude}"));
        let file = self.write("text.ps1", text);
        let mut command = self.command();
        command.env("LABPWSH_PRELUDE", prelude).args(["-NoProfile", "-NonInteractive", "-File"]).arg(file);
        with_input(&mut command, &self.write("input", input))
    }
}

/// Execution policies are a thing of Windows: on Linux the engine has none, and stops at the option.
pub fn without_policy(arguments: &str) -> String {
    const POLICY: &str = "-ExecutionPolicy Bypass ";
    assert_eq!(arguments.matches(POLICY).count(), 1, "{arguments}");
    arguments.replace(POLICY, "")
}

/// The words of a command line in which double quotes keep spaces and hold no other quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

pub fn ended(command: &mut Command) -> Ran {
    let ended = finish(command, LIMIT);
    let code = ended.status.code().unwrap_or_else(|| panic!("{command:?}: {}", ended.status));
    Ran { code, out: ended.text(), err: ended.stderr }
}

/// `finish` gives no standard input; a shell's redirection does.
fn with_input(command: &mut Command, input: &Path) -> Ran {
    let mut shell = kiln_tests::program::command("sh");
    shell.args(["-c", "input=$1; shift; exec \"$@\" < \"$input\"", "sh"]).arg(input);
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    shell.stdin(Stdio::null());
    ended(&mut shell)
}

impl Ran {
    /// The text ended with `code`; a call that no double provides for shows as 250.
    #[track_caller]
    pub fn ended_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "out:\n{}\nerr:\n{}", self.out, self.err);
        self
    }

    /// The answers, in order.
    pub fn answers(&self) -> Vec<Value> {
        let lines = self.out.lines().filter_map(|line| line.strip_prefix("kiln:"));
        lines
            .map(|json| serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}")))
            .collect()
    }

    /// The only answer.
    #[track_caller]
    pub fn answer(&self) -> Value {
        let mut answers = self.answers();
        assert_eq!(answers.len(), 1, "out:\n{}\nerr:\n{}", self.out, self.err);
        answers.remove(0)
    }

    #[track_caller]
    pub fn says(&self, text: &str) -> &Self {
        assert!(self.out.contains(text), "{text:?} is not in:\n{}\nerr:\n{}", self.out, self.err);
        self
    }

    #[track_caller]
    pub fn says_not(&self, text: &str) -> &Self {
        assert!(!self.out.contains(text), "{text:?} is in:\n{}", self.out);
        self
    }
}

/// Gives the variable another value than the one our code assigns: a shorter wait, a folder of the lab.
#[track_caller]
pub fn with(text: &str, name: &str, value: &str) -> String {
    let head = format!("${name} = ");
    let mut replaced = 0;
    let lines = text.lines().map(|line| {
        if replaced == 0 && line.starts_with(&head) {
            replaced += 1;
            format!("{head}{value}\n")
        } else {
            format!("{line}\n")
        }
    });
    let text = lines.collect();
    assert_eq!(replaced, 1, "the text has no value {name}");
    text
}

/// A word of PowerShell, for paths of the lab.
pub fn word(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

//! A script run by the task scheduler: elevated as the build user, or as SYSTEM.
//!
//! ```text
//!   here                              in the guest, in a folder of its own
//!   (upload) ── runner.ps1, script ─► task_runner.ps1    runs the script; files out, err; exit.json at the end
//!   register ───────────────────────► task_register.ps1  the task, from XML; starts it
//!   follow   ◄── out, err, end ────── task_follow.ps1    reads both files from our offsets on, until exit.json's sizes
//!      └─ link lost, window over: follow again from the offsets reached
//!   remove   ───────────────────────► task_remove.ps1    the task, what still runs of it, the folder
//! ```
//!
//! * **No line and no exit code is lost**: the runner writes `exit.json` after the last byte, whole or not at all,
//!   with both sizes in it; the follower looks for it *before* it reads, and ends only when it has read up to them.
//!   So a task that is over before the first look is a task like any other.
//! * **A task that died** (killed, machine restarted) leaves no exit.json: three looks in a row at a task that neither
//!   runs nor waits say so. Whether the machine restarted, the boot id tells.
//! * **Passwords.** A task that runs as a user needs the user's password. It goes over the sealed connection as one
//!   line of standard input ([`super::secret_line`]) to `task_register.ps1`, from there in memory to the scheduler,
//!   which keeps it as a secret of Windows' own until the task is removed. It is in no file, on no command line, in
//!   no XML, and in no text that is ever logged.
//!
//! Limits: what a program left behind by the script prints after the script's end is cut off after some seconds.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::script::{GuestPath, POWERSHELL};
use super::text::{Value, answer, fill, xml_escape};

/// How long the runner waits for the pipes of a program that has ended, in seconds: they close with it at once,
/// unless another program holds them.
const DRAIN_SECONDS: u64 = 5;
/// How long a task may take until its runner begins, in seconds: logging the user on, starting PowerShell.
const BEGIN_SECONDS: u64 = 180;
/// How long a folder may stay locked by programs that were ended, in seconds.
const REMOVE_SECONDS: u64 = 20;
/// Bytes per line of the follower: a multiple of three, small against the largest envelope of WinRM.
const CHUNK: u64 = 24 * 1024;

/// Who the task runs as. In both, with all the rights the account has (`HighestAvailable`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunAs<'a> {
    /// `NT AUTHORITY\SYSTEM`.
    System,
    /// A local account; its password goes beside the text.
    User(&'a str),
}

/// The names of one task and its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    name: String,
    folder: GuestPath,
}

impl Task {
    /// `folder` is made by whoever uploads the files into it; `name` is the task's in the scheduler.
    pub fn new(name: impl Into<String>, folder: GuestPath) -> Self {
        Self { name: name.into(), folder }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn folder(&self) -> &GuestPath {
        &self.folder
    }

    /// The runner, to be placed at [`Task::runner_path`]. `program` is started without cmd.exe, with `arguments`
    /// as its command line: [`super::script::file_arguments`], [`super::script::call_arguments`].
    pub fn runner(&self, program: &str, arguments: &str) -> String {
        fill(
            include_str!("task_runner.ps1"),
            &[
                ("Folder", Value::Text(self.folder.as_str())),
                ("Program", Value::Text(program)),
                ("Arguments", Value::Text(arguments)),
                ("DrainSeconds", Value::Number(DRAIN_SECONDS)),
            ],
        )
    }

    /// Full path of the runner.
    pub fn runner_path(&self) -> String {
        format!("{}\\runner.ps1", self.folder)
    }

    /// Registers and starts the task. Exit code 0; 1 when it could not be registered, 2 when it could not be started.
    /// For [`RunAs::User`] the password is the text's standard input.
    ///
    /// # Errors
    /// Answers the character of a name that XML cannot hold.
    pub fn register(&self, run_as: RunAs) -> Result<String, char> {
        let user = match run_as {
            RunAs::System => "",
            RunAs::User(user) => user,
        };
        Ok(fill(
            include_str!("task_register.ps1"),
            &[
                ("Task", Value::Text(&self.name)),
                ("Xml", Value::Text(&self.xml(run_as)?)),
                ("User", Value::Text(user)),
            ],
        ))
    }

    fn xml(&self, run_as: RunAs) -> Result<String, char> {
        task_xml("A step of an image build.", run_as, &self.runner_path())
    }

    /// Follows the task from `at` on, for at most `seconds`; then it answers [`FollowNotice::Running`].
    pub fn follow(&self, at: &Following, seconds: u64) -> String {
        fill(
            include_str!("task_follow.ps1"),
            &[
                ("Folder", Value::Text(self.folder.as_str())),
                ("Task", Value::Text(&self.name)),
                ("OutAt", Value::Number(at.out)),
                ("ErrAt", Value::Number(at.err)),
                ("Chunk", Value::Number(CHUNK)),
                ("Seconds", Value::Number(seconds)),
                ("BeginSeconds", Value::Number(BEGIN_SECONDS)),
            ],
        )
    }

    /// Ends the task if it runs, and removes it and its folder. May be repeated. Exit code 0, or 1 with the
    /// problems in its answer.
    pub fn remove(&self) -> String {
        fill(
            include_str!("task_remove.ps1"),
            &[
                ("Folder", Value::Text(self.folder.as_str())),
                ("Task", Value::Text(&self.name)),
                ("Seconds", Value::Number(REMOVE_SECONDS)),
            ],
        )
    }
}

/// The scheduler's XML for a task that runs the PowerShell script at `script`.
pub(super) fn task_xml(description: &str, run_as: RunAs, script: &str) -> Result<String, char> {
    let principal = match run_as {
        // The well-known SID: the account's name differs by language.
        RunAs::System => "<UserId>S-1-5-18</UserId>".to_owned(),
        RunAs::User(user) => {
            format!("<UserId>{}</UserId>\n      <LogonType>Password</LogonType>", xml_escape(user)?)
        }
    };
    let arguments = format!("-NoProfile -NonInteractive -ExecutionPolicy Bypass -File \"{script}\"");
    Ok(include_str!("task.xml")
        .replace("{description}", &xml_escape(description)?)
        .replace("{command}", POWERSHELL)
        .replace("{arguments}", &xml_escape(&arguments)?)
        // Last: an account's name might look like one of the others.
        .replace("{principal}", &principal))
}

/// How far the output of a task was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Following {
    out: u64,
    err: u64,
}

/// What a line of the follower says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FollowNotice {
    Out(Vec<u8>),
    Err(Vec<u8>),
    /// The task is over, and all its output came before.
    End(TaskEnd),
    /// The task is over, or gone, and there is no exit code. The text is for the log.
    Died(String),
    /// The follower's time is over, the task's is not.
    Running,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskEnd {
    /// 0xC0000005 and its like come as Windows shows them, negative.
    pub code: i32,
    /// Why the program could not be run, or what it left behind.
    pub note: Option<String>,
}

/// The guest sent a line that cannot be: a gap in the output, or no line of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the guest's answer about a task cannot be read: {line}")]
pub struct BadLine {
    line: String,
}

#[derive(Deserialize)]
struct Said {
    kind: String,
    code: Option<i64>,
    left: Option<String>,
    error: Option<String>,
    state: Option<String>,
    result: Option<i64>,
    begun: Option<bool>,
}

impl Following {
    /// Takes one line of the follower's standard output. Bytes that were read before are left out.
    ///
    /// # Errors
    /// [`BadLine`]: a gap before the bytes, or a line that is none of ours. What printed it is not known, and
    /// output must not be lost in silence.
    pub fn line(&mut self, line: &str) -> Result<Option<FollowNotice>, BadLine> {
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(None);
        }
        let bad = || BadLine { line: line.chars().take(200).collect() };
        if let Some(said) = answer::<Said>(line) {
            return said.notice().map(Some).ok_or_else(bad);
        }
        let mut words = line.split(' ');
        let (Some(stream), Some(offset), Some(bytes), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(bad());
        };
        let offset: u64 = offset.parse().map_err(|_| bad())?;
        let bytes = STANDARD.decode(bytes).map_err(|_| bad())?;
        let at = match stream {
            "out" => &mut self.out,
            "err" => &mut self.err,
            _ => return Err(bad()),
        };
        let known = at.checked_sub(offset).ok_or_else(bad)?;
        let known = usize::try_from(known).map_err(|_| bad())?;
        let Some(new) = bytes.get(known..).filter(|new| !new.is_empty()) else {
            return Ok(None);
        };
        *at += u64::try_from(new.len()).map_err(|_| bad())?;
        Ok(Some(match stream {
            "out" => FollowNotice::Out(new.to_vec()),
            _ => FollowNotice::Err(new.to_vec()),
        }))
    }
}

impl Said {
    fn notice(self) -> Option<FollowNotice> {
        match self.kind.as_str() {
            "running" => Some(FollowNotice::Running),
            "end" => {
                let code = self.code?;
                // Windows counts exit codes unsigned, .NET signed.
                let code = i32::try_from(code).or_else(|_| u32::try_from(code).map(u32::cast_signed)).ok()?;
                Some(FollowNotice::End(TaskEnd { code, note: self.error.or(self.left) }))
            }
            "died" => {
                let state = self.state.unwrap_or_default();
                let begun =
                    if self.begun == Some(false) { "never began" } else { "ended without an exit code" };
                let result =
                    self.result.map(|result| format!(", last result {result:#x}")).unwrap_or_default();
                Some(FollowNotice::Died(format!("the task {begun} (state {state}{result})")))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn task() -> Task {
        Task::new("kiln-step-3", GuestPath::new(r"C:\Windows\Temp\kiln-step-3").unwrap())
    }

    #[test]
    fn a_task_of_a_user_has_the_password_nowhere() {
        let xml = task().xml(RunAs::User("o'<x>")).unwrap();
        let document = roxmltree::Document::parse(&xml).unwrap();
        let text =
            |name| document.descendants().find(|node| node.has_tag_name(name)).and_then(|node| node.text());
        let space = "http://schemas.microsoft.com/windows/2004/02/mit/task";
        assert_eq!(text((space, "UserId")), Some("o'<x>"));
        assert_eq!(text((space, "LogonType")), Some("Password"));
        assert_eq!(text((space, "RunLevel")), Some("HighestAvailable"));
        assert_eq!(text((space, "ExecutionTimeLimit")), Some("PT0S"));
        assert_eq!(
            text((space, "Arguments")),
            Some(
                r#"-NoProfile -NonInteractive -ExecutionPolicy Bypass -File "C:\Windows\Temp\kiln-step-3\runner.ps1""#
            )
        );
    }

    #[test]
    fn system_needs_no_logon_type() {
        let xml = task().xml(RunAs::System).unwrap();
        assert!(xml.contains("<UserId>S-1-5-18</UserId>\n      <RunLevel>"), "{xml}");
        assert!(!xml.contains('{'), "{xml}");
        assert_eq!(task().register(RunAs::User("a\0")), Err('\0'));
    }

    #[test]
    fn the_runner_gets_its_values() {
        let runner = task().runner("powershell", "-File \"c:\\it's.ps1\"");
        expect![[r#"
            $Folder = 'C:\Windows\Temp\kiln-step-3'
            $Program = 'powershell'
            $Arguments = '-File "c:\it''s.ps1"'
            $DrainSeconds = 5"#]]
        .assert_eq(&runner.lines().take(4).collect::<Vec<_>>().join("\n"));
    }

    #[test]
    fn bytes_are_taken_once_and_gaps_are_errors() {
        let mut at = Following::default();
        assert_eq!(at.line("out 0 YWJj\r\n"), Ok(Some(FollowNotice::Out(b"abc".to_vec()))));
        assert_eq!(at.line("out 0 YWJj"), Ok(None));
        assert_eq!(at.line("out 2 Y2Rl"), Ok(Some(FollowNotice::Out(b"de".to_vec()))));
        assert_eq!(at.line("err 0 eA=="), Ok(Some(FollowNotice::Err(b"x".to_vec()))));
        assert!(at.line("out 6 eA==").is_err());
        assert!(at.line("out 5 ???").is_err());
        assert!(at.line("some program's banner").is_err());
        assert_eq!(at, Following { out: 5, err: 1 });
        assert!(task().follow(&at, 20).contains("$OutAt = 5\n$ErrAt = 1\n"));
    }

    #[test]
    fn ends() {
        let mut at = Following::default();
        let end = |code, note: Option<&str>| {
            Ok(Some(FollowNotice::End(TaskEnd { code, note: note.map(str::to_owned) })))
        };
        assert_eq!(at.line(r#"kiln:{"kind":"end","code":3,"out":0,"err":0}"#), end(3, None));
        assert_eq!(at.line(r#"kiln:{"kind":"end","code":3221225477}"#), end(-1_073_741_819, None));
        assert_eq!(at.line(r#"kiln:{"kind":"end","code":1,"error":"not found"}"#), end(1, Some("not found")));
        assert_eq!(at.line(r#"kiln:{"kind":"running","out":0}"#), Ok(Some(FollowNotice::Running)));
        assert_eq!(
            at.line(r#"kiln:{"kind":"died","begun":false,"state":"Ready","result":267011}"#),
            Ok(Some(FollowNotice::Died("the task never began (state Ready, last result 0x41303)".into())))
        );
        assert!(at.line(r#"kiln:{"kind":"end"}"#).is_err());
    }
}

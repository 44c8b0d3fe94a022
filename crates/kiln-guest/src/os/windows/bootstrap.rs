//! Into a generalized Windows, and out of it again without a trace.
//!
//! ```text
//!   medium: Unattend.xml, Autounattend.xml, kiln-bootstrap.ps1
//!     │ first boot: account, one automatic logon
//!     ▼
//!   bootstrap.ps1 ── serial port ──► BootstrapLine::WinRm {thumbprints}    the certificate is pinned before we connect
//!     ⋮  the build
//!   undo_register.ps1               undo.ps1 as a task of SYSTEM, waiting
//!   Sysprep
//!   verdict.ps1 "generalized"       the last word over the connection
//!     ▼
//!   undo.ps1 ─────── serial port ──► BootstrapLine::Undone {problems}, then the machine powers off
//! ```
//!
//! * `bootstrap.ps1` writes down what it changes (`before.json`); `undo.ps1` puts that back, and removes listener,
//!   certificate with key, firewall rule, policy, autologon, answer files, account, profile, task and its own folder.
//! * A Windows with an account and a listener of its own is told nothing: no medium, no bootstrap. Of it `undo.ps1`
//!   removes the build's folder and task ([`Undoing::BuildOnly`]), and nothing else.
//! * The build's account ends with the build, so nobody can be logged in as it when it goes: the undoing runs as
//!   SYSTEM, after the connection's last use. The connection may break in the middle of the verdict's answer: what
//!   counts is the line on the serial port.
//! * **Passwords** are in the answer file on the medium, and for the first logon in the registry. `bootstrap.ps1`
//!   removes the latter first of all; Windows blanks them in its copy of the answer file, and that goes too.
//! * A nonce in each line tells this boot's words from what an earlier one left in a log.
//!
//! Limits: Windows' event logs, which Sysprep clears, may name the account in entries made after Sysprep. The session
//! configurations that `Enable-PSRemoting` makes on a client Windows stay; without a listener they are unreachable.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::script::{GuestPath, file_bytes};
use super::task::{RunAs, task_xml};
use super::text::{Value, answer, fill, xml_escape};

/// WinRM over HTTPS, as the service's build machines have it.
pub const WINRM_PORT: u16 = 5986;
/// Where on the medium the answer file's command looks for `bootstrap.ps1`.
pub const BOOTSTRAP_PATH: &str = "kiln-bootstrap.ps1";
/// Both names of the answer file: the first boot of a generalized system looks for the first on read-only media, the
/// windowsPE pass of Setup for the second.
pub const ANSWER_FILES: [&str; 2] = ["Unattend.xml", "Autounattend.xml"];
/// Where what was before is kept until it is undone.
const FOLDER: &str = r"C:\Windows\Temp\kiln-build";
const UNDO_TASK: &str = "kiln-undo";
/// The first serial port.
const SERIAL_PORT: &str = "COM1";
/// Seconds Windows may take to look at its network.
const NETWORK_SECONDS: u64 = 60;
/// Seconds between two looks at what has no event.
const PAUSE_SECONDS: u64 = 2;
/// Seconds until the undoing waits: PowerShell's start.
const BEGIN_SECONDS: u64 = 180;
/// Seconds the undoing awaits its verdict: longer than Sysprep may take.
const VERDICT_SECONDS: u64 = 2 * 3600;
/// Seconds the account's profile may stay loaded after its sessions were ended.
const PROFILE_SECONDS: u64 = 120;

/// The account of a build, and the passwords of its first boot. Neither shown nor kept: [`fmt::Debug`] hides them.
pub struct Account<'a> {
    pub user: &'a str,
    pub password: &'a str,
    /// Of the built-in administrator, which a server's first boot wants to have one. Random, and not used.
    pub administrator_password: &'a str,
}

impl fmt::Debug for Account<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What the answer file cannot be made of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerFileError {
    #[error("the {what} for a Windows answer file has a character that XML cannot hold (U+{code:04X})")]
    Character { what: &'static str, code: u32 },
    #[error("the account name {0:?} is none that Windows takes")]
    AccountName(String),
}

/// The processor architectures Windows' answer files know and we start machines of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    Amd64,
    Arm64,
}

/// The answer file, under both names of [`ANSWER_FILES`].
///
/// # Errors
/// [`AnswerFileError`]; it never shows a password.
pub fn answer_file(
    account: &Account,
    locale: &str,
    architecture: Architecture,
) -> Result<String, AnswerFileError> {
    // Windows: 1 to 20 characters, none of these, not only dots and spaces.
    let name = account.user;
    let plain = |c: char| !c.is_control() && !"\"/\\[]:;|=,+*?<>@".contains(c);
    let length = name.encode_utf16().count();
    if !(1..=20).contains(&length) || !name.chars().all(plain) || name.trim_matches([' ', '.']).is_empty() {
        return Err(AnswerFileError::AccountName(name.to_owned()));
    }
    // Drive letters are given out at boot: each is tried.
    let script = BOOTSTRAP_PATH;
    let command = format!(
        "cmd /c for %d in (D E F G H I J K L M N O P Q R S T U V W X Y Z) do if exist \"%d:\\{script}\" \
         powershell -NoProfile -NonInteractive -ExecutionPolicy Bypass -File \"%d:\\{script}\""
    );
    let values = [
        ("{arch}", "architecture", if architecture == Architecture::Amd64 { "amd64" } else { "arm64" }),
        ("{locale}", "locale", locale),
        ("{user}", "account name", account.user),
        ("{command}", "command", &command),
        ("{administrator_password}", "administrator password", account.administrator_password),
        ("{password}", "password", account.password),
    ];
    let mut filled = String::new();
    let mut rest = include_str!("Unattend.xml");
    // One pass, so that no value is searched for the next one's place.
    while let Some(at) = rest.find('{') {
        filled.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some((mark, what, value)) = values.iter().find(|(mark, ..)| rest.starts_with(mark)) {
            let value =
                xml_escape(value).map_err(|c| AnswerFileError::Character { what, code: u32::from(c) })?;
            filled.push_str(&value);
            rest = &rest[mark.len()..];
        } else {
            filled.push('{');
            rest = &rest[1..];
        }
    }
    filled.push_str(rest);
    Ok(filled)
}

/// `bootstrap.ps1` for the medium. `nonce` comes back in each of its lines.
pub fn bootstrap(nonce: &str) -> Vec<u8> {
    file_bytes(&fill(
        include_str!("bootstrap.ps1"),
        &[
            ("Nonce", Value::Text(nonce)),
            ("Folder", Value::Text(FOLDER)),
            ("Port", Value::Number(WINRM_PORT.into())),
            ("SerialPort", Value::Text(SERIAL_PORT)),
            ("ProfileSeconds", Value::Number(NETWORK_SECONDS)),
            ("PauseSeconds", Value::Number(PAUSE_SECONDS)),
        ],
    ))
}

/// How much of this Windows is the build's, and goes.
///
/// Told by whoever began the build, not found out in the guest: what an earlier build left there must not decide whose
/// account is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undoing<'a> {
    /// `bootstrap.ps1` made account, listener, certificate, firewall rule and policy for this build: all of it.
    Bootstrap { user: &'a str },
    /// All of these were there before and stay: only the build's folder and task.
    BuildOnly,
}

/// Before Sysprep: the text that registers the undoing and sees it wait. Exit code 0, or 1 with `error` in its answer.
///
/// # Errors
/// Answers the character of a path that XML cannot hold; ours have none.
pub fn register_undo(nonce: &str, undoing: Undoing) -> Result<String, char> {
    let undo = undo(nonce, undoing);
    let xml =
        task_xml("Takes an image build out of this Windows.", RunAs::System, &format!("{FOLDER}\\undo.ps1"))?;
    Ok(fill(
        include_str!("undo_register.ps1"),
        &[
            ("Folder", Value::Text(FOLDER)),
            ("Task", Value::Text(UNDO_TASK)),
            ("Xml", Value::Text(&xml)),
            ("Script", Value::Text(&STANDARD.encode(file_bytes(&undo)))),
            ("BeginSeconds", Value::Number(BEGIN_SECONDS)),
        ],
    ))
}

/// The undoing itself, as [`register_undo`] puts it into the guest.
pub fn undo(nonce: &str, undoing: Undoing) -> String {
    let (bootstrapped, user) = match undoing {
        Undoing::Bootstrap { user } => (true, user),
        Undoing::BuildOnly => (false, ""),
    };
    fill(
        include_str!("undo.ps1"),
        &[
            ("Nonce", Value::Text(nonce)),
            ("Folder", Value::Text(FOLDER)),
            ("Task", Value::Text(UNDO_TASK)),
            ("Bootstrapped", Value::Flag(bootstrapped)),
            ("User", Value::Text(user)),
            ("SerialPort", Value::Text(SERIAL_PORT)),
            ("VerdictSeconds", Value::Number(VERDICT_SECONDS)),
            ("ProfileSeconds", Value::Number(PROFILE_SECONDS)),
            ("PauseMilliseconds", Value::Number(500)),
        ],
    )
}

/// What the waiting undoing is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Windows is generalized: undo what is the build's, report, power off.
    Generalized,
    /// It is not: remove only the task.
    Keep,
}

/// The text that leaves the verdict.
pub fn verdict(verdict: Verdict) -> String {
    let word = match verdict {
        Verdict::Generalized => "generalized",
        Verdict::Keep => "keep",
    };
    fill(include_str!("verdict.ps1"), &[("Folder", Value::Text(FOLDER)), ("Verdict", Value::Text(word))])
}

/// A line that Windows says over the serial port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootstrapLine {
    /// It got so far, or something is not as it should be and does not matter.
    Step { step: String, warning: Option<String> },
    /// WinRM answers, with this certificate. Digests of its DER form, in lower-case hexadecimal.
    WinRm { port: u16, sha256: String, sha1: String },
    /// There will be no WinRM.
    Failed { step: String, error: String },
    /// The build was taken out of this Windows; with problems, not wholly.
    Undone { done: bool, problems: Vec<String> },
}

#[derive(Deserialize)]
#[serde(tag = "kind")]
enum Said {
    #[serde(rename = "bootstrap")]
    Step { nonce: String, step: String, warning: Option<String> },
    #[serde(rename = "winrm")]
    WinRm { nonce: String, port: u16, sha256: String, sha1: String },
    #[serde(rename = "bootstrap-failed")]
    Failed { nonce: String, step: String, error: String },
    #[serde(rename = "undone")]
    Undone {
        nonce: String,
        done: bool,
        #[serde(default)]
        problems: Vec<String>,
    },
}

/// Reads a line of the serial port. `None` for anything else than a line of ours with this nonce: firmware and
/// kernels speak there too. A thumbprint that is none makes the line none.
pub fn bootstrap_line(line: &str, nonce: &str) -> Option<BootstrapLine> {
    // A boot loader may have left its words without a line end.
    let line = &line[line.find("kiln:")?..];
    let digest = |text: &str, bytes: usize| {
        text.len() == bytes * 2 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let (said, line) = match answer(line)? {
        Said::Step { nonce, step, warning } => (nonce, BootstrapLine::Step { step, warning }),
        Said::WinRm { nonce, port, sha256, sha1 } if digest(&sha256, 32) && digest(&sha1, 20) => {
            (nonce, BootstrapLine::WinRm { port, sha256, sha1 })
        }
        Said::WinRm { .. } => return None,
        Said::Failed { nonce, step, error } => (nonce, BootstrapLine::Failed { step, error }),
        Said::Undone { nonce, done, problems } => (nonce, BootstrapLine::Undone { done, problems }),
    };
    (said == nonce).then_some(line)
}

/// The folder of the build's own files in the guest, which goes with the undoing.
pub fn folder() -> Option<GuestPath> {
    GuestPath::new(FOLDER)
}

#[cfg(test)]
mod tests;

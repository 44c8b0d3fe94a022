//! A Windows that is kept and goes on later, perhaps several times at once.
//!
//! ```text
//!   flush.ps1   (facts::flush) what it holds in memory is on its disk         before it is kept
//!   renew.ps1   clock, then passwords, in one command                         first of all when it goes on
//!     └─► a new login, by the new password
//! ```
//! * **Clock.** A memory file has the time of its making; Windows' own services would see to it some day, if they find a
//!   server. It is set from here, and that it took is checked inside.
//! * **Randomness** is not in the text: nobody can give Windows' generator any. The machine's generation ID does it
//!   (QEMU's `vmgenid`): Windows takes it for another machine and renews its generator by itself, since Windows 8
//!   (Microsoft, "Virtual Machine Generation ID", 2012). Without that device no memory is kept.
//! * **Passwords.** All that go on from one machine would let in whoever knows one of them; a guest of another build
//!   reaches this host's forwarded ports. The account of the build gets a new one; so does the built-in administrator,
//!   unless a customizer gave it one of its own. An account that is the image's own keeps its password: it is its
//!   owner's.
//! * **The certificate stays**, and with it its pin: it proves a guest to a worker on the same host, over a loopback
//!   where no guest can listen. To put another one in place under the connection that asks for it could end in a guest
//!   that nobody reaches.
//! * **Tasks** of Windows' own that a jumping clock sets off are not held, as timers of a Linux guest are: the scheduler
//!   cannot be stopped, and steps need it.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use zeroize::Zeroizing;

use super::text::{Value, answers, fill, secret_line};

/// PowerShell that took longer than this to begin was not asked in this boot's time.
const MOST_LATE: Duration = Duration::from_secs(10 * 60);
/// How far a clock may be from what it was just set to.
const MOST_WRONG: Duration = Duration::from_secs(5);

/// The passwords that a build made for one Windows.
#[derive(Clone, Copy)]
pub struct Passwords<'a> {
    /// Of the build's account.
    pub own: &'a str,
    /// Of the built-in administrator.
    pub administrator: &'a str,
}

impl std::fmt::Debug for Passwords<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passwords(…)")
    }
}

/// The text; `user` is the build's account, `None` where the account is the image's own. Exit code 0, or 1 with `error`
/// in its answer.
pub fn renew(now: SystemTime, user: Option<&str>) -> String {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let milliseconds = |time: Duration| Value::Number(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    fill(
        include_str!("renew.ps1"),
        &[
            ("Now", milliseconds(now)),
            ("MostLate", milliseconds(MOST_LATE)),
            ("MostWrong", milliseconds(MOST_WRONG)),
            ("User", Value::Text(user.unwrap_or_default())),
        ],
    )
}

/// What it reads.
pub fn secrets(old: Passwords<'_>, new: Passwords<'_>) -> Zeroizing<String> {
    let lines = [old.own, new.own, old.administrator, new.administrator].map(secret_line);
    let mut all = Zeroizing::new(String::with_capacity(lines.iter().map(|line| line.len()).sum()));
    lines.iter().for_each(|line| all.push_str(line));
    all
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Renewed {
    pub done: bool,
    /// How far the clock was moved, milliseconds.
    pub moved_ms: i64,
    pub password: PasswordState,
    /// What is not as one would wish, and ends nothing.
    #[serde(default)]
    pub notes: Vec<String>,
    pub error: Option<String>,
}

/// Of the account that is logged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PasswordState {
    Kept,
    Changed,
    /// By force.
    Reset,
}

impl Renewed {
    /// The answer of [`renew`].
    pub fn parse(stdout: &str) -> Option<Self> {
        answers(stdout).next_back()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_the_time_and_no_password() {
        let text = renew(SystemTime::UNIX_EPOCH + Duration::from_millis(1234), Some("packer"));
        assert!(text.starts_with("$Now = 1234\n$MostLate = 600000\n$MostWrong = 5000\n$User = 'packer'\n"));
        assert!(renew(SystemTime::UNIX_EPOCH, None).contains("$User = ''\n"));
        let old = Passwords { own: "canary 1", administrator: "canary 2" };
        let given = secrets(old, Passwords { own: "canary 3", administrator: "canary 4" });
        assert_eq!(given.lines().count(), 4);
        assert!(!given.contains("canary") && !format!("{old:?}").contains("canary"));
    }

    #[test]
    fn answers_are_read() {
        let said = "kiln:{\"kind\":\"renew\",\"done\":true,\"movedMs\":-5,\"password\":\"reset\",\"notes\":[\"n\"],\"error\":null}";
        let renewed = Renewed::parse(said).unwrap();
        assert_eq!((renewed.moved_ms, renewed.password), (-5, PasswordState::Reset));
        assert_eq!(Renewed::parse("kiln:{\"password\":\"other\"}"), None);
    }
}

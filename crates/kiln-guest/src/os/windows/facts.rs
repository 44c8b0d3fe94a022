//! Questions to a running Windows, and small acts: which boot it is, what it has, flush, extend C:.
//!
//! Every text answers in one line; what it says is the guest's word.

use serde::{Deserialize, Serialize};

use super::text::{answers, fill};

/// The text whose answer is a [`BootId`].
pub fn boot_id() -> String {
    fill(include_str!("boot_id.ps1"), &[])
}

/// The text that writes out the registry and every volume, to be run right before the disk is frozen.
/// Exit code 0, or 1 with `problems` in the answer ([`Flushed`]): a disk frozen then lacks what the guest had just
/// written.
pub fn flush() -> String {
    fill(include_str!("flush.ps1"), &[])
}

/// What was written out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Flushed {
    /// Letters.
    pub volumes: Vec<String>,
    pub problems: Vec<String>,
}

impl Flushed {
    /// The answer of [`flush`].
    pub fn parse(stdout: &str) -> Option<Self> {
        answers(stdout).next_back()
    }
}

/// The text whose answer is a [`WindowsFacts`].
pub fn facts() -> String {
    fill(include_str!("facts.ps1"), &[])
}

/// The text that extends C: over the room behind it; its answer is an [`Extended`]. Always ends with 0.
pub fn extend() -> String {
    fill(include_str!("extend.ps1"), &[])
}

/// What tells one boot of a Windows from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct BootId {
    /// The kernel's own count of boots, where Windows keeps it.
    counter: Option<i64>,
    /// `LastBootUpTime`: UTC, units of 100 ns since year 1. Moves when the clock is set.
    ticks: i64,
    /// Milliseconds since the boot. No clock moves it.
    #[serde(rename = "uptimeMs")]
    uptime_ms: i64,
}

impl BootId {
    /// Setting the clock moves `LastBootUpTime` as much; a boot moves it by more than this.
    const CLOCK_TOLERANCE_TICKS: u64 = 10 * 10_000_000;

    /// The answer of [`boot_id`].
    pub fn parse(stdout: &str) -> Option<Self> {
        answers(stdout).next_back()
    }

    /// Whether there was a boot between `before` and this answer.
    ///
    /// The kernel's counter decides where both have it. Elsewhere a shorter uptime proves a boot, and so does a boot
    /// time that differs by more than a small correction of the clock. Limit: without the counter, a clock that is
    /// set by more than 10 s between the two answers looks like a boot.
    pub fn is_another_than(&self, before: &Self) -> bool {
        match (self.counter, before.counter) {
            (Some(now), Some(then)) => now != then,
            _ => {
                self.uptime_ms < before.uptime_ms
                    || self.ticks.abs_diff(before.ticks) > Self::CLOCK_TOLERANCE_TICKS
            }
        }
    }
}

/// What a Windows is and has. What it could not say is `None`; why, is in `unread`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WindowsFacts {
    /// For instance `Microsoft Windows Server 2022 Datacenter`.
    pub name: Option<String>,
    /// For instance `10.0.20348`.
    pub version: Option<String>,
    /// The fourth number of the version.
    pub revision: Option<i64>,
    /// `EditionID`, for instance `ServerDatacenter`.
    pub edition: Option<String>,
    /// `InstallationType`: `Client`, `Server`, `Server Core`.
    pub kind_of: Option<String>,
    /// For instance `AMD64`.
    pub arch: Option<String>,
    pub powershell: Option<String>,
    pub computer: Option<String>,
    /// Bytes free on the system volume.
    pub free_bytes: Option<i64>,
    pub image_state: Option<String>,
    /// How often this installation can still be generalized.
    pub rearms_left: Option<i64>,
    /// What asks for a restart.
    pub pending_restart: Vec<String>,
    pub unread: Vec<String>,
}

impl WindowsFacts {
    /// The answer of [`facts`].
    pub fn parse(stdout: &str) -> Option<Self> {
        answers(stdout).next_back()
    }
}

/// What became of the system volume.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Extended {
    pub extended: bool,
    /// Bytes.
    pub before: Option<i64>,
    pub after: Option<i64>,
    /// Why it was not extended.
    pub reason: Option<String>,
}

impl Extended {
    /// The answer of [`extend`].
    pub fn parse(stdout: &str) -> Option<Self> {
        answers(stdout).next_back()
    }

    /// The line for the log.
    pub fn line(&self) -> String {
        const MIB: i64 = 1024 * 1024;
        let mib = |bytes: Option<i64>| bytes.map_or("?".to_owned(), |bytes| (bytes / MIB).to_string());
        if self.extended {
            format!("C: was extended from {} MiB to {} MiB", mib(self.before), mib(self.after))
        } else {
            let reason = self.reason.as_deref().unwrap_or("no reason given");
            format!("C: was not extended and has {} MiB: {reason}", mib(self.after))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(counter: Option<i64>, seconds: i64, uptime_ms: i64) -> BootId {
        BootId { counter, ticks: seconds * 10_000_000, uptime_ms }
    }

    #[test]
    fn the_counter_decides_where_there_is_one() {
        let before = boot(Some(4), 1000, 50_000);
        assert!(!boot(Some(4), 9000, 60_000).is_another_than(&before), "the clock was set");
        assert!(boot(Some(5), 1000, 60_000).is_another_than(&before));
    }

    #[test]
    fn without_a_counter_uptime_or_boot_time_prove_a_boot() {
        let before = boot(None, 1000, 50_000);
        assert!(!boot(None, 1002, 51_000).is_another_than(&before), "a small correction of the clock");
        assert!(boot(None, 1002, 20_000).is_another_than(&before));
        assert!(boot(None, 1100, 70_000).is_another_than(&before));
        assert!(boot(Some(1), 900, 70_000).is_another_than(&before));
    }

    #[test]
    fn answers_are_read() {
        let id = BootId::parse("x\nkiln:{\"kind\":\"boot\",\"counter\":null,\"ticks\":7,\"uptimeMs\":9}\r\n");
        assert_eq!(id, Some(BootId { counter: None, ticks: 7, uptime_ms: 9 }));
        let said = "kiln:{\"extended\":false,\"before\":1048576,\"after\":1048576,\"reason\":\"no room\",\"kind\":\"extend\"}";
        assert_eq!(Extended::parse(said).unwrap().line(), "C: was not extended and has 1 MiB: no room");
        assert_eq!(WindowsFacts::parse("nothing"), None);
    }
}

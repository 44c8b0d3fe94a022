//! Processes that are not our children.
//!
//! A number alone does not name a process: it may be given to another one as soon as the first is gone. A
//! [`ProcessMark`] adds the boot and the moment of the start, which no two processes share; a [`Process`] is made
//! of it and holds a pidfd, which means that process for ever.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What tells one process of a host from every other, living or dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessMark {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    pub pid: u32,
    /// When it started, in clock ticks since the boot (proc_pid_stat(5), `starttime`).
    pub start_ticks: u64,
}

impl ProcessMark {
    /// Of this process.
    pub fn own() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// Of whatever process has the number `pid` now.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { boot_id: boot_id()?, pid, start_ticks: start_ticks(pid)? })
    }
}

/// A living process, or one that has ended; dropping it does nothing to it.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    fd: AsyncFd<OwnedFd>,
}

impl Process {
    /// The marked process; `None` where it has ended. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The kernel, or a sandbox around us, does not let us look: nothing is known about it then.
    pub fn open(mark: &ProcessMark) -> io::Result<Option<Self>> {
        if mark.boot_id != boot_id()? {
            return Ok(None);
        }
        let Some(pid) = Pid::from_raw(mark.pid.cast_signed()) else { return Ok(None) };
        let fd = match rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Asked after the pidfd was made: whoever has the number and this start now, had it before, too.
        match start_ticks(mark.pid) {
            Ok(ticks) if ticks == mark.start_ticks => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !exists(pid) => return Ok(None),
            Err(error) => return Err(error),
        }
        #[expect(
            deprecated,
            reason = "its successor is unsafe for types that may lend a foreign fd; ours owns one"
        )]
        let fd = AsyncFd::with_interest(fd, Interest::READABLE)?;
        Ok(Some(Self { pid: mark.pid, fd }))
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for its end. Dropping the future loses nothing. How it ended is known to its parent only.
    pub async fn ended(&self) -> io::Result<()> {
        // Readable from its end on, for ever (pidfd_open(2)).
        self.fd.readable().await.map(|mut ready| ready.retain_ready())
    }

    /// `SIGKILL`. Nothing happens when it has ended.
    pub fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.fd, Signal::KILL);
    }
}

/// `/proc` may hide processes of others (`hidepid`); a signal's permission check tells them from absent ones.
fn exists(pid: Pid) -> bool {
    !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH))
}

fn boot_id() -> io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned())
}

fn start_ticks(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The program's name, field 2, is in parentheses and may hold anything; `starttime` is field 22.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name.split_whitespace().nth(19).and_then(|ticks| ticks.parse().ok()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat is not understood"))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::process::{Invocation, SpawnOptions};

    const SOON: Duration = Duration::from_secs(10);

    fn sleeper() -> crate::process::Child {
        Invocation::new("sleep").arg("60").spawn_session(SpawnOptions::default()).unwrap()
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_told_and_it_can_be_killed() {
        let child = sleeper();
        let process = Process::open(&ProcessMark::of(child.pid()).unwrap()).unwrap().unwrap();
        let waiting = tokio::time::timeout(Duration::from_millis(50), process.ended()).await;
        assert!(waiting.is_err(), "it lives, and yet: {waiting:?}");
        process.kill();
        tokio::time::timeout(SOON, process.ended()).await.unwrap().unwrap();
        tokio::time::timeout(SOON, process.ended()).await.unwrap().unwrap();
        child.wait().await.unwrap();
        process.kill();
    }

    #[tokio::test]
    async fn another_process_of_the_same_number_is_not_taken_for_it() {
        let child = sleeper();
        let mark = ProcessMark::of(child.pid()).unwrap();
        let earlier = ProcessMark { start_ticks: mark.start_ticks - 1, ..mark.clone() };
        assert!(Process::open(&earlier).unwrap().is_none());
        let other_boot = ProcessMark { boot_id: "6f0c0d9e".into(), ..mark.clone() };
        assert!(Process::open(&other_boot).unwrap().is_none());
        child.kill_group();
        child.wait().await.unwrap();
        assert!(Process::open(&mark).unwrap().is_none(), "it is gone");
    }
}

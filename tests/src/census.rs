//! Which processes a run has: by what their command lines say, in /proc.

use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// A process as /proc shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    /// Words joined by blanks.
    pub command: String,
}

impl Process {
    pub fn kill(&self) {
        kill_process(Pid::from_raw(self.pid).unwrap(), Signal::KILL).unwrap();
    }
}

/// Every process whose command line names `folder`, zombies left out. A run's worker
/// and its machine both name their run directory there.
pub fn naming(folder: &Path) -> Vec<Process> {
    let needle = folder.display().to_string();
    all().into_iter().filter(|process| process.command.contains(&needle)).collect()
}

/// The machine among them.
pub fn qemu_of(folder: &Path) -> Option<Process> {
    naming(folder).into_iter().find(|process| {
        process.command.split(' ').next().is_some_and(|program| program.contains("qemu-system"))
    })
}

fn all() -> Vec<Process> {
    let own = i32::try_from(std::process::id()).unwrap();
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            // Gone in the meantime, or a kernel thread: no command line.
            let command = std::fs::read(entry.path().join("cmdline")).ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
            let (state, parent) = (fields.next()?, fields.next()?.parse().ok()?);
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            (pid != own && state != "Z" && !command.is_empty()).then_some(Process { pid, parent, command })
        })
        .collect()
}

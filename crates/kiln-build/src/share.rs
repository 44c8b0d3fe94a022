//! A build's share of the host's memory: all builds of a user on one host promise their guests no more than there is.
//!
//! ```text
//!   RUNTIME/memory/gate              held for the moment in which somebody looks or changes something
//!   RUNTIME/memory/builds/<ticket>   one a build: what it needs, and whether it has it; locked while its worker lives
//!
//!   take(need) ─► a ticket, the next number ─► first among those who wait, and it fits ─► Share ── drop: it is free
//!                                          └─► told how things stand; looks again when a file in `builds` changes
//! ```
//! Each worker takes its share itself, whoever started it: a command, or a server, which has a queue of its own before
//! this one. What counts is what was promised to machines, not what the host has free at the moment: a guest takes its
//! memory bit by bit, so the moment says little.
//!
//! Who came first is served first, and nobody passes: so a large one gets its room. A worker that died, however it
//! died, holds no lock any more: its ticket is removed by the next who looks.
//!
//! INVARIANT: tickets are made, counted and, where they are another's, removed under the gate only. A build removes its
//! own without it: its number is its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_host::lock::{FileLock, LockError, is_held};
use kiln_host::wait::{Control, Interrupted};
use serde::{Deserialize, Serialize};

use crate::context::Run;
use crate::error::BuildError;
use crate::journal::Step;
use crate::watch::FolderWatch;

/// For QEMU itself and the worker, beside the guest's memory, MiB.
pub const OVERHEAD_MIB: u64 = 256;
/// The newest format of a ticket.
const TICKET_FORMAT: u32 = 1;
/// The kernel reports a closed file a moment before it gives up the lock of a process that was killed: whoever looked in
/// that moment looks again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// MiB that all guests of this host together may have: its memory less a tenth, and less 512 MiB at least, for
/// everything else.
///
/// # Errors
/// The kernel does not say how much memory there is.
pub fn budget_of_host() -> io::Result<u64> {
    let memory = kiln_host::space::memory_total_mib()?;
    Ok(memory.saturating_sub((memory / 10).max(512)))
}

/// MiB that one guest may be given at most: what is free now and what other builds were promised, within `budget_mib`
/// and less QEMU's own need. So it does not depend on how many builds run.
///
/// # Errors
/// The kernel does not say how much memory is free.
pub fn largest_guest_mib(runtime_dir: &Path, budget_mib: u64) -> io::Result<u64> {
    let free = kiln_host::space::memory_available_mib()?;
    // Who has never built has promised nothing.
    let promised = promised(&Places::below(runtime_dir).builds).unwrap_or(0);
    Ok(free.saturating_add(promised).min(budget_mib).saturating_sub(OVERHEAD_MIB))
}

/// Why a build has no share.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    #[error(
        "the guest needs {need_mib} MiB ({OVERHEAD_MIB} of them for QEMU itself), and all builds on this host together \
         may use {budget_mib} MiB: choose a smaller vmSize, or allow more (KILN_MEMORY; of a server runs.memoryMiB)"
    )]
    TooLarge { need_mib: u64, budget_mib: u64 },
    #[error("could not {act} {}", path.display())]
    Io { act: &'static str, path: PathBuf, source: io::Error },
    #[error("could not look at what other builds use")]
    Gate(#[from] LockError),
    #[error("the wait for it was interrupted")]
    Interrupted(#[from] Interrupted),
}

impl ShareError {
    fn io(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { act, path: path.to_owned(), source }
    }
}

/// How things stand for a build that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    pub need_mib: u64,
    pub free_mib: u64,
    pub budget_mib: u64,
    /// Builds that have their share.
    pub running: usize,
    /// Builds that wait, and came before.
    pub before: usize,
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { need_mib, free_mib, budget_mib, running, before } = self;
        let builds = if *running == 1 { "1 build runs" } else { &format!("{running} builds run") };
        write!(f, "{need_mib} MiB needed, {free_mib} of {budget_mib} MiB free, {builds}")?;
        match before {
            0 => Ok(()),
            1 => write!(f, ", 1 waits before it"),
            _ => write!(f, ", {before} wait before it"),
        }
    }
}

/// Where builds of this host tell each other what they use.
#[derive(Debug, Clone)]
pub struct Shares {
    places: Places,
    budget_mib: u64,
}

#[derive(Debug, Clone)]
struct Places {
    gate: PathBuf,
    builds: PathBuf,
}

impl Places {
    fn below(runtime_dir: &Path) -> Self {
        let folder = runtime_dir.join("memory");
        Self { gate: folder.join("gate"), builds: folder.join("builds") }
    }
}

/// What a build was promised; free again when it is dropped, or its process is gone.
#[derive(Debug)]
pub struct Share {
    path: PathBuf,
    number: u64,
    ticket: Ticket,
    /// Held as long as the share is.
    _lock: FileLock,
}

impl Drop for Share {
    fn drop(&mut self) {
        // The name first, and then the lock: whoever looks meanwhile finds no such build.
        let _ = fs::remove_file(&self.path);
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Ticket {
    format: u32,
    /// For people who look at the file.
    run: String,
    memory_mib: u64,
    running: bool,
}

impl Shares {
    /// `runtime_dir` is of this host and this user. The budget is the caller's own: others may have another one.
    pub fn open(runtime_dir: &Path, budget_mib: u64) -> Result<Self, ShareError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let places = Places::below(runtime_dir);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&places.builds)
            .map_err(ShareError::io("create", &places.builds))?;
        Ok(Self { places, budget_mib })
    }

    /// Takes `need_mib`, when it is this one's turn and there is room; `told` hears how things stand while it waits.
    ///
    /// # Errors
    /// It would never fit; or the control ended the wait.
    pub async fn take(
        &self,
        run: &str,
        need_mib: u64,
        mut told: impl FnMut(Standing),
        control: &Control,
    ) -> Result<Share, ShareError> {
        let budget_mib = self.budget_mib;
        if need_mib > budget_mib {
            return Err(ShareError::TooLarge { need_mib, budget_mib });
        }
        let mut share = self.enter(run, need_mib, control).await?;
        if self.has_its_turn(&mut share, control).await?.is_ok() {
            return Ok(share);
        }
        // Watch first, then look: what changes in between is not missed.
        let mut watch =
            FolderWatch::new(&self.places.builds).map_err(ShareError::io("watch", &self.places.builds))?;
        while let Err(standing) = self.has_its_turn(&mut share, control).await? {
            told(standing);
            tokio::select! {
                changed = watch.changed() => changed.map_err(ShareError::io("watch", &self.places.builds))?,
                slept = control.sleep(LOOK_AGAIN) => slept?,
            }
        }
        Ok(share)
    }

    /// The last place among those who wait.
    async fn enter(&self, run: &str, memory_mib: u64, control: &Control) -> Result<Share, ShareError> {
        let _gate = FileLock::exclusive(&self.places.gate, control).await?;
        let builds = &self.places.builds;
        let last =
            living(builds).map_err(ShareError::io("read", builds))?.pop().map_or(0, |last| last.number);
        let number = last + 1;
        let path = builds.join(format!("{number:08}"));
        let lock = FileLock::try_exclusive(&path).map_err(ShareError::io("lock", &path))?;
        let lock = lock.ok_or_else(|| {
            ShareError::io("lock", &path)(io::Error::other("another build has it, which should not be"))
        })?;
        let ticket = Ticket { format: TICKET_FORMAT, run: run.to_owned(), memory_mib, running: false };
        let share = Share { path, number, ticket, _lock: lock };
        share.write()?;
        Ok(share)
    }

    /// Lets the build run, if it may; else says how things stand.
    async fn has_its_turn(
        &self,
        share: &mut Share,
        control: &Control,
    ) -> Result<Result<(), Standing>, ShareError> {
        let _gate = FileLock::exclusive(&self.places.gate, control).await?;
        let builds = &self.places.builds;
        let others = living(builds).map_err(ShareError::io("read", builds))?;
        let running = others.iter().filter(|other| other.ticket.running);
        let promised: u64 = running.clone().map(|other| other.ticket.memory_mib).sum();
        let standing = Standing {
            need_mib: share.ticket.memory_mib,
            free_mib: self.budget_mib.saturating_sub(promised),
            budget_mib: self.budget_mib,
            running: running.count(),
            before: others.iter().filter(|o| !o.ticket.running && o.number < share.number).count(),
        };
        if standing.before > 0 || standing.need_mib > standing.free_mib {
            return Ok(Err(standing));
        }
        share.ticket.running = true;
        share.write()?;
        Ok(Ok(()))
    }
}

impl Share {
    /// In place: the lock is on this very file.
    fn write(&self) -> Result<(), ShareError> {
        let bytes = serde_json::to_vec(&self.ticket)
            .map_err(|error| ShareError::io("write", &self.path)(error.into()))?;
        fs::write(&self.path, bytes).map_err(ShareError::io("write", &self.path))
    }
}

/// A ticket whose build lives.
#[derive(Debug)]
struct Living {
    number: u64,
    ticket: Ticket,
}

/// By number. What the dead left is removed: for the holder of the gate.
fn living(builds: &Path) -> io::Result<Vec<Living>> {
    let (living, dead) = tickets(builds)?;
    for path in dead {
        let _ = fs::remove_file(path);
    }
    Ok(living)
}

/// MiB; for whoever only wants to know.
fn promised(builds: &Path) -> io::Result<u64> {
    let (living, _) = tickets(builds)?;
    Ok(living.iter().filter(|other| other.ticket.running).map(|other| other.ticket.memory_mib).sum())
}

fn tickets(builds: &Path) -> io::Result<(Vec<Living>, Vec<PathBuf>)> {
    let (mut living, mut dead) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(builds)? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let Some(number) = number else { continue };
        if !is_held(&path)? {
            dead.push(path);
            continue;
        }
        // Otherwise it has ended at this moment; or, without the gate, it is being written at this moment.
        if let Ok(Ok(ticket)) = fs::read(&path).map(|bytes| serde_json::from_slice(&bytes)) {
            living.push(Living { number, ticket });
        }
    }
    living.sort_by_key(|other| other.number);
    Ok((living, dead))
}

/// The share of a run's guest. The run says that it waits, and for what.
pub(crate) async fn of_run(run: &Run) -> Result<Share, BuildError> {
    let shares =
        Shares::open(&run.settings.runtime_dir, run.settings.memory_mib).map_err(BuildError::Memory)?;
    let need = run.plan.machine.memory_mib + OVERHEAD_MIB;
    let mut waiting: Option<(Step, Standing)> = None;
    let told = |standing: Standing| match &mut waiting {
        None => {
            let step = run.journal.step("memory", format!("wait for memory: {standing}"));
            waiting = Some((step, standing));
        }
        Some((_, said)) if *said == standing => {}
        Some((_, said)) => {
            *said = standing;
            run.journal.info(format!("still waiting for memory: {standing}"));
        }
    };
    let share = shares.take(run.request.run_id.as_str(), need, told, &run.control).await;
    let share = share.map_err(BuildError::Memory)?;
    if let Some((step, _)) = waiting {
        step.succeed("");
    }
    Ok(share)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    use kiln_host::process::{Invocation, Sink, SpawnOptions};

    use super::*;

    fn soon() -> Control {
        Control::ending_in(Duration::from_secs(60))
    }

    fn shares(dir: &Path, budget_mib: u64) -> Shares {
        Shares::open(dir, budget_mib).unwrap()
    }

    async fn take(shares: &Shares, need_mib: u64) -> Share {
        shares.take("run", need_mib, |_| {}, &soon()).await.unwrap()
    }

    /// Waits until so many builds have a ticket.
    async fn until_entered(shares: &Shares, count: usize) {
        let mut watch = FolderWatch::new(&shares.places.builds).unwrap();
        let entered = async {
            while tickets(&shares.places.builds).unwrap().0.len() < count {
                watch.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(20), entered).await.unwrap();
    }

    #[tokio::test]
    async fn who_fits_waits_for_nothing_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let shares = shares(dir.path(), 8);
        let told = |standing| panic!("it had to wait: {standing}");
        let one = shares.take("one", 4, told, &soon()).await.unwrap();
        let two = shares.take("two", 4, told, &soon()).await.unwrap();
        assert_eq!(promised(&shares.places.builds).unwrap(), 8);
        drop((one, two));
        assert_eq!(promised(&shares.places.builds).unwrap(), 0);
        assert_eq!(fs::read_dir(&shares.places.builds).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_can_never_fit_is_refused_with_both_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let refused = shares(dir.path(), 8).take("run", 9, |_| {}, &soon()).await.unwrap_err().to_string();
        assert!(refused.contains("needs 9 MiB") && refused.contains("may use 8 MiB"), "{refused}");
        assert!(refused.contains("KILN_MEMORY") && refused.contains("vmSize"), "{refused}");
    }

    #[tokio::test]
    async fn who_waits_is_told_and_goes_on_when_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let shares = shares(dir.path(), 8);
        let first = take(&shares, 6).await;
        let mut heard = Vec::new();
        let control = soon();
        let waiting = shares.take("second", 4, |standing| heard.push(standing.to_string()), &control);
        let ending = async {
            until_entered(&shares, 2).await;
            drop(first);
        };
        let began = std::time::Instant::now();
        let (second, ()) = tokio::join!(waiting, ending);
        second.unwrap();
        assert_eq!(heard[0], "4 MiB needed, 2 of 8 MiB free, 1 build runs");
        assert!(began.elapsed() < Duration::from_secs(10), "it was told of the end");
    }

    #[tokio::test]
    async fn a_wait_ends_by_cancel_and_by_the_deadline_and_leaves_the_queue() {
        let dir = tempfile::tempdir().unwrap();
        let shares = shares(dir.path(), 8);
        let _first = take(&shares, 6).await;
        let near = Control::ending_in(Duration::from_millis(100));
        let error = BuildError::Memory(shares.take("late", 4, |_| {}, &near).await.unwrap_err());
        assert_eq!(error.interrupted(), Some(Interrupted::DeadlinePassed), "{error}");
        let canceled = soon();
        let waiting = shares.take("canceled", 4, |_| canceled.cancel(), &canceled);
        let error = BuildError::Memory(waiting.await.unwrap_err());
        assert_eq!(error.interrupted(), Some(Interrupted::Canceled), "{error}");
        assert_eq!(tickets(&shares.places.builds).unwrap().0.len(), 1, "only the first is there");
        take(&shares, 2).await;
    }

    /// A small one that would fit does not pass a large one that came before.
    #[tokio::test]
    async fn a_large_one_is_not_passed() {
        let dir = tempfile::tempdir().unwrap();
        let shares = shares(dir.path(), 8);
        let first = take(&shares, 4).await;
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let start = |need: u64| {
            let (shares, order) = (shares.clone(), Arc::clone(&order));
            tokio::spawn(async move {
                let share = take(&shares, need).await;
                order.lock().unwrap().push(need);
                share
            })
        };
        let large = start(8);
        until_entered(&shares, 2).await;
        let small = start(1);
        until_entered(&shares, 3).await;
        // That nothing happens has no event: long enough for the small one to have passed, were it to.
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(*order.lock().unwrap(), Vec::<u64>::new(), "the large one is next");
        drop(first);
        drop(large.await.unwrap());
        drop(small.await.unwrap());
        assert_eq!(*order.lock().unwrap(), [8, 1]);
    }

    /// Whatever comes and goes, no more than the budget is promised at once, and everybody gets a share.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn the_budget_holds_and_nobody_starves() {
        const BUDGET: u64 = 10;
        let dir = tempfile::tempdir().unwrap();
        let (used, most, done) = (AtomicU64::new(0), AtomicU64::new(0), AtomicUsize::new(0));
        let counts = Arc::new((used, most, done));
        // Fixed, and yet of every size in every order.
        let needs = (0..40_u64).map(|number| 1 + (number * 7 + number / 3) % BUDGET);
        let tasks: Vec<_> = needs
            .map(|need| {
                let (shares, counts) = (shares(dir.path(), BUDGET), Arc::clone(&counts));
                tokio::spawn(async move {
                    let share = take(&shares, need).await;
                    let (used, most, done) = &*counts;
                    most.fetch_max(used.fetch_add(need, Ordering::SeqCst) + need, Ordering::SeqCst);
                    // A build's work: shares overlap, or the test would show nothing.
                    tokio::time::sleep(Duration::from_millis(need)).await;
                    used.fetch_sub(need, Ordering::SeqCst);
                    done.fetch_add(1, Ordering::SeqCst);
                    drop(share);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(counts.2.load(Ordering::SeqCst), 40);
        let most = counts.1.load(Ordering::SeqCst);
        assert!(most <= BUDGET && most > BUDGET / 2, "{most}");
        assert_eq!(fs::read_dir(Places::below(dir.path()).builds).unwrap().count(), 0);
    }

    /// A process that is killed gives back what it had.
    #[tokio::test]
    async fn a_killed_holder_has_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let shares = shares(dir.path(), 8);
        let path = shares.places.builds.join("00000001");
        let ticket = Ticket { format: TICKET_FORMAT, run: "dies".into(), memory_mib: 8, running: true };
        fs::write(&path, serde_json::to_vec(&ticket).unwrap()).unwrap();
        let holder = Invocation::new("flock").arg(&path).args(["sh", "-c", "echo held; sleep 60"]);
        let mut holder =
            holder.spawn(SpawnOptions { stdout: Sink::Pipe, ..SpawnOptions::default() }).unwrap();
        io::Read::read_exact(&mut holder.take_stdout().unwrap(), &mut [0; 5]).unwrap();
        assert_eq!(promised(&shares.places.builds).unwrap(), 8);

        let mut told = 0;
        let control = soon();
        let waiting = shares.take("next", 8, |_| told += 1, &control);
        let killing = async {
            until_entered(&shares, 2).await;
            holder.kill_group();
            holder.wait().await.unwrap();
        };
        let (share, _) = tokio::join!(waiting, killing);
        share.unwrap();
        assert!(told > 0 && !path.exists(), "its ticket is gone");
    }

    #[test]
    fn a_guest_is_no_larger_than_the_budget() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(largest_guest_mib(dir.path(), OVERHEAD_MIB + 64).unwrap(), 64);
        assert_eq!(largest_guest_mib(dir.path(), 1).unwrap(), 0);
        assert!(!dir.path().join("memory").exists(), "asking makes nothing");
        let all = largest_guest_mib(dir.path(), u64::MAX).unwrap();
        assert!(all < kiln_host::space::memory_total_mib().unwrap(), "{all}");
    }
}

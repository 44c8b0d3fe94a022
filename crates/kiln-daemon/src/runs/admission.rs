//! Admission: which of the waiting runs may use the host now.
//!
//! The rule: the oldest run that fits what is free goes first. A run that does not fit is passed
//! by smaller ones behind it, but [`PASSED_AT_MOST`] times; from then on nobody goes before it, so
//! what runs ends, and it gets its room. A run larger than the whole budget is refused at once.
//!
//! ```text
//!  enter() ─► Place ── want(need) ─► admitted().await ── runs ── drop: room for the next
//!               └ dropped before: it leaves the queue
//! ```
//! What counts is what machines are given (plus QEMU's own need), not what the host has free at
//! the moment: a guest takes its memory bit by bit, so the moment says little.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(super) use kiln_build::share::OVERHEAD_MIB;
use tokio::sync::oneshot;

/// How often smaller runs may go before a larger one that has waited longer.
const PASSED_AT_MOST: u32 = 4;

/// What all runs together may use of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostBudget {
    pub memory_mib: u64,
    pub cpus: u32,
}

impl HostBudget {
    /// All processors; the memory less a tenth, and less 512 MiB at least, for everything else.
    ///
    /// # Errors
    /// The kernel does not say how much memory there is.
    pub fn of_host() -> std::io::Result<Self> {
        Ok(Self { memory_mib: kiln_build::share::budget_of_host()?, cpus: kiln_host::space::cpus() })
    }
}

/// What one run uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Need {
    pub memory_mib: u64,
    pub cpus: u32,
}

/// A run that no amount of waiting would admit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the run needs {} MiB of memory ({OVERHEAD_MIB} of them for QEMU itself) and {} CPUs; all runs together may use \
     {} MiB and {} CPUs of this host: choose a smaller vmSize, or allow more (runs.memoryMiB, runs.cpus)",
    .need.memory_mib, .need.cpus, .budget.memory_mib, .budget.cpus
)]
pub(super) struct TooLarge {
    need: Need,
    budget: HostBudget,
}

/// The queue of one host. Clones share it.
#[derive(Clone)]
pub(super) struct Admission {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    queue: Queue,
    grants: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A run's place in the queue and, once admitted, its share of the host.
pub(super) struct Place {
    admission: Admission,
    number: u64,
    granted: Option<oneshot::Receiver<()>>,
}

impl Admission {
    pub fn new(budget: HostBudget) -> Self {
        let queue = Queue {
            budget,
            used: Need::default(),
            next: 0,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
        };
        Self { inner: Arc::new(Mutex::new(Inner { queue, grants: BTreeMap::new() })) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last place in the queue.
    pub fn enter(&self) -> Place {
        let mut inner = self.lock();
        let number = inner.queue.enter();
        let (grant, granted) = oneshot::channel();
        inner.grants.insert(number, grant);
        Place { admission: self.clone(), number, granted: Some(granted) }
    }

    pub fn budget(&self) -> HostBudget {
        self.lock().queue.budget
    }

    /// Waiting, running, and what the running ones use.
    pub fn counts(&self) -> (usize, usize, Need) {
        let queue = &self.lock().queue;
        (queue.waiting.len(), queue.running.len(), queue.used)
    }
}

impl Inner {
    fn grant(&mut self) {
        while let Some(number) = self.queue.next() {
            if let Some(grant) = self.grants.remove(&number) {
                // A place that is being dropped does not listen any more; it gives its share back.
                let _ = grant.send(());
            }
        }
    }
}

impl Place {
    /// Says what the run needs; from here on it may be admitted.
    pub fn want(&self, need: Need) -> Result<(), TooLarge> {
        let mut inner = self.admission.lock();
        inner.queue.want(self.number, need)?;
        inner.grant();
        Ok(())
    }

    /// Waits until the host has room. Dropping the future loses nothing.
    pub async fn admitted(&mut self) {
        if let Some(granted) = &mut self.granted {
            // The sender is only dropped after it sent.
            let _ = granted.await;
            self.granted = None;
        }
    }

    /// Takes the share of a run that runs already, whether there is room or not.
    pub fn occupy(&mut self, need: Need) {
        let mut inner = self.admission.lock();
        inner.queue.occupy(self.number, need);
        inner.grants.remove(&self.number);
        self.granted = None;
        inner.grant();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.admission.lock();
        inner.queue.leave(self.number);
        inner.grants.remove(&self.number);
        inner.grant();
    }
}

/// The rule itself.
#[derive(Debug)]
struct Queue {
    budget: HostBudget,
    used: Need,
    next: u64,
    /// By number: the order in which they came.
    waiting: BTreeMap<u64, Waiting>,
    running: BTreeMap<u64, Need>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Not known until the run is planned, in a moment; nobody passes meanwhile.
    need: Option<Need>,
    passed: u32,
}

impl Queue {
    fn enter(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        self.waiting.insert(number, Waiting::default());
        number
    }

    fn want(&mut self, number: u64, need: Need) -> Result<(), TooLarge> {
        if need.memory_mib > self.budget.memory_mib || need.cpus > self.budget.cpus {
            return Err(TooLarge { need, budget: self.budget });
        }
        if let Some(waiting) = self.waiting.get_mut(&number) {
            waiting.need = Some(need);
        }
        Ok(())
    }

    fn fits(&self, need: Need) -> bool {
        self.used.memory_mib + need.memory_mib <= self.budget.memory_mib
            && self.used.cpus + need.cpus <= self.budget.cpus
    }

    /// Admits one, if one may be.
    fn next(&mut self) -> Option<u64> {
        let mut chosen = None;
        for (number, waiting) in &self.waiting {
            match waiting.need {
                None => break,
                Some(need) if self.fits(need) => {
                    chosen = Some((*number, need));
                    break;
                }
                Some(_) if waiting.passed >= PASSED_AT_MOST => break,
                Some(_) => {}
            }
        }
        let (number, need) = chosen?;
        for (_, passed) in self.waiting.range_mut(..number) {
            passed.passed += 1;
        }
        self.occupy(number, need);
        Some(number)
    }

    fn occupy(&mut self, number: u64, need: Need) {
        self.leave(number);
        self.running.insert(number, need);
        self.used.memory_mib += need.memory_mib;
        self.used.cpus += need.cpus;
    }

    fn leave(&mut self, number: u64) {
        self.waiting.remove(&number);
        if let Some(need) = self.running.remove(&number) {
            self.used.memory_mib -= need.memory_mib;
            self.used.cpus -= need.cpus;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BUDGET: HostBudget = HostBudget { memory_mib: 8, cpus: 4 };

    fn queue() -> Queue {
        Queue {
            budget: BUDGET,
            used: Need::default(),
            next: 0,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
        }
    }

    fn enter(queue: &mut Queue, memory_mib: u64) -> u64 {
        let number = queue.enter();
        queue.want(number, Need { memory_mib, cpus: 1 }).unwrap();
        number
    }

    #[test]
    fn who_came_first_goes_first() {
        let mut queue = queue();
        let runs: Vec<u64> = (0..3).map(|_| enter(&mut queue, 4)).collect();
        assert_eq!((queue.next(), queue.next(), queue.next()), (Some(runs[0]), Some(runs[1]), None));
        queue.leave(runs[1]);
        assert_eq!(queue.next(), Some(runs[2]));
    }

    #[test]
    fn cpus_count_as_memory_does() {
        let mut queue = queue();
        let wide = queue.enter();
        queue.want(wide, Need { memory_mib: 1, cpus: 4 }).unwrap();
        let narrow = enter(&mut queue, 1);
        assert_eq!((queue.next(), queue.next()), (Some(wide), None));
        queue.leave(wide);
        assert_eq!(queue.next(), Some(narrow));
    }

    #[test]
    fn a_large_run_is_passed_a_few_times_and_not_for_ever() {
        let mut queue = queue();
        let first = enter(&mut queue, 4);
        assert_eq!(queue.next(), Some(first));
        let large = enter(&mut queue, 8);
        for _ in 0..PASSED_AT_MOST {
            let small = enter(&mut queue, 1);
            assert_eq!(queue.next(), Some(small));
            queue.leave(small);
        }
        let late = enter(&mut queue, 1);
        assert_eq!(queue.next(), None, "the large one is next");
        queue.leave(first);
        assert_eq!(queue.next(), Some(large));
        queue.leave(large);
        assert_eq!(queue.next(), Some(late));
    }

    #[test]
    fn nobody_passes_one_whose_need_is_not_known_yet() {
        let mut queue = queue();
        let unknown = queue.enter();
        let known = enter(&mut queue, 1);
        assert_eq!(queue.next(), None);
        queue.leave(unknown);
        assert_eq!(queue.next(), Some(known));
    }

    #[test]
    fn what_can_never_fit_is_refused_with_both_numbers() {
        let mut queue = queue();
        let number = queue.enter();
        let error = queue.want(number, Need { memory_mib: 9, cpus: 1 }).unwrap_err().to_string();
        assert!(error.contains("needs 9 MiB") && error.contains("may use 8 MiB"), "{error}");
        queue.want(number, Need { memory_mib: 1, cpus: 5 }).unwrap_err();
    }

    #[tokio::test]
    async fn a_place_that_is_dropped_makes_room() {
        let admission = Admission::new(BUDGET);
        let mut first = admission.enter();
        let mut second = admission.enter();
        let mut third = admission.enter();
        for place in [&first, &second, &third] {
            place.want(Need { memory_mib: 8, cpus: 1 }).unwrap();
        }
        first.admitted().await;
        let early = tokio::time::timeout(std::time::Duration::from_millis(20), second.admitted()).await;
        assert!(early.is_err());
        drop(second);
        drop(first);
        third.admitted().await;
        assert_eq!(admission.counts(), (0, 1, Need { memory_mib: 8, cpus: 1 }));
        // A run that was found running counts, even past the budget.
        let mut found = admission.enter();
        found.occupy(Need { memory_mib: 8, cpus: 1 });
        assert_eq!(admission.counts(), (0, 2, Need { memory_mib: 16, cpus: 2 }));
        drop((found, third));
        assert_eq!(admission.counts(), (0, 0, Need::default()));
    }

    proptest! {
        /// Whatever comes and goes: the budget holds, and in the end everybody was admitted.
        #[test]
        fn nobody_starves_and_nothing_is_given_twice(
            needs in prop::collection::vec((1u64..=8, 1u32..=4), 1..40),
            order in prop::collection::vec(any::<prop::sample::Index>(), 200),
        ) {
            let mut queue = queue();
            let mut running: Vec<u64> = Vec::new();
            let mut admitted = 0;
            let mut waited: BTreeMap<u64, u32> = BTreeMap::new();
            let mut needs_left = needs.iter();
            for pick in &order {
                if let Some((memory_mib, cpus)) = needs_left.next() {
                    let number = queue.enter();
                    queue.want(number, Need { memory_mib: *memory_mib, cpus: *cpus }).unwrap();
                }
                while let Some(number) = queue.next() {
                    admitted += 1;
                    running.push(number);
                    for behind in queue.waiting.keys().filter(|waiting| **waiting < number) {
                        *waited.entry(*behind).or_default() += 1;
                    }
                }
                prop_assert!(queue.used.memory_mib <= BUDGET.memory_mib && queue.used.cpus <= BUDGET.cpus);
                if !running.is_empty() {
                    queue.leave(running.remove(pick.index(running.len())));
                }
            }
            prop_assert_eq!(admitted, needs.len());
            prop_assert!(waited.values().all(|times| *times <= PASSED_AT_MOST), "{:?}", waited);
            prop_assert_eq!(queue.used, Need::default());
        }
    }
}

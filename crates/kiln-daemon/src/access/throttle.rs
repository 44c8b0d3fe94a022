//! A limit on failed sign-ins: by the address they come from, and by the id they name.
//!
//! Each is a bucket that a failure empties by one and time fills again. An attempt takes its share before it is made
//! and gets it back when it was good, so that guesses made side by side are counted, too. Another's failures under an
//! id can keep that id out for a while; its bucket is the larger one.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::IssueError;

/// Failures that may come at once, and how long each takes to be forgotten.
const PER_ADDRESS: Rate = Rate { burst: 20, refill: Duration::from_secs(6) };
const PER_ID: Rate = Rate { burst: 60, refill: Duration::from_secs(3) };
/// Buckets kept of each kind: some hundred KiB. When there are more, full ones go, and then the fullest: those that
/// matter least.
const KEPT: usize = 4096;

#[derive(Clone, Copy)]
struct Rate {
    burst: u32,
    refill: Duration,
}

/// One attempt's share, to be given back when it succeeds.
pub(super) struct Attempt {
    address: Option<IpAddr>,
    id: String,
}

#[derive(Default)]
pub(super) struct Throttle {
    buckets: Mutex<Buckets>,
}

#[derive(Default)]
struct Buckets {
    addresses: Kept<IpAddr>,
    ids: Kept<String>,
}

impl Throttle {
    /// Refuses whoever is over the limit; takes nothing.
    pub(super) fn look(&self, from: Option<IpAddr>, id: &str) -> Result<(), IssueError> {
        self.decide(from, id, Instant::now(), 0)
    }

    pub(super) fn attempt(&self, from: Option<IpAddr>, id: &str) -> Result<Attempt, IssueError> {
        self.decide(from, id, Instant::now(), 1)?;
        Ok(Attempt { address: from.map(network), id: id.to_owned() })
    }

    pub(super) fn succeeded(&self, attempt: Attempt) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(address) = attempt.address {
            buckets.addresses.give_back(&address, PER_ADDRESS);
        }
        buckets.ids.give_back(&attempt.id, PER_ID);
    }

    fn decide(&self, from: Option<IpAddr>, id: &str, now: Instant, take: u32) -> Result<(), IssueError> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let from = from.map(network);
        let by_address = from.map_or(Duration::ZERO, |from| buckets.addresses.wait(&from, PER_ADDRESS, now));
        let wait = by_address.max(buckets.ids.wait(&id.to_owned(), PER_ID, now));
        if !wait.is_zero() {
            return Err(IssueError::Throttled { retry_after: wait.as_secs() + 1 });
        }
        if take > 0 {
            if let Some(from) = from {
                buckets.addresses.take(from, PER_ADDRESS, now);
            }
            buckets.ids.take(id.to_owned(), PER_ID, now);
        }
        Ok(())
    }
}

/// One subscriber has a whole /64 of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(mapped) => IpAddr::V4(mapped),
            None => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        },
    }
}

/// When each bucket will be full again; one that is not here is full.
struct Kept<K>(HashMap<K, Instant>);

impl<K> Default for Kept<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Hash + Eq + Clone> Kept<K> {
    /// How long until one more fits.
    fn wait(&self, key: &K, rate: Rate, now: Instant) -> Duration {
        let Some(full_at) = self.0.get(key) else { return Duration::ZERO };
        (full_at.saturating_duration_since(now) + rate.refill).saturating_sub(rate.refill * rate.burst)
    }

    fn take(&mut self, key: K, rate: Rate, now: Instant) {
        if self.0.len() >= KEPT && !self.0.contains_key(&key) {
            self.0.retain(|_, full_at| *full_at > now);
            if self.0.len() >= KEPT {
                let fullest = self.0.iter().min_by_key(|(_, full_at)| **full_at).map(|(key, _)| key.clone());
                fullest.map(|key| self.0.remove(&key));
            }
        }
        let full_at = self.0.entry(key).or_insert(now);
        *full_at = (*full_at).max(now) + rate.refill;
    }

    fn give_back(&mut self, key: &K, rate: Rate) {
        if let Some(full_at) = self.0.get_mut(key)
            && let Some(earlier) = full_at.checked_sub(rate.refill)
        {
            *full_at = earlier;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn failures_of_an_address_run_out_and_come_back_with_time() {
        let throttle = Throttle::default();
        let now = Instant::now();
        for n in 0..PER_ADDRESS.burst {
            throttle.decide(addr("192.0.2.1"), &format!("id{n}"), now, 1).unwrap();
        }
        let refused = throttle.decide(addr("192.0.2.1"), "another", now, 1).unwrap_err();
        assert_eq!(refused, IssueError::Throttled { retry_after: 7 });
        throttle.decide(addr("192.0.2.2"), "another", now, 1).unwrap();
        let later = now + PER_ADDRESS.refill;
        throttle.decide(addr("192.0.2.1"), "another", later, 1).unwrap();
        throttle.decide(addr("192.0.2.1"), "another", later, 1).unwrap_err();
    }

    #[test]
    fn failures_of_an_id_count_wherever_they_come_from() {
        let throttle = Throttle::default();
        let now = Instant::now();
        for n in 0..PER_ID.burst {
            throttle.decide(addr(&format!("192.0.2.{n}")), "ci", now, 1).unwrap();
        }
        throttle.decide(addr("198.51.100.1"), "ci", now, 1).unwrap_err();
        throttle.decide(None, "ci", now, 1).unwrap_err();
        throttle.decide(addr("198.51.100.1"), "other", now, 1).unwrap();
    }

    #[test]
    fn good_sign_ins_cost_nothing() {
        let throttle = Throttle::default();
        for _ in 0..10 * PER_ID.burst {
            let attempt = throttle.attempt(addr("192.0.2.1"), "ci").unwrap();
            throttle.succeeded(attempt);
        }
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_a_mapped_one_is_ipv4() {
        let throttle = Throttle::default();
        let now = Instant::now();
        for n in 0..PER_ADDRESS.burst {
            throttle.decide(addr(&format!("2001:db8::{n:x}")), &format!("id{n}"), now, 1).unwrap();
        }
        throttle.decide(addr("2001:db8::ffff"), "x", now, 1).unwrap_err();
        throttle.decide(addr("2001:db8:0:1::1"), "x", now, 1).unwrap();
        assert_eq!(network("::ffff:192.0.2.1".parse().unwrap()), "192.0.2.1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn memory_is_bounded_and_the_worst_offender_stays() {
        let mut kept = Kept::default();
        let now = Instant::now();
        for _ in 0..PER_ID.burst {
            kept.take(u32::MAX, PER_ID, now);
        }
        for n in 0..3 * KEPT as u32 {
            kept.take(n, PER_ID, now);
        }
        assert!(kept.0.len() <= KEPT);
        assert!(!kept.wait(&u32::MAX, PER_ID, now).is_zero());
    }
}

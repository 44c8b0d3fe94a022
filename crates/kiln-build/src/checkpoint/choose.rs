//! Where a run begins: as far along as something that was kept still holds. Pure.
//!
//! ```text
//!   finished image ─► machine after customizer n, n-1, … ─► booted machine ─► base image
//! ```
//! What was kept holds when its key is the run's, when no step in it is older than its limit, and when the policy lets
//! it be kept at all. A machine whose memory was kept by another QEMU, or on other hardware, still has its disk, which
//! is booted. What is reused is always said, and so is why it is not more.
//!
//! A run that retries another one goes on where that one failed, however long ago that was: no step grows older than it
//! was when the retried run began. Secrets and what is never to be kept are no matter of age, and stay as they are.

use jiff::Timestamp;
use kiln_library::{CheckpointKind, Manifest, StepInput};
use kiln_model::Sha256;
use kiln_model::policy::{Cache, CachePolicy};

use super::key::{Chain, Link};

/// Where a run begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// With the finished image: no guest is started.
    Image { id: String },
    /// A machine goes on, so many customizers along.
    Warm { id: String, after: usize },
    /// A disk is booted, so many customizers along.
    Cold { id: String, after: usize },
    /// With the base image.
    Base,
}

/// The choice, in words, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub start: Start,
    /// What is reused and how old it is; then what is not, and why. One sentence each.
    pub said: Vec<String>,
}

impl Choice {
    /// What is told before a run, where customizers are reused: what they made at random is no secret of one image alone.
    pub(super) fn caution(&self) -> Option<String> {
        let reused = match self.start {
            Start::Warm { after, .. } | Start::Cold { after, .. } => after > 0,
            Start::Image { .. } => true,
            Start::Base => false,
        };
        let text = "keys and passwords that a reused customizer made are the same in every image that is built on it; \
                    a policy (--policy) has such a customizer run each time";
        reused.then(|| text.to_owned())
    }
}

/// What is known of the run.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub chain: &'a Chain,
    /// The base image's name.
    pub base: &'a str,
    pub policy: &'a CachePolicy,
    /// The portrait of the machine that memory must fit; none: not known yet, so any memory counts.
    pub machine: Option<Sha256>,
    pub now: Timestamp,
    /// When the run that is retried began, where one is: ages count to then.
    pub holds_since: Option<Timestamp>,
}

/// Chooses among what was kept; newest first.
pub fn choose(asked: Asked<'_>, shelf: &[Manifest]) -> Choice {
    let chain = asked.chain;
    let last = chain.customizers();
    let of_image = shelf.iter().filter(|kept| kept.kind == CheckpointKind::Image && kept.key == chain.image);
    if let Some(kept) =
        of_image.filter(|kept| asked.holds(kept, last).is_ok()).max_by_key(|kept| newest(kept))
    {
        let mut said = vec![format!(
            "the finished image is reused, made {} ago: nothing that led to it has changed, and no guest is started{}",
            age(asked.since(&kept.created_at)),
            asked.retried(kept, last)
        )];
        said.extend(asked.updates(kept, last));
        return Choice { start: Start::Image { id: kept.id.clone() }, said };
    }
    for after in (0..=last).rev() {
        let mut kept = asked.kept_at(after, shelf);
        kept.retain(|kept| asked.holds(kept, after).is_ok());
        let start = match kept.iter().find(|kept| asked.memory_fits(kept)) {
            Some(kept) => Some((Start::Warm { id: kept.id.clone(), after }, *kept)),
            // The booted machine without its memory is the base image, for guests that do their first boot again.
            None if after > 0 || chain.first_boot_on_disk => {
                kept.first().map(|kept| (Start::Cold { id: kept.id.clone(), after }, *kept))
            }
            None => None,
        };
        let Some((start, kept)) = start else { continue };
        let mut said = vec![asked.reused(&start, kept, after)];
        said.extend(asked.updates(kept, after));
        said.extend((after < last).then(|| asked.missed(after + 1, shelf)));
        return Choice { start, said };
    }
    let said = vec![asked.missed(0, shelf)];
    Choice { start: Start::Base, said }
}

/// Why something that was kept does not hold.
enum Not {
    /// The policy has it run each time.
    Never {
        link: usize,
    },
    Secret {
        link: usize,
    },
    /// Seconds.
    Old {
        link: usize,
        age: u64,
        limit: u64,
    },
}

impl Asked<'_> {
    /// Of the state after `after` customizers, newest first.
    fn kept_at<'a>(&self, after: usize, shelf: &'a [Manifest]) -> Vec<&'a Manifest> {
        let key = self.chain.links[after].key;
        let mut kept: Vec<_> =
            shelf.iter().filter(|kept| kept.kind == CheckpointKind::Checkpoint && kept.key == key).collect();
        kept.sort_by_key(|kept| std::cmp::Reverse(newest(kept)));
        kept
    }

    fn holds(&self, kept: &Manifest, after: usize) -> Result<(), Not> {
        for link in 1..=after {
            let position = u32::try_from(link).unwrap_or(u32::MAX);
            if let Some(step) = self.policy.steps.get(&position) {
                if step.secret {
                    return Err(Not::Secret { link });
                }
                if step.cache == Some(Cache::Never) {
                    return Err(Not::Never { link });
                }
            }
            let Some(limit) = self.policy.age_limit(position, self.chain.links[link].networked) else {
                continue;
            };
            // A record that does not tell is too old.
            let made_at = kept.steps.get(link).map_or("", |step| &step.made_at);
            let until = self.holds_since.map_or(self.now, |since| since.min(self.now));
            if seconds_between(made_at, until) > limit {
                return Err(Not::Old { link, age: self.since(made_at), limit });
            }
        }
        Ok(())
    }

    fn memory_fits(&self, kept: &Manifest) -> bool {
        kept.memory.is_some() && self.machine.is_none_or(|machine| machine == kept.machine.digest)
    }

    fn since(&self, then: &str) -> u64 {
        seconds_between(then, self.now)
    }

    /// What is said of something that only holds because a run is retried.
    fn retried(&self, kept: &Manifest, after: usize) -> &'static str {
        let ordinary = Asked { holds_since: None, ..*self };
        match ordinary.holds(kept, after) {
            Err(Not::Old { .. }) => "; it held for the run that is retried, and its age does not count",
            _ => "",
        }
    }

    fn reused(&self, start: &Start, kept: &Manifest, after: usize) -> String {
        let what = match after {
            0 => "the booted machine is reused".to_owned(),
            1 => format!("{} is reused", self.chain.links[1].title),
            _ => format!("customizers 1 to {after} are reused, up to {}", self.chain.links[after].title),
        };
        let old = age(self.since(&kept.created_at));
        let said = match start {
            Start::Cold { .. } if kept.memory.is_none() => {
                format!("{what}: the disk as it was kept {old} ago is booted, as no memory was kept with it")
            }
            Start::Cold { .. } => format!(
                "{what}: the disk as it was kept {old} ago is booted, as its memory is of another machine or QEMU"
            ),
            _ => format!("{what}: the machine as it was kept {old} ago goes on"),
        };
        said + self.retried(kept, after)
    }

    /// Updates are looked for to have the newest: whoever gets older ones is told, in a line of their own.
    fn updates(&self, kept: &Manifest, after: usize) -> Vec<String> {
        let links = self.chain.links.iter().enumerate().take(after + 1).filter(|(_, link)| link.updates);
        let line = |(number, link): (usize, &Link)| {
            let old = kept.steps.get(number).map_or(u64::MAX, |step| self.since(&step.made_at));
            format!("updates of {} are as of {} ago", link.title, age(old))
        };
        links.map(line).collect()
    }

    /// Why the state of this link is not among what is reused.
    fn missed(&self, link: usize, shelf: &[Manifest]) -> String {
        let title = &self.chain.links[link].title;
        let again = |why: String| format!("{title} is run again: {why}");
        if let Some(kept) = self.kept_at(link, shelf).first() {
            return match self.holds(kept, link) {
                Err(Not::Old { link, age: old, limit }) => format!(
                    "{} is run again: it is {} old, and good for {}",
                    self.chain.links[link].title,
                    age(old),
                    age(limit)
                ),
                Err(Not::Never { link }) => {
                    format!("{} is run each time, as the policy says", self.chain.links[link].title)
                }
                Err(Not::Secret { link }) => format!(
                    "{} is run each time: the policy calls it secret, and nothing is kept of it",
                    self.chain.links[link].title
                ),
                Ok(()) if link == 0 => {
                    "nothing is reused: the memory of the booted machine is missing, or of \
                                        another machine or QEMU"
                        .to_owned()
                }
                Ok(()) => again("what was kept of it cannot be used".to_owned()),
            };
        }
        let position = u32::try_from(link).unwrap_or(u32::MAX);
        if !self.policy.keeps(position) {
            return format!("{title} is run each time, as the policy says");
        }
        match self.relative(link, shelf).map(|other| self.changed(link, other)) {
            // Of the same state something later was kept, or the finished image; it itself was evicted, or was damaged.
            Some(changed) if changed.is_empty() && link == 0 => {
                "nothing is reused: the booted machine is not kept any more".to_owned()
            }
            Some(changed) if changed.is_empty() => {
                again("what was kept of it is not there any more".to_owned())
            }
            Some(changed) => {
                let listed = changed.join(", ");
                let verb = if changed.len() == 1 { "has" } else { "have" };
                match link {
                    0 => format!("nothing is reused: {listed} {verb} changed"),
                    _ => again(format!("its {listed} {verb} changed")),
                }
            }
            None if link == 0 => "nothing is reused: nothing was kept of this base image yet".to_owned(),
            None => again("nothing was kept of it yet".to_owned()),
        }
    }

    /// The newest that is the same up to this link, and goes on otherwise.
    fn relative<'a>(&self, link: usize, shelf: &'a [Manifest]) -> Option<&'a Manifest> {
        let alike = |kept: &&Manifest| match link.checked_sub(1) {
            Some(before) => kept.steps.len() > link && kept.steps[before].key == self.chain.links[before].key,
            None => !kept.steps.is_empty() && kept.base.name == self.base,
        };
        shelf.iter().filter(alike).max_by_key(|kept| newest(kept))
    }

    fn changed(&self, link: usize, other: &Manifest) -> Vec<String> {
        let (now, then) = (&self.chain.links[link].ingredients, &other.steps[link].inputs);
        // Another kind of customizer has other parts; the kind says it all.
        let kind = |parts: &[StepInput]| parts.iter().find(|part| part.what == "kind").cloned();
        if kind(now) != kind(then) {
            return vec!["kind".to_owned()];
        }
        now.iter().filter(|part| !then.contains(part)).map(|part| part.what.clone()).collect()
    }
}

/// A time that cannot be read is for ever ago.
fn seconds_between(then: &str, until: Timestamp) -> u64 {
    let Ok(then) = then.parse::<Timestamp>() else { return u64::MAX };
    // A clock that was set back makes nothing younger than now.
    u64::try_from(until.as_second().saturating_sub(then.as_second())).unwrap_or(0)
}

/// By the time it was made; texts of one form sort like the times they are.
fn newest(kept: &Manifest) -> (&str, &str) {
    (&kept.created_at, &kept.id)
}

/// Seconds, for people.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kiln_library::{BaseMark, MachineMark, StepMark, StoredFile};
    use kiln_model::policy::StepPolicy;

    use super::*;

    fn digest(text: &str) -> Sha256 {
        Sha256::from_bytes(kiln_host::digest::sha256(text.as_bytes()))
    }

    fn part(what: &str, value: &str) -> StepInput {
        StepInput { what: what.into(), sha256: digest(value) }
    }

    /// A chain of the scripts; a key is the text of all that led to it.
    fn chain(scripts: &[&str]) -> Chain {
        let mut text = "base".to_owned();
        let mut links = vec![Link {
            title: "the first boot".into(),
            ingredients: vec![part("base image", "base")],
            key: digest(&text),
            networked: false,
            updates: false,
        }];
        for (number, script) in scripts.iter().enumerate() {
            text = format!("{text}/{script}");
            links.push(Link {
                title: format!("Shell #{}", number + 1),
                ingredients: vec![part("kind", "Shell"), part("script", script)],
                key: digest(&text),
                networked: true,
                updates: false,
            });
        }
        Chain { links, image: digest(&format!("{text}/image")), first_boot_on_disk: false }
    }

    const NOW: &str = "2026-01-02T12:00:00Z";

    /// Kept `hours` ago, with every step of that time.
    fn kept(id: &str, chain: &Chain, after: usize, hours: u64) -> Manifest {
        let then = NOW.parse::<Timestamp>().unwrap() - jiff::SignedDuration::from_hours(hours as i64);
        let file = |file: &str| StoredFile { file: file.into(), size: 1, extents: digest(file) };
        let mark = |link: &Link| StepMark {
            title: link.title.clone(),
            inputs: link.ingredients.clone(),
            key: link.key,
            made_at: then.to_string(),
            networked: link.networked,
        };
        Manifest {
            format: 1,
            id: id.into(),
            kind: CheckpointKind::Checkpoint,
            key: chain.links[after].key,
            machine: MachineMark { digest: digest("machine"), lines: Vec::new() },
            base: BaseMark { name: "b".into(), version: "1".into(), sha256: digest("base") },
            parent: None,
            disks: vec![file("disk0.qcow2")],
            memory: Some(file("memory")),
            more: Vec::new(),
            steps: chain.links[..=after].iter().map(mark).collect(),
            created_at: then.to_string(),
            kiln_version: "0".into(),
        }
    }

    fn shelf_time(hours: i64) -> String {
        (NOW.parse::<Timestamp>().unwrap() - jiff::SignedDuration::from_hours(hours)).to_string()
    }

    fn ask(chain: &Chain, policy: &CachePolicy, shelf: &[Manifest]) -> Choice {
        let machine = Some(digest("machine"));
        let now = NOW.parse().unwrap();
        choose(Asked { chain, base: "b", policy, machine, now, holds_since: None }, shelf)
    }

    /// For a run that retries one which began so many hours ago.
    fn retry(chain: &Chain, policy: &CachePolicy, shelf: &[Manifest], hours: i64) -> Choice {
        let machine = Some(digest("machine"));
        let now = NOW.parse::<Timestamp>().unwrap();
        let holds_since = Some(now - jiff::SignedDuration::from_hours(hours));
        choose(Asked { chain, base: "b", policy, machine, now, holds_since }, shelf)
    }

    fn check(choice: &Choice, start: &Start, words: &[&str]) {
        assert_eq!(&choice.start, start, "{choice:#?}");
        let said = choice.said.join("\n");
        for word in words {
            assert!(said.contains(word), "{word:?} is not in:\n{said}");
        }
    }

    #[test]
    fn the_furthest_that_holds_is_taken_and_the_first_that_changed_is_named() {
        let (was, now) = (chain(&["a", "b", "c"]), chain(&["a", "b", "C"]));
        let shelf: Vec<_> = (0..=3).map(|after| kept(&format!("k{after}"), &was, after, 2)).collect();
        let policy = CachePolicy::default();
        let warm = |id: &str, after| Start::Warm { id: id.into(), after };
        check(
            &ask(&was, &policy, &shelf),
            &warm("k3", 3),
            &["customizers 1 to 3 are reused, up to Shell #3", "2 h ago"],
        );
        assert!(ask(&was, &policy, &shelf).caution().is_some());
        assert!(ask(&was, &policy, &shelf[..1]).caution().is_none(), "the booted machine has run nothing");
        check(
            &ask(&now, &policy, &shelf),
            &warm("k2", 2),
            &["customizers 1 to 2 are reused", "Shell #3 is run again: its script has changed"],
        );
        check(
            &ask(&chain(&["a", "b", "c", "d"]), &policy, &shelf),
            &warm("k3", 3),
            &["Shell #4 is run again: nothing was kept of it yet"],
        );
        check(
            &ask(&chain(&["x"]), &policy, &shelf),
            &warm("k0", 0),
            &["the booted machine", "its script has changed"],
        );
        check(&ask(&was, &policy, &[]), &Start::Base, &["nothing was kept of this base image yet"]);
        let mut other_base = chain(&[]);
        other_base.links[0] = Link {
            key: digest("other"),
            ingredients: vec![part("base image", "other")],
            ..other_base.links[0].clone()
        };
        check(
            &ask(&other_base, &policy, &shelf),
            &Start::Base,
            &["nothing is reused: base image has changed"],
        );
    }

    #[test]
    fn a_finished_image_needs_no_guest() {
        let chain = chain(&["a"]);
        let policy = CachePolicy::default();
        let image = |hours| Manifest {
            kind: CheckpointKind::Image,
            key: chain.image,
            memory: None,
            ..kept("image", &chain, 1, hours)
        };
        let shelf = [kept("k1", &chain, 1, 3), image(3)];
        check(
            &ask(&chain, &policy, &shelf),
            &Start::Image { id: "image".into() },
            &["no guest is started", "3 h ago"],
        );
        let shelf = [kept("k0", &chain, 0, 30), image(30)];
        check(
            &ask(&chain, &policy, &shelf),
            &Start::Warm { id: "k0".into(), after: 0 },
            &["Shell #1 is run again: what was kept of it is not there any more"],
        );
        check(
            &ask(&chain, &policy, &[image(30)]),
            &Start::Base,
            &["nothing is reused: the booted machine is not kept any more"],
        );
    }

    #[test]
    fn steps_that_used_the_network_grow_old_and_the_policy_decides() {
        let chain = chain(&["a", "b"]);
        let mut old = kept("k2", &chain, 2, 1);
        old.steps[1].made_at = "2026-01-01T11:00:00Z".into();
        let shelf = [kept("k0", &chain, 0, 400), kept("k1", &chain, 1, 25), old];
        let warm = |id: &str, after| Start::Warm { id: id.into(), after };
        check(
            &ask(&chain, &CachePolicy::default(), &shelf),
            &warm("k0", 0),
            &["Shell #1 is run again: it is 25 h old, and good for 24 h"],
        );
        let longer = CachePolicy { max_age: 48 * 3600, ..CachePolicy::default() };
        check(&ask(&chain, &longer, &shelf), &warm("k2", 2), &["customizers 1 to 2"]);
        let with =
            |position, step| CachePolicy { steps: BTreeMap::from([(position, step)]), ..longer.clone() };
        let never = with(2, StepPolicy { cache: Some(Cache::Never), secret: false });
        check(
            &ask(&chain, &never, &shelf),
            &warm("k1", 1),
            &["Shell #2 is run each time, as the policy says"],
        );
        let secret = with(1, StepPolicy { cache: None, secret: true });
        check(
            &ask(&chain, &secret, &shelf),
            &warm("k0", 0),
            &["Shell #1 is run each time: the policy calls it secret"],
        );
        let hour = with(2, StepPolicy { cache: Some(Cache::For(1800)), secret: false });
        check(&ask(&chain, &hour, &shelf), &warm("k1", 1), &["Shell #2 is run again: it is 60 min old"]);
    }

    /// A chain with updates second.
    fn updating(scripts: &[&str]) -> Chain {
        let mut chain = chain(scripts);
        chain.links[2].title = "WindowsUpdate #2".into();
        chain.links[2].updates = true;
        chain
    }

    #[test]
    fn updates_are_never_reused_silently() {
        let chain = updating(&["a", "u", "c"]);
        let policy = CachePolicy::default();
        let line = "updates of WindowsUpdate #2 are as of 5 h ago";
        let lines = |choice: &Choice| choice.said.iter().filter(|said| said.contains("as of")).count();
        for after in [2, 3] {
            let shelf = [kept(&format!("k{after}"), &chain, after, 5)];
            let choice = ask(&chain, &policy, &shelf);
            assert!(choice.said.contains(&line.to_owned()), "{choice:#?}");
            assert_eq!(lines(&choice), 1);
        }
        assert_eq!(lines(&ask(&chain, &policy, &[kept("k1", &chain, 1, 5)])), 0, "they are run");
        // Of when they ran, and not of when a later step did.
        let mut later = kept("k3", &chain, 3, 1);
        later.steps[2].made_at = kept("k2", &chain, 2, 5).created_at;
        assert!(ask(&chain, &policy, &[later]).said.contains(&line.to_owned()));
        let image = Manifest { kind: CheckpointKind::Image, key: chain.image, ..kept("i", &chain, 3, 5) };
        assert!(ask(&chain, &policy, &[image]).said.contains(&line.to_owned()));
        // They have the age limit of everything that uses the network.
        check(&ask(&chain, &policy, &[kept("k2", &chain, 2, 25)]), &Start::Base, &["nothing is reused"]);
    }

    #[test]
    fn a_first_boot_that_is_on_the_disk_is_booted() {
        let mut chain = chain(&["a"]);
        let no_memory = Manifest { memory: None, ..kept("k0", &chain, 0, 1) };
        let policy = CachePolicy::default();
        assert_eq!(ask(&chain, &policy, std::slice::from_ref(&no_memory)).start, Start::Base);
        chain.first_boot_on_disk = true;
        check(
            &ask(&chain, &policy, &[no_memory]),
            &Start::Cold { id: "k0".into(), after: 0 },
            &["the booted machine is reused: the disk as it was kept 60 min ago is booted"],
        );
    }

    #[test]
    fn a_retry_goes_on_where_the_run_failed_however_long_ago() {
        let chain = chain(&["a", "b", "c"]);
        let warm = |id: &str, after| Start::Warm { id: id.into(), after };
        // It began 30 hours ago, reused the first step of 40 hours ago, made the second, and failed at the third.
        let shelf = [kept("k0", &chain, 0, 40), kept("k1", &chain, 1, 40), {
            let mut second = kept("k2", &chain, 2, 29);
            second.steps[1].made_at = shelf_time(40);
            second
        }];
        let day = CachePolicy::default();
        let again = "Shell #3 is run again: nothing was kept of it yet";
        let booted = warm("k0", 0);
        check(&ask(&chain, &day, &shelf), &booted, &["Shell #1 is run again: it is 40 h old"]);
        check(
            &retry(&chain, &day, &shelf, 30),
            &warm("k2", 2),
            &[
                "kept 29 h ago goes on; it held for the run that is retried, and its age does not count",
                again,
            ],
        );
        // A step that is never old enough is good for the run that made it.
        let none = CachePolicy { max_age: 0, ..CachePolicy::default() };
        let fresh = [kept("k0", &chain, 0, 40), kept("k1", &chain, 1, 29), kept("k2", &chain, 2, 29)];
        check(&ask(&chain, &none, &fresh), &booted, &["and good for 0 s"]);
        check(&retry(&chain, &none, &fresh, 30), &warm("k2", 2), &["its age does not count"]);
        // What was too old for it already still is.
        check(&retry(&chain, &day, &fresh, 2), &booted, &["Shell #1 is run again: it is 29 h old"]);
        // Nothing is said of an age that would do anyway, nor by a clock that was set back since.
        let young = [kept("k2", &chain, 2, 1)];
        let choice = retry(&chain, &day, &young, 2);
        assert!(!choice.said[0].contains("retried"), "{choice:#?}");
        check(&retry(&chain, &none, &fresh, -1), &booted, &["good for 0 s"]);
    }

    #[test]
    fn a_retry_runs_secrets_and_what_is_never_kept_again() {
        let chain = chain(&["a", "b"]);
        let shelf = [kept("k0", &chain, 0, 1), kept("k1", &chain, 1, 1), kept("k2", &chain, 2, 1)];
        let warm = |id: &str, after| Start::Warm { id: id.into(), after };
        let with = |step| CachePolicy { steps: BTreeMap::from([(2, step)]), ..CachePolicy::default() };
        let never = with(StepPolicy { cache: Some(Cache::Never), secret: false });
        check(&retry(&chain, &never, &shelf, 2), &warm("k1", 1), &["Shell #2 is run each time"]);
        let secret = with(StepPolicy { cache: None, secret: true });
        check(&retry(&chain, &secret, &shelf, 2), &warm("k1", 1), &["the policy calls it secret"]);
    }

    #[test]
    fn memory_of_another_machine_leaves_the_disk() {
        let chain = chain(&["a"]);
        let other = |after| Manifest {
            machine: MachineMark { digest: digest("older QEMU"), lines: Vec::new() },
            ..kept(&format!("k{after}"), &chain, after, 1)
        };
        let policy = CachePolicy::default();
        check(
            &ask(&chain, &policy, &[other(0), other(1)]),
            &Start::Cold { id: "k1".into(), after: 1 },
            &["is booted, as its memory is of another machine or QEMU"],
        );
        check(
            &ask(&chain, &policy, &[other(0)]),
            &Start::Base,
            &["the memory of the booted machine is missing"],
        );
        let no_memory = Manifest { memory: None, ..kept("k1", &chain, 1, 1) };
        check(
            &ask(&chain, &policy, &[no_memory]),
            &Start::Cold { id: "k1".into(), after: 1 },
            &["as no memory was kept with it"],
        );
        // The newest that fits, not the newest.
        let shelf = [kept("old", &chain, 1, 2), other(1)];
        check(&ask(&chain, &policy, &shelf), &Start::Warm { id: "old".into(), after: 1 }, &[]);
    }
}

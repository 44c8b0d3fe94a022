//! A run's own line of states: from what it began, whether it keeps more, and by what its guest is got into.
//!
//! ```text
//!   begin ─► Begin::Warm ──► Begin::Cold ──► Begin::Base       what was kept turns out to be of no use: the next lesser
//!            Begin::Image                                      thing is tried, and never again the greater one
//! ```

use std::path::PathBuf;

use super::earlier::Earlier;
use super::keep::Keeping;
use super::keys::LineageKeys;

/// Where a run began and what it keeps.
#[derive(Debug)]
pub(crate) struct Lineage {
    begin: Begin,
    /// None: it keeps nothing, or nothing more.
    pub(super) keeping: Option<Keeping>,
    pub(super) keys: Option<LineageKeys>,
    /// Where the machine's uppermost layer was when the keeping ended.
    pub(super) last_layer: Option<PathBuf>,
}

/// What the run begins with.
#[derive(Debug)]
pub(crate) enum Begin {
    Base,
    /// A machine goes on.
    Warm(Earlier),
    /// A disk is booted.
    Cold(Earlier),
    /// Nothing is to be done any more.
    Image(Earlier),
}

impl Lineage {
    /// A run that neither reuses nor keeps anything.
    pub fn none() -> Self {
        Self::new(Begin::Base, None)
    }

    pub(super) fn new(begin: Begin, keeping: Option<Keeping>) -> Self {
        Self { begin, keeping, keys: None, last_layer: None }
    }

    pub fn begins_with(&self) -> &Begin {
        &self.begin
    }

    /// What was kept turned out to be of no use.
    pub fn begin_with_base(&mut self) {
        self.begin = Begin::Base;
        if let Some(keeping) = &mut self.keeping {
            keeping.begin_anew();
        }
    }

    /// The same, but its disk may do.
    pub fn begin_cold(&mut self) {
        match std::mem::replace(&mut self.begin, Begin::Base) {
            Begin::Warm(earlier) if earlier.boots() => self.begin = Begin::Cold(earlier),
            _ => self.begin_with_base(),
        }
    }

    /// How many customizers are done already.
    pub fn done(&self) -> usize {
        match &self.begin {
            Begin::Base => 0,
            Begin::Warm(earlier) | Begin::Cold(earlier) | Begin::Image(earlier) => earlier.after,
        }
    }

    /// By what the guest is got into from now on.
    pub fn logged_in_by(&mut self, keys: LineageKeys) {
        self.keys = Some(keys);
    }

    /// By what the guest is got into now.
    pub fn keys(&self) -> Option<&LineageKeys> {
        self.keys.as_ref()
    }
}

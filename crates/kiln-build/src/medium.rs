//! Inputs by medium: what File customizers place travels in the machine's drive, and not over a connection.
//!
//! ```text
//!  Linux     one medium from the first boot on: seed and inputs. It stays: a cloud-init that finds its seed gone in a
//!            later boot takes the machine for another one, and makes new host keys
//!  Windows   the answer file's medium goes after the login, as it has passwords; one with the inputs follows, and goes
//!            before Sysprep, which looks for answer files on removable drives
//! ```
//! The digest is checked inside, on the bytes as they lie on the guest's disk, whichever way they came. A guest that cannot
//! read a medium gets its files over the connection, and so does each file that no medium can hold.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_library::StoredInput;
use kiln_model::plan::CustomizerAction;
use kiln_qemu::media::{Contents, FILE_LIMIT};

use crate::context::Run;
use crate::inputs::Inputs;

/// Room that the run's disk keeps, bytes: a medium is a copy.
const ROOM_LEFT: u64 = 1 << 30;

/// The inputs that travel on a medium.
#[derive(Debug, Default)]
pub(crate) struct OnMedium {
    /// Of our own, and this run's: an answer file or a seed is looked for in the root, and a guest may have other drives.
    folder: String,
    positions: BTreeSet<u32>,
    /// The guest could not read it once: nobody tries again.
    unreadable: AtomicBool,
}

impl OnMedium {
    /// Those of this run, as far as a medium can hold them and this host has room for one.
    pub(crate) fn choose(run: &Run, inputs: &Inputs) -> Self {
        let mut chosen = Vec::new();
        for customizer in &run.plan.customizers {
            if !matches!(customizer.action, CustomizerAction::File { .. }) {
                continue;
            }
            let Some(input) = inputs.get(customizer.position) else { continue };
            if input.size > FILE_LIMIT {
                run.journal.info(format!(
                    "{} goes over the connection: no medium holds a file of {} bytes",
                    customizer.title(),
                    input.size
                ));
                continue;
            }
            chosen.push((customizer.position, input.size));
        }
        if chosen.is_empty() {
            return Self::default();
        }
        let total: u64 = chosen.iter().map(|(_, size)| size).sum();
        if let Err(error) = kiln_host::space::ensure_room(run.workspace.folder(), total + ROOM_LEFT) {
            run.journal
                .info(format!("inputs go over the connection, for want of room for a medium: {error}"));
            return Self::default();
        }
        Self {
            folder: format!("kiln-{}", run.request.run_id.short()),
            positions: chosen.into_iter().map(|(position, _)| position).collect(),
            unreadable: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Name on the medium and contents, for its writer.
    pub(crate) fn files<'a>(&self, inputs: &'a Inputs) -> Vec<(String, &'a StoredInput)> {
        let named = |position: &u32| Some((self.path(*position), inputs.get(*position)?));
        self.positions.iter().filter_map(named).collect()
    }

    /// The name of a customizer's file, where the guest may find it on the medium.
    pub(crate) fn name(&self, position: u32) -> Option<String> {
        let there = self.positions.contains(&position) && !self.unreadable.load(Ordering::Relaxed);
        there.then(|| self.path(position))
    }

    fn path(&self, position: u32) -> String {
        format!("{}/{position}", self.folder)
    }

    /// The guest could not read it. Said once.
    pub(crate) fn give_up(&self, run: &Run, detail: &str) {
        if !self.unreadable.swap(true, Ordering::Relaxed) {
            run.journal.info(format!(
                "the guest cannot read its medium, and gets files over the connection: {detail}"
            ));
        }
    }
}

/// What a medium's writer takes.
pub(crate) fn contents<'a>(files: &'a [(String, &'a StoredInput)]) -> Vec<(&'a str, Contents<'a>)> {
    files.iter().map(|(name, input)| (name.as_str(), Contents::File(&input.path))).collect()
}

/// How a file came into the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Medium,
    Link,
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Medium => "by medium",
            Self::Link => "over the connection",
        })
    }
}

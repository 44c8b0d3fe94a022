//! Inputs by medium: what File customizers place, and scripts that are large, travel in the machine's drive and not over a
//! connection. Small scripts are no files: they go with the commands that start them (see [`crate::scripts`]), and no medium
//! is changed for them.
//!
//! ```text
//!  Linux     boots with its seed; after the login a medium with the seed and the inputs takes its place, and stays: a
//!            cloud-init that finds its seed gone in a later boot takes the machine for another one, and makes new host
//!            keys
//!  Windows   the answer file's medium goes after the login, as it has passwords; one with the inputs follows, and goes
//!            before Sysprep, which looks for answer files on removable drives
//! ```
//! It is written while the machine comes up: copies of large files take their time, and nobody wants them before.
//! Only what is still to be done is on it: a machine that an earlier run kept has what its customizers brought. The digest is
//! checked inside, on the bytes as they lie on the guest's disk, whichever way they came. A guest that cannot read a medium
//! gets its files over the connection, and so does each file that no medium can hold.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_library::StoredInput;
use kiln_model::event::Unit;
use kiln_model::plan::{Customizer, CustomizerAction};
use kiln_qemu::media::{Contents, FILE_LIMIT, MediaWriter};

use crate::context::Run;
use crate::error::BuildError;
use crate::inputs::Inputs;
use crate::scripts;

/// Room that the run's disk keeps, bytes: a medium is a copy.
const ROOM_LEFT: u64 = 1 << 30;

/// The inputs that travel on a medium.
#[derive(Debug, Default)]
pub(crate) struct OnMedium {
    /// Of our own, and this run's: an answer file or a seed is looked for in the root, and a guest may have other drives.
    folder: String,
    /// By the customizer's position: as the guest is to have it.
    files: BTreeMap<u32, StoredInput>,
    /// The guest could not read it once: nobody tries again.
    unreadable: AtomicBool,
}

impl OnMedium {
    /// Those of the customizers after the first `done`, as far as a medium can hold them and this host has room for one.
    ///
    /// # Errors
    /// A large script that cannot be converted; [`BuildError::Interrupted`].
    pub(crate) async fn choose(run: &Run, inputs: &Inputs, done: usize) -> Result<Self, BuildError> {
        let (chosen, too_large) = chosen(&run.plan.customizers, inputs, done);
        for (customizer, input) in too_large {
            run.journal.info(format!(
                "{} goes over the connection: no medium holds a file of {} bytes",
                customizer.title(),
                input.size
            ));
        }
        if chosen.is_empty() {
            return Ok(Self::default());
        }
        // One that is converted lies beside the medium, too.
        let copies = |action: &CustomizerAction| if scripts::is_converted(action) { 2 } else { 1 };
        let total: u64 =
            chosen.iter().map(|(customizer, input)| input.size * copies(&customizer.action)).sum();
        if let Err(error) = kiln_host::space::ensure_room(run.workspace.folder(), total + ROOM_LEFT) {
            run.journal
                .info(format!("inputs go over the connection, for want of room for a medium: {error}"));
            return Ok(Self::default());
        }
        let mut files = BTreeMap::new();
        for (customizer, input) in chosen {
            files.insert(customizer.position, scripts::as_file(run, customizer, input).await?);
        }
        let folder = format!("kiln-{}", run.request.run_id.short());
        Ok(Self { folder, files, unreadable: AtomicBool::new(false) })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Name on the medium and contents.
    fn placed(&self) -> Vec<(String, &StoredInput)> {
        self.files.iter().map(|(position, file)| (self.path(*position), file)).collect()
    }

    /// The name of a customizer's file, where the guest may find it on the medium.
    pub(crate) fn name(&self, position: u32) -> Option<String> {
        let there = self.files.contains_key(&position) && !self.unreadable.load(Ordering::Relaxed);
        there.then(|| self.path(position))
    }

    /// A customizer's file as the guest is to have it, whether that can read the medium or not.
    pub(crate) fn file(&self, position: u32) -> Option<&StoredInput> {
        self.files.get(&position)
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

/// Writes the medium with the inputs, and `more` beside them, to `path`.
pub(crate) async fn write(
    run: &Run,
    path: &Path,
    label: &str,
    on_medium: &OnMedium,
    more: &[(&str, Contents<'_>)],
) -> Result<(), BuildError> {
    let writer = MediaWriter::find(&run.settings.search_path).map_err(BuildError::Media)?;
    let placed = on_medium.placed();
    let mut contents: Vec<_> =
        placed.iter().map(|(name, input)| (name.as_str(), Contents::File(&input.path))).collect();
    contents.extend_from_slice(more);
    if placed.is_empty() {
        return writer.write(path, label, &contents, &run.control).await.map_err(BuildError::Media);
    }
    let total = placed.iter().map(|(_, input)| input.size).sum();
    let step = run.journal.step("medium", format!("put {} file(s) on the machine's medium", placed.len()));
    // A medium has a little more on it than its files.
    let progress = |written: u64| step.progress(written.min(total), total, Unit::Bytes);
    let written = writer.write_telling(path, label, &contents, &progress, &run.control);
    written.await.map_err(BuildError::Media)?;
    step.succeed(format!("{total} bytes"));
    Ok(())
}

type Fetched<'a> = (&'a Customizer, &'a StoredInput);

/// What goes on a medium, and what would if it were not too large for one.
fn chosen<'a>(
    customizers: &'a [Customizer],
    inputs: &'a Inputs,
    done: usize,
) -> (Vec<Fetched<'a>>, Vec<Fetched<'a>>) {
    customizers
        .iter()
        .skip(done)
        .filter_map(|customizer| Some((customizer, inputs.get(customizer.position)?)))
        .filter(|(customizer, input)| scripts::is_file(&customizer.action, input.size))
        .partition(|(_, input)| input.size <= FILE_LIMIT)
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

#[cfg(test)]
mod tests {
    use kiln_model::Sha256;
    use kiln_model::plan::{InputLocation, InputRef, Script};

    use super::*;
    use crate::scripts::LARGE_SCRIPT;

    fn customizer(position: u32, kind: &str) -> Customizer {
        let source =
            || InputRef { location: InputLocation::Url(format!("https://a/{position}")), sha256: None };
        let action = match kind {
            "File" => CustomizerAction::File { source: source(), destination: "/srv/".to_owned() },
            "inline" => CustomizerAction::Shell { script: Script::Inline(vec!["true".to_owned()]) },
            "Shell" => CustomizerAction::Shell { script: Script::Fetched(source()) },
            _ => CustomizerAction::PowerShell {
                script: Script::Fetched(source()),
                run_elevated: false,
                run_as_system: false,
                valid_exit_codes: vec![0],
            },
        };
        Customizer { position, name: String::new(), action }
    }

    fn stored(size: u64) -> StoredInput {
        StoredInput { sha256: Sha256::from_bytes([7; 32]), size, path: "/nowhere".into() }
    }

    /// The positions of what goes on a medium, and of what is too large for one.
    fn positions(wanted: &[(&str, u64)], done: usize) -> (Vec<u32>, Vec<u32>) {
        let customizers: Vec<_> =
            (1..).zip(wanted).map(|(position, (kind, _))| customizer(position, kind)).collect();
        let fetched = customizers.iter().zip(wanted).filter(|(customizer, _)| customizer.input().is_some());
        let inputs = fetched.map(|(customizer, (_, size))| (customizer.position, stored(*size))).collect();
        let (on_it, too_large) = chosen(&customizers, &inputs, done);
        let of = |these: Vec<Fetched<'_>>| these.iter().map(|(customizer, _)| customizer.position).collect();
        (of(on_it), of(too_large))
    }

    #[test]
    fn files_and_large_scripts_go_on_a_medium_that_can_hold_them() {
        for kind in ["Shell", "PowerShell"] {
            let sizes = [0, LARGE_SCRIPT, LARGE_SCRIPT + 1, FILE_LIMIT, FILE_LIMIT + 1];
            let wanted = sizes.map(|size| (kind, size));
            assert_eq!(positions(&wanted, 0), (vec![3, 4], vec![5]), "{kind}");
        }
        let files = [("File", 0), ("inline", 0), ("File", FILE_LIMIT), ("File", FILE_LIMIT + 1)];
        assert_eq!(positions(&files, 0), (vec![1, 3], vec![4]));
    }

    #[test]
    fn what_a_kept_machine_has_seen_is_not_on_its_medium() {
        let wanted = [("File", 1), ("Shell", LARGE_SCRIPT + 1), ("File", FILE_LIMIT + 1), ("Shell", 1)];
        for (done, on_it) in [(0, vec![1, 2]), (1, vec![2]), (2, vec![]), (4, vec![])] {
            assert_eq!(positions(&wanted, done).0, on_it, "{done} done");
        }
        assert_eq!(positions(&wanted, 3).1, Vec::<u32>::new());
    }
}

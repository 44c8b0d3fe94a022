//! How checkpoints go: asked for by name, or since there is no room.
//!
//! ```text
//!   hold it alone ──► look for new children ──► rename to tmp/removed-…/<id> ──► delete
//!        │ used: not this one        │ there is one: not this one (now)
//! ```
//!
//! Whoever is killed after the rename leaves something for the next [`Library::open`] to sweep; whoever is killed before
//! it has done nothing. Several processes may do this at once: what one holds alone counts as gone for the others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::time::SystemTime;

use jiff::Timestamp;
use kiln_host::publish;

use super::lease::Hold;
use super::manifest::read_manifest;
use super::shelf::{Content, Entry, allocated, is_in_use};
use super::{MANIFEST, is_gone, is_id};
use crate::hold::{Share, try_hold};
use crate::library::Making;
use crate::{Library, LibraryError};

/// What [`Library::remove_checkpoint`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// It and what lay on it.
    Gone(Evicted),
    /// Nothing: this one, or the one asked for, is in use, or being removed by somebody else at this moment.
    InUse { id: String },
}

/// What left the shelf.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evicted {
    /// In the order in which they went: what lies on another first.
    pub ids: Vec<String>,
    /// On the disk, holes not counted.
    pub bytes: u64,
}

impl Evicted {
    fn add(&mut self, id: &str, bytes: u64) {
        self.ids.push(id.to_owned());
        self.bytes += bytes;
    }
}

/// What came of the wish to hold a checkpoint alone.
enum Held {
    Alone(Hold),
    Used,
    /// Somebody else holds it alone.
    Going,
    Gone,
}

impl Library {
    /// Removes a checkpoint and everything that lies on it, unless one of them is in use: then nothing.
    ///
    /// # Errors
    /// [`LibraryError::NoSuchCheckpoint`]; it, or one that lies on it, is of a newer format, and left alone; the disk.
    pub fn remove_checkpoint(&self, id: &str) -> Result<Removed, LibraryError> {
        if !is_id(id) {
            return Err(LibraryError::NoSuchCheckpoint { id: id.to_owned() });
        }
        self.remove_from(Leaving::read(self)?, id)
    }

    /// `shelf` may be of some time ago: what matters is looked at again.
    fn remove_from(&self, mut shelf: Leaving, id: &str) -> Result<Removed, LibraryError> {
        let missing = || LibraryError::NoSuchCheckpoint { id: id.to_owned() };
        if !shelf.entries.contains_key(id) {
            return Err(missing());
        }
        // Asked first, since who holds alone what he then does not remove makes others miss it.
        for id in shelf.with_children(id) {
            if shelf.entries.get(&id).is_some_and(|leaf| is_in_use(&leaf.entry.folder)) {
                return Ok(Removed::InUse { id });
            }
        }
        let mut held: BTreeMap<String, Hold> = BTreeMap::new();
        // Ends when all is held and no child came while it was not: from then on none can.
        let order = loop {
            let order = shelf.with_children(id);
            let Some(next) = order.iter().find(|id| !held.contains_key(*id)) else { break order };
            let Some(leaf) = shelf.entries.get(next) else { return Err(missing()) };
            if let Content::Unknown { .. } = leaf.entry.content {
                // If it can be read now, then somebody else is at work on it.
                read_manifest(&leaf.entry.folder.join(MANIFEST), next)?;
                return Ok(Removed::InUse { id: next.clone() });
            }
            match hold_alone(&leaf.entry.folder)? {
                Held::Alone(hold) => {
                    held.insert(next.clone(), hold);
                }
                Held::Used | Held::Going => return Ok(Removed::InUse { id: next.clone() }),
                Held::Gone => {}
            }
            shelf.refresh(self)?;
        };
        let mut gone = Evicted::default();
        for id in &order {
            let Some(leaf) = shelf.entries.get(id) else { continue };
            self.take_off(&leaf.entry)?;
            gone.add(id, leaf.bytes);
        }
        Ok(Removed::Gone(gone))
    }

    /// Removes checkpoints until those left take no more than `limit_bytes` on the disk: the least recently used first
    /// among those that nobody uses and nobody lies on. Before them go those that nobody can use any more, being damaged
    /// or without one of their ancestors.
    ///
    /// More may be left than the limit says: what is in use stays, and so does what is of a newer format.
    ///
    /// # Errors
    /// The shelf cannot be read. One that cannot be removed is passed over, with a warning in the log.
    pub fn evict_checkpoints(&self, limit_bytes: u64) -> Result<Evicted, LibraryError> {
        self.evict_from(Leaving::read(self)?, limit_bytes)
    }

    /// `shelf` may be of some time ago: what matters is looked at again.
    fn evict_from(&self, mut shelf: Leaving, limit_bytes: u64) -> Result<Evicted, LibraryError> {
        let mut evicted = Evicted::default();
        while shelf.total() > limit_bytes {
            let Some(id) = shelf.next() else { break };
            let Some(leaf) = shelf.entries.get_mut(&id) else { break };
            let hold = match hold_alone(&leaf.entry.folder)? {
                Held::Alone(hold) => hold,
                Held::Gone => {
                    shelf.entries.remove(&id);
                    continue;
                }
                Held::Used => {
                    leaf.state = State::Stays;
                    continue;
                }
                Held::Going => {
                    leaf.state = State::Going;
                    continue;
                }
            };
            // Somebody used it since the shelf was read: it may be another's turn.
            if let Some(last_used) = last_used(&leaf.entry, &hold.0)
                && last_used != leaf.entry.last_used
            {
                leaf.entry.last_used = last_used;
                continue;
            }
            // It is held now, so nobody can publish on it any more; but somebody may have.
            shelf.refresh(self)?;
            if shelf.is_parent(&id) {
                continue;
            }
            let Some(leaf) = shelf.entries.get_mut(&id) else { continue };
            match self.take_off(&leaf.entry) {
                Ok(()) => {
                    evicted.add(&id, leaf.bytes);
                    shelf.entries.remove(&id);
                }
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(checkpoint = id, error, "cannot evict");
                    leaf.state = State::Stays;
                }
            }
        }
        Ok(evicted)
    }

    /// Off the shelf by a rename, then deleted. To be held alone.
    fn take_off(&self, entry: &Entry) -> Result<(), LibraryError> {
        let aside =
            self.make_folder_aside(Making::Removed).map_err(LibraryError::disk("write", self.tmp()))?;
        std::fs::rename(&entry.folder, aside.path().join(&entry.id))
            .map_err(LibraryError::disk("remove", &entry.folder))?;
        let shelf = self.checkpoints_dir();
        publish::sync_dir(&shelf).map_err(LibraryError::disk("sync", &shelf))?;
        // What cannot be deleted now is swept later: it is off the shelf.
        if let Err(error) = std::fs::remove_dir_all(aside.path()) {
            tracing::warn!(path = %aside.path().display(), %error, "cannot delete");
        }
        Ok(())
    }
}

fn hold_alone(folder: &Path) -> Result<Held, LibraryError> {
    let record = folder.join(MANIFEST);
    let tried = match try_hold(&record, Share::Alone) {
        // It lost its manifest, and so nobody can lease it.
        Err(error) if is_gone(&error) => try_hold(folder, Share::Alone),
        tried => tried,
    };
    match tried {
        Ok(Some(file)) => Ok(Held::Alone(Hold(file))),
        // Who uses it is seen on the other lock too.
        Ok(None) if is_in_use(folder) => Ok(Held::Used),
        Ok(None) => Ok(Held::Going),
        Err(error) if is_gone(&error) => Ok(Held::Gone),
        Err(error) => Err(LibraryError::disk("hold", record)(error)),
    }
}

/// `None` for one that remembers no use.
fn last_used(entry: &Entry, held: &File) -> Option<SystemTime> {
    entry.content.manifest()?;
    held.metadata().and_then(|metadata| metadata.modified()).ok()
}

/// The shelf, while things are taken off it.
struct Leaving {
    entries: BTreeMap<String, Leaf>,
}

struct Leaf {
    entry: Entry,
    bytes: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    MayGo,
    /// In use, or somebody else's.
    Stays,
    /// Another process takes it off. Until it is gone it lies on its parent, but its room is counted as free.
    Going,
}

impl Leaving {
    fn read(library: &Library) -> Result<Self, LibraryError> {
        let mut shelf = Self { entries: BTreeMap::new() };
        shelf.refresh(library)?;
        Ok(shelf)
    }

    /// Takes up what came, and forgets what went. What is known already is not read again.
    fn refresh(&mut self, library: &Library) -> Result<(), LibraryError> {
        let ids = library.checkpoint_ids()?;
        self.entries.retain(|id, _| ids.contains(id));
        for id in ids {
            if self.entries.contains_key(&id) {
                continue;
            }
            let Some(entry) = library.read_entry(&id)? else { continue };
            let Some(bytes) = allocated(&entry.folder)? else { continue };
            let state = match entry.content {
                Content::Known(_) | Content::Damaged => State::MayGo,
                Content::Unknown { .. } => State::Stays,
            };
            self.entries.insert(id, Leaf { entry, bytes, state });
        }
        Ok(())
    }

    fn total(&self) -> u64 {
        let stays = self.entries.values().filter(|leaf| leaf.state != State::Going);
        stays.map(|leaf| leaf.bytes).sum()
    }

    fn parent_of(&self, id: &str) -> Option<&str> {
        self.entries.get(id)?.entry.content.parent()
    }

    fn is_parent(&self, id: &str) -> bool {
        self.entries.keys().any(|child| self.parent_of(child) == Some(id))
    }

    /// The one to go next.
    fn next(&self) -> Option<String> {
        let parents: BTreeSet<&str> = self.entries.keys().filter_map(|id| self.parent_of(id)).collect();
        let leaves = self
            .entries
            .iter()
            .filter(|(id, leaf)| leaf.state == State::MayGo && !parents.contains(id.as_str()));
        leaves.min_by_key(|(id, leaf)| self.turn(id, leaf)).map(|(id, _)| id.clone())
    }

    /// The smaller, the sooner it goes. Where the file system's clock is coarse, the older one first.
    fn turn<'a>(&'a self, id: &'a str, leaf: &Leaf) -> (bool, SystemTime, Timestamp, &'a str) {
        let created = leaf.entry.content.manifest().map_or(Timestamp::MIN, |manifest| manifest.created());
        (self.is_usable(id), leaf.entry.last_used, created, id)
    }

    /// Whether it could be leased, as far as manifests tell.
    fn is_usable(&self, id: &str) -> bool {
        let mut seen = BTreeSet::new();
        let mut next = Some(id);
        while let Some(id) = next {
            let readable =
                self.entries.get(id).is_some_and(|leaf| !matches!(leaf.entry.content, Content::Damaged));
            if !readable || !seen.insert(id) {
                return false;
            }
            next = self.parent_of(id);
        }
        true
    }

    /// It and all that lies on it, what lies on another before that one.
    fn with_children(&self, id: &str) -> Vec<String> {
        let mut order = vec![id.to_owned()];
        let mut place = 0;
        while let Some(parent) = order.get(place).cloned() {
            let children = self.entries.keys().filter(|child| self.parent_of(child) == Some(&parent));
            let new: Vec<String> = children.filter(|child| !order.contains(child)).cloned().collect();
            order.extend(new);
            place += 1;
        }
        order.reverse();
        order
    }
}

/// What happens between the look at the shelf and the act, which only luck would bring about from outside.
#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kiln_model::Sha256;

    use super::*;
    use crate::{BaseMark, CheckpointKind, MachineMark, Manifest, StoredFile};

    const NOTHING: Sha256 = Sha256::from_bytes([0; 32]);

    fn shelve(library: &Library, parent: Option<&str>) -> String {
        let draft = library.draft_checkpoint().unwrap();
        std::fs::write(draft.folder().join("disk0.qcow2"), "disk").unwrap();
        let manifest = Manifest {
            format: crate::CHECKPOINT_FORMAT,
            id: draft.id().to_owned(),
            kind: CheckpointKind::Checkpoint,
            key: NOTHING,
            machine: MachineMark { digest: NOTHING, lines: Vec::new() },
            base: BaseMark { name: "base".to_owned(), version: "1".to_owned(), sha256: NOTHING },
            parent: parent.map(str::to_owned),
            disks: vec![StoredFile { file: "disk0.qcow2".to_owned(), size: 4, extents: NOTHING }],
            memory: None,
            more: Vec::new(),
            steps: Vec::new(),
            created_at: "2026-03-04T05:06:07Z".to_owned(),
            kiln_version: "0.1.0".to_owned(),
        };
        draft.publish(manifest, b"keys").unwrap().manifest().id.clone()
    }

    fn record(library: &Library, id: &str) -> File {
        File::open(library.checkpoint_home(id).join(MANIFEST)).unwrap()
    }

    #[test]
    fn a_child_that_came_meanwhile_keeps_its_parent() {
        let dir = tempfile::tempdir().unwrap();
        let library = Library::open(dir.path()).unwrap();
        let parent = shelve(&library, None);
        let before = record(&library, &parent).metadata().unwrap().modified().unwrap();
        let shelf = Leaving::read(&library).unwrap();
        let limit = shelf.total();
        let child = shelve(&library, Some(&parent));
        // The clock of this file system stands still: the parent does not look used.
        record(&library, &parent).set_modified(before).unwrap();
        assert_eq!(library.evict_from(shelf, limit - 1).unwrap().ids, [child, parent]);

        let parent = shelve(&library, None);
        let shelf = Leaving::read(&library).unwrap();
        let child = shelve(&library, Some(&parent));
        let Removed::Gone(gone) = library.remove_from(shelf, &parent).unwrap() else { panic!() };
        assert_eq!(gone.ids, [child, parent]);

        let parent = shelve(&library, None);
        let shelf = Leaving::read(&library).unwrap();
        let child = shelve(&library, Some(&parent));
        let lease = library.lease_checkpoint(&child).unwrap().unwrap();
        let removed = library.remove_from(shelf, &parent).unwrap();
        assert!(matches!(removed, Removed::InUse { .. }), "{removed:?}");
        drop(lease);
    }

    #[test]
    fn a_use_meanwhile_makes_it_anothers_turn() {
        let dir = tempfile::tempdir().unwrap();
        let library = Library::open(dir.path()).unwrap();
        let (old, new) = (shelve(&library, None), shelve(&library, None));
        for (id, minutes) in [(&old, 20), (&new, 10)] {
            let ago = SystemTime::now() - Duration::from_secs(60 * minutes);
            record(&library, id).set_modified(ago).unwrap();
        }
        let shelf = Leaving::read(&library).unwrap();
        let limit = shelf.total() - 1;
        drop(library.lease_checkpoint(&old).unwrap().unwrap());
        assert_eq!(library.evict_from(shelf, limit).unwrap().ids, [new]);
    }

    /// Another process has it in its hands: its room will be free, but it still lies on its parent.
    #[test]
    fn what_another_takes_off_counts_as_gone() {
        let dir = tempfile::tempdir().unwrap();
        let library = Library::open(dir.path()).unwrap();
        let parent = shelve(&library, None);
        let child = shelve(&library, Some(&parent));
        let other = shelve(&library, None);
        let ago = SystemTime::now() - Duration::from_secs(60);
        record(&library, &child).set_modified(ago).unwrap();
        let total = Leaving::read(&library).unwrap().total();
        let hold = try_hold(&library.checkpoint_home(&child).join(MANIFEST), Share::Alone).unwrap().unwrap();
        assert_eq!(library.evict_checkpoints(total - 1).unwrap(), Evicted::default());
        let removed = library.remove_checkpoint(&parent).unwrap();
        assert_eq!(removed, Removed::InUse { id: child.clone() });
        assert_eq!(library.evict_checkpoints(0).unwrap().ids, [other]);
        drop(hold);
        assert_eq!(library.evict_checkpoints(0).unwrap().ids, [child, parent]);
    }
}

//! Keeping the machine, and the finished image.
//!
//! ```text
//!   guest: writes on the disk, timers held ─► drive emptied ─► freeze ─► linked ─► drive filled again, next step
//!                                                                         └─► digests, published     in the background
//! ```
//! INVARIANT: what cannot be kept ends nothing but the keeping.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_host::extents::extent_digest;
use kiln_library::{
    BaseMark, CheckpointDraft, CheckpointKind, CheckpointLease, Library, MachineMark, Making, Manifest,
    StepMark, StoredFile,
};
use kiln_model::Sha256;
use kiln_model::policy::CachePolicy;
use kiln_qemu::disk::Overlay;
use kiln_qemu::firmware::Firmware;
use kiln_qemu::vm::{FreezeTo, MEMORY_LIMIT, Vm};

use super::key::Chain;
use super::keys::LineageKeys;
use super::layers::{DISK, make_layer_folder};
use super::lineage::{Begin, Lineage};
use crate::context::Run;
use crate::error::{BuildError, sentence};
use crate::generalize::Generalized;
use crate::guest::{ConnectedGuest, Rested};
use crate::journal::now;
use crate::resume::NOT_KEPT;
use crate::run_dir::CheckpointWishes;

const MEMORY: &str = "memory";
/// The UEFI variables of the machine.
pub(crate) const UEFI_VARS: &str = "uefi-vars.fd";
/// What its TPM keeps.
pub(crate) const TPM_STATE: &str = kiln_qemu::tpm::STATE_FILE;
/// Room that keeping leaves, bytes: a build needs it more.
const LEAST_ROOM: u64 = 4 << 30;

/// What is on its way to the shelf.
type Publishing = tokio::task::JoinHandle<Result<CheckpointLease, String>>;

/// What it takes to keep the machine.
#[derive(Debug)]
pub(super) struct Keeping {
    chain: Chain,
    policy: CachePolicy,
    size_limit: u64,
    base: BaseMark,
    machine: MachineMark,
    /// Of the layers below the machine's present one.
    parent: Option<String>,
    /// The first boot and the customizers behind the present state.
    steps: Vec<StepMark>,
    /// Where the present layer goes next.
    next: CheckpointDraft,
    /// States that this run makes while others that come to them wait.
    making: Vec<(Sha256, Making)>,
    publishing: Option<Publishing>,
    /// What was published last: it stays while something is to lie on it.
    last: Option<CheckpointLease>,
}

impl Lineage {
    /// The customizer at `link` (0: the first boot) is behind the machine.
    pub fn passed(&mut self, link: usize) {
        if let Some(keeping) = &mut self.keeping
            && let Some(link) = keeping.chain.links.get(link)
        {
            keeping.steps.push(StepMark {
                title: link.title.clone(),
                inputs: link.ingredients.clone(),
                key: link.key,
                made_at: now(),
                networked: link.networked,
            });
        }
    }

    /// Keeps the machine as it is after the customizer at `link` (0: after the first boot).
    ///
    /// # Errors
    /// Those of the machine itself, and an end of the run. Everything else ends the keeping only.
    pub async fn keep(
        &mut self,
        run: &Run,
        guest: &mut ConnectedGuest,
        link: usize,
    ) -> Result<(), BuildError> {
        let Some(keeping) = &mut self.keeping else { return Ok(()) };
        let position = u32::try_from(link).unwrap_or(u32::MAX);
        if !keeping.policy.keeps(position) {
            let title = &keeping.chain.links[link].title;
            run.journal.info(format!("nothing is kept from {title} on, as the policy says"));
            self.stop(run).await;
            return Ok(());
        }
        let need = (run.plan.machine.memory_mib << 20) + LEAST_ROOM;
        if let Err(error) = kiln_host::space::ensure_room(run.workspace.folder(), need) {
            run.journal.info(format!("no more checkpoints, for want of room: {error}"));
            self.stop(run).await;
            return Ok(());
        }
        let title = format!("keep the machine as it is after {}", keeping.chain.links[link].title);
        let step = run.journal.step(format!("checkpoint/{link}"), title);
        match keeping.freeze(run, guest, self.keys.as_ref(), link).await {
            Ok(pause) => {
                step.succeed(format!("the guest stood still for {:.2} s", pause.as_secs_f64()));
                Ok(())
            }
            Err(Trouble::Fatal(error)) => Err(error),
            Err(Trouble::NotKept(why)) => {
                step.succeed(NOT_KEPT);
                run.journal.warn(format!("no more checkpoints: {why}"));
                self.stop(run).await;
                Ok(())
            }
        }
    }

    /// Keeps the finished image, if all that led to it may be kept.
    pub async fn keep_image(&mut self, run: &Run, image: &mut Generalized) {
        let Some(mut keeping) = self.keeping.take() else { return };
        let last = keeping.chain.customizers();
        let keeps = keeping.policy.keeps(u32::try_from(last).unwrap_or(u32::MAX));
        if !keeping.settle(run).await || !keeps {
            return;
        }
        let (key, limit) = (keeping.chain.image, keeping.size_limit);
        let manifest = keeping.manifest(run, CheckpointKind::Image, key);
        let kept = async {
            let keys = key_bytes(self.keys.as_ref())?;
            link(image.image.path(), &keeping.next.folder().join(DISK))?;
            publish(keeping.next, manifest, false, Vec::new(), &keys).await
        };
        match kept.await {
            Ok(_) => image.key = Some(key),
            Err(why) => run.journal.warn(format!("the finished image is not kept for later runs: {why}")),
        }
        evict(&run.library, limit);
    }

    /// Ends the keeping; what is on its way still arrives.
    pub async fn stop(&mut self, run: &Run) {
        if let Some(mut keeping) = self.keeping.take() {
            self.last_layer = Some(run.workspace.layer(keeping.next.id()).join(DISK));
            keeping.settle(run).await;
        }
    }
}

/// Why the machine was not kept.
enum Trouble {
    /// The run cannot go on.
    Fatal(BuildError),
    NotKept(String),
}

impl From<BuildError> for Trouble {
    fn from(error: BuildError) -> Self {
        Self::Fatal(error)
    }
}

impl Keeping {
    pub(super) fn new(
        run: &Run,
        wishes: &CheckpointWishes,
        chain: Chain,
        machine: MachineMark,
        begin: &Begin,
        making: Vec<(Sha256, Making)>,
    ) -> Result<Self, BuildError> {
        let source = &run.plan.source;
        let (parent, steps) = match begin {
            Begin::Base => (None, Vec::new()),
            Begin::Warm(earlier) | Begin::Cold(earlier) | Begin::Image(earlier) => {
                (Some(earlier.id().to_owned()), earlier.manifest().steps.clone())
            }
        };
        Ok(Self {
            chain,
            policy: wishes.policy.clone(),
            size_limit: wishes.size_limit,
            base: BaseMark {
                name: source.name.clone(),
                version: source.version.clone(),
                sha256: source.sha256,
            },
            machine,
            parent,
            steps,
            next: run.library.draft_checkpoint()?,
            making,
            publishing: None,
            last: None,
        })
    }

    /// What was kept turned out to be of no use: nothing lies below the machine's first layer.
    pub(super) fn begin_anew(&mut self) {
        self.parent = None;
        self.steps.clear();
    }

    /// By what the machine's present layer is known, and will be on the shelf.
    pub(super) fn layer_id(&self) -> &str {
        self.next.id()
    }

    async fn freeze(
        &mut self,
        run: &Run,
        guest: &mut ConnectedGuest,
        keys: Option<&LineageKeys>,
        link_number: usize,
    ) -> Result<Duration, Trouble> {
        let not_kept = |error: BuildError| Trouble::NotKept(error.sentence());
        let rested = guest.put_to_rest(run, &run.control).await?;
        // A cancel is the run's end, whoever noticed it first.
        run.control.check().map_err(BuildError::from)?;
        let rested = rested.map_err(not_kept)?;
        let keys = key_bytes(keys).map_err(Trouble::NotKept)?;
        let upcoming = run.library.draft_checkpoint().map_err(|error| not_kept(error.into()))?;
        let present = guest.vm().os_disk().map(|disk| (disk.path().to_owned(), disk.virtual_size()));
        let (present, size) = present.ok_or_else(|| Trouble::NotKept("it has no disk".to_owned()))?;
        let below = Path::new("..").join(self.next.id()).join(DISK);
        let path = make_layer_folder(run, upcoming.id()).map_err(not_kept)?;
        let layer = Overlay::above(run.qemu.img(), &below, size, path)
            .map_err(|source| not_kept(BuildError::Disk { act: "create a layer", source }))?;
        let memory = (rested == Rested::Whole).then(|| self.next.folder().join(MEMORY));
        let more = state_files(guest.vm());
        let copies = more.iter().map(|(name, from)| (from.clone(), self.next.folder().join(name))).collect();
        let more: Vec<&'static str> = more.into_iter().map(|(name, _)| name).collect();
        let medium = guest.medium(run);

        guest.vm().eject_medium(&run.control).await.map_err(BuildError::from)?;
        let to =
            FreezeTo { layers: vec![layer], memory: memory.as_deref(), memory_limit: MEMORY_LIMIT, copies };
        let frozen = guest.vm_mut().freeze(to, &run.control).await;
        if let Some(medium) = medium {
            guest.vm().insert_medium(&medium, &run.control).await.map_err(BuildError::from)?;
        }
        let frozen = frozen.map_err(BuildError::from)?;
        match (&frozen.no_memory, rested) {
            (Some(why), _) => run.journal.info(format!("only the disk is kept: {}", sentence(why))),
            (None, Rested::DiskOnly(why)) => run.journal.info(format!("only the disk is kept: {why}")),
            (None, Rested::Whole) => {}
        }
        let with_memory = memory.is_some() && frozen.no_memory.is_none();
        let key = self.chain.links[link_number].key;
        let manifest = self.manifest(run, CheckpointKind::Checkpoint, key);
        let draft = std::mem::replace(&mut self.next, upcoming);
        self.parent = Some(draft.id().to_owned());
        link(&present, &draft.folder().join(DISK)).map_err(Trouble::NotKept)?;
        // In their order: whoever is found on the shelf finds what it lies on.
        if !self.settle(run).await {
            return Err(Trouble::NotKept("what this one lies on was not kept".to_owned()));
        }
        let (library, limit) = (run.library.clone(), self.size_limit);
        let made = self.take_making(key);
        self.publishing = Some(tokio::spawn(async move {
            let published = publish(draft, manifest, with_memory, more, &keys).await;
            // Whoever waits for it finds it now.
            drop(made);
            evict(&library, limit);
            published
        }));
        Ok(frozen.pause)
    }

    /// Waits for what is on its way to the shelf. Returns whether it arrived.
    async fn settle(&mut self, run: &Run) -> bool {
        let Some(publishing) = self.publishing.take() else { return true };
        match publishing.await.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(lease) => {
                self.last = Some(lease);
                true
            }
            Err(why) => {
                run.journal.warn(format!("a checkpoint was not kept: {why}"));
                false
            }
        }
    }

    fn take_making(&mut self, key: Sha256) -> Option<Making> {
        let at = self.making.iter().position(|(made, _)| *made == key)?;
        Some(self.making.swap_remove(at).1)
    }

    fn manifest(&self, run: &Run, kind: CheckpointKind, key: Sha256) -> Manifest {
        Manifest {
            format: kiln_library::CHECKPOINT_FORMAT,
            id: self.next.id().to_owned(),
            kind,
            key,
            machine: self.machine.clone(),
            base: self.base.clone(),
            parent: self.parent.clone(),
            disks: Vec::new(),
            memory: None,
            more: Vec::new(),
            steps: self.steps.clone(),
            created_at: now(),
            kiln_version: run.settings.kiln_version.clone(),
        }
    }
}

fn key_bytes(keys: Option<&LineageKeys>) -> Result<zeroize::Zeroizing<Vec<u8>>, String> {
    keys.ok_or("nobody has logged in")?.to_bytes().map_err(|error| error.to_string())
}

/// What the machine's state has beside disks and memory: names on the shelf, and where the files are.
pub(crate) fn state_files(vm: &Vm) -> Vec<(&'static str, PathBuf)> {
    let mut files = Vec::new();
    if let Firmware::Uefi { vars, .. } = vm.firmware() {
        files.push((UEFI_VARS, vars.clone()));
    }
    files.extend(vm.tpm_state().map(|state| (TPM_STATE, state)));
    files
}

/// Takes the digests of a draft's files and puts it on the shelf.
async fn publish(
    draft: CheckpointDraft,
    mut manifest: Manifest,
    with_memory: bool,
    more: Vec<&'static str>,
    keys: &[u8],
) -> Result<CheckpointLease, String> {
    let folder = draft.folder().to_owned();
    let hashed = tokio::task::spawn_blocking(move || -> std::io::Result<Manifest> {
        manifest.disks = vec![stored(&folder, DISK)?];
        if with_memory {
            manifest.memory = Some(stored(&folder, MEMORY)?);
        }
        manifest.more = more.iter().map(|name| stored(&folder, name)).collect::<Result<_, _>>()?;
        Ok(manifest)
    });
    let manifest = hashed.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    draft.publish(manifest, keys).map_err(|error| BuildError::from(error).sentence())
}

fn stored(folder: &Path, name: &str) -> std::io::Result<StoredFile> {
    let path = folder.join(name);
    Ok(StoredFile {
        file: name.to_owned(),
        size: path.metadata()?.len(),
        extents: Sha256::from_bytes(extent_digest(&path, &|_| Ok(()))?),
    })
}

fn link(from: &Path, to: &Path) -> Result<(), String> {
    std::fs::hard_link(from, to).map_err(|error| format!("{} cannot be linked: {error}", from.display()))
}

fn evict(library: &Library, limit: u64) {
    match library.evict_checkpoints(limit) {
        Ok(evicted) if evicted.ids.is_empty() => {}
        Ok(evicted) => {
            tracing::info!(count = evicted.ids.len(), bytes = evicted.bytes, "checkpoints were evicted");
        }
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "checkpoints cannot be evicted");
        }
    }
}

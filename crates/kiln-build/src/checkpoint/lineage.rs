//! A run's own line of states: from what it began, and what it adds.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use kiln_library::{
    BaseMark, CheckpointDraft, CheckpointLease, LibraryError, MachineMark, Making, Manifest, StepMark, Verify,
};
use kiln_model::Sha256;
use kiln_model::policy::CachePolicy;
use kiln_qemu::disk::Overlay;

use super::choose::{Asked, Start, choose};
use super::keep::Publishing;
use super::key::Chain;
use super::keys::LineageKeys;
use crate::context::Run;
use crate::error::BuildError;
use crate::inputs::Inputs;
use crate::run_dir::CheckpointWishes;

/// The folder of the one layer of a run that keeps nothing.
const ALONE: &str = "os";
/// The name of a layer's file in its folder.
pub(super) const DISK: &str = "disk0.qcow2";

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

/// A state that was kept, its disks linked into the run's work folder.
#[derive(Debug)]
pub(crate) struct Earlier {
    lease: CheckpointLease,
    /// So many customizers are behind it.
    pub after: usize,
    pub keys: LineageKeys,
}

impl Earlier {
    pub fn manifest(&self) -> &Manifest {
        self.lease.manifest()
    }

    /// The machine's memory.
    pub fn memory(&self) -> Option<PathBuf> {
        self.manifest().memory.as_ref().map(|file| self.lease.path_of(file))
    }

    /// A file that belongs to the machine's state, by its name.
    pub fn other(&self, name: &str) -> Option<PathBuf> {
        self.manifest().more.iter().find(|file| file.file == name).map(|file| self.lease.path_of(file))
    }

    /// Its disk, as it is linked in the run's work folder.
    pub fn disk(&self, run: &Run) -> PathBuf {
        run.workspace.layer(self.id()).join(DISK)
    }

    pub fn id(&self) -> &str {
        &self.manifest().id
    }

    /// Whether its disk alone saves anything.
    fn boots(&self) -> bool {
        // What a Windows does in its first boot stays; cloud-init does it again.
        self.after > 0 || self.keys.windows().is_some()
    }
}

/// What it takes to keep the machine.
#[derive(Debug)]
pub(crate) struct Keeping {
    pub(super) chain: Chain,
    pub(super) policy: CachePolicy,
    pub(super) size_limit: u64,
    pub(super) base: BaseMark,
    pub(super) machine: MachineMark,
    /// Of the layers below the machine's present one.
    pub(super) parent: Option<String>,
    /// The first boot and the customizers behind the present state.
    pub(super) steps: Vec<StepMark>,
    /// Where the present layer goes next.
    pub(super) next: CheckpointDraft,
    /// States that this run makes while others that come to them wait.
    pub(super) making: Vec<(Sha256, Making)>,
    pub(super) publishing: Option<Publishing>,
    /// What was published last: it stays while something is to lie on it.
    pub(super) last: Option<CheckpointLease>,
}

impl Lineage {
    /// A run that neither reuses nor keeps anything.
    pub fn none() -> Self {
        Self { begin: Begin::Base, keeping: None, keys: None, last_layer: None }
    }

    /// Chooses where the run begins; says what is reused and what is not.
    pub async fn begin(run: &Run, inputs: &Inputs) -> Result<Self, BuildError> {
        let Some(wishes) = &run.request.checkpoints else { return Ok(Self::none()) };
        let shelf = run.library.root().to_owned();
        match one_file_system(run.workspace.folder(), &shelf) {
            Ok(true) => {}
            Ok(false) => {
                run.journal.info(format!(
                    "nothing is kept and nothing reused: runs and {} lie on different file systems",
                    shelf.display()
                ));
                return Ok(Self::none());
            }
            Err(error) => return Err(BuildError::io("look at", shelf)(error)),
        }
        let chain = Chain::of(&run.plan, &|position| Some(inputs.get(position)?.sha256));
        let portrait = crate::boot::portrait(run).await?;
        let machine =
            MachineMark { digest: Sha256::from_bytes(portrait.digest()), lines: portrait.lines().to_vec() };
        let (begin, making) = match wishes.may_reuse() {
            true => together(run, wishes, &chain, &machine).await?,
            false => (Begin::Base, Vec::new()),
        };
        let keeping = match wishes.keep {
            true => Some(Keeping::new(run, wishes, chain, machine, &begin, making)?),
            false => None,
        };
        Ok(Self { begin, keeping, keys: None, last_layer: None })
    }

    pub fn begins_with(&self) -> &Begin {
        &self.begin
    }

    /// What was kept turned out to be of no use.
    pub fn begin_with_base(&mut self) {
        self.begin = Begin::Base;
        if let Some(keeping) = &mut self.keeping {
            keeping.parent = None;
            keeping.steps.clear();
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

    /// Where the machine's first layer is made.
    pub fn first_layer(&self, run: &Run) -> Result<PathBuf, BuildError> {
        match &self.keeping {
            Some(keeping) => make_layer_folder(run, keeping.next.id()),
            // Beside what it may lie on.
            None => match &self.begin {
                Begin::Base => Ok(run.workspace.overlay()),
                _ => make_layer_folder(run, ALONE),
            },
        }
    }

    /// The machine's first layer over a state that was kept.
    pub fn layer_over(&self, run: &Run, earlier: &Earlier) -> Result<Overlay, BuildError> {
        let below = Path::new("..").join(earlier.id()).join(DISK);
        let path = self.first_layer(run)?;
        Overlay::above(run.qemu.img(), &below, run.plan.machine.disk_bytes, path)
            .map_err(|source| BuildError::Disk { act: "create the run's disk", source })
    }

    /// For a look at a run that failed: the machine's disk by a name that does not change, beside the layers below it.
    pub fn leave_for_a_look(&self, run: &Run) -> Result<(), BuildError> {
        let present = match (&self.keeping, &self.last_layer, &self.begin) {
            (Some(keeping), ..) => run.workspace.layer(keeping.next.id()).join(DISK),
            (None, Some(last), _) => last.clone(),
            (None, None, Begin::Warm(_) | Begin::Cold(_)) => run.workspace.layer(ALONE).join(DISK),
            (None, None, Begin::Base | Begin::Image(_)) => return Ok(()),
        };
        if !present.exists() {
            return Ok(());
        }
        let path = make_layer_folder(run, "last")?;
        std::fs::hard_link(&present, &path).map_err(BuildError::io("link", path.clone()))?;
        run.journal.info(format!("the guest's disk: {}", path.display()));
        Ok(())
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

impl Keeping {
    fn new(
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
}

/// Where the run begins, when others may come to the same states at this moment: one makes them, and the others wait.
async fn together(
    run: &Run,
    wishes: &CheckpointWishes,
    chain: &Chain,
    machine: &MachineMark,
) -> Result<(Begin, Vec<(Sha256, Making)>), BuildError> {
    loop {
        let (begin, said) = reuse(run, wishes, chain, machine).await?;
        let next = match &begin {
            Begin::Base => 0,
            Begin::Warm(earlier) | Begin::Cold(earlier) => earlier.after + 1,
            Begin::Image(_) => chain.links.len() + 1,
        };
        let mut wanted = chain.shared(next, &wishes.policy);
        let mut making = Vec::new();
        if let Some((key, title)) = wanted.next().filter(|_| wishes.keep) {
            let Some(first) = run.library.make_alone(key)? else {
                let waiting = format!("wait for another run that comes to the same: {title}");
                let step = run.journal.step("elsewhere", waiting);
                run.library.made_elsewhere(key, &run.control).await?;
                step.succeed("");
                continue;
            };
            making.push((key, first));
            for (key, _) in wanted {
                // Somebody else has come there by another way.
                let Some(held) = run.library.make_alone(key)? else { continue };
                making.push((key, held));
            }
        }
        say(run, &said);
        return Ok((begin, making));
    }
}

/// Looks for the furthest state that holds, and makes sure that it is whole. One that is not is left out.
async fn reuse(
    run: &Run,
    wishes: &CheckpointWishes,
    chain: &Chain,
    machine: &MachineMark,
) -> Result<(Begin, Vec<String>), BuildError> {
    let mut shelf: Vec<Manifest> = run.library.checkpoints()?.into_iter().map(|kept| kept.manifest).collect();
    if let (false, Some(since)) = (wishes.reuse, wishes.since()) {
        shelf.retain(|kept| made_since(kept, since));
    }
    loop {
        let asked = Asked {
            chain,
            base: &run.plan.source.name,
            policy: &wishes.policy,
            machine: Some(machine.digest),
            now: Timestamp::now(),
            holds_since: wishes.since(),
        };
        let choice = choose(asked, &shelf);
        let (Start::Image { id } | Start::Warm { id, .. } | Start::Cold { id, .. }) = &choice.start else {
            return Ok((Begin::Base, choice.said));
        };
        let step = run.journal.step("checkpoint", "look at what was kept");
        let whole = match choice.start {
            Start::Cold { .. } | Start::Image { .. } => Verify::DisksOnly,
            _ => Verify::All,
        };
        let after = match choice.start {
            Start::Warm { after, .. } | Start::Cold { after, .. } => after,
            _ => chain.customizers(),
        };
        match take(run, id, whole, after).await {
            Ok(earlier) => {
                step.succeed("");
                let begin = match choice.start {
                    Start::Image { .. } => Begin::Image(earlier),
                    Start::Cold { .. } => Begin::Cold(earlier),
                    _ => Begin::Warm(earlier),
                };
                return Ok((begin, choice.said));
            }
            Err(error) if error.interrupted().is_some() => return Err(error),
            Err(error) => {
                step.succeed("");
                run.journal.warn(format!("a checkpoint is of no use and is left out: {}", error.sentence()));
                shelf.retain(|kept| kept.id != *id);
                forget_damaged(run, &error);
            }
        }
    }
}

/// Whether every step of it was made then or later.
fn made_since(kept: &Manifest, since: Timestamp) -> bool {
    kept.steps.iter().all(|step| step.made_at.parse::<Timestamp>().is_ok_and(|made| made >= since))
}

/// What is damaged once is damaged for everybody: it goes, with all that lies on it.
fn forget_damaged(run: &Run, error: &BuildError) {
    let BuildError::Library(LibraryError::DamagedCheckpoint { id, .. }) = error else { return };
    if let Err(error) = run.library.remove_checkpoint(id) {
        tracing::warn!(
            id,
            error = &error as &dyn std::error::Error,
            "a damaged checkpoint cannot be removed"
        );
    }
}

fn say(run: &Run, said: &[String]) {
    for line in said {
        run.journal.info(line.clone());
        run.log.telemetry(line);
    }
}

/// Leases, verifies, and links the disks.
async fn take(run: &Run, id: &str, whole: Verify, after: usize) -> Result<Earlier, BuildError> {
    let gone = || BuildError::Checkpoint { detail: format!("{id} was removed at this moment") };
    let lease = run.library.lease_checkpoint(id)?.ok_or_else(gone)?;
    run.library.verify_checkpoint(&lease, whole, &run.control).await?;
    let keys = lease.keys()?;
    let keys = LineageKeys::from_bytes(&keys).map_err(|detail| BuildError::Checkpoint { detail })?;
    for link in lease.chain() {
        let folder = run.workspace.layer(&link.manifest().id);
        make_folder(&folder)?;
        for disk in &link.manifest().disks {
            let from = link.path_of(disk);
            let to = folder.join(&disk.file);
            match std::fs::hard_link(&from, &to) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                linked => linked.map_err(BuildError::io("link", to))?,
            }
        }
    }
    Ok(Earlier { lease, after, keys })
}

pub(super) fn make_layer_folder(run: &Run, id: &str) -> Result<PathBuf, BuildError> {
    let folder = run.workspace.layer(id);
    make_folder(&folder)?;
    Ok(folder.join(DISK))
}

fn make_folder(folder: &Path) -> Result<(), BuildError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(BuildError::io("create", folder))
}

/// Whether files of one folder can be linked into the other.
fn one_file_system(one: &Path, other: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(one.metadata()?.dev() == other.metadata()?.dev())
}

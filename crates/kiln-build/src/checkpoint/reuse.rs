//! The furthest state on the shelf that holds ([`choose`]) and is whole.
//!
//! How it fails: what is not whole is left out, and the next best is looked at; what is damaged goes from the shelf. Only
//! the run's own end is an error.

use jiff::Timestamp;
use kiln_library::{LibraryError, MachineMark, Manifest, Verify};

use super::choose::{Asked, Start, choose};
use super::earlier::Earlier;
use super::key::Chain;
use super::lineage::Begin;
use crate::context::Run;
use crate::error::BuildError;
use crate::run_dir::CheckpointWishes;

/// With what the run may begin, and in words why not with more.
pub(super) async fn reuse(
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
        match Earlier::take(run, id, whole, after).await {
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

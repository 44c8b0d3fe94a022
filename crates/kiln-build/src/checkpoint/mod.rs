//! Checkpoints: the machine as it is after the first boot and after each customizer, kept for runs to come.
//!
//! ```text
//!   key      what led to each state, as a chain of digests                        pure
//!   choose   how far along something that was kept still holds, and why not more  pure
//!   reuse    the choice, if it is whole; else the next best
//!   begin    where the run begins; waits for another run that makes the same state
//!   earlier  a state that was kept, in this run's hands
//!   lineage  the run's own: from what it began, what it keeps, the keys to its guest
//!   layers   the folders of the machine's disks
//!   keep     rest, freeze, link, and in the background digest and publish
//!   keys     what lets a run into a guest that another one kept
//! ```
//! A machine's layers lie in the run's work folder, each in a folder of the name that it has on the shelf, too, and name
//! each other by relative paths: the shelf gets further links to the same files, so a run needs nothing of the shelf once
//! it has begun, and a shelf nothing of a run.
//!
//! ```text
//!   work/layers/<id of k0>/disk0.qcow2 ◄─ ../<id of k0>/… ─ work/layers/<id of k1>/disk0.qcow2 ◄─ …
//!          ║ one file, two links                ║
//!   checkpoints/<id of k0>/{disk0.qcow2, memory, uefi-vars.fd, tpm2-00.permall, keys.json, checkpoint.json}
//! ```
//! Memory, UEFI variables and the TPM's state are of the same moment as the disk; the last two where the machine has them.
//! INVARIANT: a checkpoint is used only if every byte that led to it is the same; the image always comes of a guest that
//! was generalized live and shut down cleanly.
//! How it fails: whatever cannot be kept is not kept, and whatever cannot be reused is done again, with a line that says
//! so. Neither fails a run.

mod begin;
mod choose;
mod earlier;
mod keep;
pub mod key;
mod keys;
mod layers;
mod lineage;
mod reuse;

use jiff::Timestamp;
use kiln_library::{Library, LibraryError};
use kiln_model::Sha256;
use kiln_model::plan::BuildPlan;
use kiln_model::policy::CachePolicy;

pub use choose::{Asked, Choice, Start, age, choose};
pub(crate) use earlier::Earlier;
pub(crate) use keep::{TPM_STATE, UEFI_VARS, state_files};
pub(crate) use keys::{LineageKeys, LinuxKeys, WindowsKeys};
pub(crate) use lineage::{Begin, Lineage};

/// What a run of this plan would reuse now, in words, and why not more. Whether a machine's memory fits is found out only
/// when it is started.
pub fn forecast(
    plan: &BuildPlan,
    inputs: &dyn Fn(u32) -> Option<Sha256>,
    policy: &CachePolicy,
    library: &Library,
) -> Result<Choice, LibraryError> {
    let chain = key::Chain::of(plan, inputs);
    let shelf: Vec<_> = library.checkpoints()?.into_iter().map(|kept| kept.manifest).collect();
    let asked = Asked {
        chain: &chain,
        base: &plan.source.name,
        policy,
        machine: None,
        now: Timestamp::now(),
        holds_since: None,
    };
    let mut choice = choose(asked, &shelf);
    choice.said.extend(choice.caution());
    Ok(choice)
}

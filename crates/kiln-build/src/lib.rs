//! ONE RUN, start to end: joins machine, inside and shelves.
//!
//! ```text
//!  work(RUN_DIR)
//!    claim           lock, claim.json, journal: from here on this process owns the run
//!    Building        boot::way_in    whose account: keys, made, or the image's own with its password file
//!                    inputs::fetch   every input on the shelf, checked, and the base image with them  (no machine yet)
//!                    Lineage::begin  what of earlier runs still holds      ─► an image, a machine, a disk, nothing
//!                    share::of_run   memory for a guest, when it is this one's turn
//!                    boot::start     overlay, media, machine, login        ─► ConnectedGuest
//!    Customizing     customize::run  customizers in template order         ─► ConnectedGuest
//!                    generalize::run deprovision, clean up, power down     ─► Generalized
//!    Distributing    distribute::run each target, whole or not at all      ─► Distributed
//!    finish          the one place where a run ends
//! ```
//! Each phase takes what the one before it made: what must not happen does not
//! compile. Every wait in it ends by the event, by QEMU's exit, by a cancel and by
//! `buildTimeoutInMinutes`; whatever ends a run, `finish` cleans up and says so.

mod account;
mod boot;
pub mod checkpoint;
mod claim;
pub mod context;
mod customize;
pub mod debug;
mod distribute;
pub mod error;
mod finish;
mod generalize;
mod guest;
mod inputs;
pub mod journal;
pub mod log;
mod medium;
mod password_file;
pub mod resume;
pub mod run_dir;
mod scripts;
mod seed;
mod serial;
pub mod share;
pub mod transcript;
pub mod watch;
pub mod workspace;

pub use claim::ClaimError;
pub use context::WorkerSettings;
pub use error::BuildError;

use kiln_model::run::{Phase, RunState};
use tokio_util::sync::CancellationToken;

use crate::boot::WayIn;
use crate::checkpoint::{Begin, Lineage};
use crate::context::Run;
use crate::distribute::Distributed;
use crate::generalize::Generalized;
use crate::inputs::Inputs;
use crate::run_dir::RunDir;

/// Executes the run of a prepared run directory. Returns how it ended.
///
/// `cancel` ends it early, as a request file in the directory does.
///
/// # Errors
/// Only where the run could not be claimed, and so nothing was done: another worker
/// holds it, it has ended, or its directory cannot be read.
pub async fn work(
    dir: RunDir,
    settings: WorkerSettings,
    cancel: CancellationToken,
) -> Result<RunState, ClaimError> {
    let claimed = claim::claim(dir, &settings, cancel)?;
    let requests = claimed.watch_requests();
    let result = match claimed.prepare(settings) {
        Ok(run) => match build(&run).await {
            Err(error) if claimed.goes_on_after(&error, &run.settings.kiln_version) => build(&run).await,
            ended => ended,
        },
        Err(error) => Err(error),
    };
    requests.abort();
    Ok(finish::finish(claimed, result))
}

/// The pipeline.
async fn build(run: &Run) -> Result<Distributed, BuildError> {
    run.journal.phase(Phase::Building);
    let way_in = boot::way_in(run)?;
    let (inputs, _base) = tokio::try_join!(inputs::fetch(run), boot::base_in_use(run))?;
    let mut lineage = Lineage::begin(run, &inputs).await?;
    let image = match lineage.begins_with() {
        Begin::Image(earlier) => generalize::kept(run, earlier).await?,
        _ => make(run, way_in, &inputs, &mut lineage).await?,
    };

    run.journal.phase(Phase::Distributing);
    distribute::run(run, image).await
}

/// From a machine to an image.
async fn make(
    run: &Run,
    way_in: WayIn,
    inputs: &Inputs,
    lineage: &mut Lineage,
) -> Result<Generalized, BuildError> {
    let made = from_machine(run, way_in, inputs, lineage).await;
    if made.is_err() {
        // What was kept until then is for the next one.
        lineage.stop(run).await;
        if run.request.keep_on_error {
            // The run's own failure is the one that counts.
            if let Err(error) = lineage.leave_for_a_look(run) {
                run.journal.warn(error.sentence());
            }
        }
    }
    made
}

async fn from_machine(
    run: &Run,
    way_in: WayIn,
    inputs: &Inputs,
    lineage: &mut Lineage,
) -> Result<Generalized, BuildError> {
    // Until there is no machine any more.
    let _share = share::of_run(run).await?;
    let mut guest = boot::start(run, way_in, inputs, lineage).await?;
    if matches!(lineage.begins_with(), Begin::Base) {
        lineage.passed(0);
        lineage.keep(run, &mut guest, 0).await?;
    }

    run.journal.phase(Phase::Customizing);
    let guest = match customize::run(run, guest, inputs, lineage).await {
        Ok(guest) => guest,
        Err(stuck) => return Err(debug::leave(run, stuck, lineage.keys()).await),
    };
    let mut image = generalize::run(run, guest).await?;
    lineage.keep_image(run, &mut image).await;
    Ok(image)
}

//! Leaving the machine of a failed customizer as it is.

use std::time::Duration;

use kiln_host::wait::Control;
use kiln_qemu::disk::Overlay;
use kiln_qemu::vm::{FreezeTo, MEMORY_LIMIT};

use super::{LeftMachine, MACHINE_FORMAT, Places};
use crate::checkpoint::{LineageKeys, state_files};
use crate::context::Run;
use crate::error::{BuildError, sentence};
use crate::guest::ConnectedGuest;
use crate::journal::now;

/// The run may be out of time already; this is what leaving may take beside the memory file.
const LEAVE_LIMIT: Duration = Duration::from_secs(12 * 60);
/// A guest that is stuck does not come to rest; it is kept all the same.
const REST_LIMIT: Duration = Duration::from_secs(60);
/// Room that leaving leaves on the host, bytes.
const LEAST_ROOM: u64 = 1 << 30;

/// A customizer that failed, and the machine in which it did.
#[derive(Debug)]
pub(crate) struct Stuck {
    pub guest: Box<ConnectedGuest>,
    pub error: BuildError,
}

/// Whether the machine of this failure is to be left.
fn is_wanted(run: &Run, error: &BuildError) -> bool {
    let asked = run.request.keep_on_error || run.plan.keep_on_error;
    // Whoever cancels a run does not want to look at it; a machine that is gone cannot be looked at.
    asked && !run.control.is_canceled() && !matches!(error, BuildError::Vm(_))
}

/// Leaves the machine, where that is wanted; `keys` let somebody in. The run's own failure is the one that counts.
pub(crate) async fn leave(run: &Run, stuck: Stuck, keys: Option<&LineageKeys>) -> BuildError {
    let Stuck { mut guest, error } = stuck;
    let (true, Some(keys)) = (is_wanted(run, &error), keys) else { return error };
    let places = Places::of(&run.dir);
    // Not a step: the one that failed is where the run ends.
    run.journal.info("the machine is left as it is, for a look at it");
    let left = freeze(run, &mut guest, keys, &error).await;
    guest.kill().await;
    match left {
        Ok(()) => {
            let _ = std::fs::remove_file(places.rest());
        }
        Err(why) => {
            let _ = std::fs::remove_dir_all(places.folder);
            run.journal.warn(format!("the machine was not left for a look: {}", why.sentence()));
        }
    }
    error
}

async fn freeze(
    run: &Run,
    guest: &mut ConnectedGuest,
    keys: &LineageKeys,
    cause: &BuildError,
) -> Result<(), BuildError> {
    // Not the run's own, which may have passed.
    let control = Control::ending_in(LEAVE_LIMIT);
    let room = (run.plan.machine.memory_mib << 20) + LEAST_ROOM;
    kiln_host::space::ensure_room(run.workspace.folder(), room)?;
    match guest.put_to_rest(run, &control.within(REST_LIMIT)).await {
        Ok(Ok(_)) => {}
        // Only a machine that is gone ends it here.
        Err(error) if error.interrupted().is_none() => return Err(error),
        Ok(Err(_)) | Err(_) => run.journal.info("the guest does not come to rest, and is kept as it is"),
    }
    let places = Places::of(&run.dir);
    std::fs::create_dir(&places.folder).map_err(BuildError::io("create", &places.folder))?;
    let present = guest.vm().os_disk().map(|disk| (disk.path().to_owned(), disk.virtual_size()));
    let (disk, disk_bytes) = present.ok_or(BuildError::Checkpoint { detail: "it has no disk".to_owned() })?;
    let rest = Overlay::above(run.qemu.img(), &disk, disk_bytes, places.rest())
        .map_err(|source| BuildError::Disk { act: "create a layer", source })?;
    let state = state_files(guest.vm()).into_iter().map(|(name, from)| (from, places.state(name)));
    let copies = state.collect();
    let memory = places.memory();
    guest.vm().eject_medium(&control).await?;
    let to = FreezeTo { layers: vec![rest], memory: Some(&memory), memory_limit: MEMORY_LIMIT, copies };
    let frozen = guest.vm_mut().freeze(to, &control).await?;
    if let Some(why) = &frozen.no_memory {
        run.journal.info(format!("only its disk is left: {}", sentence(why)));
    }
    let left = LeftMachine {
        format: MACHINE_FORMAT,
        cause: cause.sentence(),
        left_at: now(),
        disk,
        disk_bytes,
        memory: frozen.no_memory.is_none(),
        drivers: run.drivers.get().copied().map(Into::into),
    };
    let keys = keys.to_bytes().map_err(BuildError::Keys)?;
    // Whoever finds the record finds all the rest.
    for (path, bytes) in [(places.keys(), &keys[..]), (places.record(), &left.to_bytes()[..])] {
        kiln_host::publish::write_file(&path, bytes, 0o600).map_err(BuildError::io("write", path))?;
    }
    Ok(())
}

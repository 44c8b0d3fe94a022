//! A Linux guest: cloud-init reads the build's account and keys from NoCloud media, and SSH answers.

use std::time::Duration;

use kiln_guest::keys::KeyPair;
use kiln_guest::{Guest, Login};
use kiln_library::ImageLease;
use kiln_model::catalog::Generation;
use kiln_qemu::firmware::{Firmware, Ovmf};
use kiln_qemu::machine::{Hardware, Machine, Network};
use kiln_qemu::media::{CLOUD_INIT_LABEL, Contents, MediaWriter};
use kiln_qemu::vm::Vm;

use super::{accelerator, disk, power_on};
use crate::context::Run;
use crate::error::BuildError;
use crate::guest::LinuxGuest;
use crate::inputs::Inputs;
use crate::medium::{self, OnMedium};
use crate::seed;

/// As long as the service waits for a guest to answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(20 * 60);

pub(super) async fn start(run: &Run, inputs: &Inputs) -> Result<LinuxGuest, BuildError> {
    let on_medium = OnMedium::choose(run, inputs);
    let (machine, login, lease) = prepare(run, inputs, &on_medium).await?;
    let vm = power_on(run, machine).await?;

    let step = run.journal.step("connect", "wait for SSH");
    run.log.say("Waiting for SSH to become available...");
    run.log.say("Waiting for SSH, up to timeout: 20m0s");
    let login = Login { addr: vm.forwarded(22, &run.control).await?, ..login };
    let control = run.control.within(CONNECT_LIMIT);
    let connect = Guest::connect(login, |_attempt| {}, &control);
    let guest = vm.guard(&run.control, connect).await?.map_err(|error| BuildError::Connect(error.into()))?;
    run.log.say("Connected to SSH!");
    step.succeed("");

    let step = run.journal.step("facts", "look at the guest");
    let facts = vm
        .guard(&run.control, guest.facts(&run.control))
        .await?
        .map_err(|source| BuildError::Guest { act: "read the guest's facts", source: source.into() })?;
    check_growth(run, &vm, &guest).await?;
    step.succeed(facts.os_name.clone());
    Ok(LinuxGuest { vm, guest, facts, on_medium, lease })
}

/// Everything the machine is made of.
async fn prepare(
    run: &Run,
    inputs: &Inputs,
    on_medium: &OnMedium,
) -> Result<(Machine, Login, ImageLease), BuildError> {
    let step = run.journal.step("machine", "prepare the machine");
    let (overlay, lease) = disk(run).await?;

    let login_key = KeyPair::generate().map_err(BuildError::Keys)?;
    let host_key = KeyPair::generate().map_err(BuildError::Keys)?;
    let files = seed::files(run.request.run_id.as_str(), &login_key, &host_key).map_err(BuildError::Keys)?;
    let seed = run.workspace.seed();
    let placed = on_medium.files(inputs);
    let mut on_it = medium::contents(&placed);
    on_it.push(("user-data", Contents::Bytes(files.user_data.as_bytes())));
    on_it.push(("meta-data", Contents::Bytes(files.meta_data.as_bytes())));
    let writer = MediaWriter::find(&run.settings.search_path).map_err(BuildError::Media)?;
    writer.write(&seed, CLOUD_INIT_LABEL, &on_it, &run.control).await.map_err(BuildError::Media)?;

    let firmware = match run.plan.source.generation {
        Generation::V1 => Firmware::Bios,
        Generation::V2 => Ovmf::find()?.for_machine(run.workspace.uefi_vars())?,
    };
    let machine = Machine {
        name: format!("kiln-{}", run.request.run_id.short()),
        accelerator: accelerator(run).await?,
        cpus: run.plan.machine.vcpus,
        memory_mib: run.plan.machine.memory_mib,
        firmware,
        hardware: Hardware::Paravirtual,
        disks: vec![overlay],
        medium: Some(seed),
        network: Network::User { forward: vec![22] },
        smbios_serial: Some(seed::SMBIOS_SERIAL.to_owned()),
        serial_log: run.dir.serial_log(),
        qemu_log: run.dir.qemu_log(),
        runtime_dir: run.workspace.sockets().to_owned(),
        kernel: None,
        incoming: None,
        disk_full_wait: run.settings.disk_full_wait,
    };
    let login = Login {
        user: seed::BUILD_USER.to_owned(),
        key: login_key,
        host_key: host_key.public(),
        // The port is known only when the machine runs.
        addr: ([127, 0, 0, 1], 0).into(),
    };
    step.succeed("");
    Ok((machine, login, lease))
}

/// Looks whether the root file system has taken the room that the template gave it.
async fn check_growth(run: &Run, vm: &Vm, guest: &Guest) -> Result<(), BuildError> {
    if run.plan.machine.disk_bytes > run.plan.source.virtual_size {
        let size = "findmnt -bno SIZE / 2>/dev/null || df -P -B1 / | awk 'NR==2 {print $2}'";
        let output =
            vm.guard(&run.control, guest.exec(size, b"", &run.control)).await?.map_err(|source| {
                BuildError::Guest { act: "read the size of the root file system", source: source.into() }
            })?;
        let root: u64 = output.text().parse().unwrap_or(0);
        if root <= run.plan.source.virtual_size {
            run.journal.warn(
                "the disk has grown to osDiskSizeGB, but the root file system has not: \
                 the image has no growpart, or another partition follows the root",
            );
        } else {
            run.log.say(format!("The root file system has grown to {} MiB.", root >> 20));
        }
    }
    Ok(())
}

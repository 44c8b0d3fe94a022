//! Booting: overlay, seed media, machine, and the first login.
//!
//! ```text
//!  base image (read-only, leased) ─ overlay ─┐
//!  keys ─ seed media ────────────────────────┼─► Machine ─► Vm ─► Guest (host key checked)
//!  firmware ─────────────────────────────────┘
//! ```
//! INVARIANT: a base image is never written: the machine gets an overlay of its own,
//! and a lease keeps the image on the shelf as long as the run needs it.

use std::time::{Duration, Instant};

use kiln_guest::keys::KeyPair;
use kiln_guest::{Guest, GuestFacts, Login};
use kiln_library::ImageLease;
use kiln_model::catalog::{DiskFormat, Generation};
use kiln_qemu::disk::{BaseImage, DiskFormat as QemuFormat, Overlay};
use kiln_qemu::firmware::{Firmware, Ovmf};
use kiln_qemu::host::Accelerator;
use kiln_qemu::machine::{Machine, Medium, Network};
use kiln_qemu::media;
use kiln_qemu::vm::{Vm, VmNotice};
use tokio::sync::broadcast::error::RecvError;

use crate::context::Run;
use crate::error::BuildError;
use crate::seed;

/// As long as the service waits for a guest to answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(20 * 60);
/// Resets within this time belong to one restart.
const RESET_AGAIN: Duration = Duration::from_secs(5);
/// Room that a run needs beside the artifact before it starts at all, bytes.
const LEAST_ROOM: u64 = 1 << 30;

/// A guest that we are logged in to. The machine dies with it.
#[derive(Debug)]
pub struct ConnectedGuest {
    pub vm: Vm,
    pub guest: Guest,
    pub facts: GuestFacts,
    pub(crate) lease: ImageLease,
}

/// Starts the machine and logs in.
pub async fn start(run: &Run) -> Result<ConnectedGuest, BuildError> {
    let (machine, login, lease) = prepare(run).await?;

    let step = run.journal.step("boot", format!("boot {}", describe(&machine)));
    run.log.say(format!("Starting the virtual machine: {}", describe(&machine)));
    let vm = Vm::start(&run.qemu, machine, &run.control).await?;
    report_notices(run, &vm);
    step.succeed("");

    let step = run.journal.step("connect", "wait for SSH");
    run.log.say("Waiting for SSH to become available...");
    run.log.say("Waiting for SSH, up to timeout: 20m0s");
    let login = Login { addr: vm.ssh_addr(&run.control).await?, ..login };
    let control = run.control.within(CONNECT_LIMIT);
    let connect = Guest::connect(login, |_attempt| {}, &control);
    let guest = vm.guard(&run.control, connect).await?.map_err(BuildError::Connect)?;
    run.log.say("Connected to SSH!");
    step.succeed("");

    let step = run.journal.step("facts", "look at the guest");
    let facts = vm
        .guard(&run.control, guest.facts(&run.control))
        .await?
        .map_err(|source| BuildError::Guest { act: "read the guest's facts", source })?;
    check_growth(run, &vm, &guest).await?;
    step.succeed(facts.os_name.clone());
    Ok(ConnectedGuest { vm, guest, facts, lease })
}

/// Tells the run's followers what happens to the machine, for as long as it lives.
fn report_notices(run: &Run, vm: &Vm) {
    let (mut notices, journal) = (vm.notices(), run.journal.clone());
    tokio::spawn(async move {
        let mut last_reset: Option<Instant> = None;
        // Ends with the machine, which holds the sending half. A slow reader misses notices, never events.
        loop {
            match notices.recv().await {
                Ok(VmNotice::DiskFull { path, wait }) => journal.warn(format!(
                    "the disk is full: the guest is paused until there is room for {} (for {} s at most)",
                    path.display(),
                    wait.as_secs()
                )),
                Ok(VmNotice::GoesOn { path }) => {
                    journal.info(format!("there is room for {} again: the guest goes on", path.display()));
                }
                // Firmware resets once more on its own way through a restart.
                Ok(VmNotice::Reset { .. }) => {
                    if last_reset.replace(Instant::now()).is_none_or(|last| last.elapsed() > RESET_AGAIN) {
                        journal.info("the guest restarts");
                    }
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    });
}

/// Everything the machine is made of.
async fn prepare(run: &Run) -> Result<(Machine, Login, ImageLease), BuildError> {
    let step = run.journal.step("machine", "prepare the machine");
    let source = &run.plan.source;
    let lease = run.library.use_image(source)?;
    run.library.verify(source, kiln_library::Check::IfChanged, &|_| {}, &run.control).await?;
    kiln_host::space::ensure_room(run.workspace.folder(), LEAST_ROOM)?;

    let base = BaseImage::open(run.qemu.img(), &source.path, disk_format(source.format))
        .map_err(|source| BuildError::Disk { act: "open the base image", source })?;
    let grow_to = (run.plan.machine.disk_bytes > source.virtual_size).then_some(run.plan.machine.disk_bytes);
    let overlay = Overlay::create(run.qemu.img(), &base, run.workspace.overlay(), grow_to)
        .map_err(|source| BuildError::Disk { act: "create the run's disk", source })?;

    let login_key = KeyPair::generate().map_err(BuildError::Keys)?;
    let host_key = KeyPair::generate().map_err(BuildError::Keys)?;
    let files = seed::files(run.request.run_id.as_str(), &login_key, &host_key).map_err(BuildError::Keys)?;
    let seed_path = run.workspace.seed();
    media::seed_medium(
        &seed_path,
        media::CLOUD_INIT_LABEL,
        &[("user-data", files.user_data.as_bytes()), ("meta-data", files.meta_data.as_bytes())],
    )
    .map_err(BuildError::Media)?;

    let firmware = match source.generation {
        Generation::V1 => Firmware::Bios,
        Generation::V2 => Ovmf::find()?.for_machine(run.workspace.uefi_vars())?,
    };
    let accelerator =
        kiln_qemu::host::probe_accelerator(&run.qemu, &run.settings.cache_dir, &run.control).await?;
    if let Accelerator::Tcg { reason } = &accelerator {
        run.journal.info(format!("emulating the processor (TCG): {reason}"));
    }
    let machine = Machine {
        name: format!("kiln-{}", run.request.run_id.short()),
        accelerator,
        cpus: run.plan.machine.vcpus,
        memory_mib: run.plan.machine.memory_mib,
        firmware,
        disks: vec![overlay],
        media: vec![Medium { path: seed_path }],
        network: Network::User { forward_ssh: true },
        smbios_serial: Some(seed::SMBIOS_SERIAL.to_owned()),
        serial_log: run.dir.serial_log(),
        qemu_log: run.dir.qemu_log(),
        runtime_dir: run.workspace.sockets().to_owned(),
        kernel: None,
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
        let output = vm
            .guard(&run.control, guest.exec(size, b"", &run.control))
            .await?
            .map_err(|source| BuildError::Guest { act: "read the size of the root file system", source })?;
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

fn disk_format(format: DiskFormat) -> QemuFormat {
    match format {
        DiskFormat::Raw => QemuFormat::Raw,
        DiskFormat::Qcow2 => QemuFormat::Qcow2,
        DiskFormat::Vhd => QemuFormat::Vpc,
        DiskFormat::Vhdx => QemuFormat::Vhdx,
        DiskFormat::Vmdk => QemuFormat::Vmdk,
    }
}

fn describe(machine: &Machine) -> String {
    let firmware = match machine.firmware {
        Firmware::Bios => "BIOS",
        Firmware::Uefi { .. } => "UEFI",
    };
    let accelerator = match machine.accelerator {
        Accelerator::Kvm { .. } => "KVM",
        Accelerator::Tcg { .. } => "TCG",
    };
    format!("{} vCPU, {} MiB, {firmware}, {accelerator}", machine.cpus, machine.memory_mib)
}

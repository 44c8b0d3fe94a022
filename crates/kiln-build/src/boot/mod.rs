//! Booting: overlay, media, machine, and the first login.
//!
//! ```text
//!  base image (read-only, leased) ─ overlay ─┐
//!  keys or account, inputs ─ medium ─────────┼─► Machine ─► Vm ─► guest (its host key or certificate checked)
//!  firmware ─────────────────────────────────┘
//! ```
//! INVARIANT: a base image is never written: the machine gets an overlay of its own,
//! and a lease keeps the image on the shelf as long as the run needs it.

pub(crate) mod linux;
pub(crate) mod state;
pub(crate) mod windows;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kiln_guest::winrm::Recorder;
use kiln_library::{Check, ImageLease, ImageProgress};
use kiln_model::catalog::{DiskFormat, Login};
use kiln_model::event::Unit;
use kiln_model::plan::BuildPlan;
use kiln_qemu::disk::{BaseImage, DiskFormat as QemuFormat, Overlay};
use kiln_qemu::firmware::Firmware;
use kiln_qemu::host::Accelerator;
use kiln_qemu::machine::{Hardware, Machine, Network};
use kiln_qemu::portrait::Portrait;
use kiln_qemu::vm::{Vm, VmNotice};
use tokio::sync::broadcast::error::RecvError;

use crate::account::BuildAccount;
use crate::checkpoint::{Begin, Lineage};
use crate::context::Run;
use crate::error::BuildError;
use crate::guest::ConnectedGuest;
use crate::inputs::Inputs;
use crate::journal::Step;
use crate::password_file::PasswordFileError;
use crate::seed::{self, BUILD_USER};

/// Resets within this time belong to one restart.
const RESET_AGAIN: Duration = Duration::from_secs(5);
/// Room that a run needs beside the artifact before it starts at all, bytes.
const LEAST_ROOM: u64 = 1 << 30;

/// By what the run gets into its guest.
#[derive(Debug)]
pub enum WayIn {
    /// A Linux: keys that are made with its media.
    Keys,
    /// A Windows: an account.
    Account(BuildAccount),
}

/// Makes the account of this run, or reads the password of the image's own: what is not there ends the run before it
/// costs anything.
pub fn way_in(run: &Run) -> Result<WayIn, BuildError> {
    match &run.plan.source.login {
        Login::CloudInit => Ok(WayIn::Keys),
        Login::AnswerFile => Ok(WayIn::Account(BuildAccount::generate(BUILD_USER))),
        Login::Credentials(credentials) => {
            let step = run.journal.step("credentials", "read the password file");
            let account = BuildAccount::of_image(credentials)?;
            let least = Recorder::SHORTEST_SECRET;
            if run.transcript.is_some() && account.password().len() < least {
                let path = credentials.password_file().to_owned();
                return Err(PasswordFileError::TooShortToHide { path, least }.into());
            }
            step.succeed("");
            Ok(WayIn::Account(account))
        }
    }
}

/// Starts the machine and logs in.
pub async fn start(
    run: &Run,
    way_in: WayIn,
    inputs: &Inputs,
    lineage: &mut Lineage,
) -> Result<ConnectedGuest, BuildError> {
    match way_in {
        WayIn::Keys => {
            linux::start(run, inputs, lineage).await.map(|guest| ConnectedGuest::Linux(Box::new(guest)))
        }
        WayIn::Account(account) => {
            let guest = windows::start(run, account, inputs, lineage).await?;
            Ok(ConnectedGuest::Windows(Box::new(guest)))
        }
    }
}

/// What was kept turned out to be of no use: the next lesser thing is what the run begins with now.
///
/// # Errors
/// The run's own end, which is no fault of what was kept.
fn fall_back(run: &Run, lineage: &mut Lineage, error: &BuildError) -> Result<(), BuildError> {
    run.control.check()?;
    let why = error.sentence();
    if matches!(lineage.begins_with(), Begin::Warm(_)) {
        run.journal.warn(format!("the machine that was kept does not go on, and is booted: {why}"));
        lineage.begin_cold();
    } else {
        run.journal.warn(format!("the disk that was kept does not boot, and the base image is: {why}"));
        lineage.begin_with_base();
    }
    Ok(())
}

/// What the machine of this run is like, wherever its files lie.
pub async fn portrait(run: &Run) -> Result<Portrait, BuildError> {
    let machine = match run.plan.source.login {
        Login::CloudInit => linux::bare_machine(run).await?,
        Login::AnswerFile | Login::Credentials(_) => windows::bare_machine(run).await?,
    };
    Portrait::of(&machine, &[run.plan.machine.disk_bytes], &run.qemu)
        .map_err(BuildError::io("read", run.qemu.system()))
}

/// What a first boot is told, whatever the keys and passwords.
pub fn fingerprint(login: &Login) -> String {
    match login {
        Login::CloudInit => seed::fingerprint(),
        Login::AnswerFile => windows::fingerprint(),
        Login::Credentials(credentials) => windows::fingerprint_of_own(credentials.user()),
    }
}

/// The base image, whole, and kept on its shelf.
pub async fn base_in_use(run: &Run) -> Result<ImageLease, BuildError> {
    let source = &run.plan.source;
    let lease = run.library.use_image(source)?;
    let step = OnceLock::new();
    let read = |progress: ImageProgress| {
        if let ImageProgress::Reading { done, total } = progress {
            let step: &Step = step.get_or_init(|| run.journal.step("base", "check the base image"));
            step.progress(done, total, Unit::Bytes);
        }
    };
    run.library.verify(source, Check::IfChanged, &read, &run.control).await?;
    if let Some(step) = step.into_inner() {
        step.succeed("");
    }
    kiln_host::space::ensure_room(run.workspace.folder(), LEAST_ROOM)?;
    Ok(lease)
}

/// The run's own layer over the base image.
fn disk(run: &Run, path: &Path) -> Result<Overlay, BuildError> {
    let source = &run.plan.source;
    let base = BaseImage::open(run.qemu.img(), &source.path, disk_format(source.format))
        .map_err(|source| BuildError::Disk { act: "open the base image", source })?;
    let grow_to = (run.plan.machine.disk_bytes > source.virtual_size).then_some(run.plan.machine.disk_bytes);
    Overlay::create(run.qemu.img(), &base, path, grow_to)
        .map_err(|source| BuildError::Disk { act: "create the run's disk", source })
}

/// What is a machine's own, whatever plan it is of.
pub(crate) struct Places {
    pub name: String,
    pub serial_log: PathBuf,
    pub qemu_log: PathBuf,
    pub runtime_dir: PathBuf,
    pub disk_full_wait: Duration,
}

impl Places {
    /// Of the run's own machine.
    fn of(run: &Run) -> Self {
        Self {
            name: format!("kiln-{}", run.request.run_id.short()),
            serial_log: run.dir.serial_log(),
            qemu_log: run.dir.qemu_log(),
            runtime_dir: run.workspace.sockets().to_owned(),
            disk_full_wait: run.settings.disk_full_wait,
        }
    }
}

/// Found out, and said, once in a run.
async fn accelerator(run: &Run) -> Result<Accelerator, BuildError> {
    run.accelerator.get_or_try_init(|| find_accelerator(run)).await.cloned()
}

async fn find_accelerator(run: &Run) -> Result<Accelerator, BuildError> {
    let found = kiln_qemu::host::probe_accelerator(&run.qemu, &run.settings.cache_dir, &run.control).await?;
    if let Accelerator::Tcg { reason } = &found {
        run.journal.info(format!("emulating the processor (TCG): {reason}"));
    }
    if let Some(transcript) = &run.transcript {
        transcript.accelerator(&found);
    }
    Ok(found)
}

/// The machine of a plan, of the first generation, without disks and with an empty drive; `port` is that of its login.
fn of_plan(
    plan: &BuildPlan,
    accelerator: Accelerator,
    hardware: Hardware,
    port: u16,
    places: Places,
) -> Machine {
    Machine {
        name: places.name,
        accelerator,
        cpus: plan.machine.vcpus,
        memory_mib: plan.machine.memory_mib,
        firmware: Firmware::Bios,
        hardware,
        disks: Vec::new(),
        medium: None,
        network: Network::User { forward: vec![port] },
        smbios_serial: None,
        serial_log: places.serial_log,
        qemu_log: places.qemu_log,
        runtime_dir: places.runtime_dir,
        kernel: None,
        incoming: None,
        disk_full_wait: places.disk_full_wait,
    }
}

/// Lets the machine run.
async fn power_on(run: &Run, machine: Machine) -> Result<Vm, BuildError> {
    let step = run.journal.step("boot", format!("boot {}", describe(&machine)));
    run.log.say(format!("Starting the virtual machine: {}", describe(&machine)));
    let vm = Vm::start(&run.qemu, machine, &run.control).await?;
    report_notices(run, &vm);
    step.succeed("");
    Ok(vm)
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

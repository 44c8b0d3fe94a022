//! A Linux guest: cloud-init reads the build's account and keys from NoCloud media, and SSH answers.
//!
//! One that an earlier run kept goes on instead: its memory is read, and its first command gives it this run's time,
//! randomness and keys. Where that fails, its disk is booted; where there is none, the base image is.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use kiln_guest::{Guest, GuestFacts, HostKey, Limits, Login, Renewal};
use kiln_model::catalog::Generation;
use kiln_model::plan::BuildPlan;
use kiln_qemu::disk::Overlay;
use kiln_qemu::firmware::{Firmware, Ovmf};
use kiln_qemu::host::Accelerator;
use kiln_qemu::machine::{Hardware, Machine};
use kiln_qemu::media::{CLOUD_INIT_LABEL, Contents};
use kiln_qemu::vm::Vm;

use super::state::put_back;
use super::{Places, accelerator, base_in_use, disk, fall_back, power_on, report_notices};
use crate::checkpoint::{Begin, Earlier, Lineage, LineageKeys, LinuxKeys, UEFI_VARS};
use crate::context::Run;
use crate::error::BuildError;
use crate::guest::LinuxGuest;
use crate::inputs::Inputs;
use crate::medium::{self, OnMedium};
use crate::seed;

pub(crate) const SSH_PORT: u16 = 22;
/// As long as the service waits for a guest to answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(20 * 60);
/// A guest that has not told of its network by then is asked all the same.
const NETWORK_LIMIT: Duration = Duration::from_secs(30);
/// One that goes on has answered before.
const GO_ON_LIMIT: Duration = Duration::from_secs(60);

pub(super) async fn start(
    run: &Run,
    inputs: &Inputs,
    lineage: &mut Lineage,
) -> Result<LinuxGuest, BuildError> {
    let lease = base_in_use(run).await?;
    let Answering { vm, guest, facts, mut keys, on_medium } = loop {
        let tried = match lineage.begins_with() {
            Begin::Warm(earlier) => go_on(run, inputs, lineage, earlier).await,
            Begin::Cold(earlier) => boot(run, inputs, lineage, Some(earlier)).await,
            Begin::Base | Begin::Image(_) => break boot(run, inputs, lineage, None).await?,
        };
        match tried {
            Ok(answering) => break answering,
            Err(error) => fall_back(run, lineage, &error)?,
        }
    };
    keys.facts = Some(facts.clone());
    lineage.logged_in_by(LineageKeys::Linux(keys));
    Ok(LinuxGuest { vm, guest, facts, on_medium, lease })
}

/// A guest that we are logged in to.
struct Answering {
    vm: Vm,
    guest: Guest,
    facts: GuestFacts,
    /// By what the next run gets in.
    keys: LinuxKeys,
    on_medium: OnMedium,
}

/// The machine without its disks.
pub(super) async fn bare_machine(run: &Run) -> Result<Machine, BuildError> {
    machine(run, firmware(run)?, Vec::new(), None).await
}

/// From firmware to login, with the disk of `earlier` or the base image's.
async fn boot(
    run: &Run,
    inputs: &Inputs,
    lineage: &Lineage,
    earlier: Option<&Earlier>,
) -> Result<Answering, BuildError> {
    let step = run.journal.step("machine", "prepare the machine");
    let overlay = match earlier {
        Some(earlier) => lineage.layer_over(run, earlier)?,
        None => disk(run, &lineage.first_layer(run)?)?,
    };
    // A name of its own: a disk that was kept is a new machine to cloud-init, which puts these keys in place.
    let keys = LinuxKeys::generate(run.request.run_id.as_str()).map_err(BuildError::Keys)?;
    // A machine looks for its seed sooner than large inputs are written.
    let seed = write_medium(run, &OnMedium::default(), &keys).await?;
    let machine = Machine { medium: Some(seed), ..machine(run, firmware(run)?, vec![overlay], None).await? };
    step.succeed("");
    let writing = async {
        let on_medium = OnMedium::choose(run, inputs, lineage.done()).await?;
        if !on_medium.is_empty() {
            write_medium(run, &on_medium, &keys).await?;
        }
        Ok(on_medium)
    };
    let ((vm, guest), on_medium) = tokio::try_join!(up(run, machine, &keys), writing)?;
    if !on_medium.is_empty() {
        vm.insert_medium(&run.workspace.seed(), &run.control).await?;
    }

    let facts = look(run, &vm, &guest).await?;
    Ok(Answering { vm, guest, facts, keys, on_medium })
}

/// Lets the machine run, and logs in.
async fn up(run: &Run, machine: Machine, keys: &LinuxKeys) -> Result<(Vm, Guest), BuildError> {
    let vm = power_on(run, machine).await?;
    let step = run.journal.step("connect", "wait for SSH");
    run.log.say("Waiting for SSH to become available...");
    run.log.say("Waiting for SSH, up to timeout: 20m0s");
    let login = login(&vm, keys, run).await?;
    vm.network_used(&run.control, NETWORK_LIMIT).await?;
    let control = run.control.within(CONNECT_LIMIT);
    let connect = Guest::connect(login, |_attempt| {}, &control);
    let guest = vm.guard(&run.control, connect).await?.map_err(|error| BuildError::Connect(error.into()))?;
    run.log.say("Connected to SSH!");
    step.succeed("");
    Ok((vm, guest))
}

/// From a kept machine to this run's own.
async fn go_on(
    run: &Run,
    inputs: &Inputs,
    lineage: &Lineage,
    earlier: &Earlier,
) -> Result<Answering, BuildError> {
    let step = run.journal.step("restore", "let the kept machine go on");
    let overlay = lineage.layer_over(run, earlier)?;
    let foreign = || BuildError::Checkpoint { detail: "its keys are of another kind of guest".to_owned() };
    let old = earlier.keys.linux().ok_or_else(foreign)?.clone();
    let mut keys = LinuxKeys::generate(&old.instance_id).map_err(BuildError::Keys)?;
    let firmware = firmware(run)?;
    if let (Firmware::Uefi { vars, .. }, Some(kept)) = (&firmware, earlier.other(UEFI_VARS)) {
        put_back(Some(kept), "UEFI variables were", vars)?;
    }
    let machine = machine(run, firmware, vec![overlay], earlier.memory()).await?;
    let starting = Vm::start(&run.qemu, machine, &run.control);
    let writing = async {
        let on_medium = OnMedium::choose(run, inputs, lineage.done()).await?;
        let seed = write_medium(run, &on_medium, &keys).await?;
        Ok::<_, BuildError>((on_medium, seed))
    };
    let (vm, written) = tokio::join!(starting, writing);
    let (vm, (on_medium, seed)) = (vm?, written?);
    report_notices(run, &vm);
    vm.insert_medium(&seed, &run.control).await?;

    let control = run.control.within(GO_ON_LIMIT);
    // It is there: nothing sent to it is lost.
    let limits = Limits { first_banner: Limits::default().banner, ..Limits::default() };
    let connect = Guest::connect_with(login(&vm, &old, run).await?, limits, |_attempt| {}, &control);
    let guest = vm.guard(&control, connect).await?.map_err(|error| BuildError::Connect(error.into()))?;
    let renewal = Renewal { now: SystemTime::now(), login_key: &keys.login, host_key: &keys.host };
    let renewed = vm.guard(&control, guest.renew(renewal, &control)).await?;
    let (guest, host_key) =
        renewed.map_err(|source| BuildError::Guest { act: "renew the guest", source: source.into() })?;
    if host_key == HostKey::Kept {
        keys.host = old.host;
    }
    run.log.say("The machine goes on; connected to SSH!");
    let facts = match old.facts {
        Some(facts) => {
            check_growth(run, &vm, &guest).await?;
            step.succeed(facts.os_name.clone());
            facts
        }
        None => {
            step.succeed("");
            look(run, &vm, &guest).await?
        }
    };
    Ok(Answering { vm, guest, facts, keys, on_medium })
}

/// The medium of this machine: what cloud-init is told, and the run's files. It takes the place of the one before, which a
/// machine may hold still.
async fn write_medium(run: &Run, on_medium: &OnMedium, keys: &LinuxKeys) -> Result<PathBuf, BuildError> {
    let files = seed::files(&keys.instance_id, &keys.login, &keys.host).map_err(BuildError::Keys)?;
    let path = run.workspace.seed();
    let seed = [
        ("user-data", Contents::Bytes(files.user_data.as_bytes())),
        ("meta-data", Contents::Bytes(files.meta_data.as_bytes())),
    ];
    medium::write(run, &path, CLOUD_INIT_LABEL, on_medium, &seed).await?;
    Ok(path)
}

/// Fresh from the package, where there are variables.
fn firmware(run: &Run) -> Result<Firmware, BuildError> {
    Ok(match run.plan.source.generation {
        Generation::V1 => Firmware::Bios,
        Generation::V2 => Ovmf::find()?.for_machine(run.workspace.uefi_vars())?,
    })
}

/// Everything the machine is made of, with an empty drive.
async fn machine(
    run: &Run,
    firmware: Firmware,
    disks: Vec<Overlay>,
    incoming: Option<PathBuf>,
) -> Result<Machine, BuildError> {
    let machine = of_plan(&run.plan, accelerator(run).await?, Places::of(run));
    Ok(Machine { firmware, disks, incoming, ..machine })
}

/// The machine of a plan, of the first generation, without disks and with an empty drive.
pub(crate) fn of_plan(plan: &BuildPlan, accelerator: Accelerator, places: Places) -> Machine {
    let machine = super::of_plan(plan, accelerator, Hardware::Paravirtual, SSH_PORT, places);
    Machine { smbios_serial: Some(seed::SMBIOS_SERIAL.to_owned()), ..machine }
}

/// By `keys`, on the port that the machine got.
async fn login(vm: &Vm, keys: &LinuxKeys, run: &Run) -> Result<Login, BuildError> {
    Ok(Login {
        user: seed::BUILD_USER.to_owned(),
        key: keys.login.clone(),
        host_key: keys.host.public(),
        addr: vm.forwarded(SSH_PORT, &run.control).await?,
    })
}

async fn look(run: &Run, vm: &Vm, guest: &Guest) -> Result<GuestFacts, BuildError> {
    let step = run.journal.step("facts", "look at the guest");
    let facts = vm
        .guard(&run.control, guest.facts(&run.control))
        .await?
        .map_err(|source| BuildError::Guest { act: "read the guest's facts", source: source.into() })?;
    check_growth(run, vm, guest).await?;
    step.succeed(facts.os_name.clone());
    Ok(facts)
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

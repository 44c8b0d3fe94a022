//! Opening a machine that was left.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kiln_guest::{Guest, Limits};
use kiln_host::lock::FileLock;
use kiln_host::wait::Control;
use kiln_library::{ImageLease, Library};
use kiln_model::catalog::Generation;
use kiln_model::plan::BuildPlan;
use kiln_qemu::disk::Overlay;
use kiln_qemu::firmware::{Firmware, Ovmf};
use kiln_qemu::host::Qemu;
use kiln_qemu::machine::Machine;
use kiln_qemu::vm::Vm;

use super::{LeftMachine, MACHINE_FORMAT, Places};
use crate::boot::linux;
use crate::context::WorkerSettings;
use crate::error::{BuildError, ReachError};
use crate::run_dir::{RunDir, RunDirError, RunRequest};
use crate::share::{OVERHEAD_MIB, Share, Shares};
use crate::workspace;

/// The folder of a session begins with this, in the run's directory.
const FOLDER: &str = "debug-";
/// A machine that goes on answers soon, or something is wrong with it.
const GO_ON_LIMIT: Duration = Duration::from_secs(60);
/// One that boots takes as long as it took the run.
const BOOT_LIMIT: Duration = Duration::from_secs(20 * 60);

/// Why a machine cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "the run {} left no machine: it did not fail in a customizer, or was asked for none (kiln build --keep-on-error, or \
         \"onCustomizerError\": \"abort\" in the template's errorHandling)",
        .0.display()
    )]
    NothingLeft(PathBuf),
    #[error("the run {} is under way, or its machine is open already", .0.display())]
    InUse(PathBuf),
    #[error("{} is damaged, or of a newer kiln: {detail}", .path.display())]
    Record { path: PathBuf, detail: String },
    #[error("the plan of the run cannot be used")]
    Plan(#[source] kiln_model::FormatError),
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// A machine that was left and runs again, on a layer of its own. Its end is the session's.
#[derive(Debug)]
pub struct Session {
    vm: Vm,
    guest: Guest,
    cause: String,
    left_at: String,
    /// Why the machine's memory did not go on, where it did not.
    booted: Option<String>,
    serial_log: PathBuf,
    folder: Folder,
    _share: Share,
    _lease: ImageLease,
    /// The run stays, whatever is cleaned up, and nobody else opens its machine meanwhile.
    _lock: FileLock,
}

impl Session {
    /// Lets the machine go on, or boots its disk where its memory does not.
    pub async fn open(
        dir: &RunDir,
        settings: &WorkerSettings,
        mut say: impl FnMut(&str),
        control: &Control,
    ) -> Result<Self, OpenError> {
        if !super::is_left(dir) {
            return Err(OpenError::NothingLeft(dir.path().to_owned()));
        }
        let locked = FileLock::try_exclusive(dir.lock()).map_err(BuildError::io("lock", dir.lock()))?;
        let lock = locked.ok_or_else(|| OpenError::InUse(dir.path().to_owned()))?;
        let request = dir.read_request()?;
        let text = std::fs::read_to_string(dir.plan()).map_err(BuildError::io("read", dir.plan()))?;
        let plan = BuildPlan::from_json(&text).map_err(OpenError::Plan)?;
        let left = read_record(&Places::of(dir).record())?;
        let lease = Library::open(&request.library)
            .and_then(|library| library.use_image(&plan.source))
            .map_err(BuildError::from)?;
        let shares = Shares::open(&settings.runtime_dir, settings.memory_mib).map_err(BuildError::Memory)?;
        let waits = |standing| say(&format!("waiting for memory: {standing}"));
        let need = plan.machine.memory_mib + OVERHEAD_MIB;
        let taken = shares.take(request.run_id.as_str(), need, waits, control).await;
        let share = taken.map_err(BuildError::Memory)?;
        let folder = Folder::create(dir, &request, settings)?;
        let opening = Opening { dir, plan: &plan, left: &left, settings, folder: &folder };

        let mut booted = None;
        let mut opened = None;
        if left.memory {
            say("letting the machine go on");
            match opening.go_on(control).await {
                Ok(machine) => opened = Some(machine),
                Err(error) => {
                    control.check().map_err(BuildError::from)?;
                    booted = Some(error.sentence());
                }
            }
        }
        let (vm, guest) = match opened {
            Some(opened) => opened,
            None => {
                say("booting the machine's disk");
                opening.boot(control).await?
            }
        };
        let (cause, left_at) = (left.cause.clone(), left.left_at.clone());
        let serial_log = folder.path.join("serial.log");
        Ok(Self {
            vm,
            guest,
            cause,
            left_at,
            booted,
            serial_log,
            folder,
            _share: share,
            _lease: lease,
            _lock: lock,
        })
    }

    /// What ended the run.
    pub fn cause(&self) -> &str {
        &self.cause
    }

    /// RFC 3339, UTC.
    pub fn left_at(&self) -> &str {
        &self.left_at
    }

    /// Why the machine was booted and does not go on from where it was, where that is so.
    pub fn booted(&self) -> Option<&str> {
        self.booted.as_deref()
    }

    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// What OpenSSH's client is told to get in: a key and the one host it expects, in files of this session.
    pub fn ssh_arguments(&self) -> Result<Vec<String>, BuildError> {
        let login = self.guest.login();
        let key = self.folder.path.join("key");
        let private = login.key.private_openssh().map_err(BuildError::Keys)?;
        let known = self.folder.path.join("known_hosts");
        for (path, text) in [(&key, private.expose()), (&known, &format!("kiln {}\n", login.host_key))] {
            kiln_host::publish::write_file(path, text.as_bytes(), 0o600)
                .map_err(BuildError::io("write", path))?;
        }
        let mut words: Vec<String> =
            ["-F", "none", "-i"].map(str::to_owned).into_iter().chain([key.display().to_string()]).collect();
        let known = format!("UserKnownHostsFile={}", known.display());
        for option in [
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=yes",
            "HostKeyAlias=kiln",
            "GlobalKnownHostsFile=none",
            "LogLevel=ERROR",
            &known,
        ] {
            words.extend(["-o".to_owned(), option.to_owned()]);
        }
        words.extend(["-p".to_owned(), login.addr.port().to_string()]);
        words.push(format!("{}@{}", login.user, login.addr.ip()));
        Ok(words)
    }

    /// Makes the guest's serial console a socket, and tells where. All it says from now on is in [`Session::serial_log`],
    /// too.
    pub async fn console(&self, control: &Control) -> Result<PathBuf, BuildError> {
        let socket = self.folder.sockets.join("console");
        self.vm.open_console(&socket, &self.serial_log, control).await?;
        Ok(socket)
    }

    pub fn serial_log(&self) -> &Path {
        &self.serial_log
    }

    /// Forwards a port of the guest to one of 127.0.0.1.
    pub async fn forward(&self, port: u16, control: &Control) -> Result<SocketAddr, BuildError> {
        Ok(self.vm.forward(port, control).await?)
    }

    /// The machine's screen as a PNG file, for one that has a screen.
    pub async fn screenshot(&self, path: &Path, control: &Control) -> Result<(), BuildError> {
        Ok(self.vm.screenshot(path, control).await?)
    }

    /// Waits for something as long as the machine lives.
    pub async fn guard<T>(
        &self,
        control: &Control,
        future: impl Future<Output = T>,
    ) -> Result<T, BuildError> {
        Ok(self.vm.guard(control, future).await?)
    }

    /// Ends the machine; what was done in it is gone.
    pub async fn close(self) {
        self.guest.close().await;
        self.vm.kill().await;
    }
}

/// All that opening needs.
struct Opening<'a> {
    dir: &'a RunDir,
    plan: &'a BuildPlan,
    left: &'a LeftMachine,
    settings: &'a WorkerSettings,
    folder: &'a Folder,
}

impl Opening<'_> {
    async fn go_on(&self, control: &Control) -> Result<(Vm, Guest), BuildError> {
        let (qemu, machine) = self.machine(control).await?;
        let machine = Machine { incoming: Some(Places::of(self.dir).memory()), ..machine };
        let vm = Vm::start(&qemu, machine, control).await?;
        vm.insert_medium(&self.medium(), control).await?;
        let limits = Limits { first_banner: Limits::default().banner, ..Limits::default() };
        let guest = self.log_in(&vm, limits, GO_ON_LIMIT, control).await?;
        self.set_clock(&vm, &guest, control).await?;
        Ok((vm, guest))
    }

    async fn boot(&self, control: &Control) -> Result<(Vm, Guest), BuildError> {
        let (qemu, machine) = self.machine(control).await?;
        let machine = Machine { medium: Some(self.medium()), ..machine };
        let vm = Vm::start(&qemu, machine, control).await?;
        let guest = self.log_in(&vm, Limits::default(), BOOT_LIMIT, control).await?;
        Ok((vm, guest))
    }

    /// The run's own medium: what cloud-init was told, which it must find again, and the run's inputs.
    fn medium(&self) -> PathBuf {
        self.dir.work().join("seed.iso")
    }

    /// The run's machine on a layer of this session, with nothing to go on from.
    async fn machine(&self, control: &Control) -> Result<(Qemu, Machine), BuildError> {
        let qemu = Qemu::find(&self.settings.search_path)?;
        let accelerator =
            kiln_qemu::host::probe_accelerator(&qemu, &self.settings.cache_dir, control).await?;
        let layer = self.folder.path.join("disk0.qcow2");
        let disk = Overlay::above(qemu.img(), &self.left.disk, self.left.disk_bytes, layer)
            .map_err(|source| BuildError::Disk { act: "create the session's disk", source })?;
        let firmware = match self.plan.source.generation {
            Generation::V1 => Firmware::Bios,
            Generation::V2 => {
                let own = self.folder.path.join("uefi-vars.fd");
                let firmware = Ovmf::find()?.for_machine(own.clone())?;
                let kept = Places::of(self.dir).uefi_vars();
                std::fs::copy(&kept, own).map_err(BuildError::io("copy", kept))?;
                firmware
            }
        };
        let places = linux::Places {
            name: "kiln-debug".to_owned(),
            serial_log: self.folder.path.join("serial.log"),
            qemu_log: self.folder.path.join("qemu.log"),
            runtime_dir: self.folder.sockets.clone(),
            disk_full_wait: self.settings.disk_full_wait,
        };
        let machine = linux::of_plan(self.plan, accelerator, places);
        Ok((qemu, Machine { firmware, disks: vec![disk], ..machine }))
    }

    async fn log_in(
        &self,
        vm: &Vm,
        limits: Limits,
        within: Duration,
        control: &Control,
    ) -> Result<Guest, BuildError> {
        let addr = vm.forwarded(linux::SSH_PORT, control).await?;
        let login = self.left.login(addr).map_err(BuildError::Keys)?;
        let within = control.within(within);
        let connect = Guest::connect_with(login, limits, |_attempt| {}, &within);
        vm.guard(control, connect).await?.map_err(|error| BuildError::Connect(ReachError::Ssh(error)))
    }

    /// Whoever looks at logs wants to know when it is. Keys and randomness stay: nothing comes of this machine.
    async fn set_clock(&self, vm: &Vm, guest: &Guest, control: &Control) -> Result<(), BuildError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let root = if self.left.user == "root" { "" } else { "sudo -n " };
        let command = format!("{root}date -u -s @{now}");
        let output = vm.guard(control, guest.exec(&command, b"", control)).await?;
        match output {
            Ok(output) if output.success() => {}
            // A customizer may have broken just that.
            Ok(output) => tracing::warn!(said = %output.excerpt(), "the guest's clock was not set"),
            Err(error) => {
                return Err(BuildError::Guest { act: "set the clock", source: ReachError::Ssh(error) });
            }
        }
        Ok(())
    }
}

/// A session's own files.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    sockets: PathBuf,
}

impl Folder {
    /// Makes it, and removes those of sessions that were killed: whoever has the run's lock is the only one.
    fn create(dir: &RunDir, request: &RunRequest, settings: &WorkerSettings) -> Result<Self, BuildError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let read = BuildError::io("read", dir.path());
        let old = std::fs::read_dir(dir.path()).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
        for entry in old.map_err(read)? {
            if entry.file_name().to_string_lossy().starts_with(FOLDER) {
                std::fs::remove_dir_all(entry.path()).map_err(BuildError::io("remove", entry.path()))?;
            }
        }
        let sockets = workspace::sockets(&settings.runtime_dir, &request.run_id);
        match std::fs::remove_dir_all(&sockets) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(BuildError::io("remove", sockets)(error));
            }
            _ => {}
        }
        let path = dir.path().join(format!("{FOLDER}{}", std::process::id()));
        for folder in [&path, &sockets] {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.map_err(BuildError::io("create", folder))?;
        }
        Ok(Self { path, sockets })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for folder in [&self.path, &self.sockets] {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

fn read_record(path: &Path) -> Result<LeftMachine, OpenError> {
    #[derive(serde::Deserialize)]
    struct Head {
        format: u32,
    }
    let damaged = |detail: String| OpenError::Record { path: path.to_owned(), detail };
    let bytes = std::fs::read(path).map(zeroize::Zeroizing::new).map_err(BuildError::io("read", path))?;
    // serde's own words would repeat what is in it.
    let head: Head =
        serde_json::from_slice(&bytes).map_err(|_| damaged("it has no format number".to_owned()))?;
    if head.format > MACHINE_FORMAT {
        return Err(damaged(format!(
            "it has format {}; this program reads formats up to {MACHINE_FORMAT}",
            head.format
        )));
    }
    serde_json::from_slice(&bytes).map_err(|_| damaged("it is not what this program writes".to_owned()))
}

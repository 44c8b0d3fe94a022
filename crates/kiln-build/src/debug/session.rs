//! Opening a machine that was left.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kiln_guest::os::windows::renew::{self, Renewed};
use kiln_guest::winrm::{CommandLine, Password, WinrmGuest, WinrmLimits, WinrmLogin};
use kiln_guest::{Guest, Limits, Login, Stream};
use kiln_host::lock::FileLock;
use kiln_host::wait::Control;
use kiln_library::{ImageLease, Library};
use kiln_model::catalog::{Generation, Os};
use kiln_model::plan::BuildPlan;
use kiln_qemu::disk::Overlay;
use kiln_qemu::firmware::{Firmware, Ovmf};
use kiln_qemu::host::Qemu;
use kiln_qemu::machine::{Machine, Tpm};
use kiln_qemu::tpm;
use kiln_qemu::vm::Vm;
use zeroize::Zeroizing;

use super::{LeftMachine, MACHINE_FORMAT, Places};
use crate::account::BuildAccount;
use crate::boot::state::{fresh_folder, put_back};
use crate::boot::{self, linux, windows};
use crate::checkpoint::{LineageKeys, LinuxKeys, TPM_STATE};
use crate::context::WorkerSettings;
use crate::error::{BuildError, ReachError};
use crate::run_dir::{RunDir, RunDirError, RunRequest};
use crate::seed;
use crate::share::{OVERHEAD_MIB, Share, Shares};
use crate::workspace;

/// The folder of a session begins with this, in the run's directory.
const FOLDER: &str = "debug-";
/// A machine that goes on answers soon, or something is wrong with it; PowerShell takes its time to start.
const GO_ON_LIMIT: Duration = Duration::from_secs(5 * 60);
/// One that boots takes as long as it took the run.
const BOOT_LIMIT: Duration = Duration::from_secs(60 * 60);

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
    inside: Inside,
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

/// The way into the guest.
enum Inside {
    Linux(Guest),
    Windows(WinrmGuest),
}

impl std::fmt::Debug for Inside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Linux(_) => "Linux",
            Self::Windows(_) => "Windows",
        })
    }
}

/// What is inside the machine that a run left.
pub fn system_of(dir: &RunDir) -> Result<Os, OpenError> {
    Ok(read_plan(dir)?.source.os)
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
        let plan = read_plan(dir)?;
        let left = read_record(&Places::of(dir).record())?;
        let keys = read_keys(&Places::of(dir).keys())?;
        let lease = Library::open(&request.library)
            .and_then(|library| library.use_image(&plan.source))
            .map_err(BuildError::from)?;
        let shares = Shares::open(&settings.runtime_dir, settings.memory_mib).map_err(BuildError::Memory)?;
        let waits = |standing| say(&format!("waiting for memory: {standing}"));
        let need = plan.machine.memory_mib + OVERHEAD_MIB;
        let taken = shares.take(request.run_id.as_str(), need, waits, control).await;
        let share = taken.map_err(BuildError::Memory)?;
        let folder = Folder::create(dir, &request, settings)?;
        let opening = Opening { dir, plan: &plan, left: &left, keys: &keys, settings, folder: &folder };

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
        let (vm, inside) = match opened {
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
            inside,
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

    /// Runs a command of cmd.exe over WinRM to its end, and hands over both outputs as they come. Returns its exit code;
    /// `None` for a Linux, which [`Session::ssh_arguments`] is for.
    pub async fn command(
        &self,
        line: &str,
        on_output: impl FnMut(Stream, &[u8]) + Send,
        control: &Control,
    ) -> Result<Option<u32>, BuildError> {
        let Inside::Windows(guest) = &self.inside else { return Ok(None) };
        let line = CommandLine::cmd("the command", line);
        let ended = self.vm.guard(control, guest.run(&line, None, on_output, control)).await?;
        match ended {
            Ok(end) => Ok(Some(end.code)),
            Err(error) => Err(BuildError::Guest { act: "run the command", source: error.into() }),
        }
    }

    /// What OpenSSH's client is told to get in: a key and the one host it expects, in files of this session. `None` for a
    /// Windows.
    pub fn ssh_arguments(&self) -> Result<Option<Vec<String>>, BuildError> {
        let Inside::Linux(guest) = &self.inside else { return Ok(None) };
        let login = guest.login();
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
        Ok(Some(words))
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
        match self.inside {
            Inside::Linux(guest) => guest.close().await,
            Inside::Windows(guest) => guest.close().await,
        }
        self.vm.kill().await;
    }
}

/// All that opening needs.
struct Opening<'a> {
    dir: &'a RunDir,
    plan: &'a BuildPlan,
    left: &'a LeftMachine,
    keys: &'a LineageKeys,
    settings: &'a WorkerSettings,
    folder: &'a Folder,
}

impl Opening<'_> {
    async fn go_on(&self, control: &Control) -> Result<(Vm, Inside), BuildError> {
        let (qemu, machine) = self.machine(control).await?;
        let machine = Machine { incoming: Some(Places::of(self.dir).memory()), ..machine };
        let vm = Vm::start(&qemu, machine, control).await?;
        if let Some(medium) = self.medium() {
            vm.insert_medium(&medium, control).await?;
        }
        match self.enter(&vm, control).await {
            Ok(inside) => Ok((vm, inside)),
            Err(error) => {
                // Its layer and its sockets are wanted for the next try.
                vm.kill().await;
                Err(error)
            }
        }
    }

    async fn enter(&self, vm: &Vm, control: &Control) -> Result<Inside, BuildError> {
        let inside = self.log_in(vm, true, GO_ON_LIMIT, control).await?;
        self.set_clock(vm, &inside, control).await?;
        Ok(inside)
    }

    async fn boot(&self, control: &Control) -> Result<(Vm, Inside), BuildError> {
        let (qemu, machine) = self.machine(control).await?;
        let vm = Vm::start(&qemu, Machine { medium: self.medium(), ..machine }, control).await?;
        let inside = self.log_in(&vm, false, BOOT_LIMIT, control).await?;
        Ok((vm, inside))
    }

    /// The run's own medium: what cloud-init was told, which it must find again, and the run's inputs.
    fn medium(&self) -> Option<PathBuf> {
        let name = match self.keys {
            LineageKeys::Linux(_) => "seed.iso",
            LineageKeys::Windows(_) => "inputs.iso",
        };
        Some(self.dir.work().join(name)).filter(|medium| medium.is_file())
    }

    /// The run's machine on a layer of this session, with nothing to go on from.
    async fn machine(&self, control: &Control) -> Result<(Qemu, Machine), BuildError> {
        let qemu = Qemu::find(&self.settings.search_path)?;
        let accelerator =
            kiln_qemu::host::probe_accelerator(&qemu, &self.settings.cache_dir, control).await?;
        let layer = self.folder.path.join("disk0.qcow2");
        let disk = Overlay::above(qemu.img(), &self.left.disk, self.left.disk_bytes, layer)
            .map_err(|source| BuildError::Disk { act: "create the session's disk", source })?;
        let places = boot::Places {
            name: "kiln-debug".to_owned(),
            serial_log: self.folder.path.join("serial.log"),
            qemu_log: self.folder.path.join("qemu.log"),
            runtime_dir: self.folder.sockets.clone(),
            disk_full_wait: self.settings.disk_full_wait,
        };
        let windows = matches!(self.keys, LineageKeys::Windows(_));
        let (kept, own_vars) = (Places::of(self.dir), self.folder.path.join("uefi-vars.fd"));
        let firmware = match (self.plan.source.generation, windows) {
            (Generation::V1, _) => Firmware::Bios,
            (Generation::V2, false) => Ovmf::find()?.for_machine(&own_vars)?,
            (Generation::V2, true) => Ovmf::find_secure()?.for_machine(&own_vars)?,
        };
        let mut tpm = None;
        if let Firmware::Uefi { .. } = &firmware {
            put_back(Some(kept.uefi_vars()), "UEFI variables were", &own_vars)?;
            if windows {
                let program = tpm::find(&self.settings.search_path)?;
                let state = self.folder.path.join("tpm");
                fresh_folder(&state)?;
                let from = Some(kept.state(TPM_STATE));
                put_back(from, "TPM's state was", &state.join(TPM_STATE))?;
                tpm = Some(Tpm { program, state, log: self.folder.path.join("tpm.log") });
            }
        }
        let machine = match self.keys {
            LineageKeys::Linux(_) => linux::of_plan(self.plan, accelerator, places),
            LineageKeys::Windows(_) => {
                let drivers = self.left.drivers.ok_or_else(|| BuildError::Checkpoint {
                    detail: "the record does not tell the drivers of its Windows".to_owned(),
                })?;
                windows::of_plan(self.plan, accelerator, drivers.into(), tpm, places)
            }
        };
        Ok((qemu, Machine { firmware, disks: vec![disk], ..machine }))
    }

    /// `there` for a guest that is up already: nothing sent to it is lost.
    async fn log_in(
        &self,
        vm: &Vm,
        there: bool,
        within: Duration,
        control: &Control,
    ) -> Result<Inside, BuildError> {
        let within = control.within(within);
        match self.keys {
            LineageKeys::Linux(keys) => {
                let addr = vm.forwarded(linux::SSH_PORT, control).await?;
                let mut limits = Limits::default();
                if there {
                    limits.first_banner = limits.banner;
                }
                let connect = Guest::connect_with(login(keys, addr), limits, |_attempt| {}, &within);
                let guest = vm.guard(control, connect).await?;
                guest.map(Inside::Linux).map_err(|error| BuildError::Connect(ReachError::Ssh(error)))
            }
            LineageKeys::Windows(keys) => {
                let own = windows::own_credentials(self.plan);
                let addr = vm.forwarded(windows::port(own), control).await?;
                let password = match (keys.made(), own) {
                    (Some(made), _) => Password::new(made.own),
                    (None, Some(own)) => Password::new(BuildAccount::of_image(own)?.password()),
                    (None, None) => {
                        return Err(BuildError::Checkpoint { detail: "no password was kept".to_owned() });
                    }
                };
                let transport = windows::kept_transport(self.plan, keys)?;
                let login = WinrmLogin { addr, transport, user: keys.user.clone(), password, recorder: None };
                let connect = WinrmGuest::connect_with(login, WinrmLimits::default(), |_attempt| {}, &within);
                let guest = vm.guard(control, connect).await?;
                guest.map(Inside::Windows).map_err(|error| BuildError::Connect(ReachError::Winrm(error)))
            }
        }
    }

    /// Whoever looks at logs wants to know when it is. Keys, passwords and randomness stay: nothing comes of this machine.
    async fn set_clock(&self, vm: &Vm, inside: &Inside, control: &Control) -> Result<(), BuildError> {
        const ACT: &str = "set the clock";
        let now = SystemTime::now();
        let failed = |source: ReachError| BuildError::Guest { act: ACT, source };
        // A customizer may have broken just that.
        let not_set = match inside {
            Inside::Linux(guest) => {
                let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
                let root = if guest.login().user == "root" { "" } else { "sudo -n " };
                let command = format!("{root}date -u -s @{seconds}");
                let said = vm.guard(control, guest.exec(&command, b"", control)).await?;
                let said = said.map_err(|error| failed(error.into()))?;
                (!said.success()).then(|| said.excerpt())
            }
            Inside::Windows(guest) => {
                let text = renew::renew(now, None);
                let said = vm.guard(control, guest.ask_powershell(ACT, &text, control)).await?;
                let said = said.map_err(|error| failed(error.into()))?;
                let done = Renewed::parse(&said.text()).is_some_and(|renewed| renewed.done);
                (!done).then(|| said.excerpt())
            }
        };
        if let Some(said) = not_set {
            tracing::warn!(%said, "the guest's clock was not set");
        }
        Ok(())
    }
}

fn login(keys: &LinuxKeys, addr: SocketAddr) -> Login {
    Login { user: seed::BUILD_USER.to_owned(), key: keys.login.clone(), host_key: keys.host.public(), addr }
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
    let bytes = std::fs::read(path).map_err(BuildError::io("read", path))?;
    let head: Head =
        serde_json::from_slice(&bytes).map_err(|_| damaged("it has no format number".to_owned()))?;
    if head.format > MACHINE_FORMAT {
        return Err(damaged(format!(
            "it has format {}; this program reads formats up to {MACHINE_FORMAT}",
            head.format
        )));
    }
    serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))
}

fn read_plan(dir: &RunDir) -> Result<BuildPlan, OpenError> {
    let text = std::fs::read_to_string(dir.plan()).map_err(BuildError::io("read", dir.plan()))?;
    BuildPlan::from_json(&text).map_err(OpenError::Plan)
}

fn read_keys(path: &Path) -> Result<LineageKeys, OpenError> {
    let bytes = std::fs::read(path).map(Zeroizing::new).map_err(BuildError::io("read", path))?;
    LineageKeys::from_bytes(&bytes).map_err(|detail| OpenError::Record { path: path.to_owned(), detail })
}

//! A running machine.
//!
//! ```text
//!   Vm::start      listen, start QEMU (paused), QEMU connects, memory of an earlier machine, let the guest go
//!      │ guard(…)                  every wait on the guest goes through here
//!      │ freeze(…) ──► Frozen      the machine as it was, for another to go on from ([`freeze`])
//!      │ power_down, wait_shutdown ──► StoppedMachine   QEMU ended with 0 after the guest switched itself off
//!      ▼ kill, drop                ──► nothing
//! ```
//!
//! Who owns what: the [`Vm`] owns the QEMU process (which dies with us), the control connection and the machine's disks.
//! One task follows QEMU's events ([`follow`]); all else only looks at what it has seen.
//!
//! How it fails: whatever ends the guest early ends every wait at once, with a [`VmError`] that says what it was: QEMU's
//! own exit with the end of its log, a panic, a disk error, a full disk that nobody emptied.
//!
//! INVARIANT: every wait on a guest also waits for QEMU's exit, QMP events, cancellation and the deadline. There is no
//! unbounded wait. Guarded here: [`Vm::guard`] is the only way to wait for something in a guest.

mod drive;
mod error;
mod follow;
mod freeze;

use std::fs::{DirBuilder, File, OpenOptions};
use std::future::Future;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_host::process::{Child, Invocation, Sink, SpawnOptions, describe_status};
use kiln_host::wait::Control;
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::{Mutex, broadcast, watch};

use drive::Drive;
pub use error::VmError;
use follow::{Follower, Seen};
pub use freeze::{FreezeTo, Frozen, MEMORY_LIMIT};

use crate::argv::{SERIAL, arguments, disk_node, qmp_socket, tpm_socket};
use crate::disk::{Overlay, StoppedMachine};
use crate::firmware::Firmware;
use crate::host::Qemu;
use crate::machine::{Hardware, Machine, Tpm};
use crate::qmp::{Qmp, QmpError};

/// QEMU is up in a second; a host that swaps may take longer.
const START_LIMIT: Duration = Duration::from_secs(60);
/// A guest that is still starting has nobody who listens to the power button yet: it is pressed again.
const PRESS_AGAIN: Duration = Duration::from_secs(15);
/// From SIGKILL to the end: QEMU may be writing out a page.
const KILL_LIMIT: Duration = Duration::from_secs(30);
/// From QEMU's end until its last events are read, which are in the socket already.
const LAST_EVENTS_LIMIT: Duration = Duration::from_secs(5);
const LOG_END: u64 = 4 << 10;
/// Notices are few; who lags behind this many gets the newest.
const NOTICES: usize = 64;

/// What a user would want to know while the guest lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmNotice {
    /// The guest is paused: the file system of `path` has no room. It goes on by itself if room is made within `wait`.
    DiskFull { path: PathBuf, wait: Duration },
    /// There is room again.
    GoesOn { path: PathBuf },
    /// The guest restarted itself, for the `count`th time.
    Reset { count: u32 },
}

/// A disk's uppermost layer: QEMU's name of its node, and the file.
#[derive(Debug)]
struct Top {
    node: String,
    path: PathBuf,
}

type Tops = Arc<std::sync::Mutex<Vec<Top>>>;

/// A machine whose QEMU runs. Dropping it kills QEMU.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    qmp: Qmp,
    seen: watch::Receiver<Seen>,
    notices: broadcast::Sender<VmNotice>,
    disks: Vec<Overlay>,
    /// Of `disks`, as QEMU names them; the follower looks, too.
    tops: Tops,
    /// How often it was frozen.
    frozen: u32,
    drive: Mutex<Drive>,
    firmware: Firmware,
    log: PathBuf,
    /// swtpm ends with the machine at the latest.
    tpm: Option<(Child, Tpm)>,
}

impl Vm {
    /// Starts QEMU and lets the guest go. Returns as soon as the guest runs, which is before its firmware has begun, or
    /// where the memory file `Machine::incoming` left it.
    pub async fn start(qemu: &Qemu, machine: Machine, control: &Control) -> Result<Self, VmError> {
        control.check()?;
        let control = control.within(START_LIMIT);
        let prepare = |path: &Path| {
            let path = path.to_owned();
            move |source| VmError::Prepare { path, source }
        };
        let dir = &machine.runtime_dir;
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(prepare(dir))?;
        let socket = Socket::listen(qmp_socket(&machine))?;
        let log = open_log(&machine.qemu_log).map_err(prepare(&machine.qemu_log))?;
        let log_too = log.try_clone().map_err(prepare(&machine.qemu_log))?;
        let tpm = match &machine.hardware {
            Hardware::Windows { tpm: Some(tpm), .. } => {
                Some((crate::tpm::start(tpm, &tpm_socket(&machine))?, tpm.clone()))
            }
            Hardware::Windows { tpm: None, .. } | Hardware::Paravirtual => None,
        };
        let invocation = Invocation::new(qemu.system()).args(arguments(&machine, qemu.features()));
        tracing::debug!(command = %invocation, "starting QEMU");
        let child = invocation.spawn(SpawnOptions {
            stdout: Sink::File(log),
            stderr: Sink::File(log_too),
            no_new_privs: true,
            ..SpawnOptions::default()
        })?;

        let connecting = async {
            let (stream, _) = socket.listener.accept().await.map_err(prepare(&socket.path))?;
            Ok::<_, VmError>(Qmp::open(stream, &control).await?)
        };
        let tpm_failure = || tpm.as_ref().and_then(|(child, tpm)| crate::tpm::failure(tpm, child));
        let connected = tokio::select! {
            biased;
            connected = connecting => connected,
            status = child.wait() => {
                let error = exited(status?, &machine.qemu_log);
                return Err(tpm_failure().unwrap_or(error));
            }
            why = control.interrupted() => return Err(why.into()),
        };
        let (qmp, events) = match connected {
            Ok(connected) => connected,
            // A connection that ends before it began is an exit; the log knows more.
            Err(error) => {
                let error = or_exit(&child, &machine.qemu_log, error).await;
                return Err(tpm_failure().unwrap_or(error));
            }
        };
        drop(socket);

        let tops = machine.disks.iter().enumerate();
        let tops = tops.map(|(index, disk)| Top { node: disk_node(index), path: disk.path().to_owned() });
        let tops: Tops = Arc::new(std::sync::Mutex::new(tops.collect()));
        let (seen_tx, seen) = watch::channel(Seen::default());
        let (notices, _) = broadcast::channel(NOTICES);
        let follower = Follower {
            qmp: qmp.clone(),
            tops: Arc::clone(&tops),
            disk_full_wait: machine.disk_full_wait,
            seen: seen_tx,
            notices: notices.clone(),
        };
        tokio::spawn(follower.run(events));
        let drive = Mutex::new(Drive::started_with(machine.medium.is_some()));
        let (disks, log) = (machine.disks, machine.qemu_log);
        let firmware = machine.firmware;
        let vm = Self { child, qmp, seen, notices, disks, tops, frozen: 0, drive, firmware, log, tpm };
        if let Some(memory) = &machine.incoming {
            vm.read_memory(memory, &control).await?;
        }
        vm.answered(&control, vm.qmp.execute("cont", json!({}))).await?;
        Ok(vm)
    }

    /// Waits for something in or about the guest, but not longer than the guest lasts or `control` allows.
    pub async fn guard<T>(&self, control: &Control, future: impl Future<Output = T>) -> Result<T, VmError> {
        tokio::select! {
            biased;
            error = self.lost() => Err(error),
            why = control.interrupted() => Err(why.into()),
            output = future => Ok(output),
        }
    }

    /// Where a port of the guest is forwarded from. That a connection opens there means nothing: QEMU accepts it
    /// before the guest listens.
    pub async fn forwarded(&self, guest_port: u16, control: &Control) -> Result<SocketAddr, VmError> {
        let table = self.answered(control, self.qmp.human("info usernet")).await?;
        let port = forwarded_port(&table, guest_port).ok_or(VmError::NoForward { guest_port })?;
        Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    /// Forwards one more port of the guest from 127.0.0.1. For machines on a network of their own.
    pub async fn forward(&self, guest_port: u16, control: &Control) -> Result<SocketAddr, VmError> {
        let asked = format!("hostfwd_add net0 tcp:127.0.0.1:0-:{guest_port}");
        // It answers with words only where it cannot.
        let said = self.answered(control, self.qmp.human(&asked)).await?;
        match self.forwarded(guest_port, control).await {
            Err(VmError::NoForward { .. }) => {
                Err(VmError::Forward { guest_port, reason: said.trim().to_owned() })
            }
            found => found,
        }
    }

    /// From now on the guest's first serial port is a socket at `socket`, where one connection at a time sees what it says
    /// and types what it hears; `log` still gets all of it.
    pub async fn open_console(&self, socket: &Path, log: &Path, control: &Control) -> Result<(), VmError> {
        let listening = json!({
            "addr": { "type": "unix", "data": { "path": socket } },
            "server": true, "wait": false, "logfile": log, "logappend": true,
        });
        let asked = json!({ "id": SERIAL, "backend": { "type": "socket", "data": listening } });
        self.answered(control, self.qmp.execute("chardev-change", asked)).await?;
        Ok(())
    }

    /// What the guest's screen shows, as a PNG file at `path`. For machines with a screen.
    pub async fn screenshot(&self, path: &Path, control: &Control) -> Result<(), VmError> {
        let asked = json!({ "filename": path, "format": "png" });
        self.answered(control, self.qmp.execute("screendump", asked)).await?;
        Ok(())
    }

    /// Waits until the guest's driver uses the network card, for at most `limit`: not every driver tells. Who knocks before
    /// that is held up for seconds: QEMU accepts the connection, and tries again but slowly to reach the guest.
    pub async fn network_used(&self, control: &Control, limit: Duration) -> Result<(), VmError> {
        let mut seen = self.seen.clone();
        let used = async { seen.wait_for(|seen| seen.network).await.map(drop) };
        match self.guard(&control.within(limit), used).await {
            Ok(Ok(())) => Ok(()),
            // The connection's end is QEMU's, which whatever comes next is told.
            Ok(Err(_)) => Ok(()),
            Err(VmError::Interrupted(_)) => Ok(control.check()?),
            Err(error) => Err(error),
        }
    }

    /// How often the guest has restarted itself so far.
    pub fn resets(&self) -> u32 {
        self.seen.borrow().resets
    }

    /// What happens from now on.
    pub fn notices(&self) -> broadcast::Receiver<VmNotice> {
        self.notices.subscribe()
    }

    /// The control connection, for what has no method here. Waits belong under [`Vm::guard`].
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    fn tops(&self) -> MutexGuard<'_, Vec<Top>> {
        self.tops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The system's disk as it is written now; a machine without one has no system.
    pub fn os_disk(&self) -> Option<&Overlay> {
        self.disks.first()
    }

    pub fn firmware(&self) -> &Firmware {
        &self.firmware
    }

    /// The file in which its TPM keeps what outlives a power cycle.
    pub fn tpm_state(&self) -> Option<PathBuf> {
        self.tpm.as_ref().map(|(_, tpm)| tpm.state.join(crate::tpm::STATE_FILE))
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Waits for QEMU's end, however it comes.
    pub async fn exited(&self) -> Result<ExitStatus, VmError> {
        Ok(self.child.wait().await?)
    }

    /// Presses the power button and waits until the guest has shut down, for at most `limit`.
    pub async fn power_down(self, control: &Control, limit: Duration) -> Result<StoppedMachine, VmError> {
        let patience = control.within(limit);
        let pressing = async {
            loop {
                // A refusal means that the guest is going already.
                if let Err(error) = self.qmp.execute("system_powerdown", json!({})).await {
                    tracing::debug!(%error, "the power button is out of reach");
                }
                tokio::time::sleep(PRESS_AGAIN).await;
            }
        };
        let ended = tokio::select! {
            ended = self.ended(&patience) => ended,
            never = pressing => match never {},
        };
        match ended {
            Ok(status) => self.stopped(status).await,
            Err(VmError::Interrupted(_)) if control.check().is_ok() => {
                Err(VmError::ShutdownTimeout { limit })
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until the guest, told so by other means, has shut itself down.
    pub async fn wait_shutdown(self, control: &Control) -> Result<StoppedMachine, VmError> {
        let status = self.ended(control).await?;
        self.stopped(status).await
    }

    /// Ends QEMU at once. Nothing can be said about what is on its disks.
    pub async fn kill(self) {
        self.child.kill_group();
        let ended = Control::ending_in(KILL_LIMIT).guard(self.child.wait()).await;
        if ended.is_err() {
            tracing::warn!(
                pid = self.child.pid(),
                "QEMU does not end; its host may be short of memory or disk"
            );
        }
    }

    /// QEMU's answer. The control connection ends a moment before the process does, and the exit says more.
    async fn answered<T>(
        &self,
        control: &Control,
        answer: impl Future<Output = Result<T, QmpError>>,
    ) -> Result<T, VmError> {
        match self.guard(control, answer).await? {
            Ok(answer) => Ok(answer),
            Err(error @ QmpError::Closed { .. }) => Err(or_exit(&self.child, &self.log, error.into()).await),
            Err(error) => Err(error.into()),
        }
    }

    /// Whatever makes further waiting for the guest useless.
    async fn lost(&self) -> VmError {
        let mut seen = self.seen.clone();
        let told = async {
            let lost = |seen: &Seen| seen.fate.is_some() || seen.shutdown.is_some();
            match seen.wait_for(lost).await {
                Ok(seen) => match &seen.fate {
                    Some(fate) => fate.error(&self.log),
                    None => VmError::GuestShutDown,
                },
                // The connection ended: the exit follows, and says more.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            error = told => error,
            status = self.child.wait() => match status {
                Ok(status) => {
                    self.all_told().await;
                    match self.seen.borrow().shutdown.as_ref().is_some_and(follow::Shutdown::is_clean) {
                        true => VmError::GuestShutDown,
                        false => exited(status, &self.log),
                    }
                }
                Err(error) => error.into(),
            },
        }
    }

    /// After QEMU's end: until everything it told is seen. The connection is closed, so the follower reads what is
    /// left and ends.
    async fn all_told(&self) {
        let mut seen = self.seen.clone();
        let followed = async { while seen.changed().await.is_ok() {} };
        let _ = Control::ending_in(LAST_EVENTS_LIMIT).guard(followed).await;
    }

    /// QEMU's end, in a situation where it is expected.
    async fn ended(&self, control: &Control) -> Result<ExitStatus, VmError> {
        let mut seen = self.seen.clone();
        let fate = async {
            match seen.wait_for(|seen| seen.fate.is_some()).await {
                Ok(seen) => seen.fate.as_ref().map(|fate| fate.error(&self.log)),
                Err(_) => None,
            }
        };
        tokio::select! {
            biased;
            Some(error) = fate => Err(error),
            status = self.child.wait() => Ok(status?),
            why = control.interrupted() => Err(why.into()),
        }
    }

    /// INVARIANT (a part of "only a guest that shut down cleanly yields an image"): the guest switched itself off, QEMU
    /// said so, and QEMU ended with 0.
    async fn stopped(mut self, status: ExitStatus) -> Result<StoppedMachine, VmError> {
        self.all_told().await;
        if !status.success() {
            return Err(exited(status, &self.log));
        }
        let seen = self.seen.borrow().clone();
        if let Some(fate) = &seen.fate {
            return Err(fate.error(&self.log));
        }
        let not_shut_down = |how: String| Err(VmError::NotShutDown { how });
        match seen.shutdown {
            Some(shutdown) if shutdown.is_clean() => {}
            Some(shutdown) => return not_shut_down(format!("QEMU says {}", shutdown.reason)),
            None => return not_shut_down("QEMU ended without a word".into()),
        }
        match StoppedMachine::new(std::mem::take(&mut self.disks)) {
            Some(stopped) => Ok(stopped),
            None => not_shut_down("it had no disk to keep".into()),
        }
    }
}

/// A socket that exists until somebody has connected.
struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    fn listen(path: PathBuf) -> Result<Self, VmError> {
        // Left by a worker that was killed; its directory is ours alone.
        if let Err(source) = std::fs::remove_file(&path)
            && source.kind() != io::ErrorKind::NotFound
        {
            return Err(VmError::Prepare { path, source });
        }
        match UnixListener::bind(&path) {
            Ok(listener) => Ok(Self { path, listener }),
            Err(source) => Err(VmError::Prepare { path, source }),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn exited(status: ExitStatus, log: &Path) -> VmError {
    let stderr = log_end(log).unwrap_or_default();
    VmError::Exited { status: describe_status(status), stderr, log: log.to_owned() }
}

/// The exit, if QEMU's end is what was behind `error`.
async fn or_exit(child: &Child, log: &Path, error: VmError) -> VmError {
    match Control::ending_in(Duration::from_secs(1)).guard(child.wait()).await {
        Ok(Ok(status)) => exited(status, log),
        _ => error,
    }
}

pub(crate) fn log_end(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_END)))?;
    let mut bytes = Vec::new();
    file.take(LOG_END).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// From `info usernet`: `TCP[HOST_FORWARD]  12  127.0.0.1 40123  10.0.2.15  22  0  0`.
fn forwarded_port(table: &str, guest_port: u16) -> Option<u16> {
    table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [kind, _fd, _host, port, _guest, to, ..] = words[..] else { return None };
        (kind == "TCP[HOST_FORWARD]" && to.parse() == Ok(guest_port)).then(|| port.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forwarded_port_is_read_from_the_table() {
        let table = "Hub -1 (net0):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n  \
                     TCP[ESTABLISHED]   30       127.0.0.1 40001       10.0.2.15    22     0     0\r\n  \
                     TCP[HOST_FORWARD]  12       127.0.0.1 40123       10.0.2.15    22     0     0\r\n";
        assert_eq!(forwarded_port(table, 22), Some(40123));
        assert_eq!(forwarded_port(table, 5986), None);
        assert_eq!(forwarded_port("", 22), None);
    }
}

//! Following QEMU's events: one task turns them into a state that any number of waits can look at.
//!
//! The state only ever gains, so whoever looks late misses nothing. The one thing this task does of itself is to wait
//! out a full disk:
//!
//! ```text
//!   BLOCK_IO_ERROR, nospace ──► paused ── room appears ──► cont ──► the write is tried again
//!                                 └───── no room in time ──► Fate::DiskFull
//! ```

use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use kiln_host::space;
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;

use super::{Tops, VmError, VmNotice};
use crate::qmp::{Event, Qmp};

/// Room on a file system has no event to wait for.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(2);
/// Less than this is used up before the guest has gone on.
const ROOM_TO_GO_ON: u64 = 64 << 20;
/// A guest that runs out again within this time after going on was not really helped: its waiting goes on.
const HELPED_AFTER: Duration = Duration::from_secs(30);

/// All that was seen so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// What makes the machine useless; the first one stays.
    pub(super) fate: Option<Fate>,
    pub(super) shutdown: Option<Shutdown>,
    /// How often the guest restarted itself.
    pub(super) resets: u32,
    /// The guest's driver has begun to use the network card.
    pub(super) network: bool,
    /// How many transfers of its memory have ended, well or not.
    pub(super) transfers: u32,
}

/// Why a machine is ended although QEMU still runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Panicked {
        stop_code: Option<u64>,
    },
    DiskFull {
        path: PathBuf,
        waited: Duration,
    },
    DiskFailed {
        path: PathBuf,
        operation: String,
        reason: String,
    },
    /// By QEMU's word for the state it is in.
    Stopped {
        status: String,
    },
}

/// QEMU's SHUTDOWN event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shutdown {
    pub(super) by_guest: bool,
    pub(super) reason: String,
}

impl Shutdown {
    /// The guest switched itself off, by its own will or when asked to.
    pub(super) fn is_clean(&self) -> bool {
        self.by_guest && self.reason == "guest-shutdown"
    }
}

impl Fate {
    pub(super) fn error(&self, log: &Path) -> VmError {
        match self.clone() {
            Self::Panicked { stop_code } => VmError::GuestPanicked { stop_code },
            Self::DiskFull { path, waited } => VmError::DiskFull { path, waited },
            Self::DiskFailed { path, operation, reason } => VmError::DiskFailed { path, operation, reason },
            Self::Stopped { status } => VmError::Stopped { status, log: log.to_owned() },
        }
    }
}

pub(super) struct Follower {
    pub(super) qmp: Qmp,
    pub(super) tops: Tops,
    pub(super) disk_full_wait: Duration,
    pub(super) seen: watch::Sender<Seen>,
    pub(super) notices: broadcast::Sender<VmNotice>,
}

/// A disk without room.
struct Full {
    path: PathBuf,
    since: Instant,
    /// When the guest was last let go on.
    resumed: Option<Instant>,
}

impl Follower {
    /// Until the connection ends.
    pub(super) async fn run(self, mut events: mpsc::UnboundedReceiver<Event>) {
        let mut full: Option<Full> = None;
        loop {
            let waiting = full.as_ref().is_some_and(|full| full.resumed.is_none());
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.take(&event, &mut full).await,
                    None => return,
                },
                () = tokio::time::sleep(LOOK_FOR_ROOM), if waiting => {
                    if let Some(full) = &mut full {
                        self.look_for_room(full).await;
                    }
                }
            }
        }
    }

    async fn take(&self, event: &Event, full: &mut Option<Full>) {
        let text = |key: &str| event.data[key].as_str().unwrap_or_default().to_owned();
        match event.name.as_str() {
            "SHUTDOWN" => {
                let by_guest = event.data["guest"].as_bool().unwrap_or(false);
                let shutdown = Shutdown { by_guest, reason: text("reason") };
                self.seen.send_modify(|seen| seen.shutdown = Some(shutdown));
            }
            "RESET" if event.data["guest"].as_bool().unwrap_or(false) => {
                let mut count = 0;
                self.seen.send_modify(|seen| {
                    seen.resets += 1;
                    count = seen.resets;
                });
                self.notify(VmNotice::Reset { count });
            }
            "GUEST_PANICKED" => {
                let info = &event.data["info"];
                let stop_code = info["arg1"].as_u64().filter(|_| info["type"] == "hyper-v");
                self.doom(Fate::Panicked { stop_code });
            }
            "NIC_RX_FILTER_CHANGED" => self.seen.send_modify(|seen| seen.network = true),
            "MIGRATION" => {
                if matches!(text("status").as_str(), "completed" | "failed" | "cancelled") {
                    self.seen.send_modify(|seen| seen.transfers += 1);
                }
            }
            "BLOCK_IO_ERROR" => self.disk_error(&event.data, full),
            // From here on every request fails, which QEMU tells the guest but not us.
            "BLOCK_IMAGE_CORRUPTED" => {
                let path = self.disk_of(&text("node-name"));
                self.doom(Fate::DiskFailed { path, operation: "be read".into(), reason: text("msg") });
            }
            // Stopped, and neither by us nor by what was told above: for example by an error of the accelerator.
            "STOP" if full.is_none() => {
                if let Ok(answer) = self.qmp.execute("query-status", json!({})).await {
                    let status = answer["status"].as_str().unwrap_or_default();
                    if status == "internal-error" {
                        self.doom(Fate::Stopped { status: status.into() });
                    }
                }
            }
            _ => {}
        }
    }

    fn disk_error(&self, data: &Value, full: &mut Option<Full>) {
        let path = self.disk_of(data["node-name"].as_str().unwrap_or_default());
        if !data["nospace"].as_bool().unwrap_or(false) {
            let text = |key: &str| data[key].as_str().unwrap_or("fail").to_owned();
            self.doom(Fate::DiskFailed { path, operation: text("operation"), reason: text("reason") });
            return;
        }
        match full {
            // Several requests in flight each tell the same.
            Some(full) if full.resumed.is_none() => {}
            Some(full) if full.resumed.is_some_and(|resumed| resumed.elapsed() < HELPED_AFTER) => {
                full.resumed = None;
            }
            _ => {
                *full = Some(Full { path: path.clone(), since: Instant::now(), resumed: None });
                self.notify(VmNotice::DiskFull { path, wait: self.disk_full_wait });
            }
        }
    }

    async fn look_for_room(&self, full: &mut Full) {
        let waited = full.since.elapsed();
        if waited >= self.disk_full_wait {
            self.doom(Fate::DiskFull { path: full.path.clone(), waited });
            return;
        }
        let dir = full.path.parent().unwrap_or(&full.path);
        if space::free_bytes(dir).is_ok_and(|free| free < ROOM_TO_GO_ON) {
            return;
        }
        // The refused write is tried again; if it fails again, an event says so.
        match self.qmp.execute("cont", json!({})).await {
            Ok(_) => {
                full.resumed = Some(Instant::now());
                self.notify(VmNotice::GoesOn { path: full.path.clone() });
            }
            Err(error) => tracing::debug!(%error, "the guest does not go on"),
        }
    }

    /// By QEMU's name of its node; the system's disk when QEMU names none of ours.
    fn disk_of(&self, node: &str) -> PathBuf {
        let tops = self.tops.lock().unwrap_or_else(PoisonError::into_inner);
        let named = tops.iter().find(|top| top.node == node).or(tops.first());
        named.map(|top| top.path.clone()).unwrap_or_default()
    }

    fn doom(&self, fate: Fate) {
        self.seen.send_if_modified(|seen| {
            let first = seen.fate.is_none();
            if first {
                seen.fate = Some(fate);
            }
            first
        });
    }

    fn notify(&self, notice: VmNotice) {
        // Nobody has to listen.
        let _ = self.notices.send(notice);
    }
}

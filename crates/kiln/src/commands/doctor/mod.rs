//! `kiln doctor`: what this machine gives to a build, and what it lacks.
//!
//! Each finding has a verdict: good, attention (a build works, but not everything or
//! not fast), missing (no build can work). What is missing comes with the one command
//! that installs it.

mod findings;
mod programs;

use std::time::Duration;

use kiln_host::wait::Control;
use kiln_qemu::firmware::Ovmf;
use kiln_qemu::host::{Accelerator, Features, Qemu, probe_accelerator};
use kiln_qemu::media::MediaWriter;
use kiln_qemu::tpm;

use self::findings::{Findings, Verdict};
use super::shelves::Shelves;
use super::{End, Surroundings, signals};
use crate::client::{self, SYSTEM_SOCKET, reachable};
use crate::exit::{ExitStatus, Failure};
use crate::settings::{self, Folders};
use crate::ui::text;

/// Below this a build of even a small image runs out of room.
const ROOM_NEEDED: u64 = 2 << 30;
/// Below this a second image or a larger disk may not fit.
const ROOM_WANTED: u64 = 10 << 30;
/// The least a guest is given, and what QEMU needs for itself.
const MEMORY_NEEDED_MIB: u64 = 512 + 256;
/// The accelerator's self-test has a deadline of its own; this is for a probe that hangs.
const PROBE_LIMIT: Duration = Duration::from_secs(60);

pub async fn run(around: &Surroundings<'_>, json: bool) -> End {
    let control = signals::control().map_err(Failure::host)?.within(PROBE_LIMIT);
    let folders = Folders::resolve(around.environment).map_err(Failure::host)?;
    let mut findings = Findings::default();
    qemu(around, &folders, &mut findings, &control).await;
    host(&folders, &mut findings);
    images(&folders, &mut findings);
    server(around, &folders, &mut findings).await;
    programs::look(around, &mut findings);

    if json {
        around.printer.raw_data(findings.to_json().as_bytes());
    } else {
        findings.lines(around.printer.out).iter().for_each(|line| around.printer.data(line));
    }
    Ok(if findings.can_build() { ExitStatus::Done } else { ExitStatus::Failed })
}

async fn qemu(around: &Surroundings<'_>, folders: &Folders, findings: &mut Findings, control: &Control) {
    let qemu = match Qemu::find(&around.environment.search_path()) {
        Ok(qemu) => qemu,
        Err(error) => {
            let error = anyhow::Error::new(error);
            findings.add("qemu", Verdict::Missing, format!("{error:#}"));
            programs::qemu(around, findings);
            return;
        }
    };
    findings.add("qemu", Verdict::Good, format!("{} ({})", qemu.version(), qemu.system().display()));
    let Features { sandbox, pvpanic, vmgenid: _ } = *qemu.features();
    match (sandbox, pvpanic) {
        (true, true) => {
            findings.add("features", Verdict::Good, "system call sandbox, notice of guest panics");
        }
        (false, _) => findings.add(
            "features",
            Verdict::Attention,
            "this QEMU has no sandbox: system calls it does not need are not denied to it",
        ),
        (true, false) => findings.add(
            "features",
            Verdict::Attention,
            "this QEMU has no pvpanic device: a guest's panic is noticed only by its silence",
        ),
    }
    match probe_accelerator(&qemu, &folders.cache, control).await {
        Ok(Accelerator::Kvm { cpu_model }) => {
            let text = format!("KVM, guests see a {cpu_model} (KVM: not run by this project's tests)");
            findings.add("accelerator", Verdict::Good, text);
        }
        Ok(Accelerator::Tcg { reason }) => findings.add(
            "accelerator",
            Verdict::Attention,
            format!("emulation (TCG), which works and is several times slower than KVM: {reason}"),
        ),
        Err(why) => findings.add("accelerator", Verdict::Attention, format!("not found out: {why}")),
    }
    match Ovmf::find() {
        Ok(_) => findings.add("firmware", Verdict::Good, "UEFI (OVMF), for generation 2"),
        Err(_) => {
            let text = "no UEFI firmware (OVMF): generation 2 images cannot be built";
            findings.add("firmware", Verdict::Attention, text);
            findings.lacks("ovmf");
        }
    }
    match MediaWriter::find(&around.environment.search_path()) {
        Ok(_) => findings.add("media", Verdict::Good, "xorriso, for the media that machines read"),
        Err(error) => {
            findings.add("media", Verdict::Missing, error.to_string());
            findings.lacks("xorriso");
        }
    }
    windows(around, findings);
}

/// What a Windows of generation 2 starts with; everything else works without.
fn windows(around: &Surroundings<'_>, findings: &mut Findings) {
    let mut lacking = Vec::new();
    if Ovmf::find_secure().is_err() {
        lacking.push("UEFI firmware with Secure Boot (OVMF)");
        findings.lacks("ovmf");
    }
    if tpm::find(&around.environment.search_path()).is_err() {
        lacking.push("TPM (swtpm)");
        findings.lacks("swtpm");
    }
    if lacking.is_empty() {
        findings.add("windows", Verdict::Good, "Secure Boot (OVMF) and TPM 2 (swtpm), for generation 2");
    } else {
        let text = format!("no {}: Windows of generation 2 cannot be built", lacking.join(", no "));
        findings.add("windows", Verdict::Attention, text);
    }
}

fn host(folders: &Folders, findings: &mut Findings) {
    let cpus = kiln_host::space::cpus();
    findings.add("processors", Verdict::Good, format!("{cpus} for guests to share"));
    match kiln_host::space::memory_available_mib() {
        Ok(free) => {
            let verdict = if free >= MEMORY_NEEDED_MIB { Verdict::Good } else { Verdict::Missing };
            findings.add("memory", verdict, format!("{} free", text::bytes(free << 20)));
        }
        Err(error) => {
            findings.add("memory", Verdict::Attention, format!("cannot tell how much is free: {error}"))
        }
    }
    room(folders, findings);
    match settings::ensure_private(&folders.runtime) {
        Ok(()) => findings.add("sockets", Verdict::Good, folders.runtime.display().to_string()),
        Err(error) => findings.add("sockets", Verdict::Missing, error.to_string()),
    }
}

/// Whether commands would talk to a server.
async fn server(around: &Surroundings<'_>, folders: &Folders, findings: &mut Findings) {
    let mut sockets = vec![folders.socket()];
    if around.environment.data_folder().is_none() {
        sockets.push(SYSTEM_SOCKET.into());
    }
    for socket in sockets {
        if !reachable(&socket).await {
            continue;
        }
        match client::version_of(&socket).await {
            Ok(version) => {
                let text = format!("kiln {version} at unix:{}: builds are done there", socket.display());
                findings.add("server", Verdict::Good, text);
            }
            Err(error) => findings.add("server", Verdict::Attention, format!("{error:#}")),
        }
        return;
    }
    findings.add("server", Verdict::Good, "none runs: commands work by themselves");
}

/// Disk room where the library and the runs lie, or will.
fn room(folders: &Folders, findings: &mut Findings) {
    let there = folders.library.ancestors().find(|folder| folder.is_dir());
    let Some(folder) = there else {
        findings.add("disk", Verdict::Missing, format!("{} cannot be made", folders.library.display()));
        return;
    };
    let place = format!("under {}", folders.library.parent().unwrap_or(folder).display());
    match kiln_host::space::free_bytes(folder) {
        Ok(free) => {
            let verdict = match free {
                ..ROOM_NEEDED => Verdict::Missing,
                ROOM_NEEDED..ROOM_WANTED => Verdict::Attention,
                _ => Verdict::Good,
            };
            findings.add("disk", verdict, format!("{} free {place}", text::bytes(free)));
        }
        Err(error) => {
            findings.add("disk", Verdict::Attention, format!("cannot tell the room {place}: {error}"))
        }
    }
    match kiln_host::space::supports_sparse(folder) {
        Ok(true) => {}
        Ok(false) => findings.add(
            "sparse files",
            Verdict::Attention,
            format!("not {place}: a disk takes its full size there"),
        ),
        // Not writable: opening the library says so, in its own words.
        Err(_) => {}
    }
}

fn images(folders: &Folders, findings: &mut Findings) {
    match Shelves::look(folders) {
        Ok(shelves) if shelves.stored.is_empty() => findings.add(
            "images",
            Verdict::Attention,
            "no base image in the library: `kiln images build debian-12` makes one",
        ),
        Ok(shelves) => {
            let names: Vec<String> =
                shelves.stored.iter().map(|image| format!("{} {}", image.name, image.version)).collect();
            findings.add("images", Verdict::Good, names.join(", "));
        }
        Err(failure) => findings.add("images", Verdict::Attention, format!("{:#}", failure.error)),
    }
}

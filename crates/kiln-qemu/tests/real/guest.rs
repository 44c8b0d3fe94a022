//! What the tests share: guests, machines for them, and fake QEMUs.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_host::process::Invocation;
use kiln_host::wait::Control;
use kiln_qemu::disk::{BaseImage, DiskFormat, Overlay};
use kiln_qemu::firmware::Firmware;
use kiln_qemu::host::{Accelerator, Qemu};
use kiln_qemu::machine::{DISK_FULL_WAIT, Hardware, Machine, Network};
use kiln_qemu::media::{Contents, MediaWriter};

#[derive(Clone, Copy)]
pub enum Does {
    WaitForButton = 1,
    Nothing = 2,
    SwitchOff = 3,
    Reset = 4,
    Panic = 5,
    Write = 6,
}

pub fn in_time() -> Control {
    Control::ending_in(Duration::from_secs(25))
}

#[expect(clippy::disallowed_methods, reason = "a test has no settings")]
pub fn qemu() -> Qemu {
    Qemu::find(&std::env::var_os("PATH").unwrap()).unwrap()
}

/// A program in QEMU's place. It answers the questions of `Qemu::find` and then does what `script` says.
pub fn fake_qemu(dir: &Path, script: &str) -> Qemu {
    let program = dir.join("qemu-system-x86_64");
    let answers = "case \"$*\" in *--version*) echo QEMU emulator version 7.2.0; exit;; *help*) exit;; esac";
    std::fs::write(&program, format!("#!/bin/sh\n{answers}\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink(qemu().img().program(), dir.join("qemu-img")).unwrap();
    let found = Qemu::find(dir.as_os_str()).unwrap();
    assert_eq!(found.system(), program);
    found
}

/// A base image of `mib` MiB that boots the guest.
pub fn base(dir: &Path, does: Does, count: u32, mib: u64) -> BaseImage {
    let (object, path) = (dir.join("guest.o"), dir.join("base.raw"));
    Invocation::new("as")
        .args(["--64", "--defsym", &format!("DOES={}", does as u8), "--defsym", &format!("COUNT={count}")])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real/guest.s"))
        .arg("-o")
        .arg(&object)
        .run_blocking()
        .unwrap();
    Invocation::new("ld")
        .args(["-m", "elf_x86_64", "-Ttext=0", "--oformat=binary", "-e", "0", "-o"])
        .args([&path, &object])
        .run_blocking()
        .unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(mib << 20).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
    BaseImage::open(qemu().img(), &path, DiskFormat::Raw).unwrap()
}

/// A machine over `base`, with everything it makes in `dir`.
pub fn machine_over(dir: &Path, base: &BaseImage) -> Machine {
    let overlay = Overlay::create(qemu().img(), base, dir.join("os,disk.qcow2"), None).unwrap();
    Machine {
        name: "a tiny, guest".into(),
        accelerator: Accelerator::Tcg { reason: "a test".into() },
        cpus: 1,
        memory_mib: 64,
        firmware: Firmware::Bios,
        hardware: Hardware::Paravirtual,
        disks: vec![overlay],
        medium: None,
        network: Network::User { forward: vec![22] },
        smbios_serial: Some("ds=nocloud".into()),
        serial_log: dir.join("serial.log"),
        qemu_log: dir.join("qemu.log"),
        runtime_dir: dir.join("rt"),
        kernel: None,
        incoming: None,
        disk_full_wait: DISK_FULL_WAIT,
    }
}

pub fn machine(dir: &Path, does: Does) -> Machine {
    machine_over(dir, &base(dir, does, 0, 1))
}

/// A medium with one file, beside what else is in `dir`.
pub async fn medium(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let writer = MediaWriter::find("/usr/bin".as_ref()).unwrap();
    writer.write(&path, "KILN", &[(name, Contents::Bytes(b"contents"))], &in_time()).await.unwrap();
    path
}

/// Waits for what another process does, of which we get no event.
pub async fn soon(mut true_soon: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(15);
    while Instant::now() < deadline {
        if true_soon() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

/// Waits until the guest has said that it is up.
pub async fn up(dir: &Path) {
    let log = dir.join("serial.log");
    let said_so = soon(|| std::fs::read(&log).is_ok_and(|said| said.windows(3).any(|word| word == b"up\n")));
    assert!(said_so.await, "the guest does not come up");
}

pub fn is_running(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or_default().starts_with('Z'))
}

/// Runs one of this program's ignored tests in a mount namespace of its own, where `dir` is a small file system.
pub async fn on_a_small_disk(test: &str, size: &str) {
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "mount -t tmpfs -o size={size} small {dir} && cd {dir} && exec {program} --exact {test} --ignored --nocapture",
        dir = dir.path().display(),
        program = std::env::current_exe().unwrap().display(),
    );
    let as_root = if rustix::process::geteuid().is_root() { "--mount" } else { "-rm" };
    Invocation::new("unshare")
        .args([OsStr::new(as_root), OsStr::new("sh"), OsStr::new("-c")])
        .arg(script)
        .run(&Control::ending_in(Duration::from_secs(60)))
        .await
        .unwrap();
}

pub fn small_disk() -> PathBuf {
    std::env::current_dir().unwrap()
}

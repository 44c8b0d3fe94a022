//! A virtual machine with systemd, asked over SSH.
//!
//! ```text
//!  test-data/systemd/{root.qcow2,vmlinuz,initrd,key,known_hosts}      scripts/systemd-guest
//!        └─ overlay in scratch ─► QEMU (TCG, one processor) ◄─ ssh: root's shell
//! ```
//! The emulated processor has SVM, so KVM works inside: slowly, but far faster than a
//! translator inside a translator. One processor: with two, QEMU's emulation of SVM hangs
//! now and then when two guests run, and is no faster.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kiln_tests::program::{self, Ended, command, finish, say};
use kiln_tests::settings::{scratch, test_data};
use kiln_tests::slots::{self, Slot};
use tempfile::TempDir;

/// From power-on to a shell, on a machine that does much else.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// One script in there.
const SCRIPT_LIMIT: Duration = Duration::from_secs(300);

/// Killed when dropped; where the test failed, the console's end is shown.
pub struct Machine {
    qemu: Child,
    port: u16,
    /// Overlay, sockets and console.
    folder: TempDir,
    _slot: Slot,
}

impl Machine {
    pub fn boot() -> Self {
        let slot = slots::take();
        let parts = test_data().join("systemd");
        assert!(parts.join("root.qcow2").is_file(), "no {}: run `scripts/test systemd`", parts.display());
        let folder = tempfile::Builder::new().prefix("vm-").tempdir_in(scratch()).unwrap();
        let disk = folder.path().join("root.qcow2");
        let base = parts.join("root.qcow2");
        program::output(
            "qemu-img",
            [
                "create",
                "-q",
                "-f",
                "qcow2",
                "-F",
                "qcow2",
                "-b",
                base.to_str().unwrap(),
                disk.to_str().unwrap(),
            ],
        );
        // A socket's path is short; the scratch folder's may not be.
        let monitor = folder.path().join("monitor");
        let started = Instant::now();
        let qemu = command("qemu-system-x86_64")
            .args(["-nodefaults", "-display", "none", "-accel", "tcg,thread=multi", "-cpu", "max"])
            .args(["-smp", "1", "-m", "4096", "-device", "virtio-rng-pci"])
            .arg("-kernel")
            .arg(parts.join("vmlinuz"))
            .arg("-initrd")
            .arg(parts.join("initrd"))
            .args([
                "-append",
                "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 mitigations=off tsc=reliable",
            ])
            .args(["-serial".into(), format!("file:{}", folder.path().join("console").display())])
            .args(["-monitor".into(), format!("unix:{},server=on,wait=off", monitor.display())])
            // Nothing of this disk is needed after a crash.
            .args(["-drive".into(), format!("file={},if=virtio,cache=unsafe", disk.display())])
            .args(["-nic", "user,model=virtio-net-pci,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut machine = Self { qemu, port: 0, folder, _slot: slot };
        machine.port = program::until("QEMU says which port is forwarded", Duration::from_secs(30), || {
            forwarded_port(&monitor)
        });
        program::until("the machine answers", BOOT_LIMIT, || {
            let ended =
                finish(machine.ssh().args(["-o", "ConnectTimeout=10"]).arg("true"), Duration::from_secs(30));
            ended.status.success().then_some(())
        });
        say(&format!("the machine is up after {} s", started.elapsed().as_secs()));
        machine
    }

    fn login(&self, program: &str, port: &str) -> Command {
        let parts = test_data().join("systemd");
        let mut login = command(program);
        login
            .arg("-i")
            .arg(parts.join("key"))
            .args(["-F", "none", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes"])
            .args(["-o".into(), format!("UserKnownHostsFile={}", parts.join("known_hosts").display())])
            // One connection serves all.
            .args(["-o", "ControlMaster=auto", "-o", "ControlPersist=yes"])
            .args(["-o".into(), format!("ControlPath={}", self.folder.path().join("ssh").display())])
            .args([port.to_owned(), self.port.to_string()]);
        login
    }

    fn ssh(&self) -> Command {
        let mut ssh = self.login("ssh", "-p");
        ssh.arg("root@127.0.0.1");
        ssh
    }

    /// Runs a script of root's; the first command that fails ends it.
    pub fn try_sh(&self, script: &str) -> Ended {
        let mut ssh = self.ssh();
        ssh.arg(format!("set -euo pipefail; cd /root; {script}"));
        finish(&mut ssh, SCRIPT_LIMIT)
    }

    /// The same, expected to succeed; what it printed, trimmed.
    pub fn sh(&self, script: &str) -> String {
        let ended = self.try_sh(script);
        assert!(
            ended.status.success(),
            "in the machine: {script}\n{}\n{}{}",
            ended.status,
            ended.text(),
            ended.stderr
        );
        ended.text().trim().to_owned()
    }

    /// Runs `script` until it prints something or `limit` is over.
    pub fn until(&self, what: &str, limit: Duration, script: &str) -> String {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.try_sh(script);
            let text = ended.text().trim().to_owned();
            if ended.status.success() && !text.is_empty() {
                return text;
            }
            assert!(
                Instant::now() < deadline,
                "{what}: not within {} s\n{}\n{}",
                limit.as_secs(),
                ended.stderr,
                self.sh("tail -n 3 /var/lib/kiln/runs/*/{events.jsonl,serial.log,worker.log} || true; journalctl --no-pager --lines 40")
            );
            // Seen from outside there is no event to wait for.
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    pub fn copy_in(&self, from: &Path, to: &str) {
        let mut scp = self.login("scp", "-P");
        scp.arg("-q").arg(from).arg(format!("root@127.0.0.1:{to}"));
        let ended = finish(&mut scp, Duration::from_secs(120));
        assert!(ended.status.success(), "{}", ended.stderr);
    }

    pub fn write(&self, to: &str, text: &str) {
        let file: PathBuf = self.folder.path().join("file");
        std::fs::write(&file, text).unwrap();
        self.copy_in(&file, to);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let console = std::fs::read(self.folder.path().join("console")).unwrap_or_default();
            let console = String::from_utf8_lossy(&console).into_owned();
            let lines: Vec<&str> = console.lines().collect();
            say(&format!("the console's end:\n{}", lines[lines.len().saturating_sub(20)..].join("\n")));
        }
        let _ = finish(self.ssh().args(["-O", "exit"]), Duration::from_secs(10));
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// `info usernet` of QEMU's monitor lists it; chosen by the kernel, so nobody else has it.
fn forwarded_port(monitor: &Path) -> Option<u16> {
    let mut stream = UnixStream::connect(monitor).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(b"info usernet\n").ok()?;
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer).ok()?;
        said.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&said);
        // TCP[HOST_FORWARD]  12  127.0.0.1 40961  10.0.2.15  22  0  0
        for line in text.lines().filter(|line| line.contains("HOST_FORWARD")) {
            let words: Vec<&str> = line.split_whitespace().collect();
            if words.len() >= 6 {
                return words[3].parse().ok();
            }
        }
        if read == 0 {
            return None;
        }
    }
}

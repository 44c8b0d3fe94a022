//! Booting a finished image again: as the VHD it is, with fresh media and other keys
//! than the build's, by QEMU and OpenSSH directly.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::keys::{KeyPair, seed_medium};
use crate::program::{Ended, command, finish};
use crate::slots::{self, Slot};

/// An emulated Debian needs 40 s on an idle machine.
const LOGIN_LIMIT: Duration = Duration::from_secs(300);
const USER: &str = "checker";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    Bios,
    Uefi,
}

/// A running guest; it ends when dropped. The image file is not written.
#[derive(Debug)]
pub struct Reboot {
    qemu: Child,
    monitor: (ChildStdin, BufReader<ChildStdout>),
    port: u16,
    folder: TempDir,
    login: KeyPair,
    _slot: Slot,
}

impl Reboot {
    /// Boots `vhd` and logs in.
    pub fn start(vhd: &Path, firmware: Firmware) -> Self {
        let slot = slots::take();
        let folder =
            tempfile::Builder::new().prefix("reboot-").tempdir_in(crate::settings::scratch()).unwrap();
        let login = KeyPair::generate(folder.path().join("login"));
        let host = KeyPair::generate(folder.path().join("host"));
        let seed = seed_medium(folder.path(), USER, &login, &host);

        let mut qemu = command("qemu-system-x86_64");
        match firmware {
            Firmware::Bios => qemu.args(["-machine", "pc"]),
            Firmware::Uefi => {
                let vars = folder.path().join("vars.fd");
                std::fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &vars).unwrap();
                qemu.args(["-machine", "q35"])
                    .args(["-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd"])
                    .args(["-drive", &format!("if=pflash,format=raw,file={}", vars.display())])
            }
        };
        let disk = format!("file={},format=vpc,if=virtio,snapshot=on", vhd.display());
        let media = format!("file={},format=raw,if=virtio,readonly=on", seed.display());
        let serial = format!("file:{}", folder.path().join("serial.log").display());
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024", "-nodefaults"])
            .args(["-display", "none", "-monitor", "stdio", "-serial", &serial])
            .args(["-smbios", "type=1,serial=ds=nocloud", "-drive", &disk, "-drive", &media])
            .args(["-netdev", "user,id=n,hostfwd=tcp:127.0.0.1:0-:22", "-device", "virtio-net-pci,netdev=n"])
            .args(["-device", "virtio-rng-pci"])
            // Where `snapshot=on` puts what the guest writes.
            .env("TMPDIR", folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut qemu = qemu.spawn().expect("qemu-system-x86_64 starts");
        let monitor = (qemu.stdin.take().unwrap(), BufReader::new(qemu.stdout.take().unwrap()));
        let mut guest = Self { qemu, monitor, port: 0, folder, login, _slot: slot };
        guest.port = guest.forwarded_port();
        let known = format!("[127.0.0.1]:{} {}\n", guest.port, host.public_text());
        std::fs::write(guest.folder.path().join("known_hosts"), known).unwrap();
        guest.until_login();
        guest
    }

    /// What the monitor's `info usernet` says: a port without a race.
    fn forwarded_port(&mut self) -> u16 {
        writeln!(self.monitor.0, "info usernet").unwrap();
        loop {
            let mut line = String::new();
            assert!(self.monitor.1.read_line(&mut line).unwrap() > 0, "QEMU ended: {}", self.console());
            let words: Vec<&str> = line.split_whitespace().collect();
            if let Some(at) = words.iter().position(|word| *word == "127.0.0.1")
                && words[0].starts_with("TCP[HOST_FORWARD]")
            {
                return words[at + 1].parse().unwrap();
            }
        }
    }

    fn until_login(&mut self) {
        let deadline = Instant::now() + LOGIN_LIMIT;
        loop {
            let answer = self.try_ssh("sudo -n true", Duration::from_secs(30));
            if answer.status.success() {
                return;
            }
            assert!(self.qemu.try_wait().unwrap().is_none(), "QEMU ended: {}", self.console());
            assert!(Instant::now() < deadline, "no login: {}\n{}", answer.stderr, self.console());
            // A guest that boots gives no event to wait for.
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn try_ssh(&self, line: &str, limit: Duration) -> Ended {
        let mut ssh = command("ssh");
        let known = self.folder.path().join("known_hosts");
        ssh.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "ConnectTimeout=10",
            "-o",
            "StrictHostKeyChecking=yes",
        ])
        .args(["-o", "IdentitiesOnly=yes", "-o", &format!("UserKnownHostsFile={}", known.display())])
        .arg("-i")
        .arg(&self.login.private)
        .args(["-p", &self.port.to_string(), &format!("{USER}@127.0.0.1"), line]);
        finish(&mut ssh, limit)
    }

    /// Runs a command as the test's own account and answers what it prints; failing is a failed test.
    pub fn ask(&self, line: &str) -> String {
        let ended = self.try_ssh(line, Duration::from_secs(120));
        assert!(ended.status.success(), "{line}: {}\n{}\n{}", ended.status, ended.text(), ended.stderr);
        ended.text().trim().to_owned()
    }

    pub fn console(&self) -> String {
        std::fs::read(self.folder.path().join("serial.log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }
}

impl Drop for Reboot {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

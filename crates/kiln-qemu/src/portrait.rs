//! What a machine is, apart from where its files lie: what must be the same for a memory file to fit.
//!
//! A memory file holds the state of every device, as this very QEMU with these very devices writes it. So the portrait is
//! QEMU's argument list with every path replaced by what it is for, and the digests of the programs behind it.

use std::io;
use std::path::PathBuf;

use kiln_host::digest::{hex, sha256, sha256_file};

use crate::argv::arguments;
use crate::disk::Overlay;
use crate::firmware::Firmware;
use crate::host::Qemu;
use crate::machine::{Hardware, Machine};

/// A machine in words, one fact a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Portrait {
    lines: Vec<String>,
}

impl Portrait {
    /// Of a machine with disks of these sizes in bytes, whatever disks it has now. Reads QEMU and the firmware for their
    /// digests: some tens of MiB.
    pub fn of(machine: &Machine, disks: &[u64], qemu: &Qemu) -> io::Result<Self> {
        let digest = |path: &std::path::Path| sha256_file(path, &mut |_| Ok(())).map(|digest| hex(&digest));
        let mut lines =
            vec![format!("QEMU {}", qemu.version()), format!("QEMU sha256 {}", digest(qemu.system())?)];
        if let Firmware::Uefi { code, .. } = &machine.firmware {
            lines.push(format!("firmware sha256 {}", digest(code)?));
        }
        if let Hardware::Windows { tpm: Some(tpm), .. } = &machine.hardware {
            lines.push(format!("swtpm sha256 {}", digest(&tpm.program)?));
        }
        lines.extend(disks.iter().map(|size| format!("disk of {size} bytes")));
        let words = arguments(&placeless(machine, disks), qemu.features());
        let mut words = words.iter().map(|word| word.to_string_lossy().into_owned()).peekable();
        while let Some(mut word) = words.next() {
            while let Some(value) = words.next_if(|next| !next.starts_with('-')) {
                word = format!("{word} {value}");
            }
            lines.push(word);
        }
        Ok(Self { lines })
    }

    /// For people, who compare two of them.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    pub fn digest(&self) -> [u8; 32] {
        sha256(self.lines.join("\n").as_bytes())
    }
}

/// The same machine with names in place of paths, an empty drive, and nothing to go on from.
fn placeless(machine: &Machine, disks: &[u64]) -> Machine {
    let firmware = match &machine.firmware {
        Firmware::Bios => Firmware::Bios,
        Firmware::Uefi { secure_boot, .. } => {
            Firmware::Uefi { code: "CODE".into(), vars: "VARS".into(), secure_boot: *secure_boot }
        }
    };
    let disk = |(index, size): (usize, &u64)| Overlay::named(PathBuf::from(format!("DISK{index}")), *size);
    Machine {
        name: "NAME".into(),
        accelerator: machine.accelerator.clone(),
        cpus: machine.cpus,
        memory_mib: machine.memory_mib,
        firmware,
        hardware: machine.hardware.clone(),
        disks: disks.iter().enumerate().map(disk).collect(),
        medium: None,
        network: machine.network.clone(),
        smbios_serial: machine.smbios_serial.clone(),
        serial_log: "SERIAL".into(),
        qemu_log: "LOG".into(),
        runtime_dir: "RUNTIME".into(),
        kernel: machine.kernel.clone(),
        incoming: None,
        disk_full_wait: machine.disk_full_wait,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::host::Accelerator;
    use crate::machine::Network;

    fn machine(at: &str) -> Machine {
        Machine {
            name: at.into(),
            accelerator: Accelerator::Tcg { reason: at.into() },
            cpus: 2,
            memory_mib: 1024,
            firmware: Firmware::Bios,
            hardware: Hardware::Paravirtual,
            disks: vec![Overlay::at(&format!("{at}/os.qcow2"), 8 << 30)],
            medium: Some(format!("{at}/seed.iso").into()),
            network: Network::User { forward: vec![22] },
            smbios_serial: Some("ds=nocloud".into()),
            serial_log: format!("{at}/serial.log").into(),
            qemu_log: format!("{at}/qemu.log").into(),
            runtime_dir: format!("{at}/rt").into(),
            kernel: None,
            incoming: None,
            disk_full_wait: Duration::from_secs(600),
        }
    }

    /// Nothing of a Windows machine is another at its next start: its generation ID, which is, has no word of its own.
    #[test]
    fn a_generation_id_is_no_part_of_it_and_swtpm_is() {
        let program = tempfile::NamedTempFile::new().unwrap();
        let tpm = |at: &str| crate::machine::Tpm {
            program: program.path().to_owned(),
            state: format!("{at}/tpm").into(),
            log: format!("{at}/tpm.log").into(),
        };
        let windows = |at: &str| Machine {
            hardware: Hardware::Windows { drivers: crate::machine::Drivers::Inbox, tpm: Some(tpm(at)) },
            ..machine(at)
        };
        #[expect(clippy::disallowed_methods, reason = "a test has no settings")]
        let qemu = Qemu::find(&std::env::var_os("PATH").unwrap()).unwrap();
        let portrait = |machine: &Machine| Portrait::of(machine, &[8 << 30], &qemu).unwrap();
        let one = portrait(&windows("/a"));
        assert_eq!(one, portrait(&windows("/b")));
        assert_eq!(
            one.lines().iter().any(|line| line == "-device vmgenid,guid=auto"),
            qemu.features().vmgenid,
            "{:#?}",
            one.lines()
        );
        std::fs::write(program.path(), "another swtpm").unwrap();
        assert_ne!(one.digest(), portrait(&windows("/a")).digest());
    }

    #[test]
    fn places_do_not_count_and_hardware_does() {
        #[expect(clippy::disallowed_methods, reason = "a test has no settings")]
        let qemu = Qemu::find(&std::env::var_os("PATH").unwrap()).unwrap();
        let portrait = |machine: &Machine| Portrait::of(machine, &[8 << 30], &qemu).unwrap();
        let one = portrait(&machine("/a"));
        let restored = Machine { medium: None, incoming: Some("/m".into()), ..machine("/b") };
        assert_eq!(one.digest(), portrait(&restored).digest());
        assert!(one.lines().iter().any(|line| line == "-smp 2"), "{:#?}", one.lines());
        for other in [
            Machine { cpus: 1, ..machine("/a") },
            Machine { memory_mib: 2048, ..machine("/a") },
            Machine { accelerator: Accelerator::Kvm { cpu_model: "Nehalem".into() }, ..machine("/a") },
            Machine { network: Network::None, ..machine("/a") },
        ] {
            assert_ne!(one.digest(), portrait(&other).digest(), "{other:?}");
        }
        let larger = Portrait::of(&machine("/a"), &[9 << 30], &qemu).unwrap();
        assert_ne!(one.digest(), larger.digest());
    }
}

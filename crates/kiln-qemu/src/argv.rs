//! From a [`Machine`] to QEMU's arguments: pure, in QEMU's own words, and therefore kept in golden texts below.
//!
//! - `-nodefaults -no-user-config`: nothing is there that is not written here.
//! - `-S`: the guest waits until we listen, so no event is lost; [`crate::vm`] lets it go.
//! - QMP: we listen, QEMU connects. No waiting for a socket to appear, and nobody else can connect.
//! - Disks: `cache.no-flush` because a run whose host crashed is repeated anyway; what is kept is synced when it is
//!   published. `discard` and `detect-zeroes` let the overlay shrink with its contents.
//! - `werror=stop,rerror=stop`: an I/O error pauses the guest before it can act on it; a full disk can then be waited
//!   out. `panic=pause`: a panicked guest stays to be looked at until we end it.
//! - A Windows machine has Hyper-V's enlightenments whoever runs it (TCG takes those it knows, silently), no HPET and a
//!   local clock whose lost ticks are caught up: what Microsoft's and QEMU's own pages advise for Windows guests.
//! - A Windows machine has a generation ID, which is another one each time QEMU starts (QEMU's docs/specs/vmgenid.rst):
//!   a Windows that goes on from a memory file is told by it that it is another machine now, and renews its randomness.
//! - Secure Boot's variables are guarded by system management mode: the flash is secure, the chipset has SMM.
//! - TCG has `-cpu max` (the fastest measured) without [`SLOW_UNDER_TCG`]; KVM a named model with `enforce`, never `host`,
//!   so that the same model means the same machine.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use crate::disk::DiskFormat;
use crate::firmware::Firmware;
use crate::host::{Accelerator, Features};
use crate::machine::{Drivers, Hardware, Machine, Network};

/// What libvirt denies as well: QEMU needs none of it once it runs.
pub(crate) const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// What the guest's first serial port is connected to.
pub(crate) const SERIAL: &str = "serial0";

/// Everything after the program's name.
pub fn arguments(machine: &Machine, features: &Features) -> Vec<OsString> {
    let mut argv = Argv::default();
    argv.word("-nodefaults").word("-no-user-config").pair("-display", "none").word("-S");
    argv.option("-name").bare(&machine.name).set("process", &machine.name);
    if features.sandbox {
        argv.pair("-sandbox", SANDBOX);
    }
    platform(&mut argv, machine);
    argv.pair("-m", format!("{}M", machine.memory_mib));
    argv.pair("-smp", machine.cpus.to_string());
    argv.pair("-action", "reboot=reset,shutdown=poweroff,panic=pause");
    if let Some(serial) = &machine.smbios_serial {
        argv.option("-smbios").set("type", "1").set("serial", serial);
    }
    argv.option("-chardev").bare("socket").set("id", "qmp0").set("path", qmp_socket(machine));
    argv.pair("-mon", "chardev=qmp0,mode=control");
    argv.option("-chardev")
        .bare("file")
        .set("id", SERIAL)
        .set("path", &machine.serial_log)
        .set("append", "on");
    argv.pair("-serial", format!("chardev:{SERIAL}"));
    if let Hardware::Windows { tpm, .. } = &machine.hardware {
        argv.pair("-device", "qemu-xhci,id=usb")
            .pair("-device", "usb-tablet,bus=usb.0")
            .pair("-device", "VGA");
        if tpm.is_some() {
            argv.option("-chardev").bare("socket").set("id", "tpm0").set("path", tpm_socket(machine));
            argv.pair("-tpmdev", "emulator,id=tpm0,chardev=tpm0").pair("-device", "tpm-crb,tpmdev=tpm0");
        }
        if features.vmgenid {
            argv.pair("-device", "vmgenid,guid=auto");
        }
    }
    disks(&mut argv, machine);
    drive(&mut argv, machine);
    if let Network::User { forward } = &machine.network {
        let mut netdev = argv.option("-netdev").bare("user").set("id", "net0");
        for port in forward {
            netdev = netdev.set("hostfwd", format!("tcp:127.0.0.1:0-:{port}"));
        }
        drop(netdev);
        let card = match machine.hardware {
            Hardware::Windows { drivers: Drivers::Inbox, .. } => "e1000e",
            Hardware::Paravirtual | Hardware::Windows { drivers: Drivers::Virtio, .. } => "virtio-net-pci",
        };
        // Without its ROM the card cannot boot, and is not asked to.
        argv.pair("-device", format!("{card},netdev=net0,romfile="));
    }
    if machine.hardware == Hardware::Paravirtual {
        argv.pair("-object", "rng-builtin,id=rng0").pair("-device", "virtio-rng-pci,rng=rng0");
    }
    if features.pvpanic {
        argv.pair("-device", "pvpanic");
    }
    if let Some(boot) = &machine.kernel {
        argv.pair("-kernel", &boot.kernel);
        if let Some(initrd) = &boot.initrd {
            argv.pair("-initrd", initrd);
        }
        argv.pair("-append", &boot.append);
    } else {
        argv.pair("-boot", "menu=off,strict=on");
    }
    if machine.incoming.is_some() {
        argv.pair("-incoming", "defer");
    }
    argv.words
}

/// Where QEMU finds us listening.
pub(crate) fn qmp_socket(machine: &Machine) -> PathBuf {
    machine.runtime_dir.join("qmp")
}

/// Where swtpm listens.
pub(crate) fn tpm_socket(machine: &Machine) -> PathBuf {
    machine.runtime_dir.join("tpm")
}

/// The block node of a disk, by which QEMU names it in events.
pub(crate) fn disk_node(index: usize) -> String {
    format!("disk{index}")
}

fn platform(argv: &mut Argv, machine: &Machine) {
    let windows = machine.hardware != Hardware::Paravirtual;
    match &machine.firmware {
        Firmware::Bios => {
            argv.pair("-machine", if windows { "q35,hpet=off" } else { "pc" });
        }
        Firmware::Uefi { code, vars, secure_boot } => {
            argv.option("-blockdev")
                .set("driver", "raw")
                .set("node-name", "code0")
                .set("read-only", "on")
                .set("file.driver", "file")
                .set("file.filename", code);
            argv.option("-blockdev")
                .set("driver", "raw")
                .set("node-name", "vars0")
                .set("file.driver", "file")
                .set("file.filename", vars);
            let mut kind = argv.option("-machine").bare("q35");
            if *secure_boot {
                kind = kind.set("smm", "on");
            }
            if windows {
                kind = kind.set("hpet", "off");
            }
            drop(kind.set("pflash0", "code0").set("pflash1", "vars0"));
            if *secure_boot {
                argv.pair("-global", "driver=cfi.pflash01,property=secure,value=on");
            }
        }
    }
    let enlightenments = if windows { ENLIGHTENMENTS } else { "" };
    match &machine.accelerator {
        Accelerator::Kvm { cpu_model } => {
            let more = if windows { KVM_ENLIGHTENMENTS } else { "" };
            argv.pair("-accel", "kvm").pair("-cpu", format!("{cpu_model},enforce{enlightenments}{more}"));
        }
        Accelerator::Tcg { .. } => {
            argv.pair("-accel", "tcg,thread=multi")
                .pair("-cpu", format!("max{SLOW_UNDER_TCG}{enlightenments}"));
        }
    }
    if windows {
        argv.pair("-rtc", "base=localtime,driftfix=slew");
    }
}

/// "Fast string moves": a promise about the processor's microcode that emulation cannot keep. A kernel that believes it
/// clears and copies each page by one `rep stosb`, which TCG does byte by byte; without it, by loops of wider moves that
/// become host code. No program needs the flags to run.
const SLOW_UNDER_TCG: &str = ",erms=off,fsrm=off";

/// QEMU's docs/system/i386/hyperv.rst, "Recommendations".
const ENLIGHTENMENTS: &str = ",hv_relaxed=on,hv_vapic=on,hv_spinlocks=0x1fff,hv_vpindex=on,hv_time=on";
/// Those that only KVM has.
const KVM_ENLIGHTENMENTS: &str = ",hv_crash=on,hv_runtime=on,hv_synic=on,hv_stimer=on,hv_frequencies=on,hv_reset=on,hv_tlbflush=on,hv_ipi=on";

fn disks(argv: &mut Argv, machine: &Machine) {
    for (index, disk) in machine.disks.iter().enumerate() {
        let node = disk_node(index);
        argv.option("-blockdev")
            .set("driver", DiskFormat::Qcow2.name())
            .set("node-name", &node)
            .set("cache.no-flush", "on")
            .set("discard", "unmap")
            .set("detect-zeroes", "unmap")
            .set("file.driver", "file")
            .set("file.filename", disk.path())
            .set("file.cache.no-flush", "on")
            .set("file.discard", "unmap");
        // The chipset of every Windows machine has an AHCI controller with six ports.
        let mut device = match machine.hardware {
            Hardware::Windows { drivers: Drivers::Inbox, .. } => argv
                .option("-device")
                .bare("ide-hd")
                .set("id", format!("ahci-{node}"))
                .set("bus", format!("ide.{index}")),
            Hardware::Paravirtual | Hardware::Windows { drivers: Drivers::Virtio, .. } => {
                argv.option("-device").bare("virtio-blk-pci").set("id", format!("virtio-{node}"))
            }
        };
        device = device.set("drive", &node).set("werror", "stop").set("rerror", "stop");
        if index == 0 && machine.kernel.is_none() {
            device.set("bootindex", "0");
        }
    }
}

/// The device id of the one removable drive.
pub(crate) const DRIVE: &str = "drive0";

/// The block node of the drive's medium number `number`, from 0.
pub(crate) fn medium_node(number: u32) -> String {
    format!("medium{number}")
}

/// A drive that is always there, at the same place, whatever lies in it: a machine whose memory was kept comes back to
/// the devices it had, and a medium can be changed.
fn drive(argv: &mut Argv, machine: &Machine) {
    let node = medium_node(0);
    if let Some(medium) = &machine.medium {
        argv.option("-blockdev")
            .set("driver", "raw")
            .set("node-name", &node)
            .set("read-only", "on")
            .set("file.driver", "file")
            .set("file.filename", medium);
    }
    let mut device = match machine.hardware {
        // The chipset's controller has six ports, of which disks take the first.
        Hardware::Windows { .. } => {
            argv.option("-device").bare("ide-cd").set("id", DRIVE).set("bus", "ide.5")
        }
        Hardware::Paravirtual => {
            argv.pair("-device", "virtio-scsi-pci,id=scsi0");
            argv.option("-device").bare("scsi-cd").set("id", DRIVE).set("bus", "scsi0.0")
        }
    };
    if machine.medium.is_some() {
        device = device.set("drive", &node);
    }
    drop(device.set("rerror", "stop"));
}

#[derive(Default)]
struct Argv {
    words: Vec<OsString>,
}

impl Argv {
    fn word(&mut self, word: impl AsRef<OsStr>) -> &mut Self {
        self.words.push(word.as_ref().to_owned());
        self
    }

    fn pair(&mut self, option: &str, value: impl AsRef<OsStr>) -> &mut Self {
        self.word(option).word(value)
    }

    /// An option whose value is a list of settings, complete when the returned builder is dropped.
    fn option(&mut self, option: &str) -> Settings<'_> {
        self.word(option);
        Settings { argv: self, value: Vec::new() }
    }
}

/// `a,b=c,…`, where a comma inside a value is written twice.
struct Settings<'a> {
    argv: &'a mut Argv,
    value: Vec<u8>,
}

impl Settings<'_> {
    fn bare(mut self, value: impl AsRef<OsStr>) -> Self {
        self.append(value.as_ref());
        self
    }

    fn set(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        if !self.value.is_empty() {
            self.value.push(b',');
        }
        self.value.extend_from_slice(key.as_bytes());
        self.value.push(b'=');
        self.append(value.as_ref());
        self
    }

    fn append(&mut self, value: &OsStr) {
        self.value.extend_from_slice(escaped(Path::new(value)).as_bytes());
    }
}

impl Drop for Settings<'_> {
    fn drop(&mut self) {
        let value = OsString::from_vec(std::mem::take(&mut self.value));
        self.argv.words.push(value);
    }
}

/// A path inside a list of settings.
pub(crate) fn escaped(path: &Path) -> OsString {
    let bytes = path.as_os_str().as_bytes();
    let doubled = bytes.iter().flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b',' { 2 } else { 1 }));
    OsString::from_vec(doubled.collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expect_test::{Expect, expect};

    use super::*;
    use crate::disk::Overlay;
    use crate::machine::{DirectBoot, Tpm};

    const ALL: Features = Features { sandbox: true, pvpanic: true, vmgenid: true };

    fn machine() -> Machine {
        Machine {
            name: "run-1".into(),
            accelerator: Accelerator::Tcg { reason: "no KVM".into() },
            cpus: 2,
            memory_mib: 1024,
            firmware: Firmware::Bios,
            hardware: Hardware::Paravirtual,
            disks: vec![Overlay::at("/runs/1/os.qcow2", 8 << 30)],
            medium: Some("/runs/1/seed.iso".into()),
            network: Network::User { forward: vec![22] },
            smbios_serial: Some("ds=nocloud".into()),
            serial_log: "/runs/1/serial.log".into(),
            qemu_log: "/runs/1/qemu.log".into(),
            runtime_dir: "/run/kiln/1".into(),
            kernel: None,
            incoming: None,
            disk_full_wait: Duration::from_secs(600),
        }
    }

    fn uefi() -> Firmware {
        Firmware::Uefi {
            code: "/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
            vars: "/runs/1/vars.fd".into(),
            secure_boot: false,
        }
    }

    fn secure_uefi() -> Firmware {
        Firmware::Uefi {
            code: "/usr/share/OVMF/OVMF_CODE_4M.ms.fd".into(),
            vars: "/runs/1/vars.fd".into(),
            secure_boot: true,
        }
    }

    /// One option with its value a line.
    fn check(machine: &Machine, features: &Features, expected: &Expect) {
        let words = arguments(machine, features);
        let text = words.iter().map(|word| word.to_string_lossy()).fold(String::new(), |text, word| {
            let separator = if text.is_empty() {
                ""
            } else if word.starts_with('-') {
                "\n"
            } else {
                " "
            };
            text + separator + &word
        });
        expected.assert_eq(&text);
    }

    #[test]
    fn generation_1_under_tcg() {
        check(
            &machine(),
            &ALL,
            &expect![[r#"
            -nodefaults
            -no-user-config
            -display none
            -S
            -name run-1,process=run-1
            -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
            -machine pc
            -accel tcg,thread=multi
            -cpu max,erms=off,fsrm=off
            -m 1024M
            -smp 2
            -action reboot=reset,shutdown=poweroff,panic=pause
            -smbios type=1,serial=ds=nocloud
            -chardev socket,id=qmp0,path=/run/kiln/1/qmp
            -mon chardev=qmp0,mode=control
            -chardev file,id=serial0,path=/runs/1/serial.log,append=on
            -serial chardev:serial0
            -blockdev driver=qcow2,node-name=disk0,cache.no-flush=on,discard=unmap,detect-zeroes=unmap,file.driver=file,file.filename=/runs/1/os.qcow2,file.cache.no-flush=on,file.discard=unmap
            -device virtio-blk-pci,id=virtio-disk0,drive=disk0,werror=stop,rerror=stop,bootindex=0
            -blockdev driver=raw,node-name=medium0,read-only=on,file.driver=file,file.filename=/runs/1/seed.iso
            -device virtio-scsi-pci,id=scsi0
            -device scsi-cd,id=drive0,bus=scsi0.0,drive=medium0,rerror=stop
            -netdev user,id=net0,hostfwd=tcp:127.0.0.1:0-:22
            -device virtio-net-pci,netdev=net0,romfile=
            -object rng-builtin,id=rng0
            -device virtio-rng-pci,rng=rng0
            -device pvpanic
            -boot menu=off,strict=on"#]],
        );
    }

    fn windows(drivers: Drivers, with_tpm: bool) -> Machine {
        let tpm = Tpm {
            program: "/usr/bin/swtpm".into(),
            state: "/runs/1/work/tpm".into(),
            log: "/runs/1/tpm.log".into(),
        };
        Machine {
            hardware: Hardware::Windows { drivers, tpm: with_tpm.then_some(tpm) },
            network: Network::User { forward: vec![5985, 5986] },
            smbios_serial: None,
            ..machine()
        }
    }

    #[test]
    fn windows_of_generation_1_under_tcg() {
        check(
            &windows(Drivers::Inbox, false),
            &ALL,
            &expect![[r#"
                -nodefaults
                -no-user-config
                -display none
                -S
                -name run-1,process=run-1
                -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
                -machine q35,hpet=off
                -accel tcg,thread=multi
                -cpu max,erms=off,fsrm=off,hv_relaxed=on,hv_vapic=on,hv_spinlocks=0x1fff,hv_vpindex=on,hv_time=on
                -rtc base=localtime,driftfix=slew
                -m 1024M
                -smp 2
                -action reboot=reset,shutdown=poweroff,panic=pause
                -chardev socket,id=qmp0,path=/run/kiln/1/qmp
                -mon chardev=qmp0,mode=control
                -chardev file,id=serial0,path=/runs/1/serial.log,append=on
                -serial chardev:serial0
                -device qemu-xhci,id=usb
                -device usb-tablet,bus=usb.0
                -device VGA
                -device vmgenid,guid=auto
                -blockdev driver=qcow2,node-name=disk0,cache.no-flush=on,discard=unmap,detect-zeroes=unmap,file.driver=file,file.filename=/runs/1/os.qcow2,file.cache.no-flush=on,file.discard=unmap
                -device ide-hd,id=ahci-disk0,bus=ide.0,drive=disk0,werror=stop,rerror=stop,bootindex=0
                -blockdev driver=raw,node-name=medium0,read-only=on,file.driver=file,file.filename=/runs/1/seed.iso
                -device ide-cd,id=drive0,bus=ide.5,drive=medium0,rerror=stop
                -netdev user,id=net0,hostfwd=tcp:127.0.0.1:0-:5985,hostfwd=tcp:127.0.0.1:0-:5986
                -device e1000e,netdev=net0,romfile=
                -device pvpanic
                -boot menu=off,strict=on"#]],
        );
    }

    #[test]
    fn windows_of_generation_2_under_kvm() {
        let accelerator = Accelerator::Kvm { cpu_model: "Skylake-Client".into() };
        let machine = Machine { accelerator, firmware: secure_uefi(), ..windows(Drivers::Inbox, true) };
        check(
            &machine,
            &ALL,
            &expect![[r#"
                -nodefaults
                -no-user-config
                -display none
                -S
                -name run-1,process=run-1
                -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
                -blockdev driver=raw,node-name=code0,read-only=on,file.driver=file,file.filename=/usr/share/OVMF/OVMF_CODE_4M.ms.fd
                -blockdev driver=raw,node-name=vars0,file.driver=file,file.filename=/runs/1/vars.fd
                -machine q35,smm=on,hpet=off,pflash0=code0,pflash1=vars0
                -global driver=cfi.pflash01,property=secure,value=on
                -accel kvm
                -cpu Skylake-Client,enforce,hv_relaxed=on,hv_vapic=on,hv_spinlocks=0x1fff,hv_vpindex=on,hv_time=on,hv_crash=on,hv_runtime=on,hv_synic=on,hv_stimer=on,hv_frequencies=on,hv_reset=on,hv_tlbflush=on,hv_ipi=on
                -rtc base=localtime,driftfix=slew
                -m 1024M
                -smp 2
                -action reboot=reset,shutdown=poweroff,panic=pause
                -chardev socket,id=qmp0,path=/run/kiln/1/qmp
                -mon chardev=qmp0,mode=control
                -chardev file,id=serial0,path=/runs/1/serial.log,append=on
                -serial chardev:serial0
                -device qemu-xhci,id=usb
                -device usb-tablet,bus=usb.0
                -device VGA
                -chardev socket,id=tpm0,path=/run/kiln/1/tpm
                -tpmdev emulator,id=tpm0,chardev=tpm0
                -device tpm-crb,tpmdev=tpm0
                -device vmgenid,guid=auto
                -blockdev driver=qcow2,node-name=disk0,cache.no-flush=on,discard=unmap,detect-zeroes=unmap,file.driver=file,file.filename=/runs/1/os.qcow2,file.cache.no-flush=on,file.discard=unmap
                -device ide-hd,id=ahci-disk0,bus=ide.0,drive=disk0,werror=stop,rerror=stop,bootindex=0
                -blockdev driver=raw,node-name=medium0,read-only=on,file.driver=file,file.filename=/runs/1/seed.iso
                -device ide-cd,id=drive0,bus=ide.5,drive=medium0,rerror=stop
                -netdev user,id=net0,hostfwd=tcp:127.0.0.1:0-:5985,hostfwd=tcp:127.0.0.1:0-:5986
                -device e1000e,netdev=net0,romfile=
                -device pvpanic
                -boot menu=off,strict=on"#]],
        );
    }

    #[test]
    fn windows_with_virtio_drivers() {
        let machine = Machine { firmware: secure_uefi(), ..windows(Drivers::Virtio, true) };
        check(
            &machine,
            &ALL,
            &expect![[r#"
                -nodefaults
                -no-user-config
                -display none
                -S
                -name run-1,process=run-1
                -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
                -blockdev driver=raw,node-name=code0,read-only=on,file.driver=file,file.filename=/usr/share/OVMF/OVMF_CODE_4M.ms.fd
                -blockdev driver=raw,node-name=vars0,file.driver=file,file.filename=/runs/1/vars.fd
                -machine q35,smm=on,hpet=off,pflash0=code0,pflash1=vars0
                -global driver=cfi.pflash01,property=secure,value=on
                -accel tcg,thread=multi
                -cpu max,erms=off,fsrm=off,hv_relaxed=on,hv_vapic=on,hv_spinlocks=0x1fff,hv_vpindex=on,hv_time=on
                -rtc base=localtime,driftfix=slew
                -m 1024M
                -smp 2
                -action reboot=reset,shutdown=poweroff,panic=pause
                -chardev socket,id=qmp0,path=/run/kiln/1/qmp
                -mon chardev=qmp0,mode=control
                -chardev file,id=serial0,path=/runs/1/serial.log,append=on
                -serial chardev:serial0
                -device qemu-xhci,id=usb
                -device usb-tablet,bus=usb.0
                -device VGA
                -chardev socket,id=tpm0,path=/run/kiln/1/tpm
                -tpmdev emulator,id=tpm0,chardev=tpm0
                -device tpm-crb,tpmdev=tpm0
                -device vmgenid,guid=auto
                -blockdev driver=qcow2,node-name=disk0,cache.no-flush=on,discard=unmap,detect-zeroes=unmap,file.driver=file,file.filename=/runs/1/os.qcow2,file.cache.no-flush=on,file.discard=unmap
                -device virtio-blk-pci,id=virtio-disk0,drive=disk0,werror=stop,rerror=stop,bootindex=0
                -blockdev driver=raw,node-name=medium0,read-only=on,file.driver=file,file.filename=/runs/1/seed.iso
                -device ide-cd,id=drive0,bus=ide.5,drive=medium0,rerror=stop
                -netdev user,id=net0,hostfwd=tcp:127.0.0.1:0-:5985,hostfwd=tcp:127.0.0.1:0-:5986
                -device virtio-net-pci,netdev=net0,romfile=
                -device pvpanic
                -boot menu=off,strict=on"#]],
        );
    }

    /// Firmware, drivers and TPM are each other's strangers: no combination changes what the others say.
    #[test]
    fn parts_of_a_windows_machine_do_not_mix() {
        for tpm in [false, true] {
            for drivers in [Drivers::Inbox, Drivers::Virtio] {
                for firmware in [Firmware::Bios, uefi(), secure_uefi()] {
                    let machine = Machine { firmware: firmware.clone(), ..windows(drivers, tpm) };
                    let words = arguments(&machine, &ALL);
                    let has = |part: &str| words.iter().any(|word| word.to_string_lossy().contains(part));
                    assert_eq!(has("tpm-crb"), tpm);
                    assert_eq!(has("virtio"), drivers == Drivers::Virtio);
                    assert_eq!(has("ide-hd,") && has("e1000e,"), drivers == Drivers::Inbox);
                    let secure = matches!(firmware, Firmware::Uefi { secure_boot: true, .. });
                    assert_eq!(has("smm=on") && has("property=secure"), secure);
                    assert!(has("q35") && has("hv_relaxed=on") && has("ide-cd,") && has("driftfix=slew"));
                    assert!(has("vmgenid,guid=auto"));
                }
            }
        }
    }

    #[test]
    fn generation_1_under_kvm() {
        let accelerator = Accelerator::Kvm { cpu_model: "Nehalem".into() };
        check(
            &Machine { accelerator, ..machine() },
            &ALL,
            &expect![[r#"
            -nodefaults
            -no-user-config
            -display none
            -S
            -name run-1,process=run-1
            -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
            -machine pc
            -accel kvm
            -cpu Nehalem,enforce
            -m 1024M
            -smp 2
            -action reboot=reset,shutdown=poweroff,panic=pause
            -smbios type=1,serial=ds=nocloud
            -chardev socket,id=qmp0,path=/run/kiln/1/qmp
            -mon chardev=qmp0,mode=control
            -chardev file,id=serial0,path=/runs/1/serial.log,append=on
            -serial chardev:serial0
            -blockdev driver=qcow2,node-name=disk0,cache.no-flush=on,discard=unmap,detect-zeroes=unmap,file.driver=file,file.filename=/runs/1/os.qcow2,file.cache.no-flush=on,file.discard=unmap
            -device virtio-blk-pci,id=virtio-disk0,drive=disk0,werror=stop,rerror=stop,bootindex=0
            -blockdev driver=raw,node-name=medium0,read-only=on,file.driver=file,file.filename=/runs/1/seed.iso
            -device virtio-scsi-pci,id=scsi0
            -device scsi-cd,id=drive0,bus=scsi0.0,drive=medium0,rerror=stop
            -netdev user,id=net0,hostfwd=tcp:127.0.0.1:0-:22
            -device virtio-net-pci,netdev=net0,romfile=
            -object rng-builtin,id=rng0
            -device virtio-rng-pci,rng=rng0
            -device pvpanic
            -boot menu=off,strict=on"#]],
        );
    }

    #[test]
    fn generation_2_under_tcg() {
        check(
            &Machine { firmware: uefi(), ..machine() },
            &ALL,
            &expect![[r#"
            -nodefaults
            -no-user-config
            -display none
            -S
            -name run-1,process=run-1
            -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
            -blockdev driver=raw,node-name=code0,read-only=on,file.driver=file,file.filename=/usr/share/OVMF/OVMF_CODE_4M.fd
            -blockdev driver=raw,node-name=vars0,file.driver=file,file.filename=/runs/1/vars.fd
            -machine q35,pflash0=code0,pflash1=vars0
            -accel tcg,thread=multi
            -cpu max,erms=off,fsrm=off
            -m 1024M
            -smp 2
            -action reboot=reset,shutdown=poweroff,panic=pause
            -smbios type=1,serial=ds=nocloud
            -chardev socket,id=qmp0,path=/run/kiln/1/qmp
            -mon chardev=qmp0,mode=control
            -chardev file,id=serial0,path=/runs/1/serial.log,append=on
            -serial chardev:serial0
            -blockdev driver=qcow2,node-name=disk0,cache.no-flush=on,discard=unmap,detect-zeroes=unmap,file.driver=file,file.filename=/runs/1/os.qcow2,file.cache.no-flush=on,file.discard=unmap
            -device virtio-blk-pci,id=virtio-disk0,drive=disk0,werror=stop,rerror=stop,bootindex=0
            -blockdev driver=raw,node-name=medium0,read-only=on,file.driver=file,file.filename=/runs/1/seed.iso
            -device virtio-scsi-pci,id=scsi0
            -device scsi-cd,id=drive0,bus=scsi0.0,drive=medium0,rerror=stop
            -netdev user,id=net0,hostfwd=tcp:127.0.0.1:0-:22
            -device virtio-net-pci,netdev=net0,romfile=
            -object rng-builtin,id=rng0
            -device virtio-rng-pci,rng=rng0
            -device pvpanic
            -boot menu=off,strict=on"#]],
        );
    }

    #[test]
    fn generation_2_under_kvm() {
        let accelerator = Accelerator::Kvm { cpu_model: "Haswell-noTSX".into() };
        check(
            &Machine { accelerator, firmware: uefi(), ..machine() },
            &ALL,
            &expect![[r#"
            -nodefaults
            -no-user-config
            -display none
            -S
            -name run-1,process=run-1
            -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
            -blockdev driver=raw,node-name=code0,read-only=on,file.driver=file,file.filename=/usr/share/OVMF/OVMF_CODE_4M.fd
            -blockdev driver=raw,node-name=vars0,file.driver=file,file.filename=/runs/1/vars.fd
            -machine q35,pflash0=code0,pflash1=vars0
            -accel kvm
            -cpu Haswell-noTSX,enforce
            -m 1024M
            -smp 2
            -action reboot=reset,shutdown=poweroff,panic=pause
            -smbios type=1,serial=ds=nocloud
            -chardev socket,id=qmp0,path=/run/kiln/1/qmp
            -mon chardev=qmp0,mode=control
            -chardev file,id=serial0,path=/runs/1/serial.log,append=on
            -serial chardev:serial0
            -blockdev driver=qcow2,node-name=disk0,cache.no-flush=on,discard=unmap,detect-zeroes=unmap,file.driver=file,file.filename=/runs/1/os.qcow2,file.cache.no-flush=on,file.discard=unmap
            -device virtio-blk-pci,id=virtio-disk0,drive=disk0,werror=stop,rerror=stop,bootindex=0
            -blockdev driver=raw,node-name=medium0,read-only=on,file.driver=file,file.filename=/runs/1/seed.iso
            -device virtio-scsi-pci,id=scsi0
            -device scsi-cd,id=drive0,bus=scsi0.0,drive=medium0,rerror=stop
            -netdev user,id=net0,hostfwd=tcp:127.0.0.1:0-:22
            -device virtio-net-pci,netdev=net0,romfile=
            -object rng-builtin,id=rng0
            -device virtio-rng-pci,rng=rng0
            -device pvpanic
            -boot menu=off,strict=on"#]],
        );
    }

    #[test]
    fn a_tiny_guest_without_disks_network_or_features() {
        let kernel = DirectBoot {
            kernel: "/boot/vmlinuz,1".into(),
            initrd: Some("/tmp/initrd".into()),
            append: "console=ttyS0 quiet".into(),
        };
        let tiny = Machine {
            disks: Vec::new(),
            medium: None,
            network: Network::None,
            smbios_serial: None,
            kernel: Some(kernel),
            ..machine()
        };
        check(
            &tiny,
            &Features { sandbox: false, pvpanic: false, vmgenid: false },
            &expect![[r#"
            -nodefaults
            -no-user-config
            -display none
            -S
            -name run-1,process=run-1
            -machine pc
            -accel tcg,thread=multi
            -cpu max,erms=off,fsrm=off
            -m 1024M
            -smp 2
            -action reboot=reset,shutdown=poweroff,panic=pause
            -chardev socket,id=qmp0,path=/run/kiln/1/qmp
            -mon chardev=qmp0,mode=control
            -chardev file,id=serial0,path=/runs/1/serial.log,append=on
            -serial chardev:serial0
            -device virtio-scsi-pci,id=scsi0
            -device scsi-cd,id=drive0,bus=scsi0.0,rerror=stop
            -object rng-builtin,id=rng0
            -device virtio-rng-pci,rng=rng0
            -kernel /boot/vmlinuz,1
            -initrd /tmp/initrd
            -append console=ttyS0 quiet"#]],
        );
    }

    #[test]
    fn commas_in_names_and_paths_stay_inside_them() {
        let odd = Machine {
            name: "a,b=c".into(),
            disks: vec![Overlay::at("/runs/a,read-only=on/os.qcow2", 1 << 20)],
            smbios_serial: Some("x,uuid=1".into()),
            ..machine()
        };
        let words = arguments(&odd, &ALL);
        for expected in [
            "a,,b=c,process=a,,b=c",
            "type=1,serial=x,,uuid=1",
            "driver=qcow2,node-name=disk0,cache.no-flush=on,discard=unmap,detect-zeroes=unmap,file.driver=file,\
             file.filename=/runs/a,,read-only=on/os.qcow2,file.cache.no-flush=on,file.discard=unmap",
        ] {
            assert!(words.iter().any(|word| word == expected), "{expected} not in {words:?}");
        }
    }
}

//! From a [`Machine`] to QEMU's arguments: pure, in QEMU's own words, and therefore kept in golden texts below.
//!
//! - `-nodefaults -no-user-config`: nothing is there that is not written here.
//! - `-S`: the guest waits until we listen, so no event is lost; [`crate::vm`] lets it go.
//! - QMP: we listen, QEMU connects. No waiting for a socket to appear, and nobody else can connect.
//! - Disks: `cache.no-flush` because a run whose host crashed is repeated anyway; what is kept is synced when it is
//!   published. `discard` and `detect-zeroes` let the overlay shrink with its contents.
//! - `werror=stop,rerror=stop`: an I/O error pauses the guest before it can act on it; a full disk can then be waited
//!   out. `panic=pause`: a panicked guest stays to be looked at until we end it.
//! - TCG has `-cpu max` (the fastest measured); KVM a named model with `enforce`, never `host`, so that the same model
//!   means the same machine.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use crate::disk::DiskFormat;
use crate::firmware::Firmware;
use crate::host::{Accelerator, Features};
use crate::machine::{Machine, Network};

/// What libvirt denies as well: QEMU needs none of it once it runs.
pub(crate) const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

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
        .set("id", "serial0")
        .set("path", &machine.serial_log)
        .set("append", "on");
    argv.pair("-serial", "chardev:serial0");
    disks(&mut argv, machine);
    if let Network::User { forward_ssh } = machine.network {
        let mut netdev = argv.option("-netdev").bare("user").set("id", "net0");
        if forward_ssh {
            netdev = netdev.set("hostfwd", "tcp:127.0.0.1:0-:22");
        }
        drop(netdev);
        // Without its ROM the card cannot boot, and is not asked to.
        argv.pair("-device", "virtio-net-pci,netdev=net0,romfile=");
    }
    argv.pair("-object", "rng-builtin,id=rng0").pair("-device", "virtio-rng-pci,rng=rng0");
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
    argv.words
}

/// Where QEMU finds us listening.
pub(crate) fn qmp_socket(machine: &Machine) -> PathBuf {
    machine.runtime_dir.join("qmp")
}

/// The block node of a disk, by which QEMU names it in events.
pub(crate) fn disk_node(index: usize) -> String {
    format!("disk{index}")
}

fn platform(argv: &mut Argv, machine: &Machine) {
    match &machine.firmware {
        Firmware::Bios => {
            argv.pair("-machine", "pc");
        }
        Firmware::Uefi { code, vars } => {
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
            argv.pair("-machine", "q35,pflash0=code0,pflash1=vars0");
        }
    }
    match &machine.accelerator {
        Accelerator::Kvm { cpu_model } => {
            argv.pair("-accel", "kvm").pair("-cpu", format!("{cpu_model},enforce"));
        }
        Accelerator::Tcg { .. } => {
            argv.pair("-accel", "tcg,thread=multi").pair("-cpu", "max");
        }
    }
}

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
        let mut device = argv.option("-device").bare("virtio-blk-pci").set("id", format!("virtio-{node}"));
        device = device.set("drive", &node).set("werror", "stop").set("rerror", "stop");
        if index == 0 && machine.kernel.is_none() {
            device.set("bootindex", "0");
        }
    }
    for (index, medium) in machine.media.iter().enumerate() {
        let node = format!("medium{index}");
        argv.option("-blockdev")
            .set("driver", "raw")
            .set("node-name", &node)
            .set("read-only", "on")
            .set("file.driver", "file")
            .set("file.filename", &medium.path);
        argv.option("-device")
            .bare("virtio-blk-pci")
            .set("id", format!("virtio-{node}"))
            .set("drive", &node)
            .set("rerror", "stop");
    }
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
    use crate::machine::{DirectBoot, Medium};

    const ALL: Features = Features { sandbox: true, pvpanic: true };

    fn machine() -> Machine {
        Machine {
            name: "run-1".into(),
            accelerator: Accelerator::Tcg { reason: "no KVM".into() },
            cpus: 2,
            memory_mib: 1024,
            firmware: Firmware::Bios,
            disks: vec![Overlay::at("/runs/1/os.qcow2", 8 << 30)],
            media: vec![Medium { path: "/runs/1/seed.img".into() }],
            network: Network::User { forward_ssh: true },
            smbios_serial: Some("ds=nocloud".into()),
            serial_log: "/runs/1/serial.log".into(),
            qemu_log: "/runs/1/qemu.log".into(),
            runtime_dir: "/run/kiln/1".into(),
            kernel: None,
            disk_full_wait: Duration::from_secs(600),
        }
    }

    fn uefi() -> Firmware {
        Firmware::Uefi { code: "/usr/share/OVMF/OVMF_CODE_4M.fd".into(), vars: "/runs/1/vars.fd".into() }
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
            -cpu max
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
            -blockdev driver=raw,node-name=medium0,read-only=on,file.driver=file,file.filename=/runs/1/seed.img
            -device virtio-blk-pci,id=virtio-medium0,drive=medium0,rerror=stop
            -netdev user,id=net0,hostfwd=tcp:127.0.0.1:0-:22
            -device virtio-net-pci,netdev=net0,romfile=
            -object rng-builtin,id=rng0
            -device virtio-rng-pci,rng=rng0
            -device pvpanic
            -boot menu=off,strict=on"#]],
        );
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
            -blockdev driver=raw,node-name=medium0,read-only=on,file.driver=file,file.filename=/runs/1/seed.img
            -device virtio-blk-pci,id=virtio-medium0,drive=medium0,rerror=stop
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
            -cpu max
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
            -blockdev driver=raw,node-name=medium0,read-only=on,file.driver=file,file.filename=/runs/1/seed.img
            -device virtio-blk-pci,id=virtio-medium0,drive=medium0,rerror=stop
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
            -blockdev driver=raw,node-name=medium0,read-only=on,file.driver=file,file.filename=/runs/1/seed.img
            -device virtio-blk-pci,id=virtio-medium0,drive=medium0,rerror=stop
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
            media: Vec::new(),
            network: Network::None,
            smbios_serial: None,
            kernel: Some(kernel),
            ..machine()
        };
        check(
            &tiny,
            &Features { sandbox: false, pvpanic: false },
            &expect![[r#"
            -nodefaults
            -no-user-config
            -display none
            -S
            -name run-1,process=run-1
            -machine pc
            -accel tcg,thread=multi
            -cpu max
            -m 1024M
            -smp 2
            -action reboot=reset,shutdown=poweroff,panic=pause
            -chardev socket,id=qmp0,path=/run/kiln/1/qmp
            -mon chardev=qmp0,mode=control
            -chardev file,id=serial0,path=/runs/1/serial.log,append=on
            -serial chardev:serial0
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

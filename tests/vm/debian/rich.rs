//! One build that uses everything, and what can be said of its VHD: by its bytes, by its
//! files, and by booting it again with other keys.
//!
//! ```text
//!  first   Shell      appends to /srv/order                         the build's account
//!  second  Shell      scriptUri with a checksum, appends            root
//!  reboot  Shell      appends, restarts the guest, never returns
//!  staged  File       into a folder, by http
//!  blob    File       64 MiB to a full path, by file:
//!  fourth  Shell      appends, moves the files out of /tmp
//! ```

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use kiln_tests::disk::Disk;
use kiln_tests::footer;
use kiln_tests::kiln::{Ended, Kiln};
use kiln_tests::program::{output, sha256sum};
use kiln_tests::reboot::{Firmware, Reboot};
use kiln_tests::server::{Answer, Server};
use kiln_tests::template::debian;
use serde_json::{Value, json};

const CANARY: &str = "c4n4ry0fTheRequest";
const GIB: u64 = 1 << 30;

struct Rich {
    kiln: Kiln,
    ended: Ended,
    blob_sha256: String,
    /// What the build's media held: texts that must not be in the image.
    keys: Vec<String>,
}

static RICH: LazyLock<Rich> = LazyLock::new(build);

fn build() -> Rich {
    let kiln = Kiln::new();
    let second = b"#!/bin/sh\r\necho \"two $(id -un)\" >> /srv/order\r\n".to_vec();
    let second_path = kiln.path().join("second.sh");
    std::fs::write(&second_path, &second).unwrap();
    let server = Server::start([
        ("/second.sh", Answer::Bytes(second)),
        ("/folder/staged.conf", Answer::Bytes(b"staged = yes\n".to_vec())),
    ]);
    let blob = kiln.path().join("blob.bin");
    output("dd", ["if=/dev/urandom", &format!("of={}", blob.display()), "bs=1M", "count=64", "status=none"]);
    let blob_sha256 = sha256sum(&blob);

    let template = debian()
        .top("tags", json!({ "owner": "tests" }))
        .disk_gb(6)
        .shell("first", ["sudo sh -c 'echo one > /srv/order'", "FROM=one-entry", "echo $FROM to-the-next"])
        .customizer(json!({
            "type": "Shell",
            "name": "second",
            "scriptUri": format!("{}?sig={CANARY}", server.url("/second.sh")),
            "sha256Checksum": sha256sum(&second_path),
        }))
        .shell(
            "reboot",
            [
                "cp /proc/sys/kernel/random/boot_id /var/tmp/before",
                "echo three | sudo tee -a /srv/order",
                "sudo reboot",
                "sleep 900",
            ],
        )
        .file("staged", &server.url("/folder/staged.conf"), "/tmp/")
        .customizer(json!({
            "type": "File",
            "name": "blob",
            "sourceUri": format!("file://{}", blob.display()),
            "destination": "/tmp/blob.bin",
            "sha256Checksum": blob_sha256,
        }))
        .shell(
            "fourth",
            [
                "! cmp -s /var/tmp/before /proc/sys/kernel/random/boot_id",
                "sudo sh -c 'echo four >> /srv/order'",
                "sudo mv /tmp/staged.conf /tmp/blob.bin /srv/",
                "sudo rm /var/tmp/before",
            ],
        );
    let running = kiln.start(&template);
    running.until_step("connect");
    let keys = build_keys(&running.run_dir().join("work/seed.iso"));
    let ended = running.wait().succeeded();
    Rich { kiln, ended, blob_sha256, keys }
}

/// The key texts on the build's seed medium, as single lines of base64.
fn build_keys(seed: &Path) -> Vec<String> {
    let text = output("isoinfo", ["-R", "-x", "/user-data", "-i", seed.to_str().unwrap()]);
    let data: Value = serde_json::from_str(text.strip_prefix("#cloud-config\n").unwrap()).unwrap();
    let public = |text: &Value| text.as_str().unwrap().split(' ').nth(1).unwrap().to_owned();
    let mut keys = vec![
        public(&data["users"][0]["ssh_authorized_keys"][0]),
        public(&data["ssh_keys"]["ed25519_public"]),
    ];
    let private = data["ssh_keys"]["ed25519_private"].as_str().unwrap();
    // The first lines of the body are the same in every key of that kind.
    keys.extend(
        private.lines().filter(|line| line.len() >= 64 && !line.contains("---")).skip(1).map(str::to_owned),
    );
    assert!(keys.len() >= 4 && keys.iter().all(|key| key.len() >= 64), "{} keys", keys.len());
    keys
}

fn vhd() -> PathBuf {
    RICH.ended.vhd()
}

#[test]
fn the_vhd_is_what_azure_takes() {
    let vhd = vhd();
    footer::assert_fit_for_azure(&vhd);
    assert_eq!(vhd.metadata().unwrap().len(), 6 * GIB + footer::LENGTH);
    let disk = Disk::open(&vhd);
    assert!(disk.allocated() < 2 * GIB, "sparse on disk: {} bytes", disk.allocated());

    let info: Value = serde_json::from_str(&output(
        "qemu-img",
        ["info", "--output=json", "-f", "vpc", vhd.to_str().unwrap()],
    ))
    .unwrap();
    assert_eq!(info["virtual-size"], 6 * GIB, "QEMU reads the size from the footer, not from its geometry");
    assert_eq!(info["format"], "vpc");
}

/// QEMU reads the VHD as the very disk that lies before its footer.
#[test]
fn qemu_sees_the_same_disk() {
    let vhd = vhd();
    let plain = RICH.kiln.path().join("plain.raw");
    output("cp", ["--sparse=always", vhd.to_str().unwrap(), plain.to_str().unwrap()]);
    std::fs::OpenOptions::new().write(true).open(&plain).unwrap().set_len(6 * GIB).unwrap();
    let compared = output(
        "qemu-img",
        ["compare", "-f", "vpc", "-F", "raw", vhd.to_str().unwrap(), plain.to_str().unwrap()],
    );
    assert!(compared.contains("Images are identical"), "{compared}");
    std::fs::remove_file(plain).unwrap();
}

#[test]
fn the_run_output_tells_the_truth() {
    let vhd = vhd();
    let record: Value = serde_json::from_slice(&std::fs::read(vhd.with_extension("json")).unwrap()).unwrap();
    assert_eq!(record["format"], 1);
    assert_eq!(record["sha256"], sha256sum(&vhd));
    assert_eq!(record["size"], vhd.metadata().unwrap().len());
    assert_eq!(record["virtualSize"], 6 * GIB);
    assert_eq!(record["generation"], "V1");
    assert_eq!(record["tags"], json!({ "owner": "tests" }));
    assert_eq!(record["source"]["name"], "debian-12");
    assert_eq!(record["source"]["sha256"], sha256sum(&super::base_image()));
    assert_eq!(record["source"]["requested"], "Debian:debian-12:12:latest");
    assert_eq!(record["templateSha256"], sha256sum(&RICH.kiln.path().join("template.json")));
    assert_eq!(record["status"], "booted in QEMU; not tried on Azure");
}

/// What users of the service grep for.
#[test]
fn the_log_has_the_services_words() {
    let log = RICH.ended.log();
    for line in log.lines() {
        let rest = line.strip_prefix('[').unwrap_or_else(|| panic!("{line:?} has no prefix"));
        let (guid, rest) = rest.split_once(']').unwrap();
        assert!(guid.len() == 36 && guid.matches('-').count() == 4, "an operation id: {line:?}");
        assert!(rest.starts_with(" PACKER OUT ") || rest.starts_with(" PACKER ERR "), "{line:?}");
    }
    let mut rest = log.as_str();
    for text in [
        "Waiting for SSH to become available",
        "Waiting for SSH, up to timeout: 20m0s",
        "Connected to SSH!",
        "(telemetry) Starting provisioner shell",
        "one-entry to-the-next",
        "(telemetry) ending shell",
        "(telemetry) Starting provisioner shell",
        "(telemetry) Starting provisioner shell",
        "three",
        "(telemetry) Starting provisioner file",
        "Uploading",
        "(telemetry) ending file",
        "(telemetry) Finalizing.",
        // Today's default deprovisioning, printed before it runs.
        "WAAGENT=/usr/sbin/waagent",
        "-force -deprovision+user && export HISTSIZE=0 && sync",
    ] {
        let at = rest.find(text).unwrap_or_else(|| panic!("{text:?} is not there, or out of order:\n{log}"));
        rest = &rest[at + text.len()..];
    }
    for part in [CANARY, "?sig="] {
        assert!(!log.contains(part), "a query string in the log");
    }
    assert!(RICH.ended.run_file("serial.log").contains("Linux version"), "the console has its own file");
}

#[test]
fn phases_are_the_services() {
    let phases: Vec<&str> = RICH.ended.result["phases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|phase| phase["phase"].as_str().unwrap())
        .collect();
    assert_eq!(phases, ["Building", "Customizing", "Distributing"]);
}

/// Looked at without a boot: what the customizers made is there, and the build is not.
#[test]
fn the_image_holds_the_customizers_work_and_nothing_of_the_build() {
    let disk = Disk::open(&vhd());
    assert_eq!(disk.text("/srv/order"), "one\ntwo root\nthree\nfour\n");
    assert_eq!(disk.text("/srv/staged.conf"), "staged = yes\n");
    assert!(disk.root_size() > 5 * GIB, "the root file system has grown to {}", disk.root_size());

    for file in [
        "/etc/passwd",
        "/etc/passwd-",
        "/etc/shadow",
        "/etc/shadow-",
        "/etc/group",
        "/etc/group-",
        "/etc/gshadow",
        "/etc/gshadow-",
        "/etc/subuid",
        "/etc/subgid",
    ] {
        let text =
            disk.read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        assert!(!text.contains("packer"), "{file} names the build's account");
    }
    assert_eq!(disk.names("/home"), [""; 0]);
    let keys: Vec<String> =
        disk.names("/etc/ssh").into_iter().filter(|name| name.starts_with("ssh_host_")).collect();
    assert_eq!(keys, [""; 0], "host keys");
    assert!(!disk.exists("/var/lib/cloud"), "cloud-init's state");
    assert!(!disk.names("/etc/sudoers.d").iter().any(|name| name.contains("cloud-init")));
    assert_eq!(disk.text("/etc/machine-id"), "");
    assert!(!disk.exists("/root/.bash_history"));
    assert_eq!(disk.names("/root/.ssh"), [""; 0]);
    assert!(
        !disk.names("/var/log").iter().any(|name| name.starts_with("cloud-init") || name == "waagent.log")
    );
    assert_eq!(disk.names("/etc/network/interfaces.d"), [""; 0], "the network of the build's machine");
    assert_eq!(disk.names("/etc/udev/rules.d"), [""; 0], "persistent names of its network cards");
    let left: Vec<String> = ["/tmp", "/var/tmp"]
        .iter()
        .flat_map(|folder| disk.names(folder))
        .filter(|name| name.contains("kiln"))
        .collect();
    assert_eq!(left, [""; 0], "the runner's files");
}

/// Not only as files: nowhere in the image's bytes, used or free.
#[test]
fn no_byte_of_the_builds_keys_is_in_the_image() {
    let disk = Disk::open(&vhd());
    for key in &RICH.keys {
        assert!(!disk.holds_bytes(key.as_bytes()), "a key of the build is in the image: {}…", &key[..16]);
    }
    assert!(!disk.holds_bytes(CANARY.as_bytes()), "a query string is in the image");
    // The search does find what is there.
    assert!(disk.holds_bytes(b"staged = yes"));
}

/// Boots again as a VHD, with fresh media: contract section 13 row by row, from inside.
#[test]
fn the_image_boots_again_and_is_an_azure_image() {
    let guest = Reboot::start(&vhd(), Firmware::Bios);
    assert_eq!(guest.ask("cat /srv/order"), "one\ntwo root\nthree\nfour");
    assert_eq!(guest.ask("sha256sum < /srv/blob.bin | cut -d' ' -f1"), RICH.blob_sha256);
    assert_eq!(guest.ask("getent passwd packer || echo none"), "none");
    assert_eq!(guest.ask("test -s /etc/machine-id && echo new"), "new");

    // hv_vmbus, hv_storvsc, hv_netvsc, hv_utils in the initramfs.
    let initramfs = guest.ask("sudo lsinitramfs /initrd.img | grep -o 'hv_[a-z]*' | sort -u | tr '\\n' ' '");
    for module in ["hv_vmbus", "hv_storvsc", "hv_netvsc", "hv_utils"] {
        assert!(initramfs.contains(module), "{module} is not in the initramfs: {initramfs}");
    }
    // Kernel: udf and vfat for the provisioning DVD.
    for module in ["udf", "vfat"] {
        assert!(!guest.ask(&format!("sudo modinfo -n {module}")).is_empty(), "{module}");
    }
    let line = guest.ask("cat /proc/cmdline");
    for word in ["console=ttyS0", "earlyprintk=ttyS0", "net.ifnames=0"] {
        assert!(line.contains(word), "{word} is not on the kernel's line: {line}");
    }
    for word in ["rhgb", "quiet", "crashkernel=auto"] {
        assert!(!line.split(' ').any(|found| found == word), "{word} is on the kernel's line: {line}");
    }
    assert_eq!(guest.ask("swapon --noheadings --show | wc -l"), "0", "no swap on the OS disk");
    assert_eq!(guest.ask("findmnt -no FSTYPE /"), "ext4", "a plain partition, no LVM");
    assert_eq!(guest.ask("systemctl is-active ssh"), "active");
    for package in ["waagent", "cloud-init", "cloud-guest-utils", "gdisk", "hyperv-daemons"] {
        assert_eq!(
            guest.ask(&format!("dpkg-query -W -f='${{db:Status-Status}}' {package}")),
            "installed",
            "{package}"
        );
    }
    for setting in ["Provisioning.Agent=cloud-init", "ResourceDisk.Format=n", "ResourceDisk.EnableSwap=n"] {
        assert_eq!(guest.ask(&format!("grep -c '^{setting}$' /etc/waagent.conf")), "1", "{setting}");
    }
    // The list of datasources holds Azure; nothing of the build has trimmed it.
    let sources = guest.ask(
        "grep -rhE '^ *datasource_list' /etc/cloud/cloud.cfg /etc/cloud/cloud.cfg.d || \
         python3 -c \"from cloudinit.settings import CFG_BUILTIN; print(CFG_BUILTIN['datasource_list'])\"",
    );
    assert!(sources.contains("Azure"), "{sources}");
    assert_eq!(
        guest.ask("grep -c 'apply_network_config: *[Ff]alse' /etc/cloud/cloud.cfg.d/91-azure.cfg"),
        "1"
    );
    assert_eq!(
        guest.ask("systemctl --failed --no-legend | wc -l"),
        "0",
        "{}",
        guest.ask("systemctl --failed")
    );
    let root = guest.ask("df --output=size -B1 / | tail -1").parse::<u64>().unwrap();
    assert!(root > 5 * GIB, "the root file system has {root} bytes");
}

//! Judging disks that other tools made, through QEMU and without, whole and broken. No Windows had a part in it.

mod broken;
mod made;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use kiln_host::wait::{Control, Interrupted};
use made::{Keys, SOFTWARE, STATE, SYSTEM, have_tools, qemu_img};

use super::judge::{self, Found};
use super::*;

fn in_time() -> Control {
    Control::ending_in(Duration::from_secs(60))
}

fn expected() -> OfflineWindows {
    OfflineWindows {
        image_state: Some("IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE".into()),
        virtio: true,
        ahci: true,
        name: Some("Windows Server 2022 Datacenter".into()),
        build: Some("20348.2582".into()),
        ..OfflineWindows::default()
    }
}

/// A volume with both hives.
fn volume(dir: &Path, software: Keys, system: Keys, plan: &str) -> PathBuf {
    let software = made::hive(dir, "SOFTWARE", software);
    let system = made::hive(dir, "SYSTEM", system);
    made::volume(dir, &[("SOFTWARE", &software), ("SYSTEM", &system)], plan)
}

fn judged(disk: &Path) -> OfflineWindows {
    match judge::windows(&fs::read(disk).unwrap()).unwrap() {
        Found::Windows(said) => said,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_format_table_and_chain_tells_the_same() {
    if !have_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let before = volume(dir.path(), &[(STATE, &[("ImageState", "string:IMAGE_STATE_COMPLETE")])], &[], "");
    let base = made::mbr(dir.path(), &before);
    let base_raw = dir.path().join("base, of others.raw");
    fs::rename(base, &base_raw).unwrap();
    let base_qcow2 = made::converted(&base_raw, "qcow2");
    let after = volume(dir.path(), SOFTWARE, SYSTEM, "");
    let (gpt, mbr) = (made::gpt(dir.path(), &after), made::mbr(dir.path(), &after));
    let over_raw = made::layer(&mbr, Path::new("base, of others.raw"), "raw", "over-raw.qcow2");
    let over_qcow2 = made::layer(&mbr, Path::new("base, of others.qcow2"), "qcow2", "over-qcow2.qcow2");
    let disks = [
        (gpt.clone(), DiskFormat::Raw),
        (mbr.clone(), DiskFormat::Raw),
        (made::converted(&gpt, "qcow2"), DiskFormat::Qcow2),
        (made::converted(&gpt, "vhdx"), DiskFormat::Vhdx),
        (made::converted(&gpt, "vmdk"), DiskFormat::Vmdk),
        (made::converted(&mbr, "vpc"), DiskFormat::Vpc),
        (over_raw, DiskFormat::Qcow2),
        (over_qcow2, DiskFormat::Qcow2),
    ];
    for (disk, format) in disks {
        let said = windows(&qemu_img(), &disk, format, &in_time()).await.unwrap();
        assert_eq!(said, expected(), "{}", disk.display());
    }
    let below = windows(&qemu_img(), &base_qcow2, DiskFormat::Qcow2, &in_time()).await.unwrap();
    assert_eq!(below.image_state.as_deref(), Some("IMAGE_STATE_COMPLETE"));
    assert_eq!((below.virtio, below.ahci, below.name, below.build), (false, false, None, None));
}

#[tokio::test]
async fn traces_that_are_there_are_named_and_no_others() {
    if !have_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let plan = "folder\t/Windows/Panther\nfolder\t/Windows/Panther/Unattend\nmany\t/Windows/Panther\t3\n";
    let disk = made::gpt(dir.path(), &volume(dir.path(), SOFTWARE, SYSTEM, plan));
    let file = |path: &str| Trace::File { path: path.into() };
    let key = |hive, path: &str| Trace::Key { hive, path: path.into() };
    let value = |hive, path: &str, name: &str| Trace::Value { hive, path: path.into(), name: name.into() };
    let there = [
        file(r"\windows\PANTHER\unattend"),
        file(r"\Windows\Panther\file 00002.dll"),
        key(HiveName::System, r"CurrentControlSet\Services\netkvm"),
        key(HiveName::System, r"ControlSet001\Services\StorAHCI"),
        value(HiveName::Software, r"Microsoft\Windows NT\CurrentVersion\Winlogon", "autoadminlogon"),
    ];
    let absent = [
        file(r"\Windows\Panther\Unattend\Unattend.xml"),
        file(r"\Windows\Panther\file 00003.dll"),
        // A file has no files below it.
        file(r"\Windows\Panther\file 00002.dll\x"),
        key(HiveName::System, r"CurrentControlSet\Services\viostor"),
        key(HiveName::System, r"ControlSet001\Services\netkvm"),
        value(HiveName::Software, r"Microsoft\Windows NT\CurrentVersion\Winlogon", "DefaultPassword"),
        value(HiveName::Software, r"Microsoft\Nothing", "AutoAdminLogon"),
        // This disk has no such hive at all.
        key(HiveName::Sam, r"SAM\Domains\Account\Users\Names\somebody"),
    ];
    let wanted: Vec<_> = absent.iter().chain(&there).cloned().collect();
    let found = traces(&qemu_img(), &disk, DiskFormat::Raw, &wanted, &in_time()).await.unwrap();
    assert_eq!(found, there);
}

#[test]
fn drivers_count_when_the_boot_loader_loads_them() {
    if !have_tools() {
        return;
    }
    const SELECT: (&str, &[(&str, &str)]) = ("Select", &[("Current", "dword:1")]);
    const BOOT: &[(&str, &str)] = &[("Start", "dword:0")];
    const DEMAND: &[(&str, &str)] = &[("Start", "dword:3")];
    const SET: &str = r"ControlSet001\Services";
    let dir = tempfile::tempdir().unwrap();
    // Services, StartOverride of the first, and (virtio, ahci).
    type Case<'c> = (&'c [(&'c str, &'c [(&'c str, &'c str)])], Option<&'c str>, (bool, bool));
    let cases: [Case; 8] = [
        (&[("storahci", BOOT)], None, (false, true)),
        (&[("msahci", BOOT)], None, (false, true)),
        (&[("storahci", DEMAND)], None, (false, false)),
        (&[("storahci", BOOT)], Some("dword:3"), (false, false)),
        (&[("storahci", BOOT)], Some("dword:0"), (false, true)),
        (&[("viostor", BOOT), ("netkvm", DEMAND)], None, (true, false)),
        (&[("viostor", BOOT)], None, (false, false)),
        (&[("vioscsi", DEMAND), ("netkvm", DEMAND)], None, (false, false)),
    ];
    for (services, over, expected) in cases {
        let mut paths: Vec<_> =
            services.iter().map(|(name, values)| (format!(r"{SET}\{name}"), *values)).collect();
        let values = over.map(|over| [("0", over)]);
        if let Some(values) = &values {
            paths.push((format!(r"{SET}\{}\StartOverride", services[0].0), values));
        }
        let keys: Vec<_> = std::iter::once(SELECT)
            .chain(paths.iter().map(|(path, values)| (path.as_str(), *values)))
            .collect();
        let said = judged(&made::mbr(dir.path(), &volume(dir.path(), SOFTWARE, &keys, "")));
        assert_eq!((said.virtio, said.ahci), expected, "{keys:?}");
    }
}

#[test]
fn a_volume_in_use_and_licensing_left_alone_are_told() {
    if !have_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = r"Microsoft\Windows NT\CurrentVersion\SoftwareProtectionPlatform";
    let keys: Vec<_> = SOFTWARE.iter().copied().chain([(path, &[("SkipRearm", "dword:1")][..])]).collect();
    let volume = volume(dir.path(), &keys, SYSTEM, "");
    made::mark_dirty(&volume);
    let said = judged(&made::gpt(dir.path(), &volume));
    assert_eq!(said, OfflineWindows { dirty: true, skip_rearm: true, ..expected() });
}

#[test]
fn a_log_that_is_open_is_told_as_ntfs_3g_tells_it() {
    if !have_tools() {
        return;
    }
    const NOBODY: u16 = 0xffff;
    let dir = tempfile::tempdir().unwrap();
    let volume = volume(dir.path(), SOFTWARE, SYSTEM, "");
    let fresh = fs::read(&volume).unwrap();
    let small = dir.path().join("small");
    fs::write(&small, "small").unwrap();
    let cases: [([made::Restart; 2], bool); 6] = [
        ([(10, 0, 0), (10, 0, 0)], true),
        ([(10, 0, 2), (10, 0, 2)], false),
        ([(10, NOBODY, 0), (10, NOBODY, 0)], false),
        ([(10, NOBODY, 0), (11, 0, 0)], true),
        ([(10, 0, 0), (11, NOBODY, 2)], false),
        ([(10, NOBODY, 0), (9, 0, 0)], false),
    ];
    for (pages, dirty) in cases {
        fs::write(&volume, &fresh).unwrap();
        made::write_log(&volume, pages);
        assert_eq!(judged(&made::mbr(dir.path(), &volume)).dirty, dirty, "{pages:?}");
        assert_eq!(made::is_taken_for_clean(&volume, &small), !dirty, "{pages:?}");
    }
}

/// Sets a number of a hive's first block and makes its checksum right again.
fn with_base_number(hive: &mut [u8], at: usize, number: u32) {
    hive[at..at + 4].copy_from_slice(&number.to_le_bytes());
    let sum = (0..508).step_by(4).fold(0, |sum, at| sum ^ source::u32_at(hive, at).unwrap());
    hive[508..512].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn a_hive_with_changes_in_its_log_is_told_and_not_trusted() {
    if !have_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let software = made::hive(dir.path(), "SOFTWARE", SOFTWARE);
    let system = made::hive(dir.path(), "SYSTEM", SYSTEM);
    let mut bytes = fs::read(&software).unwrap();
    let written = source::u32_at(&bytes, 8).unwrap();
    with_base_number(&mut bytes, 4, written + 1);
    fs::write(&software, bytes).unwrap();
    let volume = made::volume(dir.path(), &[("SOFTWARE", &software), ("SYSTEM", &system)], "");
    let disk = made::gpt(dir.path(), &volume);
    assert_eq!(judged(&disk), OfflineWindows { pending: vec![HiveName::Software], ..expected() });
    let bytes = fs::read(disk).unwrap();
    let of = |hive| judge::traces(&bytes, &[Trace::Key { hive, path: "Select".into() }]);
    assert!(matches!(of(HiveName::Software), Err(Fault::Unsupported { what: "the hive SOFTWARE", .. })));
    assert!(matches!(of(HiveName::System), Ok(Found::Windows(found)) if found.len() == 1));
}

#[test]
fn large_folders_and_files_spread_over_records_are_read() {
    if !have_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let volume = volume(dir.path(), SOFTWARE, SYSTEM, "many\t/Windows/System32\t1500\n");
    // Names of streams that do not fit into one record: what was there before moves, too.
    let small = dir.path().join("small");
    fs::write(&small, "small").unwrap();
    for number in 10..30 {
        let stream = format!("a stream whose name is long enough to take some room {number}");
        made::copy_into(&volume, &small, "/Windows/System32/config/SOFTWARE", Some(&stream));
    }
    let disk = made::gpt(dir.path(), &volume);
    assert_eq!(judged(&disk), expected());
    let wanted = ["00000", "00777", "01499", "01500"]
        .map(|number| Trace::File { path: format!(r"\Windows\System32\FILE {number}.dll") });
    let found = judge::traces(&fs::read(disk).unwrap(), &wanted).unwrap();
    assert_eq!(found, Found::Windows(wanted[..3].to_vec()));
}

#[test]
fn keys_with_many_subkeys_are_read() {
    if !have_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<_> = (0..1200).map(|number| format!("key {number}")).collect();
    let keys: Vec<_> = paths.iter().map(|path| (path.as_str(), &[("here", "string:yes")][..])).collect();
    let mut bytes = fs::read(made::hive(dir.path(), "MANY", &keys)).unwrap();
    let all_found = |bytes: &Vec<u8>| {
        let hive = hive::Hive::open(bytes).unwrap();
        for path in &paths {
            assert_eq!(hive.value(path, "HERE").unwrap().unwrap().text().as_deref(), Some("yes"), "{path}");
        }
        assert!(hive.key("key 1200").unwrap().is_none());
    };
    all_found(&bytes);

    // The same through a list of lists, as Windows makes them: a cell in a bin of its own at the end.
    let length = source::u32_at(&bytes, 40).unwrap();
    bytes.truncate(4096 + usize::try_from(length).unwrap());
    let root = 4096 + usize::try_from(source::u32_at(&bytes, 36).unwrap()).unwrap();
    let list = source::u32_at(&bytes, root + 4 + 28).unwrap();
    let mut bin = vec![0; 4096];
    bin[..4].copy_from_slice(b"hbin");
    bin[32..36].copy_from_slice(&(-16_i32).to_le_bytes());
    bin[36..40].copy_from_slice(b"ri\x01\0");
    bin[40..44].copy_from_slice(&list.to_le_bytes());
    bytes.extend(bin);
    bytes[root + 32..root + 36].copy_from_slice(&(length + 32).to_le_bytes());
    with_base_number(&mut bytes, 40, length + 4096);
    all_found(&bytes);
}

#[test]
fn a_value_too_long_to_be_read_is_there_all_the_same() {
    if !have_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = fs::read(made::hive(dir.path(), "SOFTWARE", SOFTWARE)).unwrap();
    // The name of a value lies 20 bytes behind its beginning, its length 4.
    let name = bytes.windows(10).position(|name| name == b"ImageState").unwrap();
    assert_eq!(&bytes[name - 20..name - 18], b"vk");
    bytes[name - 16..name - 12].copy_from_slice(&20_000_u32.to_le_bytes());
    let hive = hive::Hive::open(&bytes).unwrap();
    assert!(hive.has_value(STATE, "ImageState").unwrap());
    assert!(hive.value(STATE, "ImageState").is_err());
}

#[tokio::test]
async fn a_disk_without_a_system_is_an_error_of_its_own() {
    if !have_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let system = made::hive(dir.path(), "SYSTEM", SYSTEM);
    let empty = dir.path().join("empty.raw");
    fs::File::create(&empty).unwrap().set_len(1 << 20).unwrap();
    let volume = made::volume(dir.path(), &[("SYSTEM", &system)], "");
    let data = made::gpt(dir.path(), &volume);
    let look = async |disk: &Path| windows(&qemu_img(), disk, DiskFormat::Raw, &in_time()).await.unwrap_err();
    for disk in [&empty, &data] {
        assert!(matches!(look(disk).await, OfflineError::NoWindows { .. }), "{}", disk.display());
    }
    let mut bytes = fs::read(&volume).unwrap();
    bytes[3..11].copy_from_slice(b"-FVE-FS-");
    fs::write(&volume, bytes).unwrap();
    let locked = made::mbr(dir.path(), &volume);
    assert!(matches!(look(&locked).await, OfflineError::BitLocker { .. }));
    let wanted = [Trace::File { path: r"\x".into() }];
    let error = traces(&qemu_img(), &data, DiskFormat::Raw, &wanted, &in_time()).await.unwrap_err();
    assert!(matches!(error, OfflineError::NoWindows { .. }));
}

#[tokio::test]
async fn what_qemu_does_not_read_is_told_in_its_words() {
    if !have_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("nonsense");
    fs::write(&disk, [7; 4096]).unwrap();
    let error = windows(&qemu_img(), &disk, DiskFormat::Qcow2, &in_time()).await.unwrap_err();
    let OfflineError::Serve { how, .. } = &error else { panic!("{error:?}") };
    assert!(how.contains("exit status 1") && how.contains("qcow2"), "{how}");
    let missing = windows(&qemu_img(), &dir.path().join("no"), DiskFormat::Raw, &in_time()).await;
    assert!(matches!(missing, Err(OfflineError::Open { .. })));
}

/// A qemu-img beside which lies a qemu-nbd of ours.
fn double(dir: &Path, script: &str) -> QemuImg {
    let path = dir.join("qemu-nbd");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    QemuImg::new(dir.join("qemu-img"))
}

#[tokio::test]
async fn a_server_that_never_listens_is_ended_by_the_control() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    fs::write(&disk, [0; 512]).unwrap();
    let pid = dir.path().join("pid");
    let img = double(dir.path(), &format!("echo $$ > {}; exec sleep 60", pid.display()));
    let control = Control::ending_in(Duration::from_secs(2));
    let error = windows(&img, &disk, DiskFormat::Raw, &control).await.unwrap_err();
    assert!(matches!(error, OfflineError::Interrupted(Interrupted::DeadlinePassed)), "{error:?}");
    // Killed by then, or in this moment.
    let proc = format!("/proc/{}", fs::read_to_string(pid).unwrap().trim());
    for _ in 0..500 {
        if !Path::new(&proc).exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the server lives on");
}

#[test]
fn a_damaged_table_is_replaced_by_its_copy() {
    if !have_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = fs::read(made::gpt(dir.path(), &volume(dir.path(), SOFTWARE, SYSTEM, ""))).unwrap();
    // A partition's first sector, by one.
    bytes[1024 + 32] ^= 1;
    assert_eq!(judge::windows(&bytes).unwrap(), Found::Windows(expected()));
    let last = bytes.len() - 512;
    bytes[last + 16] ^= 1;
    let error = judge::windows(&bytes).unwrap_err().to_string();
    assert_eq!(error, "the GUID partition table is damaged: the checksum of its entries is wrong");
}

#[test]
fn a_damaged_hive_is_named() {
    if !have_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let software = made::hive(dir.path(), "SOFTWARE", SOFTWARE);
    let system = made::hive(dir.path(), "SYSTEM", SYSTEM);
    let mut bytes = fs::read(&system).unwrap();
    bytes[0] = 0;
    fs::write(&system, bytes).unwrap();
    let volume = made::volume(dir.path(), &[("SOFTWARE", &software), ("SYSTEM", &system)], "");
    let bytes = fs::read(made::mbr(dir.path(), &volume)).unwrap();
    let wanted = [Trace::Key { hive: HiveName::System, path: "Select".into() }];
    let expected = "the hive SYSTEM is damaged: it does not start as one";
    assert_eq!(judge::windows(&bytes).unwrap_err().to_string(), expected);
    assert_eq!(judge::traces(&bytes, &wanted).unwrap_err().to_string(), expected);
}

#[tokio::test]
async fn a_disk_in_use_is_refused() {
    if !have_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = made::gpt(dir.path(), &volume(dir.path(), SOFTWARE, SYSTEM, ""));
    let disk = made::converted(&disk, "qcow2");
    let _writer = made::writer(dir.path(), &disk).await;
    let error = windows(&qemu_img(), &disk, DiskFormat::Qcow2, &in_time()).await.unwrap_err();
    let OfflineError::Serve { how, .. } = &error else { panic!("{error:?}") };
    assert!(how.contains("lock"), "{how}");
}

/// A server that greets, tells of a disk of 1 MiB, and does something else when it is to read.
fn talking_double(dir: &Path, then: &str) -> QemuImg {
    let script = dir.join("server.py");
    let text = include_str!("server.py").replace("THEN", then);
    fs::write(&script, text).unwrap();
    double(dir, &format!("exec python3 {} \"$@\"", script.display()))
}

#[tokio::test]
async fn a_server_that_fails_in_the_middle_ends_nothing_but_the_reading() {
    if !have_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    fs::write(&disk, [0; 512]).unwrap();
    let img = talking_double(dir.path(), "time.sleep(60)");
    let control = Control::ending_in(Duration::from_secs(2));
    let error = windows(&img, &disk, DiskFormat::Raw, &control).await.unwrap_err();
    assert!(matches!(error, OfflineError::Interrupted(Interrupted::DeadlinePassed)), "{error:?}");
    assert!(dir.path().join("asked").exists(), "it was never asked to read");

    let img = talking_double(dir.path(), "sys.exit('gone in the middle')");
    let error = windows(&img, &disk, DiskFormat::Raw, &in_time()).await.unwrap_err();
    let OfflineError::Serve { how, .. } = &error else { panic!("{error:?}") };
    assert!(how.contains("gone in the middle"), "{how}");

    let img =
        talking_double(dir.path(), "peer.sendall(struct.pack('>IIQ', 0x67446698, 5, 1)); time.sleep(60)");
    let error = windows(&img, &disk, DiskFormat::Raw, &in_time()).await.unwrap_err();
    let OfflineError::Read { source: Fault::Disk { source, .. }, .. } = &error else { panic!("{error:?}") };
    assert_eq!(source.raw_os_error(), Some(5));
}

#[tokio::test]
async fn a_server_that_ends_early_is_told_in_its_words() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    fs::write(&disk, [0; 512]).unwrap();
    let img = double(dir.path(), "echo 'no such thing' >&2; exit 3");
    let error = windows(&img, &disk, DiskFormat::Raw, &in_time()).await.unwrap_err();
    let OfflineError::Serve { how, .. } = &error else { panic!("{error:?}") };
    assert!(how.contains("exit status 3; it said: no such thing"), "{how}");
}

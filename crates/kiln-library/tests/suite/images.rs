//! Disk images, taken in by the real qemu-img.

use std::path::{Path, PathBuf};

use expect_test::expect;
use kiln_host::wait::Interrupted;
use kiln_library::{
    BuiltImage, Check, Checked, ImageError, ImageOrigin, ImportRequest, Imported, Library, LibraryError,
};
use kiln_model::catalog::{Arch, Credentials, DiskFormat, Generation, Listener, Login, Os, ServedName};
use kiln_qemu::disk::DiskFormat as QemuFormat;

use crate::store::{Store, noise, qemu_img, sha256, soon, walk};

const MIB: usize = 1 << 20;

/// A disk with a GUID partition table, an EFI system partition, a BIOS boot partition and boot code.
pub fn bootable(length: usize) -> Vec<u8> {
    let mut disk = gpt(length, &[ESP, BIOS]);
    disk[..4].copy_from_slice(&[0xeb, 0x63, 0x90, 0x10]);
    disk
}

const ESP: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
const BIOS: [u8; 16] = *b"Hah!IdontNeedEFI";
const LINUX: [u8; 16] =
    [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4];

fn gpt(length: usize, kinds: &[[u8; 16]]) -> Vec<u8> {
    let mut disk = mbr(length, &[0xee]);
    disk[512..520].copy_from_slice(b"EFI PART");
    disk[512 + 72] = 2;
    disk[512 + 80] = 128;
    disk[512 + 84] = 128;
    for (slot, kind) in kinds.iter().enumerate() {
        disk[1024 + 128 * slot..][..16].copy_from_slice(kind);
    }
    disk
}

fn mbr(length: usize, kinds: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; length];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    for (slot, kind) in kinds.iter().enumerate() {
        disk[446 + 16 * slot + 4] = *kind;
    }
    disk
}

/// A footer as the specification describes it. Of makers like "vpc " QEMU believes the cylinders, of others the size.
fn vhd_footer(length: u64, kind: u32, maker: &[u8; 4]) -> [u8; 512] {
    let mut footer = [0; 512];
    footer[..8].copy_from_slice(b"conectix");
    footer[8..12].copy_from_slice(&2_u32.to_be_bytes());
    footer[12..16].copy_from_slice(&0x0001_0000_u32.to_be_bytes());
    footer[16..24].copy_from_slice(&u64::MAX.to_be_bytes());
    footer[28..32].copy_from_slice(maker);
    footer[40..48].copy_from_slice(&length.to_be_bytes());
    footer[48..56].copy_from_slice(&length.to_be_bytes());
    // Cylinders, heads, sectors: fewer bytes than there are.
    let cylinders = u16::try_from(length / 512 / 4 / 17).unwrap() - 1;
    footer[56..58].copy_from_slice(&cylinders.to_be_bytes());
    footer[58] = 4;
    footer[59] = 17;
    footer[60..64].copy_from_slice(&kind.to_be_bytes());
    let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
    footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    footer
}

fn write(store: &Store, name: &str, bytes: &[u8]) -> PathBuf {
    let path = store.dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

async fn convert(store: &Store, disk: &[u8], format: QemuFormat) -> PathBuf {
    let raw = write(store, "disk.raw", disk);
    let path = store.dir.path().join("disk.img");
    let from = (raw.as_path(), QemuFormat::Raw);
    qemu_img().convert(from, (&path, format), |_| (), &soon()).await.unwrap();
    path
}

pub fn qcow2_of(store: &Store, disk: &[u8]) -> PathBuf {
    let handle = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| handle.block_on(convert(store, disk, QemuFormat::Qcow2)))
}

fn request(path: &Path) -> ImportRequest {
    ImportRequest {
        path: path.to_owned(),
        name: "mini-1".to_owned(),
        version: "1.2.3".to_owned(),
        platform: vec![ServedName {
            publisher: "Mini".to_owned(),
            offer: "mini".to_owned(),
            sku: "1".to_owned(),
            generation: None,
        }],
        os: Os::Linux,
        generations: Vec::new(),
        arch: Arch::X86_64,
        login: Login::CloudInit,
        sha256: None,
    }
}

async fn import(store: &Store, request: &ImportRequest) -> Result<Imported, ImageError> {
    store.library.import(request, &qemu_img(), &|_| (), &soon()).await
}

async fn refused(store: &Store, path: &Path) -> String {
    match import(store, &request(path)).await {
        Err(ImageError::Refused { reason, .. }) => reason,
        other => panic!("{}: {other:?}", path.display()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_comes_in_as_the_same_disk() {
    let mut disk = bootable(8 * MIB);
    disk[3 * MIB..4 * MIB].copy_from_slice(&noise(MIB, 60));
    for (format, kept) in [
        (QemuFormat::Raw, DiskFormat::Raw),
        (QemuFormat::Qcow2, DiskFormat::Qcow2),
        (QemuFormat::Vhdx, DiskFormat::Qcow2),
        (QemuFormat::Vmdk, DiskFormat::Qcow2),
    ] {
        let store = Store::new();
        let given = convert(&store, &disk, format).await;
        // The name says nothing.
        let odd = store.dir.path().join("image.vhd.txt");
        std::fs::rename(&given, &odd).unwrap();
        let imported = import(&store, &request(&odd)).await.unwrap();
        let image = &imported.image;
        assert_eq!((image.format, image.virtual_size), (kept, 8 * MIB as u64), "{format:?}");
        assert_eq!(image.generations, [Generation::V1, Generation::V2]);
        assert_eq!(
            imported.probe.unwrap().to_string(),
            "GPT partitions, boot code for BIOS and an EFI system partition"
        );
        let stored = std::fs::read(&image.path).unwrap();
        assert_eq!(image.sha256, sha256(&stored));
        let kept_format = if kept == DiskFormat::Raw { QemuFormat::Raw } else { QemuFormat::Qcow2 };
        let raw = store.dir.path().join("disk.raw");
        let same = qemu_img().is_equal((&image.path, kept_format), (&raw, QemuFormat::Raw), &soon()).await;
        assert!(same.unwrap(), "{format:?}");
        assert!(odd.exists(), "it is only read");
        let mode = std::os::unix::fs::PermissionsExt::mode(&image.path.metadata().unwrap().permissions());
        assert_eq!(mode & 0o222, 0, "a base image is never written");
        let names: Vec<_> =
            store.files().iter().map(|file| file.rsplit('/').next().unwrap().to_owned()).collect();
        assert_eq!(names.len(), 3, "{names:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installed_windows_keeps_its_way_in_on_the_shelf() {
    let store = Store::new();
    let disk = write(&store, "disk.raw", &bootable(8 * MIB));
    let own = Credentials::new("builder".into(), "/etc/kiln/p".into(), Listener::Http, Some(15985)).unwrap();
    let linux = ImportRequest { login: Login::Credentials(own), ..request(&disk) };
    let refused = import(&store, &linux).await.unwrap_err().to_string();
    assert!(refused.contains("login: credentials are for an installed Windows"), "{refused}");
    let windows = ImportRequest { os: Os::Windows, ..linux };
    let image = import(&store, &windows).await.unwrap().image;
    assert_eq!(image.login, windows.login);
    assert_eq!(store.library.images().unwrap(), std::slice::from_ref(&image));
    // A record that somebody changed is held to the same.
    let record = image.path.with_file_name("image.json");
    let text = std::fs::read_to_string(&record).unwrap();
    for (from, to) in [("\"windows\"", "\"linux\""), ("/etc/kiln/p", "p")] {
        assert!(text.contains(from), "{text}");
        std::fs::write(&record, text.replace(from, to)).unwrap();
        assert_eq!(store.library.images().unwrap(), [], "{from}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fixed_vhds_are_kept_and_none_loses_its_end() {
    let length = 8 * MIB;
    let mut disk = bootable(length);
    disk[length - 4096..].copy_from_slice(&noise(4096, 61));
    for (maker, kept) in [(b"qem2", DiskFormat::Vhd), (b"vpc ", DiskFormat::Raw)] {
        let store = Store::new();
        let vhd = [disk.as_slice(), &vhd_footer(length as u64, 2, maker)].concat();
        let imported = import(&store, &request(&write(&store, "x", &vhd))).await.unwrap();
        assert_eq!((imported.image.format, imported.image.virtual_size), (kept, length as u64), "{maker:?}");
        let stored = std::fs::read(&imported.image.path).unwrap();
        assert!(stored == if kept == DiskFormat::Vhd { vhd } else { disk.clone() });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dynamic_vhds_are_converted_or_refused_but_never_cut() {
    let store = Store::new();
    // 16 heads, 63 sectors and whole cylinders: both ways of reckoning give this size.
    let disk = bootable(16 * 63 * 512 * 32);
    let path = convert(&store, &disk, QemuFormat::Vpc).await;
    let info = qemu_img().info(&path, QemuFormat::Vpc).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    match import(&store, &request(&path)).await {
        Ok(imported) => {
            assert_eq!(
                (imported.image.format, imported.image.virtual_size),
                (DiskFormat::Qcow2, info.virtual_size)
            );
        }
        Err(error) => panic!("{error}"),
    }
    // Another size in the footer than its cylinders have.
    let end = bytes.len() - 512;
    for at in [0, end] {
        bytes[at + 28..at + 32].copy_from_slice(b"vpc ");
        let size = info.virtual_size + 512 * 100;
        bytes[at + 48..at + 56].copy_from_slice(&size.to_be_bytes());
        bytes[at + 64..at + 68].copy_from_slice(&[0; 4]);
        let sum: u32 = bytes[at..at + 512].iter().map(|byte| u32::from(*byte)).sum();
        bytes[at + 64..at + 68].copy_from_slice(&(!sum).to_be_bytes());
    }
    let store = Store::new();
    let reason = refused(&store, &write(&store, "two-sizes", &bytes)).await;
    assert!(reason.contains("two sizes") && reason.contains("force_size_calc"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_one_whole_disk_is_refused() {
    let store = Store::new();
    let disk = bootable(4 * MIB);
    let base = qcow2_of(&store, &disk);
    let overlay = store.dir.path().join("overlay");
    qemu_img().create_overlay(&overlay, &base, QemuFormat::Qcow2, 4 * MIB as u64).unwrap();
    assert!(refused(&store, &overlay).await.contains("backing file"));

    let mut external = std::fs::read(&base).unwrap();
    external[79] |= 4;
    assert!(refused(&store, &write(&store, "a", &external)).await.contains("another file"));
    let mut encrypted = std::fs::read(&base).unwrap();
    encrypted[35] = 2;
    assert!(refused(&store, &write(&store, "b", &encrypted)).await.contains("encrypted"));
    let mut future = std::fs::read(&base).unwrap();
    future[7] = 4;
    assert!(refused(&store, &write(&store, "c", &future)).await.contains("version 4"));

    // A VMDK whose descriptor reaches for a file of this host.
    let vmdk = convert(&store, &disk, QemuFormat::Vmdk).await;
    let bytes = std::fs::read(&vmdk).unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    for (from, to) in
        [("\"monolithicSparse\"", "\"monolithicFlat\"\0\0\0"), ("parentCID=ffffffff", "parentCID=12345678")]
    {
        let at = text.find(from).unwrap();
        let mut changed = bytes.clone();
        changed[at..at + from.len()].copy_from_slice(&to.as_bytes()[..from.len()]);
        assert!(refused(&store, &write(&store, "d", &changed)).await.contains("not the whole disk"), "{to}");
    }
    let descriptor =
        "# Disk DescriptorFile\nversion=1\ncreateType=\"monolithicFlat\"\nRW 8 FLAT \"/etc/shadow\" 0\n";
    assert!(refused(&store, &write(&store, "e", descriptor.as_bytes())).await.contains("descriptor"));
    let differencing = [disk.as_slice(), &vhd_footer(4 * MIB as u64, 4, b"qem2")].concat();
    assert!(refused(&store, &write(&store, "f", &differencing)).await.contains("differencing"));
    assert!(store.files().is_empty(), "{:?}", store.files());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_disk_is_called_by_its_name() {
    let store = Store::new();
    let mut iso = bootable(MIB);
    iso[0x8001..0x8006].copy_from_slice(b"CD001");
    let mut vdi = vec![0; 4096];
    vdi[0x40..0x44].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe]);
    for (bytes, said) in [
        (iso, "ISO"),
        (vdi, "VirtualBox"),
        (b"\x1f\x8b\x08 and so on".to_vec(), "unpack"),
        (b"\xfd7zXZ\0".to_vec(), "unpack"),
        (b" \n<!DOCTYPE HTML><html>404".to_vec(), "web page"),
        (Vec::new(), "partition table"),
        (vec![0; 4096], "partition table"),
        (noise(5000, 62), "sectors"),
        (b"QFI\xfb".to_vec(), "version 0"),
        (b"KDMV".to_vec(), "not the whole disk"),
    ] {
        let reason = refused(&store, &write(&store, "x", &bytes)).await;
        assert!(reason.contains(said), "{said}: {reason}");
    }
    assert!(refused(&store, store.dir.path()).await.contains("directory"));
    assert!(refused(&store, "/dev/zero".as_ref()).await.contains("regular"));
    let small = refused(&store, &write(&store, "x", &bootable(MIB - 512))).await;
    assert!(small.contains("1 MiB"), "{small}");
    assert!(matches!(
        import(&store, &request("/no/such/file".as_ref())).await,
        Err(ImageError::Library(LibraryError::Disk { .. }))
    ));
    // Broken inside: qemu-img has the word.
    let mut torn = std::fs::read(qcow2_of(&store, &bootable(4 * MIB))).unwrap();
    torn.truncate(1000);
    let error = import(&store, &request(&write(&store, "torn", &torn))).await.unwrap_err();
    assert!(matches!(error, ImageError::QemuImg { .. } | ImageError::Refused { .. }), "{error}");
    assert!(store.files().is_empty(), "{:?}", store.files());
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_tell_the_generation() {
    let code = |mut disk: Vec<u8>| {
        disk[0] = 0xeb;
        disk
    };
    let cases = [
        (code(gpt(4 * MIB, &[BIOS, LINUX])), Some(vec![Generation::V1])),
        (gpt(4 * MIB, &[ESP, LINUX]), Some(vec![Generation::V2])),
        // No code to start it with.
        (gpt(4 * MIB, &[BIOS, LINUX]), None),
        (gpt(4 * MIB, &[LINUX]), None),
        (code(mbr(4 * MIB, &[0x83])), Some(vec![Generation::V1])),
        (code(mbr(4 * MIB, &[0xef, 0x83])), Some(vec![Generation::V1, Generation::V2])),
        (mbr(4 * MIB, &[0xef]), Some(vec![Generation::V2])),
        (mbr(4 * MIB, &[0x83]), None),
    ];
    for (number, (disk, expected)) in cases.into_iter().enumerate() {
        let store = Store::new();
        let given = qcow2_of(&store, &disk);
        match expected {
            Some(generations) => {
                assert_eq!(
                    import(&store, &request(&given)).await.unwrap().image.generations,
                    generations,
                    "{number}"
                );
            }
            None => {
                let reason = refused(&store, &given).await;
                assert!(reason.contains("nothing to boot from"), "{reason}");
                let told = ImportRequest { generations: vec![Generation::V2], ..request(&given) };
                assert_eq!(import(&store, &told).await.unwrap().image.generation, Generation::V2);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_may_be_repeated_but_not_with_another_file() {
    let store = Store::new();
    let given = qcow2_of(&store, &bootable(4 * MIB));
    let mut wanted = request(&given);
    wanted.sha256 = Some(sha256(&std::fs::read(&given).unwrap()));
    let first = import(&store, &wanted).await.unwrap();
    assert!(!first.was_there());
    let again = import(&store, &wanted).await.unwrap();
    assert!(again.was_there() && again.image == first.image);

    let other = qcow2_of(&store, &bootable(5 * MIB));
    let error = import(&store, &wanted).await.unwrap_err();
    assert!(matches!(error, ImageError::WrongDigest { .. }), "{error}");
    let error = import(&store, &request(&other)).await.unwrap_err();
    assert!(error.to_string().contains("kiln images remove mini-1 1.2.3"), "{error}");
    let newer = ImportRequest { version: "1.10".to_owned(), ..request(&other) };
    import(&store, &newer).await.unwrap();
    let versions: Vec<_> = store.library.images().unwrap().into_iter().map(|image| image.version).collect();
    assert_eq!(versions, ["1.2.3", "1.10"], "by number");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_cannot_lead_elsewhere() {
    let store = Store::new();
    let given = qcow2_of(&store, &bootable(4 * MIB));
    for name in ["", "..", "../x", "a/b", "A", "a b", ".a", "-a", "é", &"a".repeat(65)] {
        let error =
            import(&store, &ImportRequest { name: name.to_owned(), ..request(&given) }).await.unwrap_err();
        assert!(matches!(error, ImageError::Library(LibraryError::BadName { .. })), "{name}: {error}");
        assert!(store.library.remove(name, "1").is_err());
    }
    for version in ["", "latest", "1.", ".1", "1..2", "1-2", "../1", "1a", "9999999999999999999"] {
        let error = import(&store, &ImportRequest { version: version.to_owned(), ..request(&given) })
            .await
            .unwrap_err();
        assert!(matches!(error, ImageError::Library(LibraryError::BadVersion { .. })), "{version}: {error}");
    }
    assert!(store.files().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_in_use_stays() {
    let store = Store::new();
    let given = qcow2_of(&store, &bootable(4 * MIB));
    let image = import(&store, &request(&given)).await.unwrap().image;
    let other = Library::open(store.library.root()).unwrap();
    let lease = store.library.use_image(&image).unwrap();
    let second = other.use_image(&image).unwrap();
    for _ in 0..2 {
        let error = other.remove("mini-1", "1.2.3").unwrap_err();
        assert!(matches!(error, LibraryError::InUse { .. }), "{error}");
        assert!(image.path.exists());
    }
    drop((lease, second));
    other.remove("mini-1", "1.2.3").unwrap();
    assert!(store.files().is_empty() && store.library.images().unwrap().is_empty());
    assert!(matches!(store.library.use_image(&image), Err(LibraryError::NoSuchImage { .. })));
    assert!(matches!(store.library.remove("mini-1", "1.2.3"), Err(LibraryError::NoSuchImage { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_reads_once_and_finds_damage() {
    let store = Store::new();
    let given = qcow2_of(&store, &bootable(4 * MIB));
    let image = import(&store, &request(&given)).await.unwrap().image;
    let verify = async |how| store.library.verify(&image, how, &|_| (), &soon()).await;
    assert_eq!(verify(Check::IfChanged).await.unwrap(), Checked::Remembered);
    assert_eq!(verify(Check::Full).await.unwrap(), Checked::Read);
    // The same bytes in another file: read once, then remembered.
    let bytes = std::fs::read(&image.path).unwrap();
    std::fs::remove_file(&image.path).unwrap();
    std::fs::write(&image.path, &bytes).unwrap();
    assert_eq!(verify(Check::IfChanged).await.unwrap(), Checked::Read);
    assert_eq!(verify(Check::IfChanged).await.unwrap(), Checked::Remembered);
    let mut damaged = bytes;
    damaged[4000] ^= 1;
    std::fs::write(&image.path, &damaged).unwrap();
    for how in [Check::IfChanged, Check::Full, Check::IfChanged] {
        let error = verify(how).await.unwrap_err();
        assert!(matches!(error, LibraryError::Damaged { .. }), "{error}");
    }
    std::fs::remove_file(&image.path).unwrap();
    assert!(matches!(verify(Check::IfChanged).await, Err(LibraryError::Disk { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_hides_only_its_own_image() {
    let store = Store::new();
    let given = qcow2_of(&store, &bootable(4 * MIB));
    import(&store, &request(&given)).await.unwrap();
    let mut image =
        import(&store, &ImportRequest { version: "2".to_owned(), ..request(&given) }).await.unwrap().image;
    let record = image.path.with_file_name("image.json");
    let text = std::fs::read_to_string(&record).unwrap();
    for broken in [
        String::new(),
        text.replace("\"format\": 1", "\"format\": 2"),
        text.replace("disk.qcow2", "../1.2.3/disk.qcow2"),
        text.replace("\"version\": \"2\"", "\"version\": \"3\""),
    ] {
        assert_ne!(broken, text);
        std::fs::write(&record, broken).unwrap();
        let left = store.library.images().unwrap();
        assert_eq!(left.len(), 1);
        let error = store.library.record("mini-1", "2").unwrap_err();
        assert!(error.to_string().contains("image.json"), "{error}");
    }
    std::fs::write(&record, text).unwrap();
    image.path = record.with_file_name("disk.qcow2");
    assert_eq!(store.library.images().unwrap()[1], image);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recipes_image_keeps_its_provenance() {
    let store = Store::new();
    let given = qcow2_of(&store, &bootable(4 * MIB));
    let digest = sha256(&std::fs::read(&given).unwrap());
    let provenance =
        write(&store, "p.json", format!("{{\"format\":1,\"imageSha256\":\"{digest}\"}}").as_bytes());
    let built = BuiltImage { image: request(&given), provenance: provenance.clone() };
    let adopt =
        async |built: &BuiltImage| store.library.adopt_built(built, &qemu_img(), &|_| (), &soon()).await;
    let image = adopt(&built).await.unwrap().image;
    assert!(adopt(&built).await.unwrap().was_there());
    assert_eq!(
        store.library.record("mini-1", "1.2.3").unwrap().origin,
        ImageOrigin::Built { sha256: digest }
    );
    let kept = store.library.provenance(&image.name, &image.version).unwrap();
    assert_eq!(kept, Some(std::fs::read_to_string(&provenance).unwrap()));
    // The provenance of something else.
    std::fs::write(&provenance, format!("{{\"imageSha256\":\"{}\"}}", sha256(b"else"))).unwrap();
    let error = adopt(&built).await.unwrap_err();
    assert!(matches!(error, ImageError::WrongDigest { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_stay_holes() {
    let store = Store::new();
    let path = write(&store, "sparse", &bootable(MIB));
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(512 << 20).unwrap();
    let image = import(&store, &request(&path)).await.unwrap().image;
    assert_eq!((image.format, image.virtual_size), (DiskFormat::Raw, 512 << 20));
    assert!(kiln_host::space::allocated_bytes(&image.path).unwrap() < 4 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canceled_import_leaves_nothing() {
    let store = Store::new();
    let given = qcow2_of(&store, &bootable(4 * MIB));
    let control = soon();
    // As soon as there is any news; else before the beginning.
    control.cancel();
    let error = store.library.import(&request(&given), &qemu_img(), &|_| (), &control).await.unwrap_err();
    assert_eq!(error.interrupted(), Some(Interrupted::Canceled));
    assert!(store.files().is_empty());
}

/// The format is a promise.
#[tokio::test(flavor = "multi_thread")]
async fn the_record_as_it_lies_on_the_shelf() {
    let store = Store::new();
    let given = write(&store, "disk", &bootable(MIB));
    let image = import(&store, &request(&given)).await.unwrap().image;
    let text = std::fs::read_to_string(image.path.with_file_name("image.json")).unwrap();
    let text = text.replace(&image.stored_at, "2025-01-02T03:04:05Z");
    assert_eq!(image.stored_at.len(), 20);
    expect![[r#"
        {
          "format": 1,
          "name": "mini-1",
          "version": "1.2.3",
          "file": "disk.raw",
          "diskFormat": "raw",
          "sha256": "214fe5470429d700c5e5599162a30af6402cec83c855598b1ff34602753cfaa7",
          "virtualSize": 1048576,
          "os": "linux",
          "generations": [
            "V1",
            "V2"
          ],
          "arch": "x86_64",
          "login": "cloud-init",
          "platform": [
            {
              "publisher": "Mini",
              "offer": "mini",
              "sku": "1"
            }
          ],
          "storedAt": "2025-01-02T03:04:05Z",
          "origin": {
            "kind": "imported",
            "sha256": "214fe5470429d700c5e5599162a30af6402cec83c855598b1ff34602753cfaa7"
          }
        }
    "#]]
    .assert_eq(&text);
    let names: Vec<_> = walk(image.path.parent().unwrap())
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

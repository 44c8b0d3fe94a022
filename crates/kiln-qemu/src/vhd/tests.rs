//! What is written against what the real qemu-img reads, for chains of every kind.

use std::fs::{File, OpenOptions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use kiln_host::digest::sha256;
use kiln_host::extents::extent_digest;
use kiln_host::process::Invocation;
use kiln_host::publish::Aside;
use kiln_host::wait::{Control, Interrupted};
use uuid::Uuid;

use super::copy::{CopyError, Copying};
use super::source::Source;
use super::*;
use crate::disk::{BaseImage, DiskFormat, Image, Overlay, StoppedMachine};
use crate::qemu_img::{Extent, QemuImg};

fn in_time() -> Control {
    Control::ending_in(Duration::from_secs(60))
}

#[expect(clippy::disallowed_methods, reason = "a test has no settings")]
fn img() -> QemuImg {
    QemuImg::find(&std::env::var_os("PATH").unwrap()).unwrap()
}

fn footer() -> FooterOptions {
    let created = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    FooterOptions { created, unique_id: Uuid::from_u128(7) }
}

fn silent() -> OnPercent {
    Arc::new(|_| {})
}

/// A folder in which layers are made, each over the one before.
struct Chain {
    dir: tempfile::TempDir,
    top: Option<(PathBuf, &'static str)>,
}

impl Chain {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), top: None }
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A raw file of `length` bytes with data at `places`.
    fn raw(mut self, name: impl AsRef<Path>, length: u64, places: &[(u64, usize)]) -> Self {
        let path = self.path(name);
        let file = File::create(&path).unwrap();
        for (number, (place, count)) in places.iter().enumerate() {
            let bytes: Vec<u8> = (0..*count).map(|at| (at % 251 + number + 1) as u8).collect();
            file.write_all_at(&bytes, *place).unwrap();
        }
        file.set_len(length).unwrap();
        self.top = Some((path, "raw"));
        self
    }

    /// A qcow2 with `options` over what is there, in which qemu-io does `commands`.
    fn qcow2(mut self, options: &str, length: &str, commands: &[&str]) -> Self {
        let path = self.path(format!("layer{length}{}", commands.len()));
        let mut create = Invocation::new("qemu-img").args(["create", "-q", "-f", "qcow2", "-o", options]);
        if let Some((below, format)) = &self.top {
            create = create.args(["-F", format, "-b"]).arg(below);
        }
        create.arg(&path).arg(length).run_blocking().unwrap();
        let commands = commands.iter().flat_map(|command| ["-c", command]);
        Invocation::new("qemu-io")
            .args(["-d", "unmap", "-f", "qcow2"])
            .args(commands)
            .arg(&path)
            .run_blocking()
            .unwrap();
        self.top = Some((path, "qcow2"));
        self
    }

    /// What is there, in another format.
    fn converted(mut self, format: &'static str, options: &[&str]) -> Self {
        let (from, to) = (self.top.take().unwrap(), self.path(format!("as.{format}")));
        let convert = Invocation::new("qemu-img").args(["convert", "-f", from.1, "-O", format]);
        convert.args(options).args([&from.0, &to]).run_blocking().unwrap();
        self.top = Some((to, format));
        self
    }

    /// The overlay that Kiln itself makes.
    fn overlay(mut self, grow_to: Option<u64>, commands: &[&str]) -> Self {
        let (below, format) = self.top.take().unwrap();
        let base = BaseImage::open(&img(), &below, DiskFormat::from_name(format).unwrap()).unwrap();
        let path = self.path("os,disk.qcow2");
        Overlay::create(&img(), &base, &path, grow_to).unwrap();
        let commands = commands.iter().flat_map(|command| ["-c", command]);
        let io = Invocation::new("qemu-io").args(["-d", "unmap", "-f", "qcow2"]).args(commands);
        io.arg(&path).run_blocking().unwrap();
        self.top = Some((path, "qcow2"));
        self
    }

    fn image(&self) -> Image {
        let overlay = Overlay::reopen(&img(), &self.top.as_ref().unwrap().0).unwrap();
        StoppedMachine::new(vec![overlay]).unwrap().into_image()
    }

    /// Writes it in both ways, and looks at every byte.
    async fn check(&self, directly: bool) {
        let (img, image, control) = (img(), self.image(), in_time());
        let source = Source::open(&img, &image, &control).await.unwrap();
        assert_eq!(source.is_some(), directly, "read by Kiln itself");

        let raw = self.path("expected");
        let convert = Invocation::new("qemu-img").args(["convert", "-f", "qcow2", "-O", "raw"]);
        convert.arg(image.path()).arg(&raw).run_blocking().unwrap();
        let size = round_up_mib(image.virtual_size()).unwrap();
        OpenOptions::new().write(true).open(&raw).unwrap().set_len(size).unwrap();
        let mut expected = std::fs::read(&raw).unwrap();
        let end = Footer::fixed(size, footer().created, footer().unique_id).unwrap();
        expected.extend(end.to_bytes());

        let dest = Aside::create(self.path("disk.vhd"), 0o644).unwrap();
        // Of an earlier attempt, and longer than what will be there.
        dest.file().write_all_at(&[0xff; 8192], size + 4096).unwrap();
        let written =
            vhd_written(write_fixed(&img, &image, &dest, footer(), silent(), &control).await, &expected);
        assert!(std::fs::read(dest.path()).unwrap() == expected, "written");
        assert_eq!(extent_digest(dest.path(), &|_| Ok(())).unwrap(), written.extents);
        let vpc = (dest.path(), DiskFormat::Vpc);
        assert!(img.is_equal((image.path(), image.format()), vpc, &control).await.unwrap());

        let other = Aside::create(self.path("other.vhd"), 0o644).unwrap();
        let copied = copy_fixed(&img, &image, &other, footer(), silent(), &control).await.unwrap();
        assert!(std::fs::read(other.path()).unwrap() == expected, "copied");
        assert_eq!(copied.extents, written.extents);
        // The file system's own blocks count, too, and there are more or fewer by where the data happened to go.
        let room = [&other, &dest].map(|file| allocated(file.path()));
        assert!(room[0].abs_diff(room[1]) <= 16 << 10, "{room:?}");
        assert!(verify(other.path(), written.extents, &control).await.unwrap());
    }
}

fn vhd_written(written: Result<VhdWritten, VhdError>, expected: &[u8]) -> VhdWritten {
    let written = written.unwrap();
    assert_eq!(written.file_size, expected.len() as u64);
    assert_eq!(written.virtual_size + 512, written.file_size);
    assert_eq!(written.sha256, sha256(expected));
    written
}

fn allocated(path: &Path) -> u64 {
    File::open(path).unwrap().sync_all().unwrap();
    kiln_host::space::allocated_bytes(path).unwrap()
}

#[tokio::test]
async fn a_raw_base_with_holes() {
    let places = [(0, 512), (3 * MIB - 100, 5000), (7 * MIB + 4096, 2 << 20)];
    let chain = Chain::new().raw("ba,se:1 ü.raw", 12 * MIB, &places);
    chain.overlay(None, &["write -P 9 4k 4k", "write -P 8 5M 1M"]).check(true).await;
}

#[tokio::test]
async fn a_qcow2_base_alone_and_below() {
    let writes = ["write -P 1 0 64k", "write -P 2 1000k 100k", "write -P 3 7M 1M", "write -P 4 2M 3k"];
    Chain::new().qcow2("cluster_size=64k", "8M", &writes).check(true).await;
    let chain = Chain::new().qcow2("cluster_size=64k", "8M", &writes);
    chain.overlay(Some(9 * MIB), &["write -P 5 8500k 200k"]).check(true).await;
}

#[tokio::test]
async fn three_layers_that_overlap_shrink_and_grow() {
    let base = ["write -P 1 0 3M", "write -P 2 5M 3M"];
    let middle = ["write -P 3 100k 300k", "write -P 4 6M 12k", "write -z 7M 64k", "discard 1M 500k"];
    // Clusters given back over data, zeros written as data, and a disk that is larger than what lies below.
    let top = [
        "discard 200k 100k",
        "write -z 5M 1M",
        "write -P 0 2M 256k",
        "write -P 5 6148k 4k",
        "write -P 6 10M 4k",
        "write -P 7 7100k 8k",
    ];
    Chain::new()
        .qcow2("cluster_size=64k", "8M", &base)
        .qcow2("cluster_size=4k", "8M", &middle)
        .qcow2("cluster_size=4k", "11M", &top)
        .check(true)
        .await;
}

#[tokio::test]
async fn images_that_end_anywhere() {
    let last = ["write -P 1 3143k 3k", "write -P 2 0 512"];
    Chain::new().qcow2("cluster_size=4k", "3221504", &last).check(true).await;
    let chain = Chain::new().raw("odd", 2 * MIB + 700, &[(MIB, 4096), (2 * MIB, 700)]);
    chain.overlay(None, &["write -P 1 0 4k"]).check(true).await;
    // Nothing but zeros.
    Chain::new().qcow2("cluster_size=4k", "5M", &["write -z 0 1M"]).check(true).await;
}

#[tokio::test]
async fn what_only_qemu_can_read_is_read_by_it() {
    let places = [(0, 3 << 20), (5 * MIB + 4096, 1 << 20)];
    let raw = || Chain::new().raw("base", 8 * MIB, &places);
    let changes = ["write -P 9 1M 100k", "discard 2M 100k"];
    raw().converted("qcow2", &["-c"]).overlay(None, &changes).check(false).await;
    for format in ["vpc", "vmdk", "vhdx"] {
        raw().converted(format, &[]).overlay(Some(9 * MIB), &changes).check(false).await;
    }
    // Clusters in a file beside, and a name that JSON cannot carry.
    let chain = Chain::new();
    let options = format!("data_file={}", chain.path("data").display());
    chain.qcow2(&options, "4M", &changes).check(false).await;
    let name = std::ffi::OsStr::from_bytes(b"not \xff text");
    Chain::new().raw(name, 8 * MIB, &places).overlay(None, &changes).check(false).await;
}

/// Layers that were written at random places, by a fixed seed.
#[tokio::test]
async fn random_writes_to_three_layers() {
    for seed in 1..=4_u64 {
        let mut state = seed;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut chain = Chain::new();
        for (number, cluster) in ["64k", "4k", "4k"].iter().enumerate() {
            let commands: Vec<String> = (0..60)
                .map(|_| {
                    let (sector, count) = (random(12_000) * 512, (1 + random(600)) * 512);
                    match random(6) {
                        0 => format!("discard {sector} {count}"),
                        1 => format!("write -z {sector} {count}"),
                        2 => format!("write -P 0 {sector} {count}"),
                        _ => format!("write -P {} {sector} {count}", 1 + random(255)),
                    }
                })
                .collect();
            let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
            let length = format!("{}", 7 * MIB + 512 * number as u64);
            chain = chain.qcow2(&format!("cluster_size={cluster}"), &length, &commands);
        }
        chain.check(true).await;
    }
}

/// More blocks than may wait for their turn.
fn many_blocks() -> Chain {
    let places: Vec<_> = (0..100).map(|number| (number * 2 * MIB + 4096, 4096)).collect();
    Chain::new().raw("base", 200 * MIB, &places).overlay(None, &["write -P 1 1M 4k"])
}

#[tokio::test]
async fn a_cancel_half_way_ends_it() {
    let (img, compressed) = (img(), Chain::new().raw("base", 90 * MIB, &[(0, 40 << 20)]));
    let compressed = compressed.converted("qcow2", &["-c"]).overlay(None, &["write -P 1 1M 4k"]);
    for chain in [many_blocks(), compressed] {
        let image = chain.image();
        for at in [1, 40, 99] {
            let control = in_time().child();
            let dest = Aside::create(chain.path("x.vhd"), 0o644).unwrap();
            let progress: OnPercent = {
                let control = control.clone();
                Arc::new(move |percent| {
                    if percent >= at {
                        control.cancel();
                    }
                })
            };
            let (told, end) = (Arc::clone(&progress), footer());
            let written = write_fixed(&img, &image, &dest, end, told, &control).await;
            assert!(matches!(written, Err(VhdError::Interrupted(Interrupted::Canceled))), "{written:?}");
            let control = in_time().child();
            control.cancel();
            let copied = copy_fixed(&img, &image, &dest, end, progress, &control).await;
            assert!(matches!(copied, Err(VhdError::Interrupted(Interrupted::Canceled))), "{copied:?}");
        }
    }
}

#[tokio::test]
async fn nobody_waits_for_one_who_failed() {
    let (img, chain, control) = (img(), many_blocks(), in_time());
    let source = Source::open(&img, &chain.image(), &control).await.unwrap().unwrap();
    let footer = Footer::fixed(200 * MIB, footer().created, footer().unique_id).unwrap();
    let path = chain.path("dest");
    File::create(&path).unwrap().set_len(200 * MIB).unwrap();
    // Open for reading alone.
    let dest = File::open(&path).unwrap();
    for with_sha256 in [false, true] {
        let copying = Copying {
            source: &source,
            dest: &dest,
            footer: &footer,
            progress: &|_, _| {},
            control: &control,
        };
        let error = copying.run(with_sha256).unwrap_err();
        let CopyError::Write(error) = error else { panic!("{error:?}") };
        assert_eq!(error.raw_os_error(), Some(9), "EBADF: {error}");
    }
    let dest = OpenOptions::new().write(true).open(&path).unwrap();
    let panicking = |done, _| assert!(done < 20 * MIB, "as told to");
    let copying =
        Copying { source: &source, dest: &dest, footer: &footer, progress: &panicking, control: &control };
    let error = copying.run(true).unwrap_err();
    assert!(matches!(&error, CopyError::Write(error) if error.to_string().contains("panicked")), "{error:?}");
}

/// All buffers there are wait for the turn of the one block that never comes.
#[test]
fn a_block_that_cannot_be_read_ends_it() {
    let chain = many_blocks();
    let length = 4096;
    // Beyond what a file can have (pread(2), EINVAL).
    let offset = |number| if number == 3 { 1 << 63 } else { 0 };
    let extents = (0..100)
        .map(|number| Extent { start: number * 2 * MIB, length, layer: 0, offset: offset(number) })
        .collect();
    let source = Source::of(&chain.path("base"), extents);
    let (path, (told, ended)) = (chain.path("dest"), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        let footer = Footer::fixed(200 * MIB, UNIX_EPOCH, Uuid::nil()).unwrap();
        let (dest, control) = (File::create(path).unwrap(), in_time());
        let copying = Copying {
            source: &source,
            dest: &dest,
            footer: &footer,
            progress: &|_, _| {},
            control: &control,
        };
        told.send([true, false].map(|with_sha256| copying.run(with_sha256))).unwrap();
    });
    for error in ended.recv_timeout(Duration::from_secs(30)).expect("somebody waits for ever") {
        let Err(CopyError::Read(error)) = error else { panic!("{error:?}") };
        assert_eq!((error.path, error.source.raw_os_error()), (chain.path("base"), Some(22)));
    }
}

#[tokio::test]
async fn a_vhd_that_changed_is_seen() {
    let (img, control) = (img(), in_time());
    let chain = Chain::new().raw("base", 4 * MIB, &[(MIB, 5000)]).overlay(None, &["write -P 1 0 4k"]);
    let dest = Aside::create(chain.path("x.vhd"), 0o644).unwrap();
    let copied = copy_fixed(&img, &chain.image(), &dest, footer(), silent(), &control).await.unwrap();
    let path = chain.path("x.vhd");
    dest.publish().unwrap();
    assert!(verify(&path, copied.extents, &control).await.unwrap());
    assert!(!verify(&path, [0; 32], &control).await.unwrap());
    let whole = std::fs::read(&path).unwrap();
    let footer_at = whole.len() - 512;
    for at in [0, 2 << 20, footer_at + 30, footer_at + 400] {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        std::fs::write(&path, changed).unwrap();
        assert!(!verify(&path, copied.extents, &control).await.unwrap(), "{at}");
    }
    // Without its footer it has the digest of no VHD, not even its own.
    std::fs::write(&path, &whole[..footer_at]).unwrap();
    let own = extent_digest(&path, &|_| Ok(())).unwrap();
    assert!(!verify(&path, own, &control).await.unwrap());
    std::fs::write(&path, &whole).unwrap();
    assert!(verify(&path, copied.extents, &control).await.unwrap());

    let canceled = in_time().child();
    canceled.cancel();
    let error = verify(&path, copied.extents, &canceled).await.unwrap_err();
    assert!(matches!(error, VhdError::Interrupted(Interrupted::Canceled)), "{error}");
    let error = verify(chain.path("absent"), copied.extents, &control).await.unwrap_err();
    assert!(matches!(error, VhdError::Read { .. }), "{error}");
}

//! What a VHD costs: Kiln's writer, with and without the file's SHA-256, beside `qemu-img convert` and, as the least
//! that copying can cost, `cp --sparse=always` of a raw file with the same extents. Interleaved; medians.
//!
//!   vhd_times [ROUNDS [FOLDER]]      5 rounds in a temporary folder unless told; one JSON line at the end
//!
//! The disk has 30 GiB: a qcow2 base with 500 MB of random bytes in pieces of 2 MB all over it, and the layer that Kiln
//! makes over it with 100 MB more in pieces of 64 KiB. All are read once before, so that nobody waits for cold files.
//! Neither cp nor qemu-img waits for the disk; nor does Kiln without the SHA-256. With it, it does, beside the hashing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark fails by a panic")]
#![expect(clippy::print_stdout, reason = "its table is what it is for")]

#[expect(dead_code, reason = "it serves the tests, which need more of it")]
#[path = "../tests/real/guest.rs"]
mod guest;

use std::fs::{File, OpenOptions, Permissions};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use guest::{Does, base, machine_over, qemu};
use kiln_host::process::Invocation;
use kiln_host::publish::Aside;
use kiln_host::space::allocated_bytes;
use kiln_host::wait::Control;
use kiln_qemu::disk::{BaseImage, DiskFormat, Image, Overlay};
use kiln_qemu::vhd::{FooterOptions, MIB, OnPercent, copy_fixed, write_fixed};
use kiln_qemu::vm::Vm;
use serde_json::json;

const DISK: u64 = 30 << 30;
const GOAL: f64 = 1.3;
const LIMIT: Duration = Duration::from_secs(3600);
const NAMES: [&str; 4] = ["kiln", "kiln, sha256", "qemu-img convert", "cp --sparse=always"];

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let rounds: usize = args.next().map_or(5, |word| word.parse().expect("a number of rounds"));
    let folder = match args.next() {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let folder = folder.unwrap();
    let dir = folder.path();
    let control = Control::ending_in(LIMIT);
    let (img, image) = (qemu().img().clone(), image(dir, &control).await);
    let raw = dir.join("same.raw");
    convert(&image, "raw", None, &raw);
    let begun = Instant::now();
    let map = img.map(image.path(), image.format(), &control).await.unwrap();
    let mapped = begun.elapsed().as_secs_f64();
    println!(
        "a disk of {} GiB with {} MB in {} extents, whose map takes {mapped:.2} s; {} processors; {rounds} rounds",
        DISK >> 30,
        allocated_bytes(&raw).unwrap() / 1_000_000,
        map.extents.len(),
        std::thread::available_parallelism().unwrap(),
    );

    let silent: OnPercent = Arc::new(|_| {});
    let footer = FooterOptions { created: UNIX_EPOCH, unique_id: uuid::Uuid::nil() };
    let mut times: [Vec<f64>; 4] = Default::default();
    let mut extents = Vec::new();
    println!("{:>6} {:>20} {:>20} {:>20} {:>20}", "round", NAMES[0], NAMES[1], NAMES[2], NAMES[3]);
    // The first is not counted: it reads what the others have in memory.
    for round in 0..=rounds {
        for turn in 0..times.len() {
            // Who goes first takes turns.
            let which = (turn + round) % times.len();
            let dest = Aside::create(dir.join("disk.vhd"), 0o644).unwrap();
            let theirs = dir.join("theirs");
            rustix::fs::sync();
            let begun = Instant::now();
            match which {
                0 => {
                    let copied = copy_fixed(&img, &image, &dest, footer, Arc::clone(&silent), &control);
                    extents.push(copied.await.unwrap().extents);
                }
                1 => {
                    let written = write_fixed(&img, &image, &dest, footer, Arc::clone(&silent), &control);
                    extents.push(written.await.unwrap().extents);
                }
                2 => convert(&image, "vpc", Some("subformat=fixed,force_size=on"), &theirs),
                _ => {
                    let copy = Invocation::new("cp").arg("--sparse=always").args([&raw, &theirs]);
                    copy.run_blocking().unwrap();
                }
            }
            let took = begun.elapsed().as_secs_f64();
            if round > 0 {
                times[which].push(took);
            }
            drop(dest);
            drop(std::fs::remove_file(&theirs));
        }
        if round > 0 {
            let [kiln, hashed, converted, copied] = times.each_ref().map(|times| times[round - 1]);
            println!("{round:>6} {kiln:>20.2} {hashed:>20.2} {converted:>20.2} {copied:>20.2}");
        }
    }
    assert!(extents.windows(2).all(|pair| pair[0] == pair[1]), "not always the same file");

    let medians = times.map(median);
    let ratios = medians.map(|seconds| seconds / medians[3]);
    let row = |name, values: [f64; 4]| {
        println!("{name:>6} {:>20.2} {:>20.2} {:>20.2} {:>20.2}", values[0], values[1], values[2], values[3]);
    };
    row("median", medians);
    row("ratio", ratios);
    println!("kiln / cp: {:.2}; goal: at most {GOAL}", ratios[0]);
    let named =
        |values: [f64; 4]| NAMES.into_iter().zip(values).collect::<std::collections::BTreeMap<_, _>>();
    let table = json!({"rounds": rounds, "seconds": named(medians), "ratios": named(ratios), "map": mapped});
    println!("{table}");
}

/// The disk, of a guest that switched itself off.
async fn image(dir: &Path, control: &Control) -> Image {
    let guest = base(dir, Does::SwitchOff, 0, DISK / MIB);
    std::fs::set_permissions(guest.path(), Permissions::from_mode(0o644)).unwrap();
    let raw = OpenOptions::new().write(true).open(guest.path()).unwrap();
    let pieces = 250;
    for piece in 0..pieces {
        raw.write_all_at(&random(2_000_000), MIB + piece * (DISK / pieces / 4096 * 4096)).unwrap();
    }
    let path = dir.join("base.qcow2");
    let (from, to) = ((guest.path(), guest.format()), (path.as_path(), DiskFormat::Qcow2));
    let img = qemu().img().clone();
    img.convert(from, to, |_| {}, control).await.unwrap();
    std::fs::remove_file(guest.path()).unwrap();

    let below = BaseImage::open(&img, &path, DiskFormat::Qcow2).unwrap();
    let mut machine = machine_over(dir, &below);
    let overlay = Overlay::create(&img, &below, dir.join("overlay.qcow2"), None).unwrap();
    for part in 0..16_u64 {
        let (bytes, pieces) = (dir.join("random"), 100);
        std::fs::write(&bytes, random(64 << 10)).unwrap();
        let commands = (0..pieces).flat_map(|piece| {
            let number = part * pieces + piece;
            let at = 4 * MIB + number * (DISK / 16 / pieces / 4096 * 4096);
            ["-c".to_owned(), format!("write -q -s {} {} 64k", bytes.display(), at / 4096 * 4096)]
        });
        let io = Invocation::new("qemu-io").args(["-f", "qcow2"]).args(commands);
        io.arg(overlay.path()).run_blocking().unwrap();
    }
    machine.disks = vec![overlay];
    let vm = Vm::start(&qemu(), machine, control).await.unwrap();
    vm.wait_shutdown(control).await.unwrap().into_image()
}

fn random(count: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open("/dev/urandom").unwrap().take(count).read_to_end(&mut bytes).unwrap();
    bytes
}

fn convert(image: &Image, format: &str, options: Option<&str>, to: &PathBuf) {
    let command = Invocation::new("qemu-img").args(["convert", "-f", "qcow2", "-O", format]);
    let command = options.into_iter().fold(command, |command, options| command.args(["-o", options]));
    command.arg(image.path()).arg(to).run_blocking().unwrap();
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

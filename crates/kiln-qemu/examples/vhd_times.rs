//! What a VHD costs: Kiln's writer, with and without the file's SHA-256, beside `qemu-img convert` and, as the least
//! that copying can cost, `cp --sparse=always` of a raw file with the same extents. Interleaved; medians.
//!
//!   vhd_times [ROUNDS [FOLDER]]      5 rounds in a temporary folder unless told; one JSON line at the end
//!
//! Two disks of 30 GiB, each with 500 MB of random bytes in a qcow2 base and 100 MB more, written 64 KiB at a time, in
//! the layer that Kiln makes over it:
//!
//!   dense       as builds leave it: pieces of 10 MB in the base, runs of 5 MiB in the layer. (A Debian 12 that Kiln built
//!               on had 546 MiB of data in 564 blocks of 1 MiB.)
//!   scattered   pieces of 2 MB in the base, single 64 KiB in the layer, each in a block of its own, which the extent
//!               digest is then made of as a whole
//!
//! All are read once before, so that nobody waits for cold files. Neither cp nor qemu-img waits for the disk; nor does
//! Kiln without the SHA-256. With it, it does, beside the hashing. Beside seconds on the clock stand seconds of
//! processors, which a busy host changes less.

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

struct Layout {
    name: &'static str,
    /// In the base, 500 MB together.
    pieces: u64,
    /// Of 64 KiB, one after the other in the layer; 1600 together.
    run: u64,
    /// The SHA-256 depends on the disk's size alone, and takes long.
    hashed: bool,
}

const LAYOUTS: [Layout; 2] = [
    Layout { name: "dense", pieces: 50, run: 80, hashed: true },
    Layout { name: "scattered", pieces: 250, run: 1, hashed: false },
];

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let rounds: usize = args.next().map_or(5, |word| word.parse().expect("a number of rounds"));
    let folder = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    for layout in LAYOUTS {
        let folder = tempfile::tempdir_in(&folder).unwrap();
        measure(&layout, rounds, folder.path(), &Control::ending_in(LIMIT)).await;
    }
}

async fn measure(layout: &Layout, rounds: usize, dir: &Path, control: &Control) {
    let (img, image) = (qemu().img().clone(), image(layout, dir, control).await);
    let raw = dir.join("same.raw");
    convert(&image, "raw", None, &raw);
    let begun = Instant::now();
    let map = img.map(image.path(), image.format(), control).await.unwrap();
    let mapped = begun.elapsed().as_secs_f64();
    let mut blocks: Vec<_> =
        map.extents.iter().flat_map(|extent| extent.start / MIB..extent.end().div_ceil(MIB)).collect();
    blocks.dedup();
    println!(
        "{}: {} GiB, {} MB in {} extents and {} blocks; the map takes {mapped:.2} s; {} processors",
        layout.name,
        DISK >> 30,
        allocated_bytes(&raw).unwrap() / 1_000_000,
        map.extents.len(),
        blocks.len(),
        std::thread::available_parallelism().unwrap(),
    );

    let silent: OnPercent = Arc::new(|_| {});
    let footer = FooterOptions { created: UNIX_EPOCH, unique_id: uuid::Uuid::nil() };
    let mut times: [Vec<f64>; 4] = Default::default();
    let mut busy: [Vec<f64>; 4] = Default::default();
    let mut extents = Vec::new();
    // The first is not counted: it reads what the others have in memory.
    for round in 0..=rounds {
        for turn in 0..times.len() {
            // Who goes first takes turns.
            let which = (turn + round) % times.len();
            if which == 1 && (round == 0 || !layout.hashed) {
                continue;
            }
            let dest = Aside::create(dir.join("disk.vhd"), 0o644).unwrap();
            let theirs = dir.join("theirs");
            rustix::fs::sync();
            let (begun, used) = (Instant::now(), processor_seconds());
            match which {
                0 => {
                    let copied = copy_fixed(&img, &image, &dest, footer, Arc::clone(&silent), control);
                    extents.push(copied.await.unwrap().extents);
                }
                1 => {
                    let written = write_fixed(&img, &image, &dest, footer, Arc::clone(&silent), control);
                    extents.push(written.await.unwrap().extents);
                }
                2 => convert(&image, "vpc", Some("subformat=fixed,force_size=on"), &theirs),
                _ => {
                    let copy = Invocation::new("cp").arg("--sparse=always").args([&raw, &theirs]);
                    copy.run_blocking().unwrap();
                }
            }
            if round > 0 {
                times[which].push(begun.elapsed().as_secs_f64());
                busy[which].push(processor_seconds() - used);
            }
            drop(dest);
            drop(std::fs::remove_file(&theirs));
        }
    }
    assert!(extents.windows(2).all(|pair| pair[0] == pair[1]), "not always the same file");

    println!("{:>20} {:>8} {:>8} {:>10}   each round", "", "median", "x cp", "processors");
    let cp = median(&times[3]);
    let mut table = serde_json::Map::new();
    for ((name, times), busy) in NAMES.into_iter().zip(&times).zip(&busy).filter(|row| !row.0.1.is_empty()) {
        let (seconds, busy) = (median(times), median(busy));
        let each: Vec<_> = times.iter().map(|seconds| format!("{seconds:.2}")).collect();
        println!("{name:>20} {seconds:>8.2} {:>8.2} {busy:>10.2}   {}", seconds / cp, each.join(" "));
        let row = json!({"seconds": seconds, "ratio": seconds / cp, "processors": busy});
        table.insert(name.to_owned(), row);
    }
    println!("kiln / cp: {:.2}; goal: at most {GOAL}", median(&times[0]) / cp);
    println!("{}", json!({"disk": layout.name, "rounds": rounds, "map": mapped, "table": table}));
}

/// Of this process and of those that it waited for, in user and system mode (proc(5), `stat`: hundredths).
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit(") ").next().unwrap().split(' ').skip(11).take(4);
    fields.map(|ticks| ticks.parse::<u32>().unwrap()).map(f64::from).sum::<f64>() / 100.0
}

/// The disk, of a guest that switched itself off.
async fn image(layout: &Layout, dir: &Path, control: &Control) -> Image {
    let guest = base(dir, Does::SwitchOff, 0, DISK / MIB);
    std::fs::set_permissions(guest.path(), Permissions::from_mode(0o644)).unwrap();
    let raw = OpenOptions::new().write(true).open(guest.path()).unwrap();
    for piece in 0..layout.pieces {
        let at = MIB + piece * (DISK / layout.pieces / 4096 * 4096);
        raw.write_all_at(&random(500_000_000 / layout.pieces), at).unwrap();
    }
    let path = dir.join("base.qcow2");
    let (from, to) = ((guest.path(), guest.format()), (path.as_path(), DiskFormat::Qcow2));
    let img = qemu().img().clone();
    img.convert(from, to, |_| {}, control).await.unwrap();
    std::fs::remove_file(guest.path()).unwrap();

    let below = BaseImage::open(&img, &path, DiskFormat::Qcow2).unwrap();
    let mut machine = machine_over(dir, &below);
    let overlay = Overlay::create(&img, &below, dir.join("overlay.qcow2"), None).unwrap();
    let (writes, once) = (1600, 160);
    for part in 0..writes / once {
        let bytes = dir.join("random");
        std::fs::write(&bytes, random(64 << 10)).unwrap();
        let commands = (part * once..(part + 1) * once).flat_map(|number| {
            let runs = writes / layout.run;
            let begin = number / layout.run * (DISK / runs / 4096 * 4096) + 20 * MIB;
            let at = (begin + number % layout.run * (64 << 10)) % (DISK - MIB) / 4096 * 4096;
            ["-c".to_owned(), format!("write -q -s {} {at} 64k", bytes.display())]
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

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

//! Disks made by other people's tools: hivex for hives, ntfs-3g for volumes, sgdisk and sfdisk for tables, qemu-img for
//! formats. Nothing is mounted, nothing needs root.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use kiln_host::process::{Child, Invocation, SpawnOptions, find_program};

use crate::qemu_img::QemuImg;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const TOOLS: [&str; 9] =
    ["mkntfs", "ntfscp", "ntfsfix", "hivexsh", "sgdisk", "sfdisk", "python3", "qemu-img", "qemu-nbd"];

/// Whether a test can run; says why not.
pub fn have_tools() -> bool {
    let missing: Vec<_> =
        TOOLS.into_iter().filter(|name| find_program(name, OsStr::new(PATH)).is_none()).collect();
    if missing.is_empty() {
        return true;
    }
    println!("SKIPPED: no {} here (scripts/setup test)", missing.join(", "));
    false
}

fn tool(name: &str) -> Invocation {
    Invocation::new(find_program(name, OsStr::new(PATH)).unwrap()).env("LC_ALL", "C")
}

pub fn qemu_img() -> QemuImg {
    QemuImg::find(OsStr::new(PATH)).unwrap()
}

/// A key by its path, and its values: names and what hivexsh takes for contents (`string:…`, `dword:…`).
pub type Keys<'k> = &'k [(&'k str, &'k [(&'k str, &'k str)])];

/// A hive, by hivexsh.
pub fn hive(dir: &Path, name: &str, keys: Keys) -> PathBuf {
    let (script, made) = (dir.join(format!("{name}.hivexsh")), dir.join(name));
    let (mut lines, mut there) = (Vec::new(), BTreeSet::new());
    for (path, values) in keys {
        lines.push("cd \\".to_owned());
        let mut whole = String::new();
        for part in path.split('\\') {
            whole = format!("{whole}\\{part}");
            if there.insert(whole.clone()) {
                lines.push(format!("add {part}"));
            }
            lines.push(format!("cd {part}"));
        }
        lines.push(format!("setval {}", values.len()));
        lines.extend(values.iter().flat_map(|(name, contents)| [(*name).to_owned(), (*contents).to_owned()]));
    }
    lines.push(format!("commit {}\n", made.display()));
    fs::write(&script, lines.join("\n")).unwrap();
    let minimal = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/minimal.hive");
    tool("hivexsh").args(["-w", "-f"]).arg(script).arg(minimal).run_blocking().unwrap();
    assert!(made.is_file(), "hivexsh wrote nothing");
    made
}

pub const STATE: &str = r"Microsoft\Windows\CurrentVersion\Setup\State";
pub const VERSION: &str = r"Microsoft\Windows NT\CurrentVersion";
pub const DONE: &str = "string:IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE";
/// What a server's hive has, as far as it is looked at.
pub const SOFTWARE: Keys = &[
    (STATE, &[("ImageState", DONE)]),
    (
        VERSION,
        &[
            ("ProductName", "string:Windows Server 2022 Datacenter"),
            ("CurrentBuildNumber", "string:20348"),
            ("UBR", "dword:2582"),
        ],
    ),
    (r"Microsoft\Windows NT\CurrentVersion\Winlogon", &[("AutoAdminLogon", "string:1")]),
];
pub const SYSTEM: Keys = &[
    ("Select", &[("Current", "dword:1"), ("Default", "dword:2")]),
    // What the last start used says nothing.
    (r"ControlSet001\Services\storahci", &[("Start", "dword:3")]),
    (r"ControlSet002\Services\storahci", &[("Start", "dword:0")]),
    (r"ControlSet002\Services\vioscsi", &[("Start", "dword:0")]),
    (r"ControlSet002\Services\netkvm", &[("Start", "dword:3")]),
];

/// An NTFS volume with these hives, and more by a plan of `volume.py`.
pub fn volume(dir: &Path, hives: &[(&str, &Path)], plan: &str) -> PathBuf {
    let path = dir.join("volume");
    // Replaced, not filled anew: mkntfs leaves what lies between.
    let _ = fs::remove_file(&path);
    File::create(&path).unwrap().set_len(6 << 20).unwrap();
    tool("mkntfs").args(["-F", "-Q", "-q", "-c", "512"]).arg(&path).run_blocking().unwrap();
    let folders = ["/Windows", "/Windows/System32", "/Windows/System32/config"];
    let plan = folders.map(|folder| format!("folder\t{folder}\n")).concat() + plan;
    let plan_path = dir.join("plan");
    fs::write(&plan_path, plan).unwrap();
    let script = dir.join("volume.py");
    fs::write(&script, include_str!("volume.py")).unwrap();
    tool("python3").arg(script).arg(&path).arg(plan_path).run_blocking().unwrap();
    for (name, hive) in hives {
        copy_into(&path, hive, &format!("/Windows/System32/config/{name}"), None);
    }
    path
}

/// Copies a file into a volume, or into a further stream of one.
pub fn copy_into(volume: &Path, from: &Path, to: &str, stream: Option<&str>) {
    let stream = stream.map(|name| ["-N", name]).into_iter().flatten();
    tool("ntfscp").args(["-q"]).args(stream).arg(volume).arg(from).arg(to).run_blocking().unwrap();
}

/// What Windows does to a volume it has in use.
pub fn mark_dirty(volume: &Path) {
    tool("ntfsfix").arg(volume).run_blocking().unwrap();
}

const START: u64 = 4096;

fn place(volume: &Path, disk: &Path) -> u64 {
    let bytes = fs::read(volume).unwrap();
    let length = u64::try_from(bytes.len()).unwrap();
    let file = File::create(disk).unwrap();
    file.set_len(START * 512 + length + (1 << 20)).unwrap();
    file.write_all_at(&bytes, START * 512).unwrap();
    length / 512
}

/// A raw disk with a GPT: an empty system partition, and the volume.
pub fn gpt(dir: &Path, volume: &Path) -> PathBuf {
    let disk = dir.join("gpt.raw");
    let sectors = place(volume, &disk);
    tool("sgdisk")
        .args(["-n", "1:2048:4095", "-t", "1:ef00"])
        .args(["-n", &format!("2:{START}:{}", START + sectors - 1), "-t", "2:0700"])
        .arg(&disk)
        .run_blocking()
        .unwrap();
    disk
}

/// The same with an MBR.
pub fn mbr(dir: &Path, volume: &Path) -> PathBuf {
    let disk = dir.join("mbr.raw");
    let sectors = place(volume, &disk);
    let sfdisk = find_program("sfdisk", OsStr::new(PATH)).unwrap();
    Invocation::new("sh")
        .args(["-c", "printf '%s\\n' 'label: dos' '2048,2048,c' \"$1\" | \"$2\" -q \"$3\"", "sh"])
        .arg(format!("{START},{sectors},7,*"))
        .arg(sfdisk)
        .arg(&disk)
        .run_blocking()
        .unwrap();
    disk
}

/// Another form of a raw disk.
pub fn converted(raw: &Path, format: &str) -> PathBuf {
    let made = raw.with_extension(format);
    tool("qemu-img").args(["convert", "-f", "raw", "-O", format]).arg(raw).arg(&made).run_blocking().unwrap();
    made
}

/// A layer over `base` that reads as `disk` does.
pub fn layer(disk: &Path, base: &Path, base_format: &str, name: &str) -> PathBuf {
    let made = disk.with_file_name(name);
    tool("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2", "-F", base_format, "-B"])
        .args([base, disk, made.as_path()])
        .run_blocking()
        .unwrap();
    made
}

/// Somebody who has the disk open for writing.
pub async fn writer(dir: &Path, disk: &Path) -> Child {
    let socket = dir.join("writer");
    let child = tool("qemu-nbd")
        .args(["-t", "-f", "qcow2", "-k"])
        .args([&socket, disk])
        .spawn(SpawnOptions::default())
        .unwrap();
    for _ in 0..1000 {
        if socket.exists() {
            return child;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("it does not open the disk");
}

/// A restart page of a log: its sequence number, who uses the log (0 somebody, 0xffff nobody), its flags.
pub type Restart = (u64, u16, u16);

/// Puts these pages at the beginning of a volume's log, which mkntfs leaves empty.
pub fn write_log(volume: &Path, pages: [Restart; 2]) {
    let mut bytes = fs::read(volume).unwrap();
    let empty = bytes.windows(8192).step_by(512).position(|stretch| stretch.iter().all(|byte| *byte == 0xff));
    let start = empty.expect("no log") * 512;
    for (number, page) in pages.into_iter().enumerate() {
        let at = start + number * 4096;
        bytes[at..at + 4096].copy_from_slice(&restart_page(page));
    }
    fs::write(volume, bytes).unwrap();
}

/// As far as ntfs-3g looks at it: log version 1.1, one user, a log of 2 MiB.
fn restart_page((sequence, users, flags): Restart) -> [u8; 4096] {
    let mut page = [0; 4096];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"RSTR\x1e\0\x09\0");
    put(16, &[4096_u32.to_le_bytes(), 4096_u32.to_le_bytes()].concat());
    put(24, &[48, 0, 1, 0, 1, 0]);
    // The fix-ups: a number at the end of each 512 bytes, zeros below it.
    put(30, &[1, 0]);
    for end in (510..4096).step_by(512) {
        put(end, &[1, 0]);
    }
    // The restart area: place, one user, none free, who uses it, flags; bits of a sequence number, lengths.
    put(48, &sequence.to_le_bytes());
    put(56, &[1, 0, 0xff, 0xff]);
    put(60, &users.to_le_bytes());
    put(62, &flags.to_le_bytes());
    put(64, &45_u32.to_le_bytes());
    put(68, &208_u16.to_le_bytes());
    put(70, &48_u16.to_le_bytes());
    put(72, &(2_u64 << 20).to_le_bytes());
    put(84, &48_u16.to_le_bytes());
    put(86, &64_u16.to_le_bytes());
    // The user: none before, none after, called NTFS.
    put(96 + 16, &[0xff; 4]);
    put(96 + 28, &8_u32.to_le_bytes());
    put(96 + 32, b"N\0T\0F\0S\0");
    page
}

/// Whether ntfs-3g takes a volume for one that was left in order: it writes to no other.
pub fn is_taken_for_clean(volume: &Path, any_file: &Path) -> bool {
    let copying = tool("ntfscp").arg(volume).arg(any_file).arg("/a file").run_blocking();
    match copying {
        Ok(_) => true,
        Err(error) => {
            let words = error.to_string();
            assert!(words.contains("unclean"), "{words}");
            false
        }
    }
}

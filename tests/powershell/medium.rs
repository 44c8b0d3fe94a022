//! A file from a medium. Here a drive is a file in the current folder with a name like `D:\...`: to this engine that is
//! what such a path means.

use std::path::Path;

use kiln_guest::os::windows::medium::take;
use kiln_host::digest::{hex, sha256};

use crate::lab::{Lab, Ran, lab};

const NAME: &str = "kiln-1a2b/3";

fn run(lab: &Lab, path: &Path, digest: &str, wait_seconds: u64) -> Ran {
    let prelude = "[Environment]::CurrentDirectory = $Env:LAB_DIR";
    lab.run(prelude, &take(NAME, path.to_str().unwrap(), digest, wait_seconds)).ended_with(0)
}

fn said(ran: &Ran) -> Vec<&str> {
    ran.out.lines().filter_map(|line| line.strip_prefix("kiln-upload ")).collect()
}

/// Beside the file and what makes a lab.
fn leftovers(lab: &Lab) -> Vec<String> {
    let names = std::fs::read_dir(lab.path("")).unwrap();
    names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".kiln"))
        .collect()
}

#[test]
fn it_is_found_in_any_drive_and_told_by_pieces() {
    let lab = lab!();
    // Two pieces and a bit: progress is told by whole ones.
    let bytes: Vec<u8> = (0..(129_u32 << 20)).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    lab.write(r"G:\kiln-1a2b\3", &bytes);
    let (path, digest) = (lab.path("placed"), hex(&sha256(&bytes)));
    let ran = run(&lab, &path, &digest, 0);
    let placed = format!("placed {} {digest}", bytes.len());
    assert_eq!(said(&ran), ["at 67108864", "at 134217728", &placed]);
    assert!(std::fs::read(&path).unwrap() == bytes);
    // In place of a file that was there.
    lab.write(r"G:\kiln-1a2b\3", b"new");
    let digest = hex(&sha256(b"new"));
    assert_eq!(said(&run(&lab, &path, &digest, 0)), [format!("placed 3 {digest}")]);
    assert_eq!(lab.read("placed"), "new");
    assert_eq!(leftovers(&lab), Vec::<String>::new());
}

#[test]
fn a_medium_that_comes_late_is_waited_for_and_none_is_said() {
    let lab = lab!();
    let path = lab.path("placed");
    let digest = hex(&sha256(b"late"));
    let ran = run(&lab, &path, &digest, 1);
    assert_eq!(said(&ran), [r"nomedium no drive has a medium with kiln-1a2b\3"]);
    let (drive, aside) = (lab.path(r"D:\kiln-1a2b\3"), lab.write("aside", b"late"));
    let coming = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_secs(4));
        std::fs::rename(aside, drive).unwrap();
    });
    let ran = run(&lab, &path, &digest, 60);
    coming.join().unwrap();
    assert_eq!(said(&ran), [format!("placed 4 {digest}")]);
}

#[test]
fn what_is_not_as_it_should_be_leaves_what_was_there() {
    let lab = lab!();
    lab.write(r"D:\kiln-1a2b\3", b"bytes");
    let digest = hex(&sha256(b"bytes"));
    let there = lab.write("there", b"old");
    let other = hex(&sha256(b"other"));
    assert_eq!(said(&run(&lab, &there, &other, 0)), [format!("digest {digest}")]);
    assert_eq!(lab.read("there"), "old");
    std::fs::create_dir(lab.path("folder")).unwrap();
    for (name, result) in [("folder", "isdir"), ("nowhere/file", "nodir")] {
        let ran = run(&lab, &lab.path(name), &digest, 0);
        assert!(matches!(said(&ran)[..], [one] if one.starts_with(result)), "{}", ran.out);
    }
    assert_eq!(leftovers(&lab), Vec::<String>::new());
}

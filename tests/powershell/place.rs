//! A step's own files, all with one text.

use kiln_guest::os::windows::place::{place, placed};
use kiln_guest::os::windows::script::GuestPath;

use crate::lab::{Lab, lab};

fn path(lab: &Lab, name: &str) -> GuestPath {
    GuestPath::new(lab.shown(name)).unwrap()
}

fn names(lab: &Lab, folder: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(lab.path(folder))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn files_lie_in_a_new_folder_byte_for_byte() {
    let lab = lab!();
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let (one, two, empty) = (path(&lab, "step/one.ps1"), path(&lab, "step/two.bin"), path(&lab, "empty"));
    let files: [(&GuestPath, &[u8]); 3] = [(&one, b"exit 3"), (&two, &bytes), (&empty, b"")];
    let ran = lab.run("", &place(Some(&path(&lab, "step")), &files)).ended_with(0);
    assert_eq!(placed(&ran.out, 3), Ok(()));
    assert_eq!(names(&lab, "step"), ["one.ps1", "two.bin"]);
    assert_eq!(lab.read("step/one.ps1"), "exit 3");
    assert_eq!(std::fs::read(lab.path("step/two.bin")).unwrap(), bytes);
    assert_eq!(std::fs::metadata(lab.path("empty")).unwrap().len(), 0);
    let ran = lab.run("", &place(None, &[])).ended_with(0);
    assert_eq!(placed(&ran.out, 0), Ok(()));
}

#[test]
fn nothing_is_replaced_and_nothing_half_made_is_left() {
    let lab = lab!();
    lab.write("step/old.ps1", "old");
    let old = path(&lab, "step/old.ps1");
    let refused = |folder: Option<&GuestPath>, files: &[(&GuestPath, &[u8])], of: &str| {
        let ran = lab.run("", &place(folder, files)).ended_with(1);
        let (at, why) = placed(&ran.out, files.len()).unwrap_err().expect("a reason");
        assert!(at.ends_with(of) && !why.is_empty(), "{at}: {why}");
        assert_eq!(
            (lab.read("step/old.ps1").as_str(), names(&lab, "step")),
            ("old", vec!["old.ps1".to_owned()])
        );
    };
    refused(None, &[(&old, b"new")], "old.ps1");
    refused(Some(&path(&lab, "step")), &[], "step");
    refused(None, &[(&path(&lab, "none/a.ps1"), b"new")], "a.ps1");
}

#[test]
fn bytes_that_arrive_changed_are_refused() {
    let lab = lab!();
    let file = path(&lab, "a.ps1");
    let text = place(None, &[(&file, b"exit 3")]).replace("ZXhpdCAz", "ZXhpdCA0");
    let ran = lab.run("", &text).ended_with(1);
    let (_, why) = placed(&ran.out, 1).unwrap_err().expect("a reason");
    assert!(why.contains("digest"), "{why}");
    assert!(!lab.path("a.ps1").exists() && !lab.path("a.ps1.new").exists());
}

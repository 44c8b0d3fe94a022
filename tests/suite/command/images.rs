//! The shelves by the command: importing, listing, pulling, removing.

use kiln_tests::kiln::Kiln;
use kiln_tests::program::sha256sum;
use kiln_tests::server::{Answer, Server};
use serde_json::Value;

/// A disk of `size` bytes with a partition table and nothing on it.
fn blank_disk(path: &std::path::Path, size: usize) {
    let mut disk = vec![7; size];
    // One Linux partition from sector 2048.
    disk[446..462].copy_from_slice(&[0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
    disk[462..510].fill(0);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(path, disk).unwrap();
}

fn import(kiln: &Kiln, file: &std::path::Path, more: &[&str]) -> kiln_tests::program::Ended {
    let args =
        ["images", "import", file.to_str().unwrap(), "--name", "mine", "--platform", "Contoso:linux:mine"];
    kiln.run(args.into_iter().chain(more.iter().copied()))
}

#[test]
fn an_image_comes_is_shown_and_goes() {
    let kiln = Kiln::empty();
    let disk = kiln.path().join("disk");
    blank_disk(&disk, 8 << 20);
    let ended = import(&kiln, &disk, &["--version", "1.2.3", "--generation", "1"]);
    assert!(ended.status.success(), "{}", ended.stderr);
    // The same once more is nothing new; another disk under that version is an error.
    let again = import(&kiln, &disk, &["--version", "1.2.3", "--generation", "1"]);
    assert!(again.status.success(), "{}", again.stderr);
    let other = kiln.path().join("other");
    blank_disk(&other, 16 << 20);
    let taken = import(&kiln, &other, &["--version", "1.2.3", "--generation", "1"]);
    assert_eq!(taken.status.code(), Some(1), "{}", taken.stderr);
    assert!(taken.stderr.contains("1.2.3"), "{}", taken.stderr);

    let shown = kiln.run(["images", "show", "mine", "--json"]);
    assert!(shown.status.success(), "{}", shown.stderr);
    assert!(shown.text().contains(&sha256sum(&disk)), "{}", shown.text());
    let list = kiln.run(["images", "list", "--json"]);
    let list: Value = serde_json::from_str(&list.text()).unwrap();
    assert!(list.to_string().contains("Contoso"), "{list:#}");

    let removed = kiln.run(["images", "remove", "mine"]);
    assert!(removed.status.success(), "{}", removed.stderr);
    assert_eq!(kiln.run(["images", "show", "mine"]).status.code(), Some(1));
}

#[test]
fn what_is_no_whole_disk_is_refused() {
    let kiln = Kiln::empty();
    let (base, half) = (kiln.path().join("base.qcow2"), kiln.path().join("half.qcow2"));
    kiln_tests::program::output("qemu-img", ["create", "-q", "-f", "qcow2", base.to_str().unwrap(), "16M"]);
    let over =
        ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.to_str().unwrap(), half.to_str().unwrap()];
    kiln_tests::program::output("qemu-img", over);
    let ended = import(&kiln, &half, &["--generation", "1"]);
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("backing file"), "{}", ended.stderr);

    let ended = import(&kiln, &base, &["--generation", "1", "--sha256", &"0".repeat(64)]);
    assert_eq!(ended.status.code(), Some(1), "a wrong digest: {}", ended.stderr);
    assert!(kiln.run(["images", "show", "mine"]).status.code() == Some(1), "nothing was stored");
}

/// A pull, from a catalog of the user's own, in one go. (What servers can do wrong is kiln-library's.)
#[test]
fn an_image_is_pulled_by_its_checksum_file() {
    let kiln = Kiln::empty();
    let disk = kiln.path().join("disk.raw");
    blank_disk(&disk, 4 << 20);
    let digest = sha256sum(&disk);
    let server = Server::start([
        ("/disk.raw", Answer::Bytes(std::fs::read(&disk).unwrap())),
        ("/SHA256SUMS", Answer::Bytes(format!("{digest}  disk.raw\n").into_bytes())),
        ("/WRONG", Answer::Bytes(format!("{}  disk.raw\n", "0".repeat(64)).into_bytes())),
    ]);
    let catalog = |sums: &str| {
        format!(
            "format: 1\nimages:\n  - name: pulled\n    platform:\n      - {{publisher: Contoso, offer: linux, sku: pulled, generation: V1}}\n    \
             os: linux\n    generations: [V1]\n    arch: x86_64\n    login: cloud-init\n    format: raw\n    source:\n      url:\n        \
             addresses: [\"{}\"]\n        checksum:\n          file:\n            algorithm: sha256\n            addresses: [\"{}\"]\n",
            server.url("/disk.raw"),
            server.url(sums)
        )
    };
    let folder = kiln.path().join("config/kiln");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("catalog.yaml"), catalog("/WRONG")).unwrap();
    let ended = kiln.run(["images", "pull", "pulled"]);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert_eq!(
        kiln.run(["images", "show", "pulled", "--json"]).text().matches(&digest).count(),
        0,
        "nothing was stored"
    );

    std::fs::write(folder.join("catalog.yaml"), catalog("/SHA256SUMS")).unwrap();
    let ended = kiln.run(["images", "pull", "pulled"]);
    assert!(ended.status.success(), "{}", ended.stderr);
    assert!(kiln.run(["images", "show", "pulled", "--json"]).text().contains(&digest));
}

#[test]
fn a_newer_library_is_refused_untouched() {
    let kiln = Kiln::empty();
    let record = kiln.data().join("library/library.json");
    std::fs::write(&record, "{\"format\": 99}\n").unwrap();
    let ended = kiln.run(["images", "list"]);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("99"), "{}", ended.stderr);
    assert_eq!(std::fs::read_to_string(record).unwrap(), "{\"format\": 99}\n");
    assert_eq!(std::fs::read_dir(kiln.data().join("library")).unwrap().count(), 1);
}

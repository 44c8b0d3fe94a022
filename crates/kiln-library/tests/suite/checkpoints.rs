//! The shelf of checkpoints: real files and real locks. What takes other processes is in `crowd`.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use expect_test::expect;
use kiln_host::extents::extent_digest;
use kiln_host::wait::{Control, Interrupted};
use kiln_library::{
    BaseMark, CHECKPOINT_FORMAT, CheckpointDraft, CheckpointKind, CheckpointLease, Evicted, Library,
    LibraryError, MachineMark, Manifest, Removed, StepInput, StepMark, StoredFile, Verify,
};
use kiln_model::Sha256;

use crate::store::{Store, noise, sha256, shown, soon, walk};

pub const KIB: usize = 1 << 10;
const KEYS: &[u8] = b"{\"login\": \"canary-of-the-keys\"}";

pub fn key(text: &str) -> Sha256 {
    sha256(text.as_bytes())
}

fn stored(folder: &Path, file: &str) -> StoredFile {
    let path = folder.join(file);
    let extents = Sha256::from_bytes(extent_digest(&path, &|_| Ok(())).unwrap());
    StoredFile { file: file.to_owned(), size: path.metadata().unwrap().len(), extents }
}

fn manifest(draft: &CheckpointDraft, text: &str, parent: Option<&str>) -> Manifest {
    let there = |file: &str| draft.folder().join(file).exists().then(|| stored(draft.folder(), file));
    Manifest {
        format: CHECKPOINT_FORMAT,
        id: draft.id().to_owned(),
        kind: CheckpointKind::Checkpoint,
        key: key(text),
        machine: MachineMark { digest: key("machine"), lines: vec!["cpu max".to_owned()] },
        base: BaseMark { name: "debian-12".to_owned(), version: "12.1.0".to_owned(), sha256: key("base") },
        parent: parent.map(str::to_owned),
        disks: there("disk0.qcow2").into_iter().collect(),
        memory: there("memory"),
        more: there("efivars").into_iter().collect(),
        steps: Vec::new(),
        created_at: "2026-03-04T05:06:07Z".to_owned(),
        kiln_version: "0.1.0".to_owned(),
    }
}

/// A draft with a disk of `disk` bytes.
pub fn draft(library: &Library, disk: usize) -> CheckpointDraft {
    let draft = library.draft_checkpoint().unwrap();
    std::fs::write(draft.folder().join("disk0.qcow2"), noise(disk, 70)).unwrap();
    draft
}

/// With a disk of 64 KiB and nothing else.
pub fn publish(library: &Library, text: &str, parent: Option<&str>) -> CheckpointLease {
    let draft = draft(library, 64 * KIB);
    let manifest = manifest(&draft, text, parent);
    draft.publish(manifest, KEYS).unwrap()
}

/// The same, used by nobody, and its id.
pub fn shelve(library: &Library, text: &str, parent: Option<&str>) -> String {
    publish(library, text, parent).manifest().id.clone()
}

pub fn ids(library: &Library) -> Vec<String> {
    let mut ids: Vec<String> =
        library.checkpoints().unwrap().into_iter().map(|shelved| shelved.manifest.id).collect();
    ids.sort();
    ids
}

/// Those of one key, newest first.
pub fn of_key(library: &Library, text: &str) -> Vec<Manifest> {
    let manifests = library.checkpoints().unwrap().into_iter().map(|shelved| shelved.manifest);
    manifests.filter(|manifest| manifest.key == key(text)).collect()
}

fn sorted<const N: usize>(ids: [&String; N]) -> Vec<String> {
    let mut ids: Vec<String> = ids.into_iter().cloned().collect();
    ids.sort();
    ids
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().permissions().mode() & 0o7777
}

pub fn home(library: &Library, id: &str) -> std::path::PathBuf {
    library.root().join("checkpoints").join(id)
}

pub fn record(library: &Library, id: &str) -> std::path::PathBuf {
    home(library, id).join("checkpoint.json")
}

/// As if it had last been used so long ago.
fn used(library: &Library, id: &str, ago: Duration) {
    File::open(record(library, id)).unwrap().set_modified(SystemTime::now() - ago).unwrap();
}

/// Writes where nobody should.
fn spoil(path: &Path, change: impl FnOnce(&File)) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    change(&File::options().write(true).open(path).unwrap());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o400)).unwrap();
}

fn in_tmp(library: &Library) -> usize {
    std::fs::read_dir(library.root().join("tmp")).unwrap().count()
}

fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

#[test]
fn the_manifest_has_this_form() {
    let store = Store::new();
    let draft = store.library.draft_checkpoint().unwrap();
    for (file, bytes) in [("disk0.qcow2", "disk"), ("memory", "ram"), ("efivars", "vars")] {
        std::fs::write(draft.folder().join(file), bytes).unwrap();
    }
    let parent = shelve(&store.library, "below", None);
    let mut manifest = manifest(&draft, "all", Some(&parent));
    manifest.steps.push(StepMark {
        title: "Shell \"install\"".to_owned(),
        inputs: vec![StepInput { what: "inline".to_owned(), sha256: key("apt-get install nginx") }],
        key: key("step 1"),
        made_at: "2026-03-04T05:00:00Z".to_owned(),
        networked: true,
    });
    let id = manifest.id.clone();
    let lease = draft.publish(manifest.clone(), KEYS).unwrap();
    assert_eq!(lease.manifest(), &manifest);
    let text = std::fs::read_to_string(record(&store.library, &id)).unwrap();
    expect![[r#"
        {
          "format": 1,
          "id": "ID",
          "kind": "checkpoint",
          "key": "5ef5ef0364b6939c4ca61f34b393f7b368d1be8619647aaf83d5b395919ab629",
          "machine": {
            "digest": "bc020a35b7f9cb1382e7b534c68e3c531d849b119bf14f75ddead6cc45c3ccc1",
            "lines": [
              "cpu max"
            ]
          },
          "base": {
            "name": "debian-12",
            "version": "12.1.0",
            "sha256": "cae662172fd450bb0cd710a769079c05bfc5d8e35efa6576edc7d0377afdd4a2"
          },
          "parent": "PARENT",
          "disks": [
            {
              "file": "disk0.qcow2",
              "size": 4,
              "extents": "947e81fbaf071ed48eec7508c7e0b0d14cba306a35f79e3a5c04f8a7f153c017"
            }
          ],
          "memory": {
            "file": "memory",
            "size": 3,
            "extents": "f406a5bdd46660379cd9dc8457e76de32a6890fa099dbb73ce8a2cca4a1e8b0d"
          },
          "more": [
            {
              "file": "efivars",
              "size": 4,
              "extents": "7c903bf13c29271eede3368dbb12b081c84fe8bdf054e66d321d518e4b1bf8ac"
            }
          ],
          "steps": [
            {
              "title": "Shell \"install\"",
              "inputs": [
                {
                  "what": "inline",
                  "sha256": "3bb07d253ae2caf7ef974efa1d8ce3ae6ca8d166936ec6945d50bcc94db1bd93"
                }
              ],
              "key": "9a2deff46ae163a6c486098a08b796b7f8d506fb0a25eeec025f306b33b79aeb",
              "madeAt": "2026-03-04T05:00:00Z",
              "networked": true
            }
          ],
          "createdAt": "2026-03-04T05:06:07Z",
          "kilnVersion": "0.1.0"
        }
    "#]]
    .assert_eq(&text.replace(&id, "ID").replace(&parent, "PARENT"));
    drop(lease);
    assert_eq!(of_key(&store.library, "all"), [manifest]);

    // What a later Kiln of the same format adds does not matter to this one; what it leaves out may be left out.
    let mut fields: serde_json::Value = serde_json::from_str(&text).unwrap();
    fields["kind"] = "image".into();
    fields["parent"] = serde_json::Value::Null;
    fields["weather"] = "fair".into();
    fields.as_object_mut().unwrap().remove("memory");
    fields.as_object_mut().unwrap().remove("more");
    std::fs::write(record(&store.library, &id), fields.to_string()).unwrap();
    let found = of_key(&store.library, "all");
    assert_eq!((found[0].kind, &found[0].memory), (CheckpointKind::Image, &None));
}

#[test]
fn a_checkpoint_appears_whole_where_it_was_said_and_closed_to_others() {
    let store = Store::new();
    let draft = draft(&store.library, 100 * KIB);
    let (id, folder, target) = (draft.id().to_owned(), draft.folder().to_owned(), draft.home());
    assert_eq!(target, home(&store.library, &id));
    assert_eq!(mode(&folder), 0o700);
    // Whatever its maker left it with.
    std::fs::write(folder.join("memory"), noise(3000, 71)).unwrap();
    std::fs::set_permissions(folder.join("memory"), std::fs::Permissions::from_mode(0o666)).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert!(ids(&store.library).is_empty());
    let manifest = manifest(&draft, "a", None);
    let lease = draft.publish(manifest.clone(), KEYS).unwrap();
    assert!(!folder.exists() && in_tmp(&store.library) == 0);
    for (path, expected) in [
        (store.library.root().join("checkpoints"), 0o700),
        (target.clone(), 0o700),
        (target.join("checkpoint.json"), 0o600),
        (target.join("keys.json"), 0o600),
        (target.join("disk0.qcow2"), 0o400),
        (target.join("memory"), 0o400),
    ] {
        assert_eq!(mode(&path), expected, "{}", path.display());
    }
    assert_eq!(lease.path_of(&manifest.disks[0]), target.join("disk0.qcow2"));
    assert_eq!(lease.path_of(manifest.memory.as_ref().unwrap()), target.join("memory"));
    assert_eq!(lease.keys().unwrap().as_slice(), KEYS);
    assert!(!format!("{lease:?}").contains("canary"));

    let shelved = store.library.checkpoints().unwrap().remove(0);
    let blocks: u64 = walk(&target).iter().map(|path| path.metadata().unwrap().blocks()).sum();
    assert_eq!(shelved.manifest, manifest);
    assert_eq!(shelved.bytes_on_disk, blocks * 512);
    assert!(shelved.in_use && shelved.last_used <= SystemTime::now());
    drop(lease);
    assert!(!store.library.checkpoints().unwrap()[0].in_use);
}

#[test]
fn a_hole_takes_no_room() {
    let store = Store::new();
    let draft = draft(&store.library, 4 * KIB);
    let memory = File::create(draft.folder().join("memory")).unwrap();
    memory.set_len(1 << 30).unwrap();
    memory.write_all_at(b"something", 512 << 20).unwrap();
    let manifest = manifest(&draft, "a", None);
    assert_eq!(manifest.memory.as_ref().unwrap().size, 1 << 30);
    let lease = draft.publish(manifest, KEYS).unwrap();
    assert!(store.library.checkpoints().unwrap()[0].bytes_on_disk < 1 << 20);
    drop(lease);
    assert_eq!(store.library.evict_checkpoints(1 << 20).unwrap(), Evicted::default());
}

#[test]
fn a_dropped_draft_leaves_nothing_and_a_torn_one_is_swept() {
    let store = Store::new();
    let dropped = draft(&store.library, KIB);
    let living = draft(&store.library, KIB);
    let torn = store.library.root().join("tmp/checkpoint-dead");
    std::fs::create_dir(&torn).unwrap();
    std::fs::write(torn.join("disk0.qcow2"), "half").unwrap();
    std::fs::set_permissions(torn.join("disk0.qcow2"), std::fs::Permissions::from_mode(0o400)).unwrap();
    drop(dropped);
    let again = Library::open(store.library.root()).unwrap();
    assert!(!torn.exists() && living.folder().join("disk0.qcow2").exists());
    assert_eq!(in_tmp(&again), 1);
    drop(living);
    assert!(store.files().is_empty(), "{:?}", store.files());
}

#[test]
fn a_manifest_that_is_not_the_folders_is_refused_and_nothing_appears() {
    type Change = fn(&CheckpointDraft, &mut Manifest);
    let cases: [(&str, Change); 14] = [
        ("another checkpoint", |_, manifest| manifest.id = "another".to_owned()),
        ("format 2", |_, manifest| manifest.format = 2),
        ("no disk", |_, manifest| manifest.disks.clear()),
        ("is an image", |_, manifest| {
            manifest.kind = CheckpointKind::Image;
            manifest.memory = Some(StoredFile { file: "memory".to_owned(), ..manifest.disks[0].clone() });
        }),
        ("not a file name", |_, manifest| manifest.disks[0].file = "../disk0.qcow2".to_owned()),
        ("not a file name", |_, manifest| manifest.disks[0].file = "/etc/passwd".to_owned()),
        ("not a file name", |_, manifest| manifest.disks[0].file = "..".to_owned()),
        ("not a file name", |_, manifest| manifest.disks[0].file = String::new()),
        ("twice", |_, manifest| manifest.more = manifest.disks.clone()),
        ("twice", |_, manifest| manifest.disks[0].file = "keys.json".to_owned()),
        ("`parent`", |_, manifest| manifest.parent = Some("../up".to_owned())),
        ("bytes, not", |_, manifest| manifest.disks[0].size += 1),
        ("no time", |_, manifest| manifest.created_at = "yesterday".to_owned()),
        ("does not list left.sock", |draft, _| std::fs::write(draft.folder().join("left.sock"), "").unwrap()),
    ];
    let store = Store::new();
    for (words, change) in cases {
        let draft = draft(&store.library, KIB);
        let mut manifest = manifest(&draft, "a", None);
        change(&draft, &mut manifest);
        let error = draft.publish(manifest, KEYS).unwrap_err();
        assert!(matches!(error, LibraryError::Contradiction { .. }), "{error}");
        assert!(error.to_string().contains(words), "{words}: {error}");
    }

    // A link would let somebody else write what was published.
    let linked = draft(&store.library, KIB);
    let outside = store.dir.path().join("outside");
    std::fs::write(&outside, "memory").unwrap();
    std::os::unix::fs::symlink(&outside, linked.folder().join("memory")).unwrap();
    let published = manifest(&linked, "a", None);
    let error = linked.publish(published, KEYS).unwrap_err();
    assert!(error.to_string().contains("regular"), "{error}");

    let large = draft(&store.library, KIB);
    let manifest = manifest(&large, "a", None);
    let error = large.publish(manifest, &vec![b'k'; 2 << 20]).unwrap_err();
    assert!(error.to_string().contains("too large"), "{error}");
    assert!(store.files().is_empty(), "{:?}", store.files());
}

#[test]
fn two_of_one_key_lie_side_by_side_and_the_newest_comes_first() {
    let store = Store::new();
    let mut published = Vec::new();
    // Texts that do not sort as their times do.
    for time in ["2026-03-04T05:06:07.5Z", "2026-03-04T05:06:07Z", "2026-03-04T07:06:08+02:00"] {
        let draft = draft(&store.library, KIB);
        let mut manifest = manifest(&draft, "same", None);
        manifest.created_at = time.to_owned();
        published.push(draft.publish(manifest, KEYS).unwrap());
    }
    publish(&store.library, "other", None);
    let order: Vec<&str> = [2, 0, 1].map(|place: usize| published[place].manifest().id.as_str()).to_vec();
    let found = of_key(&store.library, "same");
    assert_eq!(found.iter().map(|manifest| manifest.id.as_str()).collect::<Vec<_>>(), order);
    assert_eq!(ids(&store.library).len(), 4);
}

#[test]
fn a_lease_of_a_child_keeps_all_it_lies_on() {
    let store = Store::new();
    let library = &store.library;
    let a = shelve(library, "a", None);
    let b = shelve(library, "b", Some(&a));
    let c = shelve(library, "c", Some(&b));
    let other = shelve(library, "other", Some(&a));
    used(library, &a, minutes(60));
    let lease = library.lease_checkpoint(&c).unwrap().unwrap();
    let chain: Vec<&str> = lease.chain().iter().map(|link| link.manifest().id.as_str()).collect();
    assert_eq!(chain, [&c, &b, &a]);
    let below = &lease.chain()[2];
    assert_eq!(below.path_of(&below.manifest().disks[0]), home(library, &a).join("disk0.qcow2"));
    for shelved in library.checkpoints().unwrap() {
        assert_eq!(shelved.in_use, shelved.manifest.id != other, "{shelved:?}");
        assert!(shelved.last_used.elapsed().is_ok_and(|age| age < minutes(1)), "{shelved:?}");
    }
    for id in [&a, &b, &c] {
        let removed = library.remove_checkpoint(id).unwrap();
        assert!(matches!(removed, Removed::InUse { .. }), "{removed:?}");
    }
    // The only one that nobody uses.
    assert_eq!(library.evict_checkpoints(0).unwrap().ids, [other]);
    assert_eq!(ids(library), sorted([&a, &b, &c]));
    // Two at once, and the second one keeps it.
    let second = library.lease_checkpoint(&b).unwrap().unwrap();
    drop(lease);
    assert!(matches!(library.remove_checkpoint(&a).unwrap(), Removed::InUse { .. }));
    drop(second);
    let Removed::Gone(gone) = library.remove_checkpoint(&b).unwrap() else { panic!() };
    assert_eq!(gone.ids, [c, b]);
    assert!(gone.bytes >= 128 * KIB as u64, "{gone:?}");
    assert_eq!(ids(library), [a]);
    assert_eq!(in_tmp(library), 0);
}

#[test]
fn what_is_not_there_is_neither_leased_nor_removed() {
    let store = Store::new();
    for id in ["nothing", "", "..", "../images", "a/b"] {
        assert!(store.library.lease_checkpoint(id).unwrap().is_none());
        let error = store.library.remove_checkpoint(id).unwrap_err();
        assert!(matches!(error, LibraryError::NoSuchCheckpoint { .. }), "{error}");
    }
    assert!(store.library.root().join("images").exists());
    let draft = draft(&store.library, KIB);
    let manifest = manifest(&draft, "a", Some("missing"));
    let error = draft.publish(manifest, KEYS).unwrap_err();
    assert!(matches!(&error, LibraryError::NoSuchCheckpoint { id } if id == "missing"), "{error}");
    assert!(store.files().is_empty(), "{:?}", store.files());
}

#[test]
fn without_its_parent_a_checkpoint_is_not_leased_and_goes_first() {
    let store = Store::new();
    let library = &store.library;
    let old = shelve(library, "old", None);
    let parent = shelve(library, "parent", None);
    let child = shelve(library, "child", Some(&parent));
    used(library, &old, minutes(60));
    std::fs::remove_dir_all(home(library, &parent)).unwrap();
    assert!(library.lease_checkpoint(&child).unwrap().is_none());
    let total: u64 = library.checkpoints().unwrap().iter().map(|shelved| shelved.bytes_on_disk).sum();
    assert_eq!(library.evict_checkpoints(total - 1).unwrap().ids, [child]);
    assert_eq!(ids(library), [old]);
}

#[test]
fn the_least_recently_used_leaves_go_first() {
    let store = Store::new();
    let library = &store.library;
    let a = shelve(library, "a", None);
    let b = shelve(library, "b", Some(&a));
    let c = shelve(library, "c", Some(&a));
    let d = shelve(library, "d", None);
    // a is the oldest, but others lie on it.
    for (id, ago) in [(&a, 90), (&d, 30), (&b, 60), (&c, 10)] {
        used(library, id, minutes(ago));
    }
    let each = library.checkpoints().unwrap()[0].bytes_on_disk;
    assert!(library.checkpoints().unwrap().iter().all(|shelved| shelved.bytes_on_disk == each));
    assert_eq!(library.evict_checkpoints(4 * each).unwrap(), Evicted::default());
    assert_eq!(library.evict_checkpoints(4 * each - 1).unwrap(), Evicted { ids: vec![b], bytes: each });
    assert_eq!(library.evict_checkpoints(2 * each).unwrap().ids, [d]);
    assert_eq!(library.evict_checkpoints(0).unwrap(), Evicted { ids: vec![c, a], bytes: 2 * each });
    assert!(store.files().is_empty(), "{:?}", store.files());
}

/// The last use counts to the fraction of a second; nothing is told from the manifest's time of making, which is the same
/// for all of these.
#[test]
fn what_was_just_made_outlives_what_was_just_used() {
    let store = Store::new();
    let library = &store.library;
    let mut before = Vec::new();
    for round in 0..20 {
        let old = shelve(library, &format!("old {round}"), None);
        drop(library.lease_checkpoint(&old).unwrap().unwrap());
        let made = shelve(library, &format!("made {round}"), None);
        before.extend([old, made]);
    }
    assert_eq!(library.evict_checkpoints(0).unwrap().ids, before);
}

/// Its parent is used by whoever publishes it, and must still be there then.
#[test]
fn nothing_is_taken_from_under_a_draft() {
    let store = Store::new();
    let library = &store.library;
    let parent = shelve(library, "parent", None);
    let lease = library.lease_checkpoint(&parent).unwrap().unwrap();
    used(library, &parent, minutes(60));
    let draft = draft(library, KIB);
    let child = manifest(&draft, "child", Some(&parent));
    assert!(library.evict_checkpoints(0).unwrap().ids.is_empty());
    assert_eq!(library.remove_checkpoint(&parent).unwrap(), Removed::InUse { id: parent.clone() });
    let published = draft.publish(child, KEYS).unwrap();
    drop(lease);
    // Now the child's lease holds it.
    assert!(library.evict_checkpoints(0).unwrap().ids.is_empty());
    // Who publishes on it uses it.
    for shelved in library.checkpoints().unwrap() {
        assert!(shelved.last_used.elapsed().is_ok_and(|age| age < minutes(1)), "{shelved:?}");
    }
    let id = published.manifest().id.clone();
    drop(published);
    assert_eq!(library.evict_checkpoints(0).unwrap().ids, [id, parent]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_as_it_was_is_named() {
    let store = Store::new();
    let library = &store.library;
    let below = shelve(library, "below", None);
    let draft = draft(library, 300 * KIB);
    std::fs::write(draft.folder().join("memory"), noise(5 << 20, 72)).unwrap();
    std::fs::write(draft.folder().join("efivars"), noise(KIB, 73)).unwrap();
    let manifest = manifest(&draft, "top", Some(&below));
    let top = manifest.id.clone();
    let lease = draft.publish(manifest, KEYS).unwrap();
    library.verify_checkpoint(&lease, Verify::All, &soon()).await.unwrap();

    let disk = home(library, &top).join("disk0.qcow2");
    let cases = [
        (home(library, &top).join("memory"), &top, 3 << 20, false),
        (home(library, &top).join("efivars"), &top, 5, true),
        (disk.clone(), &top, 299 << 10, true),
        (home(library, &below).join("disk0.qcow2"), &below, 0, true),
    ];
    for (path, owner, place, matters_to_disks) in cases {
        let good = std::fs::read(&path).unwrap();
        let flipped = good[usize::try_from(place).unwrap()] ^ 1;
        spoil(&path, |file| file.write_all_at(&[flipped], place).unwrap());
        let error = library.verify_checkpoint(&lease, Verify::All, &soon()).await.unwrap_err();
        match &error {
            LibraryError::DamagedCheckpoint { id, path: named, what } => {
                assert_eq!((id, named), (owner, &path));
                assert!(what.contains("digest"), "{what}");
            }
            other => panic!("{other}"),
        }
        let disks = library.verify_checkpoint(&lease, Verify::DisksOnly, &soon()).await;
        assert_eq!(disks.is_err(), matters_to_disks, "{}", path.display());
        spoil(&path, |file| file.write_all_at(&good, 0).unwrap());
    }
    library.verify_checkpoint(&lease, Verify::All, &soon()).await.unwrap();

    spoil(&disk, |file| file.set_len(100).unwrap());
    let error = library.verify_checkpoint(&lease, Verify::DisksOnly, &soon()).await.unwrap_err();
    assert!(shown(&error).contains(disk.to_str().unwrap()), "{error}");
    assert!(error.to_string().contains("100 bytes"), "{error}");
    std::fs::remove_file(&disk).unwrap();
    let error = library.verify_checkpoint(&lease, Verify::DisksOnly, &soon()).await.unwrap_err();
    assert!(error.to_string().contains("it is gone"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_can_be_stopped() {
    let store = Store::new();
    let lease = publish(&store.library, "a", None);
    let control = soon();
    control.cancel();
    let error = store.library.verify_checkpoint(&lease, Verify::All, &control).await.unwrap_err();
    assert_eq!(error.interrupted(), Some(Interrupted::Canceled), "{error}");

    let draft = draft(&store.library, 64 << 20);
    let manifest = manifest(&draft, "large", None);
    let lease = draft.publish(manifest, KEYS).unwrap();
    // No host hashes that much in this time.
    let control = Control::ending_in(Duration::from_millis(3));
    let error = store.library.verify_checkpoint(&lease, Verify::All, &control).await.unwrap_err();
    assert_eq!(error.interrupted(), Some(Interrupted::DeadlinePassed), "{error}");
}

#[test]
fn a_newer_format_is_left_alone_with_all_it_lies_on() {
    let store = Store::new();
    let library = &store.library;
    let parent = shelve(library, "parent", None);
    let newer = shelve(library, "newer", Some(&parent));
    let text = format!("{{\"format\": 2, \"parent\": {parent:?}, \"disks\": \"elsewhere\"}}");
    std::fs::write(record(library, &newer), &text).unwrap();
    assert_eq!(ids(library), sorted([&parent]));
    for refused in [
        library.lease_checkpoint(&newer).map(|_| ()),
        library.remove_checkpoint(&newer).map(|_| ()),
        library.remove_checkpoint(&parent).map(|_| ()),
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error, LibraryError::NewerFormat { found: 2, known: 1, .. }), "{error}");
    }
    assert!(library.evict_checkpoints(0).unwrap().ids.is_empty());
    assert_eq!(std::fs::read_to_string(record(library, &newer)).unwrap(), text);
    assert!(library.lease_checkpoint(&parent).unwrap().is_some());
}

#[test]
fn a_damaged_one_hides_nothing_leads_nowhere_and_goes_first() {
    let store = Store::new();
    let library = &store.library;
    let good = shelve(library, "good", None);
    used(library, &good, minutes(60));
    let text = std::fs::read_to_string(record(library, &good)).unwrap();
    let outside = text.replace("disk0.qcow2", "../../../outside");
    let damaged: [&dyn Fn(&Path); 5] = [
        &|record| std::fs::write(record, "").unwrap(),
        &|record| std::fs::write(record, "{\"format\":1}").unwrap(),
        // Another's manifest.
        &|record| std::fs::write(record, &text).unwrap(),
        &|record| {
            let id = record.parent().unwrap().file_name().unwrap().to_str().unwrap();
            std::fs::write(record, outside.replace(&good, id)).unwrap();
        },
        &|record| std::fs::remove_file(record).unwrap(),
    ];
    for (case, damage) in damaged.into_iter().enumerate() {
        let bad = shelve(library, "bad", None);
        damage(&record(library, &bad));
        assert_eq!(ids(library), sorted([&good]), "case {case}");
        assert!(of_key(library, "bad").is_empty(), "case {case}");
        assert!(!matches!(library.lease_checkpoint(&bad), Ok(Some(_))), "case {case}");
        let room = library.checkpoints().unwrap()[0].bytes_on_disk;
        assert_eq!(library.evict_checkpoints(room).unwrap().ids, [bad], "case {case}");
    }
    let bad = shelve(library, "bad", None);
    std::fs::write(record(library, &bad), "").unwrap();
    assert!(matches!(library.remove_checkpoint(&bad).unwrap(), Removed::Gone(_)));

    // Without its keys nobody can log in to it.
    let bad = shelve(library, "bad", None);
    std::fs::remove_file(home(library, &bad).join("keys.json")).unwrap();
    assert!(library.lease_checkpoint(&bad).is_err());
    // Two that lie on each other end no question.
    let (one, two) = (shelve(library, "one", None), shelve(library, "two", None));
    for (id, parent) in [(&one, &two), (&two, &one)] {
        let mut fields: serde_json::Value =
            serde_json::from_slice(&std::fs::read(record(library, id)).unwrap()).unwrap();
        fields["parent"] = parent.as_str().into();
        std::fs::write(record(library, id), fields.to_string()).unwrap();
    }
    assert!(library.lease_checkpoint(&one).is_err());
    assert!(matches!(library.remove_checkpoint(&one).unwrap(), Removed::Gone(gone) if gone.ids.len() == 2));
    std::fs::create_dir(library.root().join("checkpoints/some body's")).unwrap();
    library.evict_checkpoints(0).unwrap();
    assert_eq!(std::fs::read_dir(library.root().join("checkpoints")).unwrap().count(), 1);
}

/// To be looked at with a clock: about how long it takes to read a full shelf.
#[test]
fn a_full_shelf_is_read_and_emptied() {
    let store = Store::new();
    let library = &store.library;
    let mut parent: Option<String> = None;
    for number in 0..300 {
        let id =
            shelve(library, &format!("key {}", number % 20), parent.as_deref().filter(|_| number % 10 != 0));
        parent = Some(id);
    }
    let begun = std::time::Instant::now();
    let shelf = library.checkpoints().unwrap();
    let read = begun.elapsed();
    for number in 0..20 {
        let key = key(&format!("key {number}"));
        assert_eq!(shelf.iter().filter(|shelved| shelved.manifest.key == key).count(), 15);
    }
    let begun = std::time::Instant::now();
    assert_eq!(library.evict_checkpoints(0).unwrap().ids.len(), 300);
    println!("300 checkpoints: read in {read:?}, evicted in {:?}", begun.elapsed());
}

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_guest::{GuestError, PlacedAs, UploadFailure, UploadFrom, Uploaded};
use kiln_host::digest::sha256_file;

use crate::proxy::Behaviour;
use crate::{Lab, control};

struct Source {
    dir: tempfile::TempDir,
    digest: [u8; 32],
}

impl Source {
    /// Bytes that no two blocks have in common.
    fn new(bytes: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut file = std::io::BufWriter::new(std::fs::File::create(dir.path().join("source")).unwrap());
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut left = bytes;
        while left > 0 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let word = state.to_le_bytes();
            let count = left.min(word.len());
            file.write_all(&word[..count]).unwrap();
            left -= count;
        }
        file.into_inner().unwrap();
        let digest = sha256_file(dir.path().join("source"), &mut |_| Ok(())).unwrap();
        Self { dir, digest }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("source")
    }
}

impl Lab {
    async fn put(&self, source: &Source, remote: &Path) -> Result<Uploaded, GuestError> {
        let remote = remote.to_str().unwrap();
        self.guest
            .upload(source.path().as_path().into(), remote, 0o644, source.digest, false, |_| (), &control())
            .await
    }

    /// What uploads write aside is hidden.
    fn leftovers(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.server.home()).unwrap();
        let hidden = |path: &PathBuf| path.file_name().unwrap().as_encoded_bytes().starts_with(b".");
        entries.map(|entry| entry.unwrap().path()).filter(hidden).collect()
    }
}

fn failure(outcome: Result<Uploaded, GuestError>) -> UploadFailure {
    match outcome {
        Err(GuestError::Upload { failure, .. }) => failure,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_large_file_arrives_whole() {
    let Some(lab) = Lab::start().await else { return };
    let source = Source::new(200 << 20);
    let remote = lab.server.home().join("large");
    let mut heard = Vec::new();
    let begin = Instant::now();
    let uploaded = lab
        .guest
        .upload(
            source.path().as_path().into(),
            remote.to_str().unwrap(),
            0o640,
            source.digest,
            false,
            |sent| heard.push(sent),
            &control(),
        )
        .await
        .unwrap();
    let seconds = begin.elapsed().as_secs_f64();
    println!("200 MiB in {seconds:.2} s, {:.0} MiB/s", 200.0 / seconds);
    assert_eq!(uploaded, Uploaded { bytes: 200 << 20, placed_as: PlacedAs::LoginUser });
    assert_eq!(sha256_file(&remote, &mut |_| Ok(())).unwrap(), source.digest);
    assert_eq!(std::fs::metadata(&remote).unwrap().permissions().mode() & 0o7777, 0o640);
    assert!(heard.is_sorted() && heard.last() == Some(&(200 << 20)));
    assert_eq!(lab.leftovers(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn empty_files_and_strange_names_arrive_too() {
    let Some(lab) = Lab::start().await else { return };
    for (bytes, name) in [(0, "empty"), (1, "it's a $(name) *"), (32 * 1024, "-rf"), (512 * 1024 + 1, "ä\\ö")]
    {
        let source = Source::new(bytes);
        let remote = lab.server.home().join(name);
        lab.put(&source, &remote).await.unwrap();
        assert_eq!(sha256_file(&remote, &mut |_| Ok(())).unwrap(), source.digest, "{name}");
    }
}

#[tokio::test]
async fn a_place_that_is_none_is_named_and_nothing_is_made() {
    let Some(lab) = Lab::start().await else { return };
    let source = Source::new(3 << 20);
    let home = lab.server.home();
    let missing = home.join("no/such");
    let failed = failure(lab.put(&source, &missing.join("file")).await);
    assert!(
        matches!(&failed, UploadFailure::NoDirectory { directory } if *directory == missing.to_string_lossy()),
        "{failed:?}"
    );
    assert!(failed.to_string().to_lowercase().contains("no such file"), "{failed}");
    assert!(!home.join("no").exists());

    std::fs::create_dir(home.join("folder")).unwrap();
    let failed = failure(lab.put(&source, &home.join("folder")).await);
    assert!(matches!(failed, UploadFailure::IsDirectory { .. }), "{failed:?}");
    symlink("nowhere/at/all", home.join("dangling")).unwrap();
    let failed = failure(lab.put(&source, &home.join("dangling")).await);
    assert!(matches!(failed, UploadFailure::NoDirectory { .. }), "{failed:?}");
    // Nobody can make files there, root neither.
    let failed = failure(lab.put(&source, Path::new("/proc/kiln")).await);
    assert!(matches!(failed, UploadFailure::Write { .. } | UploadFailure::Denied { .. }), "{failed:?}");
    let failed = failure(lab.put(&source, Path::new("relative")).await);
    assert!(matches!(failed, UploadFailure::BadDestination { .. }), "{failed:?}");
    assert_eq!(lab.leftovers(), Vec::<PathBuf>::new());
    // All on one link: none of these broke it.
    assert_eq!(lab.proxy.connections(), 1);
}

#[tokio::test]
async fn other_bytes_than_promised_never_get_the_name() {
    let Some(lab) = Lab::start().await else { return };
    let mut source = Source::new(100_000);
    let (right, remote) = (source.digest, lab.server.home().join("file"));
    std::fs::write(&remote, "old").unwrap();
    source.digest[31] ^= 1;
    let failed = failure(lab.put(&source, &remote).await);
    let UploadFailure::DigestMismatch { expected, got } = &failed else { panic!("{failed:?}") };
    assert_eq!(expected, &kiln_host::digest::hex(&source.digest));
    assert_eq!(got, &kiln_host::digest::hex(&right));
    assert_eq!(std::fs::read(&remote).unwrap(), b"old");
    assert_eq!(lab.leftovers(), Vec::<PathBuf>::new());
    let failed = failure(
        lab.guest
            .upload(Path::new("/no/such/source").into(), "/tmp/x", 0o644, right, false, |_| (), &control())
            .await,
    );
    assert!(matches!(failed, UploadFailure::Read(_)), "{failed:?}");
}

#[tokio::test]
async fn a_file_that_was_there_keeps_its_mode_and_a_link_is_followed() {
    let Some(lab) = Lab::start().await else { return };
    let source = Source::new(1000);
    let home = lab.server.home();
    std::fs::write(home.join("target"), "old").unwrap();
    std::fs::set_permissions(home.join("target"), std::fs::Permissions::from_mode(0o751)).unwrap();
    symlink("target", home.join("link")).unwrap();
    lab.put(&source, &home.join("link")).await.unwrap();
    assert!(home.join("link").is_symlink());
    assert_eq!(sha256_file(home.join("target"), &mut |_| Ok(())).unwrap(), source.digest);
    assert_eq!(std::fs::metadata(home.join("target")).unwrap().permissions().mode() & 0o7777, 0o751);
}

#[tokio::test]
async fn a_broken_link_is_mended_and_the_file_sent_again() {
    let Some(lab) = Lab::start().await else { return };
    let source = Source::new(30 << 20);
    let remote = lab.server.home().join("file");
    let mut cuts = 0;
    lab.guest
        .upload(
            source.path().as_path().into(),
            remote.to_str().unwrap(),
            0o644,
            source.digest,
            false,
            |sent| {
                if cuts < 2 && sent > 10 << 20 {
                    cuts += 1;
                    lab.proxy.cut();
                }
            },
            &control(),
        )
        .await
        .unwrap();
    assert_eq!(cuts, 2);
    assert_eq!(sha256_file(&remote, &mut |_| Ok(())).unwrap(), source.digest);
    // The parts that arrived are removed by the guest's side when it notices; that may be a moment later.
    crate::until(|| lab.leftovers().is_empty().then_some(())).await;
}

/// What it does with one is seen in a machine that has a drive.
#[tokio::test]
async fn a_guest_without_the_medium_says_so_and_is_as_it_was() {
    let Some(lab) = Lab::start().await else { return };
    let source = Source::new(1000);
    let remote = lab.server.home().join("file");
    let from = UploadFrom::Medium { label: "KILN-NOBODY-HAS-IT", name: "inputs/1", bytes: 1000 };
    let outcome = lab
        .guest
        .upload(from, remote.to_str().unwrap(), 0o644, source.digest, false, |_| (), &control())
        .await;
    let failure = failure(outcome);
    assert!(
        matches!(&failure, UploadFailure::NoMedium { detail } if detail.contains("KILN-NOBODY")),
        "{failure}"
    );
    assert!(!remote.exists() && lab.leftovers().is_empty());
}

#[tokio::test]
async fn a_link_that_dies_in_silence_does_not_hang_an_upload() {
    let Some(lab) = Lab::start_watchful().await else { return };
    let source = Source::new(30 << 20);
    let remote = lab.server.home().join("file");
    let mut silenced = None;
    let (path, control) = (source.path(), control());
    let begin = Instant::now();
    let upload = lab.guest.upload(
        path.as_path().into(),
        remote.to_str().unwrap(),
        0o644,
        source.digest,
        false,
        |sent| {
            if silenced.is_none() && sent > 5 << 20 {
                silenced = Some(());
                lab.proxy.behave(Behaviour::BlackHole);
            }
        },
        &control,
    );
    // The black hole stays until the link is found dead, then the network is back.
    let repair = async {
        lab.guest.link_lost().await;
        lab.proxy.behave(Behaviour::Pass);
    };
    let (uploaded, ()) = tokio::join!(upload, repair);
    uploaded.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_eq!(sha256_file(&remote, &mut |_| Ok(())).unwrap(), source.digest);
}

/// A PATH with only these programs on it.
fn tools(names: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, target) in names {
        symlink(target, dir.path().join(name)).unwrap();
    }
    dir
}

/// The digest of a large file takes long: who has gone meanwhile gets no file.
#[tokio::test]
async fn an_upload_that_nobody_waits_for_any_more_gets_no_name() {
    let tools = tempfile::tempdir().unwrap();
    let (asked, go_on) = (tools.path().join("asked"), tools.path().join("go-on"));
    let slow = tools.path().join("sha256sum");
    let script = format!(
        "#!/bin/sh\n: > {}\nwhile [ ! -e {} ]; do sleep 0.05; done\nexec /usr/bin/sha256sum \"$@\"\n",
        asked.display(),
        go_on.display()
    );
    std::fs::write(&slow, script).unwrap();
    std::fs::set_permissions(&slow, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", tools.path().display());
    let Some(lab) = Lab::start_with(&[("PATH", &path)]).await else { return };
    let source = Source::new(100_000);
    let remote = lab.server.home().join("file");
    let control = control();
    let (local, named) = (source.path(), remote.to_str().unwrap());
    let upload =
        lab.guest.upload(local.as_path().into(), named, 0o644, source.digest, false, |_| (), &control);
    let cancel = async {
        crate::until(|| asked.exists().then_some(())).await;
        control.cancel();
    };
    let (uploaded, ()) = tokio::join!(upload, cancel);
    assert!(uploaded.unwrap_err().interrupted().is_some());
    // The server has closed the command's channel when it answers the next one.
    lab.guest.exec("true", b"", &crate::control()).await.unwrap();
    std::fs::write(&go_on, "").unwrap();
    crate::until(|| lab.leftovers().is_empty().then_some(())).await;
    assert!(!remote.exists());
}

#[tokio::test]
async fn a_guest_without_sha256sum_takes_the_digest_with_what_it_has() {
    const BASE: [(&str, &str); 9] = [
        ("cat", "/bin/cat"),
        ("rm", "/bin/rm"),
        ("mv", "/bin/mv"),
        ("wc", "/usr/bin/wc"),
        ("chmod", "/bin/chmod"),
        ("chown", "/bin/chown"),
        ("stat", "/usr/bin/stat"),
        ("id", "/usr/bin/id"),
        ("readlink", "/bin/readlink"),
    ];
    let programs = [
        ("openssl", "/usr/bin/openssl"),
        ("busybox", "/bin/busybox"),
        ("shasum", "/usr/bin/shasum"),
        ("python3", "/usr/bin/python3"),
    ];
    let source = Source::new(100_000);
    for (name, path) in programs {
        if !Path::new(path).exists() {
            println!("not tried: no {path} here");
            continue;
        }
        let mut names = BASE.to_vec();
        names.push((name, path));
        // shasum is a Perl script.
        names.push(("perl", "/usr/bin/perl"));
        let tools = tools(&names);
        let lab = Lab::start_with(&[("PATH", tools.path().to_str().unwrap())]).await;
        let Some(lab) = lab else { return };
        let remote = lab.server.home().join("file");
        lab.put(&source, &remote).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert_eq!(sha256_file(&remote, &mut |_| Ok(())).unwrap(), source.digest);
        let mut wrong = Source::new(10);
        wrong.digest = source.digest;
        let failed = failure(lab.put(&wrong, &remote).await);
        assert!(matches!(failed, UploadFailure::DigestMismatch { .. }), "{name}: {failed:?}");
    }
    let tools = tools(&BASE);
    let Some(lab) = Lab::start_with(&[("PATH", tools.path().to_str().unwrap())]).await else { return };
    let failed = failure(lab.put(&source, &lab.server.home().join("file")).await);
    assert!(matches!(failed, UploadFailure::NoDigestProgram), "{failed:?}");
}

//! Base images in the library, by the real command: made by a recipe, imported, listed,
//! planned with, removed. The disks are small and empty; nothing boots.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::{Kiln, text};

/// A folder of images with one recipe, `tiny`, that does what `script` says.
fn images(kiln: &Kiln, script: &str) -> PathBuf {
    let images = kiln.home().join("images");
    std::fs::create_dir_all(images.join("tiny")).unwrap();
    std::fs::write(
        images.join("catalog.yaml"),
        "format: 1\nimages:\n  - name: tiny\n    platform:\n      \
         - {publisher: Debian, offer: debian-12, sku: \"12\", generation: V1}\n    os: linux\n    \
         generations: [V1]\n    arch: x86_64\n    login: cloud-init\n    format: qcow2\n    source:\n      \
         recipe:\n        folder: tiny\n",
    )
    .unwrap();
    let build = images.join("tiny/build.sh");
    std::fs::write(&build, format!("#!/bin/sh\nset -eu\n{script}\n")).unwrap();
    std::fs::set_permissions(&build, std::fs::Permissions::from_mode(0o755)).unwrap();
    images
}

/// What a recipe does, in small.
const MAKES_A_DISK: &str = r#"
echo "making a disk" >&2
qemu-img create -q -f qcow2 "$1" 64M
digest=$(sha256sum "$1" | cut -d" " -f1)
printf '{"format": 1, "name": "tiny", "imageSha256": "%s"}\n' "$digest" > "$1.provenance.json"
printf 'done\033]0;evil title\007\n' >&2
"#;

fn run(kiln: &Kiln, images: &std::path::Path, args: &[&str]) -> std::process::Output {
    kiln.command(args).env("KILN_IMAGES", images).output().unwrap()
}

#[test]
fn a_recipe_makes_an_image_that_is_listed_planned_with_and_removed() {
    let kiln = Kiln::new();
    let images = images(&kiln, MAKES_A_DISK);
    let shown = run(&kiln, &images, &["images", "show", "tiny"]);
    assert_eq!(shown.status.code(), Some(1), "not there yet");
    assert!(text(&shown.stderr).contains("kiln images build tiny"));

    let built = run(&kiln, &images, &["images", "build", "tiny"]);
    let stderr = text(&built.stderr);
    assert_eq!(built.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("making a disk"), "{stderr}");
    assert!(!stderr.contains('\u{1b}'), "a recipe's escape sequences reach nobody: {stderr:?}");
    assert!(!kiln.data().join("building/tiny").exists(), "its workplace is gone");

    // The same bytes again are not stored again.
    let again = run(&kiln, &images, &["images", "build", "tiny"]);
    assert_eq!(again.status.code(), Some(0), "{}", text(&again.stderr));
    assert!(text(&again.stderr).contains("byte for byte"), "{}", text(&again.stderr));

    let listed = run(&kiln, &images, &["images", "list", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed["format"], 1);
    let stored = listed["images"][0]["inLibrary"].as_array().unwrap();
    assert_eq!(stored.len(), 1, "{listed}");
    assert_eq!(stored[0]["virtualSize"], 64 << 20);
    let version = stored[0]["version"].as_str().unwrap().to_owned();
    let listed = text(&run(&kiln, &images, &["images", "list"]).stdout);
    assert!(listed.contains(&version) && listed.contains("Debian:debian-12:12"), "{listed}");
    assert_eq!(run(&kiln, &images, &["images", "show", "tiny"]).status.code(), Some(0));

    let template = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/templates/good.yaml");
    let planned = run(&kiln, &images, &["plan", template]);
    assert_eq!(planned.status.code(), Some(0), "{}", text(&planned.stderr));
    let plan = text(&planned.stdout);
    for part in [&format!("tiny {version}"), "Shell \"greet\": 1 line inline", "waagent", "hello.vhd"] {
        assert!(plan.contains(part), "no {part} in\n{plan}");
    }

    let removed = run(&kiln, &images, &["images", "remove", "tiny"]);
    assert_eq!(removed.status.code(), Some(0), "{}", text(&removed.stderr));
    let removed = run(&kiln, &images, &["images", "remove", "tiny"]);
    assert_eq!(removed.status.code(), Some(1));
    assert!(text(&removed.stderr).contains("no image named tiny"));
}

#[test]
fn a_failing_recipe_shows_its_last_words_and_leaves_nothing() {
    let kiln = Kiln::new();
    let images = images(&kiln, "touch \"$1\"; echo 'cannot find the frobnicator' >&2; exit 3");
    let output = run(&kiln, &images, &["images", "build", "tiny"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("exit status 3"), "{stderr}");
    assert!(stderr.contains("caused by: cannot find the frobnicator"), "{stderr}");
    assert!(!kiln.data().join("building/tiny").exists());

    let output = run(&kiln, &images, &["images", "pull", "tiny"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("kiln images build tiny"));
    let output = run(&kiln, &images, &["images", "build", "nosuch"]);
    assert!(text(&output.stderr).contains("tiny"), "the names there are: {}", text(&output.stderr));
}

#[test]
fn a_recipe_that_says_done_without_a_result_is_not_believed() {
    let kiln = Kiln::new();
    let images = images(&kiln, "true");
    let output = run(&kiln, &images, &["images", "build", "tiny"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("provenance.json"), "{}", text(&output.stderr));
}

#[test]
fn a_recipe_that_is_told_to_stop_clears_up_and_one_that_does_not_is_killed() {
    for (script, seconds) in [
        (
            "trap 'echo cleared >&2; rm -f \"$1\"; exit 9' TERM; touch \"$1\"; echo ready >&2; sleep 60 & wait",
            5,
        ),
        ("trap '' TERM; echo ready >&2; while :; do sleep 60; done", 25),
    ] {
        let kiln = Kiln::new();
        let images = images(&kiln, script);
        let mut child = kiln
            .command(&["images", "build", "tiny"])
            .env("KILN_IMAGES", &images)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let mut said = String::new();
        let mut byte = [0];
        while !said.contains("ready") {
            assert_eq!(stderr.read(&mut byte).unwrap(), 1, "ended early: {said}");
            said.push(char::from(byte[0]));
        }
        let began = Instant::now();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        stderr.read_to_string(&mut said).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("canceled"), "{said}");
        assert!(began.elapsed() < Duration::from_secs(seconds), "{:?}", began.elapsed());
        assert!(!kiln.data().join("building/tiny").exists());
    }
}

#[test]
fn two_builds_of_one_image_do_not_meet() {
    let kiln = Kiln::new();
    let images = images(&kiln, "echo ready >&2; sleep 60");
    let mut first = kiln
        .command(&["images", "build", "tiny"])
        .env("KILN_IMAGES", &images)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = first.stderr.take().unwrap();
    let mut said = String::new();
    let mut byte = [0];
    while !said.contains("ready") {
        assert_eq!(stderr.read(&mut byte).unwrap(), 1, "ended early: {said}");
        said.push(char::from(byte[0]));
    }
    let second = run(&kiln, &images, &["images", "build", "tiny"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("another process is building tiny"), "{}", text(&second.stderr));
    first.kill().unwrap();
    first.wait().unwrap();
}

#[test]
fn an_imported_image_is_found_by_its_platform_name() {
    let kiln = Kiln::new();
    let images = images(&kiln, "false");
    let disk = kiln.home().join("golden.img");
    std::fs::write(&disk, disk_with_a_partition()).unwrap();
    let import = |extra: &[&str]| {
        let args = [&["images", "import", "golden.img", "--name", "golden"], extra].concat();
        run(&kiln, &images, &args)
    };
    let bad = import(&["--platform", "Contoso:golden"]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(text(&bad.stderr).contains("PUBLISHER:OFFER:SKU"));
    let wrong = "0".repeat(64);
    let bad = import(&["--platform", "Contoso:linux:golden", "--generation", "1", "--sha256", &wrong]);
    assert_eq!(bad.status.code(), Some(1), "{}", text(&bad.stderr));

    let good = import(&["--platform", "Contoso:linux:golden", "--generation", "1", "--version", "1.2.3"]);
    assert_eq!(good.status.code(), Some(0), "{}", text(&good.stderr));
    assert!(text(&good.stderr).contains("golden 1.2.3"), "{}", text(&good.stderr));

    let template = kiln.home().join("t.yaml");
    let text_of_template =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/templates/good.yaml"))
            .unwrap()
            .replace("publisher: Debian", "publisher: CONTOSO")
            .replace("offer: debian-12", "offer: Linux")
            .replace("sku: \"12\"", "sku: golden");
    std::fs::write(&template, text_of_template).unwrap();
    let planned = run(&kiln, &images, &["plan", "t.yaml", "--json"]);
    assert_eq!(planned.status.code(), Some(0), "{}", text(&planned.stderr));
    let planned: serde_json::Value = serde_json::from_slice(&planned.stdout).unwrap();
    assert_eq!(planned["format"], 1);
    assert_eq!(planned["plan"]["source"]["version"], "1.2.3");
}

#[test]
fn an_installed_windows_is_imported_with_an_account_of_its_own() {
    let kiln = Kiln::new();
    let images = images(&kiln, "false");
    std::fs::write(kiln.home().join("eval.img"), disk_with_a_partition()).unwrap();
    let import = |extra: &[&str]| {
        let args = ["images", "import", "eval.img", "--name", "eval", "--version", "1", "--generation", "1"];
        run(&kiln, &images, &[&args[..], &["--platform", "Contoso:windows:eval"], extra].concat())
    };
    let own = ["--user", "builder", "--password-file", "eval.password"];
    let linux = import(&own);
    assert_eq!(linux.status.code(), Some(1));
    let stderr = text(&linux.stderr);
    assert!(stderr.contains("through cloud-init") && stderr.contains("--os windows"), "{stderr}");
    let half = import(&["--os", "windows", "--user", "builder"]);
    assert_eq!(half.status.code(), Some(2), "{}", text(&half.stderr));

    let imported =
        import(&[&own[..], &["--os", "windows", "--winrm-http", "--winrm-port", "15985"]].concat());
    assert_eq!(imported.status.code(), Some(0), "{}", text(&imported.stderr));
    let file = kiln.home().join("eval.password");
    let login =
        format!("its own account builder, password in {}, WinRM over HTTP on port 15985", file.display());
    assert!(text(&imported.stderr).contains(&format!("login by {login}")), "{}", text(&imported.stderr));
    let shown = text(&run(&kiln, &images, &["images", "show", "eval"]).stdout);
    assert!(shown.contains(&login), "{shown}");
    let shown = run(&kiln, &images, &["images", "show", "eval", "--json"]).stdout;
    let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
    let expected = serde_json::json!({
        "credentials": {"user": "builder", "passwordFile": file, "transport": "http", "port": 15985}
    });
    assert_eq!(shown["image"]["login"], expected);
    assert_eq!(shown["image"]["inLibrary"][0]["login"], expected);

    // What lies there is not changed by a second import, and that is said.
    let again = import(&["--os", "windows"]);
    assert_eq!(again.status.code(), Some(0), "{}", text(&again.stderr));
    assert!(text(&again.stderr).contains("keeps the login it was imported with"), "{}", text(&again.stderr));
}

#[test]
fn a_plan_fetches_its_inputs_and_shows_no_secret() {
    const CANARY: &str = "CANARY-6f1e";
    let kiln = Kiln::new();
    let images = images(&kiln, MAKES_A_DISK);
    assert!(run(&kiln, &images, &["images", "build", "tiny"]).status.success());

    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        let body = "echo from the server\n";
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        String::from_utf8(request).unwrap()
    });
    let address = format!("http://127.0.0.1:{port}/setup.sh?sig={CANARY}");
    let template = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/templates/good.yaml"))
        .unwrap()
        .replace("inline:\n        - echo hello", &format!("scriptUri: \"{address}\""));
    std::fs::write(kiln.home().join("t.yaml"), template).unwrap();

    let output =
        kiln.command(&["plan", "t.yaml", "--json", "-vv"]).env("KILN_IMAGES", &images).output().unwrap();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(serving.join().unwrap().contains(CANARY), "the server needs it");
    let planned: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(planned["inputs"][0]["size"], "echo from the server\n".len());
    assert_eq!(planned["inputs"][0]["address"], format!("http://127.0.0.1:{port}/setup.sh?<redacted>"));
    assert!(!stdout.contains(CANARY), "{stdout}");
    assert!(!stderr.contains(CANARY), "{stderr}");
}

/// 16 MiB with a partition table (MBR: entry at 446, signature at 510) and nothing else.
fn disk_with_a_partition() -> Vec<u8> {
    let mut disk = vec![0; 16 << 20];
    disk[446..462].copy_from_slice(&[0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 64, 0, 0]);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

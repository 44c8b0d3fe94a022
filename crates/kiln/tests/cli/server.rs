//! A server and the commands that talk to it, by the real binary. Nothing is built here.

use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::common::{Kiln, text};

/// A loaded machine takes its time.
const LIMIT: Duration = Duration::from_secs(60);

fn good() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/templates/good.yaml").display().to_string()
}

/// Expects success; what it printed.
#[track_caller]
fn printed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[track_caller]
fn object(output: &Output) -> Value {
    let value: Value = serde_json::from_str(&printed(output)).unwrap();
    assert_eq!(value["format"], 1, "{value:#}");
    value
}

/// Waits for something that a process brings about.
#[track_caller]
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < LIMIT, "waited in vain: {what}");
        // A file appears in another process.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `kiln serve`, killed when a test fails.
struct Serve {
    child: Child,
    log: PathBuf,
}

impl Serve {
    fn start(kiln: &Kiln, prepare: impl FnOnce(&mut Command)) -> Self {
        let log = kiln.home().join("serve.log");
        let mut command = kiln.command(&["serve", "--listen", "127.0.0.1:0"]);
        command.stdin(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
        prepare(&mut command);
        let child = command.spawn().unwrap();
        let mut serve = Self { child, log };
        until("the server serves", || {
            assert!(serve.child.try_wait().unwrap().is_none(), "{}", serve.log());
            kiln.data().join("server/endpoint.json").exists().then_some(())
        });
        serve
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn stop(mut self) -> String {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status = until("the server ends", || self.child.try_wait().unwrap());
        assert!(status.success(), "{status}: {}", self.log());
        self.log()
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_command_that_finds_no_server_is_one_meanwhile() {
    let kiln = Kiln::new();
    assert_eq!(object(&kiln.run(&["template", "list", "--json"]))["templates"], serde_json::json!([]));
    let put = kiln.run(&["template", "put", &good(), "--name", "mine", "--json"]);
    let template = object(&put)["template"].clone();
    assert_eq!(template["name"], "mine");
    assert_eq!(template["properties"]["provisioningState"], "Succeeded", "{template:#}");

    // The next one finds what it left.
    let list = printed(&kiln.run(&["template", "list"]));
    assert!(list.lines().nth(1).unwrap().starts_with("mine "), "{list}");
    let shown = printed(&kiln.run(&["template", "get", "mine"]));
    assert!(shown.contains("state        Succeeded"), "{shown}");
    assert_eq!(object(&kiln.run(&["template", "get", "mine", "--json"]))["template"]["name"], "mine");
    assert_eq!(object(&kiln.run(&["run", "list", "--json"]))["runs"], serde_json::json!([]));
    assert_eq!(object(&kiln.run(&["output", "list", "mine", "--json"]))["outputs"], serde_json::json!([]));
    assert_eq!(object(&kiln.run(&["gc", "--dry-run", "--json"]))["dryRun"], true);

    let again = kiln.run(&["template", "put", &good(), "--name", "mine"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("Conflict") && text(&again.stderr).contains("--replace"));
    printed(&kiln.run(&["template", "put", &good(), "--name", "mine", "--replace"]));

    for deleted in [true, false] {
        let delete = object(&kiln.run(&["template", "delete", "mine", "--json"]));
        assert_eq!(delete["deleted"], deleted);
    }
    let gone = kiln.run(&["template", "get", "mine"]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(text(&gone.stderr).contains("the server has no template mine"), "{}", text(&gone.stderr));
}

#[test]
fn commands_at_once_meet() {
    let kiln = Kiln::new();
    let children: Vec<Child> = ["a", "b", "c", "d"]
        .iter()
        .map(|name| {
            let mut command = kiln.command(&["template", "put", &good(), "--name", name]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in children {
        printed(&child.wait_with_output().unwrap());
    }
    let list = object(&kiln.run(&["template", "list", "--json"]));
    let names: Vec<&str> =
        list["templates"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "b", "c", "d"]);
}

#[test]
fn files_of_this_host_are_sent_along() {
    let kiln = Kiln::new();
    let script = kiln.home().join("my script.sh");
    std::fs::write(&script, "#!/bin/sh\necho hi\n").unwrap();
    let address = format!("file://{}", script.display().to_string().replace(' ', "%20"));
    let template = std::fs::read_to_string(good()).unwrap();
    let customize = format!("  customize:\n    - {{type: Shell, name: s, scriptUri: \"{address}\"}}\n");
    let file = kiln.home().join("t.yaml");
    let start = template.find("  customize:").unwrap();
    let end = start + template[start..].find("  distribute:").unwrap();
    std::fs::write(&file, format!("{}{customize}{}", &template[..start], &template[end..])).unwrap();
    printed(&kiln.run(&["template", "put", file.to_str().unwrap(), "--name", "t"]));

    std::fs::remove_file(&script).unwrap();
    let missing = kiln.run(&["template", "put", file.to_str().unwrap(), "--name", "u"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("my script.sh"), "{}", text(&missing.stderr));
}

#[test]
fn a_bad_template_is_not_sent() {
    let kiln = Kiln::new();
    let bad = good().replace("good.yaml", "bad.jsonc");
    let output = kiln.run(&["template", "put", &bad, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let refused: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!refused["problems"].as_array().unwrap().is_empty());
    assert!(!kiln.data().join("server").exists(), "no server was needed to find out");
}

#[test]
fn a_server_is_found_by_socket_and_by_address() {
    let kiln = Kiln::new();
    let notified = UnixDatagram::bind(kiln.home().join("notify")).unwrap();
    notified.set_read_timeout(Some(LIMIT)).unwrap();
    let told = || {
        let mut buffer = [0; 512];
        let length = notified.recv(&mut buffer).unwrap();
        text(&buffer[..length])
    };
    let serve = Serve::start(&kiln, |command| {
        command.env("NOTIFY_SOCKET", kiln.home().join("notify"));
    });
    assert!(told().starts_with("READY=1\nSTATUS=serving https://localhost:"));
    let log = serve.log();
    let secret = std::fs::read_to_string(kiln.data().join("server/operator.secret")).unwrap();
    assert!(log.contains("server/tls/ca.pem") && log.contains("server/operator.secret"), "{log}");

    printed(&kiln.run(&["template", "put", &good(), "--name", "mine"]));
    let doctor = kiln.command(&["doctor", "--json"]).env("PATH", "/nonexistent").output().unwrap();
    assert!(text(&doctor.stdout).contains("builds are done there"), "{}", text(&doctor.stdout));

    // From somewhere else: by address, with who one is and whom one trusts.
    let setup = object(&kiln.run(&["az-setup", "--json"]));
    let of = |key: &str| setup[key].as_str().unwrap().to_owned();
    let elsewhere = Kiln::new();
    let remote = |secret: &str, more: &[&str]| {
        let mut args = vec!["template", "list", "--json", "--server"];
        let url = of("url");
        args.push(&url);
        args.extend(more);
        let mut command = elsewhere.command(&args);
        command.env("KILN_CLIENT_ID", of("clientId")).env("KILN_CLIENT_SECRET_FILE", secret);
        command.output().unwrap()
    };
    let ca = of("caFile");
    let list = object(&remote(&of("secretFile"), &["--ca-file", &ca]));
    assert_eq!(list["templates"][0]["name"], "mine");
    let untrusted = remote(&of("secretFile"), &[]);
    assert_eq!(untrusted.status.code(), Some(1));
    assert!(text(&untrusted.stderr).contains("--ca-file"), "{}", text(&untrusted.stderr));
    let wrong = elsewhere.home().join("wrong");
    std::fs::write(&wrong, "CANARY-secret\n").unwrap();
    let denied = remote(wrong.to_str().unwrap(), &["--ca-file", &ca]);
    assert_eq!(denied.status.code(), Some(1));
    let said = text(&denied.stderr);
    assert!(said.contains("cannot sign in") && !said.contains("CANARY"), "{said}");
    assert!(!elsewhere.data().exists(), "a server elsewhere needs no folder here");

    // A second server is told; a reload is heard.
    let second = kiln.run(&["serve", "--listen", "127.0.0.1:0"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("already"), "{}", text(&second.stderr));
    kill_process(Pid::from_child(&serve.child), Signal::HUP).unwrap();
    assert!(told().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert!(told().starts_with("READY=1\n"));

    let log = serve.stop();
    assert!(told().starts_with("STOPPING=1"));
    assert!(log.contains("runs under way go on"), "{log}");
    let change = log.lines().find(|line| line.contains("imageTemplates/write")).unwrap();
    assert!(change.contains("uid:"), "who it was: {change}");
    assert!(!log.contains(secret.trim()) && !log.contains("CANARY"), "{log}");
}

#[test]
fn a_server_that_was_killed_is_not_in_the_way_of_the_next() {
    let kiln = Kiln::new();
    let mut serve = Serve::start(&kiln, |_| {});
    printed(&kiln.run(&["template", "list"]));
    serve.child.kill().unwrap();
    serve.child.wait().unwrap();
    let endpoint = kiln.data().join("server/endpoint.json");
    std::fs::remove_file(&endpoint).unwrap();
    let serve = Serve::start(&kiln, |_| {});
    printed(&kiln.run(&["template", "list"]));
    serve.stop();
    assert!(!endpoint.exists());
    printed(&kiln.run(&["template", "list"]));
}

#[test]
fn az_setup_of_a_server_that_never_was_says_what_to_do() {
    let output = Kiln::new().run(&["az-setup"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("kiln serve"), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty());
}

#[test]
fn the_example_is_a_configuration_and_unknown_keys_are_none() {
    let kiln = Kiln::new();
    let example = printed(&kiln.run(&["serve", "--example-config"]));
    let file = kiln.home().join("kiln.yaml");
    std::fs::write(&file, format!("{example}\nnonsense: 1\n")).unwrap();
    let output = kiln.run(&["serve", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("nonsense"), "{}", text(&output.stderr));
    // As it is, it is good: what is wrong then is the address on the command line.
    std::fs::write(&file, &example).unwrap();
    let output = kiln.run(&["serve", "--config", file.to_str().unwrap(), "--listen", "nonsense"]);
    assert!(text(&output.stderr).contains("HOST:PORT"), "{}", text(&output.stderr));
}

#[test]
fn a_secret_is_hashed_from_standard_input() {
    let hash = |secret: &[u8]| {
        let mut child = Kiln::new()
            .command(&["serve", "--hash-secret"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(secret).unwrap();
        child.wait_with_output().unwrap()
    };
    let (one, two) = (printed(&hash(b"CANARY")), printed(&hash(b"CANARY\n")));
    assert!(one.starts_with("$argon2id$") && one.lines().count() == 1, "{one}");
    assert_ne!(one, two, "salted");
    assert!(!(one + &two).contains("CANARY"));
    assert_eq!(hash(b"").status.code(), Some(1));
}

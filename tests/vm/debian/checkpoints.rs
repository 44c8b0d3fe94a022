//! What is kept of a build, with a guest that people use: systemd, cloud-init, OpenSSH.

use kiln_tests::disk::Disk;
use kiln_tests::kiln::Kiln;
use kiln_tests::server::{Answer, Server};
use kiln_tests::template::{Template, debian};
use serde_json::json;

/// One cold boot; then two builds at once that go on from it, and one after a restart of the guest.
#[test]
fn builds_go_on_from_one_that_was_kept() {
    let kiln = Kiln::new().env("KILN_CHECKPOINTS", "8G");
    let server = Server::start([("/file", Answer::Bytes(b"from the network\n".to_vec()))]);
    // The host, as a guest of user-mode networking sees it.
    let port = server.url("/file").rsplit(':').next().unwrap().split('/').next().unwrap().to_owned();
    let fetch = format!(
        "exec 3<>/dev/tcp/10.0.2.2/{port}; printf 'GET /file HTTP/1.0\\r\\nHost: h\\r\\n\\r\\n' >&3; tail -n 1 <&3"
    );
    let template = |last: &str, out: &str| -> Template {
        debian()
            .vm_size("Standard_B1s")
            .shell("first", ["for i in $(seq 50); do echo $i | sudo tee /srv/f$i > /dev/null; done"])
            .shell("last", [
                "#!/bin/bash -e",
                "sudo sh -c 'head -c 32 /dev/urandom | od -An -tx1 > /srv/random; date +%s > /srv/clock'",
                "systemctl list-units --type=timer --state=active --plain --no-legend | sudo tee /srv/timers",
                &format!("({fetch}) | sudo tee /srv/fetched"),
                last,
            ])
            .with("distribute", json!([{ "type": "VHD", "runOutputName": out }]))
    };
    let fresh = kiln.build(&template("echo 0", "fresh")).succeeded();
    // A machine that goes on restarts as one that was booted does: with this run's keys, and as the same to cloud-init.
    let restarting = template("echo 1", "one")
        .shell("restart", ["sudo systemctl reboot; sleep 600"])
        .shell("after", ["cat /proc/sys/kernel/random/boot_id | sudo tee /srv/boot"]);
    let running = kiln.start(&restarting);
    running.until_step("restore");
    let two = kiln.start(&template("echo 2", "two")).wait().succeeded();
    let one = running.wait().succeeded();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let mut seen = Vec::new();
    for ended in [&fresh, &one, &two] {
        let disk = Disk::open(&ended.vhd());
        seen.push(disk.text("/srv/random"));
        let clock: u64 = disk.text("/srv/clock").trim().parse().unwrap();
        assert!(now.abs_diff(clock) < 15 * 60, "the guest's clock says {clock}, and it is {now}");
        assert_eq!(disk.text("/srv/timers"), "", "a timer was not held");
        assert!(disk.text("/srv/fetched").contains("from the network"));
        assert_eq!(disk.text("/etc/machine-id"), "");
        assert!(!disk.text("/etc/passwd").contains("packer"));
        assert_eq!(disk.names("/srv").iter().filter(|name| name.starts_with('f')).count(), 51);
        assert!(
            !disk.names("/etc/ssh").iter().any(|name| name.starts_with("ssh_host_")),
            "no host key of a build"
        );
    }
    for ended in [&one, &two] {
        let said = ended.notices("info").join("\n");
        assert!(said.contains("Shell \"first\" is reused: the machine as it was kept"), "{said}");
        assert!(!ended.steps_done().contains(&"boot".into()), "{said}");
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3, "the same randomness in two guests");

    let done = one.steps_done();
    assert!(done.contains(&"checkpoint/4".into()), "the one that restarted was kept, too: {done:?}");
    assert!(Disk::open(&one.vhd()).exists("/srv/boot"));
}

//! What scripts can do to their guest, and what becomes of the build then.

use std::time::Duration;

use kiln_tests::disk::Disk;
use kiln_tests::kiln::Kiln;
use kiln_tests::template::tiny;
use serde_json::json;

#[test]
fn a_step_that_reboots_is_done_and_not_run_again() {
    let kiln = Kiln::new();
    let template = tiny()
        .shell(
            "reboot",
            ["cat /proc/sys/kernel/random/boot_id | sudo tee -a /srv/boots", "sudo reboot", "sleep 600"],
        )
        .shell("after", ["cat /proc/sys/kernel/random/boot_id | sudo tee -a /srv/boots"]);
    let ended = kiln.build(&template).succeeded();
    let boots = Disk::open(&ended.vhd()).text("/srv/boots");
    let boots: Vec<&str> = boots.lines().collect();
    assert_eq!(boots.len(), 2, "each step ran once: {boots:?}");
    assert_ne!(boots[0], boots[1], "and the guest did restart in between");
    assert!(ended.log().contains("is not run again"), "{}", ended.log());
}

/// `reboot` as the last command ends the script with 0 before the guest goes down.
#[test]
fn a_script_that_ends_with_reboot_is_waited_for() {
    let kiln = Kiln::new();
    let template = tiny()
        .shell("reboot", ["cat /proc/sys/kernel/random/boot_id | sudo tee -a /srv/boots", "sudo reboot"])
        .shell("after", ["cat /proc/sys/kernel/random/boot_id | sudo tee -a /srv/boots"]);
    let ended = kiln.build(&template).succeeded();
    let boots = Disk::open(&ended.vhd()).text("/srv/boots");
    let boots: Vec<&str> = boots.lines().collect();
    assert_eq!(boots.len(), 2, "{boots:?}");
    assert_ne!(boots[0], boots[1]);
}

/// A crash is no restart: the step is neither done nor run again, whether what was known
/// of it had reached the disk by then or not.
fn assert_reset_fails(before: &str) {
    let kiln = Kiln::new();
    let template = tiny().shell("reset", [before, "echo b | sudo tee /proc/sysrq-trigger", "sleep 600"]);
    let running = kiln.start(&template.timeout_minutes(4));
    let ended = running.wait().failed();
    assert_eq!(ended.failed_step(), "Shell \"reset\"");
    let cause = ended.cause();
    assert!(cause.contains("reset") && cause.contains("without an orderly shutdown"), "{cause}");
    assert_eq!(ended.run_file("serial.log").matches("sysrq: Resetting").count(), 1, "the step ran once");
    kiln.assert_nothing_left();
}

#[test]
fn a_reset_without_a_shutdown_fails_the_step() {
    // Past the file system's commit interval.
    assert_reset_fails("sleep 8");
}

#[test]
fn a_reset_at_once_fails_the_step() {
    assert_reset_fails("true");
}

#[test]
fn a_panic_is_named() {
    let kiln = Kiln::new();
    let ended =
        kiln.build(&tiny().shell("crash", ["echo c | sudo tee /proc/sysrq-trigger", "sleep 600"])).failed();
    assert!(ended.cause().contains("panic"), "{}", ended.cause());
    let console = ended.run_file("serial.log");
    let last = console.lines().last().unwrap().trim();
    assert!(
        last.len() > 5 && ended.stderr.contains(last),
        "the console's last lines are shown: {}",
        ended.stderr
    );
    kiln.assert_nothing_left();
}

/// A guest that turns itself off in the middle is no finished image.
#[test]
fn a_guest_that_powers_off_fails_the_build() {
    let kiln = Kiln::new();
    let ended = kiln.build(&tiny().shell("off", ["sudo poweroff", "sleep 600"])).failed();
    assert!(ended.cause().contains("the guest shut itself down"), "{}", ended.cause());
    kiln.assert_nothing_left();
}

/// Scripts run detached: a lost link is not a lost step, and no line of output is lost or doubled.
#[test]
fn a_lost_link_is_not_a_lost_step() {
    let kiln = Kiln::new();
    let template = tiny().shell(
        "noisy",
        ["i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo \"line $i.\"; \
          if [ $((i % 60)) = 0 ]; then until sudo killall -9 dropbear; do usleep 10000; done; fi; \
          usleep 20000; done"],
    );
    let ended = kiln.build(&template).succeeded();
    let log = ended.log();
    for number in 1..=200 {
        assert_eq!(log.matches(&format!("line {number}.")).count(), 1, "line {number}");
    }
}

/// A deprovisioning script of the template's own takes the default's place, is printed, and goes.
#[test]
fn the_templates_deprovisioning_script_is_used() {
    let kiln = Kiln::new();
    let script = "echo deprovisioned as $(id -un) | tee /srv/deprovisioned";
    let template =
        tiny().shell("override", [format!("echo '{script}' > /tmp/DeprovisioningScript.sh").as_str()]);
    let ended = kiln.build(&template).succeeded();
    let disk = Disk::open(&ended.vhd());
    assert_eq!(disk.text("/srv/deprovisioned"), "deprovisioned as root\n");
    assert!(!disk.exists("/tmp/DeprovisioningScript.sh"));
    assert!(ended.log().contains(script), "printed into the log: {}", ended.log());
    assert!(ended.log().contains("deprovisioned as root"), "{}", ended.log());
}

#[test]
fn a_failing_deprovisioning_script_fails_the_build() {
    let kiln = Kiln::new();
    let ended =
        kiln.build(&tiny().shell("override", ["echo 'exit 9' > /tmp/DeprovisioningScript.sh"])).failed();
    assert!(ended.cause().contains("deprovision") && ended.cause().contains('9'), "{}", ended.cause());
    kiln.assert_nothing_left();
}

/// Azure's agent is not there: said, and Kiln's own clean-up done.
#[test]
fn a_guest_without_waagent_is_warned_about() {
    let kiln = Kiln::new();
    let ended = kiln.build(&tiny()).succeeded();
    assert!(
        ended.notices("warning").iter().any(|text| text.contains("no waagent")),
        "{:?}",
        ended.notices("warning")
    );
    assert!(ended.log().contains("WARNING: the guest has no waagent"), "{}", ended.log());
}

/// What counts is whether the agent is there at the end: the usual way to have it is to install it.
#[test]
fn a_waagent_that_a_customizer_brought_deprovisions_the_guest() {
    let kiln = Kiln::new();
    let agent = "#!/bin/sh\\necho \"$@\" >> /srv/agent\\n";
    let install = format!("printf '{agent}' | sudo tee /usr/sbin/waagent");
    let template = tiny().shell("agent", [install.as_str(), "sudo chmod 755 /usr/sbin/waagent"]);
    let ended = kiln.build(&template).succeeded();
    assert!(ended.log().contains("Deprovisioning with the default command:"), "{}", ended.log());
    assert!(!ended.log().contains("WARNING"), "{}", ended.log());
    // The service's line: its version first, then the work.
    let disk = Disk::open(&ended.vhd());
    assert_eq!(disk.text("/srv/agent"), "-version\n-force -deprovision+user\n");
}

#[test]
fn files_go_where_the_contract_says() {
    let kiln = Kiln::new();
    let (small, other) = (kiln.path().join("small.txt"), kiln.path().join("a name with blanks"));
    std::fs::write(&small, "small\n").unwrap();
    std::fs::write(&other, [0_u8, 255, b'\n', b'\'']).unwrap();
    let url = |path: &std::path::Path| format!("file://{}", path.display().to_string().replace(' ', "%20"));
    let template = tiny()
        .file("full path", &url(&small), "/tmp/renamed.txt")
        .file("folder", &url(&small), "/tmp/")
        .file("blanks", &url(&other), "/tmp/it's here")
        .file("outside /tmp", &url(&small), "/srv/root.txt")
        .shell(
            "keep",
            ["sudo mkdir /srv/kept", "sudo mv /tmp/renamed.txt /tmp/small.txt \"/tmp/it's here\" /srv/kept"],
        );
    let ended = kiln.build(&template).succeeded();
    let disk = Disk::open(&ended.vhd());
    assert_eq!(disk.text("/srv/kept/renamed.txt"), "small\n");
    assert_eq!(disk.text("/srv/kept/small.txt"), "small\n");
    assert_eq!(disk.read("/srv/kept/it's here").unwrap(), [0, 255, b'\n', b'\'']);
    assert_eq!(disk.text("/srv/root.txt"), "small\n");
}

#[test]
fn a_missing_destination_folder_is_named_and_not_made() {
    let kiln = Kiln::new();
    let source = kiln.path().join("x");
    std::fs::write(&source, "x").unwrap();
    let template = tiny().file("place", &format!("file://{}", source.display()), "/tmp/no/such/x");
    let ended = kiln.build(&template).failed();
    assert_eq!(ended.failed_step(), "File \"place\"");
    for part in ["Error uploading", "/tmp/no/such"] {
        assert!(ended.cause().contains(part), "{}", ended.cause());
    }
    kiln.assert_nothing_left();
}

/// A script written on a Windows, with a payload behind its last command; and what it prints when a Linux runs it.
fn large_script() -> (Vec<u8>, String) {
    let mut script = b"#!/bin/sh\r\ntail -n +4 \"$0\" | sha256sum\r\nid -un; exit 0\r\n".to_vec();
    let mut state = 1_u32;
    let payload: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24).to_le_bytes()[0]
    })
    .take(5 << 20)
    .collect();
    script.extend_from_slice(&payload);
    // As the service does it: every line end becomes a Linux' own, also of bytes that are no text.
    let unix: Vec<u8> = (0..payload.len())
        .filter(|&at| payload[at] != b'\r' || payload.get(at + 1) != Some(&b'\n'))
        .map(|at| payload[at])
        .collect();
    assert!(unix.len() < payload.len());
    let digest = kiln_host::digest::hex(&kiln_host::digest::sha256(&unix));
    (script, format!(" azure-arm: {digest}  -\n"))
}

/// Files and large scripts travel on a medium; to a guest that cannot read it they go over the connection, and it is said
/// once.
#[test]
fn files_and_large_scripts_come_by_medium_or_over_the_connection() {
    let kiln = Kiln::new();
    let source = |name: &str, bytes: &[u8]| {
        let path = kiln.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        format!("file://{}", path.display())
    };
    let (script, printed) = large_script();
    let (one, two, script) = (source("one", b"one\n"), source("two", b"two\n"), source("script", &script));
    let large = |name: &str| json!({ "type": "Shell", "name": name, "scriptUri": script });
    let template = tiny()
        .file("by medium", &one, "/tmp/one")
        .customizer(large("large by medium"))
        // A drive that lets nobody read: no medium, as far as this guest knows.
        .shell("hide", ["sudo mv /dev/sr0 /dev/hidden"])
        .file("by link", &two, "/tmp/two")
        .file("by link again", &one, "/srv/three")
        .customizer(large("large by link"))
        .shell(
            "look",
            [
                "cat /tmp/one /tmp/two /srv/three; mount | grep -c iso9660 || echo nothing is mounted",
                "ls -a ~ /tmp /var/tmp | grep -e _placed -e kiln-upload || echo no script is left",
            ],
        );
    let ended = kiln.build(&template).succeeded();
    let log = ended.log();
    for line in ["one", "two", "nothing is mounted", "no script is left"] {
        assert!(log.contains(&format!(" azure-arm: {line}\n")), "no line {line:?} in\n{log}");
    }
    assert_eq!(log.matches(&printed).count(), 2, "{printed} is not there twice in\n{log}");
    assert_eq!(log.matches(" azure-arm: root\n").count(), 2, "{log}");
    let events = ended.run_file("events.jsonl");
    for (word, times) in [
        ("by medium, digest", 2),
        ("over the connection, digest", 3),
        ("; its script of ", 2),
        ("the guest cannot read its medium", 1),
    ] {
        assert_eq!(events.matches(word).count(), times, "{word} in\n{events}");
    }
    // Written while the machine comes up, which its seed alone is enough for.
    let order: Vec<_> = ended
        .events
        .iter()
        .map(|line| (line["event"]["kind"].as_str().unwrap(), line["event"]["step"]["id"].as_str()))
        .filter(|(_, step)| matches!(step, Some("machine" | "connect" | "medium")))
        .collect();
    let at = |kind, step| order.iter().position(|event| *event == (kind, Some(step))).unwrap();
    assert!(at("stepEnded", "machine") < at("stepStarted", "medium"), "{order:?}");
    assert!(at("stepStarted", "medium") < at("stepEnded", "connect"), "{order:?}");
}

#[test]
fn a_full_guest_disk_is_named() {
    let kiln = Kiln::new();
    let source = kiln.path().join("large");
    std::fs::File::create(&source).unwrap().set_len(160 << 20).unwrap();
    let template = tiny().file("large", &format!("file://{}", source.display()), "/tmp/large");
    let ended = kiln.build(&template).failed();
    assert!(ended.cause().contains("disk is full"), "{}", ended.cause());
    kiln.assert_nothing_left();
}

#[test]
fn powershell_without_pwsh_says_what_to_do() {
    let kiln = Kiln::new();
    let template =
        tiny().customizer(json!({ "type": "PowerShell", "name": "ps", "inline": ["Write-Output hello"] }));
    let ended = kiln.build(&template).failed();
    assert!(
        ended.cause().contains("no PowerShell") && ended.cause().contains("Shell customizer"),
        "{}",
        ended.cause()
    );
}

/// A daemon that a script leaves behind does not hold the step up.
#[test]
fn a_background_process_does_not_hold_a_step() {
    let kiln = Kiln::new();
    let running = kiln.start(&tiny().shell("daemon", ["sleep 900 &", "echo started"]));
    let ended = running.wait().succeeded();
    assert!(ended.took < Duration::from_secs(120), "{:?}", ended.took);
}

/// Much output, no line feed, no text: nothing of it hurts, and terminal escapes do not reach the terminal.
#[test]
fn wild_output_is_tame_in_the_log() {
    let kiln = Kiln::new();
    let template = tiny().shell(
        "wild",
        [
            "head -c 20000000 /dev/urandom",
            "head -c 3000000 /dev/zero | tr '\\0' x",
            "echo; printf '\\033]0;title\\007\\033[2J'; echo end of it",
        ],
    );
    let ended = kiln.build(&template).succeeded();
    let log = std::fs::read(ended.run_dir.as_ref().unwrap().join("customization.log")).unwrap();
    assert!(log.len() > 20_000_000, "{} bytes", log.len());
    assert!(log.windows(9).any(|window| window == b"end of it"));
    let longest = log.split(|byte| *byte == b'\n').map(<[u8]>::len).max().unwrap();
    assert!(longest < 20_000, "a line of {longest} bytes");
    assert!(!ended.stderr.contains("\u{1b}]0"), "an escape of the guest's reached the terminal");
}

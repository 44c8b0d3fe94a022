//! The same against a real guest that systemd runs: restarts, crashes, sudo, odd mounts.
//!
//! Ignored unless asked for, because somebody has to boot the guest first:
//!
//! ```text
//! KILN_GUEST_ADDR=127.0.0.1:2222 KILN_GUEST_USER=kiln \
//! KILN_GUEST_KEY=path/of/private/key KILN_GUEST_HOST_KEY=path/of/public/host/key \
//!   cargo nextest run -p kiln-guest --run-ignored only -j1 real_guest
//! ```
//!
//! The guest is restarted several times and must be one to throw away. It needs passwordless sudo.

use std::path::Path;
use std::time::{Duration, Instant};

use kiln_guest::{
    DetachedStep, Guest, GuestError, KeyPair, Login, OutputChunk, PlacedAs, PublicKey, StepEnd, StepNotice,
    Sudo, UploadFailure,
};
use kiln_host::digest::sha256;
use kiln_host::wait::Control;

use crate::proxy::Proxy;
use crate::server::setting;

/// An emulated guest needs most of a minute for a restart.
fn control() -> Control {
    Control::ending_in(Duration::from_secs(400))
}

async fn guest() -> Guest {
    connect(login()).await
}

async fn connect(login: Login) -> Guest {
    Guest::connect(login, |attempt| println!("{attempt:?}"), &control()).await.unwrap()
}

fn login() -> Login {
    let get = |name: &str| setting(name).unwrap_or_else(|| panic!("{name} is not set"));
    let read = |name: &str| std::fs::read_to_string(get(name)).unwrap();
    Login {
        user: get("KILN_GUEST_USER"),
        key: KeyPair::from_private_openssh(&read("KILN_GUEST_KEY")).unwrap(),
        host_key: PublicKey::from_openssh(&read("KILN_GUEST_HOST_KEY")).unwrap(),
        addr: get("KILN_GUEST_ADDR").parse().unwrap(),
    }
}

async fn run(guest: &Guest, privileged: bool, script: &str) -> (StepEnd, String, Vec<StepNotice>) {
    let mut step = DetachedStep::new("real", format!("#!/bin/sh\n{script}\n"));
    step.privileged = privileged;
    let (mut text, mut notices) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    let end = guest
        .run_detached(
            step,
            |chunk| match chunk {
                OutputChunk::Stdout(bytes) | OutputChunk::Stderr(bytes) => text.extend_from_slice(bytes),
                OutputChunk::Notice(notice) => notices.push(notice.clone()),
            },
            &control(),
        )
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&text).into_owned();
    println!("{script:?}: {end:?} in {:.2?}, {notices:?}\n{text}", begin.elapsed());
    (end, text, notices)
}

async fn shell(guest: &Guest, command: &str) -> String {
    let output = guest.exec(command, b"", &control()).await.unwrap();
    assert!(output.success(), "{command}: {output:?}");
    output.text()
}

/// Nothing of ours is on the guest's disks.
async fn no_trace(guest: &Guest) {
    // Killing a step is waited for a short while only; an emulated guest may need longer.
    let mut found = String::new();
    for _ in 0..10 {
        found = traces(guest).await;
        if found.is_empty() {
            return;
        }
    }
    panic!("left behind: {found}");
}

async fn traces(guest: &Guest) -> String {
    shell(
        guest,
        "sudo find / -xdev \\( -name '*kiln-*' -o -name 'script_????????????????????????????????_*' \\) ! -path '/proc/*' ! -path '/sys/*' 2>/dev/null \
         | grep -v systemd || true",
    )
    .await
}

#[tokio::test]
#[ignore = "needs a guest that somebody booted"]
async fn an_orderly_restart_in_a_step_ends_it_and_it_is_not_run_again() {
    let guest = guest().await;
    let before = guest.facts(&control()).await.unwrap();
    println!("{before:?}");
    assert_eq!(before.sudo, Sudo::Passwordless);
    for (privileged, reboot) in [(false, "sudo reboot"), (true, "systemctl reboot")] {
        let count = "echo x | sudo tee -a /var/lib/count >/dev/null";
        let script = format!("{count}; echo before; {reboot}; sleep 300; echo never");
        let (end, text, notices) = run(&guest, privileged, &script).await;
        assert_eq!(end, StepEnd::RebootedDuring { orderly: true });
        assert_eq!(text, "before\n");
        assert!(notices.contains(&StepNotice::LinkLost), "{notices:?}");
    }
    assert_eq!(shell(&guest, "cat /var/lib/count; sudo rm /var/lib/count").await, "x\nx");
    assert_ne!(guest.facts(&control()).await.unwrap().boot_id, before.boot_id);
    no_trace(&guest).await;
}

#[tokio::test]
#[ignore = "needs a guest that somebody booted"]
async fn a_restart_as_the_last_act_is_waited_for() {
    let guest = guest().await;
    let before = guest.facts(&control()).await.unwrap().boot_id;
    let (end, text, notices) = run(&guest, false, "echo done; sudo reboot").await;
    assert_eq!(end, StepEnd::RebootedAfter { code: 0 });
    assert_eq!(text, "done\n");
    assert!(notices.iter().any(|notice| matches!(notice, StepNotice::BackUp { .. })), "{notices:?}");
    let between = guest.facts(&control()).await.unwrap().boot_id;
    assert_ne!(between, before);
    // In one minute, by shutdown's own clock.
    let (end, _, _) = run(&guest, true, "shutdown -r +1 'later' 2>/dev/null").await;
    assert_eq!(end, StepEnd::RebootedAfter { code: 0 });
    assert_ne!(guest.facts(&control()).await.unwrap().boot_id, between);
    no_trace(&guest).await;
}

#[tokio::test]
#[ignore = "needs a guest that somebody booted"]
async fn a_reset_without_shutdown_is_told_from_a_restart() {
    let guest = guest().await;
    let (end, text, _) =
        run(&guest, true, "echo before; sync; sleep 1; echo b > /proc/sysrq-trigger; sleep 300").await;
    assert_eq!(end, StepEnd::RebootedDuring { orderly: false });
    assert_eq!(text, "before\n");
    no_trace(&guest).await;
    // Before anything of the step is on the disk.
    let (end, _, _) = run(&guest, true, "echo b > /proc/sysrq-trigger; sleep 300").await;
    assert_eq!(end, StepEnd::RebootedDuring { orderly: false });
    no_trace(&guest).await;
}

#[tokio::test]
#[ignore = "needs a guest that somebody booted"]
async fn a_link_cut_three_times_loses_and_doubles_nothing() {
    let mut login = login();
    let proxy = Proxy::start(login.addr).await;
    login.addr = proxy.addr();
    let guest = connect(login).await;
    let script =
        "#!/bin/sh\nfor i in $(seq 2000); do echo \"line $i\"; [ $((i % 100)) = 0 ] && sleep 0.3; done\n";
    let (mut text, mut cuts) = (Vec::new(), 0);
    let hear = |chunk: OutputChunk<'_>| {
        if let OutputChunk::Stdout(bytes) = chunk {
            text.extend_from_slice(bytes);
            let lines = text.iter().filter(|&&byte| byte == b'\n').count();
            if cuts < 3 && lines > (cuts + 1) * 400 {
                cuts += 1;
                proxy.cut();
            }
        }
    };
    let mut step = DetachedStep::new("count", script);
    step.privileged = true;
    let end = guest.run_detached(step, hear, &control()).await.unwrap();
    assert_eq!((end, cuts), (StepEnd::Exited { code: 0 }, 3));
    assert!(text == (1..=2000).map(|i| format!("line {i}\n")).collect::<String>().into_bytes());
    no_trace(&guest).await;
}

/// systemd waits 90 seconds for it and then kills everybody, the runner too.
#[tokio::test]
#[ignore = "needs a guest that somebody booted"]
async fn a_step_that_ignores_the_shutdown_restarts_orderly_too() {
    let guest = guest().await;
    let (end, _, _) = run(&guest, false, "trap '' TERM HUP; sudo reboot; while :; do sleep 1; done").await;
    assert_eq!(end, StepEnd::RebootedDuring { orderly: true });
    no_trace(&guest).await;
}

#[tokio::test]
#[ignore = "needs a guest that somebody booted"]
async fn a_step_has_the_rights_asked_for_and_a_place_to_run() {
    let guest = guest().await;
    let user = guest.login().user.clone();
    let (end, text, _) = run(&guest, false, "id -un; echo $HOME; pwd").await;
    assert_eq!((end, text), (StepEnd::Exited { code: 0 }, format!("{user}\n/home/{user}\n/home/{user}\n")));
    let (end, text, _) = run(&guest, true, "id -un; exit 3").await;
    assert_eq!((end, text.as_str()), (StepEnd::Exited { code: 3 }, "root\n"));
    // A signal to the step alone is its own end, whatever the signal is.
    let (end, _, _) = run(&guest, false, "kill -TERM $$; sleep 9").await;
    assert_eq!(end, StepEnd::Exited { code: 143 });

    // As hardened images mount it.
    shell(&guest, "sudo mount -t tmpfs -o noexec,mode=1777 tmpfs /tmp").await;
    let (end, text, notices) = run(&guest, false, "echo ran").await;
    assert_eq!((end, text.as_str()), (StepEnd::Exited { code: 0 }, "ran\n"));
    let elsewhere = notices.iter().any(|notice| {
        matches!(notice, StepNotice::PlacedElsewhere { script, .. } if script.starts_with("/var/tmp/"))
    });
    assert!(elsewhere, "{notices:?}");
    assert_eq!(guest.facts(&control()).await.unwrap().script_dir.as_deref(), Some("/var/tmp"));
    shell(&guest, "sudo umount /tmp").await;

    // Canceling kills what root runs, too.
    let control = control();
    let mut step = DetachedStep::new("long", "#!/bin/sh\necho $$\nsleep 300\n");
    step.privileged = true;
    let mut pid = String::new();
    let hear = |chunk: OutputChunk<'_>| {
        if let OutputChunk::Stdout(bytes) = chunk {
            pid.push_str(&String::from_utf8_lossy(bytes));
            control.cancel();
        }
    };
    let error = guest.run_detached(step, hear, &control).await.unwrap_err();
    assert!(error.interrupted().is_some(), "{error:?}");
    shell(&guest, &format!("! test -d /proc/{}", pid.trim())).await;
    no_trace(&guest).await;
}

#[tokio::test]
#[ignore = "needs a guest that somebody booted"]
async fn files_go_where_the_user_may_write_or_root_does() {
    let guest = guest().await;
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let bytes: Vec<u8> = (0..64_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&source, &bytes).unwrap();
    let digest = sha256(&bytes);
    let control = control();
    let put = |remote: &'static str, privileged: bool| {
        guest.upload(source.as_path().into(), remote, 0o644, digest, privileged, |_| (), &control)
    };
    let begin = Instant::now();
    assert_eq!(put("/tmp/big", true).await.unwrap().placed_as, PlacedAs::LoginUser);
    println!("64 MiB in {:.2?}", begin.elapsed());
    assert_eq!(put("/opt/big", true).await.unwrap().placed_as, PlacedAs::Root);
    let listed = shell(&guest, "stat -c '%U %a %s' /tmp/big /opt/big; sudo rm /tmp/big /opt/big").await;
    assert_eq!(listed, format!("{} 644 67108864\nroot 644 67108864", guest.login().user));

    let failure = |outcome: Result<_, GuestError>| match outcome {
        Err(GuestError::Upload { failure, .. }) => failure,
        other => panic!("{other:?}"),
    };
    assert!(matches!(failure(put("/opt/big", false).await), UploadFailure::Denied { .. }));
    assert!(matches!(failure(put("/opt/no/big", true).await), UploadFailure::NoDirectory { .. }));
    assert!(matches!(failure(put("/opt", true).await), UploadFailure::IsDirectory { .. }));
    shell(&guest, "sudo mkdir /opt/small && sudo mount -t tmpfs -o size=8m,mode=1777 tmpfs /opt/small").await;
    let full = failure(put("/opt/small/big", false).await);
    assert!(matches!(full, UploadFailure::DiskFull { .. }), "{full:?}");
    assert_eq!(shell(&guest, "ls -A /opt/small").await, "");
    // A step on a full disk still has an end.
    let (end, _, _) =
        run(&guest, false, "dd if=/dev/zero of=/opt/small/fill bs=1M 2>/dev/null; exit 12").await;
    assert_eq!(end, StepEnd::Exited { code: 12 });
    shell(&guest, "sudo mount -o remount,ro /opt/small").await;
    let read_only = failure(put("/opt/small/big", true).await);
    assert!(
        matches!(read_only, UploadFailure::ReadOnly { .. } | UploadFailure::Denied { .. }),
        "{read_only:?}"
    );
    shell(&guest, "sudo umount /opt/small && sudo rmdir /opt/small").await;
    assert!(Path::new(&source).exists());
    no_trace(&guest).await;
}

use std::time::{Duration, Instant};

use kiln_guest::{AttemptFailure, Guest, GuestError, KeyPair, Limits, Sudo};
use kiln_host::wait::{Control, Interrupted};

use crate::proxy::{Behaviour, Proxy};
use crate::server::{Server, user, whoami_is_root};
use crate::{Lab, control, short};

#[tokio::test]
async fn a_guest_tells_about_itself() {
    let Some(lab) = Lab::start().await else { return };
    let facts = lab.guest.facts(&control()).await.unwrap();
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(facts.boot_id, boot_id.trim());
    let release = std::fs::read_to_string("/etc/os-release").unwrap();
    assert!(!facts.os_name.is_empty() && release.contains(&facts.os_name), "{}", facts.os_name);
    assert!(facts.script_dir.is_some());
    if whoami_is_root() {
        assert_eq!(facts.sudo, Sudo::Root);
    }
    lab.guest.close().await;
}

#[tokio::test]
async fn another_host_key_is_refused_by_name_and_no_login_is_tried() {
    let Some(server) = Server::start(&[]).await else { return };
    let mut login = server.login(server.addr());
    let ours = KeyPair::generate().unwrap().public();
    let theirs = std::mem::replace(&mut login.host_key, ours.clone());
    let mut seen = 0;
    let error = Guest::connect_with(login, short(), |_| seen += 1, &control()).await.unwrap_err();
    let GuestError::WrongHostKey { expected, got, .. } = &error else { panic!("{error:?}") };
    assert_eq!((expected, got), (&ours.fingerprint(), &theirs.fingerprint()));
    let message = error.to_string();
    assert!(message.contains(expected.as_str()) && message.contains(got.as_str()), "{message}");
    // Tried again for a short while, not for the minute that the control allows.
    assert!((2..20).contains(&seen), "{seen}");
    assert!(!server.log().contains("publickey"), "{}", server.log());
}

#[tokio::test]
async fn a_refused_login_is_told_apart_and_mended_when_the_key_comes() {
    let Some(server) = Server::start(&[]).await else { return };
    let mut login = server.login(server.addr());
    login.key = KeyPair::generate().unwrap();
    let error = Guest::connect_with(login.clone(), short(), |_| (), &control()).await.unwrap_err();
    assert!(
        matches!(&error, GuestError::LoginRefused { user: refused, .. } if *refused == user()),
        "{error:?}"
    );

    // As when cloud-init puts the key in place while we knock.
    let limits = Limits { refused_login: Duration::from_secs(30), ..short() };
    let mut refusals = 0;
    let key = login.key.clone();
    let guest = Guest::connect_with(
        login,
        limits,
        |attempt| {
            assert!(matches!(attempt.failure, AttemptFailure::KeyRefused { .. }), "{:?}", attempt.failure);
            refusals += 1;
            if refusals == 2 {
                server.authorize(&key);
            }
        },
        &control(),
    )
    .await
    .unwrap();
    assert!(guest.exec("true", b"", &control()).await.unwrap().success());
    assert_eq!(refusals, 2);
}

/// What a guest that boots behind user-mode networking looks like, and things that are no guest.
#[tokio::test]
async fn what_was_seen_last_is_in_the_error() {
    let Some(server) = Server::start(&[]).await else { return };
    let proxy = Proxy::start(server.addr()).await;
    type Expected = fn(&AttemptFailure) -> bool;
    let table: [(Behaviour, Expected); 5] = [
        (Behaviour::BlackHole, |seen| matches!(seen, AttemptFailure::NoBanner { .. })),
        (Behaviour::Close, |seen| matches!(seen, AttemptFailure::ClosedBeforeBanner)),
        (
            Behaviour::Say(b"HTTP/1.1 400 Bad Request\r\n".repeat(1000)),
            |seen| matches!(seen, AttemptFailure::NotSsh { said } if said.starts_with("HTTP/1.1 400")),
        ),
        (Behaviour::Say(b"SSH-2.0-half".to_vec()), |seen| matches!(seen, AttemptFailure::NoBanner { .. })),
        (Behaviour::Say(b"SSH-2.0-mute\r\n".to_vec()), |seen| {
            matches!(seen, AttemptFailure::HandshakeTimeout { .. })
        }),
    ];
    for (behaviour, expected) in table {
        proxy.behave(behaviour.clone());
        let (banner, handshake) = (Duration::from_millis(300), Duration::from_millis(200));
        let limits = Limits { banner, handshake, ..short() };
        let control = Control::ending_in(Duration::from_millis(900));
        let begin = Instant::now();
        let error =
            Guest::connect_with(server.login(proxy.addr()), limits, |_| (), &control).await.unwrap_err();
        let GuestError::NoAnswer { last: Some(last), attempts, .. } = &error else { panic!("{error:?}") };
        assert!(expected(last), "{behaviour:?}: {last:?}");
        assert!(*attempts >= 2, "{attempts}");
        assert!(begin.elapsed() < Duration::from_millis(1500));
    }
    proxy.behave(Behaviour::Pass);
    Guest::connect_with(server.login(proxy.addr()), short(), |_| (), &control()).await.unwrap();
}

#[tokio::test]
async fn nobody_listens_until_canceled() {
    let Some(server) = Server::start(&[]).await else { return };
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let control = control();
    let mut seen = Vec::new();
    let error = Guest::connect_with(
        server.login(free),
        short(),
        |attempt| {
            seen.push((attempt.waited, matches!(attempt.failure, AttemptFailure::Refused)));
            if attempt.number == 4 {
                control.cancel();
            }
        },
        &control,
    )
    .await
    .unwrap_err();
    assert_eq!(error.interrupted(), Some(Interrupted::Canceled));
    assert!(seen.iter().all(|(_, refused)| *refused));
    // 100 ms, 200 ms, 400 ms between the four.
    let waited = seen[3].0;
    assert!((Duration::from_millis(700)..Duration::from_millis(1500)).contains(&waited), "{waited:?}");
}

#[tokio::test]
async fn a_guest_that_comes_up_late_is_found() {
    let Some(server) = Server::start(&[]).await else { return };
    let proxy = Proxy::start(server.addr()).await;
    proxy.behave(Behaviour::BlackHole);
    // One attempt hangs in the hole until its limit; the next finds the guest.
    let limits = Limits { banner: Duration::from_millis(500), ..short() };
    let guest = Guest::connect_with(
        server.login(proxy.addr()),
        limits,
        |attempt| {
            if attempt.number == 2 {
                proxy.behave(Behaviour::Pass);
            }
        },
        &control(),
    )
    .await
    .unwrap();
    assert_eq!(guest.exec("echo up", b"", &control()).await.unwrap().text(), "up");
}

#[tokio::test]
async fn a_dead_link_is_noticed_and_replaced() {
    let Some(lab) = Lab::start_watchful().await else { return };
    let begin = Instant::now();
    lab.proxy.behave(Behaviour::BlackHole);
    tokio::time::timeout(Duration::from_secs(5), lab.guest.link_lost()).await.unwrap();
    // Three keep-alives of 250 ms, and the interval before the first.
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    lab.proxy.behave(Behaviour::Pass);
    assert!(lab.guest.exec("true", b"", &control()).await.unwrap().success());

    // A link that is cut is replaced by the next command, or on request.
    let before = lab.proxy.connections();
    lab.proxy.cut();
    assert!(lab.guest.exec("true", b"", &control()).await.unwrap().success());
    lab.guest.reconnect(&control()).await.unwrap();
    assert_eq!(lab.proxy.connections() - before, 2);
}

#[tokio::test]
async fn a_guest_that_stays_away_is_given_up() {
    let Some(server) = Server::start(&[]).await else { return };
    let proxy = Proxy::start(server.addr()).await;
    let limits = Limits { reconnect: Duration::from_millis(700), ..short() };
    let guest = Guest::connect_with(server.login(proxy.addr()), limits, |_| (), &control()).await.unwrap();
    proxy.behave(Behaviour::Close);
    proxy.cut();
    let error = guest.exec("true", b"", &control()).await.unwrap_err();
    assert!(matches!(error, GuestError::NoAnswer { .. } | GuestError::LinkLost { .. }), "{error:?}");
}

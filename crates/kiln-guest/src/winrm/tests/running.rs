//! Connecting and running commands.

use std::time::Duration;

use kiln_host::wait::{Control, Interrupted};
use tokio::time::Instant;

use super::server::{Reply, Server, control, limits, output};
use crate::session::Stream;
use crate::winrm::{
    AnswerError, Authentication, CertificatePin, CommandLine, LinkFailure, Password, Transport, WinrmError,
    WinrmGuest, WinrmLimits, WinrmLogin, first_certificate,
};

const DONE_WITHOUT_CODE: &str = "<rsp:ReceiveResponse><rsp:CommandState CommandId=\"C\" \
    State=\"x/CommandState/Done\"/></rsp:ReceiveResponse>";

fn line() -> CommandLine {
    CommandLine::cmd("a test", "echo x")
}

/// Runs a command and gives what it printed, stream by stream, with its end.
async fn run(guest: &WinrmGuest) -> Result<(String, String, u32, u32), WinrmError> {
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let take = |stream, bytes: &[u8]| match stream {
        Stream::Stdout => stdout.push_str(&String::from_utf8_lossy(bytes)),
        Stream::Stderr => stderr.push_str(&String::from_utf8_lossy(bytes)),
    };
    let end = guest.run(&line(), None, take, &control()).await?;
    Ok((stdout, stderr, end.code, end.gaps))
}

#[tokio::test]
async fn output_comes_piece_by_piece_and_the_code_at_the_end() {
    for server in [Server::tls().await, Server::sealed().await] {
        server
            .say("Receive", Reply::Body(output("one ", "", None)))
            .say("Receive", Reply::Body(output("two", "bad", None)))
            .say("Receive", Reply::Body(output("", "", Some(0xC000_0005))));
        let guest = server.guest().await;
        let ran = run(&guest).await.unwrap();
        assert_eq!(ran, ("one two".to_owned(), "bad".to_owned(), 0xC000_0005, 0));
        guest.close().await;
        let expected = ["Create", "Command", "Receive", "Receive", "Receive", "Signal", "Delete"];
        assert_eq!(server.actions(), expected);
        // One connection is enough for a command without input.
        assert!(server.seen().iter().all(|seen| seen.connection == 0));
        let signal = server.seen().into_iter().find(|seen| seen.action == "Signal").unwrap();
        assert!(signal.text_of("Code").ends_with("/terminate"));
    }
}

#[tokio::test]
async fn another_certificate_is_never_talked_to() {
    let server = Server::tls().await;
    let pin = CertificatePin::from_sha256(&"ab".repeat(32)).unwrap();
    let transport = Transport::Https { pin: pin.clone(), authentication: Authentication::Basic };
    let login = WinrmLogin { transport, ..server.login() };
    let mut attempts = 0;
    let error = WinrmGuest::connect_with(login, limits(), |_| attempts += 1, &control()).await.unwrap_err();
    assert!(matches!(&error, WinrmError::WrongCertificate { expected, .. } if *expected == pin), "{error}");
    assert!(attempts > 1, "given no time to be put right");
    assert_eq!(server.seen().len(), 0);
}

#[tokio::test]
async fn a_wrong_password_is_refused_after_a_while() {
    for server in [Server::tls().await, Server::sealed().await] {
        let login = WinrmLogin { password: Password::new("wrong horse"), ..server.login() };
        let mut attempts = 0;
        let error =
            WinrmGuest::connect_with(login, limits(), |_| attempts += 1, &control()).await.unwrap_err();
        assert!(matches!(error, WinrmError::LoginRefused { .. }), "{error}");
        assert!((2..=9).contains(&attempts), "{attempts} attempts lock an account");
        assert!(!format!("{error:?} {error}").contains("horse"));
    }
}

/// Three wrong passwords are what the strictest usual policies forgive.
#[tokio::test]
async fn an_account_of_others_is_tried_few_times() {
    let server = Server::sealed().await;
    let login = WinrmLogin { password: Password::new("wrong horse"), ..server.login() };
    let limits = WinrmLimits { login_retries: 2, ..limits() };
    let mut attempts = 0;
    let error = WinrmGuest::connect_with(login, limits, |_| attempts += 1, &control()).await.unwrap_err();
    assert!(matches!(error, WinrmError::LoginRefused { .. }), "{error}");
    assert!((2..=3).contains(&attempts), "{attempts} attempts");
}

#[tokio::test]
async fn the_first_certificate_is_learned_without_a_word() {
    let server = Server::tls().await;
    let Transport::Https { pin, .. } = server.login().transport else { panic!("no TLS") };
    let digest = first_certificate(server.addr, &limits(), &control()).await.unwrap();
    assert_eq!(CertificatePin::Sha256(digest), pin);
    assert_eq!(server.seen().len(), 0);
    // Who shows none has none, whatever else they say.
    let plain = Server::sealed().await;
    let soon = Control::ending_in(Duration::from_secs(1));
    let impatient = WinrmLimits { silence: Duration::from_millis(100), ..limits() };
    let error = first_certificate(plain.addr, &impatient, &soon).await.unwrap_err();
    match error {
        WinrmError::NoAnswer { attempts, last: Some(last), .. } => {
            assert!(attempts > 1 && matches!(*last, LinkFailure::Silent { .. }), "{attempts}: {last}");
        }
        error => panic!("{error}"),
    }
    let nobody = plain.addr;
    drop(plain);
    let soon = Control::ending_in(Duration::from_millis(300));
    let error = first_certificate(nobody, &limits(), &soon).await.unwrap_err();
    assert!(matches!(error, WinrmError::NoAnswer { .. }), "{error}");
}

#[tokio::test]
async fn a_server_that_is_starting_is_asked_again() {
    let server = Server::tls().await;
    server
        .say("Identify", Reply::Http(503, "Service Unavailable"))
        .say("Identify", Reply::Close)
        .say("Identify", Reply::Http(500, "listener starting"));
    let mut failures = Vec::new();
    let on_attempt = |attempt: crate::winrm::WinrmAttempt<'_>| failures.push(attempt.failure.to_string());
    let guest = WinrmGuest::connect_with(server.login(), limits(), on_attempt, &control()).await.unwrap();
    assert_eq!(failures.len(), 3, "{failures:?}");
    assert!(failures[0].contains("503"), "{failures:?}");
    assert_eq!(run(&guest).await.unwrap().2, 0);
}

#[tokio::test]
async fn where_nobody_answers_the_last_thing_seen_is_said() {
    let server = Server::tls().await;
    let login = server.login();
    drop(server);
    let control = Control::ending_in(Duration::from_millis(500));
    let error = WinrmGuest::connect_with(login, limits(), |_| (), &control).await.unwrap_err();
    match error {
        WinrmError::NoAnswer { last: Some(last), .. } => {
            assert!(matches!(*last, LinkFailure::Refused), "{last}");
        }
        error => panic!("{error}"),
    }
}

#[tokio::test]
async fn an_answer_to_another_request_is_an_error() {
    let server = Server::tls().await;
    server.say("Receive", Reply::Astray(output("not ours", "", Some(0))));
    let error = run(&server.guest().await).await.unwrap_err();
    assert!(matches!(error, WinrmError::Answer { answer: AnswerError::NotOurs { .. }, .. }), "{error}");
    // What may still run is ended.
    assert!(server.actions().contains(&"Signal".to_owned()));
}

#[tokio::test]
async fn a_command_without_an_exit_code_is_an_error() {
    let server = Server::tls().await;
    server.say("Receive", Reply::Body(DONE_WITHOUT_CODE.to_owned()));
    let error = run(&server.guest().await).await.unwrap_err();
    assert!(matches!(error, WinrmError::Answer { answer: AnswerError::NoExitCode, .. }), "{error}");
}

#[tokio::test]
async fn a_lost_answer_is_a_gap_and_the_command_goes_on() {
    for reply in [Reply::Cut(output("lost", "", None)), Reply::Close, Reply::Silence] {
        let server = Server::tls().await;
        server.say("Receive", reply).say("Receive", Reply::Body(output("rest", "", Some(3))));
        let ran = run(&server.guest().await).await.unwrap();
        assert_eq!(ran, ("rest".to_owned(), String::new(), 3, 1));
        assert_eq!(server.actions().iter().filter(|action| *action == "Command").count(), 1);
    }
}

#[tokio::test]
async fn a_spoilt_seal_is_not_believed() {
    let server = Server::sealed().await;
    server.say("Receive", Reply::Spoilt(output("forged", "", Some(0))));
    server.say("Receive", Reply::Http(200, "<s:Envelope>plain</s:Envelope>"));
    server.say("Receive", Reply::Body(output("true", "", Some(1))));
    let (stdout, _, code, _) = run(&server.guest().await).await.unwrap();
    assert_eq!((stdout.as_str(), code), ("true", 1));
    let last = server.seen().last().unwrap().connection;
    assert_eq!(last, 2, "a connection that lost step is used again");
}

#[tokio::test]
async fn a_command_that_may_have_started_is_not_started_again() {
    let server = Server::tls().await;
    server.say("Command", Reply::Close);
    let error = run(&server.guest().await).await.unwrap_err();
    assert!(matches!(error, WinrmError::LinkLost { .. }), "{error}");
    assert_eq!(server.actions().iter().filter(|action| *action == "Command").count(), 1);
}

#[tokio::test]
async fn a_login_lost_in_mid_session_is_made_again() {
    let server = Server::sealed().await;
    server.say("Command", Reply::Http(401, "")).say("Receive", Reply::Http(400, "lost seal"));
    assert_eq!(run(&server.guest().await).await.unwrap().2, 0);
}

#[tokio::test]
async fn the_end_of_the_wait_ends_the_command() {
    for (control, why) in [
        (Control::ending_in(Duration::from_millis(700)), Interrupted::DeadlinePassed),
        (control(), Interrupted::Canceled),
    ] {
        let server = Server::tls().await;
        server.say("Receive", Reply::Silence);
        let guest = server.guest().await;
        let canceling = control.clone();
        tokio::spawn(async move {
            if why == Interrupted::Canceled {
                tokio::time::sleep(Duration::from_millis(300)).await;
                canceling.cancel();
            }
        });
        let begin = Instant::now();
        let error = guest.run(&line(), None, |_, _| (), &control).await.unwrap_err();
        assert_eq!(error.interrupted(), Some(why), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(10));
        let seen = server.seen();
        let signal = seen.iter().find(|seen| seen.action == "Signal").expect("a signal");
        // The first connection still waits for output.
        assert_ne!(signal.connection, 0);
    }
}

#[tokio::test]
async fn commands_beside_each_other_have_shells_of_their_own() {
    let server = Server::tls().await;
    let guest = server.guest().await;
    let both = tokio::join!(run(&guest), run(&guest));
    assert!(both.0.is_ok() && both.1.is_ok());
    assert_eq!(server.actions().iter().filter(|action| *action == "Create").count(), 2);
    run(&guest).await.unwrap();
    assert_eq!(server.actions().iter().filter(|action| *action == "Create").count(), 2);
    guest.close().await;
    assert_eq!(server.actions().iter().filter(|action| *action == "Delete").count(), 2);
}

#[tokio::test]
async fn a_shell_is_replaced_before_its_operations_run_out() {
    let server = Server::tls().await;
    let mut limits = limits();
    limits.commands_per_shell = 2;
    let guest = WinrmGuest::connect_with(server.login(), limits, |_| (), &control()).await.unwrap();
    for _ in 0..5 {
        run(&guest).await.unwrap();
    }
    let count = |wanted: &str| server.actions().iter().filter(|action| *action == wanted).count();
    assert_eq!((count("Create"), count("Delete")), (3, 2));
}

#[tokio::test]
async fn powershell_errors_are_text() {
    let server = Server::tls().await;
    let clixml = "#< CLIXML\r\n<Objs Version=\"1.1.0.1\"><S S=\"Error\">boom_x000D__x000A_</S><Obj S=\"progress\"/></Objs>";
    let (first, rest) = clixml.split_at(40);
    server
        .say("Receive", Reply::Body(output("out", first, None)))
        .say("Receive", Reply::Body(output("", rest, Some(1))));
    let guest = server.guest().await;
    let answer = guest.ask_powershell("a test", "throw 'boom'", &control()).await.unwrap();
    assert_eq!(
        (answer.code, answer.stdout.as_slice(), answer.stderr.as_slice()),
        (1, &b"out"[..], &b"boom\n"[..])
    );
    let command = server.seen().into_iter().find(|seen| seen.action == "Command").unwrap();
    assert!(command.text_of("Command").starts_with("powershell -NoProfile"));
}

#[tokio::test]
async fn a_long_text_goes_by_standard_input() {
    let server = Server::tls().await;
    server.say("Receive", Reply::Fault(2_150_858_793));
    server.say("Receive", Reply::Fault(2_150_858_793));
    let guest = server.guest().await;
    let text = format!("# {}", "x".repeat(20_000));
    guest.ask_powershell("a test", &text, &control()).await.unwrap();
    let sends: Vec<_> = server.seen().into_iter().filter(|seen| seen.action == "Send").collect();
    assert_eq!(sends.len(), 1);
    assert_eq!(sends[0].root.find("Stream").unwrap().attribute("End"), Some("true"));
    // Input does not wait for output.
    assert_ne!(sends[0].connection, 0);
}

#[tokio::test]
async fn another_boot_is_told_from_the_same() {
    let server = Server::tls().await;
    let boot = |count: u32| {
        let answer = format!(
            "kiln:{{\"kind\":\"boot\",\"counter\":{count},\"ticks\":638000000000000000,\"uptimeMs\":9}}\r\n"
        );
        Reply::Body(output(&answer, "", Some(0)))
    };
    server
        .say("Receive", boot(7))
        .say("Receive", boot(7))
        .say("Receive", boot(8))
        .say("Receive", Reply::Body(output("no answer\r\n", "", Some(0))));
    let guest = server.guest().await;
    let old = guest.boot_id(&control()).await.unwrap();
    assert!(!guest.boot_id(&control()).await.unwrap().is_another_than(&old));
    assert!(guest.boot_id(&control()).await.unwrap().is_another_than(&old));
    let error = guest.boot_id(&control()).await.unwrap_err();
    assert!(matches!(error, WinrmError::Inside { .. }), "{error}");
}

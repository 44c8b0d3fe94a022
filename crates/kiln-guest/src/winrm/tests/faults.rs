//! What the client does about each kind of fault.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::server::{Reply, Server, control};
use crate::winrm::{CommandLine, FaultCode, Remedy, WinrmError, WinrmGuest};

async fn run(guest: &WinrmGuest) -> Result<u32, WinrmError> {
    let line = CommandLine::cmd("a test", "echo x");
    guest.run(&line, None, |_, _| (), &control()).await.map(|end| end.code)
}

fn count(server: &Server, wanted: &str) -> usize {
    server.actions().iter().filter(|action| *action == wanted).count()
}

#[tokio::test]
async fn a_quiet_command_is_asked_again() {
    let server = Server::tls().await;
    for _ in 0..3 {
        server.say("Receive", Reply::Fault(FaultCode::OperationTimedOut.number()));
    }
    assert_eq!(run(&server.guest().await).await.unwrap(), 0);
    assert_eq!(count(&server, "Receive"), 4);
}

#[tokio::test]
async fn a_shell_that_is_used_up_is_replaced_once() {
    for code in [FaultCode::QuotaMaxOperations, FaultCode::PluginMaxCommandsPerShell, FaultCode::KeyDeleted] {
        assert_eq!(code.remedy(), Remedy::RenewShell);
        let server = Server::tls().await;
        server.say("Command", Reply::Fault(code.number()));
        assert_eq!(run(&server.guest().await).await.unwrap(), 0);
        let begin = ["Create", "Command", "Delete", "Create", "Command", "Receive"];
        assert_eq!(server.actions()[..6], begin, "{code}");
    }
}

#[tokio::test]
async fn a_shell_that_is_gone_before_the_command_is_replaced() {
    let server = Server::tls().await;
    let guest = server.guest().await;
    assert_eq!(run(&guest).await.unwrap(), 0);
    server.say("Command", Reply::Fault(FaultCode::UnexpectedSelectors.number()));
    assert_eq!(run(&guest).await.unwrap(), 0);
    // Nothing is there to be deleted.
    assert_eq!((count(&server, "Create"), count(&server, "Delete")), (2, 0));
}

#[tokio::test]
async fn a_command_whose_shell_is_gone_is_lost() {
    for code in [FaultCode::UnexpectedSelectors, FaultCode::KeyDeleted] {
        let server = Server::tls().await;
        server.say("Receive", Reply::Fault(code.number()));
        server.say("Delete", Reply::Fault(FaultCode::UnexpectedSelectors.number()));
        let guest = server.guest().await;
        let error = run(&guest).await.unwrap_err();
        assert!(matches!(error, WinrmError::ShellGone { .. }), "{error}");
        assert_eq!(count(&server, "Signal"), 0);
        // The next command gets a shell of its own.
        assert_eq!(run(&guest).await.unwrap(), 0);
        assert_eq!(count(&server, "Create"), 2);
    }
}

#[tokio::test]
async fn a_command_that_is_gone_from_a_living_shell_ended_unheard() {
    let server = Server::tls().await;
    server.say("Receive", Reply::Close);
    server.say("Receive", Reply::Fault(FaultCode::UnexpectedSelectors.number()));
    let error = run(&server.guest().await).await.unwrap_err();
    assert!(matches!(error, WinrmError::EndLost { .. }), "{error}");
}

#[tokio::test]
async fn a_busy_guest_is_asked_again_but_not_for_ever() {
    for code in [
        FaultCode::QuotaUser,
        FaultCode::QuotaSystem,
        FaultCode::QuotaMaxShellUsers,
        FaultCode::PluginMaxShells,
        FaultCode::PluginMinimumNotAvailable,
    ] {
        assert_eq!(code.remedy(), Remedy::BackOff);
        let server = Server::tls().await;
        server.say("Create", Reply::Fault(code.number())).say("Command", Reply::Fault(code.number()));
        assert_eq!(run(&server.guest().await).await.unwrap(), 0, "{code}");
    }
    let server = Server::start(true, |seen| {
        (seen.action == "Create").then(|| Reply::Fault(FaultCode::QuotaUser.number()))
    })
    .await;
    let error = run(&server.guest().await).await.unwrap_err();
    assert!(matches!(error, WinrmError::Busy { .. }), "{error}");
}

#[tokio::test]
async fn too_many_shells_makes_us_close_ours() {
    let server = Server::tls().await;
    let guest = server.guest().await;
    let both = tokio::join!(run(&guest), run(&guest));
    assert!(both.0.is_ok() && both.1.is_ok());
    // One idle lane is taken, its shell is gone, and no new one is to be had: the other idle one is closed.
    server.say("Command", Reply::Fault(FaultCode::UnexpectedSelectors.number()));
    server.say("Create", Reply::Fault(FaultCode::QuotaMaxShells.number()));
    assert_eq!(run(&guest).await.unwrap(), 0);
    assert_eq!(count(&server, "Delete"), 1);
}

#[tokio::test]
async fn what_cannot_be_decrypted_gets_a_new_connection() {
    let server = Server::sealed().await;
    server.say("Create", Reply::Fault(FaultCode::CannotDecrypt.number()));
    assert_eq!(run(&server.guest().await).await.unwrap(), 0);
    assert_eq!(server.seen().last().unwrap().connection, 1);
    let always = Server::start(false, |seen| {
        (seen.action == "Create").then(|| Reply::Fault(FaultCode::CannotDecrypt.number()))
    })
    .await;
    let error = run(&always.guest().await).await.unwrap_err();
    assert!(matches!(error, WinrmError::Fault { .. }), "{error}");
    assert_eq!(count(&always, "Create"), 2);
}

#[tokio::test]
async fn a_fault_of_the_network_is_a_broken_connection() {
    for code in [FaultCode::DestinationUnreachable, FaultCode::NetworkTimedOut] {
        let server = Server::tls().await;
        server.say("Receive", Reply::Fault(code.number()));
        assert_eq!(run(&server.guest().await).await.unwrap(), 0);
        assert_eq!(server.seen().last().unwrap().connection, 1);
    }
}

#[tokio::test]
async fn the_other_faults_are_what_they_say() {
    for (code, expected) in [
        (FaultCode::FailedAuthentication, "refused the login"),
        (FaultCode::ResourceNotFound, "was refused"),
        (FaultCode::CommandTerminated, "was terminated"),
        (FaultCode::Aborted, "was terminated"),
        (FaultCode::AccessDenied, "was refused"),
        (FaultCode::InvalidParameter, "was refused"),
        (FaultCode::LineTooLong, "was refused"),
        (FaultCode::FileNotFound, "was refused"),
        (FaultCode::Other(12_345), "was refused"),
    ] {
        let server = Server::tls().await;
        server.say("Command", Reply::Fault(code.number()));
        let error = run(&server.guest().await).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{code}: {error}");
        assert_eq!(count(&server, "Command"), 1, "{code}");
    }
}

#[tokio::test]
async fn what_is_too_much_at_once_is_sent_in_halves() {
    let taken: Arc<Mutex<(Vec<u8>, bool)>> = Arc::default();
    let into = Arc::clone(&taken);
    let server = Server::start(true, move |seen| {
        let mut into = into.lock().unwrap();
        match seen.action.as_str() {
            "Receive" if !into.1 => Some(Reply::Fault(FaultCode::OperationTimedOut.number())),
            "Send" => {
                let stream = seen.root.find("Stream")?;
                let bytes = BASE64.decode(&stream.text).unwrap();
                if bytes.len() > 200_000 {
                    return Some(Reply::Http(413, "Request Entity Too Large"));
                }
                if bytes.len() > 50_000 {
                    return Some(Reply::Fault(FaultCode::MaxEnvelopeSizeExceeded.number()));
                }
                into.0.extend(bytes);
                into.1 = stream.attribute("End") == Some("true");
                None
            }
            _ => None,
        }
    })
    .await;
    let guest = server.guest().await;
    let input: Vec<u8> = (0..900_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let line = CommandLine::cmd("a test", "more");
    guest.run(&line, Some(&input), |_, _| (), &control()).await.unwrap();
    assert!(taken.lock().unwrap().0 == input, "what arrived is not what was sent");
    // 381,000 bytes fit into an envelope; halved three times they are below 50,000.
    let refused = 3;
    assert_eq!(count(&server, "Send"), refused + input.len().div_ceil(381_000 / 8));
}

#[tokio::test]
async fn what_is_too_much_however_small_is_an_error() {
    let server = Server::start(true, |seen| match seen.action.as_str() {
        "Receive" => Some(Reply::Silence),
        "Send" => Some(Reply::Fault(FaultCode::EnvelopeTooLarge.number())),
        _ => None,
    })
    .await;
    let guest = server.guest().await;
    let line = CommandLine::cmd("a test", "more");
    let error = guest.run(&line, Some(&[0; 10_000]), |_, _| (), &control()).await.unwrap_err();
    assert!(matches!(error, WinrmError::Fault { .. }), "{error}");
}

use std::time::{Duration, Instant};

use kiln_guest::{GuestError, sh_quote};
use kiln_host::wait::{Control, Interrupted};

use crate::{Lab, control, until};

#[tokio::test]
async fn a_command_has_its_input_both_outputs_and_its_code() {
    let Some(lab) = Lab::start().await else { return };
    let output = lab.guest.exec("cat; echo problem >&2; exit 3", b"to be \0 read", &control()).await.unwrap();
    assert_eq!(output.code, 3);
    assert_eq!(output.stdout, b"to be \0 read");
    assert_eq!(output.stderr, b"problem\n");
    assert_eq!(output.excerpt(), "problem");
    for code in [0, 1, 126, 255] {
        let output = lab.guest.exec(&format!("exit {code}"), b"", &control()).await.unwrap();
        assert_eq!(output.code, code);
    }
    // Input that nobody reads does not hang anything.
    let unread = vec![b'x'; 8 << 20];
    assert_eq!(lab.guest.exec("exit 7", &unread, &control()).await.unwrap().code, 7);
    let word = "it's $HOME `id` \\ \n *";
    let echoed = lab.guest.exec(&format!("printf %s {}", sh_quote(word)), b"", &control()).await.unwrap();
    assert_eq!(echoed.stdout, word.as_bytes());
}

#[tokio::test]
async fn too_much_output_and_signals_are_errors_of_their_own() {
    let Some(lab) = Lab::start().await else { return };
    let error = lab.guest.exec("yes", b"", &control()).await.unwrap_err();
    assert!(matches!(error, GuestError::OutputTooLong { .. }), "{error:?}");
    let error = lab.guest.exec("kill -9 $$", b"", &control()).await.unwrap_err();
    assert!(matches!(&error, GuestError::CommandKilled { signal, .. } if signal == "KILL"), "{error:?}");
    // The session is fine after both.
    assert_eq!(lab.proxy.connections(), 1);
    assert!(lab.guest.exec("true", b"", &control()).await.unwrap().success());
    assert_eq!(lab.proxy.connections(), 1);
}

#[tokio::test]
async fn a_command_is_not_repeated_when_its_link_breaks() {
    let Some(lab) = Lab::start().await else { return };
    let ran = lab.server.home().join("ran");
    let cut = async {
        until(|| ran.exists().then_some(())).await;
        lab.proxy.cut();
    };
    let control = control();
    let (outcome, ()) = tokio::join!(lab.guest.exec("echo x >> ~/ran; sleep 5", b"", &control), cut);
    assert!(matches!(outcome, Err(GuestError::LinkLost { .. })), "{outcome:?}");
    assert!(lab.guest.exec("true", b"", &control).await.unwrap().success());
    assert_eq!(std::fs::read_to_string(&ran).unwrap(), "x\n");
}

#[tokio::test]
async fn a_command_without_end_ends_with_its_control() {
    let Some(lab) = Lab::start().await else { return };
    let begin = Instant::now();
    let error =
        lab.guest.exec("sleep 60", b"", &Control::ending_in(Duration::from_millis(300))).await.unwrap_err();
    assert_eq!(error.interrupted(), Some(Interrupted::DeadlinePassed));
    assert!(begin.elapsed() < Duration::from_secs(2));
}

//! The lab is judged before it judges: by pywinrm, pypsrp and winrm-rs (check.py), and by the harness that tests use.
//!
//! None of this is a test of Windows; what the lab is and is not says tests/lab/README.md.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by a panic")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use kiln_tests::lab::Lab;
use kiln_tests::program::{command, finish, say};
use kiln_tests::{settings, skip};
use serde_json::json;

/// All of check.py on a loaded machine with two processors; 70 s on a quiet one.
const JUDGES_LIMIT: Duration = Duration::from_secs(8 * 60);

#[test]
fn other_peoples_clients_hold_it_for_winrm() {
    let Some(place) = settings::lab() else { skip!("the lab is not installed: run scripts/lab") };
    let mut check = command(place.join("bin/python"));
    check.arg("-B").arg(settings::repository().join("tests/lab/check.py"));
    if let Some(peer) = settings::lab_peer() {
        check.env("KILN_LAB_PEER", peer);
    }
    let ended = finish(&mut check, JUDGES_LIMIT);
    for line in ended.text().lines().filter(|line| line.starts_with("skipped")) {
        say(line);
    }
    assert!(ended.status.success(), "{}\n{}", ended.text(), ended.stderr);
}

/// One request on a connection of its own; the whole answer.
fn ask(lab: &Lab) -> String {
    let mut stream = TcpStream::connect(lab.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let head = "POST /wsman HTTP/1.1\r\nHost: lab\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // A reset is an answer too.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

#[test]
fn the_harness_spoils_and_counts() {
    let Some(lab) = Lab::start(&[]) else { skip!("the lab is not installed: run scripts/lab") };
    assert!(ask(&lab).starts_with("HTTP/1.1 401"), "who does not say who he is, is asked");
    lab.rules(&json!([{"on": "auth", "fault": "status", "code": 503}, {"on": "auth", "fault": "close"}]));
    assert!(ask(&lab).starts_with("HTTP/1.1 503"), "the first rule");
    assert_eq!(ask(&lab), "", "the second rule");
    assert!(ask(&lab).starts_with("HTTP/1.1 401"), "no rule any more");
    assert_eq!(lab.fired(), [1, 1]);
    assert_eq!(lab.requests("none"), 4);
    assert_eq!(lab.state()["boot"], 1);
    assert!(lab.pin().is_none() && lab.url().starts_with("http://"));
}

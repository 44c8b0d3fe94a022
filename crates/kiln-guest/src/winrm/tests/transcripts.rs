//! What the recorder takes down, and the transcripts that people sent in (`tests/fixtures/winrm-transcripts`).
//!
//! One judge for both: every answer is understood, every request is what this client would send, nothing is missing,
//! and the head claims no more than its facts give.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::recorded::{Exchange, flat, ours};
use super::server::{PASSWORD, Reply, Server, control, limits, output};
use crate::os::windows::facts::WindowsFacts;
use crate::os::windows::proof::{DiskWords, Proof};
use crate::os::windows::secret_line;
use crate::winrm::answer::{self, Answer};
use crate::winrm::recorder::Recorder;
use crate::winrm::redact::MARK;
use crate::winrm::soap::{self, Frame, ShellOptions};
use crate::winrm::xml::Element;
use crate::winrm::{CommandLine, FaultCode, LinkFailure, WinrmGuest, WinrmLogin};

/// What is wrong with an exchange; `None` where it is as it should be.
fn complaint(exchange: &Exchange) -> Option<String> {
    let here =
        |what: String| Some(format!("{} {} {}: {what}", exchange.file, exchange.action, exchange.message_id));
    let Some(request) = &exchange.request else { return here("no request".to_owned()) };
    let theirs = match Element::parse(request) {
        Ok(root) => root,
        Err(error) => return here(format!("the request: {error}")),
    };
    let identify = exchange.action == soap::IDENTIFY;
    let again = if identify { Some(soap::identify().envelope) } else { ours(exchange, &theirs) };
    let shape = |text: &str| -> Vec<String> { flat(text).into_iter().map(without_input).collect() };
    match again {
        None => return here("no request of this client".to_owned()),
        Some(again) if shape(&again) != shape(request) => {
            let (again, theirs) = (shape(&again), shape(request));
            let differ: Vec<&String> = theirs
                .iter()
                .filter(|line| !again.contains(line))
                .chain(again.iter().filter(|line| !theirs.contains(line)))
                .collect();
            return here(format!("the request differs: {differ:#?}"));
        }
        Some(_) => {}
    }
    let response = exchange.response.as_ref()?;
    let read =
        if identify { answer::read_identity(response) } else { answer::read(response, &exchange.message_id) };
    let body = match read {
        Err(error) => return here(format!("the answer: {error}")),
        Ok(Answer::Fault(fault)) if fault.code.number() == 0 => {
            return here(format!("a fault of no kind: {fault}"));
        }
        Ok(Answer::Fault(_)) => return None,
        Ok(Answer::Body(body)) => body,
    };
    let understood = match exchange.action.as_str() {
        "Create" => answer::shell_id(&body).map(drop),
        "Command" => answer::command_id(&body).map(drop),
        "Receive" => {
            let command = theirs.find("DesiredStream").and_then(|stream| stream.attribute("CommandId"));
            answer::received(&body, command.unwrap_or_default()).map(drop)
        }
        _ => Ok(()),
    };
    understood.err().and_then(|error| here(format!("the answer: {error}")))
}

/// Of what was sent to a command, how much it was is known only.
fn without_input(line: String) -> String {
    match line.split_once(" Name=stdin = ") {
        Some((stream, _)) => format!("{stream} Name=stdin"),
        None => line,
    }
}

/// What is wrong with a transcript as a file: its head, and each of its lines.
fn complaints(name: &str, text: &str) -> Vec<String> {
    let Some((head, rest)) = text.split_once('\n') else { return vec![format!("{name}: no lines")] };
    let head: Value = match serde_json::from_str(head) {
        Ok(head) => head,
        Err(error) => return vec![format!("{name}: the head: {error}")],
    };
    let mut found = Vec::new();
    let mut check = |good: bool, what: &str| {
        if !good {
            found.push(format!("{name}: {what}"));
        }
    };
    check(head["kind"] == "transcript" && head["format"] == 1, "it is no transcript of format 1");
    check(head["name"] == name, "it names another file");
    let digest = kiln_host::digest::hex(&Sha256::digest(rest));
    check(head["exchangesSha256"] == digest.as_str(), "its exchanges are not those that were written");
    check(head["exchanges"] == rest.lines().count(), "it has another number of exchanges than it says");
    let facts: Option<WindowsFacts> = serde_json::from_value(head["guest"].clone()).unwrap_or_default();
    let disk: Option<DiskWords> = serde_json::from_value(head["disk"].clone()).unwrap_or_default();
    let failure = (head["outcome"] != "Succeeded").then(|| head["message"].as_str().unwrap_or_default());
    let proof = Proof::of(facts.as_ref(), disk.as_ref());
    check(
        head["proof"] == proof.of_run(name, failure).as_str(),
        "it claims something else than its facts give",
    );
    check(
        name.starts_with(&format!("transcript-{}", proof.file_part(facts.as_ref()))),
        "its name is another guest's",
    );
    for line in rest.lines() {
        match serde_json::from_str::<Value>(line) {
            // There was no room for it, or there was no answer.
            Ok(value) if value["omitted"] == true => {}
            Ok(value) => match Exchange::read(&value, name) {
                Some(exchange) => found.extend(complaint(&exchange)),
                None => found.push(format!("{name}: a line is no exchange")),
            },
            Err(error) => found.push(format!("{name}: {error}")),
        }
    }
    found
}

#[test]
fn transcripts_that_were_sent_in_are_understood() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/winrm-transcripts");
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            let name = path.file_name().unwrap().to_string_lossy();
            let found = complaints(&name, &std::fs::read_to_string(&path).unwrap());
            assert!(found.is_empty(), "{found:#?}");
            seen += 1;
        }
    }
    println!("{seen} transcripts");
}

/// A file in memory.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Memory {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    fn exchanges(&self) -> Vec<Exchange> {
        let text = self.text();
        text.lines()
            .map(|line| Exchange::read(&serde_json::from_str(line).unwrap(), "here").unwrap())
            .collect()
    }
}

/// A server whose commands say `outputs`, one after the other, when they have their input.
async fn server_that_reads(tls: bool, outputs: &[String]) -> Server {
    let left = Mutex::new((false, VecDeque::from(outputs.to_vec())));
    Server::start(tls, move |seen| {
        let (fed, outputs) = &mut *left.lock().unwrap();
        *fed |= seen.action == "Send";
        match (seen.action.as_str(), &fed) {
            ("Receive", true) => outputs.pop_front().map(Reply::Body),
            ("Receive", false) => Some(Reply::Fault(FaultCode::OperationTimedOut.number())),
            _ => None,
        }
    })
    .await
}

async fn recorded_guest(server: &Server, recorder: &Recorder) -> WinrmGuest {
    let login = WinrmLogin { recorder: Some(recorder.clone()), ..server.login() };
    WinrmGuest::connect_with(login, limits(), |_| (), &control()).await.unwrap()
}

#[tokio::test]
async fn every_exchange_is_taken_down_as_it_was_in_the_plain() {
    let outputs = [output("one ", "", None), output("two", "bad", Some(3))];
    for server in [server_that_reads(true, &outputs).await, server_that_reads(false, &outputs).await] {
        let memory = Memory::default();
        let recorder = Recorder::new(memory.clone());
        let guest = recorded_guest(&server, &recorder).await;
        let line = CommandLine::cmd("a test", "echo <x> & \"y\"");
        let done = guest.exec(&line, Some(b"some input"), &control()).await.unwrap();
        assert_eq!((done.code, done.text().as_str()), (3, "one two"));
        guest.close().await;
        let exchanges = memory.exchanges();
        let mut actions: Vec<&str> = exchanges.iter().map(|exchange| exchange.action.as_str()).collect();
        actions.sort_unstable();
        let mut seen: Vec<String> = server.seen().into_iter().map(|seen| seen.action).collect();
        seen.sort_unstable();
        assert_eq!(actions, seen);
        let found: Vec<String> = exchanges.iter().filter_map(complaint).collect();
        assert!(found.is_empty(), "{found:#?}");
        let tally = recorder.finish().unwrap();
        assert_eq!((tally.exchanges, tally.omitted), (u64::try_from(exchanges.len()).unwrap(), 0));
        let text = memory.text();
        assert!(text.contains("echo &lt;x&gt;") && text.contains("[10 bytes, sha256 "), "{text}");
        let fault = exchanges.iter().find(|exchange| exchange.status == 500).unwrap();
        assert!(fault.response.is_some(), "a fault is an answer");
    }
}

/// Everything in which the secret can reach a client, on both ways.
#[tokio::test]
async fn a_secret_reaches_no_line_wherever_it_stands() {
    let canary = "Canary-<&>'\"-4711-0815-secret";
    let (first, last) = canary.split_at(canary.len() / 2);
    let utf16 = |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
    let outputs = [
        output(&format!("x {canary} {PASSWORD} y {first}"), "", None),
        output(&format!("{last} {}", BASE64.encode(utf16(canary))), canary, Some(0)),
    ];
    let server = server_that_reads(false, &outputs).await;
    server.say("Signal", Reply::Http(503, "Canary-<&>'\"-4711-0815-secret"));
    let memory = Memory::default();
    let recorder = Recorder::new(memory.clone());
    recorder.hide(canary);
    let guest = recorded_guest(&server, &recorder).await;
    let encoded = BASE64.encode(utf16(&format!("Set-X {canary}")));
    let line = CommandLine::cmd(
        "a test",
        format!("net user {canary} & powershell -EncodedCommand {encoded} {PASSWORD}"),
    );
    guest.exec(&line, Some(secret_line("never-hidden-input").as_bytes()), &control()).await.unwrap();
    guest.close().await;
    // What no code of ours asks for yet.
    let frame = Frame {
        to: "https://127.0.0.1/wsman".to_owned(),
        operation_timeout: Duration::from_secs(1),
        session: uuid::Uuid::nil(),
    };
    let options = ShellOptions {
        environment: vec![("A".to_owned(), "never-hidden-a".to_owned()), ("B".to_owned(), canary.to_owned())],
        ..ShellOptions::default()
    };
    let failure = LinkFailure::NotWinrm { said: format!("who is {canary}") };
    recorder.begin(&frame.create(&options)).failed(Some(500), &failure);
    drop(recorder.begin(&frame.send("S", "C", b"never-hidden-piece", false)));
    recorder.finish().unwrap();

    let text = memory.text();
    // The bytes under each encoding that the file has: XML's, base64's, UTF-16's.
    let mut layers = vec![text.clone()];
    for word in text.split(|c: char| !(c.is_ascii_alphanumeric() || "+/=".contains(c))) {
        if let Ok(bytes) = BASE64.decode(word) {
            layers.push(String::from_utf8_lossy(&bytes).into_owned());
            let units: Vec<u16> =
                bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
            layers.push(String::from_utf16_lossy(&units));
        }
    }
    for layer in &layers {
        for secret in ["4711-0815", PASSWORD, "never-hidden", "0815-secret"] {
            assert!(!layer.contains(secret), "{secret} in {layer}");
        }
    }
    for never in ["Authorization", "Negotiate ", "TlRMTVNT"] {
        assert!(!text.contains(never), "{never}");
    }
    assert!(text.matches(MARK).count() >= 6, "{text}");
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["failure"], "given up before there was an answer");
    // And it is still what the replay reads.
    let answered: Vec<Exchange> =
        memory.exchanges().into_iter().filter(|exchange| exchange.response.is_some()).collect();
    let found: Vec<String> = answered.iter().filter_map(complaint).collect();
    assert!(found.is_empty(), "{found:#?}");
}

/// A transcript of the smallest kind, as `kiln certify-windows` writes its own.
fn transcript(name: &str, facts: &str, disk: &str, proof: &str, exchanges: &str) -> String {
    let digest = kiln_host::digest::hex(&Sha256::digest(exchanges));
    let count = exchanges.lines().count();
    format!(
        "{{\"kind\":\"transcript\",\"format\":1,\"name\":\"{name}\",\"outcome\":\"Succeeded\",\"guest\":{facts},\
         \"disk\":{disk},\"proof\":\"{proof}\",\"exchanges\":{count},\"exchangesSha256\":\"{digest}\"}}\n{exchanges}"
    )
}

#[tokio::test]
async fn a_transcript_that_claims_too_much_or_was_changed_is_found() {
    let server = Server::tls().await;
    let memory = Memory::default();
    let recorder = Recorder::new(memory.clone());
    let guest = recorded_guest(&server, &recorder).await;
    guest.exec(&CommandLine::cmd("a test", "echo x"), None, &control()).await.unwrap();
    guest.close().await;
    let lines = memory.text();
    let lab = r#"{"name":"Kiln lab (Linux, no Windows)","version":"0.0.0","revision":0,"edition":"Lab","pendingRestart":[],"unread":[]}"#;
    let disk = r#"{"name":"Kiln lab (Linux, no Windows)","build":"0.0"}"#;
    let name = "transcript-lab-no-windows-20260101T000000Z.jsonl";
    let good = transcript(name, lab, disk, "lab-tested (no Windows)", &lines);
    assert_eq!(complaints(name, &good), [""; 0]);
    let failed = good.replace("Succeeded\"", "Failed\",\"message\":\"it is gone\"");
    assert_eq!(
        complaints(name, &failed.replace("lab-tested (no Windows)\"", "failed: it is gone\"")),
        [""; 0]
    );
    let bad = [
        failed,
        transcript(
            name,
            lab,
            disk,
            &format!("verified on Windows 10.0.20348.1 by transcript {name}"),
            &lines,
        ),
        transcript(name, "null", "null", "lab-tested (no Windows)", &lines),
        // Cut, and put together again.
        good[..good.len() - 10].to_owned(),
        good.replace("\"exchanges\":", "\"exchanges\":1"),
        good.replace("echo x", "echo y"),
        transcript(name, lab, disk, "lab-tested (no Windows)", &lines.replace("TRUE", "MAYBE")),
        transcript(
            name,
            lab,
            disk,
            "lab-tested (no Windows)",
            &lines.replace("RelatesTo>uuid:", "RelatesTo>uuid:0"),
        ),
        transcript(name, lab, disk, "lab-tested (no Windows)", &lines.replace("</s:Body>", "")),
        String::new(),
    ];
    for (number, text) in bad.iter().enumerate() {
        assert!(!complaints(name, text).is_empty(), "{number}");
    }
    let other = "transcript-windows-serverdatacenter-10.0.20348.1-20260101T000000Z.jsonl";
    assert!(!complaints(other, &good.replace(name, other)).is_empty());
}

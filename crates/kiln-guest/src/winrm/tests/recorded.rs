//! The client against exchanges that others recorded from real machines (`tests/fixtures/winrm-recorded`).
//!
//! Three questions: is every recorded answer understood; does the client, driven through a recorded conversation, ask
//! what was asked there and take what was answered; and in what do its requests differ from those that were accepted.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::server::{Reply, Seen, Server, control};
use crate::session::Stream;
use crate::winrm::answer::{self, Answer};
use crate::winrm::guest::{Ended, Input};
use crate::winrm::soap::{Frame, ShellOptions};
use crate::winrm::xml::Element;
use crate::winrm::{CommandLine, FaultCode, Remedy, WinrmError};

pub(super) struct Exchange {
    pub(super) file: String,
    /// The last part of the action's address.
    pub(super) action: String,
    pub(super) message_id: String,
    pub(super) status: u16,
    pub(super) request: Option<String>,
    pub(super) response: Option<String>,
}

impl Exchange {
    /// From a line of the corpus, or of a transcript, which names no recording: `file` does.
    pub(super) fn read(value: &Value, file: &str) -> Option<Self> {
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        Some(Self {
            file: text("file").unwrap_or_else(|| file.to_owned()),
            action: text("action")?.rsplit('/').next()?.to_owned(),
            message_id: text("message_id").unwrap_or_default(),
            status: value["status"].as_u64().unwrap_or_default().try_into().ok()?,
            request: text("request"),
            response: text("response"),
        })
    }
}

fn recorded() -> Vec<Exchange> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/winrm-recorded/exchanges.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| Exchange::read(&serde_json::from_str(line).unwrap(), "").unwrap()).collect()
}

#[test]
fn every_recorded_answer_is_understood() {
    let exchanges = recorded();
    assert_eq!(exchanges.len(), 521);
    let (mut bodies, mut faults, mut astray) = (0, Vec::new(), 0);
    for exchange in &exchanges {
        let Some(response) = &exchange.response else { continue };
        let here = format!("{} {}", exchange.file, exchange.action);
        let answer = match answer::read(response, &exchange.message_id) {
            Ok(answer) => answer,
            // One recording was put together from two.
            Err(answer::AnswerError::NotOurs { .. }) if exchange.file == "winrs_unicode" => {
                astray += 1;
                continue;
            }
            Err(error) => panic!("{here}: {error}"),
        };
        match answer {
            Answer::Body(body) => {
                bodies += 1;
                assert_eq!(exchange.status, 200, "{here}");
                match exchange.action.as_str() {
                    "Create" => assert_eq!(answer::shell_id(&body).unwrap().len(), 36, "{here}"),
                    "Command" => assert_eq!(answer::command_id(&body).unwrap().len(), 36, "{here}"),
                    "Receive" => {
                        let id = body.find("CommandState").and_then(|state| state.attribute("CommandId"));
                        let received = answer::received(&body, id.unwrap_or_default());
                        // A pipeline of PowerShell's own protocol ends without an exit code; a command does not.
                        match received {
                            Ok(_) => {}
                            Err(answer::AnswerError::NoExitCode)
                                if exchange.file.starts_with("psrp")
                                    || exchange.file.starts_with("client") => {}
                            Err(error) => panic!("{here}: {error}"),
                        }
                    }
                    _ => {}
                }
            }
            Answer::Fault(fault) => {
                assert_ne!(fault.code.number(), 0, "{here}: {fault}");
                faults.push(fault.code);
            }
        }
    }
    assert_eq!((bodies + faults.len() + astray, astray), (520, 1));
    let known: BTreeSet<u32> = faults.iter().map(|code| code.number()).collect();
    assert_eq!(known, BTreeSet::from([87, 0x8007_0002, 0x8033_800F, 0x8033_8029, 0x8033_805B]));
    let polls = faults.iter().filter(|code| code.remedy() == Remedy::PollAgain).count();
    assert!(polls >= 2);
}

/// A request as lines, one for each element with its attributes and text; what is new in each request is left out.
pub(super) fn flat(request: &str) -> Vec<String> {
    fn walk(element: &Element, path: &str, lines: &mut Vec<String>) {
        let path = format!("{path}/{}", element.name);
        let mut attributes = element.attributes.clone();
        attributes.sort();
        let attributes: String =
            attributes.iter().map(|(name, value)| format!(" {name}={}", any_id(value))).collect();
        let text = match element.name.as_str() {
            "MessageID" | "SessionId" | "To" => "…".to_owned(),
            _ => any_id(element.text.trim()),
        };
        lines.push(format!("{path}{attributes} = {text}"));
        for child in &element.children {
            walk(child, &path, lines);
        }
    }
    let mut lines = Vec::new();
    walk(&Element::parse(request).unwrap(), "", &mut lines);
    lines
}

fn any_id(text: &str) -> String {
    if Uuid::try_parse(text).is_ok() { "ID".to_owned() } else { text.to_owned() }
}

/// Our request for what a recorded one asked, or `None` for what we never ask.
pub(super) fn ours(exchange: &Exchange, theirs: &Element) -> Option<String> {
    let text = |name: &str| theirs.find(name).map(|element| element.text.clone());
    let seconds =
        |text: String| -> u64 { text.trim_start_matches("PT").trim_end_matches('S').parse().unwrap() };
    let frame = Frame {
        to: text("To").unwrap(),
        operation_timeout: Duration::from_secs(seconds(text("OperationTimeout").unwrap())),
        session: Uuid::new_v4(),
    };
    let option = |name: &str| {
        let set = theirs.find("OptionSet")?;
        set.children
            .iter()
            .find(|option| option.attribute("Name") == Some(name))
            .map(|option| option.text.clone())
    };
    let shell = theirs.find("SelectorSet").map(Element::all_text).unwrap_or_default();
    let body = theirs.child("Body").unwrap();
    Some(
        match exchange.action.as_str() {
            "Create" => {
                let environment = body.find("Environment").map(|environment| {
                    let pair = |variable: &Element| {
                        (variable.attribute("Name").unwrap().to_owned(), variable.text.clone())
                    };
                    environment.children.iter().map(pair).collect()
                });
                frame.create(&ShellOptions {
                    no_profile: option("WINRS_NOPROFILE").is_some(),
                    environment: environment.unwrap_or_default(),
                    working_directory: text("WorkingDirectory"),
                    name: body.find("Name").map(|name| name.text.clone()),
                    idle_timeout: text("IdleTimeOut").map(|text| Duration::from_secs(seconds(text))),
                    lifetime: text("Lifetime").map(|text| Duration::from_secs(seconds(text))),
                })
            }
            "Command" => {
                let line = body.find("CommandLine").unwrap();
                let arguments: Vec<String> =
                    line.children_named("Arguments").map(|a| a.text.clone()).collect();
                let set = |name: &str, unsaid| {
                    option(name).map_or(unsaid, |flag| flag.eq_ignore_ascii_case("true"))
                };
                let (console, skip) =
                    (set("WINRS_CONSOLEMODE_STDIN", true), set("WINRS_SKIP_CMD_SHELL", false));
                frame.command(&shell, &text("Command").unwrap(), &arguments, console, skip)
            }
            "Receive" => frame.receive(&shell, theirs.find("DesiredStream").unwrap().attribute("CommandId")?),
            "Send" => {
                let stream = theirs.find("Stream").unwrap();
                // A transcript says of input only how much it was.
                let bytes = BASE64.decode(&stream.text).unwrap_or_default();
                let end = stream.attribute("End").is_some_and(|end| end.eq_ignore_ascii_case("true"));
                frame.send(&shell, stream.attribute("CommandId").unwrap(), &bytes, end)
            }
            "Signal" => {
                frame.terminate(&shell, theirs.find("Signal").unwrap().attribute("CommandId").unwrap())
            }
            "Delete" => frame.delete(&shell),
            action => panic!("{action}"),
        }
        .envelope,
    )
}

/// Each way in which a request of ours differs from the recorded one for the same thing, and why.
/// `-` is in the recorded one only, `+` in ours only.
const DIFFERENCES: &[(&str, &str)] = &[
    // Booleans of options are written as Windows' own client writes them.
    ("- /Envelope/Header/OptionSet/Option Name=WINRS_SKIP_CMD_SHELL = False", "upper case"),
    ("- /Envelope/Header/OptionSet/Option Name=WINRS_SKIP_CMD_SHELL = True", "upper case"),
    ("+ /Envelope/Header/OptionSet/Option Name=WINRS_SKIP_CMD_SHELL = FALSE", "upper case"),
    ("+ /Envelope/Header/OptionSet/Option Name=WINRS_SKIP_CMD_SHELL = TRUE", "upper case"),
    ("- /Envelope/Header/OptionSet/Option Name=WSMAN_CMDSHELL_OPTION_KEEPALIVE = True", "upper case"),
    ("+ /Envelope/Header/OptionSet/Option Name=WSMAN_CMDSHELL_OPTION_KEEPALIVE = TRUE", "upper case"),
    (
        "- /Envelope/Body/Send/Stream CommandId=ID End=True Name=stdin = V3JpdGUtSG9zdCAib3V0cHV0IDIiOw==",
        "xs:boolean",
    ),
    (
        "+ /Envelope/Body/Send/Stream CommandId=ID End=true Name=stdin = V3JpdGUtSG9zdCAib3V0cHV0IDIiOw==",
        "xs:boolean",
    ),
    (
        "- /Envelope/Body/Send/Stream CommandId=ID End=False Name=stdin = V3JpdGUtSG9zdCAib3V0cHV0IDEiOw==",
        "the default",
    ),
    (
        "+ /Envelope/Body/Send/Stream CommandId=ID Name=stdin = V3JpdGUtSG9zdCAib3V0cHV0IDEiOw==",
        "the default",
    ),
    // UTF-8 in every shell; the recorded client asks for it only when told to.
    ("+ /Envelope/Header/OptionSet mustUnderstand=true = ", "our shells have options"),
    ("+ /Envelope/Header/OptionSet/Option Name=WINRS_CODEPAGE = 65001", "UTF-8 always"),
    // A server that does not know them may go on.
    ("- /Envelope/Header/OptionSet/Option MustComply=true Name=WINRS_NOPROFILE = TRUE", "no must"),
    ("+ /Envelope/Header/OptionSet/Option Name=WINRS_NOPROFILE = TRUE", "no must"),
    // Whether input is a pipe or a console is said with each command.
    ("+ /Envelope/Header/OptionSet/Option Name=WINRS_CONSOLEMODE_STDIN = TRUE", "always said"),
    // After its end a command is always terminated; the recorded tests try out another signal.
    (
        "- /Envelope/Body/Signal/Code = http://schemas.microsoft.com/wbem/wsman/1/windows/shell/signal/ctrl_c",
        "terminate",
    ),
    (
        "+ /Envelope/Body/Signal/Code = http://schemas.microsoft.com/wbem/wsman/1/windows/shell/signal/terminate",
        "terminate",
    ),
];

#[test]
fn our_requests_differ_from_recorded_ones_only_as_listed() {
    let mut found = BTreeSet::new();
    let mut compared = 0;
    for exchange in recorded() {
        let Some(request) = &exchange.request else { continue };
        let theirs = Element::parse(request).unwrap();
        let Some(ours) = ours(&exchange, &theirs) else { continue };
        compared += 1;
        let (theirs, ours) = (flat(request), flat(&ours));
        let only = |these: &[String], those: &[String], sign: &str| -> Vec<String> {
            these.iter().filter(|line| !those.contains(line)).map(|line| format!("{sign} {line}")).collect()
        };
        found.extend(only(&theirs, &ours, "-"));
        found.extend(only(&ours, &theirs, "+"));
        // The order of what is in a body counts for Windows.
        let body = |lines: &[String]| -> Vec<String> {
            lines
                .iter()
                .filter_map(|line| line.split_once("/Body/"))
                .map(|(_, rest)| rest.split([' ', '=']).next().unwrap().to_owned())
                .collect()
        };
        assert_eq!(body(&theirs), body(&ours), "{} {}", exchange.file, exchange.action);
    }
    assert!(compared >= 60, "{compared}");
    let listed: BTreeSet<String> = DIFFERENCES.iter().map(|(line, _)| (*line).to_owned()).collect();
    let unlisted: Vec<&String> = found.difference(&listed).collect();
    assert!(unlisted.is_empty(), "not listed: {unlisted:#?}");
    let stale: Vec<&String> = listed.difference(&found).collect();
    assert!(stale.is_empty(), "no longer true: {stale:#?}");
}

/// What is said again of a conversation: each exchange once, found by its action and body.
struct Replay {
    exchanges: Vec<(Exchange, bool)>,
}

impl Replay {
    fn of(file: &str) -> Self {
        let exchanges = recorded().into_iter().filter(|exchange| exchange.file == file);
        Self { exchanges: exchanges.map(|exchange| (exchange, false)).collect() }
    }

    fn answer(&mut self, seen: &Seen) -> Option<Reply> {
        if seen.action == "Identify" {
            return None;
        }
        // Output was recorded after all input was sent.
        let unsent = self.exchanges.iter().any(|(exchange, used)| exchange.action == "Send" && !used);
        if seen.action == "Receive" && unsent {
            return Some(Reply::Fault(FaultCode::OperationTimedOut.number()));
        }
        let wanted = key(&seen.root, &seen.action);
        let next = self.exchanges.iter_mut().find(|(exchange, used)| {
            let theirs = exchange.request.as_ref().map(|request| Element::parse(request).unwrap());
            !used
                && exchange.action == seen.action
                && theirs.is_some_and(|theirs| key(&theirs, &seen.action) == wanted)
        });
        Some(match next {
            Some((exchange, used)) => {
                *used = true;
                let response = exchange.response.clone().unwrap();
                let head = response.split("RelatesTo>").nth(1).unwrap();
                let relates_to = head.split('<').next().unwrap().to_owned();
                Reply::Envelope(exchange.status, response.replace(&relates_to, &seen.message_id))
            }
            None => Reply::Body(format!("<not-recorded>{wanted}</not-recorded>")),
        })
    }
}

/// What tells one request of a conversation from another. Shells are made in our way, and ended in ours.
fn key(root: &Element, action: &str) -> String {
    let body = root.child("Body").unwrap();
    match action {
        "Command" => {
            let line = body.find("CommandLine").unwrap();
            let words: Vec<&str> = line.children.iter().map(|child| child.text.as_str()).collect();
            format!("{words:?}")
        }
        "Receive" => {
            body.find("DesiredStream").and_then(|s| s.attribute("CommandId")).unwrap_or_default().to_owned()
        }
        "Send" => {
            let stream = body.find("Stream").unwrap();
            let end = stream.attribute("End").is_some_and(|end| end.eq_ignore_ascii_case("true"));
            format!("{} {end}", stream.text)
        }
        "Signal" => body.find("Signal").and_then(|s| s.attribute("CommandId")).unwrap_or_default().to_owned(),
        _ => String::new(),
    }
}

/// Runs the commands of one recording and gives what each printed.
async fn replay(
    file: &str,
    lines: &[CommandLine],
    input: &[&str],
) -> Vec<Result<(String, String, u32), WinrmError>> {
    let conversation = Arc::new(Mutex::new(Replay::of(file)));
    let inside = Arc::clone(&conversation);
    let server = Server::start(true, move |seen| inside.lock().unwrap().answer(seen)).await;
    let guest = server.guest().await;
    let mut ends = Vec::new();
    for line in lines {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (sender, pieces) = mpsc::channel(8);
        for piece in input {
            sender.send(piece.as_bytes().to_vec()).await.unwrap();
        }
        drop(sender);
        let mut sent = |_| ();
        let stdin = if input.is_empty() { Input::None } else { Input::Pieces(pieces, &mut sent) };
        let mut sink = |stream, bytes: &[u8]| {
            match stream {
                Stream::Stdout => stdout.extend_from_slice(bytes),
                Stream::Stderr => stderr.extend_from_slice(bytes),
            }
            ControlFlow::Continue(())
        };
        let ended = guest.run_with(line, stdin, &mut sink, &control()).await;
        let text = |bytes| String::from_utf8(bytes).unwrap();
        ends.push(ended.map(|ended| match ended {
            Ended::Exited(end) => (text(stdout), text(stderr), end.code),
            Ended::Stopped => panic!("nobody stopped it"),
        }));
    }
    guest.close().await;
    for (exchange, used) in &conversation.lock().unwrap().exchanges {
        assert!(used, "{file}: {} was not asked for", exchange.action);
    }
    ends
}

fn cmd(command: &str, arguments: &[&str]) -> CommandLine {
    CommandLine::cmd_with("a test", command, arguments.iter().map(|&text| text.to_owned()).collect())
}

/// Recording, command, input; standard output, standard error, exit code.
type Case = (&'static str, CommandLine, &'static [&'static str], (&'static str, &'static str, u32));

#[tokio::test]
async fn recorded_conversations_are_held_again() {
    let exact: &[Case] = &[
        ("winrs_standard", cmd("cmd.exe", &["/c", "echo", "hi"]), &[], ("hi\r\n", "", 0)),
        (
            "winrs_stderr_rc",
            cmd("cmd.exe", &["/c echo out && echo err>&2 && exit 1"]),
            &[],
            ("out \r\n", "err \r\n", 1),
        ),
        ("winrs_unicode", cmd("powershell.exe", &["Write-Host こんにちは"]), &[], ("こんにちは\n", "", 0)),
        ("winrs_extra_opts", cmd("powershell.exe", &["(pwd).Path"]), &[], ("C:\\Windows\r\n", "", 0)),
        (
            "winrs_send",
            cmd("powershell.exe", &["-"]),
            &["Write-Host \"output 1\";", "Write-Host \"output 2\";"],
            ("output 1\noutput 2\n", "", 0),
        ),
        (
            "winrs_operation_timeout",
            cmd("powershell.exe", &["Write-Host hi; Start-Sleep 30; Write-Host hi again"]),
            &[],
            ("hi\nhi again\n", "", 0),
        ),
    ];
    for (file, line, input, (stdout, stderr, code)) in exact {
        let mut ends = replay(file, std::slice::from_ref(line), input).await;
        let end = ends.remove(0).unwrap();
        assert_eq!(end, ((*stdout).to_owned(), (*stderr).to_owned(), *code), "{file}");
    }
    let set = cmd("cmd.exe", &["/c", "set"]);
    for (file, expected) in
        [("winrs_environment", "1234=5678"), ("winrs_noprofile", r"USERPROFILE=C:\Users\Default")]
    {
        let (stdout, _, code) = replay(file, std::slice::from_ref(&set), &[]).await.remove(0).unwrap();
        assert!(stdout.lines().any(|line| line == expected) && code == 0, "{file}: {stdout}");
    }
}

#[tokio::test]
async fn a_recorded_refusal_says_what_the_shell_said() {
    let program =
        |path: &str| CommandLine::program("a test", path, vec!["Write-Host".to_owned(), "hi".to_owned()]);
    let lines =
        [program("powershell.exe"), program(r"C:\Windows\system32\WindowsPowerShell\v1.0\powershell.exe")];
    let mut ends = replay("winrs_no_cmd_shell", &lines, &[]).await;
    assert_eq!(ends.pop().unwrap().unwrap(), ("hi\n".to_owned(), String::new(), 0));
    match ends.pop().unwrap().unwrap_err() {
        WinrmError::Fault { fault, .. } => {
            assert_eq!(fault.code, FaultCode::FileNotFound);
            assert_eq!(fault.provider.as_deref(), Some("The system cannot find the file specified."));
        }
        error => panic!("{error}"),
    }
}

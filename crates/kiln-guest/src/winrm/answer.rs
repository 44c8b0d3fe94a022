//! The answers of WinRM, read.
//!
//! Tolerant of what servers differ in (prefixes, order, what is left out), strict in what would be taken for
//! another's answer: a missing or wrong `RelatesTo`, a stream of another command, an exit code that is no number.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::fault::Fault;
use super::xml::{Element, XmlError};
use crate::error::excerpt;
use crate::session::Stream;

/// Why an answer could not be used.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error("the answer cannot be read")]
    Xml(#[from] XmlError),
    #[error("the answer has no {what}")]
    Missing { what: &'static str },
    #[error("the answer belongs to the request {got}, not to {expected}")]
    NotOurs { expected: String, got: String },
    #[error("the answer's {stream} is no base64")]
    Base64 { stream: String },
    #[error("the answer names the exit code {text:?}")]
    ExitCode { text: String },
    #[error("the command ended, and the server gave no exit code")]
    NoExitCode,
}

/// A body, or the fault in its place.
#[derive(Debug)]
pub(crate) enum Answer {
    Body(Element),
    Fault(Fault),
}

/// Reads an envelope that answers the request `message_id`.
pub(crate) fn read(text: &str, message_id: &str) -> Result<Answer, AnswerError> {
    let root = envelope(text)?;
    let relates_to = root
        .child("Header")
        .and_then(|header| header.child("RelatesTo"))
        .map(|relates_to| relates_to.text.trim());
    let answer = take_body(&root)?;
    match relates_to {
        Some(got) if got.eq_ignore_ascii_case(message_id) => Ok(answer),
        Some(got) => {
            Err(AnswerError::NotOurs { expected: message_id.to_owned(), got: excerpt(got.as_bytes()) })
        }
        // A server that cannot read a request cannot say which one it was.
        None if matches!(answer, Answer::Fault(_)) => Ok(answer),
        None => Err(AnswerError::Missing { what: "RelatesTo" }),
    }
}

/// Reads the answer to Identify, which relates to nothing.
pub(crate) fn read_identity(text: &str) -> Result<Answer, AnswerError> {
    take_body(&envelope(text)?)
}

fn envelope(text: &str) -> Result<Element, AnswerError> {
    let root = Element::parse(text)?;
    if root.name == "Envelope" { Ok(root) } else { Err(AnswerError::Missing { what: "SOAP envelope" }) }
}

fn take_body(root: &Element) -> Result<Answer, AnswerError> {
    let body = root.child("Body").ok_or(AnswerError::Missing { what: "body" })?;
    Ok(match body.child("Fault") {
        Some(fault) => Answer::Fault(Fault::read(fault)),
        None => Answer::Body(body.clone()),
    })
}

/// The id of the shell that Create made.
pub(crate) fn shell_id(body: &Element) -> Result<String, AnswerError> {
    let selector = body
        .find("SelectorSet")
        .and_then(|set| set.children_named("Selector").find(|s| s.attribute("Name") == Some("ShellId")));
    selector
        .or_else(|| body.find("ShellId"))
        .map(|id| id.text.trim().to_owned())
        .filter(|id| !id.is_empty())
        .ok_or(AnswerError::Missing { what: "ShellId" })
}

/// The id of the command that Command started.
pub(crate) fn command_id(body: &Element) -> Result<String, AnswerError> {
    body.find("CommandId")
        .map(|id| id.text.trim().to_owned())
        .filter(|id| !id.is_empty())
        .ok_or(AnswerError::Missing { what: "CommandId" })
}

/// What one Receive brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Received {
    /// Pieces of output in the order in which they came.
    pub(crate) output: Vec<(Stream, Vec<u8>)>,
    /// Set when the command is done.
    pub(crate) exit_code: Option<u32>,
}

pub(crate) fn received(body: &Element, command: &str) -> Result<Received, AnswerError> {
    let response = body.find("ReceiveResponse").ok_or(AnswerError::Missing { what: "ReceiveResponse" })?;
    let ours =
        |element: &&Element| element.attribute("CommandId").is_none_or(|id| id.eq_ignore_ascii_case(command));
    let mut received = Received::default();
    for element in response.children_named("Stream").filter(ours) {
        let stream = match element.attribute("Name") {
            Some("stdout") => Stream::Stdout,
            Some("stderr") => Stream::Stderr,
            // A stream that was not asked for.
            _ => continue,
        };
        let packed: String = element.text.split_ascii_whitespace().collect();
        let bytes =
            BASE64.decode(packed).map_err(|_| AnswerError::Base64 { stream: format!("{stream:?}") })?;
        if !bytes.is_empty() {
            received.output.push((stream, bytes));
        }
    }
    if let Some(state) = response.children_named("CommandState").find(ours)
        && state.attribute("State").is_some_and(|state| state.ends_with("/Done"))
    {
        let text = state.child("ExitCode").ok_or(AnswerError::NoExitCode)?.text.trim();
        // An NTSTATUS such as 0xC0000005 may come as a negative number.
        let code = text.parse::<u32>().ok().or_else(|| text.parse::<i32>().ok().map(i32::cast_unsigned));
        received.exit_code =
            Some(code.ok_or_else(|| AnswerError::ExitCode { text: excerpt(text.as_bytes()) })?);
    }
    Ok(received)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn envelope_of(relates_to: &str, body: &str) -> String {
        format!(
            "<s:Envelope xmlns:s=\"s\"><s:Header><a:RelatesTo>{relates_to}</a:RelatesTo></s:Header>\
             <s:Body>{body}</s:Body></s:Envelope>"
        )
    }

    fn receive(body: &str) -> Result<Received, AnswerError> {
        let text = envelope_of("uuid:1", &format!("<rsp:ReceiveResponse>{body}</rsp:ReceiveResponse>"));
        match read(&text, "uuid:1").unwrap() {
            Answer::Body(body) => received(&body, "C"),
            Answer::Fault(fault) => panic!("{fault}"),
        }
    }

    const DONE: &str = r#"<rsp:CommandState CommandId="C" State="http://x/CommandState/Done">"#;

    #[test]
    fn an_answer_to_another_request_is_not_taken() {
        let text = envelope_of("uuid:2", "<x/>");
        let error = read(&text, "uuid:1").unwrap_err();
        assert!(matches!(error, AnswerError::NotOurs { .. }), "{error}");
        assert!(read(&text, "UUID:2").is_ok());
        let unrelated = "<s:Envelope><s:Header/><s:Body><x/></s:Body></s:Envelope>";
        assert!(matches!(read(unrelated, "uuid:1"), Err(AnswerError::Missing { what: "RelatesTo" })));
        assert!(matches!(read("<html/>", "uuid:1"), Err(AnswerError::Missing { what: "SOAP envelope" })));
    }

    #[test]
    fn a_done_command_has_an_exit_code() {
        let done = |inside: &str| receive(&format!("{DONE}{inside}</rsp:CommandState>"));
        assert_eq!(done("<rsp:ExitCode>0</rsp:ExitCode>").unwrap().exit_code, Some(0));
        assert_eq!(done("<rsp:ExitCode>3221225477</rsp:ExitCode>").unwrap().exit_code, Some(0xC000_0005));
        assert_eq!(done("<rsp:ExitCode>-1073741819</rsp:ExitCode>").unwrap().exit_code, Some(0xC000_0005));
        assert!(matches!(done(""), Err(AnswerError::NoExitCode)));
        assert!(matches!(done("<rsp:ExitCode>zero</rsp:ExitCode>"), Err(AnswerError::ExitCode { .. })));
        let running = receive(r#"<rsp:CommandState CommandId="C" State="http://x/CommandState/Running"/>"#);
        assert_eq!(running.unwrap().exit_code, None);
    }

    #[test]
    fn only_our_commands_streams_are_taken() {
        let got = receive(
            r#"<rsp:Stream Name="stdout" CommandId="c">YQ==</rsp:Stream>
               <rsp:Stream Name="stdout" CommandId="D">Yg==</rsp:Stream>
               <rsp:Stream Name="pr" CommandId="C">Yw==</rsp:Stream>
               <rsp:Stream Name="stderr" CommandId="C"> Z
                 A== </rsp:Stream>
               <rsp:Stream Name="stdout" CommandId="C" End="true"/>"#,
        );
        assert_eq!(got.unwrap().output, [(Stream::Stdout, b"a".to_vec()), (Stream::Stderr, b"d".to_vec())]);
        let bad = receive(r#"<rsp:Stream Name="stdout" CommandId="C">?</rsp:Stream>"#);
        assert!(matches!(bad, Err(AnswerError::Base64 { .. })));
    }

    proptest! {
        #[test]
        fn output_survives_any_cutting(bytes in proptest::collection::vec(any::<u8>(), 0..200), size in 1usize..40) {
            let pieces: String = bytes
                .chunks(size)
                .map(|piece| {
                    let packed = BASE64.encode(piece);
                    format!(r#"<rsp:Stream Name="stdout" CommandId="C">{packed}</rsp:Stream>"#)
                })
                .collect();
            let output = receive(&pieces).unwrap().output;
            let joined: Vec<u8> = output.into_iter().flat_map(|(_, bytes)| bytes).collect();
            prop_assert_eq!(joined, bytes);
        }

        #[test]
        fn no_answer_breaks_the_reader(text in "[<>/a-z\"= &;:#0-9]{0,120}") {
            let _either_way = read(&text, "uuid:1");
        }
    }
}

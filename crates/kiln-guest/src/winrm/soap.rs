//! The requests of WinRM, written.
//!
//! One function writes an envelope (DSP0226; MS-WSMV 2.2.4, 3.1.4); the other functions name the operations and
//! their bodies. Texts are escaped here and nowhere else. What XML cannot carry at all (most control characters) is
//! found earlier, by [`unwritable`].

use std::fmt::Write as _;
use std::ops::Range;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use uuid::Uuid;

/// MS-WSMV 3.1.4: what is asked of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Create,
    Delete,
    Command,
    Receive,
    Send,
    Signal,
}

impl Action {
    pub(crate) const fn uri(self) -> &'static str {
        match self {
            Self::Create => "http://schemas.xmlsoap.org/ws/2004/09/transfer/Create",
            Self::Delete => "http://schemas.xmlsoap.org/ws/2004/09/transfer/Delete",
            Self::Command => "http://schemas.microsoft.com/wbem/wsman/1/windows/shell/Command",
            Self::Receive => "http://schemas.microsoft.com/wbem/wsman/1/windows/shell/Receive",
            Self::Send => "http://schemas.microsoft.com/wbem/wsman/1/windows/shell/Send",
            Self::Signal => "http://schemas.microsoft.com/wbem/wsman/1/windows/shell/Signal",
        }
    }
}

/// The text shell (cmd.exe), MS-WSMV 3.1.4.5.
pub(crate) const SHELL_RESOURCE: &str = "http://schemas.microsoft.com/wbem/wsman/1/windows/shell/cmd";
/// The largest answer that is asked for, in bytes: what every version sends, and every recorded client asks for.
const ANSWER_SIZE: usize = 150 * 1024;
const ANONYMOUS: &str = "http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous";

/// What is the same in each envelope to one guest.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    /// The endpoint as this side addresses it.
    pub(crate) to: String,
    pub(crate) operation_timeout: Duration,
    pub(crate) session: Uuid,
}

/// An envelope and the id that its answer must relate to.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Empty for Identify, whose answer relates to nothing.
    pub(crate) message_id: String,
    pub(crate) envelope: String,
    /// What is asked: an [`Action`]'s address, or [`IDENTIFY`].
    pub(crate) action: &'static str,
    /// What nobody may write down, in the order of the envelope.
    pub(crate) hidden: Vec<Hidden>,
}

/// A place in an envelope that may hold a secret, whatever stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hidden {
    pub(crate) kind: HiddenKind,
    /// Bytes of the envelope.
    pub(crate) range: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HiddenKind {
    /// What a command reads, base64.
    Input,
    /// The value of a shell's variable.
    Variable,
}

/// Stands for an action's address where there is none.
pub(crate) const IDENTIFY: &str = "Identify";

/// How a shell is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ShellOptions {
    /// Without the account's profile. Servers since 2012 load it all the same.
    pub(crate) no_profile: bool,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) working_directory: Option<String>,
    pub(crate) name: Option<String>,
    /// The server ends a shell that nobody used for this long.
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) lifetime: Option<Duration>,
}

/// The signal that ends a command's process tree, and gives back what the server kept of the command.
const TERMINATE: &str = "http://schemas.microsoft.com/wbem/wsman/1/windows/shell/signal/terminate";

/// The first character of `text` that XML 1.0 cannot carry, not even escaped (section 2.2).
pub(crate) fn unwritable(text: &str) -> Option<char> {
    text.chars().find(
        |&c| !matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..),
    )
}

/// Asks who is there (DSP0226, 11). It has almost no header, and needs none.
pub(crate) fn identify() -> Request {
    let envelope = concat!(
        r#"<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope" "#,
        r#"xmlns:wsmid="http://schemas.dmtf.org/wbem/wsman/identity/1/wsmanidentity.xsd">"#,
        "<s:Header/><s:Body><wsmid:Identify/></s:Body></s:Envelope>"
    );
    Request { message_id: String::new(), envelope: envelope.to_owned(), action: IDENTIFY, hidden: Vec::new() }
}

impl Frame {
    pub(crate) fn create(&self, options: &ShellOptions) -> Request {
        let mut set = vec![("WINRS_CODEPAGE", "65001")];
        if options.no_profile {
            set.insert(0, ("WINRS_NOPROFILE", "TRUE"));
        }
        let mut body = String::from(
            "<rsp:Shell><rsp:InputStreams>stdin</rsp:InputStreams><rsp:OutputStreams>stdout stderr</rsp:OutputStreams>",
        );
        let mut hidden = Vec::new();
        // The order of what follows is that of the requests recorded from clients that Windows accepted.
        if let Some(timeout) = options.idle_timeout {
            element(&mut body, "rsp:IdleTimeOut", &seconds(timeout));
        }
        if let Some(lifetime) = options.lifetime {
            element(&mut body, "rsp:Lifetime", &seconds(lifetime));
        }
        if let Some(name) = &options.name {
            element(&mut body, "rsp:Name", name);
        }
        if let Some(directory) = &options.working_directory {
            element(&mut body, "rsp:WorkingDirectory", directory);
        }
        if !options.environment.is_empty() {
            body.push_str("<rsp:Environment>");
            for (name, value) in &options.environment {
                let _infallible = write!(body, r#"<rsp:Variable Name="{}">"#, escape(name));
                let start = body.len();
                body.push_str(&escape(value));
                hidden.push(Hidden { kind: HiddenKind::Variable, range: start..body.len() });
                body.push_str("</rsp:Variable>");
            }
            body.push_str("</rsp:Environment>");
        }
        body.push_str("</rsp:Shell>");
        self.envelope(Action::Create, None, &set, &body, hidden)
    }

    pub(crate) fn delete(&self, shell: &str) -> Request {
        self.envelope(Action::Delete, Some(shell), &[], "", Vec::new())
    }

    /// `console_stdin`: the command's input is a console, not a pipe. `skip_cmd_shell`: `command` is a program's full
    /// path and is started as it is, without cmd.exe.
    pub(crate) fn command(
        &self,
        shell: &str,
        command: &str,
        arguments: &[String],
        console_stdin: bool,
        skip_cmd_shell: bool,
    ) -> Request {
        let flag = |on| if on { "TRUE" } else { "FALSE" };
        let set = [
            ("WINRS_CONSOLEMODE_STDIN", flag(console_stdin)),
            ("WINRS_SKIP_CMD_SHELL", flag(skip_cmd_shell)),
        ];
        let mut body = String::from("<rsp:CommandLine>");
        element(&mut body, "rsp:Command", command);
        for argument in arguments {
            element(&mut body, "rsp:Arguments", argument);
        }
        body.push_str("</rsp:CommandLine>");
        self.envelope(Action::Command, Some(shell), &set, &body, Vec::new())
    }

    pub(crate) fn receive(&self, shell: &str, command: &str) -> Request {
        let body = format!(
            r#"<rsp:Receive><rsp:DesiredStream CommandId="{}">stdout stderr</rsp:DesiredStream></rsp:Receive>"#,
            escape(command)
        );
        self.envelope(
            Action::Receive,
            Some(shell),
            &[("WSMAN_CMDSHELL_OPTION_KEEPALIVE", "TRUE")],
            &body,
            Vec::new(),
        )
    }

    pub(crate) fn send(&self, shell: &str, command: &str, bytes: &[u8], end: bool) -> Request {
        let end = if end { r#" End="true""# } else { "" };
        let mut body = format!(r#"<rsp:Send><rsp:Stream Name="stdin" CommandId="{}"{end}>"#, escape(command));
        let start = body.len();
        BASE64.encode_string(bytes, &mut body);
        let hidden = Hidden { kind: HiddenKind::Input, range: start..body.len() };
        body.push_str("</rsp:Stream></rsp:Send>");
        self.envelope(Action::Send, Some(shell), &[], &body, vec![hidden])
    }

    pub(crate) fn terminate(&self, shell: &str, command: &str) -> Request {
        let body = format!(
            r#"<rsp:Signal CommandId="{}"><rsp:Code>{TERMINATE}</rsp:Code></rsp:Signal>"#,
            escape(command),
        );
        self.envelope(Action::Signal, Some(shell), &[], &body, Vec::new())
    }

    /// How many bytes of input fit into one Send of at most `max_envelope` bytes: base64 makes four of three, and
    /// headers, ids and sealing take their part.
    pub(crate) fn send_capacity(max_envelope: usize) -> usize {
        /// Headers and tags are some 2 KB; the rest is room for longer addresses and ids.
        const OVERHEAD: usize = 4 * 1024;
        (max_envelope.saturating_sub(OVERHEAD) / 4 * 3).max(SMALLEST_SEND)
    }

    /// `hidden` names places of `body`.
    fn envelope(
        &self,
        action: Action,
        shell: Option<&str>,
        options: &[(&str, &str)],
        body: &str,
        mut hidden: Vec<Hidden>,
    ) -> Request {
        let message_id = format!("uuid:{}", upper(Uuid::new_v4()));
        let mut text = String::with_capacity(body.len() + 2048);
        text.push_str(concat!(
            r#"<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope""#,
            r#" xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing""#,
            r#" xmlns:w="http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd""#,
            r#" xmlns:p="http://schemas.microsoft.com/wbem/wsman/1/wsman.xsd""#,
            r#" xmlns:rsp="http://schemas.microsoft.com/wbem/wsman/1/windows/shell"><s:Header>"#,
        ));
        element(&mut text, "a:To", &self.to);
        let _infallible = write!(
            text,
            concat!(
                r#"<a:Action s:mustUnderstand="true">{action}</a:Action>"#,
                "<a:MessageID>{message_id}</a:MessageID>",
                r#"<a:ReplyTo><a:Address s:mustUnderstand="true">{anonymous}</a:Address></a:ReplyTo>"#,
                r#"<w:ResourceURI s:mustUnderstand="true">{resource}</w:ResourceURI>"#,
                r#"<w:MaxEnvelopeSize s:mustUnderstand="true">{size}</w:MaxEnvelopeSize>"#,
                "<w:OperationTimeout>{timeout}</w:OperationTimeout>",
                r#"<w:Locale s:mustUnderstand="false" xml:lang="en-US"/>"#,
                r#"<p:DataLocale s:mustUnderstand="false" xml:lang="en-US"/>"#,
                r#"<p:SessionId s:mustUnderstand="false">uuid:{session}</p:SessionId>"#,
            ),
            action = action.uri(),
            message_id = message_id,
            anonymous = ANONYMOUS,
            resource = SHELL_RESOURCE,
            size = ANSWER_SIZE,
            timeout = seconds(self.operation_timeout),
            session = upper(self.session),
        );
        if !options.is_empty() {
            text.push_str(r#"<w:OptionSet s:mustUnderstand="true">"#);
            for (name, value) in options {
                let _infallible = write!(text, r#"<w:Option Name="{name}">{value}</w:Option>"#);
            }
            text.push_str("</w:OptionSet>");
        }
        if let Some(shell) = shell {
            let _infallible = write!(
                text,
                r#"<w:SelectorSet><w:Selector Name="ShellId">{}</w:Selector></w:SelectorSet>"#,
                escape(shell)
            );
        }
        text.push_str("</s:Header><s:Body>");
        for place in &mut hidden {
            place.range = place.range.start + text.len()..place.range.end + text.len();
        }
        text.push_str(body);
        text.push_str("</s:Body></s:Envelope>");
        Request { message_id, envelope: text, action: action.uri(), hidden }
    }
}

/// However small an envelope a server wants, a Send carries at least this many bytes.
pub(crate) const SMALLEST_SEND: usize = 3 * 1024;

fn upper(id: Uuid) -> String {
    id.hyphenated().to_string().to_uppercase()
}

/// XML Schema duration, whole seconds.
fn seconds(duration: Duration) -> String {
    format!("PT{}S", duration.as_secs().max(1))
}

fn element(into: &mut String, name: &str, text: &str) {
    let _infallible = write!(into, "<{name}>{}</{name}>", escape(text));
}

/// For text and attribute values alike. Line ends are written as references: a reader may make `\n` of `\r\n`
/// (XML 1.0, 2.11), and a space of either in an attribute.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\t' | '\n' | '\r' => {
                let _infallible = write!(escaped, "&#{};", u32::from(c));
            }
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::xml::Element;
    use super::*;

    fn frame() -> Frame {
        Frame {
            to: "https://127.0.0.1:5986/wsman".to_owned(),
            operation_timeout: Duration::from_secs(20),
            session: Uuid::nil(),
        }
    }

    #[test]
    fn an_envelope_says_who_where_and_how_long() {
        let request = frame().receive("SHELL", "COMMAND");
        let root = Element::parse(&request.envelope).unwrap();
        let header = root.child("Header").unwrap();
        let text = |name: &str| header.child(name).map(|child| child.all_text());
        assert_eq!(text("To").as_deref(), Some("https://127.0.0.1:5986/wsman"));
        assert_eq!(text("Action").as_deref(), Some(Action::Receive.uri()));
        assert_eq!(text("MessageID").unwrap(), request.message_id);
        assert_eq!(text("OperationTimeout").as_deref(), Some("PT20S"));
        assert_eq!(text("MaxEnvelopeSize").as_deref(), Some("153600"));
        assert_eq!(text("SelectorSet").as_deref(), Some("SHELL"));
        assert_eq!(text("SessionId").as_deref(), Some("uuid:00000000-0000-0000-0000-000000000000"));
        let id = request.message_id.strip_prefix("uuid:").unwrap();
        assert_eq!(id, id.to_uppercase());
        assert_ne!(request.message_id, frame().receive("SHELL", "COMMAND").message_id);
        let stream = root.find("DesiredStream").unwrap();
        assert_eq!((stream.text.as_str(), stream.attribute("CommandId")), ("stdout stderr", Some("COMMAND")));
    }

    #[test]
    fn a_full_send_fits_into_the_envelope() {
        for max_envelope in [150 * 1024, 500 * 1024, 4096 * 1024] {
            let bytes = vec![0xff; Frame::send_capacity(max_envelope)];
            let id = "F1363DFB-B5F9-4FDF-AC84-F67D2A886704";
            let length = frame().send(id, id, &bytes, true).envelope.len();
            assert!(length <= max_envelope, "{length} > {max_envelope}");
            assert!(length > max_envelope / 10 * 9, "{length} wastes {max_envelope}");
        }
    }

    #[test]
    fn what_xml_cannot_carry_is_found() {
        assert_eq!(unwritable("a\0b"), Some('\0'));
        assert_eq!(unwritable("\u{1b}[1m"), Some('\u{1b}'));
        assert_eq!(unwritable("a\u{ffff}"), Some('\u{ffff}'));
        assert_eq!(unwritable("tab\t line\r\n é \u{1f600}"), None);
    }

    proptest! {
        #[test]
        fn every_text_arrives_as_it_was(
            command in "[\\t\\n\\r -~é\u{1f600}]{0,60}",
            name in "[\\t\\n\\r -~]{1,20}",
        ) {
            let root = Element::parse(&frame().command("S", &command, &[], true, false).envelope).unwrap();
            prop_assert_eq!(&root.find("Command").unwrap().text, &command);
            let options = ShellOptions {
                environment: vec![(name.clone(), command.clone())],
                ..ShellOptions::default()
            };
            let root = Element::parse(&frame().create(&options).envelope).unwrap();
            let variable = root.find("Variable").unwrap();
            prop_assert_eq!(variable.attribute("Name"), Some(name.as_str()));
            prop_assert_eq!(&variable.text, &command);
        }
    }
}

//! The answer file against a schema of ours: which elements, in which order, with which values.

use expect_test::expect;
use proptest::prelude::*;
use roxmltree::{Document, Node};

use super::*;

const SPACE: &str = "urn:schemas-microsoft-com:unattend";
const WCM: &str = "http://schemas.microsoft.com/WMIConfig/2002/State";

fn account<'a>(user: &'a str, password: &'a str) -> Account<'a> {
    Account { user, password, administrator_password: "Other&1" }
}

/// What may be below an element: nothing but text that fits, or these, in any order, each once and all of them.
/// Sources: the Unattended Windows Setup Reference, components Microsoft-Windows-Shell-Setup and
/// Microsoft-Windows-International-Core.
enum Shape {
    Text(fn(&str) -> bool),
    All(&'static [(&'static str, Shape)]),
}
use Shape::{All, Text};

const BOOL: Shape = Text(|text| matches!(text, "true" | "false"));
const LOCALE: Shape = Text(|text| text.len() == 5 && text.as_bytes()[2] == b'-');
const ANY: Shape = Text(|_| true);
const PASSWORD: Shape = All(&[("Value", ANY), ("PlainText", BOOL)]);
/// A name Windows takes; `*` in ComputerName asks for a random one.
const NAME: Shape = Text(|text| !text.is_empty() && text.encode_utf16().count() <= 20);

const SHELL_SPECIALIZE: Shape = All(&[("ComputerName", Text(|text| text == "*"))]);
const INTERNATIONAL: Shape =
    All(&[("InputLocale", LOCALE), ("SystemLocale", LOCALE), ("UILanguage", LOCALE), ("UserLocale", LOCALE)]);
const SHELL_OOBE: Shape = All(&[
    (
        "OOBE",
        All(&[
            ("HideEULAPage", BOOL),
            ("HideLocalAccountScreen", BOOL),
            ("HideOEMRegistrationScreen", BOOL),
            ("HideOnlineAccountScreens", BOOL),
            ("HideWirelessSetupInOOBE", BOOL),
            ("ProtectYourPC", Text(|text| matches!(text, "1" | "2" | "3"))),
        ]),
    ),
    (
        "UserAccounts",
        All(&[
            ("AdministratorPassword", PASSWORD),
            (
                "LocalAccounts",
                All(&[(
                    "LocalAccount",
                    All(&[
                        ("Name", NAME),
                        ("Group", Text(|text| text == "Administrators")),
                        ("Password", PASSWORD),
                    ]),
                )]),
            ),
        ]),
    ),
    (
        "AutoLogon",
        All(&[
            ("Enabled", BOOL),
            ("LogonCount", Text(|text| text == "1")),
            ("Username", NAME),
            ("Password", PASSWORD),
        ]),
    ),
    (
        "FirstLogonCommands",
        All(&[(
            "SynchronousCommand",
            All(&[
                ("Order", Text(|text| text == "1")),
                ("Description", Text(|text| text.len() <= 256)),
                // 1024 characters are the most that Windows takes.
                ("CommandLine", Text(|text| (1..=1024).contains(&text.len()))),
            ]),
        )]),
    ),
]);

fn fits(node: Node, shape: &Shape) {
    let name = node.tag_name().name();
    assert_eq!(node.tag_name().namespace(), Some(SPACE), "{name}");
    let children: Vec<Node> = node.children().filter(Node::is_element).collect();
    match shape {
        Text(good) => {
            assert!(children.is_empty(), "{name} has only text");
            assert!(good(node.text().unwrap_or_default()), "{name}: {:?}", node.text());
        }
        All(expected) => {
            let names: Vec<&str> = children.iter().map(|child| child.tag_name().name()).collect();
            let expected_names: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, expected_names, "below {name}");
            for (child, (_, shape)) in children.into_iter().zip(*expected) {
                fits(child, shape);
            }
        }
    }
}

fn check(xml: &str, architecture: &str) {
    let document = Document::parse(xml).unwrap();
    let root = document.root_element();
    assert_eq!((root.tag_name().name(), root.tag_name().namespace()), ("unattend", Some(SPACE)));
    let mut seen = Vec::new();
    for settings in root.children().filter(Node::is_element) {
        assert_eq!(settings.tag_name().name(), "settings");
        let pass = settings.attribute("pass").unwrap();
        for component in settings.children().filter(Node::is_element) {
            let name = component.attribute("name").unwrap();
            assert_eq!(component.attribute("processorArchitecture"), Some(architecture), "{name}");
            // Without these three Windows passes a component over in silence.
            assert_eq!(component.attribute("publicKeyToken"), Some("31bf3856ad364e35"), "{name}");
            assert_eq!(component.attribute("language"), Some("neutral"), "{name}");
            assert_eq!(component.attribute("versionScope"), Some("nonSxS"), "{name}");
            let shape = match (pass, name) {
                ("specialize", "Microsoft-Windows-Shell-Setup") => SHELL_SPECIALIZE,
                ("oobeSystem", "Microsoft-Windows-International-Core") => INTERNATIONAL,
                ("oobeSystem", "Microsoft-Windows-Shell-Setup") => SHELL_OOBE,
                other => panic!("{other:?} has no shape"),
            };
            fits(component, &shape);
            seen.push((pass.to_owned(), name.to_owned()));
        }
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
    for listed in ["LocalAccount", "SynchronousCommand"] {
        let node = document.descendants().find(|node| node.has_tag_name((SPACE, listed))).unwrap();
        assert_eq!(node.attribute((WCM, "action")), Some("add"), "{listed}");
    }
}

fn texts<'a>(document: &'a Document, name: &'static str) -> Vec<&'a str> {
    let named = document.descendants().filter(move |node| node.has_tag_name((SPACE, name)));
    named.map(|node| node.text().unwrap_or_default()).collect()
}

#[test]
fn the_answer_file_fits_the_schema() {
    for (architecture, name) in [(Architecture::Amd64, "amd64"), (Architecture::Arm64, "arm64")] {
        check(&answer_file(&account("kiln", "p"), "en-US", architecture).unwrap(), name);
    }
}

#[test]
#[should_panic(expected = "below AutoLogon")]
fn the_schema_sees_what_is_missing() {
    let xml = answer_file(&account("kiln", "p"), "en-US", Architecture::Amd64).unwrap();
    check(&xml.replace("<LogonCount>1</LogonCount>", ""), "amd64");
}

#[test]
fn values_are_only_text_and_in_their_places() {
    let password = "</Value>&\"{user}'<x>";
    let xml = answer_file(&account("o'x", password), "de-DE", Architecture::Amd64).unwrap();
    check(&xml, "amd64");
    let document = Document::parse(&xml).unwrap();
    assert_eq!(texts(&document, "Value"), ["Other&1", password, password]);
    assert_eq!((texts(&document, "Name"), texts(&document, "Username")), (vec!["o'x"], vec!["o'x"]));
    expect![[r#"cmd /c for %d in (D E F G H I J K L M N O P Q R S T U V W X Y Z) do if exist "%d:\kiln-bootstrap.ps1" powershell -NoProfile -NonInteractive -ExecutionPolicy Bypass -File "%d:\kiln-bootstrap.ps1""#]]
    .assert_eq(texts(&document, "CommandLine")[0]);
}

#[test]
fn what_windows_would_not_take_is_an_error_without_the_secret() {
    for bad in ["", "a/b", "twentyone-characters-", "...", "a\n", "x@y"] {
        let made = answer_file(&account(bad, "p"), "en-US", Architecture::Amd64);
        assert_eq!(made, Err(AnswerFileError::AccountName(bad.to_owned())));
    }
    let error = answer_file(&account("kiln", "canary\0"), "en-US", Architecture::Amd64).unwrap_err();
    assert_eq!(error, AnswerFileError::Character { what: "password", code: 0 });
    assert!(!error.to_string().contains("canary"));
    assert!(!format!("{:?}", account("kiln", "canary")).contains("canary"));
}

proptest! {
    #[test]
    fn any_password_survives(password in any::<String>()) {
        match answer_file(&account("kiln", &password), "en-US", Architecture::Amd64) {
            Ok(xml) => {
                let document = Document::parse(&xml).unwrap();
                prop_assert_eq!(texts(&document, "Value"), ["Other&1", &password, &password]);
            }
            Err(AnswerFileError::Character { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn lines_of_the_serial_port() {
    let sha256 = "a".repeat(64);
    let sha1 = "0".repeat(40);
    let line = format!(
        "BdsDxe: starting kiln:{{\"kind\":\"winrm\",\"nonce\":\"n\",\"port\":5986,\"sha256\":\"{sha256}\",\"sha1\":\"{sha1}\"}}\r"
    );
    let winrm = BootstrapLine::WinRm { port: 5986, sha256: sha256.clone(), sha1: sha1.clone() };
    assert_eq!(bootstrap_line(&line, "n"), Some(winrm));
    assert_eq!(bootstrap_line(&line, "another"), None);
    assert_eq!(bootstrap_line(&line.replace(&sha256, "xyz"), "n"), None);
    assert_eq!(bootstrap_line("SeaBIOS (version 1.16)", "n"), None);
    assert_eq!(
        bootstrap_line(
            r#"kiln:{"kind":"undone","nonce":"n","done":false,"verdict":null,"problems":["a"]}"#,
            "n"
        ),
        Some(BootstrapLine::Undone { done: false, problems: vec!["a".into()] })
    );
    assert_eq!(
        bootstrap_line(r#"kiln:{"kind":"bootstrap","nonce":"n","step":"begun"}"#, "n"),
        Some(BootstrapLine::Step { step: "begun".into(), warning: None })
    );
}

#[test]
fn the_undoing_is_registered_before_sysprep_and_as_system() {
    let text = register_undo("n", Undoing::Bootstrap { user: "kiln" }).unwrap();
    assert!(text.contains("<UserId>S-1-5-18</UserId>") || text.contains("FromBase64String"), "{text}");
    assert!(verdict(Verdict::Generalized).contains("$Verdict = 'generalized'\n"));
    assert!(verdict(Verdict::Keep).contains("$Verdict = 'keep'\n"));
}

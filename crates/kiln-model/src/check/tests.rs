use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::template::{TemplateAction, TemplateSource};

fn catalog() -> Catalog {
    let text = "format: 1\nimages:\n  - {name: linux, platform: [{publisher: p, offer: o, sku: linux}], os: linux, \
        generations: [V2], arch: x86_64, login: cloud-init, format: qcow2, source: imported}\n  - {name: windows, \
        platform: [{publisher: p, offer: o, sku: windows}], os: windows, generations: [V2], arch: x86_64, \
        login: cloud-init, format: qcow2, source: imported}\n";
    Catalog::parse(text, "test").unwrap()
}

fn checked(text: &str, azure: bool) -> Checked {
    let document = Document::parse(text.as_bytes(), "t.json").unwrap();
    check(&document, &CheckContext { catalog: &catalog(), azure })
}

/// A template of one customizer.
fn with_customizer(version: &str, sku: &str, customizer: &str) -> String {
    format!(
        r#"{{"apiVersion": "{version}", "location": "here",
            "identity": {{"type": "UserAssigned", "userAssignedIdentities": {{"/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i": {{}}}}}},
            "properties": {{
              "source": {{"type": "PlatformImage", "publisher": "p", "offer": "o", "sku": "{sku}", "version": "latest"}},
              "customize": [{customizer}],
              "distribute": [{{"type": "VHD", "runOutputName": "d"}}]}}}}"#
    )
}

fn codes(checked: &Checked) -> Vec<Code> {
    checked.problems.iter().filter(|p| p.code != Code::NoLocalMeaning).map(|p| p.code).collect()
}

#[test]
fn customizers_follow_the_guests_system() {
    let restart = r#"{"type": "WindowsRestart"}"#;
    let update = r#"{"type": "WindowsUpdate"}"#;
    let shell = r#"{"type": "Shell", "inline": ["true"]}"#;
    let power = r#"{"type": "PowerShell", "inline": ["x"]}"#;
    for (sku, customizer, azure, expected) in [
        ("linux", shell, true, vec![]),
        ("linux", restart, false, vec![Code::CustomizerNotSupported]),
        ("linux", update, false, vec![Code::CustomizerNotSupported]),
        ("linux", power, false, vec![Code::NotPortable]),
        ("linux", power, true, vec![Code::NotPortable]),
        ("windows", shell, false, vec![Code::CustomizerNotSupported]),
        ("windows", power, true, vec![]),
        ("windows", restart, true, vec![]),
        ("windows", update, true, vec![]),
        ("unknown", shell, true, vec![Code::UnknownImage]),
        ("unknown", restart, true, vec![Code::UnknownImage]),
    ] {
        let found = checked(&with_customizer("2020-02-14", sku, customizer), azure);
        assert_eq!(codes(&found), expected, "{sku} {customizer}");
        let refused = expected.contains(&Code::CustomizerNotSupported)
            || (azure && expected.contains(&Code::NotPortable));
        assert_eq!(found.template.is_none(), refused, "{sku} {customizer} azure={azure}");
    }
}

#[test]
fn defaults_are_the_contracts() {
    let found = checked(
        &with_customizer(
            "2022-07-01",
            "windows",
            r#"{"type": "WindowsRestart"}, {"type": "WindowsUpdate", "updateLimit": 0, "filters": []}, {"type": "PowerShell", "inline": ["x"], "validExitCodes": []}"#,
        ),
        false,
    );
    let template = found.template.unwrap();
    assert_eq!(template.timeout_minutes, 240);
    let TemplateAction::WindowsRestart { command, check_command, timeout } = &template.customizers[0].action
    else {
        panic!()
    };
    assert_eq!(command, "shutdown /r /f /t 0 /c \"packer restart\"");
    assert_eq!((check_command.as_str(), timeout.as_secs()), ("", 300));
    let TemplateAction::WindowsUpdate { search_criteria, filters, limit } = &template.customizers[1].action
    else {
        panic!()
    };
    assert_eq!((search_criteria.as_str(), *limit), ("BrowseOnly=0 and IsInstalled=0", 1000));
    assert_eq!((filters[0].include, filters[0].expression.as_str()), (true, "$true"));
    let TemplateAction::PowerShell { valid_exit_codes, .. } = &template.customizers[2].action else {
        panic!()
    };
    assert_eq!(valid_exit_codes, &[0]);
    assert_eq!(template.name, "t");
}

#[test]
fn time_outs_have_a_range() {
    for (minutes, errors, notes_in_azure) in [
        ("0", 0, 0),
        ("1", 0, 1),
        ("5", 0, 1),
        ("6", 0, 0),
        ("960", 0, 0),
        ("961", 1, 0),
        ("-1", 1, 0),
        ("1.5", 1, 0),
        ("\"60\"", 1, 0),
        ("99999999999999999999", 1, 0),
        ("60.0", 0, 0),
    ] {
        let text = with_customizer("2020-02-14", "linux", "")
            .replace("\"customize\"", &format!("\"buildTimeoutInMinutes\": {minutes}, \"customize\""));
        assert_eq!(checked(&text, false).problems.errors().count(), errors, "{minutes}");
        assert_eq!(checked(&text, true).problems.errors().count(), errors + notes_in_azure, "{minutes}");
    }
}

#[test]
fn type_spellings_of_2020_end_in_2020() {
    for (version, spelling, good) in [
        ("2018-02-01-preview", "shell", true),
        ("2019-02-01-preview", "shell", false),
        ("2020-02-14", "shell", false),
        ("2020-02-14", "Shell", true),
        ("2025-10-01", "Shell", true),
    ] {
        let customizer = if version.starts_with("2018") {
            format!(r#"{{"type": "{spelling}", "script": "https://h/a"}}"#)
        } else {
            format!(r#"{{"type": "{spelling}", "inline": ["true"]}}"#)
        };
        let found = checked(&with_customizer(version, "linux", &customizer), false);
        assert_eq!(found.template.is_some(), good, "{version} {spelling}: {:?}", found.problems);
    }
    let target = |version: &str, spelling: &str| {
        let text = with_customizer(version, "linux", "").replace(
            r#"{"type": "VHD", "runOutputName": "d"}"#,
            &format!(
                r#"{{"type": "{spelling}", "runOutputName": "d", "location": "here", "imageId": "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/images/i"}}"#
            ),
        );
        checked(&text, false).template.is_some()
    };
    assert!(target("2020-02-14", "managedImage") && target("2020-02-14", "ManagedImage"));
    assert!(!target("2021-10-01", "managedImage") && target("2021-10-01", "ManagedImage"));
    assert!(!target("2020-02-14", "managedimage"));
}

#[test]
fn unknown_fields_are_warnings_until_2024() {
    for version in ApiVersion::ALL {
        let text = with_customizer(version.as_str(), "linux", "")
            .replace("\"distribute\"", "\"surprise\": 1, \"distribute\"");
        let found = checked(&text, false);
        let problem = found.problems.iter().find(|p| p.pointer == "/properties/surprise").unwrap();
        assert_eq!(problem.code, Code::UnknownField);
        assert_eq!(found.template.is_none(), version.is_strict(), "{version}");
    }
}

#[test]
fn an_unknown_api_version_lists_the_known() {
    let found = checked(&with_customizer("2022-07-02", "linux", ""), false);
    let problem = found.problems.errors().next().unwrap();
    assert_eq!(problem.code, Code::UnknownApiVersion);
    assert!(ApiVersion::ALL.iter().all(|version| problem.message.contains(version.as_str())));
    assert_eq!(problem.help.as_deref(), Some("did you mean '2022-07-01'?"));
}

#[test]
fn no_secret_of_an_address_is_shown() {
    const CANARY: &str = "CANARY-8f3a";
    let tricky = [
        format!("ftp://user:{CANARY}@h/a?sig={CANARY}"),
        format!("https://h/a b?sig={CANARY}"),
        format!("https://h:99999/a?sig={CANARY}#{CANARY}"),
        format!("//h/a?sig={CANARY}"),
        format!("h/a?sig={CANARY}"),
        format!("file://h/a?sig={CANARY}"),
    ];
    for address in tricky {
        for customizer in [
            format!(r#"{{"type": "Shell", "scriptUri": "{address}"}}"#),
            format!(r#"{{"type": "File", "sourceUri": "{address}", "destination": "{address}"}}"#),
            format!(r#"{{"type": "Shell", "inline": "{address}"}}"#),
            format!(r#"{{"type": "Shell", "inline": ["x"], "{address}": 1}}"#),
            format!(r#"{{"type": "{address}"}}"#),
        ] {
            let found = checked(&with_customizer("2024-02-01", "linux", &customizer), false);
            let shown: String =
                found.problems.iter().map(|p| format!("{} {:?}", p.message, p.help)).collect();
            assert!(!found.problems.is_empty());
            assert!(!shown.contains(CANARY), "{customizer}\n{shown}");
        }
    }
}

#[test]
fn hostile_templates_of_full_size_end_soon() {
    // An eighth of what is taken: the test runs unoptimized.
    let room = crate::tree::MAX_BYTES / 8;
    let fill = |piece: &str| piece.repeat(room / piece.len());
    // Members of different names, as many as fit.
    let many = |name: &str| {
        let mut text = String::new();
        for number in 0.. {
            let member = format!("\"{name}{number}\":1,");
            if text.len() + member.len() > room {
                return text;
            }
            text.push_str(&member);
        }
        text
    };
    let texts = [
        with_customizer("2020-02-14", "linux", &format!("{{}}{}", fill(",{}"))),
        with_customizer("2024-02-01", "linux", "")
            .replace("\"properties\"", &format!("{}\"properties\"", many("artifacttag"))),
        with_customizer("2020-02-14", "linux", "")
            .replace("\"properties\"", &format!("{}\"properties\"", many("artifacttag"))),
        with_customizer(
            "2020-02-14",
            "linux",
            &format!(r#"{{"type": "Shell", "inline": [1{}]}}"#, fill(",1")),
        ),
        with_customizer("2020-02-14", "linux", &format!(r#"{{"type": "{}"}}"#, fill("x"))),
        with_customizer(
            "2020-02-14",
            "linux",
            &format!(r#"{{"type": "Shell", "scriptUri": "{}"}}"#, fill("<a>")),
        ),
        with_customizer("2020-02-14", "linux", "").replace("\"p\"", &format!("\"{}\"", fill("p"))),
    ];
    for (index, text) in texts.iter().enumerate() {
        let start = Instant::now();
        let found = checked(text, false);
        assert!(found.problems.len() <= 501, "{}", found.problems.len());
        assert!(start.elapsed() < Duration::from_secs(20), "text {index}: {:?}", start.elapsed());
    }
}

#[test]
fn a_great_many_notes_are_no_error() {
    let one = r#"{"type": "File", "sourceUri": "file:///x", "destination": "/etc/x"},"#;
    let text = with_customizer("2022-07-01", "linux", one.repeat(700).trim_end_matches(','));
    let found = checked(&text, false);
    assert!(found.problems.len() <= 501);
    assert_eq!(found.template.unwrap().customizers.len(), 700);
    let there = checked(&text, true);
    assert!(there.template.is_none() && there.problems.has_errors());
}

const WHOLE: &str = include_str!("../../../../tests/fixtures/templates/versions/2025-everything.json");

#[test]
fn the_whole_resource_is_read() {
    let document = Document::parse(WHOLE.as_bytes(), "x").unwrap();
    let found = check(&document, &CheckContext { catalog: &Catalog::default(), azure: false });
    let template = found.template.unwrap();
    assert!(matches!(template.source, TemplateSource::SharedImageVersion { .. }));
    assert_eq!(template.customizers.len(), 5);
    assert_eq!(template.distributors.len(), 4);
    assert_eq!(template.additional_data_disks[0].value, 64);
    assert_eq!(template.validation.unwrap().validators.len(), 2);
    assert!(template.auto_run.value && template.optimize.vm_boot.value);
    assert_eq!(template.timeout_minutes, 960);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Cut, doubled and overwritten templates: never a panic, and a checked template
    /// exactly where there is no error (a debug assertion in `check`).
    #[test]
    fn mutated_templates_never_panic(
        cuts in proptest::collection::vec((0usize..WHOLE.len(), 0usize..40, any::<u8>()), 1..6),
        version in 0usize..ApiVersion::ALL.len(),
        azure in any::<bool>(),
    ) {
        let mut bytes = WHOLE.replace("2025-10-01", ApiVersion::ALL[version].as_str()).into_bytes();
        for (at, length, byte) in cuts {
            let at = at.min(bytes.len().saturating_sub(1));
            let end = (at + length).min(bytes.len());
            match byte % 3 {
                0 => drop(bytes.drain(at..end)),
                1 => { let piece = bytes[at..end].to_vec(); bytes.splice(at..at, piece); }
                _ => bytes[at] = b"\"{}[]:,0nt<>"[byte as usize % 12],
            }
        }
        if let Ok(document) = Document::parse(&bytes, "t") {
            let found = check(&document, &CheckContext { catalog: &catalog(), azure });
            prop_assert_eq!(found.template.is_none(), found.problems.has_errors());
        }
    }

    /// Whole values replaced by others: every place of the tree meets every type.
    #[test]
    fn wrong_types_everywhere_are_reported(pick in any::<prop::sample::Index>(), with in 0usize..8) {
        let mut root: serde_json::Value = serde_json::from_str(WHOLE).unwrap();
        let mut pointers = Vec::new();
        collect(&root, String::new(), &mut pointers);
        let pointer = pick.get(&pointers).clone();
        let value = [
            serde_json::json!(null), serde_json::json!(true), serde_json::json!(7), serde_json::json!(-1.5),
            serde_json::json!(""), serde_json::json!("x"), serde_json::json!([]), serde_json::json!({}),
        ][with].clone();
        *root.pointer_mut(&pointer).unwrap() = value;
        let text = root.to_string();
        if let Ok(document) = Document::parse(text.as_bytes(), "t") {
            let found = check(&document, &CheckContext { catalog: &catalog(), azure: false });
            prop_assert_eq!(found.template.is_none(), found.problems.has_errors(), "{} {}", pointer, found.problems);
        }
    }
}

fn collect(value: &serde_json::Value, pointer: String, into: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(members) => {
            for (key, value) in members {
                collect(value, crate::tree::push(&pointer, key), into);
            }
        }
        serde_json::Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                collect(value, format!("{pointer}/{index}"), into);
            }
        }
        _ => {}
    }
    into.push(pointer);
}

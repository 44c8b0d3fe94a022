//! `properties.customize` and the in-VM validators, which have the same forms.

use std::collections::HashMap;
use std::time::Duration;

use super::object::{At, Got, Object, discriminator, integer};
use super::report::Report;
use super::schema::{self, Kind};
use super::values::{go_duration, input_location, is_windows_path};
use crate::Sha256;
use crate::catalog::Os;
use crate::plan::UpdateFilter;
use crate::plan::{InputLocation, InputRef, Script};
use crate::problem::Code;
use crate::template::{TemplateAction, TemplateCustomizer};
use crate::tree::Cursor;

/// Contract, 2.3.
const DEFAULT_RESTART_COMMAND: &str = "shutdown /r /f /t 0 /c \"packer restart\"";
const DEFAULT_RESTART_TIMEOUT: Duration = Duration::from_secs(300);
/// Contract, 6.5.
const DEFAULT_SEARCH: &str = "BrowseOnly=0 and IsInstalled=0";
const DEFAULT_UPDATE_LIMIT: u32 = 1000;

/// Customizers and validators differ in their kinds and their words.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Customizer,
    Validator,
}

pub(super) fn customizers(
    properties: &Object<'_>,
    os: Option<Os>,
    report: &mut Report<'_>,
) -> Option<Vec<TemplateCustomizer>> {
    let items = properties.list("customize", "customizers", report).or(Vec::new())?;
    steps(&items, Role::Customizer, os, report)
}

pub(super) fn validators(
    validate: &Object<'_>,
    os: Option<Os>,
    report: &mut Report<'_>,
) -> Option<Vec<TemplateCustomizer>> {
    let items = validate.list("inVMValidations", "validators", report).or(Vec::new())?;
    steps(&items, Role::Validator, os, report)
}

fn steps(
    items: &[Cursor<'_>],
    role: Role,
    os: Option<Os>,
    report: &mut Report<'_>,
) -> Option<Vec<TemplateCustomizer>> {
    let mut names: HashMap<String, u32> = HashMap::new();
    let read: Vec<TemplateCustomizer> = items
        .iter()
        .enumerate()
        .filter_map(|(index, item)| {
            if report.is_hopeless() {
                return None;
            }
            let position = u32::try_from(index + 1).unwrap_or(u32::MAX);
            step(item, position, role, os, &mut names, report)
        })
        .collect();
    (read.len() == items.len()).then_some(read)
}

fn step(
    item: &Cursor<'_>,
    position: u32,
    role: Role,
    os: Option<Os>,
    names: &mut HashMap<String, u32>,
    report: &mut Report<'_>,
) -> Option<TemplateCustomizer> {
    let kinds: &[Kind] = match role {
        Role::Customizer => schema::CUSTOMIZERS,
        Role::Validator => schema::VALIDATORS,
    };
    let kind = discriminator(item, kinds, report)?;
    let table = match kind {
        "Shell" => schema::SHELL,
        "PowerShell" => schema::POWERSHELL,
        "File" => schema::FILE,
        "WindowsRestart" => schema::WINDOWS_RESTART,
        _ => schema::WINDOWS_UPDATE,
    };
    let object = Object::open(item, table, report)?;
    supported(&object, kind, role, os, report);
    let name = step_name(&object, position, names, report);
    let action = match kind {
        "Shell" => script(&object, role, report).map(|script| TemplateAction::Shell { script }),
        "PowerShell" => powershell(&object, role, report),
        "File" => file(&object, os, report),
        "WindowsRestart" => windows_restart(&object, report),
        _ => windows_update(&object, report),
    };
    Some(TemplateCustomizer { position, name: name?, action: action?, place: report.place(item) })
}

/// AIB: `CustomizerNotSupportedForImage`.
fn supported(object: &Object<'_>, kind: &str, role: Role, os: Option<Os>, report: &mut Report<'_>) {
    let what = match role {
        Role::Customizer => "Customizer",
        Role::Validator => "Validator",
    };
    // The service's words begin in lower case: `Customizer powerShell is not supported …`.
    let mut letters = kind.chars();
    let first: String = letters.next().map(|c| c.to_lowercase().collect()).unwrap_or_default();
    let word = format!("{first}{}", letters.as_str());
    match (kind, os) {
        ("Shell", Some(Os::Windows)) => {
            report.error(
                &object.cursor,
                Code::CustomizerNotSupported,
                format!("CustomizerNotSupportedForImage: {what} {word} is not supported on Windows images"),
            );
        }
        ("WindowsRestart" | "WindowsUpdate", Some(Os::Linux)) => {
            report.error(
                &object.cursor,
                Code::CustomizerNotSupported,
                format!("CustomizerNotSupportedForImage: {what} {word} is not supported on Linux images"),
            );
        }
        ("PowerShell", Some(Os::Linux)) => report.not_portable(
            &object.cursor,
            &format!("CustomizerNotSupportedForImage: {what} {word} is not supported on Linux images"),
            "here it runs where the guest has pwsh",
        ),
        _ => {}
    }
}

fn step_name(
    object: &Object<'_>,
    position: u32,
    names: &mut HashMap<String, u32>,
    report: &mut Report<'_>,
) -> Option<String> {
    let (name, at) = match object.text("name", report) {
        Got::Absent => return Some(String::new()),
        Got::Bad => return None,
        Got::Is(found) => found,
    };
    if name.chars().any(char::is_control) {
        let message = report.bad_value_text(&at, name);
        report.error(&at, Code::BadName, message).help =
            Some("a name is one line of text without control characters".to_owned());
        return None;
    }
    if let Some(first) = names.insert(name.to_owned(), position) {
        let message = format!("the name \"{name}\" is that of customizer {first}, too");
        if report.version.is_2020_or_older() {
            report.error(&at, Code::DuplicateName, message).help =
                Some("up to api-version 2020-02-14 names are unique".to_owned());
        } else {
            report.note(&at, Code::DuplicateName, message);
        }
    }
    Some(name.to_owned())
}

/// `inline` or `scriptUri` (`script` in the first previews): exactly one.
fn script(object: &Object<'_>, role: Role, report: &mut Report<'_>) -> Option<Script> {
    let inline = object.strings("inline", report);
    let old = object.text("script", report);
    let uri = match object.text("scriptUri", report) {
        Got::Absent => old,
        other => other,
    };
    let checksum = checksum(object, report);
    let code = match role {
        Role::Customizer => "NoCustomizerScript",
        Role::Validator => "NoValidatorScript",
    };
    let label = report.label(&object.cursor.pointer);
    match (inline, uri) {
        (Got::Bad, _) | (_, Got::Bad) => None,
        (Got::Is(lines), Got::Is(_)) if !lines.is_empty() => {
            report
                .error(
                    &object.cursor,
                    Code::Exclusive,
                    format!("Validation failed: '{label}': both 'inline' and 'scriptUri' are given; exactly one is needed"),
                )
                .help = Some("take one of them out".to_owned());
            None
        }
        (_, Got::Is(uri)) => {
            let location = location(&uri, report)?;
            Some(Script::Fetched(InputRef { location, sha256: checksum? }))
        }
        (Got::Is(lines), Got::Absent) if !lines.is_empty() => {
            if let Some(Some(_)) = checksum {
                report.warning(
                    object.get("sha256Checksum").unwrap_or(&object.cursor),
                    Code::Advice,
                    "sha256Checksum is for scriptUri: there is nothing to check with 'inline'",
                );
            }
            checksum?;
            Some(Script::Inline(lines.into_iter().map(|(line, _)| line.to_owned()).collect()))
        }
        (_, Got::Absent) => {
            report.error(
                &object.cursor,
                Code::Exclusive,
                format!(
                    "{code}: Validation failed: '{label}': neither 'inline' nor 'scriptUri' is given; exactly one is needed"
                ),
            );
            None
        }
    }
}

/// The outer option: nothing bad. Empty means none.
pub(super) fn checksum(object: &Object<'_>, report: &mut Report<'_>) -> Option<Option<Sha256>> {
    let (text, at) = match object.text("sha256Checksum", report) {
        Got::Absent => return Some(None),
        Got::Bad => return None,
        Got::Is(found) => found,
    };
    match text.parse::<Sha256>() {
        Ok(digest) => {
            if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
                report.not_portable(
                    &at,
                    "a checksum must be in lower-case letters",
                    format!("write \"{digest}\""),
                );
            }
            Some(Some(digest))
        }
        Err(reason) => {
            let message = report.bad_value_text(&at, text);
            report.error(&at, Code::BadChecksum, message).help = Some(reason.to_string());
            None
        }
    }
}

pub(super) fn location((text, at): &At<'_>, report: &mut Report<'_>) -> Option<InputLocation> {
    match input_location(text) {
        Ok(location) => {
            if matches!(location, InputLocation::File(_)) {
                report.not_portable(
                    at,
                    "a file: address is one of this host",
                    "put the file where Azure can fetch it by https",
                );
            }
            Some(location)
        }
        Err(reason) => {
            report.bad_value(at, text, reason);
            None
        }
    }
}

fn powershell(object: &Object<'_>, role: Role, report: &mut Report<'_>) -> Option<TemplateAction> {
    let script = script(object, role, report);
    let elevated = object.boolean("runElevated", report).or(false);
    let as_system = object.boolean("runAsSystem", report).or(false);
    let codes = match object.list("validExitCodes", "whole numbers", report) {
        Got::Absent => Some(Vec::new()),
        Got::Bad => None,
        Got::Is(items) => {
            let range = i64::from(i32::MIN)..=i64::from(i32::MAX);
            let codes: Vec<i32> = items
                .iter()
                .filter_map(|item| integer(item, range.clone(), report).value())
                .filter_map(|code| i32::try_from(code).ok())
                .collect();
            (codes.len() == items.len()).then_some(codes)
        }
    };
    if as_system == Some(true) && elevated == Some(false) {
        let at = object.get("runAsSystem").unwrap_or(&object.cursor).clone();
        let message = report.bad_value_text(&at, "true");
        report.error(&at, Code::Exclusive, message).help =
            Some("runAsSystem needs \"runElevated\": true".to_owned());
        return None;
    }
    let mut codes = codes?;
    if codes.is_empty() {
        codes.push(0);
    }
    Some(TemplateAction::PowerShell {
        script: script?,
        run_elevated: elevated?,
        run_as_system: as_system?,
        valid_exit_codes: codes,
    })
}

fn file(object: &Object<'_>, os: Option<Os>, report: &mut Report<'_>) -> Option<TemplateAction> {
    let source = object.required("sourceUri", report).and_then(|at| location(&at, report));
    let checksum = checksum(object, report);
    let destination = object.required("destination", report).and_then(|at| destination(at, os, report));
    Some(TemplateAction::File {
        source: InputRef { location: source?, sha256: checksum? },
        destination: destination?,
    })
}

fn destination((text, at): At<'_>, os: Option<Os>, report: &mut Report<'_>) -> Option<String> {
    let posix = text.starts_with('/');
    let windows = is_windows_path(text);
    let fits = match os {
        Some(Os::Linux) => posix,
        Some(Os::Windows) => windows,
        None => posix || windows,
    };
    if !fits || text.chars().any(char::is_control) {
        let help = match os {
            Some(Os::Linux) => "a full path is needed, for example /tmp/name",
            Some(Os::Windows) => "a full path is needed, for example C:\\\\buildArtifacts\\\\name",
            None => "a full path is needed, for example /tmp/name or C:\\\\buildArtifacts\\\\name",
        };
        report.bad_value(&at, text, help);
        return None;
    }
    if posix && os != Some(Os::Windows) {
        let inside_tmp =
            text.strip_prefix("/tmp/").is_some_and(|rest| !rest.split('/').any(|part| part == ".."));
        if !inside_tmp {
            report.not_portable(
                &at,
                "on Linux, AIB writes files to /tmp only",
                "write it to /tmp and move it by a Shell customizer",
            );
        }
    }
    Some(text.to_owned())
}

fn windows_restart(object: &Object<'_>, report: &mut Report<'_>) -> Option<TemplateAction> {
    let owned = |found: Got<At<'_>>| found.map(|(text, _)| text.to_owned());
    let command = owned(object.text("restartCommand", report)).or(DEFAULT_RESTART_COMMAND.to_owned());
    let check_command = owned(object.text("restartCheckCommand", report)).or(String::new());
    let timeout = match object.text("restartTimeout", report) {
        Got::Absent => Some(DEFAULT_RESTART_TIMEOUT),
        Got::Bad => None,
        Got::Is((text, at)) => {
            let timeout = go_duration(text).filter(|timeout| !timeout.is_zero());
            if timeout.is_none() {
                report.bad_value(
                    &at,
                    text,
                    "a number with a unit (s, m, h), for example \"5m\", \"90s\" or \"1h30m\"",
                );
            }
            timeout
        }
    };
    Some(TemplateAction::WindowsRestart {
        command: command?,
        check_command: check_command?,
        timeout: timeout?,
    })
}

fn windows_update(object: &Object<'_>, report: &mut Report<'_>) -> Option<TemplateAction> {
    let search =
        object.text("searchCriteria", report).map(|(text, _)| text.to_owned()).or(DEFAULT_SEARCH.to_owned());
    let filters = match object.strings("filters", report) {
        Got::Absent => Some(Vec::new()),
        Got::Bad => None,
        Got::Is(items) => {
            let count = items.len();
            let read: Vec<UpdateFilter> = items.into_iter().filter_map(|item| filter(item, report)).collect();
            (read.len() == count).then_some(read)
        }
    };
    let limit = object.integer("updateLimit", 0..=i64::from(i32::MAX), report).or(0);
    let mut filters = filters?;
    if filters.is_empty() {
        filters.push(UpdateFilter { include: true, expression: "$true".to_owned() });
    }
    Some(TemplateAction::WindowsUpdate {
        search_criteria: search?,
        filters,
        limit: match u32::try_from(limit?) {
            Ok(limit) if limit > 0 => limit,
            _ => DEFAULT_UPDATE_LIMIT,
        },
    })
}

fn filter((text, at): At<'_>, report: &mut Report<'_>) -> Option<UpdateFilter> {
    let split = text.split_once(':').map(|(action, expression)| (action, expression.trim()));
    match split {
        Some(("include", expression)) if !expression.is_empty() => {
            Some(UpdateFilter { include: true, expression: expression.to_owned() })
        }
        Some(("exclude", expression)) if !expression.is_empty() => {
            Some(UpdateFilter { include: false, expression: expression.to_owned() })
        }
        _ => {
            report.bad_value(&at, text, "a filter is include:<expression> or exclude:<expression>");
            None
        }
    }
}

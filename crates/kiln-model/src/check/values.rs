//! Forms of values: names, resource ids, durations, addresses. Pure yes-or-no, no reports.

use std::path::PathBuf;
use std::time::Duration;

use crate::plan::InputLocation;

/// Templates and run outputs: `^[A-Za-z0-9-_.]{1,64}$` (REST specification, all versions).
pub(super) fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// A resource id below a resource group, by its types:
/// `["Microsoft.Compute", "galleries", "images"]` stands for
/// `/subscriptions/…/resourceGroups/…/providers/Microsoft.Compute/galleries/…/images/…`.
/// Gives the names of the types back, in order. Words compare without case, as in ARM.
pub(super) fn resource_id<'a>(text: &'a str, types: &[&str]) -> Option<Vec<&'a str>> {
    // `None` stands for a name.
    let mut pattern = vec![Some("subscriptions"), None, Some("resourceGroups"), None];
    if let [namespace, types @ ..] = types {
        pattern.extend([Some("providers"), Some(*namespace)]);
        pattern.extend(types.iter().flat_map(|kind| [Some(*kind), None]));
    }
    let words: Vec<&str> = text.strip_prefix('/')?.split('/').collect();
    if words.len() != pattern.len() {
        return None;
    }
    let mut names = Vec::new();
    for (word, expected) in words.into_iter().zip(pattern) {
        match expected {
            Some(expected) if word.eq_ignore_ascii_case(expected) => {}
            None if is_resource_name(word) => names.push(word),
            Some(_) | None => return None,
        }
    }
    // Subscription and group are not of interest to anyone here.
    Some(names.split_off(2))
}

fn is_resource_name(word: &str) -> bool {
    !word.is_empty()
        && word.chars().all(|c| !c.is_control() && !c.is_whitespace() && !"<>%&\\?#\"'{}[]".contains(c))
}

/// What [`resource_id`] wants, to show.
pub(super) fn resource_id_form(types: &[&str]) -> String {
    let mut form = "/subscriptions/<subscription>/resourceGroups/<group>".to_owned();
    if let [namespace, types @ ..] = types {
        form.push_str(&format!("/providers/{namespace}"));
        for kind in types {
            form.push_str(&format!("/{kind}/<name>"));
        }
    }
    form
}

/// `x.y.z`, each at most 2147483647 (gallery image versions).
pub(super) fn is_gallery_version(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    parts.len() == 3 && parts.iter().all(|part| is_version_part(part))
}

fn is_version_part(part: &str) -> bool {
    !part.is_empty()
        && part.bytes().all(|byte| byte.is_ascii_digit())
        && (part == "0" || !part.starts_with('0'))
        && part.parse::<u32>().is_ok_and(|number| number <= i32::MAX as u32)
}

/// Numbers with dots between, as Marketplace images are versioned.
pub(super) fn is_image_version(text: &str) -> bool {
    text.len() <= 64
        && text.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A Go duration: `300ms`, `1.5h`, `2h45m`. Units ns, us (µs), ms, s, m, h.
/// Signs are refused: nothing here waits for a negative time.
pub(super) fn go_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 8] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("μs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number = &rest[..number_end];
        if !number.bytes().any(|byte| byte.is_ascii_digit()) || number.matches('.').count() > 1 {
            return None;
        }
        rest = &rest[number_end..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let (_, factor) = UNITS.iter().find(|(unit, _)| *unit == &rest[..unit_end])?;
        // "5." and ".5" are Go's, and read by Rust as well.
        seconds += number.parse::<f64>().ok()? * factor;
        rest = &rest[unit_end..];
    }
    // A year: longer is a slip, and no arithmetic overflows.
    (!text.is_empty() && seconds <= 366.0 * 86_400.0).then(|| Duration::from_secs_f64(seconds))
}

/// Why an address cannot be used.
pub(crate) type BadAddress = String;

/// An address of a script or file: http, https, or `file:` with an absolute path.
pub(crate) fn input_location(text: &str) -> Result<InputLocation, BadAddress> {
    let odd = |c: char| c.is_control() || c.is_whitespace() || "<>\"{}|\\^`".contains(c);
    let Some((scheme, rest)) = text.split_once(':') else {
        return Err(advice(text));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "http" | "https" => {
            let rest = rest.strip_prefix("//").ok_or("an address begins with https://")?;
            let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            let (name, port) = match host.strip_prefix('[') {
                Some(v6) => {
                    let (name, after) = v6.split_once(']').ok_or("the host's bracket is not closed")?;
                    (name, after.strip_prefix(':'))
                }
                None => host.rsplit_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
            };
            if name.is_empty() {
                return Err("the address has no host".to_owned());
            }
            if port.is_some_and(|port| port.parse::<u16>().is_err()) {
                return Err("the port is not a number up to 65535".to_owned());
            }
            if text.contains(odd) {
                return Err(
                    "blanks and characters like < > \" must be percent-encoded (a blank is %20)".to_owned()
                );
            }
            Ok(InputLocation::Url(text.to_owned()))
        }
        "file" => {
            let path = match rest.strip_prefix("//") {
                Some(after) => {
                    let (host, _) = after.split_once('/').ok_or("a file: address has an absolute path")?;
                    if !host.is_empty() && !host.eq_ignore_ascii_case("localhost") {
                        return Err(format!(
                            "a file: address has three slashes, file:///path (\"{host}\" is taken for a host)"
                        ));
                    }
                    &after[host.len()..]
                }
                None => rest,
            };
            if !path.starts_with('/') {
                return Err("a file: address has an absolute path: file:///path".to_owned());
            }
            if path.contains(['?', '#']) {
                return Err("? and # in a path are written %3F and %23".to_owned());
            }
            let decoded = percent_decode(path).ok_or("%XX in the path is wrong, or is no UTF-8")?;
            if decoded.contains('\0') {
                return Err("a path has no NUL".to_owned());
            }
            Ok(InputLocation::File(PathBuf::from(decoded)))
        }
        _ => Err(advice(text)),
    }
}

fn advice(text: &str) -> String {
    if text.starts_with('/') {
        // The text may be half an address, with a secret behind its question mark.
        let path = text.split(['?', '#']).next().unwrap_or_default().trim_start_matches('/');
        format!("for a file of this host write file:///{path}")
    } else {
        "http://, https:// or file:/// (absolute path) is expected".to_owned()
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            let (high, low) = (digit(rest.next())?, digit(rest.next())?);
            bytes.push((high * 16 + low) as u8);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// `C:\x`, `c:/x`.
pub(super) fn is_windows_path(text: &str) -> bool {
    let mut letters = text.chars();
    letters.next().is_some_and(|c| c.is_ascii_alphabetic())
        && letters.next() == Some(':')
        && matches!(letters.next(), Some('\\' | '/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "A-b_c.9", &"x".repeat(64)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "a b", "a/b", "é", &"x".repeat(65)] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn resource_ids() {
        let images = &["Microsoft.Compute", "images"];
        assert_eq!(
            resource_id("/subscriptions/s/resourcegroups/g/providers/microsoft.compute/Images/i", images),
            Some(vec!["i"])
        );
        for bad in [
            "",
            "i",
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/images/",
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/images/i/x",
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/disks/i",
            "/subscriptions/s/resourceGroups/<g>/providers/Microsoft.Compute/images/i",
            "/subscriptions/s/resourceGroups/g/p  roviders/Microsoft.Compute/images/i",
            "subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/images/i",
        ] {
            assert_eq!(resource_id(bad, images), None, "{bad}");
        }
        assert_eq!(resource_id("/subscriptions/s/resourceGroups/g", &[]), Some(vec![]));
    }

    #[test]
    fn durations_are_gos() {
        for (text, millis) in [
            ("5m", Some(300_000)),
            ("2h", Some(7_200_000)),
            ("1h30m", Some(5_400_000)),
            ("1.5h", Some(5_400_000)),
            ("300ms", Some(300)),
            (".5s", Some(500)),
            ("5.s", Some(5000)),
            ("0", Some(0)),
            ("10µs", Some(0)),
            ("", None),
            ("5", None),
            ("m", None),
            ("5 m", None),
            ("5d", None),
            ("-5m", None),
            ("1..5s", None),
            ("99999999h", None),
            ("5mm", None),
        ] {
            assert_eq!(go_duration(text).map(|d| d.as_millis()), millis, "{text}");
        }
    }

    #[test]
    fn addresses() {
        let url = |text: &str| Ok(InputLocation::Url(text.to_owned()));
        for good in
            ["https://h/a.sh", "HTTP://h:8080/a?sig=x", "https://[::1]:443/a", "https://user:pass@h/a"]
        {
            assert_eq!(input_location(good), url(good));
        }
        for (text, path) in [
            ("file:///a/b.sh", "/a/b.sh"),
            ("file:/a", "/a"),
            ("file://localhost/a%20b", "/a b"),
            ("FILE:///%C3%A9", "/é"),
        ] {
            assert_eq!(input_location(text), Ok(InputLocation::File(path.into())), "{text}");
        }
        for bad in [
            "",
            "a.sh",
            "/a.sh",
            "ftp://h/a",
            "https:h",
            "https://",
            "https:///a",
            "https://h:99999/",
            "https://h/a b",
            "https://[::1",
            "file:a",
            "file://host/a",
            "file:///%zz",
            "file:///%ff",
            "file:///%00",
            "file:///a?b",
            "c:\\a.ps1",
        ] {
            assert!(input_location(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn versions() {
        assert!(is_gallery_version("1.2.3") && is_gallery_version("0.0.2147483647"));
        for bad in ["1.2", "1.2.3.4", "1.2.2147483648", "01.2.3", "a.b.c", "", "1.2.", "1.+2.3"] {
            assert!(!is_gallery_version(bad), "{bad}");
        }
        assert!(is_image_version("12.20250101.0") && !is_image_version("12.x") && !is_image_version(""));
    }
}

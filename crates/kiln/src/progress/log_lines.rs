//! `customization.log` as it is shown on the way: what the guest and the build said,
//! without what repeats on every line.
//!
//! The file's own form is the service's (`[id] PACKER OUT     azure-arm: text`), for
//! people who search it; on a screen only the text counts. Lines that exist to be
//! searched for, `(telemetry)`, are left out here.

use crate::ui::guest_text::Lines;

/// More lines than this in one piece are not shown: nobody reads that fast, and
/// drawing them would hold up the build's own messages. The log has them all.
const LINES_AT_ONCE: usize = 200;

#[derive(Debug, Default)]
pub struct LogLines {
    lines: Lines,
}

impl LogLines {
    /// The lines that `bytes` completes, ready to be shown.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut shown = std::collections::VecDeque::new();
        let mut left_out = 0_usize;
        self.lines.push(bytes, |line| {
            if let Some(text) = text_of(line) {
                shown.push_back(text.to_owned());
                if shown.len() > LINES_AT_ONCE {
                    shown.pop_front();
                    left_out += 1;
                }
            }
        });
        if left_out > 0 {
            shown.push_front(format!("[{left_out} lines left out here; the log has them]"));
        }
        shown.into()
    }

    /// A last line without its end.
    pub fn finish(&mut self) -> Option<String> {
        let mut last = None;
        self.lines.finish(|line| last = text_of(line).map(str::to_owned));
        last
    }
}

/// The text of one line of the log; nothing where it is not for people.
pub fn text_of(line: &str) -> Option<&str> {
    let Some((_, rest)) = line.strip_prefix('[').and_then(|rest| rest.split_once("] PACKER ")) else {
        return Some(line);
    };
    let rest = rest.strip_prefix("OUT ").or_else(|| rest.strip_prefix("ERR ")).unwrap_or(rest);
    if rest.contains("[INFO] (telemetry) ") {
        return None;
    }
    let text = rest.strip_prefix("==> ").or_else(|| rest.strip_prefix("    ")).unwrap_or(rest);
    Some(text.strip_prefix("azure-arm: ").unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_text_is_shown() {
        for (line, text) in [
            ("[1-2] PACKER OUT ==> azure-arm: Connected to SSH!", Some("Connected to SSH!")),
            ("[1-2] PACKER OUT     azure-arm:   indented", Some("  indented")),
            ("[1-2] PACKER ERR ==> azure-arm: oops", Some("oops")),
            ("[1-2] PACKER ERR 2026/01/02 03:04:05 [INFO] (telemetry) Finalizing.", None),
            ("[1-2] PACKER OUT something new", Some("something new")),
            ("not the form", Some("not the form")),
            ("[x] neither", Some("[x] neither")),
            ("", Some("")),
        ] {
            assert_eq!(text_of(line), text, "{line:?}");
        }
    }

    #[test]
    fn a_flood_is_cut_to_its_end() {
        let flood: String = (0..1000).map(|n| format!("[1] PACKER OUT     azure-arm: {n}\n")).collect();
        let shown = LogLines::default().push(flood.as_bytes());
        assert_eq!(shown.len(), LINES_AT_ONCE + 1);
        assert_eq!(shown[0], "[800 lines left out here; the log has them]");
        assert_eq!(shown[LINES_AT_ONCE], "999");
    }
}

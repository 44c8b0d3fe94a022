//! Values into PowerShell texts and XML, whatever is in them; answers out again.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;

/// Lines in which our texts answer: this, then one JSON object.
const ANSWER: &str = "kiln:";
/// Defines `Write-KilnAnswer`, for texts that answer.
const ANSWERING: &str = include_str!("answer.ps1");
const ANSWER_CALL: &str = "Write-KilnAnswer";

/// A value for a variable of a text.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Text(&'a str),
    List(&'a [String]),
    Number(u64),
    Flag(bool),
}

/// The text, with its values assigned ahead of it and what it needs to answer.
pub(super) fn fill(text: &str, values: &[(&str, Value)]) -> String {
    let mut filled = String::new();
    for (name, value) in values {
        let value = match value {
            Value::Text(text) => literal(text),
            Value::List(items) => {
                let items: Vec<String> = items.iter().map(|item| literal(item)).collect();
                format!("@({})", items.join(", "))
            }
            Value::Number(number) => number.to_string(),
            Value::Flag(true) => "$true".to_owned(),
            Value::Flag(false) => "$false".to_owned(),
        };
        filled.push_str(&format!("${name} = {value}\n"));
    }
    if text.contains(ANSWER_CALL) {
        filled.push_str(ANSWERING);
    }
    filled.push_str(text);
    filled
}

/// `text` as a PowerShell expression that has exactly this value.
///
/// Printable ASCII becomes a single-quoted literal, where nothing but the quote itself has a meaning. Everything else
/// goes as base64: PowerShell takes the typographic quotes for quotes too, and Windows PowerShell 5.1 reads a file
/// without a byte order mark in the code page of the machine.
pub fn literal(text: &str) -> String {
    if text.chars().all(|c| matches!(c, ' '..='~')) {
        return format!("'{}'", text.replace('\'', "''"));
    }
    format!("([Text.Encoding]::UTF8.GetString([Convert]::FromBase64String('{}')))", STANDARD.encode(text))
}

/// One line of standard input for a text that reads a secret: base64, so that any password is one line of ASCII.
pub fn secret_line(secret: &str) -> zeroize::Zeroizing<String> {
    let mut line = zeroize::Zeroizing::new(STANDARD.encode(secret));
    line.push('\n');
    line
}

/// `text` as the content of an XML element or of an attribute in double quotes.
///
/// # Errors
/// Answers the first character that XML 1.0 (2.2) cannot hold at all.
pub fn xml_escape(text: &str) -> Result<String, char> {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            // As they are, a reader would make a space or a line feed of them.
            '\t' | '\n' | '\r' => escaped.push_str(&format!("&#{};", u32::from(c))),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => return Err(c),
            _ => escaped.push(c),
        }
    }
    Ok(escaped)
}

/// The answers of a text, in order: what stands in its `kiln:` lines and can be read as `T`.
///
/// The guest's word: lines that are something else are passed over, as other programs print too.
pub fn answers<'a, T: DeserializeOwned + 'a>(stdout: &'a str) -> impl DoubleEndedIterator<Item = T> + 'a {
    stdout.lines().filter_map(answer)
}

/// The answer in one line, if it is one.
pub fn answer<T: DeserializeOwned>(line: &str) -> Option<T> {
    serde_json::from_str(line.trim_end().strip_prefix(ANSWER)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;

    #[test]
    fn plain_words_stay_readable() {
        expect!["'c:\\a b'"].assert_eq(&literal("c:\\a b"));
        expect!["'it''s'"].assert_eq(&literal("it's"));
        expect!["''"].assert_eq(&literal(""));
        expect!["'$x `n \"%PATH%\"'"].assert_eq(&literal("$x `n \"%PATH%\""));
        // A typographic quote ends a literal in PowerShell.
        assert!(literal("\u{2019}; exit 9").starts_with("([Text.Encoding]"));
        assert!(literal("a\nb").starts_with("([Text.Encoding]"));
    }

    #[test]
    fn values_come_first_and_answers_bring_what_they_need() {
        let filled = fill(
            "Write-KilnAnswer $List\n",
            &[
                ("Word", Value::Text("a'b")),
                ("List", Value::List(&["x".to_owned(), "y".to_owned()])),
                ("Count", Value::Number(3)),
                ("Yes", Value::Flag(true)),
                ("No", Value::Flag(false)),
            ],
        );
        assert!(
            filled.starts_with(
                "$Word = 'a''b'\n$List = @('x', 'y')\n$Count = 3\n$Yes = $true\n$No = $false\n#"
            ),
            "{filled}"
        );
        assert!(filled.contains("function Write-KilnAnswer"));
        assert_eq!(fill("exit 0\n", &[]), "exit 0\n");
    }

    #[test]
    fn answers_are_found_among_other_talk() {
        let stdout = "hello\nkiln:{\"a\":1}\r\nkiln:nonsense\n kiln:{\"a\":9}\nkiln:{\"a\":2}\n";
        let found: Vec<serde_json::Value> = answers(stdout).collect();
        assert_eq!(found, [serde_json::json!({"a": 1}), serde_json::json!({"a": 2})]);
    }

    proptest! {
        /// The literal has no character that could end it early, and can be read back by rule.
        #[test]
        fn a_literal_is_ascii_in_one_line(text in any::<String>()) {
            let literal = literal(&text);
            prop_assert!(literal.chars().all(|c| matches!(c, ' '..='~')));
            if let Some(inside) = literal.strip_prefix('\'') {
                let inside = inside.strip_suffix('\'').unwrap();
                prop_assert_eq!(inside.replace("''", "'"), text);
                prop_assert!(!inside.replace("''", "").contains('\''));
            }
        }

        #[test]
        fn a_secret_is_one_line(text in any::<String>()) {
            let line = secret_line(&text);
            prop_assert_eq!(line.matches('\n').count(), 1);
            prop_assert_eq!(STANDARD.decode(line.trim_end()).unwrap(), text.as_bytes());
        }

        #[test]
        fn xml_reads_back(text in any::<String>()) {
            if let Ok(escaped) = xml_escape(&text) {
                let xml = format!("<a b=\"{escaped}\">{escaped}</a>");
                let document = roxmltree::Document::parse(&xml).unwrap();
                prop_assert_eq!(document.root_element().text().unwrap_or_default(), &text);
                prop_assert_eq!(document.root_element().attribute("b").unwrap(), &text);
            }
        }
    }
}

//! One word for a POSIX shell, whatever is in it.

/// Quotes `text` so that any POSIX shell reads it back as one word, byte for byte.
///
/// Single quotes keep everything but a single quote; that one is written as `'\''`. Plain words are left as they
/// are, for the eyes of whoever reads the command. A NUL cannot be in a word at all and ends it in every shell:
/// callers refuse it earlier.
pub fn sh_quote(text: &str) -> String {
    let plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | ',' | '+' | ':' | '@');
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use kiln_host::process::Invocation;
    use proptest::prelude::*;

    use super::*;

    /// What a real shell makes of the quoted word.
    fn read_back(text: &str) -> Vec<u8> {
        let script = format!("printf %s {}", sh_quote(text));
        Invocation::new("sh").arg("-c").arg(script).run_blocking().unwrap().stdout
    }

    #[test]
    fn plain_words_stay_readable() {
        assert_eq!(sh_quote("/usr/bin/env"), "/usr/bin/env");
        assert_eq!(sh_quote(""), "''");
        assert_eq!(sh_quote("a b"), "'a b'");
        assert_eq!(sh_quote("it's"), r"'it'\''s'");
        // A tilde, a glob or an assignment would be expanded or misread when left bare.
        assert_eq!(sh_quote("~"), "'~'");
        assert_eq!(sh_quote("*"), "'*'");
        assert_eq!(sh_quote("A=1"), "'A=1'");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_shell_reads_back_what_was_quoted(text in "[^\0]{0,40}") {
            prop_assert_eq!(read_back(&text), text.as_bytes());
        }

        #[test]
        fn shell_syntax_is_only_text(text in r#"[ '"`$\\!*?~#&|;<>(){}\[\]\n\t=-]{0,12}"#) {
            prop_assert_eq!(read_back(&text), text.as_bytes());
        }
    }
}

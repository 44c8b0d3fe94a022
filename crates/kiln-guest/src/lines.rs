//! Lines out of a guest's raw output, for logs and terminals.
//!
//! A guest prints what it likes: chunks that end in the middle of a character, megabytes without a line end,
//! progress bars that repaint one line with carriage returns, escape sequences that would repaint *our* terminal.
//! [`LineSplitter`] cuts the stream into lines of bounded length; [`printable`] makes one of them safe to show.
//! Both are pure: chunk borders never change the result.

use std::borrow::Cow;
use std::iter::Peekable;
use std::str::Chars;

/// How a line came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineEnd {
    /// By `\n` or `\r\n`.
    Newline,
    /// By a carriage return alone: the next line repaints this one. A log may drop it, a live view may show it.
    Repainted,
    /// Longer than the limit: the rest follows as the next line.
    TooLong,
    /// The stream ended without a line end.
    StreamEnd,
}

/// Cuts a stream of chunks into lines. Holds at most one line of the limit's length.
#[derive(Debug)]
pub struct LineSplitter {
    partial: Vec<u8>,
    /// A carriage return was the last byte: what it means depends on the next one.
    after_return: bool,
    limit: usize,
}

impl Default for LineSplitter {
    fn default() -> Self {
        Self::new(Self::DEFAULT_LIMIT)
    }
}

impl LineSplitter {
    /// Long enough for any line a person reads, short enough for any log viewer.
    pub const DEFAULT_LIMIT: usize = 8 * 1024;

    /// `limit`: the longest line in bytes, at least 1.
    pub fn new(limit: usize) -> Self {
        Self { partial: Vec::new(), after_return: false, limit: limit.max(1) }
    }

    /// Takes the next chunk and hands over each line it completes, without its line end.
    pub fn push(&mut self, chunk: &[u8], mut on_line: impl FnMut(&[u8], LineEnd)) {
        for &byte in chunk {
            if std::mem::take(&mut self.after_return) && byte != b'\n' {
                // `\r\r` repaints nothing; an empty line for it would only be noise.
                if byte == b'\r' {
                    self.after_return = true;
                    continue;
                }
                if !self.partial.is_empty() {
                    on_line(&self.partial, LineEnd::Repainted);
                    self.partial.clear();
                }
            }
            match byte {
                b'\n' => {
                    on_line(&self.partial, LineEnd::Newline);
                    self.partial.clear();
                }
                b'\r' => self.after_return = true,
                _ => {
                    if self.partial.len() == self.limit {
                        let cut = self.character_border();
                        on_line(&self.partial[..cut], LineEnd::TooLong);
                        self.partial.drain(..cut);
                    }
                    self.partial.push(byte);
                }
            }
        }
    }

    /// The stream is at its end: hands over what is left, if anything is.
    pub fn finish(&mut self, mut on_line: impl FnMut(&[u8], LineEnd)) {
        self.after_return = false;
        if !self.partial.is_empty() {
            on_line(&self.partial, LineEnd::StreamEnd);
            self.partial.clear();
        }
    }

    /// Where to cut a full line without cutting a UTF-8 character in two.
    fn character_border(&self) -> usize {
        let len = self.partial.len();
        let is_continuation = |byte: u8| byte & 0b1100_0000 == 0b1000_0000;
        // The last character starts at most three bytes before its last byte.
        let start = (len.saturating_sub(4)..len).rev().find(|&at| !is_continuation(self.partial[at]));
        match start {
            Some(start) if start > 0 && std::str::from_utf8(&self.partial[start..]).is_err() => start,
            _ => len,
        }
    }
}

/// The line as text that is safe to print: invalid UTF-8 replaced, escape sequences (colours, cursor movements,
/// titles) dropped, other control characters but the tab shown as `\x07`.
pub fn printable(line: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(line);
    if !text.chars().any(|c| c.is_control() && c != '\t') {
        return text;
    }
    let mut shown = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\t' => shown.push('\t'),
            '\u{1b}' => skip_escape(&mut rest),
            c if c.is_control() => shown.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// Drops one escape sequence; its ESC is already taken.
fn skip_escape(rest: &mut Peekable<Chars<'_>>) {
    match rest.next_if(|&next| matches!(next, '[' | ']' | 'P' | '^' | '_' | 'X')) {
        // Control sequence (ECMA-48, 5.4): parameters and intermediates, then one final of `@` to `~`.
        Some('[') => {
            while rest.next_if(|&c| matches!(c, ' '..='?')).is_some() {}
            rest.next_if(|&c| matches!(c, '@'..='~'));
        }
        // Control string (ECMA-48, 5.6): up to BEL or ESC \.
        Some(_) => {
            while let Some(c) = rest.next() {
                if c == '\u{7}' || (c == '\u{1b}' && rest.next_if_eq(&'\\').is_some()) {
                    break;
                }
            }
        }
        // Any other escape (ECMA-35, 13.2): intermediates, then one final.
        None => {
            while rest.next_if(|&c| matches!(c, ' '..='/')).is_some() {}
            rest.next_if(|&c| matches!(c, '0'..='~'));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(chunks: &[&[u8]], limit: usize) -> Vec<(String, LineEnd)> {
        let mut lines = Vec::new();
        let mut take = |line: &[u8], end| lines.push((String::from_utf8_lossy(line).into_owned(), end));
        let mut splitter = LineSplitter::new(limit);
        for chunk in chunks {
            splitter.push(chunk, &mut take);
        }
        splitter.finish(&mut take);
        lines
    }

    fn line(text: &str, end: LineEnd) -> (String, LineEnd) {
        (text.to_owned(), end)
    }

    #[test]
    fn lines_end_where_a_reader_sees_them_end() {
        use LineEnd::{Newline, Repainted, StreamEnd, TooLong};
        assert_eq!(
            split(&[b"a\nb\r\n\nc"], 99),
            [line("a", Newline), line("b", Newline), line("", Newline), line("c", StreamEnd)]
        );
        // The line end falls between two chunks.
        assert_eq!(split(&[b"a\r", b"\nb"], 99), [line("a", Newline), line("b", StreamEnd)]);
        assert_eq!(
            split(&[b" 1%\r", b" 50%\r100%\r\ndone\n"], 99),
            [line(" 1%", Repainted), line(" 50%", Repainted), line("100%", Newline), line("done", Newline)]
        );
        assert_eq!(split(&[b"\r\r\rx\r\r\n"], 99), [line("x", Newline)]);
        assert_eq!(
            split(&[b"abcdefg\n"], 3),
            [line("abc", TooLong), line("def", TooLong), line("g", Newline)]
        );
        // Exactly the limit is not too long.
        assert_eq!(split(&[b"abc\n"], 3), [line("abc", Newline)]);
        assert_eq!(split(&[], 3), []);
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let text = "é".repeat(5);
        let lines = split(&[text.as_bytes()], 3);
        assert_eq!(lines.iter().map(|(text, _)| text.as_str()).collect::<String>(), text);
        // Bytes that are no characters at all are cut where the limit is.
        let mut lengths = Vec::new();
        let mut splitter = LineSplitter::new(4);
        splitter.push(&[0x80; 10], |line, _| lengths.push(line.len()));
        splitter.finish(|line, _| lengths.push(line.len()));
        assert_eq!(lengths, [4, 4, 2]);
    }

    #[test]
    fn what_is_printed_cannot_act_on_a_terminal() {
        for (raw, shown) in [
            (&b"plain\ttext"[..], "plain\ttext"),
            (b"\x1b[1;31mred\x1b[0m", "red"),
            (b"\x1b]0;title\x07after", "after"),
            (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
            (b"\x1bPq#0\x1b\\x", "x"),
            (b"\x1b(Bx\x1b=y\x1b7z", "xyz"),
            (b"bell\x07 nul\x00 del\x7f", "bell\\x07 nul\\x00 del\\x7f"),
            (b"c1\xc2\x9b31m", "c1\\x9b31m"),
            (b"\xff\xfe", "\u{fffd}\u{fffd}"),
            (b"cut \x1b[", "cut "),
            (b"\x1b", ""),
        ] {
            assert_eq!(printable(raw), shown, "{raw:?}");
        }
    }

    proptest! {
        #[test]
        fn chunk_borders_change_nothing(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..200),
            border in 0usize..200,
            limit in 1usize..20,
        ) {
            let border = border.min(bytes.len());
            let whole = split(&[&bytes], limit);
            prop_assert_eq!(&whole, &split(&[&bytes[..border], &bytes[border..]], limit));
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(&whole, &split(&single, limit));
        }

        #[test]
        fn nothing_printable_is_a_control_character(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(printable(&bytes).chars().all(|c| !c.is_control() || c == '\t'));
        }
    }
}

//! Text from a guest, made fit for a terminal.
//!
//! A guest's output is untrusted bytes. Shown as they are, escape sequences could
//! move the cursor over what Kiln printed, change the window's title or answer
//! back to the shell. [`Lines`] cuts the bytes into lines of bounded length;
//! [`neutralize`] takes out everything a terminal would act on.

/// Longest line that is shown, bytes; the rest of it is left out. The log has it all.
pub const LINE_LIMIT: usize = 4096;

/// Cuts a stream of bytes into lines, whatever the borders of the chunks.
#[derive(Debug, Default)]
pub struct Lines {
    pending: Vec<u8>,
    cut: bool,
    /// A carriage return was last: a line feed ends the line, anything else redraws it.
    returned: bool,
}

impl Lines {
    /// Calls `on_line` for each line that `bytes` completes.
    pub fn push(&mut self, bytes: &[u8], mut on_line: impl FnMut(&str)) {
        let mut rest = bytes;
        while let Some(at) = rest.iter().position(|&byte| byte == b'\n') {
            self.keep(&rest[..at]);
            self.flush(&mut on_line);
            rest = &rest[at + 1..];
        }
        self.keep(rest);
    }

    /// Hands out a last line without a line feed.
    pub fn finish(&mut self, mut on_line: impl FnMut(&str)) {
        if !self.pending.is_empty() {
            self.flush(&mut on_line);
        }
    }

    /// A progress bar redraws its line after a carriage return: only what is drawn
    /// last counts, which also bounds how much is kept.
    fn keep(&mut self, bytes: &[u8]) {
        let Some(end) = bytes.iter().rposition(|&byte| byte != b'\r') else {
            self.returned |= !bytes.is_empty();
            return;
        };
        let body = match bytes[..end].iter().rposition(|&byte| byte == b'\r') {
            Some(at) => {
                self.redraw();
                &bytes[at + 1..=end]
            }
            None => {
                if self.returned {
                    self.redraw();
                }
                &bytes[..=end]
            }
        };
        let room = LINE_LIMIT.saturating_sub(self.pending.len());
        self.cut |= body.len() > room;
        self.pending.extend_from_slice(&body[..body.len().min(room)]);
        self.returned = end + 1 < bytes.len();
    }

    fn redraw(&mut self) {
        self.pending.clear();
        self.cut = false;
    }

    fn flush(&mut self, on_line: &mut impl FnMut(&str)) {
        let mut text = neutralize(&String::from_utf8_lossy(&self.pending));
        if self.cut {
            text.push_str(" [line cut]");
        }
        on_line(&text);
        self.redraw();
        self.returned = false;
    }
}

/// `text` without anything a terminal acts on: control sequences (ECMA-48) are
/// dropped, other control characters and those that turn the writing direction
/// are shown as a replacement character. Tabs stay.
pub fn neutralize(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\t' => out.push('\t'),
            '\u{1b}' => skip_sequence(&mut chars),
            // CSI and the string openers exist as single C1 characters too.
            '\u{9b}' => skip_control_sequence(&mut chars),
            '\u{90}' | '\u{98}' | '\u{9d}' | '\u{9e}' | '\u{9f}' => skip_string(&mut chars),
            c if c.is_control() || turns_direction(c) => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
    }
    out
}

type Rest<'a> = std::iter::Peekable<std::str::Chars<'a>>;

fn skip_sequence(chars: &mut Rest<'_>) {
    match chars.next() {
        Some('[') => skip_control_sequence(chars),
        Some(']' | 'P' | 'X' | '^' | '_') => skip_string(chars),
        // Intermediate bytes, then one final byte: ESC ( B, ESC # 8.
        Some(' '..='/') => {
            while chars.next_if(|c| (' '..='/').contains(c)).is_some() {}
            chars.next_if(|c| ('0'..='~').contains(c));
        }
        Some(_) | None => {}
    }
}

/// Parameters and intermediates up to the final byte (0x40 to 0x7e).
fn skip_control_sequence(chars: &mut Rest<'_>) {
    while chars.next_if(|c| (' '..='?').contains(c)).is_some() {}
    chars.next_if(|c| ('@'..='~').contains(c));
}

/// A string ends with BEL, ST (ESC \ or U+009C), or with the line.
fn skip_string(chars: &mut Rest<'_>) {
    while let Some(c) = chars.next() {
        match c {
            '\u{7}' | '\u{9c}' => return,
            '\u{1b}' => {
                chars.next_if_eq(&'\\');
                return;
            }
            _ => {}
        }
    }
}

/// Characters that reorder the text around them (Unicode Standard Annex 9).
fn turns_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let mut out = Vec::new();
        let mut lines = Lines::default();
        for chunk in chunks {
            lines.push(chunk, |line| out.push(line.to_owned()));
        }
        lines.finish(|line| out.push(line.to_owned()));
        out
    }

    #[test]
    fn nothing_a_terminal_acts_on_is_left() {
        for (raw, shown) in [
            ("plain", "plain"),
            ("a\tb", "a\tb"),
            ("\u{1b}[31mred\u{1b}[0m", "red"),
            ("\u{1b}[2J\u{1b}[1;1Hhome", "home"),
            ("\u{1b}]0;title\u{7}after", "after"),
            ("\u{1b}]8;;https://evil\u{1b}\\link\u{1b}]8;;\u{1b}\\", "link"),
            ("\u{1b}Pq#0;2;0\u{1b}\\sixel", "sixel"),
            ("\u{9b}31mC1\u{9d}0;t\u{9c}!", "C1!"),
            ("\u{1b}(Bcharset", "charset"),
            ("\u{1b}cfull reset", "full reset"),
            ("bell\u{7}back\u{8}", "bell\u{fffd}back\u{fffd}"),
            ("\u{202e}txet", "\u{fffd}txet"),
            ("dangling \u{1b}", "dangling "),
            ("dangling \u{1b}[", "dangling "),
        ] {
            assert_eq!(neutralize(raw), shown, "{raw:?}");
        }
    }

    #[test]
    fn any_bytes_leave_no_control_characters() {
        // Every pair of bytes that may matter, in every order, around text.
        let bytes = [0x00, 0x07, 0x08, 0x0a, 0x0d, 0x1b, b'[', b']', b'm', 0x7f, 0x9b, 0xc2, 0xff, b'x'];
        for a in bytes {
            for b in bytes {
                for c in bytes {
                    for line in lines(&[&[b'a', a], &[b], &[c, b'z']]) {
                        assert!(line.chars().all(|c| !c.is_control()), "{a:x} {b:x} {c:x}: {line:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn lines_do_not_depend_on_chunks() {
        let text = "one\r\ntwo é\n10%\r55%\r100%\r\r\n\n\rx\nlast".as_bytes();
        let whole = lines(&[text]);
        assert_eq!(whole, ["one", "two é", "100%", "", "x", "last"]);
        for at in 0..text.len() {
            assert_eq!(lines(&[&text[..at], &text[at..]]), whole, "cut at {at}");
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(lines(&bytes), whole);
    }

    #[test]
    fn a_line_without_end_is_bounded() {
        let mut kept = Lines::default();
        let mut out = Vec::new();
        for _ in 0..1000 {
            kept.push(&[b'x'; 1000], |line| out.push(line.len()));
        }
        assert!(kept.pending.capacity() <= 2 * LINE_LIMIT, "{}", kept.pending.capacity());
        kept.push(b"\nnext\n", |line| out.push(line.len()));
        assert_eq!(out, [LINE_LIMIT + " [line cut]".len(), 4]);
    }
}

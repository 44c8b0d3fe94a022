//! A file's bytes as text, and from byte offsets to lines and columns.

use super::MAX_BYTES;
use crate::problem::{Code, Place, Problem};

/// Every so many bytes the number of characters before is noted, so that a column in
/// a very long line does not cost a walk through all of it.
const MARK_EVERY: usize = 4096;

#[derive(Debug, Clone)]
pub(crate) struct Text {
    /// Without a byte order mark.
    pub text: String,
    /// Offset of each line's first byte.
    line_starts: Vec<u32>,
    /// Characters before byte `i * MARK_EVERY`.
    marks: Vec<u32>,
}

impl Text {
    /// Refuses what is no text.
    pub fn new(bytes: &[u8]) -> Result<Text, Problem> {
        let start = Place { pointer: String::new(), line: 1, column: 1 };
        if bytes.len() > MAX_BYTES {
            return Err(Problem::error(
                Code::TooLarge,
                &start,
                format!("the file is larger than {} MiB", MAX_BYTES >> 20),
            )
            .help("an image template is a few kilobytes; is this the right file?"));
        }
        if let [0xff, 0xfe, ..] | [0xfe, 0xff, ..] = bytes {
            return Err(Problem::error(
                Code::Syntax,
                &start,
                "the file is UTF-16 (it starts with that byte order mark); a template is UTF-8",
            )
            .help("convert it, for example with `iconv -f UTF-16 -t UTF-8`; PowerShell: `Set-Content -Encoding utf8`"));
        }
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let good = error.valid_up_to();
                let before = Text::index(String::from_utf8_lossy(&bytes[..good]).into_owned());
                let place = before.place("", good as u32);
                return Err(match bytes[..good].iter().position(|&byte| byte == 0) {
                    Some(_) => binary(&start),
                    None => Problem::error(
                        Code::Syntax,
                        &place,
                        format!("the file is not UTF-8 text: byte {good} is 0x{:02x}", bytes[good]),
                    )
                    .help("save it as UTF-8"),
                });
            }
        };
        if text.contains('\0') {
            return Err(binary(&start));
        }
        Ok(Text::index(text.to_owned()))
    }

    fn index(text: String) -> Text {
        let mut line_starts = vec![0];
        let mut marks = vec![0];
        let mut characters = 0;
        for (offset, byte) in text.bytes().enumerate() {
            if offset > 0 && offset % MARK_EVERY == 0 {
                marks.push(characters);
            }
            if !is_continuation(byte) {
                characters += 1;
            }
            if byte == b'\n' {
                line_starts.push(offset as u32 + 1);
            }
        }
        Text { text, line_starts, marks }
    }

    /// Characters before `offset`.
    fn characters(&self, offset: usize) -> u32 {
        let offset = offset.min(self.text.len());
        let mark = (offset / MARK_EVERY).min(self.marks.len() - 1);
        let rest = &self.text.as_bytes()[mark * MARK_EVERY..offset];
        self.marks[mark] + rest.iter().filter(|&&byte| !is_continuation(byte)).count() as u32
    }

    /// Line and column, both from 1, the column in characters.
    pub fn place(&self, pointer: &str, offset: u32) -> Place {
        let line = self.line_starts.partition_point(|&start| start <= offset);
        let start = self.line_starts[line - 1];
        let column = self.characters(offset as usize) - self.characters(start as usize) + 1;
        Place { pointer: pointer.to_owned(), line: line as u32, column }
    }

    /// The first thing besides white space and comments opens an object or a list.
    pub fn looks_like_json(&self) -> bool {
        let mut rest = self.text.trim_start();
        loop {
            if let Some(comment) = rest.strip_prefix("//") {
                rest = comment.split_once('\n').map_or("", |(_, after)| after).trim_start();
            } else if let Some(comment) = rest.strip_prefix("/*") {
                rest = comment.split_once("*/").map_or("", |(_, after)| after).trim_start();
            } else {
                return rest.starts_with(['{', '[']);
            }
        }
    }
}

fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

fn binary(place: &Place) -> Problem {
    Problem::error(Code::Syntax, place, "the file is binary (it holds NUL bytes), not a template")
        .help("if it is UTF-16 without a byte order mark, convert it to UTF-8")
}

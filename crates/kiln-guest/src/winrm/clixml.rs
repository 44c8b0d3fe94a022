//! PowerShell's error stream, made readable again while it comes.
//!
//! A PowerShell started with `-EncodedCommand` writes its error stream as CLIXML: the line `#< CLIXML`, then
//! `<Objs …>` with one `<S S="Error">` a line of text and `<Obj S="progress">` between them ([MS-PSRP] 2.2.5 has the
//! serialization). Programs it starts write into the same stream as they like.
//!
//! ```text
//!   Plain ──"#< CLIXML" line──► Head ──"<Objs …>"──► Inside ──"</Objs>"──► Plain (after its line end)
//!                                │ anything else         │ what is no element of CLIXML
//!                                └──► passed on as it is ◄┘
//! ```
//!
//! Chunks may end anywhere. Nothing is lost: what is not understood is passed on as it came. At most one element is
//! held, and one longer than [`ELEMENT_LIMIT`] is passed on undecoded.

/// More than PowerShell ever writes as one piece of text.
const ELEMENT_LIMIT: usize = 1024 * 1024;
const MARKER: &[u8] = b"#< CLIXML";

/// Decodes one stream. Feed it with [`push`](Self::push), end it with [`finish`](Self::finish).
#[derive(Debug, Default)]
pub struct ClixmlDecoder {
    held: Vec<u8>,
    state: State,
    /// `Plain`: the next byte begins a line.
    midline: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Plain,
    /// After the marker line.
    Head,
    /// Between the elements of an `Objs`.
    Inside,
    /// Inside `Obj` elements, which are left out: how deep.
    Object(u32),
    /// Inside an `Objs`, in what is none of its elements.
    Stray,
    /// After `</Objs>`: a line end there is the document's own.
    After,
}

/// What one look at the held bytes found.
enum Step {
    /// So many bytes were understood and are done with.
    Taken(usize),
    /// So many bytes are passed on as they are.
    Pass(usize),
    /// The next chunk is needed.
    More,
}

impl ClixmlDecoder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next chunk; hands over readable bytes, in no particular pieces.
    pub fn push(&mut self, chunk: &[u8], mut out: impl FnMut(&[u8])) {
        self.held.extend_from_slice(chunk);
        let mut done = 0;
        loop {
            let mut text = Vec::new();
            let step = self.step(done, &mut text);
            if !text.is_empty() {
                out(&text);
            }
            match step {
                Step::Taken(count) => done += count,
                Step::Pass(count) => {
                    out(&self.held[done..done + count]);
                    done += count;
                }
                Step::More if self.held.len() - done > ELEMENT_LIMIT => {
                    out(&self.held[done..]);
                    done = self.held.len();
                }
                Step::More => break,
            }
        }
        self.held.drain(..done);
    }

    /// The stream is at its end: what is still held is passed on as it is.
    pub fn finish(&mut self, mut out: impl FnMut(&[u8])) {
        if !self.held.is_empty() {
            if self.state == State::Head {
                out(MARKER);
                out(b"\n");
            }
            out(&self.held);
            self.held.clear();
        }
        (self.state, self.midline) = (State::Plain, false);
    }

    fn step(&mut self, from: usize, text: &mut Vec<u8>) -> Step {
        let bytes = &self.held[from..];
        if bytes.is_empty() {
            return Step::More;
        }
        match self.state {
            State::Plain => self.plain(from),
            State::Head => {
                let blank = blank_run(bytes);
                if blank > 0 {
                    return Step::Taken(blank);
                }
                match tag(bytes) {
                    Tag::Whole { name: b"Objs", kind: TagKind::Start, length, .. } => {
                        self.state = State::Inside;
                        Step::Taken(length)
                    }
                    Tag::Whole { name: b"Objs", kind: TagKind::Empty, length, .. } => {
                        self.state = State::After;
                        Step::Taken(length)
                    }
                    Tag::Partial if b"<Objs".starts_with(&bytes[..bytes.len().min(5)]) => Step::More,
                    _ => {
                        // No CLIXML after all: the marker was somebody's text.
                        text.extend_from_slice(MARKER);
                        text.push(b'\n');
                        self.state = State::Plain;
                        Step::Taken(0)
                    }
                }
            }
            State::Inside => self.inside(from, text),
            State::Stray => match bytes.iter().position(|&byte| byte == b'<') {
                Some(0) => {
                    self.state = State::Inside;
                    Step::Taken(0)
                }
                Some(next) => Step::Pass(next),
                None => Step::Pass(bytes.len()),
            },
            State::After => {
                let count = match bytes {
                    [b'\r'] => return Step::More,
                    [b'\r', b'\n', ..] => 2,
                    [b'\n', ..] => 1,
                    _ => 0,
                };
                (self.state, self.midline) = (State::Plain, false);
                Step::Taken(count)
            }
            State::Object(depth) => {
                let Some(start) = bytes.iter().position(|&byte| byte == b'<') else {
                    return Step::Taken(bytes.len());
                };
                if start > 0 {
                    return Step::Taken(start);
                }
                match tag(bytes) {
                    Tag::Partial => Step::More,
                    Tag::No => Step::Taken(1),
                    Tag::Whole { name, kind, length, .. } => {
                        if name == b"Obj" {
                            self.state = match (kind, depth) {
                                (TagKind::Start, depth) => State::Object(depth + 1),
                                (TagKind::End, 0 | 1) => State::Inside,
                                (TagKind::End, depth) => State::Object(depth - 1),
                                (TagKind::Empty, depth) => State::Object(depth),
                            };
                        } else if name == b"Objs" && kind == TagKind::End {
                            self.state = State::After;
                        }
                        Step::Taken(length)
                    }
                }
            }
        }
    }

    fn plain(&mut self, from: usize) -> Step {
        let bytes = &self.held[from..];
        if !self.midline && bytes.starts_with(MARKER) {
            return match &bytes[MARKER.len()..] {
                [] | [b'\r'] => Step::More,
                [b'\n', ..] => {
                    self.state = State::Head;
                    Step::Taken(MARKER.len() + 1)
                }
                [b'\r', b'\n', ..] => {
                    self.state = State::Head;
                    Step::Taken(MARKER.len() + 2)
                }
                _ => {
                    self.midline = true;
                    Step::Pass(MARKER.len())
                }
            };
        }
        if !self.midline && MARKER.starts_with(bytes) {
            return Step::More;
        }
        let line = bytes.iter().position(|&byte| byte == b'\n');
        self.midline = line.is_none();
        Step::Pass(line.map_or(bytes.len(), |at| at + 1))
    }

    fn inside(&mut self, from: usize, text: &mut Vec<u8>) -> Step {
        let bytes = &self.held[from..];
        let blank = blank_run(bytes);
        if blank > 0 {
            return Step::Taken(blank);
        }
        match tag(bytes) {
            Tag::Partial => Step::More,
            Tag::Whole { name: b"Objs", kind: TagKind::End, length, .. } => {
                self.state = State::After;
                Step::Taken(length)
            }
            Tag::Whole { name: b"Obj", kind: TagKind::Start, length, .. } => {
                self.state = State::Object(1);
                Step::Taken(length)
            }
            Tag::Whole { name: b"Obj", kind: TagKind::Empty, length, .. } => Step::Taken(length),
            Tag::Whole { name: b"S", kind: TagKind::Empty, length, .. } => Step::Taken(length),
            Tag::Whole { name: b"S", kind: TagKind::Start, length, attributes } => {
                const END: &[u8] = b"</S>";
                let content = &bytes[length..];
                let Some(end) = content.windows(END.len()).position(|window| window == END) else {
                    return Step::More;
                };
                decode_record(attributes, &content[..end], text);
                Step::Taken(length + end + END.len())
            }
            // Not of CLIXML, or an element that no error stream has.
            Tag::Whole { length, .. } => {
                self.state = State::Stray;
                Step::Pass(length)
            }
            // At least one byte, which may be a `<` that begins no tag.
            Tag::No => {
                self.state = State::Stray;
                Step::Pass(1)
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TagKind {
    Start,
    End,
    Empty,
}

enum Tag<'a> {
    Whole {
        name: &'a [u8],
        kind: TagKind,
        attributes: &'a [u8],
        length: usize,
    },
    Partial,
    /// No tag begins here.
    No,
}

/// The tag at the start of `bytes`. CLIXML writes `>` in attributes as `&gt;`, so the first one ends the tag.
fn tag(bytes: &[u8]) -> Tag<'_> {
    if bytes.first() != Some(&b'<') {
        return Tag::No;
    }
    match bytes.get(1) {
        None => return Tag::Partial,
        Some(c) if c.is_ascii_alphabetic() || *c == b'/' => {}
        Some(_) => return Tag::No,
    }
    let Some(end) = bytes.iter().position(|&byte| byte == b'>') else { return Tag::Partial };
    let inner = &bytes[1..end];
    let (inner, kind) = match inner {
        [b'/', name @ ..] => (name, TagKind::End),
        [inner @ .., b'/'] => (inner, TagKind::Empty),
        inner => (inner, TagKind::Start),
    };
    let name_end = inner.iter().position(u8::is_ascii_whitespace).unwrap_or(inner.len());
    let (name, attributes) = inner.split_at(name_end);
    Tag::Whole { name, kind, attributes, length: end + 1 }
}

fn blank_run(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// One record as PowerShell's own console shows it: errors as they are, the others with their name before them.
fn decode_record(attributes: &[u8], content: &[u8], text: &mut Vec<u8>) {
    let attributes = String::from_utf8_lossy(attributes);
    let stream =
        attributes.split_once("S=\"").and_then(|(_, rest)| rest.split_once('"')).map(|(name, _)| name);
    let prefix = match stream.map(str::to_ascii_lowercase).as_deref() {
        Some("warning") => "WARNING: ",
        Some("verbose") => "VERBOSE: ",
        Some("debug") => "DEBUG: ",
        _ => "",
    };
    text.extend_from_slice(prefix.as_bytes());
    text.extend_from_slice(unescape(&String::from_utf8_lossy(content)).as_bytes());
    if !prefix.is_empty() && text.last() != Some(&b'\n') {
        text.push(b'\n');
    }
}

/// XML's references, then PowerShell's own `_xHHHH_`, one UTF-16 unit each; `\r\n` becomes `\n`.
fn unescape(content: &str) -> String {
    // A reference that XML does not know is text like any other.
    let content = quick_xml::escape::unescape(content).unwrap_or(content.into());
    let mut units: Vec<u16> = Vec::with_capacity(content.len());
    let mut rest = content.as_ref();
    while let Some(at) = rest.find("_x") {
        units.extend(rest[..at].encode_utf16());
        let escape = rest.as_bytes().get(at + 2..at + 7);
        let unit = escape
            .filter(|escape| escape[4] == b'_' && escape[..4].iter().all(u8::is_ascii_hexdigit))
            .and_then(|escape| std::str::from_utf8(&escape[..4]).ok())
            .and_then(|digits| u16::from_str_radix(digits, 16).ok());
        match unit {
            Some(unit) => {
                units.push(unit);
                rest = &rest[at + 7..];
            }
            None => {
                units.extend("_x".encode_utf16());
                rest = &rest[at + 2..];
            }
        }
    }
    units.extend(rest.encode_utf16());
    String::from_utf16_lossy(&units).replace("\r\n", "\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(chunks: &[&[u8]]) -> String {
        let mut text = Vec::new();
        let mut decoder = ClixmlDecoder::new();
        for chunk in chunks {
            decoder.push(chunk, |bytes| text.extend_from_slice(bytes));
        }
        decoder.finish(|bytes| text.extend_from_slice(bytes));
        String::from_utf8_lossy(&text).into_owned()
    }

    const OBJS: &str = "<Objs Version=\"1.1.0.1\" xmlns=\"http://schemas.microsoft.com/powershell/2004/04\">";

    fn document(inside: &str) -> String {
        format!("#< CLIXML\r\n{OBJS}{inside}</Objs>")
    }

    #[test]
    fn errors_become_lines() {
        let text = document(
            "<S S=\"Error\">boom : &lt;b&gt; &amp; \u{e9}_x000D__x000A_</S><S S=\"Error\">At line:1_x000D__x000A_</S>",
        );
        assert_eq!(decode(&[text.as_bytes()]), "boom : <b> & é\nAt line:1\n");
    }

    #[test]
    fn other_records_say_what_they_are() {
        let text = document(
            "<S S=\"warning\">w</S><S S=\"Verbose\">v</S><S S=\"debug\">d_x000A_</S><S S=\"Error\">e</S>",
        );
        assert_eq!(decode(&[text.as_bytes()]), "WARNING: w\nVERBOSE: v\nDEBUG: d\ne");
    }

    #[test]
    fn progress_is_left_out_however_it_nests() {
        let text = document(
            "<Obj S=\"progress\" RefId=\"0\"><TN RefId=\"0\"><T>A</T></TN><MS><I64 N=\"SourceId\">1</I64>\
             <Obj RefId=\"1\"><S N=\"x\">inner</S></Obj><Obj RefId=\"2\"/></MS></Obj><S S=\"Error\">e</S>",
        );
        assert_eq!(decode(&[text.as_bytes()]), "e");
    }

    #[test]
    fn escapes_are_utf16_and_a_lone_underscore_is_none() {
        let text = document("<S S=\"Error\">_xD83D__xDE00_ _x005F_x000D_ _xZZZZ_ a_x_ _x00</S>");
        assert_eq!(decode(&[text.as_bytes()]), "\u{1f600} _x000D_ _xZZZZ_ a_x_ _x00");
    }

    #[test]
    fn text_around_a_document_stays() {
        let text = format!("before\n{}\r\nafter\n{}end", document("<S S=\"Error\">1\n</S>"), document(""));
        assert_eq!(decode(&[text.as_bytes()]), "before\n1\nafter\nend");
    }

    #[test]
    fn what_is_malformed_is_passed_on() {
        for text in ["plain\nstderr without end", "#< CLIXMLish\n", " #< CLIXML\n<Objs>", "#", "#< CLIXML"] {
            assert_eq!(decode(&[text.as_bytes()]), text);
        }
        assert_eq!(decode(&[b"#< CLIXML\r\nno document\n"]), "#< CLIXML\nno document\n");
        assert_eq!(decode(&[b"#< CLIXML\n<html>x</html>\n"]), "#< CLIXML\n<html>x</html>\n");
        let cut = document("<S S=\"Error\">whole</S><S S=\"Error\">cut");
        let cut = cut.strip_suffix("</Objs>").unwrap();
        assert_eq!(decode(&[cut.as_bytes()]), "whole<S S=\"Error\">cut");
        let strange = document("<S S=\"Error\">a</S>stray <b>text</b>< c<S S=\"Error\">d</S>");
        assert_eq!(decode(&[strange.as_bytes()]), "astray <b>text</b>< cd");
    }

    #[test]
    fn an_endless_element_is_not_held() {
        let mut decoder = ClixmlDecoder::new();
        let mut passed = 0;
        decoder.push(document("").strip_suffix("</Objs>").unwrap().as_bytes(), |_| ());
        decoder.push(b"<S S=\"Error\">", |bytes| passed += bytes.len());
        for _ in 0..40 {
            decoder.push(&[b'x'; 64 * 1024], |bytes| passed += bytes.len());
            assert!(decoder.held.len() <= ELEMENT_LIMIT);
        }
        assert!(passed > ELEMENT_LIMIT);
    }

    proptest! {
        #[test]
        fn chunk_borders_change_nothing(
            records in proptest::collection::vec(prop_oneof![
                Just("<S S=\"Error\">a_x000D__x000A_é</S>"),
                Just("<S S=\"warning\">w &gt;</S>"),
                Just("<Obj S=\"progress\"><MS><Obj/></MS></Obj>"),
                Just("stray"),
                Just("\n"),
            ], 0..6),
            around in "[#< CLIXML\n]{0,12}",
            borders in proptest::collection::vec(0usize..400, 0..6),
        ) {
            let text = format!("{around}\n{}\n{around}", document(&records.concat()));
            let whole = decode(&[text.as_bytes()]);
            let single: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            prop_assert_eq!(&decode(&single), &whole);
            let mut borders: Vec<usize> = borders.into_iter().map(|at| at.min(text.len())).collect();
            borders.extend([0, text.len()]);
            borders.sort_unstable();
            let pieces: Vec<&[u8]> =
                borders.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            prop_assert_eq!(&decode(&pieces), &whole);
        }

        #[test]
        fn what_holds_no_marker_is_untouched(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assume!(!bytes.windows(MARKER.len()).any(|window| window == MARKER));
            let mut text = Vec::new();
            let mut decoder = ClixmlDecoder::new();
            for chunk in bytes.chunks(7) {
                decoder.push(chunk, |bytes| text.extend_from_slice(bytes));
            }
            decoder.finish(|bytes| text.extend_from_slice(bytes));
            prop_assert_eq!(text, bytes);
        }
    }
}

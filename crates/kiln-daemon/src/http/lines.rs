//! Lines out of bytes, and lines as server-sent events (WHATWG HTML, "Server-sent events"). Pure.
//!
//! An event's id is the offset of the byte after its line: a client that lost the connection says the last id it saw,
//! and goes on there without losing a line or getting one twice.

/// A longer line is sent in pieces; no line of ours is longer.
const LONGEST: usize = 4 << 20;

/// Id of the event that ends a stream: whoever comes back with it has seen everything.
pub(super) const END_ID: &str = "end";

/// Cuts bytes that arrive in any pieces into whole lines.
pub(super) struct Lines {
    /// Offset of the first pending byte.
    offset: u64,
    pending: Vec<u8>,
}

impl Lines {
    /// `offset` is where the bytes begin.
    pub fn from(offset: u64) -> Self {
        Self { offset, pending: Vec::new() }
    }

    /// Takes bytes in, and gives each line that is whole now: without its line feed, and the offset behind it.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8], u64)) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(end + 1);
            rest = after;
            let (start, held) = (self.offset, self.pending.len());
            self.offset += (held + line.len()) as u64;
            debug_assert!(self.offset > start);
            let line = &line[..end];
            if held == 0 {
                each(line, self.offset);
            } else {
                self.pending.extend_from_slice(line);
                each(&std::mem::take(&mut self.pending), self.offset);
            }
        }
        self.pending.extend_from_slice(rest);
        if self.pending.len() > LONGEST {
            self.finish(each);
        }
    }

    /// What is left, as a line without an end.
    pub fn finish(&mut self, mut each: impl FnMut(&[u8], u64)) {
        let rest = std::mem::take(&mut self.pending);
        if !rest.is_empty() {
            self.offset += rest.len() as u64;
            each(&rest, self.offset);
        }
    }
}

/// Appends one event. What is not UTF-8 is replaced, as the format asks; a carriage return would end a line of the
/// format, so it begins a new one of the data.
pub(super) fn event(out: &mut Vec<u8>, name: Option<&str>, id: &str, data: &[u8]) {
    let mut field = |name: &str, value: &str| {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.push(b'\n');
    };
    if let Some(name) = name {
        field("event", name);
    }
    field("id", id);
    let text = String::from_utf8_lossy(data);
    // A carriage return before the line feed belongs to the line's end.
    let text = text.strip_suffix('\r').unwrap_or(&text);
    for part in text.split(['\r', '\n']) {
        field("data", part);
    }
    out.push(b'\n');
}

/// Appends a comment: it keeps the connection from looking dead, and means nothing.
pub(super) fn heartbeat(out: &mut Vec<u8>) {
    out.extend_from_slice(b":\n\n");
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    fn cut(pieces: &[&[u8]], from: u64) -> Vec<(Vec<u8>, u64)> {
        let mut seen = Vec::new();
        let mut lines = Lines::from(from);
        for piece in pieces {
            lines.feed(piece, |line, after| seen.push((line.to_vec(), after)));
        }
        lines.finish(|line, after| seen.push((line.to_vec(), after)));
        seen
    }

    #[test]
    fn events_are_golden() {
        let mut out = Vec::new();
        event(&mut out, None, "7", "10 %\r50 %\r100 %\r".as_bytes());
        event(&mut out, None, "8", b"");
        event(&mut out, None, "9", b" indented \xff: x");
        heartbeat(&mut out);
        event(&mut out, Some("end"), END_ID, br#"{"state":"Succeeded"}"#);
        expect![[r#"
            id: 7
            data: 10 %
            data: 50 %
            data: 100 %

            id: 8
            data: 

            id: 9
            data:  indented �: x

            :

            event: end
            id: end
            data: {"state":"Succeeded"}

        "#]]
        .assert_eq(&String::from_utf8(out).unwrap());
    }

    #[test]
    fn a_line_without_end_does_not_pile_up() {
        let mut lines = Lines::from(0);
        let mut longest = 0;
        for _ in 0..100 {
            lines.feed(&vec![b'x'; 100 << 10], |line, _| longest = longest.max(line.len()));
        }
        assert!(longest > LONGEST && longest < LONGEST + (200 << 10), "{longest}");
    }

    proptest! {
        #[test]
        fn torn_bytes_give_the_same_lines(text in "[a\n]{0,60}", cuts in proptest::collection::vec(0usize..60, 0..6), resume in 0usize..60) {
            let bytes = text.as_bytes();
            let whole = cut(&[bytes], 0);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(&cut(&pieces, 0), &whole);
            // Going on behind any line gives exactly the rest.
            if let Some((_, after)) = whole.get(resume % whole.len().max(1)) {
                let rest: Vec<_> = whole.iter().filter(|(_, id)| id > after).cloned().collect();
                let start = usize::try_from(*after).unwrap();
                prop_assert_eq!(cut(&[&bytes[start..]], *after), rest);
            }
        }
    }
}

//! Secrets out of what is written down of a guest.
//!
//! ```text
//!   secret ─ hide ─► forms: plain, escaped for XML and JSON, base64, base64 of UTF-16      each replaced by MARK
//!   answer ─► streams decoded, searched also across their pieces ─► encoded again ─► the whole text searched
//! ```
//!
//! This is the second fence, not the first: input, headers and shells' variables are never written down at all
//! ([`super::recorder`]). It finds what a guest or a command line says of a secret that is known.
//!
//! Limits: forms shorter than [`SHORTEST`] are not searched for. A secret that is cut by the end of an answer loses all
//! but at most [`PART`]` - 1` bytes of its first part.

use std::collections::HashMap;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, STANDARD_NO_PAD};
use zeroize::Zeroizing;

use super::soap::escape;

/// What stands where a secret was.
pub(crate) const MARK: &str = "[removed]";
/// Of a form, bytes: whatever is shorter would be found everywhere.
pub(crate) const SHORTEST: usize = 4;
/// The beginning of a secret at the end of a piece counts as one from this many bytes on.
const PART: usize = 6;
/// Streams whose last bytes are remembered; more at once than any client of ours has.
const MOST_STREAMS: usize = 256;

#[derive(Default)]
pub(crate) struct Redactor {
    /// As they may stand in a text, longest first.
    texts: Vec<Zeroizing<String>>,
    /// As they may stand in the bytes of a stream.
    raw: Vec<Zeroizing<Vec<u8>>>,
    /// The last bytes of each stream, by command and name: a secret may be cut by the end of an answer.
    tails: HashMap<(String, String), Zeroizing<Vec<u8>>>,
}

impl Redactor {
    /// From now on `secret` is replaced, in every form.
    pub(crate) fn hide(&mut self, secret: &str) {
        let utf16: Zeroizing<Vec<u8>> =
            Zeroizing::new(secret.encode_utf16().flat_map(u16::to_le_bytes).collect());
        let mut texts = vec![secret.to_owned(), escape(secret)];
        // As a server may write it: apostrophes and quotes need no escape in a text.
        texts.push(secret.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;"));
        texts.push(serde_json::Value::from(secret).to_string().trim_matches('"').to_owned());
        for bytes in [secret.as_bytes(), &utf16] {
            texts.push(BASE64.encode(bytes));
            texts.extend((0..3).map(|offset| inside_base64(bytes, offset)));
        }
        for text in texts.into_iter().map(Zeroizing::new) {
            if text.len() >= SHORTEST && !self.texts.contains(&text) {
                self.raw.push(Zeroizing::new(text.as_bytes().to_vec()));
                self.texts.push(text);
            }
        }
        if utf16.len() >= SHORTEST && !self.raw.contains(&utf16) {
            self.raw.push(utf16);
        }
        self.texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
    }

    /// A text in which no form of a secret is left.
    pub(crate) fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for form in &self.texts {
            if text.contains(form.as_str()) {
                text = text.replace(form.as_str(), MARK);
            }
        }
        text
    }

    /// An answer: its streams are searched as the bytes they carry, and stay base64.
    pub(crate) fn answer(&mut self, envelope: &str) -> String {
        let mut kept = String::with_capacity(envelope.len());
        let mut rest = envelope;
        while let Some(found) = next_stream(rest) {
            let Range { start, end } = found.contents;
            let packed: String = rest[start..end].split_ascii_whitespace().collect();
            kept.push_str(&rest[..start]);
            match BASE64.decode(&packed).ok().and_then(|bytes| self.stream(found.key, &bytes)) {
                Some(cleaned) => kept.push_str(&BASE64.encode(cleaned)),
                None => kept.push_str(&rest[start..end]),
            }
            rest = &rest[end..];
        }
        kept.push_str(rest);
        self.text(&kept)
    }

    /// The next piece of a stream without secrets; `None` where there was none in it.
    fn stream(&mut self, key: (String, String), piece: &[u8]) -> Option<Vec<u8>> {
        let longest = self.raw.iter().map(|form| form.len()).max()?;
        let mut joined = self.tails.remove(&key).unwrap_or_default();
        let before = joined.len();
        joined.extend_from_slice(piece);
        let mut hidden = vec![false; joined.len()];
        for form in &self.raw {
            for (at, window) in joined.windows(form.len()).enumerate() {
                if window == form.as_slice() {
                    hidden[at..at + form.len()].fill(true);
                }
            }
            // What may be the beginning of one.
            let begun = (PART..form.len()).rev().find(|length| joined.ends_with(&form[..*length]));
            if let Some(length) = begun {
                let at = joined.len() - length;
                hidden[at..].fill(true);
            }
        }
        let mut cleaned = Vec::with_capacity(piece.len());
        for at in before..joined.len() {
            if !hidden[at] {
                cleaned.push(joined[at]);
            } else if at == before || !hidden[at - 1] {
                cleaned.extend_from_slice(MARK.as_bytes());
            }
        }
        let found = hidden[before..].contains(&true);
        let tail = joined.len().saturating_sub(longest - 1);
        if self.tails.len() >= MOST_STREAMS {
            self.tails.clear();
        }
        self.tails.insert(key, Zeroizing::new(joined[tail..].to_vec()));
        found.then_some(cleaned)
    }
}

/// The characters of base64 that only `bytes` decide, where `offset` others (0 to 2) come before them.
fn inside_base64(bytes: &[u8], offset: usize) -> String {
    let mut padded = Zeroizing::new(vec![0; offset]);
    padded.extend_from_slice(bytes);
    let encoded = Zeroizing::new(STANDARD_NO_PAD.encode(&*padded));
    let (from, to) = ((offset * 8).div_ceil(6), padded.len() * 8 / 6);
    encoded.get(from..to).unwrap_or_default().to_owned()
}

struct FoundStream {
    /// Command and name.
    key: (String, String),
    /// Where its base64 lies.
    contents: Range<usize>,
}

/// The next `Stream` element with something in it. A scan, not a parser: what it does not understand is searched as text.
fn next_stream(text: &str) -> Option<FoundStream> {
    let mut at = 0;
    loop {
        let open = at + text[at..].find('<')?;
        let close = open + text[open..].find('>')?;
        at = close + 1;
        let tag = &text[open + 1..close];
        let name = tag.split([' ', '\t', '\r', '\n']).next().unwrap_or_default();
        if name.rsplit(':').next() != Some("Stream") || name.starts_with('/') || tag.ends_with('/') {
            continue;
        }
        let end = at + text[at..].find('<')?;
        if end > at {
            let attribute = |wanted: &str| attribute(tag, wanted).unwrap_or_default().to_owned();
            return Some(FoundStream { key: (attribute("CommandId"), attribute("Name")), contents: at..end });
        }
    }
}

fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    ['"', '\''].into_iter().find_map(|quote| {
        let begin = format!("{name}={quote}");
        let at = tag
            .match_indices(&begin)
            .map(|(at, _)| at)
            .find(|at| tag[..*at].ends_with([' ', '\t', '\r', '\n']))?;
        tag[at + begin.len()..].split(quote).next()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "Kiln-Canary<&\"'>-0123456789abcdef7";

    fn redactor() -> Redactor {
        let mut redactor = Redactor::default();
        redactor.hide(SECRET);
        redactor
    }

    fn answer(stream: &str, bytes: &[u8]) -> String {
        format!(
            "<s:Envelope><s:Body><rsp:ReceiveResponse><rsp:Stream Name=\"{stream}\" CommandId=\"C\">{}</rsp:Stream>\
             <rsp:Stream CommandId=\"C\" Name='stderr' End=\"true\"/></rsp:ReceiveResponse></s:Body></s:Envelope>",
            BASE64.encode(bytes)
        )
    }

    /// What the streams of an answer carry, joined.
    fn carried(envelope: &str) -> Vec<u8> {
        let found = next_stream(envelope).unwrap();
        BASE64.decode(&envelope[found.contents]).unwrap()
    }

    #[test]
    fn each_form_is_replaced() {
        let utf16: Vec<u8> = SECRET.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let forms = [
            SECRET.to_owned(),
            escape(SECRET),
            "Kiln-Canary&lt;&amp;\"'&gt;-0123456789abcdef7".to_owned(),
            r#"Kiln-Canary<&\"'>-0123456789abcdef7"#.to_owned(),
            BASE64.encode(SECRET),
            BASE64.encode(&utf16),
        ];
        for form in &forms {
            let clean = redactor().text(&format!("a {form} b"));
            assert_eq!(clean, format!("a {MARK} b"), "{form}");
        }
    }

    #[test]
    fn a_stream_is_searched_as_what_it_carries_and_stays_one() {
        let utf16: Vec<u8> = SECRET.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for inside in [SECRET.as_bytes(), BASE64.encode(&utf16).as_bytes(), &utf16] {
            let bytes = [b"said ", inside, b" again\r\n"].concat();
            let clean = redactor().answer(&answer("stdout", &bytes));
            assert_eq!(carried(&clean), format!("said {MARK} again\r\n").as_bytes());
        }
        let harmless = answer("stdout", b"nothing");
        assert_eq!(redactor().answer(&harmless), harmless);
    }

    proptest! {
        #[test]
        fn wherever_it_is_cut_nothing_of_it_is_left(
            cuts in prop::collection::btree_set(1..SECRET.len(), 0..4),
            before in "[ -~]{0,9}",
        ) {
            let mut redactor = redactor();
            let mut out = Vec::new();
            let whole = format!("{before}{SECRET} end");
            let mut from = 0;
            for cut in cuts.iter().map(|cut| cut + before.len()).chain([whole.len()]) {
                let clean = redactor.answer(&answer("stdout", &whole.as_bytes()[from..cut]));
                out.extend(carried(&clean));
                from = cut;
            }
            let out = String::from_utf8(out).unwrap();
            prop_assert!(out.ends_with(" end") && out.starts_with(&before), "{}", out);
            // At most the first few bytes, which may begin anything.
            for part in SECRET.as_bytes().windows(PART) {
                prop_assert!(!out.as_bytes()[before.len()..].windows(PART).any(|bytes| bytes == part), "{}", out);
            }
        }

        #[test]
        fn base64_hides_it_nowhere(before in prop::collection::vec(any::<u8>(), 0..9), after in "[ -~]{0,9}") {
            for bytes in [SECRET.as_bytes().to_vec(), SECRET.encode_utf16().flat_map(u16::to_le_bytes).collect()] {
                let packed = BASE64.encode([&before[..], &bytes, after.as_bytes()].concat());
                let clean = redactor().text(&packed);
                prop_assert!(clean.contains(MARK), "{packed}");
            }
        }

        #[test]
        fn any_text_is_taken(text in "[ -~<>\"=/]{0,80}") {
            let _no_panic = redactor().answer(&text);
        }
    }
}

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::problem::Severity;

fn read(text: &str) -> Result<Node, Problem> {
    let text = Text::new(text.as_bytes())?;
    parse(&text, "t.json")
}

fn fails(bytes: &[u8]) -> Problem {
    let problem = match Text::new(bytes) {
        Err(problem) => problem,
        Ok(text) => parse(&text, "").expect_err("an error"),
    };
    assert_eq!(problem.severity, Severity::Error);
    assert!(problem.line >= 1 && problem.column >= 1);
    problem
}

#[test]
fn json_takes_comments_and_trailing_commas_and_no_more() {
    let node = read("// c\n{ /* c */ \"a\": [1, 2.50, true, null, \"\\u00e9\\n\",], }").unwrap();
    let Value::List(items) = &node.get_ignoring_case("A").unwrap().value else { panic!() };
    let values: Vec<&Value> = items.iter().map(|item| &item.value).collect();
    assert_eq!(
        values,
        [
            &Value::Number("1".into()),
            &Value::Number("2.50".into()),
            &Value::Bool(true),
            &Value::Null,
            &Value::String("é\n".into())
        ]
    );
    for bad in [
        "{a: 1}",
        "{'a': 1}",
        "{\"a\": 0x10}",
        "{\"a\": +1}",
        "{\"a\": NaN}",
        "{\"a\": 1 \"b\": 2}",
        "{\"a\": \"\\x41\"}",
        "{\"a\": \"\\ud800\"}",
        "{",
        "{}{}",
        "[1,,2]",
    ] {
        assert!(read(bad).is_err(), "{bad}");
    }
}

#[test]
fn yaml_and_json_make_the_same_tree() {
    fn plain(node: &Node) -> String {
        match &node.value {
            Value::Object(members) => {
                let inner: Vec<String> =
                    members.iter().map(|m| format!("{}={}", m.key, plain(&m.value))).collect();
                format!("{{{}}}", inner.join(","))
            }
            Value::List(items) => format!("[{}]", items.iter().map(plain).collect::<Vec<_>>().join(",")),
            other => format!("{other:?}"),
        }
    }
    let json = read("{\"a\": {\"b\": [1, \"x\", true, null, -5, 1.5]}, \"c\": \"yes\"}").unwrap();
    let yaml = read("a:\n  b: [1, x, true, ~, -5, 1.5]\nc: yes\n").unwrap();
    assert_eq!(plain(&json), plain(&yaml));
}

#[test]
fn places_count_lines_and_characters_from_one() {
    // Two bytes and four bytes a character, CRLF, and a value far out in its line.
    let source = "{\r\n  \"é🔥\": 1,\r\n  \"b\": \"é\", \"c\": 2 }";
    let text = Text::new(source.as_bytes()).unwrap();
    let node = parse(&text, "").unwrap();
    let place = |key: &str| {
        let member = node.members().iter().find(|m| m.key == key).unwrap();
        let key = text.place("", member.key_span.start);
        let value = text.place("", member.value.span.start);
        ((key.line, key.column), (value.line, value.column))
    };
    assert_eq!(place("é🔥"), ((2, 3), (2, 9)));
    assert_eq!(place("c"), ((3, 13), (3, 18)));

    let yaml = Text::new("é: 1\nb:\n  - x\n  - é: [a, bb]\n".as_bytes()).unwrap();
    let node = parse(&yaml, "").unwrap();
    let Value::List(items) = &node.get_ignoring_case("b").unwrap().value else { panic!() };
    let Value::List(inner) = &items[1].get_ignoring_case("é").unwrap().value else { panic!() };
    let at = yaml.place("", inner[1].span.start);
    assert_eq!((at.line, at.column), (4, 12));
}

#[test]
fn columns_are_right_beyond_the_marks() {
    let source = format!("{}x", "é".repeat(10_000));
    let text = Text::new(source.as_bytes()).unwrap();
    for (offset, column) in [(0, 1), (2, 2), (8192, 4097), (20_000, 10_001)] {
        assert_eq!(text.place("", offset).column, column);
    }
}

#[test]
fn numbers_keep_their_writing() {
    let node =
        read("sku: 18.10\nbig: 123456789012345678901234567890\nhex: 0x10\nquoted: \"18.10\"\n").unwrap();
    let value = |key| node.get_ignoring_case(key).unwrap().value.clone();
    assert_eq!(value("sku"), Value::Number("18.10".into()));
    assert_eq!(value("hex"), Value::Number("16".into()));
    assert_eq!(value("quoted"), Value::String("18.10".into()));
    assert!(matches!(value("big"), Value::Number(_)), "{:?}", value("big"));
}

#[test]
fn what_is_no_text_is_named() {
    for (bytes, part) in [
        (&b"\xff\xfe{\0}\0"[..], "UTF-16"),
        (b"\xfe\xff\0{\0}", "UTF-16"),
        (b"\x7fELF\x02\x01\x01\0\0\0", "binary"),
        (b"{\0}", "binary"),
        (b"{\"a\": \"\xe9\"}", "not UTF-8"),
        (b"", "empty"),
        (b"   \n ", "empty"),
    ] {
        let problem = fails(bytes);
        assert!(problem.message.contains(part), "{bytes:?}: {}", problem.message);
    }
    assert!(read("\u{feff}{}").is_ok(), "a UTF-8 byte order mark is fine");
    let at = fails(b"{\n \"a\xe9\": 1}");
    assert_eq!((at.line, at.column), (2, 4));
}

#[test]
fn deep_nesting_is_refused_in_every_syntax() {
    let nested =
        |open: &str, close: &str, depth: usize| format!("{}1{}", open.repeat(depth), close.repeat(depth));
    assert!(read(&nested("[", "]", MAX_DEPTH)).is_ok());
    for depth in [MAX_DEPTH + 1, 513, 100_000, 1_000_000] {
        for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")] {
            let text = nested(open, close, depth);
            if text.len() > MAX_BYTES {
                continue;
            }
            let problem = fails(text.as_bytes());
            assert_eq!(problem.code, Code::TooDeep, "{open} {depth} {problem}");
        }
        let block: String = (0..depth.min(2000)).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
        assert_eq!(fails(block.as_bytes()).code, Code::TooDeep, "block {depth}");
        let flow = format!("x: {}", nested("[", "]", depth));
        assert_eq!(fails(flow.as_bytes()).code, Code::TooDeep, "flow {depth}");
    }
}

#[test]
fn aliases_are_bounded() {
    let fine = read("a: &a {x: 1}\nb: *a\n").unwrap();
    assert_eq!(
        fine.get_ignoring_case("b").unwrap().get_ignoring_case("x").unwrap().value,
        Value::Number("1".into())
    );
    let mut bomb = "l0: &l0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..10 {
        let refs = vec![format!("*l{}", level - 1); 10].join(",");
        bomb.push_str(&format!("l{level}: &l{level} [{refs}]\n"));
    }
    let start = Instant::now();
    let problem = fails(bomb.as_bytes());
    assert!(start.elapsed() < Duration::from_secs(1));
    assert!(problem.message.contains("alias"), "{}", problem.message);
    assert!(read("a: &a [*a]\n").is_err());
}

#[test]
fn too_large_is_refused_before_anything_is_read() {
    let start = Instant::now();
    let problem = fails(&vec![b'['; MAX_BYTES + 1]);
    assert_eq!(problem.code, Code::TooLarge);
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn repeated_keys_have_both_places() {
    for source in
        ["{\n\"a\": 1,\n \"b\": {\"x~/\": 1, \"x~/\": 2},\n\"a\": 2}", "a: 1\nb:\n  x~/: 1\n  x~/: 2\na: 2\n"]
    {
        let text = Text::new(source.as_bytes()).unwrap();
        let node = parse(&text, "").unwrap();
        let mut found = repeated_keys(&node, &text);
        found.sort_by(|a, b| a.pointer.cmp(&b.pointer));
        let pointers: Vec<&str> = found.iter().map(|p| p.pointer.as_str()).collect();
        assert_eq!(pointers, ["/a", "/b/x~0~1"], "{source}");
        assert!(found[0].message.contains("line "), "{}", found[0].message);
        assert!(found[0].line > 1);
    }
}

#[test]
fn hostile_files_of_full_size_end_soon() {
    // An eighth of what is taken, as the test runs unoptimized; a quadratic reader would
    // need hours for it.
    let room = MAX_BYTES / 8;
    let full = |piece: &str, open: &str, close: &str| {
        format!("{open}{}{close}", piece.repeat((room - open.len() - close.len()) / piece.len()))
    };
    for text in [
        full("[],", "[", "]"),
        full("\"a\":1,", "{", "}"),
        full("\n", "{", "}"),
        full("é", "{\"a\":\"", "\"}"),
        full("- a\n", "", ""),
        full("a: 1\n", "", ""),
        full("#\n", "", "a: 1\n"),
        full("/**/", "", "{}"),
        full("\\\"", "{\"a\":\"", "\"}"),
    ] {
        let start = Instant::now();
        let text = Text::new(text.as_bytes()).unwrap();
        if let Ok(node) = parse(&text, "") {
            assert!(repeated_keys(&node, &text).len() <= MOST_REPEATED);
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{:?} {}", start.elapsed(), &text.text[..20]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(text) = Text::new(&bytes) {
            for name in ["t.json", "t.yaml"] {
                let _ = parse(&text, name).map(|node| repeated_keys(&node, &text));
            }
        }
    }

    #[test]
    fn text_of_syntax_never_panics(text in r#"[\[\]{}:,"'\\/*#&!|>%@`<>\- \n\tab01.eé]{0,120}"#) {
        let text = Text::new(text.as_bytes()).unwrap();
        for name in ["t.json", "t.yaml"] {
            let _ = parse(&text, name).map(|node| repeated_keys(&node, &text));
        }
    }
}

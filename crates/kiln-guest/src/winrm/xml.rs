//! A small tree of an XML document that came from a guest.
//!
//! Names are local names: the prefixes differ between servers, and no answer of WinRM has the same local name in two
//! namespaces where it matters. A document type is refused, so there are no entities to expand beyond the five that
//! XML itself knows; depth and size are bounded by the reader of the answer and by [`DEPTH_LIMIT`].

use quick_xml::Reader;
use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};

/// SOAP answers are some ten levels deep; a guest that nests deeper means harm.
const DEPTH_LIMIT: usize = 64;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) name: String,
    /// Local name and value, in the order of the document; without namespace declarations.
    pub(crate) attributes: Vec<(String, String)>,
    pub(crate) children: Vec<Element>,
    /// All text directly inside, joined.
    pub(crate) text: String,
}

/// Why a text is no XML document.
#[derive(Debug, thiserror::Error)]
pub enum XmlError {
    #[error("it is no well-formed XML")]
    Malformed(#[from] quick_xml::Error),
    #[error("it has an attribute that is not well-formed")]
    Attribute(#[from] quick_xml::events::attributes::AttrError),
    #[error("it has a document type, which no answer of WinRM has")]
    DocumentType,
    #[error("it has an entity {name:?}, which XML does not know")]
    UnknownEntity { name: String },
    #[error("it is nested deeper than {DEPTH_LIMIT} levels")]
    TooDeep,
    #[error("it ends before its last element does")]
    Truncated,
    #[error("it has no element")]
    Empty,
}

impl Element {
    pub(crate) fn parse(text: &str) -> Result<Self, XmlError> {
        let mut reader = Reader::from_str(text);
        let mut open: Vec<Self> = Vec::new();
        let mut root = None;
        loop {
            match reader.read_event()? {
                Event::Start(start) => {
                    if open.len() == DEPTH_LIMIT {
                        return Err(XmlError::TooDeep);
                    }
                    open.push(Self::from_tag(&start)?);
                }
                Event::Empty(start) => place(Self::from_tag(&start)?, &mut open, &mut root),
                Event::End(_) => {
                    if let Some(element) = open.pop() {
                        place(element, &mut open, &mut root);
                    }
                }
                Event::Text(text) => append(&mut open, &text.xml10_content()),
                Event::CData(text) => append(&mut open, &text.xml10_content()),
                Event::GeneralRef(reference) => match reference.resolve_char_ref()? {
                    Some(character) => append(&mut open, character.encode_utf8(&mut [0; 4])),
                    None => append(
                        &mut open,
                        match &*reference {
                            "lt" => "<",
                            "gt" => ">",
                            "amp" => "&",
                            "apos" => "'",
                            "quot" => "\"",
                            name => return Err(XmlError::UnknownEntity { name: name.to_owned() }),
                        },
                    ),
                },
                Event::DocType(_) => return Err(XmlError::DocumentType),
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
                Event::Eof if open.is_empty() => return root.ok_or(XmlError::Empty),
                Event::Eof => return Err(XmlError::Truncated),
            }
        }
    }

    fn from_tag(tag: &BytesStart<'_>) -> Result<Self, XmlError> {
        let mut attributes = Vec::new();
        for attribute in tag.attributes() {
            let attribute = attribute?;
            if attribute.key.as_namespace_binding().is_some() {
                continue;
            }
            let value = attribute.normalized_value(XmlVersion::Implicit1_0)?.into_owned();
            attributes.push((attribute.key.local_name().as_ref().to_owned(), value));
        }
        Ok(Self {
            name: tag.local_name().as_ref().to_owned(),
            attributes,
            children: Vec::new(),
            text: String::new(),
        })
    }

    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    pub(crate) fn children_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The first descendant of that name, in the order of the document. Depth is bounded by [`Element::parse`].
    pub(crate) fn find(&self, name: &str) -> Option<&Self> {
        self.children.iter().find_map(|child| if child.name == name { Some(child) } else { child.find(name) })
    }

    /// The text of this element and of all inside it.
    pub(crate) fn all_text(&self) -> String {
        let mut text = self.text.clone();
        for child in &self.children {
            text.push_str(&child.all_text());
        }
        text
    }
}

fn place(element: Element, open: &mut [Element], root: &mut Option<Element>) {
    match open.last_mut() {
        Some(parent) => parent.children.push(element),
        // A second root is refused by nobody who writes SOAP; the first one counts.
        None => {
            root.get_or_insert(element);
        }
    }
}

fn append(open: &mut [Element], text: &str) {
    if let Some(element) = open.last_mut() {
        element.text.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_local_and_references_are_resolved() {
        let root = Element::parse(
            r#"<?xml version="1.0"?><s:A xmlns:s="u"><!-- c --><s:B w:C="1 &lt; 2">a&amp;b&#x41;<![CDATA[<d>]]></s:B></s:A>"#,
        )
        .unwrap();
        assert_eq!(root.name, "A");
        let inner = root.find("B").unwrap();
        assert_eq!(inner.attribute("C"), Some("1 < 2"));
        assert_eq!(inner.text, "a&bA<d>");
    }

    #[test]
    fn what_no_answer_has_is_refused() {
        let deep = "<a>".repeat(DEPTH_LIMIT + 1);
        for (text, expected) in [
            ("<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>", "document type"),
            ("<a>&x;</a>", "entity"),
            ("<a><b></a>", "well-formed"),
            ("<a><b>", "ends before"),
            ("plain text", "no element"),
            ("", "no element"),
            (deep.as_str(), "deeper"),
        ] {
            let error = Element::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:.40}: {error}");
        }
    }
}

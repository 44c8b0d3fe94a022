//! `$filter` of resources and resource groups: the comparisons that clients send, joined by `and`.
//!
//! `az resource list` sends `resourceType eq '…'`, `name eq '…'`, `resourceGroup eq '…'`, `location eq '…'`,
//! `tagName eq '…' and tagValue eq '…'`; the portal and others `substringof('…', name)` and `startswith(tagName, '…')`.
//! What is none of these is refused, not ignored: a filter that does nothing shows what was not asked for.

use serde_json::{Map, Value};

use super::super::answer::ArmError;
use super::super::call::Call;

/// Terms of one filter.
const MAX_TERMS: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Name,
    Type,
    Group,
    Location,
    TagName,
    TagValue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    Is,
    IsNot,
    Contains,
    Begins,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    field: Field,
    test: Test,
    value: String,
}

/// Nothing set: everything matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Filter(Vec<Term>);

/// What a filter is held against.
pub(super) struct Subject<'a> {
    pub name: &'a str,
    pub kind: &'a str,
    pub resource_group: &'a str,
    pub location: &'a str,
    pub tags: &'a Map<String, Value>,
}

impl Filter {
    pub(super) fn of(call: &Call) -> Result<Self, ArmError> {
        let Some(text) = call.parameter("$filter")? else { return Ok(Self::default()) };
        Self::parse(text).ok_or_else(|| {
            ArmError::bad_request(
                "InvalidFilterInQueryString",
                "The $filter is not understood. It compares name, resourceType, resourceGroup, location, tagName and \
                 tagValue by eq or ne, by substringof('text', name) or startswith(tagName, 'text'), joined by and.",
            )
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut rest = text.trim();
        let mut terms = Vec::new();
        if rest.is_empty() {
            return Some(Self::default());
        }
        loop {
            let (term, left) = term(rest)?;
            terms.push(term);
            rest = left.trim_start();
            if rest.is_empty() {
                return (terms.len() <= MAX_TERMS).then_some(Self(terms));
            }
            let (word, left) = word(rest)?;
            if !word.eq_ignore_ascii_case("and") {
                return None;
            }
            rest = left.trim_start();
        }
    }

    /// The one group it asks for.
    pub(super) fn resource_group(&self) -> Option<&str> {
        let group = |term: &&Term| term.field == Field::Group && term.test == Test::Is;
        self.0.iter().find(group).map(|term| term.value.as_str())
    }

    pub(super) fn matches(&self, subject: &Subject<'_>) -> bool {
        let plain = self.0.iter().filter(|term| !matches!(term.field, Field::TagName | Field::TagValue));
        plain.into_iter().all(|term| {
            term.holds(match term.field {
                Field::Name => subject.name,
                Field::Type => subject.kind,
                Field::Location => subject.location,
                _ => subject.resource_group,
            })
        }) && self.has_tag(subject.tags)
    }

    /// Name and value are asked of one and the same tag.
    fn has_tag(&self, tags: &Map<String, Value>) -> bool {
        let about = |field| self.0.iter().filter(move |term| term.field == field);
        if about(Field::TagName).chain(about(Field::TagValue)).next().is_none() {
            return true;
        }
        tags.iter().any(|(name, value)| {
            about(Field::TagName).all(|term| term.holds(name))
                && about(Field::TagValue).all(|term| term.holds(value.as_str().unwrap_or_default()))
        })
    }
}

impl Term {
    fn holds(&self, actual: &str) -> bool {
        let (actual, wanted) = (actual.to_lowercase(), self.value.to_lowercase());
        match self.test {
            Test::Is => actual == wanted,
            Test::IsNot => actual != wanted,
            Test::Contains => actual.contains(&wanted),
            Test::Begins => actual.starts_with(&wanted),
        }
    }
}

fn term(text: &str) -> Option<(Term, &str)> {
    let (first, rest) = word(text)?;
    let contains = first.eq_ignore_ascii_case("substringof");
    if contains || first.eq_ignore_ascii_case("startswith") {
        let rest = rest.trim_start().strip_prefix('(')?.trim_start();
        let (field, value, rest) = if contains {
            let (value, rest) = quoted(rest)?;
            let (field, rest) = word(rest.trim_start().strip_prefix(',')?.trim_start())?;
            (field, value, rest)
        } else {
            let (field, rest) = word(rest)?;
            let (value, rest) = quoted(rest.trim_start().strip_prefix(',')?.trim_start())?;
            (field, value, rest)
        };
        let rest = rest.trim_start().strip_prefix(')')?;
        let test = if contains { Test::Contains } else { Test::Begins };
        return Some((Term { field: named(field)?, test, value }, rest));
    }
    let (operator, rest) = word(rest.trim_start())?;
    let test = match operator.to_ascii_lowercase().as_str() {
        "eq" => Test::Is,
        "ne" => Test::IsNot,
        _ => return None,
    };
    let (value, rest) = quoted(rest.trim_start())?;
    Some((Term { field: named(first)?, test, value }, rest))
}

fn named(field: &str) -> Option<Field> {
    Some(match field.to_ascii_lowercase().as_str() {
        "name" => Field::Name,
        "resourcetype" => Field::Type,
        "resourcegroup" => Field::Group,
        "location" => Field::Location,
        "tagname" => Field::TagName,
        "tagvalue" => Field::TagValue,
        _ => return None,
    })
}

fn word(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|char: char| !char.is_ascii_alphanumeric()).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// `'it''s'` is `it's` (OData).
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut rest = text.strip_prefix('\'')?;
    let mut value = String::new();
    loop {
        let (before, after) = rest.split_once('\'')?;
        value.push_str(before);
        match after.strip_prefix('\'') {
            Some(more) => {
                value.push('\'');
                rest = more;
            }
            None => return Some((value, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn matches(filter: &str) -> bool {
        let tags = json!({"env": "prod", "it's": "x"});
        let subject = Subject {
            name: "Web-1",
            kind: "Microsoft.VirtualMachineImages/imageTemplates",
            resource_group: "RG",
            location: "local",
            tags: tags.as_object().unwrap(),
        };
        Filter::parse(filter).unwrap().matches(&subject)
    }

    #[test]
    fn what_clients_send_is_understood() {
        for (filter, expected) in [
            ("", true),
            ("resourceType eq 'microsoft.virtualmachineimages/imagetemplates'", true),
            ("resourceType eq 'Microsoft.Compute/images'", false),
            ("resourceType ne 'Microsoft.Compute/images'", true),
            (
                "resourceGroup eq 'rg' and resourceType eq 'Microsoft.VirtualMachineImages/imageTemplates'",
                true,
            ),
            ("resourceGroup eq 'rg2'", false),
            ("name eq 'web-1' and location eq 'local'", true),
            ("substringof('EB', name)", true),
            ("substringof('x',name)", false),
            ("tagName eq 'env' and tagValue eq 'prod'", true),
            ("tagName eq 'env' and tagValue eq 'x'", false),
            ("tagname eq 'it''s'", true),
            ("startswith(tagName, 'en')", true),
        ] {
            assert_eq!(matches(filter), expected, "{filter}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for filter in [
            "plan eq 'x'",
            "name eq x",
            "name eq 'x",
            "name gt 'x'",
            "name eq 'x' or name eq 'y'",
            "(name eq 'x')",
            "name eq 'x' and",
            "substringof('x' name)",
        ] {
            assert_eq!(Filter::parse(filter), None, "{filter}");
        }
        assert_eq!(Filter::parse(&["name eq 'x'"; 17].join(" and ")), None);
    }
}

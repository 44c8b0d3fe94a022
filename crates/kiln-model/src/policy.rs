//! What may be reused of earlier runs, and what may not: the file of `--policy`.
//!
//! ```yaml
//! maxAge: 24h                # how old a step that may have used the network may be
//! customizers:
//!   - name: install nginx    # or position: 2
//!     cache: never           # or an age of its own: 30m, 12h, 7d
//!   - position: 3
//!     secret: true           # nothing is kept from this step on
//! ```
//! It says nothing about what is built, only about how much of it is done again; so it is no part of a template or a plan.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::plan::Customizer;

/// Seconds that a step which may have used the network is good for, unless told otherwise: a day.
pub const DEFAULT_MAX_AGE: u64 = 24 * 60 * 60;
/// A policy is a page.
pub const MAX_POLICY_BYTES: usize = 256 << 10;

/// What a policy says, with the customizers it names found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CachePolicy {
    /// Seconds.
    pub max_age: u64,
    /// By the customizer's position, from 1.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub steps: BTreeMap<u32, StepPolicy>,
}

/// What a policy says of one customizer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StepPolicy {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// It handles a secret: neither the machine after it nor anything after that is kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub secret: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Cache {
    /// It runs each time.
    Never,
    /// It is good for so many seconds, whether it may have used the network or not.
    For(u64),
}

impl Default for CachePolicy {
    fn default() -> Self {
        Self { max_age: DEFAULT_MAX_AGE, steps: BTreeMap::new() }
    }
}

impl CachePolicy {
    /// Whether a machine may be kept after the customizer at `position`, and so may serve again.
    pub fn keeps(&self, position: u32) -> bool {
        !self.steps.range(..=position).any(|(_, step)| step.secret || step.cache == Some(Cache::Never))
    }

    /// For how many seconds a step is good; `None` for ever.
    pub fn age_limit(&self, position: u32, networked: bool) -> Option<u64> {
        match self.steps.get(&position).and_then(|step| step.cache) {
            Some(Cache::Never) => Some(0),
            Some(Cache::For(seconds)) => Some(seconds),
            None => networked.then_some(self.max_age),
        }
    }

    /// Reads a policy for a template with `customizers`.
    ///
    /// # Errors
    /// What is wrong with it, one sentence each: everything at once.
    pub fn read(text: &str, customizers: &[Customizer]) -> Result<Self, Vec<String>> {
        let written: Written = match serde_yaml::from_str::<Option<Written>>(text) {
            Ok(written) => written.unwrap_or_default(),
            Err(error) => return Err(vec![error.to_string()]),
        };
        let mut wrong = Vec::new();
        let mut policy = Self::default();
        if let Some(age) = &written.max_age {
            match seconds(age) {
                Ok(seconds) => policy.max_age = seconds,
                Err(why) => wrong.push(format!("maxAge: {why}")),
            }
        }
        for (number, step) in written.customizers.iter().enumerate() {
            let place = format!("customizers[{number}]");
            let Some(position) = position(step, customizers, &place, &mut wrong) else { continue };
            let cache = match step.cache.as_deref() {
                None => None,
                Some("never") => Some(Cache::Never),
                Some(age) => match seconds(age) {
                    Ok(seconds) => Some(Cache::For(seconds)),
                    Err(why) => {
                        wrong.push(format!("{place}.cache: {why}; or \"never\""));
                        None
                    }
                },
            };
            if cache.is_none() && !step.secret {
                wrong.push(format!("{place}: it says nothing; write cache or secret"));
            }
            let said = StepPolicy { cache, secret: step.secret };
            if policy.steps.insert(position, said).is_some() {
                wrong.push(format!("{place}: customizer {position} is named twice"));
            }
        }
        if wrong.is_empty() { Ok(policy) } else { Err(wrong) }
    }
}

fn position(
    step: &WrittenStep,
    customizers: &[Customizer],
    place: &str,
    wrong: &mut Vec<String>,
) -> Option<u32> {
    let found: Vec<u32> = match (&step.name, step.position) {
        (Some(name), None) => {
            let named = customizers.iter().filter(|customizer| customizer.name == *name);
            named.map(|customizer| customizer.position).collect()
        }
        (None, Some(position)) => {
            let there = customizers.iter().filter(|customizer| customizer.position == position);
            there.map(|customizer| customizer.position).collect()
        }
        (Some(_), Some(_)) | (None, None) => {
            wrong.push(format!("{place}: a customizer is named by name or by position, one of both"));
            return None;
        }
    };
    let shown = match (&step.name, step.position) {
        (Some(name), _) => format!("named {name:?}"),
        (None, position) => format!("at position {}", position.unwrap_or_default()),
    };
    match found[..] {
        [position] => Some(position),
        [] => {
            wrong.push(format!("{place}: the template has no customizer {shown}"));
            None
        }
        _ => {
            wrong.push(format!("{place}: the template has several customizers {shown}; give the position"));
            None
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    max_age: Option<String>,
    #[serde(default)]
    customizers: Vec<WrittenStep>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenStep {
    name: Option<String>,
    position: Option<u32>,
    cache: Option<String>,
    #[serde(default)]
    secret: bool,
}

/// `90s`, `30m`, `12h`, `7d`.
///
/// # Errors
/// What an age looks like.
pub fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no age; write a number with s, m, h or d, such as 12h");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let number =
        if number.bytes().all(|byte| byte.is_ascii_digit()) { number.parse::<u64>().ok() } else { None };
    number.and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{CustomizerAction, Script};

    fn customizers(names: &[&str]) -> Vec<Customizer> {
        let shell = || CustomizerAction::Shell { script: Script::Inline(Vec::new()) };
        let numbered = (1..).zip(names);
        numbered
            .map(|(position, name)| Customizer { position, name: (*name).to_owned(), action: shell() })
            .collect()
    }

    #[test]
    fn a_policy_is_read_by_name_and_position() {
        let text =
            "maxAge: 2h\ncustomizers:\n- {name: b, cache: never}\n- {position: 3, cache: 7d, secret: true}\n";
        let policy = CachePolicy::read(text, &customizers(&["a", "b", "c"])).unwrap();
        assert_eq!(policy.max_age, 7200);
        assert_eq!(policy.steps[&2], StepPolicy { cache: Some(Cache::Never), secret: false });
        assert_eq!(policy.steps[&3], StepPolicy { cache: Some(Cache::For(604_800)), secret: true });
        assert_eq!([0, 1, 2, 3].map(|position| policy.keeps(position)), [true, true, false, false]);
        assert_eq!(policy.age_limit(1, true), Some(7200));
        assert_eq!(policy.age_limit(1, false), None);
        assert_eq!(policy.age_limit(2, false), Some(0));
        assert_eq!(policy.age_limit(3, false), Some(604_800));
        assert_eq!(CachePolicy::read("", &[]).unwrap(), CachePolicy::default());
        let text = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<CachePolicy>(&text).unwrap(), policy);
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let text = "maxAge: soon\ncustomizers:\n- {name: x, cache: never}\n- {name: d, secret: true}\n- {position: 9, secret: true}\n\
                    - {position: 1}\n- {name: a, position: 1, secret: true}\n- {position: 1, cache: 1w}\n";
        let wrong = CachePolicy::read(text, &customizers(&["a", "d", "d"])).unwrap_err();
        let has = |words: &str| assert!(wrong.iter().any(|line| line.contains(words)), "{words}: {wrong:#?}");
        for words in [
            "maxAge: \"soon\" is no age",
            "customizers[0]: the template has no customizer named \"x\"",
            "customizers[1]: the template has several customizers named \"d\"",
            "customizers[2]: the template has no customizer at position 9",
            "customizers[3]: it says nothing",
            "customizers[4]: a customizer is named by name or by position",
            "customizers[5].cache: \"1w\" is no age",
            "customizer 1 is named twice",
        ] {
            has(words);
        }
        let unknown = CachePolicy::read("max_age: 1h\n", &[]).unwrap_err();
        assert!(
            unknown[0].contains("unknown field `max_age`") && unknown[0].contains("line 1"),
            "{unknown:?}"
        );
    }

    #[test]
    fn ages() {
        for (text, expected) in [("90s", 90), ("30m", 1800), ("12h", 43_200), ("7d", 604_800), ("0s", 0)] {
            assert_eq!(seconds(text), Ok(expected));
        }
        for text in
            ["", "h", "12", "-1h", "+1h", "1.5h", "1w", "99999999999999999999d", "9999999999999999999d", "1ü"]
        {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}

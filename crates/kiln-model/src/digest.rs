//! SHA-256 digests as values: 32 bytes in memory, 64 lower-case hex digits in text.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A SHA-256 digest (FIPS 180-4). Text form: 64 lower-case hex digits, as `sha256sum` prints.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256([u8; 32]);

/// The text is not a SHA-256 digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a SHA-256 digest (64 hex digits expected, got {length} characters{})", if *.other { ", some of them not hex" } else { "" })]
pub struct InvalidDigest {
    length: usize,
    other: bool,
}

impl Sha256 {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first twelve digits: enough for people, never for a comparison.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl From<[u8; 32]> for Sha256 {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

impl FromStr for Sha256 {
    type Err = InvalidDigest;

    /// Both cases are read: `Get-FileHash` prints upper case.
    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let invalid = |other| InvalidDigest { length: text.chars().count(), other };
        let digits: Vec<u8> = text
            .chars()
            .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()).ok_or_else(|| invalid(true)))
            .collect::<Result<_, _>>()?;
        if digits.len() != 64 {
            return Err(invalid(false));
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_cases_and_prints_lower() {
        let upper = "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855";
        let digest: Sha256 = upper.parse().unwrap();
        assert_eq!(digest.to_string(), upper.to_lowercase());
        assert_eq!(digest.short(), "e3b0c44298fc");
    }

    #[test]
    fn refuses_wrong_lengths_and_letters() {
        for text in ["", "abc", &"a".repeat(63), &"a".repeat(65), &"g".repeat(64), &"é".repeat(64)] {
            assert!(text.parse::<Sha256>().is_err(), "{text:?}");
        }
    }
}

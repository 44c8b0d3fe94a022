//! The api-versions of the image template resource, and how they differ.

use serde::{Deserialize, Serialize};

/// The api-versions of Microsoft.VirtualMachineImages that Kiln knows, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ApiVersion {
    #[serde(rename = "2018-02-01-preview")]
    V2018_02_01Preview,
    #[serde(rename = "2019-02-01-preview")]
    V2019_02_01Preview,
    #[serde(rename = "2019-05-01-preview")]
    V2019_05_01Preview,
    #[serde(rename = "2020-02-14")]
    V2020_02_14,
    #[serde(rename = "2021-10-01")]
    V2021_10_01,
    #[serde(rename = "2022-02-14")]
    V2022_02_14,
    #[serde(rename = "2022-07-01")]
    V2022_07_01,
    #[serde(rename = "2023-07-01")]
    V2023_07_01,
    #[serde(rename = "2024-02-01")]
    V2024_02_01,
    #[serde(rename = "2025-10-01")]
    V2025_10_01,
}

use ApiVersion::*;

impl ApiVersion {
    /// Oldest first.
    pub const ALL: [ApiVersion; 10] = [
        V2018_02_01Preview,
        V2019_02_01Preview,
        V2019_05_01Preview,
        V2020_02_14,
        V2021_10_01,
        V2022_02_14,
        V2022_07_01,
        V2023_07_01,
        V2024_02_01,
        V2025_10_01,
    ];

    /// What a file without `apiVersion` is read as.
    pub const DEFAULT: ApiVersion = V2020_02_14;

    pub const fn as_str(self) -> &'static str {
        match self {
            V2018_02_01Preview => "2018-02-01-preview",
            V2019_02_01Preview => "2019-02-01-preview",
            V2019_05_01Preview => "2019-05-01-preview",
            V2020_02_14 => "2020-02-14",
            V2021_10_01 => "2021-10-01",
            V2022_02_14 => "2022-02-14",
            V2022_07_01 => "2022-07-01",
            V2023_07_01 => "2023-07-01",
            V2024_02_01 => "2024-02-01",
            V2025_10_01 => "2025-10-01",
        }
    }

    /// The version of that name, if it is known. Case does not count.
    pub fn find(text: &str) -> Option<ApiVersion> {
        Self::ALL.into_iter().find(|version| version.as_str().eq_ignore_ascii_case(text))
    }

    /// From 2024-02-01 on, property names are exact and unknown ones are refused.
    pub fn is_strict(self) -> bool {
        self >= V2024_02_01
    }

    /// Up to 2020-02-14 the document of that version decides.
    pub fn is_2020_or_older(self) -> bool {
        self <= V2020_02_14
    }
}

impl std::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_order_agree() {
        for (index, version) in ApiVersion::ALL.into_iter().enumerate() {
            assert_eq!(ApiVersion::find(version.as_str()), Some(version));
            assert_eq!(serde_json::to_value(version).unwrap(), version.as_str());
            if index > 0 {
                assert!(ApiVersion::ALL[index - 1] < version);
                assert!(ApiVersion::ALL[index - 1].as_str() < version.as_str());
            }
        }
        assert_eq!(ApiVersion::find("2020-02-15"), None);
    }
}

//! Wire types of the image template resource.

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

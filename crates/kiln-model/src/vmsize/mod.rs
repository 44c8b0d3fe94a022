//! Azure's VM sizes: what `vmProfile.vmSize` means in vCPUs and memory.
//!
//! The table lies beside this file as text, one series a line, so that a person can
//! check it against Azure's pages. Two kinds of names follow by rule: constrained sizes
//! (`Standard_E16-4s_v5` is `Standard_E16s_v5` with 4 vCPUs) and promotions (`_Promo`).

use crate::catalog::Generation;
use crate::plan::VmSize;
use crate::suggest;

const TABLE: &str = include_str!("azure-sizes.txt");

/// What AIB takes where a template names none (contract: api-version 2020-02-14 and later).
pub(crate) fn default_for(generation: Generation) -> VmSize {
    let (name, vcpus, memory_mib) = match generation {
        Generation::V1 => ("Standard_D1_v2", 1, 3584),
        Generation::V2 => ("Standard_D2ds_v4", 2, 8192),
    };
    VmSize { name: name.to_owned(), vcpus, memory_mib, gpu: false }
}

/// The size of that name; case does not count. The answer has Azure's own spelling.
pub(crate) fn find(name: &str) -> Option<VmSize> {
    let lower = name.to_ascii_lowercase();
    let plain = lower.strip_suffix("_promo").unwrap_or(&lower);
    let (unconstrained, active) = unconstrained(plain);
    let mut size = sizes().find(|size| size.name.eq_ignore_ascii_case(&unconstrained))?;
    if let Some(active) = active {
        // A constrained size has a half or a quarter of the vCPUs, and all of the memory.
        if active == 0 || active >= size.vcpus {
            return None;
        }
        let (before, after) = split_number(&size.name)?;
        size.name = format!("{before}-{active}{after}");
        size.vcpus = active;
    }
    if plain.len() < lower.len() {
        size.name.push_str("_Promo");
    }
    Some(size)
}

/// Names that may have been meant.
pub(crate) fn nearest(name: &str) -> Vec<String> {
    let known: Vec<VmSize> = sizes().collect();
    let full = if has_prefix(name) { name.to_owned() } else { format!("Standard_{name}") };
    suggest::several(&full, known.iter().map(|size| size.name.as_str()), 3)
        .into_iter()
        .map(str::to_owned)
        .collect()
}

fn has_prefix(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    lower.starts_with("standard_") || lower.starts_with("basic_")
}

/// `standard_e16-4s_v5` → (`standard_e16s_v5`, 4).
fn unconstrained(name: &str) -> (String, Option<u32>) {
    if let Some((before, after)) = name.split_once('-')
        && before.ends_with(|c: char| c.is_ascii_digit())
    {
        let digits = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if let Ok(active) = after[..digits].parse() {
            return (format!("{before}{}", &after[digits..]), Some(active));
        }
    }
    (name.to_owned(), None)
}

/// Behind the first number: `Standard_E16` and `s_v5`.
fn split_number(name: &str) -> Option<(&str, &str)> {
    let start = name.find(|c: char| c.is_ascii_digit())?;
    let digits = name[start..].find(|c: char| !c.is_ascii_digit()).unwrap_or(name.len() - start);
    Some(name.split_at(start + digits))
}

/// Every size of the table.
fn sizes() -> impl Iterator<Item = VmSize> {
    TABLE.lines().filter(|line| !line.starts_with('#')).flat_map(|line| {
        let mut words = line.split_whitespace();
        let series = words.next().unwrap_or_default();
        words.filter_map(move |cell| row(series, cell))
    })
}

/// `D#_v2`, `3=4:14` → Standard_D3_v2 with 4 vCPUs and 14 GiB.
fn row(series: &str, cell: &str) -> Option<VmSize> {
    let (number, gib) = cell.split_once(':')?;
    let (number, vcpus) = number.split_once('=').unwrap_or((number, number));
    let prefix = if series.starts_with("Basic_") { "" } else { "Standard_" };
    Some(VmSize {
        name: format!("{prefix}{}", series.replacen('#', number, 1)),
        vcpus: vcpus.parse().ok()?,
        // Quarters of a GiB at the smallest: exact in a double.
        memory_mib: (gib.parse::<f64>().ok()? * 1024.0) as u64,
        // The N series are Azure's sizes with accelerators.
        gpu: series.starts_with('N'),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(name: &str) -> Option<(String, u32, u64, bool)> {
        find(name).map(|size| (size.name, size.vcpus, size.memory_mib, size.gpu))
    }

    #[test]
    fn known_sizes_have_azures_numbers() {
        for (name, vcpus, mib) in [
            ("Standard_A0", 1, 768),
            ("Basic_A4", 8, 14 * 1024),
            ("Standard_A2m_v2", 2, 16 * 1024),
            ("Standard_B1ls", 1, 512),
            ("Standard_B2ms", 2, 8192),
            ("Standard_D1_v2", 1, 3584),
            ("Standard_DS3_v2", 4, 14 * 1024),
            ("Standard_D15_v2", 20, 140 * 1024),
            ("Standard_D4s_v3", 4, 16 * 1024),
            ("Standard_D2ds_v4", 2, 8192),
            ("Standard_D64ps_v5", 64, 208 * 1024),
            ("Standard_D2as_v7", 2, 8192),
            ("Standard_E64s_v3", 64, 432 * 1024),
            ("Standard_F72s_v2", 72, 144 * 1024),
            ("Standard_G5", 32, 448 * 1024),
            ("Standard_L80s_v3", 80, 640 * 1024),
            ("Standard_M8ms", 8, 224_000),
            ("Standard_M416ms_v2", 416, 11400 * 1024),
        ] {
            let size = find(name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(
                (size.name.as_str(), size.vcpus, size.memory_mib, size.gpu),
                (name, vcpus, mib, false)
            );
        }
        assert!(find("Standard_NC6").unwrap().gpu && find("Standard_NV12s_v3").unwrap().gpu);
    }

    #[test]
    fn every_row_reads_and_is_plausible() {
        let cells: usize = TABLE
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().count() - 1)
            .sum();
        let all: Vec<VmSize> = sizes().collect();
        assert_eq!(all.len(), cells);
        assert!(cells > 1200);
        let mut names: Vec<&str> = all.iter().map(|size| size.name.as_str()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), cells, "a size is there twice");
        for size in all {
            assert!((1..=1000).contains(&size.vcpus), "{size:?}");
            assert!((512..=32 << 20).contains(&size.memory_mib), "{size:?}");
        }
    }

    #[test]
    fn constrained_and_promoted_sizes_follow_by_rule() {
        assert_eq!(shown("standard_e16-4S_V5"), Some(("Standard_E16-4s_v5".into(), 4, 128 * 1024, false)));
        assert_eq!(shown("Standard_DS11-1_v2"), Some(("Standard_DS11-1_v2".into(), 1, 14 * 1024, false)));
        assert_eq!(
            shown("Standard_DS2_v2_Promo"),
            Some(("Standard_DS2_v2_Promo".into(), 2, 7 * 1024, false))
        );
        for name in ["Standard_E16-16s_v5", "Standard_E16-0s_v5", "Standard_E16-s_v5", "-", "Standard_", ""] {
            assert_eq!(shown(name), None, "{name}");
        }
    }

    #[test]
    fn the_defaults_are_in_the_table() {
        for generation in [Generation::V1, Generation::V2] {
            let size = default_for(generation);
            assert_eq!(find(&size.name), Some(size));
        }
    }

    #[test]
    fn slips_find_their_size() {
        assert_eq!(nearest("Standard_D2_v22").first().map(String::as_str), Some("Standard_D2_v2"));
        assert!(nearest("D2s_v3").contains(&"Standard_D2s_v3".to_owned()));
        assert!(nearest("t3.micro").is_empty());
    }
}

//! "Did you mean": nearest known words.

/// The known word nearest to `word`, if one is near enough to be meant.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    several(word, known, 1).into_iter().next()
}

/// Up to `count` known words near enough to be meant, nearest first. Case does not count.
pub(crate) fn several<'a>(
    word: &str,
    known: impl IntoIterator<Item = &'a str>,
    count: usize,
) -> Vec<&'a str> {
    let word: Vec<char> = word.chars().take(LONGEST).flat_map(char::to_lowercase).collect();
    // One slip in three letters; in short words one slip.
    let limit = (word.len() / 3).max(1);
    let mut near: Vec<(usize, &str)> = known
        .into_iter()
        .filter_map(|candidate| {
            let letters: Vec<char> = candidate.chars().flat_map(char::to_lowercase).collect();
            let distance = distance(&word, &letters);
            (distance <= limit && distance < letters.len()).then_some((distance, candidate))
        })
        .collect();
    near.sort();
    near.dedup_by_key(|(_, candidate)| *candidate);
    near.into_iter().take(count).map(|(_, candidate)| candidate).collect()
}

/// Longer words are compared by their start: no known word is longer.
const LONGEST: usize = 120;

/// Insertions, deletions, replacements and swaps of neighbours (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        for (j, y) in b.iter().enumerate() {
            let mut best = (last[j] + usize::from(x != y)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(before_last[j - 1] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let known = ["artifactTags", "runOutputName", "type", "tags", "name"];
        for (word, meant) in [
            ("aritfactTags", Some("artifactTags")),
            ("RUNOUTPUTNAME", Some("runOutputName")),
            ("tpye", Some("type")),
            ("nmae", Some("name")),
            ("customize", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(nearest(word, known), meant, "{word}");
        }
    }

    #[test]
    fn a_swap_is_one_slip() {
        let letters = |text: &str| text.chars().collect::<Vec<_>>();
        for (a, b, slips) in [("ab", "ba", 1), ("abc", "abc", 0), ("", "abc", 3), ("kitten", "sitting", 3)] {
            assert_eq!(distance(&letters(a), &letters(b)), slips);
        }
    }

    #[test]
    fn huge_words_cost_little() {
        assert_eq!(nearest(&"x".repeat(4 << 20), ["type"]), None);
    }
}

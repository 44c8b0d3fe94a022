//! Numbers as people read them.

use std::time::Duration;

/// `712 B`, `3.4 KiB`, `525 MiB`, `4 GiB`: three digits at most, binary units.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut unit = 0;
    let mut divisor = 1024_u64;
    while unit + 1 < UNITS.len() && count / divisor >= 1024 {
        unit += 1;
        divisor *= 1024;
    }
    // Tenths, rounded to the nearest; the intermediate needs more than 64 bits.
    let tenths = (u128::from(count) * 10 + u128::from(divisor) / 2) / u128::from(divisor);
    let (whole, tenth) = (tenths / 10, tenths % 10);
    if whole >= 100 || tenth == 0 {
        format!("{} {}", (tenths + 5) / 10, UNITS[unit])
    } else {
        format!("{whole}.{tenth} {}", UNITS[unit])
    }
}

/// `0.3s`, `12.0s`, `1m 12s`, `2h 05m`.
pub fn duration(time: Duration) -> String {
    let tenths = (time.as_millis() + 50) / 100;
    if tenths < 600 {
        return format!("{}.{}s", tenths / 10, tenths % 10);
    }
    let seconds = (time.as_millis() + 500) / 1000;
    if seconds < 3600 {
        format!("{}m {:02}s", seconds / 60, seconds % 60)
    } else {
        format!("{}h {:02}m", seconds / 3600, seconds % 3600 / 60)
    }
}

/// Milliseconds of an event, see [`duration`].
pub fn milliseconds(ms: u64) -> String {
    duration(Duration::from_millis(ms))
}

/// `1 file`, `2 files`.
pub fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// A path or word as one can paste it into a POSIX shell.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits_at_most() {
        for (count, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (525 << 20, "525 MiB"),
            (4 << 30, "4 GiB"),
            ((4 << 30) + 512, "4 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(bytes(count), shown);
        }
    }

    #[test]
    fn durations() {
        for (ms, shown) in [
            (0, "0.0s"),
            (340, "0.3s"),
            (12_049, "12.0s"),
            (59_940, "59.9s"),
            (59_960, "1m 00s"),
            (72_000, "1m 12s"),
            (7_500_000, "2h 05m"),
        ] {
            assert_eq!(milliseconds(ms), shown);
        }
    }

    #[test]
    fn words_for_a_shell() {
        assert_eq!(shell_word("/tmp/a.vhd"), "/tmp/a.vhd");
        assert_eq!(shell_word("it's here"), r"'it'\''s here'");
        assert_eq!(shell_word("$(x)"), "'$(x)'");
        assert_eq!(shell_word(""), "''");
    }
}

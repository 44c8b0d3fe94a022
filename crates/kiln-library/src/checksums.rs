//! Checksum files, as distributions publish them beside their images.
//!
//! Two notations are in use, sometimes in one file, sometimes inside a PGP message:
//!
//! ```text
//!  5a3b…  *debian-12-generic-amd64.qcow2            sha256sum, sha512sum; `*` or a second space
//!  SHA256 (Rocky-9-GenericCloud.qcow2) = 5a3b…      BSD's, or sha256sum --tag
//! ```
//! Signatures are not checked: the file is as good as the https connection it came by.

use kiln_model::catalog::ChecksumAlgorithm;

use crate::fetch::Expected;

/// The digest that the checksum file gives for `file`. `None` when it gives none, or two different ones.
pub(crate) fn find(text: &str, file: &str, algorithm: ChecksumAlgorithm) -> Option<Expected> {
    let mut found = None;
    for line in text.lines() {
        let Some((digest, named)) = tagged(line, algorithm).or_else(|| plain(line)) else { continue };
        let base = named.rsplit('/').next().unwrap_or(named);
        if base != file {
            continue;
        }
        let Some(digest) = parse(digest, algorithm) else { continue };
        if found.is_some_and(|before| before != digest) {
            return None;
        }
        found = Some(digest);
    }
    found
}

/// `SHA256 (file) = digest`
fn tagged(line: &str, algorithm: ChecksumAlgorithm) -> Option<(&str, &str)> {
    let name = match algorithm {
        ChecksumAlgorithm::Sha256 => "SHA256",
        ChecksumAlgorithm::Sha512 => "SHA512",
    };
    let rest = line.trim().strip_prefix(name)?.trim_start().strip_prefix('(')?;
    let (file, digest) = rest.rsplit_once(')')?;
    Some((digest.trim().strip_prefix('=')?.trim(), file))
}

/// `digest  file` or `digest *file`
fn plain(line: &str) -> Option<(&str, &str)> {
    let (digest, file) = line.trim().split_once([' ', '\t'])?;
    let file = file.trim_start();
    Some((digest, file.strip_prefix('*').unwrap_or(file)))
}

fn parse(digest: &str, algorithm: ChecksumAlgorithm) -> Option<Expected> {
    match algorithm {
        ChecksumAlgorithm::Sha256 => digest.parse().ok().map(Expected::Sha256),
        ChecksumAlgorithm::Sha512 => {
            if digest.len() != 128 || !digest.is_ascii() {
                return None;
            }
            let mut bytes = [0; 64];
            for (byte, place) in bytes.iter_mut().zip((0..128).step_by(2)) {
                *byte = u8::from_str_radix(&digest[place..place + 2], 16).ok()?;
            }
            // `from_str_radix` takes a sign.
            (!digest.contains(['+', '-'])).then_some(Expected::Sha512(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ChecksumAlgorithm::{Sha256, Sha512};

    #[test]
    fn both_notations_are_read() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let text = format!(
            "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n\
             # x.qcow2: 12345 bytes\n\
             SHA256 (x.qcow2) = {a}\n\
             SHA512 (x.qcow2) = {a}{b}\r\n\
             {b} *sub/y.img\n\
             {}  ./z (1).img\n\
             {a}{b}  w.img\n\
             -----BEGIN PGP SIGNATURE-----\nabc\n",
            a.to_uppercase()
        );
        let hex = |file, algorithm| find(&text, file, algorithm).map(|digest| digest.hex());
        assert_eq!(hex("x.qcow2", Sha256).as_ref(), Some(&a));
        assert_eq!(hex("x.qcow2", Sha512), Some(format!("{a}{b}")));
        assert_eq!(hex("y.img", Sha256).as_ref(), Some(&b));
        assert_eq!(hex("z (1).img", Sha256).as_ref(), Some(&a));
        assert_eq!(hex("w.img", Sha512), Some(format!("{a}{b}")));
        for (file, algorithm) in [("w.img", Sha256), ("y.img", Sha512), ("x", Sha256), ("", Sha256)] {
            assert_eq!(hex(file, algorithm), None, "{file}");
        }
    }

    #[test]
    fn contradictions_and_nonsense_give_nothing() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        assert_eq!(find(&format!("{a}  x\n{b}  x\n"), "x", Sha256), None);
        assert!(find(&format!("{a}  x\n{a} *x\n"), "x", Sha256).is_some());
        for text in ["", "x", "SHA256 (x) = ", "SHA256 (x = aa", &format!("+{}  x", "a".repeat(63)), "é  x"]
        {
            assert_eq!(find(text, "x", Sha256), None, "{text}");
        }
        assert_eq!(find(&format!("{}  x", "+a".repeat(64)), "x", Sha512), None);
        assert_eq!(find(&format!("{}  x", "é".repeat(64)), "x", Sha512), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC*", file in "\\PC*") {
            let _ = find(&text, &file, Sha256);
            let _ = find(&text, &file, Sha512);
        }
    }
}

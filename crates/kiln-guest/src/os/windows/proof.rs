//! What a run on a guest proves, in the product's own words.
//!
//! | guest                                                     | words                                      |
//! |-----------------------------------------------------------|--------------------------------------------|
//! | calls itself a Windows, whole, and its disk agrees         | `verified on Windows 10.0.20348.2700`      |
//! | the lab's                                                  | `lab-tested (no Windows)`                  |
//! | anything else, also a Windows that does not say which      | `not proven: …`                            |
//! | any, where the run failed                                  | `failed: …`                                |
//!
//! INVARIANT: what is no Windows, or does not tell which one it is, never yields the word "verified". Two witnesses must
//! agree: the system that runs, and the registry on the disk it was started from, read from outside.

use serde::{Deserialize, Serialize};

use super::facts::WindowsFacts;

/// The words for what was tried in the lab.
pub const LAB_TESTED: &str = "lab-tested (no Windows)";
/// A name with one of these words is no Windows', whatever else it says.
const NO_WINDOWS: [&str; 4] = ["lab", "linux", "wine", "reactos"];

/// What the disk's own registry says, read while nothing ran.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskWords {
    /// `ProductName`.
    pub name: Option<String>,
    /// `CurrentBuildNumber`, and `UBR` after a dot where there is one.
    pub build: Option<String>,
}

/// Which guest it was that something passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// A Windows of this version, for instance `10.0.20348.2700`.
    Windows { version: String },
    /// A machine that answers like a Windows and says that it is none.
    Lab,
    /// Nothing can be said.
    None { why: String },
}

impl Proof {
    /// Judges by what the guest says of itself, and by its disk.
    pub fn of(facts: Option<&WindowsFacts>, disk: Option<&DiskWords>) -> Self {
        let names =
            [facts.and_then(|facts| facts.name.as_deref()), disk.and_then(|disk| disk.name.as_deref())];
        let said = |word: &str| {
            let mut words =
                names.iter().flatten().flat_map(|name| name.split(|c: char| !c.is_alphanumeric()));
            words.any(|found| found.eq_ignore_ascii_case(word))
        };
        if NO_WINDOWS.into_iter().any(said) {
            return Self::Lab;
        }
        match (facts, disk) {
            (Some(facts), Some(disk)) => match version(facts, disk) {
                Ok(version) => Self::Windows { version },
                Err(why) => Self::None { why: why.to_owned() },
            },
            (None, _) => Self::None { why: "the guest never said what it is".to_owned() },
            (Some(_), None) => Self::None { why: "its disk was not read".to_owned() },
        }
    }

    /// The status word of what passed on this guest.
    pub fn words(&self) -> String {
        match self {
            Self::Windows { version } => format!("verified on Windows {version}"),
            Self::Lab => LAB_TESTED.to_owned(),
            Self::None { why } => format!("not proven: {why}"),
        }
    }

    /// The words for a whole run that left `transcript`; `failure` says what went wrong in it.
    pub fn of_run(&self, transcript: &str, failure: Option<&str>) -> String {
        match (failure, self) {
            (Some(failure), _) => format!("failed: {failure}"),
            (None, Self::Windows { .. }) => format!("{} by transcript {transcript}", self.words()),
            (None, Self::Lab | Self::None { .. }) => self.words(),
        }
    }

    /// The system's part of a file's name, and the build's: what the guest may say is not what a name may hold.
    pub fn file_part(&self, facts: Option<&WindowsFacts>) -> String {
        match self {
            Self::Windows { version } => {
                let edition = facts.and_then(|facts| facts.edition.as_deref()).unwrap_or_default();
                let edition: String = edition.chars().filter(char::is_ascii_alphanumeric).take(40).collect();
                format!("windows-{}-{version}", edition.to_lowercase())
            }
            Self::Lab => "lab-no-windows".to_owned(),
            Self::None { .. } => "unknown".to_owned(),
        }
    }
}

/// The whole version, where nothing is missing and both witnesses say the same.
fn version(facts: &WindowsFacts, disk: &DiskWords) -> Result<String, &'static str> {
    let starts =
        |name: &Option<String>, with: &str| name.as_deref().is_some_and(|name| name.starts_with(with));
    if !starts(&facts.name, "Microsoft Windows ") {
        return Err("the guest does not call itself a Microsoft Windows");
    }
    if facts.edition.as_deref().is_none_or(str::is_empty) {
        return Err("the guest does not say which edition it is");
    }
    let version = facts.version.as_deref().unwrap_or_default();
    let numbers: Vec<u32> = version.split('.').map_while(|part| part.parse().ok()).collect();
    let [major, minor, build] = numbers[..] else {
        return Err("the guest does not say its build");
    };
    let whole = format!("{major}.{minor}.{build}") == version && major >= 6 && build > 0;
    let Some(revision) = facts.revision.filter(|revision| whole && *revision >= 0) else {
        return Err("the guest does not say its build and revision");
    };
    if !starts(&disk.name, "Windows ") {
        return Err("the registry on the base image's disk is no Windows'");
    }
    // An update may come between the two; another build does not.
    let on_disk = disk.build.as_deref().and_then(|text| text.split('.').next()?.parse().ok());
    if on_disk != Some(build) {
        return Err("the guest and the base image's disk name different builds");
    }
    Ok(format!("{version}.{revision}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(name: &str, version: &str, revision: Option<i64>, edition: &str) -> WindowsFacts {
        WindowsFacts {
            name: Some(name.to_owned()),
            version: Some(version.to_owned()),
            revision,
            edition: Some(edition.to_owned()),
            ..WindowsFacts::default()
        }
    }

    fn disk(name: &str, build: &str) -> DiskWords {
        DiskWords { name: Some(name.to_owned()), build: Some(build.to_owned()) }
    }

    const SERVER: &str = "Microsoft Windows Server 2022 Datacenter";

    #[test]
    fn only_what_says_all_of_it_twice_is_verified() {
        let good = facts(SERVER, "10.0.20348", Some(2700), "ServerDatacenter");
        let on_disk = disk("Windows Server 2022 Datacenter", "20348.2582");
        let proof = Proof::of(Some(&good), Some(&on_disk));
        assert_eq!(proof.words(), "verified on Windows 10.0.20348.2700");
        assert_eq!(
            proof.of_run("transcript-x.jsonl", None),
            "verified on Windows 10.0.20348.2700 by transcript transcript-x.jsonl"
        );
        assert_eq!(proof.file_part(Some(&good)), "windows-serverdatacenter-10.0.20348.2700");
        let failed = proof.of_run("transcript-x.jsonl", Some("Sysprep is gone"));
        assert_eq!(failed, "failed: Sysprep is gone");

        let others = [
            (
                facts("Kiln lab (Linux, no Windows)", "0.0.0", Some(0), "Lab"),
                disk("Kiln lab (Linux, no Windows)", "0.0"),
            ),
            // A lab that would say everything else right is still one, whichever of the two says it.
            (
                facts("Kiln lab (Linux, no Windows)", "10.0.20348", Some(2700), "ServerDatacenter"),
                on_disk.clone(),
            ),
            (good.clone(), disk("Kiln lab (Linux, no Windows)", "20348")),
            (
                facts("Microsoft Windows 10 Pro (Wine)", "10.0.19045", Some(1), "Professional"),
                disk("Windows 10 Pro", "19045"),
            ),
        ];
        for (facts, disk) in &others {
            let proof = Proof::of(Some(facts), Some(disk));
            assert_eq!(proof.of_run("t", None), LAB_TESTED, "{facts:?}");
            assert_eq!(proof.file_part(Some(facts)), "lab-no-windows");
        }
        let unproven = [
            (None, Some(on_disk.clone())),
            (Some(good.clone()), None),
            (Some(WindowsFacts::default()), Some(on_disk.clone())),
            (
                Some(facts("Windows Server 2022", "10.0.20348", Some(1), "ServerDatacenter")),
                Some(on_disk.clone()),
            ),
            (Some(facts(SERVER, "10.0.20348", None, "ServerDatacenter")), Some(on_disk.clone())),
            (Some(facts(SERVER, "10.0.20348", Some(-1), "ServerDatacenter")), Some(on_disk.clone())),
            (Some(facts(SERVER, "10.0.20348", Some(1), "")), Some(on_disk.clone())),
            (
                Some(facts(SERVER, "0.0.0", Some(0), "ServerDatacenter")),
                Some(disk("Windows Server 2022", "0")),
            ),
            (Some(facts(SERVER, "10.0", Some(0), "ServerDatacenter")), Some(on_disk.clone())),
            (Some(facts(SERVER, "10.0.20348 by hand", Some(0), "ServerDatacenter")), Some(on_disk.clone())),
            (Some(good.clone()), Some(disk("Windows Server 2025 Datacenter", "26100.1"))),
            (Some(good.clone()), Some(disk("Something", "20348.1"))),
            (Some(good), Some(DiskWords::default())),
        ];
        for (facts, disk) in &unproven {
            let proof = Proof::of(facts.as_ref(), disk.as_ref());
            assert!(matches!(proof, Proof::None { .. }), "{facts:?} {disk:?}");
            assert!(proof.of_run("t", None).starts_with("not proven: "), "{facts:?}");
            assert_eq!(proof.file_part(facts.as_ref()), "unknown");
        }
    }
}

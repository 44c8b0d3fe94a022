//! Generalizing a Windows: the override if there is one, else the service's own script, made safe off Azure.
//!
//! ```text
//!   deprovision_lookup.ps1 ── c:\DeprovisioningScript.ps1 is there ─► run untouched ([`override_command`]), then
//!        │                                                             sysprep_watch.ps1 alone ([`watch`])
//!        └── it is not ─► the warning, then deprovision_default.ps1 + sysprep_watch.ps1 ([`default_script`])
//! ```
//!
//! The 2020-02-14 reference's script waits for three services of Azure without bound; where they are not installed it
//! waits for ever. Ours has its order and its lines, waits only for a service that exists, for some minutes, and says
//! what it skipped and why. Its last loop ends when Windows never will be generalized: a Sysprep that is gone, or the
//! time. IMAGE_STATE_UNDEPLOYABLE alone is no end: a Windows is in it while Sysprep works, and stays in it when that failed.
//!
//! Whichever runs is printed into the log first, as the service does.

use serde::Deserialize;

use super::script::{GuestPath, call_command};
use super::text::{Value, answers, fill};

/// Where a customizer leaves its own script.
pub const OVERRIDE: &str = r"c:\DeprovisioningScript.ps1";
/// What the service says when there is none.
pub const NO_OVERRIDE: &str = "Deprovisioning script [c:\\DeprovisioningScript.ps1] could not be found. Image build may \
                               fail or the VM created from the Image may not boot if the Windows build VM is not \
                               properly Sysprepped.";
/// `ImageState` of a Windows that is generalized.
pub const GENERALIZED: &str = "IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE";
/// Characters of an override that are shown.
const MOST_SHOWN: u64 = 64 * 1024;
const TAIL_LINES: u64 = 40;

/// How long generalizing waits for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SysprepLimits {
    /// Seconds for each of Azure's services that is installed and does not run.
    pub service_seconds: u64,
    /// Seconds for Sysprep as a whole.
    pub sysprep_seconds: u64,
    /// Seconds without a Sysprep process and without its result.
    pub gone_seconds: u64,
    /// Seconds between two looks, as in the service's script.
    pub pause_seconds: u64,
}

impl Default for SysprepLimits {
    fn default() -> Self {
        Self { service_seconds: 300, sysprep_seconds: 3600, gone_seconds: 60, pause_seconds: 5 }
    }
}

/// The text that tells whether there is an override: its answer is a [`Deprovisioning`].
pub fn lookup() -> String {
    lookup_at(OVERRIDE)
}

fn lookup_at(path: &str) -> String {
    let values = [("Path", Value::Text(path)), ("Most", Value::Number(MOST_SHOWN))];
    fill(include_str!("deprovision_lookup.ps1"), &values)
}

/// The override, if there is one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Deprovisioning {
    pub there: bool,
    /// For the log.
    pub text: Option<String>,
}

impl Deprovisioning {
    /// The answer of [`lookup`].
    pub fn parse(stdout: &str) -> Option<Self> {
        answers(stdout).next_back()
    }
}

/// The command line that runs the override, untouched.
pub fn override_command() -> Option<String> {
    Some(call_command(&GuestPath::new(OVERRIDE)?, None))
}

/// The script that runs where there is no override. Ends with 0 when Windows is generalized; see [`failure`].
pub fn default_script(limits: &SysprepLimits) -> String {
    let text = [include_str!("deprovision_default.ps1"), include_str!("sysprep_watch.ps1")].concat();
    let mut values = vec![("ServiceSeconds", Value::Number(limits.service_seconds))];
    values.extend(watch_values(limits));
    fill(&text, &values)
}

/// The script that waits until Windows is generalized, after an override has run: it may not have waited itself.
pub fn watch(limits: &SysprepLimits) -> String {
    fill(include_str!("sysprep_watch.ps1"), &watch_values(limits))
}

fn watch_values(limits: &SysprepLimits) -> [(&'static str, Value<'static>); 4] {
    [
        ("SysprepSeconds", Value::Number(limits.sysprep_seconds)),
        ("GoneSeconds", Value::Number(limits.gone_seconds)),
        ("PauseSeconds", Value::Number(limits.pause_seconds)),
        ("TailLines", Value::Number(TAIL_LINES)),
    ]
}

/// Why [`default_script`] or [`watch`] ended with `code`; `None` for success. The log has the end of Sysprep's own.
pub fn failure(code: i32) -> Option<String> {
    Some(match code {
        0 => return None,
        20 => "Sysprep left the image state IMAGE_STATE_UNDEPLOYABLE".to_owned(),
        21 => "Sysprep ended and Windows is not generalized".to_owned(),
        22 => "Sysprep did not end in time".to_owned(),
        23 => "this Windows has no Sysprep".to_owned(),
        code => format!("the deprovisioning script ended with {code}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn the_default_has_the_references_order() {
        let script = default_script(&SysprepLimits::default());
        let order = [
            "'RdAgent'",
            "'WindowsAzureTelemetryService'",
            "'WindowsAzureGuestAgent'",
            ">>> Sysprepping VM ...",
            r"System32\Sysprep\unattend.xml",
            "/oobe /generalize /quiet /quit",
            "IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE",
            ">>> Sysprep complete ...",
        ];
        let places: Vec<_> =
            order.iter().map(|text| script.find(text).unwrap_or_else(|| panic!("{text}"))).collect();
        assert!(places.is_sorted(), "{places:?}");
        expect![[r#"
            $ServiceSeconds = 300
            $SysprepSeconds = 3600
            $GoneSeconds = 60
            $PauseSeconds = 5
            $TailLines = 40"#]]
        .assert_eq(&script.lines().take(5).collect::<Vec<_>>().join("\n"));
    }

    #[test]
    fn the_override_is_called_by_its_path() {
        let command = override_command().unwrap();
        assert!(command.contains(r"& 'c:\DeprovisioningScript.ps1'; exit $LastExitCode"), "{command}");
        assert!(lookup().starts_with("$Path = 'c:\\DeprovisioningScript.ps1'\n"));
    }

    #[test]
    fn ends() {
        assert_eq!(failure(0), None);
        assert!(failure(20).unwrap().contains("UNDEPLOYABLE"));
        assert!(failure(7).unwrap().contains("ended with 7"));
        let said = "kiln:{\"kind\":\"deprovision\",\"there\":true,\"text\":\"a\\nb\"}";
        assert_eq!(
            Deprovisioning::parse(said),
            Some(Deprovisioning { there: true, text: Some("a\nb".into()) })
        );
    }
}

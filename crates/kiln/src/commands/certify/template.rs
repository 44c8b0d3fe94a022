//! The template of a certification: every customizer that a Windows has, in each of its variants.
//!
//! Each step leaves a line in one file, in its own way; the last one reads them all, so that a step that did nothing is
//! seen. Texts keep to what any Windows since 2016 has, and need nothing of the outside but updates.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kiln_host::digest::{hex, sha256};
use kiln_host::publish::write_file;
use kiln_model::catalog::PlatformName;
use serde_json::{Value, json};

use crate::client::encode;

/// Name of the run's artifact, and of the template.
pub const NAME: &str = "certify-windows";
/// Only what is small, is there on most days and wants no restart: the classification "Definition Updates".
const UPDATES: &str = "IsInstalled=0 and CategoryIDs contains 'e0789628-ce08-4437-be74-2495b842f43b'";
/// An exit code that a script may have by `validExitCodes` only.
const ALLOWED: i32 = 3;

/// In the guest: what each step leaves a line in.
const LINES: &str = "c:/kiln-certify.txt";
/// What File puts there.
const PLACED: &str = "File\r\n";
const SCRIPT: &str = "Add-Content -LiteralPath 'c:/kiln-certify.txt' -Value 'scriptUri'\r\n\
                      Write-Output \"scriptUri: $env:PACKER_BUILD_NAME $env:PACKER_BUILDER_TYPE\"\r\nexit 3\r\n";

/// What a certification puts into a guest from outside.
#[derive(Debug)]
pub struct Inputs {
    script: PathBuf,
    file: PathBuf,
}

impl Inputs {
    /// Puts them into `folder`, where they may stay: they are always the same.
    pub fn place(folder: &Path) -> anyhow::Result<Self> {
        let inputs = Self { script: folder.join("script.ps1"), file: folder.join("file.txt") };
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for (path, text) in [(&inputs.script, SCRIPT), (&inputs.file, PLACED)] {
            write_file(path, text.as_bytes(), 0o600)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(inputs)
    }
}

/// A template for the base image that `platform` and `version` name.
pub fn template(platform: &PlatformName, version: &str, inputs: &Inputs, updates: Option<&str>) -> Value {
    let line = |text: &str| format!("Add-Content -LiteralPath '{LINES}' -Value '{text}'");
    let who = r#"Write-Output "$env:USERNAME on $env:COMPUTERNAME""#;
    json!({
        "type": "Microsoft.VirtualMachineImages/imageTemplates",
        "apiVersion": "2024-02-01",
        "location": "certify",
        "properties": {
            // What the service allows at most: a first boot and updates take long, an emulated processor longer.
            "buildTimeoutInMinutes": 960,
            "vmProfile": { "vmSize": "Standard_B2s" },
            "source": {
                "type": "PlatformImage",
                "publisher": platform.publisher,
                "offer": platform.offer,
                "sku": platform.sku,
                "version": version,
            },
            "customize": [
                {
                    "type": "File", "name": "File", "sourceUri": address(&inputs.file), "destination": LINES,
                    "sha256Checksum": hex(&sha256(PLACED.as_bytes())),
                },
                {
                    "type": "PowerShell", "name": "inline",
                    "inline": [line("inline"), who, "Write-Output 'h\u{e4}user'", "Write-Error 'ends nothing'"],
                },
                {
                    "type": "PowerShell", "name": "scriptUri", "scriptUri": address(&inputs.script),
                    "sha256Checksum": hex(&sha256(SCRIPT.as_bytes())), "validExitCodes": [ALLOWED],
                },
                {
                    "type": "PowerShell", "name": "runElevated", "runElevated": true,
                    "inline": [
                        line("runElevated"), who, "1..200 | ForEach-Object { Write-Output \"line $_\" }",
                        "[Console]::Error.WriteLine('to standard error')",
                    ],
                },
                {
                    "type": "PowerShell", "name": "runAsSystem", "runElevated": true, "runAsSystem": true,
                    "inline": [line("runAsSystem"), who],
                },
                {
                    "type": "WindowsRestart", "name": "restart",
                    "restartCheckCommand": "echo restarted> c:\\kiln-certify-restarted.txt",
                },
                {
                    "type": "PowerShell", "name": "after the restart",
                    "inline": [
                        format!("$lines = (Get-Content -LiteralPath '{LINES}') -join ','"),
                        "Write-Output $lines",
                        "if ($lines -ne 'File,inline,scriptUri,runElevated,runAsSystem') { exit 7 }",
                        "if (-not (Test-Path -LiteralPath 'c:/kiln-certify-restarted.txt')) { exit 8 }",
                        format!("Remove-Item -LiteralPath '{LINES}', 'c:/kiln-certify-restarted.txt'"),
                    ],
                },
                {
                    "type": "WindowsUpdate", "name": "updates", "searchCriteria": updates.unwrap_or(UPDATES),
                    "filters": ["include:$true"], "updateLimit": 1,
                },
            ],
            "distribute": [{ "type": "VHD", "runOutputName": NAME }],
        },
    })
}

/// A file as a template names it.
fn address(path: &Path) -> String {
    let segments: Vec<String> = path.to_string_lossy().split('/').map(encode).collect();
    format!("file://{}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use kiln_model::catalog::{Arch, Catalog, DiskFormat, Generation, Login, Os, ServedName, StoredImage};
    use kiln_model::plan::{BuildPlan, CustomizerAction, HostLimits, Script};
    use kiln_model::{CheckContext, Document, Sha256, check};

    use super::*;

    fn stored() -> StoredImage {
        let served = ServedName {
            publisher: "Contoso".to_owned(),
            offer: "windows".to_owned(),
            sku: "golden".to_owned(),
            generation: None,
        };
        StoredImage {
            name: "windows-2022".to_owned(),
            version: "20348.2700".to_owned(),
            platform: vec![served],
            os: Os::Windows,
            generation: Generation::V2,
            generations: vec![Generation::V2],
            arch: Arch::X86_64,
            login: Login::AnswerFile,
            format: DiskFormat::Qcow2,
            sha256: Sha256::from([7; 32]),
            virtual_size: 30 << 30,
            path: "/shelf/disk.qcow2".into(),
            stored_at: "2026-01-01T00:00:00Z".to_owned(),
        }
    }

    fn plan(updates: Option<&str>) -> BuildPlan {
        let folder = tempfile::tempdir().unwrap();
        // An address is not a path: blanks and the like are escaped in it.
        let inputs = Inputs::place(&folder.path().join("a place, with ä #")).unwrap();
        let image = stored();
        let text = template(&image.platform[0].name(), "20348.2700", &inputs, updates).to_string();
        let catalog = Catalog::default().with_stored(std::slice::from_ref(&image));
        let document = Document::parse(text.as_bytes(), NAME).unwrap();
        let checked = check(&document, &CheckContext { catalog: &catalog, azure: false });
        assert!(!checked.problems.has_errors(), "{}", checked.problems);
        let limits = HostLimits { cpus: 4, memory_mib: 16_384 };
        let plan = checked.template.unwrap().plan(&image, limits).unwrap();
        for input in plan.customizers.iter().filter_map(|customizer| customizer.input()) {
            let kiln_model::plan::InputLocation::File(path) = &input.location else { panic!("{input:?}") };
            let digest = sha256(&std::fs::read(path).unwrap());
            assert_eq!(input.sha256, Some(digest.into()), "{}", path.display());
        }
        plan
    }

    #[test]
    fn it_is_valid_and_has_every_variant() {
        let plan = plan(None);
        assert_eq!(plan.template_name, NAME);
        let actions: Vec<&CustomizerAction> =
            plan.customizers.iter().map(|customizer| &customizer.action).collect();
        let some = |is: fn(&CustomizerAction) -> bool| actions.iter().any(|action| is(action));
        use CustomizerAction::{File, PowerShell, WindowsRestart, WindowsUpdate};
        assert!(some(|action| matches!(
            action,
            PowerShell { script: Script::Inline(_), run_elevated: false, run_as_system: false, .. }
        )));
        assert!(some(|action| matches!(
            action,
            PowerShell { script: Script::Fetched(input), valid_exit_codes, .. }
                if input.sha256.is_some() && valid_exit_codes == &[ALLOWED]
        )));
        assert!(some(|action| matches!(action, PowerShell { run_elevated: true, run_as_system: false, .. })));
        assert!(some(|action| matches!(action, PowerShell { run_elevated: true, run_as_system: true, .. })));
        assert!(some(|action| matches!(action, File { source, .. } if source.sha256.is_some())));
        assert!(some(
            |action| matches!(action, WindowsRestart { check_command, .. } if !check_command.is_empty())
        ));
        assert!(some(|action| matches!(action, WindowsUpdate { limit: 1, .. })));
        assert_eq!(plan.distributors.len(), 1);
    }

    #[test]
    fn updates_are_the_users_choice() {
        let wanted = "IsInstalled=0 and Type='Software'";
        let plan = plan(Some(wanted));
        let found = plan.customizers.iter().find_map(|customizer| match &customizer.action {
            CustomizerAction::WindowsUpdate { search_criteria, .. } => Some(search_criteria.clone()),
            _ => None,
        });
        assert_eq!(found.as_deref(), Some(wanted));
    }
}

//! What doctor found, as data and as text.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::ui::Paint;

/// The newest format of `kiln doctor --json`.
const DOCTOR_FORMAT: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Good,
    /// A build works, but not everything, or not fast.
    Attention,
    /// No build can work.
    Missing,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A stable word: `accelerator`, `qemu`, `memory`.
    pub name: &'static str,
    pub verdict: Verdict,
    /// One sentence.
    pub text: String,
}

#[derive(Debug, Default)]
pub struct Findings {
    list: Vec<Finding>,
    /// Debian packages that are lacking.
    packages: BTreeSet<&'static str>,
    /// The command that installs them, where one is known.
    install: Option<String>,
}

impl Findings {
    pub fn add(&mut self, name: &'static str, verdict: Verdict, text: impl Into<String>) {
        self.list.push(Finding { name, verdict, text: text.into() });
    }

    pub fn lacks(&mut self, package: &'static str) {
        self.packages.insert(package);
    }

    pub fn packages(&self) -> Vec<&'static str> {
        self.packages.iter().copied().collect()
    }

    pub fn install_with(&mut self, command: String) {
        self.install = Some(command);
    }

    /// Nothing is missing that every build needs.
    pub fn can_build(&self) -> bool {
        self.list.iter().all(|finding| finding.verdict != Verdict::Missing)
    }

    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct View<'a> {
            format: u32,
            can_build: bool,
            findings: &'a [Finding],
            missing_packages: Vec<&'static str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            install_command: Option<&'a str>,
        }
        let view = View {
            format: DOCTOR_FORMAT,
            can_build: self.can_build(),
            findings: &self.list,
            missing_packages: self.packages(),
            install_command: self.install.as_deref(),
        };
        // Our own types, with string keys: they always serialize.
        serde_json::to_string_pretty(&view).unwrap_or_default() + "\n"
    }

    pub fn lines(&self, paint: Paint) -> Vec<String> {
        let mut lines: Vec<String> = self
            .list
            .iter()
            .map(|Finding { name, verdict, text }| {
                let verdict = match verdict {
                    Verdict::Good => paint.good("good     "),
                    Verdict::Attention => paint.attention("attention"),
                    Verdict::Missing => paint.bad("missing  "),
                };
                format!("{verdict}  {name:<12}  {text}")
            })
            .collect();
        if let Some(command) = &self.install {
            lines.extend([
                String::new(),
                "What is missing is installed by:".to_owned(),
                format!("  {command}"),
            ]);
        } else if !self.packages.is_empty() {
            let packages = self.packages().join(" ");
            lines.extend([String::new(), format!("What is missing is called by Debian: {packages}")]);
        }
        lines.push(String::new());
        lines.push(if self.can_build() {
            "This machine can build images.".to_owned()
        } else {
            paint.bad("This machine cannot build images yet.")
        });
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn findings_read_as_text_and_as_json() {
        let mut findings = Findings::default();
        findings.add("memory", Verdict::Good, "8 GiB, 6 GiB of it free");
        findings.add("firmware", Verdict::Attention, "no UEFI firmware");
        assert!(findings.can_build());
        findings.add("qemu", Verdict::Missing, "no qemu-system-x86_64 on PATH");
        findings.lacks("qemu-system-x86");
        findings.lacks("ovmf");
        findings.install_with("sudo apt-get install ovmf qemu-system-x86".to_owned());
        assert!(!findings.can_build());
        expect![[r#"
            good       memory        8 GiB, 6 GiB of it free
            attention  firmware      no UEFI firmware
            missing    qemu          no qemu-system-x86_64 on PATH

            What is missing is installed by:
              sudo apt-get install ovmf qemu-system-x86

            This machine cannot build images yet."#]]
        .assert_eq(&findings.lines(Paint { on: false }).join("\n"));
        expect![[r#"
            {
              "format": 1,
              "canBuild": false,
              "findings": [
                {
                  "name": "memory",
                  "verdict": "good",
                  "text": "8 GiB, 6 GiB of it free"
                },
                {
                  "name": "firmware",
                  "verdict": "attention",
                  "text": "no UEFI firmware"
                },
                {
                  "name": "qemu",
                  "verdict": "missing",
                  "text": "no qemu-system-x86_64 on PATH"
                }
              ],
              "missingPackages": [
                "ovmf",
                "qemu-system-x86"
              ],
              "installCommand": "sudo apt-get install ovmf qemu-system-x86"
            }
        "#]]
        .assert_eq(&findings.to_json());
    }
}

//! What led to a state of the machine, as a chain of digests.
//!
//! ```text
//!   base, disk, machine, first boot ─► key 0 ─ customizer 1 ─► key 1 ─ … ─► key n ─ generalizing ─► key of the image
//! ```
//! INVARIANT: a key has every byte that led to the state, and nothing else: the contents of scripts and files and not
//! their addresses, a customizer's place in the order and not its name. What QEMU is like is not in it: a disk outlives a
//! QEMU, a memory file does not (see [`kiln_qemu::portrait`]).

use kiln_host::digest::sha256;
use kiln_library::StepInput;
use kiln_model::Sha256;
use kiln_model::plan::{BuildPlan, Customizer, CustomizerAction, Script};

use crate::generalize;
use crate::seed;

/// Raised when what Kiln does around customizers leaves something else in the guest.
const REVISION: &str = "1";

/// One link of the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Where the state comes from: `the first boot`, `Shell "install"`.
    pub title: String,
    pub ingredients: Vec<StepInput>,
    pub key: Sha256,
    /// It may have taken something from the network, which no key has.
    pub networked: bool,
}

/// The states of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// After the first boot, then after each customizer.
    pub links: Vec<Link>,
    /// Of the finished image.
    pub image: Sha256,
}

impl Chain {
    /// Of a plan, and what its inputs are, by the customizer's position.
    pub fn of(plan: &BuildPlan, inputs: &dyn Fn(u32) -> Option<Sha256>) -> Self {
        let source = &plan.source;
        let first = vec![
            text("base image", &source.sha256.to_string()),
            text("disk size", &plan.machine.disk_bytes.to_string()),
            text("generation", &format!("{:?}", source.generation)),
            text("architecture", &format!("{:?}", source.arch)),
            text("processors", &plan.machine.vcpus.to_string()),
            text("memory", &plan.machine.memory_mib.to_string()),
            text("first boot", &seed::fingerprint()),
            text("Kiln's own steps", REVISION),
        ];
        let mut links = vec![Link {
            title: "the first boot".to_owned(),
            key: key(None, &first),
            ingredients: first,
            networked: false,
        }];
        for customizer in &plan.customizers {
            let ingredients = ingredients(customizer, inputs);
            let before = links.last().map(|link| link.key);
            links.push(Link {
                title: customizer.title(),
                key: key(before, &ingredients),
                ingredients,
                networked: !matches!(customizer.action, CustomizerAction::File { .. }),
            });
        }
        let last = [
            text("deprovisioning", plan.deprovision.as_deref().unwrap_or_default()),
            text("clean-up", &generalize::fingerprint()),
        ];
        Self { image: key(links.last().map(|link| link.key), &last), links }
    }

    /// The customizers, without the first boot.
    pub fn customizers(&self) -> usize {
        self.links.len() - 1
    }
}

fn ingredients(customizer: &Customizer, inputs: &dyn Fn(u32) -> Option<Sha256>) -> Vec<StepInput> {
    // Every input was fetched; one that was not has no machine to run in.
    let fetched = || inputs(customizer.position).unwrap_or(Sha256::from_bytes([0; 32]));
    let script = |script: &Script| match script {
        Script::Inline(lines) => text("script", &lines.join("\n")),
        Script::Fetched(_) => StepInput { what: "script".to_owned(), sha256: fetched() },
    };
    // A fetched script of the same text runs otherwise than an inline one.
    let way = |script: &Script| match script {
        Script::Inline(_) => "inline",
        Script::Fetched(_) => "fetched",
    };
    let kind = |more: &str| text("kind", &format!("{} {more}", customizer.kind()));
    match &customizer.action {
        CustomizerAction::Shell { script: what } => vec![kind(way(what)), script(what)],
        CustomizerAction::PowerShell { script: what, run_elevated, run_as_system, valid_exit_codes } => vec![
            kind(way(what)),
            script(what),
            text("options", &format!("{run_elevated} {run_as_system} {valid_exit_codes:?}")),
        ],
        CustomizerAction::File { source, destination } => {
            let name = if destination.ends_with('/') { source.location.file_name() } else { String::new() };
            vec![
                kind(""),
                StepInput { what: "file".to_owned(), sha256: fetched() },
                text("destination", &format!("{destination}{name}")),
            ]
        }
        CustomizerAction::WindowsRestart { command, check_command, timeout_ms } => {
            vec![kind(""), text("options", &format!("{command:?} {check_command:?} {timeout_ms}"))]
        }
        CustomizerAction::WindowsUpdate { search_criteria, filters, limit } => {
            vec![kind(""), text("options", &format!("{search_criteria:?} {filters:?} {limit}"))]
        }
    }
}

fn text(what: &str, value: &str) -> StepInput {
    StepInput { what: what.to_owned(), sha256: Sha256::from_bytes(sha256(value.as_bytes())) }
}

fn key(before: Option<Sha256>, ingredients: &[StepInput]) -> Sha256 {
    let mut bytes = b"kiln-checkpoint-1\n".to_vec();
    bytes.extend(before.map_or([0; 32], |key| *key.as_bytes()));
    for part in ingredients {
        bytes.extend(part.what.as_bytes());
        bytes.push(0);
        bytes.extend(part.sha256.as_bytes());
    }
    Sha256::from_bytes(sha256(&bytes))
}

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
use kiln_model::catalog::{Generation, Login};
use kiln_model::plan::{BuildPlan, Customizer, CustomizerAction, Script};
use kiln_model::policy::CachePolicy;

use crate::boot;
use crate::generalize;

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
    /// What it did is as of the day it ran: nobody reuses that without being told.
    pub updates: bool,
}

/// The states of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// After the first boot, then after each customizer.
    pub links: Vec<Link>,
    /// Of the finished image.
    pub image: Sha256,
    /// A disk that was kept after the first boot boots, and saves that. cloud-init does its work again.
    pub first_boot_on_disk: bool,
}

impl Chain {
    /// Of a plan, and what its inputs are, by the customizer's position.
    pub fn of(plan: &BuildPlan, inputs: &dyn Fn(u32) -> Option<Sha256>) -> Self {
        let source = &plan.source;
        let mut first = vec![
            text("base image", &source.sha256.to_string()),
            text("disk size", &plan.machine.disk_bytes.to_string()),
            text("generation", &format!("{:?}", source.generation)),
            text("architecture", &format!("{:?}", source.arch)),
            text("processors", &plan.machine.vcpus.to_string()),
            text("memory", &plan.machine.memory_mib.to_string()),
            text("first boot", &boot::fingerprint(&source.login)),
            text("Kiln's own steps", REVISION),
        ];
        let windows = !matches!(source.login, Login::CloudInit);
        if windows {
            let with = source.generation == Generation::V2;
            first.push(text("Secure Boot and TPM", &with.to_string()));
        }
        let mut links = vec![Link {
            title: "the first boot".to_owned(),
            key: key(None, &first),
            ingredients: first,
            networked: false,
            updates: false,
        }];
        for customizer in &plan.customizers {
            let ingredients = ingredients(customizer, inputs);
            let before = links.last().map(|link| link.key);
            links.push(Link {
                title: customizer.title(),
                key: key(before, &ingredients),
                ingredients,
                networked: !matches!(customizer.action, CustomizerAction::File { .. }),
                updates: matches!(customizer.action, CustomizerAction::WindowsUpdate { .. }),
            });
        }
        let last = [
            text("deprovisioning", plan.deprovision.as_deref().unwrap_or_default()),
            text("clean-up", &generalize::fingerprint(&source.login)),
        ];
        let image = key(links.last().map(|link| link.key), &last);
        Self { image, links, first_boot_on_disk: windows }
    }

    /// The states from `link` on that other runs may come to and find kept, with what they are, as far as the policy keeps
    /// any. The finished image is the last.
    pub fn shared(&self, link: usize, policy: &CachePolicy) -> impl Iterator<Item = (Sha256, &str)> {
        let kept = |link: usize| policy.keeps(u32::try_from(link).unwrap_or(u32::MAX));
        let image =
            (link <= self.links.len() && kept(self.customizers())).then_some((self.image, "the image"));
        let states = self.links.iter().enumerate().skip(link).take_while(move |(link, _)| kept(*link));
        states.map(|(_, link)| (link.key, link.title.as_str())).chain(image)
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

#[cfg(test)]
mod tests {
    use kiln_model::catalog::{Credentials, Listener};
    use kiln_model::plan::{InputLocation, InputRef};

    use super::*;

    /// The plan that other tests hold: Shell inline, Shell fetched, PowerShell, File.
    fn plan() -> BuildPlan {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/golden/plan.json");
        BuildPlan::from_json(&std::fs::read_to_string(golden).unwrap()).unwrap()
    }

    fn inputs(position: u32) -> Option<Sha256> {
        Some(Sha256::from_bytes([u8::try_from(position).unwrap(); 32]))
    }

    /// From which link on the keys differ from those of the golden plan.
    fn first_changed(change: impl FnOnce(&mut BuildPlan)) -> Option<usize> {
        let mut changed = plan();
        change(&mut changed);
        differing(&Chain::of(&plan(), &inputs), &Chain::of(&changed, &inputs))
    }

    fn differing(one: &Chain, other: &Chain) -> Option<usize> {
        let at = one.links.iter().zip(&other.links).position(|(one, other)| one.key != other.key);
        // What follows a change has changed.
        if let Some(at) = at {
            assert!(one.links[at..].iter().zip(&other.links[at..]).all(|(one, other)| one.key != other.key));
            assert_ne!(one.image, other.image);
        }
        at
    }

    fn fetched(plan: &mut BuildPlan, url: &str) {
        let location = InputLocation::Url(url.to_owned());
        let script = Script::Fetched(InputRef { location, sha256: None });
        plan.customizers[1].action = CustomizerAction::Shell { script };
    }

    #[test]
    fn every_byte_that_leads_to_a_state_counts() {
        assert_eq!(first_changed(|plan| plan.source.sha256 = Sha256::from_bytes([1; 32])), Some(0));
        assert_eq!(first_changed(|plan| plan.machine.disk_bytes += 1 << 20), Some(0));
        assert_eq!(first_changed(|plan| plan.machine.vcpus = 1), Some(0));
        assert_eq!(first_changed(|plan| plan.machine.memory_mib = 1), Some(0));
        let inline = |lines: &[&str]| {
            let lines = lines.iter().map(|line| (*line).to_owned()).collect();
            CustomizerAction::Shell { script: Script::Inline(lines) }
        };
        assert_eq!(first_changed(|plan| plan.customizers[0].action = inline(&["a", "c"])), Some(1));
        assert_eq!(first_changed(|plan| plan.customizers[0].action = inline(&["a b"])), Some(1));
        assert_eq!(first_changed(|plan| plan.customizers[1].action = inline(&["a"])), Some(2));
        assert_eq!(first_changed(|plan| plan.customizers.swap(0, 1)), Some(1));
        let powershell = |plan: &mut BuildPlan| {
            let CustomizerAction::PowerShell { valid_exit_codes, .. } = &mut plan.customizers[2].action
            else {
                panic!("the third is a PowerShell customizer")
            };
            valid_exit_codes.push(4);
        };
        assert_eq!(first_changed(powershell), Some(3));
        let destination = |plan: &mut BuildPlan| {
            let CustomizerAction::File { destination, .. } = &mut plan.customizers[3].action else {
                panic!("the fourth is a File customizer")
            };
            *destination = "/tmp/g".to_owned();
        };
        assert_eq!(first_changed(destination), Some(4));
        let other =
            |position| if position == 2 { Some(Sha256::from_bytes([9; 32])) } else { inputs(position) };
        let (one, two) = (Chain::of(&plan(), &inputs), Chain::of(&plan(), &other));
        assert_eq!(differing(&one, &two), Some(2), "another script under the same address");
        let mut deprovisioned = plan();
        deprovisioned.deprovision = Some("other".to_owned());
        assert_ne!(one.image, Chain::of(&deprovisioned, &inputs).image);
    }

    #[test]
    fn names_and_addresses_do_not_count() {
        assert_eq!(first_changed(|plan| plan.customizers[0].name = "other".to_owned()), None);
        assert_eq!(first_changed(|plan| fetched(plan, "https://elsewhere/b.sh")), None);
        assert_eq!(first_changed(|plan| plan.template_name = "other".to_owned()), None);
        assert_eq!(first_changed(|plan| plan.distributors.clear()), None);
        assert_eq!(first_changed(|plan| plan.source.path = "/elsewhere".into()), None);
    }

    /// The same plan for another kind of guest.
    fn of(login: Login, generation: Generation) -> Chain {
        let mut plan = plan();
        plan.source.login = login;
        plan.source.generation = generation;
        Chain::of(&plan, &inputs)
    }

    #[test]
    fn each_way_in_has_a_first_boot_and_an_end_of_its_own() {
        let linux = of(Login::CloudInit, Generation::V2);
        let made = of(Login::AnswerFile, Generation::V2);
        let credentials = |user: &str| {
            let own = Credentials::new(user.into(), "/p".into(), Listener::Http, None).unwrap();
            of(Login::Credentials(own), Generation::V2)
        };
        let own = credentials("golden");
        let (other, first) = (credentials("other"), of(Login::AnswerFile, Generation::V1));
        assert!(!linux.first_boot_on_disk && made.first_boot_on_disk && own.first_boot_on_disk);
        for (one, other) in [(&linux, &made), (&linux, &own), (&made, &own), (&own, &other), (&made, &first)]
        {
            assert_eq!(differing(one, other), Some(0));
        }
        // The passwords of an account are made for each run.
        assert_eq!(made, of(Login::AnswerFile, Generation::V2));
        let names: Vec<&str> = made.links[0].ingredients.iter().map(|part| part.what.as_str()).collect();
        assert!(names.contains(&"Secure Boot and TPM"), "{names:?}");
        assert!(!linux.links[0].ingredients.iter().any(|part| part.what == "Secure Boot and TPM"));
    }

    #[test]
    fn updates_are_known_for_what_they_are() {
        let mut plan = plan();
        plan.customizers[0].action = CustomizerAction::WindowsUpdate {
            search_criteria: String::new(),
            filters: Vec::new(),
            limit: 10,
        };
        let chain = Chain::of(&plan, &inputs);
        let marks: Vec<_> = chain.links.iter().map(|link| (link.networked, link.updates)).collect();
        assert_eq!(marks[..3], [(false, false), (true, true), (true, false)]);
    }

    #[test]
    fn a_file_takes_no_age_and_scripts_do() {
        let networked: Vec<bool> =
            Chain::of(&plan(), &inputs).links.iter().map(|link| link.networked).collect();
        assert_eq!(networked, [false, true, true, true, false]);
    }

    #[test]
    fn what_others_may_wait_for_ends_where_nothing_is_kept() {
        let chain = Chain::of(&plan(), &inputs);
        let titles = |policy: &CachePolicy, from: usize| -> Vec<String> {
            chain.shared(from, policy).map(|(_, title)| title.to_owned()).collect()
        };
        let all = CachePolicy::default();
        assert_eq!(titles(&all, 3), ["PowerShell #3", "File #4", "the image"]);
        assert_eq!(titles(&all, 5), ["the image"]);
        assert_eq!(titles(&all, 6), [""; 0]);
        let secret =
            CachePolicy::read("customizers: [{position: 3, secret: true}]", &plan().customizers).unwrap();
        assert_eq!(titles(&secret, 1), ["Shell \"one\"", "Shell #2"]);
        assert_eq!(titles(&secret, 3), [""; 0]);
    }
}

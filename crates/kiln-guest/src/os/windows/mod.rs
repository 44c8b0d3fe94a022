//! What a Windows guest is told: every PowerShell text that is sent to one, and what its answers mean.
//!
//! ```text
//!   values ──► fill (text) ──► the final text ──► (WinRM, or a file)  ──► Windows
//!                                                                            │ exit code, lines "kiln:{…}"
//!   meaning  ◄── parse, state machines (task, restart, update, …)  ◄─────────┘
//! ```
//!
//! | module | texts | what for |
//! |--|--|--|
//! | [`script`] | inline, loader | the PowerShell customizer as the service has it; how our own texts are run |
//! | [`place`] | place | a step's own small files, all at once |
//! | [`medium`] | medium, upload_place | a file of any size from the machine's drive |
//! | [`task`] | task_register, _runner, _follow, _remove | elevated, and as SYSTEM: no line and no exit code lost |
//! | [`facts`] | boot_id, flush, facts, extend | questions and small acts |
//! | [`renew`] | renew | a Windows that was kept goes on: clock, passwords |
//! | [`restart`] | – | WindowsRestart: proven by the boot id |
//! | [`update`] | update_round | WindowsUpdate: rounds, restarts, progress guard |
//! | [`sysprep`] | deprovision_lookup, deprovision_default, sysprep_watch | generalizing |
//! | [`proof`] | – | which guest it was, in the product's words for what is proven |
//! | [`bootstrap`] | Unattend.xml, bootstrap, undo_register, undo, verdict | into a generalized Windows and out again |
//!
//! All of it is pure: no connection, no clock, no file. Each text is a file of its own beside its module, and names
//! in its header the values that are assigned ahead of it; [`literal`] makes those safe. Each holds to the language
//! of Windows PowerShell 5.1 and to ASCII.
//!
//! How they fail: by an exit code with a meaning, and a line that says why. Every loop in them is bounded. What a
//! guest answers is untrusted: parsed, compared, shown, never obeyed.
//!
//! What is proven: each text was run, branch by branch, in a PowerShell 7 engine on Linux, with doubles for what is
//! Windows' own. None has run on a Windows.

pub mod bootstrap;
pub mod facts;
pub mod medium;
pub mod place;
pub mod proof;
pub mod renew;
pub mod restart;
pub mod script;
pub mod sysprep;
pub mod task;
mod text;
pub mod update;

pub use text::{literal, secret_line, xml_escape};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::script::GuestPath;
    use super::*;

    /// The names after "Values:" in the comments of a text.
    fn announced(text: &str) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let mut listing = false;
        for line in text.lines() {
            let Some(comment) = line.strip_prefix('#') else {
                listing = false;
                continue;
            };
            let list =
                if listing { Some(comment) } else { comment.split_once("Values:").map(|(_, list)| list) };
            if let Some(list) = list {
                listing = true;
                let words = list.split(|c: char| !c.is_ascii_alphanumeric() && c != '$');
                names.extend(words.filter_map(|word| word.strip_prefix('$')).map(str::to_owned));
            }
        }
        names
    }

    /// What a text says it takes, it is given, and uses; nothing else is given.
    #[test]
    fn values_are_those_the_text_announces() {
        let folder = || GuestPath::new(r"C:\t").unwrap();
        let task = task::Task::new("t", folder());
        let limits = sysprep::SysprepLimits::default();
        let texts = [
            task.runner("p", "a"),
            task.register(task::RunAs::System).unwrap(),
            task.follow(&task::Following::default(), 1),
            task.remove(),
            facts::boot_id(),
            facts::flush(),
            facts::facts(),
            facts::extend(),
            renew::renew(std::time::SystemTime::UNIX_EPOCH, Some("u")),
            medium::take("kiln-1/2", r"C:\t\a", "00", 1),
            place::place(Some(&folder()), &[(&folder(), b"x")]),
            update::round_script(&update::UpdateChoice::default(), &[], &update::RoundLimits::default()),
            sysprep::lookup(),
            sysprep::default_script(&limits),
            sysprep::watch(&limits),
            String::from_utf8(bootstrap::bootstrap("n")).unwrap(),
            bootstrap::register_undo("n", bootstrap::Undoing::Bootstrap { user: "u" }).unwrap(),
            bootstrap::undo("n", bootstrap::Undoing::Bootstrap { user: "u" }),
            bootstrap::verdict(bootstrap::Verdict::Keep),
        ];
        for text in texts {
            let given = text.lines().map_while(|line| line.strip_prefix('$')?.split_once(" = "));
            let given: BTreeSet<String> = given.map(|(name, _)| name.to_owned()).collect();
            // A value may have line feeds in none of our texts: the assignments are the first lines.
            assert_eq!(given, announced(&text), "{text}");
            for name in given {
                let used =
                    text.lines().filter(|line| !line.starts_with('#') && line.contains(&format!("${name}")));
                // The first is the assignment.
                assert!(used.count() > 1, "{name} is not used in:\n{text}");
            }
        }
    }
}

//! The WindowsUpdate customizer: rounds of updates and restarts, each bounded.
//!
//! ```text
//!   RunRound ── 0 nothing more ─────────────────────────────► Done
//!      ▲  │ ├── 102 tried, no restart wanted ──► RunRound
//!      │  │ └── 101 restart wanted ────────────► Restart ──┐
//!      │  └── 103… cannot go on ─────────────────────────► Failed
//!      └───────────────────────────────────────────────────┘
//! ```
//!
//! A round is `update_round.ps1`, run as SYSTEM by a [`Task`](super::task::Task): Windows refuses the downloader, the
//! installer and the EULA over a remote logon. A restart is a [`Restart`](super::restart::Restart).
//!
//! **Progress guard.** Windows offers an update that fails again and again. One that failed in two rounds, or was
//! installed in three and is still offered, is left out with a warning, or fails the step ([`Stuck`]). Rounds in a
//! row that install nothing and leave nothing new out are counted too, and so are all rounds.
//!
//! Pure: the caller runs rounds and restarts, and hands in what they said.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::text::{Value, answer, fill};

/// The default of `searchCriteria`.
pub const DEFAULT_CRITERIA: &str = "BrowseOnly=0 and IsInstalled=0";
/// The default of `updateLimit`, per round.
pub const DEFAULT_LIMIT: u64 = 1000;

/// 0x80240016, WU_E_INSTALL_NOT_ALLOWED: what the 2020-02-14 reference advises when it ends a build.
const NOT_ALLOWED_ADVICE: &str = "The Windows Update customizer may fail if there are any outstanding Windows reboots, \
     or application installations still running. Consider adding in a Windows Restart customizer before it, and/or \
     allowing applications enough time to complete their installations, with sleep or wait commands in the inline \
     commands or scripts (https://docs.microsoft.com/powershell/module/microsoft.powershell.utility/start-sleep), \
     before running Windows Update.";

/// One of the customizer's `filters`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// `include:`; otherwise `exclude:`.
    pub include: bool,
    /// A PowerShell expression over `$_`, the update.
    pub expression: String,
}

impl Filter {
    /// Reads `include:EXPRESSION` or `exclude:EXPRESSION`. `None` for anything else: a bare expression says nothing
    /// about what is to be done.
    pub fn parse(text: &str) -> Option<Self> {
        let (action, expression) = text.split_once(':')?;
        let include = match action.trim().to_ascii_lowercase().as_str() {
            "include" => true,
            "exclude" => false,
            _ => return None,
        };
        Some(Self { include, expression: expression.trim().to_owned() })
    }
}

/// What is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateChoice {
    pub criteria: String,
    /// The first that is true decides; none is like `include:$true`.
    pub filters: Vec<Filter>,
    /// Updates per round.
    pub limit: u64,
}

impl Default for UpdateChoice {
    fn default() -> Self {
        Self { criteria: DEFAULT_CRITERIA.to_owned(), filters: Vec::new(), limit: DEFAULT_LIMIT }
    }
}

/// How long a round waits for what, inside the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundLimits {
    pub search_tries: u64,
    pub download_tries: u64,
    /// Seconds another installation may take until ours may begin (0x80240016).
    pub busy_seconds: u64,
    /// Seconds component servicing may work on before a restart.
    pub servicing_seconds: u64,
    /// Seconds between two looks: Windows Update has no event for a remote waiter.
    pub pause_seconds: u64,
}

impl Default for RoundLimits {
    fn default() -> Self {
        Self {
            search_tries: 10,
            download_tries: 5,
            busy_seconds: 1800,
            servicing_seconds: 900,
            pause_seconds: 5,
        }
    }
}

/// The text of one round, for the task's script.
pub fn round_script(choice: &UpdateChoice, left_out: &[String], limits: &RoundLimits) -> String {
    let all = [Filter { include: true, expression: "$true".to_owned() }];
    let filters = if choice.filters.is_empty() { &all[..] } else { &choice.filters };
    let actions: Vec<String> =
        filters.iter().map(|filter| if filter.include { "include" } else { "exclude" }.to_owned()).collect();
    let tests: Vec<String> = filters.iter().map(|filter| filter.expression.clone()).collect();
    fill(
        include_str!("update_round.ps1"),
        &[
            ("Criteria", Value::Text(&choice.criteria)),
            ("FilterActions", Value::List(&actions)),
            ("FilterTests", Value::List(&tests)),
            ("Limit", Value::Number(choice.limit)),
            ("LeftOut", Value::List(left_out)),
            ("SearchTries", Value::Number(limits.search_tries)),
            ("DownloadTries", Value::Number(limits.download_tries)),
            ("BusySeconds", Value::Number(limits.busy_seconds)),
            ("ServicingSeconds", Value::Number(limits.servicing_seconds)),
            ("PauseSeconds", Value::Number(limits.pause_seconds)),
        ],
    )
}

/// What a round says in one of its lines.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum RoundAnswer {
    /// What became of one update.
    Update(UpdateResult),
    /// For the log.
    Note { text: String },
    /// The round's last words; the exit code counts, not the copy in the line.
    Round { text: String },
}

/// What became of one update in one round.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct UpdateResult {
    /// `install`, `download` or `EULA`.
    pub stage: String,
    pub id: String,
    /// For instance `KB5031364`; empty for updates without an article.
    pub kb: String,
    pub title: String,
    /// `OperationResultCode` of the Windows Update Agent, in words.
    pub result: String,
    /// HRESULT, hexadecimal.
    pub code: String,
    pub restart: bool,
}

impl UpdateResult {
    fn is_installed(&self) -> bool {
        self.stage == "install" && self.result.starts_with("succeeded")
    }

    /// The line for the log, when the round's own line is not shown.
    pub fn line(&self) -> String {
        let kb = if self.kb.is_empty() { "no KB" } else { &self.kb };
        let restart = if self.restart { ", wants a restart" } else { "" };
        format!("{kb} {}: {} {} ({}){restart}", self.title, self.stage, self.result, self.code)
    }
}

/// A line of a round's standard output, if it is an answer.
pub fn round_answer(line: &str) -> Option<RoundAnswer> {
    answer(line)
}

/// What to do with an update that gets nowhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Stuck {
    /// Go on without it, with a warning.
    #[default]
    LeaveOut,
    Fail,
}

/// Bounds of the whole step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpdateLimits {
    pub rounds: u32,
    /// Rounds in a row without an update installed and none newly left out.
    pub vain_rounds: u32,
    /// Rounds in which one update may fail.
    pub failures: u32,
    /// Rounds in which one update may be installed.
    pub installs: u32,
    pub stuck: Stuck,
}

impl Default for UpdateLimits {
    fn default() -> Self {
        Self { rounds: 40, vain_rounds: 3, failures: 2, installs: 3, stuck: Stuck::LeaveOut }
    }
}

/// What the caller does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpdateStep {
    /// Run [`round_script`] with [`Updates::left_out`], then [`Updates::round_ended`].
    RunRound,
    /// Restart the machine, then [`Updates::restarted`].
    Restart,
    Done,
    Failed(String),
}

/// Lines for the log, then the next step.
pub type UpdateNext = (Vec<String>, UpdateStep);

/// All rounds of one WindowsUpdate step.
#[derive(Debug, Clone)]
pub struct Updates {
    limits: UpdateLimits,
    rounds: u32,
    vain: u32,
    failed: BTreeMap<String, u32>,
    installed: BTreeMap<String, u32>,
    left_out: Vec<String>,
}

impl Updates {
    /// Begins with [`UpdateStep::RunRound`].
    pub fn new(limits: UpdateLimits) -> Self {
        Self {
            limits,
            rounds: 0,
            vain: 0,
            failed: BTreeMap::new(),
            installed: BTreeMap::new(),
            left_out: Vec::new(),
        }
    }

    /// Identities of the updates that are not tried any more.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// The restart that was asked for is over.
    pub fn restarted(&self) -> UpdateStep {
        UpdateStep::RunRound
    }

    /// A round's task died, or its machine restarted under it: nothing is known of what it did.
    pub fn round_lost(&mut self, restarted: bool) -> UpdateNext {
        let log = vec!["the round of updates ended without a result".to_owned()];
        let next = if restarted { UpdateStep::RunRound } else { UpdateStep::Restart };
        self.go_on(log, false, next)
    }

    /// A round ended with `code`, after these answers.
    pub fn round_ended(&mut self, code: i32, answers: &[RoundAnswer]) -> UpdateNext {
        let mut log = Vec::new();
        let last_words = answers.iter().rev().find_map(|answer| match answer {
            RoundAnswer::Round { text } => Some(text.as_str()),
            _ => None,
        });
        let last_words = last_words.unwrap_or("without a word");
        let results = answers.iter().filter_map(|answer| match answer {
            RoundAnswer::Update(result) => Some(result),
            _ => None,
        });
        let progress = match self.count(results, &mut log) {
            Ok(progress) => progress,
            Err(why) => return (log, UpdateStep::Failed(why)),
        };
        match code {
            0 => {
                log.push(match self.left_out.len() {
                    0 => "No Windows updates found".to_owned(),
                    left_out => format!("No Windows updates found, apart from {left_out} left out"),
                });
                (log, UpdateStep::Done)
            }
            // As an HRESULT: the scheduler of Windows Server 2012 shows an exit code of 101 so.
            101 | -2_147_024_795 => self.go_on(log, progress, UpdateStep::Restart),
            102 => self.go_on(log, progress, UpdateStep::RunRound),
            // Others came earlier: the ones that never come were just left out. Where nothing ever came, it is the
            // way to them that fails, and an image without its updates is not to be had by leaving all out.
            106 if progress => self.go_on(log, progress, UpdateStep::RunRound),
            105 => {
                log.push(last_words.to_owned());
                log.push(NOT_ALLOWED_ADVICE.to_owned());
                (log, UpdateStep::Failed(format!("another installation did not end: {last_words}")))
            }
            // What it was is in the last words.
            103 | 104 | 106..=108 => (log, UpdateStep::Failed(last_words.to_owned())),
            code => {
                (log, UpdateStep::Failed(format!("the round of updates ended with {code} ({last_words})")))
            }
        }
    }

    /// Counts what each update came to, and leaves out those that get nowhere. Answers whether there was progress.
    fn count<'a>(
        &mut self,
        results: impl Iterator<Item = &'a UpdateResult>,
        log: &mut Vec<String>,
    ) -> Result<bool, String> {
        // Several tries of a download in one round are one failure.
        let mut failed: BTreeMap<&str, &UpdateResult> = BTreeMap::new();
        let mut installed: BTreeSet<&str> = BTreeSet::new();
        let mut titles: BTreeMap<&str, &UpdateResult> = BTreeMap::new();
        for result in results {
            titles.insert(&result.id, result);
            if result.is_installed() {
                installed.insert(&result.id);
                failed.remove(result.id.as_str());
            } else {
                failed.insert(&result.id, result);
            }
        }
        let mut stuck = Vec::new();
        let mut progress = false;
        for id in installed {
            let times = self.installed.entry(id.to_owned()).or_default();
            *times += 1;
            // Installing the same again is not getting on.
            progress |= *times == 1;
            if *times >= self.limits.installs {
                stuck.push((id, format!("was installed in {times} rounds and is still offered")));
            }
        }
        for (id, result) in failed {
            let times = self.failed.entry(id.to_owned()).or_default();
            *times += 1;
            if *times >= self.limits.failures {
                stuck.push((id, format!("failed in {times} rounds, last with {}", result.code)));
            }
        }
        for (id, why) in stuck {
            let name =
                titles.get(id).map_or(id.to_owned(), |result| format!("{} {}", result.kb, result.title));
            match self.limits.stuck {
                Stuck::Fail => return Err(format!("the update {} {why}", name.trim())),
                Stuck::LeaveOut if self.left_out.iter().any(|known| known == id) => {}
                Stuck::LeaveOut => {
                    log.push(format!("warning: the update {} {why}: going on without it", name.trim()));
                    self.left_out.push(id.to_owned());
                    progress = true;
                }
            }
        }
        Ok(progress)
    }

    /// On to the next round, within the bounds.
    fn go_on(&mut self, log: Vec<String>, progress: bool, next: UpdateStep) -> UpdateNext {
        self.rounds += 1;
        self.vain = if progress { 0 } else { self.vain + 1 };
        if self.rounds >= self.limits.rounds {
            let why = format!("Windows Update came to no end in {} rounds", self.rounds);
            return (log, UpdateStep::Failed(why));
        }
        if self.vain >= self.limits.vain_rounds {
            let why = format!("Windows Update got no further in {} rounds in a row", self.vain);
            return (log, UpdateStep::Failed(why));
        }
        (log, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn result(id: &str, result: &str) -> RoundAnswer {
        RoundAnswer::Update(UpdateResult {
            stage: "install".into(),
            id: id.into(),
            kb: format!("KB{id}"),
            title: format!("Update {id}"),
            result: result.into(),
            code: "0x00000000".into(),
            restart: false,
        })
    }

    fn last(text: &str) -> RoundAnswer {
        RoundAnswer::Round { text: text.into() }
    }

    #[test]
    fn rounds_and_restarts_until_nothing_is_left() {
        let mut updates = Updates::new(UpdateLimits::default());
        assert_eq!(updates.round_ended(101, &[result("1", "succeeded")]).1, UpdateStep::Restart);
        assert_eq!(updates.restarted(), UpdateStep::RunRound);
        assert_eq!(updates.round_ended(102, &[result("2", "succeeded with errors")]).1, UpdateStep::RunRound);
        let (log, step) = updates.round_ended(0, &[last("No Windows updates found")]);
        assert_eq!((log, step), (vec!["No Windows updates found".to_owned()], UpdateStep::Done));
    }

    #[test]
    fn an_update_that_fails_each_round_is_left_out() {
        let mut updates = Updates::new(UpdateLimits::default());
        let both = [result("1", "succeeded"), result("2", "failed")];
        assert_eq!(updates.round_ended(101, &both), (vec![], UpdateStep::Restart));
        let (log, step) = updates.round_ended(102, &[result("2", "failed")]);
        expect![
            "warning: the update KB2 Update 2 failed in 2 rounds, last with 0x00000000: going on without it"
        ]
        .assert_eq(&log[0]);
        assert_eq!(step, UpdateStep::RunRound);
        assert_eq!(updates.left_out(), ["2"]);
        let (log, step) = updates.round_ended(0, &[]);
        assert_eq!(
            (log[0].as_str(), step),
            ("No Windows updates found, apart from 1 left out", UpdateStep::Done)
        );
    }

    #[test]
    fn a_download_that_never_comes_is_left_out_when_others_came() {
        let missing = || {
            let RoundAnswer::Update(one) = result("2", "failed") else { panic!() };
            RoundAnswer::Update(UpdateResult { stage: "download".into(), ..one })
        };
        let mut updates = Updates::new(UpdateLimits::default());
        let first = [missing(), missing(), result("1", "succeeded")];
        assert_eq!(updates.round_ended(102, &first).1, UpdateStep::RunRound);
        assert!(updates.left_out().is_empty(), "two tries in one round are one failure");
        assert_eq!(updates.round_ended(106, &[missing(), last("none of 1")]).1, UpdateStep::RunRound);
        assert_eq!(updates.left_out(), ["2"]);
        // From the start: nothing comes, so nothing is left out.
        let mut updates = Updates::new(UpdateLimits::default());
        let step = updates.round_ended(106, &[missing(), last("none of 1")]).1;
        assert_eq!(step, UpdateStep::Failed("none of 1".into()));
    }

    #[test]
    fn by_policy_it_fails_the_step() {
        let mut updates = Updates::new(UpdateLimits { stuck: Stuck::Fail, ..UpdateLimits::default() });
        assert_eq!(updates.round_ended(101, &[result("2", "failed")]).1, UpdateStep::Restart);
        let step = updates.round_ended(101, &[result("2", "failed")]).1;
        assert_eq!(
            step,
            UpdateStep::Failed("the update KB2 Update 2 failed in 2 rounds, last with 0x00000000".into())
        );
    }

    #[test]
    fn an_update_that_is_installed_for_ever_is_left_out() {
        let mut updates = Updates::new(UpdateLimits { vain_rounds: 9, ..UpdateLimits::default() });
        let again = [result("1", "succeeded")];
        assert_eq!(updates.round_ended(101, &again).1, UpdateStep::Restart);
        assert_eq!(updates.round_ended(101, &again).1, UpdateStep::Restart);
        assert!(updates.left_out().is_empty());
        let (log, _) = updates.round_ended(101, &again);
        assert!(log[0].contains("was installed in 3 rounds and is still offered"), "{log:?}");
        assert_eq!(updates.left_out(), ["1"]);
    }

    #[test]
    fn restarts_that_change_nothing_come_to_an_end() {
        let mut updates = Updates::new(UpdateLimits::default());
        assert_eq!(updates.round_ended(101, &[]).1, UpdateStep::Restart);
        assert_eq!(updates.round_ended(-2_147_024_795, &[]).1, UpdateStep::Restart);
        let step = updates.round_ended(101, &[]).1;
        assert_eq!(step, UpdateStep::Failed("Windows Update got no further in 3 rounds in a row".into()));
    }

    #[test]
    fn a_lost_round_is_bounded_too() {
        let mut updates = Updates::new(UpdateLimits::default());
        assert_eq!(updates.round_lost(true).1, UpdateStep::RunRound);
        assert_eq!(updates.round_lost(false).1, UpdateStep::Restart);
        assert!(matches!(updates.round_lost(true).1, UpdateStep::Failed(_)));
    }

    #[test]
    fn rounds_are_bounded_even_when_each_installs_something() {
        let mut updates = Updates::new(UpdateLimits::default());
        let mut rounds = 0;
        let why = loop {
            rounds += 1;
            match updates.round_ended(102, &[result(&rounds.to_string(), "succeeded")]).1 {
                UpdateStep::RunRound => {}
                UpdateStep::Failed(why) => break why,
                step => panic!("{step:?}"),
            }
        };
        assert_eq!((rounds, why.as_str()), (40, "Windows Update came to no end in 40 rounds"));
    }

    #[test]
    fn failures_keep_their_words_and_the_busy_one_has_the_advice() {
        let failed =
            |code, words: &str| Updates::new(UpdateLimits::default()).round_ended(code, &[last(words)]);
        assert_eq!(failed(103, "the search failed").1, UpdateStep::Failed("the search failed".into()));
        assert_eq!(failed(9, "x").1, UpdateStep::Failed("the round of updates ended with 9 (x)".into()));
        let (log, step) = failed(105, "COMException (0x80240016)");
        assert!(log[1].contains("adding in a Windows Restart"), "{log:?}");
        assert_eq!(
            step,
            UpdateStep::Failed("another installation did not end: COMException (0x80240016)".into())
        );
    }

    #[test]
    fn a_filter_has_an_action() {
        let include = |include, expression: &str| Some(Filter { include, expression: expression.into() });
        assert_eq!(Filter::parse("include:$true"), include(true, "$true"));
        assert_eq!(Filter::parse("exclude:$_.Title -like '*a:b*'"), include(false, "$_.Title -like '*a:b*'"));
        assert_eq!(Filter::parse("$_.BrowseOnly"), None);
        assert_eq!(Filter::parse("maybe:$true"), None);
    }

    #[test]
    fn the_script_gets_its_values() {
        let choice = UpdateChoice {
            filters: vec![Filter::parse("exclude:$_.Title -like '*Preview*'").unwrap()],
            ..UpdateChoice::default()
        };
        expect![[r#"
            $Criteria = 'BrowseOnly=0 and IsInstalled=0'
            $FilterActions = @('exclude')
            $FilterTests = @('$_.Title -like ''*Preview*''')
            $Limit = 1000
            $LeftOut = @('a')"#]]
        .assert_eq(
            &round_script(&choice, &["a".to_owned()], &RoundLimits::default())
                .lines()
                .take(5)
                .collect::<Vec<_>>()
                .join("\n"),
        );
        let script = round_script(&UpdateChoice::default(), &[], &RoundLimits::default());
        assert!(script.contains("$FilterActions = @('include')\n$FilterTests = @('$true')\n"));
    }

    #[test]
    fn lines_are_read() {
        let line = r#"kiln:{"kind":"update","stage":"install","id":"i","kb":"KB1","title":"T","result":"failed","code":"0x80070005","restart":true}"#;
        let Some(RoundAnswer::Update(result)) = round_answer(line) else { panic!() };
        assert_eq!(result.line(), "KB1 T: install failed (0x80070005), wants a restart");
        let line = r#"kiln:{"kind":"round","code":101,"text":"x"}"#;
        assert_eq!(round_answer(line), Some(last("x")));
    }
}

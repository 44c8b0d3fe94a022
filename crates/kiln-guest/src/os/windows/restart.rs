//! The WindowsRestart customizer: its command, and when the machine *has* restarted.
//!
//! ```text
//!   RunCommand ─ 0, 1115, 1190, link lost ─► AskBoot ─ another boot id ─► RunCheck ─ it could be run ─► Done
//!       │ other code                           ▲ │ same id, no answer         ▲ │ it could not
//!       ▼                                      └─┘                            └─┘
//!     Failed ◄───────────────── restartTimeout ends each of them ──────────────────
//! ```
//!
//! * That the machine restarted is proven by its boot id ([`BootId`]), never by a pause, nor by asking for another
//!   restart to see whether one is under way. So a machine that goes down slowly, and still answers, is waited for.
//! * The check command is run until it *can* be run; its exit code is logged and not judged.
//! * All of it happens within `restartTimeout`: the caller's [`Control`](kiln_host::wait::Control) ends the wait and
//!   says so here, and the failure tells how far it came.
//!
//! Pure: the caller runs commands and waits between questions.

use super::facts::BootId;

/// `restartCommand`'s default, by the 2020-02-14 reference.
pub const DEFAULT_COMMAND: &str = "shutdown /r /f /t 0 /c \"packer restart\"";
/// ERROR_SHUTDOWN_IN_PROGRESS and ERROR_SHUTDOWN_IS_SCHEDULED: a restart is on its way all the same.
const ON_ITS_WAY: [i32; 2] = [1115, 1190];

/// What the caller does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestartStep {
    /// Run `restartCommand` once, then [`Restart::command_ended`] or [`Restart::command_lost`].
    RunCommand,
    /// Ask for the boot id, connecting anew where needed, then [`Restart::boot_answered`]; without an answer, ask again.
    AskBoot,
    /// Run `restartCheckCommand`, then [`Restart::check_ended`]; when it could not be run, run it again.
    RunCheck,
    Done,
    Failed(String),
}

/// Lines for the log, then the next step.
pub type RestartNext = (Vec<String>, RestartStep);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Command,
    Boot,
    Check,
    Over,
}

/// One restart, from the command to its proof.
#[derive(Debug, Clone)]
pub struct Restart {
    before: BootId,
    has_check: bool,
    stage: Stage,
    same_boot_answers: u32,
}

impl Restart {
    /// `before` is the boot id of the machine that is to be restarted.
    pub fn new(before: BootId, has_check: bool) -> (Self, RestartNext) {
        let restart = Self { before, has_check, stage: Stage::Command, same_boot_answers: 0 };
        (restart, (vec!["Restarting Machine".to_owned()], RestartStep::RunCommand))
    }

    /// `restartCommand` ended with `code`.
    pub fn command_ended(&mut self, code: i32) -> RestartNext {
        if code != 0 && !ON_ITS_WAY.contains(&code) {
            self.stage = Stage::Over;
            let why = format!("Restart script exited with non-zero exit status: {code}");
            return (Vec::new(), RestartStep::Failed(why));
        }
        self.await_boot()
    }

    /// The link was lost before `restartCommand` ended: the machine may be going down. Its boot id will tell.
    pub fn command_lost(&mut self) -> RestartNext {
        self.await_boot()
    }

    fn await_boot(&mut self) -> RestartNext {
        self.stage = Stage::Boot;
        (vec!["Waiting for machine to restart...".to_owned()], RestartStep::AskBoot)
    }

    /// The machine told its boot id.
    pub fn boot_answered(&mut self, now: &BootId) -> RestartNext {
        if !now.is_another_than(&self.before) {
            self.same_boot_answers = self.same_boot_answers.saturating_add(1);
            return (Vec::new(), RestartStep::AskBoot);
        }
        if self.has_check {
            self.stage = Stage::Check;
            return (Vec::new(), RestartStep::RunCheck);
        }
        self.done(Vec::new())
    }

    /// `restartCheckCommand` could be run, and ended with `code`.
    pub fn check_ended(&mut self, code: i32) -> RestartNext {
        self.done(vec![format!("the restart check command ended with {code}")])
    }

    fn done(&mut self, mut log: Vec<String>) -> RestartNext {
        self.stage = Stage::Over;
        log.push("Machine successfully restarted, moving on".to_owned());
        (log, RestartStep::Done)
    }

    /// `restartTimeout` is over.
    pub fn timed_out(&mut self) -> RestartNext {
        let how_far = match self.stage {
            Stage::Command => "the restart command had not ended",
            Stage::Boot if self.same_boot_answers > 0 => {
                "the machine still answered, and it was the same boot as before the restart command"
            }
            Stage::Boot => "the machine did not answer",
            Stage::Check => "the machine had restarted, and the restart check command could not be run",
            Stage::Over => "it had ended",
        };
        self.stage = Stage::Over;
        (
            Vec::new(),
            RestartStep::Failed(format!(
                "Timeout waiting for machine to restart. When the time was over, {how_far}"
            )),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(counter: i64) -> BootId {
        BootId::parse(&format!("kiln:{{\"counter\":{counter},\"ticks\":0,\"uptimeMs\":0}}")).unwrap()
    }

    fn start(has_check: bool) -> Restart {
        let (restart, (log, step)) = Restart::new(boot(1), has_check);
        assert_eq!((log[0].as_str(), step), ("Restarting Machine", RestartStep::RunCommand));
        restart
    }

    #[test]
    fn a_restart_is_proven_by_another_boot_id() {
        for code in [0, 1115, 1190] {
            let mut restart = start(false);
            let (log, step) = restart.command_ended(code);
            assert_eq!((log[0].as_str(), step), ("Waiting for machine to restart...", RestartStep::AskBoot));
            // A slow shutdown still answers.
            assert_eq!(restart.boot_answered(&boot(1)).1, RestartStep::AskBoot);
            let (log, step) = restart.boot_answered(&boot(2));
            assert_eq!(
                (log[0].as_str(), step),
                ("Machine successfully restarted, moving on", RestartStep::Done)
            );
        }
    }

    #[test]
    fn a_link_lost_under_the_command_is_no_proof() {
        let mut restart = start(false);
        assert_eq!(restart.command_lost().1, RestartStep::AskBoot);
        assert_eq!(restart.boot_answered(&boot(1)).1, RestartStep::AskBoot);
        let (_, step) = restart.timed_out();
        let RestartStep::Failed(why) = step else { panic!("{step:?}") };
        assert!(why.starts_with("Timeout waiting for machine to restart."), "{why}");
        assert!(why.contains("the same boot"), "{why}");
    }

    #[test]
    fn another_exit_code_fails_at_once() {
        let step = start(true).command_ended(5).1;
        assert_eq!(step, RestartStep::Failed("Restart script exited with non-zero exit status: 5".into()));
    }

    #[test]
    fn the_check_is_run_and_not_judged() {
        let mut restart = start(true);
        restart.command_ended(0);
        assert_eq!(restart.boot_answered(&boot(2)).1, RestartStep::RunCheck);
        let (log, step) = restart.check_ended(1);
        assert_eq!(
            log,
            ["the restart check command ended with 1", "Machine successfully restarted, moving on"]
        );
        assert_eq!(step, RestartStep::Done);
    }

    #[test]
    fn the_timeout_tells_how_far_it_came() {
        let why = |restart: &mut Restart| match restart.timed_out().1 {
            RestartStep::Failed(why) => why,
            step => panic!("{step:?}"),
        };
        let mut restart = start(true);
        assert!(why(&mut restart).contains("command had not ended"));
        let mut restart = start(true);
        restart.command_ended(0);
        assert!(why(&mut restart).contains("did not answer"));
        let mut restart = start(true);
        restart.command_ended(0);
        restart.boot_answered(&boot(2));
        assert!(why(&mut restart).contains("check command could not be run"));
    }
}

//! Putting a step into the guest and starting it, once.

use kiln_host::wait::Control;

use super::{DetachedStep, Following, GOING_DOWN, LETS_RUN, SCRIPT_DIRS, StepNotice};
use crate::error::{GuestError, excerpt};
use crate::guest::{script_command, without_comments};
use crate::quote::sh_quote;

/// Where a step lies in the guest, and in which boot it was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) folder: String,
    pub(super) script: String,
    pub(super) boot_id: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Launched {
    Placed(Place),
    /// The guest was reset since, and holds nothing of the step.
    OtherBoot,
}

impl Place {
    pub(super) fn notice(&self) -> StepNotice {
        let script = self.script.clone();
        let usual = SCRIPT_DIRS[0];
        if script.rsplit_once('/').is_some_and(|(directory, _)| directory == usual) {
            StepNotice::Placed { script }
        } else {
            StepNotice::PlacedElsewhere { script, usual: usual.to_owned() }
        }
    }
}

impl DetachedStep {
    /// Refuses what no shell can pass on.
    pub(super) fn check(&self) -> Result<(), GuestError> {
        let bad = |what: String, why| Err(GuestError::BadStep { what, why });
        for (name, value) in &self.env {
            let mut characters = name.chars();
            let named = characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
                && characters.all(|c| c.is_ascii_alphanumeric() || c == '_');
            if !named {
                return bad(
                    format!("the environment variable {name:?}"),
                    "its name is not one of a shell variable",
                );
            }
            if value.contains('\0') {
                return bad(format!("the environment variable {name}"), "its value holds a NUL byte");
            }
        }
        if self.interpreter.iter().chain(&self.args).any(|word| word.contains('\0')) {
            return bad("an argument".to_owned(), "it holds a NUL byte");
        }
        if self.extension.is_empty() || !self.extension.chars().all(|c| c.is_ascii_alphanumeric()) {
            return bad("the extension of the script".to_owned(), "it is not made of letters and digits");
        }
        Ok(())
    }

    /// The file `call`: shell text that becomes the step. The runner sources it in a child, with `d` set to the
    /// step's folder.
    fn call(&self) -> String {
        let mut call = String::new();
        for (name, value) in &self.env {
            call.push_str(&format!("export {name}={}\n", sh_quote(value)));
        }
        let args: String = self.args.iter().map(|arg| format!(" {}", sh_quote(arg))).collect();
        call.push_str("script=$(cat \"$d/script\")\n");
        if !self.interpreter.is_empty() {
            let words: Vec<String> = self.interpreter.iter().map(|word| sh_quote(word)).collect();
            call.push_str(&format!("exec {} \"$script\"{args}\n", words.join(" ")));
        } else if self.script.runs_itself() {
            call.push_str(&format!("exec \"$script\"{args}\n"));
        } else {
            if !self.privileged {
                let case = "case ${SHELL##*/} in bash|dash|ash|ksh|mksh|zsh)";
                call.push_str(&format!("{case} exec \"$SHELL\" \"$script\"{args} ;; esac\n"));
            }
            call.push_str(&format!("exec /bin/sh \"$script\"{args}\n"));
        }
        call
    }
}

impl Following<'_> {
    /// Puts the step there and starts it, in the boot `meant_for` and in no other.
    pub(super) async fn launch(&self, meant_for: &str, control: &Control) -> Result<Launched, GuestError> {
        let act = format!("starting step {}", self.step.id);
        let nonce = self.nonce.as_str();
        let run = without_comments(&[GOING_DOWN, include_str!("runner.sh")].concat());
        let (bytes, placed) = self.step.script.parts();
        let mut stdin = Vec::with_capacity(bytes.len() + run.len() + 1024);
        stdin.extend_from_slice(self.step.call().as_bytes());
        stdin.extend_from_slice(format!("end-of-call-{nonce}\n{run}end-of-run-{nonce}\n").as_bytes());
        stdin.extend_from_slice(bytes);

        let size = self.step.script.bytes().to_string();
        let who = if self.step.privileged { "root" } else { "user" };
        let mut args = vec![nonce, who, self.step.extension, &size, meant_for, placed];
        args.extend(SCRIPT_DIRS);
        let script = [LETS_RUN, include_str!("launch.sh")].concat();
        let output = self.guest.ask(&act, &script_command(&script, &args), &stdin, control).await?;
        match read_answer(&String::from_utf8_lossy(&output.stdout), nonce) {
            Ok(Some(place)) => Ok(Launched::Placed(place)),
            Err(Refused::OtherBoot) => Ok(Launched::OtherBoot),
            Ok(None) => Err(GuestError::inside(act, output.excerpt())),
            Err(Refused::NoSudo(detail)) => {
                Err(GuestError::NoSudo { act, user: self.guest.login().user.clone(), detail })
            }
            Err(Refused::Nowhere(tried)) => Err(GuestError::NowhereToRun { tried }),
            Err(Refused::Failed(detail)) => Err(GuestError::inside(act, detail)),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Refused {
    OtherBoot,
    NoSudo(String),
    Nowhere(String),
    Failed(String),
}

/// `None` when the answer is not whole: then it was not started, or its shell died.
fn read_answer(text: &str, nonce: &str) -> Result<Option<Place>, Refused> {
    let prefix = format!("kiln-launch-{nonce} ");
    let (mut folder, mut script, mut boot_id) = (None, None, None);
    for line in text.lines().filter_map(|line| line.strip_prefix(&prefix)) {
        let (word, detail) = line.split_once(' ').unwrap_or((line, ""));
        let told = || excerpt(detail.as_bytes());
        match word {
            "folder" => folder = Some(detail.to_owned()),
            "script" => script = Some(detail.to_owned()),
            "started" => boot_id = Some(detail.to_owned()),
            "otherboot" => return Err(Refused::OtherBoot),
            "nosudo" => return Err(Refused::NoSudo(told())),
            "nowhere" => return Err(Refused::Nowhere(told())),
            _ => return Err(Refused::Failed(told())),
        }
    }
    let place = || Some(Place { folder: folder?, script: script?, boot_id: boot_id? });
    Ok(place())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_shell_can_pass_on_is_refused_without_showing_it() {
        let with_env = |name: &str, value: &str| {
            let mut step = DetachedStep::new("s", "true");
            step.env = vec![(name.to_owned(), value.to_owned())];
            step.check()
        };
        assert!(with_env("PACKER_BUILD_NAME", "a 'b'\n$c").is_ok());
        for name in ["", "1A", "A B", "A=B", "A;rm", "É"] {
            assert!(with_env(name, "x").is_err(), "{name:?}");
        }
        let error = with_env("TOKEN", "canary\0").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("canary"));
    }

    #[test]
    fn a_step_shows_neither_script_nor_environment() {
        let mut step = DetachedStep::new("s", "echo canary-script");
        step.env = vec![("A".to_owned(), "canary-env".to_owned())];
        assert!(!format!("{step:?}").contains("canary"));
    }

    #[test]
    fn the_interpreter_is_the_shebang_or_the_one_asked_for_or_the_login_shell() {
        let mut step = DetachedStep::new("s", "#!/bin/sh\ntrue");
        step.args = vec!["a b".to_owned()];
        assert!(step.call().ends_with("exec \"$script\" 'a b'\n"));
        step.script = "echo".into();
        assert!(step.call().contains("exec \"$SHELL\" \"$script\" 'a b'"));
        step.privileged = true;
        assert!(step.call().ends_with("exec /bin/sh \"$script\" 'a b'\n") && !step.call().contains("SHELL"));
        step.interpreter = vec!["pwsh".to_owned(), "-File".to_owned()];
        assert!(step.call().ends_with("exec pwsh -File \"$script\" 'a b'\n"));
    }

    #[test]
    fn an_answer_counts_only_when_it_is_whole() {
        let whole = "motd\nkiln-launch-N script /tmp/a b.sh\nkiln-launch-N folder /home/k/.f\nkiln-launch-N started id\n";
        let place = read_answer(whole, "N").unwrap().unwrap();
        assert_eq!((place.script.as_str(), place.boot_id.as_str()), ("/tmp/a b.sh", "id"));
        assert_eq!(read_answer("kiln-launch-N script /tmp/s\nkiln-launch-N folder /f\n", "N"), Ok(None));
        assert_eq!(read_answer("kiln-launch-N otherboot id\n", "N"), Err(Refused::OtherBoot));
        assert_eq!(read_answer("kiln-launch-X started id\n", "N"), Ok(None));
        assert_eq!(
            read_answer("kiln-launch-N nosudo sudo: a password is required\n", "N"),
            Err(Refused::NoSudo("sudo: a password is required".to_owned()))
        );
    }
}

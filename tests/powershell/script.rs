//! The PowerShell customizer's wrappers, the environment file, the loader, literals.

use kiln_guest::os::windows::literal;
use kiln_guest::os::windows::script::{
    GuestPath, call_command, environment, file_bytes, file_command, inline, loader_command, loader_input,
};
use kiln_guest::os::windows::secret_line;

use crate::lab::{Lab, Ran, lab};

fn run_inline(lab: &Lab, lines: &[&str]) -> Ran {
    let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
    lab.run_bare(&file_bytes(&inline(&lines, None)))
}

fn path(lab: &Lab, name: &str) -> GuestPath {
    GuestPath::new(lab.shown(name)).expect("a plain path of a temporary folder")
}

#[test]
fn inline_without_an_error_ends_with_0() {
    let lab = lab!();
    let ran = run_inline(&lab, &["$a = 'kept between entries'", "Write-Output $a"]).ended_with(0);
    assert_eq!(ran.out, "kept between entries\n");
    run_inline(&lab, &[]).ended_with(0);
}

#[test]
fn inline_a_terminating_error_is_shown_and_ends_with_1() {
    let lab = lab!();
    let ran =
        run_inline(&lab, &["Write-Output before", "throw 'on purpose'", "Write-Output after"]).ended_with(1);
    ran.says("before").says_not("after");
    assert!(ran.err.contains("on purpose"), "{}", ran.err);
    let ran = run_inline(&lab, &["No-Such-Command", "Write-Output after"]).ended_with(1);
    assert!(ran.err.contains("No-Such-Command"), "{}", ran.err);
    ran.says_not("after");
}

#[test]
fn inline_an_error_that_does_not_terminate_fails_nothing() {
    let lab = lab!();
    let ran =
        run_inline(&lab, &["Write-Error 'only said'", "Write-Output \"after, $ErrorActionPreference\""])
            .ended_with(0);
    ran.says("after, Continue");
    assert!(ran.err.contains("only said"), "{}", ran.err);
    // The user may change it, for his own script.
    run_inline(&lab, &["$ErrorActionPreference = 'Stop'", "Write-Error x", "Write-Output after"])
        .ended_with(1)
        .says_not("after");
}

#[test]
fn inline_the_last_native_exit_code_counts() {
    let lab = lab!();
    run_inline(&lab, &["sh -c 'exit 7'", "Write-Output after"]).ended_with(7).says("after");
    run_inline(&lab, &["sh -c 'exit 7'", "sh -c 'exit 0'"]).ended_with(0);
    // A cmdlet's success does not make up for it.
    run_inline(&lab, &["sh -c 'exit 259'; Write-Output x"]).ended_with(259 % 256);
}

#[test]
fn inline_exit_in_the_middle_counts() {
    let lab = lab!();
    run_inline(&lab, &["Write-Output before", "exit 3", "Write-Output after"])
        .ended_with(3)
        .says("before")
        .says_not("after");
    run_inline(&lab, &["sh -c 'exit 7'", "exit 0"]).ended_with(0);
    run_inline(&lab, &["if ($true) { function F { exit 4 }; F }"]).ended_with(4);
}

#[test]
fn inline_a_text_that_cannot_be_read_ends_with_1() {
    let lab = lab!();
    run_inline(&lab, &["Write-Output before", "if (", "Write-Output after"]).ended_with(1).says_not("before");
}

#[test]
fn inline_keeps_here_strings_comments_and_progress_quiet() {
    let lab = lab!();
    let ran = run_inline(&lab, &["$t = @'", "  indented } 'quote'", "'@", "Write-Output $t", "# last"])
        .ended_with(0);
    assert_eq!(ran.out, "  indented } 'quote'\n");
    let ran = run_inline(&lab, &["Write-Output $ProgressPreference"]).ended_with(0);
    assert_eq!(ran.out, "SilentlyContinue\n");
    let ran = run_inline(&lab, &["Write-Output 'gr\u{fc}n \u{2713}'"]).ended_with(0);
    assert_eq!(ran.out, "gr\u{fc}n \u{2713}\n");
}

#[test]
fn inline_is_run_by_its_command_line_with_the_environment() {
    let lab = lab!();
    let names = [("PACKER_BUILD_NAME", "it's $x `\u{2019}"), ("A-B", "x"), ("LINES", "a\nb")];
    let names: Vec<_> = names.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    lab.write("vars.ps1", environment(&names));
    let lines = ["Write-Output \"[$Env:PACKER_BUILD_NAME][${Env:A-B}][$Env:LINES]\"".to_owned()];
    lab.write("script.ps1", file_bytes(&inline(&lines, Some(&path(&lab, "vars.ps1")))));
    let ran = lab.run_line(&file_command(&path(&lab, "script.ps1")), None).ended_with(0);
    assert_eq!(ran.out, "[it's $x `\u{2019}][x][a\nb]\n");
}

#[test]
fn a_fetched_script_is_called_as_the_service_calls_it() {
    let lab = lab!();
    lab.write("vars.ps1", environment(&[("WHERE".to_owned(), "here".to_owned())]));
    let run = |script: &str| {
        lab.write("fetched script.ps1", script);
        lab.run_line(&call_command(&path(&lab, "fetched script.ps1"), Some(&path(&lab, "vars.ps1"))), None)
    };
    let ran = run("Write-Output \"$Env:WHERE $ProgressPreference $ErrorActionPreference\"\n").ended_with(0);
    assert_eq!(ran.out, "here SilentlyContinue Continue\n");
    run("Write-Output before; exit 3; Write-Output after").ended_with(3).says("before").says_not("after");
    run("sh -c 'exit 7'\nWrite-Output after").ended_with(7).says("after");
    run("sh -c 'exit 7'\nsh -c 'exit 0'").ended_with(0);
    run("Write-Error 'only said'").ended_with(0);
    let ran = run("throw 'on purpose'").ended_with(1);
    assert!(ran.err.contains("on purpose"), "{}", ran.err);
    // The service's own trap, kept: a script that cannot be read is shown as an error, and counts as a success.
    let ran = run("if (").ended_with(0);
    assert!(ran.err.contains("Missing condition"), "{}", ran.err);
    run("param([string] $a = 'default')\nWrite-Output $a").ended_with(0).says("default");
    let ran = lab.run_line(&call_command(&path(&lab, "fetched script.ps1"), None), None).ended_with(0);
    assert_eq!(ran.out, "default\n");
}

#[test]
fn the_loader_runs_a_text_from_standard_input_and_hands_on_the_rest() {
    let lab = lab!();
    let run = |text: &str, rest: &str| {
        lab.run_line(&loader_command(), Some(&format!("{}{rest}", loader_input(text))))
    };
    let text = "$in = @($input); [Console]::Out.WriteLine(\"$($in[0])|\" + 'gr\u{fc}n'); exit 5";
    let ran = run(text, secret_line("p\u{e4}ss'").as_str()).ended_with(5);
    assert_eq!(ran.out, "cMOkc3Mn|gr\u{fc}n\n");
    run("exit 0", "").ended_with(0);
    run("sh -c 'exit 6'", "").ended_with(6);
    run("[Console]::Out.WriteLine('no exit')", "").ended_with(0).says("no exit");
    let ran = run("throw 'on purpose'", "").ended_with(1);
    assert!(ran.err.contains("on purpose"), "{}", ran.err);
    let ran = run("if (", "").ended_with(1);
    assert!(!ran.err.is_empty());
}

/// Strings that end a quote, a line, a text or an encoding elsewhere, and some thousand made of their characters.
#[test]
fn any_string_survives_as_a_literal() {
    let lab = lab!();
    let nasty: Vec<char> = "'\"`$(){}@#;&|<>%^!\u{2018}\u{2019}\u{201a}\u{201b}\u{201c}\u{201d}\u{201e}\u{2013}\n\r\t\0\u{7f}\u{a0}\u{feff}\u{fffd}\u{1f600}\u{e4} aZ0~\\/-"
        .chars()
        .collect();
    // A generator of its own: the same strings in each run.
    let mut state: u32 = 7;
    let mut next = |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        usize::try_from(state >> 8).unwrap() % below
    };
    let mut strings: Vec<String> = nasty.iter().flat_map(|c| [c.to_string(), format!("{c}{c}")]).collect();
    for _ in 0..2000 {
        let length = next(12);
        strings.push((0..length).map(|_| nasty[next(nasty.len())]).collect());
    }
    let mut text = String::from("$all = [Collections.ArrayList]::new()\n");
    for string in &strings {
        text.push_str(&format!("$null = $all.Add({})\n", literal(string)));
    }
    text.push_str("foreach ($one in $all) { [Console]::Out.WriteLine([Convert]::ToBase64String([Text.Encoding]::UTF8.GetBytes($one))) }\nexit 0\n");
    let ran = lab.run("", &text).ended_with(0);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines.len(), strings.len());
    for (line, string) in lines.iter().zip(&strings) {
        assert_eq!(*line, secret_line(string).trim_end(), "{string:?}");
    }
}

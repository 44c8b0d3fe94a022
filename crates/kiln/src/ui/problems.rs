//! What is wrong with a template, shown as a compiler shows it.

use kiln_model::{Problem, Severity};

use super::Paint;

/// The lines for one problem:
///
/// ```text
/// hello.json:12:5: error: Field 'type' has a bad value: 'shell'
///     at /properties/customize/0/type
///     help: did you mean "Shell"?
/// ```
pub fn lines(file: &str, problem: &Problem, paint: Paint) -> Vec<String> {
    let severity = match problem.severity {
        Severity::Error => paint.bad("error:"),
        Severity::Warning => paint.attention("warning:"),
        Severity::Note => paint.faint("note:"),
    };
    let Problem { line, column, message, .. } = problem;
    let mut out = vec![format!("{}:{line}:{column}: {severity} {message}", paint.heading(file))];
    if !problem.pointer.is_empty() {
        out.push(format!("    {}", paint.faint(format!("at {}", problem.pointer))));
    }
    if let Some(help) = &problem.help {
        out.push(format!("    help: {help}"));
    }
    out
}

/// `2 errors, 1 warning`, or `no problems`.
pub fn tally(problems: &[Problem]) -> String {
    let count = |severity| problems.iter().filter(|p| p.severity == severity).count();
    let parts: Vec<String> =
        [(Severity::Error, "error"), (Severity::Warning, "warning"), (Severity::Note, "note")]
            .into_iter()
            .map(|(severity, noun)| (count(severity), noun))
            .filter(|(number, _)| *number > 0)
            .map(|(number, noun)| super::text::count(number, noun))
            .collect();
    if parts.is_empty() { "no problems".to_owned() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use kiln_model::problem::{Code, Place};

    #[test]
    fn a_problem_names_file_place_and_way_out() {
        let place = Place { pointer: "/properties/customize/0/type".into(), line: 12, column: 5 };
        let problem =
            Problem::error(Code::UnknownType, &place, "unknown customizer").help("did you mean \"Shell\"?");
        let text = lines("hello.json", &problem, Paint { on: false }).join("\n");
        expect![[r#"
            hello.json:12:5: error: unknown customizer
                at /properties/customize/0/type
                help: did you mean "Shell"?"#]]
        .assert_eq(&text);
        let note = Problem::note(Code::Advice, &place, "x");
        assert_eq!(tally(&[problem.clone(), note, problem]), "2 errors, 1 note");
        assert_eq!(tally(&[]), "no problems");
    }
}

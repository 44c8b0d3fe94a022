//! All our texts hold to the language of Windows PowerShell 5.1, by the engine's own parser.

use std::path::PathBuf;

use kiln_tests::settings::repository;

use crate::lab::{Lab, lab, word};

/// The longest text there should be, without a reason. In lines.
const LONG: usize = 150;

/// Says what of a file is not Windows PowerShell 5.1: errors, token kinds and syntax nodes that came later, parameters
/// and commands that only PowerShell 6 and later have.
const LINTER: &str = r#"
$ErrorActionPreference = 'Stop'
$later = 'QuestionQuestion', 'QuestionQuestionEquals', 'QuestionDot', 'QuestionLBracket', 'QuestionMark', 'AndAnd', 'OrOr', 'Clean'
$nodes = 'PipelineChainAst', 'TernaryExpressionAst'
$parameters = 'Parallel', 'ThrottleLimit', 'AsHashtable', 'AsByteStream', 'SkipLast', 'EnumsAsStrings', 'Environment', 'Bottom', 'Top'
$commands = 'Remove-Service', 'Test-Json', 'Join-String', 'Get-Error', 'Get-Uptime', 'ConvertFrom-Markdown'
$variables = 'IsWindows', 'IsLinux', 'IsMacOS', 'IsCoreCLR'
foreach ($file in $Files) {
    $tokens = $null
    $errors = $null
    $ast = [Management.Automation.Language.Parser]::ParseFile($file, [ref]$tokens, [ref]$errors)
    foreach ($one in $errors) { [Console]::Out.WriteLine("${file}:$($one.Extent.StartLineNumber): $($one.Message)") }
    foreach ($one in $tokens) {
        if ($later -contains "$($one.Kind)") { [Console]::Out.WriteLine("${file}:$($one.Extent.StartLineNumber): token $($one.Kind)") }
        if ("$($one.Kind)" -eq 'Parameter' -and $parameters -contains $one.ParameterName) { [Console]::Out.WriteLine("${file}:$($one.Extent.StartLineNumber): parameter $($one.ParameterName)") }
        if ("$($one.Kind)" -eq 'Number' -and $one.Text -match '^0b|(u|us|ul|uy|y|s|n)$') { [Console]::Out.WriteLine("${file}:$($one.Extent.StartLineNumber): number $($one.Text)") }
        if ($one -is [Management.Automation.Language.StringExpandableToken] -and $one.Text -match '`[eu]') { [Console]::Out.WriteLine("${file}:$($one.Extent.StartLineNumber): escape $($one.Text)") }
    }
    $found = $ast.FindAll({ param($node)
        $nodes -contains $node.GetType().Name -or
        ($node -is [Management.Automation.Language.CommandAst] -and $commands -contains $node.GetCommandName()) -or
        ($node -is [Management.Automation.Language.PipelineAst] -and $node.PSObject.Properties['Background'] -and $node.Background) -or
        ($node -is [Management.Automation.Language.VariableExpressionAst] -and $variables -contains $node.VariablePath.UserPath)
    }, $true)
    foreach ($one in $found) { [Console]::Out.WriteLine("${file}:$($one.Extent.StartLineNumber): $($one.GetType().Name) $($one.Extent.Text)") }
}
exit 0
"#;

fn texts() -> Vec<PathBuf> {
    let folder = repository().join("crates/kiln-guest/src/os/windows");
    let mut texts: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ps1"))
        .chain([repository().join("crates/kiln-guest/src/winrm/upload_reader.ps1")])
        .collect();
    texts.sort();
    assert!(texts.len() >= 15, "{texts:?}");
    texts
}

fn findings(lab: &Lab, files: &[PathBuf]) -> Vec<String> {
    let files: Vec<String> = files.iter().map(|path| word(path.to_str().unwrap())).collect();
    let text = format!("$Files = @({})\n{LINTER}", files.join(", "));
    lab.run("", &text).ended_with(0).out.lines().map(str::to_owned).collect()
}

#[test]
fn our_texts_are_windows_powershell_5_1() {
    let lab = lab!();
    assert_eq!(findings(&lab, &texts()), Vec::<String>::new());
}

#[test]
fn the_linter_finds_what_came_later() {
    let lab = lab!();
    for later in [
        "$a ?? 1",
        "$a ??= 1",
        "${a}?.Length",
        "${a}?[0]",
        "Get-Date && Get-Date",
        "Get-Date || Get-Date",
        "$a ? 1 : 2",
        "1 | ForEach-Object -Parallel { $_ }",
        "Get-Date &",
        "$IsWindows",
        "\"`u{2713}\"",
        "0b11",
        "1 | Test-Json",
        "if (",
    ] {
        let file = lab.write("later.ps1", format!("{later}\n"));
        assert!(!findings(&lab, &[file]).is_empty(), "{later}");
    }
    let file = lab.write(
        "now.ps1",
        "if ($a) { 'x' } else { \"`n$a\" }\nGet-Date | Where-Object { $_ -and 1 -or 0x10 }\n",
    );
    assert_eq!(findings(&lab, &[file]), Vec::<String>::new());
}

/// Needs no engine: what the parser does not see.
#[test]
fn our_texts_are_short_plain_and_introduced() {
    for path in texts() {
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.display();
        assert!(
            text.is_ascii(),
            "{name} is not ASCII: Windows PowerShell reads it in the machine's code page"
        );
        assert!(text.lines().count() <= LONG, "{name} has {} lines", text.lines().count());
        assert!(text.starts_with("# "), "{name} does not say what it is for");
        assert!(!text.contains('\r') && text.ends_with('\n'), "{name}: line ends");
        let module = path.with_extension("").file_name().unwrap().to_str().unwrap().to_owned();
        let used = std::fs::read_dir(path.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
            .any(|path| std::fs::read_to_string(path).unwrap().contains(&format!("{module}.ps1\")")));
        assert!(used, "{name} is used by no module");
    }
}

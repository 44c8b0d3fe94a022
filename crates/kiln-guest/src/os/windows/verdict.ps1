# The last word over the connection: tells the waiting undo.ps1 what to do. The file appears whole or not at all.
# Values: $Folder, $Verdict.
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version 2
try {
    $new = [IO.Path]::Combine($Folder, 'verdict.new')
    [IO.File]::WriteAllText($new, $Verdict)
    [IO.File]::Move($new, [IO.Path]::Combine($Folder, 'verdict'))
} catch {
    [Console]::Error.WriteLine("cannot leave the verdict: $($_.Exception.GetBaseException().Message)")
    exit 1
}
exit 0

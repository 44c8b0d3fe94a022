# Runs a text of ours that comes over standard input: its first line, in base64. The lines after it are its input.
# Windows PowerShell hands redirected standard input to an encoded command as $input; where it does not, the console's reader has it.
$lines = @($input)
if ($lines.Count -eq 0) { $lines = @([Console]::In.ReadToEnd() -split "`r?`n") }
$text = [Text.Encoding]::UTF8.GetString([Convert]::FromBase64String("$($lines[0])".Trim()))
$rest = @($lines | Select-Object -Skip 1)
$global:LASTEXITCODE = 0
try { $rest | & ([scriptblock]::Create($text)) } catch {
    [Console]::Error.WriteLine("$_")
    [Console]::Error.WriteLine("$($_.InvocationInfo.PositionMessage)")
    exit 1
}
exit $LASTEXITCODE

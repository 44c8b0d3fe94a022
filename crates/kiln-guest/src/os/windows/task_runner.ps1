# The scheduled task's program: runs $Program with $Arguments, its output into the files `out` and `err` of $Folder,
# byte for byte, and its exit code into `exit.json`, which appears whole or not at all, after the last byte.
# Values: $Folder, $Program, $Arguments, $DrainSeconds.
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version 2
$began = @{ pid = $PID; ticks = [DateTime]::UtcNow.Ticks }
[IO.File]::WriteAllText([IO.Path]::Combine($Folder, 'began.json'), (ConvertTo-Json -InputObject $began -Compress))
$share = [IO.FileShare]'ReadWrite, Delete'
# A buffer of one byte: what the program says is in the file at once.
$out = [IO.FileStream]::new([IO.Path]::Combine($Folder, 'out'), 'Create', 'Write', $share, 1)
$err = [IO.FileStream]::new([IO.Path]::Combine($Folder, 'err'), 'Create', 'Write', $share, 1)
$end = @{ code = 1; out = 0; err = 0 }
try {
    # A task has the machine's old code page; over WinRM the same script would speak UTF-8.
    try { [Console]::OutputEncoding = [Text.UTF8Encoding]::new($false) } catch { }
    $start = [Diagnostics.ProcessStartInfo]::new($Program, $Arguments)
    $start.UseShellExecute = $false
    $start.RedirectStandardInput = $true
    $start.RedirectStandardOutput = $true
    $start.RedirectStandardError = $true
    $process = [Diagnostics.Process]::Start($start)
    $process.StandardInput.Close()
    $copies = @(
        $process.StandardOutput.BaseStream.CopyToAsync($out, 4096),
        $process.StandardError.BaseStream.CopyToAsync($err, 4096)
    )
    $process.WaitForExit()
    # A program left behind holds the pipes open: the step is over all the same.
    $drained = [Threading.Tasks.Task]::WaitAll([Threading.Tasks.Task[]]$copies, [TimeSpan]::FromSeconds($DrainSeconds))
    $end.code = $process.ExitCode
    if (-not $drained) { $end.left = "a program that the script started still holds its output open; what it says from now on is not logged" }
} catch {
    $end.error = "$_"
}
# Only these bytes count: a program left behind may write on.
$end.out = $out.Length
$end.err = $err.Length
$new = [IO.Path]::Combine($Folder, 'exit.new')
[IO.File]::WriteAllText($new, (ConvertTo-Json -InputObject $end -Compress))
[IO.File]::Move($new, [IO.Path]::Combine($Folder, 'exit.json'))
exit 0

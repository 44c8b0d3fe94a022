# Ends the task if it still runs, with all its processes, and removes it and its folder.
# May be repeated: what is gone is gone. Values: $Folder, $Task, $Seconds.
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version 2
$problems = @()
$clock = [Diagnostics.Stopwatch]::StartNew()
try {
    $found = @(Get-ScheduledTask -TaskName $Task -ErrorAction SilentlyContinue)
    if ($found.Count -gt 0) {
        if ("$($found[0].State)" -eq 'Running') {
            # Stopping the task ends only its own process, so the tree below it goes first.
            $beganFile = [IO.Path]::Combine($Folder, 'began.json')
            if ([IO.File]::Exists($beganFile)) {
                $began = [IO.File]::ReadAllText($beganFile) | ConvertFrom-Json
                $null = & "$Env:SystemRoot\System32\taskkill.exe" /t /f /pid $began.pid 2>&1
            }
            Stop-ScheduledTask -TaskName $Task
        }
        Unregister-ScheduledTask -TaskName $Task -Confirm:$false
    }
} catch { $problems += "task ${Task}: $_" }
# A file stays locked for a moment after the process that had it.
while ([IO.Directory]::Exists($Folder)) {
    try { [IO.Directory]::Delete($Folder, $true) } catch {
        if ($clock.Elapsed.TotalSeconds -ge $Seconds) {
            $problems += "folder ${Folder}: $($_.Exception.GetBaseException().Message)"
            break
        }
        Start-Sleep -Milliseconds 200
    }
}
Write-KilnAnswer @{ kind = 'removed'; problems = @($problems) }
exit [int]($problems.Count -gt 0)

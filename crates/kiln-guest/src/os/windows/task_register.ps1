# Registers the task $Task from $Xml, which runs as $User, and starts it.
# A password comes as one line of base64 over standard input; Windows itself keeps it for the task, as a secret of
# its own, until the task is removed. An empty $User is SYSTEM, which needs none.
# Values: $Task, $Xml, $User.
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version 2
$lines = @($input)
try {
    if ($User -eq '') {
        $null = Register-ScheduledTask -TaskName $Task -Xml $Xml -Force
    } else {
        if ($lines.Count -eq 0) { $lines = @([Console]::In.ReadLine()) }
        if ("$($lines[0])".Trim() -eq '') { throw 'no password came over standard input' }
        $password = [Text.Encoding]::UTF8.GetString([Convert]::FromBase64String("$($lines[0])".Trim()))
        $null = Register-ScheduledTask -TaskName $Task -Xml $Xml -User $User -Password $password -Force
    }
} catch {
    Write-KilnAnswer @{ kind = 'task'; registered = $false; error = "$_" }
    exit 1
}
try {
    Start-ScheduledTask -TaskName $Task
} catch {
    Write-KilnAnswer @{ kind = 'task'; registered = $true; started = $false; error = "$_" }
    exit 2
}
Write-KilnAnswer @{ kind = 'task'; registered = $true; started = $true }
exit 0

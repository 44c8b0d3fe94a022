# Before Sysprep: puts undo.ps1 into $Folder, registers it as a task of SYSTEM, starts it, and sees it wait.
# Values: $Folder, $Task, $Xml, $Script (base64), $BeginSeconds.
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version 2
try {
    $null = [IO.Directory]::CreateDirectory($Folder)
    foreach ($old in 'verdict', 'waits') { [IO.File]::Delete([IO.Path]::Combine($Folder, $old)) }
    [IO.File]::WriteAllBytes([IO.Path]::Combine($Folder, 'undo.ps1'), [Convert]::FromBase64String($Script))
    $null = Register-ScheduledTask -TaskName $Task -Xml $Xml -Force
    Start-ScheduledTask -TaskName $Task
} catch {
    Write-KilnAnswer @{ kind = 'undo'; waits = $false; error = "$_" }
    exit 1
}
$waits = [IO.Path]::Combine($Folder, 'waits')
$clock = [Diagnostics.Stopwatch]::StartNew()
while (-not [IO.File]::Exists($waits)) {
    if ($clock.Elapsed.TotalSeconds -ge $BeginSeconds) {
        $state = @(Get-ScheduledTask -TaskName $Task -ErrorAction SilentlyContinue | ForEach-Object { "$($_.State)" }) -join ', '
        Write-KilnAnswer @{ kind = 'undo'; waits = $false; error = "the task did not begin within $BeginSeconds s (state $state)" }
        exit 1
    }
    Start-Sleep -Milliseconds 200
}
Write-KilnAnswer @{ kind = 'undo'; waits = $true; error = $null }
exit 0

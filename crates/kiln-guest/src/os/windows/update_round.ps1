# One round of Windows Update: search, filter, accept, download, install. Runs as SYSTEM: over a remote logon Windows
# refuses the downloader, the installer and the EULA. Every loop is bounded.
#   0 nothing (more) to install    101 a restart is wanted    102 installed or tried, ask again without a restart
#   103 no search    104 a filter failed    105 another installation did not end    106 nothing could be downloaded
#   107 the installer failed    108 no Windows Update on this machine
# Values: $Criteria, $FilterActions, $FilterTests, $Limit, $LeftOut, $SearchTries, $DownloadTries, $BusySeconds,
# $ServicingSeconds, $PauseSeconds. No strict mode: the filters are the user's own.
$ErrorActionPreference = 'Stop'
$notAllowed = '0x80240016'
$results = 'not started', 'in progress', 'succeeded', 'succeeded with errors', 'failed', 'aborted'

function Stop-Round([int] $code, [string] $text) {
    Write-KilnAnswer @{ kind = 'round'; code = $code; text = $text }
    exit $code
}
function Write-Note([string] $text) { Write-KilnAnswer @{ kind = 'note'; text = $text } }
function Write-Update($update, [string] $stage, [string] $result, [int] $hresult, [bool] $restart) {
    $kb = (@($update.KBArticleIDs | ForEach-Object { "KB$_" }) -join ', ')
    Write-KilnAnswer @{
        kind = 'update'; stage = $stage; id = "$($update.Identity.UpdateID)"; kb = $kb; title = "$($update.Title)"
        result = $result; code = ('0x{0:X8}' -f $hresult); restart = $restart
    }
}
function Get-Code($problem) { '0x{0:X8}' -f $problem.Exception.GetBaseException().HResult }
function Test-RestartPending {
    if ($system.RebootRequired) { return $true }
    return Test-Path -LiteralPath 'HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing\RebootPending'
}
# Windows' own servicing worker goes on after an installation; a restart in its middle takes long and may undo it.
function Stop-ForRestart([string] $why) {
    $clock = [Diagnostics.Stopwatch]::StartNew()
    $quiet = 0
    while ($quiet -lt 3) {
        if (@(Get-Process -Name TiWorker -ErrorAction SilentlyContinue).Count -eq 0) { $quiet++ } else { $quiet = 0 }
        if ($clock.Elapsed.TotalSeconds -ge $ServicingSeconds) {
            Write-Note "component servicing (TiWorker) still works after $ServicingSeconds s; restarting all the same"
            break
        }
        Start-Sleep -Seconds $PauseSeconds
    }
    Stop-Round 101 $why
}
# The message is .NET's own text of this code, which people search for.
function Wait-Turn($clock, [string] $act) {
    if (Test-RestartPending) { Stop-ForRestart "a restart is pending, and until then Windows does not $act" }
    if ($clock.Elapsed.TotalSeconds -ge $BusySeconds) {
        Stop-Round 105 "System.Runtime.InteropServices.COMException ($notAllowed): Exception from HRESULT: $notAllowed (waited $BusySeconds s to $act)"
    }
    Start-Sleep -Seconds $PauseSeconds
}

try {
    $system = New-Object -ComObject Microsoft.Update.SystemInfo
    $session = New-Object -ComObject Microsoft.Update.Session
    $session.ClientApplicationID = 'kiln'
    $searcher = $session.CreateUpdateSearcher()
} catch { Stop-Round 108 "$(Get-Code $_) $_" }
if (Test-RestartPending) { Stop-ForRestart 'a restart was pending before the search' }

$found = $null
for ($try = 1; $null -eq $found; $try++) {
    try {
        $found = $searcher.Search($Criteria).Updates
        if ($null -eq $found) { throw 'the search had no result' }
    } catch {
        if ($try -ge $SearchTries) { Stop-Round 103 "the search failed $try times: $(Get-Code $_) $_" }
        Write-Note "the search failed: $(Get-Code $_) $_"
        Start-Sleep -Seconds $PauseSeconds
    }
}

$chosen = New-Object -ComObject Microsoft.Update.UpdateColl
$seen = @{}
$over = 0
$refused = 0
try { $tests = @($FilterTests | ForEach-Object { [scriptblock]::Create($_) }) } catch { Stop-Round 104 "a filter cannot be read: $_" }
for ($i = 0; $i -lt $found.Count; $i++) {
    $update = $found.Item($i)
    $id = "$($update.Identity.UpdateID)"
    if ($seen.ContainsKey($id)) { continue }
    $seen[$id] = $true
    # The first filter that is true decides; where none is, the update is not installed.
    $wanted = $false
    for ($f = 0; $f -lt $tests.Count; $f++) {
        try { $holds = @($update | Where-Object -FilterScript $tests[$f]).Count -gt 0 } catch {
            Stop-Round 104 "filter $($FilterActions[$f]):$($FilterTests[$f]) failed for $($update.Title): $_"
        }
        if ($holds) { $wanted = $FilterActions[$f] -eq 'include'; break }
    }
    if (-not $wanted) { Write-Note "left by the filters: $($update.Title)"; continue }
    if ($LeftOut -contains $id) { Write-Note "left out, as it did not get anywhere before: $($update.Title)"; continue }
    if ($chosen.Count -ge $Limit) { $over++; continue }
    if ($update.InstallationBehavior.CanRequestUserInput) { Write-Note "may ask a question that nobody answers: $($update.Title)" }
    try { if (-not $update.EulaAccepted) { $update.AcceptEula() } } catch {
        Write-Update $update 'EULA' 'failed' $_.Exception.GetBaseException().HResult $false
        $refused++
        continue
    }
    $null = $chosen.Add($update)
}
if ($over -gt 0) { Write-Note "$over more wait for a later round (updateLimit $Limit)" }
# Asked again, so that the same refusal twice is seen as no progress.
if ($chosen.Count -eq 0 -and $refused -gt 0) { Stop-Round 102 "the licence terms of $refused updates could not be accepted" }
if ($chosen.Count -eq 0) { Stop-Round 0 'No Windows updates found' }

for ($try = 1; $true; $try++) {
    $missing = New-Object -ComObject Microsoft.Update.UpdateColl
    for ($i = 0; $i -lt $chosen.Count; $i++) { if (-not $chosen.Item($i).IsDownloaded) { $null = $missing.Add($chosen.Item($i)) } }
    if ($missing.Count -eq 0 -or $try -gt $DownloadTries) { break }
    try {
        $downloader = $session.CreateUpdateDownloader()
        $downloader.Updates = $missing
        $got = $downloader.Download()
        for ($i = 0; $i -lt $missing.Count; $i++) {
            $one = $got.GetUpdateResult($i)
            if ($one.ResultCode -ne 2) { Write-Update $missing.Item($i) 'download' $results[$one.ResultCode] $one.HResult $false }
        }
    } catch { Write-Note "the download failed: $(Get-Code $_) $_" }
    Start-Sleep -Seconds $PauseSeconds
}
$ready = New-Object -ComObject Microsoft.Update.UpdateColl
for ($i = 0; $i -lt $chosen.Count; $i++) { if ($chosen.Item($i).IsDownloaded) { $null = $ready.Add($chosen.Item($i)) } }
if ($ready.Count -eq 0) { Stop-Round 106 "none of $($chosen.Count) updates could be downloaded in $DownloadTries tries" }

$clock = [Diagnostics.Stopwatch]::StartNew()
$installed = $null
$waits = $false
while ($null -eq $installed) {
    try {
        $installer = $session.CreateUpdateInstaller()
        if ($installer.RebootRequiredBeforeInstallation) { Stop-ForRestart 'Windows wants a restart before it installs' }
        if (-not $installer.IsBusy) {
            $installer.Updates = $ready
            $installed = $installer.Install()
            break
        }
    } catch { if ((Get-Code $_) -ne $notAllowed) { Stop-Round 107 "the installer failed: $(Get-Code $_) $_" } }
    if (-not $waits) { Write-Note "another installation is under way ($notAllowed); waiting for it, for $BusySeconds s at most" }
    $waits = $true
    Wait-Turn $clock 'install'
}
for ($i = 0; $i -lt $ready.Count; $i++) {
    $one = $installed.GetUpdateResult($i)
    Write-Update $ready.Item($i) 'install' $results[$one.ResultCode] $one.HResult ([bool]$one.RebootRequired)
}
if ($installed.RebootRequired -or (Test-RestartPending)) { Stop-ForRestart 'the installed updates want a restart' }
Stop-Round 102 "$($ready.Count) updates were tried, and no restart is wanted"

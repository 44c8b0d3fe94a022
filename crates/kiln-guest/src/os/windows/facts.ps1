# What this Windows is and has, as one answer. Values: none.
# A fact that cannot be read is null, and `unread` says why: nothing here fails a run.
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version 2
$answer = @{ kind = 'facts' }
$unread = @()
$current = 'HKLM:\SOFTWARE\Microsoft\Windows NT\CurrentVersion'
$facts = [ordered]@{
    name        = { (Get-CimInstance -ClassName Win32_OperatingSystem).Caption }
    version     = { (Get-CimInstance -ClassName Win32_OperatingSystem).Version }
    revision    = { [long](Get-ItemProperty -LiteralPath $current -Name UBR).UBR }
    edition     = { (Get-ItemProperty -LiteralPath $current -Name EditionID).EditionID }
    kindOf      = { (Get-ItemProperty -LiteralPath $current -Name InstallationType).InstallationType }
    arch        = { $Env:PROCESSOR_ARCHITECTURE }
    powershell  = { "$($PSVersionTable.PSVersion)" }
    computer    = { $Env:COMPUTERNAME }
    freeBytes   = { [long](Get-CimInstance -ClassName Win32_LogicalDisk -Filter "DeviceID='$Env:SystemDrive'").FreeSpace }
    imageState  = { (Get-ItemProperty -LiteralPath 'HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Setup\State' -Name ImageState).ImageState }
    rearmsLeft  = { [long](Get-CimInstance -ClassName SoftwareLicensingService).RemainingWindowsReArmCount }
}
foreach ($name in $facts.Keys) {
    $answer[$name] = $null
    try {
        $value = & $facts[$name]
        if ($value -is [string]) { $value = $value.Trim() }
        $answer[$name] = $value
    } catch { $unread += "${name}: $_" }
}
# Each of these asks for a restart, in its own place.
$pending = @()
$component = 'HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing'
try {
    if (Test-Path -LiteralPath "$component\RebootPending") { $pending += 'component servicing' }
    if (Test-Path -LiteralPath "$component\RebootInProgress") { $pending += 'component servicing in progress' }
    if (Test-Path -LiteralPath 'HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\WindowsUpdate\Auto Update\RebootRequired') { $pending += 'Windows Update' }
} catch { $unread += "pending: $_" }
try {
    $renames = Get-ItemProperty -LiteralPath 'HKLM:\SYSTEM\CurrentControlSet\Control\Session Manager' -Name PendingFileRenameOperations
    if (@($renames.PendingFileRenameOperations).Count -gt 0) { $pending += 'files to be renamed' }
} catch {
    # The value is there only when there are some.
}
$answer.pendingRestart = @($pending)
$answer.unread = @($unread)
Write-KilnAnswer $answer
exit 0

# Puts this Windows to rest before it is kept: writes out what it still holds in memory, the hives of the registry, then
# every fixed volume with a letter.
# Values: none. Fails when anything could not be written: a disk frozen then would lack it. Hives of users come and go
# with their owners; one that could not be written is named in `skipped` only.
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version 2
$problems = @()
foreach ($hive in 'HKLM:\SYSTEM', 'HKLM:\SOFTWARE', 'HKLM:\SAM') {
    try { (Get-Item -LiteralPath $hive).Flush() } catch { $problems += "registry ${hive}: $_" }
}
$skipped = @()
try {
    foreach ($hive in @(Get-ChildItem -Path 'Registry::HKEY_USERS')) {
        try { $hive.Flush() } catch { $skipped += "$($hive.PSChildName): $($_.Exception.GetBaseException().Message)" }
    }
} catch { $skipped += "users: $_" }
$volumes = @()
try {
    $volumes = @(Get-Volume | Where-Object { "$($_.DriveType)" -eq 'Fixed' -and "$($_.DriveLetter)".Trim([char]0, ' ') -ne '' })
} catch { $problems += "volumes: $_" }
if ($volumes.Count -eq 0 -and $problems.Count -eq 0) { $problems += 'volumes: there is none' }
foreach ($volume in $volumes) {
    try { $null = Write-VolumeCache -DriveLetter $volume.DriveLetter } catch { $problems += "volume $($volume.DriveLetter): $_" }
}
Write-KilnAnswer @{ kind = 'flush'; volumes = @($volumes | ForEach-Object { "$($_.DriveLetter)" }); problems = @($problems); skipped = @($skipped) }
exit [int]($problems.Count -gt 0)

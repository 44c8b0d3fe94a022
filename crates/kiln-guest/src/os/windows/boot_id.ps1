# Tells one boot of this Windows from another. Values: none.
#   counter   the kernel's own count of boots; null where Windows does not keep it
#   ticks     LastBootUpTime in UTC, units of 100 ns since year 1; moves when the clock is set
#   uptimeMs  milliseconds since this boot; no clock can move it. Wraps to 0 after 49 days
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version 2
$key = 'HKLM:\SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management\PrefetchParameters'
$counter = $null
try { $counter = [long](Get-ItemProperty -LiteralPath $key -Name BootId).BootId } catch { }
try {
    $ticks = (Get-CimInstance -ClassName Win32_OperatingSystem).LastBootUpTime.ToUniversalTime().Ticks
} catch {
    [Console]::Error.WriteLine("cannot read LastBootUpTime: $_")
    exit 1
}
$uptime = [long][Environment]::TickCount
if ($uptime -lt 0) { $uptime += 4294967296 }
Write-KilnAnswer @{ kind = 'boot'; counter = $counter; ticks = $ticks; uptimeMs = $uptime }
exit 0

# Tells whether a customizer left a deprovisioning script, and what is in it. Only reads.
# Values: $Path, $Most (bytes of it that are shown).
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version 2
if (-not (Test-Path -LiteralPath $Path -PathType Leaf)) {
    Write-KilnAnswer @{ kind = 'deprovision'; there = $false; text = $null }
    exit 0
}
try {
    # As PowerShell reads it: the byte order mark decides, else the machine's code page.
    $file = (Resolve-Path -LiteralPath $Path).ProviderPath
    $text = [IO.File]::ReadAllText($file, [Text.Encoding]::Default)
} catch {
    [Console]::Error.WriteLine("${Path}: $($_.Exception.GetBaseException().Message)")
    exit 1
}
if ($text.Length -gt $Most) { $text = $text.Substring(0, $Most) + "`n[cut after $Most characters]" }
Write-KilnAnswer @{ kind = 'deprovision'; there = $true; text = $text }
exit 0

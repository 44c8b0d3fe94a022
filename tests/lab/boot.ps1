# Doubles for the lab's PowerShell: which boot this is. For winrmd.py --prelude.
#   Get-CimInstance Win32_OperatingSystem   LastBootUpTime, and nothing else of it
#   Get-ItemProperty of PrefetchParameters  BootId, Windows' own count of boots
# Any other class ends the script with 250; any other key is asked of the real command.
function global:Get-CimInstance {
    param([Parameter(Position = 0)] [string] $ClassName)
    if ($ClassName -ne 'Win32_OperatingSystem') {
        [Console]::Error.WriteLine("lab: not implemented: Get-CimInstance $ClassName")
        exit 250
    }
    $milliseconds = [long]([double]::Parse($env:LAB_BOOT_TIME, [Globalization.CultureInfo]::InvariantCulture) * 1000)
    [pscustomobject]@{ LastBootUpTime = [DateTimeOffset]::FromUnixTimeMilliseconds($milliseconds).LocalDateTime }
}
function global:Get-ItemProperty {
    $wanted = 'HKLM:\SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management\PrefetchParameters'
    if ($args -contains $wanted) { return [pscustomobject]@{ BootId = [int]$env:LAB_BOOT_COUNT } }
    $real = $ExecutionContext.InvokeCommand.GetCommand('Get-ItemProperty', 'Cmdlet')
    & $real @args
}

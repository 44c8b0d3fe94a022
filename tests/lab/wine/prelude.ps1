# Doubles in the lab on Wine, run before each script: what the engine lacks and Windows has as cmdlets. Each asks a real
# thing of Wine's: services its service control manager, tasks schtasks.exe, which runs them. The registry, processes and
# files need none. What is not here, or is called otherwise, ends the script with 250.
function global:Stop-Lab([string] $what) {
    [Console]::Error.WriteLine("lab: not implemented: $what")
    [Environment]::Exit(250)
}
# A program's lines; its exit code is kept from the script.
function global:Invoke-LabProgram([string] $program, [string[]] $words) {
    Set-StrictMode -Off
    $before = $global:LASTEXITCODE
    $lines = @(& $program @words 2>&1 | ForEach-Object { "$_" })
    $code = $LASTEXITCODE
    $global:LASTEXITCODE = $before
    if ($code -eq 250) { Stop-Lab "$($lines -join ' ')" }
    return [pscustomobject]@{ Code = $code; Lines = $lines }
}

function global:Get-Service {
    [CmdletBinding()] param([Parameter(Position = 0, Mandatory)][string] $Name)
    $asked = Invoke-LabProgram 'C:\lab\service.exe' @('query', $Name)
    if ($asked.Code -eq 1060) { Write-Error "Cannot find any service with service name '$Name'." -Category ObjectNotFound; return }
    if ($asked.Code -ne 0) { Stop-Lab "Get-Service $Name ($($asked.Code))" }
    $status, $start = $asked.Lines[0] -split ' '
    [pscustomobject]@{ Name = $Name; Status = $status; StartType = $start }
}

# Scheduled tasks.
function global:Invoke-LabTask([string[]] $words) {
    $ran = Invoke-LabProgram 'C:\windows\system32\schtasks.exe' $words
    if ($ran.Code -ne 0) { throw "$($ran.Lines -join ' ')" }
    return $ran.Lines
}
function global:Register-ScheduledTask {
    [CmdletBinding()] param([string] $TaskName, [string] $Xml, [string] $User, [string] $Password, [switch] $Force)
    $file = [IO.Path]::GetTempFileName()
    try {
        [IO.File]::WriteAllText($file, $Xml, [Text.Encoding]::Unicode)
        $words = @('/create', '/tn', $TaskName, '/xml', $file)
        if ($User) { $words += '/ru', $User }
        if ($Force) { $words += '/f' }
        $null = Invoke-LabTask $words
    } finally { [IO.File]::Delete($file) }
    Get-ScheduledTask -TaskName $TaskName
}
function global:Start-ScheduledTask { [CmdletBinding()] param([string] $TaskName) $null = Invoke-LabTask '/run', '/tn', $TaskName }
function global:Stop-ScheduledTask { [CmdletBinding()] param([string] $TaskName) $null = Invoke-LabTask '/end', '/tn', $TaskName }
function global:Unregister-ScheduledTask { [CmdletBinding()] param([string] $TaskName, [switch] $Confirm) $null = Invoke-LabTask '/delete', '/tn', $TaskName, '/f' }
function global:Get-ScheduledTask {
    [CmdletBinding()] param([Parameter(Mandatory)][string] $TaskName)
    try { $lines = Invoke-LabTask '/query', '/tn', $TaskName } catch {
        Write-Error "No MSFT_ScheduledTask objects found with property 'TaskName' equal to '$TaskName'." -Category ObjectNotFound
        return
    }
    [pscustomobject]@{ TaskName = $TaskName; State = ($lines -match '^Status:')[0].Split(':')[1].Trim() }
}
function global:Get-ScheduledTaskInfo {
    [CmdletBinding()] param([Parameter(Mandatory)][string] $TaskName)
    $lines = Invoke-LabTask '/query', '/tn', $TaskName
    [pscustomobject]@{ TaskName = $TaskName; LastTaskResult = [long]($lines -match '^Last Result:')[0].Split(':')[1] }
}

# CIM, as far as it is here. How often Windows may be generalized again is a value of the lab's in the registry.
function global:Get-CimInstance {
    [CmdletBinding()] param([Parameter(Position = 0)][string] $ClassName, [string] $Filter)
    if ($ClassName -eq 'Win32_OperatingSystem' -and -not $Filter) {
        $milliseconds = [long]([double]::Parse($env:LAB_BOOT_TIME, [Globalization.CultureInfo]::InvariantCulture) * 1000)
        return [pscustomobject]@{ Caption = 'Kiln lab (Wine, no Windows)'; Version = '0.0.0'; LastBootUpTime = [DateTimeOffset]::FromUnixTimeMilliseconds($milliseconds).LocalDateTime }
    }
    if ($ClassName -eq 'Win32_LogicalDisk' -and $Filter -eq "DeviceID='C:'") { return [pscustomobject]@{ DeviceID = 'C:'; FreeSpace = [IO.DriveInfo]::new('C').AvailableFreeSpace } }
    if ($ClassName -eq 'SoftwareLicensingService' -and -not $Filter) {
        $key = 'HKLM:\SOFTWARE\Microsoft\Windows NT\CurrentVersion\SoftwareProtectionPlatform'
        return [pscustomobject]@{ RemainingWindowsReArmCount = (Get-ItemProperty -LiteralPath $key -Name LabRearmsLeft).LabRearmsLeft }
    }
    Stop-Lab "Get-CimInstance $ClassName $Filter"
}

# Volumes: the machine has c: alone, and Wine's files are in Linux' hands once they are written.
function global:Get-Volume { [CmdletBinding()] param() [pscustomobject]@{ DriveLetter = [char]'C'; DriveType = 'Fixed' } }
function global:Write-VolumeCache { [CmdletBinding()] param([string] $DriveLetter) if ($DriveLetter -ne 'C') { Stop-Lab "volume $DriveLetter" } }
# Last, as the lines above look for commands. The engine's own action finds programs on the PATH. A name that is made
# as a cmdlet's is then one the lab lacks; "get-" is the engine's try for a name it does not know.
$global:LabFind = $ExecutionContext.InvokeCommand.CommandNotFoundAction
$ExecutionContext.InvokeCommand.CommandNotFoundAction = {
    param($name, $found)
    $LabFind.Invoke($name, $found)
    if ($null -eq $found.Command -and $name -match '^[A-Za-z]+-[A-Za-z]' -and $name -cnotlike 'get-*') { Stop-Lab "command $name" }
}

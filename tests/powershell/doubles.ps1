# Doubles for what is Windows' own, run before the text under test. They are loud: a command, a path or a value that
# a test did not provide for ends the engine with 250, past every try and every -ErrorAction.
# LAB_DIR is the test's folder: `c` is the drive c:, `calls` the list of calls that change something.
$global:Lab = @{ Dir = $Env:LAB_DIR; Calls = "$Env:LAB_DIR/calls"; Values = @{}; Real = @{}; Keys = @{}; Fails = ''; Refuses = $false; Processes = $null }
function global:Stop-Lab([string] $what) {
    [Console]::Error.WriteLine("lab: unexpected: $what")
    [Environment]::Exit(250)
}
function global:Add-Call([string] $what) { [IO.File]::AppendAllText($Lab.Calls, "$what`n") }
foreach ($name in 'Test-Path', 'Get-Item', 'Get-ChildItem', 'New-Item', 'Remove-Item', 'Set-Item', 'New-Object', 'Get-Process') {
    $found = $ExecutionContext.InvokeCommand.GetCommand($name, 'Cmdlet')
    if ($null -ne $found) { $Lab.Real[$name] = $found }
}
$null = [IO.Directory]::CreateDirectory("$($Lab.Dir)/c/Windows")
$files = $ExecutionContext.SessionState.Provider.GetOne('FileSystem')
$null = $ExecutionContext.SessionState.Drive.New([Management.Automation.PSDriveInfo]::new('c', $files, "$($Lab.Dir)/c", '', $null), 'Global')
$Env:SystemRoot = "$($Lab.Dir)/c/Windows"
$Env:SystemDrive = 'C:'
$Env:COMPUTERNAME = 'LAB'
$Env:PROCESSOR_ARCHITECTURE = 'AMD64'

# The registry: $Lab.Keys[path][value name]. A script block is asked each time.
function global:Get-LabKey([string] $path) {
    if ($path -notlike 'HKLM:\*') { Stop-Lab "registry path $path" }
    return $Lab.Keys[$path]
}
function global:Get-ItemProperty {
    [CmdletBinding()] param([Parameter(Position = 0)][string] $Path, [string] $LiteralPath, [string] $Name)
    $at = "$Path$LiteralPath"
    $key = Get-LabKey $at
    if ($null -eq $key) { Write-Error "Cannot find path '$at' because it does not exist."; return }
    if ($Name -and -not $key.ContainsKey($Name)) { Write-Error "Property $Name does not exist at path $at."; return }
    $found = [ordered]@{}
    foreach ($each in $key.Keys) {
        $value = $key[$each]
        $found[$each] = if ($value -is [scriptblock]) { & $value } else { $value }
    }
    return [pscustomobject]$found
}
function global:Set-ItemProperty {
    [CmdletBinding()] param([string] $LiteralPath, [string] $Name, $Value, [string] $Type)
    $key = Get-LabKey $LiteralPath
    if ($null -eq $key) { Write-Error "Cannot find path '$LiteralPath' because it does not exist."; return }
    $key[$Name] = $Value
    Add-Call "set $LiteralPath $Name=$Value $Type".TrimEnd()
}
function global:Remove-ItemProperty {
    [CmdletBinding()] param([string] $LiteralPath, [string] $Name)
    $key = Get-LabKey $LiteralPath
    if ($null -eq $key -or -not $key.ContainsKey($Name)) { Write-Error "Property $Name does not exist at path $LiteralPath."; return }
    $key.Remove($Name)
    Add-Call "unset $LiteralPath $Name"
}
# Items of WSMan: and Cert: are in $Lab.Values by path; keys of the registry in $Lab.Keys; files are real.
function global:Test-Path {
    [CmdletBinding()] param([Parameter(Position = 0)][string] $Path, [string] $LiteralPath, [string] $PathType)
    $at = "$Path$LiteralPath"
    if ($at -like 'HKLM:\*') { return $Lab.Keys.ContainsKey($at) }
    if ($at -like 'Cert:\*' -or $at -like 'WSMan:\*') { return $Lab.Values.ContainsKey($at) }
    return & $Lab.Real['Test-Path'] @PSBoundParameters
}
function global:Get-Item {
    [CmdletBinding()] param([string] $LiteralPath)
    if (-not $Lab.Values.ContainsKey($LiteralPath)) { Stop-Lab "Get-Item $LiteralPath" }
    $value = $Lab.Values[$LiteralPath]
    if ($value -is [scriptblock]) { return & $value }
    return $value
}
function global:Set-Item {
    [CmdletBinding()] param([string] $LiteralPath, $Value, [switch] $Force)
    if (-not $Lab.Values.ContainsKey($LiteralPath)) { Stop-Lab "Set-Item $LiteralPath" }
    Add-Call "set $LiteralPath=$Value"
}
function global:Remove-Item {
    [CmdletBinding()] param([string] $LiteralPath, [switch] $Recurse, [switch] $Force, [switch] $DeleteKey)
    if ($LiteralPath -like 'Cert:\*' -or $LiteralPath -like 'WSMan:\*') {
        $with = if ($DeleteKey) { ' with its key' } else { '' }
        Add-Call "remove $LiteralPath$with"
        return
    }
    & $Lab.Real['Remove-Item'] @PSBoundParameters
}
function global:Get-ChildItem {
    [CmdletBinding()] param([string] $Path)
    if (-not $Lab.Values.ContainsKey($Path)) { Stop-Lab "Get-ChildItem $Path" }
    return $Lab.Values[$Path]
}
# Processes: $Lab.Processes is asked with the name.
function global:Get-Process {
    [CmdletBinding()] param([string] $Name, [switch] $IncludeUserName)
    if ($null -eq $Lab.Processes) { Stop-Lab "Get-Process $Name" }
    $found = @(& $Lab.Processes $Name)
    if ($found.Count -eq 0 -and $Name) { Write-Error "Cannot find a process with the name ""$Name""."; return }
    return $found
}
# Classes of CIM: $Lab.Cim[class].
$Lab.Cim = @{}
function global:Get-CimInstance {
    [CmdletBinding()] param([string] $ClassName, [string] $Filter)
    if (-not $Lab.Cim.ContainsKey($ClassName)) { Stop-Lab "Get-CimInstance $ClassName" }
    return & $Lab.Cim[$ClassName] $Filter
}
# Objects: COM classes and the serial port are given in $Lab.Objects; the rest are real.
$Lab.Objects = @{}
function global:New-Object {
    [CmdletBinding()] param([Parameter(Position = 0)][string] $TypeName, [Parameter(Position = 1)][object[]] $ArgumentList, [string] $ComObject)
    $wanted = "$ComObject$TypeName"
    if ($Lab.Objects.ContainsKey($wanted)) { return & $Lab.Objects[$wanted] $ArgumentList }
    if ($ComObject -or $TypeName -like '*SerialPort') { Stop-Lab "New-Object $wanted" }
    # The comma: an empty list is an object too.
    return , (& $Lab.Real['New-Object'] @PSBoundParameters)
}
# A serial port whose words are in the file `serial`.
function global:New-LabPort {
    $port = [pscustomobject]@{ NewLine = ''; WriteTimeout = 0; IsOpen = $false }
    $port | Add-LabMethod 'Open' { $this.IsOpen = $true }
    $port | Add-LabMethod 'Close' { $this.IsOpen = $false }
    $port | Add-LabMethod 'WriteLine' {
        param($line)
        if (-not $this.IsOpen) { Stop-Lab 'write to a closed port' }
        [IO.File]::AppendAllText("$($Lab.Dir)/serial", "$line`n")
    }
    return $port
}
filter global:Add-LabMethod([string] $name, [scriptblock] $body) {
    $_.PSObject.Members.Add([Management.Automation.PSScriptMethod]::new($name, $body))
}
# Last, as the lines above look for commands. The engine tries "get-" before a name it does not know.
$ExecutionContext.InvokeCommand.CommandNotFoundAction = {
    param($name, $event)
    if ($name -cnotlike 'get-*') { Stop-Lab "command $name" }
}

# Doubles for what is Windows' own, in the lab's guest: each asks the guest's start program (calls.py), which has the
# real hives, really runs tasks, really restarts. What is not here, or is called otherwise, ends the script with 250.
$global:LabReal = @{}
function global:Stop-Lab([string] $what) {
    [Console]::Error.WriteLine("lab: not implemented: $what")
    [Environment]::Exit(250)
}
function global:Invoke-Lab([hashtable] $asked) {
    $asked.task = "$env:LAB_TASK"
    $socket = [Net.Sockets.Socket]::new('Unix', 'Stream', 'Unspecified')
    try {
        $socket.Connect([Net.Sockets.UnixDomainSocketEndPoint]::new($env:LAB_GUEST))
        $octets = [Text.Encoding]::UTF8.GetBytes((ConvertTo-Json -InputObject $asked -Compress -Depth 6) + "`n")
        $sent = 0
        while ($sent -lt $octets.Length) { $sent += $socket.Send($octets, $sent, $octets.Length - $sent, 'None') }
        $reader = [IO.StreamReader]::new([Net.Sockets.NetworkStream]::new($socket, $false))
        $answer = ConvertFrom-Json -InputObject $reader.ReadLine()
    } finally { $socket.Dispose() }
    $names = @($answer.PSObject.Properties | ForEach-Object { $_.Name })
    if ($names -contains 'loud') { Stop-Lab $answer.loud }
    if ($names -contains 'error') {
        if ($names -contains 'code' -and $null -ne $answer.code) { throw [Runtime.InteropServices.COMException]::new($answer.error, [int]$answer.code) }
        throw $answer.error
    }
    return $answer
}
# Null for what was not given.
function global:Get-LabText([string] $text) { if ($text) { return $text } else { return $null } }
filter global:Add-LabMethod([string] $name, [scriptblock] $body) { $_.PSObject.Members.Add([Management.Automation.PSScriptMethod]::new($name, $body)) }
filter global:Add-LabProperty([string] $name, [scriptblock] $body) { $_.PSObject.Members.Add([Management.Automation.PSScriptProperty]::new($name, $body)) }

# Cmdlets that know files in the engine: paths of the drives HKLM:, Cert: and WSMan: go to the functions below.
foreach ($name in 'Get-ItemProperty', 'Set-ItemProperty', 'Remove-ItemProperty', 'New-ItemProperty', 'Test-Path', 'Get-Item', 'Set-Item', 'New-Item', 'Remove-Item', 'Get-ChildItem', 'Get-Process', 'New-Object') {
    $found = $ExecutionContext.InvokeCommand.GetCommand($name, 'Cmdlet')
    if ($null -ne $found) { $LabReal[$name] = $found }
}
$each = @'
    foreach ($given in $args) {
        if ("$given" -match '^(Microsoft\.PowerShell\.Core\\)?(Registry::|HKLM:|HKCU:|HKEY_|WSMan:|Cert:)') {
            try { Lab-NAME @args } catch [Management.Automation.ParameterBindingException] { Stop-Lab "NAME: $_" }
            return
        }
    }
    if (-not $LabReal.ContainsKey('NAME')) { Stop-Lab 'NAME' }
    $real = $LabReal['NAME']
    if ($MyInvocation.ExpectingInput) { $input | & $real @args } else { & $real @args }
'@
foreach ($name in 'Get-ItemProperty', 'Set-ItemProperty', 'Remove-ItemProperty', 'New-ItemProperty', 'Test-Path', 'Get-Item', 'Set-Item', 'New-Item', 'Remove-Item', 'Get-ChildItem') {
    . ([scriptblock]::Create("function global:$name {`n" + $each.Replace('NAME', $name) + "`n}"))
}
function global:Get-LabPath([string] $path, [string] $literal, [string] $what, [string] $drives) {
    $at = "$path$literal"
    if ($at -match '^HKCU:|^WSMan:' -and $at -notmatch '^WSMan:\\localhost\\' -or $at -notmatch "^(Microsoft\.PowerShell\.Core\\)?($drives)") { Stop-Lab "$what $at" }
    return $at
}
$global:LabKeys = 'HKLM:|Registry::HKEY_LOCAL_MACHINE|HKEY_LOCAL_MACHINE'
function global:Get-LabValue($value) {
    switch ($value.type) {
        'DWord' { return [int]$value.value }
        'QWord' { return [long]$value.value }
        'Binary' { return , [Convert]::FromBase64String($value.value) }
        'MultiString' { return , [string[]]@($value.value) }
    }
    return "$($value.value)"
}
function global:Lab-Get-ItemProperty {
    [CmdletBinding()] param([Parameter(Position = 0)][string] $Path, [string] $LiteralPath, [Parameter(Position = 1)][string] $Name)
    $at = Get-LabPath $Path $LiteralPath 'Get-ItemProperty' $LabKeys
    if (-not (Invoke-Lab @{ do = 'key-exists'; path = $at }).there) { Write-Error "Cannot find path '$at' because it does not exist." -Category ObjectNotFound; return }
    $found = [pscustomobject]@{}
    foreach ($value in @((Invoke-Lab @{ do = 'key-values'; path = $at }).values)) {
        if ($null -eq $value -or ($Name -and $value.name -ne $Name)) { continue }
        $found.PSObject.Properties.Add([Management.Automation.PSNoteProperty]::new($value.name, (Get-LabValue $value)))
    }
    if ($Name -and -not $found.PSObject.Properties[$Name]) { Write-Error "Property $Name does not exist at path $at." -Category InvalidArgument; return }
    return $found
}
function global:Set-LabValue([string] $at, [string] $name, $value, [string] $type) {
    if ($value -is [bool]) { $value = [int]$value }
    if ($value -is [byte[]]) { if (-not $type) { $type = 'Binary' }; $value = @($value | ForEach-Object { [int]$_ }) }
    $null = Invoke-Lab @{ do = 'value-set'; path = $at; name = $name; value = $value; type = $type }
}
function global:Lab-Set-ItemProperty {
    [CmdletBinding()] param([Parameter(Position = 0)][string] $Path, [string] $LiteralPath, [Parameter(Position = 1)][string] $Name, [Parameter(Position = 2)] $Value, [string] $Type, [switch] $Force)
    $at = Get-LabPath $Path $LiteralPath 'Set-ItemProperty' $LabKeys
    if (-not (Invoke-Lab @{ do = 'key-exists'; path = $at }).there) { Write-Error "Cannot find path '$at' because it does not exist." -Category ObjectNotFound; return }
    Set-LabValue $at $Name $Value $Type
}
function global:Lab-New-ItemProperty {
    [CmdletBinding()] param([Parameter(Position = 0)][string] $Path, [string] $LiteralPath, [string] $Name, $Value, [string] $PropertyType, [switch] $Force)
    $at = Get-LabPath $Path $LiteralPath 'New-ItemProperty' $LabKeys
    if (-not (Invoke-Lab @{ do = 'key-exists'; path = $at }).there) { Write-Error "Cannot find path '$at' because it does not exist." -Category ObjectNotFound; return }
    $there = @((Invoke-Lab @{ do = 'key-values'; path = $at }).values | Where-Object { $_.name -eq $Name })
    if ($there.Count -gt 0 -and -not $Force) { Write-Error 'The property already exists.'; return }
    Set-LabValue $at $Name $Value $PropertyType
    return Lab-Get-ItemProperty -LiteralPath $at -Name $Name
}
function global:Lab-Remove-ItemProperty {
    [CmdletBinding()] param([Parameter(Position = 0)][string] $Path, [string] $LiteralPath, [Parameter(Position = 1)][string] $Name, [switch] $Force)
    $at = Get-LabPath $Path $LiteralPath 'Remove-ItemProperty' $LabKeys
    try { $null = Invoke-Lab @{ do = 'value-remove'; path = $at; name = $Name } } catch { Write-Error "Property $Name does not exist at path $at." }
}
function global:Lab-Test-Path {
    [CmdletBinding()] param([Parameter(Position = 0)][string] $Path, [string] $LiteralPath, [string] $PathType)
    $at = Get-LabPath $Path $LiteralPath 'Test-Path' "$LabKeys|Cert:"
    $what = if ($at -like 'Cert:*') { 'certificate-exists' } else { 'key-exists' }
    return [bool](Invoke-Lab @{ do = $what; path = $at }).there
}
function global:Lab-Get-Item {
    [CmdletBinding()] param([Parameter(Position = 0)][string] $Path, [string] $LiteralPath)
    $at = Get-LabPath $Path $LiteralPath 'Get-Item' "$LabKeys|WSMan:"
    if ($at -like 'WSMan:*') { return [pscustomobject]@{ Name = $at.Split('\')[-1]; Value = (Invoke-Lab @{ do = 'quota'; path = $at }).value } }
    if (-not (Invoke-Lab @{ do = 'key-exists'; path = $at }).there) { Write-Error "Cannot find path '$at' because it does not exist." -Category ObjectNotFound; return }
    $key = [pscustomobject]@{ PSPath = $at; PSChildName = $at.Split('\')[-1]; Property = @((Invoke-Lab @{ do = 'key-values'; path = $at }).values | ForEach-Object { $_.name }) }
    $key | Add-LabMethod 'Flush' { $null = Invoke-Lab @{ do = 'flush' } }
    return $key
}
function global:Lab-Set-Item {
    [CmdletBinding()] param([Parameter(Position = 0)][string] $Path, [string] $LiteralPath, [Parameter(Position = 1)] $Value, [switch] $Force)
    $null = Invoke-Lab @{ do = 'quota-set'; path = (Get-LabPath $Path $LiteralPath 'Set-Item' 'WSMan:'); value = "$Value" }
}
function global:Lab-New-Item {
    [CmdletBinding()] param([Parameter(Position = 0)][string] $Path, [string] $Transport, [string] $Address, [int] $Port, [string] $CertificateThumbPrint, [switch] $Force)
    $at = Get-LabPath $Path '' 'New-Item' "$LabKeys|WSMan:"
    if ($at -like 'WSMan:*') {
        if ($at -ne 'WSMan:\localhost\Listener' -or $Address -ne '*') { Stop-Lab "New-Item $at $Address" }
        return Invoke-Lab @{ do = 'listener-add'; transport = $Transport; port = $Port; thumbprint = $CertificateThumbPrint }
    }
    if ($Transport -or $Address -or $Port -or $CertificateThumbPrint) { Stop-Lab "New-Item $at" }
    if ((Invoke-Lab @{ do = 'key-exists'; path = $at }).there -and -not $Force) { Write-Error 'A key in this path already exists.'; return }
    $null = Invoke-Lab @{ do = 'key-add'; path = $at }
    return Lab-Get-Item -LiteralPath $at
}
function global:Lab-Remove-Item {
    [CmdletBinding()] param([Parameter(Position = 0)][string] $Path, [string] $LiteralPath, [switch] $Recurse, [switch] $Force, [switch] $DeleteKey)
    $at = Get-LabPath $Path $LiteralPath 'Remove-Item' "$LabKeys|WSMan:|Cert:"
    if ($at -like 'Cert:*') { $null = Invoke-Lab @{ do = 'certificate-remove'; path = $at; key = [bool]$DeleteKey } }
    elseif ($at -like 'WSMan:*') { $null = Invoke-Lab @{ do = 'listener-remove'; path = $at } }
    else { $null = Invoke-Lab @{ do = 'key-delete'; path = $at } }
}
function global:Lab-Get-ChildItem {
    [CmdletBinding()] param([Parameter(Position = 0)][string] $Path, [string] $LiteralPath)
    # No user's hive is there.
    if ("$Path$LiteralPath" -eq 'Registry::HKEY_USERS') { return }
    $at = Get-LabPath $Path $LiteralPath 'Get-ChildItem' "$LabKeys|WSMan:"
    if ($at -like 'WSMan:*') {
        if ($at -ne 'WSMan:\localhost\Listener') { Stop-Lab "Get-ChildItem $at" }
        foreach ($one in @((Invoke-Lab @{ do = 'listeners' }).listeners)) { if ($null -ne $one) { [pscustomobject]@{ PSPath = $one.path; Keys = @($one.keys) } } }
        return
    }
    foreach ($one in @((Invoke-Lab @{ do = 'key-children'; path = $at }).names)) { if ($null -ne $one) { [pscustomobject]@{ PSChildName = $one; PSPath = "$at\$one"; Name = "$at\$one" } } }
}

# Services, network, certificates.
function global:Get-Service {
    [CmdletBinding()] param([Parameter(Position = 0)][string] $Name)
    $found = @((Invoke-Lab @{ do = 'services'; name = (Get-LabText $Name) }).services)
    if ($found.Count -eq 0) { Write-Error "Cannot find any service with service name '$Name'." -Category ObjectNotFound; return }
    return $found
}
function global:Set-Service {
    [CmdletBinding()] param([Parameter(Position = 0, Mandatory)][string] $Name, [string] $StartupType, [string] $Status)
    $null = Invoke-Lab @{ do = 'service-set'; name = $Name; start = (Get-LabText $StartupType); status = (Get-LabText $Status) }
}
function global:Start-Service { [CmdletBinding()] param([Parameter(Position = 0, Mandatory)][string] $Name) $null = Invoke-Lab @{ do = 'service-set'; name = $Name; status = 'Running' } }
function global:Stop-Service { [CmdletBinding()] param([Parameter(Position = 0, Mandatory)][string] $Name, [switch] $Force) $null = Invoke-Lab @{ do = 'service-set'; name = $Name; status = 'Stopped' } }
function global:Enable-PSRemoting { [CmdletBinding()] param([switch] $SkipNetworkProfileCheck, [switch] $Force) $null = Invoke-Lab @{ do = 'remoting' } }
function global:Get-NetConnectionProfile { [CmdletBinding()] param() foreach ($one in @((Invoke-Lab @{ do = 'networks' }).networks)) { if ($null -ne $one) { [pscustomobject]@{ Name = $one.Name; InstanceID = '{network-1}'; NetworkCategory = $one.Category } } } }
function global:Set-NetConnectionProfile {
    [CmdletBinding()] param([Parameter(ValueFromPipeline)] $InputObject, [ValidateSet('Private', 'Public')][string] $NetworkCategory)
    process { $null = Invoke-Lab @{ do = 'network-set'; category = $NetworkCategory } }
}
function global:Get-NetFirewallRule {
    [CmdletBinding()] param([Parameter(Position = 0, Mandatory)][string] $Name)
    $found = @((Invoke-Lab @{ do = 'rules' }).rules | Where-Object { $_.Name -like $Name })
    if ($found.Count -eq 0) { Write-Error "No MSFT_NetFirewallRule objects found with property 'InstanceID' equal to '$Name'." -Category ObjectNotFound; return }
    return $found
}
function global:Set-NetFirewallRule {
    [CmdletBinding()] param([Parameter(Mandatory)][string] $Name, [ValidateSet('True', 'False')][string] $Enabled)
    $null = Invoke-Lab @{ do = 'rule-set'; name = $Name; enabled = $Enabled -eq 'True' }
}
function global:New-NetFirewallRule {
    [CmdletBinding()] param([string] $Name, [string] $DisplayName, [ValidateSet('Inbound')][string] $Direction, [ValidateSet('TCP')][string] $Protocol, [int] $LocalPort, [ValidateSet('Allow')][string] $Action, [ValidateSet('Any')][string] $Profile)
    $null = Invoke-Lab @{ do = 'rule-add'; name = $Name; port = $LocalPort }
}
function global:Remove-NetFirewallRule {
    [CmdletBinding()] param([Parameter(ValueFromPipeline)] $InputObject)
    process { $null = Invoke-Lab @{ do = 'rule-remove'; name = "$($InputObject.Name)" } }
}
function global:New-SelfSignedCertificate {
    [CmdletBinding()] param([string] $DnsName, [string] $CertStoreLocation)
    $made = Invoke-Lab @{ do = 'certificate-make'; name = $DnsName; store = $CertStoreLocation }
    [pscustomobject]@{ Thumbprint = $made.thumbprint; RawData = [Convert]::FromBase64String($made.raw) }
}

# Accounts, processes, CIM.
function global:Get-LocalUser {
    [CmdletBinding()] param([Parameter(Position = 0)][string] $Name)
    if ($Name) { return [pscustomobject]@{ Name = $Name; SID = (Invoke-Lab @{ do = 'account'; name = $Name }).sid } }
    foreach ($one in @((Invoke-Lab @{ do = 'accounts' }).accounts)) { if ($null -ne $one) { [pscustomobject]@{ Name = $one.name; SID = $one.sid } } }
}
function global:Remove-LocalUser { [CmdletBinding()] param([Parameter(Position = 0, Mandatory)][string] $Name) $null = Invoke-Lab @{ do = 'account-remove'; name = $Name } }
# ADSI's provider for accounts of this machine.
function global:New-LabEntry([string] $path) {
    if ($path -notmatch "^WinNT://($([regex]::Escape($env:COMPUTERNAME))|\.)/([^/,]+),user$") { Stop-Lab "directory entry $path" }
    $entry = [pscustomobject]@{ Name = $Matches[2] }
    $entry | Add-LabMethod 'ChangePassword' { param([string] $old, [string] $new) $null = Invoke-Lab @{ do = 'account-password'; name = $this.Name; old = $old; new = $new } }
    $entry | Add-LabMethod 'SetPassword' { param([string] $new) $null = Invoke-Lab @{ do = 'account-password'; name = $this.Name; new = $new } }
    return $entry
}
function global:Set-Date { [CmdletBinding()] param([Parameter(Mandatory)][DateTime] $Date) $null = Invoke-Lab @{ do = 'clock-set'; ms = ([DateTimeOffset]$Date).ToUnixTimeMilliseconds() }; return $Date }
function global:Get-Process {
    [CmdletBinding()] param([Parameter(Position = 0)][string] $Name, [int] $Id, [switch] $IncludeUserName)
    if ($Id) { return & $LabReal['Get-Process'] -Id $Id }
    $found = @((Invoke-Lab @{ do = 'processes' }).processes | Where-Object { -not $Name -or $_.Name -eq $Name })
    if ($Name -and $found.Count -eq 0) { Write-Error "Cannot find a process with the name ""$Name""." -Category ObjectNotFound; return }
    return $found
}
function global:Get-CimInstance {
    [CmdletBinding()] param([Parameter(Position = 0)][string] $ClassName, [string] $Filter)
    if ($ClassName -eq 'Win32_UserProfile') {
        $sid = $null
        if ($Filter -match "^SID='([^']+)'$") { $sid = $Matches[1] } elseif ($Filter) { Stop-Lab "Win32_UserProfile $Filter" }
        foreach ($one in @((Invoke-Lab @{ do = 'profiles'; sid = $sid }).profiles)) { if ($null -ne $one) { [pscustomobject]@{ CimClass = $ClassName; SID = $one.SID; LocalPath = $one.LocalPath; Loaded = [bool]$one.Loaded } } }
        return
    }
    $system = Invoke-Lab @{ do = 'system' }
    if ($ClassName -eq 'Win32_OperatingSystem' -and -not $Filter) {
        return [pscustomobject]@{ Caption = 'Kiln lab (Linux, no Windows)'; Version = '0.0.0'; LastBootUpTime = [DateTimeOffset]::FromUnixTimeSeconds([long]$system.boot_time).LocalDateTime }
    }
    if ($ClassName -eq 'Win32_LogicalDisk' -and $Filter -eq "DeviceID='C:'") { return [pscustomobject]@{ DeviceID = 'C:'; FreeSpace = [long]$system.free } }
    if ($ClassName -eq 'SoftwareLicensingService' -and -not $Filter) { return [pscustomobject]@{ RemainingWindowsReArmCount = [int]$system.rearms } }
    Stop-Lab "Get-CimInstance $ClassName $Filter"
}
function global:Remove-CimInstance {
    [CmdletBinding()] param([Parameter(ValueFromPipeline)] $InputObject)
    process {
        if ($InputObject.CimClass -ne 'Win32_UserProfile') { Stop-Lab "Remove-CimInstance $($InputObject.CimClass)" }
        $null = Invoke-Lab @{ do = 'profile-remove'; sid = $InputObject.SID }
    }
}

# Scheduled tasks.
function global:Register-ScheduledTask {
    [CmdletBinding()] param([string] $TaskName, [string] $Xml, [string] $User, [string] $Password, [switch] $Force)
    $null = Invoke-Lab @{ do = 'task-register'; name = $TaskName; xml = $Xml; user = (Get-LabText $User); password = $Password; force = [bool]$Force }
    [pscustomobject]@{ TaskName = $TaskName; State = 'Ready' }
}
function global:Start-ScheduledTask { [CmdletBinding()] param([string] $TaskName) $null = Invoke-Lab @{ do = 'task-start'; name = $TaskName } }
function global:Stop-ScheduledTask { [CmdletBinding()] param([string] $TaskName) $null = Invoke-Lab @{ do = 'task-stop'; name = $TaskName } }
function global:Unregister-ScheduledTask { [CmdletBinding()] param([string] $TaskName, [switch] $Confirm) $null = Invoke-Lab @{ do = 'task-remove'; name = $TaskName } }
function global:Get-ScheduledTask {
    [CmdletBinding()] param([string] $TaskName)
    $found = @((Invoke-Lab @{ do = 'tasks'; name = (Get-LabText $TaskName) }).tasks | ForEach-Object { [pscustomobject]@{ TaskName = $_.name; State = $_.state } })
    if ($found.Count -eq 0 -and $TaskName) { Write-Error "No MSFT_ScheduledTask objects found with property 'TaskName' equal to '$TaskName'." -Category ObjectNotFound; return }
    return $found
}
function global:Get-ScheduledTaskInfo {
    [CmdletBinding()] param([string] $TaskName)
    $found = @((Invoke-Lab @{ do = 'tasks'; name = $TaskName }).tasks)
    if ($found.Count -eq 0) { throw 'The system cannot find the file specified.' }
    [pscustomobject]@{ TaskName = $TaskName; LastTaskResult = [long]$found[0].result }
}

# Disks and volumes.
function global:Update-HostStorageCache { [CmdletBinding()] param() }
function global:Get-Volume { [CmdletBinding()] param() [pscustomobject]@{ DriveLetter = [char]'C'; DriveType = 'Fixed'; FileSystem = 'NTFS' } }
function global:Write-VolumeCache { [CmdletBinding()] param([string] $DriveLetter) if ($DriveLetter -ne 'C') { Stop-Lab "volume $DriveLetter" }; $null = Invoke-Lab @{ do = 'flush' } }
function global:Get-Partition {
    [CmdletBinding()] param([string] $DriveLetter, [int] $DiskNumber = -1)
    if ($DriveLetter -and $DriveLetter -ne 'C' -or $DiskNumber -gt 0) { Stop-Lab "partition of $DriveLetter $DiskNumber" }
    $disk = Invoke-Lab @{ do = 'disk' }
    foreach ($one in @($disk.partitions)) {
        if ($DriveLetter -and $one.number -ne $disk.mine) { continue }
        [pscustomobject]@{ DiskNumber = 0; PartitionNumber = $one.number; Offset = [long]$one.offset; Size = [long]$one.size; GptType = "{$($one.type.ToLowerInvariant())}" }
    }
}
function global:Get-PartitionSupportedSize { [CmdletBinding()] param([string] $DriveLetter) if ($DriveLetter -ne 'C') { Stop-Lab "partition of $DriveLetter" }; [pscustomobject]@{ SizeMax = [long](Invoke-Lab @{ do = 'disk' }).most } }
function global:Get-Disk { [CmdletBinding()] param([int] $Number) if ($Number -ne 0) { Stop-Lab "disk $Number" }; [pscustomobject]@{ Number = 0; LargestFreeExtent = [long](Invoke-Lab @{ do = 'disk' }).free } }
function global:Resize-Partition { [CmdletBinding()] param([string] $DriveLetter, [long] $Size) if ($DriveLetter -ne 'C') { Stop-Lab "partition of $DriveLetter" }; $null = Invoke-Lab @{ do = 'disk-grow'; size = $Size } }

# COM: Windows Update. The serial port.
function global:New-LabCollection($items) {
    $all = [pscustomobject]@{ Inner = [Collections.ArrayList]::new() }
    foreach ($item in @($items)) { if ($null -ne $item) { $null = $all.Inner.Add($item) } }
    $all | Add-LabProperty 'Count' { $this.Inner.Count }
    $all | Add-LabMethod 'Item' { param($at) $this.Inner[$at] }
    $all | Add-LabMethod 'Add' { param($one) $this.Inner.Add($one) }
    return $all
}
function global:Get-LabIds($updates) { , @($updates.Inner | ForEach-Object { "$($_.Identity.UpdateID)" }) }
function global:Get-LabField($one, [string] $name) { if ($one.PSObject.Properties[$name]) { return $one.$name } }
function global:New-LabUpdate($one) {
    $update = [pscustomobject]@{
        Identity = [pscustomobject]@{ UpdateID = $one.id; RevisionNumber = 1 }; Title = $one.title; KBArticleIDs = @($one.kb)
        IsDownloaded = [bool]$one.downloaded; IsInstalled = [bool]$one.installed; IsHidden = $false; EulaAccepted = [bool]$one.accepted
        BrowseOnly = [bool](Get-LabField $one 'optional'); AutoSelectOnWebSites = -not [bool](Get-LabField $one 'optional')
        MsrcSeverity = Get-LabField $one 'severity'; InstallationBehavior = [pscustomobject]@{ CanRequestUserInput = [bool](Get-LabField $one 'input') }
    }
    $update | Add-LabMethod 'AcceptEula' { $null = Invoke-Lab @{ do = 'updates-accept'; ids = @("$($this.Identity.UpdateID)") }; $this.EulaAccepted = $true }
    return $update
}
function global:New-LabResults($results, [bool] $restart) {
    $all = [pscustomobject]@{ Inner = @($results); RebootRequired = $restart; ResultCode = 2 }
    $all | Add-LabMethod 'GetUpdateResult' { param($at) $one = $this.Inner[$at]; [pscustomobject]@{ ResultCode = [int]$one.code; HResult = [int]$one.hresult; RebootRequired = [bool]$one.restart } }
    return $all
}
function global:Test-LabCriteria([string] $criteria, $update) {
    foreach ($clause in $criteria -split '\s+and\s+') {
        if ($clause -match '^\s*(BrowseOnly|IsInstalled|IsHidden)\s*=\s*([01])\s*$') { if ([bool]$update.($Matches[1]) -ne ($Matches[2] -eq '1')) { return $false } }
        elseif ($clause -match "^\s*Type\s*=\s*'(Software|Driver)'\s*$") { if ($Matches[1] -eq 'Driver') { return $false } }
        else { Stop-Lab "search criteria $clause" }
    }
    return $true
}
function global:New-LabSession {
    $session = [pscustomobject]@{ ClientApplicationID = '' }
    $session | Add-LabMethod 'CreateUpdateSearcher' {
        $searcher = [pscustomobject]@{ ServerSelection = 0 }
        $searcher | Add-LabMethod 'Search' {
            param($criteria)
            $found = @((Invoke-Lab @{ do = 'updates' }).updates | ForEach-Object { New-LabUpdate $_ } | Where-Object { Test-LabCriteria $criteria $_ })
            [pscustomobject]@{ ResultCode = 2; Updates = (New-LabCollection $found) }
        }
        return $searcher
    }
    $session | Add-LabMethod 'CreateUpdateDownloader' {
        $null = Invoke-Lab @{ do = 'update-agent' }
        $downloader = [pscustomobject]@{ Updates = $null }
        $downloader | Add-LabMethod 'Download' {
            $null = Invoke-Lab @{ do = 'updates-download'; ids = (Get-LabIds $this.Updates) }
            foreach ($one in $this.Updates.Inner) { $one.IsDownloaded = $true }
            New-LabResults @($this.Updates.Inner | ForEach-Object { [pscustomobject]@{ code = 2; hresult = 0; restart = $false } }) $false
        }
        return $downloader
    }
    $session | Add-LabMethod 'CreateUpdateInstaller' {
        $null = Invoke-Lab @{ do = 'update-agent' }
        $installer = [pscustomobject]@{ Updates = $null }
        $installer | Add-LabProperty 'RebootRequiredBeforeInstallation' { [bool](Invoke-Lab @{ do = 'updates-pending' }).pending }
        $installer | Add-LabProperty 'IsBusy' { [bool](Invoke-Lab @{ do = 'updates-busy' }).busy }
        $installer | Add-LabMethod 'Install' {
            $said = Invoke-Lab @{ do = 'updates-install'; ids = (Get-LabIds $this.Updates) }
            New-LabResults @($said.results) ([bool]$said.restart)
        }
        return $installer
    }
    return $session
}
function global:New-LabPort($given) {
    if ($given.Count -ne 5) { Stop-Lab "a serial port with $($given.Count) arguments" }
    $port = [pscustomobject]@{ PortName = "$($given[0])"; NewLine = "`n"; WriteTimeout = -1; IsOpen = $false }
    $port | Add-LabMethod 'Open' { $null = Invoke-Lab @{ do = 'serial'; port = $this.PortName; text = '' }; $this.IsOpen = $true }
    $port | Add-LabMethod 'Close' { $this.IsOpen = $false }
    $port | Add-LabMethod 'WriteLine' {
        param($line)
        if (-not $this.IsOpen) { throw [InvalidOperationException]::new('The port is closed.') }
        $null = Invoke-Lab @{ do = 'serial'; port = $this.PortName; text = "$line$($this.NewLine)" }
    }
    return $port
}
function global:New-Object {
    [CmdletBinding()] param([Parameter(Position = 0)][string] $TypeName, [Parameter(Position = 1)][object[]] $ArgumentList, [string] $ComObject, $Property)
    if ($TypeName -eq 'System.IO.Ports.SerialPort') { return New-LabPort $ArgumentList }
    if ($TypeName -eq 'System.DirectoryServices.DirectoryEntry') { return New-LabEntry "$ArgumentList" }
    switch ($ComObject) {
        '' { return , (& $LabReal['New-Object'] @PSBoundParameters) }
        'Microsoft.Update.Session' { return New-LabSession }
        'Microsoft.Update.UpdateColl' { return New-LabCollection }
        'Microsoft.Update.SystemInfo' {
            $info = [pscustomobject]@{}
            $info | Add-LabProperty 'RebootRequired' { [bool](Invoke-Lab @{ do = 'updates-pending' }).pending }
            return $info
        }
    }
    Stop-Lab "New-Object -ComObject $ComObject"
}
# Last, as the lines above look for commands. A name that is made as a cmdlet's is one the lab lacks; "get-" is the
# engine's own try for a name it does not know.
$ExecutionContext.InvokeCommand.CommandNotFoundAction = {
    param($name, $found)
    if ($name -match '^[A-Za-z]+-[A-Za-z]' -and $name -cnotlike 'get-*') { Stop-Lab "command $name" }
}

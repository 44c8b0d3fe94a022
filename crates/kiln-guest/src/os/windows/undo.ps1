# Runs as SYSTEM from before Sysprep on: awaits the verdict, then takes the build out of this Windows and powers off.
#   verdict "generalized"   undo it, report over the serial port, power off
#   verdict "keep"          remove only this task
#   none in time            say so over the serial port; the machine is left as it is
# Each act is tried whatever became of the one before; what went wrong is in the report.
# Not $Bootstrapped: this Windows had its account and its listener before. They stay; only task and folder are the build's.
# Values: $Nonce, $Folder, $Task, $Bootstrapped, $User, $SerialPort, $VerdictSeconds, $ProfileSeconds, $PauseMilliseconds.
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version 2
$problems = [Collections.ArrayList]::new()
function Invoke-Act([string] $what, [scriptblock] $act) {
    try { & $act } catch { $null = $problems.Add("${what}: $($_.Exception.GetBaseException().Message)") }
}
function Send-Report([hashtable] $report) {
    $report.kind = 'undone'
    $report.nonce = $Nonce
    $report.problems = @($problems.ToArray())
    $serial = New-Object -TypeName System.IO.Ports.SerialPort -ArgumentList $SerialPort, 115200, 'None', 8, 'One'
    $serial.NewLine = "`n"
    $serial.WriteTimeout = 10000
    $serial.Open()
    $serial.WriteLine('kiln:' + (ConvertTo-Json -InputObject $report -Compress))
    $serial.Close()
}
function Remove-Value([string] $key, [string[]] $names) {
    if (-not (Test-Path -LiteralPath $key)) { return }
    $all = Get-ItemProperty -LiteralPath $key
    foreach ($name in $names) {
        if ($all.PSObject.Properties[$name]) { Remove-ItemProperty -LiteralPath $key -Name $name }
    }
}

[IO.File]::WriteAllText([IO.Path]::Combine($Folder, 'waits'), '')
$verdictFile = [IO.Path]::Combine($Folder, 'verdict')
$clock = [Diagnostics.Stopwatch]::StartNew()
while (-not [IO.File]::Exists($verdictFile)) {
    if ($clock.Elapsed.TotalSeconds -ge $VerdictSeconds) {
        Send-Report @{ done = $false; verdict = $null }
        exit 1
    }
    Start-Sleep -Milliseconds $PauseMilliseconds
}
$verdict = [IO.File]::ReadAllText($verdictFile)
if ($verdict -ne 'generalized') {
    Invoke-Act 'task' { Unregister-ScheduledTask -TaskName $Task -Confirm:$false }
    Send-Report @{ done = $false; verdict = $verdict }
    exit 0
}

if ($Bootstrapped) {
    $before = $null
    try { $before = [IO.File]::ReadAllText([IO.Path]::Combine($Folder, 'before.json')) | ConvertFrom-Json }
    catch { $null = $problems.Add("what was before: $($_.Exception.GetBaseException().Message)") }
    # The way in goes first. A connection that is still open breaks here, and is not needed any more.
    Invoke-Act 'listener' {
        $ours = @('Transport=HTTPS')
        if ($null -ne $before -and -not $before.httpListener) { $ours += 'Transport=HTTP' }
        Get-ChildItem -Path 'WSMan:\localhost\Listener' | Where-Object { @($_.Keys | Where-Object { $ours -contains $_ }).Count -gt 0 } |
            ForEach-Object { Remove-Item -LiteralPath $_.PSPath -Recurse -Force }
    }
    Invoke-Act 'firewall' { Get-NetFirewallRule -Name 'Kiln-WinRM' -ErrorAction SilentlyContinue | Remove-NetFirewallRule }
    if ($null -ne $before) {
        Invoke-Act 'firewall' { foreach ($rule in @($before.closedRules)) { Set-NetFirewallRule -Name $rule -Enabled False } }
        foreach ($quota in @($before.quotas.PSObject.Properties)) {
            Invoke-Act "quota $($quota.Name)" { Set-Item -LiteralPath $quota.Name -Value $quota.Value -Force -WarningAction SilentlyContinue }
        }
        Invoke-Act 'network' {
            foreach ($network in @(Get-NetConnectionProfile)) {
                # Else it is private already, or a domain's, which nobody sets.
                if (@($before.networks | Where-Object { $_.id -eq "$($network.InstanceID)" -and $_.category -eq 'Public' }).Count -gt 0) {
                    $network | Set-NetConnectionProfile -NetworkCategory Public
                }
            }
        }
        Invoke-Act 'certificate' {
            # Windows puts a copy among the certificates of authorities.
            foreach ($store in 'My', 'CA', 'Root') {
                $path = "Cert:\LocalMachine\$store\$($before.thumbprint)"
                if (-not (Test-Path -LiteralPath $path)) { continue }
                if ($store -eq 'My') { Remove-Item -LiteralPath $path -DeleteKey -Force } else { Remove-Item -LiteralPath $path -Force }
            }
        }
        Invoke-Act 'policy' {
            $key = 'HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Policies\System'
            if ($null -eq $before.tokenPolicy) { Remove-Value $key 'LocalAccountTokenFilterPolicy' }
            else { Set-ItemProperty -LiteralPath $key -Name LocalAccountTokenFilterPolicy -Value $before.tokenPolicy -Type DWord }
        }
        # Ends the shells of the build account too, whose profile must be free.
        Invoke-Act 'WinRM' {
            Stop-Service -Name WinRM -Force
            Set-Service -Name WinRM -StartupType $before.startType
        }
    }
    Invoke-Act 'autologon' {
        Remove-Value 'HKLM:\SOFTWARE\Microsoft\Windows NT\CurrentVersion\Winlogon' 'AutoAdminLogon', 'AutoLogonCount', 'AutoLogonSID', 'DefaultPassword', 'DefaultUserName', 'DefaultDomainName', 'LastUsedUsername'
        Remove-Value 'HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Authentication\LogonUI' 'LastLoggedOnUser', 'LastLoggedOnSAMUser', 'LastLoggedOnDisplayName', 'LastLoggedOnUserSID', 'SelectedUserSID'
    }
    Invoke-Act 'answer files' {
        foreach ($file in 'Panther\unattend.xml', 'Panther\unattend-original.xml', 'Panther\Unattend\unattend.xml', 'System32\Sysprep\unattend.xml') {
            $file = Join-Path -Path $Env:SystemRoot -ChildPath $file
            if (Test-Path -LiteralPath $file) { Remove-Item -LiteralPath $file -Force }
        }
    }
    Invoke-Act 'account' {
        $account = Get-LocalUser -Name $User
        $sid = "$($account.SID)"
        # The first logon's desktop still runs: its sessions are those with a shell of the user.
        foreach ($session in @(Get-Process -IncludeUserName | Where-Object { "$($_.UserName)" -like "*\$User" -and $_.SessionId -ne 0 } | ForEach-Object { $_.SessionId } | Select-Object -Unique)) {
            $null = & "$Env:SystemRoot\System32\logoff.exe" $session 2>&1
        }
        Remove-LocalUser -Name $User
        $clock = [Diagnostics.Stopwatch]::StartNew()
        while ($true) {
            $left = @(Get-CimInstance -ClassName Win32_UserProfile -Filter "SID='$sid'")
            if ($left.Count -eq 0) { break }
            if (-not $left[0].Loaded) {
                $left | Remove-CimInstance
                if (Test-Path -LiteralPath $left[0].LocalPath) { throw "the profile's folder $($left[0].LocalPath) is still there" }
                break
            }
            if ($clock.Elapsed.TotalSeconds -ge $ProfileSeconds) { throw "the profile $($left[0].LocalPath) is still in use after $ProfileSeconds s" }
            Start-Sleep -Milliseconds $PauseMilliseconds
        }
    }
}
Invoke-Act 'task' { Unregister-ScheduledTask -TaskName $Task -Confirm:$false }
# This script is in memory; its file is not needed.
Invoke-Act 'files' { [IO.Directory]::Delete($Folder, $true) }
Invoke-Act 'report' { Send-Report @{ done = $problems.Count -eq 0; verdict = $verdict } }
$null = & "$Env:SystemRoot\System32\shutdown.exe" /s /f /t 0
exit $LASTEXITCODE

# First logon of a fresh Windows: opens WinRM over HTTPS for the build, and tells its certificate over the serial port.
# What is changed is written down in `before.json` first, for undo.ps1 to put back.
# Values: $Nonce, $Folder, $Port, $SerialPort, $ProfileSeconds, $PauseSeconds.
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version 2
$step = 'serial port'
$serial = $null
# One JSON object a line. The nonce tells this boot's words from those of an earlier one.
function Send-Line([hashtable] $answer) {
    $answer.nonce = $Nonce
    $serial.WriteLine('kiln:' + (ConvertTo-Json -InputObject $answer -Compress))
}
function Get-Value([string] $key, [string] $name) {
    $all = Get-ItemProperty -LiteralPath $key
    if ($all.PSObject.Properties[$name]) { return $all.$name }
    return $null
}
try {
    $serial = New-Object -TypeName System.IO.Ports.SerialPort -ArgumentList $SerialPort, 115200, 'None', 8, 'One'
    $serial.NewLine = "`n"
    $serial.WriteTimeout = 10000
    $serial.Open()
    Send-Line @{ kind = 'bootstrap'; step = 'begun' }

    $step = 'autologon'
    # Its work is done. Until now the password stood here.
    $winlogon = 'HKLM:\SOFTWARE\Microsoft\Windows NT\CurrentVersion\Winlogon'
    Set-ItemProperty -LiteralPath $winlogon -Name AutoAdminLogon -Value '0'
    if ($null -ne (Get-Value $winlogon 'DefaultPassword')) { Remove-ItemProperty -LiteralPath $winlogon -Name DefaultPassword }

    $step = 'what was before'
    $policies = 'HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Policies\System'
    $service = Get-Service -Name WinRM
    $before = @{
        tokenPolicy = Get-Value $policies 'LocalAccountTokenFilterPolicy'
        startType = "$($service.StartType)"
        running = "$($service.Status)" -eq 'Running'
        httpListener = $false
        closedRules = @(Get-NetFirewallRule -Name 'WINRM-HTTP-In-TCP*' -ErrorAction SilentlyContinue | Where-Object { "$($_.Enabled)" -ne 'True' } | ForEach-Object { "$($_.Name)" })
        quotas = @{}
        networks = @()
        thumbprint = $null
    }
    # The listeners can be seen only while the service runs.
    if ($before.running) {
        $before.httpListener = @(Get-ChildItem -Path 'WSMan:\localhost\Listener' | Where-Object { $_.Keys -contains 'Transport=HTTP' }).Count -gt 0
    }

    $step = 'network'
    # Windows may not have looked at the network yet. A firewall rule for every profile comes below, so this may fail.
    $clock = [Diagnostics.Stopwatch]::StartNew()
    while ($true) {
        try {
            $networks = @(Get-NetConnectionProfile)
            if ($networks.Count -gt 0) {
                $before.networks = @($networks | ForEach-Object { @{ id = "$($_.InstanceID)"; category = "$($_.NetworkCategory)" } })
                $networks | Set-NetConnectionProfile -NetworkCategory Private
                break
            }
            $problem = 'Windows knows no network'
        } catch { $problem = "$_" }
        if ($clock.Elapsed.TotalSeconds -ge $ProfileSeconds) {
            Send-Line @{ kind = 'bootstrap'; step = 'network'; warning = $problem }
            break
        }
        Start-Sleep -Seconds $PauseSeconds
    }

    $step = 'remoting'
    $null = Enable-PSRemoting -SkipNetworkProfileCheck -Force
    Set-Service -Name WinRM -StartupType Automatic
    # Of a local account that is not the built-in administrator, Windows would cut the rights.
    Set-ItemProperty -LiteralPath $policies -Name LocalAccountTokenFilterPolicy -Value 1 -Type DWord

    $step = 'quotas'
    $quotas = @{
        'WSMan:\localhost\Shell\MaxMemoryPerShellMB' = '2147483647'
        'WSMan:\localhost\Shell\MaxProcessesPerShell' = '2147483647'
        'WSMan:\localhost\Shell\MaxShellsPerUser' = '2147483647'
        'WSMan:\localhost\Service\MaxConcurrentOperationsPerUser' = '4294967295'
    }
    foreach ($quota in @($quotas.Keys)) {
        # Newer systems have given some of them up; a low one costs time, not the build.
        try {
            $before.quotas[$quota] = "$((Get-Item -LiteralPath $quota).Value)"
            Set-Item -LiteralPath $quota -Value $quotas[$quota] -Force -WarningAction SilentlyContinue
        } catch { Send-Line @{ kind = 'bootstrap'; step = 'quotas'; warning = "${quota}: $_" } }
    }

    $step = 'certificate'
    $certificate = New-SelfSignedCertificate -DnsName $Env:COMPUTERNAME -CertStoreLocation 'Cert:\LocalMachine\My'
    $before.thumbprint = "$($certificate.Thumbprint)"
    $null = [IO.Directory]::CreateDirectory($Folder)
    [IO.File]::WriteAllText([IO.Path]::Combine($Folder, 'before.json'), (ConvertTo-Json -InputObject $before -Compress))

    $step = 'listener'
    $null = New-Item -Path 'WSMan:\localhost\Listener' -Transport HTTPS -Address * -Port $Port -CertificateThumbPrint $certificate.Thumbprint -Force

    $step = 'firewall'
    $null = New-NetFirewallRule -Name 'Kiln-WinRM' -DisplayName 'Kiln: WinRM over HTTPS' -Direction Inbound -Protocol TCP -LocalPort $Port -Action Allow -Profile Any

    $step = 'thumbprint'
    # Windows itself shows only SHA-1.
    $digest = { param($hash) [BitConverter]::ToString($hash.ComputeHash($certificate.RawData)).Replace('-', '').ToLowerInvariant() }
    $sha256 = & $digest ([Security.Cryptography.SHA256]::Create())
    $sha1 = & $digest ([Security.Cryptography.SHA1]::Create())
    Send-Line @{ kind = 'winrm'; port = $Port; sha256 = $sha256; sha1 = $sha1; computer = "$Env:COMPUTERNAME" }
    $serial.Close()
} catch {
    $problem = "$_"
    if ($null -ne $serial -and $serial.IsOpen) {
        Send-Line @{ kind = 'bootstrap-failed'; step = $step; error = $problem }
        $serial.Close()
    }
    [Console]::Error.WriteLine("bootstrap, ${step}: $problem")
    exit 1
}
exit 0

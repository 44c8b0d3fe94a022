# The service's own deprovisioning script, in its order and words, for a machine that may be elsewhere than in Azure:
# each wait is only for a service that exists, and bounded. What follows is sysprep_watch.ps1.
# Values: $ServiceSeconds, and those of sysprep_watch.ps1.
function Wait-GuestAgent([string] $name) {
    Write-Output ">>> Waiting for GA Service ($name) to start ..."
    if ($null -eq (Get-Service -Name $name -ErrorAction SilentlyContinue)) {
        Write-Output ">>> Not on Azure: $name absent, skipped"
        return
    }
    $clock = [Diagnostics.Stopwatch]::StartNew()
    while ($true) {
        $service = Get-Service -Name $name -ErrorAction SilentlyContinue
        if ($null -ne $service -and "$($service.Status)" -eq 'Running') { return }
        if ($clock.Elapsed.TotalSeconds -ge $ServiceSeconds) {
            Write-Output ">>> Warning: $name is not running after $ServiceSeconds s (an agent cannot get ready off Azure); going on"
            return
        }
        Start-Sleep -Seconds $PauseSeconds
    }
}
Wait-GuestAgent 'RdAgent'
Wait-GuestAgent 'WindowsAzureTelemetryService'
Wait-GuestAgent 'WindowsAzureGuestAgent'
Write-Output '>>> Sysprepping VM ...'
# An answer file that lies there would be used by the image's first boot; the build's own was one.
foreach ($file in 'System32\Sysprep\unattend.xml', 'Panther\unattend.xml', 'Panther\Unattend\unattend.xml') {
    $file = Join-Path -Path $Env:SystemRoot -ChildPath $file
    if (Test-Path -LiteralPath $file) { Remove-Item -LiteralPath $file -Force }
}
$sysprep = Join-Path -Path $Env:SystemRoot -ChildPath 'System32\Sysprep\Sysprep.exe'
if (-not (Test-Path -LiteralPath $sysprep)) {
    Write-Output ">>> ERROR: there is no $sysprep"
    exit 23
}
& $sysprep /oobe /generalize /quiet /quit

# Waits until Windows is generalized, and sees when it never will be.
#   0 generalized    20 Sysprep is gone and left what cannot be deployed    21 Sysprep is gone and Windows not generalized    22 the time is over
# Values: $SysprepSeconds, $GoneSeconds, $PauseSeconds, $TailLines.
$state = 'HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Setup\State'
function Stop-Sysprep([int] $code, [string] $why) {
    Write-Output ">>> ERROR: $why"
    foreach ($log in 'System32\Sysprep\Panther\setuperr.log', 'System32\Sysprep\Panther\setupact.log', 'Panther\setuperr.log') {
        $path = Join-Path -Path $Env:SystemRoot -ChildPath $log
        if (-not (Test-Path -LiteralPath $path)) { continue }
        Write-Output ">>> the end of ${path}:"
        Get-Content -LiteralPath $path -Tail $TailLines
    }
    exit $code
}
$clock = [Diagnostics.Stopwatch]::StartNew()
$lastSeen = [TimeSpan]::Zero
while ($true) {
    # Asked before the state is read: a Sysprep that ends in between has written its state by then.
    if (@(Get-Process -Name sysprep -ErrorAction SilentlyContinue).Count -gt 0) { $lastSeen = $clock.Elapsed }
    $imageState = (Get-ItemProperty -LiteralPath $state).ImageState
    Write-Output $imageState
    if ($imageState -eq 'IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE') { break }
    $gone = ($clock.Elapsed - $lastSeen).TotalSeconds
    if ($gone -ge $GoneSeconds) {
        # While Sysprep works, this is what Windows says (its documentation, "Windows Setup States"); afterwards it is a failure.
        if ($imageState -eq 'IMAGE_STATE_UNDEPLOYABLE') {
            Stop-Sysprep 20 "Sysprep failed half-way: it has not been running for $([int]$gone) s, and the image state is $imageState"
        }
        Stop-Sysprep 21 "Sysprep has not been running for $([int]$gone) s, and the image state is $imageState"
    }
    if ($clock.Elapsed.TotalSeconds -ge $SysprepSeconds) {
        Stop-Sysprep 22 "Sysprep did not end within $SysprepSeconds s; the image state is $imageState"
    }
    Start-Sleep -Seconds $PauseSeconds
}
Write-Output '>>> Sysprep complete ...'
exit 0

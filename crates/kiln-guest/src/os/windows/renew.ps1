# Makes a Windows that was kept, and goes on now, one of its own: its clock, then its passwords.
# An empty $User is an account of the image's own, which keeps its password; else four lines of base64 come over
# standard input: the old and the new password of $User, then both of the built-in administrator.
# Values: $Now (milliseconds since 1970, UTC), $MostLate, $MostWrong (both milliseconds), $User.
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version 2
$lines = @($input)
$answer = @{ kind = 'renew'; done = $false; movedMs = 0; password = 'kept'; notes = @(); error = $null }
$notes = @()
$step = 'the clock'
try {
    # $Now was when this was sent. How long PowerShell took to begin, the guest's clock tells: it is wrong, and steady.
    $late = ([DateTime]::UtcNow - [Diagnostics.Process]::GetCurrentProcess().StartTime.ToUniversalTime()).TotalMilliseconds
    if ($late -lt 0 -or $late -gt $MostLate) { $late = 0 }
    $right = [DateTime]::SpecifyKind([DateTime]::new(1970, 1, 1), 'Utc').AddMilliseconds($Now + $late)
    $answer.movedMs = [long]($right - [DateTime]::UtcNow).TotalMilliseconds
    $null = Set-Date -Date $right.ToLocalTime()
    if ([Math]::Abs(([DateTime]::UtcNow - $right).TotalMilliseconds) -gt $MostWrong) { throw "it did not take $($right.ToString('o'))" }

    if ($User -ne '') {
        $step = 'the password'
        while ($lines.Count -lt 4) {
            $line = [Console]::In.ReadLine()
            if ($null -eq $line) { throw 'the passwords did not come over standard input' }
            $lines += $line
        }
        $given = @($lines | ForEach-Object { [Text.Encoding]::UTF8.GetString([Convert]::FromBase64String("$_".Trim())) })
        $account = { param($name) New-Object -TypeName System.DirectoryServices.DirectoryEntry -ArgumentList "WinNT://$Env:COMPUTERNAME/$name,user" }
        $own = & $account $User
        # Changed by who knows the old one, what the account has encrypted (DPAPI) stays readable; reset, it is lost.
        try {
            $own.ChangePassword($given[0], $given[1])
            $answer.password = 'changed'
        } catch {
            $why = "$($_.Exception.GetBaseException().Message)".Trim()
            $own.SetPassword($given[1])
            $answer.password = 'reset'
            $notes += "the password of $User was reset, and what the account had encrypted by DPAPI is lost: it could not be changed: $why"
        }
        # Of the built-in administrator, whatever its name: only where it still is the build's. A customizer may have
        # set another one, which is to stay.
        try {
            if ($null -eq (Get-Command -Name Get-LocalUser -ErrorAction SilentlyContinue)) { throw 'this Windows has no Get-LocalUser' }
            $builtIn = @(Get-LocalUser | Where-Object { "$($_.SID)" -like 'S-1-5-21-*-500' })
            if ($builtIn.Count -ne 1) { throw 'there is none' }
            (& $account $builtIn[0].Name).ChangePassword($given[2], $given[3])
        } catch { $notes += "the password of the built-in administrator stays as it is: $("$($_.Exception.GetBaseException().Message)".Trim())" }
    }
    $answer.done = $true
} catch { $answer.error = "${step}: $("$($_.Exception.GetBaseException().Message)".Trim())" }
$answer.notes = @($notes)
Write-KilnAnswer $answer
exit [int](-not $answer.done)

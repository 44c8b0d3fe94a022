# Follows the files of a task from the offsets given, and tells how it ended. May be run again, from the offsets reached.
#   out OFFSET BASE64, err OFFSET BASE64    bytes of the two files, in order, none left out
#   kiln:{"kind":"end",...}                 exit code and sizes; all bytes up to them came before
#   kiln:{"kind":"died",...}                the task is over and left no exit code
#   kiln:{"kind":"running",...}             $Seconds are over: follow again
# Values: $Folder, $Task, $OutAt, $ErrAt, $Chunk, $Seconds, $BeginSeconds.
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version 2
$at = @{ out = [long]$OutAt; err = [long]$ErrAt }
$buffer = [byte[]]::new($Chunk)
$exitFile = [IO.Path]::Combine($Folder, 'exit.json')
$beganFile = [IO.Path]::Combine($Folder, 'began.json')

# Copies what is new in a file, up to $limit; answers whether there was any.
function Copy-New([string] $name, [long] $limit) {
    $path = [IO.Path]::Combine($Folder, $name)
    if (-not [IO.File]::Exists($path)) { return $false }
    $file = [IO.FileStream]::new($path, 'Open', 'Read', [IO.FileShare]'ReadWrite, Delete')
    try {
        $null = $file.Seek($at[$name], 'Begin')
        $any = $false
        while ($at[$name] -lt $limit) {
            $want = [int][Math]::Min([long]$buffer.Length, $limit - $at[$name])
            $got = $file.Read($buffer, 0, $want)
            if ($got -eq 0) { break }
            [Console]::Out.WriteLine("$name $($at[$name]) " + [Convert]::ToBase64String($buffer, 0, $got))
            $at[$name] += $got
            $any = $true
        }
        return $any
    } finally { $file.Dispose() }
}

# The scheduler's word for the task: its state, or that it is not there.
function Get-State {
    $found = @(Get-ScheduledTask -TaskName $Task -ErrorAction SilentlyContinue)
    if ($found.Count -eq 0) { return 'Gone' }
    return "$($found[0].State)"
}

$clock = [Diagnostics.Stopwatch]::StartNew()
$idle = 0
$nextLook = [TimeSpan]::Zero
while ($true) {
    # The exit code is looked for first: when it is there, the files have grown to their end.
    if ([IO.File]::Exists($exitFile)) {
        $end = [IO.File]::ReadAllText($exitFile) | ConvertFrom-Json
        $null = Copy-New 'out' $end.out
        $null = Copy-New 'err' $end.err
        if ($at.out -lt $end.out -or $at.err -lt $end.err) {
            Write-KilnAnswer @{ kind = 'died'; out = $at.out; err = $at.err; state = 'its output is shorter than it said' }
            exit 0
        }
        $answer = @{ kind = 'end'; code = $end.code; out = $at.out; err = $at.err }
        foreach ($note in 'left', 'error') { if ($end.PSObject.Properties[$note]) { $answer[$note] = "$($end.$note)" } }
        Write-KilnAnswer $answer
        exit 0
    }
    $new = Copy-New 'out' ([long]::MaxValue)
    $new = (Copy-New 'err' ([long]::MaxValue)) -or $new
    if ($clock.Elapsed -ge $nextLook) {
        # Asking the scheduler costs more than looking at files. Three looks in a row: it may be between two states,
        # or its last act, the exit code, be on its way.
        $nextLook = $clock.Elapsed + [TimeSpan]::FromSeconds(1)
        $state = Get-State
        if ($state -eq 'Running' -or $state -eq 'Queued') { $idle = 0 } else { $idle++ }
        $begun = [IO.File]::Exists($beganFile)
        if ($state -eq 'Gone' -or ($begun -and $idle -ge 3) -or (-not $begun -and $clock.Elapsed.TotalSeconds -ge $BeginSeconds)) {
            if (-not [IO.File]::Exists($exitFile)) {
                $result = $null
                try { $result = (Get-ScheduledTaskInfo -TaskName $Task).LastTaskResult } catch { }
                $null = Copy-New 'out' ([long]::MaxValue)
                $null = Copy-New 'err' ([long]::MaxValue)
                Write-KilnAnswer @{ kind = 'died'; begun = $begun; state = $state; result = $result; out = $at.out; err = $at.err }
                exit 0
            }
            continue
        }
    }
    if ($clock.Elapsed.TotalSeconds -ge $Seconds) {
        Write-KilnAnswer @{ kind = 'running'; out = $at.out; err = $at.err }
        exit 0
    }
    # Windows has no event for a file that grows: its size is asked for.
    if (-not $new) { Start-Sleep -Milliseconds 150 }
}

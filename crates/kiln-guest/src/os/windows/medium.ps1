# Takes a file from the medium in one of the machine's drives, and puts it at its place when its digest is right.
# Drive letters are given out at boot, and a new medium is seen a moment after it was put in: each is tried, for a while.
# Output: "kiln-upload at BYTES" now and then, and "kiln-upload RESULT DETAIL" as upload_reader.ps1 has it; or nomedium.
# Values: $Name (on the medium), $Path, $Digest (hexadecimal digits), $Piece (bytes from one word to the next),
# $WaitSeconds.
$ErrorActionPreference = 'Stop'
# <place>
$from = $null
$clock = [Diagnostics.Stopwatch]::StartNew()
while ($true) {
    foreach ($letter in 'DEFGHIJKLMNOPQRSTUVWXYZ'.ToCharArray()) {
        if ([IO.File]::Exists("${letter}:\$Name")) { $from = "${letter}:\$Name"; break }
    }
    if ($null -ne $from -or $clock.Elapsed.TotalSeconds -ge $WaitSeconds) { break }
    Start-Sleep -Milliseconds 500
}
$partial = $null
if ($null -eq $from) { $result = "nomedium no drive has a medium with $Name" }
else { $result = Get-Refusal $Path }
if ($null -eq $result) {
    try {
        $partial = $Path + '.' + [Guid]::NewGuid().ToString('N') + '.kiln'
        $size = 0
        $told = 0
        $buffer = [Array]::CreateInstance([byte], 1048576)
        $out = New-Object IO.FileStream($partial, [IO.FileMode]::CreateNew)
        try {
            $in = [IO.File]::OpenRead($from)
            try {
                while (($count = $in.Read($buffer, 0, $buffer.Length)) -gt 0) {
                    $out.Write($buffer, 0, $count)
                    $size += $count
                    if ($size - $told -ge $Piece) { $told = $size; [Console]::Out.WriteLine("kiln-upload at $size") }
                }
            } finally { $in.Dispose() }
        } finally { $out.Dispose() }
        $result = Move-Checked $partial $Path $Digest $size
        if ($result -like 'placed *') { $partial = $null }
    } catch { $result = Get-Failure $_.Exception }
}
if ($null -ne $partial) { try { [IO.File]::Delete($partial) } catch { } }
[Console]::Out.WriteLine("kiln-upload $result")
exit 0

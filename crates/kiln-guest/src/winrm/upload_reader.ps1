# Takes a file from standard input, in lines of base64, and puts it at its place when its digest is right.
#
# Input:  line 1, the full path (UTF-8, base64); line 2, the expected SHA-256 in hexadecimal digits; then the file.
# Output: "kiln-upload RESULT DETAIL", RESULT being placed, nodir, isdir, digest, denied, full, readonly or write.
#
# Windows PowerShell 3 and later. A redirected input is read by Windows PowerShell itself and arrives in the pipeline,
# a line each; an engine that leaves it alone has it read at the end.
begin {
    $ErrorActionPreference = 'Stop'
    $head = @()
    $out = $null
    $failure = $null
    $size = 0
    $refusal = $null
    $partial = $null

    # <place>

    function Use-Line([string] $line) {
        $line = $line.Trim([char]0xFEFF, ' ', "`r", "`n")
        if ($line -eq '' -or $null -ne $script:failure) { return }
        try {
            if ($script:head.Count -lt 2) {
                $script:head += $line
                if ($script:head.Count -eq 2) { Open-Partial }
                return
            }
            $bytes = [Convert]::FromBase64String($line)
            $script:out.Write($bytes, 0, $bytes.Length)
            $script:size += $bytes.Length
        } catch { $script:failure = $_.Exception }
    }

    function Open-Partial {
        $script:path = [Text.Encoding]::UTF8.GetString([Convert]::FromBase64String($script:head[0]))
        $script:refusal = Get-Refusal $script:path
        if ($null -ne $script:refusal) { throw $script:refusal }
        $script:partial = $script:path + '.' + [Guid]::NewGuid().ToString('N') + '.kiln'
        $script:out = New-Object IO.FileStream($script:partial, [IO.FileMode]::CreateNew)
    }
}
process {
    if ($null -ne $_) { Use-Line $_ }
}
end {
    if ($head.Count -eq 0) {
        $in = New-Object IO.StreamReader([Console]::OpenStandardInput(), [Text.Encoding]::ASCII)
        while ($null -ne ($line = $in.ReadLine())) { Use-Line $line }
    }
    try {
        if ($null -ne $out) { $out.Dispose() }
        if ($null -ne $failure) { throw $failure }
        if ($head.Count -lt 2) { throw 'the input ended before the file began' }
        $result = Move-Checked $partial $path $head[1] $size
        if ($result -like 'placed *') { $partial = $null }
    } catch {
        $result = $refusal
        if ($null -eq $result) { $result = Get-Failure $_.Exception }
    }
    if ($null -ne $partial) { try { [IO.File]::Delete($partial) } catch { } }
    'kiln-upload ' + $result
}

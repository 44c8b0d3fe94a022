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
        if ([IO.Directory]::Exists($script:path)) { $script:refusal = 'isdir'; throw 'a directory' }
        $parent = [IO.Path]::GetDirectoryName($script:path)
        if (-not [IO.Directory]::Exists($parent)) { $script:refusal = 'nodir'; throw 'no directory' }
        $script:partial = $script:path + '.' + [Guid]::NewGuid().ToString('N') + '.kiln'
        $script:out = New-Object IO.FileStream($script:partial, [IO.FileMode]::CreateNew)
    }
    $script:refusal = $null
    $script:partial = $null
}
process {
    if ($null -ne $_) { Use-Line $_ }
}
end {
    if ($head.Count -eq 0) {
        $in = New-Object IO.StreamReader([Console]::OpenStandardInput(), [Text.Encoding]::ASCII)
        while ($null -ne ($line = $in.ReadLine())) { Use-Line $line }
    }
    $result = $null
    try {
        if ($null -ne $out) { $out.Dispose() }
        if ($null -ne $failure) { throw $failure }
        if ($head.Count -lt 2) { throw 'the input ended before the file began' }
        # What counts is what lies on the disk.
        $file = [IO.File]::OpenRead($partial)
        try { $digest = [Security.Cryptography.SHA256]::Create().ComputeHash($file) } finally { $file.Dispose() }
        $digest = [BitConverter]::ToString($digest).Replace('-', '').ToLowerInvariant()
        if ($digest -ne $head[1]) {
            $result = 'digest ' + $digest
        } else {
            # Replacing keeps the owner and the rights of a file that was there.
            if ([IO.File]::Exists($path)) { [IO.File]::Replace($partial, $path, [NullString]::Value) }
            else { [IO.File]::Move($partial, $path) }
            $partial = $null
            $result = 'placed ' + $size + ' ' + $digest
        }
    } catch {
        $cause = $_.Exception.GetBaseException()
        $kind = 'write'
        if ($null -ne $refusal) { $kind = $refusal }
        elseif ($cause -is [UnauthorizedAccessException]) { $kind = 'denied' }
        elseif ($cause -is [IO.DirectoryNotFoundException]) { $kind = 'nodir' }
        elseif ($cause -is [IO.IOException]) {
            # ERROR_HANDLE_DISK_FULL, ERROR_DISK_FULL, ERROR_WRITE_PROTECT, ERROR_ACCESS_DENIED.
            switch ($cause.HResult -band 0xFFFF) {
                39 { $kind = 'full' }
                112 { $kind = 'full' }
                19 { $kind = 'readonly' }
                5 { $kind = 'denied' }
            }
        }
        $result = $kind + ' ' + $cause.Message
    }
    if ($null -ne $partial) { try { [IO.File]::Delete($partial) } catch { } }
    'kiln-upload ' + $result
}


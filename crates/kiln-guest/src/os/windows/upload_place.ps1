# Both ways to a file's place share this. What lies aside gets its name when its digest is right.
function Move-Checked($partial, $path, $expected, $size) {
    # What counts is what lies on the disk.
    $file = [IO.File]::OpenRead($partial)
    try { $digest = [Security.Cryptography.SHA256]::Create().ComputeHash($file) } finally { $file.Dispose() }
    $digest = [BitConverter]::ToString($digest).Replace('-', '').ToLowerInvariant()
    if ($digest -ne $expected) { return 'digest ' + $digest }
    # Replacing keeps the owner and the rights of a file that was there.
    if ([IO.File]::Exists($path)) { [IO.File]::Replace($partial, $path, [NullString]::Value) }
    else { [IO.File]::Move($partial, $path) }
    return 'placed ' + $size + ' ' + $digest
}
# Why a file cannot lie at a path, before anything is written; $null if it can.
function Get-Refusal($path) {
    if ([IO.Directory]::Exists($path)) { return 'isdir a directory' }
    if (-not [IO.Directory]::Exists([IO.Path]::GetDirectoryName($path))) { return 'nodir no directory' }
    return $null
}
function Get-Failure($exception) {
    $cause = $exception.GetBaseException()
    $kind = 'write'
    if ($cause -is [UnauthorizedAccessException]) { $kind = 'denied' }
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
    return $kind + ' ' + $cause.Message
}

# Puts small files of a build's own into the guest: each is checked as it lies on the disk before it has its name.
# Nothing is replaced, and the folder is a new one: the names are this build's alone.
# Values: $Folder (empty for none), $Paths, $Contents (base64), $Digests (SHA-256 in hexadecimal digits).
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version 2
$at = $Folder
$new = ''
try {
    if ($Folder -ne '') {
        if ([IO.Directory]::Exists($Folder)) { throw 'the folder is there already' }
        $null = [IO.Directory]::CreateDirectory($Folder)
    }
    for ($i = 0; $i -lt $Paths.Count; $i++) {
        $at = $Paths[$i]
        $new = $at + '.new'
        [IO.File]::WriteAllBytes($new, [Convert]::FromBase64String($Contents[$i]))
        $file = [IO.File]::OpenRead($new)
        try { $hash = [Security.Cryptography.SHA256]::Create().ComputeHash($file) } finally { $file.Dispose() }
        $digest = [BitConverter]::ToString($hash).Replace('-', '').ToLowerInvariant()
        if ($digest -ne $Digests[$i]) { throw "its digest on the disk is $digest, not $($Digests[$i])" }
        [IO.File]::Move($new, $at)
    }
} catch {
    $why = $_.Exception.GetBaseException().Message
    if ($new -ne '') { try { [IO.File]::Delete($new) } catch { } }
    Write-KilnAnswer @{ kind = 'placed'; path = $at; error = $why }
    exit 1
}
Write-KilnAnswer @{ kind = 'placed'; count = $Paths.Count }
exit 0

# An answer is a line of its own: "kiln:" and one JSON object, in ASCII, so that no code page can change it.
function Write-KilnAnswer {
    param($Answer)
    $json = ConvertTo-Json -InputObject $Answer -Compress -Depth 4
    $json = [regex]::Replace($json, '[^\x20-\x7e]', { param($found) '\u{0:x4}' -f [int][char]$found.Value })
    [Console]::Out.WriteLine('kiln:' + $json)
}

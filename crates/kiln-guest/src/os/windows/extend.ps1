# Extends the system volume over the room behind it, or says why not. Values: none.
# Never fails a run: an image with a smaller C: is still the image that was asked for, and the log says so.
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version 2
# Partitions end on a whole MiB: less than one is no room.
$least = 1MB
$letter = "$Env:SystemDrive".TrimEnd(':')
$answer = @{ kind = 'extend'; extended = $false; before = $null; after = $null; reason = $null }
try {
    Update-HostStorageCache
    $volume = Get-Partition -DriveLetter $letter
    $answer.before = [long]$volume.Size
    $answer.after = [long]$volume.Size
    $largest = [long](Get-PartitionSupportedSize -DriveLetter $letter).SizeMax
    if ($largest - $volume.Size -ge $least) {
        Resize-Partition -DriveLetter $letter -Size $largest
        $answer.after = [long](Get-Partition -DriveLetter $letter).Size
        $answer.extended = $answer.after -gt $answer.before
        if (-not $answer.extended) { $answer.reason = 'Windows took the new size and did not change the partition' }
    } else {
        $end = $volume.Offset + $volume.Size
        $behind = @(Get-Partition -DiskNumber $volume.DiskNumber | Where-Object { $_.Offset -ge $end } | Sort-Object -Property Offset)
        $disk = Get-Disk -Number $volume.DiskNumber
        $free = [long]$disk.LargestFreeExtent
        if ($free -lt $least) {
            $answer.reason = 'the disk has no room that is not in a partition'
        } elseif ($behind.Count -gt 0) {
            $first = $behind[0]
            # The recovery partition of GPT and of MBR, by its type.
            $gpt = ''
            if ($first.PSObject.Properties['GptType']) { $gpt = "$($first.GptType)" }
            $mbr = ''
            if ($first.PSObject.Properties['MbrType']) { $mbr = "$($first.MbrType)" }
            $what = 'partition'
            if ($gpt -eq '{de94bba4-06d1-4d40-a16a-bfd50179d6ac}' -or $mbr -eq '39') { $what = 'recovery partition' }
            $answer.reason = "a $what of $([long]($first.Size / 1MB)) MiB (number $($first.PartitionNumber)) lies right behind ${letter}:, before $([long]($free / 1MB)) MiB of free room"
        } else {
            $answer.reason = "$([long]($free / 1MB)) MiB are free, but Windows does not let ${letter}: grow over them"
        }
    }
} catch {
    $answer.reason = "$_"
}
Write-KilnAnswer $answer
exit 0

//! Boot id, flush, facts, and C: extended.

use kiln_guest::os::windows::facts::{BootId, Extended, WindowsFacts, boot_id, extend, facts, flush};

use crate::lab::lab;

const PREFETCH: &str =
    r"HKLM:\SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management\PrefetchParameters";

fn booted_at(second: u32) -> String {
    format!(
        "$Lab.Cim['Win32_OperatingSystem'] = {{ [pscustomobject]@{{ LastBootUpTime = [DateTime]::SpecifyKind([DateTime]::new(2026, 1, 2, 3, 4, {second}), 'Utc'); Caption = ' Lab Server '; Version = '10.0.1' }} }}\n"
    )
}

#[test]
fn a_boot_is_told_from_another() {
    let lab = lab!();
    let ask = |prelude: &str| BootId::parse(&lab.run(prelude, &boot_id()).ended_with(0).out).unwrap();
    let counted = |count: u32| format!("$Lab.Keys['{PREFETCH}'] = @{{ BootId = {count} }}\n");
    let first = ask(&(counted(4) + &booted_at(5)));
    assert!(!ask(&(counted(4) + &booted_at(50))).is_another_than(&first), "only the clock was set");
    assert!(ask(&(counted(5) + &booted_at(5))).is_another_than(&first));
    // Windows keeps no counter: the boot time decides, and one that differs by a second is the same.
    let bare = ask(&booted_at(5));
    assert!(!ask(&booted_at(6)).is_another_than(&bare));
    assert!(ask(&booted_at(40)).is_another_than(&bare));
}

#[test]
fn a_boot_time_that_cannot_be_read_is_an_error() {
    let lab = lab!();
    let ran = lab.run("$Lab.Cim['Win32_OperatingSystem'] = { throw 'no WMI' }", &boot_id()).ended_with(1);
    assert!(ran.err.contains("no WMI"), "{}", ran.err);
    assert_eq!(BootId::parse(&ran.out), None);
}

const HIVES: &str = r#"
foreach ($hive in 'SYSTEM', 'SOFTWARE', 'SAM') {
    $item = [pscustomobject]@{ Hive = $hive }
    $item | Add-LabMethod 'Flush' { Add-Call "flush $($this.Hive)" }
    $Lab.Values["HKLM:\$hive"] = $item
}
function global:Get-Volume { [CmdletBinding()] param() return $Lab.Volumes }
function global:Write-VolumeCache { [CmdletBinding()] param($DriveLetter) if ($DriveLetter -eq 'E') { throw 'locked' }; Add-Call "volume $DriveLetter" }
$Lab.Values['Registry::HKEY_USERS'] = @(foreach ($user in 'S-1-5-18', 'S-1-5-21-7') {
    $item = [pscustomobject]@{ PSChildName = $user }
    $item | Add-LabMethod 'Flush' { if ($this.PSChildName -eq $Lab.Fails) { throw 'it goes' }; Add-Call "flush $($this.PSChildName)" }
    $item
})
$Lab.Volumes = @(
    [pscustomobject]@{ DriveLetter = [char]'C'; DriveType = 'Fixed' },
    [pscustomobject]@{ DriveLetter = [char]0; DriveType = 'Fixed' },
    [pscustomobject]@{ DriveLetter = $null; DriveType = 'Fixed' },
    [pscustomobject]@{ DriveLetter = [char]'D'; DriveType = 'CD-ROM' }
)
"#;

#[test]
fn flush_writes_hives_before_volumes() {
    let lab = lab!();
    let answer = lab.run(HIVES, &flush()).ended_with(0).answer();
    assert_eq!(
        lab.calls(),
        ["flush SYSTEM", "flush SOFTWARE", "flush SAM", "flush S-1-5-18", "flush S-1-5-21-7", "volume C"]
    );
    assert_eq!(answer["volumes"], serde_json::json!(["C"]));
    assert_eq!(answer["problems"], serde_json::json!([]));
    // A user who leaves takes the hive along.
    let leaving = HIVES.to_owned() + "$Lab.Fails = 'S-1-5-21-7'\n";
    let answer = lab.run(&leaving, &flush()).ended_with(0).answer();
    assert_eq!(answer["skipped"], serde_json::json!(["S-1-5-21-7: it goes"]));
}

#[test]
fn flush_that_misses_something_fails_and_names_it() {
    let lab = lab!();
    let prelude = HIVES.to_owned()
        + "$Lab.Volumes += [pscustomobject]@{ DriveLetter = [char]'E'; DriveType = 'Fixed' }\n\
           $Lab.Values['HKLM:\\SAM'] = { throw 'denied' }\n";
    let answer = lab.run(&prelude, &flush()).ended_with(1).answer();
    let problems = answer["problems"].to_string();
    assert!(problems.contains("HKLM:\\\\SAM: denied") && problems.contains("volume E: locked"), "{problems}");
    let none = HIVES.to_owned() + "$Lab.Volumes = @()\n";
    lab.run(&none, &flush()).ended_with(1).says("there is none");
}

#[test]
fn facts_in_one_line() {
    let lab = lab!();
    let prelude = booted_at(1)
        + r#"
$Lab.Keys['HKLM:\SOFTWARE\Microsoft\Windows NT\CurrentVersion'] = @{ UBR = 2700; EditionID = 'ServerDatacenter'; InstallationType = 'Server' }
$Lab.Keys['HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Setup\State'] = @{ ImageState = 'IMAGE_STATE_COMPLETE' }
$Lab.Keys['HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing\RebootPending'] = @{}
$Lab.Keys['HKLM:\SYSTEM\CurrentControlSet\Control\Session Manager'] = @{ PendingFileRenameOperations = @('a', 'b') }
$Lab.Cim['Win32_LogicalDisk'] = { param($filter) if ($filter -ne "DeviceID='C:'") { Stop-Lab $filter }; [pscustomobject]@{ FreeSpace = [uint64]5368709120 } }
$Lab.Cim['SoftwareLicensingService'] = { [pscustomobject]@{ RemainingWindowsReArmCount = [uint32]3 } }
"#;
    let ran = lab.run(&prelude, &facts()).ended_with(0);
    let facts = WindowsFacts::parse(&ran.out).unwrap();
    assert_eq!(facts.unread, Vec::<String>::new());
    assert_eq!(facts.name.as_deref(), Some("Lab Server"));
    assert_eq!((facts.version.as_deref(), facts.revision), (Some("10.0.1"), Some(2700)));
    assert_eq!(
        (facts.edition.as_deref(), facts.kind_of.as_deref()),
        (Some("ServerDatacenter"), Some("Server"))
    );
    assert_eq!((facts.free_bytes, facts.rearms_left), (Some(5 << 30), Some(3)));
    assert_eq!(facts.image_state.as_deref(), Some("IMAGE_STATE_COMPLETE"));
    assert_eq!(facts.pending_restart, ["component servicing", "files to be renamed"]);
    assert!(facts.powershell.is_some() && facts.arch.is_some() && facts.computer.is_some());
}

#[test]
fn facts_that_cannot_be_read_are_none_and_fail_nothing() {
    let lab = lab!();
    let prelude = "foreach ($class in 'Win32_OperatingSystem', 'Win32_LogicalDisk', 'SoftwareLicensingService') { $Lab.Cim[$class] = { throw 'no WMI' } }";
    let facts = WindowsFacts::parse(&lab.run(prelude, &facts()).ended_with(0).out).unwrap();
    assert_eq!((facts.name, facts.rearms_left, facts.free_bytes, facts.edition), (None, None, None, None));
    assert_eq!(facts.pending_restart, Vec::<String>::new());
    assert_eq!(facts.unread.len(), 8, "{:?}", facts.unread);
}

/// A disk: C: of 30 GiB, and what is behind it.
fn disk(largest: &str, free: &str, behind: &str) -> String {
    format!(
        r#"
$Lab.Size = [uint64]30GB
$Lab.Behind = @({behind})
function global:Update-HostStorageCache {{ [CmdletBinding()] param() Add-Call 'rescan' }}
function global:Get-Partition {{
    [CmdletBinding()] param($DriveLetter, $DiskNumber)
    $c = [pscustomobject]@{{ PartitionNumber = 2; DiskNumber = 0; Offset = [uint64]100MB; Size = $Lab.Size; GptType = '{{ebd0a0a2-b9e5-4433-87c0-68b6b72699c7}}' }}
    if ($DriveLetter -eq 'C') {{ return $c }}
    if ($DiskNumber -ne 0) {{ Stop-Lab 'another disk' }}
    return @($c) + $Lab.Behind
}}
function global:Get-PartitionSupportedSize {{ [CmdletBinding()] param($DriveLetter) [pscustomobject]@{{ SizeMin = [uint64]1GB; SizeMax = [uint64]({largest}) }} }}
function global:Get-Disk {{ [CmdletBinding()] param($Number) [pscustomobject]@{{ LargestFreeExtent = [uint64]({free}) }} }}
function global:Resize-Partition {{ [CmdletBinding()] param($DriveLetter, $Size) Add-Call "resize $DriveLetter $Size"; $Lab.Size = $Size }}
"#
    )
}

const RECOVERY: &str = "[pscustomobject]@{ PartitionNumber = 3; DiskNumber = 0; Offset = [uint64]31GB; Size = [uint64]600MB; GptType = '{de94bba4-06d1-4d40-a16a-bfd50179d6ac}' }";

#[test]
fn c_is_extended_over_the_room_behind_it() {
    let lab = lab!();
    let ran = lab.run(&disk("60GB", "30GB", ""), &extend()).ended_with(0);
    assert_eq!(lab.calls(), ["rescan".to_owned(), format!("resize C {}", 60_u64 << 30)]);
    assert_eq!(Extended::parse(&ran.out).unwrap().line(), "C: was extended from 30720 MiB to 61440 MiB");
}

#[test]
fn c_that_is_not_extended_says_why() {
    let lab = lab!();
    let line =
        |prelude: &str| Extended::parse(&lab.run(prelude, &extend()).ended_with(0).out).unwrap().line();
    let said = line(&disk("30GB", "29GB", RECOVERY));
    assert_eq!(
        said,
        "C: was not extended and has 30720 MiB: a recovery partition of 600 MiB (number 3) lies right behind C:, \
         before 29696 MiB of free room"
    );
    let mbr = RECOVERY.replace("GptType = '{de94bba4-06d1-4d40-a16a-bfd50179d6ac}'", "MbrType = 39");
    assert!(line(&disk("30GB", "29GB", &mbr)).contains("a recovery partition"));
    let data = RECOVERY.replace("de94bba4", "ebd0a0a2");
    assert!(line(&disk("30GB", "29GB", &data)).contains("a partition of 600 MiB"));
    assert!(line(&disk("30GB", "0", "")).contains("the disk has no room that is not in a partition"));
    assert!(line(&disk("30GB", "29GB", "")).contains("29696 MiB are free, but Windows does not let C: grow"));
    let stuck = disk("60GB", "30GB", "")
        + "function global:Resize-Partition { [CmdletBinding()] param($DriveLetter, $Size) }\n";
    assert!(line(&stuck).contains("did not change the partition"));
    let broken = disk("60GB", "30GB", "")
        + "function global:Resize-Partition { [CmdletBinding()] param($DriveLetter, $Size) throw 'BitLocker' }\n";
    assert!(line(&broken).contains("BitLocker"));
    assert!(!lab.calls().iter().any(|call| call.starts_with("resize")), "{:?}", lab.calls());
}

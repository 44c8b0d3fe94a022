//! A round of Windows Update against a scripted Windows Update Agent.

use std::time::{Duration, Instant};

use kiln_guest::os::windows::update::{
    Filter, RoundAnswer, RoundLimits, UpdateChoice, UpdateLimits, UpdateStep, Updates, round_answer,
    round_script,
};

use crate::lab::{Lab, Ran, lab};

const QUICK: RoundLimits = RoundLimits {
    search_tries: 3,
    download_tries: 2,
    busy_seconds: 1,
    servicing_seconds: 1,
    pause_seconds: 0,
};

/// The Windows Update Agent of the lab. A test sets `$Wua` before a round.
const AGENT: &str = r#"
$global:Wua = @{
    Updates = @(); Pending = $false; Search = { }; Busy = { $false }; Before = $false; Install = { }; Download = { }
    Results = @{}; Restart = $false
}
$Lab.Processes = { param($name) if ($name -ne 'TiWorker') { Stop-Lab "Get-Process $name" } }
function global:New-Update([string] $id, [string] $title, [hashtable] $more = @{}) {
    $update = [pscustomobject]@{
        Identity = [pscustomobject]@{ UpdateID = $id }; Title = $title; KBArticleIDs = @("50$id"); IsDownloaded = $false
        EulaAccepted = $true; InstallationBehavior = [pscustomobject]@{ CanRequestUserInput = $false }; BrowseOnly = $false
    }
    $update | Add-LabMethod 'AcceptEula' { Add-Call "eula $($this.Identity.UpdateID)"; $this.EulaAccepted = $true }
    foreach ($name in $more.Keys) { $update.$name = $more[$name] }
    return $update
}
function global:New-Collection {
    $all = [pscustomobject]@{ Inner = [Collections.ArrayList]::new() }
    $all.PSObject.Members.Add([Management.Automation.PSScriptProperty]::new('Count', { $this.Inner.Count }))
    $all | Add-LabMethod 'Item' { param($at) $this.Inner[$at] }
    $all | Add-LabMethod 'Add' { param($one) $this.Inner.Add($one) }
    return $all
}
function global:New-Fault([int] $code) { [Runtime.InteropServices.COMException]::new(('Exception from HRESULT: 0x{0:X8}' -f $code), $code) }
# Result codes: 2 succeeded, 3 with errors, 4 failed. A test says `$Wua.Results[id] = code, HRESULT, restart`.
function global:New-Results($updates) {
    $all = [pscustomobject]@{ Updates = $updates; RebootRequired = $Wua.Restart; ResultCode = 2 }
    $all | Add-LabMethod 'GetUpdateResult' {
        param($at)
        $said = $Wua.Results[$this.Updates.Item($at).Identity.UpdateID]
        if ($null -eq $said) { $said = 2, 0, $false }
        [pscustomobject]@{ ResultCode = $said[0]; HResult = [int]$said[1]; RebootRequired = [bool]$said[2] }
    }
    return $all
}
$Lab.Objects['Microsoft.Update.SystemInfo'] = {
    $info = [pscustomobject]@{}
    $info.PSObject.Members.Add([Management.Automation.PSScriptProperty]::new('RebootRequired', { if ($Wua.Pending -is [scriptblock]) { & $Wua.Pending } else { $Wua.Pending } }))
    return $info
}
$Lab.Objects['Microsoft.Update.UpdateColl'] = { New-Collection }
$Lab.Objects['Microsoft.Update.Session'] = {
    $session = [pscustomobject]@{ ClientApplicationID = '' }
    $session | Add-LabMethod 'CreateUpdateSearcher' {
        $searcher = [pscustomobject]@{}
        $searcher | Add-LabMethod 'Search' {
            param($criteria)
            Add-Call "search $criteria"
            & $Wua.Search
            if ($Wua.Nothing) { return [pscustomobject]@{ Updates = $null } }
            $found = New-Collection
            foreach ($one in $Wua.Updates) { $null = $found.Add($one) }
            [pscustomobject]@{ Updates = $found }
        }
        return $searcher
    }
    $session | Add-LabMethod 'CreateUpdateDownloader' {
        $downloader = [pscustomobject]@{ Updates = $null }
        $downloader | Add-LabMethod 'Download' {
            Add-Call "download $(@($this.Updates.Inner | ForEach-Object { $_.Identity.UpdateID }) -join ' ')"
            & $Wua.Download $this.Updates
            foreach ($one in $this.Updates.Inner) {
                $said = $Wua.Results["download $($one.Identity.UpdateID)"]
                if ($null -eq $said) { $one.IsDownloaded = $true } else { $Wua.Results[$one.Identity.UpdateID] = $said }
            }
            New-Results $this.Updates
        }
        return $downloader
    }
    $session | Add-LabMethod 'CreateUpdateInstaller' {
        $installer = [pscustomobject]@{ Updates = $null; IsBusy = (& $Wua.Busy); RebootRequiredBeforeInstallation = $Wua.Before }
        $installer | Add-LabMethod 'Install' {
            Add-Call "install $(@($this.Updates.Inner | ForEach-Object { $_.Identity.UpdateID }) -join ' ')"
            & $Wua.Install
            New-Results $this.Updates
        }
        return $installer
    }
    return $session
}
"#;

const TWO: &str = "$Wua.Updates = @((New-Update '1' 'Security'), (New-Update '2' 'A Preview'))\n";

fn filters(texts: &[&str]) -> UpdateChoice {
    let filters = texts.iter().map(|text| Filter::parse(text).unwrap()).collect();
    UpdateChoice { filters, ..UpdateChoice::default() }
}

fn run_with(lab: &Lab, prelude: &str, choice: &UpdateChoice, left_out: &[&str], limits: &RoundLimits) -> Ran {
    let left_out: Vec<String> = left_out.iter().map(|id| (*id).to_owned()).collect();
    std::fs::remove_file(lab.path("calls")).ok();
    lab.run(&format!("{AGENT}\n{prelude}"), &round_script(choice, &left_out, limits))
}

fn run(lab: &Lab, prelude: &str, choice: &UpdateChoice) -> Ran {
    run_with(lab, prelude, choice, &[], &QUICK)
}

fn answers(ran: &Ran) -> Vec<RoundAnswer> {
    ran.out.lines().filter_map(round_answer).collect()
}

/// The lines of updates, as the log shows them.
fn results(ran: &Ran) -> Vec<String> {
    let update = |answer: RoundAnswer| match answer {
        RoundAnswer::Update(result) => Some(result.line()),
        _ => None,
    };
    answers(ran).into_iter().filter_map(update).collect()
}

#[test]
fn nothing_to_install_ends_with_0() {
    let lab = lab!();
    run(&lab, "", &UpdateChoice::default()).ended_with(0).says("No Windows updates found");
    assert_eq!(lab.calls(), ["search BrowseOnly=0 and IsInstalled=0"]);
    let own =
        UpdateChoice { criteria: "IsInstalled=0 and Type='Software'".into(), ..UpdateChoice::default() };
    run(&lab, "", &own).ended_with(0);
    assert_eq!(lab.calls(), ["search IsInstalled=0 and Type='Software'"]);
}

#[test]
fn updates_are_downloaded_and_installed_and_each_has_its_line() {
    let lab = lab!();
    let ran = run(&lab, TWO, &UpdateChoice::default()).ended_with(102);
    assert_eq!(lab.calls()[1..], ["download 1 2", "install 1 2"]);
    assert_eq!(
        results(&ran),
        ["KB501 Security: install succeeded (0x00000000)", "KB502 A Preview: install succeeded (0x00000000)"]
    );
}

#[test]
fn a_restart_is_asked_for_only_when_wanted() {
    let lab = lab!();
    let one = "$Wua.Results['2'] = 2, 0, $true\n";
    run(&lab, &format!("{TWO}{one}"), &UpdateChoice::default()).ended_with(102);
    let ran =
        run(&lab, &format!("{TWO}{one}$Wua.Restart = $true\n"), &UpdateChoice::default()).ended_with(101);
    assert!(results(&ran)[1].ends_with(", wants a restart"), "{:?}", results(&ran));
}

#[test]
fn the_first_filter_that_is_true_decides() {
    let lab = lab!();
    let installed = |texts: &[&str]| {
        run(&lab, TWO, &filters(texts));
        lab.calls().into_iter().filter(|call| call.starts_with("install")).collect::<Vec<_>>()
    };
    assert_eq!(installed(&["exclude:$_.Title -like '*Preview*'", "include:$true"]), ["install 1"]);
    assert_eq!(installed(&["include:$true", "exclude:$_.Title -like '*Preview*'"]), ["install 1 2"]);
    assert_eq!(installed(&["include:$_.KBArticleIDs -contains '502'"]), ["install 2"]);
    // None is true: not installed.
    assert_eq!(installed(&["exclude:$_.BrowseOnly"]), Vec::<String>::new());
    assert_eq!(installed(&["include:$_.Title -eq 'it''s'"]), Vec::<String>::new());
}

#[test]
fn a_filter_that_fails_ends_the_round() {
    let lab = lab!();
    run(&lab, TWO, &filters(&["include:$_.Title.Nothing()"]))
        .ended_with(104)
        .says("include:$_.Title.Nothing()");
    run(&lab, TWO, &filters(&["include:if ("])).ended_with(104).says("cannot be read");
    assert!(!lab.calls().iter().any(|call| call.starts_with("install")));
}

#[test]
fn the_limit_is_per_round_and_what_is_left_out_does_not_count() {
    let lab = lab!();
    let three = "$Wua.Updates = @((New-Update '1' 'a'), (New-Update '2' 'b'), (New-Update '3' 'c'), (New-Update '1' 'a again'))\n";
    let choice = UpdateChoice { limit: 1, ..UpdateChoice::default() };
    let ran = run_with(&lab, three, &choice, &["1"], &QUICK).ended_with(102);
    assert_eq!(lab.calls()[1..], ["download 2", "install 2"]);
    ran.says("1 more wait for a later round (updateLimit 1)")
        .says("left out, as it did not get anywhere before: a");
    run_with(&lab, three, &UpdateChoice::default(), &["1", "2", "3"], &QUICK).ended_with(0);
}

#[test]
fn licence_terms_are_accepted_and_a_refusal_is_a_result() {
    let lab = lab!();
    let prelude = "$Wua.Updates = @((New-Update '1' 'a' @{ EulaAccepted = $false }))\n";
    run(&lab, prelude, &UpdateChoice::default()).ended_with(102);
    assert_eq!(lab.calls()[1..], ["eula 1", "download 1", "install 1"]);
    let refuses = format!(
        "{prelude}$Wua.Updates[0].PSObject.Members.Remove('AcceptEula')\n$Wua.Updates[0] | Add-LabMethod 'AcceptEula' {{ throw (New-Fault 0x80070005) }}\n"
    );
    let ran = run(&lab, &refuses, &UpdateChoice::default()).ended_with(102);
    assert_eq!(results(&ran), ["KB501 a: EULA failed (0x80070005)"]);
}

#[test]
fn one_that_may_ask_a_question_is_named() {
    let lab = lab!();
    let prelude = "$Wua.Updates = @((New-Update '1' 'asks' @{ InstallationBehavior = [pscustomobject]@{ CanRequestUserInput = $true } }))\n";
    run(&lab, prelude, &UpdateChoice::default())
        .ended_with(102)
        .says("may ask a question that nobody answers: asks");
}

#[test]
fn the_search_is_tried_within_its_bound() {
    let lab = lab!();
    let fails = |times: u32| {
        format!(
            "$Wua.Left = {times}\n$Wua.Search = {{ if ($Wua.Left-- -gt 0) {{ throw (New-Fault 0x8024402C) }} }}\n{TWO}"
        )
    };
    run(&lab, &fails(2), &UpdateChoice::default()).ended_with(102).says("the search failed: 0x8024402C");
    let ran = run(&lab, &fails(9), &UpdateChoice::default()).ended_with(103);
    ran.says("the search failed 3 times: 0x8024402C");
    assert_eq!(lab.calls().len(), 3);
    run(&lab, "$Wua.Nothing = $true\n", &UpdateChoice::default())
        .ended_with(103)
        .says("the search had no result");
    assert_eq!(lab.calls().len(), 3);
}

#[test]
fn the_download_is_tried_within_its_bound() {
    let lab = lab!();
    // One of two never comes: it has its lines, the other is installed.
    let one = format!("{TWO}$Wua.Results['download 1'] = 4, -2145107924, $false\n");
    let ran = run(&lab, &one, &UpdateChoice::default()).ended_with(102);
    assert_eq!(lab.calls()[1..], ["download 1 2", "download 1", "install 2"]);
    assert_eq!(results(&ran)[0], "KB501 Security: download failed (0x8024402C)");
    // None comes.
    let none = format!("{TWO}$Wua.Download = {{ throw (New-Fault 0x80244022) }}\n");
    let ran = run(&lab, &none, &UpdateChoice::default()).ended_with(106);
    ran.says("the download failed: 0x80244022").says("none of 2 updates could be downloaded in 2 tries");
    // What is there already is not fetched again.
    let there = "$Wua.Updates = @((New-Update '1' 'a' @{ IsDownloaded = $true }))\n";
    run(&lab, there, &UpdateChoice::default()).ended_with(102);
    assert_eq!(lab.calls()[1..], ["install 1"]);
}

#[test]
fn another_installation_is_waited_for() {
    let lab = lab!();
    let patient = RoundLimits { busy_seconds: 30, ..QUICK };
    let busy = format!("{TWO}$Wua.Left = 2\n$Wua.Busy = {{ $Wua.Left-- -gt 0 }}\n");
    run_with(&lab, &busy, &UpdateChoice::default(), &[], &patient)
        .ended_with(102)
        .says("another installation is under way (0x80240016)");
    let refused = format!(
        "{TWO}$Wua.Left = 2\n$Wua.Install = {{ if ($Wua.Left-- -gt 0) {{ throw (New-Fault 0x80240016) }} }}\n"
    );
    run_with(&lab, &refused, &UpdateChoice::default(), &[], &patient)
        .ended_with(102)
        .says("another installation is under way (0x80240016)");
}

#[test]
fn another_installation_that_does_not_end_fails_with_the_text_and_the_advice() {
    let lab = lab!();
    let refused = format!("{TWO}$Wua.Install = {{ throw (New-Fault 0x80240016) }}\n");
    let limits = RoundLimits { pause_seconds: 1, ..QUICK };
    let started = Instant::now();
    let ran = run_with(&lab, &refused, &UpdateChoice::default(), &[], &limits).ended_with(105);
    // The bound is a second; the rest is the engine's start on a busy machine.
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    let (log, step) = Updates::new(UpdateLimits::default()).round_ended(ran.code, &answers(&ran));
    assert!(
        log[0].contains(
            "System.Runtime.InteropServices.COMException (0x80240016): Exception from HRESULT: 0x80240016"
        ),
        "{log:?}"
    );
    assert!(log[1].contains("adding in a Windows Restart"), "{log:?}");
    assert!(matches!(step, UpdateStep::Failed(_)));
}

#[test]
fn where_a_restart_is_pending_it_comes_first() {
    let lab = lab!();
    let ran = run(&lab, "$Wua.Pending = $true\n", &UpdateChoice::default()).ended_with(101);
    ran.says("a restart was pending before the search");
    assert_eq!(lab.calls(), Vec::<String>::new());
    let servicing = r"$Lab.Keys['HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing\RebootPending'] = @{}";
    run(&lab, servicing, &UpdateChoice::default()).ended_with(101);
    run(&lab, &format!("{TWO}$Wua.Before = $true\n"), &UpdateChoice::default())
        .ended_with(101)
        .says("Windows wants a restart before it installs");
    // 0x80240016 because of a restart that became due meanwhile: the restart, not the wait.
    let meanwhile = format!("{TWO}$Wua.Install = {{ $Wua.Pending = $true; throw (New-Fault 0x80240016) }}\n");
    run(&lab, &meanwhile, &UpdateChoice::default())
        .ended_with(101)
        .says("until then Windows does not install");
}

#[test]
fn the_servicing_worker_is_waited_for_within_a_bound() {
    let lab = lab!();
    let works = "$Wua.Pending = $true\n$Lab.Processes = { param($name) if ($name -ne 'TiWorker') { Stop-Lab $name }; $Wua.Looks++; if ($Wua.Looks -lt 5) { 'TiWorker' } }\n";
    let ran =
        run_with(&lab, works, &UpdateChoice::default(), &[], &RoundLimits { servicing_seconds: 30, ..QUICK })
            .ended_with(101);
    ran.says_not("still works");
    let limits = RoundLimits { pause_seconds: 1, ..QUICK };
    let for_ever = "$Wua.Pending = $true\n$Lab.Processes = { 'TiWorker' }\n";
    run_with(&lab, for_ever, &UpdateChoice::default(), &[], &limits)
        .ended_with(101)
        .says("still works after 1 s");
}

#[test]
fn an_installer_that_fails_ends_the_round() {
    let lab = lab!();
    let fails = format!("{TWO}$Wua.Install = {{ throw (New-Fault 0x80070643) }}\n");
    run(&lab, &fails, &UpdateChoice::default()).ended_with(107).says("the installer failed: 0x80070643");
}

#[test]
fn a_windows_without_windows_update_ends_the_round() {
    let lab = lab!();
    let none = "$Lab.Objects['Microsoft.Update.Session'] = { throw (New-Fault 0x80040154) }\n";
    run(&lab, none, &UpdateChoice::default()).ended_with(108).says("0x80040154");
}

/// Text and rounds together: an update that fails each time does not keep the others, nor the build, for ever.
#[test]
fn an_update_that_fails_each_round_is_left_out_in_the_end() {
    let lab = lab!();
    let mut updates = Updates::new(UpdateLimits::default());
    let mut installed = false;
    for round in 1..=4 {
        // 1 is gone once it is installed; 2 fails, and comes again.
        let offered = if installed {
            "(New-Update '2' 'bad')"
        } else {
            "(New-Update '1' 'good'), (New-Update '2' 'bad')"
        };
        let prelude = format!(
            "$Wua.Updates = @({offered})\n$Wua.Results['2'] = 4, -2145116147, $false\n$Wua.Restart = $true\n"
        );
        let left_out: Vec<&str> = updates.left_out().iter().map(String::as_str).collect();
        let ran = run_with(&lab, &prelude, &UpdateChoice::default(), &left_out, &QUICK);
        installed = true;
        match updates.round_ended(ran.code, &answers(&ran)) {
            (log, UpdateStep::Restart) => {
                assert_eq!(
                    log.iter().any(|line| line.contains("going on without it")),
                    round == 2,
                    "{log:?}"
                );
            }
            (log, UpdateStep::Done) => {
                assert_eq!(log, ["No Windows updates found, apart from 1 left out"]);
                assert_eq!(round, 3);
                return;
            }
            (_, step) => panic!("round {round}: {step:?}"),
        }
    }
    panic!("it came to no end");
}

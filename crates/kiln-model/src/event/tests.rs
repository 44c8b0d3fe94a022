use std::collections::BTreeMap;

use expect_test::expect_file;
use proptest::prelude::*;

use super::*;
use crate::catalog::{Generation, Os};
use crate::view::{IllegalEvent, RunView};

fn step(id: &str) -> StepRef {
    StepRef { id: id.to_owned(), title: format!("step {id}") }
}

fn output(name: &str) -> RunOutput {
    RunOutput {
        format: RUN_OUTPUT_FORMAT,
        name: name.to_owned(),
        r#type: "VHD".to_owned(),
        run_id: "20250101-120000-abcd".to_owned(),
        file: format!("{name}.vhd"),
        size: 4_294_967_808,
        virtual_size: 4_294_967_296,
        sha256: Sha256::from_bytes([0x22; 32]),
        extents: Some(Sha256::from_bytes([0x44; 32])),
        image: Some(Sha256::from_bytes([0x55; 32])),
        source: OutputSource {
            name: "debian-12".to_owned(),
            version: "12.20250101.0".to_owned(),
            sha256: Sha256::from_bytes([0x33; 32]),
            requested: "Debian:debian-12:12-gen2:latest".to_owned(),
        },
        template_name: "hello".to_owned(),
        template_sha256: Sha256::from_bytes([0x11; 32]),
        generation: Generation::V2,
        os: Os::Linux,
        tags: BTreeMap::from([("owner".to_owned(), "images".to_owned())]),
        created_at: "2025-01-01T12:01:00Z".to_owned(),
        kiln_version: "0.1.0".to_owned(),
        status: "booted in QEMU; not tried on Azure".to_owned(),
    }
}

fn started(attempt: u32) -> RunEventKind {
    RunEventKind::RunStarted {
        format: EVENTS_FORMAT,
        run_id: "20250101-120000-abcd".to_owned(),
        template_name: "hello".to_owned(),
        template_sha256: Sha256::from_bytes([0x11; 32]),
        source: "debian-12 12.20250101.0".to_owned(),
        kiln_version: "0.1.0".to_owned(),
        attempt,
    }
}

fn ended(state: RunState) -> RunEventKind {
    RunEventKind::RunEnded { state, message: "over".to_owned(), failure: None, ms: 61_000 }
}

fn ended_step(id: &str) -> RunEventKind {
    RunEventKind::StepEnded {
        step: step(id),
        outcome: StepOutcome::Succeeded,
        message: String::new(),
        ms: 10,
    }
}

fn stream(kinds: Vec<RunEventKind>) -> Vec<RunEvent> {
    kinds
        .into_iter()
        .enumerate()
        .map(|(index, event)| RunEvent {
            seq: index as u64,
            time: format!("2025-01-01T12:00:{:02}.000Z", index % 60),
            elapsed_ms: index as u64 * 1000,
            event,
        })
        .collect()
}

/// One event of each kind, in an order a run could have.
fn one_of_each() -> Vec<RunEvent> {
    stream(vec![
        started(1),
        RunEventKind::PhaseStarted { phase: Phase::Building },
        RunEventKind::StepStarted { step: step("boot") },
        RunEventKind::StepProgress { step: step("boot"), done: 1, total: 2, unit: Unit::Bytes },
        RunEventKind::StepEnded {
            step: step("boot"),
            outcome: StepOutcome::Failed,
            message: "the guest never answered".to_owned(),
            ms: 2000,
        },
        RunEventKind::Notice { level: NoticeLevel::Warning, text: "no KVM: this is slow".to_owned() },
        RunEventKind::OutputPublished { output: output("disk") },
        RunEventKind::RunEnded {
            state: RunState::Failed,
            message: "the guest never answered".to_owned(),
            failure: Some(Failure {
                fault: Fault::Guest,
                phase: Phase::Building,
                step: Some(step("boot")),
                cause: "the guest never answered".to_owned(),
                chain: vec!["connect".to_owned(), "refused".to_owned()],
                log_tail: vec!["PACKER OUT x".to_owned()],
                console_tail: vec!["panic".to_owned()],
            }),
            ms: 61_000,
        },
    ])
}

fn text(events: &[RunEvent]) -> String {
    events.iter().map(RunEvent::to_line).collect()
}

/// The format is a promise.
#[test]
fn the_event_format_is_golden() {
    let events = one_of_each();
    let text = text(&events);
    expect_file!["../../../../tests/fixtures/golden/events.jsonl"].assert_eq(&text);
    let log = read_events(text.as_bytes()).unwrap();
    assert_eq!(log.events, events);
    assert_eq!(log.whole_bytes, text.len());
}

#[test]
fn the_run_output_format_is_golden() {
    let output = output("disk");
    let text = output.to_json();
    expect_file!["../../../../tests/fixtures/golden/run-output.json"].assert_eq(&text);
    assert_eq!(RunOutput::from_json(&text).unwrap(), output);
    // A record of before there were extent digests.
    let older = RunOutput { extents: None, ..output };
    let lines: Vec<_> = text.lines().filter(|line| !line.contains("\"extents\"")).collect();
    assert_eq!(older.to_json().trim_end(), lines.join("\n"));
    assert_eq!(RunOutput::from_json(&older.to_json()).unwrap(), older);
    let newer = text.replace("\"format\": 1", "\"format\": 2");
    assert!(matches!(RunOutput::from_json(&newer), Err(FormatError::Newer { found: 2, .. })));
}

#[test]
fn a_torn_last_line_is_cut_and_nothing_else() {
    let events = one_of_each();
    let text = text(&events);
    let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at + 1).collect();
    for cut in 0..=text.len() {
        let log = read_events(&text.as_bytes()[..cut]).unwrap();
        let whole = ends.iter().filter(|end| **end <= cut).count();
        // A line that lacks only its line feed is whole, too.
        let only_feed_missing = ends.contains(&(cut + 1));
        assert_eq!(log.events.len(), whole + usize::from(only_feed_missing), "cut at {cut}");
        assert_eq!(log.events, events[..log.events.len()]);
        assert!(log.whole_bytes <= cut);
    }
    // Room that was allocated and never written.
    let mut zeros = text.clone().into_bytes();
    let whole = zeros.len();
    zeros.extend([0; 300]);
    let log = read_events(&zeros).unwrap();
    assert_eq!((log.events.len(), log.whole_bytes), (events.len(), whole));
}

#[test]
fn newer_broken_and_gappy_streams_are_refused() {
    let text = text(&one_of_each());
    let newer = text.replacen("\"format\":1", "\"format\":2", 1);
    assert!(matches!(read_events(newer.as_bytes()), Err(FormatError::Newer { found: 2, newest: 1, .. })));
    let mut lines: Vec<&str> = text.lines().collect();
    lines[3] = "{\"seq\":3";
    let broken = lines.join("\n") + "\n";
    assert!(matches!(read_events(broken.as_bytes()), Err(FormatError::Malformed { line: 4, .. })));
    let mut lines: Vec<&str> = text.lines().collect();
    lines.remove(3);
    let gap = lines.join("\n") + "\n";
    let error = read_events(gap.as_bytes()).unwrap_err();
    assert!(matches!(error, FormatError::Inconsistent { .. }), "{error}");
    let headless = text.lines().nth(1).unwrap().to_owned() + "\n";
    assert!(matches!(read_events(headless.as_bytes()), Err(FormatError::Missing { .. })));
}

#[test]
fn a_view_tells_where_a_run_is() {
    let events = stream(vec![
        started(1),
        RunEventKind::PhaseStarted { phase: Phase::Building },
        RunEventKind::StepStarted { step: step("inputs") },
        RunEventKind::StepStarted { step: step("boot") },
        RunEventKind::StepProgress { step: step("inputs"), done: 5, total: 10, unit: Unit::Items },
        ended_step("inputs"),
        RunEventKind::PhaseStarted { phase: Phase::Customizing },
        RunEventKind::OutputPublished { output: output("disk") },
        RunEventKind::OutputPublished { output: output("disk") },
        ended(RunState::Succeeded),
    ]);
    let at = |count: usize| RunView::of(&events[..count]).unwrap();
    assert_eq!(at(0), RunView::default());
    assert_eq!((at(1).state, at(1).phase()), (Some(RunState::Running), Phase::Queued));
    let halfway = at(5);
    assert_eq!(halfway.phase(), Phase::Building);
    assert_eq!(halfway.running_steps().count(), 2);
    assert_eq!(halfway.steps[0].progress.unwrap().done, 5);
    let end = at(10);
    assert_eq!(end.state, Some(RunState::Succeeded));
    assert_eq!(end.running_steps().count(), 0);
    assert_eq!(end.outputs.len(), 1);
    assert_eq!((end.phases[0].started_ms, end.phases[0].ended_ms), (1000, Some(6000)));
    assert_eq!((end.steps[0].outcome, end.steps[1].outcome), (Some(StepOutcome::Succeeded), None));
    assert_eq!(end.next_seq, 10);
}

#[test]
fn what_cannot_follow_is_refused_and_changes_nothing() {
    let building = || RunEventKind::PhaseStarted { phase: Phase::Building };
    for (kinds, expected) in [
        (vec![building()], IllegalEvent::NotStarted),
        (vec![started(1), started(1)], IllegalEvent::Attempt { before: 1, found: 1 }),
        (
            vec![started(1), building(), building()],
            IllegalEvent::Phase { before: Phase::Building, found: Phase::Building },
        ),
        (vec![started(1), ended_step("x")], IllegalEvent::StepNotRunning { id: "x".to_owned() }),
        (
            vec![
                started(1),
                RunEventKind::StepStarted { step: step("x") },
                RunEventKind::StepStarted { step: step("x") },
            ],
            IllegalEvent::StepTwice { id: "x".to_owned() },
        ),
        (
            vec![started(1), ended(RunState::Canceling)],
            IllegalEvent::State { before: RunState::Running, found: RunState::Canceling },
        ),
        (vec![started(1), ended(RunState::Failed), ended(RunState::Succeeded)], IllegalEvent::Ended),
        (vec![started(1), ended(RunState::Failed), started(2)], IllegalEvent::Ended),
    ] {
        let events = stream(kinds);
        let (last, before) = events.split_last().unwrap();
        let mut view = RunView::of(before).unwrap();
        let unchanged = view.clone();
        assert_eq!(view.apply(last), Err(expected));
        assert_eq!(view, unchanged);
    }
    let mut events = stream(vec![started(1), building()]);
    events[1].seq = 5;
    assert_eq!(RunView::of(&events), Err(IllegalEvent::OutOfOrder { expected: 1, found: 5 }));
}

#[test]
fn a_second_attempt_starts_its_phases_anew() {
    let view = RunView::of(&stream(vec![
        started(1),
        RunEventKind::PhaseStarted { phase: Phase::Customizing },
        RunEventKind::StepStarted { step: step("customize/1") },
        started(2),
        RunEventKind::PhaseStarted { phase: Phase::Building },
        RunEventKind::StepStarted { step: step("customize/1") },
    ]))
    .unwrap();
    assert_eq!((view.attempt, view.phase()), (2, Phase::Building));
    assert_eq!(view.running_steps().count(), 1);
    assert_eq!(view.steps.len(), 2);
}

fn any_kind() -> impl Strategy<Value = RunEventKind> {
    let id = prop_oneof![Just("a"), Just("b")];
    let phase = prop_oneof![
        Just(Phase::Queued),
        Just(Phase::Building),
        Just(Phase::Customizing),
        Just(Phase::Distributing)
    ];
    let state = prop_oneof![Just(RunState::Succeeded), Just(RunState::Canceled), Just(RunState::Running)];
    prop_oneof![
        1 => (1u32..4).prop_map(started),
        3 => phase.prop_map(|phase| RunEventKind::PhaseStarted { phase }),
        3 => id.clone().prop_map(|id| RunEventKind::StepStarted { step: step(id) }),
        3 => id.prop_map(ended_step),
        1 => Just(RunEventKind::OutputPublished { output: output("disk") }),
        1 => state.prop_map(ended),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes, the view stays whole: a run ends once, phases go forward, refused
    /// events change nothing; and every prefix of what was taken folds to the same view.
    #[test]
    fn any_stream_leaves_a_valid_view(kinds in proptest::collection::vec(any_kind(), 0..40)) {
        let mut view = RunView::default();
        let mut taken: Vec<RunEvent> = Vec::new();
        let mut first = stream(vec![started(1)]);
        for mut event in first.drain(..).chain(stream(kinds)) {
            event.seq = view.next_seq;
            let before = view.clone();
            match view.apply(&event) {
                Ok(()) => taken.push(event),
                Err(_) => prop_assert_eq!(&view, &before),
            }
            prop_assert!(view.phases.windows(2).all(|pair| pair[0].phase < pair[1].phase));
            prop_assert!(before.state.is_none_or(|state| !state.is_final()) || before == view);
        }
        for count in 0..=taken.len() {
            prop_assert!(RunView::of(&taken[..count]).is_ok());
        }
        prop_assert_eq!(RunView::of(&taken).unwrap(), view);
        let text: String = taken.iter().map(RunEvent::to_line).collect();
        prop_assert_eq!(read_events(text.as_bytes()).unwrap().events, taken);
    }

    #[test]
    fn arbitrary_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read_events(&bytes);
    }
}

//! Lists: order, pages, and what a page shows while others write.

use kiln_model::run::RunState;
use proptest::prelude::*;

use super::*;

fn names(page: Page<TemplateRecord>) -> Vec<String> {
    page.items.into_iter().map(|template| template.id.name).collect()
}

#[test]
fn templates_are_listed_by_group_and_name_in_any_case() {
    let mut desk = Desk::new();
    let w = desk.begin();
    for (sub, group, name) in [
        ("s", "g", "b"),
        ("S", "G", "A"),
        ("s", "g2", "c"),
        ("s", "g-2", "d"),
        ("s2", "g", "e"),
        ("s", "f", "é"),
    ] {
        let mut record = template(name);
        record.id = TemplateId { subscription: sub.into(), resource_group: group.into(), name: name.into() };
        w.insert_template(&record).unwrap();
    }
    let scope = |subscription: &str, group: Option<&str>| Scope {
        subscription: subscription.into(),
        resource_group: group.map(str::to_owned),
    };
    let list = |scope: &Scope, after: Option<&str>, limit| w.templates(scope, after, limit).unwrap();
    assert_eq!(names(list(&scope("S", None), None, 10)), ["é", "d", "A", "b", "c"]);
    assert_eq!(names(list(&scope("s", Some("G")), None, 10)), ["A", "b"]);
    assert_eq!(names(list(&scope("s", Some("nothing")), None, 10)), [""; 0]);
    // A place before or behind the scope is none of this list.
    for place in ["", "s/z", "s/g", "s/f/a", "s2/g/e"] {
        let refused = w.templates(&scope("s", Some("g")), Some(place), 10);
        assert!(matches!(refused, Err(StoreError::BadPlace(_))), "{place}");
    }
    let first = list(&scope("s", None), None, 3);
    let next = first.next.clone().unwrap();
    w.delete_template(&first.items[2].id).unwrap();
    let second = list(&scope("s", None), Some(&next.to_uppercase()), 3);
    assert_eq!((names(second.clone()), second.next), (vec!["b".to_owned(), "c".to_owned()], None));
}

#[test]
fn activity_is_numbered_for_good_and_newest_first() {
    let mut desk = Desk::new();
    let w = desk.begin();
    let record = |n: i64| ActivityRecord {
        seq: 0,
        at: at(n),
        by: "me".into(),
        action: "a".into(),
        resource: "r".into(),
        outcome: n.to_string(),
    };
    for n in 1..=5 {
        assert_eq!(w.append_activity(&record(n)).unwrap(), n as u64);
    }
    let page = w.activity(None, 2).unwrap();
    assert_eq!(page.items.iter().map(|record| record.seq).collect::<Vec<_>>(), [5, 4]);
    let page = w.activity(page.next.map(|next| next.parse().unwrap()), 3).unwrap();
    assert_eq!((page.items.len(), page.items[0].seq, page.next), (3, 3, None));
    w.connection.execute("DELETE FROM activity", []).unwrap();
    assert_eq!(w.append_activity(&record(9)).unwrap(), 6, "a number is never given twice");
}

#[test]
fn made_up_places_are_refused() {
    let mut desk = Desk::new();
    let w = desk.begin();
    for place in ["", "x", "1", "x.run", "1.", "1.a/b", "99999999999999999999.a"] {
        let error = w.runs(&RunFilter::default(), Some(place), 5).unwrap_err();
        assert!(matches!(error, StoreError::BadPlace(_)), "{place}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Pages put together are the list, for every filter and size, also where runs were queued in one moment.
    #[test]
    fn pages_make_the_list(
        runs in prop::collection::vec((0..3_u8, 0..6_i64, 0..4_u8), 0..40),
        limit in 1..7_usize,
        by_template in any::<bool>(),
        by_state in any::<bool>(),
    ) {
        let mut desk = Desk::new();
        let tx = desk.transaction();
        let w = Writer::new(&tx, Path::new("x"));
        let states = [RunState::Succeeded, RunState::Failed, RunState::Canceled, RunState::PartiallySucceeded];
        let mut all = Vec::new();
        for (number, (template, minute, state)) in (0..).zip(runs) {
            let record = run(&id(&format!("t{template}")), number, minute);
            let record = ended(record, states[usize::from(state)], minute + 1);
            w.insert_run(&record).unwrap();
            all.push(record);
        }
        let filter = RunFilter {
            template: by_template.then(|| id("T1")),
            state: by_state.then_some(RunState::Failed),
        };
        all.retain(|run| filter.template.as_ref().is_none_or(|template| run.template == *template));
        all.retain(|run| filter.state.is_none_or(|state| run.state == state));
        all.sort_by_key(|run| std::cmp::Reverse((run.queued_at.clone(), run.id.clone())));
        let (mut paged, mut after) = (Vec::new(), None);
        loop {
            let page = w.runs(&filter, after.as_deref(), limit).unwrap();
            prop_assert!(page.items.len() == limit || page.next.is_none());
            paged.extend(page.items);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        prop_assert_eq!(paged, all);
    }
}

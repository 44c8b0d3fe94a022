use axum::http::Method;
use kiln_model::event::{EVENTS_FORMAT, RunEvent, RunEventKind, StepOutcome, StepRef};
use kiln_model::run::{Phase, RunState};
use serde_json::Value;

use super::Server;

async fn names(server: &Server, first: &str) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut next = Some(first.to_owned());
    while let Some(path) = next {
        let page = server.get(&path).await.json();
        let names =
            page["value"].as_array().unwrap().iter().map(|run| run["name"].as_str().unwrap().to_owned());
        pages.push(names.collect());
        next = page["nextLink"].as_str().map(|link| {
            assert!(link.starts_with("https://"), "{link}");
            let path = link.splitn(4, '/').nth(3).unwrap();
            format!("/{path}")
        });
    }
    pages
}

#[tokio::test]
async fn history_is_paged_and_filtered() {
    let server = Server::open().await;
    let mut made = Vec::new();
    for (minute, state) in [
        (1, RunState::Succeeded),
        (2, RunState::Failed),
        (3, RunState::Canceled),
        (4, RunState::Failed),
        (5, RunState::Running),
    ] {
        made.push(server.add_run("t1", minute, state).await.id.to_string());
    }
    let other = server.add_run("t2", 9, RunState::Succeeded).await.id.to_string();
    made.reverse();

    let all = names(&server, "B/imageTemplates/T1/runs?$top=2&api-version=2024-02-01").await;
    assert_eq!(all, [&made[0..2], &made[2..4], &made[4..5]], "newest first, in pages of two");
    let failed = names(&server, "B/imageTemplates/t1/runs?state=failed&$top=1").await;
    assert_eq!(failed.concat(), [made[1].clone(), made[3].clone()], "the filter goes with the nextLink");
    let host = names(&server, "/kiln/runs").await.concat();
    assert_eq!(host.len(), 6);
    assert_eq!(host[0], other);
    let template = server.template_id("t1").arm_id();
    let named = names(&server, &format!("/kiln/runs?template={template}&$top=4")).await;
    assert_eq!(named.concat(), made);

    for (path, code) in [
        ("B/imageTemplates/t1/runs?state=Sleeping", "InvalidParameter"),
        ("B/imageTemplates/t1/runs?$top=0", "InvalidParameter"),
        ("B/imageTemplates/t1/runs?$top=1001", "InvalidParameter"),
        ("B/imageTemplates/t1/runs?$skipToken=abc", "InvalidSkipToken"),
        ("/kiln/runs?template=t1", "InvalidParameter"),
    ] {
        let seen = server.get(path).await;
        assert_eq!((seen.status.as_u16(), seen.code()), (400, code.to_owned()), "{path}");
    }
    // No template, and no runs it left.
    assert_eq!(server.get("B/imageTemplates/t3/runs").await.code(), "ResourceNotFound");
    assert_eq!(server.get("B/imageTemplates/t1/runs/latest").await.json()["name"], *made[0]);
    for path in [
        format!("B/imageTemplates/t1/runs/{other}"),
        "B/imageTemplates/t1/runs/nothing-like-it".to_owned(),
        "B/imageTemplates/t3/runs/latest".to_owned(),
    ] {
        let seen = server.get(&path).await;
        assert_eq!((seen.status.as_u16(), seen.code()), (404, "RunNotFound".to_owned()), "{path}");
    }
}

#[tokio::test]
async fn only_a_run_that_failed_is_retried() {
    let server = Server::open().await;
    let running = server.add_run("t1", 1, RunState::Running).await;
    let good = server.add_run("t2", 2, RunState::Succeeded).await;
    for (path, status, code) in [
        (format!("B/imageTemplates/t1/runs/{}/retry?V", running.id), 409, "OperationNotAllowed"),
        (format!("B/imageTemplates/t2/runs/{}/retry?V", good.id), 409, "OperationNotAllowed"),
        ("B/imageTemplates/t2/runs/latest/retry?V".to_owned(), 409, "OperationNotAllowed"),
        (format!("B/imageTemplates/t2/runs/{}/retry?V", running.id), 404, "RunNotFound"),
        ("B/imageTemplates/t3/runs/latest/retry?V".to_owned(), 404, "RunNotFound"),
    ] {
        let path = path.replace('V', "api-version=2024-02-01");
        let seen = server.ask(Method::POST, &path).await;
        assert_eq!((seen.status.as_u16(), seen.code()), (status, code.to_owned()), "{path}");
    }
}

#[tokio::test]
async fn a_run_in_full_is_told_by_its_events() {
    let server = Server::open().await;
    let run = server.add_run("t1", 1, RunState::Running).await;
    let path = format!("B/imageTemplates/t1/runs/{}", run.id);
    let bare = server.get(&path).await.json();
    assert_eq!(bare["properties"].get("phases"), None, "no events yet");
    assert_eq!(bare["properties"]["runSubState"], "Building");

    let step = StepRef { id: "boot".to_owned(), title: "Boot".to_owned() };
    let kinds = [
        RunEventKind::RunStarted {
            format: EVENTS_FORMAT,
            run_id: run.id.to_string(),
            template_name: "t1".to_owned(),
            template_sha256: kiln_model::Sha256::from_bytes([0; 32]),
            source: "debian-12 1.0.0".to_owned(),
            kiln_version: "0".to_owned(),
            attempt: 1,
        },
        RunEventKind::PhaseStarted { phase: Phase::Building },
        RunEventKind::StepStarted { step: step.clone() },
        RunEventKind::StepEnded { step, outcome: StepOutcome::Succeeded, message: "up".to_owned(), ms: 20 },
    ];
    let text: String = (0u64..)
        .zip(kinds)
        .map(|(seq, event)| RunEvent { seq, time: "t".to_owned(), elapsed_ms: seq * 10, event }.to_line())
        .collect();
    // A torn line of a writer at work is not an event yet.
    std::fs::write(server.run_folder(&run.id).join("events.jsonl"), format!("{text}{{\"seq\":4,")).unwrap();
    server.add_output(&run, "out", 512).await;
    let told = server.get(&path).await.json();
    let properties = &told["properties"];
    assert_eq!(properties["source"], "debian-12 1.0.0");
    assert_eq!(properties["elapsedMs"], 30);
    assert_eq!(properties["phases"][0]["phase"], "Building");
    assert_eq!(properties["steps"][0]["id"], "boot");
    assert_eq!(properties["steps"][0]["outcome"], "succeeded");
    assert_eq!(properties["steps"][0]["ms"], 20);
    assert_eq!(properties["failure"], Value::Null);
    let artifact = properties["outputs"][0]["artifactUri"].as_str().unwrap();
    assert!(artifact.ends_with(&format!("/kiln/artifacts/{}/out.vhd", run.id)), "{artifact}");

    // What cannot be read hides nothing of the row.
    std::fs::write(server.run_folder(&run.id).join("events.jsonl"), "nonsense\n").unwrap();
    let row = server.get(&path).await.json();
    assert_eq!(row["properties"]["runState"], "Running");
    assert_eq!(row["properties"].get("phases"), None);
}

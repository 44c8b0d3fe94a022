use axum::http::Method;
use kiln_model::run::RunState;

use super::Server;

#[tokio::test]
async fn the_host_says_how_it_is() {
    let server = Server::open().await;
    server.add_run("t1", 1, RunState::Running).await;
    let health = server.get("/kiln/health").await;
    assert_eq!((health.status.as_u16(), health.text.as_str()), (200, r#"{"status":"ok"}"#));
    let status = server.get("/kiln/status").await.json();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["formats"]["events"], 1);
    let started: jiff::Timestamp = status["startedTime"].as_str().unwrap().parse().unwrap();
    assert!(jiff::Timestamp::now().duration_since(started).abs() < jiff::SignedDuration::from_secs(60));
    let folders = status["folders"].as_array().unwrap();
    assert_eq!(folders.len(), 4);
    // Also of those that nothing was put into yet.
    assert!(folders.iter().all(|folder| folder["freeBytes"].as_u64().is_some()), "{folders:?}");
    let document = server.get("/kiln/openapi.json").await;
    assert_eq!(document.json()["openapi"], "3.1.0");
}

#[tokio::test]
async fn retention_is_shown_before_it_is_carried_out() {
    let server = Server::open().await;
    let old = server.add_run("t1", 1, RunState::Failed).await;
    std::fs::write(server.run_folder(&old.id).join("customization.log"), "x".repeat(10_000)).unwrap();
    let dry = server.ask(Method::POST, "/kiln/gc?dryRun=true").await.json();
    assert_eq!(dry["dryRun"], true);
    let what = format!("run {}", old.id);
    assert_eq!(dry["items"][0]["what"], *what, "{dry:#}");
    assert!(server.run_folder(&old.id).exists());
    assert_eq!(server.get("/kiln/activity").await.json()["value"].as_array().unwrap().len(), 0);

    let done = server.ask(Method::POST, "/kiln/gc").await.json();
    assert_eq!((&done["dryRun"], &done["items"][0]["what"]), (&false.into(), &what.as_str().into()));
    assert!(!server.run_folder(&old.id).exists());
    assert_eq!(server.get("B/imageTemplates/t1/runs/latest").await.code(), "RunNotFound");
    let activity = server.get("/kiln/activity").await.json();
    assert_eq!(activity["value"].as_array().unwrap().len(), 1, "{activity:#}");
    assert_eq!(activity["value"][0]["outcome"], "Succeeded");
}

#[tokio::test]
async fn activity_is_paged() {
    let server = Server::open().await;
    for _ in 0..3 {
        server.ask(Method::POST, "/kiln/gc").await;
    }
    let first = server.get("/kiln/activity?$top=2").await.json();
    let seqs = |page: &serde_json::Value| -> Vec<u64> {
        page["value"].as_array().unwrap().iter().map(|row| row["seq"].as_u64().unwrap()).collect()
    };
    assert_eq!(seqs(&first), [3, 2]);
    let link = first["nextLink"].as_str().unwrap();
    let next = server.get(&format!("/{}", link.splitn(4, '/').nth(3).unwrap())).await.json();
    assert_eq!((seqs(&next), next.get("nextLink")), (vec![1], None));
    assert_eq!(server.get("/kiln/activity?$skipToken=MXg").await.status.as_u16(), 400);
}

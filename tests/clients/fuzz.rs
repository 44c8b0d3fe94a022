//! Requests nobody would write, made from the server's own OpenAPI document: none may end in a 5xx, hang, or kill it.

use std::time::Duration;

use kiln_tests::daemon::Daemon;
use kiln_tests::kiln::Kiln;
use kiln_tests::program::{command, finish};

use super::client;

/// Bounded: a fuzzer has no end of its own.
const EXAMPLES: &str = "25";

#[test]
fn nothing_from_the_openapi_document_breaks_the_server() {
    let kiln = Kiln::new();
    let daemon = Daemon::start(&kiln);
    let document = daemon.get("/kiln/openapi.json");
    assert_eq!(document.status, 200);
    let file = kiln.path().join("openapi.json");
    std::fs::write(&file, &document.body).unwrap();
    let mut fuzz = command(client("schemathesis").join("bin/schemathesis"));
    fuzz.arg("run").arg(&file);
    fuzz.args(["--url", daemon.url(), "--tls-verify"]).arg(daemon.ca());
    fuzz.arg("--header").arg(format!("Authorization: Bearer {}", daemon.token()));
    fuzz.args([
        "--checks",
        "not_a_server_error",
        "--max-examples",
        EXAMPLES,
        "--seed",
        "1",
        "--request-timeout",
        "20",
    ]);
    fuzz.args(["--max-time", "150"]);
    // A log that follows its run never ends by itself; a run would need a guest.
    fuzz.args(["--exclude-path-regex", "/(log|events)$|/run$|/gc$", "--no-color"]);
    fuzz.current_dir(kiln.path());
    let ended = finish(&mut fuzz, Duration::from_secs(8 * 60));
    assert!(ended.status.success(), "{}\n{}", ended.text(), ended.stderr);
    assert_eq!(daemon.get("/kiln/health").status, 200, "it still answers");
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

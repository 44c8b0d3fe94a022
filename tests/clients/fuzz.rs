//! Requests nobody would write, made from the server's own OpenAPI document: none may end in a 5xx, hang, or kill it.

use std::time::Duration;

use kiln_tests::daemon::Daemon;
use kiln_tests::kiln::Kiln;
use kiln_tests::program::{command, finish};
use kiln_tests::template::tiny;
use serde_json::{Value, json};

use super::client;

/// Bounded: a fuzzer has no end of its own.
const EXAMPLES: &str = "25";

/// Makes a path parameter one of `values`, wherever it is described; answers how often.
fn pin(document: &mut Value, name: &str, values: &[String]) -> usize {
    match document {
        Value::Object(object)
            if object.get("in").is_some_and(|it| it == "path") && object["name"] == name =>
        {
            object.insert("schema".into(), json!({ "type": "string", "enum": values }));
            object.shift_remove("example");
            1
        }
        Value::Object(object) => object.values_mut().map(|value| pin(value, name, values)).sum(),
        Value::Array(items) => items.iter_mut().map(|value| pin(value, name, values)).sum(),
        _ => 0,
    }
}

#[test]
fn nothing_from_the_openapi_document_breaks_the_server() {
    let kiln = Kiln::new();
    let daemon = Daemon::start(&kiln);
    let document = daemon.get("/kiln/openapi.json");
    assert_eq!(document.status, 200);
    let mut document = document.json();
    // Names that are there, else every request ends at "not found".
    let id = daemon.template_id("one");
    let group = id.split('/').nth(4).unwrap().to_owned();
    let names = [
        ("subscriptionId", vec![daemon.subscription()]),
        ("resourceGroupName", vec![group]),
        ("imageTemplateName", vec!["one".to_owned(), "two".to_owned()]),
        ("namespace", vec!["Microsoft.VirtualMachineImages".to_owned()]),
        ("runOutputName", vec!["out".to_owned()]),
        ("triggerName", vec!["watch".to_owned()]),
        ("run", vec!["latest".to_owned()]),
    ];
    for (name, values) in names {
        assert!(pin(&mut document, name, &values) > 0, "the document has no parameter {name}");
    }
    daemon.put_template("one", &tiny().shell("never run", ["true"]));
    let file = kiln.path().join("openapi.json");
    std::fs::write(&file, document.to_string()).unwrap();
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
    // A connection that was refused once (the server has limits) is no finding; one that always is, is.
    fuzz.args(["--max-time", "150", "--request-retries", "2"]);
    // A log that follows its run never ends by itself; a run would need a guest.
    fuzz.args(["--exclude-path-regex", "/(log|events)$|/run$|/gc$", "--no-color"]);
    fuzz.current_dir(kiln.path());
    let ended = finish(&mut fuzz, Duration::from_secs(8 * 60));
    assert!(ended.status.success(), "{}\n{}", ended.text(), ended.stderr);
    assert_eq!(daemon.get("/kiln/health").status, 200, "it still answers");
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

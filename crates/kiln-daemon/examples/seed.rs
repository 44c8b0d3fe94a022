//! Fills the store of a data folder for load benchmarks: `cargo run --example seed -- DIR TEMPLATES RUNS [live]`.
//!
//! A server that is started on the folder afterwards serves them: they lie in its first subscription and resource group,
//! which are made here if it has never started. Runs have rows and run outputs, but no directories and no files.

#![expect(clippy::print_stdout, reason = "its result")]

use std::error::Error;
use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use kiln_build::run_dir::{REQUEST_FORMAT, RunDir, RunRequest};
use kiln_daemon::config::{Config, Environment};
use kiln_daemon::daemon::Paths;
use kiln_daemon::store::*;
use kiln_model::Sha256;
use kiln_model::event::RunOutput;
use kiln_model::run::{Fault, Phase, RunState};
use serde_json::json;

/// Rows in one transaction.
const AT_A_TIME: usize = 2000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (words, live) = match words.split_last() {
        Some((last, words)) if last == "live" => (words, true),
        _ => (words.as_slice(), false),
    };
    let [dir, templates, runs] = words else {
        return Err("usage: seed DIR TEMPLATES RUNS [live]".into());
    };
    let (templates, runs): (usize, usize) = (templates.parse()?, runs.parse()?);
    let paths = Paths::new(PathBuf::from(dir));
    let store = Store::open(&paths.database())?;
    let environment = Environment::open(&paths.server(), &Config::default())?;
    let scene = Scene {
        subscription: environment.subscriptions[0].id.clone(),
        resource_group: environment.resource_groups[0].clone(),
        location: environment.location,
        // One run every three minutes; the last one ended just now.
        first: Timestamp::now() - SignedDuration::from_mins(3 * runs as i64 + 3),
        templates,
    };
    for from in (0..templates).step_by(AT_A_TIME) {
        let records: Vec<_> =
            (from..templates.min(from + AT_A_TIME)).map(|number| scene.template(number)).collect();
        store.write(move |w| records.iter().try_for_each(|record| w.insert_template(record))).await?;
    }
    for from in (0..runs).step_by(AT_A_TIME) {
        let records = (from..runs.min(from + AT_A_TIME)).map(|number| scene.run(number));
        let records = records.collect::<Result<Vec<_>, _>>()?;
        let change = move |w: &Writer<'_>| -> Result<(), StoreError> {
            for (run, operation, output) in &records {
                w.insert_run(run)?;
                w.insert_operation(operation)?;
                output.iter().try_for_each(|output| w.put_output(output))?;
            }
            Ok(())
        };
        store.write(change).await?;
    }
    if live {
        let run = scene.live_run(&paths)?;
        println!("live {}", run.id);
        store.write(move |w| w.insert_run(&run)).await?;
    }
    println!("{templates} templates and {runs} runs in {}", paths.database().display());
    println!("subscription {}, resource group {}", scene.subscription, scene.resource_group);
    Ok(())
}

/// Where everything lies, and when.
struct Scene {
    subscription: String,
    resource_group: String,
    location: String,
    first: Timestamp,
    templates: usize,
}

impl Scene {
    fn id(&self, number: usize) -> TemplateId {
        TemplateId {
            subscription: self.subscription.clone(),
            resource_group: self.resource_group.clone(),
            name: format!("template-{number:05}"),
        }
    }

    /// A template as people write them: a few customizers, two targets.
    fn template(&self, number: usize) -> TemplateRecord {
        let script = format!("https://scripts.example/{number}/setup.sh?sv=2024&sig=0123456789abcdef");
        let digest = Sha256::from_bytes([number as u8; 32]);
        let at = self.first.to_string();
        TemplateRecord {
            id: self.id(number),
            location: self.location.clone(),
            tags: [("team".to_owned(), json!("images")), ("number".to_owned(), json!(number.to_string()))]
                .into_iter()
                .collect(),
            identity: Some(json!({"type": "None"})),
            properties: json!({
                "source": {
                    "type": "PlatformImage", "publisher": "Debian", "offer": "debian-12", "sku": "12-gen2",
                    "version": "latest"
                },
                "customize": [
                    {"type": "Shell", "name": "update", "inline": ["apt-get update", "apt-get -y upgrade"]},
                    {"type": "Shell", "name": "setup", "scriptUri": script, "sha256Checksum": digest.to_string()},
                    {"type": "Shell", "name": "check", "inline": ["uname -a", "df -h", "systemctl --failed"]}
                ],
                "distribute": [
                    {"type": "VHD", "runOutputName": "disk", "artifactTags": {"source": "seed"}},
                    {"type": "VHD", "runOutputName": "copy", "artifactTags": {"source": "seed"}}
                ],
                "buildTimeoutInMinutes": 60,
                "vmProfile": {"vmSize": "Standard_D2s_v3", "osDiskSizeGB": 30}
            }),
            api_version: "2024-02-01".into(),
            provisioning: ProvisioningState::Succeeded,
            provisioning_error: None,
            copies: vec![InputCopy { address: script, sha256: digest, size: 4096 }],
            pending: None,
            exact_version: Some("12.20250101.0".into()),
            last_run: None,
            created_at: at.clone(),
            created_by: "seed".into(),
            modified_at: at,
            modified_by: "seed".into(),
            generation: 1,
        }
    }

    /// A run of the first template that has begun: whoever locks its directory before the server starts is its worker.
    fn live_run(&self, paths: &Paths) -> Result<RunRecord, Box<dyn Error>> {
        let now = Timestamp::now();
        let run = RunRecord {
            id: format!("{}-live-00000000", now.strftime("%Y%m%dT%H%M%SZ")).parse()?,
            template: self.id(0),
            operation: "00000000-0000-4000-9000-000000000000".into(),
            state: RunState::Running,
            phase: Some(Phase::Customizing),
            message: String::new(),
            fault: None,
            queued_at: now.to_string(),
            started_at: Some(now.to_string()),
            ended_at: None,
            memory_mib: 8192,
            cpus: 2,
            attempt: 1,
            started_by: "seed".into(),
            holds_since: None,
        };
        RunDir::create(&paths.runs(), &run.id)?.write_request(&RunRequest {
            format: REQUEST_FORMAT,
            run_id: run.id.clone(),
            output_dir: paths.artifacts().join(run.id.as_str()),
            keep_on_error: false,
            library: paths.library(),
            operation: Some(run.operation.clone()),
            transcript: false,
            checkpoints: None,
        })?;
        Ok(run)
    }

    fn run(
        &self,
        number: usize,
    ) -> Result<(RunRecord, OperationRecord, Option<OutputRecord>), Box<dyn Error>> {
        let template = self.id(number % self.templates.max(1));
        let queued = self.first + SignedDuration::from_mins(3 * number as i64);
        let ended = queued + SignedDuration::from_secs(170);
        let id = format!("{}-seed-{number:08}", queued.strftime("%Y%m%dT%H%M%SZ")).parse()?;
        let operation = format!("00000000-0000-4000-8000-{number:012}");
        let failed = number % 10 == 9;
        let run = RunRecord {
            id,
            template: template.clone(),
            operation: operation.clone(),
            state: if failed { RunState::Failed } else { RunState::Succeeded },
            phase: Some(if failed { Phase::Customizing } else { Phase::Distributing }),
            message: if failed { "Shell \"setup\" ended with exit code 1".into() } else { String::new() },
            fault: failed.then_some(Fault::Template),
            queued_at: queued.to_string(),
            started_at: Some(queued.to_string()),
            ended_at: Some(ended.to_string()),
            memory_mib: 8192,
            cpus: 2,
            attempt: 1,
            started_by: "seed".into(),
            holds_since: None,
        };
        let output = (!failed).then(|| -> Result<_, Box<dyn Error>> {
            let text = json!({
                "format": 1, "name": "disk", "type": "VHD", "runId": run.id.as_str(), "file": "disk.vhd",
                "size": 32212255232_u64, "virtualSize": 32212254720_u64, "sha256": "ab".repeat(32),
                "source": {
                    "name": "debian-12", "version": "12.20250101.0", "sha256": "cd".repeat(32),
                    "requested": "Debian:debian-12:12-gen2:latest"
                },
                "templateName": template.name, "templateSha256": "ef".repeat(32), "generation": "V2",
                "tags": {"source": "seed"}, "createdAt": ended.to_string(), "kilnVersion": "0.0.0",
                "status": "seeded, there is no file"
            });
            Ok(OutputRecord {
                template: template.clone(),
                name: "disk".into(),
                run: run.id.clone(),
                output: RunOutput::from_json(&text.to_string())?,
                created_at: ended.to_string(),
            })
        });
        let operation = OperationRecord {
            id: operation,
            kind: OperationKind::Run,
            subscription: template.subscription.clone(),
            location: self.location.clone(),
            resource: template.arm_id(),
            status: if failed { OperationStatus::Failed } else { OperationStatus::Succeeded },
            started_at: queued.to_string(),
            ended_at: Some(ended.to_string()),
            error: None,
            run: Some(run.id.clone()),
        };
        Ok((run, operation, output.transpose()?))
    }
}

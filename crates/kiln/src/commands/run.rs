//! `kiln run`: runs of stored templates.

use std::cell::RefCell;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::session::{not_found, wait_for, with_server};
use super::signals::Signals;
use super::template::{pretty, text, time};
use super::{End, Surroundings};
use crate::args::{RunCancelArgs, RunCommand, RunListArgs, RunLogsArgs, RunStartArgs, RunWatchArgs};
use crate::client::{Ask, Client, ClientError, Stream, encode, follow, run_id};
use crate::exit::{ExitStatus, Failure};
use crate::progress::report::{Place, Report};
use crate::progress::{Show, final_object};
use crate::ui::guest_text::{Lines, neutralize};
use crate::ui::table::table;

/// The newest format of `kiln run … --json`.
const RUN_FORMAT: u32 = 1;
/// What names the newest run in a path.
const NEWEST: &str = "latest";

pub async fn run(around: &Surroundings<'_>, command: RunCommand) -> End {
    match command {
        RunCommand::Start(args) => start(around, args).await,
        RunCommand::Retry(args) => super::retry::run(around, args).await,
        RunCommand::Watch(args) => {
            let RunWatchArgs { template, run, json, server } = args;
            with_server(around, server, async |client| watch(around, client, &template, run, json).await)
                .await
        }
        RunCommand::Cancel(args) => cancel(around, args).await,
        RunCommand::List(args) => list(around, args).await,
        RunCommand::Logs(args) => logs(around, args).await,
    }
}

async fn start(around: &Surroundings<'_>, args: RunStartArgs) -> End {
    let RunStartArgs { template, watch: watching, json, server } = args;
    with_server(around, server, async |client| {
        let run = client.start_run(&template).await.map_err(|error| no_template(error, &template))?;
        if watching {
            return watch(around, client, &template, Some(run), json).await;
        }
        if json {
            let object = json!({ "format": RUN_FORMAT, "template": template, "run": run });
            around.printer.data(&pretty(&object)?);
        } else {
            around.printer.data(&run);
            around.printer.hint(&format!("`kiln run watch {template}` shows it"));
        }
        Ok(ExitStatus::Done)
    })
    .await
}

/// Shows a run to its end; whoever stops watching stops nothing else.
pub(super) async fn watch(
    around: &Surroundings<'_>,
    client: &Client,
    template: &str,
    run: Option<String>,
    json: bool,
) -> End {
    let run = resolve(client, template, run).await?;
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    let show = RefCell::new(Show::new(around.printer, json, around.verbose > 0));
    let stopped = tokio::select! {
        followed = follow(client, template, &run, &show) => {
            followed?;
            false
        }
        _ = signals.next() => true,
    };
    let outcome = show.into_inner().finish();
    if stopped && outcome.end.is_none() {
        around.printer.talk("no longer watching; the run goes on");
        around.printer.hint(&format!("`kiln run cancel {template}` ends it"));
        return Ok(ExitStatus::Failed);
    }
    let status = outcome.end.as_ref().map_or(ExitStatus::Unexpected, |end| {
        ExitStatus::of_run(end.state, end.failure.as_ref().map(|failure| failure.fault))
    });
    let place = Place::Server { server: client.link.shown(), template };
    let paint = around.printer.err;
    let report = Report { outcome: &outcome, place, output_dir: None, kept_on_error: false, paint };
    report.lines().iter().for_each(|line| around.printer.talk(line));
    if json {
        around.printer.data(&final_object(&outcome, place, None, status));
    }
    Ok(status)
}

async fn cancel(around: &Surroundings<'_>, args: RunCancelArgs) -> End {
    let RunCancelArgs { template, force, json, server } = args;
    with_server(around, server, async |client| {
        let pending =
            client.cancel_run(&template, force).await.map_err(|error| no_template(error, &template))?;
        wait_for(around, client, pending, &format!("canceling the run of {template}")).await?;
        if json {
            let run = client.get(client.below(&template, "/runs/latest")).await?;
            around.printer.data(&pretty(&json!({ "format": RUN_FORMAT, "run": run }))?);
        } else {
            around.printer.talk(&format!("the run of {template} has ended"));
        }
        Ok(ExitStatus::Done)
    })
    .await
}

async fn list(around: &Surroundings<'_>, args: RunListArgs) -> End {
    let RunListArgs { template, json, server } = args;
    with_server(around, server, async |client| {
        let runs = match &template {
            None => client.list("/kiln/runs".to_owned()).await?,
            Some(template) => client
                .list(client.below(template, "/runs"))
                .await
                .map_err(|error| no_template(error, template))?,
        };
        if json {
            around.printer.data(&pretty(&json!({ "format": RUN_FORMAT, "runs": runs }))?);
            return Ok(ExitStatus::Done);
        }
        let rows: Vec<[String; 6]> = runs
            .iter()
            .map(|run| {
                let of = |key: &str| text(run, &format!("/properties/{key}"));
                let state = match (of("runState").as_str(), of("runSubState").as_str()) {
                    (state @ "Running", phase) if !phase.is_empty() => format!("{state} ({phase})"),
                    (state, _) => state.to_owned(),
                };
                let message = of("message").lines().next().unwrap_or_default().to_owned();
                let template = of("template").rsplit('/').next().unwrap_or_default().to_owned();
                [
                    run_id(run).unwrap_or_default(),
                    template,
                    state,
                    time(&of("startTime")),
                    time(&of("endTime")),
                    message,
                ]
                .map(|cell| neutralize(&cell))
            })
            .collect();
        table(["RUN", "TEMPLATE", "STATE", "STARTED", "ENDED", "MESSAGE"], &rows, around.printer.out)
            .iter()
            .for_each(|line| around.printer.data(line));
        Ok(ExitStatus::Done)
    })
    .await
}

async fn logs(around: &Surroundings<'_>, args: RunLogsArgs) -> End {
    let RunLogsArgs { template, run, follow, json, server } = args;
    with_server(around, server, async |client| {
        let run = resolve(client, &template, run).await?;
        let form = match (json, around.printer.out_is_terminal()) {
            (true, _) => LogForm::Json(Lines::default()),
            (false, true) => LogForm::Harmless(Lines::default()),
            (false, false) => LogForm::AsItIs,
        };
        let mut print = LogPrinter { around, form };
        if json {
            around.printer.data(&json!({ "format": RUN_FORMAT, "run": run }).to_string());
        }
        let below = format!("/runs/{}", encode(&run));
        if follow {
            let mut stream = Stream::new(&client.link, client.below(&template, &format!("{below}/log")));
            loop {
                let event = stream.next().await?;
                if event.name == "end" {
                    break;
                }
                print.bytes(format!("{}\n", event.data).as_bytes());
            }
        } else {
            let path = client.below(&template, &format!("{below}/customization.log"));
            let mut response = client.link.send(&Ask::get(path)).await?;
            while let Some(chunk) = response.chunk().await.map_err(|error| client.link.transport(error))? {
                print.bytes(&chunk);
            }
        }
        print.finish();
        Ok(ExitStatus::Done)
    })
    .await
}

/// What a log is printed as.
enum LogForm {
    /// For a file or a pipe.
    AsItIs,
    /// A terminal gets nothing of a guest that it would act on.
    Harmless(Lines),
    Json(Lines),
}

struct LogPrinter<'a> {
    around: &'a Surroundings<'a>,
    form: LogForm,
}

impl LogPrinter<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        let printer = self.around.printer;
        match &mut self.form {
            LogForm::AsItIs => printer.raw_data(bytes),
            LogForm::Harmless(lines) => lines.push(bytes, |line| printer.data(line)),
            LogForm::Json(lines) => lines.push(bytes, |line| printer.data(&line_object(line))),
        }
    }

    /// A last line without its end.
    fn finish(&mut self) {
        let printer = self.around.printer;
        match &mut self.form {
            LogForm::AsItIs => {}
            LogForm::Harmless(lines) => lines.finish(|line| printer.data(line)),
            LogForm::Json(lines) => lines.finish(|line| printer.data(&line_object(line))),
        }
    }
}

fn line_object(line: &str) -> String {
    json!({ "line": line }).to_string()
}

/// The id of a run, the newest where none is given.
async fn resolve(client: &Client, template: &str, run: Option<String>) -> Result<String, Failure> {
    let found = find_run(client, template, run).await?;
    run_id(&found).ok_or_else(|| client.link.strange("a run has no id").into())
}

/// A run as the server shows it, the newest where none is given.
pub(super) async fn find_run(client: &Client, template: &str, run: Option<String>) -> Result<Value, Failure> {
    let which = run.as_deref().unwrap_or(NEWEST);
    let path = client.below(template, &format!("/runs/{}", encode(which)));
    client.get(path).await.map_err(|error| {
        let what = match &run {
            Some(run) => format!("run {run} of {template}"),
            None => format!("run of {template}"),
        };
        not_found(error, &what, &format!("`kiln run start {template}` begins one"))
    })
}

fn no_template(error: ClientError, template: &str) -> Failure {
    not_found(error, &format!("template {template}"), "`kiln template list` shows those there are")
}

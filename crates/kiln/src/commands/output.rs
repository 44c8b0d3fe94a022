//! `kiln output`: what runs left on a server.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use kiln_model::event::RunOutput;
use serde_json::{Value, json};

use super::session::{not_found, with_server};
use super::template::{pretty, text};
use super::{End, Surroundings};
use crate::args::{OutputCommand, OutputDownloadArgs, OutputGetArgs, OutputListArgs};
use crate::client::{Client, ClientError, Download, download, encode};
use crate::exit::{ExitStatus, Failure};
use crate::progress::transfer::Transfers;
use crate::settings;
use crate::ui::guest_text::neutralize;
use crate::ui::table::table;

/// The newest format of `kiln output … --json`.
const OUTPUT_FORMAT: u32 = 1;

pub async fn run(around: &Surroundings<'_>, command: OutputCommand) -> End {
    match command {
        OutputCommand::List(args) => list(around, args).await,
        OutputCommand::Get(args) => get(around, args).await,
        OutputCommand::Download(args) => bring(around, args).await,
    }
}

async fn list(around: &Surroundings<'_>, args: OutputListArgs) -> End {
    let OutputListArgs { template, json, server } = args;
    with_server(around, server, async |client| {
        let outputs = outputs(client, &template).await?;
        if json {
            around.printer.data(&pretty(&json!({ "format": OUTPUT_FORMAT, "outputs": outputs }))?);
            return Ok(ExitStatus::Done);
        }
        let rows: Vec<[String; 3]> = outputs
            .iter()
            .map(|output| {
                [text(output, "/name"), text(output, "/properties/provisioningState"), artifact(output)]
                    .map(|cell| neutralize(&cell))
            })
            .collect();
        table(["NAME", "STATE", "ARTIFACT"], &rows, around.printer.out)
            .iter()
            .for_each(|line| around.printer.data(line));
        Ok(ExitStatus::Done)
    })
    .await
}

async fn get(around: &Surroundings<'_>, args: OutputGetArgs) -> End {
    let OutputGetArgs { template, name, json, server } = args;
    with_server(around, server, async |client| {
        let output = client
            .get(client.below(&template, &format!("/runOutputs/{}", encode(&name))))
            .await
            .map_err(|error| no_output(error, &template, &name))?;
        if json {
            around.printer.data(&pretty(&json!({ "format": OUTPUT_FORMAT, "output": output }))?);
            return Ok(ExitStatus::Done);
        }
        let row =
            |name: &str, value: String| around.printer.data(&format!("{name:<12} {}", neutralize(&value)));
        row("name", text(&output, "/name"));
        row("id", text(&output, "/id"));
        row("state", text(&output, "/properties/provisioningState"));
        row("artifact", artifact(&output));
        Ok(ExitStatus::Done)
    })
    .await
}

async fn bring(around: &Surroundings<'_>, args: OutputDownloadArgs) -> End {
    let OutputDownloadArgs { template, name, output, json, server } = args;
    let folder = settings::output_folder(&output).map_err(Failure::input)?;
    with_server(around, server, async |client| {
        let wanted = match &name {
            None => outputs(client, &template).await?,
            Some(name) => vec![
                client
                    .get(client.below(&template, &format!("/runOutputs/{}", encode(name))))
                    .await
                    .map_err(|error| no_output(error, &template, name))?,
            ],
        };
        if wanted.is_empty() {
            return Err(Failure::input(anyhow!("{template} has no run outputs"))
                .hint(format!("`kiln run start {template}` makes them")));
        }
        let mut files = Vec::new();
        for output in &wanted {
            let address = artifact(output);
            let path = crate::client::path_of(&address)
                .map_err(|()| client.link.strange("a run output has no artifact"))?;
            files.push(record_of(client, &path).await?);
        }
        fetch(around, client, &files, &folder).await?;
        let paths: Vec<_> = files.iter().map(|(_, record)| folder.join(&record.file)).collect();
        if json {
            let outputs: Vec<Value> = files
                .iter()
                .zip(&paths)
                .map(|((_, record), path)| json!({ "path": path, "output": record }))
                .collect();
            around.printer.data(&pretty(&json!({ "format": OUTPUT_FORMAT, "outputs": outputs }))?);
        } else {
            paths.iter().for_each(|path| around.printer.data(&path.display().to_string()));
        }
        Ok(ExitStatus::Done)
    })
    .await
}

/// Downloads artifacts, each with its record beside it, into `folder`.
pub async fn fetch(
    around: &Surroundings<'_>,
    client: &Client,
    files: &[(String, RunOutput)],
    folder: &Path,
) -> Result<(), Failure> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the output directory {}", folder.display()))
        .map_err(Failure::host)?;
    let transfers = Transfers::new(around.printer, around.verbose > 0);
    for (id, (path, record)) in files.iter().enumerate() {
        // A name from a server is a name, never a path.
        let plain = Path::new(&record.file).file_name().is_some_and(|name| name == record.file.as_str());
        if !plain {
            return Err(client.link.strange("an artifact's name is none").into());
        }
        let to = folder.join(&record.file);
        let wanted =
            Download { path: path.clone(), to: to.clone(), size: record.size, sha256: record.sha256 };
        download(client, id, &wanted, &transfers).await?;
        let beside = to.with_extension("json");
        kiln_host::publish::write_file(&beside, record.to_json().as_bytes(), 0o644)
            .with_context(|| format!("cannot write {}", beside.display()))
            .map_err(Failure::host)?;
    }
    Ok(())
}

/// The path of a file of a run, on the server.
pub fn artifact_path(run: &str, file: &str) -> String {
    format!("/kiln/artifacts/{}/{}", encode(run), encode(file))
}

/// An artifact's path, and the record that lies beside it.
async fn record_of(client: &Client, path: &str) -> Result<(String, RunOutput), Failure> {
    let (path, _) = path.split_once('?').unwrap_or((path, ""));
    let stem = path.rsplit_once('.').map_or(path, |(stem, _)| stem);
    let record = client.get(format!("{stem}.json")).await?;
    let record = RunOutput::from_json(&record.to_string())
        .map_err(|error| client.link.strange(format!("a run output's record: {error}")))?;
    Ok((path.to_owned(), record))
}

async fn outputs(client: &Client, template: &str) -> Result<Vec<Value>, Failure> {
    client.list(client.below(template, "/runOutputs")).await.map_err(|error| {
        not_found(error, &format!("template {template}"), "`kiln template list` shows those there are")
    })
}

fn artifact(output: &Value) -> String {
    let uri = text(output, "/properties/artifactUri");
    if uri.is_empty() { text(output, "/properties/artifactId") } else { uri }
}

fn no_output(error: ClientError, template: &str, name: &str) -> Failure {
    let hint = format!("`kiln output list {template}` shows those there are");
    not_found(error, &format!("run output {name} of {template}"), &hint)
}

//! `kiln template`: templates that a server keeps.

use anyhow::anyhow;
use kiln_model::api::ApiVersion;
use kiln_model::problem::Code;
use kiln_model::run::Fault;
use kiln_model::{Document, Problem, Problems};
use reqwest::Method;
use serde_json::{Value, json};

use super::prepare::{self, NoPlan};
use super::session::{not_found, wait_for, with_server};
use super::shelves::Shelves;
use super::{End, Surroundings};
use crate::args::{TemplateCommand, TemplateDeleteArgs, TemplateGetArgs, TemplateListArgs, TemplatePutArgs};
use crate::client::{Ask, Client, LocalInput, encode, newest, upload};
use crate::exit::{ExitStatus, Failure};
use crate::progress::transfer::Transfers;
use crate::settings::{Folders, TemplateInput};
use crate::ui::guest_text::neutralize;
use crate::ui::table::table;

/// The newest format of `kiln template … --json`.
const TEMPLATE_FORMAT: u32 = 1;

pub async fn run(around: &Surroundings<'_>, command: TemplateCommand) -> End {
    match command {
        TemplateCommand::Put(args) => put(around, args).await,
        TemplateCommand::Get(args) => get(around, args).await,
        TemplateCommand::List(args) => list(around, args).await,
        TemplateCommand::Delete(args) => delete(around, args).await,
    }
}

/// A template that was checked and can be sent. Its addresses are whole: no `Debug`.
pub struct Upload {
    /// Its own name, or the file's.
    pub name: String,
    version: ApiVersion,
    body: Value,
    inputs: Vec<LocalInput>,
}

impl Upload {
    /// Reads and checks a template as a build would. The problems are warnings and notes.
    pub fn prepare(around: &Surroundings<'_>, input: &TemplateInput) -> Result<(Self, Problems), NoPlan> {
        let folders = Folders::resolve(around.environment).map_err(Failure::host)?;
        let shelves = Shelves::look(&folders)?;
        let bytes = prepare::read(input)?;
        let (problems, checked) = prepare::check_document(input, &bytes, &shelves, false);
        // Which images there are is the server's to know.
        let problems: Vec<Problem> =
            problems.iter().filter(|problem| problem.code != Code::UnknownImage).cloned().collect();
        let problems = Problems::new(problems);
        let Some((document, template)) = checked else { return Err(NoPlan::Problems(problems)) };
        let body = Document::body(&document);
        let inputs = LocalInput::of(&body);
        Ok((Self { name: template.name, version: template.api_version, body, inputs }, problems))
    }

    /// Stores it as `name`, its files first, and waits until the server has all it names.
    pub async fn put(
        mut self,
        around: &Surroundings<'_>,
        client: &Client,
        name: &str,
        replace: bool,
    ) -> Result<(), Failure> {
        let transfers = Transfers::new(around.printer, around.verbose > 0);
        let uploads = upload(client, &self.inputs, &transfers).await?;
        drop(transfers);
        if let Some(fields) = self.body.as_object_mut() {
            // A file may leave it out; the service may not.
            let given = fields.keys().any(|key| key.eq_ignore_ascii_case("location"));
            if !given {
                fields.insert("location".to_owned(), client.scope.location.clone().into());
            }
        }
        let mut path = format!("{}?api-version={}", client.template_path(name), self.version);
        if replace {
            path.push_str("&kilnReplace=true");
        }
        if let Some(manifest) = uploads {
            path.push_str(&format!("&kilnUploads={manifest}"));
        }
        let (pending, _) =
            client.change(&Ask::new(Method::PUT, path).json(&self.body)).await.map_err(|error| {
                let taken = error.is_conflict() && !replace;
                let failure = Failure::from(error);
                if taken {
                    failure.hint("`--replace` puts it in the place of what is there under that name")
                } else {
                    failure
                }
            })?;
        wait_for(around, client, pending, &format!("storing {name}")).await
    }
}

async fn put(around: &Surroundings<'_>, args: TemplatePutArgs) -> End {
    let TemplatePutArgs { file, name, replace, json, server } = args;
    let input = TemplateInput::resolve(file);
    let shown = input.shown();
    let upload = match Upload::prepare(around, &input) {
        Ok((upload, problems)) => {
            super::show_problems(around, &shown, &problems);
            upload
        }
        Err(why) => return super::refused(around, &shown, json, why),
    };
    let name = name.unwrap_or_else(|| upload.name.clone());
    with_server(around, server, async |client| {
        upload.put(around, client, &name, replace).await?;
        if json {
            let template = client.get(client.below(&name, "")).await?;
            around.printer.data(&pretty(&json!({ "format": TEMPLATE_FORMAT, "template": template }))?);
        } else {
            around.printer.talk(&format!("stored as {name} in {}", client.scope.resource_group));
            around.printer.hint(&format!("`kiln run start {name} --watch` builds it"));
        }
        Ok(ExitStatus::Done)
    })
    .await
}

async fn get(around: &Surroundings<'_>, args: TemplateGetArgs) -> End {
    let TemplateGetArgs { name, json, server } = args;
    with_server(around, server, async |client| {
        let template = client.get(client.below(&name, "")).await.map_err(|error| {
            not_found(error, &format!("template {name}"), "`kiln template list` shows those there are")
        })?;
        if json {
            around.printer.data(&pretty(&json!({ "format": TEMPLATE_FORMAT, "template": template }))?);
        } else {
            show(around, &template);
        }
        Ok(ExitStatus::Done)
    })
    .await
}

fn show(around: &Surroundings<'_>, template: &Value) {
    let row = |name: &str, value: String| {
        if !value.is_empty() {
            around.printer.data(&format!("{name:<12} {}", neutralize(&value)));
        }
    };
    row("name", text(template, "/name"));
    row("id", text(template, "/id"));
    row("location", text(template, "/location"));
    row("state", provisioning(template));
    row("source", source(template));
    for (title, list) in [("customizer", "customize"), ("target", "distribute")] {
        let items = template.pointer(&format!("/properties/{list}")).and_then(Value::as_array);
        for item in items.into_iter().flatten() {
            let named = [text(item, "/name"), text(item, "/runOutputName")].concat();
            row(title, format!("{} {named}", text(item, "/type")).trim_end().to_owned());
        }
    }
    row("last run", last_run(template));
    row("", text(template, "/properties/lastRunStatus/message"));
}

async fn list(around: &Surroundings<'_>, args: TemplateListArgs) -> End {
    let TemplateListArgs { all, json, server } = args;
    with_server(around, server, async |client| {
        let path = if all {
            format!(
                "/subscriptions/{}/providers/Microsoft.VirtualMachineImages/imageTemplates",
                encode(&client.scope.subscription)
            )
        } else {
            client.templates_path()
        };
        let templates = client.list(format!("{path}?api-version={}", newest())).await?;
        if json {
            around.printer.data(&pretty(&json!({ "format": TEMPLATE_FORMAT, "templates": templates }))?);
            return Ok(ExitStatus::Done);
        }
        let rows: Vec<[String; 5]> = templates
            .iter()
            .map(|template| {
                [
                    text(template, "/name"),
                    group(template),
                    text(template, "/properties/provisioningState"),
                    last_run(template),
                    source(template),
                ]
                .map(|cell| neutralize(&cell))
            })
            .collect();
        table(["NAME", "GROUP", "STATE", "LAST RUN", "SOURCE"], &rows, around.printer.out)
            .iter()
            .for_each(|line| around.printer.data(line));
        Ok(ExitStatus::Done)
    })
    .await
}

async fn delete(around: &Surroundings<'_>, args: TemplateDeleteArgs) -> End {
    let TemplateDeleteArgs { name, force, purge, json, server } = args;
    with_server(around, server, async |client| {
        let pending = client.delete_template(&name, force, purge).await.map_err(|error| {
            let failure = Failure::from(error);
            if force { failure } else { failure.hint("`--force` cancels what is under way first") }
        })?;
        // A server answers at once where there is nothing to delete.
        let was_there = pending.is_some();
        wait_for(around, client, pending, &format!("deleting {name}")).await?;
        if json {
            around
                .printer
                .data(&pretty(&json!({ "format": TEMPLATE_FORMAT, "name": name, "deleted": was_there }))?);
        } else if was_there {
            around.printer.talk(&format!("deleted {name}"));
        } else {
            around.printer.talk(&format!("there was no {name}"));
        }
        Ok(ExitStatus::Done)
    })
    .await
}

/// Of a server's answer; empty where it is not there.
pub fn text(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

/// A time for people: `2026-11-23 17:22:33`, UTC.
pub fn time(text: &str) -> String {
    text.split(['.', 'Z']).next().unwrap_or_default().replace('T', " ")
}

/// `Succeeded`, or `Failed: DownloadFailed: …`.
fn provisioning(template: &Value) -> String {
    let state = text(template, "/properties/provisioningState");
    let message = text(template, "/properties/provisioningError/message");
    if message.is_empty() { state } else { format!("{state}: {message}") }
}

/// `Running (Building)`, `Succeeded`.
fn last_run(template: &Value) -> String {
    let state = text(template, "/properties/lastRunStatus/runState");
    let phase = text(template, "/properties/lastRunStatus/runSubState");
    if state == "Running" && !phase.is_empty() { format!("{state} ({phase})") } else { state }
}

fn source(template: &Value) -> String {
    let of = |key: &str| text(template, &format!("/properties/source/{key}"));
    match of("type").as_str() {
        "PlatformImage" => [of("publisher"), of("offer"), of("sku"), of("version")].join(":"),
        "ManagedImage" => of("imageId"),
        "SharedImageVersion" => of("imageVersionId"),
        other => other.to_owned(),
    }
}

/// The resource group of an id.
fn group(resource: &Value) -> String {
    let id = text(resource, "/id");
    let mut parts = id.split('/');
    parts.find(|part| part.eq_ignore_ascii_case("resourceGroups"));
    parts.next().unwrap_or_default().to_owned()
}

/// What a program reads.
pub fn pretty(value: &Value) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(Fault::Bug, anyhow!("cannot print JSON: {error}")))
}

//! `kiln gc`: removing what nobody needs any more, or saying what that would be.

use reqwest::Method;
use serde_json::{Value, json};

use super::session::with_server;
use super::template::{pretty, text};
use super::{End, Surroundings};
use crate::args::GcArgs;
use crate::client::Ask;
use crate::exit::ExitStatus;
use crate::ui::guest_text::neutralize;
use crate::ui::table::table;
use crate::ui::text as numbers;

/// The newest format of `kiln gc --json`.
const GC_FORMAT: u32 = 1;

pub async fn run(around: &Surroundings<'_>, args: GcArgs) -> End {
    let GcArgs { dry_run, json, server } = args;
    with_server(around, server, async |client| {
        let query = if dry_run { "?dryRun=true" } else { "" };
        let (_, answer) = client.change(&Ask::new(Method::POST, format!("/kiln/gc{query}"))).await?;
        let items = answer.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
        if json {
            let object = json!({ "format": GC_FORMAT, "dryRun": dry_run, "items": items });
            around.printer.data(&pretty(&object)?);
            return Ok(ExitStatus::Done);
        }
        let bytes = |item: &Value| item.get("bytes").and_then(Value::as_u64).unwrap_or_default();
        let rows: Vec<[String; 3]> = items
            .iter()
            .map(|item| {
                let what = [text(item, "/what"), text(item, "/path")].join(" ").trim_end().to_owned();
                [numbers::bytes(bytes(item)), text(item, "/reason"), what].map(|cell| neutralize(&cell))
            })
            .collect();
        if !rows.is_empty() {
            table(["SIZE", "WHY", "WHAT"], &rows, around.printer.out)
                .iter()
                .for_each(|line| around.printer.data(line));
        }
        let all: u64 = items.iter().map(bytes).sum();
        let verb = if dry_run { "would go" } else { "gone" };
        around.printer.talk(&format!(
            "{} {verb}, {}",
            numbers::count(items.len(), "thing"),
            numbers::bytes(all)
        ));
        Ok(ExitStatus::Done)
    })
    .await
}

//! Looking at base images: what the catalog knows and what lies in the library.

use kiln_model::catalog::{CatalogEntry, CatalogSource, StoredImage};
use serde::Serialize;

use super::super::shelves::Shelves;
use super::super::{End, Surroundings};
use crate::exit::ExitStatus;
use crate::ui::table::table;
use crate::ui::text;

/// The newest format of `kiln images list|show --json`.
const IMAGES_FORMAT: u32 = 1;

#[derive(Serialize)]
struct ListView<'a> {
    format: u32,
    images: Vec<ImageView<'a>>,
}

#[derive(Serialize)]
struct ShowView<'a> {
    format: u32,
    image: ImageView<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ImageView<'a> {
    #[serde(flatten)]
    entry: &'a CatalogEntry,
    /// What to run to have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<String>,
    in_library: Vec<&'a StoredImage>,
}

impl<'a> ImageView<'a> {
    fn of(shelves: &'a Shelves, entry: &'a CatalogEntry) -> Self {
        Self { entry, run: how_to_get(entry), in_library: stored(shelves, entry) }
    }
}

pub fn list(around: &Surroundings<'_>, shelves: &Shelves, json: bool) -> End {
    let printer = around.printer;
    let entries = shelves.catalog.entries();
    if json {
        let images = entries.iter().map(|entry| ImageView::of(shelves, entry)).collect();
        let view = ListView { format: IMAGES_FORMAT, images };
        printer.data(&serde_json::to_string_pretty(&view).map_err(anyhow::Error::from)?);
    } else {
        let rows: Vec<[String; 4]> = entries.iter().map(|entry| row(shelves, entry)).collect();
        table(["NAME", "IN LIBRARY", "FROM", "TEMPLATES CALL IT"], &rows, printer.out)
            .iter()
            .for_each(|line| printer.data(line));
    }
    Ok(ExitStatus::Done)
}

fn row(shelves: &Shelves, entry: &CatalogEntry) -> [String; 4] {
    let stored = stored(shelves, entry);
    let versions = match stored.as_slice() {
        [] => "-".to_owned(),
        [.., last] if stored.len() == 1 => last.version.clone(),
        [.., last] => format!("{} (+{})", last.version, stored.len() - 1),
    };
    let names = match entry.platform.as_slice() {
        [] => "-".to_owned(),
        [only] => only.name().to_string(),
        [first, rest @ ..] => format!("{} (+{})", first.name(), rest.len()),
    };
    [entry.name.clone(), versions, origin(entry).to_owned(), names]
}

pub fn show(around: &Surroundings<'_>, shelves: &Shelves, name: &str, json: bool) -> End {
    let printer = around.printer;
    let entry = super::entry(shelves, name)?;
    let stored = stored(shelves, entry);
    // For scripts: is it there?
    let status = if stored.is_empty() { ExitStatus::Failed } else { ExitStatus::Done };
    if json {
        let view = ShowView { format: IMAGES_FORMAT, image: ImageView::of(shelves, entry) };
        printer.data(&serde_json::to_string_pretty(&view).map_err(anyhow::Error::from)?);
        return Ok(status);
    }
    let row = |name: &str, value: &str| printer.data(&format!("{name:<12} {value}"));
    row("name", &entry.name);
    row("system", &format!("{:?}, {:?}", entry.os, entry.arch));
    let generations: Vec<String> = entry.generations.iter().map(|g| format!("{g:?}")).collect();
    row("generations", &generations.join(", "));
    for served in &entry.platform {
        let generation = served.generation.map_or(String::new(), |g| format!(" ({g:?})"));
        row("answers to", &format!("{}{generation}", served.name()));
    }
    row("login by", &entry.login.to_string());
    match &entry.source {
        CatalogSource::Url { addresses, .. } => addresses.iter().for_each(|address| row("from", address)),
        CatalogSource::Recipe { folder } => row("from", &format!("the recipe {folder}")),
        CatalogSource::Imported => row("from", "an import"),
    }
    if stored.is_empty() {
        row("in library", "no");
        if let Some(run) = how_to_get(entry) {
            printer.hint(&format!("`{run}` puts it there"));
        }
    }
    for image in stored {
        row("in library", &format!("version {}, since {}", image.version, image.stored_at));
        row("", &format!("disk of {}, sha256 {}", text::bytes(image.virtual_size), image.sha256));
        row("", &image.path.display().to_string());
    }
    Ok(status)
}

fn stored<'a>(shelves: &'a Shelves, entry: &CatalogEntry) -> Vec<&'a StoredImage> {
    shelves.stored.iter().filter(|image| image.name == entry.name).collect()
}

fn origin(entry: &CatalogEntry) -> &'static str {
    match entry.source {
        CatalogSource::Url { .. } => "download",
        CatalogSource::Recipe { .. } => "recipe",
        CatalogSource::Imported => "import",
    }
}

fn how_to_get(entry: &CatalogEntry) -> Option<String> {
    match entry.source {
        CatalogSource::Url { .. } => Some(format!("kiln images pull {}", entry.name)),
        CatalogSource::Recipe { .. } => Some(format!("kiln images build {}", entry.name)),
        CatalogSource::Imported => None,
    }
}

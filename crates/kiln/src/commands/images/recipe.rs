//! `kiln images build`: runs an image's recipe and takes the result into the library.
//!
//! A recipe is a folder with `build.sh OUT.qcow2`: it writes the image, and beside it
//! `OUT.qcow2.provenance.json` with what it was made of. What it says is shown as it
//! comes, and its last lines again when it fails.
//!
//! INVARIANT: one build of an image at a time on one data folder (a lock); what a killed
//! build left behind goes with the next one.

use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use kiln_host::lock::FileLock;
use kiln_host::process::{Child, Invocation, Sink, SpawnOptions, describe_status};
use kiln_host::wait::{Control, Interrupted};
use kiln_library::{BuiltImage, ImportRequest};
use kiln_model::Sha256;
use kiln_model::catalog::{CatalogEntry, CatalogSource};
use tokio::sync::mpsc;

use super::super::shelves::Shelves;
use super::super::{End, Surroundings, signals};
use super::bring;
use crate::exit::{ExitStatus, Failure};
use crate::progress::transfer::Transfers;
use crate::settings::Folders;
use crate::ui::guest_text::{LINE_LIMIT, neutralize};

/// For a recipe that was told to stop to clear up after itself.
const CLEAR_UP: Duration = Duration::from_secs(10);
/// Lines of a failed recipe that its error repeats.
const TAIL: usize = 15;

pub async fn build(around: &Surroundings<'_>, folders: &Folders, name: &str) -> End {
    let shelves = Shelves::open(folders)?;
    let entry = super::entry(&shelves, name)?;
    let recipe = recipe_of(&shelves, entry)?;
    let qemu_img = super::qemu_img(around)?;
    let control = signals::control().map_err(Failure::host)?;

    let place = Place::take(folders, name)?;
    let image = place.folder.join(format!("{name}.qcow2"));
    run_recipe(around, &recipe, &image, &control).await?;

    let provenance = provenance_path(&image);
    let made = read_provenance(&provenance)?;
    // The same packages make the same bytes: another version of them would say nothing new.
    if let Some(same) = shelves.stored.iter().find(|stored| stored.name == name && stored.sha256 == made) {
        around.printer.talk(&format!("{name} {} in the library is the same, byte for byte", same.version));
        return Ok(ExitStatus::Done);
    }
    let request = ImportRequest {
        path: image,
        name: name.to_owned(),
        version: super::version_of_now(),
        platform: entry.platform.clone(),
        os: entry.os,
        generations: entry.generations.clone(),
        arch: entry.arch,
        login: entry.login.clone(),
        sha256: Some(made),
    };
    let transfers = Transfers::new(around.printer, around.verbose > 0);
    let built = BuiltImage { image: request, provenance };
    let report = |progress| bring::show(&transfers, name, progress);
    let adopted = shelves.library()?.adopt_built(&built, &qemu_img, &report, &control).await;
    drop(transfers);
    bring::stored(around, adopted)
}

fn recipe_of(shelves: &Shelves, entry: &CatalogEntry) -> Result<PathBuf, Failure> {
    let name = &entry.name;
    let folder = match &entry.source {
        CatalogSource::Recipe { folder } => folder,
        CatalogSource::Url { .. } => {
            return Err(Failure::input(anyhow!("{name} is not made from a recipe but downloaded"))
                .hint(format!("`kiln images pull {name}` fetches it")));
        }
        CatalogSource::Imported => {
            return Err(Failure::input(anyhow!("{name} was imported and has no recipe")));
        }
    };
    let recipes = shelves.recipes.as_ref().ok_or_else(|| {
        Failure::host(anyhow!("the recipe of {name} is not on this machine: its folder was not installed"))
            .hint("set KILN_IMAGES to the `images` folder of Kiln's sources")
    })?;
    let script = recipes.join(folder).join("build.sh");
    if script.is_file() {
        Ok(script)
    } else {
        Err(Failure::host(anyhow!("the recipe {} is not there", script.display())))
    }
}

/// Where a recipe works; gone when this is dropped.
struct Place {
    folder: PathBuf,
    _lock: FileLock,
}

impl Place {
    fn take(folders: &Folders, name: &str) -> Result<Self, Failure> {
        // On the library's file system: the finished image is moved, not copied.
        let root = folders.library.with_file_name("building");
        let folder = root.join(name);
        let make = || -> anyhow::Result<Option<FileLock>> {
            std::fs::create_dir_all(&root)?;
            let Some(lock) = FileLock::try_exclusive(root.join(format!("{name}.lock")))? else {
                return Ok(None);
            };
            match std::fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
            std::fs::create_dir(&folder)?;
            Ok(Some(lock))
        };
        let lock = make()
            .with_context(|| format!("cannot make the folder {}", folder.display()))
            .map_err(Failure::host)?
            .ok_or_else(|| Failure::host(anyhow!("another process is building {name} at this moment")))?;
        Ok(Self { folder, _lock: lock })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next build.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn run_recipe(
    around: &Surroundings<'_>,
    script: &Path,
    image: &Path,
    control: &Control,
) -> Result<(), Failure> {
    around.printer.talk(&format!("{} {}", script.display(), image.display()));
    let mut child = Invocation::new(script)
        .arg(image)
        .env("PATH", around.environment.search_path())
        .spawn(SpawnOptions { stdout: Sink::Pipe, stderr: Sink::Pipe, ..SpawnOptions::default() })
        .map_err(Failure::host)?;

    let mut lines = read_lines(&mut child)?;
    let mut tail = std::collections::VecDeque::new();
    let show = |line: String, tail: &mut std::collections::VecDeque<String>| {
        around.printer.talk(&format!("  {line}"));
        tail.push_back(line);
        if tail.len() > TAIL {
            tail.pop_front();
        }
    };
    let status = loop {
        tokio::select! {
            why = control.interrupted() => {
                stop(&child).await;
                return Err(stopped(why));
            }
            Some(line) = lines.recv() => show(line, &mut tail),
            status = child.wait() => break status.map_err(Failure::host)?,
        }
    };
    // What it said last may still be on its way; a descendant that keeps the pipe open
    // does not hold us up.
    let rest = Control::ending_in(Duration::from_secs(2));
    while let Ok(Some(line)) = rest.guard(lines.recv()).await {
        show(line, &mut tail);
    }
    if status.success() {
        return Ok(());
    }
    let said: Vec<String> = tail.into();
    let error = anyhow!("{}", said.last().cloned().unwrap_or_default()).context(format!(
        "the recipe {} ended with {}",
        script.display(),
        describe_status(status)
    ));
    Err(Failure::host(error).hint("`kiln doctor` shows which programs a recipe needs"))
}

async fn stop(child: &Child) {
    child.terminate_group();
    if Control::ending_in(CLEAR_UP).guard(child.wait()).await.is_err() {
        child.kill_group();
        let _ = Control::ending_in(CLEAR_UP).guard(child.wait()).await;
    }
}

fn stopped(why: Interrupted) -> Failure {
    Failure::host(anyhow::Error::new(why).context("the recipe was stopped; nothing of it was kept"))
}

/// Both outputs as lines, made harmless.
fn read_lines(child: &mut Child) -> Result<mpsc::Receiver<String>, Failure> {
    let (lines, received) = mpsc::channel(256);
    let outputs: [Option<Box<dyn Read + Send>>; 2] = [
        child.take_stdout().map(|out| Box::new(out) as _),
        child.take_stderr().map(|err| Box::new(err) as _),
    ];
    for output in outputs.into_iter().flatten() {
        let lines = lines.clone();
        // A thread: reading a pipe blocks, and it ends when the recipe does.
        std::thread::Builder::new()
            .name("recipe output".to_owned())
            .spawn(move || {
                let mut reader = BufReader::new(output);
                let mut line = Vec::new();
                // A line without an end is cut, so that memory is bounded.
                while let Ok(1..) = reader.by_ref().take(LINE_LIMIT as u64).read_until(b'\n', &mut line) {
                    let text = neutralize(String::from_utf8_lossy(&line).trim_end());
                    if lines.blocking_send(text).is_err() {
                        return;
                    }
                    line.clear();
                }
            })
            .context("cannot start a thread to read the recipe's output")?;
    }
    Ok(received)
}

fn provenance_path(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".provenance.json");
    name.into()
}

/// The digest that the recipe says its image has.
fn read_provenance(path: &Path) -> Result<Sha256, Failure> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Provenance {
        image_sha256: Sha256,
    }
    let read = || -> anyhow::Result<Sha256> {
        let text = std::fs::read_to_string(path)?;
        Ok(serde_json::from_str::<Provenance>(&text)?.image_sha256)
    };
    read().with_context(|| format!("the recipe left no good {}", path.display())).map_err(Failure::host)
}

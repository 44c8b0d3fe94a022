//! `kiln certify-windows`: everything Kiln does in a Windows, done once on the user's own, and taken down.
//!
//! ```text
//!  base image ─ template of our own ─ prepare ─► plan ─► run directory (transcript wanted) ─► worker
//!                                                              │
//!     report, table of steps ◄─ transcript-….jsonl in -o ◄─────┘ transcript.jsonl, also of a run that failed
//! ```
//! Always a run on this host, as `kiln build --local` makes one: what is certified is this host's Kiln and QEMU, too.
//!
//! What is proven is told by the transcript itself, from what the guest and its disk say: nothing here decides it.

mod template;

use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use kiln_build::run_dir::RunDir;
use kiln_build::transcript::Head;
use kiln_host::publish::Aside;
use kiln_model::catalog::{Catalog, CatalogEntry, Os, PlatformName, StoredImage};
use serde_json::json;

use self::template::{Inputs, NAME, template};
use super::build::{Wanted, carry_out, make_run, status_of, told_in_json};
use super::prepare::{Prepared, prepare_text};
use super::shelves::Shelves;
use super::signals::Signals;
use super::{End, Surroundings};
use crate::exit::{ExitStatus, Failure};
use crate::progress::report::{Place, Report};
use crate::settings::{self, CertifySettings, Folders, TemplateInput};
use crate::ui::guest_text::neutralize;
use crate::ui::table::table;
use crate::ui::text;

/// The newest format of `kiln certify-windows --json`'s last object.
const CERTIFICATION_FORMAT: u32 = 1;

pub async fn run(around: &Surroundings<'_>, settings: CertifySettings) -> End {
    let ended = certify(around, &settings).await;
    told_in_json(around, settings.json, ended)
}

async fn certify(around: &Surroundings<'_>, settings: &CertifySettings) -> End {
    let printer = around.printer;
    let folders = Folders::resolve(around.environment).map_err(Failure::host)?;
    settings::ensure_private(&folders.runtime).map_err(Failure::host)?;
    let shelves = Shelves::open(&folders)?;
    let platform = base(&shelves.catalog, &shelves.stored, &settings.base)?;
    let inputs = Inputs::place(&folders.cache.join(NAME)).map_err(Failure::host)?;
    let version = settings.version.as_deref().unwrap_or("latest");
    let text = template(&platform, version, &inputs, settings.updates.as_deref()).to_string();
    let made = TemplateInput::File(NAME.into());
    let plan = match prepare_text(around, &made, text.as_bytes(), &shelves) {
        // What works here and not in Azure is no news: nobody takes this template there.
        Ok(Prepared { plan, problems: _ }) => plan,
        Err(why) => return super::refused(around, NAME, settings.json, why),
    };
    if plan.source.name != settings.base {
        return Err(Failure::input(anyhow!(
            "{platform}, by which {} is known, is another image, too: {}",
            settings.base,
            plan.source.name
        )));
    }

    // From here on a signal is a request to the run, not the end of this process.
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    let wanted = Wanted {
        output: &settings.output,
        keep_on_error: settings.keep_on_error,
        transcript: true,
        checkpoints: None,
        json: settings.json,
    };
    let run_dir = make_run(&wanted, &folders.runs, &folders.library, &plan)?;
    let outcome = carry_out(around, &wanted, &run_dir, &mut signals).await?;
    let report = Report {
        outcome: &outcome,
        place: Place::Here(&run_dir),
        output_dir: Some(&settings.output),
        kept_on_error: settings.keep_on_error,
        paint: printer.err,
    };
    report.lines().iter().for_each(|line| printer.talk(line));

    let fetched = fetch(&run_dir, &settings.output)?;
    let status = match &fetched {
        Some(_) => status_of(&outcome),
        // Nothing is proven by what nobody can read.
        None => match status_of(&outcome) {
            ExitStatus::Done => ExitStatus::Failed,
            other => other,
        },
    };
    match &fetched {
        Some((path, head)) => {
            steps(head, printer.err).iter().for_each(|line| printer.talk(line));
            printer.talk(&format!("{}: {}", head.image.name, neutralize(&head.proof)));
            if !settings.json {
                printer.data(&path.display().to_string());
            }
        }
        None => printer.warning("the run left no transcript"),
    }
    if settings.json {
        let (path, head) = fetched.unzip();
        printer.data(
            &json!({
                "format": CERTIFICATION_FORMAT,
                "kind": "certification",
                "runDir": run_dir.path(),
                "exitStatus": status.number(),
                "transcript": path,
                "proof": head.as_ref().map(|head| &head.proof),
                "head": head,
            })
            .to_string(),
        );
    }
    Ok(status)
}

/// The name by which a template finds the Windows image called `name`.
fn base(catalog: &Catalog, stored: &[StoredImage], name: &str) -> Result<PlatformName, Failure> {
    let image = stored.iter().find(|image| image.name == name);
    let entry = catalog.entry(name);
    let Some((os, served)) = image
        .map(|image| (image.os, &image.platform))
        .or_else(|| entry.map(|entry| (entry.os, &entry.platform)))
    else {
        return Err(Failure::input(anyhow!("there is no base image {name}"))
            .hint("`kiln images list` shows those there are; `kiln images import` brings one of your own"));
    };
    if os == Os::Linux {
        return Err(Failure::input(anyhow!("{name} is a Linux image: there is no Windows in it to certify"))
            .hint("`kiln images import … --os windows` brings a Windows of your own"));
    }
    if image.is_none() {
        let how = entry.map(CatalogEntry::how_to_get).unwrap_or_default();
        return Err(Failure::input(anyhow!("{name} is not in the library")).hint(format!("`{how}` gets it")));
    }
    served
        .first()
        .map(|served| served.name())
        .ok_or_else(|| Failure::input(anyhow!("{name} has no name by which a template could find it")))
}

/// Puts the run's transcript into `folder`, under its own name. `None` where there is none: the worker was killed.
fn fetch(run_dir: &RunDir, folder: &Path) -> Result<Option<(PathBuf, Head)>, Failure> {
    let from = run_dir.transcript();
    let mut file = match std::fs::File::open(&from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.with_context(|| format!("cannot open {}", from.display())).map_err(Failure::host)?,
    };
    let mut line = String::new();
    BufReader::new(&file)
        .read_line(&mut line)
        .context("cannot read the transcript")
        .map_err(Failure::host)?;
    let head = Head::from_line(&line).with_context(|| format!("cannot read {}", from.display()))?;
    // A name that the worker made; it is a name and nothing else.
    let to = match Path::new(&head.name).file_name() {
        Some(name) if name == head.name.as_str() => folder.join(name),
        _ => return Err(anyhow!("the transcript calls itself {:?}", head.name).into()),
    };
    let copied = io::Seek::rewind(&mut file).and_then(|()| {
        let mut aside = Aside::create(&to, 0o600)?;
        io::copy(&mut file, aside.file_mut())?;
        aside.publish()
    });
    copied.with_context(|| format!("cannot write {}", to.display())).map_err(Failure::host)?;
    Ok(Some((to, head)))
}

/// Each step, how long it took and what that proves.
fn steps(head: &Head, paint: crate::ui::Paint) -> Vec<String> {
    let rows: Vec<[String; 3]> = head
        .steps
        .iter()
        .map(|step| {
            let told = match step.message.as_str() {
                "" => neutralize(&step.word),
                message => format!("{} ({})", neutralize(&step.word), neutralize(message)),
            };
            [neutralize(&step.title), text::milliseconds(step.ms), told]
        })
        .collect();
    table(["STEP", "TIME", "PROVEN"], &rows, paint)
}

#[cfg(test)]
mod tests {
    use kiln_model::Sha256;
    use kiln_model::catalog::{Arch, DiskFormat, Generation, Login, ServedName};

    use super::*;

    fn image(name: &str, os: Os) -> StoredImage {
        let served = ServedName {
            publisher: "Contoso".to_owned(),
            offer: "own".to_owned(),
            sku: name.to_owned(),
            generation: None,
        };
        StoredImage {
            name: name.to_owned(),
            version: "1".to_owned(),
            platform: vec![served],
            os,
            generation: Generation::V1,
            generations: vec![Generation::V1],
            arch: Arch::X86_64,
            login: Login::AnswerFile,
            format: DiskFormat::Qcow2,
            sha256: Sha256::from([7; 32]),
            virtual_size: 1 << 30,
            path: "/shelf/disk.qcow2".into(),
            stored_at: "2026-01-01T00:00:00Z".to_owned(),
        }
    }

    #[test]
    fn only_a_stored_image_that_is_no_linux_is_a_base() {
        let stored = [image("mine", Os::Windows), image("debian-13", Os::Linux)];
        let catalog = Catalog::default().with_stored(&stored);
        assert_eq!(base(&catalog, &stored, "mine").unwrap().sku, "mine");
        let refused =
            |name: &str, stored: &[StoredImage]| base(&catalog, stored, name).unwrap_err().to_string();
        assert!(refused("debian-13", &stored).contains("is a Linux image"));
        assert!(refused("debian-13", &[]).contains("is a Linux image"), "known from the catalog alone");
        assert!(refused("other", &stored).contains("no base image other"));
        assert!(refused("mine", &[]).contains("not in the library"));
    }
}

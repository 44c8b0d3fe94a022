//! The VHD distributor: `NAME.vhd` and, beside it, its run output `NAME.json`.
//!
//! INVARIANT: an artifact appears complete or not at all: written aside, synced,
//! renamed, and only then its run output. The earlier run output of that name goes
//! first, so that no record ever describes another file's bytes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kiln_host::publish::{Aside, write_file};
use kiln_model::catalog::Os;
use kiln_model::event::{OutputSource, RUN_OUTPUT_FORMAT, RunOutput, StepRef, Unit};
use kiln_qemu::vhd::{self, FooterOptions};

use crate::context::Run;
use crate::error::BuildError;
use crate::generalize::Generalized;
use crate::journal::now;

/// What is known about every image of this Kiln.
fn status(os: Os) -> &'static str {
    match os {
        Os::Linux => "booted in QEMU; not tried on Azure",
        Os::Windows => "built by steps that are lab-tested (no Windows); not tried on Azure",
    }
}

pub(super) async fn publish(
    run: &Run,
    image: &Generalized,
    name: &str,
    tags: &BTreeMap<String, String>,
    step: &StepRef,
) -> Result<RunOutput, BuildError> {
    let folder = &run.request.output_dir;
    let failed = |source| BuildError::Output { name: name.to_owned(), source };
    std::fs::create_dir_all(folder).map_err(failed)?;
    let file = format!("{name}.vhd");
    let record = folder.join(format!("{name}.json"));

    if let Some(earlier) = unchanged(run, image, &record, &folder.join(&file)).await? {
        let output = RunOutput {
            run_id: run.request.run_id.to_string(),
            template_name: run.plan.template_name.clone(),
            template_sha256: run.plan.template_sha256,
            source: source(run),
            tags: tags.clone(),
            ..earlier
        };
        run.log.say(format!("{name}: the VHD that is there is of the same image; its data was verified"));
        write_record(&record, &output).map_err(failed)?;
        return Ok(output);
    }
    let aside = Aside::create(folder.join(&file), 0o644).map_err(failed)?;
    let (journal, reference) = (run.journal.clone(), step.clone());
    let progress = move |percent: u8| {
        journal.step_progress(&reference, percent.into(), 100, Unit::Items);
    };
    let footer = footer_options(run);
    let written =
        vhd::write_fixed(run.qemu.img(), &image.image, &aside, footer, Arc::new(progress), &run.control)
            .await
            .map_err(|source| BuildError::Vhd { name: name.to_owned(), source })?;
    // The last moment at which a cancel leaves nothing behind.
    run.control.check()?;
    match std::fs::remove_file(&record) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    aside.publish().map_err(failed)?;

    let output = RunOutput {
        format: RUN_OUTPUT_FORMAT,
        name: name.to_owned(),
        r#type: "VHD".to_owned(),
        run_id: run.request.run_id.to_string(),
        file,
        size: written.file_size,
        virtual_size: written.virtual_size,
        sha256: written.sha256.into(),
        extents: Some(written.extents.into()),
        image: image.key,
        source: source(run),
        template_name: run.plan.template_name.clone(),
        template_sha256: run.plan.template_sha256,
        generation: run.plan.source.generation,
        os: run.plan.source.os,
        tags: tags.clone(),
        created_at: now(),
        kiln_version: run.settings.kiln_version.clone(),
        status: status(run.plan.source.os).to_owned(),
    };
    write_record(&record, &output).map_err(failed)?;
    Ok(output)
}

/// The record of a VHD that an earlier run left here of the same image, if its data is still what it was.
async fn unchanged(
    run: &Run,
    image: &Generalized,
    record: &Path,
    file: &Path,
) -> Result<Option<RunOutput>, BuildError> {
    let Some(key) = image.key.filter(|_| image.reused) else { return Ok(None) };
    // Whatever is wrong with what lies there: it is replaced.
    let Ok(text) = std::fs::read_to_string(record) else { return Ok(None) };
    let Ok(earlier) = RunOutput::from_json(&text) else { return Ok(None) };
    let same = earlier.image == Some(key)
        && file.file_name() == Some(earlier.file.as_ref())
        && file.metadata().is_ok_and(|found| found.is_file() && found.len() == earlier.size);
    let Some(extents) = earlier.extents.filter(|_| same) else { return Ok(None) };
    let whole = vhd::verify(file, *extents.as_bytes(), &run.control).await;
    run.control.check()?;
    Ok(whole.is_ok_and(|whole| whole).then_some(earlier))
}

fn source(run: &Run) -> OutputSource {
    OutputSource {
        name: run.plan.source.name.clone(),
        version: run.plan.source.version.clone(),
        sha256: run.plan.source.sha256,
        requested: run.plan.source_requested.clone(),
    }
}

fn write_record(record: &Path, output: &RunOutput) -> std::io::Result<()> {
    write_file(record, output.to_json().as_bytes(), 0o644)
}

/// The same run gives the same footer, however often it is distributed: the identifier
/// derives from the run's id, and the time is the format's own beginning (2000-01-01).
fn footer_options(run: &Run) -> FooterOptions {
    const BEGINNING: Duration = Duration::from_secs(946_684_800);
    let name = run.request.run_id.as_str().as_bytes();
    let unique_id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, name);
    FooterOptions { created: SystemTime::UNIX_EPOCH + BEGINNING, unique_id }
}

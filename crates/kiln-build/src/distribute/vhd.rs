//! The VHD distributor: `NAME.vhd` and, beside it, its run output `NAME.json`.
//!
//! INVARIANT: an artifact appears complete or not at all: written aside, synced,
//! renamed, and only then its run output. The earlier run output of that name goes
//! first, so that no record ever describes another file's bytes.

use std::collections::BTreeMap;
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

    let aside = Aside::create(folder.join(&file), 0o644).map_err(failed)?;
    let (journal, reference) = (run.journal.clone(), step.clone());
    let progress = move |percent: u8| {
        journal.step_progress(&reference, percent.into(), 100, Unit::Items);
    };
    let footer = footer_options(run);
    let image = &image.image;
    let written = vhd::write_fixed(run.qemu.img(), image, &aside, footer, Arc::new(progress), &run.control)
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
        source: OutputSource {
            name: run.plan.source.name.clone(),
            version: run.plan.source.version.clone(),
            sha256: run.plan.source.sha256,
            requested: run.plan.source_requested.clone(),
        },
        template_name: run.plan.template_name.clone(),
        template_sha256: run.plan.template_sha256,
        generation: run.plan.source.generation,
        os: run.plan.source.os,
        tags: tags.clone(),
        created_at: now(),
        kiln_version: run.settings.kiln_version.clone(),
        status: status(run.plan.source.os).to_owned(),
    };
    let mut text = serde_json::to_vec_pretty(&output).map_err(|error| failed(error.into()))?;
    text.push(b'\n');
    write_file(&record, &text, 0o644).map_err(failed)?;
    Ok(output)
}

/// The same run gives the same footer, however often it is distributed: the identifier
/// derives from the run's id, and the time is the format's own beginning (2000-01-01).
fn footer_options(run: &Run) -> FooterOptions {
    const BEGINNING: Duration = Duration::from_secs(946_684_800);
    let name = run.request.run_id.as_str().as_bytes();
    let unique_id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, name);
    FooterOptions { created: SystemTime::UNIX_EPOCH + BEGINNING, unique_id }
}

//! Artifacts: what runs distributed, downloadable in parts.
//!
//! Only names that a run output of that run gives are opened, its artifact and the JSON record beside it: whatever
//! else may lie in the folder, and whatever a path may try, is not there.

use std::io;

use axum::http::StatusCode;
use jiff::Timestamp;
use kiln_build::run_dir::RunId;
use kiln_host::digest::{hex, sha256};

use super::answer::{Answer, ArmError};
use super::call::Call;
use super::files::{Served, open_regular};
use super::path;
use super::runs::internal;
use crate::daemon::Daemon;

/// A record is a few KiB. Bytes.
const MOST_RECORD: u64 = 1 << 20;

/// Where an artifact is downloaded, below the server's base address.
pub(super) fn address(run: &RunId, file: &str) -> String {
    format!("/kiln/artifacts/{run}/{}", path::encode(file))
}

/// GET and HEAD `/kiln/artifacts/{run}/{file}`.
pub(super) async fn download(daemon: &Daemon, call: Call, run: &RunId, file: &str) -> Answer {
    let wanted = run.clone();
    let outputs = daemon.store.read(move |store| store.outputs_of_run(&wanted)).await.map_err(internal)?;
    let found = outputs.into_iter().find_map(|record| {
        let beside = format!("{}.json", record.name);
        (record.output.file == file || beside == file).then_some((record, beside == file))
    });
    let Some((record, is_record)) = found else {
        return Err(ArmError::not_found(
            "ArtifactNotFound",
            format!("The run '{run}' left no such artifact."),
        ));
    };
    let path = daemon.paths.artifacts().join(run.as_str()).join(file);
    let opened = tokio::task::spawn_blocking(move || -> io::Result<_> {
        let file = open_regular(&path)?;
        let about = file.metadata()?;
        let etag = if is_record {
            let mut text = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(&file, MOST_RECORD), &mut text)?;
            hex(&sha256(&text))
        } else {
            record.output.sha256.to_string()
        };
        let length = if is_record { about.len() } else { record.output.size };
        Ok((file, etag, length, about.len(), about.modified().ok()))
    });
    let (opened, etag, length, found, modified) =
        match opened.await.map_err(|error| ArmError::internal(&error))? {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ArmError::new(
                    StatusCode::GONE,
                    "ArtifactRemoved",
                    format!("The artifact of the run '{run}' was removed from this host."),
                ));
            }
            // A link, or something else that is no file: whoever may write there put it in its place.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                return Err(damaged(run, "is not a file"));
            }
            Err(error) => return Err(ArmError::internal(&error)),
        };
    if found != length {
        return Err(damaged(run, &format!("has {found} bytes and not the {length} it was distributed with")));
    }
    let served = Served {
        file: opened,
        length,
        etag: Some(format!("\"{etag}\"")),
        modified: modified.and_then(|time| Timestamp::try_from(time).ok()),
        content_type: if is_record { "application/json" } else { "application/octet-stream" },
        save_as: Some(file.to_owned()),
    };
    Ok(served.answer(&call.method, &call.headers))
}

fn damaged(run: &RunId, how: &str) -> ArmError {
    let text = format!("The artifact of the run '{run}' {how}. Run the template again.");
    ArmError::new(StatusCode::GONE, "ArtifactDamaged", text)
}

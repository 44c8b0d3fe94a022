//! Inputs that clients send instead of having them fetched: `/kiln/inputs/{sha256}`.
//!
//! `kiln build` sends the local files of a template this way before it puts the template. The digest is the name, so
//! what is there already need not be sent, and what arrives under a wrong name is refused.

use std::io;

use axum::http::{Method, StatusCode};
use futures_util::TryStreamExt;
use kiln_host::wait::Control;
use kiln_library::{FetchError, Library, StoredInput, UploadError};
use kiln_model::Sha256;
use serde_json::json;
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;

use super::answer::{Answer, ArmError, json_response};
use super::call::Call;
use super::front::discard;
use crate::daemon::Daemon;

/// A template's files are scripts and installers; disks come by `kiln images import`. Bytes.
pub(super) const MAX_INPUT: u64 = 4 << 30;

/// GET and HEAD say whether it is there; PUT puts it there.
pub(super) async fn answer(daemon: &Daemon, mut call: Call, sha256: Sha256) -> Answer {
    let shelf = daemon.paths.library();
    let opened = tokio::task::spawn_blocking(move || Library::open(shelf));
    let library = opened
        .await
        .map_err(|error| ArmError::internal(&error))?
        .map_err(|error| ArmError::internal(&error))?;
    // Ends with the request; a stalled upload has a bound of its own.
    let control = Control::new(CancellationToken::new(), None);
    let found = library.find_input(sha256, &control).await.map_err(|error| ArmError::internal(&error))?;
    let body = std::mem::take(&mut call.body);
    match (found, call.method == Method::PUT) {
        (Some(stored), put) => {
            if put {
                discard(body).await;
            }
            Ok(shown(StatusCode::OK, &stored))
        }
        (None, false) => {
            Err(ArmError::not_found("InputNotFound", format!("There is no input with the digest {sha256}.")))
        }
        (None, true) => {
            // Known beforehand: nothing of it is taken.
            if axum::body::HttpBody::size_hint(&body).lower() > MAX_INPUT {
                return Err(refused(UploadError::TooLong { limit: MAX_INPUT }));
            }
            let bytes = TryStreamExt::map_err(body.into_data_stream(), io::Error::other);
            let reader = StreamReader::new(bytes);
            let stored = library.store_input(Some(sha256), MAX_INPUT, reader, &control).await;
            Ok(shown(StatusCode::CREATED, &stored.map_err(refused)?))
        }
    }
}

fn shown(status: StatusCode, stored: &StoredInput) -> axum::response::Response {
    json_response(status, &json!({"sha256": stored.sha256, "size": stored.size}))
}

fn refused(error: UploadError) -> ArmError {
    match &error {
        UploadError::TooLong { limit } => ArmError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestContentTooLarge",
            format!("An input may have {} MiB at most.", limit >> 20),
        ),
        UploadError::Digest { expected, found } => ArmError::bad_request(
            "ChecksumMismatch",
            format!(
                "The uploaded bytes have the SHA-256 {found}; the path says {expected}. Nothing was kept."
            ),
        ),
        UploadError::Torn(_) | UploadError::Silent { .. } => ArmError::bad_request(
            "InvalidRequestContent",
            "The request's body ended before it was complete. Nothing was kept.",
        ),
        UploadError::Store(FetchError::NoRoom(_)) => no_room(),
        UploadError::Store(FetchError::Disk { source, .. })
            if source.kind() == io::ErrorKind::StorageFull
                || source.kind() == io::ErrorKind::QuotaExceeded =>
        {
            no_room()
        }
        UploadError::Store(_) => ArmError::internal(&error),
    }
}

fn no_room() -> ArmError {
    ArmError::new(
        StatusCode::INSUFFICIENT_STORAGE,
        "InsufficientStorage",
        "The library's disk has no room for this input. Nothing was kept.",
    )
}

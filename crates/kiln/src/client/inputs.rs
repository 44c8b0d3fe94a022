//! Files of this host that a template names, for a server that cannot read them.
//!
//! ```text
//!  file:///… ─ digest ─► HEAD /kiln/inputs/<sha256> ─ not there ─► PUT
//!                                   └──────────── manifest {address: sha256} ─► PUT ─► ?kilnUploads=<its sha256>
//! ```
//! Everything is known by its digest: what was uploaded once is not sent again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use kiln_model::Sha256;
use kiln_model::plan::InputLocation;
use reqwest::{Body, Method};
use serde_json::Value;

use super::link::Ask;
use super::{Client, ClientError};
use crate::progress::transfer::Transfers;

/// A file that a template names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalInput {
    /// As the template writes it.
    pub address: String,
    pub path: PathBuf,
}

impl LocalInput {
    /// Those of a resource, each address once.
    pub fn of(resource: &Value) -> Vec<Self> {
        let mut addresses = BTreeMap::new();
        collect(resource, &mut addresses);
        addresses.into_iter().map(|(address, path)| Self { address, path }).collect()
    }
}

fn collect(value: &Value, found: &mut BTreeMap<String, PathBuf>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    // The fields that hold an address, in every version and spelling.
                    Value::String(text)
                        if ["scripturi", "sourceuri", "script"]
                            .contains(&key.to_ascii_lowercase().as_str()) =>
                    {
                        if let Ok(InputLocation::File(path)) = InputLocation::parse(text) {
                            found.insert(text.clone(), path);
                        }
                    }
                    _ => collect(value, found),
                }
            }
        }
        _ => {}
    }
}

/// Uploads what the server does not have; gives the digest of the manifest that names all.
pub async fn upload(
    client: &Client,
    inputs: &[LocalInput],
    transfers: &Transfers<'_>,
) -> Result<Option<Sha256>, ClientError> {
    if inputs.is_empty() {
        return Ok(None);
    }
    let mut manifest = serde_json::Map::new();
    for (id, input) in inputs.iter().enumerate() {
        let digest = upload_file(client, id, &input.path, transfers).await?;
        manifest.insert(input.address.clone(), digest.to_string().into());
    }
    let bytes = Value::Object(manifest).to_string().into_bytes();
    let digest = Sha256::from_bytes(kiln_host::digest::sha256(&bytes));
    let mut ask = Ask::new(Method::PUT, input_path(digest));
    ask.body = Some(bytes);
    client.link.send(&ask).await?;
    Ok(Some(digest))
}

async fn upload_file(
    client: &Client,
    id: usize,
    path: &Path,
    transfers: &Transfers<'_>,
) -> Result<Sha256, ClientError> {
    let here = |source: io::Error| ClientError::Here {
        what: format!("cannot read the template's file {}", path.display()),
        source,
    };
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let (file, length) = open(path).map_err(here)?;
    let hashed = path.to_owned();
    let digest =
        tokio::task::spawn_blocking(move || kiln_host::digest::sha256_file(&hashed, &mut |_| Ok(())))
            .await
            .map_err(|error| here(io::Error::other(error)))?
            .map_err(|error| here(io::Error::other(error)))?;
    let digest = Sha256::from_bytes(digest);

    match client.link.send(&Ask::new(Method::HEAD, input_path(digest))).await {
        Ok(_) => return Ok(digest),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error),
    }
    transfers.advance(id, &name, 0, Some(length));
    let body = Body::from(tokio::fs::File::from_std(file));
    let sent = client.link.send_stream(Method::PUT, &input_path(digest), length, body).await;
    transfers.end(id);
    sent?;
    Ok(digest)
}

/// A regular file and its length: a pipe or a device has no end that could be announced.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let meta = std::fs::metadata(path)?;
    if !meta.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            if meta.is_dir() { "it is a folder: put it into an archive" } else { "it is no regular file" },
        ));
    }
    Ok((File::open(path)?, meta.len()))
}

fn input_path(digest: Sha256) -> String {
    format!("/kiln/inputs/{digest}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn files_are_found_wherever_a_template_names_one() {
        let resource = json!({
            "properties": {
                "customize": [
                    { "type": "Shell", "scriptUri": "file:///a/b.sh" },
                    { "type": "File", "SourceURI": "file:///a%20b", "destination": "file:///not/this" },
                    { "type": "Shell", "scriptUri": "https://h/x.sh?sig=s" },
                    { "type": "Shell", "inline": ["file:///nor/this"] },
                ],
                "validate": { "inVMValidations": [{ "scriptUri": "file:///a/b.sh" }] },
                "optimize": { "workload": { "scriptUri": "file:///w" } },
            }
        });
        let found: Vec<_> =
            LocalInput::of(&resource).into_iter().map(|input| (input.address, input.path)).collect();
        let expected = [("file:///a%20b", "/a b"), ("file:///a/b.sh", "/a/b.sh"), ("file:///w", "/w")];
        assert_eq!(found, expected.map(|(address, path)| (address.to_owned(), PathBuf::from(path))));
    }

    #[test]
    fn a_folder_is_refused_with_a_way_out() {
        let folder = tempfile::tempdir().unwrap();
        assert!(open(folder.path()).unwrap_err().to_string().contains("archive"));
    }
}

//! The secrets this server makes for itself, and where they lie: in `server/`, mode 0600.
//!
//! | file | what |
//! |---|---|
//! | `token.key` | 32 bytes that sign tokens |
//! | `operator.json` | the operator made at first start: its client id, and the hash of its secret |
//! | `operator.secret` | that secret, for the clients of this host; the server never reads it again |
//! | `identity.secret` | the header's value for `/msi/token` |
//!
//! Each is made when it is not there. Removing one and starting again is how it is changed.

use std::io;
use std::path::Path;

use argon2::Argon2;
use argon2::PasswordHasher as _;
use argon2::password_hash::phc::PasswordHash;
use kiln_host::{digest, publish};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{AccessError, MAX_SECRET};
use crate::config::{Guid, SecretHash};

const TOKEN_KEY: &str = "token.key";
pub const OPERATOR: &str = "operator.json";
pub const OPERATOR_SECRET: &str = "operator.secret";
pub const IDENTITY_SECRET: &str = "identity.secret";
/// Of `operator.json`.
const FORMAT: u32 = 1;

/// The operator made at first start.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Operator {
    pub client_id: String,
    pub secret_hash: SecretHash,
}

pub(super) fn random() -> Result<Zeroizing<[u8; 32]>, AccessError> {
    let mut bytes = Zeroizing::new([0; 32]);
    let source = rustls::crypto::ring::default_provider().secure_random;
    source.fill(&mut bytes[..]).map_err(|_| AccessError::Random)?;
    Ok(bytes)
}

/// Hexadecimal: no shell, no argument parser and no header reads anything into it. (The `-` of base64url at its
/// beginning is an option to `az login`.)
fn random_text() -> Result<Zeroizing<String>, AccessError> {
    Ok(digest::hex(&random()?[..]).into())
}

fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, AccessError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AccessError::File { act: "read", path: path.to_owned(), source }),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), AccessError> {
    publish::write_file(path, bytes, 0o600).map_err(|source| AccessError::File {
        act: "write",
        path: path.to_owned(),
        source,
    })
}

pub(super) fn signing_key(dir: &Path) -> Result<Zeroizing<[u8; 32]>, AccessError> {
    let path = dir.join(TOKEN_KEY);
    match read(&path)? {
        Some(bytes) => match bytes[..].try_into() {
            Ok(key) => Ok(Zeroizing::new(key)),
            Err(_) => Err(AccessError::Damaged { path }),
        },
        None => {
            let key = random()?;
            write(&path, &key[..])?;
            Ok(key)
        }
    }
}

pub(super) fn identity(dir: &Path) -> Result<Zeroizing<String>, AccessError> {
    let path = dir.join(IDENTITY_SECRET);
    match read(&path)? {
        Some(bytes) => match std::str::from_utf8(&bytes).map(str::trim) {
            // A short one would be guessed; nobody has reason to write one.
            Ok(text) if text.len() >= 32 && text.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Ok(text.to_owned().into())
            }
            _ => Err(AccessError::Damaged { path }),
        },
        None => {
            let secret = random_text()?;
            write(&path, secret.as_bytes())?;
            Ok(secret)
        }
    }
}

pub(super) fn operator(dir: &Path) -> Result<Operator, AccessError> {
    if let Some(operator) = read_operator(dir)? {
        return Ok(operator);
    }
    // The secret first: a start that is cut off between the two makes both anew.
    let secret = random_text()?;
    write(&dir.join(OPERATOR_SECRET), secret.as_bytes())?;
    let client_id = Guid::random().to_string();
    let phc = hash_secret(&secret)?;
    let text = serde_json::json!({"format": FORMAT, "clientId": client_id, "secretHash": phc});
    write(&dir.join(OPERATOR), format!("{text:#}\n").as_bytes())?;
    Ok(Operator { client_id, secret_hash: SecretHash::try_from(phc).map_err(|_| AccessError::Hash)? })
}

/// None where no server has started yet.
pub(crate) fn read_operator(dir: &Path) -> Result<Option<Operator>, AccessError> {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    let path = dir.join(OPERATOR);
    let Some(bytes) = read(&path)? else { return Ok(None) };
    let Ok(head) = serde_json::from_slice::<Head>(&bytes) else { return Err(AccessError::Damaged { path }) };
    if head.format > FORMAT {
        return Err(AccessError::Newer { path, found: head.format });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|_| AccessError::Damaged { path })
}

/// A hash that no secret has, for ids that nobody has.
pub(super) fn nobody() -> Result<SecretHash, AccessError> {
    // The cost lies in the verifying; the salt and the hash here are any.
    let phc = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5bm9ib2R5$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    SecretHash::try_from(phc.to_owned()).map_err(|_| AccessError::Hash)
}

/// The PHC string (argon2id) of a secret, for `access.principals[].secretHash`. Takes some tens of milliseconds of a
/// processor and 19 MiB.
///
/// # Errors
/// An empty secret, or one of more than 4096 bytes.
pub fn hash_secret(secret: &str) -> Result<String, AccessError> {
    if secret.is_empty() || secret.len() > MAX_SECRET {
        return Err(AccessError::Hash);
    }
    let hash: PasswordHash =
        Argon2::default().hash_password(secret.as_bytes()).map_err(|_| AccessError::Hash)?;
    Ok(hash.to_string())
}

//! Who is it, and what may they.
//!
//! ```text
//!  client id + secret ─► throttle ─► argon2id (few at a time, off the async threads) ─┐
//!  identity header    ─► throttle ─► constant-time comparison ────────────────────────┤
//!                                                                                     ▼
//!  server/token.key ─────────────────────────────────────────────────────► signed token, an hour
//!                                                                                     │
//!  a request's bearer ─► signature, times, audience ─► is its principal still there? ─► Principal
//! ```
//! The table of principals is the configuration's, and the operator made at first start. A token names its principal
//! and the secret it was given for: with the principal gone, or its secret changed, the token is dead at once. What a
//! principal may do is read from the table, never from a token.
//!
//! INVARIANT: no secret leaves this room but as a token's signature: what holds one has no `Debug`, and no error or
//! log line has one in it. The files are listed in [`secrets`].

mod secrets;
mod throttle;
mod token;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordVerifier as _};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::sync::Semaphore;

pub use self::secrets::{IDENTITY_SECRET, OPERATOR, OPERATOR_SECRET, hash_secret};
pub(crate) use self::secrets::{Operator, read_operator};
use self::throttle::Throttle;
use self::token::{Audiences, Tokens};
use crate::config::{Config, Environment, SecretHash};

/// Hashes computed at a time: each takes 19 MiB and a processor for some tens of milliseconds.
const HASHES_AT_ONCE: usize = 2;
/// How long a sign-in waits for its turn.
const TURN: Duration = Duration::from_secs(10);
/// Longer client ids and secrets are nobody's.
const MAX_ID: usize = 128;
const MAX_SECRET: usize = 4096;
/// Whoever knows the identity secret.
pub(crate) const IDENTITY: &str = "managed-identity";

/// What a principal may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Looks, changes nothing.
    Reader,
    Operator,
}

/// Who makes a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// A client id, `managed-identity`, or `uid:1000` on the Unix socket.
    pub id: String,
    pub name: String,
    pub role: Role,
}

impl Principal {
    /// Whoever can open the Unix socket: its file's permissions have decided.
    pub fn local(uid: u32) -> Self {
        Self { id: format!("uid:{uid}"), name: format!("local user {uid}"), role: Role::Operator }
    }
}

/// A secret as it came over the wire: wiped after use, in no `Debug`.
pub struct Secret(zeroize::Zeroizing<String>);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl Secret {
    #[cfg(test)]
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

/// A token, and when it is valid. No `Debug`.
pub struct IssuedToken {
    pub token: String,
    /// Seconds.
    pub expires_in: u64,
    /// Seconds since 1970.
    pub not_before: u64,
    pub expires_on: u64,
}

/// A bearer token that opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("the access token has expired")]
    Expired,
    #[error("the access token is for another audience")]
    Audience,
    /// Malformed, signed by somebody else, or its principal is no more.
    #[error("the access token is not valid here")]
    Invalid,
}

/// No token for these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// Unknown id or wrong secret: nobody learns which.
    #[error("the client id or the secret is wrong")]
    Denied,
    #[error("too many attempts: try again in {retry_after} s")]
    Throttled { retry_after: u64 },
    #[error("tokens for this resource are not given here")]
    Resource,
    #[error("managed identity is switched off")]
    Disabled,
    #[error("the token could not be made")]
    Internal,
}

#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("cannot {act} {}", .path.display())]
    File {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is damaged: put it back from a backup, or remove it and a new one is made", .path.display())]
    Damaged { path: PathBuf },
    #[error("{} has format {found}, which a newer version of Kiln wrote: use that version", .path.display())]
    Newer { path: PathBuf, found: u32 },
    #[error("the host gives no random numbers")]
    Random,
    #[error("the secret cannot be hashed: it is empty, or longer than {MAX_SECRET} bytes")]
    Hash,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Access {
    shared: Arc<Shared>,
}

struct Shared {
    table: RwLock<Arc<Table>>,
    operator: Operator,
    identity_secret: zeroize::Zeroizing<String>,
    /// Checked where the id is unknown, so that it takes as long.
    nobody: SecretHash,
    tokens: Tokens,
    throttle: Throttle,
    hashing: Semaphore,
}

/// Who there is, by lower-case id.
struct Table {
    known: HashMap<String, Entry>,
    lifetime: Duration,
}

struct Entry {
    principal: Principal,
    /// None: no secret signs this one in here (managed identity has its own door).
    hash: Option<SecretHash>,
    /// Changes with the secret.
    version: String,
}

impl Table {
    fn new(config: &Config, operator: &Operator, identity_secret: &str) -> Self {
        let mut known = HashMap::new();
        let mut add = |id: &str, name: &str, role, hash: Option<&SecretHash>, secret: &str| {
            let principal = Principal { id: id.to_owned(), name: name.to_owned(), role };
            let version = fingerprint(secret);
            known.insert(id.to_ascii_lowercase(), Entry { principal, hash: hash.cloned(), version });
        };
        let identity = &config.access.managed_identity;
        if identity.enabled {
            add(IDENTITY, "managed identity of this host", identity.role, None, identity_secret);
        }
        let hash = &operator.secret_hash;
        add(&operator.client_id, "operator", Role::Operator, Some(hash), hash.phc());
        for given in &config.access.principals {
            let hash = &given.secret_hash;
            add(&given.id, given.name.as_deref().unwrap_or(&given.id), given.role, Some(hash), hash.phc());
        }
        let lifetime = Duration::from_secs(u64::from(config.access.token_minutes) * 60);
        Self { known, lifetime }
    }
}

/// Tells one secret from its successor, and nothing about it.
fn fingerprint(secret: &str) -> String {
    let digest = Sha256::digest(secret.as_bytes());
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Access {
    /// Reads or makes the signing key, the operator's credential and the identity secret in `server_dir`, which must
    /// exist and be private. Blocking; the first start hashes a secret.
    ///
    /// # Errors
    /// Files that cannot be read or written, or are damaged.
    pub fn open(server_dir: &Path, config: &Config, environment: &Environment) -> Result<Self, AccessError> {
        let key = secrets::signing_key(server_dir)?;
        let operator = secrets::operator(server_dir)?;
        let identity_secret = secrets::identity(server_dir)?;
        let table = Table::new(config, &operator, &identity_secret);
        let audiences = Audiences::new(environment.names.clone());
        let nobody = secrets::nobody()?;
        Ok(Self {
            shared: Arc::new(Shared {
                table: RwLock::new(Arc::new(table)),
                tokens: Tokens::new(&key, &environment.tenant, audiences),
                operator,
                identity_secret,
                nobody,
                throttle: Throttle::default(),
                hashing: Semaphore::new(HASHES_AT_ONCE),
            }),
        })
    }

    /// Takes the principals of a configuration that was read again. Tokens of those no longer in it are dead at once.
    pub fn reload(&self, config: &Config) {
        let shared = &self.shared;
        let table = Table::new(config, &shared.operator, &shared.identity_secret);
        *shared.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.shared.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whose token it is.
    pub fn authenticate(&self, bearer: &str) -> Result<Principal, AuthError> {
        let claims = self.shared.tokens.verify(bearer)?;
        let table = self.table();
        let entry = table.known.get(&claims.appid.to_ascii_lowercase()).ok_or(AuthError::Invalid)?;
        if entry.version != claims.secret_version {
            return Err(AuthError::Invalid);
        }
        Ok(entry.principal.clone())
    }

    /// A token for a service principal. `resource` is an address of this server (or Azure's own name for Resource
    /// Manager); `from` the address asking, for the rate limit, none on the Unix socket.
    pub async fn issue(
        &self,
        client_id: &str,
        secret: Secret,
        resource: &str,
        from: Option<IpAddr>,
    ) -> Result<IssuedToken, IssueError> {
        let shared = &self.shared;
        let audience = shared.tokens.audience(resource).ok_or(IssueError::Resource)?;
        let id = if client_id.len() <= MAX_ID { client_id.to_ascii_lowercase() } else { String::new() };
        // Asked twice: who is over the limit does not even queue, and what is in the queue is counted one by one.
        shared.throttle.look(from, &id)?;
        let turn = tokio::time::timeout(TURN, shared.hashing.acquire()).await;
        let Ok(Ok(turn)) = turn else { return Err(IssueError::Throttled { retry_after: TURN.as_secs() }) };
        let attempt = shared.throttle.attempt(from, &id)?;

        let table = self.table();
        let entry = table.known.get(&id);
        let hash = entry.and_then(|entry| entry.hash.as_ref());
        let known = hash.is_some();
        let hash = hash.unwrap_or(&shared.nobody).clone();
        let matches = tokio::task::spawn_blocking(move || verify(&secret, &hash)).await;
        drop(turn);
        match (entry, matches) {
            (Some(entry), Ok(true)) if known => {
                shared.throttle.succeeded(attempt);
                self.sign(&table, entry, &audience)
            }
            (_, Ok(_)) => {
                tracing::warn!(from = %shown(from), "a sign-in was refused: unknown client id or wrong secret");
                Err(IssueError::Denied)
            }
            (_, Err(_)) => Err(IssueError::Internal),
        }
    }

    /// A token for whoever knows the identity secret.
    pub fn issue_identity(
        &self,
        header: &Secret,
        resource: &str,
        from: Option<IpAddr>,
    ) -> Result<IssuedToken, IssueError> {
        let shared = &self.shared;
        let table = self.table();
        let entry = table.known.get(IDENTITY).ok_or(IssueError::Disabled)?;
        let audience = shared.tokens.audience(resource).ok_or(IssueError::Resource)?;
        let attempt = shared.throttle.attempt(from, IDENTITY)?;
        // Digests: their comparison tells nothing of the secret's length either.
        let digest = |text: &str| Sha256::digest(text.as_bytes());
        if !bool::from(digest(&header.0)[..].ct_eq(&digest(&shared.identity_secret)[..])) {
            tracing::warn!(from = %shown(from), "a sign-in was refused: wrong identity header");
            return Err(IssueError::Denied);
        }
        shared.throttle.succeeded(attempt);
        self.sign(&table, entry, &audience)
    }

    fn sign(&self, table: &Table, entry: &Entry, audience: &str) -> Result<IssuedToken, IssueError> {
        self.shared
            .tokens
            .sign(&entry.principal, &entry.version, audience, table.lifetime)
            .ok_or(IssueError::Internal)
    }
}

fn verify(secret: &Secret, hash: &SecretHash) -> bool {
    // Too long ones cost as much, and fail.
    let (text, fits) = if secret.0.len() <= MAX_SECRET { (secret.0.as_str(), true) } else { ("", false) };
    PasswordHash::new(hash.phc())
        .is_ok_and(|hash| Argon2::default().verify_password(text.as_bytes(), &hash).is_ok() && fits)
}

fn shown(from: Option<IpAddr>) -> String {
    from.map_or_else(|| "the Unix socket".to_owned(), |address| address.to_string())
}

#[cfg(test)]
mod tests;

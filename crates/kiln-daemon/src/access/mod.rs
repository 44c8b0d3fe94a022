//! Who is it, and what may they.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::config::{Config, Environment};

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

/// Cheap to clone.
#[derive(Clone)]
pub struct Access {}

/// A secret as it came over the wire: wiped after use, in no `Debug`.
pub struct Secret(pub(crate) zeroize::Zeroizing<String>);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

/// A token, and how long it is valid. No `Debug`.
pub struct IssuedToken {
    pub token: String,
    /// Seconds.
    pub expires_in: u64,
    /// Seconds since 1970.
    pub expires_on: u64,
    pub not_before: u64,
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
    #[error("too many failed attempts: try again in {retry_after} s")]
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
    #[error("the secret cannot be hashed")]
    Hash,
}

impl Access {
    /// Reads or makes the signing key, the operator's credential and the identity secret in `server_dir`. Blocking.
    pub fn open(server_dir: &Path, config: &Config, environment: &Environment) -> Result<Self, AccessError> {
        let _ = (server_dir, config, environment);
        todo!()
    }

    /// Takes the principals of a configuration that was read again. Tokens of those no longer in it are dead at once.
    pub fn reload(&self, config: &Config) {
        let _ = config;
        todo!()
    }

    /// Whose token it is.
    pub fn authenticate(&self, bearer: &str) -> Result<Principal, AuthError> {
        let _ = bearer;
        todo!()
    }

    /// A token for a service principal. `from`: the address asking, for the rate limit; none on the Unix socket.
    pub async fn issue(
        &self,
        client_id: &str,
        secret: Secret,
        resource: &str,
        from: Option<IpAddr>,
    ) -> Result<IssuedToken, IssueError> {
        let _ = (client_id, secret, resource, from);
        todo!()
    }

    /// A token for whoever knows the identity secret.
    pub async fn issue_identity(
        &self,
        header: Secret,
        resource: &str,
        from: Option<IpAddr>,
    ) -> Result<IssuedToken, IssueError> {
        let _ = (header, resource, from);
        todo!()
    }
}

/// The PHC string of a secret, for `access.principals[].secretHash`. Takes a fraction of a second of one processor.
pub fn hash_secret(secret: &str) -> Result<String, AccessError> {
    let _ = secret;
    todo!()
}

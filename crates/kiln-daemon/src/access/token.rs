//! Tokens: JSON Web Tokens (RFC 7519), HS256, for nobody but this server.
//!
//! Clients look into them: MSAL and `az` read `tid` and `oid`, others `appid`, `roles`, `exp`. The signature is
//! compared in constant time, and `alg` is not taken from the token.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{AuthError, IssuedToken, Principal, Role};
use crate::config::Names;

/// How far clocks may differ, in seconds. Both ends are usually one host.
const LEEWAY: u64 = 30;
/// Ours have under 1 KiB.
const MAX_TOKEN: usize = 8 * 1024;
/// What the Azure SDKs ask for when nobody told them another audience.
const RESOURCE_MANAGER: [&str; 2] = ["https://management.azure.com", "https://management.core.windows.net"];

#[derive(Serialize, Deserialize)]
pub(super) struct Claims {
    aud: String,
    iss: String,
    iat: u64,
    nbf: u64,
    exp: u64,
    tid: String,
    oid: String,
    sub: String,
    pub appid: String,
    roles: Vec<String>,
    idtyp: String,
    ver: String,
    /// Which of its principal's secrets it was given for.
    #[serde(rename = "kiln_sv")]
    pub secret_version: String,
}

/// What tokens are given for.
pub(super) struct Audiences {
    names: Names,
}

impl Audiences {
    pub(super) fn new(names: Names) -> Self {
        Self { names }
    }

    /// Any address of this server, whatever the port: it may be reached through a forwarded one.
    fn accepts(&self, audience: &str) -> bool {
        let bare = audience.trim_end_matches('/');
        RESOURCE_MANAGER.contains(&bare)
            || bare
                .strip_prefix("https://")
                .and_then(crate::config::split_authority)
                .is_some_and(|(host, _)| self.names.contains(&host))
    }
}

pub(super) struct Tokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
    tenant: String,
    issuer: String,
    audiences: Audiences,
}

impl Tokens {
    pub(super) fn new(key: &[u8; 32], tenant: &str, audiences: Audiences) -> Self {
        // The tenant's, not an address: a server that moves keeps its tokens.
        let issuer = format!("urn:kiln:{tenant}");
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["exp", "nbf", "aud", "iss", "sub"]);
        validation.set_issuer(&[&issuer]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY;
        // Checked by `verify`: any of our names will do, and they are no fixed list.
        validation.validate_aud = false;
        Self {
            encoding: EncodingKey::from_secret(key),
            decoding: DecodingKey::from_secret(key),
            validation,
            tenant: tenant.to_owned(),
            issuer,
            audiences,
        }
    }

    /// `resource` as it goes into a token; nothing where it is not this server.
    pub(super) fn audience(&self, resource: &str) -> Option<String> {
        self.audiences.accepts(resource).then(|| resource.to_owned())
    }

    pub(super) fn sign(
        &self,
        principal: &Principal,
        secret_version: &str,
        audience: &str,
        lifetime: Duration,
    ) -> Option<IssuedToken> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
        let expires_in = lifetime.as_secs();
        let role = match principal.role {
            Role::Reader => "Reader",
            Role::Operator => "Operator",
        };
        let oid = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{} {}", self.tenant, principal.id).as_bytes());
        let claims = Claims {
            aud: audience.to_owned(),
            iss: self.issuer.clone(),
            iat: now,
            nbf: now,
            exp: now + expires_in,
            tid: self.tenant.clone(),
            oid: oid.to_string(),
            sub: oid.to_string(),
            appid: principal.id.clone(),
            roles: vec![role.to_owned()],
            idtyp: "app".to_owned(),
            ver: "1.0".to_owned(),
            secret_version: secret_version.to_owned(),
        };
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.encoding).ok()?;
        Some(IssuedToken { token, expires_in, not_before: claims.nbf, expires_on: claims.exp })
    }

    pub(super) fn verify(&self, token: &str) -> Result<Claims, AuthError> {
        if token.len() > MAX_TOKEN {
            return Err(AuthError::Invalid);
        }
        let claims = match jsonwebtoken::decode::<Claims>(token, &self.decoding, &self.validation) {
            Ok(data) => data.claims,
            Err(error) if matches!(error.kind(), ErrorKind::ExpiredSignature) => {
                return Err(AuthError::Expired);
            }
            Err(_) => return Err(AuthError::Invalid),
        };
        if claims.tid != self.tenant {
            return Err(AuthError::Invalid);
        }
        if !self.audiences.accepts(&claims.aud) {
            return Err(AuthError::Audience);
        }
        Ok(claims)
    }
}

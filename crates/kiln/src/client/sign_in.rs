//! Tokens for a server that is reached over TLS.
//!
//! The secret is read from its file when a token is needed, sent in the request's body,
//! and kept nowhere; the token lives in memory until shortly before it expires.

use std::time::{Duration, Instant};

use reqwest::Url;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use serde::Deserialize;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::encode;
use super::error::ClientError;
use crate::settings::Credential;

/// A token is renewed this long before it expires.
const EARLY: Duration = Duration::from_secs(60);
/// For the whole of a sign-in: a secret is hashed slowly on purpose.
const LIMIT: Duration = Duration::from_secs(30);
/// Longer files hold no secret.
const SECRET_BYTES: u64 = 64 << 10;

/// No `Debug`: it holds a token.
pub struct SignIn {
    credential: Credential,
    token: Mutex<Option<Token>>,
}

struct Token {
    header: HeaderValue,
    until: Instant,
}

/// RFC 6749, section 5.1.
#[derive(Deserialize)]
struct Granted {
    access_token: String,
    expires_in: u64,
}

/// RFC 6749, section 5.2.
#[derive(Deserialize)]
struct Denied {
    error: String,
    #[serde(default)]
    error_description: String,
}

/// What `/metadata/endpoints` says about signing in.
#[derive(Deserialize)]
struct Endpoints {
    authentication: Authentication,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Authentication {
    login_endpoint: String,
    tenant: String,
}

impl SignIn {
    pub fn new(credential: Credential) -> Self {
        Self { credential, token: Mutex::new(None) }
    }

    /// The value of `Authorization`.
    pub async fn header(&self, http: &reqwest::Client, base: &Url) -> Result<HeaderValue, ClientError> {
        let mut token = self.token.lock().await;
        if let Some(token) = token.as_ref().filter(|token| Instant::now() < token.until) {
            return Ok(token.header.clone());
        }
        let fresh = self.fetch(http, base).await?;
        Ok(token.insert(fresh).header.clone())
    }

    /// The server does not take the token any more.
    pub async fn forget(&self) {
        *self.token.lock().await = None;
    }

    async fn fetch(&self, http: &reqwest::Client, base: &Url) -> Result<Token, ClientError> {
        let server = base.as_str().trim_end_matches('/').to_owned();
        let no = |why: String| ClientError::SignIn { server: server.clone(), why };
        let unreachable = |error: reqwest::Error| ClientError::Unreachable {
            server: server.clone(),
            source: error.without_url(),
        };

        let discovery =
            base.join("/metadata/endpoints?api-version=2022-09-01").map_err(|error| no(error.to_string()))?;
        let answer = http.get(discovery).timeout(LIMIT).send().await.map_err(unreachable)?;
        let bytes = answer.bytes().await.map_err(unreachable)?;
        let endpoints: Endpoints =
            serde_json::from_slice(&bytes).map_err(|_| no("it does not say where to sign in".to_owned()))?;
        let Authentication { login_endpoint, tenant } = endpoints.authentication;
        let login = Url::parse(&login_endpoint).map_err(|error| no(error.to_string()))?;
        // A secret goes to whom it was meant for, whatever an answer says.
        if (login.scheme(), login.host_str(), login.port_or_known_default())
            != (base.scheme(), base.host_str(), base.port_or_known_default())
        {
            return Err(no(format!(
                "it sends sign-ins to {}, which is not the address that was given",
                login.host_str().unwrap_or("another place")
            )));
        }
        let endpoint = base
            .join(&format!("/{}/oauth2/v2.0/token", encode(&tenant)))
            .map_err(|error| no(error.to_string()))?;

        let form = {
            let secret = self.secret()?;
            Zeroizing::new(format!(
                "grant_type=client_credentials&client_id={}&client_secret={}&scope={}",
                encode(&self.credential.client_id),
                Zeroizing::new(encode(&secret)).as_str(),
                encode(&format!("{server}/.default"))
            ))
        };
        let answer = http
            .post(endpoint)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .timeout(LIMIT)
            .body(form.as_str().to_owned())
            .send()
            .await
            .map_err(unreachable)?;
        let granted = answer.status().is_success();
        let bytes = Zeroizing::new(answer.bytes().await.map_err(unreachable)?.to_vec());
        if !granted {
            let said = match serde_json::from_slice::<Denied>(&bytes) {
                Ok(Denied { error, error_description }) if error_description.is_empty() => error,
                Ok(Denied { error_description, .. }) => error_description,
                Err(_) => "it did not say why".to_owned(),
            };
            return Err(no(said));
        }
        let Granted { access_token, expires_in } =
            serde_json::from_slice(&bytes).map_err(|_| no("its token is not understood".to_owned()))?;
        let access_token = Zeroizing::new(access_token);
        let mut header = HeaderValue::from_str(&Zeroizing::new(format!("Bearer {}", access_token.as_str())))
            .map_err(|_| no("its token is not understood".to_owned()))?;
        header.set_sensitive(true);
        let until = Instant::now() + Duration::from_secs(expires_in).saturating_sub(EARLY);
        Ok(Token { header, until })
    }

    fn secret(&self) -> Result<Zeroizing<String>, ClientError> {
        use std::io::Read as _;
        let path = &self.credential.secret_file;
        let mut text = Zeroizing::new(String::new());
        std::fs::File::open(path)
            .and_then(|file| file.take(SECRET_BYTES).read_to_string(&mut text))
            .map_err(|source| ClientError::Here {
                what: format!("cannot read the client secret from {}", path.display()),
                source,
            })?;
        // An editor adds a line feed; a secret has none.
        Ok(Zeroizing::new(text.trim_end_matches(['\n', '\r']).to_owned()))
    }
}

//! Values of the settings that have a form of their own. Each refuses what it cannot mean, and says what it would take.

use std::fmt;
use std::str::FromStr;

use argon2::password_hash::phc::PasswordHash;
use serde::Deserialize;
use uuid::Uuid;

/// `HOST:PORT`; port 0 lets the system choose (for tests).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Listen {
    /// A name or an address, without brackets.
    pub host: String,
    pub port: u16,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no HOST:PORT, such as localhost:8441 or [::]:8441");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let host = match bare {
            Some(address) => address.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?.to_string(),
            None if is_host(host) => host.to_ascii_lowercase(),
            None => return Err(wrong()),
        };
        Ok(Self { host, port })
    }
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_authority(f, &self.host, Some(self.port))
    }
}

/// `https://HOST[:PORT]`, nothing after it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PublicUrl {
    pub host: String,
    pub port: Option<u16>,
}

impl TryFrom<String> for PublicUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no https://HOST[:PORT] (the clients accept no plain http, and no path)");
        let authority = text.strip_prefix("https://").ok_or_else(wrong)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) = split_authority(authority).ok_or_else(wrong)?;
        Ok(Self { host, port })
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("https://")?;
        write_authority(f, &self.host, self.port)
    }
}

/// The host (lower case, no brackets) and port of a `Host` header or a URL; nothing for what is neither.
pub(crate) fn split_authority(text: &str) -> Option<(String, Option<u16>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        let address: std::net::Ipv6Addr = address.parse().ok()?;
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(port.parse().ok()?),
            None if rest.is_empty() => None,
            None => return None,
        };
        return Some((address.to_string(), port));
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok()?)),
        None => (text, None),
    };
    is_host(host).then(|| (host.to_ascii_lowercase(), port))
}

pub(crate) fn write_authority(
    f: &mut (impl fmt::Write + ?Sized),
    host: &str,
    port: Option<u16>,
) -> fmt::Result {
    if host.contains(':') {
        write!(f, "[{host}]")?;
    } else {
        f.write_str(host)?;
    }
    match port {
        Some(port) => write!(f, ":{port}"),
        None => Ok(()),
    }
}

/// A host name (RFC 1123) or an IPv4 address.
pub(crate) fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// A name or address the certificate is to be valid for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HostName(String);

impl HostName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for HostName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if let Ok(address) = text.parse::<std::net::IpAddr>() {
            return Ok(Self(address.to_string()));
        }
        if is_host(&text) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(format!("{text:?} is no host name and no address"))
        }
    }
}

/// Permissions of the socket, in octal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SocketMode(pub u32);

impl TryFrom<String> for SocketMode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match u32::from_str_radix(&text, 8) {
            Ok(mode) if mode & !0o666 == 0 && mode & 0o600 == 0o600 => Ok(Self(mode)),
            _ => Err(format!(
                "{text:?} is no mode for a socket: write \"0600\" (its owner), \"0660\" (owner and group) or \"0666\" (everybody on this host)"
            )),
        }
    }
}

/// A tenant's or subscription's id. Kept in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Guid(String);

impl Guid {
    pub fn random() -> Self {
        Self(Uuid::new_v4().to_string())
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Guid {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match Uuid::try_parse(&text) {
            Ok(id) if text.len() == 36 => Ok(Self(id.hyphenated().to_string())),
            _ => Err(format!("{text:?} is no GUID, such as 3f2504e0-4f89-41d3-9a0c-0305e82c3301")),
        }
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The argon2id hash of a principal's secret, as a PHC string. Its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SecretHash(String);

/// Bounds on what one sign-in may cost. 19 MiB and 2 passes are usual (RFC 9106; OWASP).
const MOST_MEMORY_KIB: u32 = 256 * 1024;
const MOST_PASSES: u32 = 16;
const MOST_LANES: u32 = 16;

impl SecretHash {
    pub(crate) fn phc(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SecretHash {
    type Error = String;

    /// The text itself is in no message: it may be the secret, put here by mistake.
    fn try_from(text: String) -> Result<Self, String> {
        const ADVICE: &str = "is no argon2id hash: make one with `kiln serve --hash-secret`, which reads the secret from its standard input";
        let hash = PasswordHash::new(&text).map_err(|_| ADVICE.to_owned())?;
        if hash.algorithm != argon2::ARGON2ID_IDENT || hash.salt.is_none() || hash.hash.is_none() {
            return Err(ADVICE.to_owned());
        }
        let params = argon2::Params::try_from(&hash).map_err(|_| ADVICE.to_owned())?;
        if params.m_cost() > MOST_MEMORY_KIB || params.t_cost() > MOST_PASSES || params.p_cost() > MOST_LANES
        {
            return Err(format!(
                "costs too much for each sign-in: at most m={MOST_MEMORY_KIB}, t={MOST_PASSES}, p={MOST_LANES}"
            ));
        }
        Ok(Self(text))
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(…)")
    }
}

/// Only so that tests can list the keys there are.
#[cfg(test)]
mod opaque {
    macro_rules! opaque {
        ($($name:ident),*) => {$(
            impl serde::Serialize for super::$name {
                fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    serializer.serialize_str(stringify!($name))
                }
            }
        )*};
    }
    opaque!(Listen, PublicUrl, HostName, SocketMode, Guid, SecretHash);
}

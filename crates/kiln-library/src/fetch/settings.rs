//! How to fetch: proxies, trust, patience.
//!
//! Nothing here reads the environment: the command's settings module does, and hands the values over.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use kiln_model::plan::redact_url;

use super::policy::AddressPolicy;

/// How files are fetched from other machines.
#[derive(Debug, Clone)]
pub struct FetchSettings {
    pub proxy: ProxySettings,
    /// Certificates (PEM) trusted beside the host's own.
    pub ca_file: Option<PathBuf>,
    /// For the name look-up, the connection and the TLS handshake together.
    pub connect_timeout: Duration,
    /// A transfer that brought less than `least_rate` over this time has stalled; so has a server whose answer does
    /// not begin in this time.
    pub stall_timeout: Duration,
    /// Bytes a second. A server that sends a byte now and then is as good as none.
    pub least_rate: u64,
    /// Requests for one file before giving up; at least 1 is made.
    pub attempts: u32,
    /// Pause after the first failed attempt. It doubles from there and is spread by chance, so that many builds do
    /// not come back in the same moment.
    pub first_pause: Duration,
    /// No pause is longer, whatever the server asks for.
    pub longest_pause: Duration,
    pub user_agent: String,
    pub addresses: AddressPolicy,
}

impl Default for FetchSettings {
    /// Ten attempts as Azure VM Image Builder makes them; without a proxy.
    fn default() -> Self {
        Self {
            proxy: ProxySettings::default(),
            ca_file: None,
            connect_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(30),
            least_rate: 64,
            attempts: 10,
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(15),
            user_agent: concat!("kiln/", env!("CARGO_PKG_VERSION")).to_owned(),
            addresses: AddressPolicy::Any,
        }
    }
}

/// Proxies, in the words of the usual environment variables. May hold a password: `Debug` does not show it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ProxySettings {
    /// For `http:` addresses (`HTTP_PROXY`).
    pub http: Option<String>,
    /// For `https:` addresses (`HTTPS_PROXY`).
    pub https: Option<String>,
    /// Hosts that are asked directly (`NO_PROXY`): names with all that ends in them, addresses, networks such as
    /// `10.0.0.0/8`, or `*`; separated by commas.
    pub direct: Option<String>,
}

impl ProxySettings {
    /// One proxy for everything.
    pub fn all(address: impl Into<String>) -> Self {
        let address = address.into();
        Self { http: Some(address.clone()), https: Some(address), direct: None }
    }
}

impl fmt::Debug for ProxySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxySettings")
            .field("http", &self.http.as_deref().map(redact_url))
            .field("https", &self.https.as_deref().map(redact_url))
            .field("direct", &self.direct)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_password_is_not_shown() {
        for address in ["http://me:CANARY@proxy:3128", "me:CANARY@proxy:3128"] {
            let shown =
                format!("{:?}", FetchSettings { proxy: ProxySettings::all(address), ..Default::default() });
            assert!(shown.contains("proxy:3128") && !shown.contains("CANARY"), "{shown}");
        }
    }
}

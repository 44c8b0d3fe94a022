//! The names this server answers to: what its certificate is valid for, and which `Host` headers are believed.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use super::{Config, DEFAULT_PORT, split_authority, write_authority};

/// Hosts of this server, and its address by itself. Clones share what is learned later.
#[derive(Debug, Clone)]
pub struct Names {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    known: RwLock<Known>,
    /// Set once the server listens: the port may have been the system's choice.
    listening: OnceLock<String>,
}

#[derive(Debug)]
struct Known {
    hosts: BTreeSet<String>,
    /// `publicUrl`, where one is set.
    public: Option<String>,
    expected: Option<String>,
}

impl Names {
    /// `host` is this host's own name.
    pub fn new(config: &Config, host: &str) -> Self {
        let known = RwLock::new(known(config, host));
        Self { shared: Arc::new(Shared { known, listening: OnceLock::new() }) }
    }

    /// Takes the names of a configuration that was read again; the certificate follows with the next connection.
    pub fn reload(&self, config: &Config) {
        *self.shared.known.write().unwrap_or_else(PoisonError::into_inner) =
            known(config, &Self::host_name());
    }

    /// This host's own name, as the kernel has it.
    pub fn host_name() -> String {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    }

    /// Lower case, addresses without brackets; in order.
    pub fn hosts(&self) -> Vec<String> {
        self.with(|known| known.hosts.iter().cloned().collect())
    }

    pub fn contains(&self, host: &str) -> bool {
        self.with(|known| known.hosts.contains(&host.to_ascii_lowercase()))
    }

    /// The address to give to somebody who has none yet: `publicUrl`, or `https://localhost:PORT`; without TCP
    /// `http://localhost`, which means something on the socket only.
    pub fn url(&self) -> String {
        self.with(|known| {
            let own = || self.shared.listening.get().or(known.expected.as_ref());
            known.public.as_ref().or_else(own).cloned().unwrap_or_else(|| "http://localhost".to_owned())
        })
    }

    /// The base of absolute addresses in an answer: what the client calls us, if that is a name of ours (nobody can make
    /// us send others elsewhere by a `Host` header), else [`Self::url`]. `authority` is the header, or HTTP/2's
    /// `:authority`; none for a client on the Unix socket.
    pub fn base_url(&self, authority: Option<&str>) -> String {
        let Some((host, port)) = authority.and_then(split_authority) else { return self.url() };
        if !self.contains(&host) {
            return self.url();
        }
        let mut url = "https://".to_owned();
        // Writing to a String cannot fail.
        let _ = write_authority(&mut url, &host, port);
        url
    }

    /// Called by `serve`, once, with the port that TCP got.
    pub(crate) fn listening_on(&self, port: u16) {
        let _ = self.shared.listening.set(localhost(port));
    }

    fn with<T>(&self, read: impl FnOnce(&Known) -> T) -> T {
        read(&self.shared.known.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn known(config: &Config, host: &str) -> Known {
    let mut hosts: BTreeSet<String> =
        ["localhost", "127.0.0.1", "::1"].into_iter().map(str::to_owned).collect();
    if super::values::is_host(host) {
        hosts.insert(host.to_ascii_lowercase());
    }
    hosts.extend(config.tls.names.iter().map(|name| name.as_str().to_owned()));
    hosts.extend(config.public_url.iter().map(|url| url.host.clone()));
    let every = ["0.0.0.0", "::"];
    let named = config.listen.iter().map(|listen| listen.host.clone());
    hosts.extend(named.filter(|host| !every.contains(&host.as_str())));
    let port = config.listen.first().map(|listen| listen.port);
    Known {
        hosts,
        public: config.public_url.as_ref().map(ToString::to_string),
        expected: port.map(|port| localhost(if port == 0 { DEFAULT_PORT } else { port })),
    }
}

fn localhost(port: u16) -> String {
    format!("https://localhost:{port}")
}

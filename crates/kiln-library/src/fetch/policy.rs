//! Which hosts may be fetched from.
//!
//! A server that fetches what its clients name must not be their way to what only this host can reach: services on
//! loopback, the metadata service of a cloud. Addresses are checked where they are final: each literal one in an address
//! or a redirect before it is asked, each answer of the name service before it is connected to. A name that changes its
//! answer in between gains nothing.
//!
//! Private networks (10/8, fd00::/8, …) stay allowed: that is where the file server of a lab is. Behind a proxy, it is
//! the proxy that looks names up: literal addresses are still checked here, names are the proxy's to judge.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::settings::FetchSettings;
use crate::FetchError;

/// Whom a fetch may ask.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AddressPolicy {
    /// Whoever answers: for people who fetch for themselves.
    #[default]
    Any,
    /// Nobody on loopback or link-local addresses, nor what else is not an ordinary host: for servers.
    Public,
}

/// An address that policy forbids. In the chain of the HTTP client's error, told apart by its type.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{name} has the address {address}, {what}")]
pub(super) struct Refused {
    name: String,
    address: IpAddr,
    what: &'static str,
}

impl Refused {
    pub fn into_error(self, host: String) -> FetchError {
        FetchError::Forbidden { host, address: self.address, what: self.what }
    }
}

impl AddressPolicy {
    /// Checks a host that is given by its address. Names are checked by [`Resolver`].
    pub(super) fn check(self, url: &Url) -> Result<(), FetchError> {
        let host = url.host_str().unwrap_or_default();
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        match literal.ok().and_then(|address| Some((address, self.objection(address)?))) {
            Some((address, what)) => {
                Err(FetchError::Forbidden { host: super::http::host(url), address, what })
            }
            None => Ok(()),
        }
    }

    fn objection(self, address: IpAddr) -> Option<&'static str> {
        match (self, address) {
            (Self::Any, _) => None,
            (Self::Public, IpAddr::V4(address)) => objection_v4(address),
            (Self::Public, IpAddr::V6(address)) => objection_v6(address),
        }
    }
}

fn objection_v4(address: Ipv4Addr) -> Option<&'static str> {
    // Azure's platform service, for the virtual machine it is asked from.
    const WIRE_SERVER: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
    if address.is_loopback() {
        Some("of this host itself")
    } else if address.is_link_local() {
        Some("a link-local one")
    } else if address.octets()[0] == 0 {
        // Linux connects to this host.
        Some("of this host itself")
    } else if address.is_multicast() || address.is_broadcast() {
        Some("no single host's")
    } else if address == WIRE_SERVER {
        Some("of a cloud's metadata service")
    } else {
        None
    }
}

fn objection_v6(address: Ipv6Addr) -> Option<&'static str> {
    const AWS_METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    if address.is_loopback() || address.is_unspecified() {
        return Some("of this host itself");
    }
    if address.is_unicast_link_local() {
        return Some("a link-local one");
    }
    if address.is_multicast() {
        return Some("no single host's");
    }
    if address == AWS_METADATA {
        return Some("of a cloud's metadata service");
    }
    embedded_v4(address).and_then(objection_v4)
}

/// The IPv4 address that traffic to this one would reach: mapped, compatible, NAT64, 6to4.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let low = || {
        let ([a, b], [c, d]) = (g.to_be_bytes(), h.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match (a, b, c, d, e, f) {
        (0, 0, 0, 0, 0, 0xffff | 0) | (0x64, 0xff9b, 0, 0, 0, 0) => Some(low()),
        (0x2002, ..) => {
            let ([x, y], [z, w]) = (b.to_be_bytes(), c.to_be_bytes());
            Some(Ipv4Addr::new(x, y, z, w))
        }
        _ => None,
    }
}

/// Looks names up as the host does, and drops the answers that policy forbids.
pub(super) struct Resolver {
    policy: AddressPolicy,
    /// Proxies are the operator's choice, wherever they are.
    proxies: Vec<String>,
}

impl Resolver {
    pub fn new(settings: &FetchSettings) -> Arc<Self> {
        let proxies = [&settings.proxy.http, &settings.proxy.https].into_iter().flatten();
        let host = |proxy: &String| {
            let url = Url::parse(proxy).or_else(|_| Url::parse(&format!("http://{proxy}")));
            url.ok().and_then(|url| url.host_str().map(str::to_owned))
        };
        Arc::new(Self { policy: settings.addresses, proxies: proxies.filter_map(host).collect() })
    }

    /// Whether a file's own address names a proxy: it is not to be asked under the proxy's privilege.
    pub fn is_proxy(&self, url: &Url) -> bool {
        url.host_str().is_some_and(|host| self.proxies.iter().any(|proxy| proxy.eq_ignore_ascii_case(host)))
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let free = self.proxies.iter().any(|proxy| proxy.eq_ignore_ascii_case(name.as_str()));
        let policy = if free { AddressPolicy::Any } else { self.policy };
        Box::pin(async move {
            let name = name.as_str().to_owned();
            let asked = name.clone();
            // The same look-up that the client would make: hosts file, name service switch and all.
            let answers =
                tokio::task::spawn_blocking(move || (asked.as_str(), 0).to_socket_addrs()).await??;
            let answers: Vec<SocketAddr> = answers.collect();
            let objection = answers.iter().find_map(|answer| {
                let what = policy.objection(answer.ip())?;
                Some(Refused { name: name.clone(), address: answer.ip(), what })
            });
            let allowed: Vec<SocketAddr> =
                answers.into_iter().filter(|answer| policy.objection(answer.ip()).is_none()).collect();
            match objection {
                Some(refused) if allowed.is_empty() => Err(refused.into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_ordinary_host_is_told_by_its_address() {
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert!(AddressPolicy::Public.objection(address).is_some(), "{address}");
            assert!(AddressPolicy::Any.objection(address).is_none(), "{address}");
        }
        for address in [
            "10.0.0.1",
            "192.168.1.1",
            "172.16.0.1",
            "1.1.1.1",
            "168.63.129.17",
            "2606:4700::1",
            "fd12::1",
            "::ffff:10.0.0.1",
            "64:ff9b::101:101",
            "2002:101:101::1",
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert!(AddressPolicy::Public.objection(address).is_none(), "{address}");
        }
    }

    #[test]
    fn literal_addresses_are_known_in_every_spelling() {
        for url in [
            "http://127.0.0.1/a",
            "http://2130706433/a",
            "http://0x7f.1/a",
            "http://0177.0.0.1/a",
            "http://127.1/",
            "http://[::1]:8080/a",
            "http://[::ffff:7f00:1]/a",
            "https://user@169.254.169.254/a",
            "http://127.0.0.1./a",
        ] {
            let url = Url::parse(url).unwrap();
            let error = AddressPolicy::Public.check(&url).expect_err(url.as_str());
            assert!(matches!(error, FetchError::Forbidden { .. }), "{url}: {error}");
            assert!(!error.is_transient(), "asked once");
            assert!(AddressPolicy::Any.check(&url).is_ok());
        }
        for url in ["http://10.0.0.1/a", "http://localhost/a", "http://h/a"] {
            assert!(
                AddressPolicy::Public.check(&Url::parse(url).unwrap()).is_ok(),
                "{url}: a name is looked up"
            );
        }
    }
}

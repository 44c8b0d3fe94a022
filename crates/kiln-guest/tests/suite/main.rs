//! The communicator against a real OpenSSH server on a loopback port, with a proxy in between that breaks things.
//!
//! The server runs as whoever runs the tests, with a configuration, keys and a home directory of its own. Without
//! `sshd` these tests say so and pass: `scripts/setup.sh` installs it, and `make test` runs after that.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests panic and print; clippy takes only functions with the attribute for tests"
)]

mod connect;
mod exec;
mod proxy;
mod real_guest;
mod server;
mod step;
mod upload;
mod winrm_lab;

use std::time::Duration;

use kiln_guest::{Guest, Limits};
use kiln_host::wait::Control;

/// Nothing here takes longer, on any machine.
fn control() -> Control {
    Control::ending_in(Duration::from_secs(60))
}

/// Limits that let a test see their end, with room for a machine that is busy with other things.
fn short() -> Limits {
    Limits {
        banner: Duration::from_secs(3),
        first_banner: Duration::from_secs(3),
        handshake: Duration::from_secs(5),
        wrong_host_key: Duration::from_millis(300),
        refused_login: Duration::from_millis(500),
        keep_alive: Duration::from_secs(2),
        reconnect: Duration::from_secs(10),
    }
}

/// A server, a proxy before it, and a guest connected through both.
struct Lab {
    server: server::Server,
    proxy: proxy::Proxy,
    guest: Guest,
}

impl Lab {
    async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    async fn start_with(env: &[(&str, &str)]) -> Option<Self> {
        Self::start_within(short(), env).await
    }

    /// A dead link is found within a second.
    async fn start_watchful() -> Option<Self> {
        Self::start_within(Limits { keep_alive: Duration::from_millis(250), ..short() }, &[]).await
    }

    async fn start_within(limits: Limits, env: &[(&str, &str)]) -> Option<Self> {
        let server = server::Server::start(env).await?;
        let proxy = proxy::Proxy::start(server.addr()).await;
        let login = server.login(proxy.addr());
        let guest = Guest::connect_with(login, limits, |_| (), &control()).await.unwrap();
        Some(Self { server, proxy, guest })
    }
}

/// Waits for something that has no event, for instance a file made by a process in the "guest".
async fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited in vain");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

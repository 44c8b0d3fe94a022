//! Telling systemd how a service is (sd_notify(3)): one datagram for each change.
//!
//! Nothing is told where nobody asked, and a message that does not arrive is no reason to fail.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

pub struct Notifier {
    to: Option<(UnixDatagram, SocketAddr)>,
}

impl Notifier {
    /// `address` is `NOTIFY_SOCKET`: a path, or `@` and an abstract name.
    pub fn new(address: Option<&Path>) -> Self {
        let to = address.and_then(|address| {
            let address = match address.as_os_str().as_bytes().strip_prefix(b"@") {
                Some(name) => SocketAddr::from_abstract_name(name).ok()?,
                None => SocketAddr::from_pathname(address).ok()?,
            };
            Some((UnixDatagram::unbound().ok()?, address))
        });
        Self { to }
    }

    /// It serves; `status` is shown by `systemctl status`.
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={}", status.replace('\n', " ")));
    }

    /// It reads its configuration again; [`Notifier::ready`] follows.
    pub fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let microseconds = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }

    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=shutting down; workers go on");
    }

    fn tell(&self, message: &str) {
        if let Some((socket, address)) = &self.to
            && let Err(error) = socket.send_to_addr(message.as_bytes(), address)
        {
            tracing::warn!("systemd could not be told: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn received(socket: &UnixDatagram) -> String {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn each_change_is_one_datagram() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(Some(&path));
        notifier.ready("serving\nhttps://localhost");
        assert_eq!(received(&systemd), "READY=1\nSTATUS=serving https://localhost");
        notifier.reloading();
        let text = received(&systemd);
        let time = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(time.parse::<u64>().unwrap() > 0);
        notifier.stopping();
        assert!(received(&systemd).starts_with("STOPPING=1\n"));
    }

    #[test]
    fn an_abstract_address_is_one_too() {
        let name = format!("kiln-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let systemd = UnixDatagram::bind_addr(&address).unwrap();
        Notifier::new(Some(Path::new(&format!("@{name}")))).ready("x");
        assert_eq!(received(&systemd), "READY=1\nSTATUS=x");
    }

    #[test]
    fn nobody_listening_is_no_failure() {
        Notifier::new(None).ready("x");
        Notifier::new(Some(Path::new("/nonexistent/notify"))).stopping();
    }
}

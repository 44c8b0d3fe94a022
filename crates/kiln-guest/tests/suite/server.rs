//! A real `sshd` for one test.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_guest::{KeyPair, Login, PublicKey};
use kiln_host::process::{Child, Invocation, Sink, SpawnOptions, find_program};

pub struct Server {
    dir: tempfile::TempDir,
    addr: SocketAddr,
    host_key: PublicKey,
    client_key: KeyPair,
    _process: Child,
}

/// The tests' own look at the environment.
#[expect(clippy::disallowed_methods, reason = "the settings of these tests")]
pub fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn search_path() -> OsString {
    format!("{}:/usr/sbin:/sbin", setting("PATH").unwrap_or_default()).into()
}

impl Server {
    /// `None` where there is no sshd; the reason is printed. `env` is added to what its sessions get.
    pub async fn start(env: &[(&str, &str)]) -> Option<Self> {
        let Some(sshd) = find_program("sshd", &search_path()) else {
            println!("SKIPPED: no sshd here (apt-get install openssh-server)");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let host = KeyPair::generate().unwrap();
        let client = KeyPair::generate().unwrap();
        write(&dir.path().join("host_key"), host.private_openssh().unwrap().expose(), 0o600);
        write(&dir.path().join("authorized_keys"), &format!("{}\n", client.public_openssh()), 0o600);
        let home = dir.path().join("home");
        std::fs::create_dir(&home).unwrap();
        if whoami_is_root() {
            // sshd insists on it when it starts as root; the Debian package makes it when the service starts.
            std::fs::create_dir_all("/run/sshd").unwrap();
        }
        let env: String = env.iter().map(|(name, value)| format!(" \"{name}={value}\"")).collect();
        for _ in 0..5 {
            let port = free_port();
            let config = format!(
                "ListenAddress 127.0.0.1:{port}\nHostKey {dir}/host_key\nAuthorizedKeysFile {dir}/authorized_keys\n\
                 PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n\
                 MaxStartups 100\nMaxSessions 100\nLogLevel VERBOSE\nSubsystem sftp internal-sftp\n\
                 SetEnv HOME={home}{env}\n",
                dir = dir.path().display(),
                home = home.display(),
            );
            write(&dir.path().join("config"), &config, 0o600);
            let process = Invocation::new(&sshd)
                .args(["-D", "-e", "-f"])
                .arg(dir.path().join("config"))
                .spawn(SpawnOptions {
                    stdout: Sink::Null,
                    stderr: Sink::File(std::fs::File::create(dir.path().join("log")).unwrap()),
                    ..SpawnOptions::default()
                })
                .unwrap();
            let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            // Another process may have taken the port meanwhile: then this one ends and the next try takes another.
            while process.status().is_none() {
                if tokio::net::TcpStream::connect(addr).await.is_ok() {
                    return Some(Self {
                        addr,
                        host_key: host.public(),
                        client_key: client,
                        _process: process,
                        dir,
                    });
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        panic!("sshd does not start: {}", std::fs::read_to_string(dir.path().join("log")).unwrap());
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The right login, at the server itself or at a proxy before it.
    pub fn login(&self, addr: SocketAddr) -> Login {
        Login { user: user(), key: self.client_key.clone(), host_key: self.host_key.clone(), addr }
    }

    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    pub fn authorize(&self, key: &KeyPair) {
        write(&self.dir.path().join("authorized_keys"), &format!("{}\n", key.public_openssh()), 0o600);
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }
}

pub fn user() -> String {
    Invocation::new("id").arg("-un").run_blocking().unwrap().stdout_text().trim().to_owned()
}

pub fn whoami_is_root() -> bool {
    Invocation::new("id").arg("-u").run_blocking().unwrap().stdout_text().trim() == "0"
}

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn free_port() -> u16 {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

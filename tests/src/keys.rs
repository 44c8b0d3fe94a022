//! Key pairs by OpenSSH's own program, and cloud-init media by mtools: for guests that
//! a test boots itself.

use std::path::{Path, PathBuf};

use crate::program::output;

/// An ed25519 key pair in two files.
#[derive(Debug)]
pub struct KeyPair {
    pub private: PathBuf,
}

impl KeyPair {
    pub fn generate(private: PathBuf) -> Self {
        let path = private.to_str().unwrap();
        output("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "check", "-f", path]);
        Self { private }
    }

    pub fn private_text(&self) -> String {
        std::fs::read_to_string(&self.private).unwrap()
    }

    pub fn public_text(&self) -> String {
        let text = std::fs::read_to_string(self.private.with_extension("pub")).unwrap();
        text.trim().to_owned()
    }
}

/// An ISO 9660 volume labelled CIDATA (cloud-init's NoCloud datasource) that makes the
/// account `user` with `login` and gives the guest `host` as its host key.
pub fn seed_medium(folder: &Path, user: &str, login: &KeyPair, host: &KeyPair) -> PathBuf {
    let data = serde_json::json!({
        "users": [{
            "name": user,
            "sudo": "ALL=(ALL) NOPASSWD:ALL",
            "shell": "/bin/bash",
            "ssh_authorized_keys": [login.public_text()],
        }],
        "ssh_genkeytypes": [],
        "ssh_keys": { "ed25519_private": host.private_text(), "ed25519_public": host.public_text() },
    });
    let (user_data, meta_data) = (folder.join("user-data"), folder.join("meta-data"));
    std::fs::write(&user_data, format!("#cloud-config\n{data:#}\n")).unwrap();
    std::fs::write(&meta_data, "{\"instance-id\": \"check\"}\n").unwrap();
    let medium = folder.join("seed.iso");
    let [to, user_data, meta_data] = [&medium, &user_data, &meta_data].map(|path| path.to_str().unwrap());
    output("genisoimage", ["-quiet", "-V", "CIDATA", "-r", "-J", "-o", to, user_data, meta_data]);
    medium
}

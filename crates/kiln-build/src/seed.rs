//! First contact: what cloud-init is told, so that a build can log in.
//!
//! The account, its key and the guest's host key are an *input* of the media: the
//! guest's identity is ours before it boots, and is checked when we connect
//! (INVARIANT: nobody sits in the middle). Only the modules a build needs run, which
//! saves boot time; the image's own configuration is not touched by that, since user
//! data belongs to this boot alone and is removed with /var/lib/cloud.
//!
//! Format: cloud-init's NoCloud datasource (user-data, meta-data) on an ISO 9660
//! volume labelled CIDATA. The user data is JSON, which is YAML.

use kiln_guest::keys::{KeyError, KeyPair};
use serde_json::json;

/// The name of the build's account, as Azure's service has it: scripts know it.
pub const BUILD_USER: &str = "packer";

/// Chooses NoCloud by the machine's serial number (cloud-init's ds-identify), so
/// that the image's list of datasources stays as Azure needs it.
pub const SMBIOS_SERIAL: &str = "ds=nocloud";

/// The files of the medium.
pub struct SeedFiles {
    pub user_data: String,
    pub meta_data: String,
}

pub fn files(instance_id: &str, login: &KeyPair, host: &KeyPair) -> Result<SeedFiles, KeyError> {
    let private = host.private_openssh()?;
    Ok(SeedFiles {
        user_data: user_data(&login.public_openssh(), private.expose(), &host.public_openssh()),
        meta_data: format!("{:#}\n", json!({ "instance-id": instance_id })),
    })
}

/// What a first boot is told by it, whatever the keys.
pub fn fingerprint() -> String {
    user_data("LOGIN", "PRIVATE", "PUBLIC")
}

fn user_data(login: &str, host_private: &str, host_public: &str) -> String {
    let user_data = json!({
        "users": [{
            "name": BUILD_USER,
            "gecos": "image build",
            "sudo": "ALL=(ALL) NOPASSWD:ALL",
            "shell": "/bin/bash",
            "lock_passwd": true,
            "ssh_authorized_keys": [login],
        }],
        "ssh_deletekeys": true,
        "ssh_genkeytypes": [],
        "ssh_keys": {
            "ed25519_private": host_private,
            "ed25519_public": host_public,
        },
        "cloud_init_modules": ["growpart", "resizefs", "users-groups", "ssh"],
        "cloud_config_modules": [],
        "cloud_final_modules": [],
    });
    format!("#cloud-config\n{user_data:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_is_cloud_config_with_both_keys() {
        let (login, host) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let files = files("run-1", &login, &host).unwrap();
        let (first, rest) = files.user_data.split_once('\n').unwrap();
        assert_eq!(first, "#cloud-config");
        let data: serde_json::Value = serde_json::from_str(rest).unwrap();
        assert_eq!(data["users"][0]["ssh_authorized_keys"][0], login.public_openssh());
        assert_eq!(data["ssh_keys"]["ed25519_public"], host.public_openssh());
        assert!(
            !files.user_data.contains(login.private_openssh().unwrap().expose()),
            "the login's private half stays here"
        );
        assert!(files.meta_data.contains("run-1"));
    }
}

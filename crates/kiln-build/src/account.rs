//! The account of one build in a Windows guest: made for the run and gone before the image is, or the image's own.

use kiln_guest::os::windows::bootstrap::{Account, Undoing};
use kiln_guest::os::windows::renew::Passwords;
use kiln_model::catalog::Credentials;
use zeroize::Zeroizing;

use crate::password_file::{self, PasswordFileError};

/// Name, passwords and nonce of a build. Passwords are wiped and never shown.
pub struct BuildAccount {
    pub user: String,
    password: Zeroizing<String>,
    /// In every line that this build's texts write to the serial port.
    pub nonce: String,
    origin: Origin,
}

enum Origin {
    /// By the answer file, for this run.
    Made { administrator_password: Zeroizing<String> },
    /// The image had it, and keeps it.
    Image,
}

impl BuildAccount {
    /// An account with random passwords (122 bits each) that fit Windows' rules for complex ones.
    pub fn generate(user: &str) -> Self {
        Self {
            user: user.to_owned(),
            password: password(),
            nonce: nonce(),
            origin: Origin::Made { administrator_password: password() },
        }
    }

    /// The account that an installed Windows has, with the password from its file.
    ///
    /// # Errors
    /// The file is no password file.
    pub fn of_image(credentials: &Credentials) -> Result<Self, PasswordFileError> {
        Ok(Self {
            user: credentials.user().to_owned(),
            password: password_file::read(credentials.password_file())?,
            nonce: nonce(),
            origin: Origin::Image,
        })
    }

    pub fn password(&self) -> &str {
        &self.password
    }

    /// What nobody else may come to know.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        let other = match &self.origin {
            Origin::Made { administrator_password } => Some(administrator_password.as_str()),
            Origin::Image => None,
        };
        std::iter::once(self.password.as_str()).chain(other)
    }

    /// Those that were made for this run; `None` where the account is the image's own.
    pub fn made(&self) -> Option<Passwords<'_>> {
        match &self.origin {
            Origin::Made { administrator_password } => {
                Some(Passwords { own: &self.password, administrator: administrator_password })
            }
            Origin::Image => None,
        }
    }

    /// For the answer file; `None` where there is none.
    pub fn to_be_made(&self) -> Option<Account<'_>> {
        match &self.origin {
            Origin::Made { administrator_password } => {
                Some(Account { user: &self.user, password: &self.password, administrator_password })
            }
            Origin::Image => None,
        }
    }

    /// What of this Windows goes with the build.
    pub fn undoing(&self) -> Undoing<'_> {
        match self.origin {
            Origin::Made { .. } => Undoing::Bootstrap { user: &self.user },
            Origin::Image => Undoing::BuildOnly,
        }
    }
}

fn nonce() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// Upper and lower case, digits and a sign, whatever the random part is.
fn password() -> Zeroizing<String> {
    let random = Zeroizing::new(uuid::Uuid::new_v4().simple().to_string());
    Zeroizing::new(format!("Kiln-{}7", *random))
}

impl std::fmt::Debug for BuildAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BuildAccount").field("user", &self.user).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use kiln_model::catalog::Listener;

    use super::*;

    #[test]
    fn each_build_has_its_own_and_shows_none() {
        let (one, two) = (BuildAccount::generate("packer"), BuildAccount::generate("packer"));
        assert_ne!(one.password(), two.password());
        assert_ne!(one.password(), one.to_be_made().unwrap().administrator_password);
        assert_ne!(one.nonce, two.nonce);
        for kind in [char::is_uppercase, char::is_lowercase, char::is_numeric] as [fn(char) -> bool; 3] {
            assert!(one.password().chars().any(kind));
        }
        assert!(!format!("{one:?}").contains(one.password()));
        assert_eq!(one.secrets().count(), 2);
        assert_eq!(one.made().unwrap().own, one.password());
        assert_eq!(one.undoing(), Undoing::Bootstrap { user: "packer" });
    }

    #[test]
    fn an_images_own_account_is_neither_made_nor_removed_nor_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "canary 7\n").unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o640)).unwrap();
        let credentials = Credentials::new("u".into(), file.path().into(), Listener::Http, None).unwrap();
        let account = BuildAccount::of_image(&credentials).unwrap();
        assert!(account.to_be_made().is_none() && account.made().is_none());
        assert_eq!(account.undoing(), Undoing::BuildOnly);
        assert_eq!(account.secrets().collect::<Vec<_>>(), ["canary 7"]);
        assert!(!format!("{account:?}").contains("canary"));
    }
}

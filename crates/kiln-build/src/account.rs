//! The account of one build in a Windows guest: made for the run, gone before the image is.

use kiln_guest::os::windows::bootstrap::Account;
use zeroize::Zeroizing;

/// Name, passwords and nonce of a build. Passwords are wiped and never shown.
pub struct BuildAccount {
    pub user: String,
    password: Zeroizing<String>,
    administrator_password: Zeroizing<String>,
    /// In every line that this build's texts write to the serial port.
    pub nonce: String,
}

impl BuildAccount {
    /// An account with random passwords (122 bits each) that fit Windows' rules for complex ones.
    pub fn generate(user: &str) -> Self {
        Self {
            user: user.to_owned(),
            password: password(),
            administrator_password: password(),
            nonce: uuid::Uuid::new_v4().simple().to_string(),
        }
    }

    pub fn password(&self) -> &str {
        &self.password
    }

    /// What nobody else may come to know.
    pub fn secrets(&self) -> [&str; 2] {
        [&self.password, &self.administrator_password]
    }

    /// For the answer file.
    pub fn account(&self) -> Account<'_> {
        Account {
            user: &self.user,
            password: &self.password,
            administrator_password: &self.administrator_password,
        }
    }
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
    use super::*;

    #[test]
    fn each_build_has_its_own_and_shows_none() {
        let (one, two) = (BuildAccount::generate("packer"), BuildAccount::generate("packer"));
        assert_ne!(one.password(), two.password());
        assert_ne!(one.password(), one.account().administrator_password);
        assert_ne!(one.nonce, two.nonce);
        for kind in [char::is_uppercase, char::is_lowercase, char::is_numeric] as [fn(char) -> bool; 3] {
            assert!(one.password().chars().any(kind));
        }
        assert!(!format!("{one:?}").contains(one.password()));
    }
}

//! Who a program runs as, when that is not who we are.

use std::path::PathBuf;

use rustix::process::{Gid, Uid};

use super::{Invocation, ProcessError};

/// A user of this host, with the groups it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    pub(super) groups: Vec<Gid>,
    name: String,
    home: PathBuf,
}

/// A user could not be looked up.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("this host has no user {user:?}")]
    Unknown { user: String, source: ProcessError },
    #[error("cannot look up the user {user:?}")]
    Lookup { user: String, source: ProcessError },
    #[error("what getent(1) and id(1) say of the user {user:?} is not understood")]
    Foreign { user: String },
}

impl Identity {
    /// The user called `user`, wherever this host keeps its users: its own tools are asked.
    pub fn of(user: &str) -> Result<Self, IdentityError> {
        let foreign = || IdentityError::Foreign { user: user.to_owned() };
        let entry = match Invocation::new("getent").args(["passwd", user]).run_blocking() {
            Ok(output) => output.stdout_text(),
            // "One or more supplied key could not be found in the database" (getent(1)).
            Err(source @ ProcessError::Failed { code: Some(2), .. }) => {
                return Err(IdentityError::Unknown { user: user.to_owned(), source });
            }
            Err(source) => return Err(IdentityError::Lookup { user: user.to_owned(), source }),
        };
        // name:password:uid:gid:gecos:home:shell (passwd(5)).
        let fields: Vec<&str> = entry.trim_end().split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields[..] else { return Err(foreign()) };
        let groups = Invocation::new("id")
            .args(["-G", name])
            .run_blocking()
            .map_err(|source| IdentityError::Lookup { user: user.to_owned(), source })?
            .stdout_text();
        let number = |text: &str| text.parse::<u32>().map_err(|_| foreign());
        let groups = groups.split_whitespace().map(|group| number(group).map(Gid::from_raw));
        Ok(Self {
            uid: Uid::from_raw(number(uid)?),
            gid: Gid::from_raw(number(gid)?),
            groups: groups.collect::<Result<_, _>>()?,
            name: name.to_owned(),
            home: home.into(),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }
    pub fn home(&self) -> &std::path::Path {
        &self.home
    }
    pub fn uid(&self) -> u32 {
        self.uid.as_raw()
    }
    pub fn gid(&self) -> u32 {
        self.gid.as_raw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_looked_up_by_the_hosts_own_tools() {
        let root = Identity::of("root").unwrap();
        assert_eq!((root.uid(), root.gid(), root.name()), (0, 0, "root"));
        assert!(root.groups.contains(&Gid::from_raw(0)));
        assert!(root.home().is_absolute());
        let error = Identity::of("kiln-nobody-has-this").unwrap_err();
        assert!(matches!(error, IdentityError::Unknown { .. }), "{error}");
    }
}

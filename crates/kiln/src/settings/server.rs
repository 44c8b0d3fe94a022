//! Settings of `kiln serve`, and of the commands that talk to a server.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};

use super::Environment;
use crate::args;

/// Where a server is, as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `https://host[:port]`, without a slash at its end.
    Https(String),
    Unix(PathBuf),
}

impl Address {
    /// # Errors
    /// Neither form. Plain HTTP is refused: a secret would cross the network as it is.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                bail!("unix: is followed by the path of a socket");
            }
            return Ok(Self::Unix(std::path::absolute(path)?));
        }
        let base = text.trim_end_matches('/');
        match base.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") && !rest.is_empty() => {
                if rest.contains(['/', '?', '#', '@']) {
                    bail!("a server's address is https://HOST or https://HOST:PORT and nothing more");
                }
                Ok(Self::Https(base.to_owned()))
            }
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("http") => {
                bail!("a server is reached by https:// or by unix:PATH, never by plain http://")
            }
            _ => bail!("a server's address is https://HOST[:PORT] or unix:PATH"),
        }
    }
}

/// Which server a command talks to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerChoice {
    Given(Address),
    /// The one of this host, if one runs.
    Find,
}

/// Who signs in to a server that does not know us by its socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    pub client_id: String,
    /// Read when it is needed, never kept.
    pub secret_file: PathBuf,
}

#[derive(Debug, Clone)]
pub struct ServerSettings {
    pub choice: ServerChoice,
    pub ca_file: Option<PathBuf>,
    pub credential: Option<Credential>,
    pub subscription: Option<String>,
    pub resource_group: Option<String>,
}

impl ServerSettings {
    pub fn resolve(args: args::ServerArgs, environment: &Environment) -> anyhow::Result<Self> {
        let args::ServerArgs { server, ca_file, subscription, resource_group } = args;
        let choice = match (server, &environment.kiln_server) {
            (Some(given), _) => ServerChoice::Given(Address::parse(&given).context("--server")?),
            (None, Some(given)) => {
                let given = given.to_str().ok_or_else(|| anyhow!("KILN_SERVER is not UTF-8 text"))?;
                ServerChoice::Given(Address::parse(given).context("KILN_SERVER")?)
            }
            (None, None) => ServerChoice::Find,
        };
        let ca_file = ca_file.or_else(|| environment.kiln_ca_file.as_ref().map(PathBuf::from));
        let credential = match (&environment.kiln_client_id, &environment.kiln_client_secret_file) {
            (Some(id), Some(file)) => Some(Credential {
                client_id: id.to_str().ok_or_else(|| anyhow!("KILN_CLIENT_ID is not UTF-8 text"))?.to_owned(),
                secret_file: file.into(),
            }),
            (None, None) => None,
            (Some(_), None) => bail!("KILN_CLIENT_ID is set, KILN_CLIENT_SECRET_FILE is not"),
            (None, Some(_)) => bail!("KILN_CLIENT_SECRET_FILE is set, KILN_CLIENT_ID is not"),
        };
        Ok(Self { choice, ca_file, credential, subscription, resource_group })
    }
}

/// What `kiln serve` was told besides its configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServeSettings {
    pub config: Option<PathBuf>,
    /// Wins over the file; `KILN_DATA` counts here.
    pub data: Option<PathBuf>,
    pub listen: Vec<String>,
    pub socket: Option<PathBuf>,
}

impl ServeSettings {
    pub fn resolve(args: args::ServeArgs, environment: &Environment) -> anyhow::Result<Self> {
        // The two that print something are no settings of a server.
        let args::ServeArgs { config, data, listen, socket, example_config: _, hash_secret: _ } = args;
        let absolute = |path: PathBuf| {
            std::path::absolute(&path).with_context(|| format!("{} is no usable path", path.display()))
        };
        Ok(Self {
            config: config
                .or_else(|| environment.kiln_config.as_ref().map(PathBuf::from))
                .map(absolute)
                .transpose()?,
            data: data
                .or_else(|| environment.kiln_data.as_ref().map(PathBuf::from))
                .map(absolute)
                .transpose()?,
            listen,
            socket: socket.map(absolute).transpose()?,
        })
    }
}

/// Where systemd wants to hear of the service's state (sd_notify(3)).
pub fn notify_socket(environment: &Environment) -> Option<&Path> {
    environment.notify_socket.as_deref().map(Path::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_https_or_a_socket() {
        for (text, address) in [
            ("https://localhost:8441", Some(Address::Https("https://localhost:8441".into()))),
            ("https://kiln.example/", Some(Address::Https("https://kiln.example".into()))),
            ("HTTPS://[::1]:8441", Some(Address::Https("HTTPS://[::1]:8441".into()))),
            ("unix:/run/kiln/kiln.sock", Some(Address::Unix("/run/kiln/kiln.sock".into()))),
            ("unix:///run/kiln/kiln.sock", Some(Address::Unix("/run/kiln/kiln.sock".into()))),
            ("http://localhost:8441", None),
            ("https://", None),
            ("https://me:secret@host", None),
            ("https://host/path", None),
            ("https://host?sig=x", None),
            ("unix:", None),
            ("localhost:8441", None),
            ("", None),
        ] {
            assert_eq!(Address::parse(text).ok(), address, "{text:?}");
        }
    }

    #[test]
    fn a_flag_wins_over_the_environment() {
        let none =
            || args::ServerArgs { server: None, ca_file: None, subscription: None, resource_group: None };
        let environment = Environment {
            kiln_server: Some("unix:/env.sock".into()),
            kiln_ca_file: Some("/env.pem".into()),
            kiln_client_id: Some("id".into()),
            kiln_client_secret_file: Some("/secret".into()),
            ..Environment::default()
        };
        let settings = ServerSettings::resolve(none(), &environment).unwrap();
        assert_eq!(settings.choice, ServerChoice::Given(Address::Unix("/env.sock".into())));
        assert_eq!(settings.ca_file, Some("/env.pem".into()));
        assert_eq!(settings.credential.unwrap().client_id, "id");

        let given = args::ServerArgs {
            server: Some("https://h".into()),
            ca_file: Some("/flag.pem".into()),
            ..none()
        };
        let settings = ServerSettings::resolve(given, &environment).unwrap();
        assert_eq!(settings.choice, ServerChoice::Given(Address::Https("https://h".into())));
        assert_eq!(settings.ca_file, Some("/flag.pem".into()));

        let half = Environment { kiln_client_id: Some("id".into()), ..Environment::default() };
        let error = ServerSettings::resolve(none(), &half).unwrap_err().to_string();
        assert!(error.contains("KILN_CLIENT_SECRET_FILE"), "{error}");
        assert_eq!(
            ServerSettings::resolve(none(), &Environment::default()).unwrap().choice,
            ServerChoice::Find
        );
    }

    #[test]
    fn serve_takes_flags_before_the_environment() {
        let args = |data: Option<&str>| args::ServeArgs {
            config: None,
            data: data.map(PathBuf::from),
            listen: vec!["0.0.0.0:1".into()],
            socket: None,
            example_config: false,
            hash_secret: false,
        };
        let environment = Environment {
            kiln_data: Some("/env/data".into()),
            kiln_config: Some("/env/kiln.yaml".into()),
            ..Environment::default()
        };
        let settings = ServeSettings::resolve(args(None), &environment).unwrap();
        assert_eq!(settings.data, Some("/env/data".into()));
        assert_eq!(settings.config, Some("/env/kiln.yaml".into()));
        let settings = ServeSettings::resolve(args(Some("/flag")), &environment).unwrap();
        assert_eq!(settings.data, Some("/flag".into()));
        assert_eq!(ServeSettings::resolve(args(None), &Environment::default()).unwrap().data, None);
    }
}

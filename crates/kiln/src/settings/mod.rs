//! Arguments and environment, resolved into plain values.
//!
//! INVARIANT: this is the only module of the command that reads the environment.
//! Each `resolve` destructures its arguments whole, so that a new flag cannot be
//! forgotten. Nothing here touches files, but for asking whether a directory of
//! the environment is ours.
//!
//! | variable                                       | meaning                                              |
//! |------------------------------------------------|------------------------------------------------------|
//! | `KILN_DATA`                                    | folder of the library and the runs                   |
//! | `KILN_IMAGES`                                  | folder with `catalog.yaml` and the recipes           |
//! | `KILN_LOG`                                     | what the diagnostic log says (tracing filter)        |
//! | `KILN_DISK_FULL_WAIT`                          | seconds a guest waits for room on a full disk (600)  |
//! | `KILN_CHECKPOINTS`                             | room for checkpoints, such as 20G (the default); off: none   |
//! | `KILN_MEMORY`                                  | memory for all builds of this user on this host together, such as 8G (all but a tenth) |
//! | `KILN_CA_FILE`                                 | PEM file with certificate authorities to trust, too  |
//! | `KILN_CONFIG`                                  | configuration file of `kiln serve`                   |
//! | `KILN_SERVER`                                  | server that commands talk to                         |
//! | `KILN_CLIENT_ID`, `KILN_CLIENT_SECRET_FILE`    | who signs in there, and where the secret lies        |
//! | `NOTIFY_SOCKET`                                | where systemd wants to hear of the service's state   |
//! | `XDG_DATA_HOME`, `XDG_CACHE_HOME`, `XDG_CONFIG_HOME`, `XDG_RUNTIME_DIR`, `HOME` | XDG Base Directories |
//! | `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY` (either case) | proxies for fetching inputs      |
//! | `NO_COLOR`, `CLICOLOR`, `CLICOLOR_FORCE`, `TERM` | colour and redrawing                               |

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use kiln_build::WorkerSettings;
use kiln_daemon::config::Config;
use kiln_daemon::shelves::ShelvesSettings;
use kiln_library::{FetchSettings, ProxySettings};

use crate::args;
use crate::ui::ColorWishes;

mod server;

pub use server::{Address, Credential, ServeSettings, ServerChoice, ServerSettings, notify_socket};

/// Sockets live below the runtime folder, and the path of a socket has 108 bytes at
/// most (unix(7)): a longer base than this is not used.
const RUNTIME_BASE_LIMIT: usize = 48;

/// The last word for a target is the one that counts (tracing-subscriber, `EnvFilter`).
const QUIET: &str = "h2=warn,hyper=warn,hyper_util=warn,reqwest=warn,russh=warn,russh_sftp=warn,rustls=warn";

/// What the process was given, as it was given. No `Debug`: proxies may hold passwords.
#[derive(Clone, Default)]
pub struct Environment {
    kiln_data: Option<OsString>,
    kiln_images: Option<OsString>,
    kiln_log: Option<OsString>,
    kiln_ca_file: Option<OsString>,
    kiln_disk_full_wait: Option<OsString>,
    kiln_checkpoints: Option<OsString>,
    kiln_memory: Option<OsString>,
    kiln_config: Option<OsString>,
    kiln_server: Option<OsString>,
    kiln_client_id: Option<OsString>,
    kiln_client_secret_file: Option<OsString>,
    notify_socket: Option<OsString>,
    home: Option<OsString>,
    xdg_data_home: Option<OsString>,
    xdg_cache_home: Option<OsString>,
    xdg_config_home: Option<OsString>,
    xdg_runtime_dir: Option<OsString>,
    path: Option<OsString>,
    http_proxy: Option<OsString>,
    https_proxy: Option<OsString>,
    all_proxy: Option<OsString>,
    no_proxy: Option<OsString>,
    no_color: Option<OsString>,
    clicolor: Option<OsString>,
    clicolor_force: Option<OsString>,
    term: Option<OsString>,
}

impl Environment {
    /// Reads the process's environment. A variable that is set and empty counts as not set.
    pub fn read() -> Self {
        let either = |lower: &str, upper: &str| variable(lower).or_else(|| variable(upper));
        Self {
            kiln_data: variable("KILN_DATA"),
            kiln_images: variable("KILN_IMAGES"),
            kiln_log: variable("KILN_LOG"),
            kiln_ca_file: variable("KILN_CA_FILE"),
            kiln_disk_full_wait: variable("KILN_DISK_FULL_WAIT"),
            kiln_checkpoints: variable("KILN_CHECKPOINTS"),
            kiln_memory: variable("KILN_MEMORY"),
            kiln_config: variable("KILN_CONFIG"),
            kiln_server: variable("KILN_SERVER"),
            kiln_client_id: variable("KILN_CLIENT_ID"),
            kiln_client_secret_file: variable("KILN_CLIENT_SECRET_FILE"),
            notify_socket: variable("NOTIFY_SOCKET"),
            home: variable("HOME"),
            xdg_data_home: variable("XDG_DATA_HOME"),
            xdg_cache_home: variable("XDG_CACHE_HOME"),
            xdg_config_home: variable("XDG_CONFIG_HOME"),
            xdg_runtime_dir: variable("XDG_RUNTIME_DIR"),
            path: variable("PATH"),
            http_proxy: either("http_proxy", "HTTP_PROXY"),
            https_proxy: either("https_proxy", "HTTPS_PROXY"),
            all_proxy: either("all_proxy", "ALL_PROXY"),
            no_proxy: either("no_proxy", "NO_PROXY"),
            no_color: variable("NO_COLOR"),
            clicolor: variable("CLICOLOR"),
            clicolor_force: variable("CLICOLOR_FORCE"),
            term: variable("TERM"),
        }
    }

    pub fn colors(&self) -> ColorWishes {
        ColorWishes {
            no_color: self.no_color.is_some(),
            clicolor_off: self.clicolor.as_deref().is_some_and(|value| value == "0"),
            clicolor_force: self.clicolor_force.as_deref().is_some_and(|value| value != "0"),
            dumb_terminal: self.term.as_deref().is_none_or(|term| term == "dumb"),
        }
    }

    /// Filter of the diagnostic log: `-v` and `-vv` first, then `KILN_LOG`, then `default`.
    ///
    /// INVARIANT: no secret reaches the log. Our own crates redact; the libraries that carry
    /// addresses and keys over the network do not, so their details stay out whatever is asked for.
    pub fn log_filter(&self, verbose: u8, default: &str) -> String {
        let wanted = match (verbose, &self.kiln_log) {
            (0, Some(filter)) => filter.to_string_lossy().into_owned(),
            (0, None) => default.to_owned(),
            (1, _) => "info".to_owned(),
            (_, _) => "debug".to_owned(),
        };
        format!("{wanted},{QUIET}")
    }

    /// `KILN_DATA`: a data folder that was named, not the user's own.
    pub fn data_folder(&self) -> Option<&Path> {
        self.kiln_data.as_deref().map(Path::new)
    }

    /// `KILN_CONFIG`.
    pub fn config_file(&self) -> Option<PathBuf> {
        self.kiln_config.as_ref().map(PathBuf::from)
    }

    /// What a worker needs to know of this environment, whoever starts it and wherever; `memory_mib` is what all runs
    /// together may have, where somebody has said it.
    pub fn for_worker(&self, folders: &Folders, memory_mib: Option<u64>) -> Vec<(OsString, OsString)> {
        let all = [
            ("KILN_DATA", Some(folders.data.clone().into_os_string())),
            ("KILN_LOG", self.kiln_log.clone()),
            ("KILN_CA_FILE", self.kiln_ca_file.clone()),
            ("KILN_DISK_FULL_WAIT", self.kiln_disk_full_wait.clone()),
            (
                "KILN_MEMORY",
                memory_mib.map(|mib| format!("{mib}M").into()).or_else(|| self.kiln_memory.clone()),
            ),
            ("HOME", self.home.clone()),
            ("XDG_CACHE_HOME", self.xdg_cache_home.clone()),
            ("XDG_RUNTIME_DIR", self.xdg_runtime_dir.clone()),
            ("PATH", Some(self.search_path())),
            ("http_proxy", self.http_proxy.clone()),
            ("https_proxy", self.https_proxy.clone()),
            ("all_proxy", self.all_proxy.clone()),
            ("no_proxy", self.no_proxy.clone()),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name.into(), value?))).collect()
    }

    /// Where programs are looked for.
    pub fn search_path(&self) -> OsString {
        // execvp's own default (glibc), with the folders where Debian keeps mkfs and sgdisk.
        let path = self.path.clone().unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        for system in ["/usr/sbin", "/sbin"] {
            if !folders.iter().any(|folder| folder == Path::new(system)) {
                folders.push(system.into());
            }
        }
        std::env::join_paths(folders).unwrap_or(path)
    }

    fn absolute(value: Option<&OsString>) -> Option<PathBuf> {
        // "All paths set in these environment variables must be absolute" (XDG Base
        // Directory Specification): others are ignored, as it demands.
        value.map(PathBuf::from).filter(|path| path.is_absolute())
    }

    fn xdg(&self, variable: Option<&OsString>, below_home: &str) -> Option<PathBuf> {
        Self::absolute(variable)
            .or_else(|| Self::absolute(self.home.as_ref()).map(|home| home.join(below_home)))
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the settings module")]
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Where Kiln keeps its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folders {
    /// What everything but `cache` and `runtime` lies in; absolute.
    pub data: PathBuf,
    /// Base images and inputs.
    pub library: PathBuf,
    /// One folder a run.
    pub runs: PathBuf,
    /// What can be found out again.
    pub cache: PathBuf,
    /// Sockets: short, private to the user, of this host. See [`ensure_private`].
    pub runtime: PathBuf,
    /// The user's own catalog, if there is one.
    pub user_catalog: Option<PathBuf>,
    /// `KILN_IMAGES`.
    pub images: Option<PathBuf>,
}

impl Folders {
    pub fn resolve(environment: &Environment) -> anyhow::Result<Self> {
        Self::with_data(environment, None)
    }

    /// With another data folder than the environment's, where one is given.
    pub fn with_data(environment: &Environment, data: Option<&Path>) -> anyhow::Result<Self> {
        let named = match (data, &environment.kiln_data) {
            (Some(given), _) => {
                Some(std::path::absolute(given).context("the data folder is no usable path")?)
            }
            (None, Some(given)) => Some(std::path::absolute(given).context("KILN_DATA is no usable path")?),
            (None, None) => None,
        };
        let data = match named {
            Some(data) => data,
            None => environment
                .xdg(environment.xdg_data_home.as_ref(), ".local/share")
                .map(|base| base.join("kiln"))
                .ok_or_else(|| {
                    anyhow!(
                        "cannot tell where to keep files: set HOME, XDG_DATA_HOME or KILN_DATA to an absolute path"
                    )
                })?,
        };
        let cache = environment
            .xdg(environment.xdg_cache_home.as_ref(), ".cache")
            .map_or_else(|| data.join("cache"), |base| base.join("kiln"));
        let images = match &environment.kiln_images {
            Some(given) => Some(std::path::absolute(given).context("KILN_IMAGES is no usable path")?),
            None => None,
        };
        Ok(Self {
            library: data.join("library"),
            runs: data.join("runs"),
            data,
            cache,
            runtime: runtime(environment),
            user_catalog: environment
                .xdg(environment.xdg_config_home.as_ref(), ".config")
                .map(|base| base.join("kiln/catalog.yaml")),
            images,
        })
    }
}

impl Folders {
    /// Where the catalog and the library are looked for.
    pub fn shelves(&self) -> ShelvesSettings {
        ShelvesSettings {
            library: self.library.clone(),
            images: self.images.clone(),
            user_catalog: self.user_catalog.clone(),
        }
    }

    /// The socket of whoever owns the data folder: one name for one folder, however it is
    /// spelled, and short enough for a socket's address.
    pub fn socket(&self) -> PathBuf {
        // A folder that is not there yet has no other name either.
        let data = self.data.canonicalize().unwrap_or_else(|_| self.data.clone());
        let digest = kiln_host::digest::sha256(data.as_os_str().as_bytes());
        self.runtime.join(format!("kiln-{}.sock", kiln_host::digest::hex(&digest[..4])))
    }
}

/// `XDG_RUNTIME_DIR/kiln` where that is ours and short, else a folder under `/tmp`
/// with our user's number.
fn runtime(environment: &Environment) -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    Environment::absolute(environment.xdg_runtime_dir.as_ref())
        .filter(|base| base.as_os_str().as_bytes().len() <= RUNTIME_BASE_LIMIT)
        // After `su`, the variable may still name another user's folder.
        .filter(|base| base.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == user))
        .map_or_else(|| PathBuf::from(format!("/tmp/kiln-{user}")), |base| base.join("kiln"))
}

/// What a worker, or whoever starts a machine in its place, takes from its surroundings.
pub fn worker(environment: &Environment, folders: &Folders) -> anyhow::Result<WorkerSettings> {
    Ok(WorkerSettings {
        search_path: environment.search_path(),
        runtime_dir: folders.runtime.clone(),
        cache_dir: folders.cache.clone(),
        fetch: fetch(environment)?,
        disk_full_wait: disk_full_wait(environment)?,
        memory_mib: memory(environment)?,
        kiln_version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// Makes `folder` for this user alone, or makes sure that it is: under `/tmp`
/// somebody else may have been there first.
pub fn ensure_private(folder: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => {
            return Err(error)
                .with_context(|| format!("cannot make the runtime folder {}", folder.display()));
        }
    }
    // Not following a link: a link of somebody else's would be followed to where they like.
    let meta = std::fs::symlink_metadata(folder)
        .with_context(|| format!("cannot look at the runtime folder {}", folder.display()))?;
    let ours = meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o077 == 0;
    if ours {
        Ok(())
    } else {
        Err(anyhow!(
            "the runtime folder {} is not private to this user: remove it, or set XDG_RUNTIME_DIR to a folder of your own",
            folder.display()
        ))
    }
}

/// How inputs and images are fetched: proxies and trust of the environment, the library's own patience.
pub fn fetch(environment: &Environment) -> anyhow::Result<FetchSettings> {
    let text = |name: &str, value: Option<&OsString>| {
        value
            .map(|value| value.to_str().map(str::to_owned).ok_or_else(|| anyhow!("{name} is not UTF-8 text")))
            .transpose()
    };
    let all = text("ALL_PROXY", environment.all_proxy.as_ref())?;
    let proxy = ProxySettings {
        http: text("HTTP_PROXY", environment.http_proxy.as_ref())?.or_else(|| all.clone()),
        https: text("HTTPS_PROXY", environment.https_proxy.as_ref())?.or(all),
        direct: text("NO_PROXY", environment.no_proxy.as_ref())?,
    };
    let ca_file = environment.kiln_ca_file.as_ref().map(PathBuf::from);
    Ok(FetchSettings { proxy, ca_file, ..FetchSettings::default() })
}

/// How long a guest waits on a full disk for room before its run fails.
pub fn disk_full_wait(environment: &Environment) -> anyhow::Result<Duration> {
    const DEFAULT: Duration = Duration::from_secs(10 * 60);
    let Some(given) = &environment.kiln_disk_full_wait else { return Ok(DEFAULT) };
    let seconds = given.to_str().and_then(|text| text.parse().ok());
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| anyhow!("KILN_DISK_FULL_WAIT is no number of seconds: {given:?}"))
}

/// Bytes that the shelf of checkpoints may have; `None` where nothing is to be kept or reused.
pub fn checkpoint_room(environment: &Environment) -> anyhow::Result<Option<u64>> {
    const DEFAULT: u64 = 20 << 30;
    let Some(given) = &environment.kiln_checkpoints else { return Ok(Some(DEFAULT)) };
    if given == "off" {
        return Ok(None);
    }
    let size = given.to_str().and_then(size);
    size.map(Some).ok_or_else(|| anyhow!("KILN_CHECKPOINTS is neither off nor a size such as 20G: {given:?}"))
}

/// MiB that all guests of this user on this host together may have; as much as the host bears, where nothing is said.
pub fn memory(environment: &Environment) -> anyhow::Result<u64> {
    given_memory(environment)?
        .map_or_else(kiln_build::share::budget_of_host, Ok)
        .context("cannot tell how much memory this host has")
}

fn given_memory(environment: &Environment) -> anyhow::Result<Option<u64>> {
    let Some(given) = &environment.kiln_memory else { return Ok(None) };
    let mib = given.to_str().and_then(size).map(|bytes| bytes >> 20).filter(|mib| *mib > 0);
    mib.map(Some).ok_or_else(|| anyhow!("KILN_MEMORY is no size such as 8G: {given:?}"))
}

/// A server's settings with the environment's word about checkpoints and memory, where it has one.
pub fn serving(mut config: Config, environment: &Environment) -> anyhow::Result<Config> {
    if environment.kiln_checkpoints.is_some() {
        match checkpoint_room(environment)? {
            Some(room) => config.checkpoints.size_gib = room.div_ceil(1 << 30),
            None => config.checkpoints.enabled = false,
        }
    }
    config.runs.memory_mib = given_memory(environment)?.or(config.runs.memory_mib);
    Ok(config)
}

/// `500M`, `20G`, `1T`: powers of 1024.
fn size(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = match unit {
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// What of earlier builds may serve, and what is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReuseSettings {
    pub reuse: bool,
    pub keep: bool,
    /// Bytes.
    pub room: u64,
    pub policy: Option<PathBuf>,
}

/// Where a template's text comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateInput {
    StandardInput,
    File(PathBuf),
}

impl TemplateInput {
    pub fn resolve(file: PathBuf) -> Self {
        if file.as_os_str() == "-" { Self::StandardInput } else { Self::File(file) }
    }

    /// For messages.
    pub fn shown(&self) -> String {
        match self {
            Self::StandardInput => "<stdin>".to_owned(),
            Self::File(path) => path.display().to_string(),
        }
    }
}

#[derive(Debug)]
pub struct BuildSettings {
    pub template: TemplateInput,
    /// Absolute.
    pub output: PathBuf,
    pub json: bool,
    pub keep_on_error: bool,
    /// None: neither reused nor kept.
    pub reuse: Option<ReuseSettings>,
    /// None: built without one.
    pub server: Option<ServerSettings>,
}

impl BuildSettings {
    pub fn resolve(args: args::BuildArgs, environment: &Environment) -> anyhow::Result<Self> {
        let args::BuildArgs { file, output, json, keep_on_error, local, reuse, server } = args;
        let args::ReuseArgs { fresh, no_checkpoints, policy } = reuse;
        let output = output_folder(&output)?;
        // What is kept of a failed build lies in a folder of this host; a server decides itself what it reuses.
        let here = local || keep_on_error || fresh || no_checkpoints || policy.is_some();
        let server = (!here).then(|| ServerSettings::resolve(server, environment)).transpose()?;
        let reuse = checkpoint_room(environment)?.map(|room| ReuseSettings {
            reuse: !fresh,
            keep: !no_checkpoints,
            room,
            policy,
        });
        Ok(Self { template: TemplateInput::resolve(file), output, json, keep_on_error, reuse, server })
    }
}

#[derive(Debug)]
pub struct CertifySettings {
    /// Name of a base image in the library.
    pub base: String,
    /// None: the newest.
    pub version: Option<String>,
    /// Absolute.
    pub output: PathBuf,
    /// In Windows Update's own language; none: what is small and always there.
    pub updates: Option<String>,
    pub keep_on_error: bool,
    pub json: bool,
}

impl CertifySettings {
    pub fn resolve(args: args::CertifyWindowsArgs) -> anyhow::Result<Self> {
        let args::CertifyWindowsArgs { base, output, updates, keep_on_error, json } = args;
        let (base, version) = match base.split_once(':') {
            Some((name, version)) => (name.to_owned(), Some(version.to_owned())),
            None => (base, None),
        };
        if base.is_empty() || version.as_deref() == Some("") {
            return Err(anyhow!("a base image is given as NAME or NAME:VERSION"));
        }
        Ok(Self { base, version, output: output_folder(&output)?, updates, keep_on_error, json })
    }
}

/// A folder for results, absolute.
pub fn output_folder(given: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(given).with_context(|| format!("{} is no usable output directory", given.display()))
}

#[derive(Debug)]
pub struct ValidateSettings {
    pub template: TemplateInput,
    pub azure: bool,
    pub json: bool,
}

impl ValidateSettings {
    pub fn resolve(args: args::ValidateArgs) -> Self {
        let args::ValidateArgs { file, azure, json } = args;
        Self { template: TemplateInput::resolve(file), azure, json }
    }
}

#[derive(Debug)]
pub struct PlanSettings {
    pub template: TemplateInput,
    /// With a policy, or none; not said at all where nothing is reused on this host.
    pub reuse: Option<Option<PathBuf>>,
    pub json: bool,
}

impl PlanSettings {
    pub fn resolve(args: args::PlanArgs, environment: &Environment) -> anyhow::Result<Self> {
        let args::PlanArgs { file, policy, json } = args;
        let reuse = checkpoint_room(environment)?.map(|_| policy);
        Ok(Self { template: TemplateInput::resolve(file), reuse, json })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn home() -> Environment {
        Environment { home: Some("/home/u".into()), ..Environment::default() }
    }

    #[test]
    fn folders_follow_xdg() {
        let folders = Folders::resolve(&home()).unwrap();
        assert_eq!(folders.library, Path::new("/home/u/.local/share/kiln/library"));
        assert_eq!(folders.runs, Path::new("/home/u/.local/share/kiln/runs"));
        assert_eq!(folders.cache, Path::new("/home/u/.cache/kiln"));
        assert_eq!(folders.user_catalog, Some("/home/u/.config/kiln/catalog.yaml".into()));

        let xdg = Environment {
            xdg_data_home: Some("/d".into()),
            xdg_cache_home: Some("/c".into()),
            xdg_config_home: Some("/k".into()),
            ..home()
        };
        let folders = Folders::resolve(&xdg).unwrap();
        assert_eq!(folders.library, Path::new("/d/kiln/library"));
        assert_eq!(folders.cache, Path::new("/c/kiln"));
        assert_eq!(folders.user_catalog, Some("/k/kiln/catalog.yaml".into()));
    }

    #[test]
    fn relative_xdg_folders_are_ignored() {
        let xdg = Environment { xdg_data_home: Some("relative".into()), ..home() };
        assert_eq!(Folders::resolve(&xdg).unwrap(), Folders::resolve(&home()).unwrap());
    }

    #[test]
    fn kiln_data_is_made_absolute() {
        let relative = Environment { kiln_data: Some("here".into()), ..home() };
        let library = Folders::resolve(&relative).unwrap().library;
        assert!(library.is_absolute() && library.ends_with("here/library"), "{}", library.display());
    }

    #[test]
    fn one_data_folder_has_one_socket() {
        let base = tempfile::tempdir().unwrap();
        let real = base.path().join("real");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, base.path().join("link")).unwrap();
        let socket = |data: PathBuf| Folders::with_data(&home(), Some(&data)).unwrap().socket();
        assert_eq!(socket(real.clone()), socket(base.path().join("link")));
        assert_eq!(socket(real.clone()), socket(base.path().join("real/../real")));
        assert_ne!(socket(real.clone()), socket(base.path().join("other")));
        assert!(socket(real).as_os_str().len() < 108);
    }

    #[test]
    fn without_any_home_the_error_says_what_to_set() {
        let error = Folders::resolve(&Environment::default()).unwrap_err().to_string();
        assert!(error.contains("KILN_DATA") && error.contains("HOME"), "{error}");
    }

    #[test]
    fn the_runtime_folder_is_ours_and_short() {
        let user = rustix::process::geteuid().as_raw();
        let fallback = PathBuf::from(format!("/tmp/kiln-{user}"));
        let with = |dir: &Path| runtime(&Environment { xdg_runtime_dir: Some(dir.into()), ..home() });

        let ours = tempfile::tempdir_in("/tmp").unwrap();
        assert_eq!(with(ours.path()), ours.path().join("kiln"));
        let long = ours.path().join("x".repeat(RUNTIME_BASE_LIMIT));
        std::fs::create_dir(&long).unwrap();
        assert_eq!(with(&long), fallback, "too long for a socket");
        assert_eq!(with(&ours.path().join("gone")), fallback);
    }

    #[test]
    fn a_runtime_folder_others_can_enter_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("kiln");
        ensure_private(&folder).unwrap();
        ensure_private(&folder).unwrap();
        assert_eq!(folder.metadata().unwrap().mode() & 0o777, 0o700);

        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(ensure_private(&folder).is_err());
        let link = base.path().join("link");
        std::os::unix::fs::symlink(base.path(), &link).unwrap();
        assert!(ensure_private(&link).is_err(), "a link");
    }

    #[test]
    fn a_base_image_may_come_with_its_version() {
        let base = |text: &str| {
            CertifySettings::resolve(args::CertifyWindowsArgs {
                base: text.to_owned(),
                output: ".".into(),
                updates: None,
                keep_on_error: false,
                json: false,
            })
            .map(|settings| (settings.base, settings.version))
        };
        assert_eq!(base("a").unwrap(), ("a".to_owned(), None));
        assert_eq!(base("a:1.2").unwrap(), ("a".to_owned(), Some("1.2".to_owned())));
        for wrong in ["", ":", ":1", "a:"] {
            assert!(base(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn checkpoints_have_room_or_none() {
        let room =
            |given: &str| checkpoint_room(&Environment { kiln_checkpoints: Some(given.into()), ..home() });
        assert_eq!(checkpoint_room(&home()).unwrap(), Some(20 << 30));
        assert_eq!(room("off").unwrap(), None);
        assert_eq!(room("500M").unwrap(), Some(500 << 20));
        assert_eq!(room("1T").unwrap(), Some(1 << 40));
        for wrong in ["", "G", "20", "20 G", "-1G", "99999999999999T", "20ü"] {
            assert!(room(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn memory_is_what_is_said_or_what_the_host_bears() {
        let with = |given: &str| Environment { kiln_memory: Some(given.into()), ..home() };
        assert_eq!(memory(&with("2100M")).unwrap(), 2100);
        assert_eq!(memory(&with("8G")).unwrap(), 8192);
        assert_eq!(memory(&home()).unwrap(), kiln_build::share::budget_of_host().unwrap());
        for wrong in ["0G", "8", "all", "-8G"] {
            assert!(memory(&with(wrong)).is_err(), "{wrong}");
        }
        // A server's workers have the server's budget, and the environment's word wins over its file.
        let folders = Folders::resolve(&home()).unwrap();
        let told = |environment: &Environment, budget| {
            let all = environment.for_worker(&folders, budget);
            all.into_iter().find(|(name, _)| name == "KILN_MEMORY").map(|(_, value)| value)
        };
        assert_eq!(told(&home(), Some(4096)), Some("4096M".into()));
        assert_eq!(told(&home(), None), None);
        let mut config = Config::default();
        config.runs.memory_mib = Some(4096);
        assert_eq!(serving(config.clone(), &with("8G")).unwrap().runs.memory_mib, Some(8192));
        assert_eq!(serving(config, &home()).unwrap().runs.memory_mib, Some(4096));
    }

    #[test]
    fn programs_are_looked_for_in_sbin_too() {
        let environment = Environment { path: Some("/opt/bin:/usr/bin".into()), ..home() };
        assert_eq!(environment.search_path(), "/opt/bin:/usr/bin:/usr/sbin:/sbin");
        let environment = Environment { path: Some("/usr/sbin:/sbin".into()), ..home() };
        assert_eq!(environment.search_path(), "/usr/sbin:/sbin");
    }

    #[test]
    fn details_of_the_network_stay_out_of_the_log() {
        let asked = Environment { kiln_log: Some("russh=trace,kiln_build=debug".into()), ..home() };
        let filter: tracing_subscriber::EnvFilter = asked.log_filter(0, "off").parse().unwrap();
        let directives = filter.to_string();
        assert!(directives.contains("kiln_build=debug"), "{directives}");
        assert!(directives.contains("russh=warn") && !directives.contains("russh=trace"), "{directives}");
        assert!(home().log_filter(0, "off").starts_with("off,"));
        assert!(asked.log_filter(2, "off").starts_with("debug,"));
    }

    #[test]
    fn all_proxy_stands_in_for_both() {
        let environment = Environment {
            all_proxy: Some("http://all:1".into()),
            https_proxy: Some("http://secure:2".into()),
            ..home()
        };
        let proxy = fetch(&environment).unwrap().proxy;
        assert_eq!(proxy.http.as_deref(), Some("http://all:1"));
        assert_eq!(proxy.https.as_deref(), Some("http://secure:2"));
    }
}

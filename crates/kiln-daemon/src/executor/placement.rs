//! Where a worker's process is put, so that it outlives a restart of the server.
//!
//! systemd ends a service by ending its control group, whatever sessions and process
//! groups there are in it (systemd.kill(5)): so where systemd runs services, a worker
//! gets a unit of its own.
//!
//! ```text
//!  root, systemd is this host's init      a unit of the system manager, with User= of the workers
//!  another user, inside a service, or     a unit of that user's manager (which lives as long as
//!    with lingering enabled                 the user lingers)
//!  else                                   a session of its own: Ctrl-C, a closed terminal and our
//!                                           end do not touch it
//! ```
//! A user's manager ends with the user's last login unless lingering is enabled, and takes
//! its units along; a session of its own does not. Hence the middle row's condition.
//!
//! Decided once, by [`Placement::probe`]; what it found is told at start.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_build::run_dir::RunDir;
use kiln_host::process::{Identity, Invocation};
use kiln_host::wait::Control;

use super::WorkerCommand;

/// `StandardOutput=append:` came with systemd 240 (systemd.exec(5)).
const OLDEST_SYSTEMD: u32 = 240;
const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// Sandboxing that a builder of images can live with; what the server's own unit has, a worker does not inherit.
const SYSTEM_PROPERTIES: [&str; 6] = [
    "ProtectSystem=full",
    "ProtectControlGroups=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
];

/// Whose systemd starts the units of workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Systemd {
    System,
    /// `XDG_RUNTIME_DIR` of its user.
    User {
        runtime: PathBuf,
    },
}

/// How workers are kept apart from the server's own end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    Unit(Systemd),
    Session {
        /// The service this process belongs to, which will take its workers along when it is stopped.
        inside_service: Option<String>,
    },
}

/// What there is to know about this host, for the decision.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Host {
    root: bool,
    /// systemd is init here (sd_booted(3)).
    booted: bool,
    /// This user's manager listens.
    user_manager: Option<PathBuf>,
    lingers: bool,
    /// The unit of our control group.
    unit: Option<String>,
}

impl Placement {
    /// Looks at this host and asks its systemd whether it answers.
    pub async fn probe() -> Self {
        let host = Host::look();
        match host.wish() {
            Self::Unit(manager) => match manager.answers().await {
                Ok(()) => Self::Unit(manager),
                Err(why) => {
                    tracing::warn!(why, "systemd cannot be asked to run workers");
                    host.session()
                }
            },
            session => session,
        }
    }

    /// For the log at start: what was decided, and whether a person should do something about it.
    pub fn told(&self) -> (bool, String) {
        match self {
            Self::Unit(Systemd::System) => (false, "each worker gets a systemd unit of its own".to_owned()),
            Self::Unit(Systemd::User { .. }) => {
                (false, "each worker gets a unit of its own from this user's systemd".to_owned())
            }
            Self::Session { inside_service: None } => {
                (false, "each worker gets a session of its own".to_owned())
            }
            Self::Session { inside_service: Some(service) } => (
                true,
                format!(
                    "workers end when {service} is stopped or restarted, and their runs fail: this server cannot \
                     start systemd units; run it as root, or enable lingering for its user (loginctl enable-linger)"
                ),
            ),
        }
    }

    /// The unit for one run; `None` where there are none.
    pub(super) fn unit(&self, dir: &RunDir, identity: Option<&Identity>) -> Option<Unit> {
        let Self::Unit(manager) = self else { return None };
        let name = dir.path().file_name().unwrap_or_default().to_string_lossy();
        Some(Unit {
            name: format!("kiln-run-{name}.service"),
            manager: manager.clone(),
            user: identity.map(|identity| identity.name().to_owned()),
        })
    }
}

impl Host {
    fn look() -> Self {
        let uid = rustix::process::geteuid();
        let runtime = PathBuf::from(format!("/run/user/{}", uid.as_raw()));
        let membership = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self {
            root: uid.is_root(),
            booted: Path::new("/run/systemd/system").is_dir(),
            user_manager: runtime.join("systemd/private").exists().then_some(runtime),
            lingers: user_name(uid.as_raw())
                .is_some_and(|name| Path::new("/var/lib/systemd/linger").join(name).exists()),
            unit: unit_of(&membership),
        }
    }

    fn wish(&self) -> Placement {
        if self.root && self.booted {
            return Placement::Unit(Systemd::System);
        }
        match &self.user_manager {
            Some(runtime) if !self.root && (self.lingers || self.in_service()) => {
                Placement::Unit(Systemd::User { runtime: runtime.clone() })
            }
            _ => self.session(),
        }
    }

    fn in_service(&self) -> bool {
        self.unit.as_deref().is_some_and(|unit| unit.ends_with(".service"))
    }

    fn session(&self) -> Placement {
        Placement::Session { inside_service: self.unit.clone().filter(|_| self.booted && self.in_service()) }
    }
}

/// The last unit on the path of our control group: `/system.slice/kiln.service` is in `kiln.service`.
fn unit_of(membership: &str) -> Option<String> {
    // One hierarchy (v2) is `0::`; in older ones systemd's own has this name (cgroups(7)).
    let path = membership.lines().find_map(|line| {
        line.strip_prefix("0::").or_else(|| line.split_once(":name=systemd:").map(|(_, path)| path))
    })?;
    let unit = |part: &&str| part.ends_with(".service") || part.ends_with(".scope");
    path.rsplit('/').find(unit).map(str::to_owned)
}

fn user_name(uid: u32) -> Option<String> {
    let entry =
        Invocation::new("getent").args(["passwd", &uid.to_string()]).run_blocking().ok()?.stdout_text();
    entry.split(':').next().map(str::to_owned)
}

impl Systemd {
    fn invocation(&self, program: &str) -> Invocation {
        let invocation = Invocation::new(program);
        match self {
            Self::System => invocation.arg("--system"),
            Self::User { runtime } => invocation.arg("--user").env("XDG_RUNTIME_DIR", runtime),
        }
    }

    async fn answers(&self) -> Result<(), String> {
        let ask = self.invocation("systemctl").args(["show", "--property=Version", "--value"]);
        let said =
            ask.run(&Control::ending_in(PROBE_LIMIT)).await.map_err(|error| error.to_string())?.stdout_text();
        match version(&said) {
            Some(version) if version >= OLDEST_SYSTEMD => Ok(()),
            Some(version) => Err(format!("systemd is {version}; {OLDEST_SYSTEMD} or newer is needed")),
            None => Err(format!("systemctl says that systemd is {:?}", said.trim())),
        }
    }
}

/// `252.38-1~deb12u1` is 252.
fn version(said: &str) -> Option<u32> {
    let digits: String = said.trim().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// The transient unit of one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unit {
    name: String,
    manager: Systemd,
    user: Option<String>,
}

impl Unit {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Ends successfully when the worker's program has begun (`Type=exec`).
    pub(super) fn start(&self, command: &WorkerCommand, dir: &RunDir, env: &Path) -> Invocation {
        let property = |name: &str, value: &OsStr| {
            let mut property = OsString::from(format!("--property={name}="));
            property.push(value);
            property
        };
        let log = {
            let mut log = OsString::from("append:");
            log.push(dir.worker_log());
            log
        };
        let id = dir.path().file_name().unwrap_or_default().to_string_lossy();
        let mut run = self
            .manager
            .invocation("systemd-run")
            // A unit that failed is forgotten at once: what happened is in the run's directory and in the journal.
            .args(["--quiet", "--collect", "--no-ask-password", "--service-type=exec"])
            .arg(format!("--unit={}", self.name))
            .arg(format!("--description=Kiln run {id}"))
            .arg(property("StandardOutput", &log))
            .arg(property("StandardError", &log))
            .arg(property("EnvironmentFile", env.as_os_str()))
            .arg("--property=NoNewPrivileges=yes")
            // Asked to stop (a shutdown of the host), a worker ends its run and cleans up.
            .arg("--property=TimeoutStopSec=60s");
        if self.manager == Systemd::System {
            run = run.args(SYSTEM_PROPERTIES.iter().map(|property| format!("--property={property}")));
        }
        if let Some(user) = &self.user {
            run = run.arg(format!("--property=User={user}")).arg("--property=CapabilityBoundingSet=");
        }
        run.arg("--")
            .arg(literal(command.program.as_os_str()))
            .args(command.args.iter().map(|arg| literal(arg)))
            .arg(literal(dir.path().as_os_str()))
    }

    /// Prints the process id of the worker, 0 where it has none any more.
    pub(super) fn main_pid(&self) -> Invocation {
        self.manager.invocation("systemctl").args(["show", "--property=MainPID", "--value", "--", &self.name])
    }
}

/// One word of a command line in a unit: systemd replaces variables in it (systemd.service(5), "Command lines").
fn literal(word: &OsStr) -> OsString {
    let bytes = word.as_bytes().iter().flat_map(|byte| match byte {
        b'$' => vec![b'$', b'$'],
        other => vec![*other],
    });
    OsString::from_vec(bytes.collect())
}

/// The content of an `EnvironmentFile=` (systemd.exec(5)): double-quoted values, in which four characters are escaped.
pub(super) fn environment_file(env: &[(OsString, OsString)]) -> Vec<u8> {
    let mut text = Vec::new();
    for (name, value) in env {
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(b"=\"");
        for byte in value.as_bytes() {
            if b"\"\\`$".contains(byte) {
                text.push(b'\\');
            }
            text.push(*byte);
        }
        text.extend_from_slice(b"\"\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn host() -> Host {
        Host {
            root: false,
            booted: true,
            user_manager: None,
            lingers: false,
            unit: Some("session-3.scope".into()),
        }
    }

    fn user() -> Placement {
        Placement::Unit(Systemd::User { runtime: "/run/user/1000".into() })
    }

    #[test]
    fn the_decision() {
        let manager = || Some(PathBuf::from("/run/user/1000"));
        let session = Placement::Session { inside_service: None };
        let service = || Some("kiln.service".to_owned());
        let inside = Placement::Session { inside_service: service() };
        for (host, expected) in [
            (Host { root: true, ..host() }, Placement::Unit(Systemd::System)),
            (Host { root: true, unit: service(), ..host() }, Placement::Unit(Systemd::System)),
            // A container: no systemd, or not ours.
            (Host { root: true, booted: false, unit: None, ..host() }, session.clone()),
            (Host { root: true, booted: false, user_manager: manager(), ..host() }, session.clone()),
            // A person at a terminal.
            (host(), session.clone()),
            (Host { user_manager: manager(), ..host() }, session.clone()),
            (Host { user_manager: manager(), lingers: true, ..host() }, user()),
            // A service of a system that gave its user a manager, and of one that did not.
            (Host { user_manager: manager(), lingers: true, unit: service(), ..host() }, user()),
            (Host { user_manager: manager(), unit: service(), ..host() }, user()),
            (Host { unit: service(), ..host() }, inside.clone()),
            (Host { lingers: true, unit: service(), ..host() }, inside.clone()),
        ] {
            assert_eq!(host.wish(), expected, "{host:?}");
        }
        assert!(inside.told().0, "a person should know");
        assert!(inside.told().1.contains("kiln.service"));
        assert!(!session.told().0);
    }

    #[test]
    fn control_groups_name_their_unit() {
        for (membership, unit) in [
            ("0::/system.slice/kiln.service\n", Some("kiln.service")),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/kiln.service/sub\n",
                Some("kiln.service"),
            ),
            ("0::/user.slice/user-1000.slice/session-3.scope\n", Some("session-3.scope")),
            ("12:pids:/x.service\n1:name=systemd:/system.slice/kiln.service\n", Some("kiln.service")),
            ("0::/\n", None),
            ("", None),
        ] {
            assert_eq!(unit_of(membership).as_deref(), unit, "{membership}");
        }
    }

    #[test]
    fn versions_are_read_as_distributions_write_them() {
        assert_eq!(version("252.38-1~deb12u1\n"), Some(252));
        assert_eq!(version("v257"), None);
        assert_eq!(version(""), None);
    }

    /// A systemd that answers too late, wrongly or not at all is no reason not to start.
    #[tokio::test]
    async fn a_manager_that_is_not_there_does_not_answer() {
        let nobody = Systemd::User { runtime: "/nonexistent".into() };
        nobody.answers().await.unwrap_err();
    }

    fn lines(invocation: &Invocation) -> String {
        let mut text = invocation.program().to_string_lossy().into_owned();
        for argument in invocation.arguments() {
            text.push('\n');
            text.push_str(&argument.to_string_lossy());
        }
        text
    }

    fn dir(root: &Path) -> RunDir {
        RunDir::create(root, &"20260102T030405Z-hello-3f9a1c".parse().unwrap()).unwrap()
    }

    fn shown(unit: &Unit, root: &Path, dir: &RunDir) -> String {
        let command =
            WorkerCommand::new("/usr/bin/kiln").arg("-v").arg("$HOME").arg("worker").env("TOKEN", "canary");
        let start = lines(&unit.start(&command, dir, &dir.path().join("worker.env")));
        assert!(!start.contains("canary"));
        start.replace(&root.display().to_string(), "/runs")
    }

    #[test]
    fn a_unit_of_the_system_for_a_user() {
        let root = tempfile::tempdir().unwrap();
        let dir = dir(root.path());
        let identity = Identity::of("root").unwrap();
        let unit = Placement::Unit(Systemd::System).unit(&dir, Some(&identity)).unwrap();
        expect![[r#"
            systemd-run
            --system
            --quiet
            --collect
            --no-ask-password
            --service-type=exec
            --unit=kiln-run-20260102T030405Z-hello-3f9a1c.service
            --description=Kiln run 20260102T030405Z-hello-3f9a1c
            --property=StandardOutput=append:/runs/20260102T030405Z-hello-3f9a1c/worker.log
            --property=StandardError=append:/runs/20260102T030405Z-hello-3f9a1c/worker.log
            --property=EnvironmentFile=/runs/20260102T030405Z-hello-3f9a1c/worker.env
            --property=NoNewPrivileges=yes
            --property=TimeoutStopSec=60s
            --property=ProtectSystem=full
            --property=ProtectControlGroups=yes
            --property=ProtectKernelModules=yes
            --property=ProtectKernelTunables=yes
            --property=RestrictSUIDSGID=yes
            --property=LockPersonality=yes
            --property=User=root
            --property=CapabilityBoundingSet=
            --
            /usr/bin/kiln
            -v
            $$HOME
            worker
            /runs/20260102T030405Z-hello-3f9a1c"#]]
        .assert_eq(&shown(&unit, root.path(), &dir));
        expect![[r#"
            systemctl
            --system
            show
            --property=MainPID
            --value
            --
            kiln-run-20260102T030405Z-hello-3f9a1c.service"#]]
        .assert_eq(&lines(&unit.main_pid()));
    }

    #[test]
    fn a_unit_of_a_users_manager() {
        let root = tempfile::tempdir().unwrap();
        let dir = dir(root.path());
        let unit = user().unit(&dir, None).unwrap();
        expect![[r#"
            systemd-run
            --user
            --quiet
            --collect
            --no-ask-password
            --service-type=exec
            --unit=kiln-run-20260102T030405Z-hello-3f9a1c.service
            --description=Kiln run 20260102T030405Z-hello-3f9a1c
            --property=StandardOutput=append:/runs/20260102T030405Z-hello-3f9a1c/worker.log
            --property=StandardError=append:/runs/20260102T030405Z-hello-3f9a1c/worker.log
            --property=EnvironmentFile=/runs/20260102T030405Z-hello-3f9a1c/worker.env
            --property=NoNewPrivileges=yes
            --property=TimeoutStopSec=60s
            --
            /usr/bin/kiln
            -v
            $$HOME
            worker
            /runs/20260102T030405Z-hello-3f9a1c"#]]
        .assert_eq(&shown(&unit, root.path(), &dir));
    }

    #[test]
    fn values_of_variables_stay_what_they_are() {
        let env = [("A".into(), "plain".into()), ("B".into(), r#"a "b" \ `c` $D"#.into())];
        expect![[r#"
            A="plain"
            B="a \"b\" \\ \`c\` \$D"
        "#]]
        .assert_eq(&String::from_utf8(environment_file(&env)).unwrap());
    }
}

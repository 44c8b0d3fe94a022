//! swtpm: the TPM 2.0 that a Windows machine has.
//!
//! It is a child of ours beside QEMU, not a daemon, and ends with the machine: by itself when QEMU closes its
//! connection, by our end at the latest. Its state is the machine's own and goes with the run's folder; what is
//! measured into it is of no use to the image, whose first start elsewhere finds another TPM.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use kiln_host::process::{Child, Invocation, Sink, SpawnOptions, describe_status, find_program};

use crate::machine::Tpm;
use crate::vm::{VmError, log_end};

/// The name of the file in its folder in which it keeps what outlives its process (swtpm(8), `--tpmstate`).
pub const STATE_FILE: &str = "tpm2-00.permall";

/// No TPM can be had on this host.
#[derive(Debug, thiserror::Error)]
#[error("swtpm is not installed, and a Windows of generation 2 wants a TPM; install the package swtpm")]
pub struct NoTpm;

/// Where swtpm is.
pub fn find(search_path: &OsStr) -> Result<PathBuf, NoTpm> {
    find_program("swtpm", search_path).ok_or(NoTpm)
}

/// Starts it, with a socket that listens already: QEMU, started next, finds it in any case, and nobody waits for a file to
/// appear. swtpm is given it as its standard output, and says what it has to say on standard error.
pub(crate) fn start(tpm: &Tpm, socket: &Path) -> Result<Child, VmError> {
    let prepare = |path: &Path| {
        let path = path.to_owned();
        move |source| VmError::Prepare { path, source }
    };
    // Left by a worker that was killed.
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(prepare(socket)(error)),
        _ => {}
    }
    std::fs::create_dir_all(&tpm.state).map_err(prepare(&tpm.state))?;
    let log = std::fs::File::options().create(true).append(true).open(&tpm.log).map_err(prepare(&tpm.log))?;
    let listener = UnixListener::bind(socket).map_err(prepare(socket))?;
    let mut state = std::ffi::OsString::from("dir=");
    state.push(&tpm.state);
    let invocation = Invocation::new(&tpm.program)
        .args(["socket", "--tpm2", "--terminate", "--flags", "startup-clear", "--ctrl", "type=unixio,fd=1"])
        .arg("--tpmstate")
        .arg(state);
    tracing::debug!(command = %invocation, "starting swtpm");
    Ok(invocation.spawn(SpawnOptions {
        stdout: Sink::File(OwnedFd::from(listener).into()),
        stderr: Sink::File(log),
        no_new_privs: true,
        ..SpawnOptions::default()
    })?)
}

/// How it failed, if it has: then what QEMU says is but the consequence.
pub(crate) fn failure(tpm: &Tpm, child: &Child) -> Option<VmError> {
    let status = child.status().filter(|status| !status.success())?;
    let stderr = log_end(&tpm.log).unwrap_or_default();
    Some(VmError::Tpm { status: describe_status(status), stderr, log: tpm.log.clone() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kiln_host::wait::Control;

    use super::*;

    fn tpm(dir: &Path, program: PathBuf) -> Tpm {
        Tpm { program, state: dir.join("state"), log: dir.join("tpm.log") }
    }

    #[tokio::test]
    async fn it_listens_when_it_is_started_and_ends_when_dropped() {
        let Ok(program) = find(OsStr::new("/usr/bin")) else {
            eprintln!("skipped: swtpm is not installed");
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("tpm");
        let control = Control::ending_in(Duration::from_secs(30));
        let tpm = tpm(dir.path(), program);
        let child = start(&tpm, &socket).unwrap();
        std::os::unix::net::UnixStream::connect(&socket).unwrap();
        child.kill_group();
        control.guard(child.wait()).await.unwrap().unwrap();
        assert!(failure(&tpm, &child).is_some_and(|error| error.to_string().contains("swtpm ended with")));
    }

    #[test]
    fn a_host_without_it_is_told_what_to_install() {
        let error = find(OsStr::new("/nonexistent")).unwrap_err();
        assert!(error.to_string().ends_with("install the package swtpm"), "{error}");
    }
}

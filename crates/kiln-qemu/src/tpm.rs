//! swtpm: the TPM 2.0 that a Windows machine has.
//!
//! It is a child of ours beside QEMU, not a daemon, and ends with the machine: by itself when QEMU closes its
//! connection, by our end at the latest. Its state is the machine's own and goes with the run's folder; what is
//! measured into it is of no use to the image, whose first start elsewhere finds another TPM.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_host::process::{Child, Invocation, Sink, SpawnOptions, describe_status, find_program};
use kiln_host::wait::Control;

use crate::machine::Tpm;
use crate::vm::{VmError, log_end};

/// No TPM can be had on this host.
#[derive(Debug, thiserror::Error)]
#[error("swtpm is not installed, and a Windows of generation 2 wants a TPM; install the package swtpm")]
pub struct NoTpm;

/// Where swtpm is.
pub fn find(search_path: &OsStr) -> Result<PathBuf, NoTpm> {
    find_program("swtpm", search_path).ok_or(NoTpm)
}

/// Between two looks whether the socket is there: swtpm says so to nobody, and is up in some milliseconds.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Starts it, and waits until it listens at `socket`: QEMU connects once, and gives up where nobody is.
pub(crate) async fn start(tpm: &Tpm, socket: &Path, control: &Control) -> Result<Child, VmError> {
    let child = spawn(tpm, socket)?;
    let listens = async {
        while !socket.exists() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::select! {
        biased;
        status = child.wait() => Err(VmError::Tpm {
            status: describe_status(status?),
            stderr: log_end(&tpm.log).unwrap_or_default(),
            log: tpm.log.clone(),
        }),
        why = control.interrupted() => Err(why.into()),
        () = listens => Ok(child),
    }
}

fn spawn(tpm: &Tpm, socket: &Path) -> Result<Child, VmError> {
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
    let log_too = log.try_clone().map_err(prepare(&tpm.log))?;
    let invocation = Invocation::new(&tpm.program)
        .args(["socket", "--tpm2", "--terminate", "--flags", "startup-clear"])
        .arg("--tpmstate")
        .arg(with_path("dir=", &tpm.state))
        .arg("--ctrl")
        .arg(with_path("type=unixio,path=", socket));
    tracing::debug!(command = %invocation, "starting swtpm");
    Ok(invocation.spawn(SpawnOptions {
        stdout: Sink::File(log),
        stderr: Sink::File(log_too),
        no_new_privs: true,
        ..SpawnOptions::default()
    })?)
}

fn with_path(setting: &str, path: &Path) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(setting);
    text.push(path);
    text
}

#[cfg(test)]
mod tests {
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
        let child = start(&tpm(dir.path(), program), &socket, &control).await.unwrap();
        assert!(socket.exists() && child.status().is_none());
        child.kill_group();
        control.guard(child.wait()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn one_that_ends_at_once_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::ending_in(Duration::from_secs(30));
        let error = start(&tpm(dir.path(), "/bin/false".into()), &dir.path().join("tpm"), &control).await;
        let message = error.unwrap_err().to_string();
        assert!(message.starts_with("swtpm ended with exit status 1"), "{message}");
        assert!(find(OsStr::new("/nonexistent")).is_err());
    }
}

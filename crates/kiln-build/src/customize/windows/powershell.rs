//! The PowerShell customizer: the service's own two ways to run a script, and the scheduler's for elevated ones.
//!
//! The script and its environment are files in the guest while it runs, named as the service names them, and gone
//! afterwards. A script whose machine restarts under it has failed: that is WindowsRestart's to do.

use kiln_guest::os::windows::place;
use kiln_guest::os::windows::script::{self, GuestPath};
use kiln_guest::os::windows::task::RunAs;
use kiln_guest::winrm::{CommandLine, WinrmError};
use kiln_host::digest::sha256;
use kiln_host::wait::Control;
use kiln_library::StoredInput;
use kiln_model::plan::{Customizer, Script};
use std::path::PathBuf;
use std::time::Duration;

use super::super::{environment, exit_refused, fetched, origin};
use super::{run_command, task};
use crate::context::Run;
use crate::error::BuildError;
use crate::guest::WindowsGuest;

/// For taking files away again; the guest answers in a second.
const REMOVE_LIMIT: Duration = Duration::from_secs(60);

/// With which rights a script runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rights {
    /// Those of the login: an administrator's over the network.
    Login,
    /// `runElevated`: the build's account, by the scheduler, with all it may.
    Elevated,
    /// `runAsSystem`.
    System,
}

pub(super) async fn run(
    run: &Run,
    guest: &mut WindowsGuest,
    customizer: &Customizer,
    script: &Script,
    input: Option<&StoredInput>,
    rights: Rights,
    valid_exit_codes: &[i32],
) -> Result<String, BuildError> {
    let title = customizer.title();
    run.log.say(format!("Provisioning with powershell script: {}", origin(script)));
    let name = uuid::Uuid::new_v4();
    let environment_path = path(format!("c:/Windows/Temp/packer-ps-env-vars-{name}.ps1"))?;
    let script_path = path(format!("c:/Windows/Temp/script-{name}.ps1"))?;
    let variables = script::environment(&environment());
    let (bytes, arguments) = match script {
        Script::Inline(lines) => {
            let text = script::inline(lines, Some(&environment_path));
            (script::file_bytes(&text), script::file_arguments(&script_path))
        }
        Script::Fetched(source) => (
            fetched(customizer, source, input)?,
            script::call_arguments(&script_path, Some(&environment_path)),
        ),
    };
    let files = [
        PlacedFile { path: environment_path, bytes: script::file_bytes(&variables) },
        PlacedFile { path: script_path, bytes },
    ];
    let ended = match rights {
        Rights::Login => match place(run, guest, &title, None, &files).await {
            Ok(()) => over_the_connection(run, guest, &title, &arguments).await,
            Err(error) => Err(error),
        },
        Rights::Elevated => {
            let user = guest.account.user.clone();
            let run_as = RunAs::User(&user);
            task::run(run, guest, &title, run_as, &arguments, &files, &mut task::Log).await
        }
        Rights::System => {
            task::run(run, guest, &title, RunAs::System, &arguments, &files, &mut task::Log).await
        }
    };
    remove(run, guest, &files.each_ref().map(|file| &file.path)).await;
    let code = ended?;
    if !valid_exit_codes.contains(&code) {
        return Err(exit_refused(&title, code, valid_exit_codes));
    }
    Ok(format!("exit code {code}"))
}

async fn over_the_connection(
    run: &Run,
    guest: &WindowsGuest,
    title: &str,
    arguments: &str,
) -> Result<i32, BuildError> {
    let line = CommandLine::cmd(title, format!("{} {arguments}", script::POWERSHELL));
    let end = run_command(run, guest, &line, &run.control).await?.map_err(|source| lost(title, source))?;
    if end.gaps > 0 {
        run.journal.warn(format!("{title}: some of its output was lost with a connection"));
    }
    // Windows shows exit codes signed.
    Ok(end.code.cast_signed())
}

/// Why a script has no end that could be judged.
pub(super) fn lost(title: &str, source: WinrmError) -> BuildError {
    let detail = match source {
        WinrmError::ShellGone { .. } => {
            "the guest restarted while the script ran, or its WinRM service did; a script that needs a restart \
             leaves it to a WindowsRestart customizer after it"
        }
        _ => "the script could not be run to its end",
    };
    BuildError::Customizer { title: title.to_owned(), detail: detail.to_owned(), source: Some(source.into()) }
}

/// The name of a file of ours, which holds nothing that needs quoting.
pub(super) fn path(text: String) -> Result<GuestPath, BuildError> {
    GuestPath::new(text.clone()).ok_or_else(|| BuildError::GuestPath { path: text })
}

/// A file of a step's own, in the guest while the step runs.
#[derive(Debug, Clone)]
pub(super) struct PlacedFile {
    pub path: GuestPath,
    pub bytes: Vec<u8>,
}

/// Puts a step's files into the guest, the small ones all with one command. `folder` is made first.
pub(super) async fn place(
    run: &Run,
    guest: &WindowsGuest,
    title: &str,
    folder: Option<&GuestPath>,
    files: &[PlacedFile],
) -> Result<(), BuildError> {
    let (small, large): (Vec<_>, Vec<_>) =
        files.iter().partition(|file| file.bytes.len() <= place::SMALL_FILE);
    let failed = |detail: String, source: Option<WinrmError>| BuildError::Customizer {
        title: title.to_owned(),
        detail,
        source: source.map(Into::into),
    };
    let these: Vec<(&GuestPath, &[u8])> = small.iter().map(|file| (&file.path, &file.bytes[..])).collect();
    let text = place::place(folder, &these);
    let asked = guest.guest.ask_powershell("placing files", &text, &run.control);
    let said = guest.vm.guard(&run.control, asked).await?;
    let said = said.map_err(|source| failed("Error uploading the step's files".to_owned(), Some(source)))?;
    place::placed(&said.text(), these.len()).map_err(|why| match why {
        Some((path, error)) => failed(format!("Error uploading {path}: {error}"), None),
        None => failed(format!("Error uploading the step's files: {}", said.excerpt()), None),
    })?;
    for PlacedFile { path, bytes } in large {
        upload(run, guest, title, path, bytes).await?;
    }
    Ok(())
}

async fn upload(
    run: &Run,
    guest: &WindowsGuest,
    title: &str,
    to: &GuestPath,
    bytes: &[u8],
) -> Result<(), BuildError> {
    let local: PathBuf = run.workspace.folder().join("placed");
    std::fs::write(&local, bytes).map_err(BuildError::io("write", &local))?;
    // With slashes, as the service writes such paths: every part of a guest takes them.
    let target = to.as_str().replace('\\', "/");
    let upload = guest.guest.upload(&local, &target, sha256(bytes), |_| {}, &run.control);
    let placed = guest.vm.guard(&run.control, upload).await;
    std::fs::remove_file(&local).map_err(BuildError::io("remove", &local))?;
    placed?.map_err(|source| BuildError::Customizer {
        title: title.to_owned(),
        detail: format!("Error uploading {to}"),
        source: Some(source.into()),
    })?;
    Ok(())
}

/// Takes files of ours away. What cannot be is named: it would stay in the image.
pub(super) async fn remove(run: &Run, guest: &WindowsGuest, files: &[&GuestPath]) {
    let names: Vec<String> =
        files.iter().map(|file| format!("\"{}\"", file.as_str().replace('/', "\\"))).collect();
    let names = names.join(" ");
    let line = CommandLine::cmd("removing a script", format!("del /f /q {names}"));
    // Also after a cancel: the guest may be kept for a look.
    let control = Control::ending_in(REMOVE_LIMIT);
    let removed = guest.vm.guard(&control, guest.guest.exec(&line, None, &control)).await;
    if !matches!(&removed, Ok(Ok(output)) if output.success()) && run.control.check().is_ok() {
        run.journal.warn(format!("files of this build stay in the image: {names}"));
    }
}

//! The PowerShell customizer: the service's own two ways to run a script, and the scheduler's for elevated ones.
//!
//! The script and its environment are files in the guest while it runs, named as the service names them, and gone
//! afterwards. A large script is put there as a File customizer's file is, before the others. A script whose machine restarts under it has failed: that is WindowsRestart's to do.

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

use super::super::{and_its_script, environment, exit_refused, origin, stored};
use super::{file, run_command, task};
use crate::context::Run;
use crate::error::BuildError;
use crate::guest::WindowsGuest;
use crate::scripts;

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
    let mut files =
        vec![PlacedFile { path: environment_path.clone(), bytes: script::file_bytes(&variables) }];
    let mut large = None;
    let arguments = match script {
        Script::Inline(lines) => {
            let text = script::inline(lines, Some(&environment_path));
            files.push(PlacedFile { path: script_path.clone(), bytes: script::file_bytes(&text) });
            script::file_arguments(&script_path)
        }
        Script::Fetched(source) => {
            let input = stored(customizer, source, input)?;
            if scripts::is_file(&customizer.action, input.size) {
                large = Some(input);
            } else {
                let bytes = scripts::as_bytes(customizer, input)?;
                files.push(PlacedFile { path: script_path.clone(), bytes });
            }
            script::call_arguments(&script_path, Some(&environment_path))
        }
    };
    let step = Step { title: &title, rights, arguments: &arguments, files: &files };
    let came = match large {
        Some(input) => {
            let target = with_slashes(&script_path);
            file::put(run, guest, customizer, input, &target).await.map(|way| Some((input, way)))
        }
        None => Ok(None),
    };
    let ended = match came {
        Ok(placed) => place_and_run(run, guest, step).await.map(|code| (code, placed)),
        Err(error) => Err(error),
    };
    remove(run, guest, &[&environment_path, &script_path]).await;
    let (code, placed) = ended?;
    if !valid_exit_codes.contains(&code) {
        return Err(exit_refused(&title, code, valid_exit_codes));
    }
    let message = format!("exit code {code}");
    Ok(match placed {
        Some((input, way)) => and_its_script(message, input, way),
        None => message,
    })
}

/// A script that is started in one of the ways there are.
struct Step<'a> {
    title: &'a str,
    rights: Rights,
    /// PowerShell's.
    arguments: &'a str,
    /// What it needs besides what lies in the guest already.
    files: &'a [PlacedFile],
}

async fn place_and_run(run: &Run, guest: &mut WindowsGuest, step: Step<'_>) -> Result<i32, BuildError> {
    let Step { title, rights, arguments, files } = step;
    match rights {
        Rights::Login => {
            place(run, guest, title, None, files).await?;
            over_the_connection(run, guest, title, arguments).await
        }
        Rights::Elevated => {
            let user = guest.account.user.clone();
            task::run(run, guest, title, RunAs::User(&user), arguments, files, &mut task::Log).await
        }
        Rights::System => task::run(run, guest, title, RunAs::System, arguments, files, &mut task::Log).await,
    }
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

/// As the service writes such paths: every part of a guest takes them.
fn with_slashes(path: &GuestPath) -> String {
    path.as_str().replace('\\', "/")
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
    let target = with_slashes(to);
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

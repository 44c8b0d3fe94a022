//! `kiln build` where a server runs: the same build, done there.
//!
//! ```text
//!  template ─ check here ─► put (a name of its own) ─► run ─► follow ─► download into -o ─► delete the template
//!                                                       ▲
//!                                              Ctrl-C: cancel ─ again: kill
//! ```
//! What is printed and how it ends is as without a server. The template is gone afterwards; the
//! run and its artifacts stay on the server as long as others do.

use std::cell::RefCell;

use anyhow::Context as _;
use kiln_build::run_dir::RunId;
use kiln_model::event::RunOutput;

use super::output::{artifact_path, fetch};
use super::session::wait_for;
use super::signals::{Signals, Stop};
use super::template::Upload;
use super::{End, Surroundings};
use crate::client::{Client, follow};
use crate::exit::{ExitStatus, Failure};
use crate::progress::report::{Place, Report};
use crate::progress::{Outcome, Show, final_object};
use crate::settings::BuildSettings;

/// Of a template's name, so that what makes it unique fits behind it.
const NAME_KEPT: usize = 48;

pub async fn build(around: &Surroundings<'_>, settings: &BuildSettings, client: &Client) -> End {
    let printer = around.printer;
    let file = settings.template.shown();
    let upload = match Upload::prepare(around, &settings.template) {
        Ok((upload, problems)) => {
            super::show_problems(around, &file, &problems);
            upload
        }
        Err(why) => return super::refused(around, &file, settings.json, why),
    };
    // Before anything is started: a folder that cannot be made is not worth an hour.
    std::fs::create_dir_all(&settings.output)
        .with_context(|| format!("cannot make the output directory {}", settings.output.display()))
        .map_err(Failure::host)?;
    printer.talk(&format!("building on {}", client.link.shown()));

    // From here on a signal is a request to the build, not the end of this process.
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    let name = unique(&upload.name);
    let run = match begin(around, client, upload, &name, &mut signals).await {
        Ok(run) => run,
        Err(failure) => {
            remove(around, client, &name).await;
            return Err(failure);
        }
    };
    let outcome = watch(around, settings, client, &name, &run, &mut signals).await?;
    let files: Vec<(String, RunOutput)> = outcome
        .run
        .outputs
        .iter()
        .map(|output| (artifact_path(&outcome.run.run_id, &output.file), output.clone()))
        .collect();
    let fetched = tokio::select! {
        fetched = fetch(around, client, &files, &settings.output) => fetched,
        _ = signals.next() => Err(Failure::input(anyhow::anyhow!("stopped while downloading"))),
    };
    if let Err(failure) = fetched {
        // What was built is not lost: it can still be fetched by this name.
        return Err(failure
            .hint(format!("what was built is on the server: `kiln output download {name}` brings it here"))
            .hint(format!("`kiln template delete {name} --purge` removes it there")));
    }
    remove(around, client, &name).await;

    let status = outcome.end.as_ref().map_or(ExitStatus::Unexpected, |end| {
        ExitStatus::of_run(end.state, end.failure.as_ref().map(|failure| failure.fault))
    });
    let place = Place::Server { server: client.link.shown(), template: &name };
    let report = Report {
        outcome: &outcome,
        place,
        output_dir: Some(&settings.output),
        kept_on_error: false,
        paint: printer.err,
    };
    report.lines().iter().for_each(|line| printer.talk(line));
    if settings.json {
        printer.data(&final_object(&outcome, place, Some(&settings.output), status));
    } else {
        for output in &outcome.run.outputs {
            printer.data(&settings.output.join(&output.file).display().to_string());
        }
    }
    Ok(status)
}

/// Stores the template and asks for its run.
async fn begin(
    around: &Surroundings<'_>,
    client: &Client,
    upload: Upload,
    name: &str,
    signals: &mut Signals,
) -> Result<String, Failure> {
    tokio::select! {
        run = async {
            upload.put(around, client, name, false).await?;
            Ok(client.start_run(name).await?)
        } => run,
        _ = signals.next() => Err(Failure::input(anyhow::anyhow!("stopped before a run began"))),
    }
}

/// Shows the run to its end, and hands on requests to stop. A run that cannot be followed any
/// more is left alone: nobody asked for its end.
async fn watch(
    around: &Surroundings<'_>,
    settings: &BuildSettings,
    client: &Client,
    name: &str,
    run: &str,
    signals: &mut Signals,
) -> Result<Outcome, Failure> {
    // One task, two branches that both show things: never at the same time.
    let show = RefCell::new(Show::new(around.printer, settings.json, around.verbose > 0));
    let mut following = Box::pin(follow(client, name, run, &show));
    let followed = loop {
        tokio::select! {
            followed = &mut following => break followed,
            stop = signals.next() => {
                let (line, force) = match stop {
                    Stop::CleanUp => ("stopping: the build ends and cleans up; Ctrl-C again kills it", false),
                    Stop::AtOnce => ("killing the build", true),
                };
                show.borrow_mut().talk(&around.printer.format_warning(line));
                if let Err(error) = client.cancel_run(name, force).await {
                    show.borrow_mut().talk(&format!("cannot ask the build to stop: {error}"));
                }
            }
        }
    };
    drop(following);
    followed.map_err(|error| {
        Failure::from(error).hint(format!("the run may go on: `kiln run watch {name}` shows it"))
    })?;
    Ok(show.into_inner().finish())
}

/// Removes the template; what it left stays. A failure here is not one of the build.
async fn remove(around: &Surroundings<'_>, client: &Client, name: &str) {
    let removed = async {
        let pending = client.delete_template(name, true, false).await?;
        wait_for(around, client, pending, &format!("removing {name} from the server")).await
    };
    if let Err(failure) = removed.await {
        around.printer.warning(&format!("the server still has the template {name}: {:#}", failure.error));
    }
}

/// A name that no other build has.
fn unique(name: &str) -> String {
    let kept: String = name.chars().take(NAME_KEPT).collect();
    format!("{kept}-{}", RunId::new(&kept).short())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_builds_of_one_template_do_not_meet() {
        let (one, two) = (unique("hello"), unique("hello"));
        assert!(one.starts_with("hello-") && one != two, "{one} {two}");
        assert!(unique(&"x".repeat(64)).len() <= 64);
    }
}

//! Distributing: each target on its own. One that cannot be had takes nothing from the others.

mod vhd;

use kiln_model::event::{RunEventKind, RunOutput, StepRef};
use kiln_model::plan::Distributor;

use crate::context::Run;
use crate::error::BuildError;
use crate::generalize::Generalized;

/// What became of the targets.
#[derive(Debug, Default)]
pub struct Distributed {
    /// Of those that are whole, in template order.
    pub outputs: Vec<RunOutput>,
    /// Those that left nothing, and why.
    pub missed: Vec<Missed>,
}

/// A target that could not be served.
#[derive(Debug)]
pub struct Missed {
    pub step: StepRef,
    pub error: BuildError,
}

/// Hands the image to every target of the template.
///
/// # Errors
/// A cancel and the deadline, which end all of it; a target's own failure is in the answer.
pub async fn run(run: &Run, image: Generalized) -> Result<Distributed, BuildError> {
    let mut done = Distributed::default();
    for distributor in &run.plan.distributors {
        let name = distributor.run_output_name();
        let step = run.journal.step(format!("distribute/{name}"), format!("VHD \"{name}\""));
        let published = match distributor {
            Distributor::Vhd { run_output_name, tags } => {
                vhd::publish(run, &image, run_output_name, tags, step.reference()).await
            }
        };
        match published {
            Ok(output) => {
                run.log.say(format!("Distributed {name}: {} ({} bytes)", output.file, output.size));
                run.journal.append(RunEventKind::OutputPublished { output: output.clone() });
                step.succeed(format!("sha256 {}", output.sha256));
                done.outputs.push(output);
            }
            Err(error) if error.interrupted().is_some() => return Err(error),
            Err(error) => {
                run.log.error(error.sentence());
                let reference = step.reference().clone();
                step.fail(error.sentence());
                done.missed.push(Missed { step: reference, error });
            }
        }
    }
    // Until here: an overlay is nothing without its base image.
    drop(image);
    Ok(done)
}

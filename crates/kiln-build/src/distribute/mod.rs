//! Distributing: each target on its own.

mod vhd;

use kiln_model::event::{RunEventKind, RunOutput};
use kiln_model::plan::Distributor;

use crate::context::Run;
use crate::error::BuildError;
use crate::generalize::Generalized;

/// Hands the image to every target of the template.
pub async fn run(run: &Run, image: Generalized) -> Result<Vec<RunOutput>, BuildError> {
    let mut outputs = Vec::new();
    for distributor in &run.plan.distributors {
        let name = distributor.run_output_name();
        let step = run.journal.step(format!("distribute/{name}"), format!("VHD \"{name}\""));
        let output = match distributor {
            Distributor::Vhd { run_output_name, tags } => {
                vhd::publish(run, &image, run_output_name, tags, step.reference()).await?
            }
        };
        run.log.say(format!("Distributed {name}: {} ({} bytes)", output.file, output.size));
        run.journal.append(RunEventKind::OutputPublished { output: output.clone() });
        step.succeed(format!("sha256 {}", output.sha256));
        outputs.push(output);
    }
    // Until here: an overlay is nothing without its base image.
    drop(image);
    Ok(outputs)
}

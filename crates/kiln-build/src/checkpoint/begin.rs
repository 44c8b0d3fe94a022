//! Where a run begins, when others may come to the same states at this moment.
//!
//! ```text
//!   key, portrait ─► reuse: the furthest state that holds ─► is the next one made elsewhere?
//!                      ▲                                        ├ no: made here, and whoever comes to it waits for us
//!                      └────────────── wait until it is there ──┘ yes
//! ```

use kiln_library::{MachineMark, Making};
use kiln_model::Sha256;

use super::keep::Keeping;
use super::key::Chain;
use super::layers::one_file_system;
use super::lineage::{Begin, Lineage};
use super::reuse::reuse;
use crate::context::Run;
use crate::error::BuildError;
use crate::inputs::Inputs;
use crate::run_dir::CheckpointWishes;

impl Lineage {
    /// Chooses where the run begins; says what is reused and what is not.
    pub async fn begin(run: &Run, inputs: &Inputs) -> Result<Self, BuildError> {
        let Some(wishes) = &run.request.checkpoints else { return Ok(Self::none()) };
        let shelf = run.library.root().to_owned();
        match one_file_system(run.workspace.folder(), &shelf) {
            Ok(true) => {}
            Ok(false) => {
                run.journal.info(format!(
                    "nothing is kept and nothing reused: runs and {} lie on different file systems",
                    shelf.display()
                ));
                return Ok(Self::none());
            }
            Err(error) => return Err(BuildError::io("look at", shelf)(error)),
        }
        let chain = Chain::of(&run.plan, &|position| Some(inputs.get(position)?.sha256));
        let portrait = crate::boot::portrait(run).await?;
        let machine =
            MachineMark { digest: Sha256::from_bytes(portrait.digest()), lines: portrait.lines().to_vec() };
        let (begin, making) = match wishes.may_reuse() {
            true => together(run, wishes, &chain, &machine).await?,
            false => (Begin::Base, Vec::new()),
        };
        let keeping = match wishes.keep {
            true => Some(Keeping::new(run, wishes, chain, machine, &begin, making)?),
            false => None,
        };
        Ok(Self::new(begin, keeping))
    }
}

/// Of all that come to the same states one makes them, and the others wait.
async fn together(
    run: &Run,
    wishes: &CheckpointWishes,
    chain: &Chain,
    machine: &MachineMark,
) -> Result<(Begin, Vec<(Sha256, Making)>), BuildError> {
    loop {
        let (begin, said) = reuse(run, wishes, chain, machine).await?;
        let next = match &begin {
            Begin::Base => 0,
            Begin::Warm(earlier) | Begin::Cold(earlier) => earlier.after + 1,
            Begin::Image(_) => chain.links.len() + 1,
        };
        let mut wanted = chain.shared(next, &wishes.policy);
        let mut making = Vec::new();
        if let Some((key, title)) = wanted.next().filter(|_| wishes.keep) {
            let Some(first) = run.library.make_alone(key)? else {
                let waiting = format!("wait for another run that comes to the same: {title}");
                let step = run.journal.step("elsewhere", waiting);
                run.library.made_elsewhere(key, &run.control).await?;
                step.succeed("");
                continue;
            };
            making.push((key, first));
            for (key, _) in wanted {
                // Somebody else has come there by another way.
                let Some(held) = run.library.make_alone(key)? else { continue };
                making.push((key, held));
            }
        }
        say(run, &said);
        return Ok((begin, making));
    }
}

fn say(run: &Run, said: &[String]) {
    for line in said {
        run.journal.info(line.clone());
        run.log.telemetry(line);
    }
}

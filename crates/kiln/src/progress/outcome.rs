//! What is left of a run when it has ended.

use jiff::Timestamp;
use kiln_model::event::{Failure, RunEvent, RunEventKind};
use kiln_model::run::RunState;
use kiln_model::{IllegalEvent, RunView};

#[derive(Debug, Default)]
pub struct Outcome {
    /// The run as its events tell it.
    pub run: RunView,
    /// Kept by itself: how a run ended counts also where its events contradict one another, as
    /// those of a worker that died before its first event do.
    pub end: Option<End>,
    /// The first event that could not follow those before it.
    pub contradiction: Option<IllegalEvent>,
    /// Wall clock of the first event.
    began: Option<Timestamp>,
}

/// The last event of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    pub state: RunState,
    pub message: String,
    pub failure: Option<Failure>,
    /// How long the run took, milliseconds.
    pub ms: u64,
}

impl Outcome {
    pub fn fold(&mut self, event: &RunEvent) {
        let time = event.time.parse().ok();
        self.began = self.began.or(time);
        if let RunEventKind::RunEnded { state, message, failure, ms } = &event.event {
            // Who settles a run after its worker's death has no clock of the run's own:
            // its stopwatch begins anew, so the wall clock has to do.
            let settled = *ms < self.run.elapsed_ms;
            let ms = match (self.began, time) {
                (Some(began), Some(ended)) if settled => {
                    u64::try_from(ended.duration_since(began).as_millis()).unwrap_or(self.run.elapsed_ms)
                }
                _ => *ms,
            };
            let (message, failure) = (message.clone(), failure.clone());
            self.end = Some(End { state: *state, message, failure, ms });
        }
        if self.contradiction.is_none() {
            self.contradiction = self.run.apply(event).err();
        }
    }
}

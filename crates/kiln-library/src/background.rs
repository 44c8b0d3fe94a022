//! Long work on files, off the threads that serve the network.
//!
//! Such work cannot be dropped where it stands, so it asks its control between two chunks; whoever started it waits
//! until it has heard the answer, and nothing is written behind anybody's back.

use std::io;
use std::time::{Duration, Instant};

use kiln_host::wait::{Control, Interrupted};
use tokio::sync::watch;

/// People cannot read faster.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// The work's line to whoever started it.
pub(crate) struct Line {
    control: Control,
    done: watch::Sender<u64>,
    told: Instant,
}

impl Line {
    /// To be called after each chunk with the sum of bytes done. Its error is to end the work.
    pub fn report(&mut self, done: u64) -> io::Result<()> {
        self.control.check().map_err(io::Error::other)?;
        if self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            self.done.send_replace(done);
        }
        Ok(())
    }
}

/// Why the work gave no answer of its own.
pub(crate) enum Ended {
    Interrupted(Interrupted),
    Failed(io::Error),
}

/// Runs `work` on a thread where it may block, telling `progress` a few times a second.
pub(crate) async fn run<T: Send + 'static>(
    control: &Control,
    progress: &(dyn Fn(u64) + Send + Sync),
    work: impl FnOnce(&mut Line) -> io::Result<T> + Send + 'static,
) -> Result<T, Ended> {
    control.check().map_err(Ended::Interrupted)?;
    let (sender, mut done) = watch::channel(0);
    let mut line = Line { control: control.clone(), done: sender, told: Instant::now() };
    let worker = tokio::task::spawn_blocking(move || work(&mut line));
    // Ends when the work drops its end of the line.
    while done.changed().await.is_ok() {
        let bytes = *done.borrow_and_update();
        progress(bytes);
    }
    match worker.await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => match error.get_ref().and_then(|inner| inner.downcast_ref::<Interrupted>()) {
            Some(why) => Err(Ended::Interrupted(*why)),
            None => Err(Ended::Failed(error)),
        },
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that shuts down cancels it.
            Err(_) => Err(Ended::Interrupted(Interrupted::Canceled)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_ends_when_it_is_told_to() {
        let control = Control::ending_in(Duration::from_secs(60));
        let progress = |done| {
            assert!(done > 0);
            control.cancel();
        };
        let ended = run(&control, &progress, |line| -> io::Result<()> {
            for done in 1.. {
                // Stands for a chunk of work.
                std::thread::sleep(Duration::from_millis(1));
                line.report(done)?;
            }
            Ok(())
        });
        assert!(matches!(ended.await, Err(Ended::Interrupted(Interrupted::Canceled))));
    }
}

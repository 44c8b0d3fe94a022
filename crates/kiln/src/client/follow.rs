//! A run of a server, shown as one of this process's own would be.

use std::cell::RefCell;
use std::time::Duration;

use kiln_model::event::{RunEvent, RunEventKind};

use super::{Client, ClientError, Stream, encode};
use crate::progress::Show;

/// The log's last lines come with its end; a server that keeps it open is not waited for.
const LOG_LIMIT: Duration = Duration::from_secs(15);

/// Shows a run from its first event to its last.
///
/// # Errors
/// There is no such run; the server stays away; its events are not understood.
pub async fn follow(
    client: &Client,
    template: &str,
    run: &str,
    show: &RefCell<Show<'_>>,
) -> Result<(), ClientError> {
    let run = format!("/runs/{}", encode(run));
    let log = async {
        let mut stream = Stream::new(&client.link, client.below(template, &format!("{run}/log")));
        loop {
            let event = stream.next().await?;
            if event.name == "end" {
                return Ok::<(), ClientError>(());
            }
            show.borrow_mut().log(format!("{}\n", event.data).as_bytes());
        }
    };
    let events = async {
        let mut stream = Stream::new(&client.link, client.below(template, &format!("{run}/events")));
        loop {
            let event = stream.next().await?;
            if event.name == "end" {
                return Ok::<Option<RunEvent>, ClientError>(None);
            }
            let event: RunEvent = serde_json::from_str(&event.data)
                .map_err(|error| client.link.strange(format!("an event of the run: {error}")))?;
            if matches!(event.event, RunEventKind::RunEnded { .. }) {
                return Ok(Some(event));
            }
            show.borrow_mut().event(&event);
        }
    };
    tokio::pin!(log, events);
    let mut log_ended = false;
    let last = loop {
        tokio::select! {
            // A step's start before what it prints.
            biased;
            last = &mut events => break last?,
            // A log that cannot be had is no reason not to follow the run.
            _ = &mut log, if !log_ended => log_ended = true,
        }
    };
    if !log_ended {
        let _ = tokio::time::timeout(LOG_LIMIT, log).await;
    }
    if let Some(last) = last {
        show.borrow_mut().event(&last);
    }
    Ok(())
}

//! A command's time with a server.

use std::sync::Arc;

use crate::args::ServerArgs;
use crate::client::{Client, ClientError, Embed, Local, Operation, Pending, find};
use crate::exit::Failure;
use crate::progress::waiting::Waiting;
use crate::settings::ServerSettings;

use super::{End, Surroundings};

/// Runs `work` against the server to talk to; where none runs, this process is it meanwhile.
pub async fn with_server(
    around: &Surroundings<'_>,
    args: ServerArgs,
    work: impl AsyncFnOnce(&Client) -> End,
) -> End {
    let settings = ServerSettings::resolve(args, around.environment).map_err(Failure::input)?;
    let Some((client, local)) = find(around, &settings, Embed::Yes).await? else {
        return Err(anyhow::anyhow!("no server was found or made").into());
    };
    let end = work(&client).await;
    leave(client, local).await;
    end
}

/// Ends what this process serves itself.
pub async fn leave(client: Client, local: Option<Arc<Local>>) {
    // Its connections first: a server waits for them.
    drop(client);
    if let Some(local) = local {
        local.end().await;
    }
}

/// Waits for an operation; what it failed with is the command's error.
pub async fn wait_for(
    around: &Surroundings<'_>,
    client: &Client,
    pending: Option<Pending>,
    what: &str,
) -> Result<(), Failure> {
    let Some(pending) = pending else { return Ok(()) };
    let mut waiting = Waiting::new(around.printer, what);
    let ended = client.wait(&pending, || waiting.tick()).await;
    drop(waiting);
    match ended? {
        Operation::Succeeded => Ok(()),
        Operation::Canceled => Err(Failure::input(anyhow::anyhow!("{what}: it was canceled"))),
        Operation::Failed(code, message) => {
            let said = if code.is_empty() { message } else { format!("{code}: {message}") };
            Err(Failure::input(anyhow::Error::msg(said).context(format!("{what} failed"))))
        }
    }
}

/// A failure that says which thing the server does not know, and how to see what it has.
pub fn not_found(error: ClientError, what: &str, hint: &str) -> Failure {
    if error.is_not_found() {
        Failure::input(anyhow::Error::new(error).context(format!("the server has no {what}"))).hint(hint)
    } else {
        error.into()
    }
}

//! QMP, QEMU's control protocol: JSON lines over a socket, answers matched to commands by id, events in between.
//!
//! ```text
//!   execute ──► writer task ──► QEMU ──► reader task ──► the waiting execute, by id
//!                                             └────────► events, in order, none lost
//! ```
//!
//! Two tasks own the two halves of the socket, so an `execute` that is dropped half-way tears no line and loses nobody
//! else's answer. They end with the connection; then every waiting and later command fails with the reason why.
//!
//! Specification: QEMU's docs/interop/qmp-spec.rst. Arguments and answers are not logged: they can hold secrets.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_host::wait::{Control, Interrupted};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

/// QEMU's longest answer (its whole schema) is a few hundred KiB.
const LINE_LIMIT: usize = 8 << 20;
/// Commands that take long do their work in the background and tell by events. QEMU's main loop is stuck otherwise.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
const GREETING_LIMIT: Duration = Duration::from_secs(30);

/// A connection to one QEMU. Clones share it.
#[derive(Clone, Debug)]
pub struct Qmp {
    lines: mpsc::UnboundedSender<Vec<u8>>,
    calls: Arc<Calls>,
}

/// Something QEMU tells unasked.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub name: String,
    /// An empty object when the event carries nothing.
    pub data: Value,
}

/// Why the connection is no more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    #[error("QEMU closed its control connection")]
    ByQemu,
    #[error("QEMU's control connection broke: {0}")]
    Broken(String),
    #[error("QEMU sent a line that is not QMP: {0}")]
    NotQmp(String),
    #[error("QEMU sent a line of more than {LINE_LIMIT} bytes")]
    TooLong,
}

#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU's own words. `class` is `GenericError` for nearly everything.
    #[error("QEMU refused {command}: {desc} ({class})")]
    Refused { command: String, class: String, desc: String },
    #[error("no answer to {command}")]
    Closed { command: String, source: Closed },
    #[error("QEMU did not answer {command} within {} s", .limit.as_secs())]
    Silent { command: String, limit: Duration },
    #[error("QEMU greeted with {greeting}, which is not QMP")]
    Greeting { greeting: String },
    #[error("waiting for QEMU's greeting")]
    Interrupted { source: Interrupted },
}

impl Qmp {
    /// Takes over a fresh connection: reads the greeting and leaves negotiation mode. Events come by the receiver, in
    /// order; its end is the connection's end.
    pub async fn open(
        stream: UnixStream,
        control: &Control,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Event>), QmpError> {
        let (read, write) = stream.into_split();
        let mut read = BufReader::new(read);
        let greeting = control
            .within(GREETING_LIMIT)
            .guard(read_line(&mut read))
            .await
            .map_err(|source| QmpError::Interrupted { source })?
            .map_err(|source| QmpError::Closed { command: "the connection".into(), source })?;
        let is_greeting = serde_json::from_slice::<Value>(&greeting).is_ok_and(|it| it["QMP"].is_object());
        if !is_greeting {
            return Err(QmpError::Greeting { greeting: excerpt(&greeting) });
        }
        let (lines, to_write) = mpsc::unbounded_channel();
        let (events, received) = mpsc::unbounded_channel();
        let calls = Arc::new(Calls::default());
        let calls_of_reader = Arc::clone(&calls);
        let writer = tokio::spawn(write_lines(write, to_write));
        let reader = read_lines(read, Arc::clone(&calls), events);
        tokio::spawn(async move {
            let why = reader.await;
            // Both halves go, or QEMU would never see the end of a connection that we gave up.
            writer.abort();
            calls_of_reader.close(why);
        });
        let qmp = Self { lines, calls };
        let negotiated = control.guard(qmp.execute("qmp_capabilities", json!({}))).await;
        negotiated.map_err(|source| QmpError::Interrupted { source })??;
        Ok((qmp, received))
    }

    /// Runs one command and returns what it returned. Ends by the answer, by the connection's end, or after a minute.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let closed = |source| QmpError::Closed { command: command.into(), source };
        let call = self.calls.begin().map_err(closed)?;
        let mut line = json!({ "execute": command, "arguments": arguments, "id": call.id }).to_string();
        line.push('\n');
        // When the writer is gone the reader ends too, and says why.
        let _ = self.lines.send(line.into_bytes());
        let answer = Control::ending_in(ANSWER_LIMIT).guard(call.answer()).await;
        let answer = answer.map_err(|_| QmpError::Silent { command: command.into(), limit: ANSWER_LIMIT })?;
        match answer.map_err(closed)? {
            Answer::Return(value) => Ok(value),
            Answer::Error { class, desc } => Err(QmpError::Refused { command: command.into(), class, desc }),
        }
    }

    /// Runs a command of the human monitor, where QMP has none of its own.
    pub async fn human(&self, line: &str) -> Result<String, QmpError> {
        let answer = self.execute("human-monitor-command", json!({ "command-line": line })).await?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }
}

enum Answer {
    Return(Value),
    Error { class: String, desc: String },
}

/// Who waits for which answer.
#[derive(Debug, Default)]
struct Calls {
    next: AtomicU64,
    state: Mutex<CallState>,
}

#[derive(Default)]
struct CallState {
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    closed: Option<Closed>,
}

impl std::fmt::Debug for CallState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} waiting, closed: {:?}", self.waiting.len(), self.closed)
    }
}

impl Calls {
    fn state(&self) -> MutexGuard<'_, CallState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Self>) -> Result<Call, Closed> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (tx, answer) = oneshot::channel();
        let mut state = self.state();
        if let Some(closed) = &state.closed {
            return Err(closed.clone());
        }
        state.waiting.insert(id, tx);
        drop(state);
        Ok(Call { id, answer, calls: Arc::clone(self) })
    }

    fn finish(&self, id: u64, answer: Answer) {
        match self.state().waiting.remove(&id) {
            // Nobody receives what was given up meanwhile.
            Some(waiting) => drop(waiting.send(answer)),
            None => tracing::debug!(id, "an answer nobody waits for"),
        }
    }

    fn close(&self, why: Closed) {
        let mut state = self.state();
        state.closed = Some(why);
        state.waiting.clear();
    }
}

/// One command on its way; forgotten when dropped.
struct Call {
    id: u64,
    answer: oneshot::Receiver<Answer>,
    calls: Arc<Calls>,
}

impl Call {
    async fn answer(mut self) -> Result<Answer, Closed> {
        (&mut self.answer).await.map_err(|_| self.calls.state().closed.clone().unwrap_or(Closed::ByQemu))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.calls.state().waiting.remove(&self.id);
    }
}

async fn write_lines(mut write: OwnedWriteHalf, mut lines: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(line) = lines.recv().await {
        if write.write_all(&line).await.is_err() {
            // The reader sees the same end and tells it.
            return;
        }
    }
}

async fn read_lines(
    mut read: BufReader<OwnedReadHalf>,
    calls: Arc<Calls>,
    events: mpsc::UnboundedSender<Event>,
) -> Closed {
    loop {
        let taken = match read_line(&mut read).await {
            Ok(line) => take(&line, &calls, &events),
            Err(why) => Err(why),
        };
        if let Err(why) = taken {
            return why;
        }
    }
}

/// One line: an answer, an event, or something newer than us, which is passed over.
fn take(line: &[u8], calls: &Calls, events: &mpsc::UnboundedSender<Event>) -> Result<(), Closed> {
    let mut message: Map<String, Value> =
        serde_json::from_slice(line).map_err(|_| Closed::NotQmp(excerpt(line)))?;
    if let Some(Value::String(name)) = message.remove("event") {
        let data = message.remove("data").unwrap_or_else(|| json!({}));
        tracing::trace!(name, %data, "event");
        // Nobody listens any more: the machine is being taken down.
        let _ = events.send(Event { name, data });
        return Ok(());
    }
    let Some(id) = message.get("id").and_then(Value::as_u64) else {
        tracing::debug!("a line that is neither answer nor event");
        return Ok(());
    };
    if let Some(value) = message.remove("return") {
        calls.finish(id, Answer::Return(value));
    } else if let Some(error) = message.remove("error") {
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        calls.finish(id, Answer::Error { class: text("class"), desc: text("desc") });
    }
    Ok(())
}

/// Not cancellation-safe: only for whoever owns the reading half.
async fn read_line(read: &mut (impl AsyncBufRead + Unpin)) -> Result<Vec<u8>, Closed> {
    let mut line = Vec::new();
    loop {
        let chunk = match read.fill_buf().await {
            Ok([]) => return Err(Closed::ByQemu),
            Ok(chunk) => chunk,
            // QEMU that was killed leaves unread commands behind.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(Closed::ByQemu),
            Err(error) => return Err(Closed::Broken(error.to_string())),
        };
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let count = end.map_or(chunk.len(), |end| end + 1);
        line.extend_from_slice(&chunk[..count]);
        read.consume(count);
        if line.len() > LINE_LIMIT {
            return Err(Closed::TooLong);
        }
        if end.is_some() {
            if line.trim_ascii().is_empty() {
                line.clear();
                continue;
            }
            return Ok(line);
        }
    }
}

fn excerpt(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(&line[..line.len().min(100)]);
    format!("{:?}", text.trim_end())
}

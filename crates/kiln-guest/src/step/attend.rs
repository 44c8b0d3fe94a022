//! Asking where a step stands, and taking what it printed.

use std::ops::ControlFlow;

use super::launch::Place;
use super::{Following, GOING_DOWN, OutputChunk, nonce};
use crate::guest::script_command;
use crate::session::{Broken, CommandEnd, Session, Stdin, Stream};

/// `attend.sh` ends with this code when it saw the end of the runner.
const RUNNER_GONE: u32 = 10;
/// The most that a login shell may say before our answer begins.
const CHATTER_LIMIT: usize = 64 * 1024;

/// Where a step stands, in the guest's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Unstarted,
    Running,
    Ended,
    /// Another boot, and no exit code.
    Rebooted {
        orderly: bool,
    },
    /// The system is going down, the step has no exit code.
    Stopping,
    /// The runner is gone and left nothing.
    Lost,
    /// The step's folder is gone.
    Gone,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) state: State,
    pub(super) boot_id: String,
    pub(super) code: Option<u32>,
    /// Bytes of both outputs, where they are final.
    pub(super) sizes: Option<(u64, u64)>,
    pub(super) going_down: bool,
    pub(super) detail: String,
}

impl Header {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let mut next = || words.next();
        let (state, boot_id, code, stdout, stderr) = (next()?, next()?, next()?, next()?, next()?);
        let detail = next().unwrap_or("-");
        let state = match (state, detail) {
            ("unstarted", _) => State::Unstarted,
            ("running", _) => State::Running,
            ("ended", _) => State::Ended,
            ("rebooted", detail) => State::Rebooted { orderly: detail == "orderly" },
            ("stopping", _) => State::Stopping,
            ("lost", _) => State::Lost,
            ("gone", _) => State::Gone,
            _ => return None,
        };
        Some(Self {
            state,
            boot_id: boot_id.to_owned(),
            code: code.parse().ok(),
            sizes: stdout.parse().ok().zip(stderr.parse().ok()),
            going_down: matches!(detail, "now" | "later"),
            detail: detail.to_owned(),
        })
    }
}

pub(super) struct Attended {
    pub(super) header: Option<Header>,
    pub(super) end: Result<CommandEnd, Broken>,
}

pub(super) fn saw_the_end(end: &Result<CommandEnd, Broken>) -> bool {
    matches!(end, Ok(CommandEnd::Exited(RUNNER_GONE)))
}

impl Following<'_> {
    /// One answer of the guest. Blocks while the step runs; offsets move on with every byte handed over.
    pub(super) async fn attend(
        &mut self,
        session: &Session,
        place: &Place,
        runner_gone: bool,
        on_output: &mut impl FnMut(OutputChunk<'_>),
    ) -> Attended {
        let marker = format!("kiln-step-{}", nonce());
        let (stdout, stderr) = (self.stdout.to_string(), self.stderr.to_string());
        let last = if runner_gone { "final" } else { "" };
        let script = [GOING_DOWN, include_str!("attend.sh")].concat();
        let command = script_command(&script, &[&marker, &place.folder, &stdout, &stderr, last]);
        let mut out = AfterMarker::new(&marker);
        let mut err = AfterMarker::new(&marker);
        let end = session
            .run(&command, Stdin::Bytes(b""), |stream, bytes| match stream {
                Stream::Stdout => out.push(bytes, |bytes| {
                    self.stdout += bytes.len() as u64;
                    on_output(OutputChunk::Stdout(bytes));
                }),
                Stream::Stderr => err.push(bytes, |bytes| {
                    self.stderr += bytes.len() as u64;
                    on_output(OutputChunk::Stderr(bytes));
                }),
            })
            .await;
        Attended { header: out.line.as_deref().and_then(|line| Header::parse(line.trim_start())), end }
    }
}

/// Passes on what follows the line that begins with the marker.
struct AfterMarker {
    marker: Vec<u8>,
    before: Vec<u8>,
    /// The rest of the marker's line, once it is there.
    line: Option<String>,
}

impl AfterMarker {
    fn new(marker: &str) -> Self {
        Self { marker: marker.as_bytes().to_vec(), before: Vec::new(), line: None }
    }

    fn push(&mut self, bytes: &[u8], mut pass: impl FnMut(&[u8])) -> ControlFlow<()> {
        if self.line.is_some() {
            pass(bytes);
            return ControlFlow::Continue(());
        }
        self.before.extend_from_slice(bytes);
        while let Some(end) = self.before.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.before.drain(..=end).collect();
            // A login shell may have left its own text without a line end before our marker.
            let Some(at) = line.windows(self.marker.len()).position(|window| window == self.marker) else {
                continue;
            };
            let rest = &line[at + self.marker.len()..];
            self.line = Some(String::from_utf8_lossy(rest.trim_ascii_end()).into_owned());
            let after = std::mem::take(&mut self.before);
            if !after.is_empty() {
                pass(&after);
            }
            return ControlFlow::Continue(());
        }
        if self.before.len() > CHATTER_LIMIT { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_the_guest_writes_them() {
        let header = Header::parse("ended boot-1 0 12 3 no").unwrap();
        assert_eq!((header.state, header.code, header.sizes), (State::Ended, Some(0), Some((12, 3))));
        assert!(!header.going_down);
        assert!(Header::parse("ended b 0 1 2 now").unwrap().going_down);
        assert!(Header::parse("ended b 0 1 2 later").unwrap().going_down);
        assert_eq!(Header::parse("running b - - - -").unwrap().sizes, None);
        assert_eq!(
            Header::parse("rebooted b - 5 0 orderly").unwrap().state,
            State::Rebooted { orderly: true }
        );
        assert_eq!(
            Header::parse("rebooted b - 5 0 abrupt").unwrap().state,
            State::Rebooted { orderly: false }
        );
        assert_eq!(Header::parse("lost b - 5 0 sudo: some words").unwrap().detail, "sudo: some words");
        assert_eq!(Header::parse("dancing b - - - -"), None);
        assert_eq!(Header::parse("ended b"), None);
    }

    #[test]
    fn only_what_follows_the_marker_is_the_steps() {
        let whole = b"hello from .bashrc\nno line end: M ended b\nfirst\nsecond M third\n";
        for border in 0..whole.len() {
            let (mut after, mut passed) = (AfterMarker::new("M"), Vec::new());
            for part in [&whole[..border], &whole[border..]] {
                assert!(after.push(part, |bytes| passed.extend_from_slice(bytes)).is_continue());
            }
            assert_eq!(after.line.as_deref(), Some(" ended b"));
            assert_eq!(passed, b"first\nsecond M third\n");
        }
    }

    #[test]
    fn endless_chatter_is_given_up() {
        let mut after = AfterMarker::new("M");
        assert!(after.push(&[b'x'; CHATTER_LIMIT + 1], |_| ()).is_break());
    }
}

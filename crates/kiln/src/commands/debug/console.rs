//! A guest's serial console on our own standard streams.

use std::io;
use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::Surroundings;
use crate::ui::guest_text::neutralize;
use crate::ui::raw::RawTerminal;

/// Ctrl-], as telnet and virsh have it: no program in a guest needs it.
const LEAVE: u8 = 0x1d;
/// Of what the guest said before.
const TAIL_LINES: usize = 15;

/// Shows what the guest says and types what is typed, until Ctrl-], or until the guest is gone. Where standard input is no
/// terminal, its end is not the end.
pub(super) async fn attach(around: &Surroundings<'_>, socket: &Path, before: &Path) -> io::Result<()> {
    let printer = around.printer;
    let stream = UnixStream::connect(socket).await?;
    for line in tail(before) {
        printer.talk(&neutralize(&line));
    }
    // Typed bytes go as they are, the guest's come as they are: it is its terminal now.
    let raw = RawTerminal::of_stdin()?;
    if raw.is_some() {
        printer.talk("the serial console; Ctrl-] leaves it\r");
    }
    let (mut hears, mut says) = stream.into_split();
    let typing = async {
        let mut stdin = tokio::io::stdin();
        let mut typed = [0; 1024];
        loop {
            let count = stdin.read(&mut typed).await?;
            let typed = &typed[..count];
            if count == 0 && raw.is_none() {
                return std::future::pending::<io::Result<()>>().await;
            }
            if count == 0 || (raw.is_some() && typed.contains(&LEAVE)) {
                return Ok(());
            }
            says.write_all(typed).await?;
        }
    };
    let listening = async {
        let mut said = [0; 4096];
        loop {
            match hears.read(&mut said).await? {
                0 => return io::Result::Ok(()),
                count => printer.raw_data(&said[..count]),
            }
        }
    };
    let ended = tokio::select! {
        ended = typing => ended,
        ended = listening => ended,
    };
    drop(raw);
    printer.talk("");
    ended
}

/// The last lines of the run's own serial log.
fn tail(log: &Path) -> Vec<String> {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|line| (*line).to_owned()).collect()
}

//! `customization.log`, in the form Azure VM Image Builder writes it.
//!
//! Every line is `[<operation id>] PACKER OUT …` or `[<operation id>] PACKER ERR …`
//! (contract: "Stages and log lines"): users grep for `(telemetry) Starting
//! provisioner shell`, `Connected to SSH!` and the like, and find them here too.
//! What a guest prints is capped, so that a chatty script cannot fill the disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Guest output kept of one run, bytes.
pub const OUTPUT_CAP: u64 = 256 << 20;
/// A longer line is broken.
pub const LINE_LIMIT: usize = 16 << 10;

/// The one who opens a log may be root, and its folder another user's: no link is followed, no pipe waited for.
const NO_TRAPS: i32 = rustix::fs::OFlags::NOFOLLOW.union(rustix::fs::OFlags::NONBLOCK).bits().cast_signed();

/// Which of a script's two streams a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Out,
    Err,
}

/// A handle on the log; clones write to the same file.
#[derive(Debug, Clone)]
pub struct CustomizationLog {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    prefix: String,
    guest_bytes: u64,
    capped: bool,
    broken: Option<io::Error>,
}

impl CustomizationLog {
    pub fn open(path: &Path, operation_id: &str) -> io::Result<Self> {
        let file =
            OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(NO_TRAPS).open(path)?;
        let inner =
            Inner { file, prefix: format!("[{operation_id}]"), guest_bytes: 0, capped: false, broken: None };
        Ok(Self { inner: Arc::new(Mutex::new(inner)) })
    }

    /// What Packer says on its own: `==> azure-arm: …`.
    pub fn say(&self, text: impl AsRef<str>) {
        self.lines("PACKER OUT ==> azure-arm: ", text.as_ref());
    }

    /// An error of Packer's own.
    pub fn error(&self, text: impl AsRef<str>) {
        self.lines("PACKER ERR ==> azure-arm: ", text.as_ref());
    }

    /// `(telemetry) Starting provisioner shell` and the like.
    pub fn telemetry(&self, text: &str) {
        let time = jiff::Timestamp::now().strftime("%Y/%m/%d %H:%M:%S");
        self.lines(&format!("PACKER ERR {time} [INFO] "), &format!("(telemetry) {text}"));
    }

    /// One line of the guest's output, without its line feed.
    pub fn guest_line(&self, stream: Stream, line: &[u8]) {
        let mut inner = self.lock();
        if inner.capped {
            return;
        }
        inner.guest_bytes += line.len() as u64 + 1;
        let start = match stream {
            Stream::Out => "PACKER OUT     azure-arm: ",
            Stream::Err => "PACKER ERR ==> azure-arm: ",
        };
        if inner.guest_bytes > OUTPUT_CAP {
            inner.capped = true;
            let note = format!("output past {} MiB is not kept", OUTPUT_CAP >> 20);
            inner.write(start, note.as_bytes());
            return;
        }
        for part in line.chunks(LINE_LIMIT).chain(line.is_empty().then_some(&b""[..])) {
            inner.write(start, part);
        }
    }

    pub fn take_error(&self) -> Option<io::Error> {
        self.lock().broken.take()
    }

    fn lines(&self, start: &str, text: &str) {
        let mut inner = self.lock();
        for line in text.lines() {
            inner.write(start, line.as_bytes());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn write(&mut self, start: &str, text: &[u8]) {
        let mut line = format!("{} {start}", self.prefix).into_bytes();
        line.extend_from_slice(text);
        line.push(b'\n');
        if let Err(error) = self.file.write_all(&line) {
            self.broken = self.broken.take().or(Some(error));
        }
    }
}

/// The last `count` lines of a file, as text; nothing where there is no file.
pub fn tail(path: &Path, count: usize) -> Vec<String> {
    const WINDOW: u64 = 64 << 10;
    let read = || -> io::Result<Vec<u8>> {
        use std::io::{Read as _, Seek as _, SeekFrom};
        let mut file = OpenOptions::new().read(true).custom_flags(NO_TRAPS).open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(WINDOW)))?;
        let mut bytes = Vec::new();
        file.take(WINDOW).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_services_form() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("customization.log");
        let log = CustomizationLog::open(&path, "11111111-2222-3333-4444-555555555555").unwrap();
        log.say("Connected to SSH!");
        log.telemetry("Starting provisioner shell");
        log.guest_line(Stream::Out, b"hello");
        log.guest_line(Stream::Err, b"");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let id = "[11111111-2222-3333-4444-555555555555]";
        assert_eq!(lines[0], format!("{id} PACKER OUT ==> azure-arm: Connected to SSH!"));
        assert!(lines[1].starts_with(&format!("{id} PACKER ERR 2")), "{}", lines[1]);
        assert!(lines[1].ends_with("[INFO] (telemetry) Starting provisioner shell"), "{}", lines[1]);
        assert_eq!(lines[2], format!("{id} PACKER OUT     azure-arm: hello"));
        assert_eq!(lines[3], format!("{id} PACKER ERR ==> azure-arm: "));
    }

    #[test]
    fn output_is_capped_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("customization.log");
        let log = CustomizationLog::open(&path, "id").unwrap();
        let chunk = vec![b'x'; 32 << 20];
        for _ in 0..12 {
            log.guest_line(Stream::Out, &chunk);
        }
        let size = std::fs::metadata(&path).unwrap().len();
        assert!(size < OUTPUT_CAP + (1 << 20), "{size}");
        assert_eq!(tail(&path, 1), ["[id] PACKER OUT     azure-arm: output past 256 MiB is not kept"]);
    }

    #[test]
    fn the_tail_of_nothing_is_empty() {
        assert!(tail(Path::new("/nonexistent/log"), 5).is_empty());
    }
}

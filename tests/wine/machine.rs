//! One machine, and Kiln's client in it.

use std::time::Duration;

use kiln_guest::ExecOutput;
use kiln_guest::winrm::{
    Authentication, CertificatePin, CommandLine, Password, Transport, WinrmGuest, WinrmLimits, WinrmLogin,
};
use kiln_host::digest::sha256;
use kiln_host::wait::Control;
use kiln_tests::lab::{Lab, PASSWORD, USER};

/// For anything that a test waits for, on a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);

pub struct Machine {
    pub lab: Lab,
    pub guest: WinrmGuest,
}

/// A machine, or the end of the test with the reason shown.
macro_rules! machine {
    () => {
        match crate::machine::Machine::start().await {
            Some(machine) => machine,
            None => kiln_tests::skip!("the lab on Wine is not made: KILN_PWSH_WIN=FOLDER scripts/test wine"),
        }
    };
}
pub(crate) use machine;

pub fn control() -> Control {
    Control::ending_in(LIMIT)
}

impl Machine {
    pub async fn start() -> Option<Self> {
        let lab = Lab::start_wine(&["--make-cert", "--restart-seconds", "1"])?;
        let login = WinrmLogin {
            addr: lab.address(),
            transport: Transport::Https {
                pin: CertificatePin::from_sha256(&lab.pin().unwrap()).unwrap(),
                authentication: Authentication::Negotiate,
            },
            user: USER.to_owned(),
            password: Password::new(PASSWORD),
            recorder: None,
        };
        let limits = WinrmLimits { operation_timeout: Duration::from_secs(2), ..WinrmLimits::default() };
        let guest = WinrmGuest::connect_with(login, limits, |_| (), &control()).await.unwrap();
        Some(Self { lab, guest })
    }

    /// What a line does in cmd.exe.
    pub async fn cmd(&self, line: &str) -> ExecOutput {
        self.cmd_with(line, None).await
    }

    pub async fn cmd_with(&self, line: &str, input: Option<&[u8]>) -> ExecOutput {
        let command = CommandLine::cmd("a test", line);
        self.guest.exec(&command, input, &control()).await.unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// What one of our texts does in powershell.exe.
    pub async fn powershell(&self, text: &str) -> ExecOutput {
        self.guest
            .ask_powershell("a test", text, &control())
            .await
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    pub async fn upload(&self, bytes: &[u8], remote: &str) {
        let local = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(local.path(), bytes).unwrap();
        self.guest.upload(local.path(), remote, sha256(bytes), |_| (), &control()).await.unwrap();
    }

    /// A file below `c:\`, its path as Wine's own folders are spelled.
    pub fn file(&self, path: &str) -> std::path::PathBuf {
        self.lab.root().join(path)
    }

    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.file(path)).unwrap_or_default()
    }
}

/// Ended with `code`, which the assertion shows with what was said.
#[track_caller]
pub fn ended(done: &ExecOutput, code: u32) -> String {
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.code, code, "out:\n{}\nerr:\n{stderr}", done.text());
    done.text().replace('\r', "")
}

pub fn stderr(done: &ExecOutput) -> String {
    String::from_utf8_lossy(&done.stderr).replace('\r', "")
}

//! winrm-rs, a WinRM client by other people, against the lab.
//!
//! ```text
//!  lab-peer PORT USER [PIN]      password in LAB_PASSWORD; with PIN over TLS, else sealed HTTP
//! ```
//! check.py puts `c:\much.txt` there before and starts this with LAB_MUCH = its size, and LAB_ENGINE = yes where
//! PowerShell is. Ends with 1 and the reason when something is not as it must be.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use winrm_rs::{WinrmClient, WinrmConfig, WinrmCredentials, WinrmError};

const HOST: &str = "127.0.0.1";

/// What was found, where something else was wanted.
type Verdict = Result<(), String>;

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Verdict {
    if found == wanted { Ok(()) } else { Err(format!("{what}: {found:?} where {wanted:?} was wanted")) }
}

fn told(error: WinrmError) -> String {
    format!("{error}")
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn client(port: u16, user: &str, password: &str, pin: Option<&str>) -> Result<WinrmClient, WinrmError> {
    let mut config = if pin.is_some() { WinrmConfig::https() } else { WinrmConfig::http() };
    config.port = Some(port);
    config.operation_timeout_secs = 2;
    config.codepage = 65001;
    let mut builder = WinrmClient::builder(config);
    if let Some(pin) = pin {
        builder = builder.pin_server_certificate_sha256(pin);
    }
    builder.credentials(WinrmCredentials::new(user, password, "")).build()
}

async fn commands(client: &WinrmClient) -> Verdict {
    let out = client.run_command(HOST, "echo out& echo err>&2& exit 5", &[]).await.map_err(told)?;
    same("echo", (&*out.stdout, &*out.stderr, out.exit_code), (b"out\r\n", b"err\r\n", 5))?;

    let begun = Instant::now();
    let out = client.run_command(HOST, "ping -n 4 127.0.0.1 >nul & echo late", &[]).await.map_err(told)?;
    same("a quiet command", (&*out.stdout, out.exit_code), (&b"late\r\n"[..], 0))?;
    if begun.elapsed() < Duration::from_secs(2) {
        return Err("the quiet command was not quiet".to_owned());
    }

    let out = client.run_command(HOST, "type c:\\much.txt", &[]).await.map_err(told)?;
    same("much output", out.stdout.len().to_string(), variable("LAB_MUCH"))
}

async fn input(client: &WinrmClient) -> Verdict {
    let shell = client.open_shell(HOST).await.map_err(told)?;
    let command = shell.start_command("more", &[]).await.map_err(told)?;
    shell.send_input(&command, "h\u{e4}".as_bytes(), false).await.map_err(told)?;
    shell.send_input(&command, b"llo", true).await.map_err(told)?;
    let mut got = Vec::new();
    // Each is one Receive; it waits on the server.
    for _ in 0..30 {
        let out = shell.receive_next(&command).await.map_err(told)?;
        got.extend(out.stdout);
        if out.done {
            same("stdin's exit code", out.exit_code, Some(0))?;
            break;
        }
    }
    same("stdin", &*got, "h\u{e4}llo".as_bytes())?;
    shell.close().await.map_err(told)
}

async fn refusal(port: u16, user: &str, pin: Option<&str>) -> Verdict {
    let stranger = client(port, user, "wrong", pin).map_err(told)?;
    match stranger.run_command(HOST, "echo x", &[]).await {
        Err(WinrmError::AuthFailed(_)) => Ok(()),
        other => Err(format!("a wrong password: {other:?}")),
    }
}

async fn powershell(client: &WinrmClient) -> Verdict {
    let out = client.run_powershell(HOST, "Write-Output 'from PowerShell'; exit 7").await.map_err(told)?;
    same("PowerShell", (&*out.stdout, out.exit_code), (&b"from PowerShell\n"[..], 7))
}

async fn all() -> Verdict {
    let mut words = std::env::args().skip(1);
    let (Some(port), Some(user)) = (words.next(), words.next()) else {
        return Err("usage: lab-peer PORT USER [PIN]".to_owned());
    };
    let port: u16 = port.parse().map_err(|error| format!("{port}: {error}"))?;
    let pin = words.next();
    let client = client(port, &user, &variable("LAB_PASSWORD"), pin.as_deref()).map_err(told)?;
    commands(&client).await?;
    input(&client).await?;
    refusal(port, &user, pin.as_deref()).await?;
    if variable("LAB_ENGINE") == "yes" {
        powershell(&client).await?;
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match all().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("lab-peer: {reason}");
            ExitCode::FAILURE
        }
    }
}

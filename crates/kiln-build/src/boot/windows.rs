//! A Windows, and two ways into it.
//!
//! ```text
//!  generalized   an answer file on a removable medium makes the build's account and opens WinRM; the certificate is
//!                told over the serial port                                              ┐
//!  installed     nothing is told: it has an account and a listener; the certificate is  ├─► pinned ─► login
//!                the configuration's, else the first one shown (with a warning)         ┘
//! ```
//! INVARIANT: nobody sits in the middle of the way into a generalized Windows: only the machine itself writes to that
//! port, and each of its lines has this run's nonce. Into an installed one nobody does where its certificate is given;
//! without it, whoever answered first is talked to, and nobody else for as long as the run lasts.

use std::net::SocketAddr;
use std::time::Duration;

use kiln_guest::os::windows::bootstrap::{self, ANSWER_FILES, Architecture, BootstrapLine};
use kiln_guest::os::windows::facts::{self, Extended, WindowsFacts};
use kiln_guest::os::windows::proof::DiskWords;
use kiln_guest::winrm::{
    Authentication, CertificatePin, Password, Transport, WinrmError, WinrmGuest, WinrmLimits, WinrmLogin,
    first_certificate,
};
use kiln_host::digest::hex;
use kiln_host::wait::Control;
use kiln_library::ImageLease;
use kiln_model::catalog::{Credentials, Generation, Listener, Login};
use kiln_qemu::firmware::{Firmware, Ovmf};
use kiln_qemu::machine::{Drivers, Hardware, Machine, Network, Tpm};
use kiln_qemu::media::{ANSWERS_LABEL, Contents, INPUTS_LABEL, MediaWriter};
use kiln_qemu::vm::Vm;
use kiln_qemu::{offline, tpm};

use super::{accelerator, base_in_use, disk, disk_format, power_on};
use crate::account::BuildAccount;
use crate::context::Run;
use crate::customize::windows::answer;
use crate::error::BuildError;
use crate::guest::WindowsGuest;
use crate::inputs::Inputs;
use crate::medium::{self, OnMedium};
use crate::serial;
use crate::transcript::Transcript;

/// As long as the service waits for WinRM, plus what a first boot takes: Windows sets itself up before it logs on.
const CONNECT_LIMIT: Duration = Duration::from_secs(60 * 60);

/// How long an installed Windows may refuse its own account while it starts. Its accounts are there before its WinRM
/// is, so a refusal means a wrong password, and a minute is a margin for a slow machine.
const REFUSED_LIMIT: Duration = Duration::from_secs(60);
/// Three tries in all: the strictest usual policies lock an account after five wrong passwords, and the lock would be
/// in the image.
const REFUSED_RETRIES: u32 = 2;

pub(super) async fn start(
    run: &Run,
    account: BuildAccount,
    inputs: &Inputs,
) -> Result<WindowsGuest, BuildError> {
    let writer = MediaWriter::find(&run.settings.search_path).map_err(BuildError::Media)?;
    let (machine, lease) = prepare(run, &account, &writer).await?;
    let vm = power_on(run, machine).await?;
    let connected = connect(run, &vm, &account).await;
    let guest = match connected {
        Ok(guest) => guest,
        Err(error) => {
            screenshot(run, &vm).await;
            return Err(error);
        }
    };
    let on_medium = change_medium(run, &vm, &writer, inputs).await?;
    let facts = WindowsFacts::default();
    let mut guest = WindowsGuest { vm, guest, facts, boot: None, account, on_medium, lease };

    let step = run.journal.step("facts", "look at the guest");
    let said = answer(run, &guest, "read the guest's facts", &facts::facts()).await?;
    guest.facts = WindowsFacts::parse(&said.text())
        .ok_or_else(|| BuildError::Inside { act: "read the guest's facts", detail: said.excerpt() })?;
    if let Some(transcript) = &run.transcript {
        transcript.guest(&guest.facts);
    }
    // The hives do not tell; a Windows that runs does.
    if guest.facts.rearms_left == Some(0) {
        let source = &run.plan.source;
        return Err(BuildError::NoRearm { image: format!("{} {}", source.name, source.version) });
    }
    extend(run, &guest).await?;
    step.succeed(guest.facts.name.clone().unwrap_or_default());
    Ok(guest)
}

/// Waits for WinRM, and for whom to expect there.
async fn connect(run: &Run, vm: &Vm, account: &BuildAccount) -> Result<WinrmGuest, BuildError> {
    let step = run.journal.step("connect", "wait for WinRM");
    run.log.say("Waiting for WinRM, up to timeout: 60m0s");
    let control = run.control.within(CONNECT_LIMIT);
    let own = own_credentials(run);
    let addr = vm.forwarded(port(own), &run.control).await?;
    let transport = match own {
        Some(credentials) => own_transport(run, vm, credentials, addr, &control).await?,
        None => Transport::Https {
            pin: told_certificate(run, vm, account, &control).await?,
            authentication: Authentication::Negotiate,
        },
    };
    let recorder = run.transcript.as_ref().and_then(Transcript::recorder);
    if let Some(recorder) = &recorder {
        account.secrets().for_each(|secret| recorder.hide(secret));
    }
    let user = account.user.clone();
    let login = WinrmLogin { addr, transport, user, password: Password::new(account.password()), recorder };
    let limits = match own {
        Some(_) => WinrmLimits {
            refused_login: REFUSED_LIMIT,
            login_retries: REFUSED_RETRIES,
            ..WinrmLimits::default()
        },
        None => WinrmLimits::default(),
    };
    let connecting = WinrmGuest::connect_with(login, limits, |_attempt| {}, &control);
    let guest = vm.guard(&run.control, connecting).await?.map_err(|error| match own {
        Some(own) if matches!(error, WinrmError::LoginRefused { .. }) => BuildError::Credentials {
            user: own.user().to_owned(),
            password_file: own.password_file().to_owned(),
            source: error.into(),
        },
        _ => BuildError::Connect(error.into()),
    })?;
    run.log.say("WinRM connected.");
    step.succeed("");
    Ok(guest)
}

/// What an installed Windows is reached by; `None` for one that reads an answer file.
fn own_credentials(run: &Run) -> Option<&Credentials> {
    match &run.plan.source.login {
        Login::Credentials(credentials) => Some(credentials),
        Login::CloudInit | Login::AnswerFile => None,
    }
}

/// Of the guest's WinRM.
fn port(own: Option<&Credentials>) -> u16 {
    own.map_or(bootstrap::WINRM_PORT, Credentials::port)
}

/// How an installed Windows is spoken to, and whom we expect there.
async fn own_transport(
    run: &Run,
    vm: &Vm,
    credentials: &Credentials,
    addr: SocketAddr,
    control: &Control,
) -> Result<Transport, BuildError> {
    let digest = match credentials.listener() {
        Listener::Http => return Ok(Transport::Http),
        Listener::Https { certificate: Some(digest) } => *digest.as_bytes(),
        Listener::Https { certificate: None } => {
            let limits = WinrmLimits::default();
            let shown = first_certificate(addr, &limits, control);
            let digest =
                vm.guard(&run.control, shown).await?.map_err(|error| BuildError::Connect(error.into()))?;
            run.journal.warn(format!(
                "certificate not given; pinned the first one: {}; put it in the configuration as certificateSha256",
                hex(&digest)
            ));
            digest
        }
    };
    let pin = CertificatePin::Sha256(digest);
    Ok(Transport::Https { pin, authentication: Authentication::Negotiate })
}

/// Waits for the bootstrap's word over the serial port: the certificate of the listener it made.
async fn told_certificate(
    run: &Run,
    vm: &Vm,
    account: &BuildAccount,
    control: &Control,
) -> Result<CertificatePin, BuildError> {
    let log = run.dir.serial_log();
    let word = |line: &str| match bootstrap::bootstrap_line(line, &account.nonce)? {
        BootstrapLine::Step { step, warning } => {
            if let Some(warning) = warning {
                run.journal.warn(format!("bootstrap, {step}: {warning}"));
            }
            None
        }
        BootstrapLine::WinRm { sha256, .. } => Some(Ok(sha256)),
        BootstrapLine::Failed { step, error } => Some(Err(format!("{step}: {error}"))),
        BootstrapLine::Undone { .. } => None,
    };
    let told = vm
        .guard(&run.control, serial::wait_for(&log, word, control))
        .await?
        .map_err(BuildError::io("read", &log))?;
    let no_word = |detail: &str| BuildError::Inside { act: "open WinRM", detail: detail.to_owned() };
    let sha256 = match told {
        Some(Ok(sha256)) => sha256,
        Some(Err(detail)) => return Err(no_word(&detail)),
        None => {
            run.control.check()?;
            return Err(no_word(
                "it said nothing over the serial port: is the image a generalized Windows that starts on this \
                 machine? (the screen is in the run's folder)",
            ));
        }
    };
    CertificatePin::from_sha256(&sha256).map_err(|error| no_word(&error.to_string()))
}

/// The answer file has done its work: customizers do not see the passwords on it. In its place comes what they want.
async fn change_medium(
    run: &Run,
    vm: &Vm,
    writer: &MediaWriter,
    inputs: &Inputs,
) -> Result<OnMedium, BuildError> {
    vm.eject_medium(&run.control).await?;
    let on_medium = OnMedium::choose(run, inputs);
    if !on_medium.is_empty() {
        let (medium, files) = (run.workspace.inputs_medium(), on_medium.files(inputs));
        let contents = medium::contents(&files);
        let written = writer.write(&medium, INPUTS_LABEL, &contents, &run.control);
        vm.guard(&run.control, written).await?.map_err(BuildError::Media)?;
        vm.insert_medium(&medium, &run.control).await?;
    }
    Ok(on_medium)
}

/// The screen as it was when nobody answered: often the only word of a Windows that does not start.
async fn screenshot(run: &Run, vm: &Vm) {
    let path = run.dir.screenshot();
    match vm.screenshot(&path, &run.control).await {
        Ok(()) => run.journal.info(format!("the guest's screen: {}", path.display())),
        Err(error) => tracing::debug!(%error, "no screenshot"),
    }
}

/// Everything the machine is made of.
async fn prepare(
    run: &Run,
    account: &BuildAccount,
    writer: &MediaWriter,
) -> Result<(Machine, ImageLease), BuildError> {
    let step = run.journal.step("machine", "prepare the machine");
    let lease = base_in_use(run).await?;
    let overlay = disk(run, &run.workspace.overlay())?;
    let mut medium = None;
    if let Some(to_be_made) = account.to_be_made() {
        let answers = bootstrap::answer_file(&to_be_made, "en-US", Architecture::Amd64)
            .map_err(BuildError::AnswerFile)?;
        let script = bootstrap::bootstrap(&account.nonce);
        let seed = run.workspace.seed();
        let mut files: Vec<(&str, Contents<'_>)> =
            ANSWER_FILES.iter().map(|name| (*name, Contents::Bytes(answers.as_bytes()))).collect();
        files.push((bootstrap::BOOTSTRAP_PATH, Contents::Bytes(&script)));
        writer.write(&seed, ANSWERS_LABEL, &files, &run.control).await.map_err(BuildError::Media)?;
        medium = Some(seed);
    }
    let (firmware, tpm) = match run.plan.source.generation {
        Generation::V1 => (Firmware::Bios, None),
        // Windows 11 starts with Secure Boot and a TPM only, and every other Windows of this generation with them.
        Generation::V2 => {
            let firmware = Ovmf::find_secure()?.for_machine(run.workspace.uefi_vars())?;
            let program = tpm::find(&run.settings.search_path)?;
            let tpm = Tpm { program, state: run.workspace.tpm_state(), log: run.dir.tpm_log() };
            (firmware, Some(tpm))
        }
    };
    if let Some(transcript) = &run.transcript {
        transcript.firmware(&firmware, tpm.as_ref().map(|tpm| tpm.program.as_path()));
    }
    let machine = Machine {
        name: format!("kiln-{}", run.request.run_id.short()),
        accelerator: accelerator(run).await?,
        cpus: run.plan.machine.vcpus,
        memory_mib: run.plan.machine.memory_mib,
        firmware,
        hardware: Hardware::Windows { drivers: drivers(run).await?, tpm },
        disks: vec![overlay],
        medium,
        network: Network::User { forward: vec![port(own_credentials(run))] },
        smbios_serial: None,
        serial_log: run.dir.serial_log(),
        qemu_log: run.dir.qemu_log(),
        runtime_dir: run.workspace.sockets().to_owned(),
        kernel: None,
        incoming: None,
        disk_full_wait: run.settings.disk_full_wait,
    };
    step.succeed("");
    Ok((machine, lease))
}

/// What the base image itself says: which devices it can start on, and whether it may be generalized once more.
async fn drivers(run: &Run) -> Result<Drivers, BuildError> {
    let source = &run.plan.source;
    let windows = offline::windows(run.qemu.img(), &source.path, disk_format(source.format), &run.control)
        .await
        .map_err(BuildError::Offline)?;
    if let Some(transcript) = &run.transcript {
        transcript.disk(DiskWords { name: windows.name.clone(), build: windows.build.clone() });
    }
    if windows.rearms_left == Some(0) && !windows.skip_rearm {
        return Err(BuildError::NoRearm { image: format!("{} {}", source.name, source.version) });
    }
    if windows.virtio {
        return Ok(Drivers::Virtio);
    }
    if !windows.ahci {
        run.journal.warn(
            "the image starts no AHCI driver at boot (storahci): it may stop with INACCESSIBLE_BOOT_DEVICE (0x7B) on this \
             machine",
        );
    }
    Ok(Drivers::Inbox)
}

/// Windows does not take the room that the template gave its disk by itself.
async fn extend(run: &Run, guest: &WindowsGuest) -> Result<(), BuildError> {
    if run.plan.machine.disk_bytes <= run.plan.source.virtual_size {
        return Ok(());
    }
    let said = answer(run, guest, "extend the system volume", &facts::extend()).await?;
    match Extended::parse(&said.text()) {
        Some(extended) => {
            run.log.say(extended.line());
            if !extended.extended {
                run.journal.warn(extended.line());
            }
        }
        None => run.journal.warn(format!("C: was not extended: {}", said.excerpt())),
    }
    Ok(())
}

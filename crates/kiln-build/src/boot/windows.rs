//! A Windows, and two ways into it.
//!
//! ```text
//!  generalized   an answer file on a removable medium makes the build's account and opens WinRM; the certificate is
//!                told over the serial port                                              ┐
//!  installed     nothing is told: it has an account and a listener; the certificate is  ├─► pinned ─► login
//!                the configuration's, else the first one shown (with a warning)         ┘
//! ```
//! Either may have been kept by an earlier run, logged in and some customizers along. Then it goes on:
//! ```text
//!   memory read, UEFI variables and TPM's state copied ─► login by the kept pin and password ─► renewed
//!     └ fails: its disk is booted with the same variables and state ─► the same       no answer file
//!         └ fails: the base image is, as if nothing had been kept                      one line for each
//! ```
//! INVARIANT: nobody sits in the middle of the way into a generalized Windows: only the machine itself writes to that
//! port, and each of its lines has this run's nonce. Into an installed one nobody does where its certificate is given;
//! without it, whoever answered first is talked to, and nobody else for as long as the run lasts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use kiln_guest::os::windows::bootstrap::{self, ANSWER_FILES, Account, Architecture, BootstrapLine};
use kiln_guest::os::windows::facts::{self, Extended, WindowsFacts};
use kiln_guest::os::windows::proof::DiskWords;
use kiln_guest::os::windows::renew::{self, Passwords, Renewed};
use kiln_guest::os::windows::script;
use kiln_guest::winrm::{
    Authentication, CertificatePin, CommandLine, Password, Transport, WinrmError, WinrmGuest, WinrmLimits,
    WinrmLogin, first_certificate,
};
use kiln_host::digest::hex;
use kiln_host::wait::Control;
use kiln_model::catalog::{Credentials, Generation, Listener, Login};
use kiln_model::plan::BuildPlan;
use kiln_qemu::disk::Overlay;
use kiln_qemu::firmware::{Firmware, Ovmf};
use kiln_qemu::host::Accelerator;
use kiln_qemu::machine::{Drivers, Hardware, Machine, Tpm};
use kiln_qemu::media::{ANSWERS_LABEL, Contents, INPUTS_LABEL, MediaWriter};
use kiln_qemu::vm::Vm;
use kiln_qemu::{offline, tpm};
use zeroize::Zeroizing;

use super::state::{fresh_folder, put_back};
use super::{Places, accelerator, base_in_use, disk, disk_format, fall_back, power_on, report_notices};
use crate::account::BuildAccount;
use crate::checkpoint::{Begin, Earlier, Lineage, LineageKeys, TPM_STATE, UEFI_VARS, WindowsKeys};
use crate::context::Run;
use crate::customize::windows::answer;
use crate::error::BuildError;
use crate::guest::WindowsGuest;
use crate::inputs::Inputs;
use crate::medium::{self, OnMedium};
use crate::seed::BUILD_USER;
use crate::serial;
use crate::transcript::Transcript;

/// Of the answer file.
const LOCALE: &str = "en-US";
/// A Windows that goes on has answered before; what takes its time is PowerShell's start.
const GO_ON_LIMIT: Duration = Duration::from_secs(5 * 60);
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
    lineage: &mut Lineage,
) -> Result<WindowsGuest, BuildError> {
    let writer = MediaWriter::find(&run.settings.search_path).map_err(BuildError::Media)?;
    let lease = base_in_use(run).await?;
    let done = lineage.done();
    let (up, on_medium) =
        tokio::try_join!(up(run, &account, &writer, lineage), write_inputs(run, inputs, done))?;
    let (vm, guest) = up;
    // The answer file has done its work: customizers do not see the passwords on it.
    vm.eject_medium(&run.control).await?;
    let on_medium = match lineage.done() == done {
        true => on_medium,
        // What was kept was of no use: more is to be done.
        false => write_inputs(run, inputs, lineage.done()).await?,
    };
    if !on_medium.is_empty() {
        vm.insert_medium(&run.workspace.inputs_medium(), &run.control).await?;
    }
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
    if matches!(lineage.begins_with(), Begin::Base) {
        extend(run, &guest).await?;
    }
    step.succeed(guest.facts.name.clone().unwrap_or_default());
    lineage.logged_in_by(LineageKeys::Windows(keys_of(&guest)));
    Ok(guest)
}

/// A machine that we are logged in to: one that was kept, as far as it serves, else the base image.
async fn up(
    run: &Run,
    account: &BuildAccount,
    writer: &MediaWriter,
    lineage: &mut Lineage,
) -> Result<(Vm, WinrmGuest), BuildError> {
    loop {
        let up = match lineage.begins_with() {
            Begin::Warm(earlier) => go_on(run, account, lineage, earlier).await,
            Begin::Cold(earlier) => boot_kept(run, account, lineage, earlier).await,
            Begin::Base | Begin::Image(_) => return boot_base(run, account, writer, lineage).await,
        };
        match up {
            Ok(up) => return Ok(up),
            Err(error) => fall_back(run, lineage, &error)?,
        }
    }
}

/// From firmware to login, with the answer file where there is one.
async fn boot_base(
    run: &Run,
    account: &BuildAccount,
    writer: &MediaWriter,
    lineage: &Lineage,
) -> Result<(Vm, WinrmGuest), BuildError> {
    let step = run.journal.step("machine", "prepare the machine");
    let overlay = disk(run, &lineage.first_layer(run)?)?;
    let medium = write_answers(run, account, writer).await?;
    let parts = Parts { disks: vec![overlay], medium, ..parts(run, None)? };
    if let Some(transcript) = &run.transcript {
        transcript.firmware(&parts.firmware, parts.tpm.as_ref().map(|tpm| tpm.program.as_path()));
    }
    let machine = machine(run, parts).await?;
    step.succeed("");
    let vm = power_on(run, machine).await?;
    match connect(run, &vm, account).await {
        Ok(guest) => Ok((vm, guest)),
        Err(error) => {
            screenshot(run, &vm).await;
            Err(error)
        }
    }
}

/// A disk that was kept: the account and the listener are on it already.
async fn boot_kept(
    run: &Run,
    account: &BuildAccount,
    lineage: &Lineage,
    earlier: &Earlier,
) -> Result<(Vm, WinrmGuest), BuildError> {
    let step = run.journal.step("machine", "prepare the machine");
    let overlay = lineage.layer_over(run, earlier)?;
    let parts = Parts { disks: vec![overlay], ..parts(run, Some(earlier))? };
    let machine = machine(run, parts).await?;
    step.succeed("");
    let vm = power_on(run, machine).await?;

    let step = run.journal.step("connect", "wait for WinRM");
    run.log.say("Waiting for WinRM, up to timeout: 60m0s");
    let control = run.control.within(CONNECT_LIMIT);
    match enter(run, &vm, account, earlier, &control).await {
        Ok(guest) => {
            run.log.say("WinRM connected.");
            step.succeed("");
            Ok((vm, guest))
        }
        Err(error) => {
            screenshot(run, &vm).await;
            give_up(vm, error).await
        }
    }
}

/// From a kept machine to this run's own.
async fn go_on(
    run: &Run,
    account: &BuildAccount,
    lineage: &Lineage,
    earlier: &Earlier,
) -> Result<(Vm, WinrmGuest), BuildError> {
    let step = run.journal.step("restore", "let the kept machine go on");
    let overlay = lineage.layer_over(run, earlier)?;
    let incoming = earlier.memory();
    let parts = Parts { disks: vec![overlay], incoming, ..parts(run, Some(earlier))? };
    let vm = Vm::start(&run.qemu, machine(run, parts).await?, &run.control).await?;
    report_notices(run, &vm);
    match enter(run, &vm, account, earlier, &run.control.within(GO_ON_LIMIT)).await {
        Ok(guest) => {
            run.log.say("The machine goes on; WinRM connected.");
            step.succeed("");
            Ok((vm, guest))
        }
        Err(error) => give_up(vm, error).await,
    }
}

/// Its TPM's state and its layer are wanted for the next try.
async fn give_up<T>(vm: Vm, error: BuildError) -> Result<T, BuildError> {
    vm.kill().await;
    Err(error)
}

/// Logs in to a Windows that was kept, as the run that kept it did, and makes it this run's own.
async fn enter(
    run: &Run,
    vm: &Vm,
    account: &BuildAccount,
    earlier: &Earlier,
    control: &Control,
) -> Result<WinrmGuest, BuildError> {
    let refused = |why: &str| BuildError::Checkpoint { detail: why.to_owned() };
    let keys = earlier.keys.windows().ok_or_else(|| refused("its keys are of another kind of guest"))?;
    let passwords = match (keys.made(), account.made()) {
        (Some(old), Some(new)) => Some((old, new)),
        (None, None) => None,
        _ => return Err(refused("its account is of another kind")),
    };
    if keys.user != account.user {
        return Err(refused("its account has another name"));
    }
    let transport = kept_transport(&run.plan, keys)?;
    let addr = vm.forwarded(port(own_credentials(&run.plan)), &run.control).await?;
    let old = passwords.map_or(account.password(), |(old, _)| old.own);
    let login = login(run, account, addr, transport.clone(), old);
    let limits = WinrmLimits {
        // The account was let in before: a refusal will not mend.
        refused_login: REFUSED_LIMIT,
        login_retries: REFUSED_RETRIES,
        ..WinrmLimits::default()
    };
    let connecting = WinrmGuest::connect_with(login, limits.clone(), |_attempt| {}, control);
    let guest =
        vm.guard(&run.control, connecting).await?.map_err(|error| BuildError::Connect(error.into()))?;
    renew(run, vm, &guest, &account.user, passwords, control).await?;
    let Some((_, new)) = passwords else { return Ok(guest) };
    vm.guard(&run.control, guest.close()).await?;
    let login = self::login(run, account, addr, transport, new.own);
    let connecting = WinrmGuest::connect_with(login, limits, |_attempt| {}, control);
    vm.guard(&run.control, connecting).await?.map_err(|error| BuildError::Connect(error.into()))
}

/// Gives a Windows that was kept this run's time and passwords.
async fn renew(
    run: &Run,
    vm: &Vm,
    guest: &WinrmGuest,
    user: &str,
    passwords: Option<(Passwords<'_>, Passwords<'_>)>,
    control: &Control,
) -> Result<(), BuildError> {
    const ACT: &str = "renew the guest";
    if let (Some((old, new)), Some(recorder)) =
        (passwords, run.transcript.as_ref().and_then(Transcript::recorder))
    {
        for secret in [old.own, old.administrator, new.own, new.administrator] {
            recorder.hide(secret);
        }
    }
    let text = renew::renew(SystemTime::now(), passwords.map(|_| user));
    let mut input = Zeroizing::new(script::loader_input(&text).into_bytes());
    if let Some((old, new)) = passwords {
        let secrets = renew::secrets(old, new);
        // Room for all of it: what grows leaves copies behind.
        let mut all = Zeroizing::new(Vec::with_capacity(input.len() + secrets.len()));
        all.extend_from_slice(&input);
        all.extend_from_slice(secrets.as_bytes());
        input = all;
    }
    let line = CommandLine::cmd(ACT, script::loader_command());
    let asked = guest.exec(&line, Some(&input), control);
    let said = vm
        .guard(&run.control, asked)
        .await?
        .map_err(|source| BuildError::Guest { act: ACT, source: source.into() })?;
    let inside = |detail: String| BuildError::Inside { act: ACT, detail };
    let renewed = Renewed::parse(&said.text()).ok_or_else(|| inside(said.excerpt()))?;
    if !renewed.done || !said.success() {
        return Err(inside(renewed.error.unwrap_or_else(|| said.excerpt())));
    }
    for note in &renewed.notes {
        run.journal.info(format!("the machine that was kept: {note}"));
    }
    tracing::debug!(moved_ms = renewed.moved_ms, password = ?renewed.password, "the guest was renewed");
    Ok(())
}

/// By what the next run gets in.
fn keys_of(guest: &WindowsGuest) -> WindowsKeys {
    let certificate = match &guest.guest.login().transport {
        Transport::Https { pin: CertificatePin::Sha256(digest), .. } => Some(*digest),
        Transport::Https { pin: CertificatePin::Sha1(_), .. } | Transport::Http => None,
    };
    WindowsKeys::new(&guest.account.user, guest.account.made(), certificate)
}

/// Whom to expect in a Windows that was kept: what the configuration says, else what was pinned then.
pub(crate) fn kept_transport(plan: &BuildPlan, keys: &WindowsKeys) -> Result<Transport, BuildError> {
    let given = match own_credentials(plan).map(Credentials::listener) {
        Some(Listener::Http) => return Ok(Transport::Http),
        Some(Listener::Https { certificate }) => certificate.map(|digest| *digest.as_bytes()),
        None => None,
    };
    let digest = given.or(keys.certificate).ok_or_else(|| BuildError::Checkpoint {
        detail: "the digest of its WinRM certificate was not kept".to_owned(),
    })?;
    let pin = CertificatePin::Sha256(digest);
    Ok(Transport::Https { pin, authentication: Authentication::Negotiate })
}

fn login(
    run: &Run,
    account: &BuildAccount,
    addr: SocketAddr,
    transport: Transport,
    password: &str,
) -> WinrmLogin {
    let recorder = run.transcript.as_ref().and_then(Transcript::recorder);
    if let Some(recorder) = &recorder {
        account.secrets().for_each(|secret| recorder.hide(secret));
    }
    WinrmLogin { addr, transport, user: account.user.clone(), password: Password::new(password), recorder }
}

/// Waits for WinRM, and for whom to expect there.
async fn connect(run: &Run, vm: &Vm, account: &BuildAccount) -> Result<WinrmGuest, BuildError> {
    let step = run.journal.step("connect", "wait for WinRM");
    run.log.say("Waiting for WinRM, up to timeout: 60m0s");
    let control = run.control.within(CONNECT_LIMIT);
    let own = own_credentials(&run.plan);
    let addr = vm.forwarded(port(own), &run.control).await?;
    let transport = match own {
        Some(credentials) => own_transport(run, vm, credentials, addr, &control).await?,
        None => Transport::Https {
            pin: told_certificate(run, vm, account, &control).await?,
            authentication: Authentication::Negotiate,
        },
    };
    let login = login(run, account, addr, transport, account.password());
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
pub(crate) fn own_credentials(plan: &BuildPlan) -> Option<&Credentials> {
    match &plan.source.login {
        Login::Credentials(credentials) => Some(credentials),
        Login::CloudInit | Login::AnswerFile => None,
    }
}

/// Of the guest's WinRM.
pub(crate) fn port(own: Option<&Credentials>) -> u16 {
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

/// Writes the medium that the customizers after the first `done` want, if they do.
async fn write_inputs(run: &Run, inputs: &Inputs, done: usize) -> Result<OnMedium, BuildError> {
    let on_medium = OnMedium::choose(run, inputs, done).await?;
    if !on_medium.is_empty() {
        medium::write(run, &run.workspace.inputs_medium(), INPUTS_LABEL, &on_medium, &[]).await?;
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

/// What a first boot is told, whatever the passwords and the nonce, and what is done in it.
pub(super) fn fingerprint() -> String {
    let account = Account { user: BUILD_USER, password: "OWN", administrator_password: "ADMINISTRATOR" };
    let answers = bootstrap::answer_file(&account, LOCALE, Architecture::Amd64)
        .unwrap_or_else(|error| error.to_string());
    let script = bootstrap::bootstrap("NONCE");
    [answers.as_str(), &String::from_utf8_lossy(&script), &facts::extend()].concat()
}

/// The same for an installed Windows, which is told nothing.
pub(super) fn fingerprint_of_own(user: &str) -> String {
    format!("{user}\n{}", facts::extend())
}

/// The medium of the first boot.
async fn write_answers(
    run: &Run,
    account: &BuildAccount,
    writer: &MediaWriter,
) -> Result<Option<PathBuf>, BuildError> {
    let Some(to_be_made) = account.to_be_made() else { return Ok(None) };
    let answers =
        bootstrap::answer_file(&to_be_made, LOCALE, Architecture::Amd64).map_err(BuildError::AnswerFile)?;
    let script = bootstrap::bootstrap(&account.nonce);
    let seed = run.workspace.seed();
    let mut files: Vec<(&str, Contents<'_>)> =
        ANSWER_FILES.iter().map(|name| (*name, Contents::Bytes(answers.as_bytes()))).collect();
    files.push((bootstrap::BOOTSTRAP_PATH, Contents::Bytes(&script)));
    writer.write(&seed, ANSWERS_LABEL, &files, &run.control).await.map_err(BuildError::Media)?;
    Ok(Some(seed))
}

/// What one machine of a run has and another has not.
struct Parts {
    firmware: Firmware,
    tpm: Option<Tpm>,
    disks: Vec<Overlay>,
    medium: Option<PathBuf>,
    incoming: Option<PathBuf>,
}

/// Firmware and TPM: new ones, or with the state that `kept` left of them. Disks, medium and memory are the caller's.
fn parts(run: &Run, kept: Option<&Earlier>) -> Result<Parts, BuildError> {
    let (firmware, tpm) = match run.plan.source.generation {
        Generation::V1 => (Firmware::Bios, None),
        // Windows 11 starts with Secure Boot and a TPM only, and every other Windows of this generation with them.
        Generation::V2 => {
            let vars = run.workspace.uefi_vars();
            let firmware = Ovmf::find_secure()?.for_machine(&vars)?;
            let program = tpm::find(&run.settings.search_path)?;
            let tpm = Tpm { program, state: run.workspace.tpm_state(), log: run.dir.tpm_log() };
            fresh_folder(&tpm.state)?;
            if let Some(kept) = kept {
                put_back(kept.other(UEFI_VARS), "UEFI variables were", &vars)?;
                put_back(kept.other(TPM_STATE), "TPM's state was", &tpm.state.join(TPM_STATE))?;
            }
            (firmware, Some(tpm))
        }
    };
    Ok(Parts { firmware, tpm, disks: Vec::new(), medium: None, incoming: None })
}

/// The machine without its disks.
pub(super) async fn bare_machine(run: &Run) -> Result<Machine, BuildError> {
    // Its drivers are found out on the image, which is to stay meanwhile.
    let _lease = base_in_use(run).await?;
    machine(run, parts(run, None)?).await
}

/// Everything the machine is made of.
async fn machine(run: &Run, parts: Parts) -> Result<Machine, BuildError> {
    let Parts { firmware, tpm, disks, medium, incoming } = parts;
    let machine = of_plan(&run.plan, accelerator(run).await?, drivers(run).await?, tpm, Places::of(run));
    Ok(Machine { firmware, disks, medium, incoming, ..machine })
}

/// The machine of a plan, of the first generation, without disks and with an empty drive.
pub(crate) fn of_plan(
    plan: &BuildPlan,
    accelerator: Accelerator,
    drivers: Drivers,
    tpm: Option<Tpm>,
    places: Places,
) -> Machine {
    let port = port(own_credentials(plan));
    super::of_plan(plan, accelerator, Hardware::Windows { drivers, tpm }, port, places)
}

/// Found out, and said, once in a run.
async fn drivers(run: &Run) -> Result<Drivers, BuildError> {
    run.drivers.get_or_try_init(|| find_drivers(run)).await.copied()
}

/// What the base image itself says: which devices it can start on, and whether it may be generalized once more.
async fn find_drivers(run: &Run) -> Result<Drivers, BuildError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What is made for each run is in no fingerprint, and what is told to Windows is.
    #[test]
    fn a_first_boot_is_known_by_what_it_is_told() {
        let one = fingerprint();
        assert_eq!(one, fingerprint());
        assert!(one.contains("<unattend") && one.contains("Enable-PSRemoting"), "{one}");
        assert!(one.contains("packer") && one.contains("Resize-Partition"), "{one}");
        assert_ne!(fingerprint_of_own("a"), fingerprint_of_own("b"));
    }
}

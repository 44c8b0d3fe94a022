//! KVM or not, found out rather than believed.
//!
//! That `/dev/kvm` opens proves nothing: under some hypervisors it opens, makes virtual machines, and runs no ordinary
//! guest. So three questions are asked, the cheap ones each time:
//!
//! 1. Does the processor have virtualization (`vmx` or `svm` in /proc/cpuinfo)?
//! 2. May we open `/dev/kvm`?
//! 3. Does a guest run? A boot sector (selftest.s) enters 64-bit mode, takes timer interrupts and ends QEMU with a
//!    number of its own, within a deadline. The answer is remembered per host kernel, processor and QEMU.
//!
//! The processor model under KVM is a named one, the first of [`CPU_MODELS`] that the host has in full.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::time::Duration;

use kiln_host::process::{Invocation, ProcessError};
use kiln_host::publish;
use kiln_host::wait::{Control, Interrupted};
use serde::{Deserialize, Serialize};

use super::Qemu;

/// What runs the guest's instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor itself.
    Kvm {
        /// By QEMU's name.
        cpu_model: String,
    },
    /// QEMU's translator: everywhere, several times slower.
    Tcg {
        /// Why not KVM, in one line for people.
        reason: String,
    },
}

/// x86-64-v3 by Intel's and by AMD's name, then x86-64-v2, the least that current systems boot on; last the same
/// without virtual-8086 extensions, which KVM does not have inside a machine that is itself translated.
const CPU_MODELS: [&str; 4] = ["Haswell-noTSX", "EPYC", "Nehalem", "Nehalem,vme=off"];

/// The self-test takes 0.2 s where a guest runs, even translated; where none does, it spins for ever.
const SELF_TEST_LIMIT: Duration = Duration::from_secs(10);

/// Built from selftest.s.
const SELF_TEST: &[u8; 512] = include_bytes!("selftest.bin");
/// What isa-debug-exit makes of the guest's 0x2a.
const SELF_TEST_PASSED: i32 = 0x2a << 1 | 1;
/// SeaBIOS does not read disks of less.
const SELF_TEST_DISK: u64 = 1 << 20;

const MEMORY_FILE: &str = "accelerator.json";
/// A number for each list of models, too: a verdict says that none of them runs.
const MEMORY_FORMAT: u32 = 2;

/// Finds out what guests run with here. `cache_dir` (made where missing) remembers the self-test's verdict, and nothing
/// that the user could have changed meanwhile. Only an interruption is an error: no KVM is an answer.
pub async fn probe_accelerator(
    qemu: &Qemu,
    cache_dir: &Path,
    control: &Control,
) -> Result<Accelerator, Interrupted> {
    probe(qemu.system(), qemu.version(), &Host::this(), cache_dir, control).await
}

/// What the probe looks at.
struct Host {
    cpuinfo: String,
    kvm: io::Result<()>,
    kernel: String,
    self_test_limit: Duration,
}

impl Host {
    fn this() -> Self {
        Self {
            cpuinfo: std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default(),
            kvm: OpenOptions::new().read(true).write(true).open("/dev/kvm").map(drop),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            self_test_limit: SELF_TEST_LIMIT,
        }
    }

    /// The first processor's value; they are all the same on what Kiln runs on.
    fn cpu(&self, key: &str) -> &str {
        self.cpuinfo
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find_map(|(name, value)| (name.trim() == key).then(|| value.trim()))
            .unwrap_or_default()
    }
}

async fn probe(
    program: &Path,
    version: &str,
    host: &Host,
    cache_dir: &Path,
    control: &Control,
) -> Result<Accelerator, Interrupted> {
    let tcg = |reason: String| Ok(Accelerator::Tcg { reason });
    if !host.cpu("flags").split(' ').any(|flag| flag == "vmx" || flag == "svm") {
        return tcg("the processor shows no virtualization (neither vmx nor svm in /proc/cpuinfo)".into());
    }
    match &host.kvm {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return tcg("there is no /dev/kvm; load the module kvm_intel or kvm_amd".into());
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return tcg("this user may not open /dev/kvm; add it to the group kvm".into());
        }
        Err(error) => return tcg(format!("/dev/kvm does not open: {error}")),
    }
    let asked = Asked {
        kernel: host.kernel.clone(),
        cpu: host.cpu("model name").to_owned(),
        qemu: version.to_owned(),
    };
    if let Some(verdict) = recall(cache_dir, &asked) {
        return Ok(verdict.into());
    }
    let verdict = match self_test_kvm(program, host.self_test_limit, control).await {
        Ok(verdict) => verdict,
        Err(Untested::Interrupted(why)) => return Err(why),
        // Not KVM's fault, so not remembered.
        Err(Untested::Failed(reason)) => return tcg(format!("KVM could not be tried: {reason}")),
    };
    remember(cache_dir, asked, &verdict);
    Ok(verdict.into())
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Verdict {
    Runs { cpu_model: String },
    DoesNotRun { reason: String },
}

impl From<Verdict> for Accelerator {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Runs { cpu_model } => Self::Kvm { cpu_model },
            Verdict::DoesNotRun { reason } => Self::Tcg { reason },
        }
    }
}

/// What a verdict holds for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Asked {
    kernel: String,
    cpu: String,
    qemu: String,
}

#[derive(Serialize, Deserialize)]
struct Memory {
    format: u32,
    #[serde(flatten)]
    asked: Asked,
    verdict: Verdict,
}

fn recall(cache_dir: &Path, asked: &Asked) -> Option<Verdict> {
    let bytes = std::fs::read(cache_dir.join(MEMORY_FILE)).ok()?;
    let memory: Memory = serde_json::from_slice(&bytes).ok()?;
    (memory.format == MEMORY_FORMAT && memory.asked == *asked).then_some(memory.verdict)
}

/// Forgetting only costs the next probe its time.
fn remember(cache_dir: &Path, asked: Asked, verdict: &Verdict) {
    let memory = Memory { format: MEMORY_FORMAT, asked, verdict: verdict.clone() };
    let written = serde_json::to_vec_pretty(&memory).map_err(io::Error::other).and_then(|bytes| {
        std::fs::create_dir_all(cache_dir)?;
        publish::write_file(cache_dir.join(MEMORY_FILE), &bytes, 0o644)
    });
    if let Err(error) = written {
        tracing::debug!(%error, dir = %cache_dir.display(), "the accelerator's verdict is not remembered");
    }
}

enum Untested {
    Interrupted(Interrupted),
    Failed(String),
}

async fn self_test_kvm(program: &Path, limit: Duration, control: &Control) -> Result<Verdict, Untested> {
    for model in CPU_MODELS {
        let accelerator = ["-accel", "kvm", "-cpu", &format!("{model},enforce")];
        match self_test(program, &accelerator, limit, control).await? {
            SelfTest::Passed => return Ok(Verdict::Runs { cpu_model: model.into() }),
            SelfTest::Silent => {
                let reason = format!(
                    "/dev/kvm opens, but a guest started with it does not run (no answer in {} s)",
                    limit.as_secs()
                );
                return Ok(Verdict::DoesNotRun { reason });
            }
            // Perhaps only this model is too much for the host.
            SelfTest::Failed { how, lacks_features: true } => {
                tracing::debug!(model, how, "model not available")
            }
            SelfTest::Failed { how, lacks_features: false } => {
                let reason = format!("/dev/kvm opens, but a guest started with it fails: {how}");
                return Ok(Verdict::DoesNotRun { reason });
            }
        }
    }
    Ok(Verdict::DoesNotRun { reason: format!("KVM offers none of the processors {}", CPU_MODELS.join(", ")) })
}

#[derive(Debug, PartialEq, Eq)]
enum SelfTest {
    Passed,
    Silent,
    Failed { how: String, lacks_features: bool },
}

async fn self_test(
    program: &Path,
    accelerator: &[&str],
    limit: Duration,
    control: &Control,
) -> Result<SelfTest, Untested> {
    let disk = tempfile::NamedTempFile::new().and_then(|file| {
        std::fs::write(file.path(), SELF_TEST)?;
        file.as_file().set_len(SELF_TEST_DISK)?;
        Ok(file)
    });
    let disk = disk.map_err(|error| Untested::Failed(format!("cannot write the self-test: {error}")))?;
    let mut drive =
        std::ffi::OsString::from("driver=raw,node-name=disk0,read-only=on,file.driver=file,file.filename=");
    drive.push(crate::argv::escaped(disk.path()));
    let run = Invocation::new(program)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc", "-m", "64M"])
        .args(accelerator)
        .args(["-no-reboot", "-boot", "menu=off,strict=on", "-blockdev"])
        .arg(drive)
        .args(["-device", "virtio-blk-pci,drive=disk0,bootindex=0"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]);
    match run.run(&control.within(limit)).await {
        Err(ProcessError::Failed { code: Some(SELF_TEST_PASSED), .. }) => Ok(SelfTest::Passed),
        Err(ProcessError::Failed { status, stderr, .. }) => {
            let last = stderr.lines().last().unwrap_or_default();
            let how = if last.is_empty() { status } else { format!("{status}, {last}") };
            Ok(SelfTest::Failed { how, lacks_features: stderr.contains("support requested features") })
        }
        // It ended as if it had been switched off: the guest fell over.
        Ok(_) => Ok(SelfTest::Failed { how: "the guest reset itself".into(), lacks_features: false }),
        Err(ProcessError::Interrupted { .. }) => match control.check() {
            Ok(()) => Ok(SelfTest::Silent),
            Err(why) => Err(Untested::Interrupted(why)),
        },
        Err(error) => Err(Untested::Failed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use super::*;

    fn host(flags: &str, kvm: io::Result<()>) -> Host {
        let cpuinfo = format!("processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu {flags} sse2\n");
        Host { cpuinfo, kvm, kernel: "6.1.0".into(), self_test_limit: Duration::from_secs(2) }
    }

    fn in_time() -> Control {
        Control::ending_in(Duration::from_secs(25))
    }

    /// A program that answers like some QEMU, and counts its starts.
    struct FakeQemu {
        dir: tempfile::TempDir,
    }

    impl FakeQemu {
        fn new(script: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let program = dir.path().join("qemu");
            let count = dir.path().join("starts");
            std::fs::write(&program, format!("#!/bin/sh\necho x >>{}\n{script}\n", count.display())).unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
            Self { dir }
        }

        async fn probe(&self, version: &str, host: &Host) -> Accelerator {
            let program = self.dir.path().join("qemu");
            probe(&program, version, host, &self.dir.path().join("cache"), &in_time()).await.unwrap()
        }

        fn starts(&self) -> usize {
            std::fs::read_to_string(self.dir.path().join("starts")).unwrap_or_default().lines().count()
        }
    }

    fn reason(accelerator: Accelerator) -> String {
        match accelerator {
            Accelerator::Tcg { reason } => reason,
            Accelerator::Kvm { cpu_model } => panic!("KVM with {cpu_model}"),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a test has no settings")]
    fn installed() -> Qemu {
        Qemu::find(&std::env::var_os("PATH").unwrap()).unwrap()
    }

    #[tokio::test]
    async fn the_self_test_passes_on_a_guest_that_runs() {
        let qemu = installed();
        let accelerator = ["-accel", "tcg", "-cpu", "max"];
        let Ok(test) = self_test(qemu.system(), &accelerator, SELF_TEST_LIMIT, &in_time()).await else {
            panic!("not tested")
        };
        assert_eq!(test, SelfTest::Passed);
        let accelerator = ["-accel", "tcg", "-cpu", "pentium"];
        let test = self_test(qemu.system(), &accelerator, SELF_TEST_LIMIT, &in_time()).await;
        let Ok(test) = test else { panic!("not tested") };
        assert!(matches!(test, SelfTest::Failed { lacks_features: false, .. }), "no long mode, yet {test:?}");
    }

    /// Where `/dev/kvm` opens on a processor without virtualization, the self-test finds that out by itself.
    #[tokio::test]
    async fn a_kvm_that_opens_and_runs_nothing_is_seen_through() {
        let this = Host::this();
        let flags = format!(" {} ", this.cpu("flags"));
        if this.kvm.is_err() || flags.contains(" vmx ") || flags.contains(" svm ") {
            eprintln!("this host's /dev/kvm is absent or real: nothing to see through");
            return;
        }
        let (qemu, dir) = (installed(), tempfile::tempdir().unwrap());
        let host = Host { self_test_limit: SELF_TEST_LIMIT, ..host("vmx", Ok(())) };
        let probed = probe(qemu.system(), qemu.version(), &host, dir.path(), &in_time()).await.unwrap();
        eprintln!("{}", reason(probed));
    }

    /// The bytes are what the source says. Assembler and linker are there wherever Rust links.
    #[test]
    fn the_self_test_is_its_source() {
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/host/selftest.s");
        let at = |name: &str| -> PathBuf { dir.path().join(name) };
        Invocation::new("as").arg("--64").arg(source).arg("-o").arg(at("s.o")).run_blocking().unwrap();
        Invocation::new("ld")
            .args(["-m", "elf_x86_64", "-Ttext=0", "--oformat=binary", "-e", "0"])
            .arg(at("s.o"))
            .arg("-o")
            .arg(at("s.bin"))
            .run_blocking()
            .unwrap();
        assert!(std::fs::read(at("s.bin")).unwrap() == SELF_TEST);
    }

    #[tokio::test]
    async fn without_flag_or_device_nothing_is_started() {
        let qemu = FakeQemu::new("exit 85");
        let says = reason(qemu.probe("10", &host("pclmul", Ok(()))).await);
        assert!(says.contains("vmx"), "{says}");
        let missing = host("vmx", Err(io::ErrorKind::NotFound.into()));
        assert!(reason(qemu.probe("10", &missing).await).contains("kvm_intel"));
        let forbidden = host("svm", Err(io::ErrorKind::PermissionDenied.into()));
        assert!(reason(qemu.probe("10", &forbidden).await).contains("group kvm"));
        assert_eq!(qemu.starts(), 0);
    }

    #[tokio::test]
    async fn the_first_model_that_runs_is_taken_and_remembered() {
        let qemu = FakeQemu::new(
            "case \"$*\" in *Nehalem,enforce*) exit 85;; esac
             echo \"qemu: Host doesn't support requested features\" >&2; exit 1",
        );
        let kvm = Accelerator::Kvm { cpu_model: "Nehalem".into() };
        assert_eq!(qemu.probe("10", &host("vmx", Ok(()))).await, kvm);
        assert_eq!(qemu.starts(), 3);
        assert_eq!(qemu.probe("10", &host("vmx", Ok(()))).await, kvm);
        assert_eq!(qemu.starts(), 3);
        // What is remembered holds for this QEMU and this kernel only.
        qemu.probe("11", &host("vmx", Ok(()))).await;
        assert_eq!(qemu.starts(), 6);
        qemu.probe("11", &Host { kernel: "6.2.0".into(), ..host("vmx", Ok(())) }).await;
        assert_eq!(qemu.starts(), 9);
        std::fs::write(qemu.dir.path().join("cache").join(MEMORY_FILE), "{\"format\": 2}").unwrap();
        assert_eq!(qemu.probe("11", &host("vmx", Ok(()))).await, kvm);
        assert_eq!(qemu.starts(), 12);
    }

    #[tokio::test]
    async fn a_guest_that_fails_says_how() {
        let aborts = FakeQemu::new("echo 'error: failed to set MSR 0x10a' >&2; kill -ABRT $$");
        let says = reason(aborts.probe("10", &host("vmx", Ok(()))).await);
        assert!(says.contains("SIGABRT") && says.contains("MSR 0x10a"), "{says}");
        let resets = FakeQemu::new("exit 0");
        assert!(reason(resets.probe("10", &host("vmx", Ok(()))).await).contains("reset itself"));
        let says = reason(FakeQemu::new("exit 1").probe("10", &host("vmx", Ok(()))).await);
        assert!(says.contains("exit status 1"), "{says}");
    }

    #[tokio::test]
    async fn a_guest_that_spins_is_given_up_and_that_is_remembered() {
        let qemu = FakeQemu::new("exec sleep 60");
        let began = std::time::Instant::now();
        let says = reason(qemu.probe("10", &host("vmx", Ok(()))).await);
        assert!(says.contains("no answer in 2 s"), "{says}");
        assert!(began.elapsed() < Duration::from_secs(5));
        assert_eq!(reason(qemu.probe("10", &host("vmx", Ok(()))).await), says);
        assert_eq!(qemu.starts(), 1);
    }

    #[tokio::test]
    async fn an_interruption_is_no_verdict() {
        let qemu = FakeQemu::new("exec sleep 60");
        let control = Control::ending_in(Duration::from_millis(200));
        let program = qemu.dir.path().join("qemu");
        let cache = qemu.dir.path().join("cache");
        let probed = probe(&program, "10", &host("vmx", Ok(())), &cache, &control).await;
        assert_eq!(probed, Err(Interrupted::DeadlinePassed));
        assert!(!cache.exists());
    }
}

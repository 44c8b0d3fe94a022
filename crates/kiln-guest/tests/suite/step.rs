use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kiln_guest::{DetachedStep, GuestError, OutputChunk, PlacedScript, StepEnd, StepNotice, UploadFrom};
use kiln_host::digest::sha256;
use kiln_host::process::Invocation;
use kiln_host::wait::{Control, Interrupted};

use crate::{Lab, control, until};

/// Everything a step printed and all that was said about it.
#[derive(Default)]
struct Heard {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    notices: Vec<StepNotice>,
}

impl Heard {
    fn take(&mut self, chunk: OutputChunk<'_>) {
        match chunk {
            OutputChunk::Stdout(bytes) => self.stdout.extend_from_slice(bytes),
            OutputChunk::Stderr(bytes) => self.stderr.extend_from_slice(bytes),
            OutputChunk::Notice(notice) => self.notices.push(notice.clone()),
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    fn script(&self) -> PathBuf {
        self.notices
            .iter()
            .find_map(|notice| match notice {
                StepNotice::Placed { script } | StepNotice::PlacedElsewhere { script, .. } => {
                    Some(script.into())
                }
                _ => None,
            })
            .unwrap()
    }
}

impl Lab {
    async fn run(&self, step: DetachedStep) -> (Result<StepEnd, GuestError>, Heard) {
        self.run_until(step, &control()).await
    }

    async fn run_until(&self, step: DetachedStep, control: &Control) -> (Result<StepEnd, GuestError>, Heard) {
        let mut heard = Heard::default();
        let end = self.guest.run_detached(step, |chunk| heard.take(chunk), control).await;
        (end, heard)
    }

    async fn shell(&self, script: &str) -> (StepEnd, Heard) {
        let (end, heard) = self.run(DetachedStep::new("test", format!("#!/bin/sh\n{script}\n"))).await;
        (end.unwrap(), heard)
    }

    /// The folder of the one step that is running.
    fn folder(&self) -> Option<PathBuf> {
        let entries = std::fs::read_dir(self.server.home()).unwrap();
        entries.map(|entry| entry.unwrap().path()).find(|path| path.join("sid").exists())
    }

    fn no_trace(&self, heard: &Heard) {
        assert!(!heard.script().exists(), "{:?}", heard.script());
        assert_eq!(self.folder(), None);
        let left: Vec<_> =
            heard.notices.iter().filter(|n| matches!(n, StepNotice::LeftBehind { .. })).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Lab {
    /// Puts a script into the guest before its step, as one is that is too large to travel with a command.
    async fn placed(&self, directory: &Path, script: &[u8]) -> PlacedScript {
        let local = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(local.path(), script).unwrap();
        let placed = PlacedScript::new(directory.to_str().unwrap(), script.len() as u64, script);
        let (from, digest) = (UploadFrom::Link(local.path()), sha256(script));
        self.guest.upload(from, placed.path(), 0o700, digest, false, |_| (), &control()).await.unwrap();
        placed
    }

    /// Whatever in this guest has the name of that script's step in its own.
    fn traces_of(&self, placed: &PlacedScript) -> Vec<PathBuf> {
        let nonce = placed.path().rsplit('_').nth(1).unwrap();
        assert_eq!(nonce.len(), 32, "{}", placed.path());
        [Path::new("/tmp"), Path::new("/var/tmp"), &self.server.home()]
            .into_iter()
            .flat_map(|folder| std::fs::read_dir(folder).unwrap())
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_string_lossy().contains(nonce))
            .collect()
    }
}

const NOTHING: [PathBuf; 0] = [];
const DONE: StepEnd = StepEnd::Exited { code: 0 };

#[tokio::test]
async fn exit_codes_come_back_and_nothing_stays() {
    let Some(lab) = Lab::start().await else { return };
    for code in [0, 1, 42, 255] {
        let (end, heard) = lab.shell(&format!("echo out; echo err >&2; exit {code}")).await;
        assert_eq!(end, StepEnd::Exited { code });
        assert_eq!((heard.text().as_str(), heard.stderr.as_slice()), ("out\n", &b"err\n"[..]));
        lab.no_trace(&heard);
    }
    for (signal, code) in [("TERM", 143), ("KILL", 137), ("SEGV", 139)] {
        let (end, heard) = lab.shell(&format!("echo before; kill -{signal} $$; sleep 9")).await;
        assert_eq!(end, StepEnd::Exited { code }, "{signal}");
        assert_eq!(heard.text(), "before\n");
        lab.no_trace(&heard);
    }
    assert_eq!(kiln_guest::step::likely_signal(143), Some("SIGTERM"));
}

#[tokio::test]
async fn a_short_step_is_noticed_at_once() {
    let Some(lab) = Lab::start().await else { return };
    lab.shell("true").await;
    let begin = Instant::now();
    let (end, heard) = lab.shell("sleep 0.5; date +%s.%N").await;
    let whole = begin.elapsed();
    let since: f64 = heard.text().trim().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    println!("whole step {whole:?}, from its last act to its end here {:.0} ms", (now - since) * 1000.0);
    assert_eq!(end, DONE);
    // Generous for a loaded machine; polling at a second would still fail.
    assert!(now - since < 0.6, "{}", now - since);
}

#[tokio::test]
async fn a_step_finds_the_world_of_a_login() {
    let Some(lab) = Lab::start().await else { return };
    let mut step = DetachedStep::new(
        "world",
        "#!/bin/sh\n\
         printf '%s|' \"$GREETING\" \"$#\" \"$1\" \"$2\"; umask; pwd; cat\n\
         for fd in 3 4 5 6 7 8 9; do [ -e /proc/$$/fd/$fd ] && echo leaked $fd; done\n\
         grep SigIgn /proc/self/status\n",
    );
    step.env = vec![("GREETING".to_owned(), "it's\n$HOME".to_owned())];
    step.args = vec!["a b".to_owned(), "'".to_owned()];
    let (end, heard) = lab.run(step).await;
    assert_eq!(end.unwrap(), DONE);
    let ssh = lab.guest.exec("umask; pwd; grep SigIgn /proc/self/status", b"", &control()).await.unwrap();
    let ssh = ssh.text();
    let [umask, _pwd, ignored] = ssh.lines().collect::<Vec<_>>()[..] else { panic!("{ssh}") };
    // The directory is the login's own; the server's SetEnv moves only HOME.
    let pwd = ssh.lines().nth(1).unwrap();
    let expected = format!("it's\n$HOME|2|a b|'|{umask}\n{pwd}\n{ignored}\n");
    assert_eq!(heard.text(), expected);
}

#[tokio::test]
async fn a_script_without_shebang_is_the_login_shells_and_an_interpreter_is_obeyed() {
    let Some(lab) = Lab::start().await else { return };
    let (end, heard) = lab.run(DetachedStep::new("bare", "echo bare")).await;
    assert_eq!((end.unwrap(), heard.text().as_str()), (DONE, "bare\n"));

    let mut step = DetachedStep::new("awk", "BEGIN { print \"awk\", ARGV[1]; exit 5 }");
    step.interpreter = vec!["awk".to_owned(), "-f".to_owned()];
    step.args = vec!["word".to_owned()];
    let (end, heard) = lab.run(step).await;
    assert_eq!((end.unwrap(), heard.text().as_str()), (StepEnd::Exited { code: 5 }, "awk word\n"));

    // A script with Windows line ends fails as it does everywhere, and says why.
    let (end, heard) = lab.run(DetachedStep::new("crlf", "#!/bin/sh\r\necho no\r\n")).await;
    assert_eq!(end.unwrap(), StepEnd::Exited { code: 127 });
    assert!(String::from_utf8_lossy(&heard.stderr).contains("not found"), "{heard:?}", heard = heard.stderr);
}

/// A script with its payload behind it, as self-extracting installers are.
fn self_extracting() -> Vec<u8> {
    let head = b"#!/bin/sh\ntail -n +4 \"$0\" | sha256sum; tail -n +4 \"$0\" | wc -c\nexit 3\n";
    let mut script = head.to_vec();
    let mut state = 1_u32;
    script.extend(
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24).to_le_bytes()[0]
        })
        .take(5 << 20),
    );
    script
}

#[tokio::test]
async fn a_script_that_lies_in_the_guest_is_run_and_goes_with_its_step() {
    let Some(lab) = Lab::start().await else { return };
    let script = self_extracting();
    let payload = kiln_host::digest::hex(&sha256(&script[script.len() - (5 << 20)..]));
    // In the place where it is run from, and in another.
    for directory in [PathBuf::from("/tmp"), lab.server.home()] {
        let placed = lab.placed(&directory, &script).await;
        assert_eq!(lab.traces_of(&placed), [PathBuf::from(placed.path())]);
        let (end, heard) = lab.run(DetachedStep::new("large", placed.clone())).await;
        assert_eq!(end.unwrap(), StepEnd::Exited { code: 3 });
        let said = heard.text();
        assert_eq!(said.split_whitespace().collect::<Vec<_>>(), [payload.as_str(), "-", "5242880"], "{said}");
        assert_eq!(heard.script().parent(), Some(Path::new("/tmp")));
        assert_eq!(heard.script().extension().unwrap(), "sh");
        assert_eq!(lab.traces_of(&placed), NOTHING);
        lab.no_trace(&heard);
    }
    // How it is run is known from its first bytes, as of any other.
    let placed = lab.placed(Path::new("/tmp"), b"echo bare").await;
    let (end, heard) = lab.run(DetachedStep::new("bare", placed.clone())).await;
    assert_eq!((end.unwrap(), heard.text().as_str()), (DONE, "bare\n"));
    assert_eq!(lab.traces_of(&placed), NOTHING);
    let placed = lab.placed(Path::new("/tmp"), b"BEGIN { print \"awk\"; exit 5 }").await;
    let interpreter = vec!["awk".to_owned(), "-f".to_owned()];
    let step = DetachedStep { interpreter, extension: "awk", ..DetachedStep::new("awk", placed.clone()) };
    let (end, heard) = lab.run(step).await;
    assert_eq!((end.unwrap(), heard.text().as_str()), (StepEnd::Exited { code: 5 }, "awk\n"));
    assert_eq!(heard.script().extension().unwrap(), "awk");
    assert_eq!(lab.traces_of(&placed), NOTHING);
}

#[tokio::test]
async fn a_script_that_lies_in_the_guest_goes_when_its_step_is_not_begun() {
    let Some(lab) = Lab::start().await else { return };
    let ran = lab.server.home().join("ran");
    let script = format!("#!/bin/sh\ntouch {}\n", ran.display());
    let place = || lab.placed(Path::new("/tmp"), script.as_bytes());

    // Nothing that a shell can pass on.
    let placed = place().await;
    let env = vec![("A B".to_owned(), String::new())];
    let (end, _) = lab.run(DetachedStep { env, ..DetachedStep::new("bad", placed.clone()) }).await;
    assert!(matches!(&end, Err(GuestError::BadStep { .. })), "{end:?}");
    assert_eq!(lab.traces_of(&placed), NOTHING);

    // Somebody has cut it, or taken it away.
    let placed = place().await;
    std::fs::write(placed.path(), "#!/bin/sh\n").unwrap();
    let (end, _) = lab.run(DetachedStep::new("cut", placed.clone())).await;
    assert!(end.as_ref().is_err_and(|error| error.to_string().contains("did not arrive whole")), "{end:?}");
    assert_eq!(lab.traces_of(&placed), NOTHING);
    let placed = place().await;
    std::fs::remove_file(placed.path()).unwrap();
    let (end, _) = lab.run(DetachedStep::new("gone", placed.clone())).await;
    assert!(matches!(&end, Err(GuestError::Inside { .. })), "{end:?}");
    assert_eq!(lab.traces_of(&placed), NOTHING);

    // The control ends before it begins.
    let placed = place().await;
    let canceled = control();
    canceled.cancel();
    let (end, _) = lab.run_until(DetachedStep::new("late", placed.clone()), &canceled).await;
    assert_eq!(end.unwrap_err().interrupted(), Some(Interrupted::Canceled));
    assert_eq!(lab.traces_of(&placed), NOTHING);
    assert!(!ran.exists());
}

#[tokio::test]
async fn a_script_that_lies_in_the_guest_is_copied_where_it_cannot_have_two_names() {
    let tools = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/bin/false", tools.path().join("ln")).unwrap();
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", tools.path().display());
    let Some(lab) = Lab::start_with(&[("PATH", &path)]).await else { return };
    let placed = lab.placed(&lab.server.home(), b"#!/bin/sh\necho copied\n").await;
    let (end, heard) = lab.run(DetachedStep::new("copied", placed.clone())).await;
    assert_eq!((end.unwrap(), heard.text().as_str()), (DONE, "copied\n"));
    assert_eq!(lab.traces_of(&placed), NOTHING);
}

#[tokio::test]
async fn a_link_cut_three_times_loses_and_doubles_nothing() {
    let Some(lab) = Lab::start().await else { return };
    let mut heard = Heard::default();
    let mut cuts = 0;
    let step = DetachedStep::new(
        "count",
        "#!/bin/sh\ni=0\nwhile [ $i -lt 3000 ]; do i=$((i+1)); echo \"line $i\"; echo \"err $i\" >&2\n\
         [ $((i % 100)) = 0 ] && sleep 0.05; done\nexit 4\n",
    );
    let control = control();
    let run = lab.guest.run_detached(
        step,
        |chunk| {
            heard.take(chunk);
            let lines = heard.stdout.iter().filter(|&&byte| byte == b'\n').count();
            if cuts < 3 && lines > (cuts + 1) * 700 {
                cuts += 1;
                lab.proxy.cut();
            }
        },
        &control,
    );
    assert_eq!(run.await.unwrap(), StepEnd::Exited { code: 4 });
    assert_eq!(cuts, 3);
    let counted = |word: &str| (1..=3000).map(|i| format!("{word} {i}\n")).collect::<String>();
    assert!(heard.text() == counted("line"), "standard output is not the sequence");
    assert!(heard.stderr == counted("err").into_bytes(), "standard error is not the sequence");
    let lost = heard.notices.iter().filter(|notice| **notice == StepNotice::LinkLost).count();
    let back = heard.notices.iter().filter(|notice| matches!(notice, StepNotice::LinkBack { .. })).count();
    assert_eq!((lost, back), (3, 3), "{:?}", heard.notices);
    lab.no_trace(&heard);
}

#[tokio::test]
async fn a_step_that_ends_while_the_link_is_down_is_not_lost() {
    let Some(lab) = Lab::start().await else { return };
    let step = DetachedStep::new("alone", "#!/bin/sh\necho begun\nsleep 0.7\necho ended\nexit 6\n");
    let mut heard = Heard::default();
    let mut cut = false;
    let control = control();
    let run = lab.guest.run_detached(
        step,
        |chunk| {
            heard.take(chunk);
            if !cut && !heard.stdout.is_empty() {
                cut = true;
                lab.proxy.behave(crate::proxy::Behaviour::Close);
                lab.proxy.cut();
            }
        },
        &control,
    );
    let repair = async {
        lab.guest.link_lost().await;
        // Long enough for a connection or two to be refused: those are no events here.
        tokio::time::sleep(Duration::from_secs(1)).await;
        lab.proxy.behave(crate::proxy::Behaviour::Pass);
    };
    let (end, ()) = tokio::join!(run, repair);
    assert_eq!(end.unwrap(), StepEnd::Exited { code: 6 });
    assert_eq!(heard.text(), "begun\nended\n");
    lab.no_trace(&heard);
}

#[tokio::test]
async fn a_step_is_started_once_whenever_the_link_breaks() {
    let Some(lab) = Lab::start().await else { return };
    for after in [0, 3, 6, 10, 15, 20, 30, 45, 60, 90] {
        let ran = lab.server.home().join(format!("ran-{after}"));
        let script = format!("#!/bin/sh\necho x >> {}\nsleep 0.2\necho done\n", ran.display());
        let cut = async {
            // Any moment of the start will do: what is between its events is what this is about.
            tokio::time::sleep(Duration::from_millis(after)).await;
            lab.proxy.cut();
        };
        let ((end, heard), ()) = tokio::join!(lab.run(DetachedStep::new("once", script)), cut);
        assert_eq!(end.unwrap(), DONE, "cut after {after} ms");
        assert_eq!(heard.text(), "done\n", "cut after {after} ms");
        assert_eq!(std::fs::read_to_string(&ran).unwrap(), "x\n", "cut after {after} ms");
        lab.no_trace(&heard);
    }
}

#[tokio::test]
async fn a_script_that_lies_in_the_guest_is_started_once_whenever_the_link_breaks() {
    let Some(lab) = Lab::start().await else { return };
    for after in [0, 3, 6, 10, 15, 20, 30, 45, 60, 90] {
        let ran = lab.server.home().join(format!("ran-{after}"));
        let script = format!("#!/bin/sh\necho x >> {}\nsleep 0.2\necho done\n", ran.display());
        let placed = lab.placed(Path::new("/tmp"), script.as_bytes()).await;
        let cut = async {
            // Any moment of the start will do: what is between its events is what this is about.
            tokio::time::sleep(Duration::from_millis(after)).await;
            lab.proxy.cut();
        };
        let step = DetachedStep::new("once", placed.clone());
        let ((end, heard), ()) = tokio::join!(lab.run(step), cut);
        assert_eq!(end.unwrap(), DONE, "cut after {after} ms");
        assert_eq!(heard.text(), "done\n", "cut after {after} ms");
        assert_eq!(std::fs::read_to_string(&ran).unwrap(), "x\n", "cut after {after} ms");
        assert_eq!(lab.traces_of(&placed), NOTHING, "cut after {after} ms");
        lab.no_trace(&heard);
    }
}

/// The first try to start it is cut off and comes to its end when the step, begun by the second, is over and gone.
#[tokio::test]
async fn a_late_try_neither_takes_a_script_away_nor_brings_it_back() {
    let tools = tempfile::tempdir().unwrap();
    let (first, go_on) = (tools.path().join("first"), tools.path().join("go-on"));
    // What comes after the script has got its name.
    let slow = format!(
        "#!/bin/sh\nif mkdir {}; then while [ ! -e {} ]; do sleep 0.05; done; fi\nexec /usr/bin/mkfifo \"$@\"\n",
        first.display(),
        go_on.display()
    );
    std::fs::write(tools.path().join("mkfifo"), slow).unwrap();
    std::fs::set_permissions(tools.path().join("mkfifo"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", tools.path().display());
    let Some(lab) = Lab::start_with(&[("PATH", &path)]).await else { return };
    let ran = lab.server.home().join("ran");
    let script = format!("#!/bin/sh\necho x >> {}\n", ran.display());
    let placed = lab.placed(Path::new("/tmp"), script.as_bytes()).await;
    let cut = async {
        until(|| first.exists().then_some(())).await;
        lab.proxy.cut();
    };
    let ((end, heard), ()) = tokio::join!(lab.run(DetachedStep::new("twice", placed.clone())), cut);
    assert_eq!(end.unwrap(), DONE);
    lab.no_trace(&heard);
    std::fs::write(&go_on, "").unwrap();
    // The last that the late one does.
    let sleeper = format!("{}/mkfifo", tools.path().display());
    until(|| Invocation::new("pgrep").args(["-f", &sleeper]).run_blocking().is_err().then_some(())).await;
    until(|| lab.traces_of(&placed).is_empty().then_some(())).await;
    assert_eq!(std::fs::read_to_string(&ran).unwrap(), "x\n");
}

#[tokio::test]
async fn much_output_and_odd_output_arrive_as_they_are() {
    let Some(lab) = Lab::start().await else { return };
    // 50 MB of numbers, counted here as they come.
    let mut bytes = 0_u64;
    let mut largest = 0;
    let begin = Instant::now();
    let step = DetachedStep::new("large", "#!/bin/sh\nseq -f '%015.0f' 3125000\n");
    let mut digest = kiln_host::digest::HashingWriter::new(std::io::sink());
    let end = lab
        .guest
        .run_detached(
            step,
            |chunk| {
                if let OutputChunk::Stdout(chunk) = chunk {
                    bytes += chunk.len() as u64;
                    largest = largest.max(chunk.len());
                    std::io::Write::write_all(&mut digest, chunk).unwrap();
                }
            },
            &control(),
        )
        .await
        .unwrap();
    println!("50 MB in {:?}, chunks up to {largest} bytes", begin.elapsed());
    assert_eq!((end, bytes), (DONE, 50_000_000));
    let expected = Invocation::new("sh")
        .args(["-c", "seq -f '%015.0f' 3125000 | sha256sum"])
        .run_blocking()
        .unwrap()
        .stdout_text();
    assert_eq!(Some(kiln_host::digest::hex(&digest.finish().1).as_str()), expected.split(' ').next());
    assert!(largest <= 256 * 1024, "{largest}");

    let (end, heard) = lab
        .shell("printf 'no line end \\000\\377\\033[31m'; head -c 100000 /dev/urandom > ~/r; cat ~/r")
        .await;
    assert_eq!(end, DONE);
    let random = std::fs::read(lab.server.home().join("r")).unwrap();
    assert_eq!(heard.stdout, [b"no line end \0\xff\x1b[31m", random.as_slice()].concat());
}

#[tokio::test]
async fn a_daemon_left_behind_does_not_hold_the_step() {
    let Some(lab) = Lab::start().await else { return };
    let begin = Instant::now();
    let (end, heard) = lab
        .shell("(while :; do echo chatter; sleep 0.01; done) & echo pid $!; setsid sleep 30 & echo pid $!; sleep 0.3")
        .await;
    assert_eq!(end, DONE);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert!(heard.text().contains("chatter"));
    lab.no_trace(&heard);
    // A daemon is the step's business: both live on, and are ended here by their ids.
    let text = heard.text();
    let pids: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("pid ")).collect();
    assert_eq!(pids.len(), 2, "{text}");
    for pid in pids {
        assert!(alive(pid), "{pid}");
        Invocation::new("kill").arg(pid).run_blocking().unwrap();
    }
}

#[tokio::test]
async fn a_step_that_sweeps_its_home_and_tmp_is_not_lost() {
    let Some(lab) = Lab::start().await else { return };
    let (end, heard) =
        lab.shell("echo before; rm -rf ~/.kiln* \"$0\"; echo after; echo err >&2; exit 9").await;
    assert_eq!(end, StepEnd::Exited { code: 9 });
    assert_eq!((heard.text().as_str(), heard.stderr.as_slice()), ("before\nafter\n", &b"err\n"[..]));
    lab.no_trace(&heard);
}

#[tokio::test]
async fn canceling_kills_the_whole_step() {
    let Some(lab) = Lab::start().await else { return };
    let pids = lab.server.home().join("pids");
    let script = format!(
        "#!/bin/sh\ntrap '' TERM\necho $$ > {p}.new\nsleep 61 & echo $! >> {p}.new\nmv {p}.new {p}\n\
         while :; do sleep 1; done\n",
        p = pids.display()
    );
    let placed = lab.placed(Path::new("/tmp"), script.as_bytes()).await;
    for step in [DetachedStep::new("long", script), DetachedStep::new("long", placed.clone())] {
        let control = control();
        let cancel = async {
            until(|| pids.exists().then_some(())).await;
            control.cancel();
        };
        let begin = Instant::now();
        let ((end, heard), ()) = tokio::join!(lab.run_until(step, &control), cancel);
        assert_eq!(end.unwrap_err().interrupted(), Some(Interrupted::Canceled));
        assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
        lab.no_trace(&heard);
        for pid in std::fs::read_to_string(&pids).unwrap().lines() {
            until(|| (!alive(pid)).then_some(())).await;
        }
        std::fs::remove_file(&pids).unwrap();
    }
    assert_eq!(lab.traces_of(&placed), NOTHING);
}

fn alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// The processes of a step's session, with a signal for each.
fn signal_session(folder: &Path, signal: &str) {
    let sid = std::fs::read_to_string(folder.join("sid")).unwrap();
    Invocation::new("pkill").args([signal, "-s", sid.trim()]).run_blocking().unwrap();
}

#[tokio::test]
async fn a_step_that_is_killed_from_outside_is_called_lost() {
    let Some(lab) = Lab::start().await else { return };
    let kill = async { signal_session(&until(|| lab.folder()).await, "-KILL") };
    let step = DetachedStep::new("victim", "#!/bin/sh\necho here\nsleep 30\n");
    let ((end, heard), ()) = tokio::join!(lab.run(step), kill);
    assert!(matches!(&end, Err(GuestError::StepLost { id, .. }) if id == "victim"), "{end:?}");
    lab.no_trace(&heard);
}

/// A restart as it looks from here: the link breaks, every process is gone (asked first, when it is orderly), and
/// the guest comes back with another boot id. The folder is what a guest finds on its disk afterwards.
async fn restart(lab: &Lab, signal: &str) -> (Result<StepEnd, GuestError>, Heard) {
    let step = DetachedStep::new("reboot", "#!/bin/sh\necho going down\nsleep 30\necho never\n");
    let heard = Arc::new(Mutex::new(Heard::default()));
    let control = control();
    let run = lab.guest.run_detached(step, |chunk| heard.lock().unwrap().take(chunk), &control);
    let power = async {
        let folder = until(|| lab.folder()).await;
        until(|| (!heard.lock().unwrap().stdout.is_empty()).then_some(())).await;
        lab.proxy.behave(crate::proxy::Behaviour::Close);
        lab.proxy.cut();
        let sid = std::fs::read_to_string(folder.join("sid")).unwrap();
        signal_session(&folder, signal);
        until(|| Invocation::new("pgrep").args(["-s", sid.trim()]).run_blocking().is_err().then_some(()))
            .await;
        std::fs::write(folder.join("boot"), "another-boot\n").unwrap();
        lab.proxy.behave(crate::proxy::Behaviour::Pass);
    };
    let (end, ()) = tokio::join!(run, power);
    let heard = Arc::into_inner(heard).unwrap().into_inner().unwrap();
    (end, heard)
}

#[tokio::test]
async fn a_crash_is_told_from_an_orderly_restart() {
    let Some(lab) = Lab::start().await else { return };
    if Path::new("/run/systemd/system").exists() {
        println!(
            "SKIPPED: with systemd a signal alone is no shutdown; the tests with real guests restart one"
        );
        return;
    }
    let (end, heard) = restart(&lab, "-TERM").await;
    assert_eq!(end.unwrap(), StepEnd::RebootedDuring { orderly: true });
    assert_eq!(heard.text(), "going down\n");
    lab.no_trace(&heard);
    let (end, heard) = restart(&lab, "-KILL").await;
    assert_eq!(end.unwrap(), StepEnd::RebootedDuring { orderly: false });
    assert_eq!(heard.text(), "going down\n");
    lab.no_trace(&heard);
}

/// A file system after a crash: names without contents, or no folder at all.
#[tokio::test]
async fn a_crash_that_took_the_folder_with_it_is_a_crash() {
    let Some(lab) = Lab::start().await else { return };
    for empty in ["boot exit", "exit"] {
        let wipe = async {
            let folder = until(|| lab.folder()).await;
            signal_session(&folder, "-KILL");
            for name in empty.split(' ') {
                std::fs::write(folder.join(name), "").unwrap();
            }
        };
        let step = DetachedStep::new("crashed", "#!/bin/sh\necho here\nsleep 30\n");
        let ((end, heard), ()) = tokio::join!(lab.run(step), wipe);
        // The boot id is the same here, so it is not taken for a restart; with another one it is.
        assert!(matches!(&end, Err(GuestError::StepLost { .. })), "{empty}: {end:?}");
        lab.no_trace(&heard);
    }
}

#[tokio::test]
async fn secrets_of_a_step_show_in_no_process_list() {
    let Some(lab) = Lab::start().await else { return };
    let canary = format!("canary-{}", lab.proxy.addr().port());
    // A process may be gone before its turn comes.
    let script =
        format!("#!/bin/sh\n# {canary}-script\nsleep 0.3\ncat /proc/[0-9]*/cmdline 2>/dev/null || true\n");
    let mut step = DetachedStep::new("secret", script);
    step.env = vec![("TOKEN".to_owned(), format!("{canary}-env"))];
    let (end, heard) = lab.run(step).await;
    assert_eq!(end.unwrap(), DONE);
    // The look was a real one: the step's own processes are in it.
    assert!(heard.text().contains(heard.script().to_str().unwrap()), "{}", heard.text());
    assert!(!heard.text().contains(&canary), "{}", heard.text());
}

/// The programs of a small guest: busybox, and nothing of GNU.
#[tokio::test]
async fn a_guest_with_busybox_alone_will_do() {
    if !Path::new("/bin/busybox").exists() {
        println!("SKIPPED: no busybox here");
        return;
    }
    let tools = tempfile::tempdir().unwrap();
    let list = Invocation::new("/bin/busybox").arg("--list").run_blocking().unwrap().stdout_text();
    for name in list.lines().filter(|name| !name.contains('/')) {
        std::os::unix::fs::symlink("/bin/busybox", tools.path().join(name)).unwrap();
    }
    let Some(lab) = Lab::start_with(&[("PATH", tools.path().to_str().unwrap())]).await else { return };
    let (end, heard) = lab
        .shell("i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo $i; done; sleep 0.2; echo err >&2; exit 3")
        .await;
    assert_eq!(end, StepEnd::Exited { code: 3 });
    assert_eq!(heard.text(), (1..=2000).map(|i| format!("{i}\n")).collect::<String>());
    assert_eq!(heard.stderr, b"err\n");
    lab.no_trace(&heard);
    assert!(lab.guest.facts(&control()).await.unwrap().script_dir.is_some());
}

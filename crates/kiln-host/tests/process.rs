//! Programs started, watched and ended, with real programs.

use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kiln_host::process::{Identity, Invocation, ProcessError, Sink, SpawnOptions};
use kiln_host::wait::{Control, Interrupted};

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Invocation {
        Invocation::new("sh").arg("-c").arg(script)
    }

    fn in_time() -> Control {
        Control::ending_in(Duration::from_secs(20))
    }

    /// Whether the process runs: a zombie does not.
    fn is_running(pid: u32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or_default().starts_with('Z'))
    }

    /// The one place where these tests ask again and again: another process's end has no event for us.
    async fn soon(mut true_soon: impl FnMut() -> bool) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if true_soon() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    async fn number_in(path: &Path) -> u32 {
        let mut number = None;
        let written = soon(|| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            number = text.strip_suffix('\n').and_then(|text| text.parse().ok());
            number.is_some()
        });
        assert!(written.await, "no number in {}", path.display());
        number.unwrap()
    }

    #[tokio::test]
    async fn output_is_captured_whole() {
        let big = sh("head -c 3000000 /dev/zero; echo talk >&2");
        for output in [big.run_blocking().unwrap(), big.run(&in_time()).await.unwrap()] {
            assert_eq!(output.stdout.len(), 3_000_000);
            assert_eq!(output.stderr, "talk\n");
        }
    }

    #[tokio::test]
    async fn a_failure_shows_command_status_and_the_end_of_stderr() {
        let failing = sh("seq 1 100000 >&2; exit 3");
        let error = failing.run(&in_time()).await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("sh -c 'seq 1 100000 >&2; exit 3' failed with exit status 3; it said: "),
            "{text}"
        );
        assert!(text.ends_with("99999\n100000") && text.len() < 5000, "{text}");
        assert!(matches!(error, ProcessError::Failed { code: Some(3), .. }));

        let error = sh("kill -SEGV $$").run_blocking().unwrap_err();
        assert!(error.to_string().ends_with("failed with signal 11 (SIGSEGV)"), "{error}");
    }

    /// `NoNewPrivs`, `Uid`, `Gid` and `Groups` of a child, as proc_pid_status(5) has them.
    async fn rights(options: SpawnOptions, survives: bool) -> Vec<String> {
        let say = sh("exec grep -E '^(NoNewPrivs|Uid|Gid|Groups):' /proc/self/status");
        let options = SpawnOptions { stdout: Sink::Pipe, ..options };
        let mut child =
            if survives { say.spawn_session(options).unwrap() } else { say.spawn(options).unwrap() };
        let mut text = String::new();
        child.take_stdout().unwrap().read_to_string(&mut text).unwrap();
        child.wait().await.unwrap();
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[tokio::test]
    async fn a_child_has_no_more_rights_than_it_is_given() {
        for survives in [false, true] {
            let plain = rights(SpawnOptions::default(), survives).await;
            assert!(plain.contains(&"NoNewPrivs: 0".to_owned()), "{plain:?}");
            let bound = SpawnOptions { no_new_privs: true, ..SpawnOptions::default() };
            let bound = rights(bound, survives).await;
            assert!(bound.contains(&"NoNewPrivs: 1".to_owned()), "{bound:?}");
            if !rustix::process::geteuid().is_root() {
                eprintln!("not root: other users are not tried");
                continue;
            }
            let nobody = Identity::of("nobody").unwrap();
            let (uid, gid) = (nobody.uid(), nobody.gid());
            let as_nobody =
                SpawnOptions { identity: Some(nobody), no_new_privs: true, ..SpawnOptions::default() };
            assert_eq!(
                rights(as_nobody, survives).await,
                [
                    format!("Uid: {uid} {uid} {uid} {uid}"),
                    format!("Gid: {gid} {gid} {gid} {gid}"),
                    format!("Groups: {gid}"),
                    "NoNewPrivs: 1".to_owned()
                ]
            );
        }
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        for error in [
            Invocation::new("no-such-program").run_blocking().unwrap_err(),
            Invocation::new("no-such-program").run(&in_time()).await.unwrap_err(),
            Invocation::new("no-such-program").spawn(SpawnOptions::default()).unwrap_err(),
        ] {
            assert!(
                matches!(&error, ProcessError::NotFound { program } if program == "no-such-program"),
                "{error}"
            );
        }
        let error = sh("true").current_dir("/no/such/folder").run_blocking().unwrap_err();
        assert!(matches!(error, ProcessError::Start { .. }), "{error}");
    }

    #[tokio::test]
    async fn an_endless_talker_is_refused_without_eating_the_memory() {
        let error = sh("head -c 20000000 /dev/zero").run(&in_time()).await.unwrap_err();
        assert!(matches!(error, ProcessError::OutputTooLong { .. }), "{error}");
    }

    #[tokio::test]
    async fn what_is_streamed_may_be_longer_than_what_is_kept() {
        let seen = Arc::new(Mutex::new(0));
        let watch = {
            let seen = Arc::clone(&seen);
            move |bytes: &[u8]| *seen.lock().unwrap() += bytes.len()
        };
        sh("head -c 20000000 /dev/zero").run_streamed(&in_time(), watch).await.unwrap();
        assert_eq!(*seen.lock().unwrap(), 20_000_000);
        let error = sh("echo why >&2; exit 3").run_streamed(&in_time(), |_| {}).await.unwrap_err();
        assert!(error.to_string().contains("why"), "{error}");
    }

    #[tokio::test]
    async fn progress_is_seen_while_the_program_runs() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let watch = {
            let (seen, begun) = (Arc::clone(&seen), Instant::now());
            move |bytes: &[u8]| seen.lock().unwrap().push((begun.elapsed(), bytes.to_vec()))
        };
        sh("echo one; sleep 1; echo two").run_watched(&in_time(), watch).await.unwrap();
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 2);
        assert!(seen[1].0 - seen[0].0 > Duration::from_millis(500));
    }

    #[tokio::test]
    async fn an_interruption_ends_the_whole_group() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script = format!("sleep 60 & echo $! >{}; wait", pid_file.display());
        let control = in_time();
        let running = tokio::spawn({
            let control = control.clone();
            async move { sh(&script).run(&control).await }
        });
        let grandchild = number_in(&pid_file).await;
        control.cancel();
        let error = running.await.unwrap().unwrap_err();
        assert_eq!(error.interrupted(), Some(Interrupted::Canceled));
        // It was killed before the run returned, but dies in its own time.
        assert!(soon(|| !is_running(grandchild)).await, "a run that returned has left {grandchild} behind");
    }

    #[tokio::test]
    async fn a_dropped_run_ends_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let running = tokio::spawn(async move {
            sh("echo $$ >pid; exec sleep 60").current_dir(dir.path()).run(&in_time()).await.map(|_| dir)
        });
        let pid = number_in(&pid_file).await;
        running.abort();
        assert!(soon(|| !is_running(pid)).await);
    }

    #[tokio::test]
    async fn what_a_program_leaves_in_its_group_ends_with_it() {
        let begun = Instant::now();
        // The sleeper holds stdout open: without its end there would be no end of the output.
        let output = sh("sleep 60 & echo $!").run(&in_time()).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(4));
        let left: u32 = output.stdout_text().trim().parse().unwrap();
        assert!(soon(|| !is_running(left)).await);
    }

    #[tokio::test]
    async fn one_that_escapes_and_holds_the_pipe_cannot_hold_us() {
        let begun = Instant::now();
        let output = sh("setsid sleep 8 & sleep 0.3; echo said").run(&in_time()).await.unwrap();
        assert_eq!(output.stdout, b"said\n");
        let took = begun.elapsed();
        assert!(took > Duration::from_secs(4) && took < Duration::from_secs(7), "{took:?}");
    }

    #[tokio::test]
    async fn a_child_tells_its_end_to_all_who_wait() {
        let mut child = sh("echo hello; exit 7")
            .spawn(SpawnOptions { stdout: Sink::Pipe, ..Default::default() })
            .unwrap();
        let mut said = String::new();
        child.take_stdout().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "hello\n");
        let (first, second) = tokio::join!(child.wait(), child.wait());
        assert_eq!((first.unwrap().code(), second.unwrap().code()), (Some(7), Some(7)));
        assert_eq!(child.status().unwrap().code(), Some(7));
        child.kill_group();
    }

    #[tokio::test]
    async fn a_child_can_be_asked_and_forced_to_end() {
        let stubborn = sh("trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done");
        let mut asked = stubborn.spawn(SpawnOptions { stdout: Sink::Pipe, ..Default::default() }).unwrap();
        let mut said = [0; 6];
        asked.take_stdout().unwrap().read_exact(&mut said).unwrap();
        asked.terminate_group();
        assert_eq!(asked.wait().await.unwrap().code(), Some(9));
        let forced = sh("exec sleep 60").spawn(SpawnOptions::default()).unwrap();
        forced.kill_group();
        assert_eq!(forced.wait().await.unwrap().signal(), Some(9));
    }

    #[tokio::test]
    async fn a_dropped_child_dies_and_a_dropped_session_lives() {
        let child = sh("exec sleep 60").spawn(SpawnOptions::default()).unwrap();
        let session = sh("exec sleep 60").spawn_session(SpawnOptions::default()).unwrap();
        let (child_pid, session_pid) = (child.pid(), session.pid());
        drop((child, session));
        assert!(soon(|| !is_running(child_pid)).await);
        assert!(is_running(session_pid));
        Invocation::new("kill").args(["-9", &session_pid.to_string()]).run_blocking().unwrap();
    }

    /// The parent of a parent: this very test binary, told by its environment to start a child of each kind, write
    /// down their ids, and wait to be killed.
    #[tokio::test]
    async fn children_die_with_a_killed_parent_and_sessions_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let parent = Invocation::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::play_the_parent", "--ignored", "--nocapture"])
            .current_dir(dir.path())
            .spawn_session(SpawnOptions::default())
            .unwrap();
        let child = number_in(&dir.path().join("child")).await;
        let session = number_in(&dir.path().join("session")).await;
        assert!(is_running(child) && is_running(session));
        // Long after the threads that started them would have been gone, were they pool threads.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(is_running(child), "died before its parent");
        Invocation::new("kill").args(["-9", &parent.pid().to_string()]).run_blocking().unwrap();
        parent.wait().await.unwrap();
        assert!(soon(|| !is_running(child)).await, "{child} outlived its parent");
        assert!(is_running(session), "the session died with its parent");
        Invocation::new("kill").args(["-9", &session.to_string()]).run_blocking().unwrap();
    }

    #[test]
    #[ignore = "a part of children_die_with_a_killed_parent_and_sessions_do_not"]
    fn play_the_parent() {
        let sleeper = sh("exec sleep 60");
        let start = |name: &str, session: bool| {
            let options = SpawnOptions::default();
            let child = if session { sleeper.spawn_session(options) } else { sleeper.spawn(options) };
            let child = child.unwrap();
            std::fs::write(name, format!("{}\n", child.pid())).unwrap();
            child
        };
        // From a thread that ends at once: the child must not notice.
        let _children = std::thread::scope(|scope| {
            let child = scope.spawn(|| start("child", false)).join().unwrap();
            (child, start("session", true))
        });
        std::thread::sleep(Duration::from_secs(60));
    }
}

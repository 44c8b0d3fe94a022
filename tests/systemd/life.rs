//! The package's life, in order, in one machine.
//!
//! ```text
//!  install ─ runs a and c are held in a step ─ kill -9 of c's worker ─ restart, kill -9 of the daemon ─ a ends well
//!          ─ run b is held ─ upgrade ─ b ends well ─ backup, loss, restore ─ run d ─ remove ─ install ─ purge
//! ```

use std::time::{Duration, Instant};

use kiln_tests::program::say;
use kiln_tests::settings::test_data;
use kiln_tests::template::tiny;
use serde_json::{Value, json};

use crate::machine::Machine;
use crate::package::PACKAGES;

/// A guest from its start to a step, or from a step to the run's end, two emulators deep.
const GUEST_LIMIT: Duration = Duration::from_secs(600);
const SOON: Duration = Duration::from_secs(180);
/// Part of an address a template names; it may be nowhere but in the store.
const CANARY: &str = "canary7f3e91aa";
/// The data of the service.
const DATA: &str = "/var/lib/kiln";

#[test]
fn from_installation_to_purge() {
    let packages = &*PACKAGES;
    let life = Life { machine: Machine::boot() };
    let machine = &life.machine;
    machine.copy_in(&packages.first, "/root/first.deb");
    machine.copy_in(&packages.second, "/root/second.deb");
    let before = stage("without systemd: install, upgrade, remove, purge", || {
        let before = life.files();
        life.without_systemd();
        before
    });
    stage("install", || life.install());
    stage("who may", || life.who_may());
    stage("prepare what runs need", || life.prepare());
    let (a, c) = stage("two runs as far as a step that waits", || {
        let (a, c) = (life.start("a"), life.start("c"));
        life.reach_hold(&a);
        life.reach_hold(&c);
        (a, c)
    });
    stage("kill -9 of a worker", || life.kill_worker(&c));
    stage("restart, and kill -9, of the daemon", || life.restart_in_the_middle(&a));
    stage("the run ends well", || life.ends_well(&a));
    let b = stage("another run as far as the step that waits", || {
        let b = life.start("b");
        life.reach_hold(&b);
        b
    });
    stage("upgrade", || life.upgrade_in_the_middle(&b));
    stage("that run ends well, too", || life.ends_well(&b));
    stage("no secret where it does not belong", || life.no_canary());
    stage("backup and restore", || life.backup_and_restore(&a));
    stage("a server of root's: its workers are another user's units of the system", || life.as_root());
    stage("remove in the middle of a run, and install again", || life.remove_and_return());
    stage("purge", || life.purge(&before));
}

fn stage<T>(name: &str, act: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let value = act();
    say(&format!("{:>4} s  {name}", started.elapsed().as_secs()));
    value
}

struct Life {
    machine: Machine,
}

/// A run, known by its template's name.
struct Run {
    template: &'static str,
    id: String,
}

impl Run {
    fn dir(&self) -> String {
        format!("{DATA}/runs/{}", self.id)
    }
    fn unit(&self) -> String {
        format!("kiln-run-{}.service", self.id)
    }
}

impl Life {
    /// Every path that a package may not leave behind or take along.
    fn files(&self) -> Vec<String> {
        let listing = self.machine.sh(
            // Not: what the system itself writes as time goes by.
            "find / -xdev \\( -path /root -o -path /home -o -path /tmp -o -path '/var/tmp/*' -o -path /var/log \
             -o -path /var/lib/systemd/timesync -o -path /var/lib/systemd/timers -o -path /var/lib/systemd/random-seed \
             -o -path '/etc/*-' -o -path /var/lib/dpkg \\) -prune -o -print | sort",
        );
        listing.lines().map(str::to_owned).collect()
    }

    /// In a tree where no systemd runs: a container image in the making, say.
    fn without_systemd(&self) {
        let said = self.machine.sh("mkdir /mnt/t; mount -t tmpfs none /mnt/t; mkdir /mnt/t/{upper,work,root}
             mount -t overlay -o lowerdir=/,upperdir=/mnt/t/upper,workdir=/mnt/t/work none /mnt/t/root
             mount -t proc none /mnt/t/root/proc
             trap 'umount -R /mnt/t; rmdir /mnt/t' EXIT
             inside() { chroot /mnt/t/root \"$@\" < /dev/null; }
             inside dpkg -i /root/first.deb > /dev/null
             inside getent passwd kiln; inside id -nG kiln
             echo '# mine' >> /mnt/t/root/etc/kiln/kiln.yaml
             inside dpkg -i /root/second.deb > /dev/null
             tail -n 1 /mnt/t/root/etc/kiln/kiln.yaml
             inside stat -c '%a %U:%G' /etc/kiln/kiln.yaml
             inside kiln version
             readlink /mnt/t/root/etc/systemd/system/multi-user.target.wants/kiln.service
             inside dpkg -r kiln > /dev/null
             inside ls /etc/kiln
             inside dpkg -P kiln > /dev/null
             inside find /etc/kiln /usr/bin/kiln /var/lib/kiln /var/lib/systemd/linger/kiln /etc/systemd/system \
               -name '*kiln*' 2> /dev/null || true
             echo end");
        let lines: Vec<&str> = said.lines().collect();
        assert!(
            lines[0].starts_with("kiln:x:") && lines[0].ends_with(":/var/lib/kiln:/usr/sbin/nologin"),
            "{said}"
        );
        assert_eq!(
            lines[1..],
            [
                "kiln kvm",
                "# mine",
                "640 root:kiln",
                &format!("kiln {}", self.version()),
                "/lib/systemd/system/kiln.service",
                "kiln.yaml",
                "end"
            ],
            "{said}"
        );
    }

    fn version(&self) -> String {
        self.machine.sh("dpkg-deb --field /root/first.deb Version").split('-').next().unwrap().to_owned()
    }

    fn install(&self) {
        self.machine.sh("dpkg -i /root/first.deb");
        self.serving();
        assert_eq!(self.machine.sh("systemctl is-enabled kiln"), "enabled");
        let said = self.machine.sh("journalctl -u kiln --no-pager -o cat");
        assert!(said.contains("each worker gets a unit of its own"), "{said}");
    }

    /// The service says it is ready (`Type=notify`); its process.
    fn serving(&self) -> String {
        self.machine.until("the service is up", SOON, "systemctl is-active kiln > /dev/null && echo yes");
        self.machine.sh("systemctl show --property=MainPID --value kiln")
    }

    fn who_may(&self) {
        let machine = &self.machine;
        let pid = self.serving();
        let facts = machine.sh(&format!(
            "ps -o user=,group= -p {pid} | tr -s ' '
             grep -E '^(NoNewPrivs|Seccomp|CapEff|CapBnd):' /proc/{pid}/status | tr -d '\\t'
             stat -c '%a %U:%G' /run/kiln/kiln.sock {DATA} {DATA}/server {DATA}/server/operator.secret /etc/kiln/kiln.yaml
             ss -Hltn | awk '{{print $4}}' | grep -v ':22$' | sort"
        ));
        assert_eq!(
            facts.lines().collect::<Vec<_>>(),
            [
                "kiln kiln",
                "CapEff:0000000000000000",
                "CapBnd:0000000000000000",
                "NoNewPrivs:1",
                "Seccomp:2",
                "660 kiln:kiln",
                "750 kiln:kiln",
                "700 kiln:kiln",
                "600 kiln:kiln",
                "640 root:kiln",
                "127.0.0.1:8441",
            ]
        );
        // systemd's own mark: 10 is unprotected, 0 is a wall.
        machine.sh("systemd-analyze security --no-pager --threshold=25 kiln > /root/security || { tail -n 1 /root/security >&2; exit 1; }");
        machine.sh("useradd --create-home --shell /bin/bash --groups kiln op; useradd other");
        assert_eq!(self.op("kiln template list --json | jq -c '.templates | length'"), "0");
        let refused = machine
            .try_sh("sudo -u other curl -sS --unix-socket /run/kiln/kiln.sock http://localhost/kiln/status");
        assert!(
            !refused.status.success() && refused.stderr.contains("Couldn't connect"),
            "{}",
            refused.stderr
        );
    }

    /// Somebody in the group kiln, at a shell.
    fn op(&self, script: &str) -> String {
        self.machine.write("/home/op/script", &format!("set -euo pipefail; cd /home/op; {script}\n"));
        self.machine.sh("sudo -u op -H bash /home/op/script")
    }

    fn prepare(&self) {
        let machine = &self.machine;
        let tiny_image = test_data().join("library/images/tiny/1.0.0/disk.qcow2");
        machine.copy_in(&tiny_image, "/var/tmp/tiny.qcow2");
        machine.sh(&format!(
            "chmod 644 /var/tmp/tiny.qcow2
             sudo -u kiln -H KILN_DATA={DATA} kiln images import /var/tmp/tiny.qcow2 --name tiny --version 1.0.0 \
               --platform Kiln:tests:tiny --generation 1"
        ));
        // The self-test of KVM has a few seconds, which a host that is busy elsewhere may not give it;
        // without KVM the guests below would be translated twice.
        machine.until(
            "KVM runs guests in here",
            Duration::from_secs(180),
            "rm -f /var/cache/kiln/accelerator.json
             sudo -u kiln -H XDG_CACHE_HOME=/var/cache kiln doctor --json | grep -o 'KVM, guests see' || true",
        );
        // One page, whatever is asked: a script for the template, and what the waiting step waits for.
        machine.write(
            "/usr/local/bin/answer",
            "#!/bin/bash\nwhile read -r line && [ \"$line\" != $'\\r' ]; do :; done\n\
             printf 'HTTP/1.0 200 OK\\r\\nContent-Length: 21\\r\\n\\r\\necho the script spoke\\n'\n",
        );
        machine.sh("chmod 755 /usr/local/bin/answer");
        self.answer_on(7001);
        // An administrator's changes: they must be there after the upgrade. Two runs at a time, on one processor.
        machine.sh(
            "printf 'checkpoints:\\n  enabled: false\\nruns:\\n  cpus: 2\\ninputs:\\n  allowPrivateAddresses: true\\n' >> /etc/kiln/kiln.yaml
             systemctl restart kiln",
        );
        self.serving();
        for name in ["a", "b", "c", "d"] {
            let template = tiny()
                .customizer(json!({
                    "type": "Shell", "name": "fetched",
                    "scriptUri": format!("http://127.0.0.1:7001/script.sh?sig={CANARY}"),
                }))
                .shell("hold", ["until nc -w 5 10.0.2.2 7000 < /dev/null > /dev/null; do sleep 1; done"]);
            machine.write("/home/op/template.json", &template.text());
            self.op(&format!("kiln template put template.json --name {name}"));
        }
    }

    fn answer_on(&self, port: u16) {
        self.machine.sh(&format!(
            "systemctl is-active --quiet answer-{port} ||
               systemd-run --quiet --collect --unit=answer-{port} \
                 systemd-socket-activate --accept --inetd --listen=127.0.0.1:{port} /usr/local/bin/answer"
        ));
    }

    fn start(&self, template: &'static str) -> Run {
        Run { template, id: self.op(&format!("kiln run start {template}")) }
    }

    fn reach_hold(&self, run: &Run) {
        let held = format!("grep '\"kind\":\"stepStarted\".*customize/2' {}/events.jsonl || true", run.dir());
        self.machine.until("the run reaches the step that waits", GUEST_LIMIT, &held);
    }

    fn worker(&self, run: &Run) -> String {
        self.machine.sh(&format!("jq .pid {}/claim.json", run.dir()))
    }

    /// Processes of the account that belong to a run.
    fn processes(&self, run: &Run) -> String {
        let short = run.id.rsplit('-').next().unwrap();
        self.machine.sh(&format!("ps -u kiln -o pid=,args= | grep -e {short} || true"))
    }

    fn last_run(&self, template: &str) -> Value {
        let text = self.op(&format!("kiln template get {template} --json"));
        let value: Value = serde_json::from_str(&text).unwrap();
        value.pointer("/template/properties/lastRunStatus").unwrap_or_else(|| panic!("{text}")).clone()
    }

    fn kill_worker(&self, run: &Run) {
        let pid = self.worker(run);
        let group = self.machine.sh(&format!("cat /proc/{pid}/cgroup"));
        assert!(group.contains("/user@") && group.ends_with(&run.unit()), "a unit of its own: {group}");
        assert!(self.processes(run).contains("qemu-system"), "{}", self.processes(run));
        self.machine.sh(&format!("kill -9 {pid}; sleep 5"));
        assert_eq!(self.processes(run), "", "5 s after the worker was killed");
        self.machine.until(
            "the run is settled",
            SOON,
            &format!("grep '\"kind\":\"runEnded\"' {}/events.jsonl || true", run.dir()),
        );
        let last = self.last_run(run.template);
        assert_eq!(last["runState"], "Failed", "{last}");
        assert_eq!(
            self.machine.sh(&format!("{{ ls {}/work 2> /dev/null || true; }} | wc -l", run.dir())),
            "0",
            "nothing is left"
        );
        assert_eq!(self.units(), 1, "the other run's unit alone");
    }

    /// Units of runs in the account's service manager.
    fn units(&self) -> usize {
        let units = self.machine.sh(
            "sudo -u kiln XDG_RUNTIME_DIR=/run/user/$(id -u kiln) systemctl --user list-units --plain --no-legend 'kiln-run-*'",
        );
        units.lines().count()
    }

    fn still_running(&self, run: &Run, pid: &str) {
        self.machine.sh(&format!("kill -0 {pid}"));
        assert_eq!(&self.worker(run), pid, "the same worker");
        let last = self.last_run(run.template);
        assert_eq!(last["runState"], "Running", "{last}");
        assert_eq!(last["runSubState"], "Customizing", "{last}");
    }

    fn restart_in_the_middle(&self, run: &Run) {
        let (worker, first) = (self.worker(run), self.serving());
        self.machine.sh("systemctl restart kiln");
        let second = self.serving();
        assert_ne!(first, second, "another daemon");
        self.still_running(run, &worker);

        self.machine.sh(&format!("kill -9 {second}"));
        let third = self.machine.until(
            "systemd starts the daemon again",
            SOON,
            &format!(
                "pid=$(systemctl show --property=MainPID --value kiln); systemctl is-active --quiet kiln; \
                 [ $pid = {second} ] || echo $pid"
            ),
        );
        assert_ne!(second, third);
        self.still_running(run, &worker);
    }

    /// Lets the waiting step go on.
    fn ends_well(&self, run: &Run) {
        self.answer_on(7000);
        self.machine.until(
            "the run ends",
            GUEST_LIMIT,
            &format!("grep '\"kind\":\"runEnded\"' {}/events.jsonl || true", run.dir()),
        );
        self.machine.sh("systemctl stop answer-7000");
        self.machine.until(
            "the server has seen it",
            SOON,
            &format!(
                "sudo -u op -H kiln template get {} --json | jq '.template.properties.lastRunStatus.endTime // empty'",
                run.template
            ),
        );
        let last = self.last_run(run.template);
        assert_eq!(last["runState"], "Succeeded", "{last}");
        self.downloads(run);
        assert_eq!(self.processes(run), "");
        let log = self.op(&format!("kiln run logs {}", run.template));
        assert!(log.contains("the script spoke"), "{log}");
    }

    /// The run's output comes over the socket as it was made.
    fn downloads(&self, run: &Run) {
        self.op(&format!(
            "rm -rf out; mkdir out; kiln output download {} out --output out
             [ \"$(sha256sum < out/out.vhd | cut -d' ' -f1)\" = \"$(jq -r .sha256 out/out.json)\" ]",
            run.template
        ));
    }

    fn upgrade_in_the_middle(&self, run: &Run) {
        let (worker, first) = (self.worker(run), self.serving());
        self.machine.sh("DEBIAN_FRONTEND=noninteractive dpkg -i /root/second.deb < /dev/null");
        assert_ne!(first, self.serving(), "the upgrade restarts the daemon");
        self.still_running(run, &worker);
        let facts = self.machine.sh(&format!(
            "dpkg-query -W -f '${{Version}}\\n' kiln | grep -o '[^-]*$'; readlink /proc/{worker}/exe; \
             tail -n 1 /etc/kiln/kiln.yaml; stat -c '%a %U:%G' /etc/kiln/kiln.yaml"
        ));
        let expected = ["2", "/usr/bin/kiln (deleted)", "  allowPrivateAddresses: true", "640 root:kiln"];
        assert_eq!(facts.lines().collect::<Vec<_>>(), expected);
    }

    fn no_canary(&self) {
        let found = self.machine.sh(&format!(
            "journalctl --no-pager | grep -c {CANARY} || true
             cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2> /dev/null | tr '\\0' '\\n' | grep -v grep | grep -c {CANARY} || true
             grep -rlE {CANARY} {DATA} /var/cache/kiln /run/kiln /run/user/$(id -u kiln) /run/systemd/transient /var/log 2> /dev/null |
               xargs -r stat -c '%a %n'"
        ));
        let mut lines = found.lines();
        // The shell that searches names it itself, in its own command line and, as sudo and ssh see it, nowhere else.
        assert_eq!(lines.next(), Some("0"), "the journal: {found}");
        let _ = lines.next();
        let kept: Vec<&str> = lines.collect();
        assert!(!kept.is_empty(), "the store keeps the address, or this search finds nothing");
        for file in kept {
            assert!(
                file.starts_with("600 ") && file.contains("/server/kiln.db") || file.ends_with("/plan.json"),
                "{file}"
            );
        }
    }

    /// As the guide says it.
    fn backup_and_restore(&self, run: &Run) {
        let machine = &self.machine;
        let authority = machine.sh(&format!("sha256sum < {DATA}/server/tls/ca.pem"));
        machine.sh("systemctl stop kiln
             tar --create --sparse --gzip --file /root/backup.tar.gz --directory /var/lib kiln
             systemctl start kiln");
        self.serving();
        self.op("kiln template delete a --purge; kiln template delete b");
        machine.sh("systemctl stop kiln
             find /var/lib/kiln -mindepth 1 -delete
             tar --extract --preserve-permissions --sparse --file /root/backup.tar.gz --directory /var/lib
             chown -R kiln:kiln /var/lib/kiln
             systemctl start kiln");
        self.serving();
        let names = self.op("kiln template list --json | jq -r '.templates[].name' | sort | paste -sd' '");
        assert_eq!(names, "a b c d");
        assert_eq!(self.last_run("a")["runState"], "Succeeded");
        assert_eq!(self.last_run("c")["runState"], "Failed");
        self.downloads(run);
        assert_eq!(
            machine.sh(&format!("sha256sum < {DATA}/server/tls/ca.pem")),
            authority,
            "clients' trust holds"
        );
    }

    /// Not the package's way, but anybody's who starts the server as root.
    fn as_root(&self) {
        const ROOT: &str = "/srv/kiln-root";
        let machine = &self.machine;
        machine.write(
            "/root/root.yaml",
            &format!(
                "data: {ROOT}\nlisten: []\nsocket: {{path: /run/kiln-root.sock}}\nruns: {{workerUser: kiln}}\n\
                 inputs: {{allowPrivateAddresses: true}}\ncheckpoints: {{enabled: false}}\n"
            ),
        );
        let serve = "systemd-run --quiet --collect --unit=kiln-root --service-type=notify --setenv=HOME=/root \
                     kiln serve --config /root/root.yaml";
        machine.sh(&format!(
            "KILN_DATA={ROOT} kiln images import /var/tmp/tiny.qcow2 --name tiny --version 1.0.0 \
               --platform Kiln:tests:tiny --generation 1
             {serve}"
        ));
        let asked = "export KILN_SERVER=unix:/run/kiln-root.sock";
        let id = machine.sh(&format!(
            "{asked}; kiln template put /home/op/template.json --name root > /dev/null; kiln run start root"
        ));
        let dir = format!("{ROOT}/runs/{id}");
        machine.until(
            "the run's machine runs",
            GUEST_LIMIT,
            &format!("grep '\"kind\":\"stepStarted\".*\"connect\"' {dir}/events.jsonl || true"),
        );
        let worker = machine.sh(&format!("jq .pid {dir}/claim.json"));
        let qemu = machine.sh(&format!("pgrep -P {worker} -f qemu-system"));
        let user = machine.sh("id -u kiln");
        for pid in [&worker, &qemu] {
            let facts = machine.sh(&format!(
                "grep -E '^(Uid|NoNewPrivs|CapEff|CapBnd):' /proc/{pid}/status | tr '\\t' ' '; cat /proc/{pid}/cgroup"
            ));
            let expected = [
                format!("Uid: {user} {user} {user} {user}"),
                "CapEff: 0000000000000000".to_owned(),
                "CapBnd: 0000000000000000".to_owned(),
                "NoNewPrivs: 1".to_owned(),
                format!("0::/system.slice/kiln-run-{id}.service"),
            ];
            assert_eq!(facts.lines().collect::<Vec<_>>(), expected, "{pid}");
        }
        let command = machine.sh(&format!("tr '\\0' ' ' < /proc/{qemu}/cmdline"));
        assert!(command.contains("-sandbox on"), "{command}");

        machine
            .sh(&format!("systemctl stop kiln-root; kill -0 {worker}; {serve}; kill -9 {worker}; sleep 5"));
        let short = id.rsplit('-').next().unwrap();
        assert_eq!(machine.sh(&format!("ps -u kiln -o args= | grep -e {short} || true")), "", "after 5 s");
        machine.until(
            "the run is settled",
            SOON,
            &format!("grep '\"kind\":\"runEnded\"' {dir}/events.jsonl || true"),
        );
        machine.sh(&format!("systemctl stop kiln-root; rm -rf {ROOT} /tmp/kiln-{user}"));
    }

    fn remove_and_return(&self) {
        let machine = &self.machine;
        let run = self.start("d");
        machine.until(
            "the run's machine starts",
            GUEST_LIMIT,
            &format!("grep '\"kind\":\"stepStarted\".*\"boot\"' {}/events.jsonl || true", run.dir()),
        );
        machine.sh("dpkg -r kiln");
        let left = machine.sh(&format!(
            "pgrep -u kiln -a || true; systemctl is-active kiln || true; ls -d {DATA} /etc/kiln/kiln.yaml
             find /run/kiln /var/lib/systemd/linger/kiln /usr/bin/kiln 2> /dev/null || true"
        ));
        assert_eq!(left.lines().collect::<Vec<_>>(), ["inactive", "/etc/kiln/kiln.yaml", DATA]);
        machine.sh("dpkg -i /root/second.deb");
        self.serving();
        machine.until(
            "the run that was under way is settled",
            SOON,
            "sudo -u op -H kiln template get d --json | jq '.template.properties.lastRunStatus.endTime // empty'",
        );
        let last = self.last_run("d");
        assert!(last["runState"] == "Canceled" || last["runState"] == "Failed", "{last}");
        assert_eq!(self.last_run("a")["runState"], "Succeeded");
    }

    fn purge(&self, before: &[String]) {
        self.machine.sh("dpkg -P kiln; systemctl stop answer-7001; rm /usr/local/bin/answer");
        let after = self.files();
        let new: Vec<&String> = after.iter().filter(|path| !before.contains(path)).collect();
        assert_eq!(new, Vec::<&String>::new(), "left behind");
        let gone: Vec<&String> = before.iter().filter(|path| !after.contains(path)).collect();
        assert_eq!(gone, Vec::<&String>::new(), "taken along");
        assert_eq!(
            self.machine
                .sh("pgrep -u kiln -a || true; systemctl list-units --all --plain --no-legend 'kiln*'"),
            ""
        );
        // The account stays; what it may still own elsewhere is nobody else's.
        assert_eq!(self.machine.sh("id -un kiln"), "kiln");
    }
}

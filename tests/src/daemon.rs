//! A daemon of one home, driven from outside: with curl, and with whatever client a test brings.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::kiln::Kiln;
use crate::program::{self, command, finish, until};

/// A daemon is up in well under a second; a loaded machine takes longer.
const START_LIMIT: Duration = Duration::from_secs(30);

/// `kiln serve` on a port of its own. Killed when dropped; its workers are the home's, and go with it.
#[derive(Debug)]
pub struct Daemon<'a> {
    kiln: &'a Kiln,
    child: Child,
    url: String,
    token: String,
}

/// What curl got.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let named = |(key, _): &&(String, String)| key.eq_ignore_ascii_case(name);
        self.headers.iter().find(named).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

impl<'a> Daemon<'a> {
    pub fn start(kiln: &'a Kiln) -> Self {
        Self::start_with(kiln, &[])
    }

    /// With more arguments to `kiln serve`.
    pub fn start_with(kiln: &'a Kiln, args: &[&str]) -> Self {
        let endpoint = kiln.data().join("server/endpoint.json");
        let _ = std::fs::remove_file(&endpoint);
        let log = File::options().create(true).append(true).open(Self::log_of(kiln)).unwrap();
        let mut command = kiln.command(["serve", "--listen", "127.0.0.1:0"]);
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let url = until("the daemon serves", START_LIMIT, || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("kiln serve: {status}\n{}", std::fs::read_to_string(Self::log_of(kiln)).unwrap());
            }
            let endpoint: Value = serde_json::from_slice(&std::fs::read(&endpoint).ok()?).ok()?;
            Some(endpoint["url"].as_str()?.to_owned())
        });
        let mut daemon = Self { kiln, child, url, token: String::new() };
        daemon.token = daemon.sign_in();
        daemon
    }

    fn log_of(kiln: &Kiln) -> PathBuf {
        kiln.path().join("serve.log")
    }

    /// What it said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(Self::log_of(self.kiln)).unwrap()
    }

    pub fn kiln(&self) -> &Kiln {
        self.kiln
    }

    /// `https://localhost:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn ca(&self) -> PathBuf {
        self.server_file("tls/ca.pem")
    }

    /// The operator's token.
    pub fn token(&self) -> &str {
        &self.token
    }

    pub fn server_file(&self, name: &str) -> PathBuf {
        self.kiln.data().join("server").join(name)
    }

    /// The one subscription made at first start.
    pub fn subscription(&self) -> String {
        let listed = self.get("/subscriptions?api-version=2022-12-01").json();
        listed["value"][0]["subscriptionId"].as_str().unwrap().to_owned()
    }

    pub fn tenant(&self) -> String {
        let listed = self.get("/tenants?api-version=2022-12-01").json();
        listed["value"][0]["tenantId"].as_str().unwrap().to_owned()
    }

    /// The ARM id of a template in the one resource group made at first start.
    pub fn template_id(&self, name: &str) -> String {
        let subscription = self.subscription();
        let groups =
            self.get(&format!("/subscriptions/{subscription}/resourcegroups?api-version=2024-11-01")).json();
        let group = groups["value"][0]["name"].as_str().unwrap().to_owned();
        format!(
            "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.VirtualMachineImages/imageTemplates/{name}"
        )
    }

    fn sign_in(&self) -> String {
        let id: Value =
            serde_json::from_slice(&std::fs::read(self.server_file("operator.json")).unwrap()).unwrap();
        let secret = std::fs::read_to_string(self.server_file("operator.secret")).unwrap();
        let form = format!(
            "grant_type=client_credentials&client_id={}&client_secret={secret}&scope={}%2F%2F.default",
            id["clientId"].as_str().unwrap(),
            self.url
        );
        let answer = self.curl("POST", "/common/oauth2/v2.0/token", &["--data", &form]);
        answer.json()["access_token"].as_str().unwrap_or_else(|| panic!("{}", answer.text())).to_owned()
    }

    pub fn get(&self, path: &str) -> Answer {
        self.curl("GET", path, &[])
    }

    pub fn put(&self, path: &str, body: &str) -> Answer {
        self.curl("PUT", path, &["-H", "Content-Type: application/json", "--data-binary", body])
    }

    pub fn post(&self, path: &str) -> Answer {
        self.curl("POST", path, &["-H", "Content-Length: 0"])
    }

    /// Any request, as the operator. `target` is a path, or a whole address of this server.
    pub fn curl(&self, method: &str, target: &str, args: &[&str]) -> Answer {
        let url = if target.starts_with('/') { format!("{}{target}", self.url) } else { target.to_owned() };
        let mut curl = command("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--include",
            "--http1.1",
            "--max-time",
            "600",
            "--path-as-is",
            // It listens there only; a race against ::1 can end in an error of curl's own (7.88).
            "--ipv4",
        ]);
        curl.args(["--suppress-connect-headers", "--cacert"]).arg(self.ca());
        if !self.token.is_empty() && !args.contains(&"--anonymous") {
            curl.arg("--header").arg(format!("Authorization: Bearer {}", self.token));
        }
        curl.args(["--request", method]);
        if method == "HEAD" {
            curl.arg("--head");
        }
        curl.args(args.iter().filter(|arg| **arg != "--anonymous")).arg(&url);
        let ended = finish(&mut curl, Duration::from_secs(610));
        assert!(ended.status.success(), "curl {method} {url}: {}", ended.stderr);
        parse(&ended.stdout)
    }

    /// Downloads what `path` names into a file.
    pub fn download(&self, path: &str, to: &std::path::Path) {
        let mut curl = command("curl");
        curl.args(["--silent", "--show-error", "--fail", "--cacert"]).arg(self.ca());
        curl.arg("--header").arg(format!("Authorization: Bearer {}", self.token));
        curl.arg("--output").arg(to).arg(format!("{}{path}", self.url));
        let ended = finish(&mut curl, Duration::from_secs(300));
        assert!(ended.status.success(), "curl {path}: {}", ended.stderr);
    }

    /// Puts a template and waits until it is provisioned; answers the template.
    pub fn put_template(&self, name: &str, template: &crate::template::Template) -> Value {
        let id = self.template_id(name);
        let answer = self.put(&format!("{id}?api-version=2023-07-01"), &template.resource());
        assert_eq!(answer.status, 201, "{}", answer.text());
        self.until_done(&answer);
        self.get(&format!("{id}?api-version=2023-07-01")).json()
    }

    /// Asks for a run; answers its operation's address.
    pub fn start_run(&self, name: &str) -> String {
        let answer = self.post(&format!("{}/run?api-version=2023-07-01", self.template_id(name)));
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.header("azure-asyncoperation").expect("an operation").to_owned()
    }

    /// Polls an operation to its end.
    pub fn until_done(&self, accepted: &Answer) -> Value {
        let address = accepted.header("azure-asyncoperation").expect("an operation").to_owned();
        self.until_operation_ended(&address, Duration::from_secs(60))
    }

    /// Polls an operation by its address until it has ended, however that is.
    pub fn until_operation_ended(&self, address: &str, limit: Duration) -> Value {
        // It may name a port that an earlier daemon of this home had.
        let path = &address[address.find("/subscriptions/").unwrap()..];
        let mut pause = Duration::ZERO;
        until("the operation has ended", limit, || {
            // The processor that a question takes is the guest's.
            std::thread::sleep(pause);
            pause = Duration::from_secs(1).min(pause + Duration::from_millis(50));
            let operation = self.get(path).json();
            (operation["status"] != "InProgress").then_some(operation)
        })
    }

    pub fn template(&self, name: &str) -> Value {
        self.get(&format!("{}?api-version=2023-07-01", self.template_id(name))).json()
    }

    /// kill -9.
    pub fn kill(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::KILL).unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and its end.
    pub fn stop(mut self) {
        let begun = Instant::now();
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status = program::wait(&mut self.child, "kiln serve", Duration::from_secs(30));
        assert!(status.success(), "kiln serve: {status} after {:?}\n{}", begun.elapsed(), self.log());
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            program::say(&format!("the daemon said:\n{}", self.log()));
        }
    }
}

/// The last head of what `curl --include` prints (there may be a `100 Continue` before it), and the body.
fn parse(printed: &[u8]) -> Answer {
    let mut rest = printed;
    loop {
        let end = rest.windows(4).position(|four| four == b"\r\n\r\n").expect("an answer with a head");
        let head = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest = &rest[end + 4..];
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line");
        let status: u16 = status.parse().unwrap();
        if status == 100 {
            continue;
        }
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        return Answer { status, headers, body: rest.to_vec() };
    }
}

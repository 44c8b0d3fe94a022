//! A small WinRM server on a loopback port that answers from a script.
//!
//! It speaks HTTP by hand, so that it can also answer badly: cut, silent, not at all. What it is told to say for an
//! action, it says once; then it goes on with what a healthy server would say.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kiln_host::wait::Control;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::Acceptor;
use crate::winrm::xml::Element;
use crate::winrm::{
    Authentication, CertificatePin, Password, Transport, WinrmGuest, WinrmLimits, WinrmLogin, sealed,
};

pub(super) const USER: &str = "kiln";
pub(super) const PASSWORD: &str = "right";

/// What came in.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// The last part of the action's address, or `Identify`.
    pub(super) action: String,
    pub(super) message_id: String,
    pub(super) root: Element,
    /// Counted from 0.
    pub(super) connection: usize,
}

impl Seen {
    pub(super) fn text_of(&self, name: &str) -> String {
        self.root.find(name).map(Element::all_text).unwrap_or_default()
    }
}

/// What goes out.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    /// A SOAP body in a healthy envelope.
    Body(String),
    /// A fault with this code.
    Fault(u32),
    /// This status and this whole envelope.
    Envelope(u16, String),
    /// A healthy body that relates to another request.
    Astray(String),
    /// This status with plain text, never sealed.
    Http(u16, &'static str),
    /// The envelope with its last bytes missing, and the connection closed.
    Cut(String),
    /// Sealed with one bit flipped.
    Spoilt(String),
    /// Nothing, and the connection closed.
    Close,
    /// Nothing.
    Silence,
}

type Answering = dyn Fn(&Seen) -> Option<Reply> + Send + Sync;

#[derive(Default)]
struct Told {
    replies: HashMap<String, VecDeque<Reply>>,
    seen: Vec<Seen>,
    connections: usize,
    shells: u32,
}

pub(super) struct Server {
    pub(super) addr: SocketAddr,
    pin: Option<CertificatePin>,
    told: Arc<Mutex<Told>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Basic over TLS.
    pub(super) async fn tls() -> Self {
        Self::start(true, |_| None).await
    }

    /// Sealed messages over HTTP.
    pub(super) async fn sealed() -> Self {
        Self::start(false, |_| None).await
    }

    /// What `answering` leaves open is answered from the script.
    pub(super) async fn start(
        tls: bool,
        answering: impl Fn(&Seen) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let told = Arc::new(Mutex::new(Told::default()));
        let answering: Arc<Answering> = Arc::new(answering);
        let (acceptor, pin) = if tls { Some(identity()).unzip() } else { (None, None) };
        let shared = Arc::clone(&told);
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (told, answering) = (Arc::clone(&shared), Arc::clone(&answering));
                let number = {
                    let mut told = told.lock().unwrap();
                    told.connections += 1;
                    told.connections - 1
                };
                let acceptor: Option<TlsAcceptor> = acceptor.clone();
                tokio::spawn(async move {
                    let mut talk = Talk { told, answering, number, ntlm: None, logged_in: false };
                    match acceptor {
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(tcp).await {
                                talk.serve(stream).await;
                            }
                        }
                        None => {
                            talk.ntlm = Some(Acceptor::new(USER, PASSWORD));
                            talk.serve(tcp).await;
                        }
                    }
                });
            }
        });
        Self { addr, pin, told, task }
    }

    /// What to say next for an action.
    pub(super) fn say(&self, action: &str, reply: Reply) -> &Self {
        self.told.lock().unwrap().replies.entry(action.to_owned()).or_default().push_back(reply);
        self
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.told.lock().unwrap().seen.clone()
    }

    /// The actions seen, Identify left out.
    pub(super) fn actions(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.action).filter(|action| action != "Identify").collect()
    }

    pub(super) fn login(&self) -> WinrmLogin {
        WinrmLogin {
            addr: self.addr,
            transport: match &self.pin {
                Some(pin) => Transport::Https { pin: pin.clone(), authentication: Authentication::Basic },
                None => Transport::Http,
            },
            user: USER.to_owned(),
            password: Password::new(PASSWORD),
            recorder: None,
        }
    }

    pub(super) async fn guest(&self) -> WinrmGuest {
        WinrmGuest::connect_with(self.login(), limits(), |_| (), &control()).await.unwrap()
    }
}

/// Limits that let a test see their end, with room for a machine that is busy with other things.
pub(super) fn limits() -> WinrmLimits {
    WinrmLimits {
        silence: Duration::from_secs(5),
        wrong_certificate: Duration::from_millis(300),
        refused_login: Duration::from_millis(400),
        operation_timeout: Duration::from_secs(1),
        answer_grace: Duration::from_secs(2),
        reconnect: Duration::from_secs(10),
        busy: Duration::from_secs(2),
        ..WinrmLimits::default()
    }
}

/// Nothing here takes longer, on any machine.
pub(super) fn control() -> Control {
    Control::ending_in(Duration::from_secs(60))
}

/// A certificate of its own, and the pin for it.
fn identity() -> (TlsAcceptor, CertificatePin) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec!["lab".to_owned()]).unwrap();
    let pin = CertificatePin::Sha256(Sha256::digest(cert.der()).into());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), pin)
}

struct HttpRequest {
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

struct Talk {
    told: Arc<Mutex<Told>>,
    answering: Arc<Answering>,
    number: usize,
    /// Set where messages are sealed.
    ntlm: Option<Acceptor>,
    logged_in: bool,
}

impl Talk {
    async fn serve(&mut self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        while let Some(request) = read_request(&mut stream).await {
            let Some(answer) = self.answer(&request).await else { break };
            if stream.write_all(&answer.0).await.is_err() || answer.1 {
                break;
            }
        }
        let _closed_already = stream.shutdown().await;
    }

    /// The bytes of the answer, and whether the connection ends with it.
    async fn answer(&mut self, request: &HttpRequest) -> Option<(Vec<u8>, bool)> {
        let authorization = request.headers.get("authorization").map(String::as_str).unwrap_or_default();
        if let Some(ntlm) = &mut self.ntlm {
            if !self.logged_in {
                let token =
                    authorization.strip_prefix("Negotiate ").and_then(|token| BASE64.decode(token).ok());
                return Some(match token.map(|token| ntlm.accept(token)) {
                    Some(Ok(next)) if !next.is_empty() => {
                        let offer = format!("WWW-Authenticate: Negotiate {}\r\n", BASE64.encode(next));
                        (http(401, &offer, b""), false)
                    }
                    Some(Ok(_)) => {
                        self.logged_in = true;
                        (http(200, "", b""), false)
                    }
                    _ => (http(401, "WWW-Authenticate: Negotiate\r\n", b""), false),
                });
            }
        } else if authorization != format!("Basic {}", BASE64.encode(format!("{USER}:{PASSWORD}"))) {
            return Some((http(401, "WWW-Authenticate: Basic realm=\"WSMAN\"\r\n", b""), false));
        }
        let plain = match &mut self.ntlm {
            Some(ntlm) => {
                let content_type = request.headers.get("content-type").cloned().unwrap_or_default();
                let parts = sealed::parse(&content_type, &request.body).expect("a sealed request");
                parts.into_iter().flat_map(|part| ntlm.unseal(part).expect("the right seal")).collect()
            }
            None => request.body.clone(),
        };
        let seen = self.look(&String::from_utf8(plain).unwrap());
        match self.reply(&seen) {
            Reply::Body(body) => Some((self.envelope(200, &seen.message_id, &body), false)),
            Reply::Envelope(status, text) => Some((self.pack(status, &text), false)),
            Reply::Astray(body) => Some((self.envelope(200, "uuid:SOMEBODY-ELSE", &body), false)),
            Reply::Fault(code) => Some((self.envelope(500, &seen.message_id, &fault(code)), false)),
            Reply::Http(status, text) => {
                Some((http(status, "Content-Type: text/plain\r\n", text.as_bytes()), false))
            }
            Reply::Cut(body) => {
                let mut whole = self.envelope(200, &seen.message_id, &body);
                whole.truncate(whole.len() - 20);
                Some((whole, true))
            }
            Reply::Spoilt(body) => {
                let mut whole = self.envelope(200, &seen.message_id, &body);
                let at = whole.len() - 60;
                whole[at] ^= 1;
                Some((whole, false))
            }
            Reply::Close => None,
            Reply::Silence => {
                tokio::time::sleep(Duration::from_secs(60)).await;
                None
            }
        }
    }

    fn look(&self, text: &str) -> Seen {
        let root = Element::parse(text).expect("a request in XML");
        let of = |name: &str| root.find(name).map(|found| found.text.clone()).unwrap_or_default();
        let action = if root.find("Identify").is_some() {
            "Identify".to_owned()
        } else {
            of("Action").rsplit('/').next().unwrap_or_default().to_owned()
        };
        let seen = Seen { action, message_id: of("MessageID"), root, connection: self.number };
        self.told.lock().unwrap().seen.push(seen.clone());
        seen
    }

    fn reply(&self, seen: &Seen) -> Reply {
        let mut told = self.told.lock().unwrap();
        if let Some(reply) = told.replies.get_mut(&seen.action).and_then(VecDeque::pop_front) {
            return reply;
        }
        drop(told);
        if let Some(reply) = (self.answering)(seen) {
            return reply;
        }
        Reply::Body(match seen.action.as_str() {
            "Identify" => "<wsmid:IdentifyResponse/>".to_owned(),
            "Create" => {
                let mut told = self.told.lock().unwrap();
                told.shells += 1;
                format!(
                    "<x:ResourceCreated><w:SelectorSet><w:Selector Name=\"ShellId\">SHELL-{}</w:Selector>\
                     </w:SelectorSet></x:ResourceCreated>",
                    told.shells
                )
            }
            "Command" => {
                "<rsp:CommandResponse><rsp:CommandId>C</rsp:CommandId></rsp:CommandResponse>".to_owned()
            }
            "Receive" => output("", "", Some(0)),
            "Send" => "<rsp:SendResponse/>".to_owned(),
            "Signal" => "<rsp:SignalResponse/>".to_owned(),
            _ => String::new(),
        })
    }

    fn envelope(&mut self, status: u16, relates_to: &str, body: &str) -> Vec<u8> {
        let text = format!(
            "<s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\"><s:Header>\
             <a:RelatesTo>{relates_to}</a:RelatesTo></s:Header><s:Body>{body}</s:Body></s:Envelope>"
        );
        self.pack(status, &text)
    }

    fn pack(&mut self, status: u16, text: &str) -> Vec<u8> {
        match &mut self.ntlm {
            Some(ntlm) => {
                let part = ntlm.seal(text.as_bytes());
                let head = format!("Content-Type: {}\r\n", sealed::CONTENT_TYPE);
                http(status, &head, &sealed::write(&part, text.len()))
            }
            None => http(status, "Content-Type: application/soap+xml;charset=UTF-8\r\n", text.as_bytes()),
        }
    }
}

/// The body of an answer to Receive; with a code, the command is done.
pub(super) fn output(stdout: &str, stderr: &str, code: Option<u32>) -> String {
    let stream = |name: &str, text: &str| match text {
        "" => String::new(),
        text => format!(
            "<rsp:Stream Name=\"{name}\" CommandId=\"C\">{}</rsp:Stream>",
            BASE64.encode(text.as_bytes())
        ),
    };
    let state = match code {
        Some(code) => format!(
            "<rsp:CommandState CommandId=\"C\" State=\"x/CommandState/Done\"><rsp:ExitCode>{code}</rsp:ExitCode>\
             </rsp:CommandState>"
        ),
        None => "<rsp:CommandState CommandId=\"C\" State=\"x/CommandState/Running\"/>".to_owned(),
    };
    let (stdout, stderr) = (stream("stdout", stdout), stream("stderr", stderr));
    format!("<rsp:ReceiveResponse>{stdout}{stderr}{state}</rsp:ReceiveResponse>")
}

fn fault(code: u32) -> String {
    format!(
        "<s:Fault><s:Code><s:Value>s:Receiver</s:Value></s:Code><s:Reason><s:Text>scripted</s:Text></s:Reason>\
         <s:Detail><f:WSManFault Code=\"{code}\"><f:Message>scripted</f:Message></f:WSManFault></s:Detail></s:Fault>"
    )
}

fn http(status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut answer =
        format!("HTTP/1.1 {status} Scripted\r\n{headers}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    answer.extend_from_slice(body);
    answer
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<HttpRequest> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8(bytes[..head].to_vec()).unwrap();
    let headers: HashMap<String, String> = text
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let length: usize = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = bytes.split_off(head + 4);
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(HttpRequest { headers, body })
}

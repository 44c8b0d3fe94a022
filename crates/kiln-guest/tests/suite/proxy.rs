//! A TCP proxy that behaves like a bad network, or like user-mode networking before a guest that is down.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    Pass,
    /// Connections are taken, old ones stay open, and nothing moves.
    BlackHole,
    /// Connections are taken and closed at once.
    Close,
    /// Connections are taken and this is said, then nothing.
    Say(Vec<u8>),
}

pub struct Proxy {
    addr: SocketAddr,
    behaviour: watch::Sender<Behaviour>,
    connections: Arc<AtomicUsize>,
    /// Cancelled and replaced by each cut.
    scissors: Arc<Mutex<CancellationToken>>,
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (behaviour, watched) = watch::channel(Behaviour::Pass);
        let connections = Arc::new(AtomicUsize::new(0));
        let scissors = Arc::new(Mutex::new(CancellationToken::new()));
        let (counter, cut) = (Arc::clone(&connections), Arc::clone(&scissors));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                let cut = cut.lock().unwrap().clone();
                let watched = watched.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        () = cut.cancelled() => {}
                        () = serve(client, target, watched) => {}
                    }
                });
            }
        });
        Self { addr, behaviour, connections, scissors }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn behave(&self, behaviour: Behaviour) {
        self.behaviour.send_replace(behaviour);
    }

    /// Closes every connection there is.
    pub fn cut(&self) {
        let mut scissors = self.scissors.lock().unwrap();
        scissors.cancel();
        *scissors = CancellationToken::new();
    }

    /// How many connections were ever taken.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn serve(mut client: TcpStream, target: SocketAddr, behaviour: watch::Receiver<Behaviour>) {
    let now = behaviour.borrow().clone();
    match now {
        Behaviour::Close => return,
        Behaviour::Say(words) => {
            let _ = client.write_all(&words).await;
            std::future::pending::<()>().await;
        }
        Behaviour::Pass | Behaviour::BlackHole => {}
    }
    let Ok(server) = TcpStream::connect(target).await else { return };
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pump(from_client, to_server, behaviour.clone()) => {}
        () = pump(from_server, to_client, behaviour) => {}
    }
}

async fn pump(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut behaviour: watch::Receiver<Behaviour>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = from.read(&mut buffer).await.unwrap_or(0);
        let _ = behaviour.wait_for(|now| *now != Behaviour::BlackHole).await;
        if count == 0 || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

//! A TCP proxy between a client and a server that does to their connection what networks do.

#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::ports;

const CHUNK_BYTES: usize = 16 << 10;
/// A limited connection moves this often, so that a low rate is slow and not jerky.
const TICKS_PER_SECOND: usize = 20;

/// What happens to bytes on their way, for connections that are open and those to come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    /// Added to every piece of data, each way.
    pub latency: Duration,
    /// Most that passes in a second, each way of each connection.
    pub bytes_per_second: Option<usize>,
    /// What the client sends stays in the proxy.
    pub hold_requests: bool,
    /// What the server answers stays in the proxy.
    pub hold_replies: bool,
    /// Replies are read and thrown away: the server did it, the client never learns.
    pub drop_replies: bool,
    /// New connections are refused.
    pub refuse: bool,
    /// Each connection is reset after so many bytes from the client; counted from its start.
    pub cut_after_request_bytes: Option<u64>,
    /// Some requests lose their connection.
    pub cut_around: Option<Around>,
}

/// Of all requests with these bytes every n-th loses its connection: in turn before the server has
/// it, and after the server has answered what nobody will hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Around {
    /// In one piece of what the client sends.
    pub text: &'static [u8],
    /// Not zero.
    pub every: u64,
}

/// What became of requests that were looked for.
#[derive(Debug, Default)]
struct Seen {
    all: AtomicU64,
    lost_requests: AtomicU64,
    lost_replies: AtomicU64,
}

/// A listener on loopback that forwards to one server. Dropping it closes everything.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    faults: watch::Sender<Faults>,
    /// Counts the cuts; connections of an older count are gone.
    cuts: watch::Sender<u64>,
    seen: Arc<Seen>,
    _accepting: JoinSet<()>,
}

impl Proxy {
    /// Listens on a free port and forwards to `target` without faults.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let port = ports::free();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
        let listener = listener.with_context(|| format!("the proxy cannot listen on {port}"))?;
        let (faults, faults_seen) = watch::channel(Faults::default());
        let (cuts, cuts_seen) = watch::channel(0);
        let seen = Arc::<Seen>::default();
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(
            listener,
            target,
            faults_seen,
            cuts_seen,
            Arc::clone(&seen),
        ));
        Ok(Self {
            port,
            faults,
            cuts,
            seen,
            _accepting: accepting,
        })
    }

    /// The port clients connect to instead of the server's.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Replaces the faults, also for open connections.
    pub fn set(&self, faults: Faults) {
        self.faults.send_replace(faults);
    }

    /// Delays every piece of data, each way.
    pub fn latency(&self, latency: Duration) {
        self.set(Faults {
            latency,
            ..Faults::default()
        });
    }

    /// Takes everything and answers nothing; connections stay open.
    pub fn black_hole(&self) {
        self.set(Faults {
            hold_requests: true,
            hold_replies: true,
            ..Faults::default()
        });
    }

    /// Resets all connections; new ones go through.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Resets all connections and refuses new ones: the server is unreachable.
    pub fn disconnect(&self) {
        self.set(Faults {
            refuse: true,
            ..Faults::default()
        });
        self.cut();
    }

    /// Requests that [`Faults::cut_around`] has kept from the server so far.
    #[must_use]
    pub fn lost_requests(&self) -> u64 {
        self.seen.lost_requests.load(Ordering::Relaxed)
    }

    /// Requests that the server has answered so far, and [`Faults::cut_around`] the client never.
    #[must_use]
    pub fn lost_replies(&self) -> u64 {
        self.seen.lost_replies.load(Ordering::Relaxed)
    }

    /// Ends every fault; what was held back goes on.
    pub fn resume(&self) {
        self.set(Faults::default());
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    faults: watch::Receiver<Faults>,
    cuts: watch::Receiver<u64>,
    seen: Arc<Seen>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { return };
                if faults.borrow().refuse {
                    reset(&client);
                } else {
                    let seen = Arc::clone(&seen);
                    let forward = forward(client, target, faults.clone(), cuts.clone(), seen);
                    connections.spawn(forward);
                }
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}

async fn forward(
    mut client: TcpStream,
    target: SocketAddr,
    faults: watch::Receiver<Faults>,
    mut cuts: watch::Receiver<u64>,
    seen: Arc<Seen>,
) {
    cuts.mark_unchanged();
    let Ok(mut server) = TcpStream::connect(target).await else {
        return reset(&client);
    };
    for stream in [&client, &server] {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "small pieces may be delayed");
        }
    }
    let is_awaited = AtomicBool::new(false);
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let way = |is_reply| Way {
        is_reply,
        seen: &seen,
        is_awaited: &is_awaited,
    };
    let requests = pump(from_client, to_server, faults.clone(), way(false));
    let replies = pump(from_server, to_client, faults, way(true));
    // An orderly end of one way lets the other finish; a cut or an error ends both.
    let orderly = tokio::select! {
        _cut = cuts.changed() => false,
        ended = async { tokio::try_join!(requests, replies) } => ended.is_ok(),
    };
    if !orderly {
        reset(&client);
        reset(&server);
    }
}

/// Closing then tells the other side by a reset, not by an orderly end.
fn reset(stream: &TcpStream) {
    if let Err(error) = SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "the connection closes in order instead of by a reset");
    }
}

/// One direction of a connection.
#[derive(Debug, Clone, Copy)]
struct Way<'a> {
    is_reply: bool,
    seen: &'a Seen,
    /// The next reply on this connection is one that nobody is to hear.
    is_awaited: &'a AtomicBool,
}

impl Way<'_> {
    /// Is this where the connection is to be lost?
    fn is_end(self, around: Option<Around>, bytes: &[u8]) -> bool {
        if self.is_reply {
            let is_end = self.is_awaited.load(Ordering::Acquire) && !bytes.is_empty();
            if is_end {
                self.seen.lost_replies.fetch_add(1, Ordering::Relaxed);
            }
            return is_end;
        }
        let Some(around) = around.filter(|around| contains(bytes, around.text)) else {
            return false;
        };
        let nth = self.seen.all.fetch_add(1, Ordering::Relaxed) + 1;
        let is_before = nth.is_multiple_of(2 * around.every);
        if is_before {
            self.seen.lost_requests.fetch_add(1, Ordering::Relaxed);
        } else if nth.is_multiple_of(around.every) {
            self.is_awaited.store(true, Ordering::Release);
        }
        is_before
    }
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len().max(1)).any(|part| part == text)
}

impl Faults {
    fn holds(&self, way: Way<'_>) -> bool {
        match way.is_reply {
            false => self.hold_requests,
            true => self.hold_replies,
        }
    }

    fn chunk_bytes(&self) -> usize {
        let limited = self
            .bytes_per_second
            .map(|rate| (rate / TICKS_PER_SECOND).max(1));
        limited.unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)
    }

    /// What this many bytes cost, besides passing.
    fn delay(&self, bytes: usize) -> Duration {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let rate = self
            .bytes_per_second
            .map(|rate| u32::try_from(rate.max(1)).unwrap_or(u32::MAX));
        let passing = rate.map_or(Duration::ZERO, |rate| Duration::from_secs(1) * bytes / rate);
        self.latency + passing
    }
}

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut faults: watch::Receiver<Faults>,
    way: Way<'_>,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut passed = 0_u64;
    loop {
        let room = faults.borrow().chunk_bytes();
        let count = from
            .read(buffer.get_mut(..room).unwrap_or_default())
            .await?;
        let now = faults.borrow().clone();
        let delay = now.delay(count);
        if !delay.is_zero() && count > 0 {
            sleep(delay).await;
        }
        // Held back until the fault ends; a proxy that is gone ends it too.
        if faults.wait_for(|now| !now.holds(way)).await.is_err() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if count == 0 {
            return to.shutdown().await;
        }
        let limit = faults
            .borrow()
            .cut_after_request_bytes
            .filter(|_| !way.is_reply);
        let allowed = limit.map_or(u64::MAX, |limit| limit.saturating_sub(passed));
        let sent = usize::try_from(allowed).unwrap_or(usize::MAX).min(count);
        let dropped = way.is_reply && faults.borrow().drop_replies;
        let piece = buffer.get(..sent).unwrap_or_default();
        let around = faults.borrow().cut_around;
        if way.is_end(around, piece) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if !dropped {
            to.write_all(piece).await?;
        }
        passed = passed.saturating_add(u64::try_from(sent).unwrap_or(u64::MAX));
        if sent < count {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
    }
}

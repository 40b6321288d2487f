//! Connections to upstreams, one pool per thread, last in first out.
//!
//! A call never changes thread, so nothing here is locked or shared.

mod connect;

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

pub(crate) use self::connect::Connector;
use crate::{body::Uploaded, catalogue::Upstream};

/// Idle connections kept per upstream and thread.
const IDLE_MAX: usize = 256;
/// An idle connection is closed after so long.
const IDLE_SECONDS: u64 = 55;
/// A connection must be there after so long, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

struct Idle {
    sender: SendRequest<Uploaded>,
    since: Instant,
}

type Shelf = Rc<RefCell<VecDeque<Idle>>>;

/// The connections of one thread.
pub(crate) struct Pool {
    shelves: RefCell<HashMap<Upstream, Shelf>>,
    connector: Connector,
    tls: Arc<rustls::ClientConfig>,
}

/// A connection in use. Dropped, it is closed; given back, it is used again.
pub(crate) struct Lent {
    pub(crate) sender: SendRequest<Uploaded>,
    /// False for one that was opened for this call.
    pub(crate) reused: bool,
    shelf: Shelf,
}

impl Lent {
    /// Puts the connection back as soon as it is ready for another request.
    pub(crate) fn give_back(self) {
        let Self {
            mut sender, shelf, ..
        } = self;
        if sender.is_ready() {
            put(&shelf, sender);
            return;
        }
        // The connection's own task has still to see the end of the answer.
        tokio::task::spawn_local(async move {
            if sender.ready().await.is_ok() {
                put(&shelf, sender);
            }
        });
    }
}

fn put(shelf: &Shelf, sender: SendRequest<Uploaded>) {
    let mut shelf = shelf.borrow_mut();
    let now = Instant::now();
    while shelf
        .front()
        .is_some_and(|idle| now.duration_since(idle.since).as_secs() > IDLE_SECONDS)
    {
        shelf.pop_front();
    }
    if shelf.len() < IDLE_MAX {
        shelf.push_back(Idle { sender, since: now });
    }
}

impl Pool {
    pub(crate) fn new(connector: Connector, tls: Arc<rustls::ClientConfig>) -> Self {
        Self {
            shelves: RefCell::default(),
            connector,
            tls,
        }
    }

    fn shelf(&self, upstream: &Upstream) -> Shelf {
        if let Some(shelf) = self.shelves.borrow().get(upstream) {
            return Rc::clone(shelf);
        }
        let shelf = Shelf::default();
        self.shelves
            .borrow_mut()
            .insert(upstream.clone(), Rc::clone(&shelf));
        shelf
    }

    /// An idle connection, if there is a live one.
    pub(crate) fn reuse(&self, upstream: &Upstream) -> Option<Lent> {
        let shelf = self.shelf(upstream);
        loop {
            let idle = shelf.borrow_mut().pop_back()?;
            let fresh = idle.since.elapsed().as_secs() <= IDLE_SECONDS;
            if fresh && idle.sender.is_ready() {
                return Some(Lent {
                    sender: idle.sender,
                    reused: true,
                    shelf,
                });
            }
        }
    }

    /// A new connection.
    ///
    /// # Errors
    /// Nobody listens, TLS fails, it takes too long, or calls must not be sent there.
    pub(crate) async fn open(&self, upstream: &Upstream) -> anyhow::Result<Lent> {
        let lent = self.try_open(upstream).await;
        self.connector.note(upstream, lent.as_ref().err());
        lent
    }

    async fn try_open(&self, upstream: &Upstream) -> anyhow::Result<Lent> {
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, async {
            let stream = self.connector.connect(upstream).await?;
            if !upstream.tls {
                return handshake(stream).await;
            }
            let connector = tokio_rustls::TlsConnector::from(Arc::clone(&self.tls));
            let name = ServerName::try_from(upstream.host.clone())?;
            handshake(connector.connect(name, stream).await?).await
        });
        let sender = opened.await??;
        Ok(Lent {
            sender,
            reused: false,
            shelf: self.shelf(upstream),
        })
    }
}

async fn handshake<S>(stream: S) -> anyhow::Result<SendRequest<Uploaded>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .preserve_header_case(false)
        .handshake(TokioIo::new(stream))
        .await?;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to an upstream ended");
        }
    });
    Ok(sender)
}

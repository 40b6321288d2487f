//! Connects to upstreams, and to nothing that only our own machines may reach.
//!
//! What is judged is the address that is connected to, not the name: one that stood for another
//! address when the service was saved gets nobody any further.

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{
    Request, Version,
    header::{HOST, USER_AGENT},
};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use runtime::Clock;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_util::io::InspectReader;
use types::{Gcra, Networks, Rate};

use super::{
    Held, Lent, Wire,
    checks::Checks,
    line::{Line, STREAMS_TARGET},
    site::{Site, Slot},
    targets::{Chosen, Forbidden, Target},
};
use crate::{
    catalogue::{Protocol, Upstream},
    listen::OnThread,
    metrics::{Connect, Upstreams},
    upload::Uploaded,
};

/// Forbidden addresses that are logged.
const COMPLAINTS: Rate = Rate {
    per_second: 1,
    burst: 5,
};
/// Bytes that an upstream may send ahead on one stream, and on all of a connection: so much that a
/// slow client holds up nobody else.
const STREAM_WINDOW_BYTES: u32 = 128 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Longest head of an answer by HTTP/2.
const HEAD_BYTES_MAX: u32 = 64 << 10;
/// Longest head of an answer by HTTP/1.1, and longest piece of its body: what a client is slow to
/// take is held in such pieces.
const PIECE_BYTES_MAX: usize = 64 << 10;
/// An HTTP/2 connection with streams that is silent for so long is asked whether it lives, and
/// must answer in time.
const PING_PERIOD: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens connections for one thread.
pub(crate) struct Connector {
    tls: Arc<rustls::ClientConfig>,
    networks: Arc<Networks>,
    pub(super) metrics: Upstreams,
    pub(super) checks: Arc<Checks>,
    clock: Clock,
    complaints: Gcra,
}

/// A connection that nobody uses yet.
pub(super) enum Opened {
    One(Spoken),
    Two(http2::SendRequest<Uploaded>, Box<dyn Driving>),
}

/// Carries an HTTP/1.1 connection.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()>>>;

/// Carries an HTTP/2 connection.
pub(super) trait Driving {
    /// Until it takes no more streams; says meanwhile how many it takes at once.
    fn drive(self: Box<Self>, takes: Box<dyn Fn(usize)>) -> Pin<Box<dyn Future<Output = ()>>>;
}

impl<S> Driving for http2::Connection<TokioIo<S>, Uploaded, OnThread>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    fn drive(mut self: Box<Self>, takes: Box<dyn Fn(usize)>) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(async move {
            let ended = poll_fn(|task| {
                let polled = Pin::new(&mut *self).poll(task);
                takes(self.current_max_send_streams());
                polled
            });
            if let Err(error) = ended.await {
                tracing::debug!(%error, "a connection to an upstream ended");
            }
        })
    }
}

/// A connection that HTTP/1.1 is spoken on.
pub(super) struct Spoken {
    sender: http1::SendRequest<Uploaded>,
    driver: Driver,
    heard: Arc<AtomicU64>,
}

impl Opened {
    /// Lets the connection live until it is closed, and lends it for the first time.
    pub(super) fn lend(self, site: &Rc<Site>, slot: Slot, chosen: Chosen) -> Lent {
        let Chosen { target, trial } = chosen;
        match self {
            Self::One(spoken) => Lent::of(spoken, site, slot, Chosen { target, trial }),
            Self::Two(sender, driving) => {
                let line = Line::new(sender, target);
                // Nothing here keeps the line: it ends when it is neither kept nor used.
                let (own, at) = (Rc::downgrade(&line), Rc::clone(site));
                let takes = move |streams_max| {
                    if let Some(own) = own.upgrade()
                        && own.takes(streams_max)
                    {
                        at.hand_over(&own);
                    }
                };
                let (own, at) = (Rc::downgrade(&line), Rc::clone(site));
                let driven = driving.drive(Box::new(takes));
                tokio::task::spawn_local(async move {
                    driven.await;
                    if let Some(own) = own.upgrade() {
                        own.close();
                        at.remove(&own);
                    }
                    drop(slot);
                });
                site.add(&line);
                let lent = line.lend(site);
                site.hand_over(&line);
                Lent {
                    reused: false,
                    trial,
                    ..lent
                }
            }
        }
    }
}

impl Lent {
    /// Lets a connection of HTTP/1.1 live until it is closed, and lends it for the first time.
    pub(super) fn of(
        Spoken {
            sender,
            driver,
            heard,
        }: Spoken,
        site: &Rc<Site>,
        slot: Slot,
        Chosen { target, trial }: Chosen,
    ) -> Self {
        // The driver ends when a tunnel begins: then who has the tunnel holds the place.
        let held = Rc::new(Held { _slot: slot, heard });
        let own = Rc::clone(&held);
        tokio::task::spawn_local(async move {
            driver.await;
            drop(own);
        });
        Self {
            wire: Wire::One(sender),
            reused: false,
            target,
            trial,
            site: Rc::clone(site),
            held: Some(held),
            was_heard: false,
        }
    }
}

impl Connector {
    pub(crate) fn new(
        tls: Arc<rustls::ClientConfig>,
        networks: Arc<Networks>,
        (metrics, checks): (Upstreams, Arc<Checks>),
        clock: Clock,
    ) -> Self {
        Self {
            checks,
            tls,
            networks,
            metrics,
            clock,
            complaints: Gcra::default(),
        }
    }

    /// Looks up where an upstream is, unless what is known is younger than `age_max`.
    pub(super) async fn refresh(&self, site: &Site, age_max: Duration) -> anyhow::Result<()> {
        let Upstream {
            host,
            port,
            connect_timeout,
            ..
        } = &site.upstream;
        let asked = site.targets.refresh(host, *port, &self.networks, age_max);
        let found = match tokio::time::timeout(*connect_timeout, asked).await {
            Ok(found) => found,
            Err(elapsed) => Err(elapsed.into()),
        };
        if let Err(error) = &found {
            self.note(site, Some(error));
        }
        found
    }

    /// A new connection.
    ///
    /// # Errors
    /// Nobody listens, TLS fails, or it takes too long.
    pub(super) async fn open(
        &self,
        site: &Site,
        target: &Target,
        protocol: Protocol,
    ) -> anyhow::Result<Opened> {
        self.within(site, self.connect(&site.upstream, target, protocol))
            .await
    }

    /// Asks an address on a connection of its own; the status of its answer.
    ///
    /// # Errors
    /// There is none.
    pub(super) async fn ask(
        &self,
        site: &Site,
        target: &Target,
        path: &str,
    ) -> anyhow::Result<u16> {
        let Upstream {
            host,
            port,
            tls,
            protocol,
            ..
        } = &site.upstream;
        let host = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let scheme = if *tls { "https" } else { "http" };
        let request = Request::get(path).header(USER_AGENT, "tollgate-health");
        let answer = match self.connect(&site.upstream, target, *protocol).await? {
            Opened::One(mut spoken) => {
                tokio::task::spawn_local(spoken.driver);
                let request = request.header(HOST, host).body(Uploaded::nothing())?;
                spoken.sender.send_request(request).await?
            }
            Opened::Two(mut sender, driving) => {
                tokio::task::spawn_local(driving.drive(Box::new(|_| {})));
                let request = request.uri(format!("{scheme}://{host}{path}"));
                let request = request.version(Version::HTTP_2).body(Uploaded::nothing())?;
                sender.send_request(request).await?
            }
        };
        Ok(answer.status().as_u16())
    }

    /// A new connection without anything spoken on it.
    ///
    /// # Errors
    /// Nobody listens, or it takes too long.
    pub(super) async fn open_direct(
        &self,
        site: &Site,
        target: &Target,
    ) -> anyhow::Result<TcpStream> {
        self.within(site, dial(target)).await
    }

    /// Connects within the time that the upstream has for it.
    async fn within<T>(
        &self,
        site: &Site,
        connected: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let opened = match tokio::time::timeout(site.upstream.connect_timeout, connected).await {
            Ok(opened) => opened,
            Err(elapsed) => Err(elapsed.into()),
        };
        self.note(site, opened.as_ref().err());
        opened
    }

    async fn connect(
        &self,
        upstream: &Upstream,
        target: &Target,
        protocol: Protocol,
    ) -> anyhow::Result<Opened> {
        let stream = dial(target).await?;
        if !upstream.tls {
            return match protocol {
                Protocol::Http1 | Protocol::Auto => Ok(Opened::One(one(stream).await?)),
                Protocol::H2 => two(stream).await,
            };
        }
        let offered: &[&[u8]] = match protocol {
            Protocol::Http1 => &[b"http/1.1"],
            Protocol::Auto => &[b"h2", b"http/1.1"],
            Protocol::H2 => &[b"h2"],
        };
        let offered = offered.iter().map(|protocol| protocol.to_vec()).collect();
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&self.tls));
        let name = ServerName::try_from(upstream.host.clone())?;
        let stream = connector.with_alpn(offered).connect(name, stream).await?;
        let speaks_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        match protocol {
            Protocol::H2 if !speaks_h2 => anyhow::bail!("the upstream does not offer h2"),
            _ if speaks_h2 => two(stream).await,
            _ => Ok(Opened::One(one(stream).await?)),
        }
    }

    /// Counts how an attempt ended, and complains of an address that is forbidden.
    fn note(&self, site: &Site, failed: Option<&anyhow::Error>) {
        let forbidden = failed.and_then(|error| error.downcast_ref::<Forbidden>());
        self.metrics.connected(match (failed, forbidden) {
            (None, _) => Connect::Opened,
            (Some(_), None) => Connect::Failed,
            (Some(_), Some(_)) => Connect::Forbidden,
        });
        let Some(forbidden) = forbidden else {
            return;
        };
        let now = self.clock.monotonic_nanos();
        if self.complaints.admit(COMPLAINTS, now).is_ok() {
            tracing::warn!(
                upstream = site.upstream.host,
                address = %forbidden.0,
                "an upstream is where calls must not be sent: list its network if it is ours"
            );
        }
    }
}

async fn dial(target: &Target) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(target.address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Speaks HTTP/1.1.
pub(super) async fn one<S>(stream: S) -> hyper::Result<Spoken>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let heard = Arc::<AtomicU64>::default();
    let count = Arc::clone(&heard);
    // hyper does not say whether an answer had begun when its connection broke off.
    let counted = InspectReader::new(stream, move |read: &[u8]| {
        let bytes = u64::try_from(read.len()).unwrap_or(u64::MAX);
        count.fetch_add(bytes, Ordering::Relaxed);
    });
    let (sender, connection) = http1::Builder::new()
        .preserve_header_case(false)
        .max_buf_size(PIECE_BYTES_MAX)
        .handshake(TokioIo::new(counted))
        .await?;
    let driver = async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to an upstream ended");
        }
    };
    Ok(Spoken {
        sender,
        driver: Box::pin(driver),
        heard,
    })
}

async fn two<S>(stream: S) -> anyhow::Result<Opened>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (sender, connection) = http2::Builder::new(OnThread)
        .timer(TokioTimer::new())
        .initial_max_send_streams(STREAMS_TARGET)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEAD_BYTES_MAX)
        .keep_alive_interval(PING_PERIOD)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake(TokioIo::new(stream))
        .await?;
    Ok(Opened::Two(sender, Box::new(connection)))
}

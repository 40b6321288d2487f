//! The listener: bounded in connections and in patience.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::Context as _;
use axum::Router;
use http::HeaderMap;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use runtime::Stop;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tower::ServiceExt as _;

/// A request's head must be complete after so long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// Connections at a time; more wait in the system's queue.
const CONNECTIONS_MAX: usize = 1024;
/// Streams a client may have open on one HTTP/2 connection.
const STREAMS_MAX: u32 = 100;
/// Requests under way may take so long to end when the service stops.
const DRAIN: Duration = Duration::from_secs(20);
/// Before the next attempt when a connection cannot be accepted.
const PAUSE: Duration = Duration::from_millis(10);

/// Where a request comes from: the peer, or what trusted proxies say of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) IpAddr);

pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("TOLLGATE_PORTAL_LISTEN: cannot listen on {address}; is it taken?")
    })
}

/// Serves until told to stop; requests under way are answered. So many proxies in front are trusted
/// to say where requests come from.
pub(crate) async fn serve(listener: TcpListener, router: Router, trusted_hops: u8, stop: Stop) {
    let mut connections = JoinSet::new();
    while !stop.is_requested() {
        tokio::select! {
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, peer)) => {
                    let client = Client { peer: peer.ip(), trusted_hops };
                    connections.spawn(connection(stream, client, router.clone(), stop.clone()));
                }
                // Out of descriptors, most likely: let some connections end first.
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            () = stop.requested() => {}
        }
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, ended).await.is_err() {
        tracing::warn!("requests were still under way and were cut");
    }
}

/// The far end of a connection.
#[derive(Clone, Copy)]
struct Client {
    peer: IpAddr,
    trusted_hops: u8,
}

impl Client {
    /// Where this request comes from.
    fn address(self, headers: &HeaderMap) -> IpAddr {
        let forwarded = headers.get_all("x-forwarded-for").iter();
        types::client_address(self.peer, forwarded, self.trusted_hops)
    }
}

async fn connection(stream: TcpStream, client: Client, router: Router, stop: Stop) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection was gone before it was served");
        return;
    }
    let service = router.map_request(move |mut request: http::Request<Incoming>| {
        let address = client.address(request.headers());
        request.extensions_mut().insert(Peer(address));
        request
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX);
    let service = TowerToHyperService::new(service);
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    let mut stopping = false;
    loop {
        tokio::select! {
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended");
                }
                return;
            }
            () = stop.requested(), if !stopping => {
                stopping = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

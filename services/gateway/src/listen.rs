//! The threads that carry calls: one event loop, one accepting socket and one pool each.

use std::{cell::Cell, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use anyhow::Context as _;
use futures_util::FutureExt as _;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    edge::{self, Edge, Worker},
    pool::Pool,
};

/// Connections waiting to be accepted, per thread.
const BACKLOG: i32 = 1024;
/// A request's head must be complete after so long, and a connection's first one be there.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// A gateway that stops lets idle connections be for so long: who calls meanwhile is served and
/// told that the connection ends. Closed at once, they would break calls on their way.
pub(crate) const LINGER: Duration = Duration::from_millis(500);
/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Most header fields of a request.
const HEADERS_MAX: usize = 100;
/// Streams a client may have open on one HTTP/2 connection.
const STREAMS_MAX: u32 = 100;
/// Resets of streams not yet answered before an HTTP/2 connection is cut (rapid reset).
const RESETS_MAX: usize = 50;

/// Runs futures on the thread they are made on.
#[derive(Clone, Copy)]
struct OnThread;

impl<F: Future + 'static> hyper::rt::Executor<F> for OnThread {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// The accepting sockets of all threads, on one address.
pub(crate) fn bind(
    address: SocketAddr,
    threads: usize,
) -> anyhow::Result<Vec<std::net::TcpListener>> {
    let open = || -> std::io::Result<std::net::TcpListener> {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        // Connections of a life before that was killed may still linger on this address.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    // Another process could join with the same option: probe without it first.
    let probe = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    probe.set_reuse_address(true)?;
    let taken = || format!("TOLLGATE_GATEWAY_LISTEN: cannot listen on {address}; is it taken?");
    probe.bind(&address.into()).with_context(taken)?;
    drop(probe);
    (0..threads).map(|_| open().with_context(taken)).collect()
}

/// Starts one thread. It ends when `stop` is cancelled and its connections are gone, or when
/// `cut` is cancelled.
pub(crate) fn start(
    index: usize,
    edge: Arc<Edge>,
    socket: std::net::TcpListener,
    tls: Arc<rustls::ClientConfig>,
    stop: CancellationToken,
    cut: CancellationToken,
) -> anyhow::Result<std::thread::JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let thread = std::thread::Builder::new().name(format!("edge-{index}"));
    Ok(thread.spawn(move || {
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async move {
            let worker = Rc::new(Worker {
                edge,
                pool: Pool::new(tls),
                beyond: TaskTracker::new(),
            });
            if let Err(error) = accept(worker, socket, stop, cut).await {
                tracing::error!(%error, "a thread of the edge has died");
            }
        });
    })?)
}

async fn accept(
    worker: Rc<Worker>,
    socket: std::net::TcpListener,
    stop: CancellationToken,
    cut: CancellationToken,
) -> anyhow::Result<()> {
    let listener = TcpListener::from_std(socket)?;
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let serving = serve(Rc::clone(&worker), stream, peer, stop.clone(), cut.clone());
                tokio::task::spawn_local(connections.track_future(serving));
            }
            // Out of descriptors, most likely: let some connections end first.
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    // Who is in the queue has been told that somebody listens.
    while let Some(Ok((stream, peer))) = listener.accept().now_or_never() {
        let serving = serve(Rc::clone(&worker), stream, peer, stop.clone(), cut.clone());
        tokio::task::spawn_local(connections.track_future(serving));
    }
    drop(listener);
    connections.close();
    worker.beyond.close();
    let ended = async {
        connections.wait().await;
        worker.beyond.wait().await;
    };
    tokio::select! {
        () = ended => {}
        () = cut.cancelled() => {}
    }
    Ok(())
}

async fn serve(
    worker: Rc<Worker>,
    stream: TcpStream,
    peer: SocketAddr,
    stop: CancellationToken,
    cut: CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection was gone before it was served");
        return;
    }
    let begun = Rc::new(Cell::new(false));
    let seen = Rc::clone(&begun);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        seen.set(true);
        let worker = Rc::clone(&worker);
        async move { Ok::<_, std::convert::Infallible>(edge::handle(worker, peer, request).await) }
    });
    let mut builder = auto::Builder::new(OnThread);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(RESETS_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let (mut stopping, mut waited) = (false, false);
    let mut stopped = std::pin::pin!(async {
        stop.cancelled().await;
        if !begun.get() {
            tokio::time::sleep(LINGER).await;
        }
    });
    // The time for a head begins when the version is known; before, nothing else bounds silence.
    let mut patience = std::pin::pin!(tokio::time::sleep(HEAD_TIMEOUT));
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended");
                }
                return;
            }
            () = stopped.as_mut(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            () = patience.as_mut(), if !waited => {
                waited = true;
                if !begun.get() {
                    return;
                }
            }
            () = cut.cancelled() => return,
        }
    }
}

//! The gateway's bare form: the same HTTP library, one event loop on one thread, a pool of
//! connections to the upstream that is last in first out, and nothing else: no key, no limit, no
//! credits, no record, no metrics. What Tollgate's checks and records cost is the distance to it.
//!
//! It keeps what any proxy must: hop-by-hop fields end here, the target and `Host` are the
//! upstream's, `Via` and the client's address are added, and silence is bounded on both sides.

use std::{
    cell::RefCell,
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, HOST, TE, TRANSFER_ENCODING, UPGRADE, VIA},
};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::net::{TcpListener, TcpStream};

/// Of the gateway, which has the same: a request's head is complete after so long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// The head of an answer is there after so long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const HEAD_BYTES_MAX: usize = 32 * 1024;
const IDLE_MAX: usize = 256;
/// What stands before the path that the upstream knows.
const PREFIX: &str = "/api/v1/edge";

/// Between whom it stands.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Port on loopback where it listens.
    #[arg(long)]
    port: u16,
    /// Port on loopback where calls go.
    #[arg(long)]
    upstream: u16,
}

#[derive(Clone, Copy)]
struct OnThread;

impl<F: Future + 'static> hyper::rt::Executor<F> for OnThread {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

struct Worker {
    upstream: SocketAddr,
    authority: HeaderValue,
    idle: Rc<RefCell<Vec<SendRequest<Incoming>>>>,
}

/// Carries calls until killed.
pub(crate) fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let upstream = SocketAddr::from((Ipv4Addr::LOCALHOST, arguments.upstream));
    let worker = Rc::new(Worker {
        upstream,
        authority: HeaderValue::try_from(upstream.to_string())?,
        idle: Rc::default(),
    });
    let port = arguments.port;
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        loop {
            let (stream, peer) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::task::spawn_local(connection(Rc::clone(&worker), stream, peer));
        }
    })
}

async fn connection(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr) {
    let service = service_fn(move |request| forward(Rc::clone(&worker), peer.ip(), request));
    let mut builder = auto::Builder::new(OnThread);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX);
    let served = builder
        .serve_connection(TokioIo::new(stream), service)
        .await;
    drop(served); // a client that goes away is no news
}

async fn forward(
    worker: Rc<Worker>,
    peer: IpAddr,
    request: Request<Incoming>,
) -> Result<Response<Passing>, Infallible> {
    let sent = tokio::time::timeout(ANSWER_TIMEOUT, send(&worker, peer, request)).await;
    let Ok(Some((lent, response))) = sent else {
        let mut response = Response::new(Passing::nothing());
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        return Ok(response);
    };
    let (mut parts, body) = response.into_parts();
    strip(&mut parts.headers);
    parts
        .headers
        .append(VIA, HeaderValue::from_static("1.1 bare"));
    parts.version = Version::default();
    let left = body.size_hint().exact();
    let mut body = Passing {
        inner: Some(body),
        left,
        lent: Some(lent),
        idle: Some(Rc::clone(&worker.idle)),
    };
    if body.is_end_stream() {
        body.give_back();
    }
    Ok(Response::from_parts(parts, body))
}

async fn send(
    worker: &Worker,
    peer: IpAddr,
    request: Request<Incoming>,
) -> Option<(SendRequest<Incoming>, Response<Incoming>)> {
    let (mut parts, body) = request.into_parts();
    let target = parts.uri.path_and_query()?.as_str().strip_prefix(PREFIX)?;
    parts.uri = Uri::try_from(target).ok()?;
    parts.version = Version::HTTP_11;
    strip(&mut parts.headers);
    parts.headers.insert(HOST, worker.authority.clone());
    parts
        .headers
        .append(VIA, HeaderValue::from_static("1.1 bare"));
    let client = HeaderValue::try_from(peer.to_string()).ok()?;
    parts.headers.insert("x-forwarded-for", client);
    let mut request = Request::from_parts(parts, body);
    loop {
        let idle = worker.idle.borrow_mut().pop();
        let mut lent = match idle {
            Some(lent) if lent.is_ready() => lent,
            Some(_) => continue,
            None => open(worker).await?,
        };
        match lent.try_send_request(request).await {
            Ok(response) => return Some((lent, response)),
            // Closed by its peer while it was idle.
            Err(mut failed) => request = failed.take_message()?,
        }
    }
}

async fn open(worker: &Worker) -> Option<SendRequest<Incoming>> {
    let stream = TcpStream::connect(worker.upstream).await.ok()?;
    stream.set_nodelay(true).ok()?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    tokio::task::spawn_local(async move { drop(connection.await) });
    Some(sender)
}

/// Removes what belongs to one connection only.
fn strip(headers: &mut HeaderMap) {
    for name in [CONNECTION, TE, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
}

/// An answer on its way; its connection goes back to the pool with the last frame.
struct Passing {
    inner: Option<Incoming>,
    left: Option<u64>,
    lent: Option<SendRequest<Incoming>>,
    idle: Option<Rc<RefCell<Vec<SendRequest<Incoming>>>>>,
}

impl Passing {
    fn nothing() -> Self {
        Self {
            inner: None,
            left: Some(0),
            lent: None,
            idle: None,
        }
    }

    fn give_back(&mut self) {
        let (Some(mut lent), Some(idle)) = (self.lent.take(), self.idle.take()) else {
            return;
        };
        let put = |idle: &RefCell<Vec<_>>, lent| {
            let mut idle = idle.borrow_mut();
            if idle.len() < IDLE_MAX {
                idle.push(lent);
            }
        };
        if lent.is_ready() {
            put(&idle, lent);
            return;
        }
        tokio::task::spawn_local(async move {
            if lent.ready().await.is_ok() {
                put(&idle, lent);
            }
        });
    }
}

impl Body for Passing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(inner).poll_frame(task);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(None) => self.give_back(),
            Poll::Ready(Some(Err(_))) => self.lent = None,
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
                self.left = self.left.map(|left| left.saturating_sub(bytes));
                if self.left == Some(0) {
                    self.give_back();
                }
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}

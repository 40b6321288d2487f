//! An upstream that never says the same twice, and counts how often it is asked.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

/// Longer than any answer that is kept.
pub(crate) const LARGE_BYTES: usize = 300 << 10;

type Body = UnsyncBoxBody<Bytes, Infallible>;

struct Seen {
    /// Calls by the key they came with, as it came.
    asked: Mutex<BTreeMap<String, u64>>,
    serial: std::sync::atomic::AtomicU64,
    /// While it is shut, `/slow` and `/trickle` wait.
    gate: watch::Sender<bool>,
}

/// Listens on loopback until it is dropped.
pub(crate) struct Upstream {
    pub(crate) url: String,
    seen: Arc<Seen>,
    _serving: JoinSet<()>,
}

impl Upstream {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let seen = Arc::new(Seen {
            asked: Mutex::default(),
            serial: 0.into(),
            gate: watch::Sender::new(true),
        });
        let mut serving = JoinSet::new();
        let own = Arc::clone(&seen);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let seen = Arc::clone(&own);
                let service = service_fn(move |request| answer(Arc::clone(&seen), request));
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                connections.spawn(async move { drop(connection.await) });
            }
        });
        Self {
            url,
            seen,
            _serving: serving,
        }
    }

    /// Lets `/slow` and `/trickle` wait, or go on.
    pub(crate) fn shut(&self, is_shut: bool) {
        self.seen.gate.send_replace(!is_shut);
    }

    /// How often it was asked with this key, as the client wrote it.
    pub(crate) fn asked(&self, key: &str) -> u64 {
        self.seen.asked.lock().get(key).copied().unwrap_or(0)
    }

    pub(crate) fn asked_in_all(&self) -> u64 {
        self.seen.asked.lock().values().sum()
    }
}

fn full(bytes: Bytes) -> Body {
    http_body_util::Full::new(bytes).boxed_unsync()
}

async fn answer(
    seen: Arc<Seen>,
    request: Request<Incoming>,
) -> Result<Response<Body>, hyper::Error> {
    let (head, body) = request.into_parts();
    let keys = head.headers.get_all("idempotency-key").iter();
    let keys: Vec<_> = keys
        .map(|key| String::from_utf8_lossy(key.as_bytes()))
        .collect();
    *seen.asked.lock().entry(keys.join("|")).or_default() += 1;
    let serial = seen
        .serial
        .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = head.uri.path();
    let sent = match path {
        // Answers before it has read anything.
        "/hasty" => Bytes::new(),
        _ => body.collect().await?.to_bytes(),
    };
    let text = Bytes::from(format!("number {serial} to {} bytes\n", sent.len()));
    let open = async |seen: &Seen| {
        let mut gate = seen.gate.subscribe();
        drop(gate.wait_for(|is_open| *is_open).await);
    };
    let mut response = match path {
        "/large" => Response::new(full(Bytes::from(vec![b'x'; LARGE_BYTES]))),
        "/empty" => Response::new(full(Bytes::new())),
        "/trickle" => {
            let rest = stream::once(async move {
                open(&seen).await;
                Ok(Frame::data(Bytes::from("the rest\n")))
            });
            let first = stream::once(async move { Ok(Frame::data(text)) });
            Response::new(StreamBody::new(first.chain(rest.boxed())).boxed_unsync())
        }
        _ => {
            if path == "/slow" {
                open(&seen).await;
            }
            Response::new(full(text))
        }
    };
    *response.status_mut() = match path {
        "/fail" => StatusCode::INTERNAL_SERVER_ERROR,
        "/empty" => StatusCode::NO_CONTENT,
        _ => StatusCode::CREATED,
    };
    let headers = response.headers_mut();
    headers.insert("content-type", "text/x-once".parse().expect("a value"));
    headers.insert("x-serial", serial.into());
    headers.insert("set-cookie", "session=secret".parse().expect("a value"));
    Ok(response)
}

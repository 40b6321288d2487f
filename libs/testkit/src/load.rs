//! A client that calls, and remembers exactly which answers it received in full.
//!
//! Its transcript is what the auditor holds against rows and debits: an answer counts as complete
//! only when its last byte was read. Closed loop: each worker has one call in flight, on a
//! connection of its own; a broken connection ends the call, which is never repeated.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// A call must be answered within so long, or it counts as broken off.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Between attempts to connect to a gateway that is down.
const RECONNECT: Duration = Duration::from_millis(20);

/// One kind of call.
#[derive(Clone, Debug)]
pub struct Shot {
    /// HTTP method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// JSON body; empty for none.
    pub body: Bytes,
    /// Further headers.
    pub headers: Vec<(String, String)>,
}

impl Shot {
    /// A call without a body.
    #[must_use]
    pub fn get(path: &str) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            body: Bytes::new(),
            headers: Vec::new(),
        }
    }

    /// A call with a JSON body.
    #[must_use]
    pub fn post(path: &str, body: &str) -> Self {
        let body = Bytes::from(body.to_owned());
        Self {
            method: Method::POST,
            path: path.into(),
            body,
            headers: Vec::new(),
        }
    }

    /// With one more header.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// An answer, read to its last byte.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// All headers, and trailers.
    pub headers: http::HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Answer {
    /// A header as text, empty when absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// Credits the answer says were charged.
    #[must_use]
    pub fn cost(&self) -> i64 {
        self.header("tollgate-cost").parse().unwrap_or(0)
    }

    /// The body as JSON, `null` when it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// One connection to a gateway; opened when needed.
pub struct Connection {
    address: String,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Connection {
    /// To `http://host:port`.
    #[must_use]
    pub fn to(base: &str) -> Self {
        let address = base
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .to_owned();
        Self {
            address,
            sender: None,
        }
    }

    /// Opens the connection unless it is open.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(&mut self) -> anyhow::Result<()> {
        self.open().await.map(|_open| ())
    }

    async fn open(&mut self) -> anyhow::Result<&mut SendRequest<Full<Bytes>>> {
        if self.sender.as_ref().is_none_or(|sender| sender.is_closed()) {
            let stream = TcpStream::connect(&self.address).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            spawn(async move {
                if let Err(error) = connection.await {
                    tracing::trace!(%error, "a connection of the load client ended");
                }
            });
            self.sender = Some(sender);
        }
        self.sender
            .as_mut()
            .ok_or_else(|| anyhow::anyhow!("no connection"))
    }

    /// Makes a call and reads its answer to the last byte.
    ///
    /// # Errors
    /// No connection, or it broke before the last byte.
    pub async fn call(&mut self, key: &str, shot: &Shot) -> anyhow::Result<Answer> {
        let answered = tokio::time::timeout(CALL_TIMEOUT, self.attempt(key, shot)).await;
        match answered {
            Ok(Ok(answer)) => Ok(answer),
            failed => {
                self.sender = None;
                failed?
            }
        }
    }

    async fn attempt(&mut self, key: &str, shot: &Shot) -> anyhow::Result<Answer> {
        let mut request = Request::builder()
            .method(&shot.method)
            .uri(&shot.path)
            .header("host", &self.address);
        if !key.is_empty() {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        if !shot.body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in &shot.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(shot.body.clone()))?;
        let sender = self.open().await?;
        sender.ready().await?;
        let (mut head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned();
        head.headers.extend(trailers.unwrap_or_default());
        let body = body.to_bytes();
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body,
        })
    }
}

#[expect(clippy::disallowed_methods, reason = "connections end with their peer")]
fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(future);
}

/// What a load is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Base addresses of the gateways; workers are spread over them.
    pub gateways: Vec<String>,
    /// The key.
    pub key: String,
    /// Calls, taken in turn.
    pub shots: Vec<Shot>,
    /// Calls in flight at most.
    pub workers: usize,
    /// Each worker pauses so long between calls.
    pub pause: Duration,
}

/// A complete answer, for the auditor.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Done {
    /// `req_…`
    pub request_id: String,
    /// HTTP status.
    pub status: u16,
    /// Credits the answer says were charged.
    pub cost: i64,
    /// When it was there.
    #[serde(skip, default = "Instant::now")]
    pub at: Instant,
}

/// What a load saw.
#[derive(Default, Debug)]
pub struct Outcome {
    /// Calls begun on an open connection.
    pub sent: u64,
    /// Answers read to the last byte.
    pub done: Vec<Done>,
    /// Calls whose answer broke off or never came.
    pub broken: u64,
    /// Attempts that found no gateway.
    pub unreachable: u64,
    /// Complete answers by status.
    pub by_status: BTreeMap<u16, u64>,
    /// Refusals by their code.
    pub by_code: BTreeMap<String, u64>,
    /// Duration of complete answers, microseconds.
    pub micros: Vec<u64>,
}

impl Outcome {
    /// A quantile of the durations, microseconds.
    #[must_use]
    pub fn quantile(&self, percent: usize) -> u64 {
        let mut micros = self.micros.clone();
        micros.sort_unstable();
        let at = micros.len().saturating_sub(1) * percent / 100;
        micros.get(at).copied().unwrap_or(0)
    }
}

/// Calls until told to stop.
pub async fn run(plan: Plan, stop: CancellationToken) -> Outcome {
    watched(plan, stop, Arc::default()).await
}

/// As [`run`]; what was seen so far can be looked at meanwhile.
pub async fn watched(plan: Plan, stop: CancellationToken, outcome: Arc<Mutex<Outcome>>) -> Outcome {
    let turn = Arc::new(AtomicUsize::new(0));
    let mut workers = tokio::task::JoinSet::new();
    for index in 0..plan.workers {
        let (plan, stop) = (plan.clone(), stop.clone());
        let (outcome, turn) = (Arc::clone(&outcome), Arc::clone(&turn));
        workers.spawn(async move { work(index, &plan, &turn, &outcome, &stop).await });
    }
    while workers.join_next().await.is_some() {}
    std::mem::take(&mut *outcome.lock())
}

async fn work(
    index: usize,
    plan: &Plan,
    turn: &AtomicUsize,
    outcome: &Mutex<Outcome>,
    stop: &CancellationToken,
) {
    let mut connections: Vec<Connection> = plan
        .gateways
        .iter()
        .map(|base| Connection::to(base))
        .collect();
    let count = connections.len().max(1);
    let mut step = index;
    while !stop.is_cancelled() {
        let shot = plan
            .shots
            .get(turn.fetch_add(1, Ordering::Relaxed) % plan.shots.len().max(1));
        let (Some(shot), Some(connection)) = (shot, connections.get_mut(step % count)) else {
            return;
        };
        if connection.connect().await.is_err() {
            outcome.lock().unreachable += 1;
            step += 1; // as a balancer would: the next gateway
            tokio::time::sleep(RECONNECT).await;
            continue;
        }
        let began = Instant::now();
        let answer = connection.call(&plan.key, shot).await;
        note(&mut outcome.lock(), began, answer);
        if !plan.pause.is_zero() {
            tokio::time::sleep(plan.pause).await;
        }
    }
}

/// Adds a call, and what became of it.
pub fn note(outcome: &mut Outcome, began: Instant, answer: anyhow::Result<Answer>) {
    outcome.sent += 1;
    let Ok(answer) = answer else {
        outcome.broken += 1;
        return;
    };
    let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    outcome.micros.push(micros);
    *outcome.by_status.entry(answer.status.as_u16()).or_default() += 1;
    if let Some(code) = answer.json()["code"]
        .as_str()
        .filter(|_| !answer.status.is_success())
    {
        *outcome.by_code.entry(code.to_owned()).or_default() += 1;
    }
    outcome.done.push(Done {
        at: Instant::now(),
        request_id: answer.header("x-request-id").to_owned(),
        status: answer.status.as_u16(),
        cost: answer.cost(),
    });
}

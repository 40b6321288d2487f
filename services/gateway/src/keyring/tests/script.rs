//! Stands at the place of the `keys` service on the wire, so that a test says what is answered to a
//! look-up, and when.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use prost::Message as _;
use proto::keys::v1::{KeyRecord, VerifyKeyRequest, VerifyKeyResponse};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

/// Bytes before each message: whether it is compressed, and its length.
const FRAME_HEAD_BYTES: usize = 5;
/// A look-up comes within so long.
const LIMIT: Duration = Duration::from_secs(10);

struct State {
    answer: Mutex<Option<KeyRecord>>,
    questions: watch::Sender<Vec<VerifyKeyRequest>>,
    held: watch::Sender<bool>,
}

/// What answers look-ups.
pub(crate) struct Script {
    pub(crate) url: String,
    state: Arc<State>,
    _serving: JoinSet<()>,
}

impl Script {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let state = Arc::new(State {
            answer: Mutex::default(),
            questions: watch::Sender::default(),
            held: watch::Sender::new(false),
        });
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, Arc::clone(&state)));
        Self {
            url,
            state,
            _serving: serving,
        }
    }

    /// What every look-up finds from here on. One that was begun has read before.
    pub(crate) fn answer(&self, record: Option<KeyRecord>) {
        *self.state.answer.lock() = record;
    }

    /// Answers are read, and wait.
    pub(crate) fn hold(&self) {
        self.state.held.send_replace(true);
    }

    /// Answers leave.
    pub(crate) fn release(&self) {
        self.state.held.send_replace(false);
    }

    /// Waits for so many look-ups in all.
    pub(crate) async fn asked(&self, count: usize) {
        let mut questions = self.state.questions.subscribe();
        let asked = questions.wait_for(|questions| questions.len() >= count);
        let waited = tokio::time::timeout(LIMIT, asked).await;
        assert!(matches!(waited, Ok(Ok(_))), "nobody asks");
    }

    /// Look-ups in all.
    pub(crate) fn questions(&self) -> usize {
        self.state.questions.borrow().len()
    }

    /// The last look-up.
    pub(crate) fn last(&self) -> VerifyKeyRequest {
        let questions = self.state.questions.borrow();
        questions.last().expect("there was one").clone()
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let service = service_fn(|request| reply(Arc::clone(&state), request));
            let connection = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service);
            drop(connection.await); // it ends with its test
        });
    }
}

async fn reply(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<impl http_body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    assert!(
        request.uri().path().ends_with("/VerifyKey"),
        "{}",
        request.uri()
    );
    let frame = request.into_body().collect().await.expect("a question");
    let frame = frame.to_bytes().slice(FRAME_HEAD_BYTES..);
    let question = VerifyKeyRequest::decode(frame).expect("a question");
    let answer = VerifyKeyResponse {
        key: state.answer.lock().clone(),
        ..VerifyKeyResponse::default()
    };
    state.questions.send_modify(|all| all.push(question));
    let mut held = state.held.subscribe();
    assert!(held.wait_for(|held| !held).await.is_ok(), "the test lives");
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(answer.encoded_len()).expect("short"));
    answer.encode(&mut frame).expect("it grows");
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(frame.freeze()).with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(body);
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", kind);
    Ok(response)
}

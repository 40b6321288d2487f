mod ai;
mod mileage;
mod pdf;

use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::HeaderMap;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::{Bind, Running, serve};

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    trailers: HeaderMap,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a text body")
    }
}

async fn send(to: SocketAddr, request: Request<Full<Bytes>>) -> Reply {
    let stream = TcpStream::connect(to).await.expect("the upstream listens");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("a connection");
    let exchange = async {
        let (head, body) = sender
            .send_request(request)
            .await
            .expect("a reply")
            .into_parts();
        let body = body.collect().await.expect("a whole body");
        let trailers = body.trailers().cloned().unwrap_or_default();
        Reply {
            status: head.status,
            headers: head.headers,
            body: body.to_bytes(),
            trailers,
        }
    };
    tokio::select! {
        reply = exchange => reply,
        ended = connection => panic!("the connection ended before the reply: {ended:?}"),
    }
}

fn get(path: &str) -> Request<Full<Bytes>> {
    let request = Request::get(path).header("host", "sample");
    request.body(Full::default()).expect("a valid request")
}

fn post(path: &str, body: &Value) -> Request<Full<Bytes>> {
    let request = Request::post(path)
        .header("host", "sample")
        .header("te", "trailers");
    request
        .body(Full::from(body.to_string()))
        .expect("a valid request")
}

async fn upstreams(transcript: Option<PathBuf>) -> (Running, CancellationToken) {
    let stop = CancellationToken::new();
    let running = serve(Bind::default(), transcript, stop.clone())
        .await
        .expect("they start");
    (running, stop)
}

#[tokio::test]
async fn an_echo_tells_what_arrived_and_keeps_secrets() {
    let (running, _stop) = upstreams(None).await;
    let request = Request::builder()
        .method("PATCH")
        .uri("/echo/a%2Fb?x=1&status=503")
        .header("host", "sample")
        .header("authorization", "Bearer hidden")
        .header("x-many", "one")
        .header("x-many", "two")
        .body(Full::from("12345"))
        .expect("a valid request");
    let reply = send(running.mileage, request).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    let seen = reply.json();
    assert_eq!(seen["method"], "PATCH");
    assert_eq!(seen["path"], "/echo/a%2Fb");
    assert_eq!(seen["query"], "x=1&status=503");
    assert_eq!(seen["headers"]["x-many"], json!(["one", "two"]));
    assert_eq!(seen["headers"]["authorization"], json!(["[13 bytes]"]));
    assert_eq!(seen["body_bytes"], 5);
}

#[tokio::test]
async fn no_answer_is_seen_before_its_line_is_in_the_transcript() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("transcript.jsonl");
    let lines = || {
        let text = std::fs::read_to_string(&path).expect("the transcript");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("a line"))
            .collect::<Vec<Value>>()
    };
    let (running, stop) = upstreams(Some(path.clone())).await;
    for expected in 1..=20 {
        let request = Request::get("/distance?from=0,0&to=1,1&secret=x")
            .header("host", "sample")
            .header("x-request-id", format!("req_{expected}"))
            .body(Full::default())
            .expect("a valid request");
        send(running.mileage, request).await;
        assert_eq!(lines().len(), expected);
        assert_eq!(
            lines()[expected - 1]["request_id"],
            format!("req_{expected}")
        );
    }
    assert_eq!(
        send(running.pdf, get("/health")).await.status,
        StatusCode::OK
    );
    stop.cancel();
    running.finished().await.expect("a clean stop");
    let last = lines().pop().expect("a line");
    assert_eq!(last["service"], "pdf");
    assert_eq!(last["path"], "/health");
    assert_eq!(last["status"], 200);
    assert_eq!(last["request_id"], Value::Null);
    assert!(
        !std::fs::read_to_string(&path)
            .expect("the transcript")
            .contains("secret")
    );
}

#[tokio::test]
async fn a_call_whose_client_went_away_leaves_a_line_without_status() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("transcript.jsonl");
    let (running, stop) = upstreams(Some(path.clone())).await;
    let mut client = TcpStream::connect(running.mileage)
        .await
        .expect("the upstream listens");
    let head = b"POST /echo?delay_ms=60000 HTTP/1.1\r\nhost: sample\r\ncontent-length: 4\r\n\
                 expect: 100-continue\r\n\r\n";
    client.write_all(head).await.expect("the head is sent");
    // The upstream asks for the body: from here on the call is being answered.
    let asked = b"HTTP/1.1 100 Continue\r\n\r\n";
    let mut received = vec![0; asked.len()];
    client
        .read_exact(&mut received)
        .await
        .expect("an interim reply");
    assert_eq!(received, asked);
    client.write_all(b"body").await.expect("the body is sent");
    drop(client);
    stop.cancel();
    running.finished().await.expect("a clean stop");
    let text = std::fs::read_to_string(&path).expect("the transcript");
    let line: Value = serde_json::from_str(text.trim()).expect("one line");
    assert_eq!(line["status"], Value::Null);
}

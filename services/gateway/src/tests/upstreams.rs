//! The edge and its upstreams: several at once, by both versions of HTTP, that refuse, pause and
//! die. A real client, real upstreams, a real journal.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong about its own data may panic"
)]

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::poll_fn,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{rt::TokioIo, server::conn::auto};
use proto::events::v1::{Disposition, Record};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use runtime::Host;

use super::rig::{self, COST, Rig};
use crate::{Config, listen::OnThread};

const PATH: &str = "/api/v1/echo/x";
/// Nothing here takes longer.
const LIMIT: Duration = Duration::from_secs(20);

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// An upstream by either version of HTTP, which answers with what it was sent.
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    pub(super) connections: Rc<Cell<usize>>,
    pub(super) asked: Rc<Cell<usize>>,
    /// While it is false, calls wait.
    pub(super) gate: watch::Sender<bool>,
}

impl Upstream {
    async fn start() -> Self {
        Self::behind(None).await
    }

    /// One that speaks TLS.
    pub(super) async fn behind(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let own = Self {
            address: listener.local_addr().expect("bound"),
            connections: Rc::default(),
            asked: Rc::default(),
            gate: watch::Sender::new(true),
        };
        let (connections, asked) = (Rc::clone(&own.connections), Rc::clone(&own.asked));
        let gate = own.gate.clone();
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.set(connections.get() + 1);
                let (asked, gate) = (Rc::clone(&asked), gate.clone());
                let service = service_fn(move |request| {
                    asked.set(asked.get() + 1);
                    answer(request, gate.subscribe())
                });
                let tls = tls.clone();
                tokio::task::spawn_local(async move {
                    let builder = auto::Builder::new(OnThread);
                    let Some(tls) = tls else {
                        let stream = TokioIo::new(stream);
                        drop(builder.serve_connection(stream, service).await);
                        return;
                    };
                    if let Ok(stream) = tls.accept(stream).await {
                        let stream = TokioIo::new(stream);
                        drop(builder.serve_connection(stream, service).await);
                    }
                });
            }
        });
        own
    }
}

/// The body again, with its length, a header that says the version, and trailers.
async fn answer(
    request: Request<Incoming>,
    mut gate: watch::Receiver<bool>,
) -> Result<Response<Body>, Infallible> {
    drop(gate.wait_for(|is_open| *is_open).await);
    let version = format!("{:?}", request.version());
    let has_host = request.headers().contains_key("host");
    let body = request.into_body().collect().await;
    let (data, sum) = match body {
        Ok(body) => {
            let sum = body.trailers().and_then(|it| it.get("x-sum")).cloned();
            (body.to_bytes(), sum)
        }
        Err(_) => (Bytes::new(), None),
    };
    let mut trailers = HeaderMap::new();
    if let Some(sum) = sum {
        trailers.insert("x-sum", sum);
    }
    let mut frames = vec![Ok(Frame::data(data))];
    if !trailers.is_empty() {
        frames.push(Ok(Frame::trailers(trailers)));
    }
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let response = Response::builder()
        .header("x-version", version)
        .header("x-has-host", has_host.to_string())
        .header("trailer", "x-sum")
        .body(body.boxed_unsync());
    Ok(response.expect("a head"))
}

/// What a client got.
#[derive(Debug)]
pub(super) struct Got {
    pub(super) status: StatusCode,
    headers: HeaderMap,
    trailers: HeaderMap,
    body: Bytes,
}

impl Got {
    pub(super) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.and_then(|it| it.to_str().ok()).unwrap_or_default()
    }
}

async fn got(response: Response<Incoming>) -> Result<Got, hyper::Error> {
    let (head, body) = response.into_parts();
    let body = body.collect().await?;
    Ok(Got {
        status: head.status,
        headers: head.headers,
        trailers: body.trailers().cloned().unwrap_or_default(),
        body: body.to_bytes(),
    })
}

/// A call with a body and a trailer, on a connection of its own.
pub(super) async fn call(rig: &Rig, version: Version, body: &str) -> Result<Got, hyper::Error> {
    call_to(rig, PATH, version, body).await
}

async fn call_to(rig: &Rig, path: &str, version: Version, body: &str) -> Result<Got, hyper::Error> {
    let address = rig.address();
    let stream = TcpStream::connect(address).await.expect("connected");
    let method = if body.is_empty() {
        Method::GET
    } else {
        Method::POST
    };
    let mut request = Request::builder()
        .method(method)
        .version(version)
        .header("te", "trailers")
        .header("x-api-key", rig.key.reveal());
    let mut frames: Vec<Result<_, Infallible>> = Vec::new();
    if !body.is_empty() {
        frames.push(Ok(Frame::data(Bytes::from(body.to_owned()))));
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "9".parse().expect("a value"));
        frames.push(Ok(Frame::trailers(trailers)));
        request = request.header("trailer", "x-sum");
    }
    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
    let body = match request.method_ref() {
        Some(&Method::POST) => body,
        _ => Full::new(Bytes::new()).boxed_unsync(),
    };
    let io = TokioIo::new(stream);
    if version == Version::HTTP_2 {
        let (mut sender, connection) = http2::handshake(OnThread, io).await?;
        tokio::task::spawn_local(async move { drop(connection.await) });
        let request = request.uri(format!("http://{address}{path}"));
        got(sender
            .send_request(request.body(body).expect("a request"))
            .await?)
        .await
    } else {
        let (mut sender, connection) = http1::handshake(io).await?;
        tokio::task::spawn_local(async move { drop(connection.await) });
        let request = request.uri(path).header("host", "edge");
        got(sender
            .send_request(request.body(body).expect("a request"))
            .await?)
        .await
    }
}

/// Runs a scene with a rig that is served.
pub(super) async fn scene<F: Future<Output = ()>>(
    variables: &[(&str, &str)],
    play: impl FnOnce(Rc<Rig>) -> F,
) {
    let (host, config) = rig::host(variables).await;
    played(&host, &config, play).await;
}

/// As `scene`, once more in the same process.
async fn played<F: Future<Output = ()>>(
    host: &Host,
    config: &Config,
    play: impl FnOnce(Rc<Rig>) -> F,
) {
    let local = tokio::task::LocalSet::new();
    let all = local.run_until(async {
        let rig = Rc::new(Rig::new(host, config).await);
        let own = Rc::clone(&rig);
        let serving = tokio::task::spawn_local(async move { own.serve_all().await });
        tokio::time::timeout(LIMIT, play(rig))
            .await
            .expect("in time");
        serving.abort();
    });
    all.await;
}

/// Waits until so many records are there.
async fn records(rig: &Rig, count: usize) -> Vec<Record> {
    loop {
        let records = rig.records();
        if records.len() >= count {
            return records;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn ends(records: &[Record]) -> Vec<(Disposition, i64, String)> {
    let end = |record: &Record| {
        let call = record.call.as_ref().expect("a call");
        (call.disposition(), record.cost, call.code.clone())
    };
    records.iter().map(end).collect()
}

#[tokio::test]
async fn either_version_of_a_client_meets_either_of_an_upstream() {
    scene(&[], async |rig| {
        let upstream = Upstream::start().await;
        let mut count = 0;
        for protocol in ["http1", "h2", "auto"] {
            rig.offer(upstream.address, |it| it.protocol = protocol.to_owned());
            for version in [Version::HTTP_11, Version::HTTP_2] {
                let case = format!("{version:?} to {protocol}");
                let got = call(&rig, version, "some body").await.expect(&case);
                count += 1;
                assert_eq!(got.status, 200, "{case}: {got:?}");
                assert_eq!(got.body, "some body", "{case}");
                assert_eq!(got.trailers.get("x-sum").expect("passed"), "9", "{case}");
                let spoken = if protocol == "h2" {
                    "HTTP/2.0"
                } else {
                    "HTTP/1.1"
                };
                assert_eq!(got.header("x-version"), spoken, "{case}");
                let has_host = (protocol != "h2").to_string();
                assert_eq!(got.header("x-has-host"), has_host, "{case}");
                assert_eq!(got.header("tollgate-cost"), COST.to_string(), "{case}");
            }
        }
        let ends = ends(&records(&rig, count).await);
        let paid = (Disposition::Completed, COST, String::new());
        assert_eq!(ends, vec![paid; count]);
    })
    .await;
}

#[tokio::test]
async fn streams_share_connections_and_further_ones_are_opened_when_they_are_many() {
    scene(&[], async |rig| {
        let upstream = Upstream::start().await;
        rig.offer(upstream.address, |it| it.protocol = "h2".to_owned());
        upstream.gate.send_replace(false);
        let calls: Vec<_> = (0..150)
            .map(|_| {
                let rig = Rc::clone(&rig);
                tokio::task::spawn_local(async move {
                    call(&rig, Version::HTTP_11, "")
                        .await
                        .expect("answered")
                        .status
                })
            })
            .collect();
        while upstream.asked.get() < 150 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(upstream.connections.get(), 3, "64 streams on each");
        upstream.gate.send_replace(true);
        for call in calls {
            assert_eq!(call.await.expect("no panic"), 200);
        }
        let got = call(&rig, Version::HTTP_11, "").await.expect("answered");
        assert_eq!(got.status, 200);
        assert_eq!(upstream.connections.get(), 3, "they are used again");
        assert_eq!(records(&rig, 151).await.len(), 151);
    })
    .await;
}

/// What an upstream does with the streams of a connection before it works on one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rudeness {
    /// `REFUSED_STREAM`, when the whole request is there.
    Refuse,
    /// `GOAWAY` below the stream: nothing was worked on.
    GoAway,
    /// The connection is cut.
    Cut,
}

/// By HTTP/2; its first connection is rude, the next ones answer with what they were sent. Counts
/// whole requests that arrived.
async fn rude(rudeness: Rudeness) -> (SocketAddr, Rc<Cell<usize>>, Rc<RefCell<Vec<Bytes>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (refused, answered) = (Rc::new(Cell::new(0)), Rc::new(RefCell::new(Vec::new())));
    let (count, worked) = (Rc::clone(&refused), Rc::clone(&answered));
    tokio::task::spawn_local(async move {
        let mut is_first = true;
        while let Ok((stream, _)) = listener.accept().await {
            let is_rude = std::mem::take(&mut is_first);
            if is_rude && rudeness == Rudeness::GoAway {
                count.set(count.get() + 1);
                tokio::task::spawn_local(say_goodbye(stream));
                continue;
            }
            let (count, worked) = (Rc::clone(&count), Rc::clone(&worked));
            tokio::task::spawn_local(async move {
                let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let mut body = request.into_body();
                    // The connection reads while it is polled.
                    let read = async {
                        let mut all = Vec::new();
                        while let Some(Ok(data)) = body.data().await {
                            drop(body.flow_control().release_capacity(data.len()));
                            all.extend_from_slice(&data);
                        }
                        all
                    };
                    let all = {
                        let mut read = std::pin::pin!(read);
                        tokio::select! {
                            all = read.as_mut() => all,
                            _ = poll_fn(|task| connection.poll_closed(task)) => return,
                        }
                    };
                    if !is_rude {
                        worked.borrow_mut().push(all.clone().into());
                        let response = Response::new(());
                        let mut sent = respond.send_response(response, false).expect("sent");
                        sent.send_data(Bytes::from(all), true).expect("sent");
                        continue;
                    }
                    count.set(count.get() + 1);
                    match rudeness {
                        Rudeness::Refuse => respond.send_reset(h2::Reason::REFUSED_STREAM),
                        Rudeness::GoAway | Rudeness::Cut => return,
                    }
                }
            });
        }
    });
    (address, refused, answered)
}

/// Reads a whole request, and says that it has looked at none.
async fn say_goodbye(mut stream: TcpStream) {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    drop(stream.write_all(&SETTINGS).await);
    let mut got = Vec::new();
    while !got.windows(9).any(|part| part == b"some body") {
        if stream.read_buf(&mut got).await.unwrap_or(0) == 0 {
            return;
        }
    }
    drop(stream.write_all(&GOAWAY).await);
    while stream.read_buf(&mut got).await.unwrap_or(0) > 0 {}
}

#[tokio::test]
async fn what_an_upstream_has_not_looked_at_is_sent_again_and_charged_once() {
    let (host, config) = rig::host(&[]).await;
    for rudeness in [Rudeness::Refuse, Rudeness::GoAway, Rudeness::Cut] {
        played(&host, &config, async |rig| {
            let (address, refused, answered) = rude(rudeness).await;
            rig.offer(address, |it| it.protocol = "h2".to_owned());
            let got = call_to(&rig, PATH, Version::HTTP_11, "some body").await;
            let got = got.expect("an answer");
            // Twice by the same connection, which goes on.
            let wanted = if rudeness == Rudeness::Refuse { 2 } else { 1 };
            assert_eq!(refused.get(), wanted, "{rudeness:?}");
            let end = ends(&records(&rig, 1).await);
            if rudeness != Rudeness::Cut {
                assert_eq!(
                    (got.status, &got.body[..]),
                    (StatusCode::OK, &b"some body"[..])
                );
                assert_eq!(*answered.borrow(), [Bytes::from("some body")]);
                assert_eq!(end, [(Disposition::Completed, COST, String::new())]);
            } else {
                // Nobody knows what it has done: a POST is not repeated, and not charged.
                assert_eq!(got.status, 502, "{got:?}");
                assert!(answered.borrow().is_empty());
                let code = "upstream_unreachable".to_owned();
                assert_eq!(end, [(Disposition::UpstreamFailed, 0, code)]);
            }
            assert_eq!(rig.records().len(), 1, "one call, one record");
        })
        .await;
    }
}

#[tokio::test]
async fn connections_are_bounded_and_so_is_the_queue_for_them() {
    let variables = [
        ("TOLLGATE_GATEWAY_UPSTREAM_WAITING_MAX", "1"),
        ("TOLLGATE_GATEWAY_UPSTREAM_WAIT_MILLIS", "10000"),
    ];
    scene(&variables, async |rig| {
        let upstream = Upstream::start().await;
        rig.offer(upstream.address, |it| it.connections_max = 2);
        upstream.gate.send_replace(false);
        let begin = || {
            let rig = Rc::clone(&rig);
            tokio::task::spawn_local(async move {
                call(&rig, Version::HTTP_11, "").await.expect("answered")
            })
        };
        let first = [begin(), begin()];
        while upstream.asked.get() < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // Of two more one waits, and one is told to come again.
        let mut waiting = [begin(), begin()];
        let [one, two] = &mut waiting;
        let (told, served) = tokio::select! {
            told = one => (told.expect("no panic"), 1),
            told = two => (told.expect("no panic"), 0),
        };
        assert_eq!(told.status, 503, "{told:?}");
        assert_eq!(told.header("retry-after"), "1");
        assert!(String::from_utf8_lossy(&told.body).contains("\"upstream_busy\""));
        let end = ends(&records(&rig, 1).await);
        assert_eq!(end, [(Disposition::Refused, 0, "upstream_busy".to_owned())]);
        assert_eq!(
            rig.permits.each_ref().map(|lease| lease.cum()),
            [0, 0],
            "free of charge"
        );
        upstream.gate.send_replace(true);
        for call in first {
            assert_eq!(call.await.expect("no panic").status, 200);
        }
        let [one, two] = waiting;
        let served = if served == 0 { one } else { two };
        assert_eq!(served.await.expect("no panic").status, 200);
        assert_eq!(upstream.connections.get(), 2);
        assert_eq!(records(&rig, 4).await.len(), 4);
    })
    .await;
}

/// Answers the beginning of a long answer, and then nothing, or a little from time to time.
async fn slow(pause: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                let mut head = [0; 1024];
                drop(stream.read(&mut head).await);
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n";
                let mut sent = stream.write_all(answer).await;
                while sent.is_ok() {
                    sent = stream.write_all(b"x").await;
                    tokio::time::sleep(pause).await;
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn an_answer_that_pauses_or_lasts_too_long_breaks_off_and_costs_what_its_route_says() {
    let long = Duration::from_secs(3600);
    let short = Duration::from_millis(50);
    let (host, config) = rig::host(&[]).await;
    for (pause, idle_ms, total_ms, policy, cost) in [
        (long, 300, 86_400_000, "free", 0),
        (long, 300, 86_400_000, "answered", COST),
        (short, 300_000, 400, "free", 0),
        (short, 300_000, 400, "answered", COST),
    ] {
        played(&host, &config, async |rig| {
            let address = slow(pause).await;
            rig.offer(address, |it| {
                for route in &mut it.routes {
                    route.idle_timeout_ms = idle_ms;
                    route.total_timeout_ms = total_ms;
                    policy.clone_into(&mut route.on_server_abort);
                }
            });
            let got = call(&rig, Version::HTTP_11, "").await;
            assert!(got.is_err(), "{got:?}");
            let end = ends(&records(&rig, 1).await);
            let wanted = (Disposition::UpstreamAborted, cost, String::new());
            assert_eq!(end, [wanted], "{idle_ms} {total_ms} {policy}");
        })
        .await;
    }
}

#[tokio::test]
async fn calls_that_take_too_long_switch_nothing_off() {
    scene(&[], async |rig| {
        let upstream = Upstream::start().await;
        rig.offer(upstream.address, |it| {
            for route in &mut it.routes {
                route.timeout_ms = 30;
            }
        });
        upstream.gate.send_replace(false);
        // More of them in a row than an address that others stand in for may have.
        for _ in 0..12 {
            let got = call(&rig, Version::HTTP_11, "").await.expect("an answer");
            assert_eq!(got.status, 504, "{got:?}");
        }
        upstream.gate.send_replace(true);
        let got = call(&rig, Version::HTTP_11, "").await.expect("an answer");
        assert_eq!(got.status, 200, "{got:?}");
    })
    .await;
}

#[tokio::test]
async fn an_address_that_fails_is_left_alone_and_found_again() {
    scene(&[], async |rig| {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        drop(listener);
        rig.offer(address, |_| {});
        let mut told = 0;
        while told == 0 {
            let got = call(&rig, Version::HTTP_11, "").await.expect("an answer");
            assert_eq!(got.status, 502, "{got:?}");
            told = got.header("retry-after").len();
        }
        let ends = ends(&rig.records());
        assert_eq!(
            ends.len(),
            6,
            "five failures in a row, and one that was not even tried"
        );
        assert!(ends.iter().all(|(_, cost, _)| *cost == 0), "{ends:?}");
        // It is back.
        let listener = TcpListener::bind(address).await.expect("the same port");
        tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 1024];
                drop(stream.read(&mut head).await);
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                drop(stream.write_all(answer).await);
            }
        });
        loop {
            let got = call(&rig, Version::HTTP_11, "").await.expect("an answer");
            if got.status == 200 {
                break;
            }
            assert_eq!(got.header("retry-after"), "1", "{got:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

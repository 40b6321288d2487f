//! WebSockets over HTTP/2 (RFC 8441), by a client that others have written, in front of an upstream
//! that knows HTTP/1.1.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::SendRequest};
use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use proto::events::v1::{Disposition, Record, RecordKind};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{Front, with_front};
use crate::{tests::rig::COST, upgrade};

/// A client, and the listener of an upstream.
struct Ends {
    client: SendRequest<Bytes>,
    upstream: TcpListener,
}

/// An open WebSocket, on both sides.
struct Socket {
    up: SendStream<Bytes>,
    down: RecvStream,
    answer: Response<()>,
    upstream: TcpStream,
    /// What the upstream was asked.
    asked: String,
}

async fn ends(front: &Front) -> Ends {
    let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = upstream.local_addr().expect("bound");
    front
        .rig
        .offer(address, |service| service.connections_max = 1);
    Ends {
        client: connect(front).await,
        upstream,
    }
}

async fn connect(front: &Front) -> SendRequest<Bytes> {
    front.refresh();
    let stream = TcpStream::connect(front.address).await.expect("connected");
    let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::task::spawn_local(async move {
        drop(connection.await); // some clients here are rude
    });
    while !client.is_extended_connect_protocol_enabled() {
        tokio::task::yield_now().await;
    }
    client
}

/// A request that opens a stream for a protocol.
fn request(front: &Front, protocol: Option<&str>) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = http::Method::CONNECT;
    let uri = match protocol {
        Some(_) => "http://edge/api/v1/echo/chat?x=1",
        None => "edge:80",
    };
    *request.uri_mut() = uri.parse().expect("a target");
    let fields = [
        ("x-api-key", front.rig.key.reveal()),
        ("sec-websocket-version", "13"),
        ("sec-websocket-protocol", "echo.v1"),
    ];
    for (name, value) in fields {
        let value = value.parse().expect("a value");
        request.headers_mut().insert(name, value);
    }
    if let Some(protocol) = protocol {
        let protocol = h2::ext::Protocol::from(protocol);
        request.extensions_mut().insert(protocol);
    }
    request
}

/// An ordinary call on the same connection.
async fn assert_serves(front: &Front, client: &SendRequest<Bytes>) {
    front.refresh();
    front.rig.offer(front.behind, |_| {});
    let get = Request::get("http://edge/api/v1/echo/a");
    let get = get.header("x-api-key", front.rig.key.reveal()).body(());
    let ready = client.clone().ready().await;
    let mut ready = ready.expect("it has not been told to end");
    let sent = ready.send_request(get.expect("a request"), true);
    let (answer, _) = sent.expect("sent");
    assert_eq!(answer.await.expect("an answer").status(), StatusCode::OK);
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a head"));
    }
    String::from_utf8(head).expect("text")
}

/// What a client is to be answered with.
fn accept(asked: &str) -> String {
    let challenge = asked.split("\r\nsec-websocket-key: ").nth(1);
    let challenge = challenge.and_then(|text| text.split("\r\n").next());
    upgrade::accept(challenge.expect("a challenge").as_bytes())
}

/// Opens a WebSocket. The client does not wait for the answer before it sends what follows.
async fn open(front: &Front, ends: &mut Ends, early: &'static str) -> Socket {
    front.refresh();
    let (answer, mut up) = ends
        .client
        .send_request(request(front, Some("websocket")), false)
        .expect("sent");
    up.send_data(early.into(), false).expect("sent");
    let (mut upstream, _) = ends.upstream.accept().await.expect("a connection");
    let asked = read_head(&mut upstream).await;
    let more = tokio::time::timeout(Duration::from_millis(50), upstream.read_u8()).await;
    assert!(more.is_err(), "nothing leaves before the answer");
    let told = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-accept: {}\r\nsec-websocket-protocol: echo.v1\r\n\r\n",
        accept(&asked)
    );
    upstream.write_all(told.as_bytes()).await.expect("sent");
    let answer = answer.await.expect("an answer");
    let (parts, down) = answer.into_parts();
    Socket {
        up,
        down,
        answer: Response::from_parts(parts, ()),
        upstream,
        asked,
    }
}

/// All that comes on a stream. `Err`: it was reset.
async fn read_all(stream: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        let flow = stream.flow_control();
        flow.release_capacity(data.len()).expect("it was used");
        all.extend_from_slice(&data);
    }
    Ok(all)
}

/// The one call of a tunnel, after its end.
async fn ended(front: &Front) -> Record {
    let edge = &front.rig.worker.edge;
    front
        .until(|_| edge.in_flight.load(Ordering::Acquire) == 0)
        .await;
    let records = front.rig.records();
    let kinds: Vec<RecordKind> = records.iter().map(Record::kind).collect();
    assert_eq!(kinds, [RecordKind::Open, RecordKind::Call]);
    let record = records.into_iter().next_back().expect("two");
    let call = record.call.as_ref().expect("a call");
    assert_eq!(
        (call.status, record.cost, &*call.method),
        (101, COST, "GET")
    );
    front.rig.lease.drain();
    assert!(front.rig.lease.is_spent(), "nothing is held");
    record
}

#[test]
fn a_stream_is_a_tunnel_like_any_other() {
    with_front(&[], async |front| {
        let mut ends = ends(&front).await;
        let mut socket = open(&front, &mut ends, "early").await;
        let asked = socket.asked.to_lowercase();
        assert!(asked.starts_with("get /chat?x=1 http/1.1\r\n"), "{asked}");
        for field in [
            "\r\nconnection: upgrade\r\n",
            "\r\nupgrade: websocket\r\n",
            "\r\nsec-websocket-version: 13\r\n",
            "\r\nsec-websocket-protocol: echo.v1\r\n",
            "\r\nvia: 2 tollgate\r\n",
            "\r\ntollgate-principal: ",
        ] {
            assert!(asked.contains(field), "{field}: {asked}");
        }
        assert!(!socket.asked.contains(front.rig.key.reveal()));
        let answer = &socket.answer;
        assert_eq!(answer.status(), StatusCode::OK);
        for (name, value) in [
            ("sec-websocket-protocol", Some("echo.v1")),
            ("tollgate-cost", Some("3")),
            ("sec-websocket-accept", None),
            ("upgrade", None),
            ("connection", None),
        ] {
            let said = answer
                .headers()
                .get(name)
                .map(|it| it.to_str().expect("text"));
            assert_eq!(said, value, "{name}: {answer:?}");
        }
        assert!(answer.headers().contains_key("x-request-id"));
        assert_eq!(front.rig.records().len(), 1, "it is noted");

        let mut came = [0; 5];
        socket.upstream.read_exact(&mut came).await.expect("read");
        assert_eq!(&came, b"early");
        // Each way ends by itself.
        socket.up.send_data(" and late".into(), true).expect("sent");
        let mut came = String::new();
        let read = socket.upstream.read_to_string(&mut came).await;
        read.expect("an orderly end");
        assert_eq!(came, " and late");
        let large = "x".repeat(1 << 20);
        let sent = async {
            let sent = socket.upstream.write_all(large.as_bytes()).await;
            sent.expect("taken");
            drop(socket.upstream);
        };
        let (got, ()) = tokio::join!(read_all(&mut socket.down), sent);
        assert!(got.expect("an orderly end") == large.as_bytes());
        let call = ended(&front).await.call.expect("a call");
        assert_eq!(call.disposition(), Disposition::Completed);
        assert_eq!((call.request_bytes, call.response_bytes), (14, 1 << 20));
    });
}

#[test]
fn a_tunnel_that_its_client_resets_is_charged_once_and_leaves_its_connection_alone() {
    with_front(&[], async |front| {
        let mut ends = ends(&front).await;
        let mut socket = open(&front, &mut ends, "x").await;
        socket.up.send_reset(Reason::CANCEL);
        let mut came = Vec::new();
        let read = socket.upstream.read_to_end(&mut came).await;
        read.expect("the upstream hears of it");
        drop(socket.upstream);
        let call = ended(&front).await.call.expect("a call");
        assert_eq!(call.disposition(), Disposition::ClientAborted);
        assert!(ends.client.clone().ready().await.is_ok(), "others go on");
    });
}

#[test]
fn a_tunnel_that_its_upstream_breaks_is_charged_once() {
    with_front(&[], async |front| {
        let mut ends = ends(&front).await;
        let mut socket = open(&front, &mut ends, "x").await;
        socket2::SockRef::from(&socket.upstream)
            .set_linger(Some(Duration::ZERO))
            .expect("a socket");
        drop(socket.upstream);
        drop(read_all(&mut socket.down).await); // there is an end, of whatever kind
        let call = ended(&front).await.call.expect("a call");
        assert_eq!(call.disposition(), Disposition::UpstreamAborted);
    });
}

#[test]
fn a_tunnel_whose_client_has_gone_is_charged_once() {
    with_front(&[], async |front| {
        let mut ends = ends(&front).await;
        let mut socket = open(&front, &mut ends, "x").await;
        drop((ends, socket.up, socket.down));
        let mut came = Vec::new();
        let read = socket.upstream.read_to_end(&mut came).await;
        read.expect("the upstream hears of it");
        drop(socket.upstream);
        ended(&front).await;
    });
}

#[test]
fn a_tunnel_takes_one_of_the_connections_that_its_upstream_may_have() {
    let wait = [("TOLLGATE_GATEWAY_UPSTREAM_WAIT_MILLIS", "50")];
    with_front(&wait, async |front| {
        let mut ends = ends(&front).await;
        let socket = open(&front, &mut ends, "x").await;
        let (answer, _up) = ends
            .client
            .send_request(request(&front, Some("websocket")), false)
            .expect("sent");
        assert_problem(answer.await.expect("an answer"), 503, "upstream_busy").await;
        drop(socket);
        open(&front, &mut ends, "x").await;
    });
}

#[test]
fn a_connection_of_tunnels_is_not_idle() {
    with_front(&[], async |front| {
        let mut ends = ends(&front).await;
        let mut socket = open(&front, &mut ends, "x").await;
        // As if days had passed, for whoever looks after connections.
        let patience = crate::listen::Patience {
            age: Duration::ZERO,
            ..front.hall.door.patience
        };
        for days in 1..=3 {
            let now = front.hall.seconds() + days * 86_400;
            assert_eq!(front.hall.roll.look(now, &patience), [""; 0]);
        }
        for _ in 0..2 {
            assert_serves(&front, &ends.client).await;
        }
        socket
            .upstream
            .write_all(b"still here")
            .await
            .expect("sent");
        let data = socket.down.data().await.expect("more").expect("data");
        assert_eq!(&*data, b"still here");
    });
}

async fn assert_problem(answer: Response<RecvStream>, status: u16, code: &str) {
    assert_eq!(answer.status(), status, "{answer:?}");
    let body = read_all(&mut answer.into_body()).await.expect("a body");
    let problem: serde_json::Value = serde_json::from_slice(&body).expect("a document");
    assert_eq!(problem["code"], code, "{problem}");
}

#[test]
fn what_is_no_websocket_becomes_no_tunnel() {
    with_front(&[], async |front| {
        let mut ends = ends(&front).await;
        for protocol in ["connect-udp", "h2c", "http", "websocket/13", ""] {
            let sent = ends
                .client
                .send_request(request(&front, Some(protocol)), false);
            let (answer, _up) = sent.expect("sent");
            assert_problem(answer.await.expect("an answer"), 400, "bad_request").await;
        }
        let sent = ends.client.send_request(request(&front, None), false);
        let (answer, _up) = sent.expect("sent");
        assert_problem(answer.await.expect("an answer"), 400, "bad_request").await;

        // What a client would take for the tunnel, and a challenge that is not answered.
        let switched = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                        upgrade: websocket\r\n";
        let answers = [
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned(),
                502,
            ),
            ("HTTP/1.1 204 No Content\r\n\r\n".to_owned(), 502),
            (format!("{switched}\r\n"), 502),
            (
                format!("{switched}sec-websocket-accept: wrong\r\n\r\n"),
                502,
            ),
            (
                "HTTP/1.1 403 No\r\ncontent-length: 2\r\n\r\nno".to_owned(),
                403,
            ),
        ];
        for (said, status) in answers {
            front.refresh();
            let records = front.rig.records().len();
            let (answer, _up) = ends
                .client
                .send_request(request(&front, Some("websocket")), false)
                .expect("sent");
            let (mut upstream, _) = ends.upstream.accept().await.expect("a connection");
            read_head(&mut upstream).await;
            upstream.write_all(said.as_bytes()).await.expect("sent");
            let answer = answer.await.expect("an answer");
            assert_eq!(answer.status(), status, "{said}");
            drop(upstream);
            front
                .until(|front| front.rig.records().len() > records)
                .await;
            let record = front.rig.records().into_iter().next_back().expect("one");
            assert_eq!(
                (record.kind(), record.cost),
                (RecordKind::Call, 0),
                "{said}"
            );
        }
        assert_eq!(front.rig.lease.cum(), 0, "nothing was charged");
        // The connection carries on.
        open(&front, &mut ends, "x").await;
    });
}

/// A success of whatever kind would be taken for the tunnel: also one with a status of gRPC.
#[test]
fn a_refusal_is_no_tunnel_whatever_the_request_says_that_it_carries() {
    with_front(&[], async |front| {
        let mut ends = ends(&front).await;
        for kind in ["application/grpc", "application/grpc+proto", "text/plain"] {
            let mut stranger = request(&front, Some("websocket"));
            stranger.headers_mut().remove("x-api-key");
            let mut lost = request(&front, Some("websocket"));
            *lost.uri_mut() = "http://edge/api/v1/nothing/x".parse().expect("a target");
            for (mut request, status, code) in [
                (stranger, 401, "missing_key"),
                (lost, 404, "unknown_service"),
            ] {
                let value = HeaderValue::from_static(kind);
                request.headers_mut().insert(CONTENT_TYPE, value);
                let sent = ends.client.send_request(request, false);
                let (answer, _up) = sent.expect("sent");
                assert_problem(answer.await.expect("an answer"), status, code).await;
            }
        }
    });
}

#[test]
fn tunnels_leave_room_for_calls() {
    let calls = [("TOLLGATE_GATEWAY_CALLS_MAX", "4")];
    with_front(&calls, async |front| {
        let mut ends = ends(&front).await;
        let behind = ends.upstream.local_addr().expect("bound");
        let offer = || {
            front
                .rig
                .offer(behind, |service| service.connections_max = 10)
        };
        offer();
        let first = open(&front, &mut ends, "x").await;
        let _second = open(&front, &mut ends, "x").await;
        let sent = ends
            .client
            .send_request(request(&front, Some("websocket")), false);
        let (answer, _up) = sent.expect("sent");
        let answer = answer.await.expect("an answer");
        assert_eq!(answer.headers()[RETRY_AFTER], "1");
        assert_problem(answer, 503, "overloaded").await;
        let upgrade = front.request(
            "GET /api/v1/echo/chat",
            "connection: upgrade\r\nupgrade: websocket\r\n",
        );
        let mut other = front.connect().await;
        other.send(upgrade.as_bytes()).await;
        let answer = other.answer().await.expect("an answer");
        answer.assert_problem(503, "overloaded");
        let refused = front.rig.records().into_iter();
        let refused: Vec<Record> = refused.filter(|it| it.kind() == RecordKind::Call).collect();
        assert_eq!(refused.len(), 2);
        assert!(refused.iter().all(|it| it.cost == 0), "nothing is charged");

        // Calls go on, and so do tunnels when there are fewer.
        assert_serves(&front, &ends.client).await;
        front.assert_serves().await;
        drop(first);
        let tunnels = &front.rig.worker.edge.tunnels;
        front.until(|_| tunnels.load(Ordering::Acquire) == 1).await;
        offer();
        open(&front, &mut ends, "x").await;
    });
}

#[test]
fn a_client_that_ends_its_way_after_a_silence_hears_what_comes_soon() {
    with_front(&[], async |front| {
        let mut ends = ends(&front).await;
        let mut socket = open(&front, &mut ends, "x").await;
        // Longer than what comes after the end may take.
        tokio::time::pause();
        tokio::time::sleep(Duration::from_secs(12)).await;
        socket.up.send_data(Bytes::new(), true).expect("sent");
        let mut came = Vec::new();
        let read = socket.upstream.read_to_end(&mut came).await;
        read.expect("the upstream hears of it");
        tokio::time::sleep(Duration::from_secs(3)).await;
        tokio::time::resume();
        let written = socket.upstream.write_all(b"late").await;
        written.expect("it is there still");
        drop(socket.upstream);
        let got = read_all(&mut socket.down).await;
        assert_eq!(got.expect("an orderly end"), b"late");
    });
}

/// A reset is read as an orderly end, and this upstream does not care for either.
#[test]
fn a_tunnel_that_its_client_has_ended_does_not_last_when_nothing_comes() {
    with_front(&[], async |front| {
        let mut ends = ends(&front).await;
        let mut socket = open(&front, &mut ends, "x").await;
        socket.up.send_reset(Reason::CANCEL);
        let mut came = Vec::new();
        let read = socket.upstream.read_to_end(&mut came).await;
        read.expect("the upstream hears of it");
        // From here on time passes when nothing else happens.
        tokio::time::pause();
        let calls = &front.rig.worker.edge.in_flight;
        front.until(|_| calls.load(Ordering::Acquire) == 0).await;
        let record = front.rig.records().into_iter().next_back();
        let record = record.expect("its end is noted");
        assert_eq!((record.kind(), record.cost), (RecordKind::Call, COST));
        // Its connection is free again: there may be one.
        tokio::time::resume();
        open(&front, &mut ends, "x").await;
    });
}

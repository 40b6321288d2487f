//! Both ways of a call say the same: to the upstream, to the client, in the record.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::atomic::Ordering,
};

use proto::events::v1::Record;
use types::{Environment, KEY_RANDOM_BYTES, NewKey};

use super::{Front, upstream::Raw, with_front};
use crate::{listen::roll::Phase, strangers::Origin, tests::rig};

/// Status, sorted fields and body that a client got, or what came of them.
type Answered = (u16, Vec<String>, Vec<u8>);

/// What became of a request.
#[derive(PartialEq, Debug)]
struct Seen {
    /// Request lines, sorted fields and bodies that the upstream got.
    asked: Vec<(String, Vec<String>, Vec<u8>)>,
    answered: Answered,
    records: Vec<Record>,
}

/// Fields in order, without what differs from call to call.
fn fields(head: &str) -> Vec<String> {
    let mut fields: Vec<String> = head
        .split("\r\n")
        .filter(|line| !line.is_empty())
        .map(|line| match line.split_once(": ") {
            Some((name @ ("x-request-id" | "date" | "tollgate-principal"), _)) => name.to_owned(),
            _ => line.to_owned(),
        })
        .collect();
    fields.sort();
    fields
}

/// A problem document without its id.
fn without_id(body: Vec<u8>) -> Vec<u8> {
    let at = memchr::memmem::find(&body, b"req_");
    at.map_or(body.clone(), |at| [&body[..at], &body[at + 36..]].concat())
}

/// A record without what differs from call to call.
fn masked(mut record: Record) -> Record {
    record.seq = 0;
    record.at_unix_micros = 0;
    record.cum = 0;
    for permit in &mut record.permits {
        permit.cum = 0;
    }
    if let Some(call) = &mut record.call {
        call.request_id.clear();
        call.duration_micros = 0;
        call.upstream_micros = 0;
    }
    record
}

/// Sends a request, whole or in pieces that only hyper waits for. Returns what became of it, and
/// whether hyper had no part in it.
async fn call(front: &Front, request: &[u8], is_whole: bool) -> (Seen, bool) {
    let (records, expressed) = (front.rig.records().len(), front.hall.expressed.get());
    let answered = answered(front, request, is_whole).await;
    front
        .until(|front| front.rig.records().len() > records)
        .await;
    let in_flight = &front.rig.worker.edge.in_flight;
    front
        .until(|_| in_flight.load(Ordering::Acquire) == 0)
        .await;
    let asked = front.upstream.take().into_iter();
    let seen = Seen {
        asked: asked
            .map(|got| (got.line, fields(&got.fields), got.body))
            .collect(),
        answered,
        records: front
            .rig
            .records()
            .into_iter()
            .skip(records)
            .map(masked)
            .collect(),
    };
    (seen, front.hall.expressed.get() > expressed)
}

/// Status, sorted fields and body of the answer.
async fn answered(front: &Front, request: &[u8], is_whole: bool) -> Answered {
    // Whoever called before has gone.
    let phases = [Phase::Opening, Phase::Resting, Phase::Express, Phase::Http1];
    front
        .until(|front| phases.iter().all(|it| front.hall.roll.count(*it) == 0))
        .await;
    let mut client = front.connect().await;
    if is_whole {
        client.send(request).await;
    } else {
        let (first, rest) = request.split_at(20);
        client.send(first).await;
        front
            .until(|front| front.hall.roll.count(Phase::Http1) == 1)
            .await;
        client.send(rest).await;
    }
    match client.answer().await {
        Some(answer) => (answer.status, fields(&answer.head), without_id(answer.body)),
        None => {
            let got = String::from_utf8_lossy(client.got()).to_lowercase();
            let (head, body) = got.split_once("\r\n\r\n").unwrap_or_default();
            (0, fields(head), body.as_bytes().to_vec())
        }
    }
}

/// Calls both ways.
async fn assert_same(front: &Front, request: &str, is_express: bool) {
    // As if nothing were known of earlier answers.
    front.rig.offer(front.behind, |_| {});
    let (whole, expressed) = call(front, request.as_bytes(), true).await;
    let (pieces, by_hyper) = call(front, request.as_bytes(), false).await;
    assert_eq!(whole, pieces, "{request:?}");
    assert_eq!(whole.records.len(), 1, "{request:?}");
    assert_eq!(expressed, is_express, "{request:?}");
    assert!(!by_hyper, "{request:?}");
}

#[test]
fn requests_reach_the_upstream_alike() {
    with_front(&[], async |front| {
        let common = [
            "user-agent: ua/1\r\n",
            "User-Agent: UA/1\r\nAccept: */*\r\nACCEPT-LANGUAGE: fr\r\nx-empty:\r\n",
            "via: 1.1 before\r\nX-Twice: 1\r\nx-twice: 2\r\n",
            "connection: keep-alive\r\nx-padded:   a  b  \r\n",
            "cookie: a=b; c=d\r\ncontent-length: 0\r\nif-none-match: \"x\"\r\n",
            "x-forwarded-for: 1.2.3.4\r\nx-forwarded-host: evil\r\ntraceparent: bad\r\n",
            "x_request_id: 1\r\ntollgate.cost: 5\r\nX-Request-Id: theirs\r\nforwarded: x\r\n",
            "keep-alive: 5\r\nproxy-connection: x\r\nx-real-ip: 1\r\ntracestate: a=b\r\n",
        ];
        for fields in common {
            for line in [
                "GET /api/v1/echo",
                "GET /api/v1/echo/a%20b/?q=1&r=%2F&s",
                "DELETE /api/v1/echo/x",
            ] {
                assert_same(&front, &front.request(line, fields), true).await;
            }
        }
        for method in ["POST", "PUT", "PATCH"] {
            let line = format!("{method} /api/v1/echo/a");
            assert_same(&front, &front.request(&line, ""), true).await;
            let sized = front.request(&line, "Content-Length: 5\r\n") + "hello";
            assert_same(&front, &sized, true).await;
        }
        // Longer than what the route takes; and then than what is copied behind its head.
        let long = front.request("POST /api/v1/echo/a", "content-length: 9000\r\n");
        let long = long + &"x".repeat(9_000);
        assert_same(&front, &long, false).await;
        front.rig.offer(front.behind, |service| {
            for route in &mut service.routes {
                route.body_bytes_max = 9_000;
            }
        });
        let (whole, expressed) = call(&front, long.as_bytes(), true).await;
        let (pieces, _) = call(&front, long.as_bytes(), false).await;
        assert_eq!(whole, pieces);
        assert!(expressed && whole.answered.0 == 200);
        let uncommon = [
            ("OPTIONS", "", ""),
            ("GET", "te: trailers\r\n", ""),
            ("GET", "connection: x-secret\r\nx-secret: 1\r\n", ""),
            ("GET", "x-odd: caf\u{e9}\r\n", ""),
            (
                "POST",
                "transfer-encoding: chunked\r\n",
                "2\r\nok\r\n0\r\n\r\n",
            ),
            (
                "POST",
                "expect: 100-continue\r\ncontent-length: 2\r\n",
                "ok",
            ),
            ("GET", "origin: https://page.example\r\n", ""),
        ];
        for (method, fields, body) in uncommon {
            let request = front.request(&format!("{method} /api/v1/echo/a"), fields) + body;
            assert_same(&front, &request, false).await;
        }
        // With other methods, other routes or keys there is nothing to compare at the upstream.
        for line in ["GET /api/v1/echo/refused?x=1", "POST /api/v1/echo/a/b"] {
            assert_same(&front, &front.request(line, "accept: a\r\n"), true).await;
        }
    });
}

#[test]
fn strange_keys_are_refused_alike() {
    with_front(&[], async |front| {
        let edge = &front.rig.worker.edge;
        let own = front.rig.key.reveal().to_owned();
        let request = front.request("POST /api/v1/echo/a", "content-length: 2\r\n") + "ok";
        let refused = async |key: &str, status: u16| {
            let expressed = front.hall.expressed.get();
            let request = request.replace(&own, key);
            let whole = answered(&front, request.as_bytes(), true).await;
            assert!(front.hall.expressed.get() > expressed, "{key}");
            assert_eq!(whole, answered(&front, request.as_bytes(), false).await);
            assert_eq!(whole.0, status, "{key}");
        };
        refused("sk_live_nonsense", 401).await;
        let strange = NewKey::from_random(Environment::Production, &[9; KEY_RANDOM_BYTES]);
        let origin = Origin::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
        // An address that has looked up nothing but strange keys.
        let is_spent = || {
            let now = edge.clock.monotonic_nanos();
            edge.strangers.note_lookup_in_vain(origin, now);
            edge.strangers.refusal(origin, now).is_some()
        };
        assert!((0..1_000).any(|_| is_spent()), "there is a limit");
        refused(strange.reveal(), 429).await;
        refused("sk_live_nonsense", 429).await;
        let (seen, expressed) = call(&front, request.as_bytes(), true).await;
        assert!(expressed && seen.answered.0 == 200, "{:?}", seen.answered);
        assert_eq!(front.rig.records().len(), 1, "a strange key leaves none");
    });
}

pub(super) fn raw(pieces: &[&str], ends: bool) -> Raw {
    Raw {
        pieces: pieces.iter().map(|it| it.as_bytes().to_vec()).collect(),
        ends,
    }
}

/// Answers that need no hyper.
fn common() -> Vec<Raw> {
    vec![
        raw(&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"], false),
        raw(
            &["HTTP/1.1 200 OK\r\ncontent-length: 0\r\nDate: today\r\n\r\n"],
            false,
        ),
        raw(
            &["HTTP/1.1 404 Nope\r\nContent-Length: 1\r\nX-Twice: 1\r\nx-twice: 2\r\n\r\nx"],
            false,
        ),
        raw(
            &["HTTP/1.1 503 x\r\ncontent-length: 3\r\nretry-after: 1\r\nvia: 1.1 up\r\n\r\nabc"],
            false,
        ),
        raw(
            &[
                "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntollgate-cost: 9\r\nx-request-id: a\r\n\
               access-control-allow-origin: *\r\nkeep-alive: 3\r\nserver: s\r\n\r\nx",
            ],
            false,
        ),
        raw(
            &[
                "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n01234",
                "56789",
            ],
            false,
        ),
        raw(
            &["HTTP/1.1 202 \r\ncontent-length: 1\r\nconnection: keep-alive\r\n\r\nx"],
            false,
        ),
        raw(&["HTTP/1.1 204 No Content\r\n\r\n"], false),
        raw(&["HTTP/1.1 204 x\r\nContent-Length: 0\r\n\r\n"], false),
        raw(&["HTTP/1.1 304 Not Modified\r\netag: x\r\n\r\n"], false),
        raw(&["HTTP/1.1 304 x\r\ncontent-length: 5\r\n\r\n"], false),
    ]
}

/// Answers that do.
fn uncommon() -> Vec<Raw> {
    vec![
        raw(
            &["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"],
            false,
        ),
        raw(
            &["HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"],
            true,
        ),
        raw(&["HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok"], true),
        raw(&["HTTP/1.1 200 OK\r\n\r\nuntil the end"], true),
        raw(
            &["HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntollgate-usage: pages=3\r\n\r\nx"],
            false,
        ),
        raw(
            &["HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok"],
            false,
        ),
    ]
}

/// Answers that break off, or are none.
fn broken() -> Vec<Raw> {
    vec![
        raw(&["HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123"], true),
        raw(&["HTTP/1.1 200 OK\r\ncontent-le"], true),
        raw(
            &["HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"],
            true,
        ),
        raw(
            &["HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nok"],
            true,
        ),
        raw(
            &["HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nok"],
            true,
        ),
        raw(&["HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nok"], true),
        raw(&["nonsense\r\n\r\n"], true),
    ]
}

#[test]
fn answers_reach_the_client_alike() {
    with_front(&[], async |front| {
        let request = front.request("POST /api/v1/echo/raw", "content-length: 2\r\n") + "hi";
        let in_pieces = ["HTTP/1.1 200 OK\r\n", "content-length: 2\r\n\r\nok"];
        front.upstream.say(raw(&in_pieces, false));
        // A head in two pieces may be read as one.
        let (whole, _) = call(&front, request.as_bytes(), true).await;
        let (pieces, _) = call(&front, request.as_bytes(), false).await;
        assert_eq!(whole, pieces);
        let large = "x".repeat(300_000);
        let large = format!("HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n{large}");
        for raw in common().into_iter().chain([raw(&[&large], false)]) {
            front.upstream.say(raw);
            assert_same(&front, &request, true).await;
        }
        for raw in uncommon().into_iter().chain(broken()) {
            front.upstream.say(raw);
            assert_same(&front, &request, false).await;
            // Nobody got what belongs to another, and the address has not failed too often.
            front.assert_serves().await;
            front.upstream.take();
        }
    });
}

#[test]
fn what_is_sent_ahead_is_answered_in_order() {
    with_front(&[], async |front| {
        let mut all = String::new();
        for number in 0..20 {
            let line = format!("GET /api/v1/echo/{number}");
            all += &match number % 3 {
                0 => front.request(&line, ""),
                1 => front.request(&line, "content-length: 3\r\n") + "abc",
                _ => front.request(&line, "transfer-encoding: chunked\r\n") + "0\r\n\r\n",
            };
        }
        let mut client = front.connect().await;
        // In pieces of any length, so that ends of requests and of pieces fall apart.
        for piece in all.as_bytes().chunks(700) {
            client.send(piece).await;
            tokio::task::yield_now().await;
        }
        for number in 0..20 {
            let answer = client.answer().await.expect("an answer");
            assert_eq!(answer.status, 200, "{number}: {answer:?}");
        }
        let lines: Vec<String> = front
            .upstream
            .take()
            .into_iter()
            .map(|it| it.line)
            .collect();
        let wanted: Vec<String> = (0..20).map(|number| format!("GET /{number}")).collect();
        assert_eq!(lines, wanted);
        assert_eq!(front.rig.records().len(), 20);
    });
}

#[test]
fn an_upstream_whose_answers_have_no_length_keeps_its_connections() {
    with_front(&[], async |front| {
        let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        front.upstream.say(Raw {
            pieces: vec![answer.to_vec()],
            ends: false,
        });
        let request = front.request("GET /api/v1/echo/raw", "");
        for _ in 0..100 {
            let mut client = front.connect().await;
            client.send(request.as_bytes()).await;
            assert_eq!(client.answer().await.expect("an answer").status, 200);
        }
        let opened = front.upstream.opened();
        assert!(opened <= 2, "{opened} connections for 100 calls");
    });
}

#[test]
fn who_sends_on_and_on_is_answered_in_order_and_takes_a_few_buffers() {
    with_front(&[], async |front| {
        const CALLS: usize = 300;
        let padding = format!("x-padding: {}\r\n", "x".repeat(700));
        let many = front.request("GET /api/v1/echo/a", &padding).repeat(CALLS);
        let mut client = front.connect().await;
        let (mut reader, mut writer) = client.stream.split();
        let send = async {
            let sent = tokio::io::AsyncWriteExt::write_all(&mut writer, many.as_bytes()).await;
            sent.expect("sent");
        };
        // How much is held, the gateway asserts itself.
        let read = async {
            let (mut answers, mut got) = (0, Vec::new());
            while answers < CALLS {
                let read = tokio::io::AsyncReadExt::read_buf(&mut reader, &mut got).await;
                assert!(read.expect("read") > 0, "{answers}");
                front.refresh();
                while let Some(end) = memchr::memmem::find(&got, b"\r\n\r\nok") {
                    got.drain(..end + 6);
                    answers += 1;
                }
            }
        };
        tokio::join!(send, read);
        assert_eq!(front.upstream.take().len(), CALLS);
        assert_eq!(front.hall.expressed.get(), CALLS as u64);
    });
}

#[test]
fn a_long_answer_passes_to_a_slow_reader_in_constant_memory() {
    with_front(&[], async |front| {
        const LENGTH: usize = 64 << 20;
        let mut client = front.connect().await;
        let request = front.request("GET /api/v1/echo/big", "");
        let before = rig::resident();
        assert!(before > 0, "memory can be measured");
        client.send(request.as_bytes()).await;
        let (mut left, mut most) = (LENGTH, 0_usize);
        let mut piece = vec![0; 512 << 10];
        while left > 0 {
            // All buffers on the way fill up: whoever keeps more than his share is seen.
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            most = most.max(rig::resident());
            let read = tokio::io::AsyncReadExt::read(&mut client.stream, &mut piece).await;
            let read = read.expect("read");
            assert!(read > 0, "{left} bytes are missing");
            // The head comes with the first of them, and is as good as some of the body.
            left = left.saturating_sub(read);
        }
        let grown = most.saturating_sub(before);
        assert!(grown < 16 << 20, "{grown} bytes");
        front.until(|front| front.hall.expressed.get() == 1).await;
    });
}

//! Connections that change their protocol, through the whole edge.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong about its own data may panic"
)]

use std::{sync::atomic::Ordering, time::Duration};

use proto::events::v1::{Disposition, Record, RecordKind};
use runtime::Host;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::LocalSet,
};

use super::rig::{self, COST, GRANTED, MAX_COST, Rig};
use crate::{keyring, meter::GOES_ON_PERIOD, recovery};

const SWITCHED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                          Upgrade: WebSocket\r\n\
                          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
                          x-request-id: theirs\r\n\r\n";
const BOUND: Duration = Duration::from_secs(10);

/// Both ends of a tunnel.
struct Tunnel {
    client: TcpStream,
    upstream: TcpStream,
    /// What the client was told.
    head: String,
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a head"));
    }
    String::from_utf8(head).expect("text")
}

/// Opens a tunnel. The client does not wait for the answer before it sends what follows.
async fn open(rig: &Rig, path: &str, early: &[u8]) -> Tunnel {
    keyring::tests::inform(&rig.worker.edge.keyring);
    let client = async {
        let mut client = TcpStream::connect(rig.address()).await.expect("connected");
        let head = format!(
            "GET /api/v1/echo/{path} HTTP/1.1\r\nhost: edge\r\nx-api-key: {}\r\n\
             connection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            rig.key.reveal()
        );
        let request = [head.as_bytes(), early].concat();
        client.write_all(&request).await.expect("sent");
        let head = read_head(&mut client).await;
        (client, head)
    };
    let upstream = async {
        let mut upstream = rig.accept().await;
        let head = read_head(&mut upstream).await.to_lowercase();
        for field in [
            "\r\nconnection: upgrade\r\n",
            "\r\nupgrade: websocket\r\n",
            "\r\nsec-websocket-key: dghlihnhbxbszsbub25jzq==\r\n",
        ] {
            assert!(head.contains(field), "{field}: {head}");
        }
        assert!(!head.contains(rig.key.reveal()), "the key stays here");
        let more = tokio::time::timeout(Duration::from_millis(50), upstream.read_u8()).await;
        assert!(more.is_err(), "nothing leaves before the answer");
        upstream.write_all(SWITCHED).await.expect("sent");
        upstream
    };
    let all = async { tokio::join!(client, rig.serve(), upstream) };
    let ((client, head), (), upstream) = tokio::time::timeout(BOUND, all).await.expect("in time");
    Tunnel {
        client,
        upstream,
        head,
    }
}

async fn read_all(stream: &mut TcpStream) -> String {
    let mut got = String::new();
    let read = tokio::time::timeout(BOUND, stream.read_to_string(&mut got)).await;
    read.expect("in time").expect("an end");
    got
}

/// Until the tunnel has left its record.
async fn ended(rig: &Rig) {
    rig.worker.beyond.close();
    let ended = tokio::time::timeout(BOUND, rig.worker.beyond.wait()).await;
    ended.expect("ended in time");
    rig.worker.beyond.reopen();
}

fn kinds(records: &[Record]) -> Vec<RecordKind> {
    records.iter().map(Record::kind).collect()
}

/// What a successor would charge, had this process died now.
async fn due(host: &Host, rig: &Rig) -> Vec<i64> {
    let read = recovery::totals(host, rig.journal()).await;
    let (mut totals, opened) = read.expect("readable");
    let ended = opened.end(&mut totals, &[], 1).expect("ended");
    ended.iter().map(|record| record.cost).collect()
}

/// The one record of a tunnel that cost so much; nothing is held any more.
fn check(rig: &Rig, cost: i64, disposition: Disposition, code: &str) -> Record {
    let records = rig.records();
    assert_eq!(kinds(&records), [RecordKind::Open, RecordKind::Call]);
    let record = records.into_iter().next_back().expect("counted");
    let call = record.call.as_ref().expect("a call");
    assert_eq!((call.status, record.cost, record.cum), (101, cost, cost));
    assert_eq!((call.disposition(), &*call.code), (disposition, code));
    let uses: Vec<i64> = record.permits.iter().map(|permit| permit.cum).collect();
    assert_eq!(uses, [1, 1], "a permit of each quota");
    rig.lease.drain();
    assert!(rig.lease.is_spent());
    assert_eq!(rig.lease.give_back(0), GRANTED - cost);
    assert_eq!(rig.worker.edge.in_flight.load(Ordering::SeqCst), 0);
    record
}

#[tokio::test]
async fn a_tunnel_carries_both_ways_ends_each_way_and_is_charged_once() {
    let (host, config) = rig::host(&[]).await;
    let all = LocalSet::new();
    let all = all.run_until(async {
        let rig = Rig::new(&host, &config).await;
        let mut tunnel = open(&rig, "chat", b"early").await;
        let head = tunnel.head.to_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        for field in [
            "\r\nconnection: upgrade\r\n",
            "\r\nupgrade: websocket\r\n",
            "\r\nsec-websocket-accept: ",
            "\r\ntollgate-cost: 3\r\n",
            "\r\nx-request-id: req_",
        ] {
            assert!(head.contains(field), "{field}: {head}");
        }
        assert!(!head.contains("theirs"), "{head}");
        assert_eq!(kinds(&rig.records()), [RecordKind::Open]);
        assert_eq!(due(&host, &rig).await, [COST], "had it died now");
        assert_eq!(rig.worker.edge.in_flight.load(Ordering::SeqCst), 1);

        let mut early = [0; 5];
        let came = tunnel.upstream.read_exact(&mut early).await;
        came.expect("what was sent before the answer");
        assert_eq!(&early, b"early");
        tunnel.client.write_all(b" and late").await.expect("sent");
        tunnel
            .client
            .shutdown()
            .await
            .expect("one way is at its end");
        assert_eq!(read_all(&mut tunnel.upstream).await, " and late");
        tunnel.upstream.write_all(b"good bye").await.expect("sent");
        drop(tunnel.upstream);
        assert_eq!(read_all(&mut tunnel.client).await, "good bye");
        ended(&rig).await;
        let record = check(&rig, COST, Disposition::Completed, "");
        let call = record.call.expect("a call");
        assert_eq!((call.request_bytes, call.response_bytes), (14, 8));
    });
    all.await;
}

#[tokio::test]
async fn a_tunnel_is_one_of_the_connections_that_its_upstream_may_have() {
    let variables = [("TOLLGATE_GATEWAY_UPSTREAM_WAIT_MILLIS", "50")];
    let (host, config) = rig::host(&variables).await;
    let all = LocalSet::new();
    let all = all.run_until(async {
        let rig = Rig::new(&host, &config).await;
        let behind = rig.behind();
        rig.offer(behind, |it| it.connections_max = 1);
        let tunnel = open(&rig, "chat", b"").await;
        let refused = async {
            let mut client = TcpStream::connect(rig.address()).await.expect("connected");
            let key = rig.key.reveal();
            let call = format!("GET /api/v1/echo/a HTTP/1.1\r\nhost: edge\r\nx-api-key: {key}\r\n");
            let call = call + "connection: close\r\n\r\n";
            client.write_all(call.as_bytes()).await.expect("sent");
            read_all(&mut client).await
        };
        let (told, ()) = tokio::join!(refused, rig.serve());
        assert!(told.starts_with("HTTP/1.1 503 "), "{told}");
        assert!(told.contains("\"upstream_busy\""), "{told}");
        drop(tunnel);
        ended(&rig).await;
        // Its place is free again.
        let tunnel = open(&rig, "chat", b"").await;
        drop(tunnel);
        ended(&rig).await;
    });
    all.await;
}

#[tokio::test]
async fn a_tunnel_is_cut_with_its_key_after_silence_and_with_its_gateway() {
    let idle = [("TOLLGATE_GATEWAY_TUNNEL_IDLE_SECONDS", "2")];
    let (host, config) = rig::host(&idle).await;
    let all = LocalSet::new();
    let all = all.run_until(async {
        let rig = Rig::new(&host, &config).await;
        let mut tunnel = open(&rig, "chat", b"").await;
        assert_eq!(read_all(&mut tunnel.client).await, "", "after silence");
        ended(&rig).await;
        check(&rig, COST, Disposition::Completed, "");

        let rig = Rig::new(&host, &config).await;
        let mut tunnel = open(&rig, "chat", b"").await;
        let mut revoked = keyring::tests::entry(&["s:r"]);
        revoked.revoked = true;
        keyring::tests::know(&rig.worker.edge.keyring, revoked);
        assert_eq!(read_all(&mut tunnel.client).await, "", "with its key");
        ended(&rig).await;
        check(&rig, COST, Disposition::GatewayAborted, "key_revoked");
    });
    all.await;

    let rig = Rig::new(&host, &config).await;
    let cut = LocalSet::new();
    let _tunnel = cut.run_until(open(&rig, "chat", b"")).await;
    rig.worker.edge.is_cut.store(true, Ordering::Release);
    drop(cut);
    check(&rig, COST, Disposition::GatewayAborted, "");
}

/// The route charges 2 credits and one for ten tokens, a token is 4 bytes where nobody counts them,
/// and 50 are held.
#[tokio::test]
async fn a_priced_tunnel_costs_what_passed_and_never_more_than_was_held() {
    let (host, config) = rig::host(&[]).await;
    let all = LocalSet::new();
    let all = all.run_until(async {
        for (bytes, cost) in [(0, 2), (41, 2 + 2), (100_000, MAX_COST)] {
            let rig = Rig::new(&host, &config).await;
            let mut tunnel = open(&rig, "priced/chat", b"").await;
            let told = tunnel.head.contains("tollgate-cost");
            assert!(!told, "nobody knows yet: {}", tunnel.head);
            let text = "x".repeat(bytes);
            let sent = async {
                tunnel
                    .upstream
                    .write_all(text.as_bytes())
                    .await
                    .expect("sent");
                drop(tunnel.upstream);
            };
            let (got, ()) = tokio::join!(read_all(&mut tunnel.client), sent);
            assert_eq!(got, text);
            let last = due(&host, &rig).await;
            assert!(last.iter().all(|due| (2..=cost).contains(due)), "{last:?}");
            drop(tunnel.client);
            ended(&rig).await;
            let record = rig.records().into_iter().next_back().expect("one");
            let call = record.call.expect("a call");
            assert_eq!((record.cost, call.estimated), (cost, true));
        }
    });
    all.await;
}

/// Silent or not, a tunnel does not keep the journal behind its note.
#[tokio::test]
async fn a_tunnel_through_which_nothing_passes_is_noted_again() {
    let (host, config) = rig::host(&[]).await;
    let all = LocalSet::new();
    let all = all.run_until(async {
        let rig = Rig::new(&host, &config).await;
        let _tunnel = open(&rig, "chat", b"").await;
        let noted = async {
            while kinds(&rig.records()) != [RecordKind::Open, RecordKind::Progress] {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let noted = tokio::time::timeout(4 * GOES_ON_PERIOD, noted).await;
        assert!(noted.is_ok(), "{:?}", rig.records());
    });
    all.await;
}

/// A slow reader holds the writer up: what the gateway keeps is bounded.
#[tokio::test]
async fn a_tunnel_takes_no_more_than_is_taken_from_it() {
    let (host, config) = rig::host(&[]).await;
    let all = LocalSet::new();
    let all = all.run_until(async {
        let rig = Rig::new(&host, &config).await;
        let mut tunnel = open(&rig, "chat", b"").await;
        let piece = vec![7; 64 * 1024];
        let mut sent = 0;
        // Nobody reads: the buffers of the kernel fill, and then nothing goes any more.
        while let Ok(written) =
            tokio::time::timeout(Duration::from_millis(500), tunnel.client.write(&piece)).await
        {
            sent += written.expect("a connection");
            assert!(sent < 64 * 1024 * 1024, "the gateway keeps it all");
        }
        drop(tunnel);
        ended(&rig).await;
        let record = rig.records().into_iter().next_back().expect("one");
        let call = record.call.expect("a call");
        assert!(call.request_bytes < u64::try_from(sent).expect("small"));
        assert_eq!(record.cost, COST);
    });
    all.await;
}

struct Case {
    name: &'static str,
    fields: &'static str,
    answer: &'static [&'static [u8]],
    status: u16,
    cost: i64,
    disposition: Disposition,
}

const OK: &[&[u8]] = &[b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"];
const WEBSOCKET: &str = "connection: upgrade, close\r\nupgrade: websocket\r\n";

const CASES: &[Case] = &[
    Case {
        name: "the upstream does not want to",
        fields: WEBSOCKET,
        answer: &[b"HTTP/1.1 426 Upgrade Required\r\nupgrade: y\r\ncontent-length: 0\r\n\r\n"],
        status: 426,
        cost: 0,
        disposition: Disposition::Completed,
    },
    Case {
        name: "the upstream answers in HTTP",
        fields: WEBSOCKET,
        answer: OK,
        status: 200,
        cost: COST,
        disposition: Disposition::Completed,
    },
    Case {
        name: "the upstream changes to something else",
        fields: WEBSOCKET,
        answer: &[b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nHTTP/1.1"],
        status: 502,
        cost: 0,
        disposition: Disposition::UpstreamFailed,
    },
    Case {
        name: "the upstream changes to nothing",
        fields: WEBSOCKET,
        answer: &[b"HTTP/1.1 101 Switching\r\n\r\nHTTP/1.1"],
        status: 502,
        cost: 0,
        disposition: Disposition::UpstreamFailed,
    },
    Case {
        name: "HTTP inside HTTP",
        fields: "connection: upgrade, http2-settings, close\r\nupgrade: h2c\r\n\
                 http2-settings: x\r\n",
        answer: OK,
        status: 200,
        cost: COST,
        disposition: Disposition::Completed,
    },
    Case {
        name: "an upgrade that the connection does not name",
        fields: "connection: close\r\nupgrade: websocket\r\n",
        answer: OK,
        status: 200,
        cost: COST,
        disposition: Disposition::Completed,
    },
    Case {
        name: "a body",
        fields: "connection: upgrade, close\r\nupgrade: websocket\r\ncontent-length: 2\r\n",
        answer: &[],
        status: 400,
        cost: 0,
        disposition: Disposition::Refused,
    },
    Case {
        name: "a body of unknown length",
        fields: "connection: upgrade, close\r\nupgrade: websocket\r\n\
                 transfer-encoding: chunked\r\n",
        answer: &[],
        status: 400,
        cost: 0,
        disposition: Disposition::Refused,
    },
];

#[tokio::test]
async fn whatever_is_no_change_of_protocol_is_an_ordinary_call() {
    let (host, config) = rig::host(&[]).await;
    let all = LocalSet::new();
    let all = all.run_until(async {
        for case in CASES {
            let rig = Rig::new(&host, &config).await;
            let line = "GET /api/v1/echo/x HTTP/1.1";
            let called = rig.call(line, case.fields, case.answer);
            let got = tokio::time::timeout(BOUND, called).await;
            let (got, name) = (got.expect(case.name), case.name);
            assert!(
                got.starts_with(&format!("HTTP/1.1 {} ", case.status)),
                "{name}: {got}"
            );
            let records = rig.records();
            assert_eq!(kinds(&records), [RecordKind::Call], "{name}");
            let record = records.first().expect("counted");
            let call = record.call.as_ref().expect("a call");
            assert_eq!(call.disposition(), case.disposition, "{name}");
            assert_eq!(
                (record.cost, rig.lease.cum()),
                (case.cost, case.cost),
                "{name}"
            );
            rig.lease.drain();
            assert!(rig.lease.is_spent(), "{name}: nothing is held");
        }
    });
    all.await;
}

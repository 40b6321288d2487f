//! What stands on the wire, on both sides of the edge.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong about its own data may panic"
)]

use std::time::Duration;

use proto::events::v1::Disposition;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::LocalSet,
};

use super::rig::{self, COST, Rig};
use crate::keyring;

const BOUND: Duration = Duration::from_secs(10);
/// More than the buffers of all sockets on the way can hold.
const MANY: usize = 64 << 20;

async fn connect(rig: &Rig) -> TcpStream {
    keyring::tests::inform(&rig.worker.edge.keyring);
    TcpStream::connect(rig.address()).await.expect("connected")
}

/// A request head with the key.
fn head(rig: &Rig, line: &str, fields: &str) -> String {
    let key = rig.key.reveal();
    format!("{line}\r\nhost: edge\r\nx-api-key: {key}\r\n{fields}\r\n")
}

async fn send(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.expect("sent");
}

/// Reads on until this is the end of what came.
async fn read_to(stream: &mut TcpStream, end: &str) -> String {
    let mut got = Vec::new();
    let read = async {
        while !got.ends_with(end.as_bytes()) {
            assert!(
                stream.read_buf(&mut got).await.expect("read") > 0,
                "an early end"
            );
        }
    };
    let came = tokio::time::timeout(BOUND, read).await.is_ok();
    let got = String::from_utf8_lossy(&got).into_owned();
    assert!(came, "no {end:?} in {got:?}");
    got
}

async fn read_all(stream: &mut TcpStream) -> String {
    let mut got = Vec::new();
    let read = tokio::time::timeout(BOUND, stream.read_to_end(&mut got)).await;
    read.expect("in time").expect("an end");
    String::from_utf8_lossy(&got).into_owned()
}

/// Client and upstream talk while the edge serves their connection.
async fn with<T>(rig: &Rig, talk: impl Future<Output = T>) -> T {
    let both = async { tokio::join!(rig.serve(), talk).1 };
    tokio::time::timeout(BOUND * 6, both)
        .await
        .expect("in time")
}

/// How many calls there were, and what the last of them cost.
fn charged(rig: &Rig) -> (usize, i64) {
    let records = rig.records();
    (
        records.len(),
        records.last().map_or(0, |record| record.cost),
    )
}

#[tokio::test]
async fn a_body_is_asked_for_only_when_the_call_is_admitted() {
    let (host, config) = rig::host(&[]).await;
    let all = LocalSet::new();
    let all = all.run_until(async {
        let line = "POST /api/v1/echo/x HTTP/1.1";
        for (key, length, status) in [("sk_live_no", 5, 401), ("", 101, 413)] {
            let rig = Rig::new(&host, &config).await;
            let got = with(&rig, async {
                let mut client = connect(&rig).await;
                let key = if key.is_empty() {
                    rig.key.reveal()
                } else {
                    key
                };
                let asked = format!(
                    "{line}\r\nhost: edge\r\nx-api-key: {key}\r\nexpect: 100-continue\r\n\
                     content-length: {length}\r\n\r\n"
                );
                send(&mut client, &asked).await;
                read_all(&mut client).await
            });
            let got = got.await;
            assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{got}");
        }
        let rig = Rig::new(&host, &config).await;
        let told = with(&rig, async {
            let mut client = connect(&rig).await;
            let fields = "expect: 100-continue\r\ncontent-length: 5\r\nconnection: close\r\n";
            send(&mut client, &head(&rig, line, fields)).await;
            let upstream = async {
                let mut upstream = rig.accept().await;
                read_to(&mut upstream, "\r\n\r\nhello").await;
                let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                send(&mut upstream, answer).await;
            };
            let client = async {
                let told = read_to(&mut client, "\r\n\r\n").await;
                send(&mut client, "hello").await;
                assert!(read_all(&mut client).await.ends_with("\r\n\r\nok"));
                told
            };
            tokio::join!(client, upstream).0
        });
        assert_eq!(told.await, "HTTP/1.1 100 Continue\r\n\r\n");
        assert_eq!(charged(&rig), (1, COST));
    });
    all.await;
}

/// Heads of the answers to one request each, with what comes before and behind them.
#[tokio::test]
async fn interim_answers_end_here_and_heads_without_bodies_keep_their_fields() {
    let (host, config) = rig::host(&[]).await;
    let all = LocalSet::new();
    let all = all.run_until(async {
        let interim: &[&[u8]] = &[
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        ];
        let unchanged: &[&[u8]] =
            &[b"HTTP/1.1 304 Not Modified\r\netag: \"1\"\r\ncontent-length: 5\r\n\r\n"];
        let long: &[&[u8]] = &[b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n"];
        for (method, answer, begins, has, ends, cost) in [
            (
                "GET",
                interim,
                "HTTP/1.1 200 ",
                "content-length: 2",
                "\r\n\r\nok",
                COST,
            ),
            (
                "GET",
                unchanged,
                "HTTP/1.1 304 ",
                "etag: \"1\"",
                "\r\n\r\n",
                0,
            ),
            (
                "HEAD",
                long,
                "HTTP/1.1 200 ",
                "content-length: 1073741824",
                "\r\n\r\n",
                COST,
            ),
        ] {
            let rig = Rig::new(&host, &config).await;
            let line = format!("{method} /api/v1/echo/x HTTP/1.1");
            let got = rig.call(&line, "connection: close\r\n", answer).await;
            assert!(got.starts_with(begins) && got.ends_with(ends), "{got}");
            assert!(got.to_lowercase().contains(has), "{got}");
            assert!(!got.contains("link:"), "{got}");
            assert_eq!(charged(&rig), (1, cost), "{got}");
        }
    });
    all.await;
}

#[tokio::test]
async fn an_upstream_sees_who_called_and_nothing_of_the_connection() {
    let (host, config) = rig::host(&[]).await;
    let all = LocalSet::new();
    let all = all.run_until(async {
        for (version, via) in [("1.1", "1.1 tollgate"), ("1.0", "1.0 tollgate")] {
            let rig = Rig::new(&host, &config).await;
            let seen = with(&rig, async {
                let mut client = connect(&rig).await;
                let line = format!("GET /api/v1/echo/a/b?c=%20d HTTP/{version}");
                let fields = "connection: close, x-secret\r\nx-secret: 1\r\nkeep-alive: 5\r\n\
                              proxy-connection: x\r\nvia: 1.1 cdn\r\nforwarded: for=6.6.6.6\r\n\
                              x-forwarded-for: 6.6.6.6\r\nx-forwarded-proto: https\r\n\
                              x-real-ip: 6.6.6.6\r\nx-kept: yes\r\nte: gzip\r\n";
                send(&mut client, &head(&rig, &line, fields)).await;
                let mut upstream = rig.accept().await;
                let seen = read_to(&mut upstream, "\r\n\r\n").await.to_lowercase();
                send(
                    &mut upstream,
                    "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
                )
                .await;
                let got = read_all(&mut client).await.to_lowercase();
                assert!(got.contains("\r\nvia: 1.1 tollgate\r\n"), "{got}");
                seen
            });
            let seen = seen.await;
            assert!(seen.starts_with("get /a/b?c=%20d http/1.1\r\n"), "{seen}");
            for field in [
                "via: 1.1 cdn",
                &format!("via: {via}"),
                "x-forwarded-for: 127.0.0.1",
                "x-forwarded-proto: http",
                "x-forwarded-host: edge",
                "x-kept: yes",
            ] {
                assert!(
                    seen.contains(&format!("\r\n{field}\r\n")),
                    "{field}: {seen}"
                );
            }
            for gone in [
                "x-secret",
                "keep-alive",
                "proxy-connection",
                "6.6.6.6",
                "te:",
            ] {
                assert!(!seen.contains(gone), "{gone}: {seen}");
            }
        }
    });
    all.await;
}

#[tokio::test]
async fn what_an_upstream_sends_leaves_at_once_and_a_body_may_follow_its_answer() {
    let (host, config) = rig::host(&[]).await;
    let all = LocalSet::new();
    let all = all.run_until(async {
        // Events, each seen before the next one is made.
        let rig = Rig::new(&host, &config).await;
        with(&rig, async {
            let mut client = connect(&rig).await;
            let line = "GET /api/v1/echo/events HTTP/1.1";
            send(&mut client, &head(&rig, line, "connection: close\r\n")).await;
            let mut upstream = rig.accept().await;
            read_to(&mut upstream, "\r\n\r\n").await;
            let fields = "content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n";
            send(&mut upstream, &format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).await;
            read_to(&mut client, "\r\n\r\n").await;
            for number in 0..5 {
                let event = format!("data: {number}\n\n");
                send(&mut upstream, &format!("{:x}\r\n{event}\r\n", event.len())).await;
                read_to(&mut client, &format!("{event}\r\n")).await;
            }
            send(&mut upstream, "0\r\n\r\n").await;
            assert_eq!(read_all(&mut client).await, "0\r\n\r\n");
        })
        .await;
        assert_eq!(charged(&rig), (1, COST));

        // Both at once: each part of the request is answered before the next one is sent.
        let rig = Rig::new(&host, &config).await;
        with(&rig, async {
            let mut client = connect(&rig).await;
            let line = "POST /api/v1/echo/x HTTP/1.1";
            let fields = "transfer-encoding: chunked\r\ntrailer: x-sum\r\nconnection: close\r\n";
            send(&mut client, &head(&rig, line, fields)).await;
            send(&mut client, "1\r\na\r\n").await;
            let mut upstream = rig.accept().await;
            read_to(&mut upstream, "1\r\na\r\n").await;
            let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nA\r\n";
            send(&mut upstream, answer).await;
            read_to(&mut client, "1\r\nA\r\n").await;
            send(&mut client, "1\r\nb\r\n").await;
            read_to(&mut upstream, "1\r\nb\r\n").await;
            send(&mut upstream, "1\r\nB\r\n").await;
            read_to(&mut client, "1\r\nB\r\n").await;
            send(&mut client, "0\r\nx-sum: 2\r\nauthorization: no\r\n\r\n").await;
            let end = read_to(&mut upstream, "\r\n\r\n").await;
            assert_eq!(end, "0\r\nx-sum: 2\r\n\r\n", "and no credentials");
            send(&mut upstream, "0\r\n\r\n").await;
            assert_eq!(read_all(&mut client).await, "0\r\n\r\n");
        })
        .await;
        assert_eq!(charged(&rig), (1, COST));
    });
    all.await;
}

/// Sends until nobody takes any more for a while.
async fn fill(stream: &mut TcpStream) -> usize {
    let piece = vec![b'x'; 64 << 10];
    let mut sent = 0;
    let wait = Duration::from_millis(500);
    while let Ok(written) = tokio::time::timeout(wait, stream.write(&piece)).await {
        sent += written.expect("a connection");
        assert!(sent < MANY, "the edge keeps it all");
    }
    sent
}

/// Reads a head and nothing of its body.
async fn skip_head(stream: &mut TcpStream) {
    let mut last = [0; 4];
    while &last != b"\r\n\r\n" {
        last.rotate_left(1);
        last[3] = stream.read_u8().await.expect("a head");
    }
}

/// Reads so much, and counts it only.
async fn skip(stream: &mut TcpStream, mut bytes: usize) {
    let mut piece = vec![0; 256 << 10];
    while bytes > 0 {
        let most = bytes.min(piece.len());
        let space = piece.get_mut(..most).expect("as long");
        let read = stream.read(space).await.expect("read");
        assert!(read > 0, "{bytes} are missing");
        bytes -= read;
    }
}

async fn pour(stream: &mut TcpStream, mut bytes: usize) {
    let piece = vec![b'x'; 256 << 10];
    while bytes > 0 {
        let most = bytes.min(piece.len());
        let part = piece.get(..most).expect("as long");
        stream.write_all(part).await.expect("sent");
        bytes -= most;
    }
}

#[tokio::test]
async fn a_slow_reader_slows_the_writer_down_both_ways() {
    let (host, config) = rig::host(&[]).await;
    let all = LocalSet::new();
    let all = all.run_until(async {
        let length = format!("content-length: {MANY}\r\n");
        let rig = Rig::new(&host, &config).await;
        with(&rig, async {
            let mut client = connect(&rig).await;
            let line = "GET /api/v1/echo/big HTTP/1.1";
            send(&mut client, &head(&rig, line, "connection: close\r\n")).await;
            let mut upstream = rig.accept().await;
            read_to(&mut upstream, "\r\n\r\n").await;
            send(&mut upstream, &format!("HTTP/1.1 200 OK\r\n{length}\r\n")).await;
            let sent = fill(&mut upstream).await;
            let rest = pour(&mut upstream, MANY - sent);
            let all = async {
                skip_head(&mut client).await;
                skip(&mut client, MANY).await;
            };
            tokio::join!(rest, all);
        })
        .await;
        assert_eq!(charged(&rig), (1, COST));

        let rig = Rig::new(&host, &config).await;
        with(&rig, async {
            let mut client = connect(&rig).await;
            let line = "POST /api/v1/echo/big HTTP/1.1";
            let fields = format!("{length}connection: close\r\n");
            send(&mut client, &head(&rig, line, &fields)).await;
            let mut upstream = rig.accept().await;
            let sent = fill(&mut client).await;
            let rest = pour(&mut client, MANY - sent);
            let all = async {
                skip_head(&mut upstream).await;
                skip(&mut upstream, MANY).await;
                send(
                    &mut upstream,
                    "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
                )
                .await;
            };
            tokio::join!(rest, all);
            assert!(read_all(&mut client).await.starts_with("HTTP/1.1 200 "));
        })
        .await;
        let records = rig.records();
        let call = records
            .last()
            .and_then(|record| record.call.as_ref())
            .expect("a call");
        assert_eq!(call.disposition(), Disposition::Completed);
        assert_eq!(call.request_bytes, u64::try_from(MANY).expect("small"));
    });
    all.await;
}

/// Reads so much, each time when nobody else has anything to do, and counts it only. Returns the
/// most that this process had in memory meanwhile.
async fn sip(stream: &mut TcpStream, bytes: usize) -> usize {
    const SIP: usize = 512 << 10;
    let (mut left, mut most) = (bytes, 0);
    while left > 0 {
        // All buffers on the way fill up: whoever keeps more than his share is seen.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        most = most.max(rig::resident());
        let now = left.min(SIP);
        skip(stream, now).await;
        left -= now;
    }
    most
}

#[tokio::test]
async fn large_bodies_pass_each_way_in_constant_memory() {
    pass_each_way(MANY).await;
}

#[tokio::test]
#[ignore = "a GiB each way; run by hand"]
async fn a_gib_passes_each_way_in_constant_memory() {
    pass_each_way(1 << 30).await;
}

/// A body of so many bytes and an answer as long, each to somebody who takes his time.
async fn pass_each_way(bytes: usize) {
    /// Far less than there is to keep, and more than buffers and the tasks of this test have.
    const GROWTH_BYTES_MAX: usize = 16 << 20;
    let (host, config) = rig::host(&[]).await;
    let all = LocalSet::new();
    let all = all.run_until(async {
        let rig = Rig::new(&host, &config).await;
        let before = rig::resident();
        assert!(before > 0, "memory can be measured");
        let most = with(&rig, async {
            let mut client = connect(&rig).await;
            let line = "POST /api/v1/echo/big HTTP/1.1";
            let fields = format!("content-length: {bytes}\r\nconnection: close\r\n");
            send(&mut client, &head(&rig, line, &fields)).await;
            let mut upstream = rig.accept().await;
            let upstream = async {
                skip_head(&mut upstream).await;
                let most = sip(&mut upstream, bytes).await;
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n");
                send(&mut upstream, &head).await;
                pour(&mut upstream, bytes).await;
                most
            };
            let client = async {
                pour(&mut client, bytes).await;
                skip_head(&mut client).await;
                sip(&mut client, bytes).await
            };
            let (there, back) = tokio::join!(client, upstream);
            there.max(back)
        })
        .await;
        let grown = most.saturating_sub(before);
        println!("{} KiB more for {} MiB each way", grown >> 10, bytes >> 20);
        assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes");
        assert_eq!(charged(&rig), (1, COST));
    });
    all.await;
}

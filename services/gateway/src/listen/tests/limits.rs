//! What is too much, too many or too slow, over HTTP/1.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Front, upstream::Left, with_front};
use crate::listen::roll::Phase;

#[test]
fn a_head_that_is_too_large_is_refused_with_a_problem() {
    let line = "GET /api/v1/echo/a";
    let cases = [
        (
            format!("{line}?{}", "x".repeat(8_200)),
            String::new(),
            414,
            "target_too_long",
        ),
        (
            format!("{line}?{}", "x".repeat(40_000)),
            String::new(),
            414,
            "target_too_long",
        ),
        (
            line.to_owned(),
            format!("x: {}\r\n", "y".repeat(16_384)),
            431,
            "headers_too_large",
        ),
        (
            line.to_owned(),
            format!("x: {}\r\n", "y".repeat(400_000)),
            431,
            "headers_too_large",
        ),
        (
            line.to_owned(),
            "x: y\r\n".repeat(99),
            431,
            "headers_too_large",
        ),
        (
            line.to_owned(),
            "x: y\r\n".repeat(5_000),
            431,
            "headers_too_large",
        ),
    ];
    with_front(&[], async |front| {
        for (line, fields, status, code) in &cases {
            let mut client = front.connect().await;
            let request = front.request(line, fields);
            // The gateway may have had enough before the end.
            drop(client.stream.write_all(request.as_bytes()).await);
            let answer = client.answer().await.expect("an answer");
            answer.assert_problem(*status, code);
            assert!(
                answer.head.contains("\r\nconnection: close\r\n"),
                "{answer:?}"
            );
            assert_eq!(client.answer().await, None);
        }
        let allowed = front.request(line, &"x: y\r\n".repeat(98));
        let mut client = front.connect().await;
        client.send(allowed.as_bytes()).await;
        assert_eq!(client.answer().await.expect("an answer").status, 200);
        assert_eq!(front.upstream.take().len(), 1, "only that arrived");
    });
}

#[test]
fn who_is_too_slow_is_told_or_cut_and_frees_the_upstream() {
    let variables = [
        ("TOLLGATE_GATEWAY_HEAD_SECONDS", "1"),
        ("TOLLGATE_GATEWAY_STALL_SECONDS", "1"),
        ("TOLLGATE_GATEWAY_CLIENT_BYTES_PER_SECOND_MIN", "1000"),
    ];
    with_front(&variables, async |front| {
        // Nothing at all.
        let mut silent = front.connect().await;
        // A head that never ends, of a first and of a second request.
        let mut dripping = front.connect().await;
        dripping
            .send(b"GET /api/v1/echo/a HTTP/1.1\r\nhost: ")
            .await;
        let mut second = front.connect().await;
        second
            .send(front.request("GET /api/v1/echo/a", "").as_bytes())
            .await;
        assert_eq!(second.answer().await.expect("an answer").status, 200);
        second.send(b"GET /api/v1/echo/a HT").await;
        // Bodies that never end: one says how long it is, one could end behind any chunk.
        let mut sized = front.connect().await;
        let request = front.request("POST /api/v1/echo/sized", "content-length: 50\r\n");
        sized.send(request.as_bytes()).await;
        sized.send(b"a few bytes").await;
        let mut chunked = front.connect().await;
        let request = front.request(
            "POST /api/v1/echo/chunked",
            "transfer-encoding: chunked\r\n",
        );
        chunked.send(request.as_bytes()).await;
        chunked.send(b"b\r\na few bytes\r\n").await;
        // An answer that is never read.
        let mut reading = front.connect().await;
        reading
            .send(front.request("GET /api/v1/echo/big", "").as_bytes())
            .await;
        front.upstream.until(|upstream| upstream.count() == 2).await;
        // Both are on their way before they are given up.
        let has_some = |left: &Left| left.bytes.contains("a few bytes");
        front
            .upstream
            .until(|upstream| upstream.left().iter().filter(|it| has_some(it)).count() == 2)
            .await;

        assert_eq!(silent.answer().await, None);
        for late in [&mut dripping, &mut second, &mut sized, &mut chunked] {
            let answer = late.answer().await.expect("an answer");
            answer.assert_problem(408, "request_timeout");
            assert_eq!(late.answer().await, None);
        }
        // One connection is left, and idle; the others were freed.
        front
            .upstream
            .until(|upstream| upstream.connections() <= 1)
            .await;
        let mut rest = Vec::new();
        let read = reading.stream.read_to_end(&mut rest).await;
        assert!(read.is_err() || rest.len() < 67_108_864, "it was cut");
        // The upstream got the beginnings of both bodies, and no word that they had ended there.
        let (got, left) = front.arrived().await;
        let lines: Vec<_> = got.iter().map(|got| got.line.as_str()).collect();
        assert_eq!(lines, ["GET /a", "GET /big"]);
        assert_eq!(left.len(), 2, "{left:?}");
        for line in ["POST /sized", "POST /chunked"] {
            let is_this = |left: &Left| !left.is_open && left.begins(line, "a few bytes");
            assert!(left.iter().any(is_this), "{line}: {left:?}");
        }
    });
}

#[test]
fn an_idle_connection_rests_wakes_and_ends() {
    let variables = [
        ("TOLLGATE_GATEWAY_HEAD_SECONDS", "1"),
        ("TOLLGATE_GATEWAY_IDLE_SECONDS", "4"),
    ];
    with_front(&variables, async |front| {
        let request = front.request("GET /api/v1/echo/a", "");
        let mut client = front.connect().await;
        client.send(request.as_bytes()).await;
        assert_eq!(client.answer().await.expect("an answer").status, 200);
        front
            .until(|front| front.hall.roll.count(Phase::Resting) == 1)
            .await;
        // Awake again, whether it is said at once or not; then it rests again, then it ends.
        front.refresh();
        for piece in request.as_bytes().chunks(10) {
            client.send(piece).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(client.answer().await.expect("an answer").status, 200);
        front
            .until(|front| front.hall.roll.count(Phase::Resting) == 1)
            .await;
        assert_eq!(client.answer().await, None);
        assert_eq!(front.upstream.take().len(), 2);
    });
}

#[test]
fn an_address_has_so_many_connections() {
    check_connections("TOLLGATE_GATEWAY_CONNECTIONS_PER_ADDRESS_MAX");
}

#[test]
fn there_are_so_many_connections() {
    check_connections("TOLLGATE_GATEWAY_CONNECTIONS_MAX");
}

/// Two are taken, and a third one when one of them has ended.
fn check_connections(name: &str) {
    with_front(&[(name, "2")], async |front| {
        let request = front.request("GET /api/v1/echo/a", "");
        let mut clients = Vec::new();
        for _ in 0..2 {
            let mut client = front.connect().await;
            client.send(request.as_bytes()).await;
            assert_eq!(client.answer().await.expect("an answer").status, 200);
            clients.push(client);
        }
        let mut refused = front.connect().await;
        assert_eq!(refused.answer().await, None);
        drop(clients.pop());
        loop {
            let mut again = front.connect().await;
            drop(again.stream.write_all(request.as_bytes()).await);
            if again
                .answer()
                .await
                .is_some_and(|answer| answer.status == 200)
            {
                break;
            }
        }
    });
}

impl Front {
    /// Waits until something holds that nobody announces.
    pub(super) async fn until(&self, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

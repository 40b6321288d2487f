//! HTTP/2 clients that mean harm, while one that means none is served.

use std::time::Instant;

use tokio::io::AsyncWriteExt as _;

use super::{
    Front,
    frames::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY,
        RST_STREAM, SETTINGS, WINDOW_UPDATE, block, frame, hello, request,
    },
    with_front,
};
use crate::listen::limits::RESETS_PER_SECOND_MAX;

/// More than any limit.
const MANY: u32 = 20_000;
const CANCEL: &[u8] = &[0, 0, 0, 8];
/// Streams that are open before the first of them is taken back.
const LATE: u32 = 40;

/// Sends what `next` makes of a number, until the gateway has had enough; somebody else is served
/// meanwhile.
async fn flood(front: &Front, next: impl Fn(u32) -> Vec<u8>) {
    let mut client = front.connect().await;
    client.send(&hello(&[])).await;
    for number in 0..MANY {
        if number % 1_000 == 0 {
            front.assert_serves().await;
        }
        if client.stream.write_all(&next(number)).await.is_err() {
            return;
        }
        // Nobody reads answers, but the gateway gets its turn.
        tokio::task::yield_now().await;
    }
    panic!("the gateway takes everything");
}

/// Most streams that may be opened and taken back in what has passed since `started`.
fn taken_back_max(started: Instant) -> u64 {
    // The count begins anew with each second; what was on its way meanwhile comes on top.
    (started.elapsed().as_secs() + 2) * u64::from(RESETS_PER_SECOND_MAX)
}

#[test]
fn few_of_the_streams_that_are_taken_back_reach_an_upstream() {
    with_front(&[], async |front| {
        let head = request("GET", "/api/v1/echo/reset", front.rig.key.reveal(), &[]);
        let open = |stream| frame(HEADERS, END_STREAM | END_HEADERS, stream, &head);
        let reset = |stream| frame(RST_STREAM, 0, stream, CANCEL);
        let reached = async || {
            let (got, left) = front.arrived().await;
            assert_eq!(left, [], "each that came was whole");
            let resets = got.iter().filter(|got| got.line == "GET /reset");
            u64::try_from(resets.count()).expect("few")
        };

        // Before the gateway can act: hardly a request leaves, and few connections are opened.
        let (started, opened) = (Instant::now(), front.upstream.opened());
        flood(&front, |number| {
            let stream = 2 * number + 1;
            [open(stream), reset(stream)].concat()
        })
        .await;
        let came = reached().await;
        assert!(came <= 10, "{came} requests");
        let opened = u64::try_from(front.upstream.opened() - opened).expect("few");
        assert!(opened <= taken_back_max(started), "{opened} connections");

        // So late that the requests are under way: those are what such a flood costs.
        let started = Instant::now();
        flood(&front, |number| {
            let late = number.checked_sub(LATE).map(|number| reset(2 * number + 1));
            [open(2 * number + 1), late.unwrap_or_default()].concat()
        })
        .await;
        let came = reached().await;
        assert!(
            came >= u64::from(LATE) / 2,
            "{came} is what a flood would cost"
        );
        let most = taken_back_max(started) + u64::from(LATE);
        assert!(came <= most, "{came} requests");
    });
}

#[test]
fn floods_of_frames_end_their_connection_and_nobody_elses() {
    with_front(&[], async |front| {
        let key = front.rig.key.reveal().to_owned();
        let head = request("GET", "/api/v1/echo/a", &key, &[]);
        let piece = block(&[("x", "y")]);
        flood(&front, |number| match number {
            0 => frame(HEADERS, END_STREAM, 1, &head),
            _ => frame(CONTINUATION, 0, 1, &piece),
        })
        .await;
        flood(&front, |number| match number {
            0 => frame(HEADERS, END_STREAM, 1, &head),
            _ => frame(CONTINUATION, 0, 1, &[]),
        })
        .await;
        flood(&front, |_| frame(PING, 0, 0, &[0; 8])).await;
        flood(&front, |_| frame(SETTINGS, 0, 0, &[])).await;
        flood(&front, |_| frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 1])).await;
        flood(&front, |_| frame(0xbb, 0, 0, b"unknown")).await;
        let head = request("POST", "/api/v1/echo/a", &key, &[]);
        flood(&front, |number| match number {
            0 => frame(HEADERS, END_HEADERS, 1, &head),
            _ => frame(DATA, 0, 1, &[]),
        })
        .await;
        front.assert_serves().await;
    });
}

#[test]
fn a_list_of_fields_that_is_too_large_is_refused_with_a_problem() {
    with_front(&[], async |front| {
        let key = front.rig.key.reveal().to_owned();
        let long = "y".repeat(2_000);
        let many: Vec<_> = (0..101).map(|number| format!("x-{number}")).collect();
        let many: Vec<_> = many.iter().map(|name| (name.as_str(), "y")).collect();
        let query = format!("/api/v1/echo/a?{}", "x".repeat(8_200));
        let cases = [
            (
                "/api/v1/echo/a",
                vec![("x", long.as_str()); 9],
                "headers_too_large",
            ),
            ("/api/v1/echo/a", many, "headers_too_large"),
            (query.as_str(), Vec::new(), "target_too_long"),
        ];
        for (path, fields, code) in cases {
            let mut client = front.connect().await;
            client.send(&hello(&[])).await;
            let head = request("GET", path, &key, &fields);
            let mut pieces = head.chunks(16_000).peekable();
            let (mut kind, mut flags) = (HEADERS, END_STREAM);
            while let Some(piece) = pieces.next() {
                let last = if pieces.peek().is_none() {
                    END_HEADERS
                } else {
                    0
                };
                client.send(&frame(kind, flags | last, 1, piece)).await;
                (kind, flags) = (CONTINUATION, 0);
            }
            let data = client.frame_that(|frame| frame.kind == DATA).await;
            let data = data.expect("an answer");
            let problem: serde_json::Value = serde_json::from_slice(&data.content).expect("text");
            assert_eq!(problem["code"], code);
            // The connection is as good as before.
            let head = request("GET", "/api/v1/echo/a", &key, &[]);
            client
                .send(&frame(HEADERS, END_STREAM | END_HEADERS, 3, &head))
                .await;
            let data = client.frame_that(|frame| frame.kind == DATA).await;
            assert_eq!(data.expect("an answer").content, b"ok");
        }
        // What the protocol's own bound refuses does not reach us.
        let mut client = front.connect().await;
        client.send(&hello(&[])).await;
        let head = request("GET", "/api/v1/echo/b", &key, &[("x", long.as_str()); 20]);
        let mut pieces = head.chunks(16_000).peekable();
        let (mut kind, mut flags) = (HEADERS, END_STREAM);
        while let Some(piece) = pieces.next() {
            let last = if pieces.peek().is_none() {
                END_HEADERS
            } else {
                0
            };
            drop(
                client
                    .stream
                    .write_all(&frame(kind, flags | last, 1, piece))
                    .await,
            );
            (kind, flags) = (CONTINUATION, 0);
        }
        let refused =
            client.frame_that(|frame| matches!(frame.kind, HEADERS | RST_STREAM | GOAWAY));
        assert!(refused.await.is_some(), "it is refused");
        let got = front.upstream.take();
        assert!(got.iter().all(|got| got.line == "GET /a"), "{got:?}");
    });
}

#[test]
fn an_answer_that_a_stream_does_not_take_frees_its_upstream() {
    let variables = [("TOLLGATE_GATEWAY_STALL_SECONDS", "1")];
    with_front(&variables, async |front| {
        let key = front.rig.key.reveal().to_owned();
        let mut client = front.connect().await;
        // A window of a kilobyte a stream, never enlarged.
        client.send(&hello(&[(4, 1_024)])).await;
        let head = request("GET", "/api/v1/echo/big", &key, &[]);
        client
            .send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &head))
            .await;
        front.upstream.until(|upstream| upstream.count() == 1).await;
        front
            .upstream
            .until(|upstream| upstream.connections() == 0)
            .await;
        // The connection and its other streams go on.
        front.refresh();
        let head = request("GET", "/api/v1/echo/a", &key, &[]);
        client
            .send(&frame(HEADERS, END_STREAM | END_HEADERS, 3, &head))
            .await;
        let data = client.frame_that(|frame| frame.kind == DATA && frame.stream == 3);
        assert_eq!(data.await.expect("an answer").content, b"ok");
        // Who reads on at last is told that it broke off.
        let window = frame(WINDOW_UPDATE, 0, 1, &100_000_u32.to_be_bytes());
        client.send(&window).await;
        let reset = client.frame_that(|frame| frame.kind == RST_STREAM && frame.stream == 1);
        assert!(reset.await.is_some());
    });
}

#[test]
fn a_client_has_so_many_streams_and_no_more() {
    with_front(&[], async |front| {
        let key = front.rig.key.reveal().to_owned();
        let mut client = front.connect().await;
        // No stream ends: none has room for its answer.
        client.send(&hello(&[(4, 0)])).await;
        let first = client.frame_that(|frame| frame.kind == SETTINGS && frame.flags & ACK == 0);
        let settings = first.await.expect("settings").content;
        let told = |id: u16| {
            let pair = settings
                .chunks(6)
                .find(|pair| pair[..2] == id.to_be_bytes());
            let pair = pair.expect("told").last_chunk::<4>().expect("a value");
            u32::from_be_bytes(*pair)
        };
        assert_eq!(
            (told(3), told(4), told(6)),
            (100, 262_144, 32_768),
            "streams, window, list"
        );
        let head = request("GET", "/nowhere", &key, &[]);
        for number in 0..101_u32 {
            let stream = 2 * number + 1;
            client
                .send(&frame(HEADERS, END_STREAM | END_HEADERS, stream, &head))
                .await;
        }
        let refused = client.frame_that(|frame| frame.kind == RST_STREAM).await;
        assert_eq!(refused.expect("a reset").stream, 201);
        front.assert_serves().await;
    });
}

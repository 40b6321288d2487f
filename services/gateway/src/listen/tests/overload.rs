//! More calls than there may be, from outside.

use std::sync::atomic::Ordering;

use tokio::net::TcpStream;

use super::{
    Client, Front,
    frames::{DATA, END_HEADERS, END_STREAM, HEADERS, frame, hello, request},
    with_front,
};
use crate::tests::rig::COST;

/// Calls that may be in flight.
const CALLS_MAX: usize = 4;

/// A call by HTTP/1.1 that is refused.
async fn assert_refused(client: &mut Client<TcpStream>, request: &str) {
    client.send(request.as_bytes()).await;
    let answer = client.answer().await.expect("an answer");
    answer.assert_problem(503, "overloaded");
    assert!(answer.head.contains("\r\nretry-after: 1\r\n"), "{answer:?}");
}

/// The same by HTTP/2.
async fn assert_refused_by_http2(front: &Front) {
    let mut client = open_by_http2(front, "/api/v1/echo/a").await;
    let data = client.frame_that(|frame| frame.kind == DATA).await;
    let text = data.expect("an answer").content;
    let problem: serde_json::Value = serde_json::from_slice(&text).expect("a document");
    assert_eq!(problem["code"], "overloaded");
}

/// A client of HTTP/2 that asks for this.
async fn open_by_http2(front: &Front, path: &str) -> Client<TcpStream> {
    let mut client = front.connect().await;
    let head = request("GET", path, front.rig.key.reveal(), &[]);
    client.send(&hello(&[])).await;
    client
        .send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &head))
        .await;
    client
}

/// As many calls as there may be, by both versions: none of them ends before it is told to.
async fn fill(front: &Front) -> (Vec<Client<TcpStream>>, Client<TcpStream>) {
    let mut streaming = Vec::new();
    for _ in 1..CALLS_MAX {
        let mut client = front.connect().await;
        let events = front.request("GET /api/v1/echo/events", "");
        client.send(events.as_bytes()).await;
        while !String::from_utf8_lossy(client.got()).contains("data: first") {
            assert!(client.more().await);
        }
        streaming.push(client);
    }
    let mut frames = open_by_http2(front, "/api/v1/echo/events").await;
    assert!(frames.frame_that(|it| it.kind == DATA).await.is_some());
    (streaming, frames)
}

#[test]
fn beyond_the_limit_calls_are_refused_at_once_and_those_before_go_on() {
    with_front(&[("TOLLGATE_GATEWAY_CALLS_MAX", "4")], async |front| {
        let edge = &front.rig.worker.edge;
        let lease = &front.rig.lease;
        let (mut streaming, mut frames) = fill(&front).await;
        assert_eq!(edge.in_flight.load(Ordering::SeqCst), 4);

        // Twice as many again, each way: all are answered while the others wait.
        let (mut client, mut by_hyper) = (front.connect().await, front.connect().await);
        for _ in 0..CALLS_MAX {
            let expressed = front.hall.expressed.get();
            let common = front.request("GET /api/v1/echo/a", "");
            assert_refused(&mut client, &common).await;
            // So is one with a body, on the same connection, and by hyper.
            let sized = front.request("POST /api/v1/echo/a", "content-length: 2\r\n") + "ok";
            assert_refused(&mut client, &sized).await;
            assert!(front.hall.expressed.get() > expressed + 1, "without hyper");
            let other = front.request("OPTIONS /api/v1/echo/a", "");
            assert_refused(&mut by_hyper, &other).await;
            assert_refused_by_http2(&front).await;
        }
        // A key that nobody issued is not even looked at.
        let strange = front.request("GET /api/v1/echo/a", "");
        let strange = strange.replace(front.rig.key.reveal(), "sk_live_nonsense");
        assert_refused(&mut client, &strange).await;
        assert_eq!(front.upstream.take().len(), CALLS_MAX, "nothing else left");
        assert_eq!(front.rig.records().len(), 0, "nothing was recorded");
        assert_eq!(lease.cum(), 0, "nothing was charged");

        front.upstream.finish();
        for client in &mut streaming {
            let answer = client.answer().await.expect("an answer");
            assert_eq!(answer.status, 200);
            assert!(answer.body.ends_with(b"data: last\n\n\r\n"), "{answer:?}");
        }
        let last = frames
            .frame_that(|it| it.kind == DATA && it.content == b"data: last\n\n")
            .await;
        assert!(last.is_some());
        front
            .until(|_| edge.in_flight.load(Ordering::SeqCst) == 0)
            .await;
        assert_eq!(front.rig.records().len(), CALLS_MAX);
        assert_eq!(lease.cum(), 4 * COST, "each was charged");
        front.assert_serves().await;
    });
}

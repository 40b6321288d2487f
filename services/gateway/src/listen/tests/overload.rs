//! More calls than there may be, from outside.

use std::sync::atomic::Ordering;

use super::{
    Answer, Front,
    frames::{DATA, END_HEADERS, END_STREAM, HEADERS, frame, hello, request},
    with_front,
};

/// Calls that may be in flight.
const CALLS_MAX: usize = 4;

impl Answer {
    fn assert_overloaded(&self) {
        self.assert_problem(503, "overloaded");
        assert!(self.head.contains("\r\nretry-after: 1\r\n"), "{self:?}");
    }
}

/// A call of HTTP/2 that is refused. Returns what the document says.
async fn refused_by_http2(front: &Front) -> serde_json::Value {
    let mut client = front.connect().await;
    let head = request("GET", "/api/v1/echo/a", front.rig.key.reveal(), &[]);
    client.send(&hello(&[])).await;
    client
        .send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &head))
        .await;
    let data = client.frame_that(|frame| frame.kind == DATA).await;
    serde_json::from_slice(&data.expect("an answer").content).expect("a document")
}

#[test]
fn beyond_the_limit_calls_are_refused_at_once_and_those_before_go_on() {
    with_front(&[("TOLLGATE_GATEWAY_CALLS_MAX", "4")], async |front| {
        let key = front.rig.key.reveal().to_owned();
        let edge = &front.rig.worker.edge;
        let lease = &front.rig.lease;
        // As many as there may be, by both versions: none of them ends before it is told to.
        let mut streaming = Vec::new();
        for _ in 0..CALLS_MAX - 1 {
            let mut client = front.connect().await;
            let events = front.request("GET /api/v1/echo/events", "");
            client.send(events.as_bytes()).await;
            while !String::from_utf8_lossy(client.got()).contains("data: first") {
                assert!(client.more().await);
            }
            streaming.push(client);
        }
        let mut frames = front.connect().await;
        let head = request("GET", "/api/v1/echo/events", &key, &[]);
        frames.send(&hello(&[])).await;
        frames
            .send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &head))
            .await;
        assert!(frames.frame_that(|it| it.kind == DATA).await.is_some());
        assert_eq!(edge.in_flight.load(Ordering::SeqCst), CALLS_MAX as u64);

        // Twice as many again, each way: all are answered while the others wait.
        let (mut client, mut by_hyper) = (front.connect().await, front.connect().await);
        for _ in 0..CALLS_MAX {
            let expressed = front.hall.expressed.get();
            let common = front.request("GET /api/v1/echo/a", "");
            client.send(common.as_bytes()).await;
            client
                .answer()
                .await
                .expect("an answer")
                .assert_overloaded();
            assert!(front.hall.expressed.get() > expressed, "without hyper");
            // So is one with a body, on the same connection, and by hyper.
            let sized = front.request("POST /api/v1/echo/a", "content-length: 2\r\n") + "ok";
            client.send(sized.as_bytes()).await;
            client
                .answer()
                .await
                .expect("an answer")
                .assert_overloaded();
            let other = front.request("OPTIONS /api/v1/echo/a", "idempotency-key: 1\r\n");
            by_hyper.send(other.as_bytes()).await;
            by_hyper
                .answer()
                .await
                .expect("an answer")
                .assert_overloaded();
            assert_eq!(refused_by_http2(&front).await["code"], "overloaded");
        }
        // A key that nobody issued is not even looked at.
        let strange = front
            .request("GET /api/v1/echo/a", "")
            .replace(&key, "sk_live_nonsense");
        client.send(strange.as_bytes()).await;
        client
            .answer()
            .await
            .expect("an answer")
            .assert_overloaded();
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
        assert_eq!(lease.cum(), 3 * CALLS_MAX as i64, "each was charged");
        front.assert_serves().await;
    });
}

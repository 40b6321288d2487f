//! The listener stops: what is under way goes on, and nothing new begins.

use std::sync::atomic::Ordering;

use tokio::net::TcpStream;

use super::{
    Front,
    frames::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, frame, hello, request},
    with_front,
};

impl Front {
    /// As the gateway does it.
    fn stop_listening(&self) {
        self.rig.worker.edge.draining.store(true, Ordering::Release);
        self.stop.cancel();
    }
}

#[test]
fn streams_end_in_their_own_time_and_connections_with_them() {
    with_front(&[], async |front| {
        let key = front.rig.key.reveal().to_owned();
        let stream_line = "GET /api/v1/echo/events";
        let mut idle = front.connect().await;
        idle.send(front.request("GET /api/v1/echo/a", "").as_bytes())
            .await;
        assert_eq!(idle.answer().await.expect("an answer").status, 200);
        let mut streaming = front.connect().await;
        streaming
            .send(front.request(stream_line, "").as_bytes())
            .await;
        let mut frames = front.connect().await;
        let head = request("GET", "/api/v1/echo/events", &key, &[]);
        frames.send(&hello(&[])).await;
        frames
            .send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &head))
            .await;
        let first = frames.frame_that(|frame| frame.kind == DATA).await;
        assert_eq!(first.expect("an event").content, b"data: first\n\n");
        front.upstream.until(|upstream| upstream.count() == 3).await;
        while !String::from_utf8_lossy(streaming.got()).contains("data: first") {
            assert!(streaming.more().await);
        }
        // Connected, and not yet heard of.
        let mut late = front.connect().await;

        front.stop_listening();
        assert_eq!(idle.answer().await, None, "an idle connection ends");
        late.send(front.request("GET /api/v1/echo/a", "").as_bytes())
            .await;
        let answer = late.answer().await.expect("an answer");
        assert_eq!(answer.status, 200);
        assert!(
            answer.head.contains("\r\nconnection: close\r\n"),
            "{answer:?}"
        );
        let away = frames.frame_that(|frame| frame.kind == GOAWAY).await;
        assert!(away.is_some(), "clients are told to go elsewhere");
        front.until(|front| front.upstream.count() == 4).await;
        assert!(
            TcpStream::connect(front.address).await.is_err(),
            "nobody listens"
        );
        assert!(!front.carrying.is_finished(), "streams are not cut");

        front.upstream.finish();
        let answer = streaming.answer().await.expect("an answer");
        assert!(answer.body.ends_with(b"data: last\n\n\r\n"), "{answer:?}");
        assert_eq!(streaming.answer().await, None);
        let last = frames
            .frame_that(|frame| frame.kind == DATA && frame.content == b"data: last\n\n")
            .await;
        assert!(last.is_some());
        while frames.frame().await.is_some() {}
        let Front { carrying, .. } = front;
        carrying.await.expect("the listener ends");
    });
}

//! The listener stops: what is under way goes on, and nothing new begins.

use std::sync::{Arc, atomic::Ordering};

use proto::events::v1::Disposition;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::{
    Client, Front,
    frames::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, frame, hello, request},
    with_front,
};
use crate::{listen, tests::rig::COST};

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

/// On a thread of its own, as in a gateway: what it carries ends with it.
#[test]
fn streams_that_outlast_the_drain_are_cut_and_cost_what_their_routes_say() {
    with_front(&[], async |front| {
        let edge = Arc::clone(&front.rig.worker.edge);
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        socket.set_nonblocking(true).expect("a socket");
        let address = socket.local_addr().expect("bound");
        let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
        let shared = (Arc::clone(&edge), Arc::clone(&front.hall.door));
        let pool = front.rig.pool();
        let thread = listen::start(0, shared, socket, pool, stop.clone(), cut.clone());
        let thread = thread.expect("a thread");
        let begin = async |policy: &str| {
            front.rig.offer(front.behind, |service| {
                for route in &mut service.routes {
                    policy.clone_into(&mut route.on_server_abort);
                }
            });
            front.refresh();
            let stream = TcpStream::connect(address).await.expect("connected");
            let mut client = Client::new(stream);
            let request = front.request("GET /api/v1/echo/events", "");
            client.send(request.as_bytes()).await;
            while !String::from_utf8_lossy(client.got()).contains("data: first") {
                assert!(client.more().await, "{policy}");
            }
            client
        };
        let mut clients = [begin("free").await, begin("answered").await];

        edge.draining.store(true, Ordering::Release);
        stop.cancel();
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert_eq!(edge.in_flight.load(Ordering::SeqCst), 2, "they go on");
        assert_eq!(front.rig.records().len(), 0);
        // Its time is over.
        edge.is_cut.store(true, Ordering::Release);
        cut.cancel();
        front.until(|_| thread.is_finished()).await;
        thread.join().expect("no panic");
        for client in &mut clients {
            assert_eq!(client.answer().await, None);
            let got = String::from_utf8_lossy(client.got()).into_owned();
            assert!(
                !got.contains("\r\n0\r\n"),
                "nothing passes for the end: {got}"
            );
        }
        assert_eq!(edge.in_flight.load(Ordering::SeqCst), 0);
        let mut ends: Vec<_> = front
            .rig
            .records()
            .into_iter()
            .map(|record| (record.call.expect("a call").disposition(), record.cost))
            .collect();
        ends.sort_by_key(|(_, cost)| *cost);
        let aborted = Disposition::GatewayAborted;
        assert_eq!(ends, [(aborted, 0), (aborted, COST)]);
        assert_eq!(front.rig.lease.cum(), COST);
        front.rig.lease.drain();
        assert!(front.rig.lease.is_spent(), "nothing is held");
    });
}

//! As many calls as an upstream may have connections, and then fewer again.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::with_front;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

async fn read_head(stream: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a head"));
    }
}

#[test]
fn behind_a_burst_calls_find_back_to_the_way_without_hyper() {
    with_front(&[], async |front| {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        front.rig.offer(address, |it| it.connections_max = 1);
        let request = front.request("GET /api/v1/echo/a", "");
        let mut one = front.connect().await;
        one.send(request.as_bytes()).await;
        let (mut upstream, _) = listener.accept().await.expect("a connection");
        read_head(&mut upstream).await;
        // The only connection is in use: the next call waits for it, by hyper.
        let mut two = front.connect().await;
        two.send(request.as_bytes()).await;
        let edge = &front.rig.worker.edge;
        front
            .until(|_| edge.in_flight.load(std::sync::atomic::Ordering::SeqCst) == 2)
            .await;
        upstream.write_all(OK).await.expect("sent");
        assert_eq!(one.answer().await.expect("an answer").status, 200);
        read_head(&mut upstream).await;
        upstream.write_all(OK).await.expect("sent");
        assert_eq!(two.answer().await.expect("an answer").status, 200);
        assert_eq!(front.hall.expressed.get(), 1);

        // The burst is over. What hyper has makes room, once.
        front.refresh();
        one.send(request.as_bytes()).await;
        let (mut next, _) = listener.accept().await.expect("another connection");
        assert_eq!(upstream.read(&mut [0]).await.expect("an end"), 0);
        for number in 2..10 {
            read_head(&mut next).await;
            next.write_all(OK).await.expect("sent");
            assert_eq!(one.answer().await.expect("an answer").status, 200);
            assert_eq!(front.hall.expressed.get(), number);
            one.send(request.as_bytes()).await;
        }
        read_head(&mut next).await;
        next.write_all(OK).await.expect("sent");
        assert_eq!(one.answer().await.expect("an answer").status, 200);
    });
}

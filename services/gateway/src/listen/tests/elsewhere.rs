//! An upstream with several addresses, some of which take a request and break off.

use std::{cell::Cell, net::SocketAddr, rc::Rc};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::{Front, with_front};
use crate::tests::rig::COST;

/// Reads requests, says this and closes. Counts them.
async fn rude(said: &'static [u8]) -> (SocketAddr, Rc<Cell<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let asked = Rc::<Cell<usize>>::default();
    let count = Rc::clone(&asked);
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut got = Vec::new();
            while !got.windows(4).any(|end| end == b"\r\n\r\n") {
                if stream.read_buf(&mut got).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            count.set(count.get() + 1);
            drop(stream.write_all(said).await);
        }
    });
    (address, asked)
}

impl Front {
    /// From now on the service is at these addresses, and nothing is known of them.
    fn stands_for(&self, number: i64, addresses: &[SocketAddr]) {
        self.rig.offer(self.behind, |service| {
            service.connections_max = 100 + number;
        });
        let catalogue = self.rig.worker.edge.catalogue.load_full();
        let service = catalogue.service("echo").expect("it is offered");
        self.rig.worker.pool.point(&service.upstream, addresses);
    }
}

#[test]
fn what_changes_nothing_is_asked_elsewhere_once_when_a_new_connection_breaks() {
    with_front(&[], async |front| {
        let (silent, asked) = rude(b"").await;
        let (other, too) = rude(b"").await;
        let (begins, begun) = rude(b"HTTP/1.1 2").await;
        let good = front.behind;
        // Where it goes first, what comes of it, and how many requests reached anybody.
        let cases = [
            ("GET", "", "", vec![silent, good], 200, 2),
            ("OPTIONS", "", "", vec![silent, good], 200, 2),
            // Once: the third address is not asked.
            ("GET", "", "", vec![silent, other, good], 502, 2),
            ("OPTIONS", "", "", vec![silent, other, good], 502, 2),
            // There is no other.
            ("GET", "", "", vec![silent], 502, 1),
            ("OPTIONS", "", "", vec![silent], 502, 1),
            // It may change something.
            (
                "POST",
                "content-length: 2\r\n",
                "ok",
                vec![silent, good],
                502,
                1,
            ),
            ("DELETE", "", "", vec![silent, good], 502, 1),
            (
                "GET",
                "content-length: 2\r\n",
                "ok",
                vec![silent, good],
                502,
                1,
            ),
            // It has begun to answer.
            ("GET", "", "", vec![begins, good], 502, 1),
            ("OPTIONS", "", "", vec![begins, good], 502, 1),
        ];
        let mut number = 0;
        for (method, fields, body, addresses, status, reached) in cases {
            number += 1;
            front.stands_for(number, &addresses);
            let (records, spent) = (front.rig.records().len(), front.rig.lease.cum());
            let before = asked.get() + too.get() + begun.get();
            let mut client = front.connect().await;
            let line = format!("{method} /api/v1/echo/a");
            client
                .send((front.request(&line, fields) + body).as_bytes())
                .await;
            let case = format!("{number}: {method} {addresses:?}");
            let answer = client.answer().await.expect("an answer");
            assert_eq!(answer.status, status, "{case}: {answer:?}");
            front
                .until(|front| front.rig.records().len() > records)
                .await;
            let rude = asked.get() + too.get() + begun.get() - before;
            let all = rude + front.upstream.take().len();
            assert_eq!(all, reached, "{case}");
            assert_eq!(front.rig.records().len(), records + 1, "{case}: one call");
            let cost = if status == 200 { COST } else { 0 };
            assert_eq!(front.rig.lease.cum() - spent, cost, "{case}");
        }
    });
}

//! Interim answers of upstreams, on both ways of a call.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::{express::raw, with_front};
use crate::tests::secure::{TRUSTED, acceptor};

#[test]
fn hints_come_before_their_answer_and_cost_nothing_on_both_ways() {
    with_front(&[], async |front| {
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        let hint = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nTollgate-Cost: 9\r\n\r\n";
        let going_on = "HTTP/1.1 100 Continue\r\n\r\n";
        let passed = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
        let together = format!("{hint}{hint}{answer}");
        let requests = [
            (front.request("GET /api/v1/echo/raw", ""), true),
            (front.request("OPTIONS /api/v1/echo/raw", ""), false),
            // The client asks whether to go on, and is told so by us alone.
            (
                front.request(
                    "POST /api/v1/echo/raw",
                    "expect: 100-continue\r\ncontent-length: 0\r\n",
                ),
                false,
            ),
        ];
        for (request, is_express) in &requests {
            for pieces in [
                &[hint, hint, answer][..],
                &[&together],
                &[hint, going_on, hint, answer],
            ] {
                front.upstream.say(raw(pieces, false));
                let (records, expressed) = (front.rig.records().len(), front.hall.expressed.get());
                let mut client = front.connect().await;
                client.send(request.as_bytes()).await;
                let twice = format!("{passed}{passed}");
                while client.got().len() < twice.len() {
                    assert!(client.more().await, "{:?}", client.got());
                }
                let got = String::from_utf8_lossy(client.got()).into_owned();
                assert!(got.starts_with(&twice), "{request}: {got}");
                client.drop_front(twice.len());
                assert_eq!(client.answer().await.expect("an answer").body, b"ok");
                drop(client);
                front
                    .until(|front| front.rig.records().len() > records)
                    .await;
                assert_eq!(front.rig.records().len(), records + 1);
                assert_eq!(front.hall.expressed.get() > expressed, *is_express);
            }
        }
        // Hints without end, and an upstream that breaks off behind one: it is not asked again.
        for (pieces, ends) in [(vec![hint; 100], false), (vec![hint], true)] {
            front.upstream.say(raw(&pieces, ends));
            front.upstream.take();
            let mut client = front.connect().await;
            client.send(requests[0].0.as_bytes()).await;
            let end = b"HTTP/1.1 502 ";
            while memchr::memmem::find(client.got(), end).is_none() {
                assert!(client.more().await, "{:?}", client.got());
            }
            assert_eq!(front.upstream.take().len(), 1);
        }
        // By hyper the first ones pass, and the answer behind the others too.
        front.upstream.say(raw(&[&hint.repeat(100), answer], false));
        let mut client = front.connect().await;
        client.send(requests[1].0.as_bytes()).await;
        while !client.got().ends_with(b"\r\n\r\nok") {
            assert!(client.more().await, "{:?}", client.got());
        }
        let got = String::from_utf8_lossy(client.got()).into_owned();
        assert_eq!(got.matches("HTTP/1.1 103 ").count(), 16, "{got}");
        // HTTP/1.0 knows no interim answers.
        front.upstream.say(raw(&[hint, answer], false));
        let mut client = front.connect().await;
        let old = requests[0].0.replace(" HTTP/1.1\r\n", " HTTP/1.0\r\n");
        client.send(old.as_bytes()).await;
        assert_eq!(client.answer().await.expect("an answer").status, 200);
    });
}

#[test]
fn hints_of_calls_that_were_sent_ahead_stand_before_their_own_answers() {
    with_front(&[], async |front| {
        let hint = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
        let together = format!("{hint}HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        front.upstream.say(raw(&[&together], false));
        let hinted = front.request("OPTIONS /api/v1/echo/raw", "");
        let plain = front.request("OPTIONS /api/v1/echo/a", "");
        let mut client = front.connect().await;
        client
            .send(format!("{hinted}{plain}").repeat(10).as_bytes())
            .await;
        for number in 0..20 {
            let (mut statuses, mut last) = (Vec::new(), 0);
            while last != 200 {
                last = client.answer().await.expect("an answer").status;
                statuses.push(last);
            }
            // One may be dropped while the answer before it is not written; none is misplaced.
            let may_hint = number % 2 == 0;
            let is_sound = statuses == [200] || may_hint && statuses == [103, 200];
            assert!(is_sound, "{number}: {statuses:?}");
        }
    });
}

#[test]
fn hints_of_an_upstream_behind_tls_come_while_its_answer_is_awaited() {
    with_front(&[], async |front| {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let port = address.port();
        front.rig.offer(address, |service| {
            service.upstream_url = format!("https://localhost:{port}");
            "auto".clone_into(&mut service.protocol);
        });
        let mut client = front.connect().await;
        client
            .send(front.request("GET /api/v1/echo/a", "").as_bytes())
            .await;
        let (stream, _) = listener.accept().await.expect("a connection");
        let tls = acceptor(TRUSTED, &["http/1.1"]).accept(stream).await;
        let mut upstream = tls.expect("TLS");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(upstream.read_u8().await.expect("a head"));
        }
        let hint = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
        for _ in 0..2 {
            upstream.write_all(hint).await.expect("sent");
            upstream.flush().await.expect("sent");
            while client.got().len() < hint.len() {
                assert!(client.more().await, "{:?}", client.got());
            }
            assert_eq!(client.got(), hint);
            client.drop_front(hint.len());
        }
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        upstream.write_all(answer).await.expect("sent");
        upstream.flush().await.expect("sent");
        assert_eq!(client.answer().await.expect("an answer").body, b"ok");
        assert_eq!(front.rig.records().len(), 1);
    });
}

//! What must not look like something else: answers that break off, fields that HTTP/2 writes
//! otherwise, and bytes behind a request that changes protocols.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::{
    Front,
    frames::{END_HEADERS, END_STREAM, HEADERS, RST_STREAM, block, frame, hello, request},
    upstream::Raw,
    with_front,
};

fn raw(text: &str) -> Raw {
    Raw {
        pieces: vec![text.as_bytes().to_vec()],
        ends: true,
    }
}

#[test]
fn an_answer_that_breaks_off_ends_in_no_order() {
    with_front(&[], async |front| {
        // The end of the connection is all that HTTP/1.0 has.
        let begun = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
        front.upstream.say(raw(begun));
        let mut client = front.connect().await;
        let key = front.rig.key.reveal();
        let request = format!("GET /api/v1/echo/raw HTTP/1.0\r\nx-api-key: {key}\r\n\r\n");
        client.send(request.as_bytes()).await;
        let mut got = Vec::new();
        let ended = client.stream.read_to_end(&mut got).await;
        let got = String::from_utf8_lossy(&got);
        assert!(ended.is_err(), "an orderly end behind {got:?}");
    });
}

#[test]
fn no_call_is_sent_again_once_its_answer_has_begun() {
    with_front(&[], async |front| {
        for begun in ["HTTP/1.1 200 OK\r\nconte", "nonsense"] {
            // Trailers are hyper's, and it has a connection to use again.
            let line = |path: &str| front.request(&format!("GET {path}"), "te: trailers\r\n");
            let mut client = front.connect().await;
            client.send(line("/api/v1/echo/good").as_bytes()).await;
            assert_eq!(client.answer().await.expect("an answer").status, 200);
            front.upstream.take();
            front.upstream.say(raw(begun));
            client.send(line("/api/v1/echo/raw").as_bytes()).await;
            assert_eq!(client.answer().await.expect("an answer").status, 502);
            assert_eq!(front.upstream.take().len(), 1, "{begun}");
        }
    });
}

/// The fields of the first answer to a request by HTTP/2; none: its stream was reset.
async fn h2(front: &Front, fields: &[(&str, &str)]) -> Option<u8> {
    let mut client = front.connect().await;
    client.send(&hello(&[])).await;
    let head = block(fields);
    client
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &head))
        .await;
    let answer = client.frame_that(|it| it.stream == 1 && [HEADERS, RST_STREAM].contains(&it.kind));
    let answer = answer.await.expect("it is told");
    // The status comes first: indexed, or its name is.
    (answer.kind == HEADERS).then(|| answer.content[0])
}

#[test]
fn what_http2_allows_reaches_an_upstream_as_http1_has_it() {
    with_front(&[], async |front| {
        let (ok, bad) = (0x88, 0x8c); // of the static table: 200, 400
        let key = front.rig.key.reveal().to_owned();
        let plain: [(&str, &str); 4] = [
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/api/v1/echo/a"),
            ("x-api-key", &key),
        ];
        let told = async |more: &[(&str, &str)]| {
            let (pseudo, rest): (Vec<_>, Vec<_>) =
                more.iter().partition(|(name, _)| name.starts_with(':'));
            let fields = [&plain[..3], &pseudo, &plain[3..], &rest].concat();
            h2(&front, &fields).await
        };
        let own = (":authority", "edge");
        assert_eq!(
            told(&[own, ("cookie", "a=1"), ("cookie", "b=2")]).await,
            Some(ok)
        );
        let got = front.upstream.take().pop().expect("asked").fields;
        assert!(got.contains("\r\ncookie: a=1; b=2\r\n"), "{got}");
        assert_eq!(told(&[own, ("te", "trailers")]).await, Some(ok));
        let got = front.upstream.take().pop().expect("asked").fields;
        assert!(got.contains("\r\nconnection: te\r\n"), "{got}");
        for wrong in [
            &[own, ("content-length", "0"), ("content-length", "0")][..],
            &[own, ("content-length", "00")],
            &[own, ("x-padded", " a")],
            &[own, ("x-padded", "a\t")],
            &[("host", "a b/c, d")],
            &[("host", "")],
            &[("host", "a"), ("host", "a")],
            &[own, ("host", "other")],
            &[(":authority", "a,b")],
            &[(":authority", ":80")],
        ] {
            let told = told(wrong).await;
            assert!(told.is_none() || told == Some(bad), "{wrong:?}: {told:x?}");
        }
        assert!(front.upstream.take().is_empty(), "nobody was asked");
    });
}

#[test]
fn what_is_sent_ahead_of_a_tunnel_is_no_request() {
    with_front(&[], async |front| {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let behind = listener.local_addr().expect("bound");
        front.rig.offer(behind, |_| {});
        let upgrade = "connection: upgrade\r\nupgrade: websocket\r\n";
        let request = front.request("GET /api/v1/echo/chat", upgrade);
        // A line that no request begins with, and more than a target may have.
        for early in [&b"\r\n\x81\x83\0\0\0\0a\nb"[..], &[b'x'; 12_000]] {
            let mut client = front.connect().await;
            client.send(&[request.as_bytes(), early].concat()).await;
            let (mut upstream, _) = listener.accept().await.expect("asked");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(upstream.read_u8().await.expect("a head"));
            }
            let switched = format!("HTTP/1.1 101 Switching Protocols\r\n{upgrade}\r\n");
            upstream.write_all(switched.as_bytes()).await.expect("sent");
            let mut came = vec![0; early.len()];
            upstream.read_exact(&mut came).await.expect("all of it");
            assert!(came == early, "as it was sent");
            client.send(b"and more\n").await;
            let mut more = [0; 9];
            upstream.read_exact(&mut more).await.expect("what follows");
            assert_eq!(&more, b"and more\n");
            upstream.write_all(b"bye").await.expect("sent");
            drop(upstream);
            while client.more().await {}
            assert!(client.got().ends_with(b"\r\n\r\nbye"), "{:?}", client.got());
        }
    });
}

#[test]
fn an_empty_answer_whose_record_may_be_lost_is_not_given() {
    with_front(&[], async |front| {
        front.rig.offer(front.behind, |service| {
            for route in &mut service.routes {
                // Nobody ships here.
                "replicated".clone_into(&mut route.durability);
            }
        });
        let head = request("HEAD", "/api/v1/echo/a", front.rig.key.reveal(), &[]);
        let (mut one, mut two) = (front.connect().await, front.connect().await);
        one.send(front.request("HEAD /api/v1/echo/a", "").as_bytes())
            .await;
        two.send(&hello(&[])).await;
        two.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &head))
            .await;
        let answers = tokio::join!(
            one.answer(),
            two.frame_that(|it| it.stream == 1 && [HEADERS, RST_STREAM].contains(&it.kind)),
        );
        let (by_one, by_two) = answers;
        assert!(by_one.is_none() && one.got().is_empty(), "{by_one:?}");
        assert_eq!(by_two.expect("told").kind, RST_STREAM);
        let charged = front.rig.records().iter().filter(|it| it.cost > 0).count();
        assert_eq!(charged, 2, "and a refusal would say otherwise");
    });
}

//! Requests of HTTP/2 that would be another one to an upstream of HTTP/1, or two.

use tokio::io::AsyncWriteExt as _;

use super::{
    Front,
    frames::{
        DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, block, frame, hello, request,
    },
    with_front,
};

type Fields = &'static [(&'static str, &'static str)];

/// What becomes of a request that has no one reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// The protocol's own rules forbid it: its stream ends, the next one is served.
    Reset,
    /// They forbid it in a list of fields that cannot be read: the connection ends.
    Away,
    /// We do: with a problem, and the next one is served.
    Refused,
}

/// Requests by POST with these further fields, and their bodies.
const AMBIGUOUS: &[(&str, Fields, &[u8], End)] = &[
    (
        "a coding",
        &[("transfer-encoding", "chunked")],
        b"0\r\n\r\n",
        End::Reset,
    ),
    ("a connection", &[("connection", "close")], b"", End::Reset),
    ("an upgrade", &[("upgrade", "h2c")], b"", End::Reset),
    ("a keep-alive", &[("keep-alive", "1")], b"", End::Reset),
    (
        "a proxy-connection",
        &[("proxy-connection", "close")],
        b"",
        End::Reset,
    ),
    ("a te", &[("te", "gzip")], b"", End::Reset),
    (
        "a body that is too short",
        &[("content-length", "9")],
        b"short",
        End::Reset,
    ),
    (
        "a body that is too long",
        &[("content-length", "1")],
        b"too long",
        End::Reset,
    ),
    (
        "a body of nothing",
        &[("content-length", "0")],
        b"GET / HTTP/1.1",
        End::Reset,
    ),
    (
        "two lengths",
        &[("content-length", "2"), ("content-length", "3")],
        b"abc",
        End::Reset,
    ),
    (
        "a length with a sign",
        &[("content-length", "+2")],
        b"ok",
        End::Reset,
    ),
    (
        "a list of lengths",
        &[("content-length", "2, 2")],
        b"ok",
        End::Reset,
    ),
    (
        "a request in a value",
        &[("x", "x\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: x")],
        b"",
        End::Away,
    ),
    (
        "a line feed in a value",
        &[("x", "a\nb: c")],
        b"",
        End::Away,
    ),
    ("a NUL in a value", &[("x", "a\0b")], b"", End::Away),
    (
        "a line end in a name",
        &[("x: y\r\nz", "a")],
        b"",
        End::Away,
    ),
    ("a colon in a name", &[("x:y", "a")], b"", End::Away),
    ("a space in a name", &[("x y", "a")], b"", End::Away),
    ("capitals in a name", &[("X-A", "a")], b"", End::Away),
    ("an empty name", &[("", "a")], b"", End::Away),
    (
        "a pseudo-field behind fields",
        &[(":path", "/b")],
        b"",
        End::Reset,
    ),
    ("an unknown pseudo-field", &[(":x", "a")], b"", End::Away),
    ("a status", &[(":status", "200")], b"", End::Reset),
    ("another host", &[("host", "other")], b"", End::Refused),
    (
        "two hosts",
        &[("host", "edge"), ("host", "edge")],
        b"",
        End::Refused,
    ),
];

/// Requests of these fields and the key.
const MALFORMED: &[(&str, &[&str; 4], End)] = &[
    (
        "a line end in the path",
        &["GET", "http", "edge", "/api/v1/echo/a HTTP/1.1\r\nx: y"],
        End::Reset,
    ),
    (
        "a space in the path",
        &["GET", "http", "edge", "/api/v1/echo/a b"],
        End::Reset,
    ),
    ("an empty path", &["GET", "http", "edge", ""], End::Reset),
    (
        "dots in the path",
        &["GET", "http", "edge", "/api/v1/echo/a/../b"],
        End::Refused,
    ),
    (
        "a whole URL as the path",
        &["GET", "http", "edge", "http://edge/api/v1/echo/a"],
        End::Reset,
    ),
    (
        "a line end in the method",
        &["GET /x HTTP/1.1\r\nx: y", "http", "edge", "/api/v1/echo/a"],
        End::Away,
    ),
    (
        "a space in the method",
        &["GET /x", "http", "edge", "/api/v1/echo/a"],
        End::Away,
    ),
    (
        "an empty method",
        &["", "http", "edge", "/api/v1/echo/a"],
        End::Away,
    ),
    (
        "TRACE",
        &["TRACE", "http", "edge", "/api/v1/echo/a"],
        End::Refused,
    ),
    (
        "CONNECT",
        &["CONNECT", "http", "edge", "/api/v1/echo/a"],
        End::Reset,
    ),
    (
        "a line end in the scheme",
        &["GET", "http://x\r\n", "edge", "/api/v1/echo/a"],
        End::Reset,
    ),
    (
        "a user in the authority",
        &["GET", "http", "other@edge", "/api/v1/echo/a"],
        End::Refused,
    ),
    (
        "a line end in the authority",
        &["GET", "http", "edge\r\nx: y", "/api/v1/echo/a"],
        End::Reset,
    ),
    ("no path", &["GET", "http", "edge", "-"], End::Reset),
    (
        "no method",
        &["-", "http", "edge", "/api/v1/echo/a"],
        End::Reset,
    ),
    (
        "no scheme",
        &["GET", "-", "edge", "/api/v1/echo/a"],
        End::Reset,
    ),
];

#[test]
fn what_is_ambiguous_in_http2_does_not_arrive() {
    with_front(&[], async |front| {
        let key = front.rig.key.reveal().to_owned();
        for (name, fields, body, end) in AMBIGUOUS {
            let head = request("POST", "/api/v1/echo/a", &key, fields);
            check(&front, name, &head, body, *end).await;
        }
        for (name, values, end) in MALFORMED {
            let names = [":method", ":scheme", ":authority", ":path"];
            let mut fields: Vec<_> = names.into_iter().zip(values.iter().copied()).collect();
            fields.retain(|(_, value)| *value != "-");
            fields.push(("x-api-key", &key));
            check(&front, name, &block(&fields), b"", *end).await;
        }
    });
}

/// Sends a request that must not arrive, and a good one behind it.
async fn check(front: &Front, name: &str, head: &[u8], body: &[u8], due: End) {
    let mut client = front.connect().await;
    client.send(&hello(&[])).await;
    let flags = if body.is_empty() { END_STREAM } else { 0 };
    client
        .send(&frame(HEADERS, flags | END_HEADERS, 1, head))
        .await;
    if !body.is_empty() {
        client.send(&frame(DATA, END_STREAM, 1, body)).await;
    }
    let key = front.rig.key.reveal();
    let probe = request("GET", "/api/v1/echo/probe", key, &[]);
    // The connection may have ended.
    let probe = frame(HEADERS, END_STREAM | END_HEADERS, 3, &probe);
    drop(client.stream.write_all(&probe).await);
    let (mut end, mut is_probed) = (None, false);
    while (end.is_none() || !is_probed)
        && end != Some(End::Away)
        && let Some(frame) = client.frame().await
    {
        match (frame.kind, frame.stream) {
            (GOAWAY, _) => end = Some(End::Away),
            (RST_STREAM, 1) => end = Some(End::Reset),
            (HEADERS, 1) => assert_eq!(frame.status(), 400, "{name}"),
            (DATA, 1) => {
                let text = serde_json::from_slice(&frame.content);
                let problem: serde_json::Value = text.expect("a document");
                assert_eq!(problem["code"], "bad_request", "{name}");
                end = Some(End::Refused);
            }
            (DATA, 3) => is_probed = frame.content == b"ok",
            _ => {}
        }
    }
    assert_eq!(end, Some(due), "{name}");
    assert_eq!(
        is_probed,
        due != End::Away,
        "{name}: the next one is served"
    );
    let (got, left) = front.arrived().await;
    let lines: Vec<_> = got.iter().map(|got| got.line.as_str()).collect();
    let probes = usize::from(is_probed);
    assert_eq!(lines, vec!["GET /probe"; probes], "{name}: {got:?}");
    let is_spoofed = got.iter().any(|got| got.fields.contains("smuggled"));
    assert!(!is_spoofed, "{name}: {got:?}");
    assert_eq!(left, [], "{name}");
}

/// The head of a request is on its way when its body turns out to be another one than it said.
#[test]
fn a_body_that_is_not_as_long_as_was_said_breaks_its_request_off() {
    with_front(&[], async |front| {
        let cases: [(&str, &[&[u8]], &str); 4] = [
            ("9", &[b"short"], "short"),
            ("9", &[b"", b"sho", b"rt"], "short"),
            ("2", &[b"too long"], ""),
            ("2", &[b"t", b"oo long"], "t"),
        ];
        for (length, pieces, may_arrive) in cases {
            let mut client = front.connect().await;
            client.send(&hello(&[])).await;
            let key = front.rig.key.reveal().to_owned();
            let fields = [("content-length", length)];
            let head = request("POST", "/api/v1/echo/a", &key, &fields);
            client.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
            front
                .upstream
                .until(|upstream| !upstream.left().is_empty())
                .await;
            let (last, first) = pieces.split_last().expect("a piece");
            for piece in first {
                client.send(&frame(DATA, 0, 1, piece)).await;
            }
            client.send(&frame(DATA, END_STREAM, 1, last)).await;
            let probe = request("GET", "/api/v1/echo/probe", &key, &[]);
            client
                .send(&frame(HEADERS, END_STREAM | END_HEADERS, 3, &probe))
                .await;
            let reset = client.frame_that(|frame| frame.kind == RST_STREAM && frame.stream == 1);
            assert!(reset.await.is_some(), "{pieces:?}");
            let data = client.frame_that(|frame| frame.kind == DATA && frame.stream == 3);
            assert_eq!(data.await.expect("an answer").content, b"ok");
            let (got, left) = front.arrived().await;
            assert_eq!(got.len(), 1, "{pieces:?}: {got:?}");
            assert_eq!(left.len(), 1, "{pieces:?}: {left:?}");
            let is_beginning = !left[0].is_open && left[0].begins("POST /a", may_arrive);
            assert!(is_beginning, "{pieces:?}: {left:?}");
        }
    });
}

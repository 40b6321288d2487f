//! Requests with mistakes that somebody reads as something else.

use std::fmt;

use proptest::{
    prelude::*,
    sample::{Index, select},
};

/// Request lines that are in order, and others.
const GOOD_LINES: &[&str] = &[
    "GET / HTTP/1.1",
    "POST /a?b=c HTTP/1.1",
    "X-Y * HTTP/1.1",
    "GET http://a/ HTTP/1.1",
    "GET / HTTP/1.0",
];
const BAD_LINES: &[&str] = &[
    "GET  / HTTP/1.1",
    "GET\t/ HTTP/1.1",
    "GET / HTTP/1.1 HTTP/1.1",
    "GET /a b HTTP/1.1",
    "GET /a HTTP/1.1 HTTP/1.0",
    "GET /a#b HTTP/1.1",
    "GET /\u{e9} HTTP/1.1",
    "GET /\u{1} HTTP/1.1",
    "GET / HTTP/1.2",
    "GET / http/1.1",
    "GET / XHTTP/1.0",
    "GET / HTTP/1.1 ",
    "GET /",
    "GET HTTP/1.1",
    "G(T / HTTP/1.1",
    " GET / HTTP/1.1",
    "\r\nGET / HTTP/1.1",
    "\nGET / HTTP/1.1",
    "\r\n\r\nGET / HTTP/1.1",
    "TRACE / HTTP/1.1",
    "",
];

/// Fields that are in order, and others.
const GOOD_FIELDS: &[&str] = &[
    "x: y",
    "x-empty:",
    "expect: 100-continue",
    "te:\ttrailers ",
    "x: \u{e9}",
];
const BAD_FIELDS: &[&str] = &[
    "content-length: 3",
    "content-length: 5",
    "content-length: 3, 3",
    "content-length: +3",
    "content-length: -3",
    "content-length: 03",
    "content-length: 0x3",
    "content-length: 3 3",
    "content-length: 3;",
    "content-length: \"3\"",
    "content-length:",
    "content-length: \u{b}3",
    "content-length: \u{c}3",
    "content-length: 18446744073709551619",
    "content-length : 3",
    "content-length\t: 3",
    "content_length: 3",
    "content.length: 3",
    "content length: 3",
    " content-length: 3",
    "\u{b}content-length: 3",
    "content-length",
    "content-lengthy: 3",
    "x-content-length: 3",
    "x: y\n content-length: 3",
    "x: y\ncontent-length: 3",
    "x: y\rcontent-length: 3",
    "transfer-encoding: chunked",
    "transfer-encoding: identity",
    "transfer-encoding: gzip, chunked",
    "transfer-encoding: chunked, chunked",
    "transfer-encoding: chunked, identity",
    "transfer-encoding: chunked;q=1",
    "transfer-encoding: xchunked",
    "transfer-encoding: \u{b}chunked",
    "transfer-encoding: \u{c}chunked",
    "transfer-encoding: chunked\0",
    "transfer-encoding:",
    "transfer-encoding:\r\n chunked",
    "transfer-encoding : chunked",
    "transfer_encoding: chunked",
    "\ttransfer-encoding: chunked",
    "x: y\r\n\ttransfer-encoding: chunked",
    "host: b",
    "host : b",
    "host",
    "x y: z",
    "x\0: y",
    "x: y\0",
    "x: a\rb",
    "h\u{e9}: y",
    ": y",
    "x",
    "x: y\r\n z",
];

const BAD_ENDS: &[&str] = &["\n", "\r", "\r\r\n", "\n\r\n", "", " \r\n", "\r\n "];

/// Bodies in chunks that are in order, and others.
const GOOD_CHUNKS: &[&str] = &[
    "0\r\n\r\n",
    "3\r\nabc\r\n0\r\n\r\n",
    "003;a=\"b\"\r\nabc\r\nA\r\n0123456789\r\n00\r\nx: y\r\n\r\n",
];
const BAD_CHUNKS: &[&str] = &[
    "3 \r\nabc\r\n0\r\n\r\n",
    " 3\r\nabc\r\n0\r\n\r\n",
    "+3\r\nabc\r\n0\r\n\r\n",
    "0x3\r\nabc\r\n0\r\n\r\n",
    "3\nabc\r\n0\r\n\r\n",
    "3\rabc\r\n0\r\n\r\n",
    "3;a\nb\r\nabc\r\n0\r\n\r\n",
    "3;\u{1}\r\nabc\r\n0\r\n\r\n",
    "3\r\nabc\n0\r\n\r\n",
    "3\r\nabc0\r\n\r\n",
    "3\r\nab\r\n0\r\n\r\n",
    "\r\nabc\r\n0\r\n\r\n",
    "3\r\nabc\r\n0\r\n\n",
    "3\r\nabc\r\n0\r\ncontent-length: 3\r\n\r\n",
    "0\r\nx y: z\r\n\r\n",
    "0\r\nx: y\r\n z\r\n\r\n",
    "fffffffffffffff0\r\n",
    "10000000000000003\r\nabc\r\n0\r\n\r\n",
];

/// One thing that is wrong with a request.
#[derive(Clone, Debug)]
enum Fault {
    Line(&'static str),
    Field(Index, &'static str),
    End(Index, &'static str),
    Chunks(&'static str),
    Insert(Index, u8),
    Replace(Index, u8),
    Remove(Index),
}

fn fault() -> impl Strategy<Value = Fault> {
    let byte = || select(b"\r\n\t \0\x0b\x0c\x7f\x80:;,-_013aA".to_vec());
    prop_oneof![
        2 => select(BAD_LINES).prop_map(Fault::Line),
        8 => (any::<Index>(), select(BAD_FIELDS)).prop_map(|(at, it)| Fault::Field(at, it)),
        2 => (any::<Index>(), select(BAD_ENDS)).prop_map(|(at, it)| Fault::End(at, it)),
        3 => select(BAD_CHUNKS).prop_map(Fault::Chunks),
        1 => (any::<Index>(), byte()).prop_map(|(at, it)| Fault::Insert(at, it)),
        1 => (any::<Index>(), byte()).prop_map(|(at, it)| Fault::Replace(at, it)),
        1 => any::<Index>().prop_map(Fault::Remove),
    ]
}

/// What is said of the body, and the body.
fn body() -> impl Strategy<Value = (Option<&'static str>, &'static str)> {
    prop_oneof![
        Just((None, "")),
        select(vec![("content-length: 3", "abc"), ("Content-Length:0", "")])
            .prop_map(|(field, body)| (Some(field), body)),
        (
            select(vec![
                "transfer-encoding: chunked",
                "TRANSFER-ENCODING:\t Chunked "
            ]),
            select(GOOD_CHUNKS)
        )
            .prop_map(|(field, body)| (Some(field), body)),
    ]
}

/// What a client sends, readable.
#[derive(Clone)]
pub(super) struct Sent(pub(super) Vec<u8>);

impl fmt::Debug for Sent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "b\"{}\"", self.0.escape_ascii())
    }
}

/// A request, what is wrong with it, and another request behind it.
pub(super) fn stream() -> impl Strategy<Value = Sent> {
    let parts = (
        select(GOOD_LINES),
        prop::collection::vec(select(GOOD_FIELDS), 0..3),
        body(),
        prop::collection::vec(fault(), 0..3),
    );
    parts.prop_map(|(mut line, mut fields, (about, mut body), faults)| {
        fields.insert(0, "host: a");
        fields.extend(about);
        let mut ends = vec!["\r\n"; fields.len() + 5];
        for fault in &faults {
            match fault {
                Fault::Line(other) => line = *other,
                Fault::Field(at, field) => fields.insert(at.index(fields.len() + 1), *field),
                Fault::End(at, end) => *at.get_mut(&mut ends) = *end,
                Fault::Chunks(other) if body.contains("0\r\n") => body = *other,
                _ => {}
            }
        }
        let lines = [line].into_iter().chain(fields).chain([""]);
        let text: String = lines
            .zip(ends)
            .flat_map(|(line, end)| [line, end])
            .collect();
        let next = "GET /next HTTP/1.1\r\nhost: n\r\ncontent-length: 2\r\n\r\nok";
        let mut bytes = [&text, body, next].concat().into_bytes();
        for fault in &faults {
            match fault {
                Fault::Insert(at, byte) => bytes.insert(at.index(bytes.len()), *byte),
                Fault::Replace(at, byte) => *at.get_mut(&mut bytes) = *byte,
                Fault::Remove(at) => drop(bytes.remove(at.index(bytes.len()))),
                _ => {}
            }
        }
        Sent(bytes)
    })
}

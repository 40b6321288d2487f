//! What is read in one pass is what a lenient parser and a strict one read together.

#![expect(
    clippy::indexing_slicing,
    reason = "a test that is wrong about its own data may panic"
)]

use httparse::{EMPTY_HEADER, Status};
use proptest::prelude::*;

use super::{
    super::{super::framing::Framing, answer::Answer, request::Request},
    NO_FIELDS, is_named, text_bytes,
};

/// Names and values of a head.
type Read = Vec<(Vec<u8>, Vec<u8>)>;

/// What `httparse` reads of a whole request whose head is the beginning: method, target, fields and
/// length of the head.
fn leniently(request: &[u8]) -> Option<(String, String, Read, usize)> {
    let mut fields = [EMPTY_HEADER; 128];
    let mut read = httparse::Request::new(&mut fields);
    let Ok(Status::Complete(bytes)) = read.parse(request) else {
        return None;
    };
    let (method, target) = (read.method?.to_owned(), read.path?.to_owned());
    (read.version == Some(1)).then(|| (method, target, of(read.headers), bytes))
}

fn of(fields: &[httparse::Header<'_>]) -> Read {
    let fields = fields.iter();
    let fields = fields.map(|field| (field.name.as_bytes().to_vec(), field.value.to_vec()));
    fields.collect()
}

/// Whether who reads strictly sees one request in these bytes, and nothing else.
fn is_one(bytes: &[u8]) -> bool {
    let mut framing = Framing::new();
    framing.pass(bytes).is_ok()
        && framing.heads() == 1
        && !framing.is_in_head()
        && !framing.is_in_body()
}

/// Reads a request, and asserts that others read the same. Returns whether it was read.
fn assert_alike(input: &[u8]) -> bool {
    let mut room = NO_FIELDS;
    let Some(request) = Request::parse(input, &mut room) else {
        return false;
    };
    let text = String::from_utf8_lossy(input);
    let Some((method, target, fields, head)) = leniently(input) else {
        unreachable!("others read {text:?} in another way")
    };
    assert!(is_one(&input[..request.bytes]), "{text:?}");
    assert_eq!(method, request.method.as_str());
    let query = request.query.map(|query| format!("?{query}"));
    assert_eq!(target, request.path.to_owned() + &query.unwrap_or_default());
    let ours = request.fields.iter();
    let ours: Read = ours
        .map(|it| (it.name.to_vec(), it.value.to_vec()))
        .collect();
    assert_eq!(ours, fields, "{text:?}");
    assert_eq!(&input[head..request.bytes], request.body, "{text:?}");
    for (name, value) in &fields {
        let value = value.as_slice();
        assert!(value.is_ascii(), "{text:?}");
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        let known = &request.known;
        assert!(!is("host") || known.host == value, "{text:?}");
        assert!(!is("x-api-key") || known.api_key == Some(value), "{text:?}");
        assert!(!is("authorization") || known.authorization == Some(value));
        for uncommon in ["te", "expect", "origin", "upgrade", "transfer-encoding"] {
            assert!(!is(uncommon), "{text:?}");
        }
        let is_length = is("content-length");
        let length = request.body.len().to_string();
        assert!(!is_length || value == length.as_bytes(), "{text:?}");
    }
    true
}

/// Pieces of which requests are made, most of them in order.
fn piece() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "GET ",
        "POST ",
        "/",
        "/a?b=c",
        "/a?b?c",
        "/%41",
        " HTTP/1.1\r\n",
        " HTTP/1.0\r\n",
        "\r\n",
        "\n",
        "\r",
        "\0",
        "\t",
        " ",
        ":",
        "-",
        "_",
        "\u{e9}",
        "\u{7f}",
        "x",
        "5",
        "0",
        "host: a\r\n",
        "Host:b:80\r\n",
        "host: \r\n",
        "host: a/b\r\n",
        "host.x: 1\r\n",
        "content-length: 1\r\n",
        "Content-Length:\t1 \r\n",
        "content-length: 01\r\n",
        "content_length: 1\r\n",
        "content-length : 1\r\n",
        "content-length.x: 1\r\n",
        "content-lengths: 1\r\n",
        "transfer-encoding: chunked\r\n",
        "transfer_encoding: x\r\n",
        "x-api-key: k\r\n",
        "X_Odd~name: v\r\n",
        " folded\r\n",
        ": v\r\n",
        "a:\r\n",
        "expect: x\r\n",
        "connection: keep-alive\r\n",
        "connection: close\r\n",
        "te: trailers\r\n",
        "x",
        "accept: */*\r\n",
    ])
}

fn request() -> impl Strategy<Value = Vec<u8>> {
    let begin = prop::sample::select(vec![
        "GET /a HTTP/1.1\r\nhost: a\r\n",
        "POST /a?b HTTP/1.1\r\nhost: a\r\nx-api-key: k\r\n",
        "GET /api/v1/echo/a HTTP/1.1\r\n",
        "",
    ]);
    let pieces = prop::collection::vec(piece(), 0..6);
    let end = prop::sample::select(vec!["\r\n", "\r\nx", "\r\nGET / HTTP/1.1\r\n", ""]);
    let change = prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()));
    (begin, pieces, end, change).prop_map(|(begin, pieces, end, change)| {
        let mut bytes = [begin, &pieces.concat(), end].concat().into_bytes();
        if let Some((at, byte)) = change
            && !bytes.is_empty()
        {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_096))]

    #[test]
    fn who_reads_leniently_and_who_reads_strictly_see_the_same_request(input in request()) {
        assert_alike(&input);
    }

    #[test]
    fn an_answer_is_read_as_by_others(
        pieces in prop::collection::vec(piece(), 0..6),
        status in prop::sample::select(vec!["200 OK", "204", "404 ", "20 x", "200x"]),
    ) {
        let head = ["HTTP/1.1 ", status, "\r\ncontent-length: 1\r\n", &pieces.concat(), "\r\n"];
        let answer = head.concat();
        let mut room = NO_FIELDS;
        if let Ok(answered) = Answer::parse(answer.as_bytes(), &mut room) {
            let mut fields = [EMPTY_HEADER; 128];
            let mut read = httparse::Response::new(&mut fields);
            let whole = Ok(Status::Complete(answered.bytes));
            prop_assert_eq!(read.parse(answer.as_bytes()), whole);
            prop_assert_eq!(read.code, Some(answered.status));
            let ours = answered.fields.iter();
            let ours: Read = ours.map(|it| (it.name.to_vec(), it.value.to_vec())).collect();
            prop_assert_eq!(ours, of(read.headers));
        }
    }

    #[test]
    fn text_ends_at_the_first_byte_that_is_none(
        text in prop::collection::vec(prop_oneof![4 => 0x20..0x7f_u8, 1 => any::<u8>()], 0..40),
        is_ascii in any::<bool>(),
    ) {
        let is_text = |byte: &u8| !byte.is_ascii_control() && (byte.is_ascii() || !is_ascii);
        let end = text.iter().position(|byte| !is_text(byte)).unwrap_or(text.len());
        prop_assert_eq!(text_bytes(&text, is_ascii), end);
    }
}

#[test]
fn requests_of_the_common_shape_are_read() {
    for request in [
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /a?b=c?d HTTP/1.1\r\nHOST:a.example:80\r\nX-Empty:\r\nx-padded: \ta b\t \r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\nx_odd.name: 1\r\n\r\nokGET /",
    ] {
        assert!(assert_alike(request.as_bytes()), "{request:?}");
    }
}

#[test]
fn a_name_is_itself_in_any_case_alone() {
    assert!(is_named(b"Content-Length", "content-length"));
    for other in ["content_length", "content-lengt", "content-length2"] {
        assert!(!is_named(other.as_bytes(), "content-length"), "{other:?}");
    }
}

//! The reader beside hyper, alone.

mod differential;

use proptest::prelude::*;
use types::Refusal;

use super::{Breach, Framing};
use crate::listen::limits::{FIELDS_MAX, HEAD_BYTES_MAX, TARGET_BYTES_MAX};

/// Reads pieces; how many heads have ended, or where it stopped.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<u64, (Refusal, u64)> {
    let mut framing = Framing::new();
    for piece in pieces {
        if let Err(breach) = framing.pass(piece) {
            return Err((breach.refusal, framing.heads()));
        }
    }
    Ok(framing.heads())
}

const HEAD: &str = "GET / HTTP/1.1\r\nhost: a\r\n";

#[test]
fn requests_follow_each_other() {
    let two = format!("{HEAD}\r\n{HEAD}content-length: 3\r\n\r\nabc{HEAD}\r\n");
    assert_eq!(read([two.as_bytes()]), Ok(3));
    let chunked =
        format!("{HEAD}transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n{HEAD}\r\n");
    assert_eq!(read([chunked.as_bytes()]), Ok(2));
}

#[test]
fn what_is_sound_before_a_breach_is_told() {
    let good = format!("{HEAD}\r\n");
    let both = format!("{good}GET / HTTP/1.1\nhost: a\r\n\r\n");
    let expected = Breach {
        refusal: Refusal::BadRequest,
        sound: good.len(),
        in_body: false,
    };
    assert_eq!(Framing::new().pass(both.as_bytes()), Err(expected));
}

#[test]
fn limits_are_kept_to_the_byte() {
    let line = |bytes: usize| format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(bytes));
    assert_eq!(read([line(TARGET_BYTES_MAX - 1).as_bytes()]), Ok(1));
    let long = line(TARGET_BYTES_MAX);
    assert_eq!(read([long.as_bytes()]), Err((Refusal::TargetTooLong, 0)));

    let fill = HEAD_BYTES_MAX - HEAD.len() - "x: \r\n\r\n".len();
    let head = |bytes: usize| format!("{HEAD}x: {}\r\n\r\n", "a".repeat(bytes));
    assert_eq!(read([head(fill).as_bytes()]), Ok(1));
    let long = head(fill + 1);
    assert_eq!(read([long.as_bytes()]), Err((Refusal::HeadersTooLarge, 0)));
    // A line that never ends is not kept for ever.
    let endless = format!("{HEAD}x: {}", "a".repeat(fill + 10));
    let pieces = endless.as_bytes().chunks(100);
    assert_eq!(read(pieces), Err((Refusal::HeadersTooLarge, 0)));

    let head = |fields: usize| format!("{HEAD}{}\r\n", "x: y\r\n".repeat(fields - 1));
    assert_eq!(read([head(FIELDS_MAX).as_bytes()]), Ok(1));
    let many = head(FIELDS_MAX + 1);
    assert_eq!(read([many.as_bytes()]), Err((Refusal::HeadersTooLarge, 0)));
}

/// RFC 9110, 5.5: a space or a tab may stand around a value, and nothing else is like them.
#[test]
fn only_blanks_are_trimmed() {
    let bad = Err((Refusal::BadRequest, 0));
    for blank in ["\u{c}", "\r", "\u{b}", "\0"] {
        for field in [
            "content-length: {}0",
            "content-length: 0{}",
            "transfer-encoding: {}chunked",
        ] {
            let field = field.replace("{}", blank);
            let head = format!("{HEAD}{field}\r\n\r\n");
            assert_eq!(read([head.as_bytes()]), bad, "{field:?}");
        }
    }
}

/// Something like a stream of requests, with mistakes.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop::sample::select(vec![
        "GET / HTTP/1.1\r\n",
        "POST /a HTTP/1.1\r\n",
        "GET / HTTP/1.0\r\n",
        "host: a\r\n",
        "content-length: 3\r\n",
        "content-length: 0\r\n",
        "transfer-encoding: chunked\r\n",
        "x: y\r\n",
        "\r\n",
        "\n",
        "abc",
        "3\r\nabc\r\n",
        "0\r\n\r\n",
        " ",
    ]);
    prop::collection::vec(pieces, 0..20).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    /// Where a stream is cut into reads changes nothing.
    #[test]
    fn pieces_are_read_as_the_whole(bytes in stream(), size in 1_usize..9) {
        prop_assert_eq!(read([&bytes[..]]), read(bytes.chunks(size)));
    }
}

//! What is a key, and what is kept.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body::Frame;
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use types::{KEPT_BODY_BYTES_MAX, KEPT_HEADERS_BYTES_MAX, Refusal};

use super::{
    answer::{BodyDigest, Transcript},
    find,
    key::{self, HEADER},
};

fn read(text: &str) -> Option<String> {
    let key = key::read(text.as_bytes())?;
    Some(String::from_utf8(key).expect("a key is text"))
}

#[test]
fn a_key_is_a_string_of_rfc_9651_or_the_same_text_bare() {
    let whole = "8e03978e-40d5-43dd-bc93-6894a57f9324";
    assert_eq!(read(whole).as_deref(), Some(whole));
    assert_eq!(read(&format!("\"{whole}\"")).as_deref(), Some(whole));
    assert_eq!(read(r#""a\"b\\c""#).as_deref(), Some(r#"a"b\c"#));
    assert_eq!(
        read("order/7:retry=2+x").as_deref(),
        Some("order/7:retry=2+x")
    );
    for malformed in [
        "",
        "\"",
        "\"\"",
        "\"a",
        "a\"",
        "\"a\"b\"",
        r#""a\b""#,
        r#""a\"#,
        "a b",
        "\"a b\"",
        "a,b",
        "\"a\", \"b\"",
        "a;b=1",
        "\"a\";b=1",
        "a\tb",
        "clé",
        "a\\b",
    ] {
        assert_eq!(read(malformed), None, "{malformed:?}");
    }
    let longest = "k".repeat(255);
    assert_eq!(read(&longest).as_deref(), Some(longest.as_str()));
    assert_eq!(
        read(&format!("\"{longest}\"")).as_deref(),
        Some(longest.as_str())
    );
    assert_eq!(read(&format!("{longest}k")), None);
}

fn headers(values: &[&[u8]]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(HEADER, HeaderValue::from_bytes(value).expect("a value"));
    }
    headers
}

#[test]
fn a_key_that_is_there_twice_or_malformed_is_refused_by_name() {
    let two: [&[u8]; 2] = [b"a", b"a"];
    for values in [&two[..], &[b"".as_slice()], &[b"\xff".as_slice()]] {
        let refused = find(&Method::POST, &headers(values)).expect_err("refused");
        assert_eq!(refused.refusal, Refusal::BadRequest);
        assert!(
            refused.detail.contains("Idempotency-Key"),
            "{}",
            refused.detail
        );
    }
    assert!(find(&Method::POST, &headers(&[])).expect("none").is_none());
    for method in [Method::POST, Method::PATCH] {
        assert!(find(&method, &headers(&[b"a"])).expect("one").is_some());
    }
    // Where it means nothing, nothing about it is wrong.
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::HEAD] {
        assert!(find(&method, &headers(&two)).expect("not ours").is_none());
    }
}

fn head(fields: &[(&str, &str)]) -> HeaderMap {
    let field = |(name, value): &(&str, &str)| {
        let name = HeaderName::try_from(*name).expect("a name");
        (name, HeaderValue::try_from(*value).expect("a value"))
    };
    fields.iter().map(field).collect()
}

#[test]
fn what_is_kept_of_an_answer_is_what_the_upstream_said_to_everybody() {
    let head = head(&[
        ("content-type", "application/pdf"),
        ("x-total", "7"),
        ("set-cookie", "session=1"),
        ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("content-length", "5"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("x-request-id", "theirs"),
        ("tollgate-usage", "pages=5"),
        ("idempotency-replayed", "true"),
    ]);
    let mut passing = Transcript::of(201, &head).expect("kept");
    assert!(passing.take(b"he") && passing.take(b"llo"));
    let kept = passing.into_kept([7; 32]);
    let names: Vec<&str> = kept.headers.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["content-type", "x-total"]);
    assert_eq!(
        (kept.status, kept.body.as_slice()),
        (201, b"hello".as_slice())
    );
    assert_eq!(kept.request_body_sha256, [7; 32]);
}

#[test]
fn what_is_too_large_is_not_kept() {
    let exact = KEPT_BODY_BYTES_MAX.to_string();
    assert!(Transcript::of(200, &head(&[("content-length", &exact)])).is_some());
    let more = KEPT_BODY_BYTES_MAX.saturating_add(1).to_string();
    assert!(Transcript::of(200, &head(&[("content-length", &more)])).is_none());
    let long = "v".repeat(KEPT_HEADERS_BYTES_MAX);
    assert!(Transcript::of(200, &head(&[("x", &long)])).is_none());
    let mut passing = Transcript::of(200, &HeaderMap::new()).expect("kept");
    assert!(passing.take(&vec![0; KEPT_BODY_BYTES_MAX]));
    assert!(passing.take(b"") && !passing.take(b"1"));
}

proptest! {
    #[test]
    fn a_body_has_one_digest_however_it_is_cut(
        body in prop::collection::vec(any::<u8>(), 0..200),
        cuts in prop::collection::vec(0..200_usize, 0..5),
    ) {
        let digest = BodyDigest::default();
        let mut rest = Bytes::from(body.clone());
        for cut in cuts {
            digest.pass(&Frame::data(rest.split_to(cut.min(rest.len()))), false);
            prop_assert_eq!(digest.digest(), None, "the end was not seen");
        }
        digest.pass(&Frame::data(rest), true);
        prop_assert_eq!(digest.digest(), Some(Sha256::digest(&body).into()));
    }

    #[test]
    fn every_text_that_can_be_a_key_can_be_sent_as_a_string(text in "[!-~]{1,255}") {
        let escaped = text.replace('\\', r"\\").replace('"', "\\\"");
        let quoted = read(&format!("\"{escaped}\""));
        prop_assert_eq!(quoted.as_deref(), Some(text.as_str()));
        // One that has quotes of its own is a string already.
        if let Some(bare) = read(&text).filter(|_| !text.starts_with('"')) {
            prop_assert!(bare == text);
        }
    }
}

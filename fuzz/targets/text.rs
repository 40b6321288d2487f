//! What strangers write: keys, paths, reported units.

use gateway::cores;
use http::HeaderValue;
use types::PresentedKey;

/// A key is accepted only as it was made: with one character changed it is none.
pub(super) fn key(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if PresentedKey::parse(text).is_err() {
        return;
    }
    for position in 0..text.len() {
        let mut changed = text.as_bytes().to_vec();
        changed[position] ^= 1;
        let changed = String::from_utf8(changed).expect("ASCII stays ASCII");
        assert!(PresentedKey::parse(&changed).is_err(), "{position}");
    }
}

/// Decodes each escape once, like an upstream that is naive.
fn decoded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, tail)) = rest.split_first() {
        let digits = tail
            .get(..2)
            .filter(|it| it.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.and_then(|it| std::str::from_utf8(it).ok());
        let escaped = digits.and_then(|it| u8::from_str_radix(it, 16).ok());
        match (byte, escaped) {
            (b'%', Some(escaped)) => {
                out.push(escaped);
                rest = &tail[2..];
            }
            _ => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
    out
}

/// However often an upstream decodes what is forwarded, it finds the segments we saw.
pub(super) fn path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Some((service, rest)) = cores::path(text) else {
        return;
    };
    assert!(!service.is_empty() && (rest.is_empty() || rest.starts_with('/')));
    assert!(text.ends_with(rest), "the bytes are forwarded as they are");
    let segments = rest.split('/').count();
    let mut seen = rest.as_bytes().to_vec();
    for _ in 0..3 {
        let parts = seen.split(|byte| *byte == b'/');
        assert!(parts.clone().all(|part| part != b".." && part != b"."));
        assert_eq!(parts.count(), segments, "an upstream sees other segments");
        let alters = |byte: &u8| matches!(byte, b'\\' | b';') || byte.is_ascii_control();
        assert!(!seen.iter().any(alters));
        seen = decoded(&seen);
    }
    assert!(cores::governs("/", rest) || rest.is_empty());
}

/// Untrusted: what is malformed or too much is left out.
pub(super) fn units(data: &[u8]) {
    let Ok(header) = HeaderValue::from_bytes(data) else {
        return;
    };
    let units = cores::units(&header);
    assert!(units.len() <= 16);
    for (name, count) in units {
        assert!((1..=32).contains(&name.len()) && name.is_ascii());
        assert!(i64::try_from(count).is_ok());
    }
}

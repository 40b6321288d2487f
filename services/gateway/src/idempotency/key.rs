//! The header: a key as clients write it.

use http::{HeaderMap, HeaderName};
use sha2::{Digest as _, Sha256};

use super::Digest;

/// Carries the key; it reaches the upstream as it came.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// Characters of a key.
const CHARS_MAX: usize = 255;

/// The header is there more than once, or is no key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Malformed;

/// The digest of the key of a request, when it carries one. The value itself is kept nowhere.
pub(crate) fn find(headers: &HeaderMap) -> Result<Option<Digest>, Malformed> {
    let mut values = headers.get_all(HEADER).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Malformed);
    }
    let key = read(value.as_bytes()).ok_or(Malformed)?;
    Ok(Some(Sha256::digest(&key).into()))
}

/// The key inside a value: a string of RFC 9651 without parameters, `"…"`, or the same text bare,
/// as most clients send it. Both spellings are one key. Bare, what would end a string or begin
/// another member of a list is refused: a proxy may have joined two headers.
pub(crate) fn read(value: &[u8]) -> Option<Vec<u8>> {
    let key = match value.strip_prefix(b"\"") {
        Some(rest) => unescape(rest.strip_suffix(b"\"")?)?,
        None if value.iter().any(|byte| b"\",;\\".contains(byte)) => return None,
        None => value.to_vec(),
    };
    let is_visible = key.iter().all(u8::is_ascii_graphic);
    (is_visible && (1..=CHARS_MAX).contains(&key.len())).then_some(key)
}

fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return None,
            b'\\' => plain.push(*bytes.next().filter(|next| b"\"\\".contains(next))?),
            other => plain.push(*other),
        }
    }
    Some(plain)
}

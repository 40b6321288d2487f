//! Which paths are forwarded at all, and which route's rules govern them.
//!
//! - The bytes that are matched are the bytes that are forwarded: nothing is decoded or cleaned up.
//! - A path that an upstream could read as a different one – because it resolves dots, merges
//!   slashes, decodes escapes once more, turns backslashes or cuts parameters – is refused, so what
//!   was matched here is what is served there.

use memchr::memchr;

/// Longer paths are refused.
pub(crate) const PATH_BYTES_MAX: usize = 8 * 1024;
const MOUNT: &str = "/api/v1/";

const MALFORMED: &str = "the path holds a malformed percent escape";
const NOT_UTF8: &str = "the path is not UTF-8 once decoded";

/// Splits `/api/v1/{service}/{rest…}` into the service and the rest, which is empty or begins with
/// a slash. The service is whatever stands there: only a known name goes further.
pub(crate) fn split(path: &str) -> Option<(&str, &str)> {
    let tail = path.strip_prefix(MOUNT)?;
    let end = memchr(b'/', tail.as_bytes()).unwrap_or(tail.len());
    let (service, rest) = tail.split_at(end);
    (!service.is_empty()).then_some((service, rest))
}

/// Accepts the rest of a path if every upstream will read it as we do; the error says why not.
pub(crate) fn check(rest: &str) -> Result<(), &'static str> {
    if rest.is_empty() {
        return Ok(());
    }
    if rest.len() > PATH_BYTES_MAX {
        return Err("the path is longer than 8 KiB");
    }
    let segments = rest
        .as_bytes()
        .strip_prefix(b"/")
        .ok_or("the path does not begin with a slash")?;
    let mut segments = segments.split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        if segment.is_empty() && segments.peek().is_some() {
            return Err("the path holds an empty segment");
        }
        if matches!(segment, b"." | b"..") {
            return Err("the path holds a dot segment");
        }
        check_segment(segment)?;
    }
    Ok(())
}

/// Whether a route with `prefix` governs `path`: equal, or continued at a segment boundary. A
/// slash at the end of the prefix changes nothing, so `/` governs everything.
pub(crate) fn matches(prefix: &str, path: &str) -> bool {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn check_segment(segment: &[u8]) -> Result<(), &'static str> {
    let mut left = segment;
    while let Some((byte, tail)) = left.split_first() {
        left = match byte {
            b'%' => check_escape(tail)?,
            b'\\' => return Err("the path holds a backslash"),
            b';' => return Err("the path holds a semicolon"),
            b'?' | b'#' => return Err("the path holds a query or a fragment"),
            _ if byte.is_ascii_control() => return Err("the path holds a control character"),
            _ => tail,
        };
    }
    Ok(())
}

/// Checks what follows a percent sign and returns what follows the escaped character.
fn check_escape(text: &[u8]) -> Result<&[u8], &'static str> {
    let (byte, tail) = escaped(text).ok_or(MALFORMED)?;
    if !byte.is_ascii() {
        return check_character(byte, tail);
    }
    if let Some(reason) = refusal(byte) {
        return Err(reason);
    }
    if byte == b'%' {
        // For an upstream that decodes twice, or three times, this is an escape of its own.
        let mut inner = tail;
        while let Some(deeper) = inner.strip_prefix(b"25") {
            inner = deeper;
        }
        if escaped(inner).is_some_and(|(byte, _)| refusal(byte).is_some()) {
            return Err("the path holds a doubly escaped character that means something else");
        }
    }
    Ok(tail)
}

/// Why a character must not be escaped. RFC 3986 (2.3) calls an escaped unreserved character
/// equivalent to the plain one: upstreams decode `/%61dmin`, our routes would not.
fn refusal(byte: u8) -> Option<&'static str> {
    match byte {
        b'/' => Some("the path holds an escaped slash"),
        b'\\' => Some("the path holds an escaped backslash"),
        b';' => Some("the path holds an escaped semicolon"),
        b'.' => Some("the path holds an escaped dot"),
        b'-' | b'_' | b'~' => Some("the path escapes a character that needs no escape"),
        _ if byte.is_ascii_alphanumeric() => {
            Some("the path escapes a character that needs no escape")
        }
        _ if byte.is_ascii_control() => Some("the path holds an escaped control character"),
        _ => None,
    }
}

/// Checks the escapes of one character beyond ASCII, of which `first` is decoded already. The text
/// around it is UTF-8 by itself, so each character's escapes must be complete by themselves.
fn check_character(first: u8, mut tail: &[u8]) -> Result<&[u8], &'static str> {
    let mut character = [first, 0, 0, 0];
    let length = match first {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return Err(NOT_UTF8),
    };
    let character = character.get_mut(..length).ok_or(NOT_UTF8)?;
    for slot in character.iter_mut().skip(1) {
        let escape = tail.strip_prefix(b"%").ok_or(NOT_UTF8)?;
        (*slot, tail) = escaped(escape).ok_or(MALFORMED)?;
    }
    match str::from_utf8(character) {
        Ok(_) => Ok(tail),
        Err(_) => Err(NOT_UTF8),
    }
}

/// Decodes the two digits after a percent sign.
fn escaped(text: &[u8]) -> Option<(u8, &[u8])> {
    let (digits, tail) = text.split_first_chunk::<2>()?;
    let mut byte = [0];
    hex::decode_to_slice(digits, &mut byte).ok()?;
    let [byte] = byte;
    Some((byte, tail))
}

#[cfg(test)]
mod tests;

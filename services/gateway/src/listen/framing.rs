//! Reads an HTTP/1 connection beside hyper, and more strictly.
//!
//! - hyper gets no byte that did not pass here, and what has passed has one reading only: one
//!   length, one host, lines that end in CR LF. So whoever is in front of this gateway, or behind
//!   it, sees the same requests in the same bytes.
//! - Only lines and lengths are looked at. What a name or a value may be made of, hyper knows.

use memchr::{memchr, memrchr};
use types::Refusal;

use super::limits::{FIELDS_MAX, HEAD_BYTES_MAX, TARGET_BYTES_MAX};
use crate::headers;

/// Longest line that says how long a chunk is, its extensions included.
const CHUNK_LINE_BYTES_MAX: usize = 256;
/// Longest request line around its target: a method and a version.
const AROUND_TARGET_BYTES_MAX: usize = 64;
/// Digits of a length.
const LENGTH_DIGITS_MAX: usize = 18;
/// Hexadecimal digits of a chunk's size.
const CHUNK_DIGITS_MAX: usize = 15;
/// Blank lines before a request: some clients end a body with one.
const BLANKS_MAX: u8 = 1;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Before a request line.
    Start,
    Fields,
    /// So many bytes are left of a body.
    Body(u64),
    ChunkSize,
    /// So many bytes are left of a chunk.
    Chunk(u64),
    /// Behind the bytes of a chunk.
    ChunkEnd,
    Trailers,
}

/// What the fields so far say of the body.
#[derive(Clone, Copy, Default, Debug)]
struct Head {
    is_http10: bool,
    length: Option<u64>,
    is_chunked: bool,
    has_host: bool,
    bytes: usize,
    fields: usize,
    blanks: u8,
}

/// Where a connection is.
#[derive(Debug)]
pub(super) struct Framing {
    state: State,
    head: Head,
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
    /// Heads that have ended.
    heads: u64,
}

/// Bytes that have no one reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Breach {
    pub(super) refusal: Refusal,
    /// So many bytes before are in order: of requests before, or, in a body, of its own.
    pub(super) sound: usize,
    /// It is in a body: its request is under way.
    pub(super) in_body: bool,
}

impl Framing {
    pub(super) const fn new() -> Self {
        Self {
            state: State::Start,
            head: Head {
                is_http10: false,
                length: None,
                is_chunked: false,
                has_host: false,
                bytes: 0,
                fields: 0,
                blanks: 0,
            },
            line: Vec::new(),
            heads: 0,
        }
    }

    /// A head has begun and not ended.
    pub(super) fn is_in_head(&self) -> bool {
        matches!(self.state, State::Fields) || (self.state == State::Start && !self.line.is_empty())
    }

    /// A body has not ended.
    pub(super) const fn is_in_body(&self) -> bool {
        !matches!(self.state, State::Start | State::Fields)
    }

    /// Heads that have ended.
    pub(super) const fn heads(&self) -> u64 {
        self.heads
    }

    /// Reads on.
    ///
    /// # Errors
    /// The bytes can be read in two ways, or are too many. Nothing is read after that.
    pub(super) fn pass(&mut self, bytes: &[u8]) -> Result<(), Breach> {
        let mut left = bytes;
        // Where the present head began; one that began earlier has nothing sound in here.
        let mut sound = 0;
        while !left.is_empty() {
            let in_body = self.is_in_body();
            if in_body || (self.state == State::Start && self.line.is_empty()) {
                sound = bytes.len().saturating_sub(left.len());
            }
            left = self.step(left).map_err(|refusal| Breach {
                refusal,
                sound,
                in_body,
            })?;
        }
        Ok(())
    }

    /// Reads bytes of a body, or a line. Returns what is behind.
    fn step<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Refusal> {
        match self.state {
            State::Body(left) => {
                let (left, behind) = skip(bytes, left);
                match left {
                    0 => self.end_message(),
                    left => self.state = State::Body(left),
                }
                Ok(behind)
            }
            State::Chunk(left) => {
                let (left, behind) = skip(bytes, left);
                self.state = match left {
                    0 => State::ChunkEnd,
                    left => State::Chunk(left),
                };
                Ok(behind)
            }
            _ => {
                let end = memchr(b'\n', bytes).map(|at| at.saturating_add(1));
                let Some((line, behind)) = end.and_then(|end| bytes.split_at_checked(end)) else {
                    self.line.extend_from_slice(bytes);
                    self.check_length(self.line.len())?;
                    return Ok(&[]);
                };
                if self.line.is_empty() {
                    self.read_line(line)?;
                } else {
                    let mut whole = std::mem::take(&mut self.line);
                    whole.extend_from_slice(line);
                    self.read_line(&whole)?;
                }
                Ok(behind)
            }
        }
    }

    /// Whether a line of so many bytes may be.
    const fn check_length(&self, bytes: usize) -> Result<(), Refusal> {
        match self.state {
            State::Start if bytes > TARGET_BYTES_MAX.saturating_add(AROUND_TARGET_BYTES_MAX) => {
                Err(Refusal::TargetTooLong)
            }
            State::Fields | State::Trailers
                if self.head.bytes.saturating_add(bytes) > HEAD_BYTES_MAX =>
            {
                Err(Refusal::HeadersTooLarge)
            }
            State::ChunkSize | State::ChunkEnd if bytes > CHUNK_LINE_BYTES_MAX => {
                Err(Refusal::BadRequest)
            }
            _ => Ok(()),
        }
    }

    fn read_line(&mut self, line: &[u8]) -> Result<(), Refusal> {
        self.check_length(line.len())?;
        // A lone line feed ends a line for some readers and not for others.
        let text = line.strip_suffix(b"\r\n").ok_or(Refusal::BadRequest)?;
        self.head.bytes = self.head.bytes.saturating_add(line.len());
        match self.state {
            State::Start if text.is_empty() => {
                self.head.blanks = self.head.blanks.saturating_add(1);
                let few = self.head.blanks <= BLANKS_MAX;
                few.then_some(()).ok_or(Refusal::BadRequest)
            }
            State::Start => {
                self.head.is_http10 = read_request_line(text)?;
                self.state = State::Fields;
                Ok(())
            }
            State::Fields if text.is_empty() => self.end_head(),
            State::Fields => {
                self.count_field()?;
                self.head.read_field(text)
            }
            State::ChunkSize => {
                self.state = match read_chunk_size(text).ok_or(Refusal::BadRequest)? {
                    0 => State::Trailers,
                    bytes => State::Chunk(bytes),
                };
                self.head.bytes = 0;
                self.head.fields = 0;
                Ok(())
            }
            State::ChunkEnd if text.is_empty() => {
                self.state = State::ChunkSize;
                Ok(())
            }
            State::Trailers if text.is_empty() => {
                self.end_message();
                Ok(())
            }
            State::Trailers => {
                self.count_field()?;
                // Whoever adds trailers to the fields would read another framing than we did.
                let mut unasked = Head::default();
                unasked.read_field(text)?;
                let frames = unasked.length.is_some() || unasked.is_chunked || unasked.has_host;
                (!frames).then_some(()).ok_or(Refusal::BadRequest)
            }
            State::ChunkEnd | State::Body(_) | State::Chunk(_) => Err(Refusal::BadRequest),
        }
    }

    const fn count_field(&mut self) -> Result<(), Refusal> {
        self.head.fields = self.head.fields.saturating_add(1);
        if self.head.fields > FIELDS_MAX {
            return Err(Refusal::HeadersTooLarge);
        }
        Ok(())
    }

    fn end_head(&mut self) -> Result<(), Refusal> {
        let head = self.head;
        let is_ambiguous = head.is_chunked && (head.length.is_some() || head.is_http10);
        if is_ambiguous || !(head.has_host || head.is_http10) {
            return Err(Refusal::BadRequest);
        }
        self.heads = self.heads.saturating_add(1);
        match head.length {
            _ if head.is_chunked => self.state = State::ChunkSize,
            None | Some(0) => self.end_message(),
            Some(bytes) => self.state = State::Body(bytes),
        }
        Ok(())
    }

    fn end_message(&mut self) {
        self.state = State::Start;
        self.head = Head::default();
    }
}

impl Head {
    /// Reads a field if it is one of those that say where a request ends or whom it is for.
    fn read_field(&mut self, text: &[u8]) -> Result<(), Refusal> {
        let bad = Refusal::BadRequest;
        match text.first().map_or(b' ', u8::to_ascii_lowercase) {
            // A line that goes on with the one before.
            b' ' | b'\t' => Err(bad),
            b'c' => match value(text, b"content-length")? {
                Some(_) if self.length.is_some() => Err(bad),
                Some(value) => {
                    self.length = Some(read_length(value).ok_or(bad)?);
                    Ok(())
                }
                None => Ok(()),
            },
            b't' => match value(text, b"transfer-encoding")? {
                Some(value) if value.eq_ignore_ascii_case(b"chunked") && !self.is_chunked => {
                    self.is_chunked = true;
                    Ok(())
                }
                Some(_) => Err(bad),
                None => Ok(()),
            },
            b'h' => match value(text, b"host")? {
                Some(_) if self.has_host => Err(bad),
                Some(value) => {
                    self.has_host = true;
                    is_host(value).then_some(()).ok_or(bad)
                }
                None => Ok(()),
            },
            b'e' => match value(text, b"expect")? {
                Some(value) if !value.eq_ignore_ascii_case(b"100-continue") => Err(bad),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// Whether nobody takes a field for one of those that say where a request ends or whom it is for,
/// or everybody does.
pub(super) fn is_unambiguous(text: &[u8]) -> bool {
    Head::default().read_field(text).is_ok()
}

/// Skips up to `left` bytes. Returns how many are left then, and what is behind.
fn skip(bytes: &[u8], left: u64) -> (u64, &[u8]) {
    let skipped = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
    let (_, behind) = bytes.split_at_checked(skipped).unwrap_or((bytes, &[]));
    (
        left.saturating_sub(u64::try_from(skipped).unwrap_or(u64::MAX)),
        behind,
    )
}

/// Returns whether the request is of HTTP/1.0.
fn read_request_line(text: &[u8]) -> Result<bool, Refusal> {
    let (Some(first), Some(last)) = (memchr(b' ', text), memrchr(b' ', text)) else {
        return Err(Refusal::BadRequest);
    };
    if last.saturating_sub(first) > TARGET_BYTES_MAX.saturating_add(1) {
        return Err(Refusal::TargetTooLong);
    }
    // A fragment is nothing to us, and part of the target to others.
    if memchr(b'#', text).is_some() {
        return Err(Refusal::BadRequest);
    }
    // Neither means anything behind a gateway, and the answer to a TRACE holds what we add.
    if is_forbidden_method(text.get(..first).unwrap_or_default()) {
        return Err(Refusal::BadRequest);
    }
    Ok(text.ends_with(b"HTTP/1.0"))
}

/// Methods that are answered by nobody behind this gateway.
pub(super) fn is_forbidden_method(method: &[u8]) -> bool {
    matches!(method, b"TRACE" | b"TRACK" | b"CONNECT")
}

/// The value of a field, if it has this name. A spelling that some reader takes for the name is an
/// error: it would be read by one and not by another.
fn value<'a>(text: &'a [u8], name: &[u8]) -> Result<Option<&'a [u8]>, Refusal> {
    let Some((given, behind)) = text.split_at_checked(name.len()) else {
        return Ok(None);
    };
    let mut is_exact = true;
    for (byte, wanted) in given.iter().zip(name) {
        if byte.to_ascii_lowercase() == *wanted {
            continue;
        }
        if *wanted != b'-' || byte.is_ascii_alphanumeric() {
            return Ok(None);
        }
        is_exact = false;
    }
    match behind.split_first() {
        Some((b':', value)) if is_exact => Ok(Some(without_blanks(value))),
        Some((byte, _)) if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') => Ok(None),
        _ => Err(Refusal::BadRequest),
    }
}

/// A value without what may stand around it, which is no other blank than these (RFC 9110, 5.5).
pub(super) fn without_blanks(value: &[u8]) -> &[u8] {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let begin = value.iter().position(|byte| !is_blank(byte));
    let end = value.iter().rposition(|byte| !is_blank(byte));
    match (begin, end) {
        (Some(begin), Some(end)) => value.get(begin..=end).unwrap_or_default(),
        _ => &[],
    }
}

/// A length as everybody reads it: digits, and no zero before others.
pub(super) fn read_length(value: &[u8]) -> Option<u64> {
    let is_plain = value.len() <= LENGTH_DIGITS_MAX
        && value.iter().all(u8::is_ascii_digit)
        && (value.len() == 1 || value.first() != Some(&b'0'));
    let add = |number: u64, digit: &u8| {
        let digit = u64::from(digit.saturating_sub(b'0'));
        number.saturating_mul(10).saturating_add(digit)
    };
    (is_plain && !value.is_empty()).then(|| value.iter().fold(0, add))
}

fn read_chunk_size(text: &[u8]) -> Option<u64> {
    let end = memchr(b';', text).unwrap_or(text.len());
    let (digits, extension) = text.split_at_checked(end)?;
    // Extensions go no further, but each has a name (RFC 9112, 7.1.1).
    let mut names = extension.split(|byte| *byte == b';').skip(1);
    let is_named = names.all(|it| it.trim_ascii().first().is_some_and(headers::is_of_token));
    let is_plain = is_named
        && digits.len() <= CHUNK_DIGITS_MAX
        && digits.iter().all(u8::is_ascii_hexdigit)
        && extension
            .iter()
            .all(|byte| *byte == b'\t' || !byte.is_ascii_control());
    let digits = str::from_utf8(digits).ok().filter(|_| is_plain)?;
    u64::from_str_radix(digits, 16).ok()
}

/// Whether a text can name a host: with or without a port, never empty.
pub(super) fn is_host(text: &[u8]) -> bool {
    let is_of_host = |byte: &u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']')
    };
    text.iter().all(is_of_host) && !matches!(text.first(), None | Some(b':'))
}

#[cfg(test)]
mod tests;

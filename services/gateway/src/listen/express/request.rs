//! Requests of the common shape.

use http::Method;

use super::{
    super::{
        framing::{is_host, read_length},
        limits::{HEAD_BYTES_MAX, TARGET_BYTES_MAX},
    },
    head::{Field, Fields, Room, is_named, target_bytes},
};

const FORWARDED_FOR: &str = "x-forwarded-for";

/// A request that came whole.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    /// Before the query.
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    /// All of them, as they came. Their values are ASCII.
    pub(super) fields: Fields<'a>,
    pub(super) known: Known<'a>,
    pub(super) body: &'a [u8],
    /// Length of all of it.
    pub(super) bytes: usize,
}

/// The fields that matter here.
#[derive(Default)]
pub(super) struct Known<'a> {
    pub(super) host: &'a [u8],
    pub(super) authorization: Option<&'a [u8]>,
    pub(super) api_key: Option<&'a [u8]>,
    pub(super) user_agent: Option<&'a str>,
    pub(super) traceparent: Option<&'a str>,
    pub(super) request_id: Option<&'a str>,
    /// Those before us say where it comes from.
    is_forwarded: bool,
    /// Of the body.
    length: Option<usize>,
}

impl<'a> Request<'a> {
    /// Reads the first request in these bytes. None: it has not come whole, or has another shape.
    pub(super) fn parse(input: &'a [u8], room: &'a mut Room) -> Option<Self> {
        let (method, line) = method(input)?;
        let path_bytes = target_bytes(line);
        let mut target_end = path_bytes;
        while line.get(target_end) == Some(&b'?') {
            let more = target_bytes(line.get(target_end.wrapping_add(1)..)?);
            target_end = target_end.wrapping_add(more).wrapping_add(1);
        }
        let (target, behind) = line.split_at_checked(target_end)?;
        let behind = behind.strip_prefix(b" HTTP/1.1\r\n")?;
        let (path, query) = str::from_utf8(target).ok()?.split_at_checked(path_bytes)?;
        if !path.starts_with('/') || target.len() > TARGET_BYTES_MAX {
            return None;
        }
        let mut known = Known::default();
        let begin = input.len().wrapping_sub(behind.len());
        let read = Fields::read((input, begin), room, true, |field| known.note(field));
        let (fields, head_bytes) = read?;
        if known.host.is_empty() || head_bytes > HEAD_BYTES_MAX {
            return None;
        }
        let bytes = head_bytes.checked_add(known.length.unwrap_or(0))?;
        Some(Self {
            method,
            path,
            query: query.strip_prefix('?'),
            fields,
            known,
            body: input.get(head_bytes..bytes)?,
            bytes,
        })
    }

    /// Where those before us say it comes from.
    pub(super) fn forwarded_for(&self) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        let named = |field: &Field<'a>| is_named(field.name, FORWARDED_FOR);
        let fields = self.known.is_forwarded.then(|| self.fields.iter());
        let fields = fields.into_iter().flatten().filter(named);
        fields.map(|field| field.value)
    }
}

impl<'a> Known<'a> {
    /// Notes a field if it matters. None: it came twice, or asks for more than the common way has.
    fn note(&mut self, Field { name, value }: Field<'a>) -> Option<()> {
        let text = || str::from_utf8(value).ok();
        let is = |other: &str| is_named(name, other);
        let once = match name.len() {
            2 if is("te") => false,
            4 if is("host") => {
                let is_first = self.host.is_empty();
                self.host = value;
                is_first && is_host(value)
            }
            6 if is("expect") || is("origin") => false,
            7 if is("upgrade") || is("trailer") => false,
            9 if is("x-api-key") => self.api_key.replace(value).is_none(),
            10 if is("user-agent") => self.user_agent.replace(text()?).is_none(),
            10 if is("connection") => value.eq_ignore_ascii_case(b"keep-alive"),
            11 if is("traceparent") => self.traceparent.replace(text()?).is_none(),
            12 if is("x-request-id") => self.request_id.replace(text()?).is_none(),
            13 if is("authorization") => self.authorization.replace(value).is_none(),
            14 if is("content-length") => {
                let length = usize::try_from(read_length(value)?).ok()?;
                self.length.replace(length).is_none()
            }
            15 if is(FORWARDED_FOR) => {
                self.is_forwarded = true;
                true
            }
            15 if is("idempotency-key") => false,
            17 if is("transfer-encoding") => false,
            _ => true,
        };
        once.then_some(())
    }
}

/// The method of a request line, and what is behind it. Methods whose answers have bodies, and
/// whose requests may.
fn method(line: &[u8]) -> Option<(Method, &[u8])> {
    let known: [(&[u8], Method); 5] = [
        (b"GET ", Method::GET),
        (b"POST ", Method::POST),
        (b"PUT ", Method::PUT),
        (b"PATCH ", Method::PATCH),
        (b"DELETE ", Method::DELETE),
    ];
    known
        .into_iter()
        .find_map(|(name, method)| Some((method, line.strip_prefix(name)?)))
}

//! Requests of the common shape.

use std::mem::MaybeUninit;

use http::Method;
use httparse::{Header, Status};
use memchr::memchr;

use super::super::framing::{Framing, read_length};

/// Fields of a request; more are for hyper.
const FIELDS_MAX: usize = 48;

/// Room for the fields, which nobody fills in vain.
pub(super) type Room<'a> = [MaybeUninit<Header<'a>>; FIELDS_MAX];

pub(super) const fn no_fields<'a>() -> Room<'a> {
    [const { MaybeUninit::uninit() }; FIELDS_MAX]
}

/// A request that came whole.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    /// Before the query.
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    /// All of them, as they came. Their values are ASCII.
    pub(super) fields: &'a [Header<'a>],
    pub(super) host: &'a [u8],
    pub(super) authorization: Option<&'a [u8]>,
    pub(super) api_key: Option<&'a [u8]>,
    pub(super) user_agent: Option<&'a str>,
    pub(super) traceparent: Option<&'a str>,
    pub(super) request_id: Option<&'a str>,
    pub(super) body: &'a [u8],
    /// Length of all of it.
    pub(super) bytes: usize,
}

impl<'a> Request<'a> {
    /// Reads the first request in these bytes. None: it has not come whole, or has another shape.
    pub(super) fn parse(input: &'a [u8], fields: &'a mut Room<'a>) -> Option<Self> {
        let mut read = httparse::Request::new(&mut []);
        let parsed = read.parse_with_uninit_headers(input, fields);
        let Ok(Status::Complete(head_bytes)) = parsed else {
            return None;
        };
        if read.version != Some(1) {
            return None;
        }
        let method = method(read.method?)?;
        let target = read.path?;
        let path_bytes = memchr(b'?', target.as_bytes()).unwrap_or(target.len());
        let (path, query) = target.split_at(path_bytes);
        let mut request = Self {
            method,
            path,
            query: query.strip_prefix('?'),
            fields: read.headers,
            host: &[],
            authorization: None,
            api_key: None,
            user_agent: None,
            traceparent: None,
            request_id: None,
            body: &[],
            bytes: head_bytes,
        };
        let length = request.read_fields()?;
        let is_common =
            target.starts_with('/') && target.bytes().all(is_of_target) && !request.host.is_empty();
        request.bytes = head_bytes.checked_add(length)?;
        request.body = input.get(head_bytes..request.bytes)?;
        let whole = input.get(..request.bytes)?;
        (is_common && is_one_request(whole)).then_some(request)
    }

    /// Notes the fields that matter here. Returns the length of the body; None if there is one
    /// that asks for more than the common way has.
    fn read_fields(&mut self) -> Option<usize> {
        let mut length = 0_usize;
        for Header { name, value } in self.fields {
            if !value.is_ascii() {
                return None;
            }
            let text = || str::from_utf8(value).ok();
            let is = |other: &str| name.eq_ignore_ascii_case(other);
            let once = match name.len() {
                2 if is("te") => return None,
                4 if is("host") => {
                    let is_first = self.host.is_empty();
                    self.host = value;
                    is_first
                }
                6 if is("expect") || is("origin") => return None,
                7 if is("upgrade") || is("trailer") => return None,
                9 if is("x-api-key") => self.api_key.replace(value).is_none(),
                10 if is("user-agent") => self.user_agent.replace(text()?).is_none(),
                10 if is("connection") => value.eq_ignore_ascii_case(b"keep-alive"),
                11 if is("traceparent") => self.traceparent.replace(text()?).is_none(),
                12 if is("x-request-id") => self.request_id.replace(text()?).is_none(),
                13 if is("authorization") => self.authorization.replace(value).is_none(),
                14 if is("content-length") => {
                    length = usize::try_from(read_length(value)?).ok()?;
                    true
                }
                15 if is("idempotency-key") => return None,
                17 if is("transfer-encoding") => return None,
                _ => true,
            };
            if !once {
                return None;
            }
        }
        Some(length)
    }

    /// Where those before us say it comes from.
    pub(super) fn forwarded_for(&self) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        let named = |field: &&Header<'a>| field.name.eq_ignore_ascii_case("x-forwarded-for");
        self.fields.iter().filter(named).map(|field| field.value)
    }
}

/// Methods whose answers have bodies, and whose requests may.
fn method(text: &str) -> Option<Method> {
    match text {
        "GET" => Some(Method::GET),
        "POST" => Some(Method::POST),
        "PUT" => Some(Method::PUT),
        "PATCH" => Some(Method::PATCH),
        "DELETE" => Some(Method::DELETE),
        _ => None,
    }
}

/// Whether who reads strictly sees one request, and nothing else.
fn is_one_request(bytes: &[u8]) -> bool {
    let mut framing = Framing::new();
    framing.pass(bytes).is_ok()
        && framing.heads() == 1
        && !framing.is_in_head()
        && !framing.is_in_body()
}

/// What stands in targets mostly. hyper knows what else may.
const fn is_of_target(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'/' | b'-'
                | b'.'
                | b'_'
                | b'~'
                | b'%'
                | b'?'
                | b'='
                | b'&'
                | b','
                | b':'
                | b'@'
                | b'+'
                | b'!'
                | b'$'
                | b'('
                | b')'
                | b'*'
                | b'\''
        )
}

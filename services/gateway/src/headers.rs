//! Which headers cross the gateway.
//!
//! - Nothing a client sends can pass for something the gateway says: its names are removed in
//!   every spelling that an upstream could mistake for them.
//! - `Connection` governs what arrived, never what the gateway adds: strip first, then add.
//! - The caller's key stays here.

use http::header::{CONNECTION, COOKIE, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING};

#[cfg(test)]
mod tests;

/// Names removed per pass over the headers; more take another pass.
const BATCH: usize = 8;

/// Headers of one connection (RFC 9110, 7.6.1). `trailer` is not among them, it announces fields
/// that are forwarded; `te` has a rule of its own.
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "proxy-authorization",
    "proxy-authenticate",
];

/// What a client has no say in: its credentials, our identifiers, and where it came from. The last
/// two make some upstreams serve another path than the one we matched.
const NOT_FROM_CLIENTS: [&str; 10] = [
    "authorization",
    "x-api-key",
    REQUEST_ID,
    "traceparent",
    "tracestate",
    "baggage",
    "forwarded",
    "x-real-ip",
    "x-original-url",
    "x-rewrite-url",
];

const HOP_BY_HOP_BYTES: u64 = lengths(&HOP_BY_HOP);
const NOT_FROM_CLIENTS_BYTES: u64 = lengths(&NOT_FROM_CLIENTS);

/// A bit for each length of these names.
const fn lengths(names: &[&str]) -> u64 {
    let (mut lengths, mut left) = (0, names);
    while let [name, rest @ ..] = left {
        lengths |= 1 << name.len();
        left = rest;
    }
    lengths
}

const REQUEST_ID: &str = "x-request-id";
/// `tollgate-principal`, `tollgate-cost` and whatever else we say.
const OURS: &str = "tollgate-";
/// Which pages may read an answer is ours to say (`cors.rs`).
const CORS: &str = "access-control-";
const FORWARDED_ANYTHING: &str = "x-forwarded-";

/// Whether a byte may stand in a token, such as a name (RFC 9110, 5.6.2).
pub(crate) fn is_of_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

/// Whether a body comes as it is or `chunked`. The header goes no further than here, so another
/// coding would be undone by nobody.
pub(crate) fn is_framed_plainly(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    codings.next().is_none_or(is_chunked) && codings.next().is_none()
}

/// Removes from a client's request what must not reach the upstream. Authenticate before, add the
/// gateway's own headers (an `upgrade` included) after.
pub(crate) fn strip_request(headers: &mut HeaderMap) {
    remove_nominated(headers);
    keep_only_trailers_of_te(headers);
    remove(headers, |name| {
        is_not_for_upstreams(name.as_str().as_bytes())
    });
}

/// One `cookie` again of the crumbs that HTTP/2 allows (RFC 9113, 8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if crumbs.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// Whether no field of this name passes from a client to an upstream. `te` and
/// what `Connection` names have rules of their own.
pub(crate) fn is_not_for_upstreams(name: &[u8]) -> bool {
    is_hop_by_hop(name)
        || is_spelling_of_any(name, &NOT_FROM_CLIENTS, NOT_FROM_CLIENTS_BYTES)
        || begins_like(name, OURS)
        || begins_like(name, FORWARDED_ANYTHING)
}

/// Removes from an upstream's response what must not reach the client, or is ours to say.
pub(crate) fn strip_response(headers: &mut HeaderMap) {
    remove_nominated(headers);
    remove(headers, |name| is_not_for_clients(name.as_str().as_bytes()));
}

/// Whether no field of this name passes from an upstream to a client. What
/// `Connection` names has a rule of its own.
pub(crate) fn is_not_for_clients(name: &[u8]) -> bool {
    is_hop_by_hop(name)
        || is_spelling_of(name, TE.as_str())
        || is_spelling_of(name, REQUEST_ID)
        || begins_like(name, OURS)
        || begins_like(name, CORS)
}

/// Removes the headers that `Connection` names.
fn remove_nominated(headers: &mut HeaderMap) {
    let mut at = 0_usize;
    while let Some(value) = headers.get_all(CONNECTION).iter().nth(at).cloned() {
        for name in value.as_bytes().split(|byte| *byte == b',') {
            let Ok(name) = HeaderName::from_bytes(name.trim_ascii()) else {
                continue;
            };
            // `connection` itself is still read; of `te`, `trailers` may stay.
            if name != CONNECTION && name != TE {
                headers.remove(name);
            }
        }
        at = at.saturating_add(1);
    }
}

/// `te: trailers` is what gRPC asks of everybody on the way; other codings end with the connection.
fn keep_only_trailers_of_te(headers: &mut HeaderMap) {
    let trailers = headers.get_all(TE).iter().any(|value| {
        let mut codings = value.as_bytes().split(|byte| *byte == b',');
        codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    });
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    } else {
        headers.remove(TE);
    }
}

/// Removes every header whose name is forbidden, without allocating.
fn remove(headers: &mut HeaderMap, is_forbidden: impl Fn(&HeaderName) -> bool) {
    loop {
        let mut found = [const { None }; BATCH];
        let forbidden = headers.keys().filter(|name| is_forbidden(name));
        for (slot, name) in found.iter_mut().zip(forbidden) {
            *slot = Some(name.clone());
        }
        let more = found.iter().all(Option::is_some);
        for name in found.into_iter().flatten() {
            headers.remove(name);
        }
        if !more {
            return;
        }
    }
}

fn is_hop_by_hop(name: &[u8]) -> bool {
    is_spelling_of_any(name, &HOP_BY_HOP, HOP_BY_HOP_BYTES)
}

/// Whether an upstream could take `name` for one of these names, whose lengths are known: most
/// others have another one.
fn is_spelling_of_any(name: &[u8], others: &[&str], bytes: u64) -> bool {
    name.len() < 64
        && bytes >> name.len() & 1 == 1
        && others.iter().any(|other| is_spelling_of(name, other))
}

/// Whether an upstream could take `name` for `other`: names become variables with `_` for `-` in
/// CGI and its heirs, and some of those turn every sign into `_`.
fn is_spelling_of(name: &[u8], other: &str) -> bool {
    name.len() == other.len() && begins_like(name, other)
}

fn begins_like(name: &[u8], beginning: &str) -> bool {
    name.len() >= beginning.len()
        && name.iter().zip(beginning.as_bytes()).all(|(byte, wanted)| {
            byte.eq_ignore_ascii_case(wanted) || (*wanted == b'-' && !byte.is_ascii_alphanumeric())
        })
}

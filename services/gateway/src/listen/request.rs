//! What is wrong with a request that hyper has read, before anything else is asked of it.

use http::{
    HeaderMap, HeaderValue, Request, Version,
    header::{CONTENT_LENGTH, HOST},
};
use types::Refusal;

use super::{
    framing::{is_forbidden_method, is_host, read_length, without_blanks},
    limits::{FIELD_OVERHEAD_BYTES, FIELDS_MAX, HEAD_BYTES_MAX, TARGET_BYTES_MAX},
};

/// Checks whom a request is for, as its target says and as its fields do.
///
/// # Errors
/// The target names one host and the fields another, or what they name is none.
pub(super) fn check<B>(request: &Request<B>) -> Result<(), Refusal> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let (host, more) = (hosts.next().map(HeaderValue::as_bytes), hosts.next());
    let authority = request.uri().authority();
    let named = authority.map(|authority| authority.as_str().as_bytes());
    let is_same = match (host, named) {
        (Some(host), Some(named)) => host.eq_ignore_ascii_case(named),
        _ => true,
    };
    let is_sound = host.is_none_or(is_host) && named.is_none_or(is_host);
    match is_same && is_sound && more.is_none() {
        true => Ok(()),
        false => Err(Refusal::BadRequest),
    }
}

/// Checks the fields of a request of HTTP/2, whose lengths only its end knows.
///
/// # Errors
/// They are too many or too long, the target is, or the method is nobody's here.
pub(super) fn check_list<B>(request: &Request<B>) -> Result<(), Refusal> {
    debug_assert_eq!(request.version(), Version::HTTP_2);
    if is_forbidden_method(request.method().as_str().as_bytes()) || !is_framed(request.headers()) {
        return Err(Refusal::BadRequest);
    }
    let target = request.uri().path_and_query();
    if target.is_some_and(|target| target.as_str().len() > TARGET_BYTES_MAX) {
        return Err(Refusal::TargetTooLong);
    }
    let headers = request.headers();
    let bytes = headers.iter().fold(0_usize, |sum, (name, value)| {
        let field = name.as_str().len().saturating_add(value.len());
        sum.saturating_add(field)
            .saturating_add(FIELD_OVERHEAD_BYTES)
    });
    if headers.len() > FIELDS_MAX || bytes > HEAD_BYTES_MAX {
        return Err(Refusal::HeadersTooLarge);
    }
    Ok(())
}

/// Whether there is one length at most, as everybody reads it, and no value has a blank at an end
/// (RFC 9113, 8.2.1): what HTTP/1.1 would not let in does not leave as HTTP/1.1.
fn is_framed(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let is_read = |length: &HeaderValue| read_length(length.as_bytes()).is_some();
    let is_one = lengths.next().is_none_or(is_read) && lengths.next().is_none();
    let is_trimmed = |value: &HeaderValue| without_blanks(value.as_bytes()) == value.as_bytes();
    is_one && headers.values().all(is_trimmed)
}

//! What is wrong with a request that hyper has read, before anything else is asked of it.

use http::{Request, Version, header::HOST};
use types::Refusal;

use super::{
    framing::is_forbidden_method,
    limits::{FIELD_OVERHEAD_BYTES, FIELDS_MAX, HEAD_BYTES_MAX, TARGET_BYTES_MAX},
};

/// Checks whom a request is for, where its target says so beside its fields. In HTTP/1 the rest was
/// checked on the wire.
///
/// # Errors
/// The target names one host and the fields another.
pub(super) fn check<B>(request: &Request<B>) -> Result<(), Refusal> {
    let Some(authority) = request.uri().authority() else {
        return Ok(());
    };
    let mut hosts = request.headers().get_all(HOST).iter();
    let named = authority.as_str().as_bytes();
    let is_same = |host: &http::HeaderValue| host.as_bytes().eq_ignore_ascii_case(named);
    let is_one = hosts.next().is_none_or(is_same) && hosts.next().is_none();
    if named.contains(&b'@') || !is_one {
        return Err(Refusal::BadRequest);
    }
    Ok(())
}

/// Checks the fields of a request of HTTP/2, whose lengths only its end knows.
///
/// # Errors
/// They are too many or too long, the target is, or the method is nobody's here.
pub(super) fn check_list<B>(request: &Request<B>) -> Result<(), Refusal> {
    debug_assert_eq!(request.version(), Version::HTTP_2);
    if is_forbidden_method(request.method().as_str().as_bytes()) {
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

//! Messages as JSON: small things that several areas share.

use jiff::Timestamp;
use serde_json::Value;

use crate::error::{Error, Result};

/// A point in time as clients see it.
pub(super) fn rfc3339(at: Option<&prost_types::Timestamp>) -> Option<String> {
    let at = at?;
    Timestamp::new(at.seconds, at.nanos)
        .ok()
        .map(|at| at.to_string())
}

/// As [`rfc3339`], of what every such thing has.
pub(super) fn moment(at: Option<&prost_types::Timestamp>) -> String {
    rfc3339(at).unwrap_or_default()
}

/// A point in time that a client sent.
pub(super) fn parse_time(
    field: &'static str,
    text: Option<&str>,
) -> Result<Option<prost_types::Timestamp>> {
    let Some(text) = text else { return Ok(None) };
    match text.parse() {
        Ok(at) => Ok(Some(proto::convert::timestamp(at))),
        Err(_not_one) => Err(Error::invalid(
            field,
            "must be a time by RFC 3339, such as 2030-01-31T12:00:00Z",
        )),
    }
}

/// JSON that a service hands on as text.
pub(super) fn embedded(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

/// Absent where a message has an empty text.
pub(super) fn filled(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

//! Conversions between the wire and `types`, and the one shape of errors.

use std::time::Duration;

use jiff::Timestamp;
use tonic::{Code as Grpc, Status};
use tonic_types::{ErrorDetails, StatusExt};
use types::{Code, Id, Kind, Refusal, UnitPrice};

use crate::keys::v1 as keys;

/// Rows of a page when the caller does not say.
const PAGE_DEFAULT: u32 = 100;
/// Rows of a page at most; more is answered with this many.
const PAGE_MAX: u32 = 1000;

/// An error for a caller: status, sentence, and `google.rpc.ErrorInfo` with the stable reason.
#[must_use]
pub fn status(code: Code, message: impl Into<String>) -> Status {
    status_with(code, message, [])
}

/// As `status`, with facts for programs in the metadata of the `ErrorInfo`.
#[must_use]
pub fn status_with<const N: usize>(
    code: Code,
    message: impl Into<String>,
    facts: [(&str, &str); N],
) -> Status {
    let facts = facts.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let details = ErrorDetails::with_error_info(code.as_str(), "tollgate", facts);
    Status::with_error_details(Grpc::from_i32(code.grpc()), message, details)
}

/// As `status`, for what may be tried again after a while: with `google.rpc.RetryInfo`.
#[must_use]
pub fn status_retry(code: Code, message: impl Into<String>, after: Duration) -> Status {
    let mut details = ErrorDetails::with_error_info(code.as_str(), "tollgate", []);
    details.set_retry_info(Some(after));
    Status::with_error_details(Grpc::from_i32(code.grpc()), message, details)
}

/// Why the edge did not forward a call, for a caller who speaks gRPC: the refusal's code is the
/// reason, and it may say when another attempt is welcome.
#[must_use]
pub fn refused(refusal: Refusal, detail: &str, after: Option<Duration>) -> Status {
    let mut details = ErrorDetails::with_error_info(refusal.as_str(), "tollgate", []);
    if after.is_some() {
        details.set_retry_info(after);
    }
    let message = format!("{}: {} {detail}", refusal.as_str(), refusal.title());
    Status::with_error_details(Grpc::from_i32(refusal.grpc()), message, details)
}

/// Reads an id of a request.
///
/// # Errors
/// `INVALID_ARGUMENT` naming the field and the form it should have.
pub fn parse_id<K: Kind>(field: &str, text: &str) -> Result<Id<K>, Status> {
    text.parse()
        .map_err(|error| status(Code::Invalid, format!("`{field}`: {error}")))
}

/// To the wire.
#[must_use]
pub fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: at.as_second(),
        nanos: at.subsec_nanosecond(),
    }
}

impl From<&UnitPrice> for keys::UnitPrice {
    fn from(it: &UnitPrice) -> Self {
        Self {
            unit: it.unit.clone(),
            credits: it.credits,
            per: it.per,
            pointer: it.pointer.clone(),
            bytes_per_unit: it.bytes_per_unit,
        }
    }
}

/// Unchecked: `types::Price` is what checks.
impl From<keys::UnitPrice> for UnitPrice {
    fn from(it: keys::UnitPrice) -> Self {
        Self {
            unit: it.unit,
            credits: it.credits,
            per: it.per,
            pointer: it.pointer,
            bytes_per_unit: it.bytes_per_unit,
        }
    }
}

/// From the wire.
///
/// # Errors
/// `INVALID_ARGUMENT` for a time outside years -9999..9999.
pub fn from_timestamp(field: &str, at: &prost_types::Timestamp) -> Result<Timestamp, Status> {
    Timestamp::new(at.seconds, at.nanos).map_err(|error| {
        status(
            Code::Invalid,
            format!("`{field}` is no point in time: {error}"),
        )
    })
}

/// Rows to read for a page: the default for 0, never more than the maximum.
#[must_use]
pub fn page(size: u32) -> i64 {
    match size {
        0 => i64::from(PAGE_DEFAULT),
        size => i64::from(size.min(PAGE_MAX)),
    }
}

/// Cuts what was read (one row more than the page has) to a page, and names where the next begins.
#[must_use]
pub fn page_of<T>(mut rows: Vec<T>, size: i64, token: impl Fn(&T) -> String) -> (Vec<T>, String) {
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if rows.len() <= size {
        return (rows, String::new());
    }
    rows.truncate(size);
    let next = rows.last().map(token).unwrap_or_default();
    (rows, next)
}

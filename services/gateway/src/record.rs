//! Journal records as bytes.

mod call;

use prost::Message as _;
use proto::events::v1::Record;

pub(crate) use self::call::{Call, CallRecord};
use crate::journal::RECORD_BYTES_MAX;

/// Longest endpoint kept, bytes.
pub(crate) const ENDPOINT_BYTES_MAX: usize = 512;
/// Longest user agent kept, bytes.
pub(crate) const USER_AGENT_BYTES_MAX: usize = 256;
/// Longest method kept, bytes.
pub(crate) const METHOD_BYTES_MAX: usize = 16;

/// Writes a record into a slot and returns its length.
///
/// # Panics
/// When a record is longer than a slot; the limits above leave room to spare.
pub(crate) fn encode(record: &Record, mut slot: &mut [u8]) -> usize {
    let length = record.encoded_len();
    assert!(
        length <= RECORD_BYTES_MAX,
        "every part of a record has a limit"
    );
    record
        .encode(&mut slot)
        .expect("the slot is as long as the longest record");
    length
}

/// The first bytes of a text, cut at a character's boundary.
pub(crate) fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.get(..end).unwrap_or_default()
}

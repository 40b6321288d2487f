//! The nouns of the product, pure: no I/O, no clock, no randomness of their own.
//!
//! - An id has a kind; two kinds cannot be swapped.
//! - Credits are whole and checked; no arithmetic on them can wrap.
//! - A key or its hash cannot be printed.
//! - Every failure has one code, with total maps to gRPC and HTTP.

#![forbid(unsafe_code)]
#![warn(
    clippy::float_arithmetic,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod address;
mod code;
mod credits;
mod id;
mod idempotency;
mod key;
mod lending;
mod limit;
mod names;
mod network;
mod origin;
mod pepper;
mod price;
mod quota;
mod record;

#[cfg(test)]
mod tests;

pub use address::client_address;
pub use code::{Code, Refusal};
pub use credits::Credits;
pub use id::{
    AnomalyId, Id, IdError, JournalId, Key, KeyId, Kind, Lease, LeaseId, OrgId, RequestId, RouteId,
    ServiceId, UserId,
};
pub use idempotency::{KEPT_BODY_BYTES_MAX, KEPT_HEADERS_BYTES_MAX, KEPT_HEADERS_MAX};
pub use key::{
    KEY_BODY_CHARS, KEY_RANDOM_BYTES, KeyDigest, KeyError, KeyHash, NewKey, Pepper, PepperError,
    PresentedKey,
};
pub use lending::{LEASE_CALLS_MIN, LEASE_SMALL_PARTS, lease_part};
pub use limit::{Gcra, Rate, Share};
pub use names::{
    Environment, NameError, Role, Scope, ServiceName, Slug, parse_email, parse_key_name,
};
pub use network::{Networks, is_public};
pub use origin::{ORIGIN_CHARS_MAX, OriginError, WebOrigin};
pub use pepper::{KeyHashes, Peppers};
pub use price::{
    CALL_COST_MAX, Charge, Price, PriceError, UNIT_NAME_BYTES_MAX, UNIT_PRICES_MAX, UnitPrice,
    Unreported, is_unit_name,
};
pub use quota::{Period, QuotaKind};
pub use record::{RECORD_BYTES_MAX, RECORDS_MAX};

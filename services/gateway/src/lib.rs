//! The edge: checks each call, carries it to the seller's API and back, and records it.
//!
//! - No network hop is added to an admitted call: keys, limits and credits are in memory.
//! - Spent + held ≤ granted in every lease; a wallet is never overspent by a credit.
//! - The record of a call is in the journal before its last byte leaves, however it ends.
//! - Of the calls with one idempotency key, at most one is charged in 24 hours; the others are
//!   given its answer. Calls without a key ask nobody about it.
//! - A record leaves the journal when every consumer has applied it, not when it was sent.

#![warn(
    clippy::float_arithmetic,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod address;
mod admit;
mod body;
mod catalogue;
mod charge;
mod config;
#[cfg(feature = "cores")]
pub mod cores;
mod cors;
mod country;
mod credential;
mod domain;
mod edge;
mod hashing;
mod headers;
mod idempotency;
pub mod journal;
mod keyring;
mod lease;
mod lender;
mod limits;
mod listen;
mod meter;
mod metrics;
mod opened;
mod path;
mod pool;
mod principal;
mod proxy;
mod record;
mod recovery;
mod refuse;
mod retry;
mod send;
mod ship;
mod start;
mod strangers;
mod sync;
#[cfg(test)]
mod tests;
mod units;
mod upgrade;
mod upload;

pub use config::Config;
pub use recovery::{Recovery, recover};
pub use start::start;

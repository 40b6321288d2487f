//! What every service stands on: configuration, servers, listeners, consumers, traces, stop.
//!
//! - All configuration is parsed before any I/O, and all its problems are reported at once.
//! - A consumer's effect and its inbox are one transaction: no record is applied twice.
//! - Requests on behalf of somebody see that tenant's rows only, whatever their statements say.
//! - No task is without a name and a stop; start is ordered, stop is the reverse and bounded.
//! - A local service and a remote one are called through the same channel, with the same
//!   deadline, credentials and trace context.

#![forbid(unsafe_code)]

pub mod batch;
pub mod config;
mod consume;
pub mod crash;
mod follow;
pub mod grpc;
mod host;
mod inbox;
mod letters;
mod logs;
mod node;
mod ops;
mod origin;
mod postgres;
mod secrets;
mod standby;
pub mod streams;
mod supervise;
mod time;
pub mod trace;

#[cfg(test)]
mod tests;

pub use config::{ConfigError, Setting, Variables};
pub use consume::{Apply, ApplyError, Delivery, USAGE_CONSUMERS};
pub use follow::{Follow, FollowError};
pub use grpc::{Actor, actor, client_address, patience};
pub use host::{Host, Starting, Stop};
pub use node::{Node, Settings};
pub use postgres::{Tenant, Tenants, begin};
pub use secrets::{Generation, Succession};
pub use time::{Clock, Ids};

//! Private servers, supervised processes and injected faults, for tests and for `tollgate dev`.
//!
//! - Nothing started here outlives us: children die with this process, even when it is killed, and
//!   the next start in the same directory stops whatever was left.
//! - Nobody else's process is ever signalled: a pid counts only with its start time.
//! - A server is called ready only after it answered a real request.
//! - Every wait has a bound, and says what it last saw when the bound is reached.
#![forbid(unsafe_code)]

pub mod auditor;
pub mod load;
pub mod mail;
pub mod ports;
pub mod processes;
pub mod proxy;
pub mod servers;
pub mod traces;
mod wait;

pub use wait::eventually;

#[cfg(test)]
mod tests;

//! The only integration-test binary: one behaviour a test, on real servers.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "the exceptions for tests cover functions marked as tests, not what they share"
)]

mod api;
mod audit;
mod cli;
mod crash;
mod docs;
mod fault;
mod lifecycle;
mod migrate;
mod model;
mod money;
mod people;
mod quota;
mod road;
mod stack;
mod tidy;

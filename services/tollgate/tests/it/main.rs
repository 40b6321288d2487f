//! The only integration-test binary: one behaviour a test, on real servers.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "the exceptions for tests cover functions marked as tests, not what they share"
)]

mod account;
mod anomaly;
mod apart;
mod api;
mod audit;
mod cli;
mod client;
mod clients;
mod crash;
mod dead_letters;
mod docs;
mod everyday;
mod fault;
mod fuzz;
mod gaps;
mod idempotency;
mod isolation;
mod key_life;
mod lending;
mod letters;
mod lifecycle;
mod matrix;
mod migrate;
mod model;
mod money;
mod openai;
mod origins;
mod people;
mod pepper;
mod places;
mod policy;
mod quota;
mod recover;
mod review;
mod road;
mod sim;
mod stack;
mod tidy;
mod transactions;
mod tunnels;
mod unknown_keys;
mod upstreams;
mod world;

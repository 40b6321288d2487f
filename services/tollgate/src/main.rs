//! The one binary: every service, the CLI, and what a developer needs to run both.
//!
//! - Configuration is judged as a whole before anything is opened; a broken one ends with 64.
//! - Services start in the order of the roster and stop in the reverse, each within its bound.
//! - What a script reads goes to standard output, everything said to people to standard error.
//! - `tollgate dev` leaves nothing running, however it ends.

#![forbid(unsafe_code)]

mod anomaly;
mod audit;
mod audit_log;
mod cli;
mod config_cmd;
mod connect;
mod dev;
mod failure;
mod input;
mod invitation;
mod journal_cmd;
mod journal_recover;
mod key;
mod key_show;
mod letters;
mod member;
mod migrate;
mod org;
mod output;
mod pepper;
mod private;
mod reconciliation;
mod roster;
mod samples_cmd;
mod second_factor;
mod seed;
mod serve;
mod service;
mod signals;
mod usage;
mod user;
mod wallet_cmd;
mod why;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::cli::Cli;
use crate::failure::Failure;
use crate::output::Output;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Blocking work that is still under way when everything else has stopped gets so long.
const BLOCKING_MAX: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .expect("the first statement of the process is the only one that installs a provider");
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::explain(&error),
    };
    let output = Output::new(cli.json);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return output.failure(&Failure::from(anyhow::Error::from(error))),
    };
    let done = runtime.block_on(cli::run(cli, &output));
    runtime.shutdown_timeout(BLOCKING_MAX);
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => output.failure(&failure),
    }
}

//! Measures a running Tollgate from outside and prints figures for `benches/RESULTS.md`.
//!
//! One subcommand for each measurement. Each prints a table for people, then one line of JSON.
#![forbid(unsafe_code)]

mod backlog;
mod callgrind;
mod calls;
mod cut_off;
mod edge;
mod instructions;
mod metrics;
mod pepper;
mod population;
mod report;
mod revocation;
mod strangers;
mod system;
mod timing;
mod traffic;
mod trial;
mod verification;
mod wire;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::system::System;

/// The product's: the bare form of the gateway is to differ in nothing but its checks.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Puts load on a running `tollgate dev` and says how it did.
#[derive(Parser)]
struct Arguments {
    /// Folder of the running `tollgate dev`.
    #[arg(long, default_value = ".tollgate", global = true)]
    data: PathBuf,
    #[command(subcommand)]
    measure: Measure,
}

/// What is measured.
#[derive(Subcommand)]
enum Measure {
    /// Calls a second, their latency, and how far behind the consumers are
    Calls(calls::Arguments),
    /// How many events a second a consumer works off, and what a core does
    Backlog(backlog::Arguments),
    /// How long it takes to find out whose a key is, and how often nobody need be asked
    Verification(verification::Arguments),
    /// How long a key is accepted after it was revoked
    Revocation(revocation::Arguments),
    /// Whether a rotation of the pepper is noticed by anybody
    Pepper(pepper::Arguments),
    /// What very many unknown keys cost those who have a good one
    Strangers(strangers::Arguments),
    /// Whether the time of a refusal tells what a wrong key is close to
    Timing(timing::Arguments),
    /// Calls a second and core, and what is added to each, beside other proxies on the same core
    Edge(edge::Arguments),
    /// How many instructions an admitted call takes, compared with what is kept
    Instructions(instructions::Arguments),
    /// Plays the upstream of `edge`
    #[command(hide = true)]
    ServeUpstream(edge::upstream::Arguments),
    /// Plays the gateway without its checks for `edge`
    #[command(hide = true)]
    ServeBare(edge::bare::Arguments),
    /// Plays Envoy's authoriser for `edge`
    #[command(hide = true)]
    ServeAuthoriser(edge::authoriser::Arguments),
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    // What is measured from outside has no other threads.
    match &arguments.measure {
        Measure::ServeUpstream(it) => return edge::upstream::serve(it),
        Measure::ServeBare(it) => return edge::bare::serve(it),
        Measure::ServeAuthoriser(it) => return edge::authoriser::serve(it),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure(arguments))
}

async fn measure(arguments: Arguments) -> anyhow::Result<()> {
    let system = System::find(&arguments.data)?;
    let report = match arguments.measure {
        Measure::Calls(it) => calls::run(&system, it).await?,
        Measure::Backlog(it) => backlog::run(&system, it).await?,
        Measure::Verification(it) => verification::run(&system, it).await?,
        Measure::Revocation(it) => revocation::run(&system, it).await?,
        Measure::Pepper(it) => pepper::run(&system, it).await?,
        Measure::Strangers(it) => strangers::run(&system, it).await?,
        Measure::Timing(it) => timing::run(&system, it).await?,
        Measure::Edge(it) => edge::run(&system, it).await?,
        Measure::Instructions(it) => instructions::run(&system, it).await?,
        Measure::ServeUpstream(_) | Measure::ServeBare(_) | Measure::ServeAuthoriser(_) => {
            unreachable!("they serve before there is a system")
        }
    };
    report.print();
    Ok(())
}

//! `tollgate audit`: everything recomputed by somebody who shares no code with the services.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use runtime::Clock;
use secrecy::ExposeSecret;
use serde_json::json;
use testkit::auditor::{Report, Sources, audit, read_transcript, read_upstream};

use crate::connect::System;
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::reconciliation;

/// Recomputes everything.
#[derive(Args)]
pub(crate) struct Audit {
    /// Differences may be gone within so many seconds: consumers lag
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u64,
    /// Root directory of a gateway's journals, besides those of a running `tollgate dev`; may be
    /// repeated
    #[arg(long = "journal", value_name = "DIR")]
    journals: Vec<PathBuf>,
    /// What clients saw, a JSON line an answer: request_id, status, complete, cost
    #[arg(long, value_name = "FILE")]
    transcript: Option<PathBuf>,
    /// What upstreams answered, a JSON line a call: service, request_id, status; may be repeated
    #[arg(long = "upstream-transcript", value_name = "FILE")]
    upstreams: Vec<PathBuf>,
    /// Write a report in this folder, for people and for programs: rows, statistics and ledger by
    /// organisation and day. For a timer: exit code 1 says that something differs
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

pub(crate) async fn run(args: Audit, system: &System, output: &Output) -> Result {
    let mut journals = system
        .dev
        .as_ref()
        .map(|dev| dev.journals.clone())
        .unwrap_or_default();
    journals.extend(args.journals);
    let transcript = match &args.transcript {
        Some(path) => read_transcript(path)?,
        None => Vec::new(),
    };
    let mut upstream = Vec::new();
    for path in &args.upstreams {
        upstream.extend(read_upstream(path)?);
    }
    let sources = Sources {
        postgres_url: system.postgres_url()?.expose_secret().to_owned(),
        journals,
        transcript,
        upstream,
    };
    let progress = (!output.is_json()).then(|| output.progress("recomputing everything"));
    let report = audit(&sources, Duration::from_secs(args.wait)).await?;
    drop(progress);
    print(&report, output);
    if let Some(folder) = &args.report {
        reconciliation::write(folder, &report, Clock::system().now(), output)?;
    }
    if report.differences > 0 {
        return Err(Failure::Found);
    }
    Ok(())
}

fn print(report: &Report, output: &Output) {
    if output.is_json() {
        return output.json(&json!(report));
    }
    let figures = [
        ("differences", report.differences),
        ("lost", report.lost),
        ("double", report.double),
        ("overspent", report.overspent),
        ("gaps", report.gaps),
        ("stranded", report.stranded),
        ("dead letters", report.dead_letters),
        ("unapplied", report.unapplied),
        ("recorded gaps", report.recorded_gaps),
        ("unitemised", report.unitemised),
        ("discarded", report.discarded),
        ("unbilled", report.unbilled),
        ("unserved", report.unserved),
        ("calls", report.calls),
        ("records on disk", report.records_on_disk),
    ];
    for (name, figure) in figures {
        output.text(&format!("{name:<16} {figure}"));
    }
    let Report {
        wallets,
        test_wallets,
        leases,
        ledger_entries,
        journals,
        ..
    } = report;
    output.text(&format!(
        "looked at        {wallets} wallets, {test_wallets} test wallets, {leases} leases, \
         {ledger_entries} ledger entries, {journals} journals"
    ));
    for difference in &report.first_differences {
        output.note(&format!("  {difference}"));
    }
    match report.differences {
        0 => output.note("everything adds up"),
        1 => output.note("one thing differs"),
        differences => output.note(&format!("{differences} things differ")),
    }
}

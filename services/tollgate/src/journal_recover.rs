//! `tollgate journal recover`: brings what a dead gateway has left to its end.

use std::path::PathBuf;
use std::pin::pin;

use gateway::Recovery;
use runtime::{Node, Settings, Stop};
use serde_json::json;
use tokio::sync::watch;

use crate::connect::System;
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::roster::known_variables;
use crate::signals::Signals;

pub(crate) const EXAMPLE: &str = "Example:
  tollgate journal recover /mnt/volume-of-gateway-3/journals

Locks the directory, tells the wallet that nothing may be lent to these journals any more, writes
the final count of each open lease, ships what consumers lack, waits until all have applied it, and
removes each journal then. It may be stopped or killed and run again, and run on a copy: a record
counts once. A directory that a gateway holds is refused. A journal waits until the wallet has not
heard of its gateway for 30 seconds (TOLLGATE_WALLET_ORPHAN_SECONDS): one that is cut off serves on.
The running `tollgate dev` is found by --data; any other system by NATS_URL,
TOLLGATE_WALLET_GRPC_URL, TOLLGATE_USAGE_INGEST_GRPC_URL, and TOLLGATE_OPERATOR_TOKEN or
TOLLGATE_SERVICE_TOKEN.";

pub(crate) async fn run(dir: PathBuf, system: &System, output: &Output) -> Result {
    if !dir.is_dir() {
        return Err(Failure::usage(format!("{} is no directory", dir.display())));
    }
    let mut signals = Signals::listen()?;
    let mut variables = system.as_gateway()?;
    let settings = Settings::read(&mut variables, &["gateway"], &["wallet", "usage-ingest"]);
    variables.finish(&known_variables())?;
    let mut node = Node::connect(settings, &["gateway"]).await?;
    let host = node.host("gateway")?;
    let stop = Stop::default();
    let figures = watch::Sender::new(Recovery::default());
    let mut seen = figures.subscribe();
    let progress = (!output.is_json()).then(|| output.progress("recovering journals"));
    let mut work = pin!(gateway::recover(&host, dir, &figures, &stop));
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            Ok(()) = seen.changed() => {
                let now = *seen.borrow_and_update();
                if let Some(progress) = &progress {
                    progress.reach(now.applied, now.records);
                }
            }
            () = signals.next() => {
                output.note("stopping; the next run goes on from here");
                stop.request();
            }
        }
    };
    drop(progress);
    let now = *figures.borrow();
    if done.is_ok() || now.journals > 0 {
        print(&now, output);
    }
    Ok(done?)
}

fn print(now: &Recovery, output: &Output) {
    if output.is_json() {
        return output.json(&json!({
            "journals": now.journals,
            "removed": now.removed,
            "records": now.records,
            "shipped": now.shipped,
            "applied": now.applied,
            "gap_records": now.gap_records,
            "settled_credits": now.credits,
        }));
    }
    let Recovery {
        journals,
        removed,
        records,
        shipped,
        applied,
        gap_records,
        credits,
    } = now;
    output.text(&format!(
        "{removed} of {journals} journals settled and removed: {records} records, {shipped} \
         shipped, {applied} applied everywhere, {gap_records} lost for good, {credits} credits \
         settled"
    ));
}

//! `tollgate journal`: what lies in the directory of a gateway, and bringing it to its end.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Value, json};
use testkit::auditor::journal::{Journal as Found, Journals};
use testkit::auditor::records::{Permit, Record};

use crate::connect::System;
use crate::failure::{Failure, Result};
use crate::journal_recover;
use crate::output::Output;

/// Looks at journals, and ends them.
#[derive(Subcommand)]
pub(crate) enum Journal {
    /// Show journals, segments, watermark and damage; also while a gateway uses them
    Inspect {
        /// The root directory, TOLLGATE_GATEWAY_JOURNAL_DIR
        dir: PathBuf,
        /// Show every record too
        #[arg(long)]
        records: bool,
    },
    /// Settle, ship and remove the journals of a gateway that is dead
    #[command(after_help = journal_recover::EXAMPLE)]
    Recover {
        /// The root directory, TOLLGATE_GATEWAY_JOURNAL_DIR of the dead gateway
        dir: PathBuf,
    },
}

pub(crate) async fn run(
    command: Journal,
    find: impl FnOnce() -> Result<System>,
    output: &Output,
) -> Result {
    match command {
        Journal::Inspect { dir, records } => inspect(&dir, records, output),
        Journal::Recover { dir } => journal_recover::run(dir, &find()?, output).await,
    }
}

fn inspect(dir: &Path, records: bool, output: &Output) -> Result {
    if !dir.is_dir() {
        return Err(Failure::usage(format!("{} is no directory", dir.display())));
    }
    let journals = Journals::read(&[dir.to_owned()])?;
    if output.is_json() {
        let all: Vec<Value> = journals.all.iter().map(|it| show(it, records)).collect();
        output.json(&json!({ "journals": all }));
    } else {
        for journal in &journals.all {
            describe(journal, records, output);
        }
        if journals.count() == 0 {
            output.note(&format!("no journal in {}", dir.display()));
        }
    }
    let is_sound = |journal: &Found| journal.damage.is_empty() && journal.gaps.is_empty();
    if journals.all.iter().all(is_sound) {
        Ok(())
    } else {
        Err(Failure::Found)
    }
}

fn name(journal: &Found) -> String {
    types::JournalId::new(journal.id).to_string()
}

fn show(journal: &Found, with_records: bool) -> Value {
    let segments = journal.segments.iter().map(|segment| {
        json!({
            "name": segment.name,
            "first_seq": segment.first_seq,
            "records": segment.records,
            "bytes": segment.bytes,
            "quarantined": segment.is_quarantined,
        })
    });
    let gaps = journal
        .gaps
        .iter()
        .map(|gap| json!({ "from": gap.start, "below": gap.end }));
    let mut object = json!({
        "journal_id": name(journal),
        "dir": journal.dir,
        "watermark": journal.watermark,
        "end": journal.end,
        "unapplied": journal.end - journal.watermark,
        "records": journal.records.len(),
        "segments": segments.collect::<Vec<_>>(),
        "gaps": gaps.collect::<Vec<_>>(),
        "damage": journal.damage,
        "torn_tail": journal.is_torn,
    });
    if with_records {
        object["content"] = journal
            .records
            .iter()
            .map(|(seq, it)| record(*seq, it))
            .collect();
    }
    object
}

fn record(seq: u64, payload: &[u8]) -> Value {
    let Ok(record) = Record::read(payload) else {
        return json!({ "seq": seq, "kind": "undecodable" });
    };
    json!({
        "seq": seq,
        "kind": record.kind_name(),
        "lease_id": record.lease().map(|lease| types::LeaseId::new(lease).to_string()),
        "cost": record.cost,
        "cum": record.cum,
        "granted": record.granted,
        "permits": record.permits.iter().map(permit).collect::<Vec<_>>(),
        "request_id": record.request().map(|it| types::RequestId::new(it).to_string()),
        "service": record.call.as_ref().map(|call| call.service.clone()),
        "status": record.call.as_ref().map(|call| call.status),
    })
}

fn permit(it: &Permit) -> Value {
    let lease = types::LeaseId::from_slice(&it.lease_id).ok();
    json!({ "lease_id": lease.map(|id| id.to_string()), "cum": it.cum })
}

fn describe(journal: &Found, with_records: bool, output: &Output) {
    let Found { watermark, end, .. } = journal;
    let unapplied = end - watermark;
    output.text(&format!(
        "{}: {} records on disk, next {end}, watermark {watermark}, {unapplied} not trimmed yet{}",
        name(journal),
        journal.records.len(),
        if journal.is_torn { ", torn tail" } else { "" },
    ));
    for segment in &journal.segments {
        output.text(&format!(
            "  {} from {}: {} records{}",
            segment.name,
            segment.first_seq,
            segment.records,
            if segment.is_quarantined {
                ", quarantined"
            } else {
                ""
            },
        ));
    }
    for gap in &journal.gaps {
        output.text(&format!(
            "  GAP records {} to {} cannot be read",
            gap.start,
            gap.end - 1
        ));
    }
    for damage in &journal.damage {
        output.text(&format!("  DAMAGE {damage}"));
    }
    if with_records {
        let columns = [
            ("seq", "SEQ"),
            ("kind", "KIND"),
            ("cost", "COST"),
            ("cum", "CUM"),
            ("granted", "GRANTED"),
            ("lease_id", "LEASE"),
            ("request_id", "REQUEST"),
            ("service", "SERVICE"),
            ("status", "STATUS"),
        ];
        let rows = journal
            .records
            .iter()
            .map(|(seq, it)| record(*seq, it))
            .collect();
        output.list("records", &columns, rows);
    }
}

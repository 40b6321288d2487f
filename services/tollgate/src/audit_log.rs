//! `tollgate audit-log`: who changed what.

use clap::Subcommand;
use proto::keys::v1 as wire;
use serde_json::json;

use crate::connect::{System, embedded, pages, time};
use crate::failure::Result;
use crate::output::Output;

/// Reads the audit log.
#[derive(Subcommand)]
pub(crate) enum AuditLog {
    /// List entries, newest first
    List {
        /// `org_…`; everything if absent
        #[arg(long, default_value = "", hide_default_value = true)]
        org: String,
        /// Lines at most
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Recompute the chain of hashes; exit 1 if a row was altered, removed or put in
    Verify,
}

pub(crate) async fn run(command: AuditLog, system: &System, output: &Output) -> Result {
    match command {
        AuditLog::List { org, limit } => list(system, &org, limit, output).await,
        AuditLog::Verify => verify(system, output).await,
    }
}

async fn verify(system: &System, output: &Output) -> Result {
    let request = wire::VerifyAuditLogRequest {};
    let found = system.keys()?.verify_audit_log(request).await?.into_inner();
    let problems: Vec<_> = found
        .problems
        .iter()
        .map(|problem| json!({ "id": problem.id, "kind": problem.kind }))
        .collect();
    let count = problems.len();
    let head: String = found
        .head
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    output.record(&json!({ "rows": found.rows, "head": head, "problems": problems }));
    match count {
        0 => Ok(()),
        count => Err(anyhow::anyhow!("{count} rows of the audit log do not fit").into()),
    }
}

async fn list(system: &System, org: &str, limit: u32, output: &Output) -> Result {
    let keys = system.keys()?;
    let entries = pages(limit, |page_size, page_token| {
        let mut keys = keys.clone();
        let request = wire::ListAuditLogRequest {
            org_id: org.to_owned(),
            page_size,
            page_token,
        };
        async move {
            let page = keys.list_audit_log(request).await?.into_inner();
            Ok((page.entries, page.next_page_token))
        }
    });
    let entries = entries.await?;
    let rows = entries.iter().map(|entry| {
        json!({
            "id": entry.id,
            "at": time(entry.at.as_ref()),
            "actor": entry.actor,
            "action": entry.action,
            "target": entry.target,
            "address": entry.address,
            "details": embedded(&entry.details),
        })
    });
    let columns = [
        ("id", "ID"),
        ("at", "WHEN"),
        ("actor", "ACTOR"),
        ("action", "ACTION"),
        ("target", "TARGET"),
        ("address", "FROM"),
    ];
    output.list("entries", &columns, rows.collect());
    Ok(())
}

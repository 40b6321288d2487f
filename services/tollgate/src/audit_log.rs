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
}

pub(crate) async fn run(command: AuditLog, system: &System, output: &Output) -> Result {
    let AuditLog::List { org, limit } = command;
    let keys = system.keys()?;
    let entries = pages(limit, |page_size, page_token| {
        let mut keys = keys.clone();
        let request = wire::ListAuditLogRequest {
            org_id: org.clone(),
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
            "details": embedded(&entry.details),
        })
    });
    let columns = [
        ("id", "ID"),
        ("at", "WHEN"),
        ("actor", "ACTOR"),
        ("action", "ACTION"),
        ("target", "TARGET"),
    ];
    output.list("entries", &columns, rows.collect());
    Ok(())
}

//! What upstreams say of the calls they answered, against the rows.
//!
//! An upstream may have answered a call that has no record: its gateway died between the answer and
//! the record, and the client has no complete answer either. That is counted and is no difference,
//! unless a client says that the answer was complete. Credits for a call that no upstream answered
//! have no such excuse.
#![expect(
    clippy::disallowed_methods,
    reason = "an oracle writes its own statements and is not compiled against the schema"
)]

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use serde::Deserialize;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Row};
use uuid::Uuid;

use super::rows::{Rows, SNAPSHOT};
use super::transcript::read_lines;
use super::{Findings, Kind, Transcript};

/// One call as its upstream saw it, one JSON line; further fields are its own affair.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct UpstreamCall {
    /// The service that was called.
    pub service: String,
    /// `req_…` from `x-request-id`.
    pub request_id: Option<String>,
    /// Status; none when the caller was gone before there was one.
    pub status: Option<u16>,
}

impl UpstreamCall {
    fn answered(&self) -> Option<Uuid> {
        self.status?;
        request(self.request_id.as_deref()?)
    }
}

fn request(text: &str) -> Option<Uuid> {
    Uuid::try_parse(text.strip_prefix("req_")?).ok()
}

/// Reads a file of lines.
///
/// # Errors
/// The file cannot be read or a line is no call. A last line cut short is left out.
pub fn read_upstream(path: &Path) -> anyhow::Result<Vec<UpstreamCall>> {
    read_lines(path)
}

/// Calls that were paid for: request and service.
pub(super) async fn paid(connection: &mut PgConnection) -> sqlx::Result<Vec<(Uuid, String)>> {
    let mut snapshot = connection.begin_with(SNAPSHOT).await?;
    // What a call costs whose gateway died before the answer ended, is its route's policy.
    let sql = "select request_id, service from usage_ingest.api_usage_logs \
               where credits_used > 0 and disposition <> 'gateway_aborted'";
    let rows = sqlx::query(sql).fetch_all(&mut *snapshot).await?;
    snapshot.rollback().await?;
    let call =
        |row: &sqlx::postgres::PgRow| Ok((row.try_get("request_id")?, row.try_get("service")?));
    rows.iter().map(call).collect()
}

/// Every answered call has its one row, or its client has no complete answer; every call that was
/// paid for was answered. Returns how many answered calls have no row.
pub(super) fn check(
    calls: &[UpstreamCall],
    paid: &[(Uuid, String)],
    rows: &Rows,
    clients: &[Transcript],
    findings: &mut Findings,
) -> u64 {
    let answered: HashSet<Uuid> = calls.iter().filter_map(UpstreamCall::answered).collect();
    // Of a service whose transcript is not here, nothing is known.
    let services: BTreeSet<&str> = calls.iter().map(|call| call.service.as_str()).collect();
    let complete: HashSet<Uuid> = clients
        .iter()
        .filter(|answer| answer.complete)
        .filter_map(|answer| request(&answer.request_id))
        .collect();
    let mut unrecorded = 0;
    for id in &answered {
        match rows.of_request(*id) {
            0 if complete.contains(id) => {
                let text = format!("req_{}: answered and delivered, but no row", id.simple());
                findings.add(Kind::Lost, text);
            }
            0 => unrecorded += 1,
            // More than one is told of where rows are looked at.
            _ => {}
        }
    }
    for (id, service) in paid {
        if services.contains(service.as_str()) && !answered.contains(id) {
            let text = format!(
                "req_{}: paid for, but {service} never answered",
                id.simple()
            );
            findings.add(Kind::Unserved, text);
        }
    }
    unrecorded
}

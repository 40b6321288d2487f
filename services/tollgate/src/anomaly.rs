//! `tollgate anomaly`: unusual behaviour of keys.

use clap::Subcommand;
use proto::anomaly_detector::v1 as wire;
use serde_json::json;

use crate::connect::{System, embedded, time};
use crate::failure::Result;
use crate::output::Output;

/// Acts on anomalies.
#[derive(Subcommand)]
pub(crate) enum Anomaly {
    /// List anomalies, newest first
    List {
        /// `org_…`; every organisation if absent
        #[arg(long, default_value = "", hide_default_value = true)]
        org: String,
        /// Also resolved ones
        #[arg(long)]
        all: bool,
    },
    /// Mark an anomaly as dealt with
    Resolve {
        /// `ano_…`
        anomaly: String,
    },
}

pub(crate) async fn run(command: Anomaly, system: &System, output: &Output) -> Result {
    let mut detector = system.anomaly_detector()?;
    match command {
        Anomaly::List { org, all } => {
            let request = wire::ListAnomaliesRequest {
                org_id: org,
                include_resolved: all,
            };
            let found = detector
                .list_anomalies(request)
                .await?
                .into_inner()
                .anomalies;
            let rows = found.iter().map(|anomaly| {
                json!({
                    "anomaly_id": anomaly.anomaly_id,
                    "org_id": anomaly.org_id,
                    "key_id": anomaly.key_id,
                    "kind": anomaly.kind,
                    "summary": anomaly.summary,
                    "details": embedded(&anomaly.details),
                    "at": time(anomaly.at.as_ref()),
                    "resolved_at": time(anomaly.resolved_at.as_ref()),
                })
            });
            let columns = [
                ("at", "WHEN"),
                ("anomaly_id", "ANOMALY"),
                ("key_id", "KEY"),
                ("kind", "KIND"),
                ("summary", "SUMMARY"),
                ("resolved_at", "RESOLVED"),
            ];
            output.list("anomalies", &columns, rows.collect());
        }
        Anomaly::Resolve { anomaly } => {
            let request = wire::ResolveAnomalyRequest {
                anomaly_id: anomaly.clone(),
                org_id: String::new(),
            };
            detector.resolve_anomaly(request).await?;
            output.record(&json!({ "anomaly_id": anomaly, "resolved": true }));
        }
    }
    Ok(())
}

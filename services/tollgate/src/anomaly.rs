//! `tollgate anomaly`: unusual behaviour.

use clap::{Subcommand, ValueEnum};
use proto::{anomaly_detector::v1 as wire, keys::v1 as keys};
use serde_json::json;

use crate::connect::{System, embedded, pages, time};
use crate::failure::Result;
use crate::output::Output;

/// Acts on anomalies.
#[derive(Subcommand)]
pub(crate) enum Anomaly {
    /// List anomalies, newest first
    List {
        /// `org_…`; every organisation and the platform itself if absent
        #[arg(long, default_value = "", hide_default_value = true)]
        org: String,
        /// Which of them
        #[arg(long, value_enum, default_value_t)]
        state: State,
        /// Lines at most
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Restore the keys an anomaly has suspended or throttled, and mark it as dealt with
    Resolve {
        /// `ano_…`
        anomaly: String,
    },
}

/// Whether an anomaly was dealt with.
#[derive(Clone, Copy, Default, ValueEnum)]
pub(crate) enum State {
    /// Nobody has dealt with it yet
    #[default]
    Open,
    /// It was dealt with
    Resolved,
    /// Both
    All,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Resolved => "resolved",
            Self::All => "all",
        }
    }
}

pub(crate) async fn run(command: Anomaly, system: &System, output: &Output) -> Result {
    match command {
        Anomaly::List { org, state, limit } => list(system, &org, state, limit, output).await,
        Anomaly::Resolve { anomaly } => resolve(system, anomaly, output).await,
    }
}

async fn list(system: &System, org: &str, state: State, limit: u32, output: &Output) -> Result {
    let detector = system.anomaly_detector()?;
    let found = pages(limit, |page_size, page_token| {
        let mut detector = detector.clone();
        let request = wire::ListAnomaliesRequest {
            org_id: org.to_owned(),
            page_size,
            page_token,
            state: state.as_str().to_owned(),
        };
        async move {
            let page = detector.list_anomalies(request).await?.into_inner();
            Ok((page.anomalies, page.next_page_token))
        }
    });
    let found = found.await?;
    let rows = found.iter().map(|anomaly| {
        json!({
            "anomaly_id": anomaly.anomaly_id,
            "org_id": anomaly.org_id,
            "key_id": anomaly.key_id,
            "key_ids": anomaly.key_ids,
            "kind": anomaly.kind,
            "summary": anomaly.summary,
            "details": embedded(&anomaly.details),
            "at": time(anomaly.at.as_ref()),
            "resolved_at": time(anomaly.resolved_at.as_ref()),
            "resolved_by": anomaly.resolved_by,
        })
    });
    let columns = [
        ("at", "WHEN"),
        ("anomaly_id", "ANOMALY"),
        ("kind", "KIND"),
        ("summary", "SUMMARY"),
        ("resolved_at", "RESOLVED"),
    ];
    output.list("anomalies", &columns, rows.collect());
    Ok(())
}

/// First the keys: an anomaly is open as long as anything of it is in force.
async fn resolve(system: &System, anomaly: String, output: &Output) -> Result {
    let request = keys::LiftAnomalyRequest {
        anomaly_id: anomaly.clone(),
        org_id: String::new(),
    };
    let lifted = system.keys()?.lift_anomaly(request).await?.into_inner();
    let request = wire::ResolveAnomalyRequest {
        anomaly_id: anomaly.clone(),
        org_id: String::new(),
    };
    system.anomaly_detector()?.resolve_anomaly(request).await?;
    output.record(&json!({
        "anomaly_id": anomaly,
        "resolved": true,
        "restored_key_ids": lifted.key_ids,
        "confirmed_gateways": lifted.confirmed_gateways,
        "pending_gateways": lifted.pending_gateways,
    }));
    Ok(())
}

//! `tollgate why`: the whole story of one call.

use clap::Args;
use proto::{
    keys::v1 as keys, stats_aggregator::v1 as stats, usage_ingest::v1 as usage,
    wallet::v1 as wallet,
};
use serde_json::{Value, json};
use tonic::Code;

use crate::connect::System;
use crate::failure::Result;
use crate::output::Output;
use crate::{key_show, usage as usage_cmd};

/// Tells the story of a call.
#[derive(Args)]
pub(crate) struct Why {
    /// `req_…`, from the `x-request-id` of the answer
    request_id: String,
}

/// What the services say about one call.
struct Story {
    call: usage::Call,
    key: Option<keys::Key>,
    settlement: Option<wallet::GetSettlementResponse>,
    is_counted: bool,
}

pub(crate) async fn run(args: Why, system: &System, output: &Output) -> Result {
    let story = Story::collect(args.request_id, system).await?;
    if output.is_json() {
        output.json(&story.json());
    } else {
        output.text(&story.text(system));
    }
    Ok(())
}

impl Story {
    async fn collect(request_id: String, system: &System) -> Result<Self> {
        let request = usage::GetCallRequest {
            request_id,
            org_id: String::new(),
        };
        let call = system
            .usage_ingest()?
            .get_call(request)
            .await?
            .into_inner()
            .call;
        let call = call.ok_or_else(|| anyhow::anyhow!("usage-ingest answered without the call"))?;

        let request = keys::GetKeyRequest {
            key_id: call.api_key_id.clone(),
        };
        let key = match system.keys()?.get_key(request).await {
            Ok(found) => found.into_inner().key,
            // A call that was refused for its key has none that could be shown.
            Err(status) if matches!(status.code(), Code::NotFound | Code::InvalidArgument) => None,
            Err(status) => return Err(status.into()),
        };
        let settlement = if call.lease_id.is_empty() {
            None
        } else {
            let lease_id = call.lease_id.clone();
            let request = wallet::GetSettlementRequest {
                lease_id,
                cum: call.lease_cum,
            };
            Some(system.wallet()?.get_settlement(request).await?.into_inner())
        };
        let request = stats::GetAppliedRequest {
            journal_id: call.journal_id.clone(),
            seq: call.seq,
        };
        let counted = system
            .stats_aggregator()?
            .get_applied(request)
            .await?
            .into_inner();
        Ok(Self {
            call,
            key,
            settlement,
            is_counted: counted.applied,
        })
    }

    /// `forwarded`, `replayed` when it was given a kept answer, or the code of the refusal.
    fn decision(&self) -> &str {
        match (self.call.code.as_str(), self.call.replay_of.as_str()) {
            ("", "") => "forwarded",
            ("", _) => "replayed",
            (code, _) => code,
        }
    }

    /// What costs nothing has nothing to settle.
    fn is_settled(&self) -> bool {
        self.settlement.as_ref().is_none_or(|it| it.settled)
    }

    fn json(&self) -> Value {
        let settlement = self.settlement.as_ref().map(|it| {
            json!({
                "lease_id": lease_id(&self.call.lease_id),
                "lease_cum": self.call.lease_cum,
                "settled_cum": it.settled_cum,
                "state": it.state,
                "journal_id": it.journal_id,
                "ledger_entry_id": it.ledger_entry_id,
            })
        });
        json!({
            "request_id": self.call.request_id,
            "decision": self.decision(),
            "disposition": self.call.disposition,
            "replay_of": filled(&self.call.replay_of),
            "cost": self.call.credits_used,
            "settled": self.is_settled(),
            "row": usage_cmd::show(&self.call),
            "statistics": self.is_counted,
            "trace_id": self.call.trace_id,
            "key": self.key.as_ref().map(key_show::show),
            "settlement": settlement,
        })
    }

    fn text(&self, system: &System) -> String {
        let usage::Call {
            request_id,
            method,
            service,
            endpoint,
            status_code,
            response_time_ms,
            ..
        } = &self.call;
        let mut lines = vec![
            request_id.clone(),
            format!(
                "  call        {method} /api/v1/{service}{endpoint} → {status_code} in \
                 {response_time_ms} ms"
            ),
            format!(
                "  from        {} ({})",
                self.call.ip_address, self.call.country
            ),
            format!("  key         {}", self.key_line()),
            format!(
                "  decision    {} ({})",
                self.decision(),
                self.call.disposition
            ),
            format!("  cost        {} credits", self.call.credits_used),
            format!("  debit       {}", self.debit_line()),
            format!(
                "  row         {} of {}",
                self.call.seq, self.call.journal_id
            ),
            format!(
                "  statistics  {}",
                if self.is_counted {
                    "counted"
                } else {
                    "not counted yet"
                }
            ),
        ];
        if let Some(original) = filled(&self.call.replay_of) {
            lines.push(format!(
                "  answer      of {original}, by its idempotency key"
            ));
        }
        let traces = system.dev.as_ref().and_then(|dev| dev.traces.as_ref());
        lines.push(match (self.call.trace_id.as_str(), traces) {
            ("", _) => "  trace       not sampled".to_owned(),
            (trace, Some(url)) => format!("  trace       {url}trace/{trace}"),
            (trace, None) => format!("  trace       {trace}"),
        });
        lines.join("\n")
    }

    fn key_line(&self) -> String {
        match &self.key {
            Some(key) => format!(
                "{} “{}” …{} ({})",
                key.key_id, key.name, key.hint, key.status
            ),
            None => "unknown".to_owned(),
        }
    }

    fn debit_line(&self) -> String {
        match &self.settlement {
            None => "nothing to debit".to_owned(),
            Some(it) if !it.settled => {
                format!(
                    "not settled yet: {} of {}",
                    it.settled_cum, self.call.lease_cum
                )
            }
            Some(it) => format!(
                "settled by ledger entry {}, lease {} ({})",
                it.ledger_entry_id,
                lease_id(&self.call.lease_id),
                it.state
            ),
        }
    }
}

fn filled(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn lease_id(bytes: &[u8]) -> String {
    types::LeaseId::from_slice(bytes).map_or_else(|_| String::new(), |id| id.to_string())
}

//! `tollgate usage`: calls, and totals of days.

use clap::Subcommand;
use proto::{stats_aggregator::v1 as stats, usage_ingest::v1 as wire};
use serde_json::{Value, json};

use crate::connect::{System, embedded, pages, time};
use crate::failure::Result;
use crate::output::Output;

/// Shows use.
#[derive(Subcommand)]
pub(crate) enum Usage {
    /// List calls, newest first
    Calls {
        /// `org_…`
        #[arg(long)]
        org: String,
        /// Only calls of this key, `key_…`
        #[arg(long, default_value = "", hide_default_value = true)]
        key: String,
        /// Lines at most
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// List totals of days, newest first
    Daily {
        /// `org_…`
        #[arg(long)]
        org: String,
        /// First day, YYYY-MM-DD in UTC; 30 days ago if absent
        #[arg(
            long,
            value_name = "DAY",
            default_value = "",
            hide_default_value = true
        )]
        from: String,
        /// Last day, inclusive; today if absent
        #[arg(
            long,
            value_name = "DAY",
            default_value = "",
            hide_default_value = true
        )]
        to: String,
    },
}

pub(crate) async fn run(command: Usage, system: &System, output: &Output) -> Result {
    match command {
        Usage::Calls { org, key, limit } => calls(system, &org, &key, limit, output).await,
        Usage::Daily { org, from, to } => daily(system, org, from, to, output).await,
    }
}

async fn calls(system: &System, org: &str, key: &str, limit: u32, output: &Output) -> Result {
    let usage = system.usage_ingest()?;
    let calls = pages(limit, |page_size, page_token| {
        let mut usage = usage.clone();
        let request = wire::ListCallsRequest {
            org_id: org.to_owned(),
            page_size,
            page_token,
            api_key_id: key.to_owned(),
        };
        async move {
            let page = usage.list_calls(request).await?.into_inner();
            Ok((page.calls, page.next_page_token))
        }
    });
    let rows = calls.await?.iter().map(show).collect();
    let columns = [
        ("timestamp", "WHEN"),
        ("request_id", "REQUEST"),
        ("service", "SERVICE"),
        ("method", "METHOD"),
        ("endpoint", "ENDPOINT"),
        ("status_code", "STATUS"),
        ("credits_used", "CREDITS"),
        ("response_time_ms", "MS"),
        ("country", "COUNTRY"),
    ];
    output.list("calls", &columns, rows);
    Ok(())
}

async fn daily(
    system: &System,
    org_id: String,
    from: String,
    to: String,
    output: &Output,
) -> Result {
    let request = stats::ListDailyRequest { org_id, from, to };
    let days = system
        .stats_aggregator()?
        .list_daily(request)
        .await?
        .into_inner()
        .days;
    let rows = days.iter().map(|day| {
        json!({
            "date": day.date,
            "environment": day.environment,
            "total_requests": day.total_requests,
            "total_credits": day.total_credits,
            "successful_requests": day.successful_requests,
            "success_rate": day.success_rate,
            "services_breakdown": embedded(&day.services_breakdown),
        })
    });
    let columns = [
        ("date", "DAY"),
        ("environment", "ENVIRONMENT"),
        ("total_requests", "CALLS"),
        ("total_credits", "CREDITS"),
        ("success_rate", "SUCCESS %"),
        ("services_breakdown", "SERVICES"),
    ];
    output.list("days", &columns, rows.collect());
    Ok(())
}

/// A call as scripts see it.
pub(crate) fn show(call: &wire::Call) -> Value {
    json!({
        "request_id": call.request_id,
        "journal_id": call.journal_id,
        "seq": call.seq,
        "api_key_id": call.api_key_id,
        "org_id": call.org_id,
        "service_id": call.service_id,
        "service": call.service,
        "endpoint": call.endpoint,
        "method": call.method,
        "status_code": call.status_code,
        "response_time_ms": call.response_time_ms,
        "credits_used": call.credits_used,
        "details": embedded(&call.details),
        "ip_address": call.ip_address,
        "country": call.country,
        "user_agent": call.user_agent,
        "timestamp": time(call.timestamp.as_ref()),
        "environment": call.environment,
        "disposition": call.disposition,
        "code": call.code,
        "replay_of": call.replay_of,
        "trace_id": call.trace_id,
        "price_version": call.price_version,
    })
}

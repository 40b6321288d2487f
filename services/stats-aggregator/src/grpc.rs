//! Queries over totals.

use proto::{
    convert::parse_id,
    stats_aggregator::v1::{
        Daily, GetAppliedRequest, GetAppliedResponse, Hourly, ListDailyRequest, ListDailyResponse,
        ListHourlyRequest, ListHourlyResponse, stats_aggregator_service_server,
    },
};
use runtime::Clock;
use stats_aggregator_service_server::StatsAggregatorService;
use tonic::{Request, Response, Status};
use types::{JournalId, OrgId};

use crate::{
    domain,
    store::{DailyRow, HourlyRow, Store},
};

type Reply<T> = Result<Response<T>, Status>;

/// The service as callers see it.
pub(crate) struct StatsAggregator {
    store: Store,
    clock: Clock,
}

impl StatsAggregator {
    pub(crate) fn new(store: Store, clock: Clock) -> Self {
        Self { store, clock }
    }
}

#[tonic::async_trait]
impl StatsAggregatorService for StatsAggregator {
    async fn list_daily(&self, request: Request<ListDailyRequest>) -> Reply<ListDailyResponse> {
        let ListDailyRequest { org_id, from, to } = request.into_inner();
        let org: OrgId = parse_id("org_id", &org_id)?;
        let (from, to) = domain::days(&from, &to, self.clock.now())?;
        let days = self.store.daily(org, from, to).await?;
        let days = days.into_iter().map(Daily::from).collect();
        Ok(Response::new(ListDailyResponse { days }))
    }

    async fn list_hourly(&self, request: Request<ListHourlyRequest>) -> Reply<ListHourlyResponse> {
        let ListHourlyRequest { org_id, from } = request.into_inner();
        let org: OrgId = parse_id("org_id", &org_id)?;
        let from = domain::first_hour(&from, self.clock.now())?;
        let hours = self.store.hourly(org, from).await?;
        let hours = hours.into_iter().map(Hourly::from).collect();
        Ok(Response::new(ListHourlyResponse { hours }))
    }

    async fn get_applied(&self, request: Request<GetAppliedRequest>) -> Reply<GetAppliedResponse> {
        let GetAppliedRequest { journal_id, seq } = request.into_inner();
        let journal: JournalId = parse_id("journal_id", &journal_id)?;
        // A position beyond what tables hold was never applied.
        let applied = match i64::try_from(seq) {
            Ok(seq) => self.store.is_applied(journal, seq).await?,
            Err(_) => false,
        };
        Ok(Response::new(GetAppliedResponse { applied }))
    }
}

impl From<DailyRow> for Daily {
    fn from(row: DailyRow) -> Self {
        Self {
            date: row.date.to_jiff().to_string(),
            environment: row.environment,
            total_requests: row.total_requests,
            total_credits: row.total_credits,
            successful_requests: row.successful_requests,
            success_rate: row.success_rate,
            services_breakdown: row.services_breakdown,
        }
    }
}

impl From<HourlyRow> for Hourly {
    fn from(row: HourlyRow) -> Self {
        Self {
            hour: row.hour.to_jiff().to_string(),
            environment: row.environment,
            service: row.service,
            total_requests: row.total_requests,
            total_credits: row.total_credits,
            successful_requests: row.successful_requests,
        }
    }
}

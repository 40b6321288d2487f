//! Anomalies for those who deal with them.

use proto::{
    anomaly_detector::v1::{
        self, GetOpenAnomaliesRequest, GetOpenAnomaliesResponse, ListAnomaliesRequest,
        ListAnomaliesResponse, ResolveAnomalyRequest, ResolveAnomalyResponse,
        anomaly_detector_service_server::AnomalyDetectorService,
    },
    convert::{page, parse_id, timestamp},
};
use runtime::{Actor, Clock, actor};
use tonic::{Request, Response, Status};
use types::{AnomalyId, KeyId, OrgId};

use crate::{
    error::Error,
    store::{Anomaly, Filter, Store},
};

type Reply<T> = Result<Response<T>, Status>;

/// The service as callers see it.
pub(crate) struct AnomalyDetector {
    store: Store,
    clock: Clock,
}

impl AnomalyDetector {
    pub(crate) fn new(store: Store, clock: Clock) -> Self {
        Self { store, clock }
    }
}

/// An organisation, or nothing for operators who ask about all of them and the platform.
fn scope(by: Actor, org_id: &str) -> Result<Option<OrgId>, Status> {
    match (by, org_id) {
        (Actor::Operator, "") => Ok(None),
        (Actor::User(_), "") => Err(Error::OperatorsOnly.into()),
        (_, org_id) => parse_id("org_id", org_id).map(Some),
    }
}

/// Whether those that were dealt with are asked for, or the others, or both.
fn resolved(state: &str) -> Result<Option<bool>, Error> {
    match state {
        "" | "open" => Ok(Some(false)),
        "resolved" => Ok(Some(true)),
        "all" => Ok(None),
        _ => Err(Error::UnknownState),
    }
}

#[tonic::async_trait]
impl AnomalyDetectorService for AnomalyDetector {
    async fn list_anomalies(
        &self,
        request: Request<ListAnomaliesRequest>,
    ) -> Reply<ListAnomaliesResponse> {
        let by = actor(&request);
        let it = request.into_inner();
        let before = match it.page_token.as_str() {
            "" => None,
            token => Some(parse_id("page_token", token)?),
        };
        let filter = Filter {
            org: scope(by, &it.org_id)?,
            resolved: resolved(&it.state)?,
            before,
        };
        let size = page(it.page_size);
        let anomalies = self.store.list(&filter, size).await?;
        let is_full = i64::try_from(anomalies.len()).is_ok_and(|rows| rows == size);
        let last = anomalies.last().filter(|_| is_full);
        let last = last.map(|last| AnomalyId::new(last.id).to_string());
        Ok(Response::new(ListAnomaliesResponse {
            anomalies: anomalies.into_iter().map(v1::Anomaly::from).collect(),
            next_page_token: last.unwrap_or_default(),
        }))
    }

    async fn resolve_anomaly(
        &self,
        request: Request<ResolveAnomalyRequest>,
    ) -> Reply<ResolveAnomalyResponse> {
        let by = actor(&request);
        let ResolveAnomalyRequest { anomaly_id, org_id } = request.into_inner();
        let anomaly: AnomalyId = parse_id("anomaly_id", &anomaly_id)?;
        let (org, now) = (scope(by, &org_id)?, self.clock.now());
        let done = self.store.resolve(anomaly, org, &by.to_string(), now).await;
        if !done? {
            return Err(Error::UnknownAnomaly { anomaly }.into());
        }
        Ok(Response::new(ResolveAnomalyResponse {}))
    }

    async fn get_open_anomalies(
        &self,
        request: Request<GetOpenAnomaliesRequest>,
    ) -> Reply<GetOpenAnomaliesResponse> {
        let org = parse_id("org_id", &request.into_inner().org_id)?;
        let open = self.store.open(Some(org)).await?;
        let count: i64 = open.iter().map(|open| open.count).sum();
        Ok(Response::new(GetOpenAnomaliesResponse {
            open: count > 0,
            count: u32::try_from(count).unwrap_or(u32::MAX),
            kinds: open.into_iter().map(|open| open.kind).collect(),
        }))
    }
}

impl From<Anomaly> for v1::Anomaly {
    fn from(row: Anomaly) -> Self {
        let key = |id| KeyId::new(id).to_string();
        let org = row.org_id.map(|id| OrgId::new(id).to_string());
        Self {
            anomaly_id: AnomalyId::new(row.id).to_string(),
            org_id: org.unwrap_or_default(),
            key_id: row.key_id.map(key).unwrap_or_default(),
            kind: row.kind,
            summary: row.summary,
            details: row.details,
            at: Some(timestamp(row.at.to_jiff())),
            resolved_at: row.resolved_at.map(|at| timestamp(at.to_jiff())),
            resolved_by: row.resolved_by.unwrap_or_default(),
            key_ids: row.key_ids.into_iter().map(key).collect(),
        }
    }
}

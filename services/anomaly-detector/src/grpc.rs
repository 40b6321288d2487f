//! Anomalies for those who deal with them.

use proto::{
    anomaly_detector::v1::{
        self, ListAnomaliesRequest, ListAnomaliesResponse, ResolveAnomalyRequest,
        ResolveAnomalyResponse, anomaly_detector_service_server::AnomalyDetectorService,
    },
    convert::{parse_id, timestamp},
};
use runtime::{Clock, actor};
use tonic::{Request, Response, Status};
use types::{AnomalyId, KeyId, OrgId};

use crate::{
    error::Error,
    store::{Anomaly, Store},
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

/// An organisation, or nothing for operators who ask about all of them.
fn scope(org_id: &str) -> Result<Option<OrgId>, Status> {
    if org_id.is_empty() {
        Ok(None)
    } else {
        parse_id("org_id", org_id).map(Some)
    }
}

#[tonic::async_trait]
impl AnomalyDetectorService for AnomalyDetector {
    async fn list_anomalies(
        &self,
        request: Request<ListAnomaliesRequest>,
    ) -> Reply<ListAnomaliesResponse> {
        let ListAnomaliesRequest {
            org_id,
            include_resolved,
        } = request.into_inner();
        let anomalies = self.store.list(scope(&org_id)?, include_resolved).await?;
        let anomalies = anomalies.into_iter().map(v1::Anomaly::from).collect();
        Ok(Response::new(ListAnomaliesResponse { anomalies }))
    }

    async fn resolve_anomaly(
        &self,
        request: Request<ResolveAnomalyRequest>,
    ) -> Reply<ResolveAnomalyResponse> {
        let by = actor(&request).to_string();
        let ResolveAnomalyRequest { anomaly_id, org_id } = request.into_inner();
        let anomaly: AnomalyId = parse_id("anomaly_id", &anomaly_id)?;
        if !self
            .store
            .resolve(anomaly, scope(&org_id)?, &by, self.clock.now())
            .await?
        {
            return Err(Error::UnknownAnomaly { anomaly }.into());
        }
        Ok(Response::new(ResolveAnomalyResponse {}))
    }
}

impl From<Anomaly> for v1::Anomaly {
    fn from(row: Anomaly) -> Self {
        Self {
            anomaly_id: AnomalyId::new(row.id).to_string(),
            org_id: OrgId::new(row.org_id).to_string(),
            key_id: KeyId::new(row.key_id).to_string(),
            kind: row.kind,
            summary: row.summary,
            details: row.details,
            at: Some(timestamp(row.at.to_jiff())),
            resolved_at: row.resolved_at.map(|at| timestamp(at.to_jiff())),
            resolved_by: row.resolved_by.unwrap_or_default(),
        }
    }
}

//! Queries over calls, and idempotency keys.

mod idempotency;

use proto::{
    convert::{page, parse_id, timestamp},
    usage_ingest::v1::{
        self, BeginKeyedCallRequest, BeginKeyedCallResponse, EndJournalRequest, EndJournalResponse,
        EndKeyedCallRequest, EndKeyedCallResponse, GetCallRequest, GetCallResponse,
        KeepAnswerRequest, KeepAnswerResponse, ListCallsRequest, ListCallsResponse,
        usage_ingest_service_server::UsageIngestService,
    },
};
use runtime::Clock;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};
use types::{JournalId, KeyId, OrgId, RequestId, ServiceId};

use crate::{
    domain::Cursor,
    error::Error,
    store::{Call, Store},
};

/// Questions about idempotency keys that are with the database at once: they leave connections to
/// the consumer, whoever asks how often.
const KEYED_AT_ONCE_MAX: usize = 6;

type Reply<T> = Result<Response<T>, Status>;

/// The service as callers see it.
pub(crate) struct UsageIngest {
    store: Store,
    clock: Clock,
    places: Semaphore,
}

impl UsageIngest {
    pub(crate) fn new(store: Store, clock: Clock) -> Self {
        Self {
            store,
            clock,
            places: Semaphore::new(KEYED_AT_ONCE_MAX),
        }
    }
}

#[tonic::async_trait]
impl UsageIngestService for UsageIngest {
    async fn get_call(&self, request: Request<GetCallRequest>) -> Reply<GetCallResponse> {
        let GetCallRequest { request_id, org_id } = request.into_inner();
        let request: RequestId = parse_id("request_id", &request_id)?;
        let org: Option<OrgId> = match org_id.as_str() {
            "" => None,
            given => Some(parse_id("org_id", given)?),
        };
        let call = self
            .store
            .call(request, org)
            .await?
            .ok_or(Error::UnknownCall { request })?;
        Ok(Response::new(GetCallResponse {
            call: Some(call.into()),
        }))
    }

    async fn list_calls(&self, request: Request<ListCallsRequest>) -> Reply<ListCallsResponse> {
        let ListCallsRequest {
            org_id,
            page_size,
            page_token,
            api_key_id,
        } = request.into_inner();
        let org: OrgId = parse_id("org_id", &org_id)?;
        let key: Option<KeyId> = match api_key_id.as_str() {
            "" => None,
            given => Some(parse_id("api_key_id", given)?),
        };
        let before = match page_token.as_str() {
            "" => Cursor::START,
            given => given.parse()?,
        };
        let (calls, next) = self.store.calls(org, key, before, page(page_size)).await?;
        let calls = calls.into_iter().map(v1::Call::from).collect();
        let next_page_token = next.map(|cursor| cursor.to_string()).unwrap_or_default();
        Ok(Response::new(ListCallsResponse {
            calls,
            next_page_token,
        }))
    }

    async fn begin_keyed_call(
        &self,
        request: Request<BeginKeyedCallRequest>,
    ) -> Reply<BeginKeyedCallResponse> {
        let now = self.clock.now();
        Ok(Response::new(self.begin(request.into_inner(), now).await?))
    }

    async fn keep_answer(&self, request: Request<KeepAnswerRequest>) -> Reply<KeepAnswerResponse> {
        let now = self.clock.now();
        let kept = self.keep(request.into_inner(), now).await?;
        Ok(Response::new(KeepAnswerResponse { kept }))
    }

    async fn end_keyed_call(
        &self,
        request: Request<EndKeyedCallRequest>,
    ) -> Reply<EndKeyedCallResponse> {
        self.end(request.into_inner(), self.clock.now()).await?;
        Ok(Response::new(EndKeyedCallResponse {}))
    }

    async fn end_journal(&self, request: Request<EndJournalRequest>) -> Reply<EndJournalResponse> {
        self.end_of(request.into_inner(), self.clock.now()).await?;
        Ok(Response::new(EndJournalResponse {}))
    }
}

impl From<Call> for v1::Call {
    fn from(call: Call) -> Self {
        Self {
            journal_id: JournalId::new(call.journal_id).to_string(),
            seq: call.seq.unsigned_abs(),
            request_id: RequestId::new(call.request_id).to_string(),
            api_key_id: call
                .api_key_id
                .map(|id| KeyId::new(id).to_string())
                .unwrap_or_default(),
            org_id: OrgId::new(call.org_id).to_string(),
            service_id: call
                .service_id
                .map(|id| ServiceId::new(id).to_string())
                .unwrap_or_default(),
            service: call.service,
            endpoint: call.endpoint,
            method: call.method,
            status_code: call.status_code.unsigned_abs(),
            response_time_ms: call.response_time_ms,
            credits_used: call.credits_used,
            details: call.details,
            ip_address: call.ip_address.unwrap_or_default(),
            country: call.country,
            user_agent: call.user_agent,
            timestamp: Some(timestamp(call.timestamp.to_jiff())),
            environment: call.environment,
            disposition: call.disposition,
            code: call.code,
            lease_id: call
                .lease_id
                .map(|id| id.as_bytes().to_vec())
                .unwrap_or_default(),
            lease_cum: call.lease_cum.unwrap_or(0),
            trace_id: call.trace_id,
            price_version: call.price_version,
            replay_of: call
                .replay_of
                .map(|id| RequestId::new(id).to_string())
                .unwrap_or_default(),
        }
    }
}

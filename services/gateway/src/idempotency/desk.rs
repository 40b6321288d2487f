//! Asks `usage-ingest`, which has the keys of all gateways. Each question may be repeated.

use std::time::Duration;

use proto::{
    channel::Channel,
    usage_ingest::v1::{
        BeginKeyedCallRequest, BeginKeyedCallResponse, EndKeyedCallRequest, IdempotencyKey,
        KeepAnswerRequest, KeptAnswer, usage_ingest_service_client::UsageIngestServiceClient,
    },
};
use tonic::{Code, Request, Status};

/// A call waits so long for its key, all attempts together.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(2);
/// An answer that came waits so long to be kept; then it goes on without.
const KEEP_TIMEOUT: Duration = Duration::from_secs(5);
/// So long it is tried to say how a call ended; its row says it too.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two attempts, at first.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_millis(500);

/// Where keys are had.
#[derive(Clone)]
pub(crate) struct Desk(Channel);

/// The key of a call, and the call.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) key: IdempotencyKey,
    pub(crate) request_id: String,
}

impl Desk {
    pub(crate) fn new(channel: Channel) -> Self {
        Self(channel)
    }

    fn client(&self) -> UsageIngestServiceClient<Channel> {
        UsageIngestServiceClient::new(self.0.clone())
    }

    pub(crate) async fn begin(
        &self,
        claim: Claim,
        journal_id: String,
        head_sha256: Vec<u8>,
    ) -> Result<BeginKeyedCallResponse, Status> {
        let request = BeginKeyedCallRequest {
            key: Some(claim.key),
            request_id: claim.request_id,
            journal_id,
            head_sha256,
        };
        let ask = || {
            let (mut client, request) = (self.client(), within(request.clone(), BEGIN_TIMEOUT));
            async move { Ok(client.begin_keyed_call(request).await?.into_inner()) }
        };
        repeat(BEGIN_TIMEOUT, ask).await
    }

    /// Whether the answer is kept. A failure leaves that open.
    pub(crate) async fn keep(&self, claim: Claim, answer: KeptAnswer) -> Result<bool, Status> {
        let request = KeepAnswerRequest {
            key: Some(claim.key),
            request_id: claim.request_id,
            answer: Some(answer),
        };
        let ask = || {
            let (mut client, request) = (self.client(), within(request.clone(), KEEP_TIMEOUT));
            async move { Ok(client.keep_answer(request).await?.into_inner().kept) }
        };
        repeat(KEEP_TIMEOUT, ask).await
    }

    pub(crate) async fn end(&self, claim: Claim, counts: bool) {
        let request = EndKeyedCallRequest {
            key: Some(claim.key),
            request_id: claim.request_id,
            counts,
        };
        let ask = || {
            let (mut client, request) = (self.client(), within(request.clone(), END_TIMEOUT));
            async move { Ok(client.end_keyed_call(request).await?.into_inner()) }
        };
        if let Err(status) = repeat(END_TIMEOUT, ask).await {
            tracing::debug!(code = ?status.code(), "the row of a call will tell how it ended");
        }
    }
}

fn within<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

/// Asks until there is an answer, within so long.
async fn repeat<T, Asked: Future<Output = Result<T, Status>>>(
    timeout: Duration,
    mut ask: impl FnMut() -> Asked,
) -> Result<T, Status> {
    let attempts = async {
        let mut retry = RETRY_MIN;
        loop {
            match ask().await {
                // Not reached, or not able to.
                Err(status) if matches!(status.code(), Code::Unavailable | Code::Internal) => {
                    tracing::debug!(code = ?status.code(), "idempotency keys are out of reach");
                    tokio::time::sleep(retry).await;
                    retry = retry.saturating_mul(2).min(RETRY_MAX);
                }
                answered => return answered,
            }
        }
    };
    let answered = tokio::time::timeout(timeout, attempts).await;
    answered.unwrap_or_else(|_| {
        Err(Status::deadline_exceeded(
            "idempotency keys are out of reach",
        ))
    })
}

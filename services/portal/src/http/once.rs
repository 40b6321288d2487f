//! `Idempotency-Key`: a request is carried out once, however often it is sent.

use std::sync::Arc;

use axum::{
    body::{Body, to_bytes},
    extract::{OptionalFromRequestParts, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use opentelemetry::{Context, trace::FutureExt as _};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::{BODY_BYTES_MAX, Portal, access::Caller};
use crate::{
    domain,
    error::{Error, Result},
    store::{Claim, Claimed},
};

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// Longest answer that is kept.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// The answer for repetitions, of a handler whose own one has a secret.
#[derive(Clone)]
pub(super) struct Redacted(pub(super) Bytes);

/// A route whose service is told the `Idempotency-Key` and acts on it once, whoever asks how often.
/// Where this process dies in between, the outcome does not stay unknown.
#[derive(Clone, Copy)]
pub(super) struct Repeatable;

fn request_is_repeatable(request: &http::request::Parts) -> bool {
    request.extensions.get::<Repeatable>().is_some()
}

/// The `Idempotency-Key` of a request, for services that recognise repetitions themselves.
pub(super) struct IdempotencyKey(String);

impl IdempotencyKey {
    /// A name of the key that has a fixed length.
    pub(super) fn digest(&self) -> [u8; 16] {
        let hash: [u8; 32] = Sha256::digest(self.0.as_bytes()).into();
        let (digest, _) = hash.split_at(16);
        digest.try_into().expect("split at 16")
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for IdempotencyKey {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut http::request::Parts, _: &S) -> Result<Option<Self>> {
        let Some(value) = parts.headers.get(&KEY) else {
            return Ok(None);
        };
        let key = domain::idempotency_key(value.to_str().unwrap_or_default())?;
        Ok(Some(Self(key.to_owned())))
    }
}

fn claim(caller: &Caller, key: &str, request: &http::request::Parts, body: &[u8]) -> Claim {
    let target = format!("{} {}", request.method, request.uri);
    let mut hash = Sha256::new();
    hash.update(target.as_bytes());
    hash.update([0]);
    hash.update(body);
    Claim {
        tenant: caller.tenant(),
        key: key.to_owned(),
        target,
        request_hash: hash.finalize().into(),
    }
}

/// Answers a repeated POST from memory.
pub(super) async fn once(
    State(portal): State<Arc<Portal>>,
    caller: Caller,
    request: Request,
    next: Next,
) -> Result<Response> {
    let key = request.headers().get(&KEY).cloned();
    let Some(key) = key.filter(|_| request.method() == Method::POST) else {
        return Ok(next.run(request).await);
    };
    let key = domain::idempotency_key(key.to_str().unwrap_or_default())?;
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else {
        return Err(Error::BodyTooLarge);
    };
    let claim = claim(&caller, key, &head, &body);
    match portal
        .store
        .claim(&claim, portal.host.clock().now())
        .await?
    {
        Claimed::New => {}
        // Who carries it out recognises a repetition: it may be sent until it is answered.
        Claimed::Pending if request_is_repeatable(&head) => {}
        Claimed::Answered { status, body } => return Ok(replay(status, body)),
        Claimed::Pending => return Err(Error::IdempotencyPending),
        Claimed::Other => return Err(Error::IdempotencyMismatch),
    }
    let request = Request::from_parts(head, Body::from(body));
    let (answer, answered) = oneshot::channel();
    // In a task of its own: who hangs up does not leave the outcome unknown.
    let host = portal.host.clone();
    let context = Context::current();
    host.spawn("answer-once", move |_| {
        async move {
            let response = next.run(request).await;
            let response = note(&portal, &claim, response).await;
            // Nobody waits any more: the answer is kept for the next time.
            drop(answer.send(response));
        }
        .with_context(context)
    });
    answered
        .await
        .map_err(|error| Error::Internal(anyhow::Error::new(error)))
}

/// Keeps an answer. A refusal changed nothing and is forgotten; after a failure the outcome is not
/// known, and stays so.
async fn note(portal: &Portal, claim: &Claim, response: Response) -> Response {
    let status = response.status();
    if status.is_server_error() {
        return response;
    }
    if !status.is_success() {
        if let Err(error) = portal.store.release(claim).await {
            tracing::warn!(%error, "a refused request keeps its Idempotency-Key");
        }
        return response;
    }
    let (mut head, body) = response.into_parts();
    let Ok(body) = to_bytes(body, ANSWER_BYTES_MAX).await else {
        return Error::Internal(anyhow::anyhow!("an answer is too long to keep")).into_response();
    };
    let kept = match head.extensions.remove::<Redacted>() {
        Some(Redacted(kept)) => kept,
        None => body.clone(),
    };
    let number = i16::try_from(status.as_u16()).unwrap_or(i16::MAX);
    if let Err(error) = portal.store.answer(claim, number, &kept).await {
        tracing::warn!(%error, "an answer was not kept for repetitions");
    }
    Response::from_parts(head, Body::from(body))
}

fn replay(status: i16, body: Vec<u8>) -> Response {
    let status = u16::try_from(status)
        .ok()
        .and_then(|status| StatusCode::from_u16(status).ok())
        .unwrap_or(StatusCode::OK);
    let mut response = status.into_response();
    let headers = response.headers_mut();
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    if !body.is_empty() {
        let kind = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, kind);
        headers.remove(header::CONTENT_LENGTH);
        *response.body_mut() = Body::from(body);
    }
    response
}

//! Idempotency keys on the wire.

use jiff::Timestamp;
use proto::{convert::parse_id, usage_ingest::v1 as pb};
use tokio::sync::SemaphorePermit;
use tonic::Status;
use types::{Environment, KEPT_BODY_BYTES_MAX, KEPT_HEADERS_BYTES_MAX, KEPT_HEADERS_MAX};

use super::UsageIngest;
use crate::{
    domain::idempotency::{Asker, Digest, Key, Verdict},
    error::Error,
    store::idempotency::{Kept, Told},
};

/// Lowest and highest status of an answer that ends.
const STATUSES: std::ops::RangeInclusive<i32> = 200..=999;

impl UsageIngest {
    /// A place among those that ask about keys at once; waited for until the deadline.
    async fn place(&self) -> Result<SemaphorePermit<'_>, Error> {
        let place = self.places.acquire().await;
        place.map_err(|error| Error::Internal(error.into()))
    }

    pub(super) async fn begin(
        &self,
        it: pb::BeginKeyedCallRequest,
        now: Timestamp,
    ) -> Result<pb::BeginKeyedCallResponse, Status> {
        let key = key(it.key)?;
        let asker = Asker {
            request: parse_id("request_id", &it.request_id)?,
            journal: parse_id("journal_id", &it.journal_id)?,
            head: digest("head_sha256", &it.head_sha256)?,
        };
        let _place = self.place().await?;
        let told = self.store.begin_keyed(&key, &asker, now).await?;
        let mut response = pb::BeginKeyedCallResponse::default();
        let verdict = match told {
            Told::Verdict(verdict) => named(verdict),
            Told::Full => pb::KeyedCallVerdict::Full,
            Told::Answer(request, kept) => {
                response.answered_request_id = request.to_string();
                response.answer = Some((*kept).into());
                pb::KeyedCallVerdict::Answered
            }
        };
        response.set_verdict(verdict);
        Ok(response)
    }

    pub(super) async fn keep(
        &self,
        it: pb::KeepAnswerRequest,
        now: Timestamp,
    ) -> Result<bool, Status> {
        let key = key(it.key)?;
        let request = parse_id("request_id", &it.request_id)?;
        let answer = it.answer.ok_or(Error::Answer { field: "answer" })?;
        let kept = kept(answer)?;
        let _place = self.place().await?;
        Ok(self.store.keep_answer(&key, request, kept, now).await?)
    }

    pub(super) async fn end(
        &self,
        it: pb::EndKeyedCallRequest,
        now: Timestamp,
    ) -> Result<(), Status> {
        let key = key(it.key)?;
        let request = parse_id("request_id", &it.request_id)?;
        let _place = self.place().await?;
        Ok(self.store.end_keyed(&key, request, it.counts, now).await?)
    }

    pub(super) async fn end_of(
        &self,
        it: pb::EndJournalRequest,
        now: Timestamp,
    ) -> Result<(), Status> {
        let journal = parse_id("journal_id", &it.journal_id)?;
        let next_seq = i64::try_from(it.next_seq).ok();
        let next_seq = next_seq.ok_or(Error::Answer { field: "next_seq" })?;
        Ok(self.store.end_journal(journal, next_seq, now).await?)
    }
}

fn named(verdict: Verdict) -> pb::KeyedCallVerdict {
    match verdict {
        Verdict::First => pb::KeyedCallVerdict::First,
        Verdict::InFlight => pb::KeyedCallVerdict::InFlight,
        Verdict::Answered => pb::KeyedCallVerdict::Answered,
        Verdict::NotKept => pb::KeyedCallVerdict::NotKept,
        Verdict::Reused => pb::KeyedCallVerdict::Reused,
    }
}

fn digest(field: &'static str, bytes: &[u8]) -> Result<Digest, Error> {
    let read = Digest::try_from(bytes).ok();
    read.ok_or(Error::Digest { field })
}

fn key(key: Option<pb::IdempotencyKey>) -> Result<Key, Status> {
    let it = key.unwrap_or_default();
    let environment = if it.test {
        Environment::Test
    } else {
        Environment::Production
    };
    Ok(Key {
        org: parse_id("key.org_id", &it.org_id)?,
        environment,
        sha256: digest("key.sha256", &it.sha256)?,
    })
}

/// An answer within its limits.
fn kept(it: pb::KeptAnswer) -> Result<Kept, Error> {
    let status = i32::try_from(it.status).ok();
    let status = status.filter(|status| STATUSES.contains(status));
    let bytes: usize = it
        .headers
        .iter()
        .map(|header| header.name.len().saturating_add(header.value.len()))
        .sum();
    if it.headers.len() > KEPT_HEADERS_MAX || bytes > KEPT_HEADERS_BYTES_MAX {
        return Err(Error::Answer { field: "headers" });
    }
    if it.body.len() > KEPT_BODY_BYTES_MAX {
        return Err(Error::Answer { field: "body" });
    }
    if it.headers.iter().any(|header| header.name.contains('\0')) {
        return Err(Error::Answer { field: "headers" });
    }
    Ok(Kept {
        status: status.ok_or(Error::Answer { field: "status" })?,
        headers: it
            .headers
            .into_iter()
            .map(|header| (header.name, header.value))
            .collect(),
        body: it.body,
        request_body: digest("request_body_sha256", &it.request_body_sha256)?.to_vec(),
    })
}

impl From<Kept> for pb::KeptAnswer {
    fn from(kept: Kept) -> Self {
        let header = |(name, value)| pb::KeptHeader { name, value };
        Self {
            status: kept.status.unsigned_abs(),
            headers: kept.headers.into_iter().map(header).collect(),
            body: kept.body,
            request_body_sha256: kept.request_body,
        }
    }
}

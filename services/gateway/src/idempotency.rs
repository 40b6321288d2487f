//! Calls that carry an `Idempotency-Key`: of those with one key, one counts in 24 hours, and the
//! others are given its answer.
//!
//! Only such a call asks anybody: `usage-ingest`, which gives the key to one call at a time. Then
//! 1. it is checked and forwarded as any other, whether or not its client stays;
//! 2. its whole answer is kept, as far as the limits go, while its end is held back;
//! 3. its record is written into the journal, which charges it;
//! 4. `usage-ingest` hears that it has ended, and the end of the answer leaves.
//!
//! Killed before 3, it was never charged: the key is free once its journal has ended, applied to
//! the last record. Killed after it, the row decides, and the kept answer is given. So nobody is
//! charged for an answer that could be kept and is not, unless `usage-ingest` is away for longer
//! than the call waits for it then; and the upstream is asked a second time only when the first was
//! not charged. A call that cannot reach `usage-ingest` is not forwarded.
//!
//! The record of a call that has a key names it, and so does the note of it that is in the journal
//! before it is forwarded: when the database of `usage-ingest` was failed over or restored, they
//! tell who has the key.
//!
//! A key belongs to an organisation and an environment, not to an API key: what is charged is the
//! organisation's, and a key that is rotated between two attempts must not charge it twice. Who
//! may not make the call does not get its answer either: that is asked before.

mod answer;
pub(crate) mod desk;
mod key;
pub(crate) mod relay;

#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use http::{HeaderMap, Method, Request, Response, header::CONTENT_TYPE};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use proto::{
    events::v1::Disposition,
    usage_ingest::v1::{BeginKeyedCallResponse, IdempotencyKey, KeyedCallVerdict},
};
use runtime::crash_point;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use types::{JournalId, Refusal};

use self::{answer::Transcript, desk::Claim};
use crate::{
    body::EdgeBody, catalogue::Route, edge::Edge, meter::Ticket, refuse::Refused, upload::Uploaded,
};

pub(crate) use self::answer::{BodyDigest, Replay};

/// A SHA-256.
pub(crate) type Digest = [u8; 32];

/// The end of an answer waits so long until it is known everywhere that its call has ended.
const SETTLE_WAIT: Duration = Duration::from_millis(500);
/// Seconds after which a call is worth another attempt whose key is taken.
const IN_USE_RETRY_SECONDS: u64 = 1;
/// Or whose organisation has too many keys: they are counted again within a minute.
const FULL_RETRY_SECONDS: u64 = 60;

/// A request that carries a key.
#[derive(Debug)]
pub(crate) struct Keyed {
    sha256: Digest,
    /// Of what it asks for, once the key is asked for.
    head: Cell<Digest>,
    body: BodyDigest,
    /// Set while this call has the key, or may have it.
    claim: RefCell<Option<Claim>>,
    copy: RefCell<Option<Transcript>>,
    is_kept: Cell<bool>,
    /// Resolves when the end of the call is known.
    ending: RefCell<Option<oneshot::Receiver<()>>>,
}

/// The key of a request. Of other methods it means nothing to us.
///
/// # Errors
/// It is there more than once, or malformed.
pub(crate) fn find(method: &Method, headers: &HeaderMap) -> Result<Option<Rc<Keyed>>, Refused> {
    if !matches!(*method, Method::POST | Method::PATCH) {
        return Ok(None);
    }
    match key::find(headers) {
        Ok(None) => Ok(None),
        Ok(Some(sha256)) => Ok(Some(Rc::new(Keyed {
            sha256,
            head: Cell::default(),
            body: BodyDigest::default(),
            claim: RefCell::default(),
            copy: RefCell::default(),
            is_kept: Cell::default(),
            ending: RefCell::default(),
        }))),
        Err(key::Malformed) => Err(Refused {
            detail: "Send one Idempotency-Key of 1 to 255 visible ASCII characters, bare or in \
                     double quotes.",
            ..Refusal::BadRequest.into()
        }),
    }
}

/// Gets the key for a call, or what was answered to the one that had it. Calls without a key pass.
///
/// # Errors
/// The key is taken, stands for something else, or cannot be had.
pub(crate) async fn begin(
    edge: &Arc<Edge>,
    ticket: &Ticket,
    request: &Request<Incoming>,
) -> Result<Option<Box<Replay>>, Refused> {
    match &ticket.facts().keyed {
        None => Ok(None),
        Some(keyed) => Box::pin(keyed.begin(edge, ticket, request)).await,
    }
}

impl Keyed {
    async fn begin(
        &self,
        edge: &Arc<Edge>,
        ticket: &Ticket,
        request: &Request<Incoming>,
    ) -> Result<Option<Box<Replay>>, Refused> {
        let entry = ticket.entry();
        let claim = Claim {
            key: IdempotencyKey {
                org_id: entry.org.to_string(),
                test: entry.test,
                sha256: self.sha256.to_vec(),
            },
            request_id: ticket.facts().request.to_string(),
        };
        // From here on the key may be ours, whatever is heard of it.
        self.claim.replace(Some(claim.clone()));
        let journal = JournalId::new(edge.journal.id()).to_string();
        let (desk, head) = (edge.desk.clone(), head(request));
        self.head.set(head);
        let asked = async move { desk.begin(claim, journal, head.to_vec()).await };
        let told = edge.control.spawn(ticket.facts().span.around(asked)).await;
        let Ok(Ok(told)) = told else {
            return Err(Refused {
                detail: "The idempotency key cannot be looked up now; the call was not forwarded.",
                ..Refusal::MeteringUnavailable.into()
            });
        };
        if told.verdict() == KeyedCallVerdict::First {
            crash_point!("gateway.idempotency_begun");
            return Ok(None);
        }
        self.claim.take();
        obey(told).map(Some)
    }

    /// Of the request's body, as far as it has passed.
    pub(crate) fn body(&self) -> BodyDigest {
        self.body.clone()
    }

    /// The upstream has answered; `counts` says whether a route charges for such an answer.
    pub(crate) fn answered(&self, counts: bool, status: u16, head: &HeaderMap) {
        if counts && self.has_key() {
            self.copy.replace(Transcript::of(status, head));
        }
    }

    /// A part of the answer's body passes.
    pub(crate) fn pass(&self, data: &[u8]) {
        let mut copy = self.copy.borrow_mut();
        if copy.as_mut().is_some_and(|copy| !copy.take(data)) {
            copy.take();
        }
    }

    /// The answer has something that is not kept.
    pub(crate) fn cannot_keep(&self) {
        self.copy.take();
    }

    /// Whether the answer may still be kept when it is complete.
    pub(crate) fn can_keep(&self) -> bool {
        self.copy.borrow().is_some()
    }

    /// Whether this call has the key.
    pub(crate) fn has_key(&self) -> bool {
        self.claim.borrow().is_some()
    }

    /// The digests of the key that this call has, and of what it asks for. Its record tells them:
    /// `usage-ingest` may forget who has the key, when its database comes back without what it
    /// committed last.
    pub(crate) fn had(&self) -> Option<[Digest; 2]> {
        self.has_key().then(|| [self.sha256, self.head.get()])
    }

    /// Ends a call whose answer is complete but for its end: keeps it, then writes the record.
    /// Resolves to whether the end may leave.
    pub(crate) async fn finish(self: Rc<Self>, edge: Arc<Edge>, ticket: Ticket) -> bool {
        self.keep(&edge).await;
        let proven = ticket.close().proof.wait().await;
        self.settled().await;
        crash_point!("gateway.idempotency_ended");
        proven
    }

    /// Keeps the answer. One that cannot be is charged all the same, and not given again.
    async fn keep(&self, edge: &Edge) {
        let (Some(copy), Some(claim)) = (self.copy.take(), self.claim.borrow().clone()) else {
            return;
        };
        // An upstream may answer before it has read everything: then nobody knows what it answers.
        let Some(request_body) = self.body.digest() else {
            return;
        };
        let (desk, answer) = (edge.desk.clone(), copy.into_kept(request_body));
        let asked = edge
            .control
            .spawn(async move { desk.keep(claim, answer).await });
        match asked.await {
            Ok(Ok(kept)) => self.is_kept.set(kept),
            Ok(Err(status)) => {
                tracing::warn!(code = ?status.code(), "the answer to a call with a key is not kept");
            }
            Err(error) => tracing::error!(%error, "the answer to a call with a key is not kept"),
        }
        crash_point!("gateway.answer_kept");
    }

    /// The record is written. Says how the call ended, for those who ask before its row is there.
    pub(crate) fn ended(&self, edge: &Edge, is_charged: bool, is_complete: bool) {
        let Some(claim) = self.claim.take() else {
            return;
        };
        let counts = is_charged || (is_complete && self.is_kept.get());
        let (done, ending) = oneshot::channel();
        self.ending.replace(Some(ending));
        let desk = edge.desk.clone();
        edge.control.spawn(async move {
            desk.end(claim, counts).await;
            drop(done); // tells whoever waits
        });
    }

    /// Resolves when everybody knows of the end of the call, or soon.
    pub(crate) async fn settled(&self) {
        let ending = self.ending.take();
        if let Some(ending) = ending
            && tokio::time::timeout(SETTLE_WAIT, ending).await.is_err()
        {
            tracing::debug!("the row of a call will tell how it ended");
        }
    }
}

/// What is said to a call that did not get its key.
fn obey(told: BeginKeyedCallResponse) -> Result<Box<Replay>, Refused> {
    let replay = told
        .answered_request_id
        .parse()
        .ok()
        .zip(told.answer.clone());
    match (told.verdict(), replay) {
        (KeyedCallVerdict::Answered, Some((original, answer))) => {
            Ok(Box::new(Replay { original, answer }))
        }
        (KeyedCallVerdict::InFlight, _) => Err(Refused::after(
            Refusal::IdempotencyKeyInUse,
            IN_USE_RETRY_SECONDS,
        )),
        (KeyedCallVerdict::NotKept, _) => Err(Refusal::IdempotencyAnswerNotKept.into()),
        (KeyedCallVerdict::Reused, _) => Err(Refusal::IdempotencyKeyReused.into()),
        (KeyedCallVerdict::Full, _) => Err(Refused::after(
            Refusal::IdempotencyKeysExhausted,
            FULL_RETRY_SECONDS,
        )),
        // A verdict that this version does not know.
        _ => Err(Refusal::MeteringUnavailable.into()),
    }
}

/// Gives an answer again. The body is read first: another one is another request.
///
/// # Errors
/// It is another one, too long, or does not come.
pub(crate) async fn replay(
    request: Request<Incoming>,
    mut ticket: Ticket,
    replay: Box<Replay>,
    route: &Route,
) -> Result<Response<EdgeBody>, Refused> {
    let read = match ticket.facts().keyed.clone() {
        Some(keyed) => read(request.into_body(), &keyed.body, route).await,
        None => Err(Refusal::MeteringUnavailable.into()),
    };
    let refused = match read {
        Ok(body) if replay.answer.request_body_sha256 == body => None,
        Ok(_) => Some(Refusal::IdempotencyKeyReused.into()),
        Err(refused) => Some(refused),
    };
    if let Some(refused) = refused {
        ticket.refuse(refused.refusal, Disposition::Refused);
        return Err(refused);
    }
    ticket.replays(&replay);
    if !ticket.close().proof.wait().await {
        return Err(Refusal::MeteringUnavailable.into());
    }
    Ok(replay.into_response())
}

/// Reads a body for its digest only.
async fn read(body: Incoming, digest: &BodyDigest, route: &Route) -> Result<Digest, Refused> {
    let (mut body, upload) = Uploaded::new(body, route.body_bytes_max, Some(digest.clone()));
    let frames = async { while let Some(Ok(_)) = body.frame().await {} };
    let came = tokio::time::timeout(route.timeout, frames).await.is_ok();
    if let Some(refusal) = upload.fault.get() {
        return Err(refusal.into());
    }
    let incomplete = Refused {
        detail: "The body did not come to its end in time.",
        ..Refusal::BadRequest.into()
    };
    digest.digest().filter(|_| came).ok_or(incomplete)
}

/// Of everything but the body that makes a request what it is.
fn head(request: &Request<Incoming>) -> Digest {
    let mut sha = Sha256::new();
    let mut part = |bytes: &[u8]| {
        sha.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
        sha.update(bytes);
    };
    part(request.method().as_str().as_bytes());
    // The service is part of the path; host and scheme are how the gateway was reached.
    part(request.uri().path().as_bytes());
    part(request.uri().query().unwrap_or_default().as_bytes());
    for kind in request.headers().get_all(CONTENT_TYPE) {
        part(kind.as_bytes());
    }
    sha.finalize().into()
}

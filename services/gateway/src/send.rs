//! Sends a request, again where that is safe, and waits for the head of the answer.
//!
//! - Sent again is what the upstream has certainly not worked on: what never left, and what it
//!   refused by HTTP/2 before it looked at it (`REFUSED_STREAM`, above the last stream of a
//!   `GOAWAY`). And a call that changes nothing, when the connection had been used before; or when
//!   a new one broke, once, at another address.
//! - Never once a byte of an answer was there; and a call has one ticket, however often it is sent.

use std::{cell::RefCell, error::Error as _, pin::pin, rc::Rc, time::Duration};

use http::{
    Method, Request, Response, Uri, Version,
    header::{CONNECTION, HOST},
    uri::PathAndQuery,
};
use http_body::Body as _;
use hyper::{body::Incoming, client::conn::TrySendError};
use tokio::time::Instant;
use types::Refusal;

use crate::{
    catalogue::{Protocol, Service},
    edge::Worker,
    listen::Hinted,
    metrics::Repeat,
    pool::{Fault, Lent, Need, Target, Unlent},
    refuse::Refused,
    upload::{Upload, Uploaded},
};

/// Attempts to send a request: each after the first only because the one before did nothing.
const SEND_ATTEMPTS_MAX: u32 = 3;
/// A body that comes slower than that does not prolong the time to the first byte of its answer:
/// whoever sends it holds a connection to the upstream.
const UPLOAD_BYTES_PER_SECOND_MIN: u64 = 4 << 10;

/// How a request is sent.
pub(crate) struct Manner {
    /// To the head of its answer.
    pub(crate) timeout: Duration,
    /// It may change protocols: it gets a connection of its own.
    pub(crate) may_switch: bool,
    /// It was sent there once, and not answered.
    pub(crate) avoid: Option<Rc<Target>>,
}

/// Sends a request and waits for the head of the answer.
pub(crate) async fn send(
    worker: &Rc<Worker>,
    service: &Service,
    request: Request<Uploaded>,
    upload: &Upload,
    manner: Manner,
) -> Result<(Lent, Response<Incoming>), Refused> {
    let (timeout, asked) = (manner.timeout, RefCell::default());
    let mut attempts = pin!(attempt(worker, service, request, manner, &asked));
    let mut before = 0;
    loop {
        let (uploads, began) = (!upload.ended.get(), Instant::now());
        if let Ok(sent) = tokio::time::timeout(timeout, attempts.as_mut()).await {
            return sent;
        }
        // The time is that of the upstream: it counts anew as long as a body comes at a fair rate.
        let bytes = upload.bytes.get();
        let fair = UPLOAD_BYTES_PER_SECOND_MIN.saturating_mul(began.elapsed().as_secs().max(1));
        if uploads && bytes.saturating_sub(before) >= fair {
            before = bytes;
            continue;
        }
        // It had the whole request, and time. Said while the connection is there still: dropped,
        // it would say that nothing is known.
        if let Some(target) = asked.take().filter(|_| upload.ended.get()) {
            worker.pool.failed(&target, Fault::Call);
        }
        return Err(Refusal::UpstreamTimeout.into());
    }
}

async fn attempt(
    worker: &Rc<Worker>,
    service: &Service,
    mut request: Request<Uploaded>,
    manner: Manner,
    asked: &RefCell<Option<Rc<Target>>>,
) -> Result<(Lent, Response<Incoming>), Refused> {
    let Manner {
        may_switch,
        mut avoid,
        ..
    } = manner;
    let is_idempotent = is_idempotent(&request);
    // Only by HTTP/2 does an upstream say that it has not looked at a request.
    let may_refuse = service.upstream.protocol != Protocol::Http1;
    let head = (is_idempotent || may_refuse).then(|| head(&request));
    let kept = match may_refuse {
        true => request.body_mut().keep(),
        false => None,
    };
    let hinted = request.extensions_mut().remove::<Hinted>();
    for attempt in 1..=SEND_ATTEMPTS_MAX {
        // The last attempt is made on a connection of its own.
        let need = match &avoid {
            _ if may_switch => Need::Switch,
            Some(target) => Need::Elsewhere(target),
            None if attempt == SEND_ATTEMPTS_MAX => Need::New,
            None => Need::Any,
        };
        let lent = worker.pool.lend(&service.upstream, need).await;
        let mut lent = lent.map_err(|unlent| refused(service, unlent))?;
        asked.replace(Some(lent.target()));
        if lent.is_h2() || request.version() == Version::HTTP_2 {
            address(&mut request, service, lent.is_h2());
        }
        if let Some(hinted) = hinted.clone().filter(|_| !lent.is_h2()) {
            hinted.hear(&mut request);
        }
        let mut failed = match lent.send(request).await {
            Ok(response) => {
                lent.answered(&worker.pool, response.status());
                return Ok((lent, response));
            }
            Err(failed) => failed,
        };
        let unsent = failed.take_message();
        let (repeat, next) = match (unsent, &head) {
            (Some(unsent), _) if lent.reused => (Repeat::Unsent, Some(unsent)),
            (None, Some(head)) if may_refuse && is_refused(&failed) => {
                let body = kept
                    .as_ref()
                    .map_or_else(|| Some(Uploaded::nothing()), |it| it.again());
                (Repeat::Refused, body.map(|body| copy(head, body)))
            }
            // A reused connection that its peer had just closed.
            (None, Some(head)) if is_idempotent && lent.reused && !lent.was_heard => {
                (Repeat::Idempotent, Some(copy(head, Uploaded::nothing())))
            }
            // A new one that broke: somebody else may do better, but no third.
            (_, Some(head))
                if is_idempotent
                    && !(lent.reused || lent.was_heard || may_switch)
                    && avoid.is_none()
                    && worker.pool.has_other(&service.upstream, &lent.target()) =>
            {
                let target = lent.target();
                worker.pool.failed(&target, Fault::Call);
                avoid = Some(target);
                (Repeat::Elsewhere, Some(copy(head, Uploaded::nothing())))
            }
            _ => (Repeat::Unsent, None),
        };
        let Some(next) = next else {
            return Err(broken(worker, service, &lent, &failed.into_error()));
        };
        worker.edge.metrics.upstreams.repeated(repeat);
        request = next;
    }
    Err(Refusal::UpstreamUnreachable.into())
}

/// The connection broke before there was an answer.
fn broken(worker: &Worker, service: &Service, lent: &Lent, error: &hyper::Error) -> Refused {
    tracing::debug!(service = service.name, %error, "no answer");
    // A body that breaks off is its client's doing; a connection that had been used before may
    // have been closed for want of use.
    if !error.is_user() && !lent.reused {
        worker.pool.failed(&lent.target(), Fault::Call);
    }
    Refusal::UpstreamUnreachable.into()
}

/// Why there is no connection.
pub(crate) fn refused(service: &Service, unlent: Unlent) -> Refused {
    match unlent {
        Unlent::Unreachable(error) => {
            tracing::debug!(service = service.name, %error, "no connection");
            Refusal::UpstreamUnreachable.into()
        }
        Unlent::Resting(wait) => Refused::after(
            Refusal::UpstreamUnreachable,
            wait.as_secs().saturating_add(1),
        ),
        Unlent::Crowded => Refusal::UpstreamBusy.into(),
    }
}

/// Whether a request changes nothing and has no body.
fn is_idempotent(request: &Request<Uploaded>) -> bool {
    let method = request.method();
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
        && request.body().is_end_stream()
}

fn head(request: &Request<Uploaded>) -> Request<()> {
    let mut head = Request::new(());
    head.method_mut().clone_from(request.method());
    head.uri_mut().clone_from(request.uri());
    *head.version_mut() = request.version();
    head.headers_mut().clone_from(request.headers());
    head
}

fn copy(head: &Request<()>, body: Uploaded) -> Request<Uploaded> {
    let (parts, ()) = head.clone().into_parts();
    Request::from_parts(parts, body)
}

/// Whether the peer says that it has not looked at a request (RFC 9113, 8.7).
fn is_refused(failed: &TrySendError<Request<Uploaded>>) -> bool {
    let cause = failed.error().source();
    cause
        .and_then(|cause| cause.downcast_ref::<h2::Error>())
        .is_some_and(|error| {
            let is_reset = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
            error.is_remote() && (error.is_go_away() || is_reset)
        })
}

/// Says where a request goes as the version does: HTTP/1.1 in `Host`, HTTP/2 in its address.
fn address(request: &mut Request<Uploaded>, service: &Service, is_h2: bool) {
    let path = request.uri().path_and_query().cloned();
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    let uri = if is_h2 {
        let scheme = if service.upstream.tls {
            "https"
        } else {
            "http"
        };
        Uri::builder()
            .scheme(scheme)
            .authority(service.authority.as_bytes())
            .path_and_query(path)
            .build()
    } else {
        Ok(Uri::from(path))
    };
    // Parts of what was parsed fit together.
    let Ok(uri) = uri else {
        return;
    };
    *request.uri_mut() = uri;
    if is_h2 {
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().remove(HOST);
        request.headers_mut().remove(CONNECTION);
    } else {
        *request.version_mut() = Version::HTTP_11;
        let host = service.authority.clone();
        request.headers_mut().insert(HOST, host);
    }
}

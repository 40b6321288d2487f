//! Calls that hyper goes on with: admitted and not sent, or with the beginning of an answer.

use std::{rc::Rc, sync::Arc};

use bytes::Bytes;
use http::{Method, Response, Version};
use hyper::body::Incoming;
use proto::events::v1::Disposition;
use types::Refusal;

use crate::{
    admit::Admitted,
    body::EdgeBody,
    catalogue::{Catalogue, Route},
    edge::{CallId, Denied, Dialect, Worker, seal},
    limits::Limits,
    meter::Ticket,
    pool::{Direct, Fault, Target},
    proxy,
    refuse::Refused,
};

/// A call that hyper goes on with.
pub(in crate::listen) struct Resume {
    pub(super) id: CallId,
    pub(super) limits: Limits,
    pub(super) ticket: Ticket,
    pub(super) catalogue: Arc<Catalogue>,
    pub(super) service: String,
    pub(super) rest: String,
    /// It was sent there, and not answered.
    pub(super) avoid: Option<Rc<Target>>,
    /// It was sent, and of its answer so much was read.
    pub(super) answered: Option<(Direct, Bytes)>,
}

/// Goes on with a call whose request hyper has read once more.
pub(in crate::listen) async fn resume(
    worker: Rc<Worker>,
    request: http::Request<Incoming>,
    resume: Resume,
) -> Response<EdgeBody> {
    let Resume {
        id,
        limits,
        ticket,
        catalogue,
        service,
        rest,
        avoid,
        answered,
    } = resume;
    let route = catalogue
        .service(&service)
        .and_then(|service| Some((service, service.route(request.method(), &rest)?)));
    let response = match (route, answered) {
        // It was admitted by the same catalogue.
        (None, _) => Err(failed(ticket, Refusal::UnknownRoute)),
        (Some((service, route)), None) => {
            let admitted = Admitted {
                ticket,
                service,
                route,
                replay: None,
                avoid,
            };
            proxy::forward(&worker, request, admitted, &rest).await
        }
        (Some((_, route)), Some((direct, read))) => {
            relay(&worker, request.method(), route, ticket, (direct, read)).await
        }
    };
    let answered = match response {
        Ok(response) => Ok((response, limits)),
        Err(refused) => Err(Denied::counted(refused, limits)),
    };
    seal(&worker.edge, Dialect::Http1, id, None, answered)
}

/// Carries the answer to a request that was sent.
async fn relay(
    worker: &Worker,
    method: &Method,
    route: &Route,
    ticket: Ticket,
    (direct, read): (Direct, Bytes),
) -> Result<Response<EdgeBody>, Refused> {
    let (target, reused) = (Rc::clone(direct.target()), direct.reused);
    let head = direct.into_answer(&worker.pool, method, read);
    let (lent, response) = match tokio::time::timeout(route.timeout, head).await {
        Ok(Ok(answered)) => answered,
        Ok(Err(error)) => {
            tracing::debug!(%error, "no answer");
            if !reused {
                worker.pool.failed(&target, Fault::Call);
            }
            return Err(failed(ticket, Refusal::UpstreamUnreachable));
        }
        Err(_) => {
            worker.pool.failed(&target, Fault::Call);
            return Err(failed(ticket, Refusal::UpstreamTimeout));
        }
    };
    let client = proxy::Client {
        version: Version::HTTP_11,
        takes_trailers: false,
    };
    proxy::answered(worker, route, ticket, (lent, response), client).await
}

fn failed(ticket: Ticket, refusal: Refusal) -> Refused {
    ticket.refuse(refusal, Disposition::UpstreamFailed);
    refusal.into()
}

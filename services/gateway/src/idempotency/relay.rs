//! Carries a call with a key beyond its client: who goes away finds the answer when he comes back,
//! and what was begun once is not begun again because of him.

use std::{
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::{mpsc, oneshot};
use types::Refusal;

use super::Keyed;
use crate::{
    body::{BodyError, EdgeBody},
    edge::{self, Answered, CallId, Worker},
    listen::Peer,
};

/// Frames on their way from the call to its client.
const FRAMES_MAX: usize = 4;
/// An answer whose client has gone is read on for so long, and no further than it can be kept.
const READ_ON_MAX: Duration = Duration::from_secs(60);

/// A part of an answer; `None` is its end. A relay that ends without it has broken off.
type Part = Option<Result<Frame<Bytes>, BodyError>>;

/// An answer that a task reads.
pub(crate) struct Relayed {
    parts: mpsc::Receiver<Part>,
    hint: SizeHint,
}

impl Relayed {
    pub(crate) fn poll_frame(
        &mut self,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.parts
            .poll_recv(task)
            .map(|part| part.unwrap_or_else(|| Some(Err("the answer broke off".into()))))
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

/// As `edge::answer`, in a task of its own.
pub(crate) async fn answer(
    worker: &Rc<Worker>,
    peer: Peer,
    request: Request<Incoming>,
    id: CallId,
    keyed: Rc<Keyed>,
) -> Answered {
    let (give, given) = oneshot::channel();
    let own = Rc::clone(worker);
    let work = worker.beyond.track_future(async move {
        let answered = edge::answer(&own, peer, request, id, Some(Rc::clone(&keyed))).await;
        // Who is refused may come again at once.
        keyed.settled().await;
        let (response, limits) = match answered {
            Ok(answered) => answered,
            Err(denied) => {
                drop(give.send(Err(denied))); // a client that has gone hears nothing
                return;
            }
        };
        let (head, body) = response.into_parts();
        if let EdgeBody::Full(_) = body {
            drop(give.send(Ok((Response::from_parts(head, body), limits))));
            return;
        }
        let (parts, relayed) = mpsc::channel(FRAMES_MAX);
        let relayed = Relayed {
            parts: relayed,
            hint: body.size_hint(),
        };
        let relayed = Response::from_parts(head, EdgeBody::Relayed(relayed));
        drop(give.send(Ok((relayed, limits))));
        carry(body, parts, &keyed).await;
    });
    tokio::task::spawn_local(work);
    match given.await {
        Ok(answered) => answered,
        // Its task has died.
        Err(_) => Err(Refusal::MeteringUnavailable.into()),
    }
}

/// Reads an answer to its end, whether or not anybody is there to take it.
async fn carry(mut body: EdgeBody, parts: mpsc::Sender<Part>, keyed: &Keyed) {
    let read = async {
        loop {
            let part = body.frame().await;
            let is_last = !matches!(part, Some(Ok(_)));
            let is_gone = parts.send(part).await.is_err();
            // What cannot be kept is read for nobody.
            if is_last || (is_gone && !keyed.can_keep()) {
                return;
            }
        }
    };
    let patience = async {
        parts.closed().await;
        tokio::time::sleep(READ_ON_MAX).await;
    };
    tokio::select! {
        () = read => {}
        () = patience => {}
    }
}

//! Asks the upstream, and waits for its answer.

use std::task::Poll;

use http::Method;
use types::Refusal;

use super::{
    front::{Front, Pieces},
    interim,
    request::Request,
};
use crate::{
    metrics::Repeat,
    pool::{Direct, patience::Pauses},
};

/// Why there is no answer.
#[derive(Clone, Copy)]
pub(super) enum NoAnswer {
    /// The connection broke, after so many bytes were sent.
    Broken(usize),
    /// It broke behind an interim answer.
    BrokenOff,
    Timeout,
    /// The client has gone.
    Lost,
}

impl NoAnswer {
    pub(super) fn refusal(self) -> Refusal {
        match self {
            Self::Timeout => Refusal::UpstreamTimeout,
            Self::Broken(_) | Self::BrokenOff | Self::Lost => Refusal::UpstreamUnreachable,
        }
    }

    /// The same, but of a broken connection what is known of it.
    pub(super) fn or_broken(self, known: Self) -> Self {
        match self {
            Self::Broken(_) => known,
            other => other,
        }
    }

    /// Whether it is safe to send a request again: as in `send.rs`.
    pub(super) fn repeat(
        self,
        request: &Request<'_>,
        reused: bool,
        has_other: impl FnOnce() -> bool,
    ) -> Option<Repeat> {
        let is_idempotent = request.method == Method::GET && request.body.is_empty();
        match self {
            Self::Broken(0) if reused => Some(Repeat::Unsent),
            Self::Broken(_) if reused && is_idempotent => Some(Repeat::Idempotent),
            Self::Broken(_) if is_idempotent && has_other() => Some(Repeat::Elsewhere),
            _ => None,
        }
    }
}

/// Sends a request, and waits for the first bytes of its answer. What comes before that is passed
/// on.
pub(super) async fn ask(
    front: &mut Front<'_>,
    direct: &mut Direct,
    (head, body): (&mut Vec<u8>, &[u8]),
    pauses: &mut Pauses,
) -> Result<Vec<u8>, NoAnswer> {
    let mut pieces = Pieces::new(head, body);
    let mut sent = 0_usize;
    std::future::poll_fn(|task| {
        while !pieces.is_empty() {
            match pieces.poll_write(&mut direct.stream, task) {
                Poll::Ready(Ok(bytes)) => sent = sent.saturating_add(bytes),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(NoAnswer::Broken(sent))),
                Poll::Pending if pauses.pause(task) => {
                    return Poll::Ready(Err(NoAnswer::Timeout));
                }
                Poll::Pending if front.poll_lost(task) => return Poll::Ready(Err(NoAnswer::Lost)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    })
    .await?;
    let read = receive(front, direct, pauses, 0).await;
    let mut read = read.map_err(|why| why.or_broken(NoAnswer::Broken(sent)))?;
    interim::pass_on(front, direct, pauses, &mut read).await?;
    Ok(read)
}

/// Waits for bytes of an answer, of which so many are `expected`; 0: before its head says it.
pub(super) async fn receive(
    front: &mut Front<'_>,
    direct: &mut Direct,
    pauses: &mut Pauses,
    expected: u64,
) -> Result<Vec<u8>, NoAnswer> {
    std::future::poll_fn(
        |task| match front.hall.poll_read(&mut direct.stream, task, expected) {
            Poll::Ready(Some(read)) => Poll::Ready(Ok(read)),
            Poll::Ready(None) => Poll::Ready(Err(NoAnswer::Broken(0))),
            Poll::Pending if pauses.pause(task) => Poll::Ready(Err(NoAnswer::Timeout)),
            Poll::Pending if front.poll_lost(task) => Poll::Ready(Err(NoAnswer::Lost)),
            Poll::Pending => Poll::Pending,
        },
    )
    .await
}

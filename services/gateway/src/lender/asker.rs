//! Asking the wallet: what waits at the same time travels together.
//!
//! - A request that finds a line to the wallet free goes at once, by itself. One that finds all of
//!   them taken goes with all others that wait when the next is free. Nobody waits to be joined.
//! - A line is taken until the wallet has said what it can say at once. Those for whom it has to
//!   ask other gateways keep no line from the rest.
//! - Each has an answer of its own; one that the wallet fails for all may be the fault of one, so
//!   its requests can be made again alone.

#[cfg(test)]
mod tests;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use opentelemetry::{Context, trace::FutureExt as _};
use parking_lot::Mutex;
use proto::{
    channel::Channel,
    wallet::v1::{self as wire, wallet_service_client::WalletServiceClient},
};
use runtime::Host;
use tokio::{sync::oneshot, time::timeout};
use tonic::Status;
use types::JournalId;

/// Asks that travel together; more wait for the next line. The wallet takes no more.
const ASKS_MAX: usize = 128;
/// Requests for which the wallet has said nothing yet. With few, more travels together; with one,
/// an owner whose wallet is locked for a moment would keep all others waiting.
const LINES_MAX: usize = 4;

/// A request that was not answered.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) status: Status,
    /// It failed with others.
    pub(super) was_joint: bool,
}

/// Someone who waits for an answer. Each is a call, a renewal or a repetition for an account of its
/// own, and those are bounded.
struct Waiting {
    ask: wire::Ask,
    alone: bool,
    /// So long its answer is waited for.
    patience: Duration,
    /// Of the call's trace. What travels together is seen in the trace of the first.
    context: Context,
    answered: oneshot::Sender<Result<wire::Answer, Failed>>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    lines: usize,
}

impl Queue {
    /// Those who go next, and nobody who has given up.
    fn take(&mut self) -> Vec<Waiting> {
        let mut batch: Vec<Waiting> = Vec::new();
        while let Some(next) = self.waiting.pop_front() {
            if next.answered.is_closed() {
                continue;
            }
            let is_full = batch.len() == ASKS_MAX || batch.iter().any(|it| it.alone);
            if is_full || (next.alone && !batch.is_empty()) {
                self.waiting.push_front(next);
                break;
            }
            batch.push(next);
        }
        batch
    }
}

/// Asks for one journal.
pub(super) struct Asker {
    host: Host,
    channel: Channel,
    journal: JournalId,
    name: String,
    queue: Mutex<Queue>,
}

impl Asker {
    pub(super) fn new(
        host: &Host,
        channel: Channel,
        journal: JournalId,
        name: String,
    ) -> Arc<Self> {
        Arc::new(Self {
            host: host.clone(),
            channel,
            journal,
            name,
            queue: Mutex::default(),
        })
    }

    /// Asks once, alone or with whoever waits too, and waits for so long.
    pub(super) async fn ask(
        self: &Arc<Self>,
        ask: wire::Ask,
        alone: bool,
        patience: Duration,
    ) -> Result<wire::Answer, Failed> {
        let (answered, answer) = oneshot::channel();
        let taken = {
            let mut queue = self.queue.lock();
            queue.waiting.push_back(Waiting {
                ask,
                alone,
                patience,
                context: Context::current(),
                answered,
            });
            (queue.lines < LINES_MAX).then(|| Line::take(self, &mut queue))
        };
        if let Some((line, batch)) = taken {
            line.send(batch);
        }
        let failed = |status| Failed {
            status,
            was_joint: false,
        };
        match timeout(patience, answer).await {
            Ok(Ok(answered)) => answered,
            // The task has died, maybe of another's answer.
            Ok(Err(_)) => Err(Failed {
                status: Status::unavailable("the request was dropped"),
                was_joint: true,
            }),
            Err(_) => Err(failed(Status::deadline_exceeded("no answer in time"))),
        }
    }
}

/// A line, taken until it is dropped.
struct Line {
    asker: Arc<Asker>,
}

impl Line {
    fn take(asker: &Arc<Asker>, queue: &mut Queue) -> (Self, Vec<Waiting>) {
        queue.lines = queue.lines.saturating_add(1);
        let line = Self {
            asker: Arc::clone(asker),
        };
        (line, queue.take())
    }

    fn send(self, batch: Vec<Waiting>) {
        let host = self.asker.host.clone();
        let context = batch.first().map(|first| first.context.clone());
        host.spawn("ask-for-credits", move |_| {
            self.ask(batch).with_context(context.unwrap_or_default())
        });
    }

    async fn ask(self, batch: Vec<Waiting>) {
        let asker = Arc::clone(&self.asker);
        let was_joint = batch.len() > 1;
        let patience = batch.iter().map(|it| it.patience).max().unwrap_or_default();
        let (asks, mut waiting): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|it| (it.ask, Some(it.answered)))
            .unzip();
        let mut line = Some(self);
        let reading = asker.read(asks, patience, &mut waiting, &mut line);
        let status = match timeout(patience, reading).await {
            Ok(Ok(())) => Status::internal("the wallet has left out an answer"),
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("no answer in time"),
        };
        for unanswered in waiting.into_iter().flatten() {
            let status = status.clone();
            // Who has gone asks again with the same nonce.
            drop(unanswered.send(Err(Failed { status, was_joint })));
        }
    }
}

impl Drop for Line {
    /// Leaves the line to those who have come meanwhile, if anybody has; also when whoever carried
    /// it has died.
    fn drop(&mut self) {
        let taken = {
            let mut queue = self.asker.queue.lock();
            queue.lines = queue.lines.saturating_sub(1);
            // Under the same lock: nobody is left waiting beside a free line.
            let is_awaited = !queue.waiting.is_empty();
            is_awaited.then(|| Self::take(&self.asker, &mut queue))
        };
        if let Some((line, batch)) = taken
            && !batch.is_empty()
        {
            line.send(batch);
        }
    }
}

impl Asker {
    /// Hands out the answers as they come, and the line with the first of them.
    async fn read(
        &self,
        asks: Vec<wire::Ask>,
        patience: Duration,
        waiting: &mut [Option<oneshot::Sender<Result<wire::Answer, Failed>>>],
        line: &mut Option<Line>,
    ) -> Result<(), Status> {
        let mut request = tonic::Request::new(wire::AcquireRequest {
            journal_id: self.journal.to_string(),
            gateway: self.name.clone(),
            asks,
        });
        request.set_timeout(patience);
        let mut wallet = WalletServiceClient::new(self.channel.clone());
        let mut answers = wallet.acquire(request).await?.into_inner();
        while let Some(wire::AcquireResponse { answers }) = answers.message().await? {
            for answer in answers {
                let place = usize::try_from(answer.position).ok();
                let place = place.and_then(|place| waiting.get_mut(place));
                if let Some(waiting) = place.and_then(Option::take) {
                    drop(waiting.send(Ok(answer)));
                }
            }
            drop(line.take());
        }
        Ok(())
    }
}

//! Answers to asks for credits: what is there at once, the rest after others were asked for it.

use std::{collections::BTreeSet, pin::Pin, time::Duration};

use futures_util::{Stream, StreamExt as _, stream};
use proto::{convert::parse_id, wallet::v1 as wire};
use tonic::Status;
use types::{JournalId, LeaseId};

use super::{
    Service, log,
    wire::{ask, check_gateway, invalid, lease_to_wire},
};
use crate::{
    domain::Ask,
    error::Result,
    store::{Borrower, Lent},
};

/// Asks of one request.
const ASKS_MAX: usize = 128;
/// Recalls before a request for credits is refused. One is enough unless others take what came
/// back; all together stay within a fifth of a second.
const RECALLS_MAX: u32 = 3;

/// Answers as they come.
pub(crate) type Answers = Pin<Box<dyn Stream<Item = Result<wire::AcquireResponse, Status>> + Send>>;

/// The asks of a request that are not answered yet.
pub(super) struct Lending {
    service: Service,
    borrower: Borrower,
    /// With their places in the request.
    asks: Vec<(u32, Ask)>,
    /// Who may give something back for them.
    holders: BTreeSet<(JournalId, LeaseId)>,
    recalls: u32,
    /// What has not been sent.
    answers: Vec<wire::Answer>,
}

impl Lending {
    /// Reads a request whose sender waits for so long. An ask that breaks a rule is answered, and
    /// stops no other.
    pub(super) fn begin(
        service: &Service,
        it: wire::AcquireRequest,
        patience: Duration,
    ) -> Result<Self, Status> {
        if !(1..=ASKS_MAX).contains(&it.asks.len()) {
            return Err(invalid("asks", "must have 1 to 128 entries"));
        }
        check_gateway(&it.gateway)?;
        let borrower = Borrower {
            journal: parse_id("journal_id", &it.journal_id)?,
            gateway: it.gateway,
            patience,
        };
        let (mut asks, mut answers) = (Vec::with_capacity(it.asks.len()), Vec::new());
        for (position, asked) in (0..).zip(it.asks) {
            match ask(asked) {
                Ok(ask) => asks.push((position, ask)),
                Err(status) => answers.push(wire::Answer {
                    problem: status.message().to_owned(),
                    ..answer(position, wire::Outcome::Invalid)
                }),
            }
        }
        Ok(Self {
            service: service.clone(),
            borrower,
            asks,
            holders: BTreeSet::new(),
            recalls: 0,
            answers,
        })
    }

    /// Lends. What can be said at once is the first message, be it nothing.
    pub(super) async fn answers(mut self) -> Result<Answers, Status> {
        let first = self.lend().await?;
        let rest = stream::try_unfold(self, async |mut lending: Self| {
            if lending.asks.is_empty() {
                return Ok(None);
            }
            lending.recall().await?;
            Ok(Some((lending.lend().await?, lending)))
        });
        Ok(Box::pin(stream::iter([Ok(first)]).chain(rest)))
    }

    /// Lends what is there; what others may give back stays among the asks.
    async fn lend(&mut self) -> Result<wire::AcquireResponse> {
        let Service {
            store, ids, clock, ..
        } = &self.service;
        let (positions, asks): (Vec<u32>, Vec<Ask>) = self.asks.drain(..).unzip();
        if !asks.is_empty() {
            let lent = store.acquire(&self.borrower, &asks, ids, clock).await?;
            let now = clock.now();
            for ((position, ask), lent) in positions.into_iter().zip(asks).zip(lent) {
                let answer = match lent {
                    Lent::Lease { lease, available } => wire::Answer {
                        lease: Some(lease_to_wire(&lease, now)),
                        available: available.get(),
                        ..answer(position, wire::Outcome::Lent)
                    },
                    Lent::Short { holders, .. }
                        if !holders.is_empty() && self.recalls < RECALLS_MAX =>
                    {
                        self.asks.push((position, ask));
                        self.holders.extend(holders);
                        continue;
                    }
                    Lent::Short { available, .. } => wire::Answer {
                        available: available.get(),
                        ..answer(position, wire::Outcome::Short)
                    },
                    Lent::Frozen => answer(position, wire::Outcome::Frozen),
                    Lent::NonceReused => answer(position, wire::Outcome::NonceReused),
                };
                self.answers.push(answer);
            }
        }
        let answers = std::mem::take(&mut self.answers);
        Ok(wire::AcquireResponse { answers })
    }

    /// Asks who may give something back.
    async fn recall(&mut self) -> Result<()> {
        self.recalls = self.recalls.saturating_add(1);
        let holders: Vec<(JournalId, LeaseId)> =
            std::mem::take(&mut self.holders).into_iter().collect();
        let Service {
            store,
            recall,
            clock,
            ..
        } = &self.service;
        let answers = recall.ask(&holders).await;
        if !answers.is_empty() {
            log(&store.take_back(&answers, clock.now()).await?);
        }
        Ok(())
    }
}

fn answer(position: u32, outcome: wire::Outcome) -> wire::Answer {
    wire::Answer {
        position,
        outcome: outcome.into(),
        ..wire::Answer::default()
    }
}

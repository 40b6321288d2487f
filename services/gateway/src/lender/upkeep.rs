//! What keeps leases known, recallable and closed in time: heartbeats, recalls, final counts.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _};
use prost::Message as _;
use proto::{
    events::v1::{RecallRequest, RecallResponse, Record, RecordKind},
    wallet::v1 as wire,
};
use runtime::{Stop, crash_point};
use types::{LeaseId, Refusal};

use super::{
    Lender,
    desk::{Bulletin, Told},
    wire_account,
};
use crate::lease::{Account, Lease, Owner};

/// Seconds without a call after which unspent credits go back, but a few.
const IDLE_TICKS: u64 = 10;
/// Final counts under way at once: they share what the disk takes its time for.
const CLOSED_AT_ONCE: usize = 64;
/// Unanswered requests that are asked again at once: as many as one request to the wallet holds.
const ASKED_AT_ONCE: usize = 128;
/// A heartbeat waits so long to be taken, and so does the end of a journal: well below the time
/// after which a silent gateway's leases are orphaned.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Leases in one heartbeat message.
const REPORTS_MAX: usize = 2_000;

impl Lender {
    /// Measures rates and gives back what is idle; called once a second, however long a heartbeat
    /// takes.
    pub(crate) fn tick(&self) {
        self.forget_acquisition();
        for account in self.accounts.pin().values() {
            if account.tick() >= IDLE_TICKS {
                account.give_back_idle();
            }
        }
    }

    /// Reports all leases, and closes what is to be closed.
    pub(crate) async fn heartbeat(&self) {
        self.desk.end_periods(self.monotonic_micros());
        self.report().await;
        self.close_spent().await;
    }

    /// Learns what became of requests that were never answered. What was lent is in hand then, and
    /// goes back like everything that is idle.
    pub(crate) async fn ask_again(&self) {
        if self.desk.is_behind() {
            return; // the wallet is out of reach
        }
        let lost: Vec<Owner> = self.unanswered.pin().keys().copied().collect();
        let asked = futures_util::stream::iter(lost.into_iter().map(Ok));
        let asked = asked.try_for_each_concurrent(ASKED_AT_ONCE, |owner| self.ask_again_for(owner));
        if asked.await.is_err() {
            tracing::debug!("requests for credits stay unanswered");
        }
    }

    /// # Errors
    /// The wallet is out of reach, so it is for others too; or the journal is full.
    async fn ask_again_for(&self, owner: Owner) -> Result<(), Refusal> {
        let account = self.account(owner);
        // Whoever has the turn is asking already.
        let Ok(_turn) = account.turn.try_lock() else {
            return Ok(());
        };
        let Some(request) = self.unanswered(owner) else {
            return Ok(());
        };
        match self.obtain(&account, request, 0).await {
            // What failed alone is nobody else's concern.
            Err(refusal) if self.unanswered(owner).is_some_and(|it| !it.alone) => Err(refusal),
            _ => Ok(()),
        }
    }

    /// Tells the wallet what has changed, or all, in messages of a bounded size.
    async fn report(&self) {
        let Bulletin {
            tells_all,
            told: mut reports,
        } = self.desk.news(self.monotonic_micros());
        let mut asks_for_all = false;
        loop {
            let rest = reports.split_off(reports.len().min(REPORTS_MAX));
            let leases = reports
                .iter()
                .map(|told| self.report_of(told, tells_all))
                .collect();
            let request = wire::HeartbeatRequest {
                journal_id: self.journal_id().to_string(),
                gateway: self.name.clone(),
                leases,
                tells_all: tells_all && rest.is_empty(),
            };
            let mut request = tonic::Request::new(request);
            request.set_timeout(REPORT_TIMEOUT);
            match self.client().heartbeat(request).await {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    let drain = answer.drain.iter();
                    let ids = drain.filter_map(|id| LeaseId::from_slice(id).ok());
                    self.desk.drain(ids);
                    self.live_gateways
                        .store(answer.live_gateways, Ordering::Relaxed);
                    asks_for_all |= answer.tell_all;
                }
                Err(status) => {
                    tracing::debug!(code = ?status.code(), "the wallet did not take a heartbeat");
                    self.desk.missed();
                    return;
                }
            }
            for told in reports {
                told.lease.was_told(told.cum, told.returned_cum);
            }
            if rest.is_empty() {
                break;
            }
            reports = rest;
        }
        match asks_for_all {
            true => self.desk.missed(),
            false if tells_all => self.desk.told_all(),
            false => {}
        }
    }

    fn report_of(&self, told: &Told, tells_all: bool) -> wire::LeaseReport {
        let lease = &told.lease;
        let account = tells_all.then(|| wire_account(&self.account(told.owner)));
        wire::LeaseReport {
            lease_id: lease.id.bytes().to_vec(),
            cum: told.cum,
            returned_cum: told.returned_cum,
            granted_cum: if tells_all { lease.granted_cum() } else { 0 },
            account,
        }
    }

    /// Closes the leases that nothing can be spent from any more.
    async fn close_spent(&self) {
        let _closing = self.closing.lock().await;
        futures_util::stream::iter(self.desk.open())
            .filter(|lease| std::future::ready(lease.claim_close()))
            .for_each_concurrent(CLOSED_AT_ONCE, |lease| self.close(lease))
            .await;
    }

    /// Writes the final count of a lease that is claimed for it.
    async fn close(&self, lease: Arc<Lease>) {
        let id = lease.id;
        let record = Record {
            kind: RecordKind::Close.into(),
            at_unix_micros: self.now_micros(),
            lease_id: id.bytes().to_vec(),
            ..Record::default()
        };
        match self.append_synced(record, Some(Arc::clone(&lease))).await {
            Ok(()) => {
                crash_point!("gateway.close_written");
                self.desk.closed(&lease);
            }
            // The next heartbeat tries again, or else the next start: the journal has everything.
            // A count that was written and not synced may be written twice, it is the same.
            Err(error) => {
                lease.unclaim_close();
                tracing::error!(%error, lease.id = %id, "a lease was not closed");
            }
        }
    }

    /// Closes all leases: no call is in flight and none will come.
    pub(crate) async fn close_all(&self) {
        // No acquisition begins any more, and those that have begun are waited for: a lease that
        // came later would stay open.
        self.desk.end();
        let accounts: Vec<Arc<Account>> = self.accounts.pin().values().map(Arc::clone).collect();
        for account in accounts {
            drop(account.turn.lock().await);
        }
        for lease in self.desk.open() {
            lease.drain();
            if !lease.is_spent() {
                tracing::warn!(lease.id = %lease.id, "calls were cut off, their lease stays open");
            }
        }
        self.close_spent().await;
    }

    /// Ends the journal at the wallet, which lends nothing to it any more. What was lent without
    /// this process hearing of it, because a reply was lost, gets its final count here.
    ///
    /// # Errors
    /// The wallet cannot be asked, or a lease is still open. The next start ends the journal then.
    pub(crate) async fn retire(&self) -> anyhow::Result<()> {
        let mut request = tonic::Request::new(wire::RetireJournalRequest {
            journal_id: self.journal_id().to_string(),
            unless_alive: false,
        });
        request.set_timeout(REPORT_TIMEOUT);
        let answer = self.client().retire_journal(request).await?.into_inner();
        for lent in answer.leases {
            let id = LeaseId::from_slice(&lent.lease_id)?;
            anyhow::ensure!(!self.desk.is_open(id), "{id} is still open");
            if !self.desk.is_unheard(id, lent.known_cum) {
                continue; // its final count is on its way
            }
            let record = Record {
                kind: RecordKind::Close.into(),
                at_unix_micros: self.now_micros(),
                lease_id: id.bytes().to_vec(),
                ..Record::default()
            };
            self.append_synced(record, None).await?;
            crash_point!("gateway.close_written");
        }
        Ok(())
    }

    /// Answers the wallet's recalls: gives back everything that is not held.
    pub(crate) async fn answer_recalls(self: Arc<Self>, stop: Stop) {
        let nats = self.host.nats();
        let subject = format!("wallet.v1.recall.{}", self.journal_id());
        let mut requests = match nats.subscribe(subject).await {
            Ok(requests) => requests,
            Err(error) => {
                tracing::error!(%error, "recalls cannot be answered");
                return;
            }
        };
        loop {
            let message = tokio::select! {
                message = requests.next() => message,
                () = stop.requested() => return,
            };
            let Some(message) = message else { return };
            let Some(reply) = message.reply else { continue };
            let Ok(recall) = RecallRequest::decode(message.payload) else {
                continue;
            };
            let Ok(id) = LeaseId::from_slice(&recall.lease_id) else {
                continue;
            };
            let Some(returned_cum) = self.desk.give_back(id) else {
                continue;
            };
            let answer = RecallResponse {
                lease_id: recall.lease_id,
                returned_cum,
            };
            crash_point!("gateway.recall_answered");
            if let Err(error) = nats.publish(reply, answer.encode_to_vec().into()).await {
                tracing::debug!(%error, "a recall was not answered; the heartbeat tells it");
            }
        }
    }
}

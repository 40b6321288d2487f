//! Brings credits from the wallet: acquisition, renewal, recall, heartbeat, final counts.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use prost::Message as _;
use proto::{
    channel::Channel,
    events::v1::{RecallRequest, RecallResponse, Record, RecordKind},
    wallet::v1::{self as wire, wallet_service_client::WalletServiceClient},
};
use runtime::{Host, Stop, crash_point};
use tokio::sync::mpsc;
use tonic::Code as Grpc;
use types::{JournalId, LeaseId, Refusal};

use crate::{
    journal::Journal,
    lease::{Account, Hold, Lease, Owner},
    record,
};

/// A call waits so long for credits at most, all attempts together.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// Attempts of one acquisition, all with the same nonce.
const ATTEMPTS_MAX: u32 = 3;
/// A lease covers so many seconds of the present rate (twice the renewal interval of 2 s).
const LEASE_SECONDS: i64 = 4;
/// Calls that a first lease covers, before any rate is known.
const FIRST_CALLS: i64 = 32;
/// No lease asks for more.
const WANT_MAX: i64 = 10_000_000;
/// Accounts that wait for renewal at most; more renew when they run dry.
const RENEWALS_MAX: usize = 4_096;
/// Renewals under way at once: a wallet that is slow for one owner keeps few others waiting.
const RENEWALS_AT_ONCE: usize = 16;
/// Seconds without a call after which unspent credits go back.
const IDLE_TICKS: u64 = 10;
/// Leases in one heartbeat message.
const REPORTS_MAX: usize = 2_000;

/// All accounts of this process.
pub(crate) struct Lender {
    journal: Journal,
    host: Host,
    channel: Channel,
    name: String,
    accounts: papaya::HashMap<Owner, Arc<Account>>,
    /// Open leases, current and draining ones.
    leases: papaya::HashMap<LeaseId, Arc<Lease>>,
    /// Leases whose final count is written: nothing the wallet says opens them again. One id for
    /// each lease of this process life; renewals extend, so there are few.
    closed: papaya::HashSet<LeaseId>,
    /// One at a time closes leases.
    closing: tokio::sync::Mutex<()>,
    stopping: AtomicBool,
    renewals: mpsc::Sender<Arc<Account>>,
}

impl Lender {
    pub(crate) fn new(
        host: &Host,
        journal: Journal,
        name: String,
    ) -> anyhow::Result<(Arc<Self>, mpsc::Receiver<Arc<Account>>)> {
        let (renewals, waiting) = mpsc::channel(RENEWALS_MAX);
        let lender = Self {
            journal,
            host: host.clone(),
            channel: host.channel("wallet")?,
            name,
            accounts: papaya::HashMap::new(),
            leases: papaya::HashMap::new(),
            closed: papaya::HashSet::new(),
            closing: tokio::sync::Mutex::new(()),
            stopping: AtomicBool::new(false),
            renewals,
        };
        Ok((Arc::new(lender), waiting))
    }

    fn journal_id(&self) -> JournalId {
        JournalId::new(self.journal.id())
    }

    fn client(&self) -> WalletServiceClient<Channel> {
        WalletServiceClient::new(self.channel.clone())
    }

    /// The account of an owner; always the same one.
    pub(crate) fn account(&self, owner: Owner) -> Arc<Account> {
        let accounts = self.accounts.pin();
        Arc::clone(accounts.get_or_insert_with(owner, || Arc::new(Account::new(owner))))
    }

    /// Takes credits from the lease in hand; begins a renewal in the background when it runs low.
    pub(crate) fn hold(&self, account: &Arc<Account>, credits: i64) -> Option<Hold> {
        let hold = account.hold(credits, self.now_micros())?;
        if account.claim_renewal() && self.renewals.try_send(Arc::clone(account)).is_err() {
            account.renewed();
        }
        Some(hold)
    }

    fn now_micros(&self) -> i64 {
        self.host.clock().now().as_microsecond()
    }

    /// Takes credits, asking the wallet for more. Callers that wait for the same wallet share
    /// each answer: who came before an acquisition began is served, or refused, by it.
    ///
    /// # Errors
    /// The wallet has too little, or cannot be asked.
    pub(crate) async fn hold_or_acquire(
        &self,
        account: &Arc<Account>,
        credits: i64,
    ) -> Result<Hold, Refusal> {
        let seen = account.begun();
        let _turn = account.turn.lock().await;
        if let Some(hold) = self.hold(account, credits) {
            return Ok(hold);
        }
        if let Some(refusal) = account.failed_since(seen, credits) {
            return Err(refusal);
        }
        let attempt = account.begin();
        let mut refusal = Refusal::CreditsUnavailable;
        // An answer may be about a lease that has ended meanwhile; then the wallet is asked again.
        for _ in 0..ATTEMPTS_MAX {
            let acquired = self.acquire(account, credits).await;
            if let Ok(Some(hold)) = acquired {
                account.took(credits);
                return Ok(hold);
            }
            // A call that ended meanwhile may have left enough of its hold.
            if let Some(hold) = self.hold(account, credits) {
                return Ok(hold);
            }
            if let Err(error) = acquired {
                refusal = error;
                break;
            }
        }
        account.fail(attempt, refusal, credits);
        Err(refusal)
    }

    /// One acquisition, for a call that needs `credits` or, with 0, for those to come. The caller
    /// holds the account's turn.
    async fn acquire(&self, account: &Account, credits: i64) -> Result<Option<Hold>, Refusal> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(Refusal::Draining);
        }
        let minimum = credits.max(1);
        let owner = match account.owner {
            Owner::Organisation(org) => wire::Account {
                org_id: org.to_string(),
                ..wire::Account::default()
            },
            Owner::TestUser(user) => wire::Account {
                user_id: user.to_string(),
                ..wire::Account::default()
            },
        };
        let wanted = account
            .rate()
            .saturating_mul(LEASE_SECONDS)
            .max(minimum.saturating_mul(FIRST_CALLS))
            .clamp(minimum, WANT_MAX.max(minimum));
        let request = wire::AcquireRequest {
            account: Some(owner),
            journal_id: self.journal_id().to_string(),
            nonce: self.host.random::<16>().to_vec(),
            want: wanted,
            minimum,
            gateway: self.name.clone(),
        };
        let answer = self.ask(request).await?;
        crash_point!("gateway.lease_reply_received");
        let Some(lent) = answer.lease else {
            return Err(Refusal::CreditsExhausted);
        };
        self.accept(account, lent, credits).await
    }

    /// Asks with one nonce until there is an answer or the attempts are used up.
    async fn ask(&self, request: wire::AcquireRequest) -> Result<wire::AcquireResponse, Refusal> {
        for attempt in 1..=ATTEMPTS_MAX {
            let mut request = tonic::Request::new(request.clone());
            request.set_timeout(ATTEMPT_TIMEOUT);
            match self.client().acquire(request).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if attempt < ATTEMPTS_MAX && may_pass(&status) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(status) => {
                    tracing::warn!(
                        code = ?status.code(),
                        error = status.message(),
                        "credits could not be acquired"
                    );
                    return Err(Refusal::CreditsUnavailable);
                }
            }
        }
        Err(Refusal::CreditsUnavailable)
    }

    /// Puts lent credits to use: first the journal, then the lease.
    async fn accept(
        &self,
        account: &Account,
        lent: wire::Lease,
        credits: i64,
    ) -> Result<Option<Hold>, Refusal> {
        let Ok(id) = LeaseId::from_slice(&lent.lease_id) else {
            tracing::error!("the wallet sent a lease without an id");
            return Err(Refusal::CreditsUnavailable);
        };
        let spend_until = lent.spend_until.and_then(|at| {
            proto::convert::from_timestamp("spend_until", &at)
                .ok()
                .map(|at| at.as_microsecond())
        });
        let current = account
            .lease()
            .filter(|lease| lease.id == id && !lease.is_draining());
        let is_new = current.is_none();
        if is_new && (self.leases.pin().contains_key(&id) || self.closed.pin().contains(&id)) {
            // A lease that drains is never extended, and one that is closed never opened again: its
            // total would begin anew. The wallet knows after the next heartbeat.
            return Err(Refusal::CreditsUnavailable);
        }
        let lease = current.unwrap_or_else(|| Arc::new(Lease::new(id, spend_until)));
        if !lease.is_news(lent.granted_cum) {
            return Ok(None);
        }
        let now = self.now_micros();
        let record = Record {
            kind: RecordKind::Grant.into(),
            at_unix_micros: now,
            lease_id: id.bytes().to_vec(),
            granted: lent.granted_cum,
            ..Record::default()
        };
        if let Err(error) = self.append_synced(record, None).await {
            tracing::error!(%error, lease.id = %id, "a grant could not be recorded");
            return Err(Refusal::MeteringUnavailable);
        }
        crash_point!("gateway.grant_written");
        if is_new {
            self.leases.pin().insert(id, Arc::clone(&lease));
        }
        let hold = lease.extend(lent.granted_cum, credits, now);
        if let Some(before) = account.replace(lease).filter(|before| before.id != id) {
            before.drain();
        }
        Ok(hold)
    }

    /// Writes a record to disk. With a lease, `cum` is its total under the journal's lock.
    async fn append_synced(
        &self,
        mut record: Record,
        lease: Option<Arc<Lease>>,
    ) -> anyhow::Result<()> {
        let journal = self.journal.clone();
        let now_ms = u64::try_from(self.now_micros() / 1_000).unwrap_or(0);
        self.host
            .blocking(move || {
                journal.append_synced(now_ms, |slot| {
                    record.seq = slot.seq;
                    if let Some(lease) = lease {
                        record.cum = lease.cum();
                    }
                    (record::encode(&record, slot.buf), ())
                })
            })
            .await??;
        Ok(())
    }

    /// Renews in the background what runs low.
    pub(crate) async fn renew(
        self: Arc<Self>,
        mut waiting: mpsc::Receiver<Arc<Account>>,
        stop: Stop,
    ) {
        let lender = &self;
        futures_util::stream::poll_fn(|task| waiting.poll_recv(task))
            .take_until(Box::pin(stop.requested()))
            .for_each_concurrent(RENEWALS_AT_ONCE, |account| async move {
                let _turn = account.turn.lock().await;
                match lender.acquire(&account, 0).await {
                    Ok(_) => account.renewed(),
                    // The call that finds the lease empty asks again; a renewal waits for the next
                    // tick, or every call would make the wallet recall what others hold.
                    Err(refusal) => {
                        tracing::debug!(code = refusal.as_str(), "a lease was not renewed");
                    }
                }
            })
            .await;
    }

    /// Reports all leases, gives back what is idle, and closes what is to be closed.
    pub(crate) async fn heartbeat(&self) {
        let idle: Vec<Arc<Account>> = {
            let accounts = self.accounts.pin();
            accounts
                .values()
                .filter(|a| a.tick() >= IDLE_TICKS)
                .map(Arc::clone)
                .collect()
        };
        for lease in idle.iter().filter_map(|account| account.lease()) {
            lease.give_back();
        }
        let open: Vec<Arc<Lease>> = self.leases.pin().values().map(Arc::clone).collect();
        let mut reports: Vec<wire::LeaseReport> = open
            .iter()
            .map(|lease| wire::LeaseReport {
                lease_id: lease.id.bytes().to_vec(),
                cum: lease.cum(),
                returned_cum: lease.returned_cum(),
            })
            .collect();
        loop {
            let rest = reports.split_off(reports.len().min(REPORTS_MAX));
            let request = wire::HeartbeatRequest {
                journal_id: self.journal_id().to_string(),
                gateway: self.name.clone(),
                leases: reports,
            };
            let mut request = tonic::Request::new(request);
            request.set_timeout(ATTEMPT_TIMEOUT);
            match self.client().heartbeat(request).await {
                Ok(answer) => self.drain(&answer.into_inner().drain),
                Err(status) => {
                    tracing::debug!(code = ?status.code(), "the wallet did not take a heartbeat");
                    break;
                }
            }
            if rest.is_empty() {
                break;
            }
            reports = rest;
        }
        for lease in open {
            if lease.is_spent() {
                self.close(lease).await;
            }
        }
    }

    fn drain(&self, ids: &[Vec<u8>]) {
        let leases = self.leases.pin();
        for id in ids.iter().filter_map(|id| LeaseId::from_slice(id).ok()) {
            if let Some(lease) = leases.get(&id) {
                lease.drain();
            }
        }
    }

    /// Writes the final count of a lease that nothing can be spent from any more.
    async fn close(&self, lease: Arc<Lease>) {
        assert!(lease.is_spent(), "a lease is closed when nothing is held");
        let _closing = self.closing.lock().await;
        if !lease.claim_close() {
            return;
        }
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
                self.closed.pin().insert(id);
                self.leases.pin().remove(&id);
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
        self.stopping.store(true, Ordering::Release);
        let accounts: Vec<Arc<Account>> = self.accounts.pin().values().map(Arc::clone).collect();
        for account in accounts {
            drop(account.turn.lock().await);
        }
        let open: Vec<Arc<Lease>> = self.leases.pin().values().map(Arc::clone).collect();
        for lease in open {
            lease.drain();
            if lease.is_spent() {
                self.close(lease).await;
            } else {
                tracing::warn!(lease.id = %lease.id, "calls were cut off, their lease stays open");
            }
        }
    }

    /// Ends the journal at the wallet, which lends nothing to it any more. What was lent without
    /// this process hearing of it, because a reply was lost, gets its final count here.
    ///
    /// # Errors
    /// The wallet cannot be asked, or a lease is still open. The next start ends the journal then.
    pub(crate) async fn retire(&self) -> anyhow::Result<()> {
        let mut request = tonic::Request::new(wire::RetireJournalRequest {
            journal_id: self.journal_id().to_string(),
        });
        request.set_timeout(ATTEMPT_TIMEOUT);
        let answer = self.client().retire_journal(request).await?.into_inner();
        for lent in answer.leases {
            let id = LeaseId::from_slice(&lent.lease_id)?;
            anyhow::ensure!(!self.leases.pin().contains_key(&id), "{id} is still open");
            if self.closed.pin().contains(&id) {
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
            let Some(lease) = self.leases.pin().get(&id).map(Arc::clone) else {
                continue;
            };
            let answer = RecallResponse {
                lease_id: recall.lease_id,
                returned_cum: lease.give_back(),
            };
            crash_point!("gateway.recall_answered");
            if let Err(error) = nats.publish(reply, answer.encode_to_vec().into()).await {
                tracing::debug!(%error, "a recall was not answered; the heartbeat tells it");
            }
        }
    }
}

fn may_pass(status: &tonic::Status) -> bool {
    matches!(
        status.code(),
        Grpc::Unavailable | Grpc::DeadlineExceeded | Grpc::Unknown
    )
}

//! Brings credits and permits from the wallet: acquisition and renewal; `size` says how much is
//! asked for, `asker` carries it, `upkeep` has what follows, and `desk` decides.

mod asker;
pub(crate) mod desk;
mod size;
#[cfg(test)]
pub(crate) mod tests;
mod upkeep;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU32},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use proto::{
    channel::Channel,
    events::v1::{Record, RecordKind},
    wallet::v1::{self as wire, wallet_service_client::WalletServiceClient},
};
use runtime::{Host, Stop, crash_point};
use tokio::{sync::mpsc, time::timeout};
use tonic::{Code as Grpc, Status};
use types::{JournalId, LeaseId, QuotaKind, Refusal};

use self::{
    asker::Asker,
    desk::{Desk, Grant, News},
};
use crate::{
    journal::{Journal, Slot},
    lease::{Account, Hold, Lease, Owner},
    record,
};

/// A call waits so long for credits at most. The wallet is asked on without it, for the next one.
pub(crate) const CALL_WAITS_MAX: Duration = Duration::from_secs(2);
/// How long each attempt of an acquisition waits, all with the same nonce: one whose answer was
/// lost is repeated soon, and a wallet that is slow is waited for by the last.
const ATTEMPTS: [Duration; 3] = [
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(10),
];
/// Rounds of one acquisition: an answer may be about a lease that has ended meanwhile.
const ROUNDS_MAX: u32 = 3;
/// Accounts that wait for renewal at most; more renew when they run dry.
const RENEWALS_MAX: usize = 4_096;
/// Renewals under way at once: as many as one request to the wallet holds.
const RENEWALS_AT_ONCE: usize = 128;

/// A request for an account.
#[derive(Clone)]
struct Asked {
    ask: wire::Ask,
    /// It failed when nobody else travelled with it: it would take others down again.
    alone: bool,
}

/// All accounts of this process.
pub(crate) struct Lender {
    journal: Journal,
    host: Host,
    channel: Channel,
    name: String,
    accounts: papaya::HashMap<Owner, Arc<Account>>,
    desk: Desk,
    asker: Arc<Asker>,
    /// Requests whose answer has not come, or is not in the journal: the wallet may have lent. They
    /// are asked again with the same nonce, before anything else is asked for the same owner, and
    /// in the background for one who calls no more. Who has the account's turn may change them.
    unanswered: papaya::HashMap<Owner, Asked>,
    /// Gateways that the wallet hears of, as it said last.
    live_gateways: AtomicU32,
    /// Microseconds that an acquisition takes, lately.
    acquisition: AtomicI64,
    /// One at a time closes leases: who comes second finds them closed.
    closing: tokio::sync::Mutex<()>,
    renewals: mpsc::Sender<Arc<Account>>,
}

impl Lender {
    pub(crate) fn new(
        host: &Host,
        channel: Channel,
        journal: Journal,
        name: String,
    ) -> (Arc<Self>, mpsc::Receiver<Arc<Account>>) {
        let (renewals, waiting) = mpsc::channel(RENEWALS_MAX);
        let id = JournalId::new(journal.id());
        let lender = Self {
            journal,
            host: host.clone(),
            channel: channel.clone(),
            name: name.clone(),
            accounts: papaya::HashMap::new(),
            desk: Desk::default(),
            asker: Asker::new(host, channel, id, name),
            unanswered: papaya::HashMap::new(),
            live_gateways: AtomicU32::new(1),
            acquisition: AtomicI64::new(0),
            closing: tokio::sync::Mutex::new(()),
            renewals,
        };
        (Arc::new(lender), waiting)
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

    /// Takes credits from the lease in hand at `now` (monotonic microseconds); begins a renewal in
    /// the background when it runs low.
    pub(crate) fn hold(&self, account: &Arc<Account>, credits: i64, now: i64) -> Option<Hold> {
        let hold = account.hold(credits, now)?;
        if hold.leaves_little()
            && account.claim_renewal()
            && self.renewals.try_send(Arc::clone(account)).is_err()
        {
            account.renewed();
        }
        Some(hold)
    }

    fn now_micros(&self) -> i64 {
        self.host.clock().now().as_microsecond()
    }

    /// The clock that leases end by: no step of the wall clock ends a period or prolongs it.
    pub(crate) fn monotonic_micros(&self) -> i64 {
        let micros = self.host.clock().monotonic_nanos() / 1_000;
        i64::try_from(micros).unwrap_or(i64::MAX)
    }

    /// Takes credits, asking the wallet for more. Callers that wait for the same wallet share
    /// each answer: who came before an acquisition began is served, or refused, by it.
    ///
    /// May take as long as all attempts do: who waits for no longer than `CALL_WAITS_MAX` leaves it
    /// running, so that a slow wallet's answer is there for the next call.
    ///
    /// # Errors
    /// The wallet has too little, or cannot be asked.
    pub(crate) async fn hold_or_acquire(
        &self,
        account: &Arc<Account>,
        credits: i64,
    ) -> Result<Hold, Refusal> {
        let seen = account.begun();
        // Nobody waits for those who wait longer; they would be as many as calls have come.
        let Ok(_turn) = timeout(CALL_WAITS_MAX, account.turn.lock()).await else {
            return Err(Refusal::CreditsUnavailable);
        };
        if let Some(hold) = self.hold(account, credits, self.monotonic_micros()) {
            return Ok(hold);
        }
        if let Some(refusal) = account.failed_since(seen, credits) {
            return Err(refusal);
        }
        let attempt = account.begin();
        let mut refusal = Refusal::CreditsUnavailable;
        for _ in 0..ROUNDS_MAX {
            let acquired = match self.acquire(account, credits).await {
                Err(refusal) if refusal == account.owner.exhausted() => {
                    self.acquire_missing(account, credits, refusal).await
                }
                acquired => acquired,
            };
            if let Ok(Some(hold)) = acquired {
                account.took(credits);
                return Ok(hold);
            }
            // A call that ended meanwhile may have left enough of its hold.
            if let Some(hold) = self.hold(account, credits, self.monotonic_micros()) {
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

    /// The wallet has less than a call needs, but with what is in hand it may be enough: asks for
    /// the difference, which nobody but the caller would make use of.
    async fn acquire_missing(
        &self,
        account: &Account,
        credits: i64,
        refusal: Refusal,
    ) -> Result<Option<Hold>, Refusal> {
        let in_hand = account.in_hand();
        if !(1..credits).contains(&in_hand) {
            return Err(refusal);
        }
        let missing = credits.saturating_sub(in_hand);
        self.obtain(account, self.request(account, missing), 0)
            .await
    }

    /// One acquisition, for a call that needs `credits` or, with 0, for those to come. The caller
    /// holds the account's turn. `None`: there may be news in hand, and the wallet may have more.
    async fn acquire(&self, account: &Account, credits: i64) -> Result<Option<Hold>, Refusal> {
        if self.desk.is_ended() {
            return Err(Refusal::Draining);
        }
        // The wallet may have lent for it already: what it says of another request before that is
        // known would be less by as much.
        if let Some(lost) = self.unanswered(account.owner) {
            let found = self.obtain(account, lost, credits).await;
            if found.is_ok() || self.unanswered(account.owner).is_some() {
                return found;
            }
        }
        self.obtain(account, self.request(account, credits), credits)
            .await
    }

    /// What was asked for an owner and not answered.
    fn unanswered(&self, owner: Owner) -> Option<Asked> {
        self.unanswered.pin().get(&owner).cloned()
    }

    /// Asks the wallet, and puts to use what it lends: `credits` of it for the call that asks. The
    /// request is open until the wallet has refused it or its grant is in the journal, whatever
    /// ends this before.
    async fn obtain(
        &self,
        account: &Account,
        request: Asked,
        credits: i64,
    ) -> Result<Option<Hold>, Refusal> {
        let owner = account.owner;
        let per_call = request.ask.minimum.max(account.per_call());
        self.unanswered.pin().insert(owner, request.clone());
        let begun = self.monotonic_micros();
        let answered = self.ask(&request).await;
        let answer = match answered {
            Ok(answer) => {
                self.note_acquisition(begun);
                answer
            }
            Err(status) => {
                let (code, error) = (status.code(), status.message());
                tracing::warn!(?code, error, "credits could not be acquired");
                if is_refusal(&status) {
                    self.unanswered.pin().remove(&owner);
                } else if !is_away(&status) {
                    let ask = request.ask;
                    let asked = Asked { ask, alone: true };
                    self.unanswered.pin().insert(owner, asked);
                }
                return Err(Refusal::CreditsUnavailable);
            }
        };
        crash_point!("gateway.lease_reply_received");
        account.may_keep(self.kept(answer.available, per_call));
        let taken = match answer.lease {
            Some(lent) => self.accept(account, lent, credits).await,
            None => Err(owner.exhausted()),
        };
        if !matches!(taken, Err(Refusal::MeteringUnavailable)) {
            self.unanswered.pin().remove(&owner);
        }
        taken
    }

    /// Asks with one nonce until there is an answer or the attempts are used up.
    async fn ask(&self, asked: &Asked) -> Result<wire::Answer, Status> {
        let mut alone = asked.alone;
        let mut last = Status::unavailable("not asked");
        for patience in ATTEMPTS {
            if self.desk.is_ended() {
                break;
            }
            let answered = self.asker.ask(asked.ask.clone(), alone, patience).await;
            last = match answered.map(judged) {
                Ok(Err(status)) => status,
                Ok(answer) => return answer,
                Err(failed) => {
                    // It may be the fault of another that it was asked with. A wallet that is slow
                    // is waited for together.
                    let code = failed.status.code();
                    let is_late = matches!(code, Grpc::DeadlineExceeded | Grpc::Cancelled);
                    let is_others = failed.was_joint && !is_late && !is_refusal(&failed.status);
                    if is_others && !alone {
                        alone = true;
                        last = failed.status;
                        continue;
                    }
                    failed.status
                }
            };
            if !may_pass(&last) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(last)
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
        let grant = Grant {
            lease: id,
            granted_cum: lent.granted_cum,
            spend_until: match lent.spend_for_micros {
                Some(left) => self.monotonic_micros().saturating_add(left),
                None => i64::MAX,
            },
        };
        let (lease, is_new) = match self.desk.judge(account, &grant) {
            News::More { lease, is_new } => (lease, is_new),
            News::Old => return Ok(None),
            News::Ended => return Err(Refusal::CreditsUnavailable),
        };
        let record = Record {
            kind: RecordKind::Grant.into(),
            at_unix_micros: self.now_micros(),
            lease_id: id.bytes().to_vec(),
            granted: lent.granted_cum,
            account: Some(wire_account(account)),
            ..Record::default()
        };
        if let Err(error) = self.append_synced(record, None).await {
            tracing::error!(%error, lease.id = %id, "a grant could not be recorded");
            return Err(Refusal::MeteringUnavailable);
        }
        crash_point!("gateway.grant_written");
        let now = self.monotonic_micros();
        Ok(self
            .desk
            .take(account, (lease, is_new), &grant, credits, now))
    }

    /// Writes a record to disk. With a lease, `cum` is its total under the journal's lock.
    async fn append_synced(
        &self,
        mut record: Record,
        lease: Option<Arc<Lease>>,
    ) -> anyhow::Result<()> {
        let journal = self.journal.clone();
        let now_ms = u64::try_from(self.now_micros() / 1_000).unwrap_or(0);
        let is_final = record.kind == i32::from(RecordKind::Close);
        self.host
            .blocking(move || {
                let write = |slot: Slot<'_>| {
                    record.seq = slot.seq;
                    if let Some(lease) = lease {
                        record.cum = lease.cum();
                    }
                    (record::encode(&record, slot.buf), ())
                };
                match is_final {
                    true => journal.append_final(now_ms, write),
                    false => journal.append_synced(now_ms, write),
                }
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
                // Whoever has the turn asks for as much, or finds enough: then the next call is
                // who sees whether it is still time.
                let Ok(_turn) = account.turn.try_lock() else {
                    account.renewed();
                    return;
                };
                match lender.acquire(&account, 0).await {
                    Ok(_) => account.renewed(),
                    // The call that finds the lease empty asks again.
                    Err(refusal) => {
                        account.not_renewed();
                        tracing::debug!(code = refusal.as_str(), "a lease was not renewed");
                    }
                }
            })
            .await;
    }
}

fn wire_account(account: &Account) -> wire::Account {
    match account.owner {
        Owner::Organisation(org) => wire::Account {
            org_id: org.to_string(),
            ..wire::Account::default()
        },
        Owner::TestUser(user) => wire::Account {
            user_id: user.to_string(),
            ..wire::Account::default()
        },
        Owner::Quota { org, key, kind } => {
            let stated = account.stated();
            let kind = match kind {
                QuotaKind::Daily => wire::QuotaKind::Daily,
                QuotaKind::Monthly => wire::QuotaKind::Monthly,
            };
            let quota = wire::Quota {
                key_id: key.to_string(),
                org_id: org.to_string(),
                kind: kind.into(),
                quota: stated.map_or(0, |it| it.calls),
                stated_by: stated.map_or_else(String::new, |it| it.by.to_string()),
                key_version: stated.map_or(0, |it| it.version),
            };
            wire::Account {
                quota: Some(quota),
                ..wire::Account::default()
            }
        }
    }
}

/// An answer that says what there is, or why there is none.
fn judged(answer: wire::Answer) -> Result<wire::Answer, Status> {
    match answer.outcome() {
        wire::Outcome::Lent if answer.lease.is_none() => Err(Status::internal("of no lease")),
        wire::Outcome::Lent | wire::Outcome::Short => Ok(answer),
        wire::Outcome::Frozen => Err(Status::unavailable("nothing is lent until all have told")),
        wire::Outcome::Invalid => Err(Status::invalid_argument(answer.problem)),
        wire::Outcome::NonceReused => Err(Status::already_exists("the nonce is another's")),
        wire::Outcome::Unspecified => Err(Status::internal("an answer that says nothing")),
    }
}

/// Whether the wallet has judged a request, and would judge it so again.
fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Grpc::InvalidArgument | Grpc::AlreadyExists | Grpc::NotFound | Grpc::PermissionDenied
    )
}

/// Whether the wallet is out of reach, for this request and any other.
fn is_away(status: &Status) -> bool {
    matches!(
        status.code(),
        Grpc::Unavailable | Grpc::DeadlineExceeded | Grpc::Cancelled
    )
}

fn may_pass(status: &Status) -> bool {
    is_away(status) || status.code() == Grpc::Unknown
}

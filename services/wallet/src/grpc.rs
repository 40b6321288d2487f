//! The wallet over gRPC.

mod lending;
mod wire;

use std::time::Duration;

use proto::{
    convert::{page, page_of, parse_id, status, timestamp},
    wallet::v1::{self as message, wallet_service_server::WalletService},
};
use runtime::{Actor, Clock, Ids, actor, patience};
use tonic::{Request, Response, Status, async_trait};
use types::{Code, Credits, KeyId};

pub(crate) use self::wire::account;
use self::{
    lending::Lending,
    wire::{
        check_gateway, check_text, entry_to_wire, invalid, lease_id, lease_to_wire, lent_of,
        page_token, report_of, use_to_wire,
    },
};
use crate::{
    domain::{self, Breach, GRANT_CREDITS_MAX, Live, Report, Test},
    error::{Error, Result},
    events::Recall,
    store::{Grant, Heartbeat, Store, WalletView},
};

type Reply<T> = Result<Response<T>, Status>;

/// Leases of one heartbeat. A gateway holds one per wallet it serves.
const REPORTS_MAX: usize = 100_000;
/// Keys of one question about quotas.
const KEYS_MAX: usize = 1_000;
const REASON_CHARS_MAX: usize = 200;
const IDEMPOTENCY_KEY_CHARS_MAX: usize = 64;

/// Answers the wallet's calls.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) store: Store,
    pub(crate) recall: Recall,
    pub(crate) clock: Clock,
    pub(crate) ids: Ids,
    /// Silence after which a journal's leases are orphaned.
    pub(crate) orphan: Duration,
}

#[async_trait]
impl WalletService for Service {
    type AcquireStream = lending::Answers;

    async fn acquire(
        &self,
        request: Request<message::AcquireRequest>,
    ) -> Reply<Self::AcquireStream> {
        let patience = patience(&request);
        let answers = Lending::begin(self, request.into_inner(), patience)?.answers();
        Ok(Response::new(answers.await?))
    }

    async fn heartbeat(
        &self,
        request: Request<message::HeartbeatRequest>,
    ) -> Reply<message::HeartbeatResponse> {
        let message::HeartbeatRequest {
            journal_id,
            gateway,
            leases,
            tells_all,
        } = request.into_inner();
        let journal = parse_id("journal_id", &journal_id)?;
        check_gateway(&gateway)?;
        if REPORTS_MAX < leases.len() {
            return Err(invalid("leases", "has more than 100,000 entries"));
        }
        let reports: Result<Vec<Report>, Status> = leases
            .iter()
            .map(|report| report_of(journal, report))
            .collect();
        let lent: Result<Vec<domain::Lent>, Status> = leases
            .iter()
            .filter_map(|report| lent_of(journal, report).transpose())
            .collect();
        let heartbeat = Heartbeat {
            journal,
            gateway: &gateway,
            reports: &reports?,
            lent: &lent?,
            tells_all,
        };
        let new_id = || self.ids.new_id::<Test>().uuid();
        let now = self.clock.now();
        let heard = self.store.heartbeat(&heartbeat, new_id, now).await?;
        log(&heard.breaches);
        let drain = heard
            .drain
            .iter()
            .map(|lease| lease.bytes().to_vec())
            .collect();
        Ok(Response::new(message::HeartbeatResponse {
            drain,
            live_gateways: heard.live_gateways,
            tell_all: heard.tell_all,
        }))
    }

    async fn retire_journal(
        &self,
        request: Request<message::RetireJournalRequest>,
    ) -> Reply<message::RetireJournalResponse> {
        let it = request.into_inner();
        let journal = parse_id("journal_id", &it.journal_id)?;
        let now = self.clock.now();
        let kept_since = it
            .unless_alive
            .then(|| domain::kept_since(now, self.orphan));
        let open = self.store.retire(journal, kept_since, now).await?;
        let leases = open.iter().map(|lease| lease_to_wire(lease, now)).collect();
        Ok(Response::new(message::RetireJournalResponse { leases }))
    }

    async fn get_wallet(
        &self,
        request: Request<message::GetWalletRequest>,
    ) -> Reply<message::GetWalletResponse> {
        let org = parse_id("org_id", &request.into_inner().org_id)?;
        let wallet = self
            .store
            .wallet(org)
            .await?
            .unwrap_or_else(WalletView::empty);
        Ok(Response::new(message::GetWalletResponse {
            balance: wallet.balance.get(),
            reserved: wallet.reserved.get(),
            available: wallet.available().get(),
            total_purchased: wallet.total_purchased.get(),
            total_granted: wallet.total_granted.get(),
            total_used: wallet.total_used.get(),
            currency: wallet.currency,
            pending: wallet.pending.get(),
        }))
    }

    async fn get_test_wallet(
        &self,
        request: Request<message::GetTestWalletRequest>,
    ) -> Reply<message::GetTestWalletResponse> {
        let user = parse_id("user_id", &request.into_inner().user_id)?;
        let new_wallet = self.ids.new_id::<Test>().uuid();
        let wallet = self
            .store
            .test_wallet(user, new_wallet, self.clock.now())
            .await?;
        Ok(Response::new(message::GetTestWalletResponse {
            balance: wallet.balance.get(),
            reserved: wallet.reserved.get(),
            available: wallet.available().get(),
            reset_at: wallet.epoch.map(|epoch| timestamp(epoch.reset_at)),
        }))
    }

    async fn grant_credits(
        &self,
        request: Request<message::GrantCreditsRequest>,
    ) -> Reply<message::GrantCreditsResponse> {
        let by = actor(&request);
        if by != Actor::Operator {
            return Err(status(Code::Forbidden, "only operators grant credits"));
        }
        let by = by.to_string();
        let it = request.into_inner();
        let org = parse_id("org_id", &it.org_id)?;
        let credits = Credits::new(it.credits);
        if credits <= Credits::ZERO || GRANT_CREDITS_MAX < credits {
            return Err(invalid("credits", "must be from 1 to 1,000,000,000,000"));
        }
        check_text("reason", &it.reason, 1, REASON_CHARS_MAX)?;
        check_text(
            "idempotency_key",
            &it.idempotency_key,
            1,
            IDEMPOTENCY_KEY_CHARS_MAX,
        )?;
        let (reason, actor, key) = (it.reason.as_str(), by.as_str(), it.idempotency_key.as_str());
        let grant = Grant {
            org,
            credits,
            reason,
            actor,
            key,
        };
        let new_wallet = self.ids.new_id::<Live>().uuid();
        let balance = self
            .store
            .grant(&grant, new_wallet, self.clock.now())
            .await?;
        Ok(Response::new(message::GrantCreditsResponse {
            balance: balance.get(),
        }))
    }

    async fn list_ledger(
        &self,
        request: Request<message::ListLedgerRequest>,
    ) -> Reply<message::ListLedgerResponse> {
        let it = request.into_inner();
        let org = parse_id("org_id", &it.org_id)?;
        let before = page_token(&it.page_token)?;
        let size = page(it.page_size);
        let lines = self
            .store
            .ledger(org, before, size.saturating_add(1))
            .await?;
        let (lines, next_page_token) = page_of(lines, size, |line| line.id.to_string());
        let entries = lines.into_iter().map(entry_to_wire).collect();
        Ok(Response::new(message::ListLedgerResponse {
            entries,
            next_page_token,
        }))
    }

    async fn get_settlement(
        &self,
        request: Request<message::GetSettlementRequest>,
    ) -> Reply<message::GetSettlementResponse> {
        let it = request.into_inner();
        let lease = lease_id(&it.lease_id)?;
        let cum = Credits::new(it.cum);
        let settlement = self.store.settlement(lease, cum).await?;
        Ok(Response::new(message::GetSettlementResponse {
            settled: cum <= settlement.settled_cum,
            settled_cum: settlement.settled_cum.get(),
            state: settlement.state,
            journal_id: settlement.journal.to_string(),
            ledger_entry_id: settlement.entry.unwrap_or(0),
        }))
    }

    async fn get_quota_use(
        &self,
        request: Request<message::GetQuotaUseRequest>,
    ) -> Reply<message::GetQuotaUseResponse> {
        let it = request.into_inner();
        let org = parse_id("org_id", &it.org_id)?;
        if KEYS_MAX < it.key_ids.len() {
            return Err(invalid("key_ids", "has more than 1,000 entries"));
        }
        let keys: Result<Vec<KeyId>, Status> = it
            .key_ids
            .iter()
            .map(|key| parse_id("key_ids", key))
            .collect();
        let uses = self.store.quota_use(org, &keys?, self.clock.now()).await?;
        let uses = uses.iter().map(use_to_wire).collect();
        Ok(Response::new(message::GetQuotaUseResponse { uses }))
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let (code, message) = (error.code(), error.to_string());
        if matches!(error, Error::Unavailable(_) | Error::Internal(_)) {
            let chain = format!("{:#}", anyhow::Error::from(error));
            tracing::error!(error = chain, "a call of the wallet failed");
        }
        status(code, message)
    }
}

fn log(breaches: &[Breach]) {
    for breach in breaches {
        tracing::error!(%breach, "a gateway's report breaks a rule and was refused");
    }
}

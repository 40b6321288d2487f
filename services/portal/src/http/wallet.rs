//! Wallet and ledger.

use axum::{Json, extract::State};
use proto::wallet::v1 as pb;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    App,
    access::Caller,
    extract::{Page, Path, Query},
    wire::moment,
};
use crate::{
    domain::{self, Action},
    error::Result,
};

/// Credits of an organisation. `available = balance - reserved`.
#[derive(Serialize, ToSchema)]
pub(super) struct Wallet {
    /// Credits not spent yet.
    balance: i64,
    /// Part of the balance lent to gateways.
    reserved: i64,
    /// Part of the balance not lent.
    available: i64,
    /// Lent to gateways that have gone silent.
    pending: i64,
    total_purchased: i64,
    total_granted: i64,
    total_used: i64,
    /// ISO 4217.
    currency: String,
}

/// Reads the wallet.
#[utoipa::path(get, path = "/v1/organisations/{org}/wallet", tag = "wallet",
    responses((status = 200, body = Wallet, description = "The wallet")))]
pub(super) async fn get_wallet(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
) -> Result<Json<Wallet>> {
    let org = app.scope(&caller, &org, Action::ViewWallet).await?;
    let request = caller.request(pb::GetWalletRequest {
        org_id: org.to_string(),
    })?;
    let it = app.wallet.clone().get_wallet(request).await?.into_inner();
    Ok(Json(Wallet {
        balance: it.balance,
        reserved: it.reserved,
        available: it.available,
        pending: it.pending,
        total_purchased: it.total_purchased,
        total_granted: it.total_granted,
        total_used: it.total_used,
        currency: it.currency,
    }))
}

/// One change of a balance.
#[derive(Serialize, ToSchema)]
pub(super) struct LedgerEntry {
    id: i64,
    /// `grant`, `purchase`, `usage`, `refund` or `expiry`.
    kind: String,
    /// Positive adds, negative takes.
    credits: i64,
    balance_after: i64,
    reason: String,
    #[schema(format = DateTime)]
    at: String,
}

/// A page of the ledger, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct Ledger {
    entries: Vec<LedgerEntry>,
    /// Absent on the last page.
    next_cursor: Option<String>,
}

/// Lists the ledger.
#[utoipa::path(get, path = "/v1/organisations/{org}/wallet/ledger", tag = "wallet",
    params(Page), responses((status = 200, body = Ledger, description = "One page")))]
pub(super) async fn list_ledger(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
    Query(page): Query<Page>,
) -> Result<Json<Ledger>> {
    let org = app.scope(&caller, &org, Action::ViewWallet).await?;
    let request = caller.request(pb::ListLedgerRequest {
        org_id: org.to_string(),
        page_size: page.size()?,
        page_token: page.token()?,
    })?;
    let found = app.wallet.clone().list_ledger(request).await?.into_inner();
    let entries = found.entries.into_iter().map(|it| LedgerEntry {
        at: moment(it.at.as_ref()),
        id: it.id,
        kind: it.kind,
        credits: it.credits,
        balance_after: it.balance_after,
        reason: it.reason,
    });
    Ok(Json(Ledger {
        entries: entries.collect(),
        next_cursor: domain::cursor(&found.next_page_token),
    }))
}

//! `tollgate wallet`: credits.

use clap::{Args, Subcommand};
use proto::wallet::v1 as wire;
use serde_json::json;

use crate::connect::{System, Wallet as Client, pages, time};
use crate::failure::Result;
use crate::output::Output;
use crate::pepper::random_hex;

/// Acts on wallets.
#[derive(Subcommand)]
pub(crate) enum Wallet {
    /// Give credits to an organisation
    Grant {
        /// `org_…`
        #[arg(long)]
        org: String,
        /// How many
        #[arg(long, value_name = "N")]
        credits: i64,
        /// Why, 1–200 characters
        #[arg(long)]
        reason: String,
        /// The same key grants once, however often it is repeated; a new one if absent
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
    /// Show the wallet of an organisation, or the test wallet of a user
    Show {
        #[command(flatten)]
        account: Account,
    },
    /// List changes of the balance, newest first
    Ledger {
        /// `org_…`
        #[arg(long)]
        org: String,
        /// Lines at most
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
}

/// Whose credits.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Account {
    /// `org_…`: its wallet
    #[arg(long)]
    org: Option<String>,
    /// `usr_…`: the test wallet
    #[arg(long)]
    user: Option<String>,
}

pub(crate) async fn run(command: Wallet, system: &System, output: &Output) -> Result {
    let mut wallet = system.wallet()?;
    match command {
        Wallet::Grant {
            org,
            credits,
            reason,
            idempotency_key,
        } => {
            let request = wire::GrantCreditsRequest {
                org_id: org,
                credits,
                reason,
                idempotency_key: idempotency_key.unwrap_or_else(random_hex),
            };
            let granted = wallet.grant_credits(request).await?.into_inner();
            output.record(&json!({ "balance": granted.balance }));
        }
        Wallet::Show {
            account: Account {
                org: Some(org_id), ..
            },
        } => {
            show(&mut wallet, org_id, output).await?;
        }
        Wallet::Show { account } => {
            let request = wire::GetTestWalletRequest {
                user_id: account.user.unwrap_or_default(),
            };
            let found = wallet.get_test_wallet(request).await?.into_inner();
            output.record(&json!({
                "balance": found.balance,
                "reserved": found.reserved,
                "available": found.available,
                "reset_at": time(found.reset_at.as_ref()),
            }));
        }
        Wallet::Ledger { org, limit } => ledger(&wallet, &org, limit, output).await?,
    }
    Ok(())
}

async fn show(wallet: &mut Client, org_id: String, output: &Output) -> Result {
    let found = wallet
        .get_wallet(wire::GetWalletRequest { org_id })
        .await?
        .into_inner();
    output.record(&json!({
        "balance": found.balance,
        "reserved": found.reserved,
        "available": found.available,
        "total_purchased": found.total_purchased,
        "total_granted": found.total_granted,
        "total_used": found.total_used,
        "currency": found.currency,
        "pending": found.pending,
    }));
    Ok(())
}

async fn ledger(wallet: &Client, org: &str, limit: u32, output: &Output) -> Result {
    let entries = pages(limit, |page_size, page_token| {
        let mut wallet = wallet.clone();
        let request = wire::ListLedgerRequest {
            org_id: org.to_owned(),
            page_size,
            page_token,
        };
        async move {
            let page = wallet.list_ledger(request).await?.into_inner();
            Ok((page.entries, page.next_page_token))
        }
    });
    let entries = entries.await?;
    let rows = entries.iter().map(|entry| {
        json!({
            "id": entry.id,
            "kind": entry.kind,
            "credits": entry.credits,
            "balance_after": entry.balance_after,
            "reason": entry.reason,
            "at": time(entry.at.as_ref()),
        })
    });
    let columns = [
        ("id", "ID"),
        ("at", "WHEN"),
        ("kind", "KIND"),
        ("credits", "CREDITS"),
        ("balance_after", "BALANCE"),
        ("reason", "REASON"),
    ];
    output.list("entries", &columns, rows.collect());
    Ok(())
}

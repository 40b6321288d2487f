//! `tollgate key`: API keys.

use clap::{Args, Subcommand};
use jiff::Timestamp;
use proto::keys::v1 as wire;
use serde_json::{Value, json};

use crate::connect::{Keys, System, pages, time};
use crate::failure::Result;
use crate::output::Output;

/// Acts on keys.
#[derive(Subcommand)]
pub(crate) enum Key {
    /// Create a key and print it, this once
    #[command(
        after_help = "Example:\n  tollgate key create --org org_… --user usr_… --name shop \
        --environment production --scope pdf:write --rate 10 --burst 20"
    )]
    Create(Create),
    /// List the keys of an organisation, newest first
    List {
        /// `org_…`
        #[arg(long)]
        org: String,
        /// Lines at most
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Show one key; never the key itself
    Show {
        /// `key_…`
        key: String,
    },
    /// Change name, scopes or limits; what is not named stays
    Update(Update),
    /// Refuse a key until it is restored
    Suspend {
        /// `key_…`
        key: String,
    },
    /// Accept a suspended key again
    Restore {
        /// `key_…`
        key: String,
    },
    /// Revoke a key for good, and wait for the gateways to confirm
    Revoke {
        /// `key_…`
        key: String,
        /// Why, 1–200 characters
        #[arg(long)]
        reason: String,
    },
}

/// A new key.
#[derive(Args)]
pub(crate) struct Create {
    /// `org_…`
    #[arg(long)]
    org: String,
    /// `usr_…`, a member of the organisation
    #[arg(long)]
    user: String,
    /// Name for people
    #[arg(long)]
    name: String,
    /// `production` or `test`
    #[arg(long)]
    environment: String,
    /// Such as pdf:write; may be repeated
    #[arg(long = "scope", value_name = "SCOPE", required = true)]
    scopes: Vec<String>,
    /// Calls a UTC day
    #[arg(long, value_name = "N")]
    daily_quota: Option<i64>,
    /// Calls a UTC month
    #[arg(long, value_name = "N")]
    monthly_quota: Option<i64>,
    /// Calls a second
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// Calls at once beyond the rate
    #[arg(long, value_name = "N")]
    burst: Option<u32>,
    /// End of its life, e.g. 2030-01-31T00:00:00Z
    #[arg(long, value_name = "TIME")]
    expires_at: Option<Timestamp>,
    /// Address or block it may be used from, e.g. 203.0.113.0/24; may be repeated
    #[arg(long = "allow", value_name = "CIDR", num_args = 1..)]
    allow: Vec<String>,
}

/// Changes of a key.
#[derive(Args)]
pub(crate) struct Update {
    /// `key_…`
    key: String,
    /// New name
    #[arg(long)]
    name: Option<String>,
    /// New scopes instead of the present ones; may be repeated
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// Calls a UTC day; 0: unlimited
    #[arg(long, value_name = "N")]
    daily_quota: Option<i64>,
    /// Calls a UTC month; 0: unlimited
    #[arg(long, value_name = "N")]
    monthly_quota: Option<i64>,
    /// Calls a second; 0: unlimited
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// Calls at once beyond the rate
    #[arg(long, value_name = "N")]
    burst: Option<u32>,
    /// New end of its life
    #[arg(long, value_name = "TIME")]
    expires_at: Option<Timestamp>,
    /// New addresses instead of the present ones; may be repeated
    #[arg(long = "allow", value_name = "CIDR", num_args = 1..)]
    allow: Vec<String>,
    /// Allow every address again
    #[arg(long, conflicts_with = "allow")]
    allow_all: bool,
}

pub(crate) async fn run(command: Key, system: &System, output: &Output) -> Result {
    let mut keys = system.keys()?;
    match command {
        Key::Create(wish) => {
            let made = keys.create_key(wish.request()).await?.into_inner();
            output.record(&json!({ "key_id": made.key_id, "key": made.key }));
            if !output.is_json() {
                output.note("Keep the key now: it is stored nowhere and cannot be shown again.");
            }
        }
        Key::List { org, limit } => {
            let rows = list(&keys, &org, limit).await?.iter().map(show).collect();
            let columns = [
                ("key_id", "KEY"),
                ("name", "NAME"),
                ("environment", "ENVIRONMENT"),
                ("hint", "ENDS IN"),
                ("status", "STATUS"),
                ("scopes", "SCOPES"),
                ("last_used_at", "LAST USED"),
            ];
            output.list("keys", &columns, rows);
        }
        Key::Show { key } => {
            let request = wire::GetKeyRequest { key_id: key };
            let found = keys.get_key(request).await?.into_inner().key;
            output.record(&found.as_ref().map_or(Value::Null, show));
        }
        Key::Update(wish) => update(&mut keys, wish.request(), output).await?,
        Key::Suspend { key } => update(&mut keys, activity(key, false), output).await?,
        Key::Restore { key } => update(&mut keys, activity(key, true), output).await?,
        Key::Revoke { key, reason } => revoke(&mut keys, key, reason, output).await?,
    }
    Ok(())
}

impl Create {
    fn request(self) -> wire::CreateKeyRequest {
        wire::CreateKeyRequest {
            org_id: self.org,
            user_id: self.user,
            name: self.name,
            environment: self.environment,
            scopes: self.scopes,
            daily_quota: self.daily_quota,
            monthly_quota: self.monthly_quota,
            rate_per_second: self.rate,
            burst: self.burst,
            expires_at: self.expires_at.map(proto::convert::timestamp),
            allow: self.allow,
        }
    }
}

impl Update {
    fn request(self) -> wire::UpdateKeyRequest {
        wire::UpdateKeyRequest {
            key_id: self.key,
            name: self.name,
            scopes: self.scopes,
            daily_quota: self.daily_quota,
            monthly_quota: self.monthly_quota,
            rate_per_second: self.rate,
            burst: self.burst,
            expires_at: self.expires_at.map(proto::convert::timestamp),
            active: None,
            set_allow: self.allow_all || !self.allow.is_empty(),
            allow: self.allow,
        }
    }
}

fn activity(key_id: String, active: bool) -> wire::UpdateKeyRequest {
    wire::UpdateKeyRequest {
        key_id,
        active: Some(active),
        ..Default::default()
    }
}

async fn update(keys: &mut Keys, request: wire::UpdateKeyRequest, output: &Output) -> Result {
    let changed = keys.update_key(request).await?.into_inner().key;
    output.record(&changed.as_ref().map_or(Value::Null, show));
    Ok(())
}

async fn revoke(keys: &mut Keys, key_id: String, reason: String, output: &Output) -> Result {
    let request = wire::RevokeKeyRequest {
        key_id: key_id.clone(),
        reason,
    };
    let revoked = keys.revoke_key(request).await?.into_inner();
    output.record(&json!({
        "key_id": key_id,
        "confirmed_gateways": revoked.confirmed_gateways,
        "pending_gateways": revoked.pending_gateways,
    }));
    if !revoked.pending_gateways.is_empty() {
        output.note("Some gateways have not confirmed yet: their copies end within seconds.");
    }
    Ok(())
}

/// The keys of an organisation.
pub(crate) async fn list(keys: &Keys, org: &str, limit: u32) -> Result<Vec<wire::Key>> {
    pages(limit, |page_size, page_token| {
        let mut keys = keys.clone();
        let request = wire::ListKeysRequest {
            org_id: org.to_owned(),
            page_size,
            page_token,
        };
        async move {
            let page = keys.list_keys(request).await?.into_inner();
            Ok((page.keys, page.next_page_token))
        }
    })
    .await
}

/// A key as scripts see it.
pub(crate) fn show(key: &wire::Key) -> Value {
    json!({
        "key_id": key.key_id,
        "org_id": key.org_id,
        "created_by": key.created_by,
        "name": key.name,
        "prefix": key.prefix,
        "hint": key.hint,
        "environment": key.environment,
        "status": key.status,
        "scopes": key.scopes,
        "daily_quota": key.daily_quota,
        "monthly_quota": key.monthly_quota,
        "rate_per_second": key.rate_per_second,
        "burst": key.burst,
        "allow": key.allow,
        "expires_at": time(key.expires_at.as_ref()),
        "revoked_at": time(key.revoked_at.as_ref()),
        "revoked_reason": key.revoked_reason,
        "last_used_at": time(key.last_used_at.as_ref()),
        "last_used_ip": key.last_used_ip,
        "created_at": time(key.created_at.as_ref()),
        "version": key.version,
    })
}

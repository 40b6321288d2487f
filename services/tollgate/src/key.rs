//! `tollgate key`: API keys.

use clap::{Args, Subcommand};
use jiff::Timestamp;
use proto::keys::v1 as wire;
use serde_json::{Value, json};

use crate::connect::{Keys, System, pages, time};
use crate::failure::Result;
use crate::input;
use crate::key_show::{show, with_uses};
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
    #[command(after_help = "Example:\n  tollgate key list --org org_… --status active --name shop")]
    List {
        /// `org_…`
        #[arg(long)]
        org: String,
        /// Only active, throttled, suspended, revoked or expired ones
        #[arg(long, default_value = "", hide_default_value = true)]
        status: String,
        /// Only those whose name contains this
        #[arg(long, default_value = "", hide_default_value = true)]
        name: String,
        /// Lines at most
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Show one key; never the key itself
    Show {
        /// `key_…`
        key: String,
    },
    /// Change name, scopes, limits or metadata; what is not named stays
    #[command(
        after_help = "Example:\n  tollgate key update key_… --rate 20 --metadata team=shop \
        --metadata ticket=T-7"
    )]
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
    /// Replace a key by a new one with the same limits, and print it, this once
    Rotate {
        /// `key_…`
        key: String,
        /// How long the old key goes on, 0–86400; never beyond its own end
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        overlap: u32,
    },
    /// End a key for good and hide it from lists; its usage stays
    Delete {
        /// `key_…`
        key: String,
    },
    /// List live keys whose creator has left and nobody has decided to keep
    #[command(after_help = "Example:\n  tollgate key reviews --org org_…")]
    Reviews {
        /// `org_…`
        #[arg(long)]
        org: String,
        /// Lines at most
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Decide that a key whose creator has left goes on
    Keep {
        /// `key_…`
        key: String,
    },
    /// Tell whether a text has the form and checksum of a key, offline; exit 1 if not
    Check {
        /// The key; read from the standard input if absent, which keeps it out of histories
        key: Option<String>,
    },
    /// Report a key that was found in public, read from the standard input
    #[command(after_help = "Example:\n  tollgate key report --source scanner --url \
        https://example.com/leak < found.txt")]
    Report {
        /// Who found it
        #[arg(long)]
        source: String,
        /// Where it was found
        #[arg(long, default_value = "", hide_default_value = true)]
        url: String,
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
    /// What to note of it; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = entry)]
    metadata: Vec<(String, String)>,
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
    /// New metadata instead of the present one; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = entry)]
    metadata: Vec<(String, String)>,
    /// Forget the metadata
    #[arg(long, conflicts_with = "metadata")]
    no_metadata: bool,
    /// Change only this version
    #[arg(long, value_name = "N")]
    if_version: Option<i64>,
}

/// Reads `name=value`.
fn entry(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err("must look like name=value".to_owned()),
    }
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
        Key::List {
            org,
            status,
            name,
            limit,
        } => {
            let wish = wire::ListKeysRequest {
                org_id: org,
                status,
                name,
                ..Default::default()
            };
            let listed = list(&keys, &wish, limit).await?;
            let rows = with_uses(system, &listed, output).await;
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
            let mut shown = with_uses(system, found.as_slice(), output).await;
            output.record(&shown.pop().unwrap_or(Value::Null));
        }
        Key::Update(wish) => update(&mut keys, wish.request(), output).await?,
        Key::Suspend { key } => update(&mut keys, activity(key, false), output).await?,
        Key::Restore { key } => update(&mut keys, activity(key, true), output).await?,
        Key::Revoke { key, reason } => revoke(&mut keys, key, reason, output).await?,
        Key::Rotate { key, overlap } => rotate(&mut keys, key, overlap, output).await?,
        Key::Delete { key } => delete(&mut keys, key, output).await?,
        Key::Reviews { org, limit } => reviews(&keys, system, &org, limit, output).await?,
        Key::Keep { key } => {
            let request = wire::KeepKeyRequest {
                key_id: key.clone(),
                org_id: String::new(),
            };
            keys.keep_key(request).await?;
            output.record(&json!({ "key_id": key }));
        }
        Key::Check { key } => check(key, output)?,
        Key::Report { source, url } => report(&mut keys, source, url, output).await?,
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
            metadata: self.metadata.into_iter().collect(),
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
            expected_version: self.if_version,
            set_metadata: self.no_metadata || !self.metadata.is_empty(),
            metadata: self.metadata.into_iter().collect(),
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

async fn rotate(keys: &mut Keys, key_id: String, overlap: u32, output: &Output) -> Result {
    let request = wire::RotateKeyRequest {
        key_id,
        overlap_seconds: overlap,
    };
    let made = keys.rotate_key(request).await?.into_inner();
    output.record(&json!({
        "key_id": made.key_id,
        "key": made.key,
        "old_expires_at": time(made.old_expires_at.as_ref()),
    }));
    if !output.is_json() {
        output.note("Keep the key now: it is stored nowhere and cannot be shown again.");
    }
    Ok(())
}

async fn delete(keys: &mut Keys, key_id: String, output: &Output) -> Result {
    let request = wire::DeleteKeyRequest {
        key_id: key_id.clone(),
    };
    let deleted = keys.delete_key(request).await?.into_inner();
    output.record(&json!({
        "key_id": key_id,
        "confirmed_gateways": deleted.confirmed_gateways,
        "pending_gateways": deleted.pending_gateways,
    }));
    Ok(())
}

async fn reviews(keys: &Keys, system: &System, org: &str, limit: u32, output: &Output) -> Result {
    let found = pages(limit, |page_size, page_token| {
        let mut keys = keys.clone();
        let request = wire::ListKeyReviewsRequest {
            org_id: org.to_owned(),
            page_size,
            page_token,
        };
        async move {
            let page = keys.list_key_reviews(request).await?.into_inner();
            Ok((page.reviews, page.next_page_token))
        }
    });
    let found = found.await?;
    let listed: Vec<wire::Key> = found.iter().filter_map(|it| it.key.clone()).collect();
    let shown = with_uses(system, &listed, output).await;
    let rows = found.iter().zip(shown).map(|(review, mut shown)| {
        shown["left_by"] = json!(review.email);
        shown["left_at"] = time(review.left_at.as_ref());
        shown
    });
    let columns = [
        ("key_id", "KEY"),
        ("name", "NAME"),
        ("hint", "ENDS IN"),
        ("left_by", "CREATED BY"),
        ("left_at", "LEFT"),
        ("last_used_at", "LAST USED"),
    ];
    output.list("reviews", &columns, rows.collect());
    Ok(())
}

/// Checks the form of a key without asking anybody.
pub(crate) fn check(key: Option<String>, output: &Output) -> Result {
    let text = key.map_or_else(input::line, Ok)?;
    let parsed = types::PresentedKey::parse(text.trim());
    let environment = parsed.as_ref().ok().map(|key| key.environment().as_str());
    output.record(&json!({ "valid": parsed.is_ok(), "environment": environment }));
    match parsed {
        Ok(_) => Ok(()),
        Err(error) => Err(anyhow::anyhow!("not a key: {error}").into()),
    }
}

async fn report(keys: &mut Keys, source: String, url: String, output: &Output) -> Result {
    let request = wire::ReportLeakedKeyRequest {
        key: input::line()?,
        source,
        url,
        ..Default::default()
    };
    let done = keys.report_leaked_key(request).await?.into_inner();
    output.record(&json!({ "action": done.action, "key_id": done.key_id }));
    Ok(())
}

/// The keys of an organisation.
pub(crate) async fn list(
    keys: &Keys,
    wish: &wire::ListKeysRequest,
    limit: u32,
) -> Result<Vec<wire::Key>> {
    pages(limit, |page_size, page_token| {
        let mut keys = keys.clone();
        let request = wire::ListKeysRequest {
            page_size,
            page_token,
            ..wish.clone()
        };
        async move {
            let page = keys.list_keys(request).await?.into_inner();
            Ok((page.keys, page.next_page_token))
        }
    })
    .await
}

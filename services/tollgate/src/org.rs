//! `tollgate org`: organisations.

use clap::{Args, Subcommand};
use proto::keys::v1 as wire;
use serde_json::{Value, json};

use crate::connect::{Keys, System, pages, time};
use crate::failure::Result;
use crate::output::Output;

/// Acts on organisations.
#[derive(Subcommand)]
pub(crate) enum Org {
    /// Create an organisation and, if the address is new, its owner
    Create {
        /// Name for people
        #[arg(long)]
        name: String,
        /// E-mail address of the owner
        #[arg(long, value_name = "EMAIL")]
        owner: String,
        /// Short name, 3–64 of a-z, 0-9 and -; made from the name if absent
        #[arg(long, default_value = "", hide_default_value = true)]
        slug: String,
    },
    /// List organisations, oldest first
    List {
        /// Lines at most
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Show one organisation
    Show {
        /// `org_…`
        org: String,
    },
    /// Change name or short name; what is not named stays
    #[command(
        after_help = "Example:\n  tollgate org update org_… --name \"Acme Corp\" --slug acme"
    )]
    Update {
        /// `org_…`
        org: String,
        /// Name for people
        #[arg(long)]
        name: Option<String>,
        /// Short name, 3–64 of a-z, 0-9 and -, unique
        #[arg(long)]
        slug: Option<String>,
        /// Change only this version
        #[arg(long, value_name = "N")]
        if_version: Option<i64>,
    },
    /// Make another member the owner; the owner before becomes an admin
    Transfer {
        /// `org_…`
        org: String,
        /// `usr_…`, a member
        #[arg(long)]
        to: String,
    },
    /// Show the organisation's own rules, or change those that are named
    #[command(after_help = "Example:\n  tollgate org policy org_… --leak-action revoke")]
    Policy(Policy),
}

/// Rules of an organisation.
#[derive(Args)]
pub(crate) struct Policy {
    /// `org_…`
    org: String,
    /// Must users show a second factor to create or rotate live keys?
    #[arg(long, value_name = "BOOL")]
    second_factor: Option<bool>,
    /// Seconds a key lives at most; 0: for ever
    #[arg(long, value_name = "SECONDS")]
    key_lifetime_max: Option<i64>,
    /// May developers have live keys of their own?
    #[arg(long, value_name = "BOOL")]
    developers_live_keys: Option<bool>,
    /// What happens to a leaked key: notify, suspend or revoke
    #[arg(long, value_name = "ACTION")]
    leak_action: Option<String>,
    /// What happens to the keys of an anomaly: notify, throttle or suspend
    #[arg(long, value_name = "ACTION")]
    anomaly_action: Option<String>,
    /// Origin of web pages that may call with the organisation's keys, such as
    /// https://app.example.com, or `*` for all; several replace the list, `none` empties it
    #[arg(long = "allowed-origin", value_name = "ORIGIN")]
    allowed_origins: Vec<String>,
    /// Change only this version
    #[arg(long, value_name = "N")]
    if_version: Option<i64>,
}

pub(crate) async fn run(command: Org, system: &System, output: &Output) -> Result {
    let mut keys = system.keys()?;
    match command {
        Org::Create { name, owner, slug } => {
            let request = wire::CreateOrganisationRequest {
                name,
                slug,
                owner_email: owner,
            };
            let made = keys.create_organisation(request).await?.into_inner();
            output.record(&json!({
                "org_id": made.org_id,
                "user_id": made.user_id,
                "slug": made.slug,
            }));
        }
        Org::List { limit } => {
            let rows = list(&keys, limit).await?.iter().map(show).collect();
            let columns = [
                ("org_id", "ORG"),
                ("name", "NAME"),
                ("slug", "SLUG"),
                ("created_at", "CREATED"),
            ];
            output.list("organisations", &columns, rows);
        }
        Org::Show { org } => {
            let request = wire::GetOrganisationRequest { org_id: org };
            let found = keys
                .get_organisation(request)
                .await?
                .into_inner()
                .organisation;
            output.record(&found.as_ref().map_or(Value::Null, show));
        }
        Org::Update {
            org,
            name,
            slug,
            if_version,
        } => {
            let request = wire::UpdateOrganisationRequest {
                org_id: org,
                name,
                slug,
                expected_version: if_version,
            };
            let now = keys.update_organisation(request).await?.into_inner();
            output.record(&now.organisation.as_ref().map_or(Value::Null, show));
        }
        Org::Transfer { org, to } => {
            let request = wire::TransferOwnershipRequest {
                org_id: org,
                user_id: to.clone(),
            };
            let done = system.people()?.transfer_ownership(request).await?;
            output.record(&json!({
                "owner_id": to,
                "previous_owner_id": done.into_inner().previous_owner_id,
            }));
        }
        Org::Policy(wish) => policy(&mut keys, wish, output).await?,
    }
    Ok(())
}

/// A change of nothing shows what is.
async fn policy(keys: &mut Keys, wish: Policy, output: &Output) -> Result {
    let allowed_origins = match wish.allowed_origins.as_slice() {
        [] => None,
        [none] if none == "none" => Some(wire::Origins::default()),
        _ => Some(wire::Origins {
            origins: wish.allowed_origins,
        }),
    };
    let request = wire::SetPolicyRequest {
        org_id: wish.org,
        live_keys_need_second_factor: wish.second_factor,
        key_lifetime_seconds_max: wish.key_lifetime_max,
        developers_may_create_live_keys: wish.developers_live_keys,
        leak_action: wish.leak_action,
        anomaly_action: wish.anomaly_action,
        allowed_origins,
        expected_version: wish.if_version,
    };
    let now = keys.set_policy(request).await?.into_inner().policy;
    let shown = now.map_or(Value::Null, |policy| {
        json!({
            "live_keys_need_second_factor": policy.live_keys_need_second_factor,
            "key_lifetime_seconds_max": policy.key_lifetime_seconds_max,
            "developers_may_create_live_keys": policy.developers_may_create_live_keys,
            "leak_action": policy.leak_action,
            "anomaly_action": policy.anomaly_action,
            "allowed_origins": policy.allowed_origins,
            "version": policy.version,
        })
    });
    output.record(&shown);
    Ok(())
}

/// Organisations by creation.
pub(crate) async fn list(keys: &Keys, limit: u32) -> Result<Vec<wire::Organisation>> {
    pages(limit, |page_size, page_token| {
        let mut keys = keys.clone();
        async move {
            let request = wire::ListOrganisationsRequest {
                page_size,
                page_token,
            };
            let page = keys.list_organisations(request).await?.into_inner();
            Ok((page.organisations, page.next_page_token))
        }
    })
    .await
}

fn show(org: &wire::Organisation) -> Value {
    json!({
        "org_id": org.org_id,
        "name": org.name,
        "slug": org.slug,
        "owner_id": org.owner_id,
        "created_at": time(org.created_at.as_ref()),
        "version": org.version,
    })
}

//! `tollgate member`: who belongs to an organisation.

use clap::Subcommand;
use proto::keys::v1 as wire;
use serde_json::{Value, json};

use crate::connect::{System, time};
use crate::failure::Result;
use crate::output::Output;

/// Acts on members.
#[derive(Subcommand)]
pub(crate) enum Member {
    /// Add a member; a new address becomes a new user
    Add {
        /// `org_…`
        #[arg(long)]
        org: String,
        /// E-mail address
        #[arg(long)]
        email: String,
        /// owner, admin, developer or billing
        #[arg(long, default_value = "developer")]
        role: String,
    },
    /// List the members of an organisation
    List {
        /// `org_…`
        #[arg(long)]
        org: String,
    },
    /// Change the role of a member; the last owner stays
    Role {
        /// `org_…`
        #[arg(long)]
        org: String,
        /// `usr_…`
        #[arg(long)]
        user: String,
        /// owner, admin, developer or billing
        #[arg(long)]
        role: String,
        /// Change only this version of the membership
        #[arg(long, value_name = "N")]
        if_version: Option<i64>,
    },
    /// Remove a member; the last owner stays
    Remove {
        /// `org_…`
        #[arg(long)]
        org: String,
        /// `usr_…`
        #[arg(long)]
        user: String,
    },
}

pub(crate) async fn run(command: Member, system: &System, output: &Output) -> Result {
    let mut keys = system.keys()?;
    match command {
        Member::Add { org, email, role } => {
            let request = wire::AddMemberRequest {
                org_id: org,
                email,
                role,
            };
            let added = keys.add_member(request).await?.into_inner();
            output.record(&json!({ "user_id": added.user_id }));
        }
        Member::List { org } => {
            let request = wire::ListMembersRequest { org_id: org };
            let members = keys.list_members(request).await?.into_inner().members;
            let rows = members.iter().map(show);
            let columns = [
                ("user_id", "USER"),
                ("email", "EMAIL"),
                ("role", "ROLE"),
                ("joined_at", "SINCE"),
            ];
            output.list("members", &columns, rows.collect());
        }
        Member::Role {
            org,
            user,
            role,
            if_version,
        } => {
            let request = wire::UpdateMemberRoleRequest {
                org_id: org,
                user_id: user,
                role,
                expected_version: if_version,
            };
            let done = system.people()?.update_member_role(request).await?;
            let now = done.into_inner().member;
            output.record(&now.as_ref().map_or(Value::Null, show));
        }
        Member::Remove { org, user } => {
            let request = wire::RemoveMemberRequest {
                org_id: org,
                user_id: user.clone(),
            };
            let removed = keys.remove_member(request).await?.into_inner();
            output.record(&json!({
                "user_id": user,
                "revoked_test_keys": removed.revoked_test_keys,
                "live_keys_to_review": removed.live_keys_to_review,
            }));
            if removed.live_keys_to_review > 0 && !output.is_json() {
                output.note("Live keys of the member go on: see `tollgate key reviews`.");
            }
        }
    }
    Ok(())
}

fn show(member: &wire::Member) -> Value {
    json!({
        "user_id": member.user_id,
        "email": member.email,
        "role": member.role,
        "joined_at": time(member.joined_at.as_ref()),
        "version": member.version,
    })
}

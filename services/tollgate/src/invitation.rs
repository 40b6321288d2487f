//! `tollgate invitation`: invitations to organisations.

use clap::Subcommand;
use proto::keys::v1 as wire;
use serde_json::{Value, json};

use crate::connect::{People, System, pages, time};
use crate::failure::Result;
use crate::input;
use crate::output::Output;

/// Acts on invitations.
#[derive(Subcommand)]
pub(crate) enum Invitation {
    /// Invite somebody by e-mail: 7 days, once
    Create {
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
    /// List the invitations of an organisation, newest first
    List {
        /// `org_…`
        #[arg(long)]
        org: String,
        /// Lines at most
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Mail a new link; the old one ends
    Resend {
        /// `inv_…`
        invitation: String,
    },
    /// End an open invitation
    Revoke {
        /// `inv_…`
        invitation: String,
    },
    /// Show what an invitation is for
    #[command(after_help = "Example:\n  tollgate invitation show < token.txt")]
    Show {
        /// As in the mail; read from the standard input if absent
        token: Option<String>,
    },
    /// Accept for a user with the invited address
    Accept {
        /// As in the mail
        token: String,
        /// `usr_…`
        #[arg(long)]
        user: String,
    },
}

pub(crate) async fn run(command: Invitation, system: &System, output: &Output) -> Result {
    let mut people = system.people()?;
    match command {
        Invitation::Create { org, email, role } => {
            let request = wire::CreateInvitationRequest {
                org_id: org,
                email,
                role,
            };
            let made = people.create_invitation(request).await?.into_inner();
            output.record(&show(made.invitation.as_ref()));
        }
        Invitation::List { org, limit } => list(&people, &org, limit, output).await?,
        Invitation::Resend { invitation } => {
            let request = wire::ResendInvitationRequest {
                invitation_id: invitation,
                org_id: String::new(),
            };
            let sent = people.resend_invitation(request).await?.into_inner();
            output.record(&show(sent.invitation.as_ref()));
        }
        Invitation::Revoke { invitation } => {
            let request = wire::RevokeInvitationRequest {
                invitation_id: invitation,
                org_id: String::new(),
            };
            let ended = people.revoke_invitation(request).await?.into_inner();
            output.record(&show(ended.invitation.as_ref()));
        }
        Invitation::Show { token } => {
            let request = wire::GetInvitationRequest {
                token: token.map_or_else(input::line, Ok)?,
            };
            let found = people.get_invitation(request).await?.into_inner();
            let mut shown = show(found.invitation.as_ref());
            shown["organisation_name"] = json!(found.organisation_name);
            output.record(&shown);
        }
        Invitation::Accept { token, user } => {
            let request = wire::AcceptInvitationRequest {
                token,
                user_id: user,
            };
            let joined = people.accept_invitation(request).await?.into_inner();
            output.record(&json!({ "org_id": joined.org_id, "role": joined.role }));
        }
    }
    Ok(())
}

fn show(invitation: Option<&wire::Invitation>) -> Value {
    invitation.map_or(Value::Null, |it| {
        json!({
            "invitation_id": it.invitation_id,
            "org_id": it.org_id,
            "email": it.email,
            "role": it.role,
            "status": it.status,
            "invited_by": it.invited_by,
            "created_at": time(it.created_at.as_ref()),
            "expires_at": time(it.expires_at.as_ref()),
        })
    })
}

async fn list(people: &People, org: &str, limit: u32, output: &Output) -> Result {
    let rows = pages(limit, |page_size, page_token| {
        let mut people = people.clone();
        let request = wire::ListInvitationsRequest {
            org_id: org.to_owned(),
            page_size,
            page_token,
        };
        async move {
            let page = people.list_invitations(request).await?.into_inner();
            Ok((page.invitations, page.next_page_token))
        }
    });
    let rows = rows.await?.iter().map(|row| show(Some(row))).collect();
    let columns = [
        ("invitation_id", "INVITATION"),
        ("email", "EMAIL"),
        ("role", "ROLE"),
        ("status", "STATUS"),
        ("expires_at", "UNTIL"),
    ];
    output.list("invitations", &columns, rows);
    Ok(())
}

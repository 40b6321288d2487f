//! `tollgate user`: accounts of people. Passwords are read from the standard input.

use clap::Subcommand;
use proto::keys::v1 as wire;
use serde_json::{Value, json};

use crate::connect::{System, time};
use crate::failure::Result;
use crate::output::Output;

/// Acts on accounts.
#[derive(Subcommand)]
pub(crate) enum User {
    /// Sign somebody up with an organisation; the password is the first line of the input
    #[command(
        after_help = "Example:\n  tollgate user sign-up --email ada@example.com --name Ada \
        --organisation Acme < password.txt"
    )]
    SignUp {
        /// E-mail address; a link to verify it is mailed
        #[arg(long)]
        email: String,
        /// Name for people
        #[arg(long)]
        name: String,
        /// Name of the new organisation
        #[arg(long)]
        organisation: String,
    },
    /// Show an account
    Show {
        /// `usr_…`
        user: String,
    },
    /// List the organisations of a user
    Orgs {
        /// `usr_…`
        user: String,
    },
    /// Mail a link to choose a new password
    ResetPassword {
        /// E-mail address
        #[arg(long)]
        email: String,
    },
    /// Mail a new link to verify the address
    Verify {
        /// `usr_…`
        user: String,
    },
}

pub(crate) async fn run(command: User, system: &System, output: &Output) -> Result {
    let mut people = system.people()?;
    match command {
        User::SignUp {
            email,
            name,
            organisation,
        } => {
            let mut password = String::new();
            std::io::stdin().read_line(&mut password)?;
            let request = wire::SignUpRequest {
                email: email.clone(),
                password: password.trim_end_matches(['\r', '\n']).to_owned(),
                name,
                organisation_name: organisation,
                address: String::new(),
            };
            people.sign_up(request).await?;
            output.record(&json!({ "email": email }));
        }
        User::Show { user } => {
            let request = wire::GetUserRequest { user_id: user };
            let found = people.get_user(request).await?.into_inner().user;
            output.record(&found.as_ref().map_or(Value::Null, show));
        }
        User::Orgs { user } => {
            let request = wire::ListOrganisationsOfRequest { user_id: user };
            let found = people.list_organisations_of(request).await?.into_inner();
            let rows = found.memberships.iter().map(|place| {
                json!({
                    "org_id": place.org_id,
                    "name": place.name,
                    "slug": place.slug,
                    "role": place.role,
                    "joined_at": time(place.joined_at.as_ref()),
                })
            });
            let columns = [
                ("org_id", "ORG"),
                ("name", "NAME"),
                ("slug", "SLUG"),
                ("role", "ROLE"),
                ("joined_at", "SINCE"),
            ];
            output.list("organisations", &columns, rows.collect());
        }
        User::ResetPassword { email } => {
            let request = wire::RequestPasswordResetRequest {
                email: email.clone(),
                address: String::new(),
            };
            people.request_password_reset(request).await?;
            output.record(&json!({ "email": email }));
        }
        User::Verify { user } => {
            let request = wire::ResendVerificationRequest {
                user_id: user.clone(),
            };
            people.resend_verification(request).await?;
            output.record(&json!({ "user_id": user }));
        }
    }
    Ok(())
}

fn show(user: &wire::User) -> Value {
    json!({
        "user_id": user.user_id,
        "email": user.email,
        "name": user.name,
        "email_verified": user.email_verified,
        "second_factor": user.second_factor,
        "recovery_codes": user.recovery_codes,
        "created_at": time(user.created_at.as_ref()),
    })
}

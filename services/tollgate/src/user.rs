//! `tollgate user`: accounts of people. Passwords are read from the standard input.

use clap::Subcommand;
use proto::keys::v1 as wire;
use serde_json::{Value, json};

use crate::connect::{People, System, time};
use crate::failure::Result;
use crate::input;
use crate::output::Output;
use crate::second_factor;

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
        /// Of pages and mails: en or fr
        #[arg(long)]
        language: Option<String>,
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
    /// Change name or language; what is not named stays
    #[command(after_help = "Example:\n  tollgate user update usr_… --language fr")]
    Update {
        /// `usr_…`
        user: String,
        /// Name for people
        #[arg(long)]
        name: Option<String>,
        /// Of pages and mails: en or fr
        #[arg(long)]
        language: Option<String>,
    },
    /// Set a new password; the input's first line is the present one, the second the new one
    #[command(after_help = "Example:\n  tollgate user change-password usr_… < passwords.txt")]
    ChangePassword {
        /// `usr_…`
        user: String,
    },
    /// Turn a second factor on or off, or renew its recovery codes
    #[command(subcommand)]
    SecondFactor(second_factor::SecondFactor),
}

pub(crate) async fn run(command: User, system: &System, output: &Output) -> Result {
    let mut people = system.people()?;
    match command {
        User::SignUp {
            email,
            name,
            organisation,
            language,
        } => {
            let request = wire::SignUpRequest {
                email: email.clone(),
                password: input::secret()?,
                name,
                organisation_name: organisation,
                address: String::new(),
                language: language.unwrap_or_default(),
            };
            people.sign_up(request).await?;
            output.record(&json!({ "email": email }));
        }
        User::Show { user } => {
            let request = wire::GetUserRequest { user_id: user };
            let found = people.get_user(request).await?.into_inner().user;
            output.record(&found.as_ref().map_or(Value::Null, show));
        }
        User::Orgs { user } => organisations(&mut people, user, output).await?,
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
        User::Update {
            user,
            name,
            language,
        } => {
            let request = wire::UpdateUserRequest {
                user_id: user,
                name,
                language,
            };
            let now = people.update_user(request).await?.into_inner().user;
            output.record(&now.as_ref().map_or(Value::Null, show));
        }
        User::ChangePassword { user } => {
            let request = wire::ChangePasswordRequest {
                user_id: user.clone(),
                old_password: input::secret()?,
                new_password: input::secret()?,
            };
            people.change_password(request).await?;
            output.record(&json!({ "user_id": user }));
        }
        User::SecondFactor(command) => second_factor::run(command, &mut people, output).await?,
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
        "language": user.language,
        "created_at": time(user.created_at.as_ref()),
    })
}

async fn organisations(people: &mut People, user_id: String, output: &Output) -> Result {
    let request = wire::ListOrganisationsOfRequest { user_id };
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
    Ok(())
}

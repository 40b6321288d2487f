//! Every variable of the service.

use runtime::Variables;
use secrecy::{ExposeSecret, SecretString};
use types::Pepper;

use crate::mailroom::Server;

/// What the service needs to know.
#[derive(Debug)]
pub struct Config {
    /// Hashed with every key.
    pub pepper: SecretString,
    /// What was hashed with keys before the last rotation.
    pub pepper_previous: Option<SecretString>,
    /// Where mail is handed in; absent: it stays in the outbox.
    pub smtp_url: Option<SecretString>,
    /// Whom mails are from.
    pub mail_from: String,
    /// Where links in mails lead.
    pub portal_url: String,
    /// Keys that the members of an organisation make in an hour.
    pub keys_per_hour_max: i64,
}

impl Config {
    /// Reads the variables; problems are collected in `variables`.
    pub fn read(variables: &mut Variables) -> Self {
        let pepper = variables.secret(
            "API_KEY_PEPPER",
            "hashed with every API key, at least 32 bytes; `tollgate pepper generate` makes one",
        );
        let pepper_previous = variables.secret_optional(
            "API_KEY_PEPPER_PREVIOUS",
            "the pepper before the last rotation, while keys still wait for their first use",
        );
        check(variables, "API_KEY_PEPPER", Some(&pepper));
        check(
            variables,
            "API_KEY_PEPPER_PREVIOUS",
            pepper_previous.as_ref(),
        );
        let smtp_url = variables.secret_optional(
            "TOLLGATE_KEYS_SMTP_URL",
            "mail server, such as smtp://127.0.0.1:1025 or smtps://user:password@host; without it \
             mails stay in the outbox",
        );
        let mail_from = variables.text(
            "TOLLGATE_KEYS_MAIL_FROM",
            "Tollgate <tollgate@localhost.localdomain>",
            "sender of mails",
        );
        let portal_url = variables.text(
            "TOLLGATE_KEYS_PORTAL_URL",
            "http://127.0.0.1:8081",
            "where links in mails lead",
        );
        let keys_per_hour_max = variables.number(
            "TOLLGATE_KEYS_PER_HOUR_MAX",
            20,
            1..=1_000_000,
            "keys that the members of an organisation make in an hour",
        );
        if let Some(url) = &smtp_url
            && let Err(error) = Server::new(url.expose_secret(), &mail_from)
        {
            variables.problem(format!(
                "TOLLGATE_KEYS_SMTP_URL or TOLLGATE_KEYS_MAIL_FROM: {error:#}"
            ));
        }
        Self {
            pepper,
            pepper_previous,
            smtp_url,
            mail_from,
            portal_url: portal_url.trim_end_matches('/').to_owned(),
            keys_per_hour_max,
        }
    }
}

/// An absent pepper was noted by whoever read it.
fn check(variables: &mut Variables, name: &str, pepper: Option<&SecretString>) {
    let text = pepper.map(ExposeSecret::expose_secret).unwrap_or_default();
    if text.is_empty() {
        return;
    }
    if let Err(error) = Pepper::new(text) {
        variables.problem(format!("{name} {error}"));
    }
}

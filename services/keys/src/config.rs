//! Every variable of the service.

use runtime::{Succession, Variables};
use secrecy::{ExposeSecret, SecretString};
use types::{Networks, Pepper};

use crate::{domain::leak::Scanners, mailroom::Server};

/// What the service needs to know.
#[derive(Debug)]
pub struct Config {
    /// Hashed with every key, and what was before the last rotation.
    pub peppers: Succession,
    /// Whose signatures under reports of leaked keys are believed.
    pub(crate) scanners: Scanners,
    /// Where mail is handed in; absent: it stays in the outbox.
    pub smtp_url: Option<SecretString>,
    /// Whom mails are from.
    pub mail_from: String,
    /// Where links in mails lead.
    pub portal_url: String,
    /// Keys that the members of an organisation make in an hour.
    pub keys_per_hour_max: i64,
    /// Where services may be beside the public internet.
    pub(crate) upstream_networks: Networks,
}

impl Config {
    /// Reads the variables; problems are collected in `variables`.
    pub fn read(variables: &mut Variables) -> Self {
        let peppers = variables.succession(
            (
                "API_KEY_PEPPER",
                "hashed with every key, 32 bytes or more; `tollgate pepper generate` makes one",
            ),
            (
                "API_KEY_PEPPER_PREVIOUS",
                "the pepper before, while keys wait for their first use; with both as …_FILE, \
                 `tollgate pepper rotate` replaces them in running services",
            ),
            |text| {
                Pepper::new(text)
                    .map(drop)
                    .map_err(|error| error.to_string())
            },
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
        let upstream_networks = variables.parsed(
            "TOLLGATE_KEYS_UPSTREAM_NETWORKS",
            "",
            "networks in which services may be beside the public internet, such as 10.1.0.0/16, \
             with commas between them; the gateways have a list of their own",
            Networks::parse,
        );
        let scanners = variables.parsed(
            "TOLLGATE_KEYS_SCANNER_KEYS",
            "",
            "public keys of scanners that sign their reports of leaked keys: before each PEM block \
             (ECDSA, P-256) a line with a name and the identifier that the reports carry",
            Scanners::parse,
        );
        if let Some(url) = &smtp_url
            && let Err(error) = Server::new(url.expose_secret(), &mail_from)
        {
            variables.problem(format!(
                "TOLLGATE_KEYS_SMTP_URL or TOLLGATE_KEYS_MAIL_FROM: {error:#}"
            ));
        }
        Self {
            peppers,
            scanners: scanners.unwrap_or_default(),
            smtp_url,
            mail_from,
            portal_url: portal_url.trim_end_matches('/').to_owned(),
            keys_per_hour_max,
            upstream_networks: upstream_networks.unwrap_or_default(),
        }
    }
}

//! Words with a grammar: environments, roles, scopes, slugs, names.

use std::{fmt, str::FromStr};

/// Why a text does not fit its grammar. Names the field and the remedy.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{field}` {problem}")]
pub struct NameError {
    /// The field of the request.
    pub field: &'static str,
    /// What is wrong, and what would be right.
    pub problem: String,
}

fn wrong(field: &'static str, problem: impl Into<String>) -> NameError {
    NameError {
        field,
        problem: problem.into(),
    }
}

/// Whether a key spends money or test credits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Environment {
    /// Spends the organisation's wallet.
    Production,
    /// Spends the test wallet of the user who made the key.
    Test,
}

impl Environment {
    /// `production` or `test`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Test => "test",
        }
    }

    /// `sk_live` or `sk_test`.
    #[must_use]
    pub const fn key_prefix(self) -> &'static str {
        match self {
            Self::Production => "sk_live",
            Self::Test => "sk_test",
        }
    }
}

impl FromStr for Environment {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text {
            "production" => Ok(Self::Production),
            "test" => Ok(Self::Test),
            _ => Err(wrong("environment", "must be `production` or `test`")),
        }
    }
}

/// What a member may do in an organisation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    /// Everything.
    Owner,
    /// Everything but ownership and payment.
    Admin,
    /// Own keys, calls and totals.
    Developer,
    /// Payment and totals.
    Billing,
}

impl Role {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Owner, Self::Admin, Self::Developer, Self::Billing];

    /// As stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::Developer => "developer",
            Self::Billing => "billing",
        }
    }
}

impl FromStr for Role {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| wrong("role", "must be `owner`, `admin`, `developer` or `billing`"))
    }
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.len() <= 63
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

macro_rules! text {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text! {
    /// A right such as `pdf:write`: a service's word, a colon, an action's word.
    Scope
}

impl FromStr for Scope {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once(':') {
            Some((service, action)) if is_word(service) && is_word(action) => {
                Ok(Self(text.to_owned()))
            }
            _ => Err(wrong("scope", "must look like `pdf:write`")),
        }
    }
}

text! {
    /// The name of a service as in URLs, 1–63 of `a-z0-9-`, beginning with a letter.
    ServiceName
}

impl FromStr for ServiceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if !is_word(text) {
            return Err(wrong(
                "name",
                "must be 1–63 of a-z, 0-9 and -, beginning with a letter",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

text! {
    /// An organisation's unique short name, 3–64 of `a-z0-9-`.
    Slug
}

impl FromStr for Slug {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let fits = (3..=64).contains(&text.len())
            && text
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if !fits {
            return Err(wrong("slug", "must be 3–64 of a-z, 0-9 and -"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Checks the name of a key or organisation: 1–80 characters, none of them a control character.
///
/// # Errors
/// Names the field.
pub fn parse_key_name(field: &'static str, text: &str) -> Result<String, NameError> {
    let text = text.trim();
    if text.is_empty() || text.chars().count() > 80 || text.chars().any(char::is_control) {
        return Err(wrong(
            field,
            "must be 1–80 characters without control characters",
        ));
    }
    Ok(text.to_owned())
}

/// Checks an e-mail address coarsely (one `@`, a dot behind it, ≤ 254 bytes) and lower-cases it.
///
/// # Errors
/// Names the field.
pub fn parse_email(field: &'static str, text: &str) -> Result<String, NameError> {
    let text = text.trim().to_lowercase();
    let fits = text.len() <= 254
        && !text.chars().any(|c| c.is_whitespace() || c.is_control())
        && text.split_once('@').is_some_and(|(local, domain)| {
            !local.is_empty()
                && !domain.contains('@')
                && domain.split('.').count() >= 2
                && domain.split('.').all(|label| !label.is_empty())
        });
    if !fits {
        return Err(wrong(
            field,
            "must be an e-mail address such as ada@example.com",
        ));
    }
    Ok(text)
}

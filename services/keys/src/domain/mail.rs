//! What is written to people: as text and as HTML, in the reader's language, one link at most.
//!
//! A template names its words only. Escaping and layout happen in one place (`page.rs`), so none
//! can forget them.

mod en;
mod fr;
mod page;

use types::{Kind, Role};

use crate::error::{Error, Result};

/// A mail that is about to wait in the outbox.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mail {
    pub(crate) recipient: String,
    /// Names the text.
    pub(crate) template: &'static str,
    pub(crate) subject: String,
    /// The text part.
    pub(crate) body: String,
    /// The HTML part: it says the same.
    pub(crate) html: String,
}

/// The kind of a mail's id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Posted;

impl Kind for Posted {
    const PREFIX: &'static str = "eml";
}

/// What people read.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum Language {
    #[default]
    English,
    French,
}

impl Language {
    pub(crate) const ALL: [Self; 2] = [Self::English, Self::French];

    /// `en` or `fr`.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::French => "fr",
        }
    }

    /// Reads a field of a request, or a column.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|known| known.as_str() == text);
        found.ok_or_else(|| Error::invalid("language", "must be `en` or `fr`"))
    }
}

/// Whom a mail is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Reader {
    pub(crate) address: String,
    pub(crate) language: Language,
}

/// An organisation, as mails name it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) name: &'a str,
    pub(crate) slug: &'a str,
}

/// A key, as mails name it: never the key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NamedKey<'a> {
    pub(crate) name: &'a str,
    /// Its last four characters.
    pub(crate) hint: &'a str,
}

/// What was done to the keys a mail is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Done {
    /// The organisation wants to be told only.
    Nothing,
    Throttled,
    Suspended,
    Revoked,
}

/// What is said.
#[derive(Clone, Debug)]
pub(crate) enum Letter<'a> {
    /// To whoever signed up: prove that the address is yours.
    VerifyEmail { token: &'a str },
    /// To somebody who signs up again: the form says nothing, this mail does.
    AlreadyKnown,
    /// To whoever forgot the password.
    ResetPassword { token: &'a str },
    /// After a password was changed.
    PasswordChanged,
    /// After the second factor was taken away.
    SecondFactorRemoved,
    /// To whoever is invited.
    Invitation {
        token: &'a str,
        organisation: &'a str,
        role: Role,
    },
    /// To the creator of a live key and the owners.
    KeyCreated {
        organisation: Place<'a>,
        key: NamedKey<'a>,
        /// Address of who did it; `None`: an operator of the platform.
        by: Option<&'a str>,
    },
    /// To the same.
    KeyRevoked {
        organisation: Place<'a>,
        key: NamedKey<'a>,
        by: Option<&'a str>,
        reason: &'a str,
    },
    /// To the owners of a key that was found in public.
    KeyLeaked {
        organisation: Place<'a>,
        key: NamedKey<'a>,
        source: &'a str,
        /// Where it was found; may be empty.
        url: &'a str,
        done: Done,
    },
    /// To the owners of keys that behave unusually.
    Anomaly {
        organisation: Place<'a>,
        /// As in `AnomalyFlagged`.
        kind: &'a str,
        /// The detector's sentence, in English.
        summary: &'a str,
        /// May be none.
        keys: &'a [NamedKey<'a>],
        done: Done,
    },
    /// To owners and the members who pay.
    LowBalance {
        organisation: Place<'a>,
        /// What is left of `reference`.
        percent: i32,
        balance: i64,
        /// The balance after the last credits came in.
        reference: i64,
    },
}

/// A letter in one language, before it has a form.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Words {
    subject: String,
    parts: Vec<Part>,
}

/// A piece of a letter.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Paragraph(String),
    List(Vec<String>),
    /// A button in HTML, an address in text.
    Link {
        label: &'static str,
        url: String,
    },
}

/// A text as a paragraph.
fn say(text: impl Into<String>) -> Part {
    Part::Paragraph(text.into())
}

impl Letter<'_> {
    /// Names the template, in the outbox and in logs.
    const fn template(&self) -> &'static str {
        match self {
            Self::VerifyEmail { .. } => "verify_email",
            Self::AlreadyKnown => "already_known",
            Self::ResetPassword { .. } => "reset_password",
            Self::PasswordChanged => "password_changed",
            Self::SecondFactorRemoved => "second_factor_removed",
            Self::Invitation { .. } => "invitation",
            Self::KeyCreated { .. } => "key_created",
            Self::KeyRevoked { .. } => "key_revoked",
            Self::KeyLeaked { .. } => "key_leaked",
            Self::Anomaly { .. } => "anomaly",
            Self::LowBalance { .. } => "low_balance",
        }
    }

    /// Where its link leads, below the portal.
    fn path(&self) -> String {
        match self {
            Self::VerifyEmail { token } => format!("/verify/{token}"),
            Self::ResetPassword { token } => format!("/reset/{token}"),
            Self::Invitation { token, .. } => format!("/invite/{token}"),
            Self::AlreadyKnown | Self::PasswordChanged | Self::SecondFactorRemoved => {
                "/login".to_owned()
            }
            Self::KeyCreated { organisation, .. }
            | Self::KeyRevoked { organisation, .. }
            | Self::KeyLeaked { organisation, .. }
            | Self::Anomaly { organisation, .. } => format!("/o/{}/keys", organisation.slug),
            Self::LowBalance { organisation, .. } => format!("/o/{}/wallet", organisation.slug),
        }
    }
}

/// Writes a letter to somebody. `portal` is where links lead, without a slash at the end.
pub(crate) fn write(to: &Reader, portal: &str, letter: &Letter<'_>) -> Mail {
    let url = format!("{portal}{}", letter.path());
    let words = match to.language {
        Language::English => en::words(letter, url),
        Language::French => fr::words(letter, url),
    };
    Mail {
        recipient: to.address.clone(),
        template: letter.template(),
        // A name with a line break must not add a header.
        subject: words.subject.replace(char::is_control, " "),
        body: page::text(&words.parts),
        html: page::html(to.language, &words),
    }
}

/// Groups digits by three.
fn grouped(number: i64, separator: char) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    if number < 0 {
        text.push('-');
    }
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(separator);
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests;

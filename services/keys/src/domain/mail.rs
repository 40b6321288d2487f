//! What is written to people. Plain text, one link at most.

use types::{Kind, Role};

/// A mail that is about to wait in the outbox.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mail {
    pub(crate) recipient: String,
    /// Names the text.
    pub(crate) template: &'static str,
    pub(crate) subject: String,
    pub(crate) body: String,
}

/// The kind of a mail's id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Posted;

impl Kind for Posted {
    const PREFIX: &'static str = "eml";
}

fn mail(recipient: &str, template: &'static str, subject: String, body: String) -> Mail {
    Mail {
        recipient: recipient.to_owned(),
        template,
        // A name with a line break must not add a header.
        subject: subject.replace(char::is_control, " "),
        body,
    }
}

/// To whoever signed up: prove that the address is yours.
pub(crate) fn verify_email(to: &str, portal: &str, token: &str) -> Mail {
    let body = format!(
        "Welcome to Tollgate.\n\nConfirm that this is your address within 24 hours:\n\n\
         {portal}/verify/{token}\n\nIf you have not signed up, ignore this mail.\n"
    );
    mail(
        to,
        "verify_email",
        "Confirm your e-mail address".to_owned(),
        body,
    )
}

/// To somebody who signs up again: the form says nothing, this mail does.
pub(crate) fn already_known(to: &str, portal: &str) -> Mail {
    let body = format!(
        "Somebody, probably you, signed up at Tollgate with this address. It has an account \
         already:\n\n{portal}/login\n\nChoose a new password there if you have forgotten it. If it \
         was not you, ignore this mail.\n"
    );
    mail(
        to,
        "already_known",
        "You have an account already".to_owned(),
        body,
    )
}

/// To whoever forgot the password.
pub(crate) fn reset_password(to: &str, portal: &str, token: &str) -> Mail {
    let body = format!(
        "Choose a new password within one hour:\n\n{portal}/reset/{token}\n\nEvery session of \
         yours ends with it. If you have not asked for this, ignore this mail.\n"
    );
    mail(
        to,
        "reset_password",
        "Choose a new password".to_owned(),
        body,
    )
}

/// After a password was changed.
pub(crate) fn password_changed(to: &str, portal: &str) -> Mail {
    let body = format!(
        "The password of your account was changed, and every session has ended.\n\nIf it was not \
         you, choose a new one at once:\n\n{portal}/login\n"
    );
    mail(
        to,
        "password_changed",
        "Your password was changed".to_owned(),
        body,
    )
}

/// To whoever is invited.
pub(crate) fn invitation(
    to: &str,
    portal: &str,
    token: &str,
    organisation: &str,
    role: Role,
) -> Mail {
    let body = format!(
        "You are invited to join {organisation} at Tollgate as {role}. Accept within 7 days, signed \
         in with this address:\n\n{portal}/invite/{token}\n\nIf you do not know them, ignore this \
         mail.\n",
        role = role.as_str(),
    );
    let subject = format!("Invitation to {organisation}");
    mail(to, "invitation", subject, body)
}

/// To the owners of a key that was found in public.
pub(crate) fn leaked_key(to: &str, key: &LeakedKey<'_>) -> Mail {
    let LeakedKey {
        name,
        hint,
        source,
        url,
        done,
    } = key;
    let place = match url.is_empty() {
        true => String::new(),
        false => format!(" at {url}"),
    };
    let body = format!(
        "The key \"{name}\" (…{hint}) was reported as leaked by {source}{place}.\n\n{done}\n\nRotate \
         it, and remove it from where it was found.\n"
    );
    mail(
        to,
        "leaked_key",
        "A key of yours was found in public".to_owned(),
        body,
    )
}

/// What is said of a leaked key.
#[derive(Debug)]
pub(crate) struct LeakedKey<'a> {
    pub(crate) name: &'a str,
    pub(crate) hint: &'a str,
    pub(crate) source: &'a str,
    pub(crate) url: &'a str,
    /// What was done, as a sentence.
    pub(crate) done: &'a str,
}

//! English.

use types::Role;

use super::{Done, Letter, NamedKey, Part, Place, Words, grouped, say};

/// Says a letter; `url` is where its link leads.
pub(super) fn words(letter: &Letter<'_>, url: String) -> Words {
    let link = |label| Part::Link { label, url };
    let keys = "Look at the keys";
    let (subject, parts) = match letter {
        Letter::VerifyEmail { .. } => verify_email(link("Confirm the address")),
        Letter::AlreadyKnown => already_known(link("Sign in")),
        Letter::ResetPassword { .. } => reset_password(link("Choose a new password")),
        Letter::PasswordChanged => password_changed(link("Sign in")),
        Letter::SecondFactorRemoved => second_factor_removed(link("Sign in")),
        Letter::Invitation {
            organisation, role, ..
        } => invitation(organisation, *role, link("Accept the invitation")),
        Letter::KeyCreated {
            organisation,
            key,
            by,
        } => key_created(organisation, key, *by, link(keys)),
        Letter::KeyRevoked {
            organisation,
            key,
            by,
            reason,
        } => key_revoked(organisation, key, *by, reason, link(keys)),
        Letter::KeyLeaked {
            organisation,
            key,
            source,
            url,
            done,
        } => key_leaked(organisation, key, (source, url), *done, link(keys)),
        Letter::Anomaly {
            organisation,
            kind,
            summary,
            keys: concerned,
            done,
        } => {
            let seen = (suspicion(kind), *summary);
            anomaly(organisation, seen, concerned, *done, link(keys))
        }
        Letter::LowBalance {
            organisation,
            percent,
            balance,
            reference,
        } => {
            let credits = (*balance, *reference);
            low_balance(organisation, *percent, credits, link("Look at the wallet"))
        }
    };
    Words { subject, parts }
}

type Said = (String, Vec<Part>);

fn verify_email(link: Part) -> Said {
    let parts = vec![
        say("Welcome to Tollgate. Confirm within 24 hours that this is your address:"),
        link,
        say("If you have not signed up, ignore this mail."),
    ];
    ("Confirm your e-mail address".to_owned(), parts)
}

fn already_known(link: Part) -> Said {
    let parts = vec![
        say(
            "Somebody, probably you, signed up at Tollgate with this address. It has an account \
             already: sign in, or choose a new password there if you have forgotten it.",
        ),
        link,
        say("If it was not you, ignore this mail."),
    ];
    ("You have an account already".to_owned(), parts)
}

fn reset_password(link: Part) -> Said {
    let parts = vec![
        say("Choose a new password within one hour. Every session of yours ends with it."),
        link,
        say("If you have not asked for this, ignore this mail."),
    ];
    ("Choose a new password".to_owned(), parts)
}

fn password_changed(link: Part) -> Said {
    let parts = vec![
        say("The password of your account was changed, and every session has ended."),
        say("If it was not you, choose a new one at once:"),
        link,
    ];
    ("Your password was changed".to_owned(), parts)
}

fn second_factor_removed(link: Part) -> Said {
    let parts = vec![
        say(
            "The second factor of your account was removed: signing in needs only the password \
             from now on, and the recovery codes are void.",
        ),
        say(
            "Set a new one up after signing in. If you know nothing of this, choose a new \
             password at once:",
        ),
        link,
    ];
    ("Your second factor was removed".to_owned(), parts)
}

fn invitation(organisation: &str, role: Role, link: Part) -> Said {
    let role = match role {
        Role::Owner => "owner",
        Role::Admin => "admin",
        Role::Developer => "developer",
        Role::Billing => "billing",
    };
    let parts = vec![
        say(format!(
            "You are invited to join {organisation} at Tollgate as {role}. Accept within 7 days, \
             signed in with this address:"
        )),
        link,
        say("If you do not know them, ignore this mail."),
    ];
    (format!("Invitation to {organisation}"), parts)
}

fn key_created(place: &Place<'_>, key: &NamedKey<'_>, by: Option<&str>, link: Part) -> Said {
    let (by, name, key_name) = (by.unwrap_or(OPERATOR), place.name, named(key));
    let parts = vec![
        say(format!(
            "The live key {key_name} of {name} was created by {by}."
        )),
        say("If none of you meant this, revoke it at once:"),
        link,
    ];
    (format!("New key of {name}: {}", key.name), parts)
}

fn key_revoked(
    place: &Place<'_>,
    key: &NamedKey<'_>,
    by: Option<&str>,
    reason: &str,
    link: Part,
) -> Said {
    let (by, name, key_name) = (by.unwrap_or(OPERATOR), place.name, named(key));
    let parts = vec![
        say(format!(
            "The live key {key_name} of {name} was revoked for good by {by}. Calls with it are \
             refused."
        )),
        say(format!("Reason: {reason}")),
        link,
    ];
    (format!("Key of {name} revoked: {}", key.name), parts)
}

fn key_leaked(
    place: &Place<'_>,
    key: &NamedKey<'_>,
    (source, url): (&str, &str),
    done: Done,
    link: Part,
) -> Said {
    let at = match url {
        "" => String::new(),
        url => format!(" at {url}"),
    };
    let (name, key_name) = (place.name, named(key));
    let parts = vec![
        say(format!(
            "The key {key_name} of {name} was reported as leaked by {source}{at}."
        )),
        say(deed(done)),
        say("Replace it, and remove it from where it was found:"),
        link,
    ];
    (
        format!("A key of {name} was found in public: {}", key.name),
        parts,
    )
}

fn anomaly(
    place: &Place<'_>,
    (suspicion, summary): (&str, &str),
    keys: &[NamedKey<'_>],
    done: Done,
    link: Part,
) -> Said {
    let mut parts = vec![
        say(format!("At {}: {suspicion}.", place.name)),
        say(summary),
    ];
    if !keys.is_empty() {
        parts.push(Part::List(keys.iter().map(named).collect()));
        parts.push(say(deed(done)));
    }
    parts.push(say(
        "If all is as it should be, mark the anomaly as resolved:",
    ));
    parts.push(link);
    (format!("Unusual behaviour at {}", place.name), parts)
}

fn low_balance(
    place: &Place<'_>,
    percent: i32,
    (balance, reference): (i64, i64),
    link: Part,
) -> Said {
    let (balance, reference) = (grouped(balance, ','), grouped(reference, ','));
    let name = place.name;
    let parts = vec![
        say(format!(
            "The wallet of {name} has fallen to {balance} credits: less than {percent} % of the \
             {reference} it held after the last top-up."
        )),
        say("Calls are refused once nothing is left."),
        link,
    ];
    (
        format!("{name} has less than {percent} % of its credits left"),
        parts,
    )
}

const OPERATOR: &str = "an operator of the platform";

fn named(key: &NamedKey<'_>) -> String {
    format!("“{}” (…{})", key.name, key.hint)
}

const fn deed(done: Done) -> &'static str {
    match done {
        Done::Nothing => "Nothing was done: it is your organisation's policy to be told only.",
        Done::Throttled => "Calls are throttled until one of you lifts that.",
        Done::Suspended => "Calls are refused until one of you lifts the suspension.",
        Done::Revoked => "Calls are refused: the revocation is final.",
    }
}

fn suspicion(kind: &str) -> &'static str {
    match kind {
        "country_spread" => "a key was used from unusually many countries",
        "key_burst" => "a key is called far more often than it used to be",
        "service_after_silence" => "a key calls a service it has not called for long",
        "wallet_drain" => "credits are being spent unusually fast",
        "key_mass_creation" => "unusually many keys were created",
        "unknown_key_spray" => "many keys that nobody issued were tried from one address",
        _ => "something unusual was seen",
    }
}

//! French. A no-break space stands before `:`, `?`, `%` and inside « ».

use types::Role;

use super::{Done, Letter, NamedKey, Part, Place, Words, grouped, say};

/// Says a letter; `url` is where its link leads.
pub(super) fn words(letter: &Letter<'_>, url: String) -> Words {
    let link = |label| Part::Link { label, url };
    let keys = "Voir les clés";
    let (subject, parts) = match letter {
        Letter::VerifyEmail { .. } => verify_email(link("Confirmer l’adresse")),
        Letter::AlreadyKnown => already_known(link("Se connecter")),
        Letter::ResetPassword { .. } => reset_password(link("Choisir un nouveau mot de passe")),
        Letter::PasswordChanged => password_changed(link("Se connecter")),
        Letter::SecondFactorRemoved => second_factor_removed(link("Se connecter")),
        Letter::Invitation {
            organisation, role, ..
        } => invitation(organisation, *role, link("Accepter l’invitation")),
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
            low_balance(
                organisation,
                *percent,
                credits,
                link("Voir le portefeuille"),
            )
        }
    };
    Words { subject, parts }
}

type Said = (String, Vec<Part>);

fn verify_email(link: Part) -> Said {
    let parts = vec![
        say(
            "Bienvenue chez Tollgate. Confirmez dans les 24\u{a0}heures que cette adresse est la \
             vôtre\u{a0}:",
        ),
        link,
        say("Si vous ne vous êtes pas inscrit, ignorez ce message."),
    ];
    ("Confirmez votre adresse e-mail".to_owned(), parts)
}

fn already_known(link: Part) -> Said {
    let parts = vec![
        say(
            "Quelqu’un, probablement vous, s’est inscrit chez Tollgate avec cette adresse. Elle a \
             déjà un compte\u{a0}: connectez-vous, ou choisissez-y un nouveau mot de passe si vous \
             l’avez oublié.",
        ),
        link,
        say("Si ce n’était pas vous, ignorez ce message."),
    ];
    ("Vous avez déjà un compte".to_owned(), parts)
}

fn reset_password(link: Part) -> Said {
    let parts = vec![
        say("Choisissez un nouveau mot de passe dans l’heure. Toutes vos sessions prendront fin."),
        link,
        say("Si vous n’avez rien demandé, ignorez ce message."),
    ];
    ("Choisissez un nouveau mot de passe".to_owned(), parts)
}

fn password_changed(link: Part) -> Said {
    let parts = vec![
        say("Le mot de passe de votre compte a été changé et toutes vos sessions ont pris fin."),
        say("Si ce n’était pas vous, choisissez-en un nouveau sans attendre\u{a0}:"),
        link,
    ];
    ("Votre mot de passe a été changé".to_owned(), parts)
}

fn second_factor_removed(link: Part) -> Said {
    let parts = vec![
        say(
            "Le second facteur de votre compte a été retiré\u{a0}: le mot de passe suffit désormais \
             pour se connecter, et les codes de secours ne valent plus rien.",
        ),
        say(
            "Installez-en un nouveau après vous être connecté. Si vous n’êtes au courant de rien, \
             changez de mot de passe sans attendre\u{a0}:",
        ),
        link,
    ];
    ("Votre second facteur a été retiré".to_owned(), parts)
}

fn invitation(organisation: &str, role: Role, link: Part) -> Said {
    let role = match role {
        Role::Owner => "propriétaire",
        Role::Admin => "administrateur",
        Role::Developer => "développeur",
        Role::Billing => "facturation",
    };
    let parts = vec![
        say(format!(
            "Vous êtes invité à rejoindre {organisation} chez Tollgate (rôle\u{a0}: {role}). \
             Acceptez dans les 7\u{a0}jours, connecté avec cette adresse\u{a0}:"
        )),
        link,
        say("Si vous ne les connaissez pas, ignorez ce message."),
    ];
    (format!("Invitation à rejoindre {organisation}"), parts)
}

fn key_created(place: &Place<'_>, key: &NamedKey<'_>, by: Option<&str>, link: Part) -> Said {
    let (by, name, key_name) = (by.unwrap_or(OPERATOR), place.name, named(key));
    let parts = vec![
        say(format!(
            "La clé de production {key_name} de l’organisation {name} a été créée par {by}."
        )),
        say("Si personne parmi vous ne l’a voulu, révoquez-la sans attendre\u{a0}:"),
        link,
    ];
    (
        format!("Nouvelle clé chez {name}\u{a0}: {}", key.name),
        parts,
    )
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
            "La clé de production {key_name} de l’organisation {name} a été révoquée définitivement par {by}. Ses \
             appels sont refusés."
        )),
        say(format!("Motif\u{a0}: {reason}")),
        link,
    ];
    (
        format!("Clé révoquée chez {name}\u{a0}: {}", key.name),
        parts,
    )
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
        url => format!(" à l’adresse {url}"),
    };
    let (name, key_name) = (place.name, named(key));
    let parts = vec![
        say(format!(
            "La clé {key_name} de l’organisation {name} a été signalée comme divulguée par {source}{at}."
        )),
        say(deed(done)),
        say("Remplacez-la, et retirez-la de l’endroit où elle a été trouvée\u{a0}:"),
        link,
    ];
    let subject = format!("Clé trouvée en public chez {name}\u{a0}: {}", key.name);
    (subject, parts)
}

fn anomaly(
    place: &Place<'_>,
    (suspicion, summary): (&str, &str),
    keys: &[NamedKey<'_>],
    done: Done,
    link: Part,
) -> Said {
    let mut parts = vec![
        say(format!("Chez {}\u{a0}: {suspicion}.", place.name)),
        say(format!("Relevé du détecteur (en anglais)\u{a0}: {summary}")),
    ];
    if !keys.is_empty() {
        parts.push(Part::List(keys.iter().map(named).collect()));
        parts.push(say(deed(done)));
    }
    parts.push(say(
        "Si tout est normal, marquez l’anomalie comme résolue\u{a0}:",
    ));
    parts.push(link);
    (
        format!("Comportement inhabituel chez {}", place.name),
        parts,
    )
}

fn low_balance(
    place: &Place<'_>,
    percent: i32,
    (balance, reference): (i64, i64),
    link: Part,
) -> Said {
    let (balance, reference) = (grouped(balance, '\u{202f}'), grouped(reference, '\u{202f}'));
    let name = place.name;
    let parts = vec![
        say(format!(
            "Le portefeuille de l’organisation {name} est descendu à {balance} crédits\u{a0}: moins de \
             {percent}\u{a0}% des {reference} qu’il contenait après le dernier achat."
        )),
        say("Les appels seront refusés quand il ne restera rien."),
        link,
    ];
    let subject = format!("Il reste à {name} moins de {percent}\u{a0}% de ses crédits");
    (subject, parts)
}

const OPERATOR: &str = "un opérateur de la plateforme";

fn named(key: &NamedKey<'_>) -> String {
    format!("«\u{a0}{}\u{a0}» (…{})", key.name, key.hint)
}

const fn deed(done: Done) -> &'static str {
    match done {
        Done::Nothing => {
            "Rien n’a été fait\u{a0}: votre organisation a choisi d’être seulement prévenue."
        }
        Done::Throttled => "Les appels sont ralentis jusqu’à ce que l’un de vous lève la mesure.",
        Done::Suspended => {
            "Les appels sont refusés jusqu’à ce que l’un de vous lève la suspension."
        }
        Done::Revoked => "Les appels sont refusés\u{a0}: la révocation est définitive.",
    }
}

fn suspicion(kind: &str) -> &'static str {
    match kind {
        "country_spread" => "une clé a été utilisée depuis un nombre inhabituel de pays",
        "key_burst" => "une clé est appelée bien plus souvent que d’habitude",
        "service_after_silence" => {
            "une clé appelle un service qu’elle n’avait pas appelé depuis longtemps"
        }
        "wallet_drain" => "les crédits sont dépensés inhabituellement vite",
        "key_mass_creation" => "un nombre inhabituel de clés a été créé",
        "unknown_key_spray" => {
            "beaucoup de clés que personne n’a émises ont été essayées depuis une adresse"
        }
        _ => "quelque chose d’inhabituel a été observé",
    }
}

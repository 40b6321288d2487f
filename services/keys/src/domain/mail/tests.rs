use types::Role;

use super::*;

const PORTAL: &str = "https://portal.example";
const ACME: Place<'_> = Place {
    name: "ORGANISATION",
    slug: "the-slug",
};
const KEY: NamedKey<'_> = NamedKey {
    name: "KEYNAME",
    hint: "x7Qa",
};
const OTHER: NamedKey<'_> = NamedKey {
    name: "OTHERNAME",
    hint: "b2Z_",
};

/// Every letter, and what each of its mails must say.
fn letters() -> Vec<(Letter<'static>, Vec<&'static str>)> {
    let key = ["ORGANISATION", "KEYNAME", "x7Qa", "/o/the-slug/keys"];
    let with = |more: &[&'static str]| key.iter().chain(more).copied().collect::<Vec<_>>();
    vec![
        (
            Letter::VerifyEmail { token: "TOKEN" },
            vec!["/verify/TOKEN"],
        ),
        (Letter::AlreadyKnown, vec!["/login"]),
        (
            Letter::ResetPassword { token: "TOKEN" },
            vec!["/reset/TOKEN"],
        ),
        (Letter::PasswordChanged, vec!["/login"]),
        (Letter::SecondFactorRemoved, vec!["/login"]),
        (
            Letter::Invitation {
                token: "TOKEN",
                organisation: "ORGANISATION",
                role: Role::Developer,
            },
            vec!["/invite/TOKEN", "ORGANISATION"],
        ),
        (
            Letter::KeyCreated {
                organisation: ACME,
                key: KEY,
                by: Some("ada@acme.example"),
            },
            with(&["ada@acme.example"]),
        ),
        (
            Letter::KeyRevoked {
                organisation: ACME,
                key: KEY,
                by: None,
                reason: "REASON",
            },
            with(&["REASON"]),
        ),
        (
            Letter::KeyLeaked {
                organisation: ACME,
                key: KEY,
                source: "SOURCE",
                url: "https://paste.example/URL",
                done: Done::Suspended,
            },
            with(&["SOURCE", "https://paste.example/URL"]),
        ),
        (
            Letter::Anomaly {
                organisation: ACME,
                kind: "country_spread",
                summary: "SUMMARY",
                keys: &[KEY, OTHER],
                done: Done::Throttled,
            },
            with(&["SUMMARY", "OTHERNAME", "b2Z_"]),
        ),
        (
            Letter::LowBalance {
                organisation: ACME,
                percent: 20,
                balance: 987,
                reference: 654,
            },
            vec!["ORGANISATION", "20", "987", "654", "/o/the-slug/wallet"],
        ),
    ]
}

fn to(language: Language) -> Reader {
    Reader {
        address: "ada@acme.example".to_owned(),
        language,
    }
}

#[test]
fn every_letter_reads_well_in_both_languages() {
    for (letter, _) in letters() {
        for language in Language::ALL {
            let mail = write(&to(language), PORTAL, &letter);
            let shown = format!("{}\n\n{}\n{}", mail.subject, mail.body, mail.html);
            let name = format!("{}.{}", letter.template(), language.as_str());
            insta::assert_snapshot!(name, shown);
        }
    }
}

#[test]
fn both_languages_and_both_forms_say_the_same_things() {
    for (letter, wanted) in letters() {
        let template = letter.template();
        for language in Language::ALL {
            let mail = write(&to(language), PORTAL, &letter);
            for value in &wanted {
                let (body, html) = (mail.body.contains(value), mail.html.contains(value));
                assert!(body && html, "{template} in {language:?} says no {value}");
            }
        }
    }
}

#[test]
fn no_reader_finds_the_others_language() {
    for (letter, _) in letters() {
        let english = write(&to(Language::English), PORTAL, &letter);
        let french = write(&to(Language::French), PORTAL, &letter);
        assert_ne!(english.subject, french.subject);
        assert!(french.html.contains("<html lang=\"fr\">"));
        for line in english.body.lines().filter(|line| line.ends_with('.')) {
            assert!(!french.body.lines().any(|other| other == line), "{line}");
        }
    }
}

#[test]
fn what_people_name_is_no_markup_and_no_header() {
    let evil = "<script>alert('x')</script>\"&\r\nBcc: all@example.com";
    let place = Place {
        name: evil,
        slug: "s",
    };
    let key = NamedKey {
        name: evil,
        hint: "x7Qa",
    };
    let letters = [
        Letter::Invitation {
            token: "t",
            organisation: evil,
            role: Role::Owner,
        },
        Letter::KeyCreated {
            organisation: place,
            key,
            by: Some(evil),
        },
        Letter::KeyRevoked {
            organisation: place,
            key,
            by: Some(evil),
            reason: evil,
        },
        Letter::KeyLeaked {
            organisation: place,
            key,
            source: evil,
            url: evil,
            done: Done::Revoked,
        },
        Letter::Anomaly {
            organisation: place,
            kind: evil,
            summary: evil,
            keys: &[key],
            done: Done::Nothing,
        },
        Letter::LowBalance {
            organisation: place,
            percent: 10,
            balance: 1,
            reference: 10,
        },
    ];
    for letter in letters {
        for language in Language::ALL {
            let mail = write(&to(language), PORTAL, &letter);
            assert!(!mail.subject.contains(char::is_control), "{mail:?}");
            assert!(
                mail.html.contains("&lt;script&gt;alert(&#39;x&#39;)"),
                "{mail:?}"
            );
            assert!(!mail.html.contains("<script"), "{mail:?}");
        }
    }
}

#[test]
fn credits_are_grouped_by_three() {
    let shown = [0, 999, 1_000, 1_234_567, -12_345].map(|number| grouped(number, ','));
    assert_eq!(shown, ["0", "999", "1,000", "1,234,567", "-12,345"]);
}

//! Passwords, codes, invitations, policies, rotations, the chain of the audit log.

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::json;
use types::{Environment, KeyId, OrgId, Role};
use uuid::Uuid;

use super::{LATER, NOON, catalogue, draft, policy, problem, stored, user};
use crate::{
    domain::{
        audit_chain::{GENESIS, Hash, Head, Problem, Row, Verifier},
        invitation::{self, Invitation, InvitationId},
        key::{Edit, Revoked},
        password,
        policy::{LeakAction, Policy, PolicyWish},
        second_factor, throttle, token,
    },
    error::Error,
};

#[test]
fn a_password_is_known_again_and_another_is_not() {
    let stored = password::Stored::new("correct horse battery", [1; 16]).unwrap();
    assert!(stored.is("correct horse battery").unwrap());
    assert!(!stored.is("correct horse batterz").unwrap());
    let other_salt = password::Stored::new("correct horse battery", [2; 16]).unwrap();
    assert_ne!(stored.bytes(), other_salt.bytes());
    assert!(password::check("password", "short").is_err());
    assert!(password::check("password", &"x".repeat(201)).is_err());
    assert!(password::check("password", "ten chars!").is_ok());
}

#[test]
fn codes_follow_rfc_6238_and_each_step_counts_once() {
    // Appendix B, SHA-1, the last six of eight digits.
    let secret = b"12345678901234567890";
    for (second, code) in [
        (59, "287082"),
        (1_111_111_109, "081804"),
        (20_000_000_000, "353130"),
    ] {
        let now = Timestamp::from_second(second).unwrap();
        let step = second_factor::accepted_step(secret, code, 0, now).unwrap();
        assert_eq!(step, Some(second / 30), "{code}");
        let again = second_factor::accepted_step(secret, code, second / 30, now).unwrap();
        assert_eq!(again, None, "a step is used once");
    }
    let late = Timestamp::from_second(59 + 61).unwrap();
    assert_eq!(
        second_factor::accepted_step(secret, "287082", 0, late).unwrap(),
        None
    );
}

#[test]
fn an_authenticator_is_told_its_secret_twice_over() {
    let (url, text) = second_factor::enrolment(&[7; 20], "ada@example.com").unwrap();
    assert!(
        url.starts_with("otpauth://totp/Tollgate:ada%40example.com?"),
        "{url}"
    );
    assert!(url.contains(&format!("secret={text}")), "{url}");
}

#[test]
fn a_second_factor_counts_for_ten_minutes() {
    let ago = |seconds| NOON.checked_sub(SignedDuration::from_secs(seconds)).ok();
    assert!(second_factor::is_fresh(ago(0), NOON));
    assert!(second_factor::is_fresh(ago(600), NOON));
    assert!(!second_factor::is_fresh(ago(601), NOON));
    assert!(!second_factor::is_fresh(ago(-120), NOON), "from the future");
    assert!(!second_factor::is_fresh(None, NOON));
    let check = |environment, at| policy().check_second_factor(environment, at, NOON);
    assert!(matches!(
        check(Environment::Production, None),
        Err(Error::SecondFactorNeeded)
    ));
    assert!(check(Environment::Production, ago(5)).is_ok());
    assert!(check(Environment::Test, None).is_ok());
}

#[test]
fn a_recovery_code_is_read_as_people_type_it() {
    let code = token::recovery_code(&[0, 1, 31, 255, 7, 8, 9, 10, 11, 12, 13, 14]);
    assert_eq!(code.len(), 14, "{code}");
    let hash = token::recovery_code_hash(&code);
    assert!(hash.is_some());
    assert_eq!(
        token::recovery_code_hash(&code.to_uppercase().replace('-', " ")),
        hash
    );
    assert_eq!(token::recovery_code_hash("123456"), None);
}

#[test]
fn a_token_has_one_hash_and_rubbish_none() {
    let text = token::token(&[9; 32]);
    assert_eq!(text.len(), 43);
    assert!(token::token_hash(&text).is_some());
    assert_eq!(token::token_hash(""), None);
    assert_eq!(token::token_hash(&"x".repeat(65)), None);
}

#[test]
fn counts_of_two_limits_never_meet() {
    let of = "ada@example.com";
    assert_ne!(
        throttle::MAIL.bucket(of),
        throttle::SIGN_IN_EMAIL.bucket(of)
    );
    assert_ne!(
        throttle::MAIL.bucket(of),
        throttle::MAIL.bucket("bob@example.com")
    );
}

fn invited() -> Invitation {
    Invitation {
        id: InvitationId::new(Uuid::from_u128(1)),
        org: OrgId::new(Uuid::from_u128(2)),
        email: "ada@example.com".to_owned(),
        role: Role::Developer,
        invited_by: "operator".to_owned(),
        created_at: NOON,
        expires_at: invitation::end(NOON),
        accepted_by: None,
        is_revoked: false,
    }
}

#[test]
fn an_invitation_is_for_one_address_once_for_seven_days() {
    let open = invited();
    let week = SignedDuration::from_hours(7 * 24);
    let end = NOON.checked_add(week).unwrap();
    let before = end.checked_sub(SignedDuration::from_secs(1)).unwrap();
    assert!(open.check_acceptance("ada@example.com", before).is_ok());
    assert!(matches!(
        open.check_acceptance("eve@example.com", NOON),
        Err(Error::OtherAddress)
    ));
    assert!(open.check_acceptance("ada@example.com", end).is_err());
    assert_eq!((open.status(NOON), open.status(end)), ("open", "expired"));
    let accepted = Invitation {
        accepted_by: Some(user(1)),
        ..invited()
    };
    assert!(accepted.check_acceptance("ada@example.com", NOON).is_err());
    let revoked = Invitation {
        is_revoked: true,
        ..invited()
    };
    assert!(revoked.check_acceptance("ada@example.com", NOON).is_err());
    assert_eq!(
        (accepted.status(end), revoked.status(NOON)),
        ("accepted", "revoked")
    );
}

#[test]
fn a_policy_changes_where_it_is_named() {
    let wish = PolicyWish {
        key_lifetime_seconds_max: Some(86_400),
        leak_action: Some("revoke".to_owned()),
        ..PolicyWish::default()
    };
    let strict = wish.apply(&policy()).unwrap();
    assert_eq!(
        strict,
        Policy {
            key_lifetime_seconds_max: Some(86_400),
            leak_action: LeakAction::Revoke,
            ..policy()
        }
    );
    let lifted = PolicyWish {
        key_lifetime_seconds_max: Some(0),
        ..PolicyWish::default()
    };
    assert_eq!(
        lifted.apply(&strict).unwrap().key_lifetime_seconds_max,
        None
    );
    for bad in [-1, 1, 3599, i64::MAX] {
        let wish = PolicyWish {
            key_lifetime_seconds_max: Some(bad),
            ..PolicyWish::default()
        };
        assert!(wish.apply(&strict).is_err(), "{bad}");
    }
}

#[test]
fn a_key_lives_no_longer_than_the_organisation_allows() {
    let strict = Policy {
        key_lifetime_seconds_max: Some(3600),
        ..policy()
    };
    let endless = draft();
    assert!(problem(endless.check(&catalogue(), &strict, NOON)).contains("`expires_at`"));
    let mut short = draft();
    short.expires_at = Some(LATER);
    assert!(short.check(&catalogue(), &strict, NOON).is_ok());
    short.expires_at = LATER.checked_add(SignedDuration::from_secs(1)).ok();
    assert!(short.check(&catalogue(), &strict, NOON).is_err());
    // A key that is older than the rule may be changed otherwise.
    let rename = Edit {
        name: Some("new".to_owned()),
        ..Edit::default()
    };
    assert!(rename.apply(&stored(), &catalogue(), &strict, NOON).is_ok());
}

#[test]
fn a_rotation_moves_the_limits_and_prolongs_nothing() {
    let mut key = stored();
    key.settings.daily_quota = Some(5);
    key.settings.expires_at = Some(LATER);
    let rotated = key.rotate(86_400, NOON).unwrap();
    assert_eq!(rotated.settings, key.settings);
    assert_eq!(rotated.old_ends_at, LATER, "never beyond its own end");
    assert_eq!(key.rotate(0, NOON).unwrap().old_ends_at, NOON);
    assert!(problem(key.rotate(86_401, NOON)).contains("`overlap_seconds`"));
    assert!(problem(key.rotate(0, LATER)).contains("expired"));
    let mut suspended = key.clone();
    suspended.settings.active = false;
    assert!(problem(suspended.rotate(0, NOON)).contains("suspended"));
    let mut twice = key.clone();
    twice.rotated_to = Some(KeyId::new(Uuid::from_u128(9)));
    assert!(problem(twice.rotate(0, NOON)).contains("already"));
    let longer = Edit {
        daily_quota: Some(0),
        ..Edit::default()
    };
    let refused = longer.apply(&twice, &catalogue(), &policy(), NOON);
    assert!(problem(refused).contains("rotated"));
    let suspend = Edit {
        active: Some(false),
        ..Edit::default()
    };
    assert!(suspend.apply(&twice, &catalogue(), &policy(), NOON).is_ok());
    key.revoked = Some(Revoked {
        at: NOON,
        reason: "leaked".to_owned(),
    });
    assert!(problem(key.rotate(0, NOON)).contains("revoked"));
}

/// A row with its hashes.
type Stored = (i64, String, Hash, Hash);

fn chain(length: i64) -> (Vec<Stored>, Head) {
    let mut rows = Vec::new();
    let mut previous = GENESIS;
    for id in 1..=length {
        let target = format!("key_{id}");
        let hash = row(id, &target).hash(&previous);
        rows.push((id, target, previous, hash));
        previous = hash;
    }
    let head = Head {
        id: length,
        entries: length,
        hash: previous,
    };
    (rows, head)
}

fn row(id: i64, target: &str) -> Row<'_> {
    static NOTHING: serde_json::Value = serde_json::Value::Null;
    Row {
        id,
        org: None,
        actor: "operator",
        action: "key.created",
        target,
        details: &NOTHING,
        at: NOON,
        address: None,
    }
}

fn verify(rows: &[Stored], head: &Head) -> Vec<(i64, Problem)> {
    let mut verifier = Verifier::default();
    for (id, target, previous, hash) in rows {
        verifier.row(&row(*id, target), *previous, *hash);
    }
    verifier.finish(head).1.into_iter().collect()
}

#[test]
fn a_whole_chain_holds_and_its_end_is_known() {
    let (rows, head) = chain(20);
    assert_eq!(verify(&rows, &head), []);
    assert_eq!(verify(&[], &chain(0).1), []);
    assert_eq!(verify(&rows[..19], &head), [(20, Problem::Removed)]);
}

#[test]
fn the_order_of_names_in_details_does_not_matter() {
    let first = json!({ "b": [1, { "z": null, "a": "x" }], "a": true });
    let text = r#"{"a": true, "b": [1, {"a": "x", "z": null}]}"#;
    let second: serde_json::Value = serde_json::from_str(text).unwrap();
    let hash = |details| {
        Row {
            details,
            ..row(1, "x")
        }
        .hash(&GENESIS)
    };
    assert_eq!(hash(&first), hash(&second));
    assert_ne!(hash(&first), hash(&json!({})));
}

#[test]
fn where_somebody_acted_from_is_part_of_the_chain() {
    let from = |address: &str| {
        let address = Some(address.parse().unwrap());
        Row {
            address,
            ..row(1, "x")
        }
        .hash(&GENESIS)
    };
    assert_ne!(from("192.0.2.1"), from("192.0.2.2"));
    assert_ne!(from("192.0.2.1"), row(1, "x").hash(&GENESIS));
    assert_eq!(
        from("2001:db8::1"),
        from("2001:0db8:0::1"),
        "as `inet` gives it back"
    );
}

proptest! {
    #[test]
    fn whatever_is_altered_is_named(length in 1_i64..40, at in 0_usize..40) {
        let (mut rows, head) = chain(length);
        let at = at % rows.len();
        rows[at].1.push('!');
        prop_assert_eq!(verify(&rows, &head), [(rows[at].0, Problem::Altered)]);
    }

    #[test]
    fn whatever_is_removed_is_noticed_by_the_row_behind_it(
        length in 2_i64..40, at in 0_usize..40,
    ) {
        let (mut rows, head) = chain(length);
        let at = at % rows.len();
        let gone = rows.remove(at).0;
        let noticed = if gone == length { length } else { gone + 1 };
        prop_assert_eq!(verify(&rows, &head), [(noticed, Problem::Removed)]);
    }

    #[test]
    fn whatever_is_put_in_is_named(length in 1_i64..40, at in 0_usize..40) {
        let (mut rows, head) = chain(length);
        let at = at % rows.len();
        // Ids have gaps where transactions were undone: a forger finds one, and hashes well.
        let (id, _, _, previous) = rows[at].clone();
        let forged = row(id, "forged").hash(&previous);
        rows.insert(at + 1, (id, "forged".to_owned(), previous, forged));
        let found = verify(&rows, &head);
        prop_assert_eq!(found.len(), 1, "{:?}", &found);
        prop_assert_eq!(found[0].1, Problem::Inserted);
    }
}

#[test]
fn origins_are_a_short_list_or_all() {
    let list = |origins: &[&str]| PolicyWish {
        allowed_origins: Some(origins.iter().map(|it| (*it).to_owned()).collect()),
        ..PolicyWish::default()
    };
    let set = list(&[
        "https://a.example",
        "HTTPS://A.example:443",
        "http://localhost:3000",
    ]);
    let set = set.apply(&policy()).unwrap();
    let texts = ["https://a.example", "http://localhost:3000"];
    assert_eq!(set.origin_texts(), texts, "each once");
    assert_eq!(set.facts()["allowed_origins"], serde_json::json!(texts));
    assert_eq!(
        PolicyWish::default().apply(&set).unwrap(),
        set,
        "unnamed, it stays"
    );
    assert_eq!(list(&[]).apply(&set).unwrap(), policy());
    assert_eq!(list(&["*"]).apply(&set).unwrap().origin_texts(), ["*"]);

    let refused = |wish: PolicyWish| problem(wish.apply(&policy()));
    assert!(refused(list(&["*", "https://a.example"])).contains("alone"));
    assert!(refused(list(&["https://a.example/x"])).contains("scheme://host"));
    let many: Vec<String> = (0..21).map(|n| format!("https://{n}.example")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(refused(list(&many)).contains("at most 20"));
    assert!(list(many.split_last().unwrap().1).apply(&policy()).is_ok());
}

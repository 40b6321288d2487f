use std::collections::BTreeMap;

use jiff::Timestamp;
use proptest::prelude::*;
use runtime::Variables;
use serde_json::json;
use types::{Environment, KeyHash, KeyId, OrgId, Rate, Role, Scope, ServiceName, Slug, UserId};
use uuid::Uuid;

use crate::{
    Config,
    domain::{
        anomaly::Restraints,
        catalogue::{self, RouteWish, ServiceWish},
        changes::{self, CHANGES_MAX, Eviction, evict},
        difference,
        key::{self, ApiKey, Draft, Edit, Revoked, Settings},
        organisation::{Membership, owner_after, slug_candidate, slug_stem},
        policy::{AnomalyAction, LeakAction, Policy},
        rights::{Action, AuditView, Authority, Concerned, permits},
    },
    error::Error,
};

mod anomaly;
mod health_path;
mod notes;
mod people;
mod pepper;

const NOON: Timestamp = Timestamp::constant(1_800_000_000, 0);
const LATER: Timestamp = Timestamp::constant(1_800_003_600, 0);

fn user(n: u128) -> UserId {
    UserId::new(Uuid::from_u128(n))
}

fn catalogue() -> Vec<Scope> {
    ["ai:read", "pdf:read", "pdf:write"]
        .iter()
        .map(|text| text.parse().unwrap())
        .collect()
}

fn draft() -> Draft {
    Draft {
        name: "Production API".to_owned(),
        scopes: vec!["pdf:write".to_owned()],
        ..Draft::default()
    }
}

fn policy() -> Policy {
    Policy {
        live_keys_need_second_factor: true,
        key_lifetime_seconds_max: None,
        developers_may_create_live_keys: false,
        leak_action: LeakAction::Suspend,
        anomaly_action: AnomalyAction::Notify,
        allowed_origins: Vec::new(),
    }
}

fn settings() -> Settings {
    draft().check(&catalogue(), &policy(), NOON).unwrap()
}

fn stored() -> ApiKey {
    ApiKey {
        id: KeyId::new(Uuid::from_u128(1)),
        org: OrgId::new(Uuid::from_u128(2)),
        created_by: user(3),
        hash: KeyHash::from_slice(&[7; 32]).unwrap(),
        previous_hash: None,
        hint: "x7Qa".to_owned(),
        environment: Environment::Production,
        settings: settings(),
        restraints: Restraints::default(),
        revoked: None,
        last_used_at: None,
        last_used_ip: None,
        created_at: NOON,
        version: 1,
        rotated_from: None,
        rotated_to: None,
        limits_key: KeyId::new(Uuid::from_u128(1)),
    }
}

fn problem<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_missing_pepper_is_named_and_a_short_one_refused() {
    let mut variables = Variables::from_pairs([]);
    Config::read(&mut variables);
    let error = variables.finish(&[].into()).unwrap_err();
    assert_eq!(error.0, ["API_KEY_PEPPER environment variable is not set"]);

    let given = [
        ("API_KEY_PEPPER", "short"),
        ("API_KEY_PEPPER_PREVIOUS", "short too"),
    ];
    let given = given.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut variables = Variables::from_pairs(given);
    Config::read(&mut variables);
    let error = variables.finish(&[].into()).unwrap_err();
    assert_eq!(error.0.len(), 2, "{error}");
    assert!(!error.to_string().contains("short"), "{error}");
}

/// Makes an action of the key it concerns.
type OnKey = fn(Concerned) -> Action;

/// The table of the portal's page, row by row. Columns: owner, admin, developer, billing.
fn matrix_of_keys() -> Vec<(Action, &'static str)> {
    use Environment::{Production, Test};
    let key = |environment, own, open| Concerned {
        environment,
        own,
        open,
    };
    let mut matrix = vec![
        (Action::ViewOrganisation, "yyyy"),
        (Action::ViewMembers, "yyyy"),
        (Action::Leave, "yyyy"),
        (Action::ViewKeys, "yyy-"),
        (Action::DeleteKey, "yy--"),
        (Action::RestoreKey, "yy--"),
        (Action::SetPolicy, "yy--"),
        (Action::UpdateOrganisation, "yy--"),
        (Action::ReviewKeys, "yy--"),
        (Action::TransferOwnership, "y---"),
    ];
    // Test keys are made by whose credits they spend; all ways to have a live key are one row.
    let actions: [(OnKey, &str); 4] = [
        (Action::CreateKey, "----"),
        (Action::RotateKey, "----"),
        (Action::RevokeKey, "yy--"),
        (Action::ChangeKey, "yy--"),
    ];
    for (action, others_test_key) in actions {
        for open in [false, true] {
            let own_live_key = if open { "yyy-" } else { "yy--" };
            matrix.push((action(key(Test, true, open)), "yyy-"));
            matrix.push((action(key(Test, false, open)), others_test_key));
            matrix.push((action(key(Production, true, open)), own_live_key));
            matrix.push((action(key(Production, false, open)), "yy--"));
        }
    }
    matrix
}

fn matrix_of_members() -> Vec<(Action, &'static str)> {
    let mut matrix = Vec::new();
    // Invite, remove, change roles: all, up to admin, –, –.
    for role in Role::ALL {
        let row = if role == Role::Owner { "y---" } else { "yy--" };
        matrix.push((Action::Invite { role }, row));
        matrix.push((Action::RemoveMember { role }, row));
        for to in Role::ALL {
            let owner = role == Role::Owner || to == Role::Owner;
            let row = if owner { "y---" } else { "yy--" };
            matrix.push((Action::ChangeRole { from: role, to }, row));
        }
    }
    matrix
}

#[test]
fn the_permission_matrix_holds_for_every_role() {
    let matrix = matrix_of_keys().into_iter().chain(matrix_of_members());
    for (action, row) in matrix {
        for (role, cell) in Role::ALL.into_iter().zip(row.chars()) {
            let expected = cell == 'y';
            assert_eq!(permits(role, action), expected, "{role:?} {action:?}");
            let user = user(1);
            let required = Authority::Member { user, role }.require(action);
            assert_eq!(required.is_ok(), expected, "{role:?} {action:?}");
        }
        assert!(Authority::Operator.require(action).is_ok());
    }
}

#[test]
fn everybody_sees_their_part_of_the_audit_log() {
    let view = |role| {
        Authority::Member {
            user: user(1),
            role,
        }
        .audit_view()
    };
    assert_eq!(view(Role::Owner), AuditView::All);
    assert_eq!(view(Role::Admin), AuditView::All);
    assert_eq!(view(Role::Developer), AuditView::ActionsOf(user(1)));
    assert_eq!(view(Role::Billing), AuditView::Billing);
}

fn refusal(change: impl FnOnce(&mut Draft)) -> String {
    let mut draft = draft();
    change(&mut draft);
    problem(draft.check(&catalogue(), &policy(), NOON))
}

#[test]
fn a_refused_field_says_what_would_be_right() {
    let texts = |text: &str, n| vec![text.to_owned(); n];
    let choice = "choose from ai:read, pdf:read, pdf:write";
    let cases = [
        (
            refusal(|d| d.name.clear()),
            "`name` must be 1–80 characters",
        ),
        (
            refusal(|d| d.scopes.clear()),
            "`scopes` must name at least one: choose from",
        ),
        (refusal(|d| d.scopes = texts("pdf:all", 1)), choice),
        (
            refusal(|d| d.daily_quota = Some(0)),
            "`daily_quota` must be at least 1",
        ),
        (
            refusal(|d| d.monthly_quota = Some(-1)),
            "`monthly_quota` must be at least 1",
        ),
        (
            refusal(|d| d.rate_per_second = Some(0)),
            "`rate_per_second` must be from 1",
        ),
        (refusal(|d| d.burst = Some(5)), "`burst` needs a rate"),
        (
            refusal(|d| d.expires_at = Some(NOON)),
            "`expires_at` must be in the future",
        ),
        (
            refusal(|d| d.allow = texts("10.0.0.0/33", 1)),
            "`allow` has `10.0.0.0/33`",
        ),
        (
            refusal(|d| d.allow = texts("10.0.0.0/8", 65)),
            "`allow` has 65 entries",
        ),
    ];
    for (said, expected) in cases {
        assert!(said.contains(expected), "{said}");
    }
    let nothing = draft().check(&[], &policy(), NOON);
    assert!(problem(nothing).contains("create a service first"));
}

#[test]
fn a_good_wish_becomes_settings() {
    let wish = Draft {
        rate_per_second: Some(10),
        expires_at: Some(LATER),
        scopes: vec!["pdf:write".to_owned(), "pdf:write".to_owned()],
        allow: ["203.0.113.9", "10.1.2.3/8", "10.0.0.0/8", "2001:db8::/32"]
            .map(str::to_owned)
            .into(),
        ..draft()
    };
    let settings = wish.check(&catalogue(), &policy(), NOON).unwrap();
    assert_eq!(
        settings.rate,
        Some(Rate {
            per_second: 10,
            burst: 10
        })
    );
    assert_eq!(settings.scopes.len(), 1);
    let blocks: Vec<_> = settings.allow.iter().map(ToString::to_string).collect();
    assert_eq!(blocks, ["203.0.113.9/32", "10.0.0.0/8", "2001:db8::/32"]);
    assert!(settings.active);
}

#[test]
fn an_absent_field_stays_and_zero_lifts_a_limit() {
    let mut key = stored();
    key.settings.daily_quota = Some(5);
    key.settings.rate = Some(Rate {
        per_second: 10,
        burst: 20,
    });
    let apply = |edit: Edit| edit.apply(&key, &catalogue(), &policy(), NOON);
    assert_eq!(apply(Edit::default()).unwrap(), key.settings);
    assert_eq!(
        apply(Edit {
            daily_quota: Some(0),
            ..Edit::default()
        })
        .unwrap()
        .daily_quota,
        None
    );
    let faster = apply(Edit {
        rate_per_second: Some(30),
        ..Edit::default()
    })
    .unwrap();
    assert_eq!(
        faster.rate,
        Some(Rate {
            per_second: 30,
            burst: 20
        })
    );
    assert_eq!(
        apply(Edit {
            rate_per_second: Some(0),
            ..Edit::default()
        })
        .unwrap()
        .rate,
        None
    );
    let lifted = Edit {
        rate_per_second: Some(0),
        burst: Some(1),
        ..Edit::default()
    };
    assert!(problem(apply(lifted)).contains("`burst` needs a rate"));
    let nowhere = apply(Edit {
        allow: Some(vec![]),
        ..Edit::default()
    })
    .unwrap();
    assert!(nowhere.allow.is_empty());
}

#[test]
fn a_revoked_key_never_changes_again() {
    let revoked = Some(Revoked {
        at: NOON,
        reason: "leaked".to_owned(),
    });
    let key = ApiKey {
        revoked,
        ..stored()
    };
    let restore = Edit {
        active: Some(true),
        ..Edit::default()
    };
    assert!(matches!(
        restore.apply(&key, &catalogue(), &policy(), NOON),
        Err(Error::Conflict(_))
    ));
}

#[test]
fn the_status_is_told_in_the_order_of_the_checks() {
    let mut key = stored();
    assert_eq!(key.status(NOON), "active");
    key.settings.expires_at = Some(NOON);
    assert_eq!(key.status(NOON), "expired");
    key.settings.active = false;
    assert_eq!(key.status(NOON), "suspended");
    key.revoked = Some(Revoked {
        at: NOON,
        reason: "leaked".to_owned(),
    });
    assert_eq!(key.status(NOON), "revoked");
}

#[test]
fn a_revocation_has_a_reason_of_bounded_length() {
    assert_eq!(key::reason("  leaked ").unwrap(), "leaked");
    for bad in ["", "  ", &"x".repeat(201), "a\u{7}b"] {
        assert!(key::reason(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn the_last_owner_cannot_leave_and_a_leaving_owner_is_followed() {
    let member = |n, role| Membership {
        user: user(n),
        role,
    };
    let alone = [member(1, Role::Owner), member(2, Role::Admin)];
    assert!(matches!(
        owner_after(&alone, user(1), user(1)),
        Err(Error::LastOwner)
    ));
    assert_eq!(owner_after(&alone, user(1), user(2)).unwrap(), user(1));
    let two = [
        member(1, Role::Owner),
        member(2, Role::Admin),
        member(3, Role::Owner),
    ];
    assert_eq!(owner_after(&two, user(1), user(1)).unwrap(), user(3));
}

#[test]
fn an_upstream_is_an_absolute_address_without_secrets() {
    let good = [
        ("http://127.0.0.1:9001", "http://127.0.0.1:9001"),
        (
            "https://pdf.internal:8443/v2/",
            "https://pdf.internal:8443/v2",
        ),
    ];
    for (given, kept) in good {
        assert_eq!(catalogue::upstream_url(given).unwrap(), kept);
    }
    let bad = [
        "",
        "/v2",
        "pdf.internal",
        "ftp://x.y",
        "file:///etc/passwd",
        "http://",
        "http://u@h/",
        "http://u:p@h/",
        "http://h/?a=b",
        "http://h/#f",
    ];
    for text in bad {
        assert!(
            problem(catalogue::upstream_url(text)).starts_with("`upstream_url` "),
            "{text}"
        );
    }
}

#[test]
fn a_service_keeps_what_is_not_named() {
    let name: ServiceName = "pdf".parse().unwrap();
    assert!(problem(ServiceWish::default().apply(&name, None)).contains("required"));
    let wish = ServiceWish {
        upstream_url: Some("http://h:1".to_owned()),
        ..ServiceWish::default()
    };
    let new = wish.apply(&name, None).unwrap();
    assert_eq!(
        (new.base_cost, new.active, new.display_name.as_str()),
        (1, true, "pdf")
    );
    assert_eq!(
        ServiceWish::default().apply(&name, Some(&new)).unwrap(),
        new
    );
    let dear = ServiceWish {
        base_cost: Some(1_000_001),
        ..ServiceWish::default()
    };
    assert!(problem(dear.apply(&name, Some(&new))).contains("`base_cost_per_call`"));
}

#[test]
fn a_route_needs_a_scope_of_its_own_service() {
    let name: ServiceName = "pdf".parse().unwrap();
    let wish = |scope: &str| RouteWish {
        scope: scope.to_owned(),
        ..RouteWish::default()
    };
    let (place, route) = wish("pdf:read").check(&name).unwrap();
    assert_eq!(
        (place.method.as_str(), place.path_prefix.as_str()),
        ("*", "/")
    );
    assert_eq!(
        (route.charge_on.as_str(), route.durability.as_str()),
        ("2xx", "process")
    );
    assert_eq!(
        (route.body_bytes_max, route.timeout_ms),
        (10 * 1024 * 1024, 60_000)
    );
    assert!(problem(wish("ai:read").check(&name)).contains("must begin with `pdf:`"));
    for prefix in ["render", "/a//b", "/../b", "/a?b", "/a#b", "/a b", "/é"] {
        let wish = RouteWish {
            path_prefix: prefix.to_owned(),
            ..wish("pdf:read")
        };
        assert!(
            problem(wish.check(&name)).starts_with("`path_prefix` "),
            "{prefix}"
        );
    }
    for method in ["get", "GET POST", "ABCDEFGHIJKLMNOPQ"] {
        let wish = RouteWish {
            method: method.to_owned(),
            ..wish("pdf:read")
        };
        assert!(
            problem(wish.check(&name)).starts_with("`method` "),
            "{method}"
        );
    }
    let rule = RouteWish {
        charge_on: "5xx".to_owned(),
        ..wish("pdf:read")
    };
    assert!(problem(rule.check(&name)).contains("must be one of 2xx, always"));
}

#[test]
fn a_price_changes_with_a_cost_or_a_new_route_only() {
    let name: ServiceName = "pdf".parse().unwrap();
    let wish = RouteWish {
        scope: "pdf:read".to_owned(),
        ..RouteWish::default()
    };
    let (_, free) = RouteWish {
        cost: Some(0),
        ..wish.clone()
    }
    .check(&name)
    .unwrap();
    let (_, slow) = RouteWish {
        cost: Some(0),
        timeout_ms: 9,
        ..wish.clone()
    }
    .check(&name)
    .unwrap();
    let (_, base) = wish.check(&name).unwrap();
    assert!(catalogue::reprices(None, &base));
    assert!(catalogue::reprices(Some(&base), &free));
    assert!(!catalogue::reprices(Some(&free), &slow));
}

#[test]
fn the_audit_log_shows_what_differs() {
    let before = json!({ "name": "a", "active": true, "daily_quota": null });
    let after = json!({ "name": "b", "active": true, "daily_quota": null });
    let expected = json!({ "before": { "name": "a" }, "after": { "name": "b" } });
    assert_eq!(difference(&before, &after), expected);
}

#[test]
fn what_gateways_say_of_themselves_is_checked() {
    assert!(changes::gateway_name("gateway-0").is_ok());
    for bad in ["", "a\nb", &"x".repeat(129)] {
        assert!(changes::gateway_name(bad).is_err(), "{bad:?}");
    }
    assert!(changes::pepper_id("0123abcd").is_ok());
    for bad in ["0123abc", "0123ABCD", "0123abcd0"] {
        assert!(changes::pepper_id(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_gateway_that_lags_or_comes_from_another_history_drops_everything() {
    let hash = KeyHash::from_slice(&[1; 32]).unwrap();
    let many = vec![(hash, 1); CHANGES_MAX + 1];
    assert_eq!(evict(5, 9999, &many), Eviction::All);
    assert_eq!(evict(6, 5, &[]), Eviction::All);
    assert_eq!(evict(0, 9999, &many), Eviction::Keys(vec![]));
    assert_eq!(evict(5, 5, &[]), Eviction::Keys(vec![]));
}

proptest! {
    #[test]
    fn each_changed_hash_is_told_once_with_its_newest_version(
        log in prop::collection::vec((0_u8..20, 1_i64..50), 0..200),
    ) {
        let changed: Vec<_> = log
            .iter()
            .map(|(n, version)| (KeyHash::from_slice(&[*n; 32]).unwrap(), *version))
            .collect();
        let mut expected: BTreeMap<u8, i64> = BTreeMap::new();
        for (n, version) in &log {
            let newest = expected.entry(*n).or_default();
            *newest = (*newest).max(*version);
        }
        let Eviction::Keys(told) = evict(1, 1000, &changed) else {
            panic!("within the bound nothing is reset")
        };
        let told: Vec<_> =
            told.iter().map(|(hash, version)| (hash.bytes()[0], *version)).collect();
        prop_assert_eq!(told, expected.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn any_name_makes_slugs_that_fit(name in "\\PC{0,90}", n in 1_u32..1000) {
        let slug: Slug = slug_candidate(&slug_stem(&name), n).unwrap();
        prop_assert!(!slug.as_str().starts_with('-') && !slug.as_str().ends_with('-'));
    }

    #[test]
    fn what_a_key_may_be_made_with_fits_its_table(
        daily in prop::option::of(any::<i64>()),
        rate in prop::option::of(any::<u32>()),
        burst in prop::option::of(any::<u32>()),
    ) {
        let wish = Draft { daily_quota: daily, rate_per_second: rate, burst, ..draft() };
        if let Ok(settings) = wish.check(&catalogue(), &policy(), NOON) {
            prop_assert!(settings.daily_quota.is_none_or(|calls| calls > 0));
            if let Some(Rate { per_second, burst }) = settings.rate {
                prop_assert!(per_second > 0 && i32::try_from(per_second).is_ok());
                prop_assert!(burst > 0 && i32::try_from(burst).is_ok());
            }
        }
    }

    #[test]
    fn any_address_list_is_read_or_refused(text in "[0-9a-f:./]{0,45}") {
        let wish = Draft { allow: vec![text], ..draft() };
        if let Ok(settings) = wish.check(&catalogue(), &policy(), NOON) {
            let again: Vec<_> = settings.allow.iter().map(ToString::to_string).collect();
            let wish = Draft { allow: again, ..draft() };
            let again = wish.check(&catalogue(), &policy(), NOON).unwrap();
            prop_assert_eq!(again.allow, settings.allow);
        }
    }
}

//! What keys may be made with, and how they change.

use proptest::prelude::*;
use types::Rate;

use super::{LATER, NOON, catalogue, draft, policy, problem, stored};
use crate::{
    domain::key::{self, ApiKey, Draft, Edit, Revoked},
    error::Error,
};

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

proptest! {
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

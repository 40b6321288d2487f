use jiff::SignedDuration;
use proto::events::v1::AnomalyFlagged;
use types::AnomalyId;

use super::*;
use crate::{
    anomalies::{after, read},
    domain::{
        anomaly::{Hold, Outcome, Restraint, THROTTLE_PER_SECOND, by_hand, impose, relieve},
        key::Revoked,
        pace,
        policy::PolicyWish,
    },
};

fn hold(n: u128, restraint: Restraint) -> Hold {
    Hold {
        anomaly: AnomalyId::new(Uuid::from_u128(n)),
        kind: "key_burst".to_owned(),
        restraint,
    }
}

/// The key after these anomalies, one after the other.
fn held(holds: &[Hold]) -> ApiKey {
    let mut key = stored();
    for (n, hold) in holds.iter().enumerate() {
        let outcome = impose(&key, &holds[..n], hold).expect("the key is not left alone");
        key = after(&key, &outcome);
    }
    key
}

fn flagged() -> AnomalyFlagged {
    AnomalyFlagged {
        anomaly_id: AnomalyId::new(Uuid::from_u128(9)).to_string(),
        org_id: OrgId::new(Uuid::from_u128(2)).to_string(),
        key_id: KeyId::new(Uuid::from_u128(5)).to_string(),
        kind: "country_spread".to_owned(),
        summary: "11 countries within an hour".to_owned(),
        key_ids: [5, 4, 5]
            .map(|n| KeyId::new(Uuid::from_u128(n)).to_string())
            .to_vec(),
        at_unix_micros: NOON.as_microsecond(),
    }
}

#[test]
fn an_anomaly_throttles_or_suspends_with_itself_as_the_reason() {
    let throttled = held(&[hold(1, Restraint::Throttle)]);
    assert_eq!(throttled.status(NOON), "throttled");
    let throttle = throttled.restraints.throttle.as_ref().unwrap();
    assert_eq!(throttle.per_second, THROTTLE_PER_SECOND);
    let suspended = held(&[hold(1, Restraint::Suspend)]);
    assert_eq!(suspended.status(NOON), "suspended");
    for key in [throttled, suspended] {
        let reason = key.held_reason().unwrap();
        assert!(
            reason.contains("key_burst") && reason.contains("ano_"),
            "{reason}"
        );
    }
    assert_eq!(Restraint::of(AnomalyAction::Notify), None);
}

#[test]
fn a_key_that_ended_or_that_somebody_suspended_is_left_alone() {
    let revoked = ApiKey {
        revoked: Some(Revoked {
            at: NOON,
            reason: "leaked".to_owned(),
        }),
        ..stored()
    };
    let mut suspended = stored();
    suspended.settings.active = false;
    for restraint in [Restraint::Throttle, Restraint::Suspend] {
        assert_eq!(impose(&revoked, &[], &hold(1, restraint)), None);
        assert_eq!(impose(&suspended, &[], &hold(1, restraint)), None);
        // An anomaly that throttles it does not make the suspension its own.
        let other = [hold(2, Restraint::Throttle)];
        assert_eq!(impose(&suspended, &other, &hold(1, restraint)), None);
    }
}

#[test]
fn a_key_is_free_when_the_last_anomaly_that_holds_it_is_lifted() {
    for restraint in [Restraint::Throttle, Restraint::Suspend] {
        let (first, second) = (hold(1, restraint), hold(2, restraint));
        let key = held(&[first.clone(), second.clone()]);
        let still = after(
            &key,
            &relieve(&key, restraint, std::slice::from_ref(&second)),
        );
        assert_eq!(still.status(NOON), key.status(NOON));
        let reason = still.held_reason().unwrap().to_owned();
        assert!(reason.contains(&second.anomaly.to_string()), "{reason}");
        let free = after(&still, &relieve(&still, restraint, &[]));
        assert_eq!(Outcome::now(&free), Outcome::now(&stored()));
    }
}

#[test]
fn lifting_a_suspension_leaves_the_throttle_of_another_anomaly() {
    let (throttle, suspend) = (hold(1, Restraint::Throttle), hold(2, Restraint::Suspend));
    let key = held(&[throttle.clone(), suspend]);
    assert_eq!(key.status(NOON), "suspended");
    let outcome = relieve(&key, Restraint::Suspend, std::slice::from_ref(&throttle));
    let left = after(&key, &outcome);
    assert_eq!(left.status(NOON), "throttled");
    assert_eq!(left.restraints, held(&[throttle]).restraints);
}

#[test]
fn lifting_an_anomaly_does_not_wake_a_key_that_was_revoked_since() {
    let revoked = ApiKey {
        revoked: Some(Revoked {
            at: NOON,
            reason: "leaked".to_owned(),
        }),
        ..held(&[hold(1, Restraint::Suspend)])
    };
    let outcome = relieve(&revoked, Restraint::Suspend, &[]);
    assert_eq!(outcome, Outcome::now(&revoked));
}

#[test]
fn a_person_restores_from_everything_and_takes_a_suspension_over() {
    let both = [hold(1, Restraint::Throttle), hold(2, Restraint::Suspend)];
    let now = held(&both).restraints;
    assert_eq!(by_hand(&now, Some(true)), Restraints::default());
    let taken = by_hand(&now, Some(false));
    assert_eq!(
        (taken.suspended_reason.as_ref(), &taken.throttle),
        (None, &now.throttle)
    );
    assert_eq!(by_hand(&now, None), now);
}

#[test]
fn an_event_names_each_key_once_in_the_order_of_locks() {
    let anomaly = read(flagged()).unwrap();
    let wanted: Vec<KeyId> = [4, 5].map(|n| KeyId::new(Uuid::from_u128(n))).to_vec();
    assert_eq!((anomaly.keys, anomaly.org.is_some()), (wanted, true));
    let platform = AnomalyFlagged {
        org_id: String::new(),
        key_id: String::new(),
        key_ids: vec![],
        ..flagged()
    };
    let platform = read(platform).unwrap();
    assert_eq!((platform.org, platform.keys.len()), (None, 0));
}

/// Breaks a rule.
type Break = fn(&mut AnomalyFlagged);

#[test]
fn an_event_that_breaks_a_rule_says_which() {
    let breaks: [(&str, Break); 6] = [
        ("anomaly_id", |it| it.anomaly_id = "x".to_owned()),
        ("org_id", |it| it.org_id = "key_1".to_owned()),
        ("key_ids", |it| it.key_ids.push("org_1".to_owned())),
        ("key_ids", |it| {
            let key = |n| KeyId::new(Uuid::from_u128(n)).to_string();
            it.key_ids = (1..=101).map(key).collect();
        }),
        ("kind", |it| it.kind = "Burst!".to_owned()),
        ("summary", |it| it.summary = "line\nbreak".to_owned()),
    ];
    for (field, change) in breaks {
        let mut event = flagged();
        change(&mut event);
        let problem = read(event).unwrap_err();
        assert!(problem.starts_with(field), "{field}: {problem}");
    }
}

#[test]
fn the_policy_for_anomalies_is_one_of_three() {
    for action in ["notify", "throttle", "suspend"] {
        let wish = PolicyWish {
            anomaly_action: Some(action.to_owned()),
            ..PolicyWish::default()
        };
        assert_eq!(
            wish.apply(&policy()).unwrap().facts()["anomaly_action"],
            action
        );
    }
    let wish = PolicyWish {
        anomaly_action: Some("revoke".to_owned()),
        ..PolicyWish::default()
    };
    assert!(problem(wish.apply(&policy())).contains("notify, throttle, suspend"));
}

#[test]
fn a_refused_key_may_be_made_when_the_oldest_that_counts_is_an_hour_old() {
    let ago = |seconds: i64| NOON - SignedDuration::from_millis(seconds * 1000 + 500);
    assert_eq!(
        pace::wait(ago(0), NOON),
        Some(SignedDuration::from_secs(3600))
    );
    assert_eq!(
        pace::wait(ago(3599), NOON),
        Some(SignedDuration::from_secs(1))
    );
    assert_eq!(pace::wait(ago(3600), NOON), None);
    assert_eq!(pace::wait(NOON - SignedDuration::from_hours(1), NOON), None);
}

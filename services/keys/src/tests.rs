//! What the tests share.

use jiff::Timestamp;
use runtime::Variables;
use serde_json::json;
use types::{Environment, KeyHash, KeyId, OrgId, Scope, UserId};
use uuid::Uuid;

use crate::{
    Config,
    domain::{
        anomaly::Restraints,
        difference,
        key::{ApiKey, Draft, Settings},
        policy::{AnomalyAction, LeakAction, Policy},
    },
    error::Error,
};

mod anomaly;
mod catalogue;
mod changes;
mod health_path;
mod key;
mod notes;
mod organisation;
mod people;
mod pepper;
mod rights;

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

#[test]
fn the_audit_log_shows_what_differs() {
    let before = json!({ "name": "a", "active": true, "daily_quota": null });
    let after = json!({ "name": "b", "active": true, "daily_quota": null });
    let expected = json!({ "before": { "name": "a" }, "after": { "name": "b" } });
    assert_eq!(difference(&before, &after), expected);
}

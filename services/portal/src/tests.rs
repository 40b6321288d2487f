//! Tables and small decisions.

use jiff::{SignedDuration, Timestamp};
use tonic::{Code as Grpc, Status};
use types::{Code, Role};

use crate::{
    domain::{
        Action, SESSION_IDLE, cursor, idempotency_key, if_match, is_alive, page_token, permits,
    },
    error::Error,
    http,
};

const NOON: Timestamp = Timestamp::constant(1_800_000_000, 0);

#[test]
fn the_permission_matrix_is_what_the_table_says() {
    let roles = [Role::Owner, Role::Admin, Role::Developer, Role::Billing];
    let table = [
        (Action::ViewCalls, [true, true, true, false]),
        (Action::ViewTotals, [true, true, true, true]),
        (Action::ViewWallet, [true, true, true, true]),
        (Action::ViewAnomalies, [true, true, true, false]),
        (Action::ResolveAnomaly, [true, true, false, false]),
    ];
    for (action, wanted) in table {
        for (role, wanted) in roles.into_iter().zip(wanted) {
            assert_eq!(permits(role, action), wanted, "{role:?} {action:?}");
        }
    }
}

#[test]
fn a_session_ends_by_silence_and_by_age() {
    let (life, moment) = (SignedDuration::from_hours(1), SignedDuration::from_secs(1));
    assert!(is_alive(NOON - SESSION_IDLE + moment, NOON + life, NOON));
    assert!(!is_alive(NOON - SESSION_IDLE, NOON + life, NOON), "idle");
    assert!(is_alive(NOON, NOON + moment, NOON));
    assert!(!is_alive(NOON, NOON, NOON), "too old");
}

#[test]
fn a_cursor_comes_back_as_the_page_it_stands_for() {
    assert_eq!(cursor(""), None, "the last page has no next one");
    assert_eq!(page_token(None).unwrap(), "");
    for token in ["12", "key_0197c0ffee", "2026-11-21T00:00:00Z,7"] {
        let given = cursor(token).unwrap();
        assert_eq!(page_token(Some(&given)).unwrap(), token);
    }
    for wrong in [
        "",
        "12",
        "AA",
        "AQ",
        "Ag==",
        "not a cursor",
        &"A".repeat(500),
    ] {
        let refused = page_token(Some(wrong)).unwrap_err();
        assert!(refused.to_string().starts_with("`cursor`"), "{wrong}");
    }
}

#[test]
fn headers_are_read_strictly() {
    assert_eq!(if_match("\"7\"").unwrap(), 7);
    for wrong in ["7", "*", "W/\"7\"", "\"x\"", "\"", ""] {
        assert!(if_match(wrong).is_err(), "{wrong}");
    }
    assert_eq!(idempotency_key("a-1").unwrap(), "a-1");
    for wrong in ["", "with space", "\u{e9}", &"k".repeat(65)] {
        assert!(idempotency_key(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_service_s_refusal_keeps_its_code_and_what_is_our_fault_is_not_told() {
    let ours = |code: Code| Error::from(proto::convert::status(code, "why")).answer();
    for (code, status) in [
        (Code::Invalid, 400),
        (Code::Unauthenticated, 401),
        (Code::Forbidden, 403),
        (Code::NotFound, 404),
        (Code::Conflict, 409),
        (Code::Exhausted, 429),
    ] {
        let answer = ours(code);
        assert_eq!(
            (answer.status, answer.code.as_str()),
            (status, code.as_str())
        );
        assert_eq!(answer.detail, "why");
    }
    let hidden = ours(Code::Internal);
    assert_eq!(
        (hidden.status, hidden.detail.as_str()),
        (500, "internal error")
    );
    assert_eq!(ours(Code::Exhausted).retry_after, Some(60));
    assert_eq!(ours(Code::Unavailable).retry_after, Some(1));

    // What a client can mend by itself has a code of its own.
    let fact = |code, name, value| {
        Error::from(proto::convert::status_with(code, "why", [(name, value)])).answer()
    };
    let stale = fact(Code::Conflict, "version", "7");
    assert_eq!(
        (stale.status, stale.code.as_str()),
        (412, "precondition_failed")
    );
    let factor = fact(Code::Forbidden, "needs", "second_factor");
    assert_eq!(
        (factor.status, factor.code.as_str()),
        (403, "second_factor_required")
    );
    assert!(factor.detail.contains("/v1/second-factor"), "{factor:?}");

    // What has no reason of ours comes from below: a channel that broke, a token that is wrong.
    let below = |code| Error::from(Status::new(code, "secret")).answer();
    for (code, status) in [
        (Grpc::Unknown, 503),
        (Grpc::DeadlineExceeded, 504),
        (Grpc::Unauthenticated, 500),
        (Grpc::PermissionDenied, 500),
        (Grpc::Unimplemented, 500),
    ] {
        let answer = below(code);
        assert_eq!(answer.status, status, "{code:?}");
        assert!(!answer.detail.contains("secret"), "{code:?}");
    }
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "a switch of the test, not of the product"
)]
fn the_committed_document_is_what_the_routes_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
    let text = http::text(&http::document());
    if std::env::vars().any(|(name, value)| name == "UPDATE" && value == "1") {
        std::fs::write(path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == text, "openapi.json is old: run with UPDATE=1");
}

#[test]
fn every_operation_documents_its_refusals() {
    let document = serde_json::to_value(http::document()).unwrap();
    let mut operations = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            operations += 1;
            let responses = operation["responses"].as_object().unwrap();
            let is_open = operation["security"].as_array().is_some_and(Vec::is_empty);
            let mut wanted = vec!["400", "403", "429", "500", "503", "504"];
            wanted.extend((!is_open).then_some("401"));
            wanted.extend(path.contains('{').then_some("404"));
            for status in wanted {
                assert!(responses.contains_key(status), "{method} {path}: {status}");
            }
        }
    }
    assert!(operations >= 60, "{operations} operations");
}

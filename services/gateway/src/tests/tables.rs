//! Decisions, one line a case.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a test that is wrong about its own data may panic"
)]

use std::net::IpAddr;

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body_util::BodyExt as _;
use proptest::prelude::*;
use proto::{
    events::v1::{Call, Disposition, Permit, Record, RecordKind, Unit},
    keys::v1 as wire,
};
use secrecy::SecretString;
use sha2::Sha256;
use types::{Environment, NewKey, Refusal, RequestId, UNIT_NAME_BYTES_MAX};
use uuid::Uuid;

use crate::{
    catalogue::{Catalogue, Durability, Route},
    charge::{ChargeOn, Reached},
    credential, domain, headers,
    journal::RECORD_BYTES_MAX,
    keyring::tests::entry,
    principal::Signer,
    record::{self, ENDPOINT_BYTES_MAX, METHOD_BYTES_MAX},
    refuse::Refused,
    units::{UNITS_MAX, Units},
};

fn header_map(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let name: HeaderName = name.parse().expect("a name");
        headers.append(name, HeaderValue::try_from(*value).expect("a value"));
    }
    headers
}

/// Headers and query, and what becomes of them.
type Presented<'a> = (
    &'a [(&'a str, &'a str)],
    Option<&'a str>,
    Result<(), Refusal>,
);

#[test]
fn exactly_one_credential_is_taken() {
    let new = NewKey::from_random(Environment::Production, &[7; 28]);
    let key = new.reveal();
    let bearer = format!("Bearer {key}");
    let (lower, wide) = (format!("bearer {key}"), format!("Bearer   {key} "));
    let (basic, glued) = (format!("Basic {key}"), format!("Bearer{key}"));
    let cut = key.get(..50).expect("51 characters");
    let in_query = format!("a=b&key={key}");
    let anywhere = format!("token={key}");
    let cases: &[Presented<'_>] = &[
        (&[("authorization", &bearer)], None, Ok(())),
        (&[("authorization", &lower)], None, Ok(())),
        (&[("authorization", &wide)], None, Ok(())),
        (&[("x-api-key", key)], None, Ok(())),
        (
            &[("x-api-key", key)],
            Some("key=value&api_key=other"),
            Ok(()),
        ),
        (&[], None, Err(Refusal::MissingKey)),
        (&[("authorization", &basic)], None, Err(Refusal::MissingKey)),
        (&[("authorization", &glued)], None, Err(Refusal::MissingKey)),
        (
            &[("authorization", "Bearer ")],
            None,
            Err(Refusal::InvalidKey),
        ),
        (&[("x-api-key", cut)], None, Err(Refusal::InvalidKey)),
        (&[("x-api-key", "")], None, Err(Refusal::InvalidKey)),
        (
            &[("x-api-key", "sk_live_ü")],
            None,
            Err(Refusal::InvalidKey),
        ),
        (
            &[("authorization", &bearer), ("x-api-key", key)],
            None,
            Err(Refusal::AmbiguousCredentials),
        ),
        (
            &[("authorization", &bearer), ("authorization", &bearer)],
            None,
            Err(Refusal::AmbiguousCredentials),
        ),
        (
            &[("x-api-key", key), ("x-api-key", key)],
            None,
            Err(Refusal::AmbiguousCredentials),
        ),
        (&[], Some(&in_query), Err(Refusal::AmbiguousCredentials)),
        (
            &[("x-api-key", key)],
            Some(&anywhere),
            Err(Refusal::AmbiguousCredentials),
        ),
        (
            &[],
            Some("api_key=sk_other"),
            Err(Refusal::AmbiguousCredentials),
        ),
        (&[], Some("other=sk_other"), Err(Refusal::MissingKey)),
    ];
    for (pairs, query, expected) in cases {
        let found = credential::find(&header_map(pairs), *query).map(drop);
        assert_eq!(found, *expected, "{pairs:?} {query:?}");
    }
}

#[test]
fn a_body_comes_plain_or_chunked() {
    for (codings, plain) in [
        (&[][..], true),
        (&["chunked"][..], true),
        (&["Chunked"][..], true),
        (&["gzip, chunked"][..], false),
        (&["chunked, chunked"][..], false),
        (&["chunked", "chunked"][..], false),
        (&["identity"][..], false),
        (&[""][..], false),
    ] {
        let pairs: Vec<_> = codings.iter().map(|c| ("transfer-encoding", *c)).collect();
        let is_plain = headers::is_framed_plainly(&header_map(&pairs));
        assert_eq!(is_plain, plain, "{codings:?}");
    }
}

fn wire_route(method: &str, prefix: &str, scope: &str) -> wire::Route {
    wire::Route {
        method: method.to_owned(),
        path_prefix: prefix.to_owned(),
        scope: scope.to_owned(),
        body_bytes_max: 10,
        timeout_ms: 1_000,
        ..wire::Route::default()
    }
}

fn catalogue(routes: Vec<wire::Route>) -> Catalogue {
    let service = |name: &str, url: &str, routes: Vec<wire::Route>| wire::Service {
        service_id: format!("svc_{}", Uuid::from_u128(9).simple()),
        name: name.to_owned(),
        upstream_url: url.to_owned(),
        base_cost_per_call: 3,
        active: true,
        routes,
        ..wire::Service::default()
    };
    let negative = wire::Route {
        cost: Some(-1),
        ..wire_route("*", "/", "s")
    };
    Catalogue::from_wire(wire::Catalogue {
        version: 1,
        services: vec![
            service("good", "https://[::1]:8443/base/", routes),
            service("scheme", "ftp://host/", vec![]),
            service("url", "nonsense", vec![]),
            service("cost", "http://host/", vec![negative]),
        ],
    })
}

#[test]
fn a_service_without_a_health_path_is_not_asked_for_one() {
    let upstream = |path: &str| {
        let catalogue = Catalogue::from_wire(wire::Catalogue {
            version: 1,
            services: vec![wire::Service {
                service_id: format!("svc_{}", Uuid::from_u128(9).simple()),
                name: "good".to_owned(),
                upstream_url: "http://host/base".to_owned(),
                health_path: path.to_owned(),
                ..wire::Service::default()
            }],
        });
        let service = catalogue.service("good").expect("it makes sense");
        service.upstream.clone()
    };
    assert_eq!(upstream("").health_path, None);
    let asked = upstream("/healthz?deep=1");
    assert_eq!(asked.health_path.as_deref(), Some("/healthz?deep=1"));
    assert_ne!(asked, upstream(""), "a pool of its own");
}

#[test]
fn the_longest_prefix_wins_and_a_method_before_any() {
    let catalogue = catalogue(vec![
        wire_route("*", "/", "any"),
        wire_route("*", "/a/", "a-any"),
        wire_route("POST", "/a", "a-post"),
        wire_route("*", "/a/b", "b-any"),
        wire_route("GET", "/a/b/c", "c-get"),
    ]);
    let service = catalogue.service("good").expect("it makes sense");
    for (method, path, scope) in [
        (Method::GET, "", "any"),
        (Method::GET, "/", "any"),
        (Method::GET, "/ab", "any"),
        (Method::GET, "/a", "a-any"),
        (Method::GET, "/a/", "a-any"),
        (Method::POST, "/a", "a-post"),
        (Method::POST, "/a/x", "a-post"),
        (Method::POST, "/a/b", "b-any"),
        (Method::POST, "/a/b/c", "b-any"),
        (Method::GET, "/a/b/c/d", "c-get"),
        (Method::GET, "/a/b/cd", "b-any"),
        (Method::GET, "/A/b", "any"),
    ] {
        let found = service
            .route(&method, path)
            .map(|route| route.scope.as_str());
        assert_eq!(found, Some(scope), "{method} {path}");
    }
    assert_eq!(service.upstream.host, "::1");
    assert_eq!(service.authority, "[::1]:8443");
    assert_eq!(service.base_path, "/base");
    let route = service.route(&Method::GET, "/").expect("there is one");
    assert_eq!(
        (route.terms.cost, route.durability),
        (3, Durability::Process)
    );
    assert_eq!(route.terms.charge_on, ChargeOn::Success);
    for left_out in ["scheme", "url", "cost"] {
        assert!(catalogue.service(left_out).is_none(), "{left_out}");
    }
}

#[test]
fn a_route_claims_only_its_method() {
    let catalogue = catalogue(vec![wire_route("POST", "/render", "w")]);
    let service = catalogue.service("good").expect("it makes sense");
    assert!(service.route(&Method::GET, "/render").is_none());
    assert!(service.route(&Method::POST, "/other").is_none());
    assert!(service.route(&Method::POST, "/render/x").is_some());
}

#[test]
fn charges_follow_the_status() {
    let always = wire::Route {
        charge_on: "always".to_owned(),
        cost: Some(7),
        ..wire_route("*", "/always", "s")
    };
    let catalogue = catalogue(vec![wire_route("*", "/", "s"), always]);
    let service = catalogue.service("good").expect("it makes sense");
    let charge = |path: &str, status| {
        let route: Option<&Route> = service.route(&Method::GET, path);
        let terms = &route.expect("there is one").terms;
        let reached = Reached::Answer(status);
        let charge = terms.charge(Disposition::Completed, reached, &Units::default(), 0);
        charge.cost
    };
    for (status, success) in [(199, 0), (200, 3), (299, 3), (300, 0), (404, 0), (500, 0)] {
        assert_eq!(charge("/", status), success, "{status}");
        assert_eq!(charge("/always", status), 7, "{status}");
    }
}

/// Everything is wrong at first; each line mends the first thing that was named.
#[test]
fn refusals_come_in_the_published_order() {
    let catalogue = catalogue(vec![wire_route("*", "/", "pdf:write")]);
    let service = catalogue.service("good").expect("it makes sense");
    let route = service.route(&Method::GET, "/").expect("there is one");
    let client: IpAddr = "192.0.2.1".parse().expect("an address");
    let mut entry = entry(&["pdf:read"]);
    entry.revoked = true;
    entry.expires_at = Some(100);
    entry.active = false;
    entry.allow = vec!["10.0.0.0/8".parse().expect("a network")];
    let judged = |entry: &_| domain::judge(entry, route, client, 100);
    assert_eq!(judged(&entry), Err(Refusal::KeyRevoked));
    entry.revoked = false;
    assert_eq!(
        judged(&entry),
        Err(Refusal::KeyExpired),
        "at the very moment"
    );
    entry.expires_at = Some(101);
    assert_eq!(judged(&entry), Err(Refusal::KeySuspended));
    assert_eq!(domain::judge_key(&entry, 100), Err(Refusal::KeySuspended));
    entry.active = true;
    assert_eq!(judged(&entry), Err(Refusal::IpNotAllowed));
    assert_eq!(domain::judge_key(&entry, 100), Ok(()));
    entry.allow.push("192.0.2.1/32".parse().expect("a network"));
    assert_eq!(judged(&entry), Err(Refusal::InsufficientScope));
    entry.scopes = self::entry(&["pdf:read", "pdf:write"]).scopes;
    assert_eq!(judged(&entry), Ok(()));
}

#[test]
fn every_refusal_is_a_problem_document() {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.expect("a runtime");
    for refusal in Refusal::ALL {
        let id = RequestId::new(Uuid::from_u128(5));
        let response = Refused::from(*refusal).into_response(id);
        assert_eq!(response.status().as_u16(), refusal.status());
        let headers = response.headers().clone();
        let body = runtime.block_on(response.into_body().collect());
        let body = body.expect("it is complete").to_bytes();
        let document: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        let members = document.as_object().expect("an object");
        let mut names: Vec<&str> = members.keys().map(String::as_str).collect();
        names.sort_unstable();
        let expected = [
            "code",
            "detail",
            "error",
            "request_id",
            "status",
            "title",
            "type",
        ];
        assert_eq!(names, expected, "{refusal}");
        assert_eq!(members["error"]["code"], members["code"]);
        assert_eq!(members["error"]["message"], members["detail"]);
        assert_eq!(members["code"], refusal.as_str());
        assert_eq!(members["status"], refusal.status());
        assert_eq!(members["title"], refusal.title());
        assert_eq!(members["request_id"], id.to_string());
        let detail = members["detail"].as_str().expect("text");
        assert!(detail.ends_with('.'), "{refusal}: {detail}");
        assert_eq!(headers["content-type"], "application/problem+json");
        let challenged = headers.get("www-authenticate").is_some();
        assert_eq!(challenged, refusal.status() == 401, "{refusal}");
        let retried = headers.get("retry-after").is_some();
        assert_eq!(retried, refusal.status() == 503, "{refusal}");
    }
}

#[test]
fn a_principal_can_be_verified() {
    let secret = "a secret that both sides know....";
    let signer = Signer::new(&SecretString::from(secret)).expect("a key");
    let pdf = entry(&["pdf:read", "pdf:write"]);
    let none = entry(&[]);
    // What a key's principals begin with is hashed once: the second one is right as well.
    for (entry, scopes, number) in [
        (&pdf, "pdf:read pdf:write", 5),
        (&none, "", 6),
        (&pdf, "pdf:read pdf:write", 7),
    ] {
        let request = RequestId::new(Uuid::from_u128(number));
        // Behind something else, which is not signed.
        let mut text = b"before".to_vec();
        signer.write(&mut text, entry, &request.to_ascii::<36>(), 1_700_000_000);
        let text = String::from_utf8(text).expect("a text");
        let text = text.strip_prefix("before").expect("it stays");
        let (signed, signature) = text.split_once("; sig=").expect("a signature");
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key");
        mac.update(signed.as_bytes());
        let signature = hex::decode(signature).expect("hex");
        mac.verify_slice(&signature).expect("it is right");
        let expected = format!(
            "v=1; org={}; key={}; env=production; scopes=\"{scopes}\"; req={request}; \
             t=1700000000",
            entry.org, entry.key
        );
        assert_eq!(signed, expected);
    }
}

/// The longest of everything that has a limit.
fn longest() -> Record {
    let call = Call {
        request_id: vec![0xff; 16],
        org_id: vec![0xff; 16],
        api_key_id: vec![0xff; 16],
        user_id: vec![0xff; 16],
        service_id: vec![0xff; 16],
        service: "s".repeat(64),
        test: true,
        endpoint: record::cut(&"é".repeat(5_000), ENDPOINT_BYTES_MAX).to_owned(),
        method: record::cut(&"M".repeat(5_000), METHOD_BYTES_MAX).to_owned(),
        status: u32::MAX,
        duration_micros: u64::MAX,
        upstream_micros: u64::MAX,
        ip: vec![0xff; 16],
        country: "ZZ".to_owned(),
        user_agent: record::cut(&"u".repeat(5_000), record::USER_AGENT_BYTES_MAX).to_owned(),
        disposition: Disposition::UpstreamFailed.into(),
        code: "idempotency_answer_not_kept".to_owned(),
        traceparent: "0".repeat(55),
        price_version: i64::MIN,
        units: vec![
            Unit {
                name: "n".repeat(UNIT_NAME_BYTES_MAX),
                count: u64::MAX,
            };
            UNITS_MAX
        ],
        request_bytes: u64::MAX,
        response_bytes: u64::MAX,
        overrun: i64::MIN,
        estimated: true,
        idempotency_key_sha256: vec![0xff; 32],
        idempotency_head_sha256: vec![0xff; 32],
        replay_of: vec![0xff; 16],
    };
    Record {
        seq: u64::MAX,
        kind: RecordKind::Call.into(),
        at_unix_micros: i64::MIN,
        lease_id: vec![0xff; 16],
        cost: i64::MIN,
        cum: i64::MIN,
        granted: i64::MIN,
        held: i64::MIN,
        call: Some(call),
        permits: vec![
            Permit {
                lease_id: vec![0xff; 16],
                cum: i64::MIN,
            };
            2
        ],
        due: i64::MIN,
        account: None,
    }
}

#[test]
fn the_longest_record_fits() {
    let mut slot = vec![0; RECORD_BYTES_MAX];
    let length = record::encode(&longest(), &mut slot);
    assert!(length <= RECORD_BYTES_MAX, "{length}");
    assert!(
        Refusal::ALL
            .iter()
            .all(|refusal| refusal.as_str().len() <= 27)
    );
}

proptest! {
    #[test]
    fn a_cut_text_is_the_longest_beginning_that_fits(text in ".{0,40}", bytes_max in 0..60_usize) {
        let cut = record::cut(&text, bytes_max);
        prop_assert!(text.starts_with(cut) && cut.len() <= bytes_max);
        let next = text.chars().nth(cut.chars().count());
        prop_assert!(next.is_none_or(|next| cut.len() + next.len_utf8() > bytes_max));
    }
}

//! Services, routes and what they cost.

use types::ServiceName;

use super::problem;
use crate::domain::catalogue::{self, RouteWish, ServiceWish};

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

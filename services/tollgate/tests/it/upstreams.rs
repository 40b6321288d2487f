//! Upstreams from outside: where they may be, and what they may speak.

mod dying;
mod grpc;

use http::Method;
use serde_json::json;
use testkit::{
    eventually,
    load::{Connection, Shot},
};

use crate::{
    client::{Client, refused},
    stack::{DISTANCE, SETTLE_LIMIT, Stack},
};

/// What nobody on the internet could call, in the spellings that URLs allow.
const INTERNAL: [&str; 12] = [
    "http://169.254.169.254/latest/meta-data",
    "http://2852039166/",
    "http://0xa9.254.169.254/",
    "http://0251.0376.0251.0376/",
    "http://[::ffff:169.254.169.254]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[2002:a9fe:a9fe::1]/",
    "http://[fd00:ec2::254]/",
    "https://10.0.0.1:8443/",
    "http://100.100.100.200/",
    "http://192.168.1.1/",
    "http://0.0.0.0:9090/",
];

/// What a line of a gateway's metrics counts.
async fn counted(stack: &Stack, line: &str) -> Option<u64> {
    let ops = stack.info()["ops"]["gateway"].as_str()?.to_owned();
    let shot = Shot::get("/metrics");
    let answer = Connection::to(&ops).call("", &shot).await.ok()?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let found = text.lines().find_map(|it| it.strip_prefix(line))?;
    found.trim().parse().ok()
}

/// One path by every way that it is set and shown: CLI, portal, `keys`.
#[tokio::test]
async fn a_health_path_is_shown_as_it_was_set_until_it_is_switched_off() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let mut operator = Client::new(&stack, &stack.demo("operator_token"));
    let place = "/v1/operator/services/pdf";
    let is = async |operator: &mut Client, path: &str| {
        let listed = stack.cli(&["service", "list"]);
        let services = listed["services"].as_array().expect("a list");
        let pdf = services.iter().find(|it| it["name"] == "pdf");
        assert_eq!(pdf.expect("it is there")["health_path"], path, "{listed}");
        assert_eq!(operator.get(place).await["health_path"], path);
    };
    is(&mut operator, "").await;

    let path = "/healthz?deep=1";
    let set = stack.cli(&["service", "set", "pdf", "--health-path", path]);
    assert_eq!(set["health_path"], path, "{set}");
    stack.cli(&["service", "set", "pdf", "--description", "Another"]);
    is(&mut operator, path).await;

    let wish = json!({ "health_path": "/ready" });
    let set = operator.ok(Method::PUT, place, &wish).await;
    assert_eq!(set["health_path"], "/ready", "{set}");
    let (code, _, errors) = stack.try_cli(&["service", "set", "pdf", "--health-path", "ready"]);
    assert_ne!(code, Some(0), "it is saved");
    assert!(
        errors.contains("`health_path` must begin with `/`"),
        "{errors}"
    );
    let bad = json!({ "health_path": "/a b" });
    let (status, code) = refused(&mut operator, Method::PUT, place, bad).await;
    assert_eq!((status, code.as_str()), (400, "invalid"));
    is(&mut operator, "/ready").await;

    stack.cli(&["service", "set", "pdf", "--health-path", ""]);
    is(&mut operator, "").await;
}

/// A service cannot be saved where only our own machines are; and where one is all the same, be it
/// that its name has been given another address since, no gateway connects.
#[tokio::test]
async fn no_call_is_sent_where_only_our_own_machines_are() {
    let dir = tempfile::tempdir().expect("a folder");
    let seen = dir.path().join("upstream.jsonl");
    let said = seen.to_str().expect("a name");
    // `keys` may save what is on loopback, the gateways must not go there.
    let networks = [("TOLLGATE_GATEWAY_UPSTREAM_NETWORKS", "10.99.0.0/16")];
    let stack = Stack::start_with(&["--ephemeral", "--transcript", said], &networks).await;

    for url in INTERNAL {
        let set = ["service", "set", "inside", "--upstream", url];
        let (code, _, errors) = stack.try_cli(&set);
        assert_ne!(code, Some(0), "{url} is saved");
        assert!(errors.contains("`upstream_url`"), "{url}: {errors}");
        assert!(errors.contains("UPSTREAM_NETWORKS"), "{url}: {errors}");
    }
    let mut operator = Client::new(&stack, &stack.demo("operator_token"));
    let wish = json!({ "upstream_url": "http://169.254.169.254" });
    let place = "/v1/operator/services/pdf";
    let (status, code) = refused(&mut operator, Method::PUT, place, wish).await;
    assert_eq!((status, code.as_str()), (400, "invalid"));

    let key = stack.demo("live_key");
    for _ in 0..3 {
        let answer = stack.call(&key, &Shot::get(DISTANCE)).await;
        assert_eq!(answer.status.as_u16(), 502, "{answer:?}");
        assert_eq!(answer.json()["code"], "upstream_unreachable", "{answer:?}");
    }
    // A name is judged by what it stands for when somebody connects.
    let port = operator.get("/v1/operator/services/mileage").await["upstream_url"]
        .as_str()
        .and_then(|url| url.rsplit_once(':'))
        .map(|(_, port)| port.to_owned())
        .expect("a port");
    let named = format!("http://localhost:{port}");
    stack.cli(&["service", "set", "mileage", "--upstream", &named]);
    let answer = stack.call(&key, &Shot::get(DISTANCE)).await;
    assert_eq!(answer.status.as_u16(), 502, "{answer:?}");

    let line = "tollgate_upstream_connects_total{result=\"forbidden\"}";
    let told = eventually(
        SETTLE_LIMIT,
        "the refusals are counted",
        async || match counted(&stack, line).await {
            Some(count) if count > 0 => Ok(()),
            found => Err(format!("{found:?}")),
        },
    );
    told.await.expect("counted");
    let asked = std::fs::read_to_string(&seen).expect("readable");
    assert!(asked.contains("/health"), "by `dev`");
    assert!(
        !asked.contains("/distance"),
        "the sample was asked: {asked}"
    );
    let report = stack.audit();
    assert_eq!(report["differences"], 0, "{report:#}");
}

//! What is done again and again, and where its effects are seen.

use http::Method;
use proto::{
    anomaly_detector::v1::anomaly_detector_service_client::AnomalyDetectorServiceClient,
    channel::Channel,
};
use secrecy::SecretString;
use serde_json::Value;
use sqlx::AssertSqlSafe;
use testkit::{
    eventually,
    load::{Answer, Connection, Shot},
};
use types::KeyId;
use uuid::Uuid;

use super::DISTANCE;
use crate::stack::{SETTLE_LIMIT, Stack};

/// So many calls with a key, as fast as may be, over all gateways; how many were answered 200.
pub(super) async fn calls(stack: &Stack, key: &str, calls: usize) -> usize {
    const WORKERS: usize = 8;
    let gateways = stack.gateways();
    let mut running = tokio::task::JoinSet::new();
    for worker in 0..WORKERS {
        let base = gateways[worker % gateways.len()].clone();
        let (key, share) = (key.to_owned(), (worker..calls).step_by(WORKERS).count());
        running.spawn(async move {
            let mut connection = Connection::to(&base);
            let mut paid = 0;
            for _ in 0..share {
                let answer = connection.call(&key, &Shot::get(DISTANCE)).await;
                paid += usize::from(answer.expect("an answer").status == 200);
            }
            paid
        });
    }
    let mut paid = 0;
    while let Some(share) = running.join_next().await {
        paid += share.expect("no panic");
    }
    paid
}

/// The anomalies of a list of the CLI.
pub(super) fn listed(stack: &Stack, more: &[&str]) -> Vec<Value> {
    let list = stack.cli(&[&["anomaly", "list"], more].concat());
    let list = list.get("anomalies").unwrap_or(&list);
    list.as_array().expect("a list").clone()
}

pub(super) fn of_kind(stack: &Stack, org: &str, kind: &str) -> Vec<Value> {
    let all = listed(stack, &["--org", org, "--state", "all"]).into_iter();
    all.filter(|it| it["kind"] == kind).collect()
}

/// Waits until an organisation has exactly this one anomaly of a kind.
pub(super) async fn one(stack: &Stack, org: &str, kind: &str) -> Value {
    let found = eventually(SETTLE_LIMIT, "the rule flags", async || {
        match of_kind(stack, org, kind).as_slice() {
            [one] => Ok(one.clone()),
            all => Err(format!("{kind}: {all:?}")),
        }
    });
    found.await.expect("flagged")
}

pub(super) fn sprays(stack: &Stack) -> Vec<Value> {
    let all = listed(stack, &["--state", "all"]).into_iter();
    all.filter(|it| it["kind"] == "unknown_key_spray").collect()
}

pub(super) fn uuid(key: &str) -> Uuid {
    key.parse::<KeyId>().expect("a key's id").uuid()
}

pub(super) async fn execute(stack: &Stack, sql: &str) {
    let done = sqlx::query(AssertSqlSafe(sql.to_owned()))
        .execute(stack.pool())
        .await
        .expect("executed");
    assert!(done.rows_affected() > 0, "{sql} changes something");
}

/// Whether the detector may write down new keys.
pub(super) async fn may_write(stack: &Stack, yes: bool) {
    let sql = match yes {
        true => "grant insert on anomaly_detector.created_keys to tollgate_anomaly_detector",
        false => "revoke insert on anomaly_detector.created_keys from tollgate_anomaly_detector",
    };
    let done = sqlx::query(sql).execute(stack.pool()).await;
    done.expect("executed");
}

pub(super) async fn noted(stack: &Stack, calls: i64) {
    let noted = eventually(SETTLE_LIMIT, "the sighting is noted", async || {
        let sum = stack
            .count("select coalesce(sum(calls), 0)::int8 from anomaly_detector.sprays")
            .await;
        (sum == calls)
            .then_some(())
            .ok_or_else(|| format!("{sum} calls"))
    });
    noted.await.expect("noted");
}

/// A call of the API by an operator.
pub(super) async fn api(stack: &Stack, method: Method, path: &str) -> Answer {
    let mut shot = Shot::get(path);
    shot.method = method;
    let base = stack.info()["api"].as_str().expect("the API").to_owned();
    let token = stack.demo("operator_token");
    let answer = Connection::to(&base).call(&token, &shot).await;
    answer.expect("an answer")
}

pub(super) fn detector(stack: &Stack, token: String) -> AnomalyDetectorServiceClient<Channel> {
    let url = stack.info()["grpc"]["keys"]
        .as_str()
        .expect("a URL")
        .to_owned();
    let channel = runtime::grpc::client(&url, &SecretString::from(token));
    AnomalyDetectorServiceClient::new(channel.expect("a channel"))
}

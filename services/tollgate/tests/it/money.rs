//! Exactly the credits that are there are spent, whoever asks at once, and repeating every event
//! changes nothing.

use std::collections::BTreeMap;

use testkit::{
    eventually,
    load::{Connection, Shot},
};

use crate::stack::{COUNTRIES, Customer, DISTANCE, LIVE, SETTLE_LIMIT, Stack, address_in};

#[tokio::test]
async fn two_gateways_share_wallets_keys_and_limits() {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "2"]).await;
    five_credits_are_five_calls(&stack).await;
    a_revoked_key_is_refused_everywhere(&stack).await;
    a_random_key_costs_no_look_up(&stack).await;
    eleven_countries_are_one_anomaly(&stack).await;
    repeating_every_event_changes_nothing(&stack).await;
    let report = stack.audit();
    assert_eq!(report["differences"], 0, "{report:#}");
}

async fn at_once(stack: &Stack, key: &str, calls: usize) -> BTreeMap<u16, usize> {
    let gateways = stack.gateways();
    let mut running = tokio::task::JoinSet::new();
    for index in 0..calls {
        let (base, key) = (gateways[index % gateways.len()].clone(), key.to_owned());
        running.spawn(async move {
            let answer = Connection::to(&base).call(&key, &Shot::get(DISTANCE)).await;
            answer.expect("an answer").status.as_u16()
        });
    }
    let mut seen = BTreeMap::new();
    while let Some(status) = running.join_next().await {
        *seen.entry(status.expect("no panic")).or_default() += 1;
    }
    seen
}

async fn five_credits_are_five_calls(stack: &Stack) {
    let customer = stack.customer("Small", 5);
    let (_, key) = stack.key(&customer, &LIVE);
    let seen = at_once(stack, &key, 50).await;
    assert_eq!(seen, BTreeMap::from([(200, 5), (402, 45)]));
    settled(stack, &customer, 0, 5).await;
    // Credits added afterwards can be spent at once: nothing remembers the refusal.
    stack.cli(&[
        "wallet",
        "grant",
        "--org",
        &customer.org,
        "--credits",
        "1",
        "--reason",
        "more",
    ]);
    assert_eq!(
        at_once(stack, &key, 2).await,
        BTreeMap::from([(200, 1), (402, 1)])
    );
    settled(stack, &customer, 0, 6).await;
}

async fn settled(stack: &Stack, customer: &Customer, balance: i64, used: i64) {
    let org = customer.org.clone();
    let done = eventually(SETTLE_LIMIT, "the wallet is settled", async || {
        let wallet = stack.cli(&["wallet", "show", "--org", &org]);
        let seen = (wallet["balance"].as_i64(), wallet["total_used"].as_i64());
        if seen == (Some(balance), Some(used)) {
            Ok(())
        } else {
            Err(wallet.to_string())
        }
    });
    done.await.expect("settled");
}

async fn a_revoked_key_is_refused_everywhere(stack: &Stack) {
    let customer = stack.customer("Revoked", 100);
    let (id, key) = stack.key(&customer, &LIVE);
    assert_eq!(at_once(stack, &key, 8).await, BTreeMap::from([(200, 8)]));
    let answer = stack.cli(&["key", "revoke", &id, "--reason", "leaked"]);
    assert_eq!(answer["confirmed_gateways"], 2, "{answer}");
    assert_eq!(
        answer["pending_gateways"],
        serde_json::json!([]),
        "{answer}"
    );
    assert_eq!(at_once(stack, &key, 8).await, BTreeMap::from([(401, 8)]));
}

async fn look_ups(stack: &Stack) -> f64 {
    let ops = stack.info()["ops"]["gateway"].clone();
    let base = ops
        .as_str()
        .or_else(|| ops[0].as_str())
        .expect("an address")
        .to_owned();
    let answer = Connection::to(&base)
        .call("", &Shot::get("/metrics.json"))
        .await
        .expect("metrics");
    let samples = answer.json();
    ["redis", "keys", "negative"]
        .iter()
        .filter_map(|source| {
            samples[format!("tollgate_key_verifications_total{{source=\"{source}\"}}")].as_f64()
        })
        .sum()
}

async fn a_random_key_costs_no_look_up(stack: &Stack) {
    let before = look_ups(stack).await;
    for index in 0..200 {
        let key = format!("sk_live_{index:A>43}");
        assert_eq!(stack.call(&key, &Shot::get(DISTANCE)).await.status, 401);
    }
    let after = look_ups(stack).await;
    assert!(
        (after - before).abs() < 0.5,
        "{} look-ups for garbage",
        after - before
    );
}

async fn eleven_countries_are_one_anomaly(stack: &Stack) {
    let customer = stack.customer("Traveller", 100);
    let (id, key) = stack.key(&customer, &LIVE);
    for country in 0..10 {
        let shot = Shot::get(DISTANCE).with("x-forwarded-for", &address_in(country));
        assert_eq!(stack.call_at(country % 2, &key, &shot).await.status, 200);
    }
    settled(stack, &customer, 90, 10).await;
    detector_is_idle(stack).await;
    let open = || stack.cli(&["anomaly", "list", "--org", &customer.org]);
    assert!(anomalies(&open()).is_empty(), "ten countries are silent");
    for country in 10..COUNTRIES.len() {
        let shot = Shot::get(DISTANCE).with("x-forwarded-for", &address_in(country));
        assert_eq!(stack.call(&key, &shot).await.status, 200);
    }
    let flagged = eventually(SETTLE_LIMIT, "the eleventh country flags", async || {
        let list = open();
        if anomalies(&list).is_empty() {
            Err(list.to_string())
        } else {
            Ok(list)
        }
    });
    let flagged = flagged.await.expect("flagged");
    detector_is_idle(stack).await;
    let flagged_now = anomalies(&open());
    assert_eq!(
        flagged_now.len(),
        1,
        "one anomaly for one window: {flagged}"
    );
    assert_eq!(flagged_now[0]["key_id"], id.as_str());
}

fn anomalies(list: &serde_json::Value) -> Vec<serde_json::Value> {
    let list = list.get("anomalies").unwrap_or(list);
    list.as_array().cloned().unwrap_or_default()
}

/// The detector has applied everything that the rows hold.
pub(crate) async fn detector_is_idle(stack: &Stack) {
    let done = eventually(SETTLE_LIMIT, "the detector has caught up", async || {
        let behind = stack
            .count(
                "select count(*) from usage_ingest.inbox u
                   left join anomaly_detector.inbox a using (journal_id)
                  where a.applied is distinct from u.applied",
            )
            .await;
        if behind == 0 {
            Ok(())
        } else {
            Err(format!("{behind} journals behind"))
        }
    });
    done.await.expect("caught up");
}

/// Deleting the durable consumers makes each service read the stream from its first message.
async fn repeating_every_event_changes_nothing(stack: &Stack) {
    stack.audit();
    // What the random keys have set off comes by another way, in its own time.
    let noticed = "select count(*) from anomaly_detector.anomalies
                    where kind = 'unknown_key_spray'";
    let noticed = eventually(SETTLE_LIMIT, "the spray is noticed", async || {
        match stack.count(noticed).await {
            0 => Err("not yet"),
            _ => Ok(()),
        }
    });
    noticed.await.expect("noticed");
    let before = stack.digests().await;
    stack.replay_usage().await;
    assert_eq!(stack.digests().await, before);
}

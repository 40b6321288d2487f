//! Each rule of the detector on real servers: from calls, keys and wallets to one anomaly that is
//! announced, listed, acted upon and resolved, and that no repetition doubles.

mod bus;
mod look;
mod wallets;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use http::Method;
use prost::Message as _;
use proto::{
    anomaly_detector::v1 as pb,
    events::v1::{AnomalyFlagged, KeyCreated},
};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use testkit::{
    eventually,
    load::{Connection, Shot},
};
use tonic::Code;

use self::{
    bus::{STRANGER, announcements, messages, sighted},
    look::{api, calls, detector, execute, listed, may_write, noted, of_kind, one, sprays, uuid},
    wallets::{
        a_wallet_falls_without_any_call, a_wallet_that_falls_fast_names_who_has_spent_it,
        what_is_not_known_is_not_waited_for_longer,
    },
};
use crate::{
    fault::{DISTANCE, chat},
    money::detector_is_idle,
    stack::{Customer, SETTLE_LIMIT, Stack},
};

const LIVE: [&str; 6] = [
    "--environment",
    "production",
    "--scope",
    "mileage:calculate",
    "--scope",
    "ai:write",
];
const TEST: [&str; 4] = ["--environment", "test", "--scope", "mileage:calculate"];
/// What the detector follows: streams, and its consumers of them.
const FOLLOWERS: [(&str, &str); 2] = [
    ("KEYS", "anomaly-detector-created-keys"),
    ("WALLET", "anomaly-detector-low-wallets"),
];

#[tokio::test]
async fn each_rule_flags_once_is_announced_and_can_be_resolved() {
    let stack = Stack::start(&["--ephemeral", "--gateways", "2"]).await;
    let uncalled = a_wallet_falls_without_any_call(&stack).await;
    let burst = a_burst_against_its_own_habits_suspends_the_key(&stack).await;
    a_new_service_after_a_long_silence_is_flagged(&stack).await;
    a_wallet_that_falls_fast_names_who_has_spent_it(&stack).await;
    keys_made_in_masses_are_flagged_and_the_anomaly_grows(&stack).await;
    an_event_that_cannot_be_read_is_put_aside(&stack).await;
    a_spray_of_unknown_keys_belongs_to_nobody(&stack).await;
    what_is_not_known_is_not_waited_for_longer(&stack, &uncalled).await;
    lists_have_pages_and_know_whose_an_anomaly_is(&stack, &burst).await;
    metrics_count_what_was_announced_and_what_is_open(&stack).await;
    repeating_every_event_changes_nothing(&stack).await;
    resolving_restores_in_one_step(&stack, &burst).await;
    assert_eq!(stack.audit()["differences"], 0);
}

struct Burst {
    customer: Customer,
    key_id: String,
    key: String,
    anomaly: String,
}

async fn a_burst_against_its_own_habits_suspends_the_key(stack: &Stack) -> Burst {
    let customer = stack.customer("Bursting", 5_000);
    let set = [
        "org",
        "policy",
        &customer.org,
        "--anomaly-action",
        "suspend",
    ];
    stack.cli(&set);
    let (newcomer_id, newcomer) = stack.key(&customer, &LIVE);
    let (key_id, key) = stack.key(&customer, &LIVE);
    // Twelve active buckets of four calls each. No test can wait for them.
    let history = format!(
        "insert into anomaly_detector.loads (key_id, bucket, org_id, calls, credits)
         select '{}', date_bin('5 minutes', now(), 'epoch') - n * interval '1 hour', '{}', 4, 4
           from generate_series(1, 12) n",
        uuid(&key_id),
        customer.org.trim_start_matches("org_"),
    );
    execute(stack, &history).await;
    // Two buckets, should the clock change to the next one: 300 are in one of them.
    assert_eq!(calls(stack, &newcomer, 620).await, 620);
    let paid = calls(stack, &key, 620).await;
    assert!(paid > 300, "the calls that flag are answered: {paid}");
    let anomaly = one(stack, &customer.org, "key_burst").await;
    assert_eq!(anomaly["key_id"], key_id.as_str());
    assert_eq!(anomaly["key_ids"], json!([key_id]));
    assert_ne!(anomaly["key_id"], newcomer_id.as_str(), "it has no habits");
    assert_eq!(anomaly["details"]["buckets_before"], 12, "{anomaly}");
    assert!(
        anomaly["details"]["calls"].as_i64() >= Some(300),
        "{anomaly}"
    );
    let suspended = eventually(SETTLE_LIMIT, "the policy is applied", async || {
        let answer = stack.call(&key, &Shot::get(DISTANCE)).await;
        match answer.json()["code"] == "key_suspended" {
            true => Ok(()),
            false => Err(format!("{answer:?}")),
        }
    });
    suspended.await.expect("suspended");
    let anomaly = anomaly["anomaly_id"].as_str().expect("an id").to_owned();
    Burst {
        customer,
        key_id,
        key,
        anomaly,
    }
}

async fn a_new_service_after_a_long_silence_is_flagged(stack: &Stack) {
    let customer = stack.customer("Sleepy", 1_000);
    let (key_id, key) = stack.key(&customer, &LIVE);
    let (_, awake) = stack.key(&customer, &LIVE);
    for key in [&key, &awake] {
        assert_eq!(stack.call(key, &Shot::get(DISTANCE)).await.status, 200);
    }
    let known = eventually(SETTLE_LIMIT, "the first use is known", async || {
        let uses = format!(
            "select count(*) from anomaly_detector.uses where key_id = '{}'",
            uuid(&key_id)
        );
        let uses: i64 = sqlx::query_scalar(AssertSqlSafe(uses))
            .fetch_one(stack.pool())
            .await
            .map_err(|error| error.to_string())?;
        (uses == 1)
            .then_some(())
            .ok_or_else(|| format!("{uses} uses"))
    });
    known.await.expect("known");
    let age = format!(
        "update anomaly_detector.uses
            set first_at = first_at - interval '15 days', last_at = last_at - interval '15 days'
          where key_id = '{}'",
        uuid(&key_id)
    );
    execute(stack, &age).await;
    for key in [&key, &awake] {
        assert_eq!(stack.call(key, &chat()).await.status, 200);
    }
    let anomaly = one(stack, &customer.org, "service_after_silence").await;
    assert_eq!(anomaly["key_id"], key_id.as_str());
    assert_eq!(anomaly["details"]["service"], "ai", "{anomaly}");
    detector_is_idle(stack).await;
    one(stack, &customer.org, "service_after_silence").await;
}

async fn keys_made_in_masses_are_flagged_and_the_anomaly_grows(stack: &Stack) {
    let customer = stack.customer("Busy", 100);
    let mut made = BTreeSet::new();
    let make = |made: &mut BTreeSet<String>| {
        let (key_id, _) = stack.key(&customer, &TEST);
        made.insert(key_id);
    };
    for _ in 0..10 {
        make(&mut made);
    }
    let known = eventually(SETTLE_LIMIT, "ten keys are known", async || {
        let known = format!(
            "select count(*) from anomaly_detector.created_keys where org_id = '{}'",
            customer.org.trim_start_matches("org_")
        );
        let known: i64 = sqlx::query_scalar(AssertSqlSafe(known))
            .fetch_one(stack.pool())
            .await
            .map_err(|error| error.to_string())?;
        (known == 10)
            .then_some(())
            .ok_or_else(|| format!("{known} keys"))
    });
    known.await.expect("known");
    assert!(of_kind(stack, &customer.org, "key_mass_creation").is_empty());
    make(&mut made);
    let anomaly = one(stack, &customer.org, "key_mass_creation").await;
    let keys = |anomaly: &Value| -> BTreeSet<String> {
        let keys = anomaly["key_ids"].as_array().expect("a list").iter();
        keys.map(|key| key.as_str().expect("an id").to_owned())
            .collect()
    };
    assert_eq!(keys(&anomaly), made);
    // The next one cannot be written at first: it comes again.
    may_write(stack, false).await;
    make(&mut made);
    let bus = stack.jetstream().await;
    let stream = bus.get_stream("KEYS").await.expect("the stream");
    let again = eventually(SETTLE_LIMIT, "the event comes again", async || {
        let info = stream.consumer_info(FOLLOWERS[0].1).await;
        let info = info.map_err(|error| error.to_string())?;
        (info.num_redelivered > 0)
            .then_some(())
            .ok_or_else(|| format!("{info:?}"))
    });
    again.await.expect("redelivered");
    may_write(stack, true).await;
    let grown = eventually(SETTLE_LIMIT, "the twelfth key belongs to it", async || {
        let now = one(stack, &customer.org, "key_mass_creation").await;
        (keys(&now) == made)
            .then_some(())
            .ok_or_else(|| now.to_string())
    });
    grown.await.expect("grown");
    let announced = eventually(SETTLE_LIMIT, "it is announced with all keys", async || {
        let subject = format!("anomaly.v1.flagged.{}", customer.org);
        let flagged = messages(stack, "ANOMALY", &subject).await;
        let last = flagged
            .last()
            .map(|last| AnomalyFlagged::decode(last.as_slice()));
        let keys = last.map_or(0, |last| last.expect("an anomaly").key_ids.len());
        (keys == 12)
            .then_some(())
            .ok_or_else(|| format!("{keys} keys"))
    });
    announced.await.expect("announced");
}

/// Nothing after it has to wait, and nobody is asked to read it again.
async fn an_event_that_cannot_be_read_is_put_aside(stack: &Stack) {
    let letters = "select count(*) from anomaly_detector.dead_letters
                    where subject = 'keys.v1.created.nobody' and reason like '%org_id%'";
    let event = KeyCreated::default().encode_to_vec();
    let bus = stack.jetstream().await;
    let sent = bus.publish("keys.v1.created.nobody", event.into()).await;
    let sequence = sent.expect("sent").await.expect("stored").sequence;
    let stream = bus.get_stream("KEYS").await.expect("the stream");
    let gone = eventually(SETTLE_LIMIT, "the event is put aside", async || {
        let info = stream.consumer_info(FOLLOWERS[0].1).await;
        let info = info.map_err(|error| error.to_string())?;
        let is_done = info.ack_floor.stream_sequence >= sequence && info.num_ack_pending == 0;
        is_done.then_some(()).ok_or_else(|| format!("{info:?}"))
    });
    gone.await.expect("put aside");
    assert_eq!(stack.count(letters).await, 1);
    execute(stack, "delete from anomaly_detector.dead_letters").await;
    // It would come again when the stream is repeated.
    let deleted = stream.delete_message(sequence).await;
    assert!(deleted.expect("deleted"));
}

async fn a_spray_of_unknown_keys_belongs_to_nobody(stack: &Stack) {
    let minute = jiff::Timestamp::now().as_microsecond() / 3_600_000_000 * 3_600_000_000;
    sighted(stack, 1, 99, minute).await;
    noted(stack, 99).await;
    assert!(sprays(stack).is_empty(), "99 are silent");
    sighted(stack, 1, 60, minute).await;
    sighted(stack, 2, 1, minute).await;
    noted(stack, 100).await;
    let found = sprays(stack);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["org_id"], "");
    assert_eq!(found[0]["details"]["address"], STRANGER);
    sighted(stack, 1, 500, minute + 60_000_000).await;
    noted(stack, 600).await;
    assert_eq!(sprays(stack).len(), 1, "one an hour");
}

async fn lists_have_pages_and_know_whose_an_anomaly_is(stack: &Stack, burst: &Burst) {
    let everything = listed(stack, &["--state", "all"]);
    let mut by_page = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/v1/operator/anomalies?state=all&limit=2{cursor}");
        let page = api(stack, Method::GET, &path).await.json();
        let rows = page["anomalies"].as_array().expect("a list");
        by_page.extend(rows.iter().map(|row| row["anomaly_id"].clone()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let ids: Vec<Value> = everything
        .iter()
        .map(|it| it["anomaly_id"].clone())
        .collect();
    assert_eq!(by_page, ids, "the same through API and CLI, newest first");
    let kinds: BTreeSet<&str> = everything
        .iter()
        .filter_map(|it| it["kind"].as_str())
        .collect();
    let expected = [
        "key_burst",
        "key_mass_creation",
        "service_after_silence",
        "unknown_key_spray",
        "wallet_drain",
    ];
    assert_eq!(kinds, BTreeSet::from(expected));

    let own = format!(
        "/v1/organisations/{}/anomalies?state=all",
        burst.customer.org
    );
    let own = api(stack, Method::GET, &own).await.json();
    let own = own["anomalies"].as_array().expect("a list");
    let is_own = |it: &Value| it["org_id"] == burst.customer.org.as_str();
    assert!(!own.is_empty() && own.iter().all(is_own), "{own:?}");

    let secrets =
        std::fs::read_to_string(stack.data().join("ephemeral/secrets.json")).expect("secrets");
    let secrets: Value = serde_json::from_str(&secrets).expect("JSON");
    let token = secrets["service_token"]
        .as_str()
        .expect("a token")
        .to_owned();
    let mut service = detector(stack, token);
    let asked = pb::GetOpenAnomaliesRequest {
        org_id: burst.customer.org.clone(),
    };
    let open = service.get_open_anomalies(asked).await.expect("an answer");
    let open = open.into_inner();
    assert_eq!((open.open, open.count), (true, 1));
    assert_eq!(open.kinds, ["key_burst"]);
    let refused = service.list_anomalies(pb::ListAnomaliesRequest::default());
    assert_eq!(refused.await.unwrap_err().code(), Code::PermissionDenied);

    // Nobody but operators sees what is nobody's, even if asked in a user's name.
    let mut operator = detector(stack, stack.demo("operator_token"));
    let mut request = tonic::Request::new(pb::ListAnomaliesRequest::default());
    let user = burst.customer.user.parse().expect("an id");
    request.metadata_mut().insert("tollgate-actor", user);
    let refused = operator.list_anomalies(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

async fn metrics_count_what_was_announced_and_what_is_open(stack: &Stack) {
    let base = stack.info()["ops"]["gateway"].clone();
    let base = base
        .as_str()
        .or_else(|| base[0].as_str())
        .expect("an address")
        .to_owned();
    let counted = eventually(SETTLE_LIMIT, "the gauge follows", async || {
        let answer = Connection::to(&base)
            .call("", &Shot::get("/metrics.json"))
            .await;
        let samples = answer.map_err(|error| error.to_string())?.json();
        let sample =
            |name: &str, kind: &str| samples[format!("{name}{{kind=\"{kind}\"}}")].as_f64();
        let wanted = [
            ("key_burst", 1.0),
            ("wallet_drain", 2.0),
            ("unknown_key_spray", 1.0),
        ];
        for (kind, count) in wanted {
            let announced = sample("tollgate_anomalies_total", kind);
            let seen = (announced, sample("tollgate_open_anomalies", kind));
            if seen != (Some(count), Some(count)) {
                return Err(format!("{kind}: {seen:?}"));
            }
        }
        Ok(())
    });
    counted.await.expect("counted");
}

/// All figures but those of wallets: gateways give back meanwhile what they do not need.
async fn digests(stack: &Stack) -> BTreeMap<&'static str, String> {
    let mut digests = stack.digests().await;
    digests.retain(|name, _| !name.ends_with("wallets"));
    digests
}

/// Everything is read again from the first message: calls, keys, wallets, sightings.
async fn repeating_every_event_changes_nothing(stack: &Stack) {
    stack.audit();
    let (before, announced) = (digests(stack).await, announcements(stack).await);
    assert!(announced.values().all(|times| *times <= 2), "{announced:?}");
    stack.replay_usage().await;
    let bus = stack.jetstream().await;
    for (name, follower) in FOLLOWERS {
        let stream = bus.get_stream(name).await.expect("the stream");
        stream.delete_consumer(follower).await.expect("deleted");
        let again = eventually(SETTLE_LIMIT, "the stream is read again", async || {
            let info = stream.consumer_info(follower).await;
            let info = info.map_err(|error| error.to_string())?;
            let is_done = info.num_pending == 0 && info.num_ack_pending == 0;
            let is_read = info.ack_floor.stream_sequence > 0;
            (is_done && is_read)
                .then_some(())
                .ok_or_else(|| format!("{info:?}"))
        });
        again.await.expect("read again");
    }
    assert_eq!(digests(stack).await, before);
    // What would have been announced is announced by now.
    tokio::time::timeout(SETTLE_LIMIT, async {
        while stack
            .count(
                "select count(*) from anomaly_detector.anomalies
                            where published_keys is distinct from cardinality(key_ids)",
            )
            .await
            > 0
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("all is announced");
    assert_eq!(announcements(stack).await, announced);
}

async fn resolving_restores_in_one_step(stack: &Stack, burst: &Burst) {
    let suspended = stack.call(&burst.key, &Shot::get(DISTANCE)).await;
    assert_eq!(suspended.status, 403);
    let (org, anomaly) = (&burst.customer.org, &burst.anomaly);
    let path = format!("/v1/organisations/{org}/anomalies/{anomaly}/resolve");
    let resolved = api(stack, Method::POST, &path).await;
    assert_eq!(resolved.status, 200, "{resolved:?}");
    let resolved = resolved.json();
    assert_eq!(
        resolved["restored_key_ids"],
        json!([burst.key_id]),
        "{resolved}"
    );
    assert_eq!(resolved["pending_gateways"], json!([]), "{resolved}");
    let answer = stack.call(&burst.key, &Shot::get(DISTANCE)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(listed(stack, &["--org", org]).is_empty());
    let done = listed(stack, &["--org", org, "--state", "resolved"]);
    assert_eq!(done.len(), 1);
    assert_eq!(done[0]["resolved_by"], "operator");
    // Once more changes nothing; what is nobody's is an operator's to resolve.
    let again = api(stack, Method::POST, &path).await;
    assert_eq!(
        (again.status.as_u16(), &again.json()["restored_key_ids"]),
        (200, &json!([]))
    );
    let spray = sprays(stack)[0]["anomaly_id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let foreign = format!("/v1/organisations/{org}/anomalies/{spray}/resolve");
    assert_eq!(api(stack, Method::POST, &foreign).await.status, 404);
    assert_eq!(stack.cli(&["anomaly", "resolve", &spray])["resolved"], true);
    let open = listed(stack, &[]);
    assert!(
        open.iter().all(|it| it["anomaly_id"] != spray.as_str()),
        "{open:?}"
    );
}

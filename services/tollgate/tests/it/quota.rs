//! Hard quotas: exactly as many calls as a key may have, whoever asks where, and whatever dies.

use std::{collections::BTreeMap, time::Duration};

use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::{
    eventually,
    load::{self, Answer, Connection, Plan, Shot},
};
use tokio_util::sync::CancellationToken;

use crate::stack::{Customer, DISTANCE, LIVE, SETTLE_LIMIT, Stack, signal};

/// A key's new limits are in force after so long.
const CHANGE_LIMIT: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_quota_is_used_up_exactly_and_never_exceeded() {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "2"]).await;
    the_day_has_room().await;
    twenty_a_day_are_twenty(&stack).await;
    three_a_month_are_three(&stack).await;
    the_tighter_quota_counts(&stack).await;
    a_call_that_cannot_be_paid_uses_no_permit(&stack).await;
    let report = stack.audit();
    assert_eq!(report["differences"], 0, "{report:#}");
}

/// A test that begins a minute before midnight would see two days.
async fn the_day_has_room() {
    let room = Duration::from_secs(120);
    let left = || {
        let now = jiff::Timestamp::now().as_second();
        Duration::from_secs(u64::try_from(86_400 - now.rem_euclid(86_400)).expect("positive"))
    };
    let waited = eventually(room + room, "a new day", async || match left() {
        left if left > room => Ok(()),
        left => Err(format!("{left:?} left")),
    });
    waited.await.expect("a new day");
}

/// Calls at once over all gateways: how often each status and code came, and one refusal.
async fn at_once(
    stack: &Stack,
    key: &str,
    calls: usize,
) -> (BTreeMap<(u16, String), usize>, Option<Answer>) {
    let gateways = stack.gateways();
    let mut running = tokio::task::JoinSet::new();
    for index in 0..calls {
        let (base, key) = (gateways[index % gateways.len()].clone(), key.to_owned());
        running.spawn(async move {
            let answer = Connection::to(&base).call(&key, &Shot::get(DISTANCE)).await;
            answer.expect("an answer")
        });
    }
    let (mut seen, mut refused) = (BTreeMap::new(), None);
    while let Some(answer) = running.join_next().await {
        let answer = answer.expect("no panic");
        let json = answer.json();
        let code = json["code"].as_str().unwrap_or_default().to_owned();
        *seen.entry((answer.status.as_u16(), code)).or_default() += 1;
        if !answer.status.is_success() {
            refused = Some(answer);
        }
    }
    (seen, refused)
}

fn expected<const N: usize>(counts: [(u16, &str, usize); N]) -> BTreeMap<(u16, String), usize> {
    let pair = |(status, code, count): (u16, &str, usize)| ((status, code.to_owned()), count);
    counts.into_iter().map(pair).collect()
}

fn key_with(stack: &Stack, customer: &Customer, quotas: &[&str]) -> (String, String) {
    stack.key(customer, &[&LIVE[..], quotas].concat())
}

/// Waits until the CLI shows so much of the quotas as used, and the wallet so much as spent.
async fn settled(stack: &Stack, customer: &Customer, key: &str, uses: [Value; 2], spent: i64) {
    let done = eventually(SETTLE_LIMIT, "the permits are settled", async || {
        let shown = stack.cli(&["key", "show", key]);
        let wallet = stack.cli(&["wallet", "show", "--org", &customer.org]);
        let seen = [shown["daily_used"].clone(), shown["monthly_used"].clone()];
        match seen == uses && wallet["total_used"] == spent {
            true => Ok(()),
            false => Err(format!("{seen:?} {wallet}")),
        }
    });
    done.await.expect("settled");
}

async fn twenty_a_day_are_twenty(stack: &Stack) {
    let customer = stack.customer("Twenty", 1000);
    let (id, key) = key_with(stack, &customer, &["--daily-quota", "20"]);
    assert_eq!(stack.cli(&["key", "show", &id])["daily_used"], 0);
    let (seen, refused) = at_once(stack, &key, 60).await;
    assert_eq!(
        seen,
        expected([(200, "", 20), (429, "daily_quota_exceeded", 40)])
    );
    let refused = refused.expect("refused");
    let wait: i64 = refused.header("retry-after").parse().expect("seconds");
    let now = jiff::Timestamp::now().as_second();
    let end = (now + wait).rem_euclid(86_400);
    assert!(wait <= 86_400 && !(10..=86_390).contains(&end), "{wait}");
    assert_eq!(refused.header("ratelimit-policy"), "\"daily\";q=20;w=86400");
    let state = refused.header("ratelimit");
    assert!(state.starts_with("\"daily\";r=0;t="), "{state}");
    settled(stack, &customer, &id, [json!(20), Value::Null], 20).await;
    let listed = stack.cli(&["key", "list", "--org", &customer.org]);
    assert_eq!(listed["keys"][0]["daily_used"], 20, "{listed}");

    stack.cli(&["key", "update", &id, "--daily-quota", "23"]);
    let raised = eventually(
        CHANGE_LIMIT,
        "a raised quota lets calls through",
        async || {
            let answer = stack.call(&key, &Shot::get(DISTANCE)).await;
            match answer.status.as_u16() {
                200 => Ok(()),
                _ => Err(format!("{answer:?}")),
            }
        },
    );
    raised.await.expect("raised");
    let (seen, _) = at_once(stack, &key, 10).await;
    assert_eq!(
        seen,
        expected([(200, "", 2), (429, "daily_quota_exceeded", 8)])
    );
    settled(stack, &customer, &id, [json!(23), Value::Null], 23).await;

    // Lowered below what is used, and lifted in the end.
    stack.cli(&["key", "update", &id, "--daily-quota", "5"]);
    let (seen, _) = at_once(stack, &key, 4).await;
    assert_eq!(seen, expected([(429, "daily_quota_exceeded", 4)]));
    stack.cli(&["key", "update", &id, "--daily-quota", "0"]);
    let lifted = eventually(CHANGE_LIMIT, "no quota is no limit", async || {
        let answer = stack.call(&key, &Shot::get(DISTANCE)).await;
        match answer.status.as_u16() {
            200 => Ok(()),
            _ => Err(format!("{answer:?}")),
        }
    });
    lifted.await.expect("lifted");
}

async fn three_a_month_are_three(stack: &Stack) {
    let customer = stack.customer("Three", 1000);
    let (id, key) = key_with(stack, &customer, &["--monthly-quota", "3"]);
    let (seen, refused) = at_once(stack, &key, 12).await;
    assert_eq!(
        seen,
        expected([(200, "", 3), (429, "monthly_quota_exceeded", 9)])
    );
    let wait: i64 = refused
        .expect("refused")
        .header("retry-after")
        .parse()
        .expect("seconds");
    let first = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(wait + 10);
    let first = first.to_zoned(jiff::tz::TimeZone::UTC);
    assert_eq!((first.day(), first.hour()), (1, 0), "{wait}");
    settled(stack, &customer, &id, [Value::Null, json!(3)], 3).await;
}

/// A call that the month refuses gives the day's permit back. The day has a permit for each call at
/// once: what a call holds until it is refused, no other has.
async fn the_tighter_quota_counts(stack: &Stack) {
    let customer = stack.customer("Both", 1000);
    let quotas = ["--daily-quota", "20", "--monthly-quota", "2"];
    let (id, key) = key_with(stack, &customer, &quotas);
    let (seen, _) = at_once(stack, &key, 10).await;
    assert_eq!(
        seen,
        expected([(200, "", 2), (429, "monthly_quota_exceeded", 8)])
    );
    settled(stack, &customer, &id, [json!(2), json!(2)], 2).await;
}

async fn a_call_that_cannot_be_paid_uses_no_permit(stack: &Stack) {
    let customer = stack.customer("Poor", 0);
    let (id, key) = key_with(stack, &customer, &["--daily-quota", "2"]);
    for _ in 0..3 {
        let (seen, _) = at_once(stack, &key, 2).await;
        assert_eq!(seen, expected([(402, "credits_exhausted", 2)]));
    }
    let grant = ["wallet", "grant", "--org", &customer.org, "--credits", "9"];
    stack.cli(&[&grant[..], &["--reason", "test"]].concat());
    let (seen, _) = at_once(stack, &key, 6).await;
    assert_eq!(
        seen,
        expected([(200, "", 2), (429, "daily_quota_exceeded", 4)])
    );
    settled(stack, &customer, &id, [json!(2), Value::Null], 2).await;
}

/// A gateway dies with permits in hand: they stay reserved until its successor has read the
/// journal, then the unused ones come back, and in the end each permit was one call.
#[tokio::test]
async fn a_killed_gateway_neither_adds_to_a_quota_nor_takes_from_it() {
    const QUOTA: i64 = 400;
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "2"]).await;
    the_day_has_room().await;
    let customer = stack.customer("Killed", 10_000);
    let (_, key) = key_with(&stack, &customer, &["--daily-quota", "400"]);
    let stop = CancellationToken::new();
    let plan = Plan {
        gateways: stack.gateways(),
        key,
        shots: vec![Shot::get(DISTANCE)],
        workers: 6,
        pause: Duration::from_millis(20),
    };
    let calls = tokio::spawn(load::run(plan, stop.clone()));
    used(&stack, "a part is used", |used, _| used >= QUOTA / 8).await;
    let dead = stack.pids("gateway")[0];
    signal(dead, Signal::KILL);
    used(
        &stack,
        "all permits were used in the end",
        |used, reserved| {
            assert!(used + reserved <= QUOTA, "{used} + {reserved}");
            (used, reserved) == (QUOTA, 0)
        },
    )
    .await;
    stop.cancel();
    let outcome = calls.await.expect("the load client ends");
    let served = outcome.by_status.get(&200).copied().unwrap_or(0);
    println!(
        "served {served} of {QUOTA}: {:?}, {} broken",
        outcome.by_status, outcome.broken
    );
    assert!(i64::try_from(served).expect("small") <= QUOTA);
    assert!(!stack.pids("gateway").contains(&dead), "another life");
    let rows = "select count(*) from usage_ingest.api_usage_logs where permit_lease_ids <> '{}'";
    let counted = eventually(
        SETTLE_LIMIT,
        "each permit has its row",
        async || match stack.count(rows).await {
            QUOTA => Ok(()),
            other => Err(other.to_string()),
        },
    );
    counted.await.expect("rows");
    let report = stack.audit();
    assert_eq!(report["differences"], 0, "{report:#}");
}

/// Waits for a state of the only bucket.
async fn used(stack: &Stack, what: &str, is_so: impl Fn(i64, i64) -> bool) {
    let sql = "select used, reserved from wallet.quota_buckets";
    let done = eventually(SETTLE_LIMIT, what, async || {
        let row: Option<(i64, i64)> = sqlx::query_as(sql)
            .fetch_optional(stack.pool())
            .await
            .expect("a row");
        match row {
            Some((used, reserved)) if is_so(used, reserved) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    done.await.expect("permits");
}

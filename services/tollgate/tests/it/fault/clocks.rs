//! Wall clocks that jump: periods are the wallet's, and what expires does so on time.

use std::{collections::BTreeMap, path::PathBuf, time::Instant};

use jiff::{SignedDuration, Timestamp};
use testkit::{
    eventually,
    load::{Answer, Done, Outcome, Shot},
};

use super::{DISTANCE, LIVE, chat, figures::Figures, quiet::quiet};
use crate::stack::{Customer, SETTLE_LIMIT, Stack};

/// Calls a day, and calls a month.
const QUOTA: usize = 10;
/// What a test wallet has in an epoch, and what a chat costs.
const EPOCH_CREDITS: i64 = 100;
const CHAT_COST: i64 = 3;
/// Everybody who has a clock of ours.
const PROCESSES: [&str; 7] = [
    "keys",
    "wallet",
    "usage-ingest",
    "stats-aggregator",
    "anomaly-detector",
    "portal",
    "gateway",
];
/// Calls are made so long before a month ends. They take a moment, and time goes on meanwhile.
const BEFORE_THE_END: SignedDuration = SignedDuration::from_secs(60);

/// When Berlin's clocks are put forward and back, its days and months begin before those of UTC:
/// each of these lies in a period of its own, by one of the two.
const IN_BERLIN: [&str; 12] = [
    "2028-03-25T22:30:00Z",
    "2028-03-25T23:30:00Z",
    "2028-03-26T00:30:00Z",
    "2028-03-26T01:30:00Z",
    "2028-03-26T21:30:00Z",
    "2028-03-26T22:30:00Z",
    "2028-03-31T22:30:00Z",
    "2028-10-28T22:30:00Z",
    "2028-10-29T00:30:00Z",
    "2028-10-29T01:30:00Z",
    "2028-10-29T22:30:00Z",
    "2028-10-29T23:30:00Z",
];

/// The clocks of a stack.
struct Clocks {
    folder: PathBuf,
    steps: usize,
}

impl Clocks {
    /// From now on these processes believe that it is so much later than it is.
    fn step(&mut self, processes: &[&str], by: SignedDuration) {
        self.steps += 1;
        for process in processes {
            let new = self.folder.join(format!("{process}.new"));
            std::fs::write(&new, by.as_millis().to_string()).expect("written");
            std::fs::rename(&new, self.folder.join(process)).expect("renamed");
        }
    }
}

/// What was called, for the auditor.
#[derive(Default)]
struct Calls {
    seen: Outcome,
    /// Refusals for want of credits that were there.
    false_402: usize,
}

impl Calls {
    /// Calls in turn over both gateways; how many of them were served.
    async fn make(&mut self, stack: &Stack, key: &str, calls: usize) -> usize {
        let mut served = 0;
        for turn in 0..calls {
            let answer = stack.call_at(turn % 2, key, &Shot::get(DISTANCE)).await;
            served += usize::from(answer.status == 200);
            self.note(&answer);
        }
        served
    }

    fn note(&mut self, answer: &Answer) {
        self.seen.sent += 1;
        self.seen.done.push(Done {
            request_id: answer.header("x-request-id").to_owned(),
            status: answer.status.as_u16(),
            cost: answer.cost(),
            at: Instant::now(),
        });
    }
}

/// F19: clocks jump by a day and an hour, over midnight and the end of a month, and by an epoch.
#[tokio::test]
async fn f19_periods_and_expiries_are_the_servers_whatever_clocks_do() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().to_str().expect("a path").to_owned();
    let variables = [
        ("TOLLGATE_CLOCK_AT", folder.as_str()),
        // Periods are in UTC wherever a process stands.
        ("TZ", "Europe/Berlin"),
    ];
    let arguments = ["--ephemeral", "--processes", "--gateways", "2"];
    let stack = Stack::start_with(&arguments, &variables).await;
    let (mut clocks, mut calls) = (
        Clocks {
            folder: folder.into(),
            steps: 0,
        },
        Calls::default(),
    );
    let customer = stack.customer("Timely", 100_000);
    // 31 January, a minute before it ends.
    let end = "2028-02-01T00:00:00Z".parse::<Timestamp>().expect("a time");
    let to_the_end = end.duration_since(Timestamp::now()) - BEFORE_THE_END;
    clocks.step(&PROCESSES, to_the_end);
    quotas_are_the_wallets(&stack, &customer, &mut clocks, &mut calls, to_the_end).await;
    let after = to_the_end + BEFORE_THE_END;
    keys_expire_on_time(&stack, &customer, &mut clocks, &mut calls, after).await;
    epochs_begin_when_they_begin(&stack, &mut clocks, &mut calls, after).await;
    let berlin = stack.customer("Berlin", 1_000);
    let placed = call_in_berlin(&stack, &berlin, &mut clocks, &mut calls).await;
    let settled = quiet(&stack, Instant::now()).await.settled;
    let report = stack.audit_with(&[&calls.seen]);
    let misplaced = misplaced(&stack, &berlin, &placed).await;
    let figures = Figures {
        faults: clocks.steps,
        false_402: calls.false_402,
        quiet: settled,
        more: format!("misplaced calls: {misplaced:?}"),
        ..Figures::of("F19", &[&calls.seen])
    };
    figures.print(&stack, &report).await;
    assert_eq!(misplaced, BTreeMap::new(), "calls in other days than UTC's");
}

/// Two calls at each of these times, with a key of its own that has quotas. Returns how many there
/// were by day of UTC.
async fn call_in_berlin(
    stack: &Stack,
    customer: &Customer,
    clocks: &mut Clocks,
    calls: &mut Calls,
) -> BTreeMap<String, i64> {
    let mut placed = BTreeMap::new();
    for at in IN_BERLIN {
        let time: Timestamp = at.parse().expect("a time");
        clocks.step(&PROCESSES, time.duration_since(Timestamp::now()));
        let quotas = ["--daily-quota", "5", "--monthly-quota", "5"];
        let (id, key) = stack.key(customer, &[&LIVE[..], &quotas].concat());
        assert_eq!(calls.make(stack, &key, 2).await, 2, "{at}");
        let periods: Vec<String> = sqlx::query_scalar(
            "select to_char(period_start at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI')
               from wallet.quota_buckets where key_id = $1 order by kind",
        )
        .bind(uuid_of(&id))
        .fetch_all(stack.pool())
        .await
        .expect("periods");
        let (day, month) = (&at[..10], &at[..7]);
        let wanted = [format!("{day}T00:00"), format!("{month}-01T00:00")];
        assert_eq!(periods, wanted, "{at}");
        *placed.entry(day.to_owned()).or_default() += 2;
    }
    placed
}

fn uuid_of(id: &str) -> uuid::Uuid {
    let (_, digits) = id.split_once('_').expect("a kind");
    digits.parse().expect("an id")
}

/// Days on which rows or statistics have another number of calls: what they have, and what was
/// called.
async fn misplaced(
    stack: &Stack,
    customer: &Customer,
    placed: &BTreeMap<String, i64>,
) -> BTreeMap<String, (i64, i64)> {
    let by_day = [
        "select day::text, count(*) from usage_ingest.api_usage_logs where org_id = $1 group by 1",
        "select date::text, sum(total_requests)::int8 from stats_aggregator.daily_stats
          where org_id = $1 group by 1",
    ];
    let mut wrong = BTreeMap::new();
    for sql in by_day {
        let found: Vec<(String, i64)> = sqlx::query_as(sql)
            .bind(uuid_of(&customer.org))
            .fetch_all(stack.pool())
            .await
            .expect("days");
        let found: BTreeMap<String, i64> = found.into_iter().collect();
        for day in found.keys().chain(placed.keys()) {
            let calls = |days: &BTreeMap<String, i64>| days.get(day).copied().unwrap_or(0);
            if calls(&found) != calls(placed) {
                wrong.insert(day.clone(), (calls(&found), calls(placed)));
            }
        }
    }
    wrong
}

/// A day's and a month's quota are used up; no step of a gateway's clock gives more, the wallet's
/// next day and month do.
async fn quotas_are_the_wallets(
    stack: &Stack,
    customer: &Customer,
    clocks: &mut Clocks,
    calls: &mut Calls,
    to_the_end: SignedDuration,
) {
    let quota = QUOTA.to_string();
    let (_, daily) = stack.key(customer, &[&LIVE[..], &["--daily-quota", &quota]].concat());
    let (_, monthly) = stack.key(
        customer,
        &[&LIVE[..], &["--monthly-quota", &quota]].concat(),
    );
    let keys = [&daily, &monthly];
    for key in keys {
        assert_eq!(calls.make(stack, key, QUOTA + 5).await, QUOTA, "31 January");
    }
    let astray = SignedDuration::from_hours(25);
    for step in [to_the_end + astray, to_the_end - astray, to_the_end] {
        clocks.step(&["gateway"], step);
        for key in keys {
            assert_eq!(calls.make(stack, key, 4).await, 0, "gateways {step:?} off");
        }
    }
    clocks.step(&PROCESSES, to_the_end + BEFORE_THE_END);
    for key in keys {
        // A lease of the old month is known to be over once the gateway's own count says so.
        let served = eventually(SETTLE_LIMIT, "the next month has begun", async || {
            let answer = stack.call(key, &Shot::get(DISTANCE)).await;
            match answer.status.as_u16() {
                200 => Ok(answer),
                _ => Err(format!("{answer:?}")),
            }
        });
        calls.note(&served.await.expect("begun"));
        assert_eq!(
            calls.make(stack, key, QUOTA + 5).await,
            QUOTA - 1,
            "1 February"
        );
    }
    let most = "select coalesce(max(used + reserved), 0)::int8 from wallet.quota_buckets";
    assert_eq!(
        stack.count(most).await,
        i64::try_from(QUOTA).expect("small")
    );
}

/// A key that every gateway has in memory is refused from the moment it expires.
async fn keys_expire_on_time(
    stack: &Stack,
    customer: &Customer,
    clocks: &mut Clocks,
    calls: &mut Calls,
    now: SignedDuration,
) {
    let hour = SignedDuration::from_hours(1);
    let expires = (Timestamp::now() + now + hour).to_string();
    let (_, key) = stack.key(customer, &[&LIVE[..], &["--expires-at", &expires]].concat());
    assert_eq!(calls.make(stack, &key, 4).await, 4, "an hour before");
    clocks.step(&PROCESSES, now + hour - SignedDuration::from_mins(1));
    assert_eq!(calls.make(stack, &key, 4).await, 4, "a minute before");
    clocks.step(&PROCESSES, now + hour + SignedDuration::from_secs(1));
    for gateway in 0..2 {
        let refused = eventually(SETTLE_LIMIT, "it has expired", async || {
            let answer = stack.call_at(gateway, &key, &Shot::get(DISTANCE)).await;
            match answer.json()["code"].as_str() {
                Some("key_expired") => Ok(()),
                _ => Err(format!("{answer:?}")),
            }
        });
        refused.await.expect("expired");
    }
}

/// A test wallet has its credits again after thirty days, and not before.
async fn epochs_begin_when_they_begin(
    stack: &Stack,
    clocks: &mut Clocks,
    calls: &mut Calls,
    now: SignedDuration,
) {
    let key = stack.demo("test_key");
    // After so much was spent of the epoch.
    let spend = async |calls: &mut Calls, mut spent: i64| {
        for _ in 0..100 {
            let answer = stack.call(&key, &chat()).await;
            calls.note(&answer);
            match answer.status.as_u16() {
                200 => spent += answer.cost(),
                402 => {
                    calls.false_402 += usize::from(spent + CHAT_COST <= EPOCH_CREDITS);
                    return spent;
                }
                _ => panic!("{answer:?}"),
            }
        }
        panic!("{spent} credits and no end")
    };
    // The wallet was made before the clocks were set: its epoch is another by now.
    assert_eq!(spend(calls, 0).await, 99, "33 calls of 3");
    let almost = now + SignedDuration::from_hours(20);
    clocks.step(&PROCESSES, almost);
    assert_eq!(spend(calls, 99).await, 99, "the same epoch");
    clocks.step(&PROCESSES, now + SignedDuration::from_hours(31 * 24));
    // The wallet looks at its clock now and then.
    let begun = eventually(SETTLE_LIMIT, "the next epoch begins", async || {
        let answer = stack.call(&key, &chat()).await;
        match answer.status.as_u16() {
            200 => Ok(answer),
            _ => Err(format!("{answer:?}")),
        }
    });
    let first = begun.await.expect("begun");
    calls.note(&first);
    assert_eq!(spend(calls, first.cost()).await, 99, "the next epoch");
}

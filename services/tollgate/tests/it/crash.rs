//! Death at every step the code names. Each time everything adds up afterwards.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

use prost::Message as _;
use proto::events::v1::AnomalyFlagged;
use rustix::process::Signal;
use testkit::{
    eventually,
    load::{Connection, Outcome, Plan, Shot},
};

use crate::{
    fault::{DISTANCE, LIVE, Load, figures::Figures, fund, priced, summary},
    stack::{CONSUMERS, Customer, SETTLE_LIMIT, Stack, signal},
};

/// All points are passed within so long.
const DEATHS_LIMIT: Duration = Duration::from_secs(180);
const LONG_DEATHS_LIMIT: Duration = Duration::from_secs(1_800);
/// A life comes to its point within so long, or another one tries.
const LIFE_LIMIT: Duration = Duration::from_secs(8);
/// Between two looks, and two rounds of what only some points need.
const ROUND: Duration = Duration::from_millis(400);

/// Every point, and a later passage that a life under this load comes to.
const POINTS: [(&str, u64); 38] = [
    ("consumer.apply_committed", 4),
    ("consumer.batch_fetched", 4),
    ("consumer.dead_letter_committed", 2),
    (DISCARD[0], 1),
    (DISCARD[1], 1),
    ("consumer.watermark_published", 4),
    (KEYED[0], 1),
    ("gateway.appended", 9),
    ("gateway.batch_acknowledged", 5),
    ("gateway.batch_published", 5),
    ("gateway.call_opened", 3),
    ("gateway.close_written", 2),
    ("gateway.grant_written", 2),
    (KEYED[1], 1),
    (KEYED[2], 1),
    // Of an earlier life, before it is removed; one a life.
    ("gateway.journal_ended", 1),
    ("gateway.journal_synced", 7),
    ("gateway.last_byte_sent", 3),
    ("gateway.lease_reply_received", 2),
    ("gateway.recall_answered", 2),
    // Of one journal: the calls that its gateway had begun.
    ("gateway.open_call_ended", 2),
    ("gateway.progress_written", 2),
    // Of one journal: its files are scanned, its leases closed.
    ("gateway.recovery_scanned", 2),
    ("gateway.segment_created", 2),
    ("gateway.segment_unlinked", 2),
    (TUNNEL, 0),
    ("gateway.upstream_answered", 9),
    ("gateway.watermark_saved", 3),
    ("keys.anomaly_committed", 2),
    ("keys.change_committed", 2),
    ("keys.created_published", 2),
    ("keys.mail_sent", 2),
    ("keys.outbox_marked", 2),
    ("keys.outbox_published", 2),
    ("wallet.acquire_committed", 3),
    ("wallet.settle_committed", 4),
    ("wallet.settle_written", 4),
    // Needs a gateway that is away for long: `fault::credits` dies there.
    (WRITE_OFF, 1),
];
/// Only calls with idempotency keys pass: `fault::idempotency` dies there.
pub(crate) const KEYED: [&str; 3] = [
    "gateway.answer_kept",
    "gateway.idempotency_begun",
    "gateway.idempotency_ended",
];
/// Only upgraded connections pass: `tunnels` dies there.
pub(crate) const TUNNEL: &str = "gateway.tunnel_noted";
/// Only operators' decisions pass: `dead_letters` dies there.
pub(crate) const DISCARD: [&str; 2] = ["consumer.discard_written", "consumer.discard_committed"];
const WRITE_OFF: &str = "wallet.writeoff_committed";

const ELSEWHERE: [&str; 4] = [WRITE_OFF, TUNNEL, DISCARD[0], DISCARD[1]];

/// What follows a macro's name and quote in the sources: points, mutants.
pub(crate) fn named_in(folder: &Path, before: &str, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            named_in(&path, before, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let named = text.split(before).skip(1);
            found.extend(named.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
        }
    }
}

#[test]
fn f02_every_point_of_the_code_is_known_here() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = BTreeSet::new();
    for folder in ["libs", "services"] {
        named_in(
            &root.join(folder),
            concat!("crash_", "point!(\""),
            &mut found,
        );
    }
    let known: BTreeSet<String> = POINTS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(found, known, "points of the code and points of the test");
}

/// Who dies where: by service, in order.
fn schedule(is_long: bool) -> BTreeMap<&'static str, Vec<String>> {
    let mut plan: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut turn = 0;
    let here = POINTS
        .iter()
        .filter(|(point, _)| !ELSEWHERE.contains(point) && !KEYED.contains(point));
    for (point, later) in here {
        let service = match point.split_once('.').expect("service.step").0 {
            "consumer" => None,
            service => Some(service),
        };
        for passage in [1, *later] {
            let spec = format!("{point}:{passage}");
            match service {
                Some("gateway") => plan.entry("gateway").or_default().push(spec),
                Some("keys") => plan.entry("keys").or_default().push(spec),
                Some(_) => plan.entry("wallet").or_default().push(spec),
                None if is_long => {
                    for consumer in CONSUMERS {
                        plan.entry(consumer).or_default().push(spec.clone());
                    }
                }
                // The loop is the same code in all four: the short form takes two each time.
                None => {
                    for consumer in [CONSUMERS[turn % 4], CONSUMERS[(turn + 2) % 4]] {
                        plan.entry(consumer).or_default().push(spec.clone());
                    }
                    turn += 1;
                }
            }
        }
    }
    plan
}

#[tokio::test]
async fn f02_every_point_leaves_everything_adding_up() {
    die_everywhere(&schedule(false), DEATHS_LIMIT).await;
}

/// Each consumer at each point, and all of it many times over.
#[tokio::test]
#[ignore = "minutes; run by make faults"]
async fn f02_every_point_leaves_everything_adding_up_many_times() {
    let mut plan = schedule(true);
    for points in plan.values_mut() {
        *points = std::iter::repeat_n(&*points, 10)
            .flatten()
            .cloned()
            .collect();
    }
    die_everywhere(&plan, LONG_DEATHS_LIMIT).await;
}

async fn die_everywhere(plan: &BTreeMap<&'static str, Vec<String>>, within: Duration) {
    let stack = Stack::start_with(
        &["--ephemeral", "--processes", "--gateways", "3"],
        // Small, so that segments come and go.
        &[("TOLLGATE_GATEWAY_JOURNAL_SEGMENT_BYTES", "65536")],
    )
    .await;
    priced::price_tokens(&stack);
    let poor = stack.customer("Poor", 10);
    let (_, poor_key) = stack.key(&poor, &LIVE);
    let loads = loads(&stack, &poor_key);
    for (service, points) in plan {
        stack.arm(service, points);
        for pid in stack.pids(service) {
            signal(pid, Signal::KILL);
        }
    }
    let wanted: usize = plan.values().map(Vec::len).sum();
    let injected = Cell::new(0);
    let waiting = RefCell::new(BTreeMap::<(String, String), Instant>::new());
    let done = eventually(within, "every point is died at", async || {
        injected.set(injected.get() + 1);
        stir(&stack, &poor, injected.get()).await;
        tokio::time::sleep(ROUND).await;
        let (died, armed) = stack.deaths();
        waiting
            .borrow_mut()
            .retain(|life, _| armed.get(&life.0) == Some(&life.1));
        for life in armed {
            let mut waiting = waiting.borrow_mut();
            let since = *waiting.entry(life.clone()).or_insert_with(Instant::now);
            if since.elapsed() > LIFE_LIMIT {
                try_again(&stack, &life);
                waiting.insert(life, Instant::now());
            }
        }
        let missing = missing(plan, &died);
        if missing.is_empty() {
            Ok(())
        } else {
            Err(format!("not yet: {missing:?}"))
        }
    });
    done.await.expect("died everywhere");
    let mut outcomes: Vec<Outcome> = Vec::new();
    for load in loads {
        outcomes.push(load.finish().await);
    }
    forget_poison(&stack, injected.get()).await;
    let all: Vec<&Outcome> = outcomes.iter().collect();
    let report = stack.audit_with(&all);
    let more = format!(
        "died {wanted} times at {} of {} points; {:?}",
        POINTS.len() - ELSEWHERE.len() - KEYED.len(),
        POINTS.len(),
        outcomes.iter().map(summary).collect::<Vec<_>>(),
    );
    // The others run out on purpose: test credits, and a wallet with little in it.
    let funded: Vec<&Outcome> = outcomes.iter().step_by(LOADS).collect();
    let figures = Figures {
        kills: wanted,
        faults: wanted,
        false_402: Figures::of("F02", &funded).false_402,
        quiet: Duration::from_millis(report["waited_ms"].as_u64().unwrap_or(0)),
        more,
        ..Figures::of("F02", &all)
    };
    figures.print(&stack, &report).await;
}

/// Loads of each gateway, the first of them with a key whose wallet is full.
const LOADS: usize = 4;

/// Calls at each gateway. Little is left in the last wallet: gateways recall from each other.
fn loads(stack: &Stack, poor_key: &str) -> Vec<Load> {
    let (live, test) = (stack.demo("live_key"), stack.demo("test_key"));
    let mut loads = Vec::new();
    for gateway in stack.gateways() {
        for (key, workers) in [(live.as_str(), 3), (&test, 1), (poor_key, 1)] {
            loads.push(Load::over(vec![gateway.clone()], key, workers));
        }
        loads.push(Load::of(Plan {
            gateways: vec![gateway],
            key: live.clone(),
            shots: vec![priced::stream()],
            workers: 3,
            pause: ROUND,
        }));
    }
    loads
}

/// Changes, credits, anomalies and poison for the points that only they pass. Who is asked may be
/// dead.
async fn stir(stack: &Stack, poor: &Customer, number: u32) {
    poison(stack, number).await;
    flag(stack, &poor.org, number).await;
    let change = ["key", "create", "--org", &poor.org, "--user", &poor.user];
    // A live key, so that its owner is mailed about it.
    let how = [
        "--name",
        "more",
        "--environment",
        "production",
        "--scope",
        "ai:write",
    ];
    stack.try_cli(&[&change[..], &how].concat());
    let grant = ["wallet", "grant", "--org", &poor.org, "--credits", "1"];
    stack.try_cli(&[&grant[..], &["--reason", "more"]].concat());
    // Connections that come to their end.
    for gateway in stack.gateways() {
        let mut connection = Connection::to(&gateway);
        drop(connection.call("", &Shot::get(DISTANCE)).await);
    }
}

/// A life that does not come to its point ends; the next takes the point, with another past.
fn try_again(stack: &Stack, (process, point): &(String, String)) {
    let (service, number) = match process.strip_prefix("gateway-") {
        Some(number) => ("gateway", number.parse().expect("a number")),
        None => (process.as_str(), 1),
    };
    stack.arm(service, std::slice::from_ref(point));
    signal(stack.pids(service)[number - 1], Signal::KILL);
}

/// What was planned and has not happened. Gateways share their plan.
fn missing(
    plan: &BTreeMap<&'static str, Vec<String>>,
    deaths: &[(String, String)],
) -> Vec<(String, String)> {
    let mut happened = deaths.to_vec();
    let planned = plan.iter().flat_map(|(service, points)| {
        points
            .iter()
            .map(|point| ((*service).to_owned(), point.clone()))
    });
    planned
        .filter(|(service, point)| {
            let found = happened.iter().position(|(name, at)| {
                at == point && (name == service || name.starts_with(&format!("{service}-")))
            });
            found.map(|index| happened.swap_remove(index)).is_none()
        })
        .collect()
}

/// Publishes what nobody can decode.
async fn poison(stack: &Stack, number: u32) {
    let subject = format!("usage.v1.{}", uuid::Uuid::from_u128(number.into()));
    let payload = format!("no batch, for {subject}");
    publish(stack, subject, payload.into()).await;
}

/// Publishes an anomaly, as the detector would.
async fn flag(stack: &Stack, org: &str, number: u32) {
    let event = AnomalyFlagged {
        anomaly_id: format!("ano_{}", uuid::Uuid::from_u128(number.into()).simple()),
        org_id: org.to_owned(),
        kind: "key_burst".to_owned(),
        ..AnomalyFlagged::default()
    };
    let subject = format!("anomaly.v1.flagged.{org}");
    publish(stack, subject, event.encode_to_vec().into()).await;
}

async fn publish(stack: &Stack, subject: String, payload: bytes::Bytes) {
    let url = stack.info()["nats_url"].as_str().expect("a URL").to_owned();
    let nats = async_nats::connect(url).await.expect("NATS");
    let stream = async_nats::jetstream::new(nats);
    let taken = stream.publish(subject, payload).await.expect("published");
    taken.await.expect("acknowledged");
}

/// Exactly what was injected was put aside by everybody; then it is forgotten.
async fn forget_poison(stack: &Stack, injected: u32) {
    const COUNTS: [&str; 4] = [
        "select count(*) from wallet.dead_letters where reason like 'not a usage batch%'",
        "select count(*) from usage_ingest.dead_letters where reason like 'not a usage batch%'",
        "select count(*) from stats_aggregator.dead_letters where reason like 'not a usage batch%'",
        "select count(*) from anomaly_detector.dead_letters where reason like 'not a usage batch%'",
    ];
    const DELETES: [&str; 4] = [
        "delete from wallet.dead_letters where reason like 'not a usage batch%'",
        "delete from usage_ingest.dead_letters where reason like 'not a usage batch%'",
        "delete from stats_aggregator.dead_letters where reason like 'not a usage batch%'",
        "delete from anomaly_detector.dead_letters where reason like 'not a usage batch%'",
    ];
    for (count, delete) in COUNTS.into_iter().zip(DELETES) {
        let aside = eventually(SETTLE_LIMIT, "poison is put aside", async || {
            match stack.count(count).await {
                found if found == i64::from(injected) => Ok(()),
                found => Err(format!("{found} of {injected}")),
            }
        });
        aside.await.expect("put aside");
        sqlx::query(delete)
            .execute(stack.pool())
            .await
            .expect("deleted");
    }
}

#[tokio::test]
async fn f09_f13_consumers_that_die_before_they_acknowledge_apply_once() {
    die_unacknowledged(3).await;
}

#[tokio::test]
#[ignore = "minutes; run by make faults"]
async fn f09_f13_consumers_that_die_two_hundred_times_apply_once() {
    die_unacknowledged(200).await;
}

/// F9 and F13: each consumer dies so many times between its commit and its acknowledgement; then
/// the stream is read twice more.
async fn die_unacknowledged(times: usize) {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "2"]).await;
    fund(&stack);
    let load = Load::start(&stack, &stack.demo("live_key"), 6);
    let passages = (1..=3).cycle().take(times);
    let points: Vec<String> = passages
        .map(|passage| format!("consumer.apply_committed:{passage}"))
        .collect();
    let plan: BTreeMap<&str, Vec<String>> = CONSUMERS
        .iter()
        .map(|name| (*name, points.clone()))
        .collect();
    for name in CONSUMERS {
        stack.arm(name, &points);
        signal(stack.pids(name)[0], Signal::KILL);
    }
    let died = eventually(LONG_DEATHS_LIMIT, "all consumers have died", async || {
        let missing = missing(&plan, &stack.deaths().0);
        if missing.is_empty() {
            Ok(())
        } else {
            Err(format!("not yet: {missing:?}"))
        }
    });
    died.await.expect("died");
    let outcome = load.finish().await;
    let report = stack.audit_with(&[&outcome]);
    let before = stack.digests().await;
    let first = stack.replay_usage().await;
    let second = stack.replay_usage().await;
    assert_eq!(
        stack.digests().await,
        before,
        "a repetition changes nothing"
    );
    let more = format!(
        "each consumer died {times} times; {}; {} messages repeated",
        summary(&outcome),
        first + second,
    );
    Figures::say(
        "F13",
        [4 * times, 4 * times],
        &[&outcome],
        more,
        &stack,
        &report,
    )
    .await;
}

//! PostgreSQL dies under load, prices change under load, limits are shared while who shares them
//! dies, and a journal is destroyed.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use proto::keys::v1::SetServiceRequest;
use rustix::process::Signal;
use testkit::{
    eventually,
    load::{Outcome, Plan, Shot},
};

use super::{
    DISTANCE, LIVE, Load, chat,
    figures::{self, Figures},
    fund, render, summary,
};
use crate::{
    stack::{SETTLE_LIMIT, Stack, signal},
    world::World,
};

/// A gateway tells its totals once a second, and they need a while to arrive.
const HEARTBEATS_APART: Duration = Duration::from_millis(1_500);
/// F22 changes prices so often.
const PRICES_A_SECOND: u32 = 50;

/// F14: PostgreSQL restarts without ceremony, again and again; calls go on from leases in hand.
#[tokio::test]
async fn f14_calls_go_on_while_postgresql_dies() {
    lose_postgresql(3).await;
}

#[tokio::test]
#[ignore = "minutes; run by make faults"]
async fn f14_calls_go_on_while_postgresql_dies_twenty_times() {
    lose_postgresql(20).await;
}

async fn lose_postgresql(times: usize) {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "2"]).await;
    fund(&stack);
    let load = Load::start(&stack, &stack.demo("live_key"), 8);
    // Leases have grown to what the load uses.
    load.more_answers(500).await;
    for turn in 0..times {
        let dying = stack.pids("postgres")[0];
        // An immediate stop, and a death without any.
        let how = if turn % 2 == 0 {
            Signal::QUIT
        } else {
            Signal::KILL
        };
        signal(dying, how);
        let back = eventually(SETTLE_LIMIT, "PostgreSQL is back", async || {
            match stack.pids("postgres").first() {
                Some(pid) if *pid != dying => {}
                _ => return Err("not started".to_owned()),
            }
            let alive = sqlx::query_scalar::<_, i64>("select count(*) from wallet.inbox");
            match alive.fetch_one(stack.pool()).await {
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        });
        back.await.expect("back");
        load.more_answers(200).await;
    }
    let outcome = load.finish().await;
    let report = stack.audit_with(&[&outcome]);
    let served = outcome.by_status.iter();
    let served: u64 = served
        .filter(|(status, _)| [200, 422].contains(*status))
        .map(|(_, calls)| calls)
        .sum();
    let more = format!(
        "PostgreSQL died {times} times: {} of {} calls served, {}",
        served,
        outcome.sent,
        summary(&outcome),
    );
    Figures::say(
        "F14",
        [times / 2, times],
        &[&outcome],
        more,
        &stack,
        &report,
    )
    .await;
    // Without a lease there is no credit to spend: refused as unavailable, never as unfunded.
    let is_honest = |status: &u16| [200, 422, 503].contains(status);
    assert!(
        outcome.by_status.keys().all(is_honest) && outcome.broken == 0,
        "{}",
        summary(&outcome)
    );
}

/// F22: prices change under load; each call is charged by the version it was admitted under.
#[tokio::test]
async fn f22_a_call_costs_what_it_cost_when_it_was_admitted() {
    change_prices(Duration::from_secs(4)).await;
}

#[tokio::test]
#[ignore = "minutes; run by make faults"]
async fn f22_prices_that_change_fifty_times_a_second_are_charged_as_admitted() {
    change_prices(figures::seconds(60)).await;
}

/// What calls of a service cost, by version of its prices.
type Prices = BTreeMap<(String, i64), i64>;

/// Changes the prices of all services for so long, fifty times a second if the system can.
async fn change_prices(lasts: Duration) {
    let world = World::of(Stack::start(&["--ephemeral", "--processes", "--gateways", "2"]).await);
    let stack = &world.stack;
    fund(stack);
    let load = Load::of(Plan {
        gateways: stack.gateways(),
        key: stack.demo("live_key"),
        shots: vec![Shot::get(DISTANCE), render(), chat()],
        workers: 8,
        pause: Duration::from_millis(10),
    });
    load.more_answers(100).await;
    let first: Vec<(String, i64, i64)> =
        sqlx::query_as("select name, price_version, base_cost_per_call from keys.services")
            .fetch_all(stack.pool())
            .await
            .expect("versions");
    // Two changes of one service wait for each other.
    let changing = first.iter().map(|(name, _, cost)| {
        let period = Duration::from_secs(1) * u32::try_from(first.len()).expect("few");
        change_price(&world, name, *cost, period / PRICES_A_SECOND, lasts)
    });
    let began = Instant::now();
    let changed = futures_util::future::join_all(changing).await;
    let took = began.elapsed();
    let changes: usize = changed.iter().map(BTreeMap::len).sum();
    let first = first
        .into_iter()
        .map(|(name, version, cost)| ((name, version), cost));
    let prices: Prices = changed.into_iter().flatten().chain(first).collect();
    let outcome = load.finish().await;
    let report = stack.audit_with(&[&outcome]);
    let charged: Vec<(String, i64, i64, i64)> = sqlx::query_as(
        "select service, price_version, credits_used, count(*) from usage_ingest.api_usage_logs
          where status_code = 200 group by 1, 2, 3 order by 1, 2, 3",
    )
    .fetch_all(stack.pool())
    .await
    .expect("rows");
    let more = format!(
        "{changes} prices in {took:?}, {:.1} of {PRICES_A_SECOND} a second: {}, {} versions were \
         charged",
        figures::a_second(changes, took),
        summary(&outcome),
        charged.len(),
    );
    Figures::say("F22", [0, changes], &[&outcome], more, stack, &report).await;
    for (service, version, cost, calls) in &charged {
        let listed = prices.get(&(service.clone(), *version));
        let what = format!("{calls} calls under version {version} of {service}");
        assert_eq!(listed, Some(cost), "{what}: {charged:?}");
    }
    assert!(charged.len() > 5, "many prices were met: {charged:?}");
}

/// Changes the price of one service for so long. Returns what it was, by version.
async fn change_price(
    world: &World,
    name: &str,
    first: i64,
    period: Duration,
    lasts: Duration,
) -> Prices {
    let (mut keys, mut prices) = (world.keys.clone(), Prices::new());
    let (mut ticks, began) = (tokio::time::interval(period), Instant::now());
    for step in 1.. {
        ticks.tick().await;
        if began.elapsed() > lasts {
            break;
        }
        let cost = (first + step) % 7 + 1;
        let change = SetServiceRequest {
            name: name.to_owned(),
            base_cost_per_call: Some(cost),
            ..SetServiceRequest::default()
        };
        let changed = keys.set_service(change).await.expect("changed");
        let service = changed.into_inner().service.expect("a service");
        prices.insert((name.to_owned(), service.price_version), cost);
    }
    prices
}

/// F24: a day's quota and a rate on four gateways, while who shares the rate out is killed.
#[tokio::test]
async fn f24_limits_hold_on_four_gateways_while_their_sharer_dies() {
    const QUOTA: usize = 300;
    const RATE: usize = 40;
    const BURST: usize = 20;
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "4"]).await;
    fund(&stack);
    let customer = stack.customer("Limited", 100_000);
    let quota = [&LIVE[..], &["--daily-quota", "300"]].concat();
    let (_, capped) = stack.key(&customer, &quota);
    let rate = [&LIVE[..], &["--rate", "40", "--burst", "20"]].concat();
    let (_, paced) = stack.key(&customer, &rate);
    let plan = |key: String| Plan {
        gateways: stack.gateways(),
        key,
        shots: vec![Shot::get(DISTANCE)],
        workers: 8,
        pause: Duration::from_millis(5),
    };
    let began = Instant::now();
    let (capped, paced) = (Load::of(plan(capped)), Load::of(plan(paced)));
    paced.more_answers(300).await;
    signal(stack.pids("keys")[0], Signal::KILL);
    paced.more_answers(500).await;
    signal(stack.pids("gateway")[1], Signal::KILL);
    paced.more_answers(500).await;
    capped.more_answers(500).await;
    let paced = paced.finish().await;
    let seconds = began.elapsed().as_secs_f64();
    let capped = capped.finish().await;
    let report = stack.audit_with(&[&capped, &paced]);
    let admitted = |outcome: &Outcome| {
        usize::try_from(outcome.by_status.get(&200).copied().unwrap_or(0)).expect("small")
    };
    let busiest = busiest_second(&paced);
    let more = format!(
        "limits: {} of {QUOTA} a day, {} calls in {seconds:.1} s at {RATE} a second, at most \
         {busiest} in one; {}; {}",
        admitted(&capped),
        admitted(&paced),
        summary(&capped),
        summary(&paced),
    );
    Figures::say("F24", [2, 2], &[&capped, &paced], more, &stack, &report).await;
    assert!(admitted(&capped) <= QUOTA, "{}", summary(&capped));
    // The gateway that was killed had permits in hand: they count as used until it is back.
    assert!(admitted(&capped) >= QUOTA / 2, "{}", summary(&capped));
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let most = (RATE as f64) * seconds * 1.05 + BURST as f64;
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let seen = admitted(&paced) as f64;
    assert!(seen <= most, "{seen} admitted, at most {most}");
    assert!(admitted(&paced) > RATE, "{}", summary(&paced));
    // The gateway that was killed begins with its part of the burst anew.
    let most = RATE + RATE / 20 + BURST + BURST / 4;
    assert!(busiest <= most, "{busiest} in one second, at most {most}");
}

/// Most calls that were admitted within one second, whenever it begins.
fn busiest_second(outcome: &Outcome) -> usize {
    busiest(outcome, Duration::from_secs(1))
}

/// Most calls that were admitted within so long.
fn busiest(outcome: &Outcome, window: Duration) -> usize {
    let admitted = outcome.done.iter().filter(|done| done.status == 200);
    let mut times: Vec<Instant> = admitted.map(|done| done.at).collect();
    times.sort_unstable();
    let within = |from: usize| {
        let end = times[from] + window;
        times[from..].iter().take_while(|at| **at < end).count()
    };
    (0..times.len()).map(within).max().unwrap_or(0)
}

/// F25: a gateway dies and its journal is destroyed, with what the bus was not there to take. What
/// it lent is lent again after the write-off; what its heartbeats told is debited, and stated as
/// unitemised. The last second is the provider's, and no customer pays more than was answered.
#[tokio::test]
async fn f25_a_destroyed_journal_costs_the_customer_nothing() {
    let variables = [
        ("TOLLGATE_WALLET_ORPHAN_SECONDS", "4"),
        ("TOLLGATE_WALLET_WRITE_OFF_HOURS", "0"),
    ];
    let arguments = ["--ephemeral", "--processes", "--gateways", "2"];
    let stack = Stack::start_with(&arguments, &variables).await;
    let customer = stack.customer("Unlucky", 1_000_000);
    let (_, key) = stack.key(&customer, &LIVE);
    let load = Load::of(Plan {
        gateways: stack.gateways()[..1].to_vec(),
        key,
        shots: vec![Shot::get(DISTANCE)],
        workers: 8,
        pause: Duration::from_millis(20),
    });
    load.more_answers(400).await;
    let journal: uuid::Uuid = sqlx::query_scalar(
        "select id from wallet.journals where gateway = 'gateway-1' and retired_at is null",
    )
    .fetch_one(stack.pool())
    .await
    .expect("a journal");
    let outcome = destroy(&stack, load, journal).await;
    written_off(&stack, journal).await;
    let report = stack.audit();
    let answered: i64 = outcome.done.iter().map(|done| done.cost).sum();
    let (balance, used): (i64, i64) = sqlx::query_as(
        "select w.balance, w.total_used from wallet.wallets w
           join wallet.leases l on l.wallet_id = w.id and l.journal_id = $1 limit 1",
    )
    .bind(journal)
    .fetch_one(stack.pool())
    .await
    .expect("a wallet");
    let rows: i64 = sqlx::query_scalar(
        "select coalesce(sum(credits_used), 0)::int8 from usage_ingest.api_usage_logs
          where journal_id = $1",
    )
    .bind(journal)
    .fetch_one(stack.pool())
    .await
    .expect("a sum");
    let (unitemised, lost) = (used - rows, answered - used);
    let second = i64::try_from(busiest(&outcome, HEARTBEATS_APART)).expect("few");
    let more = format!(
        "journal destroyed: {answered} credits answered for, {used} used, {unitemised} of them \
         unitemised, {lost} lost to the provider, at most {second} within {HEARTBEATS_APART:?}; {}",
        summary(&outcome),
    );
    Figures::say("F25", [1, 2], &[&outcome], more, &stack, &report).await;
    let broken = i64::try_from(outcome.broken).expect("small");
    assert!(lost >= -broken, "{used} used, {answered} answered");
    assert_eq!(balance + used, 1_000_000, "the rest came back");
    assert!(unitemised > 0, "the bus had not taken all of it");
    assert_eq!(report["unitemised"], unitemised, "stated as what it is");
    assert!(lost <= second, "more than a heartbeat's worth is unknown");
}

/// Kills a gateway that can ship nothing, a while later, and destroys its journal.
async fn destroy(stack: &Stack, load: Load, journal: uuid::Uuid) -> Outcome {
    let place = find(&stack.data(), &format!("jrn_{}", journal.simple()));
    let (victim, bus) = (stack.pids("gateway")[0], stack.pids("nats")[0]);
    signal(bus, Signal::STOP);
    load.more_answers(1_000).await;
    // Its next life must not find the folder.
    signal(victim, Signal::STOP);
    std::fs::remove_dir_all(&place).expect("destroyed");
    signal(victim, Signal::KILL);
    let outcome = load.finish().await;
    signal(bus, Signal::CONT);
    outcome
}

/// Waits until a journal has no open lease.
async fn written_off(stack: &Stack, journal: uuid::Uuid) {
    let written_off = eventually(SETTLE_LIMIT, "its leases are written off", async || {
        let open: i64 = sqlx::query_scalar(
            "select count(*) from wallet.leases where journal_id = $1
                and state not in ('closed', 'written_off')",
        )
        .bind(journal)
        .fetch_one(stack.pool())
        .await
        .expect("a count");
        if open == 0 {
            Ok(())
        } else {
            Err(format!("{open} open"))
        }
    });
    written_off.await.expect("written off");
}

fn find(folder: &std::path::Path, name: &str) -> std::path::PathBuf {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy() == name {
                return entry.path();
            }
            if entry.path().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    panic!("no {name} below {}", folder.display());
}

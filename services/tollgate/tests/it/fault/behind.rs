//! PostgreSQL refuses transactions, loses connections inside COMMIT, and is slow; the bus hands out
//! little and loses connections. The services reach both through proxies of the test.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use async_nats::jetstream::{
    self,
    consumer::{FromConsumer as _, pull},
    stream::Stream,
};
use rustix::process::Signal;
use testkit::{
    eventually,
    load::{Outcome, Plan, Shot},
    ports,
    proxy::{Around, Faults, Proxy},
    servers::{Nats, Options},
};

use super::{DISTANCE, Load, figures::Figures, fund, render, stream::only, summary};
use crate::stack::{CONSUMERS, SETTLE_LIMIT, Stack, signal};

/// As a statement of its own, as the services' client sends it.
const COMMIT: &[u8] = b"COMMIT\0";
/// Of all commits every so many-th loses its connection.
const CUT_EVERY: u64 = 4;
/// Every round trip to PostgreSQL takes so much longer, half of it each way.
const SLOWER: Duration = Duration::from_millis(500);
/// So many messages a consumer may have in hand, in place of thousands.
const IN_HAND_MAX: i64 = 8;
/// A consumer with nothing in hand that is handed nothing for so long, though something waits, is
/// stuck.
const STUCK: Duration = Duration::from_secs(10);
/// Until consumers that are slow have caught up.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(120);

/// Transactions of the consumers and of the wallet's lending fail by lot, in a statement or inside
/// COMMIT. Sequences count them: a rollback does not take a number back.
const FORCE: &str = "
    create schema forced;
    create function forced.refuse() returns trigger language plpgsql security definer as $$
    declare
        code text := case when random() < 0.5 then '40001' else '40P01' end;
    begin
        if random() < 0.2 then
            perform nextval(format('forced.%I', concat_ws(' ', tg_table_schema, code, tg_argv[0])));
            raise exception 'forced by a test' using errcode = code;
        end if;
        return null;
    end $$;
    do $$
    declare
        service text;
        code text;
        place text;
        place_of text;
    begin
        foreach service in array
            array['wallet', 'usage_ingest', 'stats_aggregator', 'anomaly_detector'] loop
            foreach code in array array['40001', '40P01'] loop
                foreach place in array array['statement', 'commit'] loop
                    execute format('create sequence forced.%I',
                                   concat_ws(' ', service, code, place));
                end loop;
            end loop;
        end loop;
        foreach place_of in array
            array['wallet.leases', 'wallet.inbox', 'usage_ingest.inbox',
                  'stats_aggregator.inbox', 'anomaly_detector.inbox'] loop
            execute format(
                'create trigger forced after insert or update on %s
                 for each statement execute function forced.refuse(''statement'')', place_of);
            execute format(
                'create constraint trigger forced_late after insert or update on %s
                 deferrable initially deferred
                 for each row execute function forced.refuse(''commit'')', place_of);
        end loop;
    end $$";

/// Ends it without a lock that others would wait for.
const RELENT: &str = "
    create or replace function forced.refuse() returns trigger language plpgsql as $$
    begin
        return null;
    end $$";

/// A stack whose services reach their database and the bus through proxies.
struct Behind {
    nats: Nats,
    bus: Proxy,
    database: Proxy,
    stack: Stack,
}

/// How consumers caught up.
#[derive(Debug, Default)]
struct CaughtUp {
    /// Messages that the slowest had before it, at most.
    messages: u64,
    took: Duration,
    /// Times a consumer was stuck.
    stalls: usize,
}

impl CaughtUp {
    fn add(&mut self, other: &Self) {
        self.messages = self.messages.max(other.messages);
        self.took = self.took.max(other.took);
        self.stalls += other.stalls;
    }
}

impl Behind {
    async fn start() -> Self {
        let nats = Nats::start(&Options::ephemeral()).await.expect("NATS");
        let before = async |port: u16| {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            Proxy::start(address).await.expect("a proxy")
        };
        let bus = before(nats.port()).await;
        let port = ports::free();
        let database = before(port).await;
        let url = format!("nats://127.0.0.1:{}", bus.port());
        let (port, proxy) = (port.to_string(), database.port().to_string());
        let through = ["--postgres-port", &port, "--postgres-proxy", &proxy];
        let arguments = ["--ephemeral", "--processes", "--gateways", "2"];
        let arguments = [&arguments[..], &through].concat();
        let stack = Stack::start_with(&arguments, &[("NATS_URL", &url)]).await;
        fund(&stack);
        Self {
            nats,
            bus,
            database,
            stack,
        }
    }

    /// Forces refusals until each service has met each of them so often. Returns how often, by
    /// service, code and place.
    async fn refuse(&self, times: i64) -> BTreeMap<String, i64> {
        // It locks tables that are in use: it can meet a deadlock of its own.
        let forced = eventually(SETTLE_LIMIT, "refusals are forced", async || {
            sqlx::raw_sql(FORCE).execute(self.stack.pool()).await
        });
        forced.await.expect("forced");
        let met = eventually(CATCH_UP_LIMIT, "all have met all refusals", async || {
            let met = self.refused().await;
            match met.values().all(|met| *met >= times) {
                true => Ok(()),
                false => Err(format!("{met:?}")),
            }
        });
        met.await.expect("met");
        let relented = sqlx::raw_sql(RELENT).execute(self.stack.pool()).await;
        relented.expect("relented");
        self.refused().await
    }

    async fn refused(&self) -> BTreeMap<String, i64> {
        let counts: Vec<(String, i64)> = sqlx::query_as(
            "select sequencename::text, coalesce(last_value, 0)
               from pg_sequences where schemaname = 'forced'",
        )
        .fetch_all(self.stack.pool())
        .await
        .expect("counts");
        counts.into_iter().collect()
    }

    /// Cuts connections inside COMMIT until so many were cut before the server had it, and as many
    /// after it had answered.
    async fn cut_commits(&self, times: u64) -> [u64; 2] {
        self.database.set(Faults {
            cut_around: Some(Around {
                text: COMMIT,
                every: CUT_EVERY,
            }),
            ..Faults::default()
        });
        let lost = || [self.database.lost_requests(), self.database.lost_replies()];
        // A cut connection is made anew before the next commit on it.
        let limit = CATCH_UP_LIMIT + u32::try_from(times).expect("few") * Duration::from_secs(1);
        let cut = eventually(limit, "commits are cut off", async || match lost() {
            lost if lost.iter().all(|lost| *lost >= times) => Ok(()),
            lost => Err(format!("{lost:?} of {times}")),
        });
        cut.await.expect("cut off");
        self.database.resume();
        lost()
    }

    /// How often the wallet has lent.
    async fn acquisitions(&self) -> i64 {
        sqlx::query_scalar("select count(*) from wallet.acquisitions")
            .fetch_one(self.stack.pool())
            .await
            .expect("a count")
    }

    /// The stream of usage, past the proxy.
    async fn usage(&self) -> Stream {
        let nats = async_nats::connect(self.nats.url()).await.expect("NATS");
        let usage = jetstream::new(nats).get_stream("USAGE").await;
        usage.expect("the stream")
    }

    /// Waits until every consumer has acknowledged all that the stream has now.
    async fn catch_up(&self) -> CaughtUp {
        let usage = self.usage().await;
        let last = usage.get_info().await.expect("its state").state;
        let last = last.last_sequence;
        let began = Instant::now();
        let mut caught_up = CaughtUp::default();
        let mut handed: BTreeMap<&str, (u64, Instant)> = BTreeMap::new();
        while began.elapsed() < CATCH_UP_LIMIT {
            let mut is_behind = false;
            for name in CONSUMERS {
                let now = usage.consumer_info(name).await.expect("a consumer");
                let waiting = now.num_pending + u64::try_from(now.num_ack_pending).expect("few");
                caught_up.messages = caught_up.messages.max(waiting);
                is_behind |= now.ack_floor.stream_sequence < last && waiting > 0;
                let latest = (now.delivered.consumer_sequence, Instant::now());
                let before = handed.entry(name).or_insert(latest);
                // One that has messages in hand is at work, however slow its database is.
                let is_idle = now.num_pending > 0 && now.num_ack_pending == 0;
                let is_stuck = is_idle && before.0 == latest.0;
                if !is_stuck || before.1.elapsed() > STUCK {
                    caught_up.stalls += usize::from(is_stuck);
                    *before = latest;
                }
            }
            if !is_behind {
                caught_up.took = began.elapsed();
                return caught_up;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("not caught up within {CATCH_UP_LIMIT:?}: {caught_up:?}")
    }

    /// Lets each consumer have little in hand, and stops them all until each has so much, and more
    /// waits.
    async fn narrow(&self) {
        let usage = self.usage().await;
        for name in CONSUMERS {
            let known = usage.consumer_info(name).await.expect("a consumer").config;
            let mut config = pull::Config::try_from_consumer_config(known).expect("it pulls");
            config.max_ack_pending = IN_HAND_MAX;
            usage.update_consumer(config).await.expect("narrowed");
        }
        let all = CONSUMERS.iter().flat_map(|name| self.stack.pids(name));
        let all: Vec<i32> = all.collect();
        all.iter().for_each(|pid| signal(*pid, Signal::STOP));
        for name in CONSUMERS {
            let reached = eventually(SETTLE_LIMIT, "the limit is reached", async || {
                let now = usage.consumer_info(name).await.expect("a consumer");
                let in_hand = i64::try_from(now.num_ack_pending).expect("few");
                match in_hand >= IN_HAND_MAX && now.num_pending > 0 {
                    true => Ok(()),
                    false => Err(format!("{name}: {in_hand}, {} wait", now.num_pending)),
                }
            });
            reached.await.expect("reached");
        }
        all.iter().for_each(|pid| signal(*pid, Signal::CONT));
    }
}

/// F14: transactions are refused again and again, in the middle and at their end, and connections
/// are lost in COMMIT, so that nobody knows whether it was done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a minute; run by make faults"]
async fn f14_refused_and_lost_transactions_are_repeated_and_count_once() {
    lose_transactions(1, 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes; run by make faults"]
async fn f14_transactions_that_are_refused_and_lost_all_day_count_once() {
    lose_transactions(40, 500).await;
}

async fn lose_transactions(times: i64, cuts: u64) {
    let rig = Behind::start().await;
    let load = Load::start(&rig.stack, &rig.stack.demo("live_key"), 8);
    load.more_answers(500).await;
    let refused = rig.refuse(times).await;
    load.more_answers(100).await;
    let [before, after] = rig.cut_commits(cuts).await;
    load.more_answers(100).await;
    let outcome = load.finish().await;
    let report = rig.stack.audit_with(&[&outcome]);
    let all: i64 = refused.values().sum();
    let served = outcome.by_status.get(&503).copied().unwrap_or(0);
    let served = outcome.sent - served;
    let faults = usize::try_from(all).expect("few");
    let faults = faults + usize::try_from(before + after).expect("few");
    let more = format!(
        "{all} transactions refused {refused:?}, connections cut {before} times before and {after} \
         times after COMMIT: {served} of {} calls served, {}",
        outcome.sent,
        summary(&outcome),
    );
    Figures::say("F14", [0, faults], &[&outcome], more, &rig.stack, &report).await;
    only(&outcome, &[200, 422, 503]);
}

/// F12: a wallet whose every acquisition takes longer than a call waits, because of its database,
/// still lends in time: what gateways begin to ask for is there for later calls, and they ask for
/// as much as lasts until they are answered again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a minute; run by make faults"]
async fn f12_a_wallet_slower_than_its_callers_wait_lends_in_time() {
    let rig = Behind::start().await;
    let load = || Load::start(&rig.stack, &rig.stack.demo("live_key"), 8);
    let quick = load();
    quick.more_answers(200).await;
    let mut outcomes = vec![quick.finish().await];
    rig.database.latency(SLOWER / 2);
    // What was lent until now lasts for seconds only. Each gateway finds that out, and asks once
    // more before what it is lent lasts.
    let mut is_in_time = false;
    while !is_in_time {
        assert!(outcomes.len() < 8, "some are refused again and again");
        let (load, lent) = (load(), rig.acquisitions().await);
        while rig.acquisitions().await == lent {
            load.more_answers(500).await;
        }
        let outcome = load.finish().await;
        is_in_time = !outcome.by_status.contains_key(&503);
        outcomes.push(outcome);
    }
    rig.database.resume();
    let outcomes: Vec<&Outcome> = outcomes.iter().collect();
    let report = rig.stack.audit_with(&outcomes);
    let told: Vec<String> = outcomes.iter().map(|it| summary(it)).collect();
    let more = format!("PostgreSQL {SLOWER:?} slower: {}", told.join("; "));
    Figures::say("F12", [0, 1], &outcomes, more, &rig.stack, &report).await;
    outcomes.iter().for_each(|it| only(it, &[200, 422, 503]));
}

/// F12: PostgreSQL is slow, the consumers may have little in hand, and lose their connections to
/// the bus: none is stuck, and all catch up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes; run by make faults"]
async fn f12_slow_narrow_and_cut_off_consumers_catch_up() {
    let cuts = 50;
    let rig = Behind::start().await;
    // Slow enough that what is lent lasts: the wallet is as slow as its database.
    let load = Load::of(Plan {
        gateways: rig.stack.gateways(),
        key: rig.stack.demo("live_key"),
        shots: vec![Shot::get(DISTANCE), render()],
        workers: 8,
        pause: Duration::from_millis(100),
    });
    load.more_answers(100).await;
    rig.database.latency(SLOWER / 2);
    load.more_answers(100).await;
    let slow = rig.catch_up().await;
    rig.database.resume();
    rig.narrow().await;
    let narrow = rig.catch_up().await;
    load.more_answers(100).await;
    let mut cut_off = rig.catch_up().await;
    for _ in 0..cuts {
        rig.bus.cut();
        load.more_answers(20).await;
        cut_off.add(&rig.catch_up().await);
    }
    let outcome = load.finish().await;
    let report = rig.stack.audit_with(&[&outcome]);
    let stalls = slow.stalls + narrow.stalls + cut_off.stalls;
    let more = format!(
        "PostgreSQL {SLOWER:?} slower {slow:?}, {IN_HAND_MAX} messages in hand {narrow:?}, cut off \
         {cuts} times {cut_off:?}; stalls={stalls}; {}",
        summary(&outcome),
    );
    Figures::say("F12", [0, cuts + 2], &[&outcome], more, &rig.stack, &report).await;
    assert_eq!(stalls, 0, "a consumer was stuck");
    only(&outcome, &[200, 422, 503]);
}

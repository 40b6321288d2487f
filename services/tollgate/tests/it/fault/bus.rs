//! The bus is dead, stopped, silent or slow; a cluster of three loses members. These servers are
//! the test's own: `dev` is told to use them.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use async_nats::jetstream;
use testkit::{
    eventually,
    load::{Plan, Shot},
    proxy::{Faults, Proxy},
    servers::{Links, Nats, Options},
};

use super::{
    DISTANCE, Load,
    figures::{self, Figures, a_second},
    fund,
    quiet::quiet,
    render,
    shipping::rows_grow,
    summary,
};
use crate::stack::{SETTLE_LIMIT, Stack};

/// How long the bus is dead in the short form, and in the long one unless told otherwise.
const AWAY: Duration = Duration::from_secs(6);
const LONG_AWAY_SECONDS: u64 = 600;
/// It is stopped, silent and slow for so much less.
const OTHER_FAULTS_SHARE: u32 = 4;
/// Until everything is caught up.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(600);
/// As the slow bus is.
const SLOW_BYTES_PER_SECOND: usize = 1_024;

/// A NATS behind a proxy, and the stack that uses it.
struct Bus {
    nats: Nats,
    proxy: Proxy,
    stack: Stack,
}

impl Bus {
    async fn start(variables: &[(&str, &str)]) -> Self {
        let nats = Nats::start(&Options::ephemeral()).await.expect("NATS");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, nats.port()));
        let proxy = Proxy::start(address).await.expect("a proxy");
        let url = format!("nats://127.0.0.1:{}", proxy.port());
        let variables = [variables, &[("NATS_URL", url.as_str())]].concat();
        let arguments = ["--ephemeral", "--processes", "--gateways", "2"];
        let stack = Stack::start_with(&arguments, &variables).await;
        fund(&stack);
        Self { nats, proxy, stack }
    }

    async fn begin(&self, fault: Fault) {
        match fault {
            Fault::Dead => {
                self.nats.kill();
                self.nats.wait_exit().await;
            }
            Fault::Stopped => self.nats.pause(),
            Fault::Silent => self.proxy.black_hole(),
            Fault::Slow => self.proxy.set(Faults {
                bytes_per_second: Some(SLOW_BYTES_PER_SECOND),
                ..Faults::default()
            }),
        }
    }

    async fn end(&self, fault: Fault) {
        match fault {
            Fault::Dead => self.nats.restart().await.expect("started again"),
            Fault::Stopped => self.nats.resume(),
            Fault::Silent | Fault::Slow => self.proxy.resume(),
        }
    }

    /// Records that every consumer has applied.
    async fn applied(&self) -> usize {
        let least = self
            .stack
            .count(
                "select least(
                    (select coalesce(sum(upper(r) - lower(r)), 0)
                       from wallet.inbox, unnest(applied) r),
                    (select coalesce(sum(upper(r) - lower(r)), 0)
                       from usage_ingest.inbox, unnest(applied) r),
                    (select coalesce(sum(upper(r) - lower(r)), 0)
                       from stats_aggregator.inbox, unnest(applied) r),
                    (select coalesce(sum(upper(r) - lower(r)), 0)
                       from anomaly_detector.inbox, unnest(applied) r))::int8",
            )
            .await;
        usize::try_from(least).expect("not negative")
    }

    /// One fault under load. Returns what it says of itself.
    async fn suffer(&self, load: &Load, fault: Fault, away: Duration) -> String {
        let before = load.answered();
        self.begin(fault).await;
        tokio::time::sleep(away).await;
        let during = load.answered() - before;
        let (applied, healed) = (self.applied().await, load.answered());
        self.end(fault).await;
        let began = Instant::now();
        // Half a second of calls is always under way.
        let slack = during
            / usize::try_from(away.as_millis() / 500)
                .expect("small")
                .max(1);
        let caught_up = eventually(CATCH_UP_LIMIT, "consumers catch up", async || {
            let (now, answered) = (self.applied().await - applied, load.answered());
            let wanted = during + (answered - healed);
            match now + slack >= wanted {
                true => Ok(now),
                false => Err(format!("{now} of {wanted}")),
            }
        });
        let caught_up = a_second(caught_up.await.expect("caught up"), began.elapsed());
        let arrival = a_second(during, away);
        format!(
            "{fault:?} {away:?}: {during} calls, {arrival:.0} a second; caught up after {:.1} s, \
             {caught_up:.0} a second, {:.1} times as fast",
            began.elapsed().as_secs_f64(),
            caught_up / arrival.max(1.0),
        )
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Dead,
    Stopped,
    Silent,
    Slow,
}

/// F6: calls go on from the journal while nothing can be shipped, and are shipped afterwards.
#[tokio::test]
async fn f06_calls_go_on_while_the_bus_is_dead_stopped_silent_or_slow() {
    lose_the_bus(AWAY, 8, Duration::from_millis(20)).await;
}

/// The long form: ten minutes, as many calls a second as the machine and a thousand allow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes; run by make faults"]
async fn f06_a_thousand_calls_a_second_go_on_while_the_bus_is_dead_for_minutes() {
    let away = figures::seconds(LONG_AWAY_SECONDS);
    lose_the_bus(away, 32, Duration::from_millis(28)).await;
}

async fn lose_the_bus(away: Duration, workers: usize, pause: Duration) {
    let bus = Bus::start(&[]).await;
    let stack = &bus.stack;
    let load = Load::of(Plan {
        gateways: stack.gateways(),
        key: stack.demo("live_key"),
        shots: vec![Shot::get(DISTANCE), render()],
        workers,
        pause,
    });
    rows_grow(stack, 1).await;
    let mut said = vec![bus.suffer(&load, Fault::Dead, away).await];
    for fault in [Fault::Stopped, Fault::Silent, Fault::Slow] {
        said.push(bus.suffer(&load, fault, away / OTHER_FAULTS_SHARE).await);
    }
    let outcome = load.finish().await;
    let settled = quiet(stack, Instant::now()).await.settled;
    let report = stack.audit_with(&[&outcome]);
    let figures = Figures {
        kills: 1,
        faults: 4,
        quiet: settled,
        more: said.join("; "),
        ..Figures::of("F06", &[&outcome])
    };
    figures.print(stack, &report).await;
    let refused = outcome.by_status.keys().filter(|status| **status != 200);
    assert_eq!(refused.count(), 0, "{}", summary(&outcome));
    let unanswered = (outcome.broken, outcome.unreachable);
    assert_eq!(unanswered, (0, 0), "{}", summary(&outcome));
}

/// F6: above the high-water mark calls are refused as what they are, and go on by themselves
/// afterwards.
#[tokio::test]
async fn f06_a_full_journal_refuses_calls_until_it_is_shipped() {
    let bus = Bus::start(&[
        ("TOLLGATE_GATEWAY_JOURNAL_SEGMENT_BYTES", "65536"),
        ("TOLLGATE_GATEWAY_JOURNAL_BYTES_MAX", "1048576"),
    ])
    .await;
    let (stack, key) = (&bus.stack, bus.stack.demo("live_key"));
    let load = Load::steady(stack, &key);
    rows_grow(stack, 1).await;
    bus.begin(Fault::Silent).await;
    let full = eventually(SETTLE_LIMIT, "the journals are full", async || {
        let answer = stack.call(&key, &Shot::get(DISTANCE)).await;
        match answer.status.as_u16() {
            503 => Ok(answer),
            _ => Err(format!("{answer:?}")),
        }
    });
    let refused = full.await.expect("full");
    assert_eq!(
        refused.json()["code"],
        "metering_unavailable",
        "{refused:?}"
    );
    let wait: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!(wait > 0, "{refused:?}");
    load.more_answers(200).await;
    bus.end(Fault::Silent).await;
    let healed = eventually(SETTLE_LIMIT, "calls are served again", async || {
        let answer = stack.call(&key, &Shot::get(DISTANCE)).await;
        match answer.status.as_u16() {
            200 => Ok(()),
            _ => Err(format!("{answer:?}")),
        }
    });
    healed.await.expect("healed");
    let outcome = load.finish().await;
    let settled = quiet(stack, Instant::now()).await.settled;
    let report = stack.audit_with(&[&outcome]);
    let figures = Figures {
        faults: 1,
        quiet: settled,
        more: format!("high water: {:?} {:?}", outcome.by_status, outcome.by_code),
        ..Figures::of("F06", &[&outcome])
    };
    figures.print(stack, &report).await;
    let codes: BTreeSet<&str> = outcome.by_code.keys().map(String::as_str).collect();
    assert_eq!(codes, BTreeSet::from(["metering_unavailable"]));
    let unanswered = (outcome.broken, outcome.unreachable);
    assert_eq!(unanswered, (0, 0), "{}", summary(&outcome));
}

/// F8: a cluster of three that keeps each stream three times loses two members at once, its leader
/// stands still, and its leader is cut off from the others while clients reach it, again and again.
#[tokio::test]
async fn f08_a_cluster_that_loses_members_loses_no_call() {
    lose_members(1, Duration::from_secs(3)).await;
}

#[tokio::test]
#[ignore = "minutes; run by make faults"]
async fn f08_a_cluster_that_loses_members_for_long_loses_no_call() {
    lose_members(10, Duration::from_secs(15)).await;
}

async fn lose_members(rounds: usize, pause: Duration) {
    let members = Nats::start_three(&Options::ephemeral()).await;
    let (members, links) = members.expect("a cluster");
    let urls: Vec<String> = members.iter().map(Nats::url).collect();
    let urls = urls.join(",");
    let variables = [
        ("NATS_URL", urls.as_str()),
        ("TOLLGATE_STREAM_REPLICAS", "3"),
    ];
    let arguments = ["--ephemeral", "--processes", "--gateways", "2"];
    let stack = Stack::start_with(&arguments, &variables).await;
    fund(&stack);
    let load = Load::of(Plan {
        gateways: stack.gateways(),
        key: stack.demo("live_key"),
        shots: vec![Shot::get(DISTANCE), render()],
        workers: 8,
        pause: Duration::from_millis(20),
    });
    let mut leaders = vec![leader(&urls).await];
    let mut slowest = Duration::ZERO;
    for turn in 0..rounds {
        let began = Instant::now();
        kill_both([&members[turn % 3], &members[(turn + 1) % 3]]).await;
        rows_grow(&stack, 50).await;
        slowest = slowest.max(began.elapsed());
        leaders.push(leader(&urls).await);

        let began = Instant::now();
        let name = leaders.last().expect("one");
        let leading = members.iter().find(|member| member.name() == *name);
        let leading = leading.expect("a member leads");
        leading.pause();
        tokio::time::sleep(pause).await;
        leading.resume();
        rows_grow(&stack, 50).await;
        slowest = slowest.max(began.elapsed());
        leaders.push(leader(&urls).await);

        let began = Instant::now();
        let name = leaders.last().expect("one").clone();
        leaders.push(cut_off(&members, &links, &name).await);
        links.heal();
        rows_grow(&stack, 50).await;
        slowest = slowest.max(began.elapsed());
        leaders.push(leader(&urls).await);
    }
    let outcome = load.finish().await;
    let settled = quiet(&stack, Instant::now()).await.settled;
    let report = stack.audit_with(&[&outcome]);
    leaders.dedup();
    let figures = Figures {
        kills: 2 * rounds,
        faults: 3 * rounds,
        quiet: settled,
        more: format!(
            "{} changes of leader, no rows for {:.1} s at most",
            leaders.len() - 1,
            slowest.as_secs_f64()
        ),
        ..Figures::of("F08", &[&outcome])
    };
    figures.print(&stack, &report).await;
    let refused = outcome.by_status.keys().filter(|status| **status != 200);
    assert_eq!(refused.count(), 0, "{}", summary(&outcome));
    assert_eq!(outcome.broken, 0, "{}", summary(&outcome));
}

async fn kill_both(members: [&Nats; 2]) {
    for member in members {
        member.kill();
        member.wait_exit().await;
    }
    let (first, second) = tokio::join!(members[0].restart(), members[1].restart());
    first.and(second).expect("started again");
}

/// Cuts a leader off from the others, until those who are many have another: it must not say that
/// it has kept anything.
async fn cut_off(members: &[Nats; 3], links: &Links, name: &str) -> String {
    let leading = members.iter().position(|member| member.name() == name);
    links.isolate(leading.expect("a member leads"));
    let others = members.iter().filter(|member| member.name() != name);
    let others: Vec<String> = others.map(Nats::url).collect();
    let elected = eventually(
        SETTLE_LIMIT,
        "the others have a leader",
        async || match leader(&others.join(",")).await {
            other if other != name => Ok(other),
            _ => Err("not yet"),
        },
    );
    elected.await.expect("elected")
}

/// Who leads the stream of usage, which is kept three times.
async fn leader(urls: &str) -> String {
    let found = eventually(SETTLE_LIMIT, "the stream has a leader", async || {
        let members: Vec<&str> = urls.split(',').collect();
        let nats = async_nats::connect(members).await?;
        let stream = jetstream::new(nats).get_stream("USAGE").await?;
        let info = stream.get_info().await?;
        anyhow::ensure!(info.config.num_replicas == 3, "{:?}", info.config);
        let leader = info.cluster.and_then(|cluster| cluster.leader);
        leader.ok_or_else(|| anyhow::anyhow!("none"))
    });
    found.await.expect("a leader")
}

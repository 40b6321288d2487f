//! Kills while calls with idempotency keys are under way. Whoever is killed, each key is charged
//! once, and everybody who presents it hears the same answer.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::Signal;
use testkit::{
    eventually,
    load::{Answer, Connection},
};
use tokio::task::JoinSet;

use crate::{
    crash::KEYED,
    idempotency::{COST, World, code, is_replay, keyed},
    stack::signal,
};

/// Calls under way at once, each with a key of its own.
const WORKERS: usize = 6;
/// A key is answered within so long, whoever dies.
const ANSWER_LIMIT: Duration = Duration::from_secs(90);
/// Between two attempts with a key that is in use, or at a gateway that is down.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two kills at random.
const KILL_PERIOD: Duration = Duration::from_millis(700);
/// All points are died at within so long.
const DEATHS_LIMIT: Duration = Duration::from_secs(180);
/// A life comes to its point within so long, or another one tries.
const LIFE_LIMIT: Duration = Duration::from_secs(10);

/// What clients did.
#[derive(Default)]
struct Tally {
    attempts: AtomicU64,
    broken: AtomicU64,
    in_use: AtomicU64,
    unavailable: AtomicU64,
    /// Charged while the store was away: the answer went to the first caller, or to nobody.
    not_kept: AtomicU64,
}

/// One client: a key after the other, each until it is answered, and then once more.
struct Client {
    gateways: Vec<String>,
    key: String,
    worker: usize,
    stop: Arc<AtomicBool>,
    tally: Arc<Tally>,
}

impl Client {
    /// Each key, with the answer that was heard of it.
    async fn run(self) -> Vec<(String, Answer)> {
        let mut connections: Vec<Connection> = self
            .gateways
            .iter()
            .map(|base| Connection::to(base))
            .collect();
        let mut heard = Vec::new();
        let mut turn = self.worker;
        while !self.stop.load(Ordering::Relaxed) {
            let name = format!("{}-{}", self.worker, heard.len());
            let answer = self.insist(&mut connections, &mut turn, &name).await;
            // The other gateway has it too; and it begins the next key, so that both are called
            // even when neither fails.
            turn += 1;
            let again = self.insist(&mut connections, &mut turn, &name).await;
            match again.header("tollgate-original-request-id") {
                // Once said, it is said for ever; whoever heard the answer has it.
                _ if is_not_kept(&again) => {
                    self.tally.not_kept.fetch_add(1, Ordering::Relaxed);
                }
                // Its first answer was one already.
                same if !same.is_empty()
                    && same == answer.header("tollgate-original-request-id") =>
                {
                    assert_eq!(again.body, answer.body, "{name}");
                }
                _ => is_replay(&again, &answer),
            }
            heard.push((name, answer));
        }
        heard
    }

    /// Calls with a key until there is an answer.
    async fn insist(&self, connections: &mut [Connection], turn: &mut usize, name: &str) -> Answer {
        let began = Instant::now();
        let shot = keyed(&format!("/k/{name}"), name);
        loop {
            assert!(began.elapsed() < ANSWER_LIMIT, "{name} is not answered");
            let count = connections.len();
            let called = connections[*turn % count].call(&self.key, &shot).await;
            self.tally.attempts.fetch_add(1, Ordering::Relaxed);
            let Ok(answer) = called else {
                self.tally.broken.fetch_add(1, Ordering::Relaxed);
                *turn += 1;
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let counted = match (answer.status.as_u16(), code(&answer).as_str()) {
                (201, _) => return answer,
                _ if is_not_kept(&answer) => return answer,
                (409, "idempotency_key_in_use") => &self.tally.in_use,
                (503, _) => &self.tally.unavailable,
                _ => panic!("{name}: {answer:?}"),
            };
            counted.fetch_add(1, Ordering::Relaxed);
            *turn += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// The store was away longer than a call waits for it, when its answer was to be kept.
fn is_not_kept(answer: &Answer) -> bool {
    answer.status.as_u16() == 409 && code(answer) == "idempotency_answer_not_kept"
}

/// Calls in the background.
struct Clients {
    stop: Arc<AtomicBool>,
    tally: Arc<Tally>,
    running: JoinSet<Vec<(String, Answer)>>,
}

impl Clients {
    fn start(world: &World) -> Self {
        let (stop, tally) = (Arc::<AtomicBool>::default(), Arc::<Tally>::default());
        let mut running = JoinSet::new();
        for worker in 0..WORKERS {
            let client = Client {
                gateways: world.stack.gateways(),
                key: world.key.clone(),
                worker,
                stop: Arc::clone(&stop),
                tally: Arc::clone(&tally),
            };
            running.spawn(client.run());
        }
        Self {
            stop,
            tally,
            running,
        }
    }

    /// Each begun key is answered first.
    async fn finish(mut self) -> (Vec<(String, Answer)>, Arc<Tally>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut heard = Vec::new();
        while let Some(one) = self.running.join_next().await {
            heard.extend(one.expect("a client heard what it should"));
        }
        (heard, self.tally)
    }
}

#[tokio::test]
async fn keys_are_charged_once_wherever_a_gateway_dies() {
    die_with_keys(1, 12).await;
}

#[tokio::test]
#[ignore = "minutes; run by make faults"]
async fn keys_are_charged_once_whatever_dies_hundreds_of_times() {
    die_with_keys(12, 240).await;
}

/// The database comes back without who has a key, without the row and without the inbox, as from
/// a backup: the record of the charged call says it again, and nobody gets the key before.
#[tokio::test]
async fn a_key_that_the_database_has_forgotten_is_not_charged_twice() {
    let world = World::start(&[]).await;
    let shot = keyed("/k/forgotten", "forgotten");
    let first = world.at(0, &world.key, &shot).await;
    assert_eq!((first.status.as_u16(), first.cost()), (201, COST));
    let used = world.used();
    sqlx::raw_sql(
        "delete from usage_ingest.idempotency_keys;
         delete from usage_ingest.api_usage_logs;
         update usage_ingest.inbox set applied = '{}';
         update usage_ingest.origin set timeline = '0000000F'",
    )
    .execute(world.stack.pool())
    .await
    .expect("forgotten");
    let refused = world.at(1, &world.key, &shot).await;
    assert_eq!(code(&refused), "metering_unavailable", "{refused:?}");
    assert_eq!(refused.header("retry-after"), "1");

    // It looks which server it is on when it begins.
    signal(world.stack.pids("usage-ingest")[0], Signal::KILL);
    let again = eventually(2 * ANSWER_LIMIT, "keys are given again", async || {
        let answer = world.at(1, &world.key, &shot).await;
        match answer.status.as_u16() {
            503 => Err(format!("{answer:?}")),
            _ => Ok(answer),
        }
    });
    let again = again.await.expect("given");
    assert!(is_not_kept(&again), "{again:?}");
    let other = world.at(1, &world.key, &keyed("/k/other", "other")).await;
    assert_eq!((other.status.as_u16(), other.cost()), (201, COST));
    let reused = world
        .at(0, &world.key, &keyed("/k/another", "forgotten"))
        .await;
    assert_eq!(code(&reused), "idempotency_key_reused", "{reused:?}");
    assert_eq!(world.used(), used + COST);
}

/// Gateways die at each point that calls with keys pass, so many times at each passage; then
/// processes die at random.
async fn die_with_keys(rounds: usize, kills: usize) {
    let world = World::start(&[]).await;
    let clients = Clients::start(&world);
    let died = die_at_points(&world, rounds).await;
    let killed = kill_at_random(&world, kills).await;
    let (heard, tally) = clients.finish().await;
    let report = world.stack.audit();
    let charged: BTreeMap<String, (i64, i64)> = charges(&world).await;
    let (mut lost, mut double) = (Vec::new(), Vec::new());
    for (name, _) in &heard {
        match charged.get(name) {
            Some((1, COST)) => {}
            None | Some((0, _)) => lost.push(name),
            Some(_) => double.push((name, charged[name])),
        }
    }
    let again = heard
        .iter()
        .filter(|(name, _)| world.upstream.asked(name) > 1);
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "{} keys, {} attempts ({} broken, {} in use, {} unavailable, {} not kept); died {died} times at a point, \
         killed {killed:?}; charged twice {}, never {}; forwarded again, not charged before: {}; \
         report {report}",
        heard.len(),
        load(&tally.attempts),
        load(&tally.broken),
        load(&tally.in_use),
        load(&tally.unavailable),
        load(&tally.not_kept),
        double.len(),
        lost.len(),
        again.count(),
    );
    assert!(double.is_empty(), "charged more than once: {double:?}");
    assert!(lost.is_empty(), "answered and not charged: {lost:?}");
    assert!(heard.len() > WORKERS, "keys were answered");
}

async fn die_at_points(world: &World, rounds: usize) -> usize {
    let all = KEYED
        .iter()
        .chain(&["gateway.upstream_answered", "gateway.appended"]);
    let points: Vec<String> = all
        .flat_map(|point| [1, 2, 3].map(|passage| format!("{point}:{passage}")))
        .collect();
    let points: Vec<String> = std::iter::repeat_n(&points, rounds)
        .flatten()
        .cloned()
        .collect();
    let stack = &world.stack;
    stack.arm("gateway", &points);
    for pid in stack.pids("gateway") {
        signal(pid, Signal::KILL);
    }
    let since = parking_lot::Mutex::new(BTreeMap::<(String, String), Instant>::new());
    let limit = DEATHS_LIMIT * u32::try_from(rounds).expect("few");
    let done = eventually(limit, "gateways die at every point", async || {
        let (died, armed) = stack.deaths();
        let mut since = since.lock();
        since.retain(|life, _| armed.get(&life.0) == Some(&life.1));
        for life in armed {
            let began = *since.entry(life.clone()).or_insert_with(Instant::now);
            // This life has no calls that come to its point; the next takes it.
            if began.elapsed() > LIFE_LIMIT {
                let number: usize = life.0.trim_start_matches("gateway-").parse().unwrap_or(1);
                stack.arm("gateway", std::slice::from_ref(&life.1));
                signal(stack.pids("gateway")[number - 1], Signal::KILL);
                since.insert(life, Instant::now());
            }
        }
        match died.len() {
            enough if enough >= points.len() => Ok(enough),
            few => Err(format!(
                "{few} of {}, to come: {:?}",
                points.len(),
                since.keys()
            )),
        }
    });
    done.await.expect("died")
}

async fn kill_at_random(world: &World, kills: usize) -> BTreeMap<&'static str, usize> {
    const VICTIMS: [&str; 6] = [
        "gateway",
        "usage-ingest",
        "gateway",
        "wallet",
        "gateway",
        "postgres",
    ];
    let mut killed = BTreeMap::new();
    for turn in 0..kills {
        tokio::time::sleep(KILL_PERIOD).await;
        let victim = VICTIMS[turn % VICTIMS.len()];
        let pids = world.stack.pids(victim);
        if let Some(pid) = pids.get(turn / 2 % pids.len().max(1)) {
            signal(*pid, Signal::KILL);
            *killed.entry(victim).or_default() += 1;
        }
    }
    killed
}

/// How often each key was charged, and how much.
async fn charges(world: &World) -> BTreeMap<String, (i64, i64)> {
    let rows: Vec<(String, i64, i64)> = sqlx::query_as(
        "select substr(endpoint, 4), count(*) filter (where credits_used > 0),
                sum(credits_used)::int8
           from usage_ingest.api_usage_logs
          where endpoint like '/k/%'
          group by 1",
    )
    .fetch_all(world.stack.pool())
    .await
    .expect("rows");
    rows.into_iter()
        .map(|(name, times, credits)| (name, (times, credits)))
        .collect()
}

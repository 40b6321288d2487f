//! F15: PostgreSQL comes back without what it committed last: a standby is promoted that had not
//! everything, or a backup is restored. Nothing is lent before gateways have told what they hold.

pub(crate) mod keyed;
mod server;

use std::time::{Duration, Instant};

use testkit::{
    eventually,
    load::{Outcome, Plan, Shot},
    proxy::Proxy,
};

use self::server::{Server, Standby};
use super::{DISTANCE, LIVE, Load, chat, fund, summary};
use crate::stack::{SETTLE_LIMIT, Stack, signal};

/// Calls with a plain key, one with a quota, and one of a test user's.
struct Traffic {
    loads: Vec<Load>,
}

impl Traffic {
    fn start(stack: &Stack) -> Self {
        let customer = stack.customer("Busy", 1_000_000);
        let (_, limited) = stack.key(
            &customer,
            &[&LIVE[..], &["--daily-quota", "90000"]].concat(),
        );
        let plan = |key: String| Plan {
            gateways: stack.gateways(),
            key,
            shots: vec![Shot::get(DISTANCE), chat()],
            workers: 3,
            pause: Duration::from_millis(10),
        };
        let keys = [stack.demo("live_key"), limited];
        Self {
            loads: keys.into_iter().map(|key| Load::of(plan(key))).collect(),
        }
    }

    async fn more_answers(&self, more: usize) {
        for load in &self.loads {
            load.more_answers(more).await;
        }
    }

    async fn finish(self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for load in self.loads {
            outcomes.push(load.finish().await);
        }
        outcomes
    }
}

/// A backup is restored: everything after it is gone, with leases, a wallet's first lease, and
/// whole lives of gateways whose journals are gone too. The stream has all of it.
#[tokio::test]
async fn f15_a_restored_backup_is_caught_up_with_before_anything_is_lent() {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "2"]).await;
    fund(&stack);
    let fresh = stack.customer("Fresh", 1_000);
    let (_, fresh_key) = stack.key(&fresh, &LIVE);
    let traffic = Traffic::start(&stack);
    traffic.more_answers(150).await;
    let primary = Server::of(&stack);
    let backup = primary.backup();
    let keyed = chat().with("idempotency-key", "restored");
    let answer = stack.call_at(1, &stack.demo("live_key"), &keyed).await;
    assert!(answer.status == 200 && answer.cost() > 0, "{answer:?}");
    // All of this the database will not know of.
    for _ in 0..3 {
        let answer = stack.call_at(1, &fresh_key, &Shot::get(DISTANCE)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let (before, dying) = (journals(&stack).await, stack.pids("gateway")[0]);
    signal(dying, rustix::process::Signal::KILL);
    let ended = eventually(SETTLE_LIMIT, "a life of a gateway is over", async || {
        let journals =
            stack.count("select count(*) from wallet.journals where retired_at is not null");
        match journals.await {
            0 => Err("not yet".to_owned()),
            _ => Ok(()),
        }
    });
    ended.await.expect("over");
    traffic.more_answers(300).await;
    assert!(
        journals(&stack).await > before,
        "a life began that the backup does not know"
    );

    let began = Instant::now();
    stack
        .while_nobody_restarts(async || {
            primary.kill();
            primary.put_in_place(&backup, Some("recovery.signal"));
        })
        .await;
    let frozen = thawed(&stack, began).await;
    // The backup does not know who has the key. Nobody gets it before all records were read again.
    let again = eventually(2 * SETTLE_LIMIT, "keys are given again", async || {
        let answer = stack.call_at(1, &stack.demo("live_key"), &keyed).await;
        match answer.status.as_u16() {
            503 => Err(format!("{answer:?}")),
            _ => Ok(answer),
        }
    });
    let again = again.await.expect("given");
    let code = again.json()["error"]["code"].to_string() + &again.json()["code"].to_string();
    assert!(code.contains("idempotency_answer_not_kept"), "{again:?}");
    judge(&stack, traffic, "backup restored", frozen, began).await;
}

async fn journals(stack: &Stack) -> i64 {
    stack.count("select count(*) from wallet.journals").await
}

/// A standby is promoted that lacks the last seconds; the stream is lost as well. Gateways have
/// kept what it lacks, because their watermarks trail what it has.
#[tokio::test]
async fn f15_a_promoted_standby_is_caught_up_with_from_the_journals() {
    promote(false).await;
}

/// The same when the primary loses sight of the standby before it dies: the network splits.
#[tokio::test]
#[ignore = "a minute; run by make faults"]
async fn f15_a_standby_that_was_cut_off_is_caught_up_with_from_the_journals() {
    promote(true).await;
}

/// Gives a server a standby, behind a proxy.
async fn followed(stack: &Stack, primary: &Server) -> (Proxy, Standby) {
    let proxy = Proxy::start(([127, 0, 0, 1], primary.port()).into())
        .await
        .expect("a proxy");
    let standby = primary.standby(&proxy);
    let following = "select count(*) from pg_stat_replication where state = 'streaming'";
    let follows = eventually(SETTLE_LIMIT, "the standby follows", async || {
        match stack.count(following).await {
            1 => Ok(()),
            other => Err(format!("{other} standbys")),
        }
    });
    follows.await.expect("follows");
    (proxy, standby)
}

async fn promote(is_cut_off: bool) {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "2"]).await;
    fund(&stack);
    let primary = Server::of(&stack);
    let (proxy, standby) = followed(&stack, &primary).await;
    let traffic = Traffic::start(&stack);
    traffic.more_answers(150).await;
    proxy.black_hole();
    traffic.more_answers(300).await;
    let behind = stack
        .count("select (pg_current_wal_lsn() - min(flush_lsn))::int8 from pg_stat_replication")
        .await;
    assert!(behind > 0, "the standby lacks something");
    if is_cut_off {
        proxy.disconnect();
        let gone = eventually(
            SETTLE_LIMIT,
            "the primary sees no standby",
            async || match stack
                .count("select count(*) from pg_stat_replication")
                .await
            {
                0 => Ok(()),
                other => Err(format!("{other} standbys")),
            },
        );
        gone.await.expect("cut off");
        traffic.more_answers(300).await;
    }

    let began = Instant::now();
    stack
        .while_nobody_restarts(async || {
            primary.kill();
            // With what it has held back: to resume it first would let that through.
            proxy.cut();
            lose_the_stream(&stack).await;
            standby.promote().await;
            primary.put_in_place(&standby.stop(), None);
        })
        .await;
    let frozen = thawed(&stack, began).await;
    println!("{behind} bytes of the log were lost");
    judge(&stack, traffic, "standby promoted", frozen, began).await;
}

async fn lose_the_stream(stack: &Stack) {
    stack.usage().await.purge().await.expect("purged");
}

/// Waits until lending was frozen and goes on; how long it was frozen.
async fn thawed(stack: &Stack, began: Instant) -> Duration {
    let seen = std::cell::Cell::new(false);
    let over = eventually(SETTLE_LIMIT, "lending was frozen and goes on", async || {
        let metrics = stack.metrics("wallet").await;
        seen.set(seen.get() | (metrics["tollgate_wallet_frozen"] == 1.0));
        let open = "select count(*) from wallet.freeze
                     where thawed_at is not null and thawed_at > failed_over_at";
        let open: Result<i64, _> = sqlx::query_scalar(open).fetch_one(stack.pool()).await;
        match open {
            Ok(1) if seen.get() && metrics["tollgate_wallet_frozen"] == 0.0 => Ok(()),
            other => Err(format!("{other:?}, frozen was seen: {}", seen.get())),
        }
    });
    over.await.expect("frozen, then thawed");
    println!(
        "lending goes on {:?} after the death of the primary",
        began.elapsed()
    );
    let millis = stack
        .count(
            "select (extract(epoch from thawed_at - failed_over_at) * 1000)::int8
               from wallet.freeze",
        )
        .await;
    Duration::from_millis(u64::try_from(millis).expect("positive"))
}

async fn judge(stack: &Stack, traffic: Traffic, what: &str, frozen: Duration, began: Instant) {
    let timeline: String = sqlx::query_scalar("select timeline from wallet.freeze")
        .fetch_one(stack.pool())
        .await
        .expect("a timeline");
    assert_eq!(timeline, "00000002");
    let early = stack
        .count(
            "select count(*) from wallet.acquisitions a, wallet.freeze f
              where a.at >= pg_postmaster_start_time() and a.at < f.thawed_at",
        )
        .await;
    assert_eq!(early, 0, "nothing is lent before everybody has told");
    traffic.more_answers(100).await;
    let outcomes = traffic.finish().await;
    let report = stack.audit_with(&outcomes.iter().collect::<Vec<_>>());
    let replayed = began.elapsed();
    let all: Vec<String> = outcomes.iter().map(summary).collect();
    println!("{what}: frozen {frozen:?}, all adds up after {replayed:?}; {all:?}; {report}");
    for outcome in &outcomes {
        let is_honest = |status: &u16| [200, 503].contains(status);
        assert!(outcome.by_status.keys().all(is_honest), "{all:?}");
    }
}

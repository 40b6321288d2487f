//! Who locks rows of the wallet does so in one order: journals, then wallets and buckets, then
//! leases by id. So nobody waits in a circle, which PostgreSQL would end after a second by ending
//! one of the two. Each test holds what comes early in that order until the wallet waits for it,
//! and then asks for what comes late: the wallet must not have it yet.

use async_nats::jetstream;
use prost::Message as _;
use proto::{
    events::v1::{Record, RecordKind, UsageBatch},
    wallet::v1::Outcome,
};
use sqlx::{Postgres, Transaction};
use testkit::eventually;
use tokio::join;
use uuid::Uuid;

use super::{Gateway, lent, nonce, of_org, of_user, outcomes};
use crate::stack::{SETTLE_LIMIT, Stack};

/// A transaction that somebody else has under way.
struct Other {
    transaction: Transaction<'static, Postgres>,
    pid: i32,
}

impl Other {
    async fn begin(stack: &Stack) -> Self {
        let mut transaction = stack.pool().begin().await.unwrap();
        // It finds a circle at once, before who waits in it gives up.
        sqlx::query("set local deadlock_timeout = '10ms'")
            .execute(&mut *transaction)
            .await
            .unwrap();
        let pid = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *transaction);
        let pid = pid.await.unwrap();
        Self { transaction, pid }
    }

    /// Locks one row.
    async fn lock(&mut self, sql: &'static str, id: Uuid) {
        let locked = sqlx::query(sql).bind(id).execute(&mut *self.transaction);
        let locked = locked.await.expect("no circle");
        assert_eq!(locked.rows_affected(), 1, "{sql}");
    }

    /// Waits until somebody waits for what this has locked.
    async fn is_waited_for(&self, stack: &Stack) {
        let waiting = "select count(*)
                         from pg_locks l
                        where not l.granted
                          and $1 = any(pg_blocking_pids(l.pid))";
        let found = eventually(SETTLE_LIMIT, "the wallet waits", async || {
            let waiting = sqlx::query_scalar(waiting).bind(self.pid);
            let waiting: i64 = waiting.fetch_one(stack.pool()).await.unwrap();
            match waiting {
                0 => Err("nobody waits"),
                _ => Ok(()),
            }
        });
        found.await.unwrap();
    }

    async fn commit(self) {
        self.transaction.commit().await.unwrap();
    }
}

async fn had_no_circle(stack: &Stack) {
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    assert_eq!(stack.count(deadlocks).await, 0);
}

fn id(bytes: &[u8]) -> Uuid {
    Uuid::from_slice(bytes).expect("an id")
}

/// One request ends the epoch of a test wallet, whose lease has a high id, and extends a lease with
/// a low one. A heartbeat has locked the latter.
#[tokio::test]
async fn the_end_of_an_epoch_waits_for_no_lease_behind_one_that_it_locked() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let (customer, user) = (stack.customer("Extended", 100), Uuid::now_v7());
    let gateway = Gateway::of(&stack);
    let mut asks = [of_org(&customer.org, 1), of_user(user)];
    let mut leases = Vec::new();
    for ask in &asks {
        let answers = gateway.ask(std::slice::from_ref(ask)).await.unwrap();
        leases.push(id(&lent(&answers[0]).expect("lent").0));
    }
    assert!(leases.is_sorted(), "the one of the epoch is the later one");
    sqlx::query("update wallet.test_wallets set reset_at = now() where user_id = $1")
        .bind(user)
        .execute(stack.pool())
        .await
        .unwrap();
    let mut heartbeat = Other::begin(&stack).await;
    let lock = "select from wallet.leases where id = $1 for update";
    heartbeat.lock(lock, leases[0]).await;
    asks.iter_mut().for_each(|ask| ask.nonce = nonce());
    let (_, answers) = join!(
        async {
            heartbeat.is_waited_for(&stack).await;
            heartbeat.lock(lock, leases[1]).await;
            heartbeat.commit().await;
        },
        // Nobody lends for longer than a second to one for whom something is locked.
        eventually(SETTLE_LIMIT, "credits are lent", async || {
            gateway.ask(&asks).await
        })
    );
    let answers = answers.unwrap();
    assert_eq!(outcomes(&answers), [Outcome::Lent; 2], "{answers:#?}");
    assert_eq!(id(&lent(&answers[0]).unwrap().0), leases[0], "extended");
    assert_ne!(id(&lent(&answers[1]).unwrap().0), leases[1], "of the epoch");
    let ended = sqlx::query_scalar("select state from wallet.leases where id = $1");
    let ended: String = ended.bind(leases[1]).fetch_one(stack.pool()).await.unwrap();
    assert_eq!(ended, "draining");
    had_no_circle(&stack).await;
}

/// A failover has forgotten a lease and its journal. The journal's grants are read again while it
/// asks for credits of the same wallet.
#[tokio::test]
async fn a_lease_that_was_forgotten_is_taken_over_behind_its_journal() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let customer = stack.customer("Forgotten", 100);
    let org: types::OrgId = customer.org.parse().unwrap();
    let (journal, lease) = (Uuid::now_v7(), Uuid::now_v7());
    let noticed = "update wallet.freeze set failed_over_at = now(), thawed_at = null";
    sqlx::query(noticed).execute(stack.pool()).await.unwrap();
    let mut acquisition = Other::begin(&stack).await;
    let register = "insert into wallet.journals (id, gateway, heartbeat_at)
                    values ($1, 'test', now())";
    acquisition.lock(register, journal).await;
    let grant = Record {
        seq: 0,
        kind: RecordKind::Grant.into(),
        at_unix_micros: 1,
        lease_id: lease.as_bytes().to_vec(),
        granted: 10,
        account: of_org(&customer.org, 1).account,
        ..Record::default()
    };
    ship(&stack, journal, grant).await;
    acquisition.is_waited_for(&stack).await;
    let lock = "select from wallet.wallets where org_id = $1 for update";
    acquisition.lock(lock, org.uuid()).await;
    acquisition.commit().await;
    let taken_over = eventually(SETTLE_LIMIT, "the lease is taken over", async || {
        let granted = sqlx::query_scalar("select granted from wallet.leases where id = $1");
        let granted = granted.bind(lease).fetch_optional(stack.pool());
        let granted: Option<i64> = granted.await.unwrap();
        match granted {
            Some(10) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    taken_over.await.unwrap();
    had_no_circle(&stack).await;
}

async fn ship(stack: &Stack, journal: Uuid, record: Record) {
    let url = stack.info()["nats_url"].as_str().unwrap().to_owned();
    let context = jetstream::new(async_nats::connect(url).await.unwrap());
    let batch = UsageBatch {
        journal_id: journal.as_bytes().to_vec(),
        records: vec![record],
        ..UsageBatch::default()
    };
    let subject = format!("usage.v1.jrn_{}", journal.simple());
    let taken = context.publish(subject, batch.encode_to_vec().into());
    taken.await.unwrap().await.unwrap();
}

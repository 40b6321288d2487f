//! Asks of gateways that travel together: each has an outcome of its own, nothing is lent twice,
//! and two gateways never wait for each other.

mod order;

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::try_join_all;
use proto::{
    channel::Channel,
    wallet::v1::{self as pb, Outcome, wallet_service_client::WalletServiceClient},
};
use tokio::{sync::Barrier, time::timeout};
use tonic::Status;
use types::{JournalId, KeyId, OrgId, UserId};
use uuid::Uuid;

use crate::stack::Stack;

/// Asks in one request.
const ASKS_MAX: usize = 128;
/// Requests of each gateway that overlap with those of the other.
const ROUNDS: usize = 12;

/// A gateway that only asks.
#[derive(Clone)]
struct Gateway {
    wallet: WalletServiceClient<Channel>,
    journal: JournalId,
}

impl Gateway {
    fn of(stack: &Stack) -> Self {
        let url = stack.info()["grpc"]["wallet"].as_str().unwrap().to_owned();
        let token = stack.demo("operator_token").into();
        let channel = runtime::grpc::client(&url, &token).unwrap();
        Self {
            wallet: WalletServiceClient::new(channel),
            journal: JournalId::new(Uuid::now_v7()),
        }
    }

    /// The answers, message by message.
    async fn messages(&self, asks: &[pb::Ask]) -> Result<Vec<Vec<pb::Answer>>, Status> {
        let request = pb::AcquireRequest {
            journal_id: self.journal.to_string(),
            gateway: "test".to_owned(),
            asks: asks.to_vec(),
        };
        let mut wallet = self.wallet.clone();
        let mut answers = wallet.acquire(request).await?.into_inner();
        let mut messages = Vec::new();
        while let Some(message) = answers.message().await? {
            messages.push(message.answers);
        }
        Ok(messages)
    }

    /// The answers in the order of the asks.
    async fn ask(&self, asks: &[pb::Ask]) -> Result<Vec<pb::Answer>, Status> {
        let mut answers = self.messages(asks).await?.concat();
        answers.sort_by_key(|answer| answer.position);
        assert_eq!(answers.len(), asks.len(), "each is answered once");
        Ok(answers)
    }
}

fn nonce() -> Vec<u8> {
    Uuid::now_v7().into_bytes().to_vec()
}

fn of_org(org: &str, minimum: i64) -> pb::Ask {
    let account = pb::Account {
        org_id: org.to_owned(),
        ..pb::Account::default()
    };
    ask(account, minimum)
}

fn of_user(user: Uuid) -> pb::Ask {
    let account = pb::Account {
        user_id: UserId::new(user).to_string(),
        ..pb::Account::default()
    };
    ask(account, 1)
}

fn of_quota(key: Uuid, quota: i64, version: i64) -> pb::Ask {
    let key = KeyId::new(key).to_string();
    let quota = pb::Quota {
        key_id: key.clone(),
        org_id: OrgId::new(Uuid::from_u128(7)).to_string(),
        kind: pb::QuotaKind::Monthly.into(),
        quota,
        stated_by: key,
        key_version: version,
    };
    let account = pb::Account {
        quota: Some(quota),
        ..pb::Account::default()
    };
    ask(account, 1)
}

fn ask(account: pb::Account, minimum: i64) -> pb::Ask {
    pb::Ask {
        account: Some(account),
        nonce: nonce(),
        want: minimum,
        minimum,
    }
}

fn outcomes(answers: &[pb::Answer]) -> Vec<Outcome> {
    answers.iter().map(pb::Answer::outcome).collect()
}

/// What was lent by which lease.
fn lent(answer: &pb::Answer) -> Option<(Vec<u8>, i64)> {
    let lease = answer.lease.clone()?;
    Some((lease.lease_id, lease.granted_cum))
}

/// Every sum of the leases is what their wallets and buckets say, and nothing is overspent.
async fn sums_hold(stack: &Stack) {
    let differences = "
        select count(*)
          from (select id, reserved from wallet.wallets
                 union all select id, reserved from wallet.test_wallets
                 union all select id, reserved from wallet.quota_buckets) w
         where w.reserved
               <> (select coalesce(sum(l.granted - l.settled_cum), 0)
                     from wallet.leases l
                    where coalesce(l.wallet_id, l.test_wallet_id, l.quota_bucket_id) = w.id
                      and l.state in ('active', 'draining', 'orphaned'))";
    assert_eq!(stack.count(differences).await, 0, "I2");
    let differences = "
        select count(*)
          from wallet.leases l
         where l.granted + l.returned_cum
               <> (select coalesce(sum(a.credits), 0)
                     from wallet.acquisitions a where a.lease_id = l.id)";
    assert_eq!(stack.count(differences).await, 0, "each grant is one ask's");
}

#[tokio::test]
async fn asks_that_travel_together_are_answered_one_by_one() {
    let stack = Stack::start(&["--ephemeral"]).await;
    outcomes_are_each_asks_own(&stack).await;
    the_newest_quota_counts(&stack).await;
    the_last_credits_are_lent_once(&stack).await;
    who_waits_for_a_recall_keeps_nobody_waiting(&stack).await;
    what_is_locked_holds_nobody_else_up(&stack).await;
    an_ended_journal_is_lent_nothing(&stack).await;
    sums_hold(&stack).await;
}

async fn outcomes_are_each_asks_own(stack: &Stack) {
    let (first, second) = (stack.customer("Joint", 100), stack.customer("Other", 100));
    let gateway = Gateway::of(stack);
    let one = of_org(&first.org, 10);
    let reused = pb::Ask {
        nonce: one.nonce.clone(),
        ..of_org(&second.org, 10)
    };
    let short_nonce = pb::Ask {
        nonce: vec![1; 15],
        ..of_org(&first.org, 1)
    };
    let little = pb::Ask {
        want: 1,
        ..of_org(&first.org, 2)
    };
    let (user, key) = (Uuid::now_v7(), Uuid::now_v7());
    let asks = [
        one.clone(),
        of_org(&OrgId::new(Uuid::now_v7()).to_string(), 1),
        short_nonce,
        reused,
        of_user(user),
        little,
        of_quota(key, 20, 1),
        of_org(&first.org, 101),
        one,
        of_org("org_nonsense", 1),
        of_org(&first.org, 5),
        of_user(user),
    ];
    let answers = gateway.ask(&asks).await.expect("answers");
    use Outcome::{Invalid, Lent, NonceReused, Short};
    let expected = [
        Lent,
        Short,
        Invalid,
        NonceReused,
        Lent,
        Invalid,
        Lent,
        Short,
        Lent,
        Invalid,
        Lent,
        Lent,
    ];
    assert_eq!(outcomes(&answers), expected, "{answers:#?}");
    let by_place: Vec<_> = answers.iter().map(lent).collect();
    let cum = |place: usize| by_place[place].as_ref().expect("lent").1;
    assert_eq!(by_place[0], by_place[8], "one nonce is one grant");
    assert_eq!(
        by_place[0].as_ref().unwrap().0,
        by_place[10].as_ref().unwrap().0
    );
    assert_eq!(cum(10), cum(0) + 5, "one lease for a wallet, extended");
    assert_eq!(cum(11), cum(4) + 1);
    the_same_again_lends_nothing(stack, &gateway, &asks, &answers).await;
}

/// It says the same, though not how much was lent by then.
async fn the_same_again_lends_nothing(
    stack: &Stack,
    gateway: &Gateway,
    asks: &[pb::Ask],
    answers: &[pb::Answer],
) {
    let reserved = "select (select sum(reserved) from wallet.wallets)::int8
                           + (select sum(reserved) from wallet.test_wallets)::int8
                           + (select sum(reserved) from wallet.quota_buckets)::int8";
    let before = stack.count(reserved).await;
    let leases = |answers: &[pb::Answer]| -> Vec<_> {
        answers.iter().map(|it| lent(it).map(|it| it.0)).collect()
    };
    for _ in 0..2 {
        let again = gateway.ask(asks).await.expect("answers");
        assert_eq!(outcomes(&again), outcomes(answers), "{again:#?}");
        assert_eq!(leases(&again), leases(answers));
        assert_eq!(stack.count(reserved).await, before);
    }
}

async fn the_newest_quota_counts(stack: &Stack) {
    let gateway = Gateway::of(stack);
    let key = Uuid::now_v7();
    let with = |quota, version, minimum| pb::Ask {
        want: minimum,
        minimum,
        ..of_quota(key, quota, version)
    };
    // Within one request too, of a new bucket and of one that is there.
    let asks = [with(5, 1, 5), with(9, 2, 3), with(5, 1, 1)];
    let answers = gateway.ask(&asks).await.expect("answers");
    assert_eq!(outcomes(&answers), [Outcome::Lent; 3], "{answers:#?}");
    let answers = gateway.ask(&[with(5, 1, 1), with(11, 3, 2)]).await;
    let answers = answers.expect("answers");
    assert_eq!(
        outcomes(&answers),
        [Outcome::Lent, Outcome::Short],
        "{answers:#?}"
    );
}

async fn the_last_credits_are_lent_once(stack: &Stack) {
    let customer = stack.customer("Hundred", 100);
    let gateways: Vec<Gateway> = (0..4).map(|_| Gateway::of(stack)).collect();
    let asks = || -> Vec<pb::Ask> { (0..ASKS_MAX).map(|_| of_org(&customer.org, 7)).collect() };
    let answers = gateways.iter().map(|gateway| {
        let asks = asks();
        async move { gateway.ask(&asks).await }
    });
    let answers = try_join_all(answers).await.expect("answers").concat();
    let mut leases: BTreeMap<Vec<u8>, i64> = BTreeMap::new();
    for (lease, granted) in answers.iter().filter_map(lent) {
        let known = leases.entry(lease).or_default();
        *known = granted.max(*known);
    }
    let all: i64 = leases.values().sum();
    assert!((94..=100).contains(&all), "{all} of 100 are lent");
    let short = answers.iter().filter(|it| it.outcome() == Outcome::Short);
    assert!(short.clone().count() >= 4 * ASKS_MAX - 14);
    assert!(
        short.clone().all(|answer| answer.available < 7),
        "none is refused though funded"
    );
}

async fn who_waits_for_a_recall_keeps_nobody_waiting(stack: &Stack) {
    let customer = stack.customer("Elsewhere", 50);
    let holder = Gateway::of(stack);
    let all: Vec<pb::Ask> = (0..50).map(|_| of_org(&customer.org, 1)).collect();
    holder.ask(&all).await.expect("answers");
    let asks = [of_org(&customer.org, 1), of_user(Uuid::now_v7())];
    let messages = Gateway::of(stack).messages(&asks).await.expect("answers");
    // The holder does not answer.
    let seen: Vec<Vec<(u32, Outcome)>> = messages
        .iter()
        .map(|message| {
            let answers = message.iter();
            answers.map(|it| (it.position, it.outcome())).collect()
        })
        .collect();
    let at_once = vec![(1, Outcome::Lent)];
    assert_eq!(seen.first(), Some(&at_once), "{seen:?}");
    assert_eq!(seen.concat(), [at_once, vec![(0, Outcome::Short)]].concat());
}

/// The wallet waits a second for a lock that keeps several waiting; a busy machine a little longer.
const LOCKED_MAX: Duration = Duration::from_secs(5);

async fn what_is_locked_holds_nobody_else_up(stack: &Stack) {
    let (locked, free) = (stack.customer("Locked", 10), stack.customer("Free", 10));
    let org: Uuid = locked
        .org
        .trim_start_matches("org_")
        .parse()
        .expect("an id");
    let mut holder = stack.pool().begin().await.expect("begun");
    sqlx::query("select from wallet.wallets where org_id = $1 for update")
        .bind(org)
        .execute(&mut *holder)
        .await
        .expect("locked");
    let gateway = Gateway::of(stack);
    let asks = [of_org(&free.org, 1), of_org(&locked.org, 1)];
    // The free one is told soon, however long it would wait.
    let refused = timeout(LOCKED_MAX, gateway.ask(&asks)).await;
    let refused = refused.expect("soon").expect_err("somebody holds it");
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    let alone = gateway.ask(&asks[..1]).await.expect("an answer");
    assert_eq!(outcomes(&alone), [Outcome::Lent]);
    holder.rollback().await.expect("unlocked");
    let both = gateway.ask(&asks).await.expect("answers");
    assert_eq!(outcomes(&both), [Outcome::Lent; 2]);
}

async fn an_ended_journal_is_lent_nothing(stack: &Stack) {
    let gateway = Gateway::of(stack);
    let asks = [of_user(Uuid::now_v7()), of_user(Uuid::now_v7())];
    gateway.ask(&asks).await.expect("answers");
    let retire = pb::RetireJournalRequest {
        journal_id: gateway.journal.to_string(),
        unless_alive: false,
    };
    gateway
        .wallet
        .clone()
        .retire_journal(retire)
        .await
        .expect("it ends");
    for asks in [asks.to_vec(), vec![of_user(Uuid::now_v7())]] {
        let refused = gateway.ask(&asks).await.expect_err("it has ended");
        assert_eq!(refused.code(), tonic::Code::AlreadyExists, "{refused}");
    }
    for asks in [Vec::new(), vec![asks[0].clone(); ASKS_MAX + 1]] {
        let refused = gateway.ask(&asks).await.expect_err("too few or too many");
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    }
}

/// Both ask for the same and for what nobody has asked for before, one from the front, the other
/// from the back.
#[tokio::test]
async fn requests_that_overlap_in_opposite_orders_do_not_wait_in_a_circle() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let user = || of_user(Uuid::now_v7());
    let quota = || of_quota(Uuid::now_v7(), 9, 1);
    let shared: Vec<pb::Ask> = (0..12).flat_map(|_| [user(), quota()]).collect();
    // Who waits to make one kind does not come to the other: each by turns.
    let fresh = |round: usize| -> Vec<pb::Ask> {
        let new = (0..100).map(|_| {
            if round.is_multiple_of(2) {
                user()
            } else {
                quota()
            }
        });
        shared.iter().cloned().chain(new).collect()
    };
    let rounds: Vec<Vec<pb::Ask>> = (0..ROUNDS).map(fresh).collect();
    let gateways: Vec<Gateway> = (0..4).map(|_| Gateway::of(&stack)).collect();
    let together = Barrier::new(gateways.len());
    let asked = gateways.iter().enumerate().map(|(index, gateway)| {
        let mut rounds = rounds.clone();
        for round in &mut rounds {
            round.iter_mut().for_each(|ask| ask.nonce = nonce());
            if index % 2 == 1 {
                round.reverse();
            }
        }
        let together = &together;
        async move {
            for round in rounds {
                together.wait().await;
                gateway.ask(&round).await?;
            }
            Ok::<_, Status>(())
        }
    });
    try_join_all(asked)
        .await
        .expect("nobody is ended by PostgreSQL");
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    assert_eq!(stack.count(deadlocks).await, 0);
    sums_hold(&stack).await;
}

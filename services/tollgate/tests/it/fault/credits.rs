//! Credits while wallet or gateways are away, and when few are left.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::process::Signal;
use testkit::{
    eventually,
    load::{Answer, Connection, Done, Outcome, Shot},
};

use super::{DISTANCE, LIVE, Load, chat, figures::Figures, render, summary};
use crate::stack::{Customer, SETTLE_LIMIT, Stack, signal};

/// Leases that nothing is spent from go back after ten seconds, but a few credits.
const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// For one death of the wallet and its return.
const DEATH_LIMIT: Duration = Duration::from_secs(20);

/// What a test saw of its own calls.
pub(super) fn outcome_of(answers: &[Answer]) -> Outcome {
    let done = |answer: &Answer| Done {
        request_id: answer.header("x-request-id").to_owned(),
        status: answer.status.as_u16(),
        cost: answer.cost(),
        at: Instant::now(),
    };
    Outcome {
        done: answers.iter().map(done).collect(),
        ..Outcome::default()
    }
}

fn statuses(answers: &[Answer]) -> Vec<u16> {
    answers
        .iter()
        .map(|answer| answer.status.as_u16())
        .collect()
}

async fn wallet(stack: &Stack, customer: &Customer) -> (i64, i64, i64) {
    let org: uuid::Uuid = customer
        .org
        .trim_start_matches("org_")
        .parse()
        .expect("an id");
    sqlx::query_as("select balance, reserved, total_used from wallet.wallets where org_id = $1")
        .bind(org)
        .fetch_one(stack.pool())
        .await
        .expect("a wallet")
}

/// F16: replies of the wallet are lost again and again; then it is away for a while.
#[tokio::test]
async fn f16_lost_replies_of_the_wallet_strand_nothing() {
    lose_replies(6).await;
}

#[tokio::test]
#[ignore = "minutes; run by make faults"]
async fn f16_five_hundred_lost_replies_of_the_wallet_strand_nothing() {
    lose_replies(500).await;
}

async fn lose_replies(times: usize) {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "2"]).await;
    let customer = stack.customer("Unlucky", 1_000_000);
    let (_, key) = stack.key(&customer, &LIVE);
    let stranger = stack.customer("Stranger", 100);
    let (_, strangers_key) = stack.key(&stranger, &LIVE);
    let load = Load::start(&stack, &key, 8);
    let points: Vec<String> = (1..=2)
        .cycle()
        .take(times)
        .map(|passage| format!("wallet.acquire_committed:{passage}"))
        .collect();
    stack.arm("wallet", &points);
    signal(stack.pids("wallet")[0], Signal::KILL);
    let mut asked = Vec::new();
    died(&stack, times).await;
    let outcome = load.finish().await;
    assert_eq!(outcome.by_status.get(&402), None, "{}", summary(&outcome));
    let report = stack.audit_with(&[&outcome]);
    let more = format!(
        "wallet died {times} times in Acquire: {}",
        summary(&outcome)
    );
    Figures::say("F16", [times, times], &[&outcome], more, &stack, &report).await;

    // A lease in hand for one customer, none for the other.
    asked.push(stack.call_at(0, &key, &Shot::get(DISTANCE)).await);
    let pid = stack.pids("wallet")[0];
    signal(pid, Signal::STOP);
    let shot = Shot::get(DISTANCE);
    let strange = stack.call_at(0, &strangers_key, &shot);
    let known = async {
        let mut answers = Vec::new();
        for _ in 0..10 {
            answers.push(stack.call_at(0, &key, &shot).await);
        }
        answers
    };
    let (strange, known) = tokio::join!(strange, known);
    signal(pid, Signal::CONT);
    assert_eq!(
        statuses(&known),
        [200; 10],
        "calls with a lease in hand go on"
    );
    assert_eq!(strange.status, 503, "{strange:?}");
    assert_eq!(strange.json()["code"], "credits_unavailable", "{strange:?}");
    asked.extend(known);
    // The gateways live on, idle: what was lent without a reply goes back like all else.
    nothing_stays_reserved(&stack).await;
    stack.audit_with(&[&outcome, &outcome_of(&asked)]);
}

/// The wallet has died so often where it was told to.
async fn died(stack: &Stack, times: usize) {
    let limit = DEATH_LIMIT * u32::try_from(times).expect("few");
    let died = eventually(limit, "the wallet dies", async || {
        match stack.deaths().0.len() {
            deaths if deaths >= times => Ok(()),
            deaths => Err(format!("{deaths} of {times} times")),
        }
    });
    died.await.expect("died often enough");
}

/// Idle leases give back what they hold, but a sixty-fourth of a wallet; what a lost reply lent is
/// not forgotten.
async fn nothing_stays_reserved(stack: &Stack) {
    let back = eventually(IDLE_LIMIT, "idle credits are back", async || {
        let reserved = "select coalesce(sum(reserved), 0)::int8 from wallet.wallets
                         where reserved > balance / 64";
        match stack.count(reserved).await {
            0 => Ok(()),
            reserved => Err(format!("{reserved} credits are reserved")),
        }
    });
    back.await.expect("nothing is stranded");
}

/// F17: a gateway sleeps until its leases are orphaned; the rest is spent elsewhere; it wakes.
#[tokio::test]
async fn f17_a_gateway_that_wakes_up_late_overspends_nothing() {
    let (answers, wallet, late) = sleep_past_everything(Orphans::Wait).await;
    let spent: i64 = answers.iter().map(Answer::cost).sum();
    assert_eq!(late, 0, "nothing was written off");
    assert_eq!(
        wallet,
        (100 - spent, 0, spent),
        "what was answered was paid"
    );
    assert_eq!(
        spent, 100,
        "no timer gave its credits away, and it could spend them"
    );
}

/// F17 with a write-off: what was lent is lent again, so the sleeper's calls are the provider's.
#[tokio::test]
async fn f17_a_gateway_that_wakes_up_after_its_write_off_costs_the_provider() {
    let (answers, wallet, late) = sleep_past_everything(Orphans::WrittenOff).await;
    let spent: i64 = answers.iter().map(Answer::cost).sum();
    assert_eq!(
        wallet,
        (0, 0, 100),
        "the customer spent all, and not one more"
    );
    assert!(late > 0, "what was spent after the write-off came late");
    assert_eq!(spent, 100 + late, "to the credit the provider's loss");
}

/// What becomes of leases whose owner is silent.
#[derive(Clone, Copy)]
enum Orphans {
    Wait,
    /// At once; the wallet dies after the first, too.
    WrittenOff,
}

/// The wallet has another life.
async fn wallet_answers(stack: &Stack) {
    let org = stack.demo("org_id");
    let answers = eventually(SETTLE_LIMIT, "the wallet answers", async || {
        let (code, _, errors) = stack.try_cli(&["wallet", "show", "--org", &org]);
        if code == Some(0) { Ok(()) } else { Err(errors) }
    });
    answers.await.expect("it answers");
}

/// Some lease is in this state.
pub(super) async fn given_up(stack: &Stack, state: &str) {
    let noticed = eventually(SETTLE_LIMIT, "its leases are given up", async || {
        let (states,): (Option<String>,) =
            sqlx::query_as("select string_agg(distinct state, ',') from wallet.leases")
                .fetch_one(stack.pool())
                .await
                .expect("states");
        let states = states.unwrap_or_default();
        if states.contains(state) {
            Ok(())
        } else {
            Err(states)
        }
    });
    noticed.await.expect("noticed");
}

/// Credits spent of leases that were given up: the provider's account.
async fn late_spend(stack: &Stack) -> i64 {
    stack
        .count("select coalesce(sum(late_spend), 0)::int8 from wallet.write_offs")
        .await
}

impl Orphans {
    /// What leases of a silent owner become here.
    fn state(self) -> &'static str {
        match self {
            Self::Wait => "orphaned",
            Self::WrittenOff => "written_off",
        }
    }

    /// A stack that does so.
    async fn stack(self) -> Stack {
        // The wallet's own restart must not look like the silence of a gateway that is there.
        let (orphan_seconds, hours) = match self {
            Self::Wait => ("2", "24"),
            Self::WrittenOff => ("8", "0"),
        };
        let variables = [
            ("TOLLGATE_WALLET_ORPHAN_SECONDS", orphan_seconds),
            ("TOLLGATE_WALLET_WRITE_OFF_HOURS", hours),
        ];
        let arguments = ["--ephemeral", "--processes", "--gateways", "2"];
        let stack = Stack::start_with(&arguments, &variables).await;
        if matches!(self, Self::WrittenOff) {
            stack.arm("wallet", &["wallet.writeoff_committed:1".to_owned()]);
            signal(stack.pids("wallet")[0], Signal::KILL);
            wallet_answers(&stack).await;
        }
        stack
    }
}

/// Spends a wallet of 100 with a gateway that sleeps through it. Returns all paid answers, the
/// balance, reserved and used credits, and what the provider has lost.
async fn sleep_past_everything(orphans: Orphans) -> (Vec<Answer>, (i64, i64, i64), i64) {
    let (stack, state) = (orphans.stack().await, orphans.state());
    let is_armed = matches!(orphans, Orphans::WrittenOff);
    let customer = stack.customer("Sleeper", 100);
    let (_, key) = stack.key(&customer, &LIVE);
    let shot = Shot::get(DISTANCE);
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(stack.call_at(0, &key, &shot).await);
    }
    // The second gateway knows the key too: only credits matter from here on.
    answers.push(stack.call_at(1, &key, &shot).await);
    let sleeper = stack.pids("gateway")[0];
    signal(sleeper, Signal::STOP);
    let base = stack.gateways()[0].clone();
    // Calls that its kernel accepts while it sleeps.
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let (base, key, shot) = (base.clone(), key.clone(), shot.clone());
        waiting.spawn(async move { Connection::to(&base).call(&key, &shot).await });
    }
    given_up(&stack, state).await;
    if is_armed {
        died(&stack, 1).await;
        wallet_answers(&stack).await;
    }
    let mut false_402 = spend_the_rest(&stack, &customer, &key, &mut answers).await;
    if is_armed {
        let empty = eventually(SETTLE_LIMIT, "the wallet is empty", async || match wallet(
            &stack, &customer,
        )
        .await
        {
            (0, 0, 100) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        empty.await.expect("all was spent elsewhere");
    }
    signal(sleeper, Signal::CONT);
    while let Some(answer) = waiting.join_next().await {
        answers.push(answer.expect("no panic").expect("an answer"));
    }
    for _ in 0..100 {
        let answer = stack.call_at(0, &key, &shot).await;
        let spent: i64 = answers.iter().map(Answer::cost).sum();
        false_402 += usize::from(answer.status == 402 && spent < 100);
        answers.push(answer);
    }
    let outcome = outcome_of(&answers);
    let report = stack.audit_with(&[&outcome]);
    nothing_stays_reserved(&stack).await;
    let wallet = wallet(&stack, &customer).await;
    let late = late_spend(&stack).await;
    let mut seen: BTreeMap<u16, usize> = BTreeMap::new();
    statuses(&answers)
        .into_iter()
        .for_each(|status| *seen.entry(status).or_default() += 1);
    let figures = Figures {
        faults: 1,
        false_402,
        more: format!("sleeper, {state}: {seen:?}, wallet {wallet:?}, {late} came late"),
        ..Figures::of("F17", &[&outcome])
    };
    figures.print(&stack, &report).await;
    assert_eq!(report["overspent"], 0);
    (answers, wallet, late)
}

/// Calls the other gateway until it refuses. Returns how many refusals were wrong: those with
/// something left in the wallet. What the sleeper has nobody can recall.
async fn spend_the_rest(
    stack: &Stack,
    customer: &Customer,
    key: &str,
    answers: &mut Vec<Answer>,
) -> usize {
    for _ in 0..200 {
        let answer = stack.call_at(1, key, &Shot::get(DISTANCE)).await;
        let is_refused = answer.status == 402;
        answers.push(answer);
        if is_refused {
            let (balance, reserved, _) = wallet(stack, customer).await;
            return usize::from(balance > reserved);
        }
    }
    panic!("never refused: {:?}", statuses(answers))
}

/// F23: what is left in a lease and what is left in the wallet pay a call together, when neither
/// does alone.
#[tokio::test]
async fn f23_the_rest_of_a_lease_and_of_the_wallet_pay_a_call_together() {
    let stack = Stack::start(&["--ephemeral", "--processes"]).await;
    for credits in [100, 97, 50, 31] {
        let customer = stack.customer(&format!("Rest{credits}"), credits);
        let (_, key) = stack.key(&customer, &LIVE);
        let mut paid = 0;
        let refused = loop {
            let answer = stack.call(&key, &chat()).await;
            match answer.status.as_u16() {
                200 => paid += answer.cost(),
                _ => break answer,
            }
        };
        assert_eq!(refused.status, 402, "{refused:?}");
        let credits = i64::from(credits);
        assert_eq!(paid, credits - credits % 3, "three a call, of {credits}");
    }
    stack.audit();
}

/// One call, and when it was under way.
struct Bought {
    cost: i64,
    began: Instant,
    ended: Instant,
    answer: Answer,
}

/// Refusals for want of credits that were there all the time: even without all that was spent by
/// calls that had begun before the refusal was known, and though such a call may have held its
/// credits for the whole of it.
fn refused_though_funded(calls: &[Bought]) -> usize {
    let refused = calls.iter().filter(|it| it.answer.status == 402);
    let is_false = |refusal: &&Bought| {
        let before = calls.iter().filter(|it| it.began < refusal.ended);
        let spent: i64 = before.map(|it| it.answer.cost()).sum();
        100 - spent >= refusal.cost
    };
    refused.filter(is_false).count()
}

/// F23: many clients on many gateways, and nearly nothing in the wallet.
#[tokio::test]
async fn f23_the_last_credits_are_spent_and_not_one_more() {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "4"]).await;
    stack.cli(&["service", "set", "ai", "--cost", "7"]);
    stack.cli(&["service", "set", "pdf", "--cost", "20"]);
    let customer = stack.customer("Nearly", 100);
    let (_, key) = stack.key(&customer, &LIVE);
    let answers: Arc<Mutex<Vec<Bought>>> = Arc::default();
    let mut clients = tokio::task::JoinSet::new();
    for index in 0..64 {
        let base = stack.gateways()[index % 4].clone();
        let (key, answers) = (key.clone(), Arc::clone(&answers));
        clients.spawn(async move {
            let mut connection = Connection::to(&base);
            let shots = [(1, Shot::get(DISTANCE)), (7, chat()), (20, render())];
            // Each client goes on until even the cheapest call was refused.
            for turn in index.. {
                let (cost, shot) = &shots[turn % shots.len()];
                let began = Instant::now();
                let answer = connection.call(&key, shot).await.expect("an answer");
                let is_end = *cost == 1 && answer.status == 402;
                answers.lock().push(Bought {
                    cost: *cost,
                    began,
                    ended: Instant::now(),
                    answer,
                });
                if is_end {
                    return;
                }
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.expect("no panic");
    }
    let answers = std::mem::take(&mut *answers.lock());
    let all: Vec<Answer> = answers.iter().map(|it| it.answer.clone()).collect();
    let outcome = Outcome {
        sent: u64::try_from(all.len()).expect("few"),
        ..outcome_of(&all)
    };
    let ended = Instant::now();
    let report = stack.audit_with(&[&outcome]);
    let (balance, _, used) = wallet(&stack, &customer).await;
    let false_402 = refused_though_funded(&answers);
    let mut seen: BTreeMap<(i64, u16), usize> = BTreeMap::new();
    for it in &answers {
        let status = it.answer.status.as_u16();
        *seen.entry((it.cost, status)).or_default() += 1;
    }
    let figures = Figures {
        false_402,
        quiet: ended.elapsed(),
        more: format!("spent {used} of 100; (cost, status): calls {seen:?}"),
        ..Figures::of("F23", &[&outcome])
    };
    figures.print(&stack, &report).await;
    assert_eq!(
        (balance, used),
        (0, 100),
        "all is spent, and no more; {seen:?}"
    );
    assert_eq!(false_402, 0, "refused though funded");
    assert!(
        seen.keys().all(|(_, status)| [200, 402].contains(status)),
        "{seen:?}"
    );
}

//! What travels together, and what becomes of each of it.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{
    StreamExt as _,
    future::{join_all, pending},
    stream,
};
use types::Refusal;

use super::*;
use crate::{
    lease::Hold,
    lender::{
        Lender,
        tests::{Bank, lender_of, owner, owner_of},
    },
};

/// An owner whose calls are not of interest.
const OTHERS: std::ops::Range<u128> = 1_000..2_000;

fn answers_of(bank: &Mutex<Bank>, asks: Vec<wire::Ask>) -> Vec<wire::Answer> {
    let mut bank = bank.lock();
    let answered = (0..).zip(asks).map(|(position, ask)| wire::Answer {
        position,
        ..bank.acquire(ask)
    });
    answered.collect()
}

/// One call of each.
async fn call(lender: &Lender, owners: impl Iterator<Item = u128>) -> Vec<Result<Hold, Refusal>> {
    let calls = owners.map(|n| async move {
        let account = lender.account(owner(n));
        lender.hold_or_acquire(&account, 1).await
    });
    join_all(calls).await
}

/// So many wait for a line.
async fn queued(lender: &Lender, count: usize) {
    while lender.asker.queue.lock().waiting.len() < count {
        tokio::task::yield_now().await;
    }
}

/// A lender all of whose lines are taken until `open` lets the wallet answer, and what travelled.
async fn gated<F>(
    open: Arc<tokio::sync::Semaphore>,
    answer: F,
) -> (Arc<Lender>, Arc<Mutex<Vec<usize>>>, tempfile::TempDir)
where
    F: Fn(Vec<wire::Ask>) -> Result<Vec<wire::Answer>, Status> + Clone + Send + Sync + 'static,
{
    let travelled: Arc<Mutex<Vec<usize>>> = Arc::default();
    let noted = Arc::clone(&travelled);
    let (lender, dir) = lender_of(move |asks| {
        noted.lock().push(asks.len());
        let (open, answer) = (Arc::clone(&open), answer.clone());
        stream::once(async move {
            drop(open.acquire().await);
            answer(asks)
        })
    })
    .await;
    (lender, travelled, dir)
}

#[tokio::test]
async fn what_waits_while_the_lines_are_taken_travels_together() {
    let (bank, open) = (Bank::new(5), Arc::new(tokio::sync::Semaphore::new(0)));
    let answer = move |asks| Ok(answers_of(&bank, asks));
    let (lender, travelled, _dir) = gated(Arc::clone(&open), answer).await;
    let others = ASKS_MAX + 2;
    let calls = call(&lender, OTHERS.take(LINES_MAX + others));
    let opened = async {
        queued(&lender, others).await;
        open.add_permits(1_000);
    };
    let (held, ()) = futures_util::join!(calls, opened);
    assert!(held.iter().all(Result::is_ok), "{held:?}");
    let lone = vec![1; LINES_MAX];
    assert_eq!(*travelled.lock(), [lone, vec![ASKS_MAX, 2]].concat());
    assert_eq!(lender.asker.queue.lock().lines, 0, "no line is lost");
}

#[tokio::test]
async fn each_of_those_that_travel_together_has_an_answer_of_its_own() {
    let (bank, open) = (Bank::new(5), Arc::new(tokio::sync::Semaphore::new(0)));
    let bad = [(2, wire::Outcome::Frozen), (3, wire::Outcome::Invalid)];
    let bad = bad.map(|(n, outcome)| (owner_text(n), outcome));
    let answer = move |asks: Vec<wire::Ask>| {
        let owners: Vec<String> = asks.iter().map(owner_of).collect();
        let mut answers = answers_of(&bank, asks);
        for (answer, owner) in answers.iter_mut().zip(owners) {
            if let Some((_, outcome)) = bad.iter().find(|(bad, _)| *bad == owner) {
                (answer.outcome, answer.lease) = ((*outcome).into(), None);
            }
        }
        answers.reverse();
        Ok(answers)
    };
    let (lender, travelled, _dir) = gated(Arc::clone(&open), answer).await;
    let dear = async {
        let account = lender.account(owner(4));
        queued(&lender, 3).await;
        lender.hold_or_acquire(&account, 6).await
    };
    let calls = call(&lender, OTHERS.take(LINES_MAX).chain(1..4));
    let opened = async {
        queued(&lender, 4).await;
        open.add_permits(1_000);
    };
    let (mut held, dear, ()) = futures_util::join!(calls, dear, opened);
    let held = held.split_off(LINES_MAX);
    let credits = held.iter().map(|held| held.as_ref().map(Hold::credits));
    let away = Err(&Refusal::CreditsUnavailable);
    assert_eq!(credits.collect::<Vec<_>>(), [Ok(1), away, away]);
    assert_eq!(dear.err(), Some(Refusal::CreditsExhausted));
    assert_eq!(
        travelled.lock().get(LINES_MAX),
        Some(&4),
        "they went together"
    );
    let unanswered = [1, 2, 3, 4].map(|n| lender.unanswered(owner(n)).is_some());
    assert_eq!(
        unanswered,
        [false, true, false, false],
        "the frozen one is asked again"
    );
}

fn owner_text(n: u128) -> String {
    types::OrgId::new(uuid::Uuid::from_u128(n)).to_string()
}

#[tokio::test]
async fn those_for_whom_others_are_asked_keep_no_line_from_the_rest() {
    let (bank, seen) = (Bank::new(5), Arc::new(AtomicUsize::new(0)));
    let noted = Arc::clone(&seen);
    let (lender, _dir) = lender_of(move |asks: Vec<wire::Ask>| {
        noted.fetch_add(asks.len(), Ordering::Relaxed);
        // What can be said at once is who is not short; more comes later.
        let mut answers = answers_of(&bank, asks.clone());
        answers.retain(|answer| {
            let place = usize::try_from(answer.position).expect("small");
            asks.get(place)
                .is_some_and(|ask| owner_of(ask) == owner_text(1))
        });
        stream::iter([Ok(answers)]).chain(stream::once(pending()))
    })
    .await;
    let short = 2 * LINES_MAX;
    let recalled = call(&lender, OTHERS.take(short));
    let other = async {
        // Each was asked for once, and nobody has given up: still every line is free.
        while seen.load(Ordering::Relaxed) < short || lender.asker.queue.lock().lines > 0 {
            tokio::task::yield_now().await;
            assert!(
                seen.load(Ordering::Relaxed) <= short,
                "they wait for each other"
            );
        }
        call(&lender, 1..2).await
    };
    tokio::select! {
        recalled = recalled => panic!("nobody answered them: {recalled:?}"),
        held = other => assert!(held.iter().all(Result::is_ok), "{held:?}"),
    }
}

#[tokio::test]
async fn what_fails_for_all_is_asked_again_alone() {
    let (bank, open) = (Bank::new(5), Arc::new(tokio::sync::Semaphore::new(0)));
    let answer =
        move |asks: Vec<wire::Ask>| match asks.iter().any(|ask| owner_of(ask) == owner_text(2)) {
            true => Err(Status::internal("a row that breaks an invariant")),
            false => Ok(answers_of(&bank, asks)),
        };
    let (lender, travelled, _dir) = gated(Arc::clone(&open), answer).await;
    let calls = call(&lender, OTHERS.take(LINES_MAX).chain(1..4));
    let opened = async {
        queued(&lender, 3).await;
        open.add_permits(1_000);
    };
    let (held, ()) = futures_util::join!(calls, opened);
    let failed = held.iter().filter_map(|held| held.as_ref().err());
    assert_eq!(failed.collect::<Vec<_>>(), [&Refusal::CreditsUnavailable]);
    assert!(held.last().is_some_and(Result::is_ok), "{held:?}");
    let lone = vec![1; LINES_MAX];
    assert_eq!(*travelled.lock(), [lone, vec![3, 1, 1, 1]].concat());
    // It is known from now on: nobody fails because of it again.
    travelled.lock().clear();
    let held = call(
        &lender,
        (OTHERS.start + 500..).take(LINES_MAX).chain([2, 5, 6]),
    )
    .await;
    assert_eq!(held.iter().filter(|held| held.is_err()).count(), 1);
    assert!(held.last().is_some_and(Result::is_ok), "{held:?}");
    assert_eq!(
        travelled.lock().iter().sum::<usize>(),
        LINES_MAX + 3,
        "each once"
    );
}

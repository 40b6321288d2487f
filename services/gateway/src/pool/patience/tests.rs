use std::{future::poll_fn, task::Poll, time::Duration};

use tokio::time::Instant;

use super::{Patience, Pauses, TICK};

const LONG: Duration = Duration::from_secs(3600);

/// Resolves when the pause is over.
async fn paused(pauses: &mut Pauses) {
    poll_fn(|task| match pauses.pause(task) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

fn once(pauses: &mut Pauses) {
    let task = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(!pauses.pause(&task));
}

#[tokio::test(start_paused = true)]
async fn a_pause_ends_after_its_time_and_never_before() {
    let local = tokio::task::LocalSet::new();
    let all = local.run_until(async {
        let patience = Patience::new();
        let idle = Duration::from_secs(2);
        let begun = Instant::now();
        let mut pauses = patience.pauses(idle, LONG);
        paused(&mut pauses).await;
        let took = begun.elapsed();
        assert!(took >= idle && took <= idle + 3 * TICK, "{took:?}");

        // Each piece begins a new pause, up to the end of all.
        let total = Duration::from_secs(5);
        let mut pauses = patience.pauses(idle, total);
        let begun = Instant::now();
        for _ in 0..4 {
            once(&mut pauses);
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(!pauses.go_on(), "not yet");
        }
        paused(&mut pauses).await;
        let took = begun.elapsed();
        assert!(took >= total && took <= total + 3 * TICK, "{took:?}");

        // An upstream that never pauses, and a client that takes a piece now and then.
        let mut pauses = patience.pauses(idle, total);
        let begun = Instant::now();
        while !pauses.go_on() {
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        let took = begun.elapsed();
        assert!(
            took >= total && took <= total + Duration::from_secs(1),
            "{took:?}"
        );
    });
    all.await;
}

#[tokio::test(start_paused = true)]
async fn nobody_looks_when_nobody_waits_and_places_are_used_again() {
    let local = tokio::task::LocalSet::new();
    let all = local.run_until(async {
        let patience = Patience::new();
        for _ in 0..3 {
            let mut some = [(); 4].map(|()| patience.pauses(LONG, LONG));
            some.iter_mut().for_each(once);
        }
        assert!(patience.waits.borrow().is_empty());
        let next = patience.waits.borrow().vacant_key();
        assert!(next < 4, "one of the first four places");
        assert!(patience.now.get().is_some());
        tokio::time::sleep(3 * TICK).await;
        assert!(patience.now.get().is_none(), "asleep");
        let mut late = patience.pauses(TICK, LONG);
        paused(&mut late).await;
    });
    all.await;
}

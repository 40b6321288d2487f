use std::time::Duration;

use tokio::time::Instant;

use super::{FAILURES_MAX, Fault, Health, Leave, REST_MAX, REST_MIN};

fn failing(times: u32, now: Instant) -> Health {
    (0..times).fold(Health::NEW, |health, _| {
        health.failed(Fault::Connect, false, now)
    })
}

#[test]
fn only_failures_in_a_row_make_an_address_rest() {
    let now = Instant::now();
    let health = failing(FAILURES_MAX - 1, now);
    assert_eq!(health.leave(now), Leave::Use);
    let health = health.answered();
    assert_eq!(health, Health::NEW);
    assert_eq!(failing(FAILURES_MAX, now).leave(now), Leave::Wait(REST_MIN));
}

#[test]
fn one_call_tries_and_its_answer_ends_the_rest() {
    let now = Instant::now();
    let resting = failing(FAILURES_MAX, now);
    assert_eq!(resting.answered(), resting, "an answer from before");
    assert_eq!(
        resting.failed(Fault::Connect, true, now),
        resting,
        "a failure from before"
    );
    let later = now + REST_MIN;
    assert_eq!(resting.leave(later), Leave::Try);
    let tried = resting.tried();
    assert!(matches!(tried.leave(later), Leave::Wait(_)), "by one call");
    assert!(!tried.is_used());
    assert_eq!(tried.answered(), Health::NEW);
    let untold = tried.untold(later);
    assert_eq!(untold.leave(later), Leave::Try, "the next call tries");
}

#[test]
fn each_failed_trial_doubles_the_rest_up_to_the_longest() {
    let mut now = Instant::now();
    let mut health = failing(FAILURES_MAX, now);
    let mut wanted = REST_MIN;
    for _ in 0..20 {
        let Leave::Wait(rest) = health.leave(now) else {
            panic!("{health:?} is left alone");
        };
        assert_eq!(rest, wanted);
        now += rest;
        assert_eq!(health.leave(now - Duration::from_millis(1)), {
            Leave::Wait(Duration::from_millis(1))
        });
        health = health.tried().failed(Fault::Connect, false, now);
        wanted = (wanted * 2).min(REST_MAX);
    }
    assert_eq!(wanted, REST_MAX);
}

#[test]
fn calls_that_fail_end_the_use_of_an_address_only_where_others_are_used() {
    let now = Instant::now();
    let fail = |health: Health, may_rest| health.failed(Fault::Call, may_rest, now);
    let lone = (0..100).fold(Health::NEW, |health, _| fail(health, false));
    assert_eq!(lone.leave(now), Leave::Use);
    assert!(!fail(lone, true).is_used(), "now there is another one");
    assert!(
        lone.failed(Fault::Connect, false, now).is_used(),
        "one is no row"
    );
    // What ended its use ends the rest.
    let later = now + REST_MIN;
    let tried = fail(lone, true).tried();
    assert_eq!(
        tried.connected(),
        tried,
        "that it can be connected to is not news"
    );
    assert_eq!(tried.answered(), Health::NEW);
    let unreachable = failing(FAILURES_MAX, now).tried();
    assert_eq!(unreachable.connected().leave(later), Leave::Use);
}

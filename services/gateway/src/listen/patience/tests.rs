//! How long is waited for whom.

use std::time::Duration;

use super::{Memory, Patience, Sight, Verdict, Waits};

const PATIENCE: Patience = Patience {
    head: Duration::from_secs(5),
    idle: Duration::from_secs(20),
    stall: Duration::from_secs(10),
    bytes_per_second_min: 100,
    age: Duration::from_secs(1_000),
};

fn sight(waits: Waits) -> Sight {
    Sight {
        waits,
        is_awake: true,
        ..Sight::default()
    }
}

/// Looks each second at what `see` shows, from 1 s on; the first verdict of its kind.
fn first(limit: u64, see: impl Fn(u64) -> Sight, wanted: Verdict) -> Option<u64> {
    let mut memory = Memory::new(0);
    (1..limit).find(|now| memory.judge(see(*now), *now, &PATIENCE) == wanted)
}

#[test]
fn a_client_that_says_nothing_is_cut() {
    let see = |_| sight(Waits::Opening);
    assert_eq!(first(100, see, Verdict::Cut("silent")), Some(5));
}

#[test]
fn a_head_has_its_time_however_it_drips() {
    let drips = |now| Sight {
        read: now * 1_000,
        ..sight(Waits::Head)
    };
    assert_eq!(first(100, drips, Verdict::LateHead), Some(6));
    let others = |now| Sight {
        heads: now,
        ..sight(Waits::Head)
    };
    assert_eq!(first(100, others, Verdict::LateHead), None);
}

#[test]
fn an_idle_connection_rests_and_then_ends() {
    let idle = |_| sight(Waits::Idle);
    assert_eq!(first(100, idle, Verdict::Rest), Some(2));
    assert_eq!(first(100, idle, Verdict::End), Some(21));
    let busy = |now| Sight {
        read: now,
        ..sight(Waits::Idle)
    };
    assert_eq!(
        first(100, busy, Verdict::Rest),
        None,
        "calls that follow each other"
    );
    assert_eq!(first(100, busy, Verdict::End), None);
}

#[test]
fn a_body_and_a_reader_have_a_least_rate() {
    let body = |rate: u64| {
        move |now: u64| Sight {
            read: now * rate,
            ..sight(Waits::Body)
        }
    };
    assert_eq!(first(100, body(99), Verdict::LateBody), Some(11));
    assert_eq!(first(100, body(100), Verdict::LateBody), None);
    let reader = |rate: u64| {
        move |now: u64| Sight {
            written: now * rate,
            ..sight(Waits::Reader)
        }
    };
    let cut = Verdict::Cut("slow_reader");
    assert_eq!(first(100, reader(99), cut), Some(11));
    assert_eq!(first(100, reader(100), cut), None);
    let both = |now| Sight {
        written: now,
        ..sight(Waits::Body)
    };
    assert_eq!(
        first(100, both, Verdict::LateBody),
        None,
        "its answer is on its way already"
    );
}

#[test]
fn a_call_is_not_hurried_and_an_old_connection_ends_with_one() {
    let us = |_| sight(Waits::Us);
    let mut memory = Memory::new(0);
    let verdicts: Vec<_> = (1..2_000)
        .map(|now| memory.judge(us(now), now, &PATIENCE))
        .filter(|verdict| *verdict != Verdict::Fine)
        .collect();
    assert_eq!(verdicts, [Verdict::End], "asked once");
}

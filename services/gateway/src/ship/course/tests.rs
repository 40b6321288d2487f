#![expect(clippy::indexing_slicing, reason = "tests fail loudly")]

use super::*;

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Twelve records published, all consumers but the last told of all of them.
fn waiting_for_one() -> (Course, &'static str) {
    let mut course = Course::new(0, seconds(0));
    course.published(12);
    let (last, others) = USAGE_CONSUMERS.split_last().expect("there are consumers");
    for consumer in others {
        course.applied(consumer, 12, 12, seconds(0));
    }
    (course, last)
}

#[test]
fn nothing_is_let_go_before_the_last_consumer_has_it() {
    let (mut course, last) = waiting_for_one();
    assert_eq!(course.due(seconds(2), 0, true), Due::default());
    course.applied(last, 7, 12, seconds(2));
    let trim = Some(7);
    let due = Due { trim, reship: None };
    assert_eq!(course.due(seconds(4), 0, false), due);
    assert_eq!(course.due(seconds(6), 5, false).trim, trim, "some was kept");
    assert_eq!(course.due(seconds(8), 7, false).trim, None, "all is gone");
}

#[test]
fn what_stays_unapplied_is_shipped_again_ever_more_rarely() {
    let (mut course, last) = waiting_for_one();
    course.applied(last, 7, 12, seconds(0));
    let mut shipped_at = Vec::new();
    for now in 0..1_000 {
        if let Some(from) = course.due(seconds(now), 7, false).reship {
            assert_eq!((from, course.position()), (7, 7));
            shipped_at.push(now);
            course.published(12);
        }
    }
    let waits: Vec<u64> = shipped_at.windows(2).map(|it| it[1] - it[0]).collect();
    assert_eq!(shipped_at[0], 11);
    assert_eq!(waits, [21, 41, 81, 161, 301, 301], "doubled up to 300 s");
    course.applied(last, 12, 12, seconds(1_000));
    assert_eq!(course.due(seconds(1_000), 7, false).reship, None);
    course.published(13);
    assert_eq!(course.due(seconds(1_010), 7, false).reship, None);
    assert_eq!(
        course.due(seconds(1_011), 7, false).reship,
        Some(12),
        "as at first"
    );
}

#[test]
fn progress_of_others_does_not_keep_one_waiting_for_what_it_lacks() {
    let (mut course, last) = waiting_for_one();
    let (_, others) = USAGE_CONSUMERS.split_last().expect("there are consumers");
    course.applied(last, 7, 12, seconds(0));
    let mut shipped_at = Vec::new();
    // Calls go on, and everybody applies them at once, but for the one that lacks the eighth.
    for now in 1..=100 {
        let written = 12 + now;
        course.published(written);
        for consumer in others {
            course.applied(consumer, written, written, seconds(now));
        }
        if let Some(from) = course.due(seconds(now), 7, false).reship {
            assert_eq!((from, course.position()), (7, 7), "from where it stands");
            shipped_at.push(now);
        }
    }
    assert_eq!(shipped_at, [11, 32, 73], "ever more rarely");
    // It has got it, and goes on from there: a backlog is no reason to ship again.
    for now in 101..200 {
        course.applied(last, now - 90, 200, seconds(now));
        assert_eq!(course.due(seconds(now), 7, false).reship, None);
    }
}

#[test]
fn a_lost_message_is_shipped_again_once_for_all_who_lack_it() {
    let mut course = Course::new(0, seconds(0));
    course.published(12);
    let (last, others) = USAGE_CONSUMERS.split_last().expect("there are consumers");
    // They stand at the same record, and have come there one after the other.
    for (now, consumer) in (0..).zip(others) {
        course.applied(consumer, 7, 12, seconds(now));
    }
    course.applied(last, 9, 12, seconds(8));
    let shipped = (0..30).filter(|now| {
        let from = course.due(seconds(*now), 0, false).reship;
        assert!(from.is_none_or(|from| from == 7), "{from:?}");
        course.published(12);
        from.is_some()
    });
    assert_eq!(shipped.collect::<Vec<_>>(), [11]);
}

#[test]
fn no_watermark_is_believed_that_cannot_be() {
    let (mut course, last) = waiting_for_one();
    course.applied(last, 13, 12, seconds(0));
    course.applied("somebody", 12, 12, seconds(0));
    assert_eq!(course.watermark(), 0);
    course.applied(last, 9, 12, seconds(0));
    course.applied(last, 3, 12, seconds(0));
    assert_eq!(course.watermark(), 9, "late news takes nothing back");
}

#[test]
fn what_could_not_be_let_go_is_tried_again_though_nothing_comes() {
    let (mut course, last) = waiting_for_one();
    course.applied(last, 12, 12, seconds(0));
    assert_eq!(course.due(seconds(2), 0, false).trim, Some(12));
    // The journal knows the watermark, and could not do what follows from it.
    course.not_let_go();
    assert_eq!(course.due(seconds(4), 12, false).trim, Some(12));
    assert_eq!(course.due(seconds(6), 12, false).trim, None, "all is gone");
}

//! More than so many different things within a sliding hour.
//!
//! A thing is *present* at a moment `t` when it was seen within `[t − 60 min, t]`, both ends
//! included. A moment is *hot* when more things than are usual are present and something was seen
//! in `[t, t + 60 min]`: an hour is judged by what happens, never by silence after it. Anomalies
//! are the earliest hot moment, then the earliest one more than 60 minutes later, and so on, so
//! that no two of their windows `[t − 60 min, t]` share a sighting.
//!
//! Both definitions hold for a whole hour's sightings of a thing when they hold for its first and
//! its last one: they are less than a window apart. Hence first and last are all that needs to be
//! kept of an hour, and the answer does not depend on order, repetition or batches. More sightings
//! make more moments hot and never fewer; what comes late can therefore move an anomaly to an
//! earlier moment or add one, but never takes one back.

use std::collections::BTreeMap;

use types::AnomalyId;

use super::{HOUR, Intervals, Micros, union};

/// Length of the window.
pub(crate) const WINDOW: Micros = HOUR;

/// The first and the last sighting of a thing in one hour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seen<T> {
    pub(crate) what: T,
    pub(crate) first: Micros,
    pub(crate) last: Micros,
}

/// An anomaly to be: the end of its window and the things in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Flag<T> {
    pub(crate) at: Micros,
    pub(crate) present: Vec<T>,
}

/// What changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Verdict<T> {
    /// Not flagged before.
    pub(crate) new: Vec<Flag<T>>,
    /// Flagged before, and met earlier than was known then.
    pub(crate) moved: Vec<(AnomalyId, Flag<T>)>,
}

/// Judges everything that is kept; more than `usual` things in a window are an anomaly. `known`:
/// what is flagged, windows apart from each other.
pub(crate) fn judge<T: Copy + Ord>(
    seen: &[Seen<T>],
    known: &[(AnomalyId, Micros)],
    usual: usize,
) -> Verdict<T> {
    let hot = hot(seen, usual);
    let is_hot = |at: Micros| hot.iter().any(|(from, to)| (*from..=*to).contains(&at));
    // What led to an anomaly may have been pruned since: then it stays where it is.
    let (movable, fixed): (Vec<_>, Vec<_>) = known.iter().copied().partition(|(_, at)| is_hot(*at));
    let fixed: Vec<Micros> = fixed.into_iter().map(|(_, at)| at).collect();
    let moments = earliest_apart(&hot, &fixed);

    let mut owners: BTreeMap<Micros, AnomalyId> = BTreeMap::new();
    for (id, at) in &movable {
        // A hot moment was chosen, or its window overlaps that of an earlier one that was.
        if let Some(moment) = moments.iter().rev().find(|moment| *moment <= at) {
            owners.insert(*moment, *id);
        }
    }
    let mut verdict = Verdict {
        new: Vec::new(),
        moved: Vec::new(),
    };
    for at in moments {
        let flag = || Flag {
            at,
            present: present(seen, at),
        };
        match owners.get(&at) {
            None => verdict.new.push(flag()),
            Some(id) if !movable.contains(&(*id, at)) => verdict.moved.push((*id, flag())),
            Some(_) => {}
        }
    }
    verdict
}

/// All hot moments.
fn hot<T: Copy + Ord>(seen: &[Seen<T>], usual: usize) -> Intervals {
    let mut presence: BTreeMap<T, Intervals> = BTreeMap::new();
    for Seen { what, first, last } in seen {
        presence
            .entry(*what)
            .or_default()
            .push((*first, last + WINDOW));
    }
    // Arrivals and departures of things; between two of them their number stays.
    let mut changes: BTreeMap<Micros, isize> = BTreeMap::new();
    for (from, to) in presence.into_values().flat_map(touching) {
        *changes.entry(from).or_default() += 1;
        *changes.entry(to + 1).or_default() -= 1;
    }
    let (mut crowded, mut present, mut since) = (Intervals::new(), 0_isize, None);
    for (at, change) in changes {
        present += change;
        match (usize::try_from(present).is_ok_and(|now| now > usual), since) {
            (true, None) => since = Some(at),
            (false, Some(from)) => {
                crowded.push((from, at - 1));
                since = None;
            }
            _ => {}
        }
    }
    let in_use = touching(
        seen.iter()
            .map(|seen| (seen.first - WINDOW, seen.last))
            .collect(),
    );
    intersection(&crowded, &in_use)
}

/// Joins intervals with nothing between them.
fn touching(intervals: Intervals) -> Intervals {
    union(intervals, 2)
}

fn intersection(left: &Intervals, right: &Intervals) -> Intervals {
    let mut both = Intervals::new();
    for (a, b) in left {
        for (c, d) in right {
            if a.max(c) <= b.min(d) {
                both.push((*a.max(c), *b.min(d)));
            }
        }
    }
    both
}

/// The earliest moment, then the earliest more than a window later, and so on, none of them within
/// a window of a fixed one.
fn earliest_apart(hot: &Intervals, fixed: &[Micros]) -> Vec<Micros> {
    let mut moments = Vec::new();
    let mut at = Micros::MIN;
    for (from, to) in hot {
        at = at.max(*from);
        while at <= *to {
            let near = fixed
                .iter()
                .find(|fixed| fixed.abs_diff(at) <= WINDOW.unsigned_abs());
            if near.is_none() {
                moments.push(at);
            }
            at = near.copied().unwrap_or(at) + WINDOW + 1;
        }
    }
    moments
}

/// The things present at a moment.
fn present<T: Copy + Ord>(seen: &[Seen<T>], at: Micros) -> Vec<T> {
    let present = seen
        .iter()
        .filter(|seen| (seen.first..=seen.last + WINDOW).contains(&at));
    let mut things: Vec<T> = present.map(|seen| seen.what).collect();
    things.sort_unstable();
    things.dedup();
    things
}

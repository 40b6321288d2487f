//! The rule `country_spread`, as a function of what was seen and what is flagged already.
//!
//! A country is *present* at a moment `t` when the key was used from it within `[t − 60 min, t]`,
//! both ends included. A moment is *hot* when more than ten countries are present and the key was
//! used in `[t, t + 60 min]`: an hour is judged by calls, never by silence after them. Anomalies
//! are the earliest hot moment, then the earliest one more than 60 minutes later, and so on, so
//! that no two of their windows `[t − 60 min, t]` share a call.
//!
//! Both definitions hold for a whole hour's calls when they hold for its first and its last one:
//! calls of one hour are less than a window apart. Hence the state is two times per key, country
//! and hour, and the answer does not depend on order, repetition or batches. More calls make more
//! moments hot and never fewer; an event that comes late can therefore move an anomaly to an
//! earlier moment or add one, but never takes one back.

use std::collections::BTreeMap;

use types::{AnomalyId, KeyId, OrgId};

/// Countries in one window that are still usual.
pub(crate) const COUNTRIES_MAX: usize = 10;
/// Microseconds since 1970 UTC, as journals have them.
pub(crate) type Micros = i64;
/// Length of the window.
pub(crate) const WINDOW: Micros = 3_600_000_000;
/// Sightings are kept by the hour; it must not be longer than the window.
const HOUR: Micros = 3_600_000_000;

/// An ISO 3166 alpha-2 code that stands for a country.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Country([u8; 2]);

impl Country {
    /// Nothing for `ZZ` and for whatever is no code: an unknown place is no further country.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let code: [u8; 2] = text.as_bytes().try_into().ok()?;
        let known = code.iter().all(u8::is_ascii_uppercase) && &code != b"ZZ";
        known.then_some(Self(code))
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("two ASCII letters")
    }
}

impl std::fmt::Debug for Country {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One call, as far as the rule is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sighting {
    pub(crate) key: KeyId,
    pub(crate) org: OrgId,
    pub(crate) country: Country,
    pub(crate) at: Micros,
}

/// The first and the last call of a key from a country in one hour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    pub(crate) country: Country,
    pub(crate) first: Micros,
    pub(crate) last: Micros,
}

/// What a batch has seen, by the keys of its rows; their order is the order of the locks.
pub(crate) type Batch = BTreeMap<(KeyId, Micros, Country), (OrgId, Seen)>;

/// The beginning of the hour a moment lies in.
pub(crate) fn hour_of(at: Micros) -> Micros {
    at - at.rem_euclid(HOUR)
}

/// Reduces calls to the first and last one per key, country and hour.
pub(crate) fn batch(sightings: impl IntoIterator<Item = Sighting>) -> Batch {
    let mut batch = Batch::new();
    for Sighting {
        key,
        org,
        country,
        at,
    } in sightings
    {
        let (_, seen) = batch.entry((key, hour_of(at), country)).or_insert((
            org,
            Seen {
                country,
                first: at,
                last: at,
            },
        ));
        seen.first = seen.first.min(at);
        seen.last = seen.last.max(at);
    }
    batch
}

/// An anomaly to be: the end of its window and the countries in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Flag {
    pub(crate) at: Micros,
    pub(crate) countries: Vec<Country>,
}

/// What changes for a key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Verdict {
    /// Not flagged before.
    pub(crate) new: Vec<Flag>,
    /// Flagged before, and met earlier than was known then.
    pub(crate) moved: Vec<(AnomalyId, Flag)>,
}

/// Judges everything kept of one key. `known`: what is flagged, windows apart from each other.
pub(crate) fn judge(seen: &[Seen], known: &[(AnomalyId, Micros)]) -> Verdict {
    let hot = hot(seen);
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
    let mut verdict = Verdict::default();
    for at in moments {
        let flag = || Flag {
            at,
            countries: countries(seen, at),
        };
        match owners.get(&at) {
            None => verdict.new.push(flag()),
            Some(id) if !movable.contains(&(*id, at)) => verdict.moved.push((*id, flag())),
            Some(_) => {}
        }
    }
    verdict
}

/// Closed intervals, sorted and disjoint.
type Intervals = Vec<(Micros, Micros)>;

/// All hot moments.
fn hot(seen: &[Seen]) -> Intervals {
    let mut presence: BTreeMap<Country, Intervals> = BTreeMap::new();
    for Seen {
        country,
        first,
        last,
    } in seen
    {
        presence
            .entry(*country)
            .or_default()
            .push((*first, last + WINDOW));
    }
    // Arrivals and departures of countries; between two of them their number stays.
    let mut changes: BTreeMap<Micros, isize> = BTreeMap::new();
    for (from, to) in presence.into_values().flat_map(union) {
        *changes.entry(from).or_default() += 1;
        *changes.entry(to + 1).or_default() -= 1;
    }
    let (mut crowded, mut present, mut since) = (Intervals::new(), 0_isize, None);
    for (at, change) in changes {
        present += change;
        match (
            usize::try_from(present).is_ok_and(|now| now > COUNTRIES_MAX),
            since,
        ) {
            (true, None) => since = Some(at),
            (false, Some(from)) => {
                crowded.push((from, at - 1));
                since = None;
            }
            _ => {}
        }
    }
    let in_use = union(
        seen.iter()
            .map(|seen| (seen.first - WINDOW, seen.last))
            .collect(),
    );
    intersection(&crowded, &in_use)
}

fn union(mut intervals: Intervals) -> Intervals {
    intervals.sort_unstable();
    let mut union = Intervals::with_capacity(intervals.len());
    for (from, to) in intervals {
        match union.last_mut() {
            Some((_, end)) if from <= *end + 1 => *end = to.max(*end),
            _ => union.push((from, to)),
        }
    }
    union
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

/// The countries present at a moment.
fn countries(seen: &[Seen], at: Micros) -> Vec<Country> {
    let present = seen
        .iter()
        .filter(|seen| (seen.first..=seen.last + WINDOW).contains(&at));
    let mut countries: Vec<Country> = present.map(|seen| seen.country).collect();
    countries.sort_unstable();
    countries.dedup();
    countries
}

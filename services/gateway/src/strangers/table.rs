//! How many unknown keys came from which address within its minute, in memory of a fixed size.
//!
//! Addresses fall into sets by a hash with a secret of this process, so nobody can aim at a set.
//! A set has room for a few. One that is full lets go of the address with the fewest calls, but
//! never of one that has used up its look-ups; so who brings many addresses can displace others
//! that did little, himself above all, and frees nobody who is refused. Each look-up in vain is
//! paid from the budget of all addresses, which in a minute uses up the look-ups of far fewer
//! addresses than there is room for (600 of 32,768 by default). Should a set be full of such ones
//! nevertheless, a newcomer is not counted: then the budget alone bounds what he can cause.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use parking_lot::Mutex;

/// Addresses kept; about a megabyte.
pub(super) const ADDRESSES_MAX: usize = 32_768;
/// Of them in one set.
const WAYS: usize = 8;
const SETS: usize = ADDRESSES_MAX / WAYS;
/// Counts are of so long, from an address's first unknown key.
pub(super) const WINDOW_NANOS: u64 = 60_000_000_000;

/// Whom calls are counted for: an IPv4 address, or an IPv6 network of 64 bits, which is what one
/// subscriber has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Origin {
    V4(Ipv4Addr),
    V6(u64),
}

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                Self::V6(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
            }
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(v4) => v4.fmt(f),
            Self::V6(network) => {
                let [a, b, c, d, e, g, h, i] = network.to_be_bytes();
                let octets = [a, b, c, d, e, g, h, i, 0, 0, 0, 0, 0, 0, 0, 0];
                write!(f, "{}/64", Ipv6Addr::from(octets))
            }
        }
    }
}

/// What an address has done in its minute.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Count {
    /// Calls with a malformed or unknown key.
    pub(super) calls: u32,
    /// Keys that were looked up in vain.
    pub(super) in_vain: u32,
    /// Monotonic nanoseconds at which the minute ends.
    pub(super) ends: u64,
}

type Slot = Option<(Origin, Count)>;
type Set = Mutex<[Slot; WAYS]>;

/// The counts of all addresses.
pub(super) struct Table {
    sets: Box<[Set]>,
    secret: RandomState,
    /// Look-ups in vain from which an address keeps its place.
    protected: u32,
}

impl Table {
    pub(super) fn new(protected: u32) -> Self {
        Self {
            sets: (0..SETS).map(|_| Set::default()).collect(),
            secret: RandomState::new(),
            protected,
        }
    }

    fn set(&self, origin: Origin) -> Option<&Set> {
        let hash = self.secret.hash_one(origin);
        let index = usize::try_from(hash).unwrap_or_default() % SETS;
        self.sets.get(index)
    }

    /// What an address has done in the minute that `now` is in; nothing when it is not known.
    pub(super) fn count(&self, origin: Origin, now: u64) -> Option<Count> {
        let slots = self.set(origin)?.lock();
        let mut known = slots.iter().flatten();
        let (_, count) = known.find(|(of, count)| *of == origin && now < count.ends)?;
        Some(*count)
    }

    /// Counts a call; nothing when there is no room for its address.
    pub(super) fn note_call(&self, origin: Origin, now: u64) -> Option<Count> {
        self.note(origin, now, |count| {
            count.calls = count.calls.saturating_add(1);
        })
    }

    /// Counts a look-up in vain, which is part of a call.
    pub(super) fn note_lookup(&self, origin: Origin, now: u64) -> Option<Count> {
        self.note(origin, now, |count| {
            count.in_vain = count.in_vain.saturating_add(1);
        })
    }

    fn note(&self, origin: Origin, now: u64, add: impl FnOnce(&mut Count)) -> Option<Count> {
        let mut slots = self.set(origin)?.lock();
        let slot = self.place(&mut slots, origin, now)?;
        let (_, count) = slot.get_or_insert_with(|| {
            let begun = Count {
                ends: now.saturating_add(WINDOW_NANOS),
                ..Count::default()
            };
            (origin, begun)
        });
        add(count);
        Some(*count)
    }

    /// The place of an address: its own, or one that was made free for it.
    fn place<'a>(
        &self,
        slots: &'a mut [Slot; WAYS],
        origin: Origin,
        now: u64,
    ) -> Option<&'a mut Slot> {
        for slot in slots.iter_mut() {
            if slot.is_some_and(|(_, count)| now >= count.ends) {
                *slot = None;
            }
        }
        let own = |slot: &Slot| slot.is_some_and(|(of, _)| of == origin);
        if let Some(index) = slots.iter().position(own) {
            return slots.get_mut(index);
        }
        // An empty one comes before all others.
        let victim = slots.iter_mut().min_by_key(|slot| {
            slot.map(|(_, count)| (count.in_vain >= self.protected, count.calls))
        })?;
        if victim.is_some_and(|(_, count)| count.in_vain >= self.protected) {
            return None;
        }
        *victim = None;
        Some(victim)
    }
}

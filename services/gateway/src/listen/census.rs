//! How many connections there are, in all and per address.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;

use crate::strangers::Origin;

/// Counts connections when they come and go, never while they are used.
#[derive(Debug)]
pub(super) struct Census {
    all: AtomicUsize,
    all_max: usize,
    of: Mutex<HashMap<Origin, usize>>,
    /// None: who connects is a proxy, which counts its own clients.
    of_one_max: Option<usize>,
}

/// Why a connection is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Full {
    /// There are too many.
    All,
    /// There are too many from its address.
    Address,
}

/// A connection that is counted.
#[derive(Debug)]
pub(super) struct Guest {
    census: Arc<Census>,
    origin: Option<Origin>,
}

impl Census {
    pub(super) fn new(all_max: usize, of_one_max: Option<usize>) -> Self {
        Self {
            all: AtomicUsize::new(0),
            all_max,
            of: Mutex::default(),
            of_one_max,
        }
    }

    /// Connections there are.
    pub(super) fn all(&self) -> usize {
        self.all.load(Ordering::Relaxed)
    }

    /// Counts a connection from `address`, if there is room for it.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Guest, Full> {
        let more = |all: usize| (all < self.all_max).then(|| all.saturating_add(1));
        let entered = self
            .all
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        if entered.is_err() {
            return Err(Full::All);
        }
        let mut guest = Guest {
            census: Arc::clone(self),
            origin: None,
        };
        let Some(max) = self.of_one_max else {
            return Ok(guest);
        };
        let origin = Origin::from(address);
        let mut of = self.of.lock();
        let count = of.entry(origin).or_default();
        if *count >= max {
            drop(of);
            return Err(Full::Address);
        }
        *count = count.saturating_add(1);
        drop(of);
        guest.origin = Some(origin);
        Ok(guest)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.census.all.fetch_sub(1, Ordering::Relaxed);
        let Some(origin) = self.origin else {
            return;
        };
        let mut of = self.census.of.lock();
        let left = of.get(&origin).map_or(0, |count| count.saturating_sub(1));
        if left == 0 {
            of.remove(&origin);
        } else {
            of.insert(origin, left);
        }
    }
}

#[cfg(test)]
mod tests;

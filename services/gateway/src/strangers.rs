//! Bounds what keys that nobody issued can cause.
//!
//! - From one address so many a minute are looked up in vain; then keys that are not in memory are
//!   refused without a look-up. Keys in memory are served as ever.
//! - Over all addresses so many look-ups a second may be in vain. Half of that is kept for
//!   addresses that have had none this minute, and a look-up that finds a key, or is answered by
//!   Redis, spends nothing of it: whose key is right is hurt last.
//! - So many look-ups are under way at once, and each judges its address anew when its turn comes:
//!   an address passes its limit by no more than that, however many calls it makes at once.
//! - Neither needs memory that a stranger could grow: see `table`.

mod sighting;
mod table;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use types::{Gcra, Rate};

pub(crate) use self::sighting::report;
pub(crate) use self::table::Origin;
use self::table::{Count, Table};
use crate::{config::Config, refuse::Refused};

/// Look-ups at `keys` under way at once; more wait their turn.
const LOOKUPS_AT_ONCE_MAX: usize = 64;
/// So long at most. Then nobody can be asked.
const TURN_TIMEOUT: Duration = Duration::from_secs(2);
/// Look-ups that may be in vain at once: those under way never use up more than a quarter, so a
/// gateway that starts cold among good keys refuses none.
const LOOKUPS_BURST: u32 = 256;
/// What addresses with unknown keys leave to those without.
const LOOKUPS_KEPT: u32 = 128;
/// Addresses that wait to be reported at most; more are forgotten.
const SIGHTINGS_MAX: usize = 1_000;

/// What strangers have done of late, and may still do.
pub(crate) struct Strangers {
    table: Table,
    /// Of one address, in vain, a minute.
    lookups_max: u32,
    /// Of all addresses, in vain, a second.
    lookups_per_second: u32,
    budget: Gcra,
    turns: Semaphore,
    passed: mpsc::Sender<Origin>,
}

impl Strangers {
    /// With the addresses that pass their limit, as they do.
    pub(crate) fn new(config: &Config) -> (Arc<Self>, mpsc::Receiver<Origin>) {
        let (passed, seen) = mpsc::channel(SIGHTINGS_MAX);
        let strangers = Self {
            table: Table::new(config.unknown_keys_per_minute_max),
            lookups_max: config.unknown_keys_per_minute_max,
            lookups_per_second: config.unknown_lookups_per_second_max,
            budget: Gcra::default(),
            turns: Semaphore::new(LOOKUPS_AT_ONCE_MAX),
            passed,
        };
        (Arc::new(strangers), seen)
    }

    /// Notes a call with a malformed key, or with one that is not in memory from an address that
    /// may not have it looked up.
    pub(crate) fn note_call(&self, origin: Origin, now: u64) {
        let count = self.table.note_call(origin, now);
        // The one call that passes the limit says so; a full queue forgets.
        if count.is_some_and(|count| count.calls == self.lookups_max.saturating_add(1))
            && let Err(error) = self.passed.try_send(origin)
        {
            tracing::debug!(%error, "an address with many unknown keys is not reported");
        }
    }

    /// The refusal for a key that is not in memory, when its address has used up its look-ups.
    pub(crate) fn refusal(&self, origin: Origin, now: u64) -> Option<Refused> {
        let count = self.table.count(origin, now)?;
        if count.in_vain < self.lookups_max {
            return None;
        }
        let wait = count.ends.saturating_sub(now);
        Some(Refused::strange_address(
            wait.div_ceil(1_000_000_000).max(1),
        ))
    }

    /// Waits for a turn to ask `keys`.
    ///
    /// # Errors
    /// Too many ask.
    pub(crate) async fn turn(&self) -> Result<SemaphorePermit<'_>, Refused> {
        let turn = tokio::time::timeout(TURN_TIMEOUT, self.turns.acquire()).await;
        match turn {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(Refused::too_many_strangers()),
        }
    }

    /// Takes what a look-up in vain costs; from all addresses alone when none is to blame.
    ///
    /// # Errors
    /// The address has used up its look-ups, or all addresses have.
    pub(crate) fn take_lookup(&self, origin: Option<Origin>, now: u64) -> Result<(), Refused> {
        if let Some(refused) = origin.and_then(|origin| self.refusal(origin, now)) {
            return Err(refused);
        }
        let count = origin.and_then(|origin| self.table.count(origin, now));
        let clean = count.is_none_or(|count| count.in_vain == 0);
        let taken = self.budget.admit(self.rate(clean), now);
        taken.map_err(|_wait| Refused::too_many_strangers())
    }

    /// The look-up was not in vain, or nobody answered it.
    pub(crate) fn give_lookup_back(&self) {
        self.budget.give_back(self.rate(true));
    }

    /// A look-up was in vain, for a key that this address has not brought before.
    pub(crate) fn note_lookup_in_vain(&self, origin: Origin, now: u64) {
        self.table.note_lookup(origin, now);
    }

    fn rate(&self, clean: bool) -> Rate {
        let kept = if clean { 0 } else { LOOKUPS_KEPT };
        Rate {
            per_second: self.lookups_per_second,
            burst: LOOKUPS_BURST.saturating_sub(kept),
        }
    }

    /// What an address has done this minute, if it still is over its limit.
    fn passed(&self, origin: Origin, now: u64) -> Option<Count> {
        let count = self.table.count(origin, now)?;
        (count.calls > self.lookups_max).then_some(count)
    }
}

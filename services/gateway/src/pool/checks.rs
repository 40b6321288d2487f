//! Asks addresses of upstreams whether they are well, where a service says how (`health_path`).
//!
//! One thread of the process asks, on behalf of all. An address that was not well twice in a row is
//! left alone while another one is; if none is well, all are used as if nobody had asked.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use foldhash::fast::RandomState;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Connector, UPKEEP_PERIOD, site::Site};
use crate::catalogue::Upstream;

#[cfg(test)]
mod tests;

/// Bad answers in a row after which an address is not well.
const BAD_MAX: u32 = 2;
/// An answer that takes longer is a bad one.
const PATIENCE: Duration = Duration::from_secs(2);
/// What was found out is forgotten when nobody has asked for so long.
const KEPT: Duration = Duration::from_secs(60);

/// What addresses answered, for all threads.
#[derive(Default)]
pub(crate) struct Checks(Mutex<HashMap<(Upstream, SocketAddr), Check, RandomState>>);

struct Check {
    asked: Instant,
    /// Bad answers in a row.
    bad: u32,
    /// At least one answer has come.
    is_answered: bool,
}

/// How an address does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    Well,
    Down,
    /// Nobody knows yet, or one bad answer says nothing.
    Unknown,
}

impl Checks {
    /// Whether it is the caller who asks this time.
    fn is_due(&self, key: &(Upstream, SocketAddr), now: Instant) -> bool {
        let mut table = self.0.lock();
        if let Some(check) = table.get_mut(key) {
            // Threads look one after the other: each a little later than a period is no second ask.
            let is_due = now.saturating_duration_since(check.asked) >= UPKEEP_PERIOD;
            if is_due {
                check.asked = now;
            }
            return is_due;
        }
        let check = Check {
            asked: now,
            bad: 0,
            is_answered: false,
        };
        table.insert(key.clone(), check);
        true
    }

    /// Forgets addresses that nobody asks any more.
    pub(super) fn tidy(&self, now: Instant) {
        let is_young = |check: &Check| now.saturating_duration_since(check.asked) < KEPT;
        self.0.lock().retain(|_, check| is_young(check));
    }

    fn note(&self, key: &(Upstream, SocketAddr), is_good: bool) {
        if let Some(check) = self.0.lock().get_mut(key) {
            check.is_answered = true;
            check.bad = match is_good {
                true => 0,
                false => check.bad.saturating_add(1),
            };
        }
    }

    fn found(&self, key: &(Upstream, SocketAddr)) -> Found {
        match self.0.lock().get(key) {
            Some(check) if check.bad >= BAD_MAX => Found::Down,
            Some(check) if check.is_answered && check.bad == 0 => Found::Well,
            _ => Found::Unknown,
        }
    }
}

/// Asks the addresses of one upstream that are due, and acts on what is known of all.
pub(super) async fn look(connector: &Connector, site: &Site) {
    let Some(path) = &site.upstream.health_path else {
        return;
    };
    let checks = &connector.checks;
    let key = |address| (site.upstream.clone(), address);
    let asked = site.targets.all().into_iter().map(async |target| {
        let key = key(target.address);
        if !checks.is_due(&key, Instant::now()) {
            return;
        }
        let answer = tokio::time::timeout(PATIENCE, connector.ask(site, &target, path)).await;
        let is_good = matches!(&answer, Ok(Ok(status)) if (200..400).contains(status));
        if !is_good {
            tracing::debug!(upstream = site.upstream.host, address = %target.address, ?answer,
                            "an address is not well");
        }
        connector.metrics.checked(is_good);
        checks.note(&key, is_good);
    });
    join_all(asked).await;
    site.targets.judge(|address| checks.found(&key(address)));
}

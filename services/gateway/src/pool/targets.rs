//! The addresses that an upstream's name stands for, and which of them a connection goes to.

use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use tokio::{sync::Mutex, time::Instant};
use types::Networks;

use super::{
    checks::Found,
    health::{Fault, Health, Leave},
};

#[cfg(test)]
mod tests;

/// Addresses of a name that are used.
const ADDRESSES_MAX: usize = 64;
/// A name is looked up again after so long, beside the calls.
pub(super) const LOOKUP_PERIOD: Duration = Duration::from_secs(10);
/// What it stood for is used for so long when it cannot be looked up: no call waits for a look-up
/// before that.
pub(super) const STALE_MAX: Duration = Duration::from_secs(300);

/// The address is neither public nor listed.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{0} is neither public nor in TOLLGATE_GATEWAY_UPSTREAM_NETWORKS")]
pub(crate) struct Forbidden(pub(super) IpAddr);

/// One address, which calls may be sent to.
#[derive(Debug)]
pub(crate) struct Target {
    pub(super) address: SocketAddr,
    health: Cell<Health>,
    /// Connections to it.
    connections: Cell<usize>,
    /// The name stands for others now.
    is_gone: Cell<bool>,
    /// It fails the checks of its health, and another one does not.
    is_shunned: Cell<bool>,
    all: Rc<Count>,
}

/// How many addresses a name has, and how many of them are left alone.
#[derive(Debug, Default)]
struct Count {
    all: Cell<usize>,
    resting: Cell<usize>,
    shunned: Cell<usize>,
}

impl Count {
    /// Whether one more may be left alone for what a client may have caused: never more than half.
    fn spares_one(&self) -> bool {
        let idle = self.resting.get().saturating_add(self.shunned.get());
        idle.saturating_add(1).saturating_mul(2) <= self.all.get()
    }
}

impl Target {
    fn new(
        address: SocketAddr,
        networks: &Networks,
        all: &Rc<Count>,
    ) -> Result<Rc<Self>, Forbidden> {
        if !networks.allow(address.ip()) {
            return Err(Forbidden(address.ip()));
        }
        Ok(Rc::new(Self {
            address,
            health: Cell::new(Health::NEW),
            connections: Cell::default(),
            is_gone: Cell::default(),
            is_shunned: Cell::default(),
            all: Rc::clone(all),
        }))
    }

    /// Whether every call may use its connections.
    pub(super) fn is_used(&self) -> bool {
        self.health.get().is_used() && !self.is_gone.get() && !self.is_shunned.get()
    }

    /// A connection was opened.
    pub(super) fn connected(&self) {
        self.becomes(self.health.get().connected());
    }

    pub(super) fn answered(&self) {
        self.becomes(self.health.get().answered());
    }

    /// Returns whether it is left alone from now on.
    pub(super) fn failed(&self, fault: Fault, now: Instant) -> bool {
        let before = self.health.get();
        let after = before.failed(fault, self.all.spares_one(), now);
        self.becomes(after);
        !after.is_used() && before != after
    }

    fn becomes(&self, health: Health) {
        let before = self.health.replace(health);
        if self.is_gone.get() {
            return; // it is not counted
        }
        let resting = &self.all.resting;
        match (before.is_used(), health.is_used()) {
            (true, false) => resting.set(resting.get().saturating_add(1)),
            (false, true) => resting.set(resting.get().saturating_sub(1)),
            _ => {}
        }
    }

    pub(super) fn opened(&self) {
        self.connections
            .set(self.connections.get().saturating_add(1));
    }

    pub(super) fn closed(&self) {
        self.connections
            .set(self.connections.get().saturating_sub(1));
    }
}

/// The leave to try an address that is left alone; dropped without a verdict, the next call tries.
#[derive(Debug)]
pub(crate) struct Trial(Rc<Target>);

impl Drop for Trial {
    fn drop(&mut self) {
        self.0.becomes(self.0.health.get().untold(Instant::now()));
    }
}

/// What a connection goes to.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) target: Rc<Target>,
    pub(super) trial: Option<Trial>,
}

/// All addresses of one upstream.
#[derive(Debug)]
pub(super) struct Targets {
    list: RefCell<Vec<Rc<Target>>>,
    /// Where the search for the least used begins.
    next: Cell<usize>,
    /// None: never, or the host is an address.
    looked_up: Cell<Option<Instant>>,
    /// One look-up at a time.
    turn: Mutex<()>,
    count: Rc<Count>,
}

impl Targets {
    pub(super) fn new() -> Self {
        Self {
            list: RefCell::default(),
            next: Cell::default(),
            looked_up: Cell::default(),
            turn: Mutex::default(),
            count: Rc::default(),
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Rc<Target>> {
        self.list.borrow().clone()
    }

    /// Leaves alone what is not well while something else is; what is well rests no more.
    pub(super) fn judge(&self, found: impl Fn(SocketAddr) -> Found) {
        let list = self.list.borrow();
        let found: Vec<Found> = list.iter().map(|target| found(target.address)).collect();
        let is_one_up = found.iter().any(|found| *found != Found::Down);
        let mut shunned = 0_usize;
        for (target, found) in list.iter().zip(found) {
            let is_shunned = is_one_up && found == Found::Down;
            shunned = shunned.saturating_add(usize::from(is_shunned));
            target.is_shunned.set(is_shunned);
            if !target.health.get().is_used() && found == Found::Well {
                target.becomes(Health::NEW);
            }
        }
        self.count.shunned.set(shunned);
    }

    /// Looks the name up unless what it stands for is younger than `age_max`.
    ///
    /// # Errors
    /// Nobody knows the name, or calls must not be sent where it leads.
    pub(super) async fn refresh(
        &self,
        host: &str,
        port: u16,
        networks: &Networks,
        age_max: Duration,
    ) -> anyhow::Result<()> {
        if self.is_young(age_max) {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        if self.is_young(age_max) {
            return Ok(()); // by whoever had the turn before
        }
        match tokio::net::lookup_host((host, port)).await {
            Ok(found) => {
                self.take(found, networks)?;
                self.looked_up.set(Some(Instant::now()));
                Ok(())
            }
            Err(error) if self.is_young(STALE_MAX) => {
                tracing::debug!(upstream = host, %error, "the name is not looked up again");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn is_young(&self, age_max: Duration) -> bool {
        let at = self.looked_up.get();
        at.is_some_and(|at| at.elapsed() < age_max) && !self.list.borrow().is_empty()
    }

    /// As if the name had been looked up just now.
    #[cfg(test)]
    pub(super) fn learn(&self, found: &[SocketAddr]) {
        let networks = Networks::parse("127.0.0.0/8").expect("a network");
        self.take(found.iter().copied(), &networks)
            .expect("they are listed");
        self.looked_up.set(Some(Instant::now()));
    }

    /// Replaces the addresses; of those that stay, what is known of them stays too.
    pub(super) fn take(
        &self,
        found: impl Iterator<Item = SocketAddr>,
        networks: &Networks,
    ) -> Result<(), Forbidden> {
        let mut list = self.list.borrow_mut();
        let old = std::mem::take(&mut *list);
        let mut forbidden = None;
        for address in found.take(ADDRESSES_MAX) {
            if list.iter().any(|it| it.address == address) {
                continue;
            }
            let known = old.iter().find(|it| it.address == address).map(Rc::clone);
            match known.map_or_else(|| Target::new(address, networks, &self.count), Ok) {
                Ok(target) => list.push(target),
                Err(error) => forbidden = Some(error),
            }
        }
        for target in old {
            let stays = list.iter().any(|it| it.address == target.address);
            target.is_gone.set(!stays);
        }
        let resting = list.iter().filter(|it| !it.health.get().is_used()).count();
        self.count.all.set(list.len());
        self.count.resting.set(resting);
        match forbidden {
            Some(forbidden) if list.is_empty() => Err(forbidden),
            _ => Ok(()),
        }
    }

    /// The address with the fewest connections, of those that may be used and are not in `tried`.
    ///
    /// # Errors
    /// There is none; the shortest time after which there may be one, if any is resting.
    pub(super) fn choose(
        &self,
        tried: &[Rc<Target>],
        now: Instant,
    ) -> Result<Chosen, Option<Duration>> {
        let list = self.list.borrow();
        let from = self.next.get().checked_rem(list.len()).unwrap_or(0);
        self.next.set(from.saturating_add(1));
        let (mut best, mut wait): (Option<(&Rc<Target>, Leave)>, Option<Duration>) = (None, None);
        for target in list.iter().cycle().skip(from).take(list.len()) {
            if target.is_shunned.get() || tried.iter().any(|it| Rc::ptr_eq(it, target)) {
                continue;
            }
            let leave = target.health.get().leave(now);
            match leave {
                Leave::Wait(rest) => {
                    wait = Some(wait.map_or(rest, |least| least.min(rest)));
                    continue;
                }
                // Whoever has rested is tried before others are loaded: it would never come back.
                Leave::Try => {
                    best = Some((target, leave));
                    break;
                }
                Leave::Use => {}
            }
            let connections = target.connections.get();
            if best.is_none_or(|(best, _)| connections < best.connections.get()) {
                best = Some((target, leave));
            }
        }
        let (target, leave) = best.ok_or(wait)?;
        let trial = (leave == Leave::Try).then(|| {
            target.becomes(target.health.get().tried());
            Trial(Rc::clone(target))
        });
        Ok(Chosen {
            target: Rc::clone(target),
            trial,
        })
    }
}

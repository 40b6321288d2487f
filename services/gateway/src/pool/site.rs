//! The connections of one thread to one upstream: how many there may be, which are idle, and who
//! waits for one.
//!
//! - There are never more connections than this thread's part of the limit.
//! - Whoever waits longest is served first: what becomes free is handed over, never put aside
//!   while somebody waits.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
    time::Duration,
};

use hyper::client::conn::http1;
use tokio::{sync::oneshot, time::Instant};

use super::{
    Direct, Held, IDLE, Lent, Wire,
    line::{Line, STREAMS_TARGET},
    targets::{Target, Targets},
};
use crate::{
    catalogue::{Protocol, Upstream},
    upload::Uploaded,
};

#[cfg(test)]
mod tests;

/// Idle connections kept per upstream and thread. With fewer than there are calls at once, the rest
/// is opened anew by each wave of calls, and a queue of accepts that overflows costs a second.
const IDLE_MAX: usize = 1_024;

/// A connection that waits for a call.
struct Idle {
    sender: http1::SendRequest<Uploaded>,
    target: Rc<Target>,
    /// One that its upstream closes while it waits counts no more.
    held: Weak<Held>,
    since: Instant,
}

/// One upstream.
pub(crate) struct Site {
    pub(super) upstream: Upstream,
    pub(super) targets: Targets,
    /// Of this thread.
    connections_max: usize,
    /// Open, or being opened.
    connections: Cell<usize>,
    /// Being opened.
    opening: Cell<usize>,
    /// What was agreed upon last, where either version may be.
    speaks_h2: Cell<Option<bool>>,
    idle: RefCell<VecDeque<Idle>>,
    /// The same without hyper.
    direct: RefCell<VecDeque<(Direct, Instant)>>,
    lines: RefCell<Vec<Rc<Line>>>,
    queue: RefCell<VecDeque<oneshot::Sender<Handed>>>,
    used: Cell<Instant>,
}

/// What somebody in the queue is given.
pub(super) enum Handed {
    Lent(Lent),
    /// The same, but hyper has not had it yet.
    Direct(Box<Direct>),
    /// A connection may be opened.
    Slot(Slot),
}

/// The right to have one connection; held by it until it is closed.
pub(super) struct Slot {
    site: Rc<Site>,
    target: Option<Rc<Target>>,
}

impl Slot {
    pub(super) fn site(&self) -> &Rc<Site> {
        &self.site
    }

    /// The connection goes there.
    pub(super) fn goes_to(&mut self, target: &Rc<Target>) {
        self.comes_back();
        target.opened();
        self.target = Some(Rc::clone(target));
    }

    fn comes_back(&mut self) {
        if let Some(target) = self.target.take() {
            target.closed();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.comes_back();
        let site = &self.site;
        if let Some(next) = site.next_in_queue() {
            let slot = Self {
                site: Rc::clone(site),
                target: None,
            };
            // Whoever has gone drops it, which hands it on.
            drop(next.send(Handed::Slot(slot)));
            return;
        }
        site.connections
            .set(site.connections.get().saturating_sub(1));
    }
}

/// Counts a connection while it is being opened.
pub(super) struct Opening(Rc<Site>);

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.opening.set(self.0.opening.get().saturating_sub(1));
    }
}

impl Site {
    pub(super) fn new(upstream: Upstream, connections_max: usize) -> Rc<Self> {
        Rc::new(Self {
            upstream,
            targets: Targets::new(),
            connections_max,
            connections: Cell::default(),
            opening: Cell::default(),
            speaks_h2: Cell::default(),
            idle: RefCell::default(),
            direct: RefCell::default(),
            lines: RefCell::default(),
            queue: RefCell::default(),
            used: Cell::new(Instant::now()),
        })
    }

    /// A connection that is there already.
    pub(super) fn take(self: &Rc<Self>) -> Option<Lent> {
        while let Some(idle) = self.pop() {
            let is_good = idle.sender.is_ready() && idle.target.is_used();
            if let Some(held) = idle.held.upgrade()
                && is_good
                && idle.since.elapsed() <= IDLE
            {
                return Some(self.again(idle.sender, idle.target, held));
            }
        }
        let line = self.line()?;
        Some(line.lend(self))
    }

    /// One that has carried calls.
    fn again(
        self: &Rc<Self>,
        sender: http1::SendRequest<Uploaded>,
        target: Rc<Target>,
        held: Rc<Held>,
    ) -> Lent {
        Lent {
            wire: Wire::One(sender),
            reused: true,
            target,
            trial: None,
            site: Rc::clone(self),
            held: Some(held),
            was_heard: false,
        }
    }

    /// Somebody waits for a place.
    pub(super) fn is_awaited(&self) -> bool {
        !self.queue.borrow().is_empty()
    }

    /// Closes one of hyper's that waits, so that its place becomes free in a moment, for whoever
    /// waits longest then. False: none does.
    pub(super) fn close_idle(&self) -> bool {
        while let Some(idle) = self.pop() {
            if idle.held.upgrade().is_some() {
                return true;
            }
        }
        false
    }

    fn pop(&self) -> Option<Idle> {
        self.idle.borrow_mut().pop_back()
    }

    /// The same without hyper.
    pub(super) fn take_direct(&self) -> Option<Direct> {
        loop {
            let (direct, _) = self.direct.borrow_mut().pop_back()?;
            if direct.target.is_used() && direct.is_silent() {
                return Some(direct);
            }
        }
    }

    /// One without hyper is ready for another call.
    pub(super) fn put_direct(&self, direct: Direct) {
        if !direct.target.is_used() {
            return;
        }
        if self.is_awaited() && !direct.is_silent() {
            return; // its place is handed on, and another one opened
        }
        if let Some(next) = self.next_in_queue() {
            drop(next.send(Handed::Direct(Box::new(direct)))); // who has gone lets it be closed
            return;
        }
        if self.direct.borrow().len() < IDLE_MAX {
            // As of the last tidying: so they are closed a little too early, never too late.
            let waiting = (direct, self.used.get());
            self.direct.borrow_mut().push_back(waiting);
        }
    }

    /// The HTTP/2 connection with the fewest streams that has room. Above the target only when no
    /// further connection may be opened.
    fn line(&self) -> Option<Rc<Line>> {
        let is_full = self.connections.get() >= self.connections_max;
        let most = if is_full { usize::MAX } else { STREAMS_TARGET };
        let lines = self.lines.borrow();
        let roomy = lines.iter().filter(|line| line.has_room(most));
        roomy.min_by_key(|line| line.streams()).map(Rc::clone)
    }

    /// Whether streams share a connection that is opened now, as far as is known: who finds out is
    /// waited for.
    pub(super) fn is_shared(&self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Http1 => false,
            Protocol::H2 => true,
            Protocol::Auto => self.upstream.tls && self.speaks_h2.get() != Some(false),
        }
    }

    /// What both sides have agreed upon. Who waited for a connection to share, and cannot, opens
    /// his own.
    pub(super) fn agreed(self: &Rc<Self>, is_h2: bool) {
        self.speaks_h2.set(Some(is_h2));
        while !is_h2
            && self.connections.get() < self.connections_max
            && let Some(next) = self.next_in_queue()
        {
            self.connections
                .set(self.connections.get().saturating_add(1));
            let slot = Slot {
                site: Rc::clone(self),
                target: None,
            };
            drop(next.send(Handed::Slot(slot))); // whoever has gone hands it on
        }
    }

    /// The right to open a connection, if there may be one more. Where streams share connections,
    /// those that are being opened are waited for.
    pub(super) fn reserve(self: &Rc<Self>, is_shared: bool) -> Option<Slot> {
        let coming = self.opening.get().saturating_mul(STREAMS_TARGET);
        if self.connections.get() >= self.connections_max
            || (is_shared && self.queue.borrow().len() < coming)
        {
            return None;
        }
        self.connections
            .set(self.connections.get().saturating_add(1));
        Some(Slot {
            site: Rc::clone(self),
            target: None,
        })
    }

    /// Waits in the queue.
    ///
    /// # Errors
    /// Too many wait, or nothing becomes free in time.
    pub(super) async fn wait(
        &self,
        waiting_max: usize,
        patience: Duration,
    ) -> Result<Handed, Crowded> {
        let handed = {
            let mut queue = self.queue.borrow_mut();
            if queue.len() >= waiting_max {
                queue.retain(|waiter| !waiter.is_closed());
            }
            if queue.len() >= waiting_max {
                return Err(Crowded);
            }
            let (hand, handed) = oneshot::channel();
            queue.push_back(hand);
            handed
        };
        // What is handed over at the last moment comes back by its drop.
        match tokio::time::timeout(patience, handed).await {
            Ok(Ok(handed)) => Ok(handed),
            Ok(Err(_)) | Err(_) => Err(Crowded),
        }
    }

    fn next_in_queue(&self) -> Option<oneshot::Sender<Handed>> {
        let mut queue = self.queue.borrow_mut();
        while let Some(next) = queue.pop_front() {
            if !next.is_closed() {
                return Some(next);
            }
        }
        None
    }

    pub(super) fn opening(self: &Rc<Self>) -> Opening {
        self.opening.set(self.opening.get().saturating_add(1));
        Opening(Rc::clone(self))
    }

    /// A connection is ready for another call.
    pub(super) fn put(
        self: &Rc<Self>,
        sender: http1::SendRequest<Uploaded>,
        target: Rc<Target>,
        held: Rc<Held>,
    ) {
        if !target.is_used() {
            return;
        }
        if let Some(next) = self.next_in_queue() {
            let lent = self.again(sender, target, held);
            drop(next.send(Handed::Lent(lent))); // who has gone gives nothing back: it is closed
            return;
        }
        let since = Instant::now();
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_MAX {
            idle.push_back(Idle {
                sender,
                target,
                held: Rc::downgrade(&held),
                since,
            });
        }
    }

    /// A connection for streams is there.
    pub(super) fn add(&self, line: &Rc<Line>) {
        self.lines.borrow_mut().push(Rc::clone(line));
    }

    /// It takes no more streams.
    pub(super) fn remove(&self, line: &Rc<Line>) {
        self.lines
            .borrow_mut()
            .retain(|other| !Rc::ptr_eq(other, line));
    }

    /// Gives streams of a connection to those who wait.
    pub(super) fn hand_over(self: &Rc<Self>, line: &Rc<Line>) {
        while line.has_room(usize::MAX)
            && let Some(next) = self.next_in_queue()
        {
            drop(next.send(Handed::Lent(line.lend(self))));
        }
    }

    /// Closes what nobody has used for long. Returns whether the site is in use.
    pub(super) fn tidy(&self, now: Instant) -> bool {
        let is_old = |since: Instant| now.saturating_duration_since(since) > IDLE;
        loop {
            let mut idle = self.idle.borrow_mut();
            if !idle.front().is_some_and(|idle| is_old(idle.since)) {
                break;
            }
            idle.pop_front();
        }
        loop {
            let mut direct = self.direct.borrow_mut();
            if !direct.front().is_some_and(|(_, since)| is_old(*since)) {
                break;
            }
            let old = direct.pop_front();
            drop(direct);
            drop(old); // its slot may hand itself on
        }
        let stays = |line: &Rc<Line>| line.is_used() && !line.idle_since().is_some_and(is_old);
        self.lines.borrow_mut().retain(stays);
        if self.connections.get() > 0 {
            self.used.set(now);
        }
        !is_old(self.used.get())
    }

    /// Has been asked for.
    pub(super) fn touch(&self) {
        self.used.set(Instant::now());
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.get()
    }

    pub(super) fn is_opening(&self) -> bool {
        self.opening.get() > 0
    }
}

/// Nothing became free in time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crowded;

/// The part of a limit that one of `threads` threads has: the parts add up to it, but none is 0.
pub(super) fn share(limit: usize, index: usize, threads: usize) -> usize {
    let base = limit.checked_div(threads).unwrap_or(limit);
    let rest = limit.checked_rem(threads).unwrap_or(0);
    base.saturating_add(usize::from(index < rest)).max(1)
}

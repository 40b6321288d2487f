//! Connections to upstreams, one pool per thread, last in first out.
//!
//! - A call never changes thread, so nothing here is locked or shared.
//! - Connections are bounded, and so is the queue for them, in length and in time.
//! - An address that keeps failing is left alone, and tried again by single calls; so is one that
//!   says it is not well, where a service tells whom to ask.

pub(crate) mod checks;
mod connect;
mod direct;
mod health;
mod line;
pub(crate) mod patience;
mod site;
mod targets;

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use foldhash::fast::RandomState;
use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use self::{connect::Connector, direct::Direct, health::Fault, targets::Target};
use self::{
    connect::Opened,
    line::Stream,
    site::{Handed, Site, Slot},
    targets::{Chosen, LOOKUP_PERIOD, STALE_MAX, Trial},
};
use crate::{
    catalogue::{Protocol, Upstream},
    metrics::Waited,
    upload::Uploaded,
};

/// An idle connection is closed after so long.
const IDLE: Duration = Duration::from_secs(55);
/// Addresses that one call tries to connect to.
const CONNECTS_MAX: usize = 3;
/// Between two rounds of closing what is idle and looking up names again.
const UPKEEP_PERIOD: Duration = Duration::from_secs(5);

/// One thread's part of the limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Of all threads, this one's number and how many there are.
    pub(crate) index: usize,
    pub(crate) threads: usize,
    /// Calls that wait for a connection to one upstream, on all threads.
    pub(crate) waiting_max: usize,
    /// How long they do.
    pub(crate) wait: Duration,
}

/// The connections of one thread.
pub(crate) struct Pool {
    sites: RefCell<HashMap<Upstream, Rc<Site>, RandomState>>,
    connector: Connector,
    limits: Limits,
}

/// A connection in use. Dropped, it is closed; given back, it is used again.
pub(crate) struct Lent {
    pub(crate) wire: Wire,
    /// False for one that was opened for this call.
    pub(crate) reused: bool,
    target: Rc<Target>,
    trial: Option<Trial>,
    site: Rc<Site>,
    /// Of HTTP/1.1.
    held: Option<Rc<Held>>,
    /// Bytes of an answer came, if only some.
    pub(crate) was_heard: bool,
}

/// What a connection of HTTP/1.1 has for as long as hyper or a tunnel has it.
pub(super) struct Held {
    /// Its place.
    _slot: Slot,
    /// Bytes that were read from it.
    heard: Arc<AtomicU64>,
}

/// What a call needs of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Need<'a> {
    /// One that is there will do.
    Any,
    /// One of its own, where another one may be opened.
    New,
    /// The same, but not to this address, which has just failed the call.
    Elsewhere(&'a Rc<Target>),
    /// The same, for HTTP/1.1: it asks for another protocol, which HTTP/2 cannot change to.
    Switch,
}

impl Need<'_> {
    /// What may be agreed upon.
    const fn protocol(self, protocol: Protocol) -> Protocol {
        match (self, protocol) {
            (Self::Switch, Protocol::Auto) => Protocol::Http1,
            (_, protocol) => protocol,
        }
    }

    fn avoids(self, target: &Rc<Target>) -> bool {
        matches!(self, Self::Elsewhere(failed) if Rc::ptr_eq(failed, target))
    }
}

/// What is spoken on it.
pub(crate) enum Wire {
    /// HTTP/1.1, for one call at a time.
    One(http1::SendRequest<Uploaded>),
    /// A stream of HTTP/2.
    Two(Stream),
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum Unlent {
    /// Nobody took one.
    Unreachable(anyhow::Error),
    /// All addresses have failed lately; the next one is tried after so long.
    Resting(Duration),
    /// There are as many as there may be, and none became free in time.
    Crowded,
}

impl Lent {
    pub(crate) fn is_h2(&self) -> bool {
        matches!(self.wire, Wire::Two(_))
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// The connection broke; with the request, if it was not sent.
    pub(crate) async fn send(
        &mut self,
        request: Request<Uploaded>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Uploaded>>> {
        let before = self.heard();
        let sent = match &mut self.wire {
            Wire::One(sender) => sender.try_send_request(request).await,
            Wire::Two(stream) => stream.sender.try_send_request(request).await,
        };
        self.was_heard = self.heard() != before;
        sent
    }

    fn heard(&self) -> u64 {
        let held = self.held.as_ref();
        held.map_or(0, |held| held.heard.load(Ordering::Relaxed))
    }

    /// Where it leads, to say later how that went.
    pub(crate) fn target(&self) -> Rc<Target> {
        Rc::clone(&self.target)
    }

    /// The upstream has answered.
    pub(crate) fn answered(&mut self, pool: &Pool, status: StatusCode) {
        pool.answered(&self.target, &mut self.trial, status.as_u16());
    }

    /// Puts the connection back as soon as it is ready for another request.
    pub(crate) fn give_back(self) {
        let Self {
            wire,
            target,
            site,
            held,
            ..
        } = self;
        let (Wire::One(mut sender), Some(held)) = (wire, held) else {
            return; // a stream's place is free again
        };
        if sender.is_ready() {
            site.put(sender, target, held);
            return;
        }
        // The connection's own task has still to see the end of the answer.
        tokio::task::spawn_local(async move {
            if sender.ready().await.is_ok() {
                site.put(sender, target, held);
            }
        });
    }
}

impl Pool {
    pub(crate) fn new(connector: Connector, limits: Limits) -> Self {
        Self {
            sites: RefCell::default(),
            connector,
            limits,
        }
    }

    fn site(&self, upstream: &Upstream) -> Rc<Site> {
        if let Some(site) = self.sites.borrow().get(upstream) {
            return Rc::clone(site);
        }
        let Limits { index, threads, .. } = self.limits;
        let connections_max = site::share(upstream.connections_max, index, threads);
        let site = Site::new(upstream.clone(), connections_max);
        let mut sites = self.sites.borrow_mut();
        sites.insert(upstream.clone(), Rc::clone(&site));
        site
    }

    /// A connection for a call: one that is there, or where none is free or will do another.
    ///
    /// # Errors
    /// There is none to be had.
    pub(crate) async fn lend(&self, upstream: &Upstream, need: Need<'_>) -> Result<Lent, Unlent> {
        let site = self.site(upstream);
        if matches!(need, Need::Any)
            && let Some(lent) = site.take()
        {
            return Ok(lent);
        }
        Box::pin(self.find(site, need)).await
    }

    async fn find(&self, site: Rc<Site>, need: Need<'_>) -> Result<Lent, Unlent> {
        site.touch();
        let protocol = need.protocol(site.upstream.protocol);
        let is_shared = site.is_shared(protocol);
        // One that waits without hyper makes room for one with it.
        let reserved = site.reserve(is_shared).or_else(|| {
            drop(site.take_direct()?);
            site.reserve(is_shared)
        });
        let slot = match reserved {
            Some(slot) => slot,
            None => {
                // Nor will one do that is idle: it makes room, for each who waits like this one.
                if !matches!(need, Need::Any) {
                    site.close_idle();
                }
                match self.wait(&site).await? {
                    // It cannot change, and what could is in use.
                    Handed::Lent(lent) if lent.is_h2() && protocol == Protocol::Http1 => {
                        return Err(Unlent::Crowded);
                    }
                    Handed::Lent(lent) if need.avoids(&lent.target) => {
                        lent.give_back();
                        return Err(only_failed());
                    }
                    Handed::Lent(lent) => return Ok(lent),
                    Handed::Direct(direct) if need.avoids(direct.target()) => {
                        direct.give_back();
                        return Err(only_failed());
                    }
                    Handed::Direct(direct) => {
                        let lent = direct.into_lent().await;
                        return lent.map_err(|error| Unlent::Unreachable(error.into()));
                    }
                    Handed::Slot(slot) => slot,
                }
            }
        };
        let opening = site.opening();
        let tried = match need {
            Need::Elsewhere(target) => vec![Rc::clone(target)],
            _ => Vec::new(),
        };
        let opened = self.open(&site, slot, protocol, tried).await;
        drop(opening);
        opened
    }

    async fn wait(&self, site: &Site) -> Result<Handed, Unlent> {
        let Limits {
            index,
            threads,
            waiting_max,
            wait,
        } = self.limits;
        // Who waits for a connection that others share waits as long as it may take to open it.
        let patience = if site.is_opening() {
            wait.max(site.upstream.connect_timeout)
        } else {
            wait
        };
        let waiting_max = site::share(waiting_max, index, threads);
        let handed = site.wait(waiting_max, patience).await;
        self.connector.metrics.waited(match handed {
            Ok(_) => Waited::Served,
            Err(_) => Waited::Refused,
        });
        handed.map_err(|_crowded| Unlent::Crowded)
    }

    /// Opens a connection to the first address that takes one.
    async fn open(
        &self,
        site: &Rc<Site>,
        mut slot: Slot,
        protocol: Protocol,
        tried: Vec<Rc<Target>>,
    ) -> Result<Lent, Unlent> {
        let opened = self.open_by(site, &mut slot, tried, async |target| {
            self.connector.open(site, target, protocol).await
        });
        let (opened, chosen) = opened.await?;
        if protocol == Protocol::Auto {
            site.agreed(matches!(opened, Opened::Two(..)));
        }
        Ok(opened.lend(site, slot, chosen))
    }

    /// Tries addresses until one lets itself be connected to.
    async fn open_by<T>(
        &self,
        site: &Rc<Site>,
        slot: &mut Slot,
        mut tried: Vec<Rc<Target>>,
        connect: impl AsyncFn(&Target) -> anyhow::Result<T>,
    ) -> Result<(T, Chosen), Unlent> {
        let mut failed = None;
        if let Err(error) = self.connector.refresh(site, STALE_MAX).await {
            return Err(Unlent::Unreachable(error));
        }
        while tried.len() < CONNECTS_MAX {
            let chosen = match site.targets.choose(&tried, Instant::now()) {
                Ok(chosen) => chosen,
                Err(wait) => return Err(none(failed, wait)),
            };
            slot.goes_to(&chosen.target);
            match connect(&chosen.target).await {
                Ok(opened) => {
                    chosen.target.connected();
                    return Ok((opened, chosen));
                }
                Err(error) => {
                    self.failed(&chosen.target, Fault::Connect);
                    failed = Some(error);
                }
            }
            tried.push(chosen.target);
        }
        Err(none(failed, None))
    }

    /// As if an upstream's name stood for these addresses.
    #[cfg(test)]
    pub(crate) fn point(&self, upstream: &Upstream, addresses: &[std::net::SocketAddr]) {
        self.site(upstream).targets.learn(addresses);
    }

    /// Whether calls to an upstream may go to another address than this one.
    pub(crate) fn has_other(&self, upstream: &Upstream, target: &Rc<Target>) -> bool {
        let targets = self.site(upstream).targets.all();
        let is_other = |it: &Rc<Target>| !Rc::ptr_eq(it, target) && it.is_used();
        targets.iter().any(is_other)
    }

    /// The upstream has answered. One that says itself that it cannot has failed.
    pub(crate) fn answered(&self, target: &Target, trial: &mut Option<Trial>, status: u16) {
        match status {
            502..=504 => self.failed(target, Fault::Call),
            _ => target.answered(),
        }
        *trial = None;
    }

    /// A failure that is the address's: enough of them in a row, and it is left alone.
    pub(crate) fn failed(&self, target: &Target, fault: Fault) {
        if target.failed(fault, Instant::now()) {
            self.connector.metrics.rests();
            tracing::warn!(address = %target.address, "an address of an upstream is left alone");
        }
    }

    /// Closes what has not been used for long at `now`, and forgets what is not used at all.
    pub(crate) fn tidy(&self, now: Instant) {
        self.sites.borrow_mut().retain(|_, site| site.tidy(now));
        self.connector.checks.tidy(now);
    }

    /// Closes what is idle, and looks names up again, until `stop` is cancelled.
    pub(crate) async fn keep(&self, stop: CancellationToken) {
        let mut before = 0_usize;
        while !stop.is_cancelled() {
            tokio::time::sleep(UPKEEP_PERIOD).await;
            let now = Instant::now();
            self.tidy(now);
            let sites: Vec<Rc<Site>> = self.sites.borrow().values().map(Rc::clone).collect();
            let open = sites.iter().map(|site| site.connections());
            let connections = open.fold(0, usize::saturating_add);
            // At once: one name that nobody answers for holds up no other.
            let looked_up = sites.iter().map(async |site| {
                if let Err(error) = self.connector.refresh(site, LOOKUP_PERIOD).await {
                    tracing::debug!(upstream = site.upstream.host, %error, "a name is lost");
                }
            });
            join_all(looked_up).await;
            join_all(sites.iter().map(|site| checks::look(&self.connector, site))).await;
            self.connector.metrics.connections(before, connections);
            before = connections;
        }
    }
}

/// What became free leads to where the call has just failed.
fn only_failed() -> Unlent {
    Unlent::Unreachable(anyhow::anyhow!("no connection to another address is free"))
}

fn none(failed: Option<anyhow::Error>, wait: Option<Duration>) -> Unlent {
    match (failed, wait) {
        (None, Some(wait)) => Unlent::Resting(wait),
        (Some(error), _) => Unlent::Unreachable(error),
        (None, None) => Unlent::Unreachable(anyhow::anyhow!("the name has no address")),
    }
}
